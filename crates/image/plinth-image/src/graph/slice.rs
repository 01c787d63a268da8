//! A part of a node.

use super::{Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, check_range, check_write};
use crate::{Error, ErrorKind};

/// Bytes `start..start + len` of another node, as a node of their own.
pub struct SliceNode {
    info: NodeInfo,
    below: NodeRef,
    start: u64,
    len: u64,
}

impl SliceNode {
    /// A part of `below`.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] if it is not wholly inside.
    pub fn new(below: NodeRef, start: u64, len: u64) -> Result<Self, Error> {
        check_range(&*below, "use a part of", start, len)?;
        let name = format!("bytes {start} to {} of {}", start + len, below.info().name);
        let info = NodeInfo { name, ..below.info().clone() };
        Ok(Self { info, below, start, len })
    }
}

impl Node for SliceNode {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        match check_range(self, "read", offset, buf.len() as u64) {
            Ok(()) => self.below.read(self.start + offset, buf),
            Err(e) => Box::pin(async { Err(e) }),
        }
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        match check_write(self, offset, data.len() as u64) {
            Ok(()) => self.below.write(self.start + offset, data),
            Err(e) => Box::pin(async { Err(e) }),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        match check_write(self, offset, len) {
            Ok(()) => self.below.write_zeroes(self.start + offset, len, unmap),
            Err(e) => Box::pin(async { Err(e) }),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        match check_write(self, offset, len) {
            Ok(()) => self.below.discard(self.start + offset, len),
            Err(e) => Box::pin(async { Err(e) }),
        }
    }

    fn flush(&self) -> Io<'_, ()> {
        self.below.flush()
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        match check_range(self, "look at", offset, len) {
            Ok(()) => self.below.status(self.start + offset, len),
            Err(e) => Box::pin(async { Err(e) }),
        }
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        let same = size == self.len;
        Box::pin(async move {
            let doing = format!("cannot resize {}", self.info.name);
            if same {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::Unsupported, doing, "a part stays as large as it is"))
            }
        })
    }

    fn close(&self) -> Io<'_, ()> {
        self.below.close()
    }
}
