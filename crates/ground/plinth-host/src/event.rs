//! A counter that wakes who waits for it (eventfd(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// An eventfd.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// A new one, not signalled.
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Wakes who waits, or who waits next.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes of ours. It fails only when the counter is full, and then it is signalled.
        unsafe { libc::write(self.raw(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes the signal back.
    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight bytes of ours. It fails only when there is no signal.
        unsafe { libc::read(self.raw(), count.as_mut_ptr().cast(), count.len()) };
    }

    /// Waits for a signal and takes it back.
    pub fn wait(&self) {
        let mut poll = libc::pollfd { fd: self.raw(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, ours. When a signal of the process ends it early, the caller looks again.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        self.clear();
    }
}
