//! Nodes that are only read.

use super::{Extent, Io, IoBuf, IoData, Node, NodeInfo};
use crate::{Error, ErrorKind};

/// A node that is only read, whoever opens it: it is a [`Node`] that refuses everything else. Its methods are those of
/// a node.
pub trait ReadNode {
    /// What does not change.
    fn info(&self) -> &NodeInfo;
    /// Bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from byte `offset`, and gives it back.
    ///
    /// # Errors
    /// Nothing can be said of the buffer's contents then.
    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf>;
    /// What is known of the first part of a range.
    ///
    /// # Errors
    /// The tables that say it cannot be read.
    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent>;
    /// Ends its use.
    ///
    /// # Errors
    /// Those of the nodes below.
    fn close(&self) -> Io<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

fn refused<T>(node: &impl ReadNode) -> Io<'_, T> {
    Box::pin(async {
        let doing = format!("cannot change '{}'", node.info().name);
        Err(Error::new(ErrorKind::ReadOnly, doing, "it can only be read: convert it to change it"))
    })
}

impl<T: ReadNode> Node for T {
    fn info(&self) -> &NodeInfo {
        ReadNode::info(self)
    }

    fn size(&self) -> u64 {
        ReadNode::size(self)
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        ReadNode::read(self, offset, buf)
    }

    fn write(&self, _offset: u64, _data: IoData) -> Io<'_, ()> {
        refused(self)
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Io<'_, ()> {
        refused(self)
    }

    fn discard(&self, _offset: u64, _len: u64) -> Io<'_, ()> {
        refused(self)
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        ReadNode::status(self, offset, len)
    }

    fn resize(&self, _size: u64) -> Io<'_, ()> {
        refused(self)
    }

    fn close(&self) -> Io<'_, ()> {
        ReadNode::close(self)
    }
}
