//! The translating CPU engine: software MMU, dispatch, tiers.
