//! The typed intermediate representation of the CPU engine.
