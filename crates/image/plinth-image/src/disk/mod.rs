//! Disks for a running machine: called from several threads at once, and calls block.

mod graph;
mod overlay;
mod raw;

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::format::{Format, Sample, Trust, probe};
use crate::{Error, ErrorKind};
pub use graph::GraphDisk;
pub use overlay::Overlay;
pub use raw::{OpenOptions, RawImage};

/// Opens the image at `path`, in any format; without `format`, its contents decide.
///
/// # Errors
/// As for opening a [`RawImage`] or a [`GraphDisk`].
pub fn open(
    path: &Path,
    format: Option<Format>,
    read_only: bool,
    trust: Trust,
) -> Result<Box<dyn Disk>, Error> {
    let format = match format {
        Some(format) => Some(format),
        None => probe_file(path)?,
    };
    match format {
        Some(format) if format != Format::Raw => {
            Ok(Box::new(GraphDisk::open(path, Some(format), read_only, trust)?))
        }
        // Raw disks go without a thread of their own.
        format => {
            Ok(Box::new(RawImage::open(path, &OpenOptions { read_only, trust_raw: format.is_some() })?))
        }
    }
}

/// The format of a file, by its contents; `None` if it has no mark.
fn probe_file(path: &Path) -> Result<Option<Format>, Error> {
    const OPEN: &str = "open disk image";
    // A pipe would be waited for.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let open = File::options().read(true).custom_flags(flags).open(path);
    let mut file = open.map_err(|e| Error::host(OPEN, path, e))?;
    let failed = |e| Error::host("read", path, e);
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let why = "it is neither a regular file nor a block device";
        return Err(Error::refused(ErrorKind::Format, OPEN, path, why));
    }
    let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let (mut head, mut tail) = ([0; 2048], [0; 1024]);
    let (head_len, tail_len) = (len.min(2048) as usize, len.min(1024) as usize);
    file.read_exact_at(&mut head[..head_len], 0).map_err(failed)?;
    file.read_exact_at(&mut tail[..tail_len], len - tail_len as u64).map_err(failed)?;
    let name = path.to_string_lossy();
    let format = probe(&Sample { head: &head[..head_len], tail: &tail[..tail_len], len, name: &name });
    Ok(Some(format).filter(|&f| f != Format::Raw))
}

/// A disk.
pub trait Disk: Send + Sync {
    /// Bytes; a multiple of [`SECTOR`](crate::SECTOR).
    fn size(&self) -> u64;
    /// True if writes are refused.
    fn read_only(&self) -> bool;
    /// Fills all buffers, in order, from byte `offset`.
    ///
    /// # Errors
    /// Nothing can be said of the buffers' contents then.
    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), Error>;
    /// Writes all buffers, in order, from byte `offset`.
    ///
    /// # Errors
    /// Some of the bytes may have been written.
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), Error>;
    /// Makes completed writes durable.
    ///
    /// # Errors
    /// Nothing can be said of the durability of earlier writes then.
    fn flush(&self) -> Result<(), Error>;
    /// The range's contents no longer matter.
    ///
    /// # Errors
    /// As for a write.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Error>;
    /// The range reads as zeros; with `unmap` its space may be given back.
    ///
    /// # Errors
    /// As for a write.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error>;
}

fn total(lens: impl Iterator<Item = usize>) -> u64 {
    lens.map(|l| l as u64).sum()
}
