//! The host's system calls that have no safe wrapper elsewhere, and what is built directly on them: locks on open
//! files, buffers for I/O, asynchronous I/O, what the page cache has, files that share space.

#[allow(unsafe_code)] // System calls of io_uring and their memory.
pub mod aio;
#[allow(unsafe_code)] // Owned, aligned, splittable memory.
pub mod buffer;
#[allow(unsafe_code)] // eventfd has no wrapper that the other modules can share.
pub mod event;
#[allow(unsafe_code)] // Open-file-description locks have no safe wrapper.
pub mod file_lock;
#[allow(unsafe_code)] // cachestat has no wrapper.
pub mod page_cache;
#[allow(unsafe_code)] // FICLONERANGE has no wrapper.
pub mod reflink;
