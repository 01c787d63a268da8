//! Files that share space on a file system that copies on write (Btrfs, XFS, bcachefs, NFS 4.2 and others).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct file_clone_range` of linux/fs.h.
#[repr(C)]
struct CloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// `FICLONERANGE` of linux/fs.h: `_IOW(0x94, 13, struct file_clone_range)`.
const FICLONERANGE: libc::Ioctl = 0x4020_940d;

/// Makes `len` bytes of `target` from byte `to` on those of `source` from byte `from` on, without copying them: they
/// share their space until either is written. What of the source is not on the disk yet is written first. All three
/// have to be multiples of the file system's block; `len` is not zero, which would be all of the source.
///
/// # Errors
/// `EXDEV` for files of two file systems; `EOPNOTSUPP`, `EINVAL` or `ENOTTY` where they cannot share, or not at these
/// places; others as for a write.
pub fn share(source: BorrowedFd<'_>, from: u64, len: u64, target: BorrowedFd<'_>, to: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let range = CloneRange {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: from,
        src_length: len,
        dest_offset: to,
    };
    // SAFETY: both descriptors are open for their borrows' lives, and the structure is ours and laid out as the
    // kernel's, which only reads it.
    let r = unsafe { libc::ioctl(target.as_raw_fd(), FICLONERANGE, &raw const range) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn files_share_where_the_file_system_can_and_are_left_alone_where_it_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, vec![7; 64 << 10]).unwrap();
        std::fs::write(&b, vec![1; 64 << 10]).unwrap();
        let (source, target) = (File::open(&a).unwrap(), File::options().write(true).open(&b).unwrap());
        let shared = share(source.as_fd(), 4096, 8192, target.as_fd(), 16384);
        let now = std::fs::read(&b).unwrap();
        match shared {
            Ok(()) => {
                assert!(now[16384..24576].iter().all(|&x| x == 7) && now[24576..].iter().all(|&x| x == 1))
            }
            Err(e) => {
                assert!([libc::EOPNOTSUPP, libc::ENOTTY, libc::EINVAL].map(Some).contains(&e.raw_os_error()));
                assert!(now.iter().all(|&x| x == 1));
            }
        }
        // Between two file systems it never works.
        if let Ok(other) = File::options().write(true).open("/dev/null") {
            assert!(share(source.as_fd(), 0, 4096, other.as_fd(), 0).is_err());
        }
    }
}
