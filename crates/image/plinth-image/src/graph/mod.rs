//! The graph that a disk is made of.
//!
//! Everything here runs on one thread: a node's state needs no locks that block, and between two `await`s nothing
//! else happens. What must not interleave across an `await` is held with an asynchronous lock.

mod file;
mod http;
pub(crate) mod lock;
mod memory;
mod overlay;
mod range_lock;
mod read_only;
mod slice;
mod throttle;

use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
pub use plinth_host::buffer::{IoBuf, IoData};

use crate::{Error, ErrorKind};
pub use file::{Cache, FileNode, FileOptions};
pub use http::HttpNode;
pub use memory::MemoryNode;
pub use overlay::{Keep, OverlayNode};
pub use range_lock::{RangeGuard, RangeLocks};
pub use read_only::ReadNode;
pub use slice::SliceNode;
pub use throttle::{Limits, ThrottleNode};

/// An operation under way. When it is dropped, its I/O may or may not happen, but nothing else is harmed: a node
/// finishes or undoes its own bookkeeping.
pub type Io<'a, T> = LocalBoxFuture<'a, Result<T, Error>>;

/// What does not change while a node is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// What errors call it: a path or an address.
    pub name: String,
    /// True if writes are refused.
    pub read_only: bool,
    /// Bytes; requests at multiples of it and in multiples of it are served best (a power of two). Others are
    /// served as well.
    pub block: u32,
}

/// What is known of a range without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, from the start of the range that was asked about; at least one unless nothing was asked.
    pub len: u64,
    /// It reads as zeros. False if that is not known.
    pub zero: bool,
    /// There is stored data, or an explicit note of zeros, in the layer of `depth`. False: no layer has anything.
    pub present: bool,
    /// Data takes up space where it is stored.
    pub data: bool,
    /// It is stored compressed.
    pub compressed: bool,
    /// Which layer has it: 0 for the node that was asked, 1 for its backing image, and so on. If no layer has
    /// it, the last one.
    pub depth: u32,
    /// Byte of the layer's file where the bytes are as they are, in a row. Of a layer of several files, it is the one
    /// that has the first of the bytes.
    pub host: Option<u64>,
}

impl Extent {
    /// Stored bytes at `host` of this layer's own file.
    #[must_use]
    pub fn stored(len: u64, host: Option<u64>) -> Self {
        Self { len, zero: false, present: true, data: true, compressed: false, depth: 0, host }
    }

    /// Nothing is stored: it reads as zeros.
    #[must_use]
    pub fn hole(len: u64) -> Self {
        Self { len, zero: true, present: false, data: false, compressed: false, depth: 0, host: None }
    }

    /// A note of this layer that it reads as zeros.
    #[must_use]
    pub fn zeros(len: u64) -> Self {
        Self { present: true, ..Self::hole(len) }
    }
}

/// One node of a disk's graph: so many bytes that can be read and written.
///
/// Ranges must lie within [`size`](Node::size), except where a node says otherwise. Requests may be in flight
/// together in any number; those that overlap happen in any order.
pub trait Node {
    /// What does not change.
    fn info(&self) -> &NodeInfo;
    /// Bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from byte `offset`, and gives it back.
    ///
    /// # Errors
    /// Nothing can be said of the buffer's contents then.
    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf>;
    /// Writes `data` at byte `offset`.
    ///
    /// # Errors
    /// Each sector has its old or its new contents then.
    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()>;
    /// Makes the range read as zeros. With `unmap`, its space may be given back; without, what is allocated
    /// stays allocated, and an image notes the zeros where it has a note for them.
    ///
    /// # Errors
    /// As for a write.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()>;
    /// The range's contents no longer matter. A hint: it may do nothing.
    ///
    /// # Errors
    /// As for a write.
    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()>;
    /// Makes writes durable that were complete before.
    ///
    /// # Errors
    /// Nothing can be said of the durability of earlier writes then.
    fn flush(&self) -> Io<'_, ()>;
    /// What is known of the first part of a range, through all layers.
    ///
    /// # Errors
    /// The tables that say it cannot be read.
    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent>;
    /// Changes the size; new bytes read as zeros.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if it has a size of its own.
    fn resize(&self, size: u64) -> Io<'_, ()>;
    /// Ends its use in good order: all is written, marks of use are taken back, and so for the nodes below. A
    /// node that is dropped without it is left as by a crash.
    ///
    /// # Errors
    /// As for a flush.
    fn close(&self) -> Io<'_, ()>;
    /// The file that [`Extent::host`] of this layer is about, if its bytes may be read past the node: nothing writes
    /// them meanwhile but who asked.
    fn host_file(&self) -> Option<Arc<File>> {
        None
    }
    /// Like a file of the host, it reads as zeros beyond its end, and writes there make it longer.
    fn is_open_ended(&self) -> bool {
        false
    }
    /// It takes up clearly less space than it has bytes: parts of it are holes, which [`status`](Node::status) finds
    /// quickly.
    fn is_sparse(&self) -> bool {
        false
    }
}

/// Refuses a range that is not within the node.
///
/// # Errors
/// [`ErrorKind::OutOfRange`].
pub fn check_range(node: &dyn Node, doing: &str, offset: u64, len: u64) -> Result<(), Error> {
    if offset.checked_add(len).is_some_and(|end| end <= node.size()) {
        return Ok(());
    }
    let why = format!("{len} bytes at {offset} are beyond its end at {}", node.size());
    Err(Error::new(ErrorKind::OutOfRange, format!("cannot {doing} '{}'", node.info().name), why))
}

/// Refuses a write to a node that is read-only or beyond its end.
///
/// # Errors
/// [`ErrorKind::ReadOnly`], [`ErrorKind::OutOfRange`].
pub fn check_write(node: &dyn Node, offset: u64, len: u64) -> Result<(), Error> {
    if node.info().read_only {
        let doing = format!("cannot write to '{}'", node.info().name);
        return Err(Error::new(ErrorKind::ReadOnly, doing, "it is open for reading only"));
    }
    check_range(node, "write to", offset, len)
}

/// Reads a table of an image: `what` is in the error if the file ends before it does.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it is not wholly inside of the file; the node's own.
pub async fn read_table(node: &dyn Node, offset: u64, len: usize, what: &str) -> Result<IoBuf, Error> {
    if offset.checked_add(len as u64).is_none_or(|end| end > node.size()) {
        let why = format!("{what} ({len} bytes at {offset}) is beyond the file's end at {}", node.size());
        return Err(Error::corrupt(&node.info().name, why));
    }
    node.read(offset, IoBuf::new(len)).await
}

/// Writes zeros as data, for nodes that have nothing better.
///
/// # Errors
/// As for a write.
pub async fn write_zero_bytes<N: Node + ?Sized>(node: &N, offset: u64, len: u64) -> Result<(), Error> {
    const AT_ONCE: u64 = 1 << 20;
    let zeros = IoBuf::zeroed(len.min(AT_ONCE) as usize).freeze();
    let mut done = 0;
    while done < len {
        let n = (len - done).min(AT_ONCE);
        node.write(offset + done, zeros.slice(..n as usize)).await?;
        done += n;
    }
    Ok(())
}

/// Makes a file reach to `end`, and `ahead` bytes further if the host lets it: a file system does writes within a file
/// side by side, and those that make it longer one after the other. Nothing may be on its way to what is behind the
/// file's end.
///
/// # Errors
/// As for a write.
pub async fn lengthen(file: &dyn Node, end: u64, ahead: u64) -> Result<(), Error> {
    let longer_to = async |to: u64| match to.checked_sub(file.size()).filter(|&n| n > 0) {
        Some(len) => file.write_zeroes(file.size(), len, true).await,
        None => Ok(()),
    };
    // The host may have space, or a limit, for just what is needed.
    match longer_to(end.saturating_add(ahead)).await {
        Err(_) => longer_to(end).await,
        done => done,
    }
}

/// Copies bytes within a file; what are holes or zeros become holes.
///
/// # Errors
/// The file's.
pub async fn copy_within(file: &dyn Node, from: u64, to: u64, len: u64) -> Result<(), Error> {
    const AT_ONCE: u64 = 1 << 20;
    let mut at = 0;
    while at < len {
        let extent = file.status(from + at, len - at).await?;
        let n = extent.len.clamp(1, len - at);
        if extent.zero {
            file.write_zeroes(to + at, n, true).await?;
            at += n;
            continue;
        }
        let n = n.min(AT_ONCE);
        let bytes = file.read(from + at, IoBuf::new(n as usize)).await?;
        if is_zero(&bytes) {
            file.write_zeroes(to + at, n, true).await?;
        } else {
            file.write(to + at, bytes.freeze()).await?;
        }
        at += n;
    }
    Ok(())
}

/// Puts the parts of a buffer together again, without a copy where they are parts of one.
#[must_use]
pub fn joined(parts: Vec<IoBuf>) -> IoBuf {
    let mut parts = parts.into_iter();
    let mut whole = parts.next().unwrap_or_else(|| IoBuf::new(0));
    for part in parts {
        whole = whole.join(part).unwrap_or_else(|(a, b)| {
            let mut copy = IoBuf::new(a.len() + b.len());
            copy[..a.len()].copy_from_slice(&a);
            copy[a.len()..].copy_from_slice(&b);
            copy
        });
    }
    whole
}

/// True if all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Chunks of a size that compilers make vector code from; most data differs within the first.
    let (chunks, rest) = bytes.as_chunks::<128>();
    chunks.iter().all(|c| c.iter().fold(0, |a, b| a | b) == 0) && rest.iter().all(|&b| b == 0)
}

/// A node that others share.
pub type NodeRef = Rc<dyn Node>;
