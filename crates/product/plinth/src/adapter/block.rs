//! A disk image as the host side of a block device.

use std::io::{IoSlice, IoSliceMut};

use plinth_device::{BlockBackend, BlockError, BlockErrorKind};
use plinth_image::disk::Disk;
use plinth_image::{Error, ErrorKind};

/// A disk of the guest.
pub struct DiskBackend(pub Box<dyn Disk>);

fn convert(e: Error) -> BlockError {
    let kind = match e.kind {
        ErrorKind::OutOfRange => BlockErrorKind::OutOfRange,
        ErrorKind::ReadOnly => BlockErrorKind::ReadOnly,
        ErrorKind::NoSpace => BlockErrorKind::NoSpace,
        ErrorKind::Unsupported => BlockErrorKind::Unsupported,
        _ => BlockErrorKind::Io,
    };
    // The guest sees an I/O error only; the host's log says why.
    tracing::warn!(target: "plinth::disk", "{e}");
    BlockError { kind, context: e.context, source: e.source }
}

impl BlockBackend for DiskBackend {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_only(&self) -> bool {
        self.0.read_only()
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), BlockError> {
        self.0.read_at(offset, bufs).map_err(convert)
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), BlockError> {
        self.0.write_at(offset, bufs).map_err(convert)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.0.flush().map_err(convert)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.0.discard(offset, len).map_err(convert)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), BlockError> {
        self.0.write_zeroes(offset, len, unmap).map_err(convert)
    }
}
