//! What the host's page cache has of a file.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes of a range of a file, in whole pages. A page of a hole counts if it has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    /// In the page cache.
    pub all: u64,
    /// Of these, those that are still to be written to the disk, or being written.
    pub unwritten: u64,
}

/// cachestat(2), on every architecture; the C library's headers do not name it yet.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of linux/mman.h, in bytes.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// `struct cachestat` of linux/mman.h, in pages.
#[repr(C)]
#[derive(Default)]
struct Stat {
    cache: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Asks for `len` bytes from byte `offset` on; does not wait for the disk.
///
/// # Errors
/// `ENOSYS` before Linux 6.5; `EPERM` or `EACCES` where the file is somebody else's; `EOPNOTSUPP` where the file
/// system has no page cache of this kind.
pub fn cached(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Cached> {
    // No bytes would be all of the file's.
    if len == 0 {
        return Ok(Cached::default());
    }
    let (range, mut stat) = (Range { offset, len }, Stat::default());
    // SAFETY: the descriptor is open for the borrow's life, and both structures are ours and laid out as the kernel's.
    let r = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0u32) };
    if r != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it takes no memory of ours.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    Ok(Cached { all: stat.cache * page, unwritten: (stat.dirty + stat.writeback) * page })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_written_is_in_the_cache() {
        let path = std::env::temp_dir().join(format!("plinth-page-cache-{}", std::process::id()));
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        match cached(file.as_fd(), 0, 1 << 19) {
            Ok(now) => {
                assert!(now.all > 0 && now.unwritten <= now.all, "{now:?}");
                assert_eq!(cached(file.as_fd(), 2 << 20, 4096).unwrap(), Cached::default());
                assert_eq!(cached(file.as_fd(), 0, 0).unwrap(), Cached::default());
            }
            // An old kernel, or a sandbox that does not let it through.
            Err(e) => assert!(
                [libc::ENOSYS, libc::EPERM, libc::EACCES, libc::EOPNOTSUPP]
                    .map(Some)
                    .contains(&e.raw_os_error())
            ),
        }
    }
}
