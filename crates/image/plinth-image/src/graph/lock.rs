//! Image locks, in the form that other tools take them (QEMU's `block/file-posix.c`), so that neither
//! opens a disk that the other has in use.
//!
//! A user holds a shared lock on byte 100 + p for each permission p it has, and on byte 200 + p for each
//! permission it does not let others have. It may go on if nobody holds 200 + p of what it has, nor 100 + p
//! of what it excludes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use plinth_host::file_lock;

const HAS: i64 = 100;
const EXCLUDES: i64 = 200;

/// Reads see what was written last.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What became of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Held as long as the file is open.
    Taken,
    /// Another user excludes this one, or has what this one excludes.
    Busy,
    /// The file system has no such locks.
    Unavailable,
}

fn without_support(e: &io::Error) -> bool {
    matches!(
        rustix::io::Errno::from_io_error(e),
        Some(rustix::io::Errno::INVAL | rustix::io::Errno::NOLCK | rustix::io::Errno::OPNOTSUPP)
    )
}

/// Locks `file` for reading, and for writing unless `read_only`; others may read along with a reader.
pub fn take(file: &File, read_only: bool) -> io::Result<Lock> {
    let has: &[i64] = if read_only { &[CONSISTENT_READ] } else { &[CONSISTENT_READ, WRITE] };
    let excludes = [WRITE, RESIZE];
    let bytes = has.iter().map(|p| HAS + p).chain(excludes.iter().map(|p| EXCLUDES + p));
    for byte in bytes {
        match file_lock::share(file.as_fd(), byte) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Lock::Busy),
            Err(e) if without_support(&e) => return Ok(Lock::Unavailable),
            Err(e) => return Err(e),
        }
    }
    let against = has.iter().map(|p| EXCLUDES + p).chain(excludes.iter().map(|p| HAS + p));
    for byte in against {
        if file_lock::held_by_another(file.as_fd(), byte)? {
            return Ok(Lock::Busy);
        }
    }
    Ok(Lock::Taken)
}

/// Gives the locks up. Closing a file does that too, but its last requests may keep the kernel from closing it for a
/// moment, in which the next who opens it would find it in use.
pub fn release(file: &File) {
    // Without locks on this file system there is nothing to give up.
    let _given_up = file_lock::release(file.as_fd(), HAS, 2 * (EXCLUDES - HAS));
}
