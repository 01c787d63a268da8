//! Parts of files as nodes, and compressed files.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::rc::Rc;

use flate2::write::MultiGzDecoder;
use futures_util::future::join_all;
use plinth_host::aio::offload;

use crate::format::Format;
use crate::format::image::unsupported;
use crate::graph::{
    Extent, FileNode, FileOptions, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, ReadNode, check_range,
    is_zero, joined,
};
use crate::{Error, ErrorKind};

/// Parts of other nodes, one after the other, for reading. Like a file, it reads as zeros behind its end.
pub struct Parts {
    info: NodeInfo,
    /// Where each begins here, its node, where it begins there, and its length.
    parts: Vec<(u64, NodeRef, u64, u64)>,
    size: u64,
}

impl Parts {
    pub fn new(name: &str, parts: Vec<(NodeRef, u64, u64)>) -> Self {
        let mut size = 0;
        let mut all = Vec::with_capacity(parts.len());
        for (node, at, len) in parts.into_iter().filter(|p| p.2 > 0) {
            all.push((size, node, at, len));
            size += len;
        }
        Self { info: NodeInfo { name: name.to_owned(), read_only: true, block: 1 }, parts: all, size }
    }
}

impl ReadNode for Parts {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            let end = self.size.min(offset.saturating_add(buf.len() as u64));
            let inside = end.saturating_sub(offset);
            let mut rest = buf.split_off(inside as usize);
            rest.fill(0);
            let mut jobs = Vec::new();
            let mut at = offset;
            let first = self.parts.partition_point(|p| p.0 + p.3 <= offset);
            for (start, node, there, len) in &self.parts[first.min(self.parts.len())..] {
                if buf.is_empty() {
                    break;
                }
                let n = (start + len - at).min(buf.len() as u64);
                let next = buf.split_off(n as usize);
                jobs.push(node.read(there + (at - start), std::mem::replace(&mut buf, next)));
                at += n;
            }
            let mut parts = join_all(jobs).await.into_iter().collect::<Result<Vec<_>, _>>()?;
            parts.push(rest);
            Ok(joined(parts))
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            Ok(Extent::stored(len, None))
        })
    }
}

/// A file that must not become longer than it may; zeros in it become holes.
struct Limited {
    file: File,
    end: u64,
    limit: u64,
}

impl Write for Limited {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.end += data.len() as u64;
        if self.end > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if is_zero(data) {
            self.file.seek(SeekFrom::Current(data.len() as i64))?;
        } else {
            self.file.write_all(data)?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Unpacks a gzip file into one without a name, of at most `limit` bytes.
pub async fn unzip(name: &str, node: NodeRef, limit: u64) -> Result<NodeRef, Error> {
    const AT_ONCE: u64 = 1 << 20;
    let failed = |e: io::Error| Error::from_host("unpack", name, e);
    let temporary = tempfile::NamedTempFile::new().map_err(failed)?;
    let out = Limited { file: temporary.reopen().map_err(failed)?, end: 0, limit };
    let unpacking = |e: io::Error| match e.kind() {
        io::ErrorKind::FileTooLarge => {
            let why = format!("it has more than the {limit} bytes that such a disk can need");
            Error::new(ErrorKind::Limit, format!("cannot unpack '{name}'"), why)
        }
        _ => Error::corrupt(name, format!("it cannot be unpacked: {e}")),
    };
    let mut decoder = MultiGzDecoder::new(out);
    let mut at = 0;
    while at < node.size() {
        let n = (node.size() - at).min(AT_ONCE);
        let piece = node.read(at, IoBuf::new(n as usize)).await?;
        at += n;
        let step = offload(move || decoder.write_all(&piece).map(|()| decoder)).await;
        decoder = step.map_err(unpacking)?;
    }
    let out = offload(move || decoder.finish()).await.map_err(unpacking)?;
    out.file.set_len(out.end).map_err(failed)?;
    let options = FileOptions { read_only: true, ..FileOptions::default() };
    // The name goes away with `temporary`; the open file stays.
    Ok(Rc::new(FileNode::open(temporary.path(), &options)?))
}

/// A part of a file that is being written, from `base` on.
pub struct Window {
    node: NodeRef,
    base: u64,
    size: Cell<u64>,
}

impl Window {
    pub fn new(node: NodeRef, base: u64) -> Self {
        Self { node, base, size: Cell::new(0) }
    }

    fn grow(&self, end: u64) {
        self.size.set(self.size.get().max(end));
    }
}

impl Node for Window {
    fn info(&self) -> &NodeInfo {
        self.node.info()
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        self.node.read(self.base + offset, buf)
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            let end = offset + data.len() as u64;
            self.node.write(self.base + offset, data).await?;
            self.grow(end);
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            self.node.write_zeroes(self.base + offset, len, unmap).await?;
            self.grow(offset + len);
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        self.node.discard(self.base + offset, len)
    }

    fn flush(&self) -> Io<'_, ()> {
        self.node.flush()
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        self.node.status(self.base + offset, len)
    }

    fn resize(&self, _size: u64) -> Io<'_, ()> {
        Box::pin(async { Err(unsupported(self.info(), Format::Raw, "resize")) })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
