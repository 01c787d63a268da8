//! The guest's clock and its timers.
