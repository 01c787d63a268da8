//! A copy-on-write layer in a temporary file: the disk below stays as it is.

use std::ffi::OsStr;
use std::io::{IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::FallocateFlags;

use super::{Disk, total};
use crate::{Error, ErrorKind};

/// Bytes that are copied at once.
const CLUSTER: u64 = 64 << 10;

/// A disk whose writes go into a temporary file without a name. They are gone when it is dropped.
pub struct Overlay {
    base: Box<dyn Disk>,
    file: std::fs::File,
    dir: PathBuf,
    /// One bit for each cluster: it is in the file.
    present: Vec<AtomicU64>,
    /// Held while clusters become present.
    fill: Mutex<()>,
}

impl Overlay {
    /// A layer over `base`, in the host's folder for large temporary files: `TMPDIR`, or `/var/tmp`, which
    /// unlike `/tmp` is not in memory.
    ///
    /// # Errors
    /// No temporary file could be made.
    pub fn new(base: Box<dyn Disk>) -> Result<Self, Error> {
        let dir = std::env::var_os("TMPDIR").filter(|d| !d.is_empty());
        Self::new_in(base, Path::new(dir.as_deref().unwrap_or(OsStr::new("/var/tmp"))))
    }

    /// A layer over `base`, in the folder `dir`.
    ///
    /// # Errors
    /// No temporary file could be made.
    pub fn new_in(base: Box<dyn Disk>, dir: &Path) -> Result<Self, Error> {
        const MAKE: &str = "make a temporary file in";
        let failed = |e| Error::host(MAKE, dir, e);
        let file = tempfile::tempfile_in(dir).map_err(failed)?;
        file.set_len(base.size()).map_err(failed)?;
        let words = base.size().div_ceil(CLUSTER * 64);
        let words = usize::try_from(words)
            .map_err(|_| Error::refused(ErrorKind::OutOfRange, MAKE, dir, "the disk is too large"))?;
        let present = (0..words).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { base, file, dir: dir.to_owned(), present, fill: Mutex::new(()) })
    }

    fn is_present(&self, cluster: u64) -> bool {
        let word = self.present.get((cluster / 64) as usize);
        word.is_some_and(|w| w.load(Ordering::Acquire) >> (cluster % 64) & 1 != 0)
    }

    fn set_present(&self, cluster: u64) {
        if let Some(w) = self.present.get((cluster / 64) as usize) {
            w.fetch_or(1 << (cluster % 64), Ordering::Release);
        }
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), Error> {
        if offset.checked_add(len).is_some_and(|end| end <= self.size()) {
            return Ok(());
        }
        let why = format!("{len} bytes at {offset} are beyond the disk's end at {}", self.size());
        Err(Error::refused(ErrorKind::OutOfRange, "use the overlay in", &self.dir, why))
    }

    fn failed(&self, doing: &str, e: impl Into<std::io::Error>) -> Error {
        Error::host(doing, &self.dir, e.into())
    }

    /// Reads from the layer that has `offset`, which has all of `buf`.
    fn read_one(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        if self.is_present(offset / CLUSTER) {
            use std::os::unix::fs::FileExt;
            self.file.read_exact_at(buf, offset).map_err(|e| self.failed("read the overlay in", e))
        } else {
            self.base.read_at(offset, &mut [IoSliceMut::new(buf)])
        }
    }

    fn write_file(&self, offset: u64, buf: &[u8]) -> Result<(), Error> {
        use std::os::unix::fs::FileExt;
        self.file.write_all_at(buf, offset).map_err(|e| self.failed("write to the overlay in", e))
    }

    /// Bytes of cluster `cluster`: the last one can be short.
    fn cluster_len(&self, cluster: u64) -> u64 {
        (self.size() - cluster * CLUSTER).min(CLUSTER)
    }

    /// Changes part of a cluster that may not be present: `change` writes `offset .. offset + len` of it.
    fn change(&self, offset: u64, len: u64, change: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let cluster = offset / CLUSTER;
        if self.is_present(cluster) {
            return change();
        }
        let _filling = self.fill.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_present(cluster) && len < self.cluster_len(cluster) {
            let mut copy = vec![0; self.cluster_len(cluster) as usize];
            self.base.read_at(cluster * CLUSTER, &mut [IoSliceMut::new(&mut copy)])?;
            self.write_file(cluster * CLUSTER, &copy)?;
        }
        change()?;
        self.set_present(cluster);
        Ok(())
    }
}

/// Cuts `offset .. offset + len` at cluster borders.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let n = (CLUSTER - at % CLUSTER).min(end - at);
        let piece = (n != 0).then_some((at, n));
        at += n;
        piece
    })
}

impl Disk for Overlay {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), Error> {
        let len = total(bufs.iter().map(|b| b.len()));
        self.check(offset, len)?;
        if len != 0 && (offset / CLUSTER..=(offset + len - 1) / CLUSTER).all(|c| !self.is_present(c)) {
            return self.base.read_at(offset, bufs);
        }
        let mut at = offset;
        for buf in bufs {
            for (piece, n) in pieces(at, buf.len() as u64) {
                let start = (piece - at) as usize;
                self.read_one(piece, &mut buf[start..start + n as usize])?;
            }
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), Error> {
        self.check(offset, total(bufs.iter().map(|b| b.len())))?;
        let mut at = offset;
        for buf in bufs {
            for (piece, n) in pieces(at, buf.len() as u64) {
                let start = (piece - at) as usize;
                let part = &buf[start..start + n as usize];
                self.change(piece, n, || self.write_file(piece, part))?;
            }
            at += buf.len() as u64;
        }
        Ok(())
    }

    /// Nothing here outlives the process.
    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), Error> {
        self.check(offset, len)?;
        for (piece, n) in pieces(offset, len) {
            self.change(piece, n, || {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match rustix::fs::fallocate(&self.file, hole, piece, n) {
                    Ok(()) => Ok(()),
                    Err(_) => self.write_file(piece, &vec![0; n as usize]),
                }
            })?;
        }
        Ok(())
    }
}
