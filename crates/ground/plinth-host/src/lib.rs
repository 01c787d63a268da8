//! The host's system calls that the engine needs: memory maps, event counters, futexes.

#[allow(unsafe_code)] // Open-file-description locks have no safe wrapper.
pub mod file_lock;
