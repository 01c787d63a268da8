//! The host's system calls that have no safe wrapper elsewhere: locks on open files.

#[allow(unsafe_code)] // Open-file-description locks have no safe wrapper.
pub mod file_lock;
