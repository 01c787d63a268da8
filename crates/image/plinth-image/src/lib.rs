//! Disk images: block devices over files.
//!
//! A [`Node`] is one layer of a disk: a raw file, a copy-on-write overlay. It knows nothing of guests.
//!
//! ```no_run
//! use plinth_image::{Node, OpenOptions, Overlay, RawImage};
//!
//! # fn main() -> Result<(), plinth_image::Error> {
//! let disk = RawImage::open("debian.raw".as_ref(), &OpenOptions { read_only: true, ..Default::default() })?;
//! let scratch = Overlay::new(Box::new(disk))?;
//! println!("{} bytes", scratch.size());
//! # Ok(())
//! # }
//! ```

mod error;
#[doc(hidden)]
pub mod fuzz;
mod lock;
mod overlay;
mod probe;
mod raw;

use std::io::{IoSlice, IoSliceMut};

pub use error::{Error, ErrorKind};
pub use overlay::Overlay;
pub use probe::{Format, probe};
pub use raw::{OpenOptions, RawImage};

/// Bytes of a sector: sizes are multiples of it.
pub const SECTOR: u64 = 512;

/// One layer of a disk. Called from several threads at once; calls block.
pub trait Node: Send + Sync {
    /// Bytes; a multiple of [`SECTOR`].
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
