//! Raw images: the file's bytes are the disk's.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{Disk, total};
use crate::format::{Format, Sample, probe};
use crate::graph::lock::{self, Lock};
use crate::probe::{not_a_disk, stated_size};
use crate::{Error, ErrorKind, SECTOR};

/// Vectors of one system call at most (Linux, `UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;
/// Bytes of zeros written at once where the file system cannot do it by itself.
const ZEROS: usize = 1 << 20;

/// How to open an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Refuse writes, and let others read along.
    pub read_only: bool,
    /// The user has said that the contents are raw: do not look at them.
    pub trust_raw: bool,
}

/// A raw image in a file or on a block device. It is locked while it lives.
///
/// A file that ends within a sector is padded: the last sector's missing bytes read as zeros, and a write
/// to them makes the file longer.
#[derive(Debug)]
pub struct RawImage {
    path: PathBuf,
    file: File,
    size: u64,
    read_only: bool,
}

impl RawImage {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// The file cannot be opened or is in use; without `trust_raw`, its contents are another format or say
    /// that the disk is larger than the file.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, Error> {
        const OPEN: &str = "open disk image";
        let failed = |e| Error::host(OPEN, path, e);
        let refused = |kind, why: &str| Error::refused(kind, OPEN, path, why);
        let file = File::options().read(true).write(!options.read_only).open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(refused(ErrorKind::Format, "it is neither a regular file nor a block device"));
        }
        // Block devices have no length in their metadata.
        let len = (&file).seek(SeekFrom::End(0)).map_err(failed)?;
        if len == 0 {
            return Err(refused(ErrorKind::Format, "it is empty"));
        }
        if lock::take(&file, options.read_only).map_err(failed)? == Lock::Busy {
            return Err(refused(ErrorKind::Busy, "another process is using it"));
        }
        if !options.trust_raw {
            check_contents(&file, len).map_err(|why| refused(ErrorKind::Format, &why))?;
        }
        let size = len.checked_next_multiple_of(SECTOR).unwrap_or(len - len % SECTOR);
        Ok(Self { path: path.to_owned(), file, size, read_only: options.read_only })
    }

    fn check(&self, doing: &str, offset: u64, len: u64) -> Result<(), Error> {
        if offset.checked_add(len).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let why = format!("{len} bytes at {offset} are beyond its end at {}", self.size);
        Err(Error::refused(ErrorKind::OutOfRange, doing, &self.path, why))
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), Error> {
        if self.read_only {
            return Err(Error::refused(ErrorKind::ReadOnly, "write to", &self.path, "it is read-only"));
        }
        self.check("write to", offset, len)
    }

    fn failed(&self, doing: &str, e: impl Into<io::Error>) -> Error {
        Error::host(doing, &self.path, e.into())
    }

    /// Applies the first of `modes` that the file system has; false if it has none of them.
    fn allocate(&self, modes: &[FallocateFlags], offset: u64, len: u64) -> io::Result<bool> {
        for &mode in modes {
            match rustix::fs::fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(false)
    }
}

fn check_contents(file: &File, len: u64) -> Result<(), String> {
    let mut head = vec![0; len.min(2048) as usize];
    file.read_exact_at(&mut head, 0).map_err(|e| e.to_string())?;
    let tail_len = len.min(1024);
    let mut tail = vec![0; tail_len as usize];
    file.read_exact_at(&mut tail, len - tail_len).map_err(|e| e.to_string())?;
    let format = probe(&Sample { head: &head, tail: &tail, len, name: "" });
    if format != Format::Raw {
        return Err(format!("it is a {format} image, not a raw disk"));
    }
    if let Some(kind) = not_a_disk(&head) {
        return Err(format!("its contents are {kind}: unpack it first"));
    }
    match stated_size(&head) {
        Some(stated) if stated > len.next_multiple_of(SECTOR) => Err(format!(
            "it is truncated: its contents are those of a disk of {stated} bytes, and the file has {len}"
        )),
        _ => Ok(()),
    }
}

impl Disk for RawImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), Error> {
        self.check("read", offset, total(bufs.iter().map(|b| b.len())))?;
        let mut at = offset;
        let mut left = bufs;
        IoSliceMut::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let n = left.len().min(MAX_VECTORS);
            match rustix::io::preadv(&self.file, &mut left[..n], at) {
                Ok(0) => {
                    // Behind the end of a file that ends within its last sector.
                    left.iter_mut().for_each(|b| b.fill(0));
                    return Ok(());
                }
                Ok(n) => {
                    at += n as u64;
                    IoSliceMut::advance_slices(&mut left, n);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.failed("read", e)),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), Error> {
        self.check_write(offset, total(bufs.iter().map(|b| b.len())))?;
        let mut at = offset;
        let mut bufs = bufs.to_vec();
        let mut left = &mut bufs[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let n = left.len().min(MAX_VECTORS);
            match rustix::io::pwritev(&self.file, &left[..n], at) {
                Ok(0) => return Err(self.failed("write to", io::ErrorKind::WriteZero)),
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut left, n);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.failed("write to", e)),
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|e| self.failed("flush", e))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.check_write(offset, len)?;
        if len != 0 {
            // A file system that cannot give space back keeps it: a discard is a hint.
            self.allocate(&[FallocateFlags::PUNCH_HOLE], offset, len)
                .map_err(|e| self.failed("discard in", e))?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let (hole, zero) = (FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE);
        let modes: &[_] = if unmap { &[hole, zero] } else { &[zero] };
        if self.allocate(modes, offset, len).map_err(|e| self.failed("write zeros to", e))? {
            return Ok(());
        }
        let zeros = vec![0; ZEROS.min(usize::try_from(len).unwrap_or(ZEROS))];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeros.len() as u64);
            self.write_at(offset + done, &[IoSlice::new(&zeros[..n as usize])])?;
            done += n;
        }
        Ok(())
    }
}
