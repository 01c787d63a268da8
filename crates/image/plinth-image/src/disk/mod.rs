//! Disks for a running machine: called from several threads at once, and calls block.

mod overlay;
mod raw;

use std::io::{IoSlice, IoSliceMut};

use crate::Error;
pub use overlay::Overlay;
pub use raw::{OpenOptions, RawImage};

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
