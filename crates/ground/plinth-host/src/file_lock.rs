//! Advisory locks on single bytes of a file that belong to the open file description (`F_OFD_SETLK`,
//! fcntl(2)): they last until every duplicate of the descriptor is closed, whoever else closes the file.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

fn one_byte(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// Takes a shared lock on `byte`; it can lie beyond the file's end.
///
/// # Errors
/// `EAGAIN` if somebody holds an exclusive lock there; `EINVAL`, `ENOLCK` or `ENOTSUP` where the file
/// system has no such locks.
pub fn share(file: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
    let lock = one_byte(libc::F_RDLCK, byte);
    // SAFETY: the descriptor is open for the borrow's life, and the kernel only reads the structure.
    let r = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives up the locks on `len` bytes from `first` on: at once, also where the kernel still holds the open file for
/// requests that it has completed.
///
/// # Errors
/// As fcntl(2).
pub fn release(file: BorrowedFd<'_>, first: i64, len: i64) -> io::Result<()> {
    let lock = libc::flock { l_len: len, ..one_byte(libc::F_UNLCK, first) };
    // SAFETY: as above.
    let r = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// True if another open file description holds a lock of any kind on `byte`.
///
/// # Errors
/// As for [`share`].
pub fn held_by_another(file: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    let mut lock = one_byte(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is open for the borrow's life, and the structure is ours to be written.
    let r = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    if r == 0 { Ok(lock.l_type != libc::F_UNLCK as libc::c_short) } else { Err(io::Error::last_os_error()) }
}
