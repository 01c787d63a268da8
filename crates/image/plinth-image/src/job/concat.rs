//! Several disks as one.

use futures_util::future::try_join_all;

use crate::graph::{Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, check_range, check_write};
use crate::{Error, ErrorKind};

/// Disks one behind the other.
pub struct Concat {
    info: NodeInfo,
    parts: Vec<(u64, NodeRef)>,
    size: u64,
}

/// A piece of a range: the part that has it, where in it, and how many bytes.
type Piece<'a> = (&'a NodeRef, u64, usize);

impl Concat {
    /// Disks in their order.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] if they are too many bytes together.
    pub fn new(disks: Vec<NodeRef>) -> Result<Self, Error> {
        let name = disks.iter().map(|d| d.info().name.as_str()).collect::<Vec<_>>().join(" + ");
        let mut size = 0u64;
        let mut parts = Vec::with_capacity(disks.len());
        for disk in disks {
            let start = size;
            size = size.checked_add(disk.size()).filter(|&s| s <= i64::MAX as u64).ok_or_else(|| {
                Error::new(ErrorKind::Limit, format!("cannot put together {name}"), "it is too large")
            })?;
            parts.push((start, disk));
        }
        let block = parts.iter().map(|(_, d)| d.info().block).max().unwrap_or(1);
        let read_only = parts.iter().any(|(_, d)| d.info().read_only);
        Ok(Self { info: NodeInfo { name, read_only, block }, parts, size })
    }

    fn pieces(&self, offset: u64, len: u64) -> Vec<Piece<'_>> {
        let end = offset + len;
        let overlap = |(start, disk): &'_ (u64, NodeRef)| {
            let from = offset.max(*start);
            let to = end.min(start + disk.size());
            (from < to).then(|| (from - start, (to - from) as usize))
        };
        self.parts.iter().filter_map(|p| overlap(p).map(|(at, n)| (&p.1, at, n))).collect()
    }
}

impl Node for Concat {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            check_range(self, "read", offset, buf.len() as u64)?;
            let pieces = self.pieces(offset, buf.len() as u64);
            if let [(disk, at, _)] = pieces[..] {
                return disk.read(at, buf).await;
            }
            let mut done = 0;
            for (disk, at, n) in pieces {
                let part = disk.read(at, IoBuf::new(n)).await?;
                buf[done..done + n].copy_from_slice(&part);
                done += n;
            }
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, data.len() as u64)?;
            let mut done = 0;
            for (disk, at, n) in self.pieces(offset, data.len() as u64) {
                disk.write(at, data.slice(done..done + n)).await?;
                done += n;
            }
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            for (disk, at, n) in self.pieces(offset, len) {
                disk.write_zeroes(at, n as u64, unmap).await?;
            }
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            for (disk, at, n) in self.pieces(offset, len) {
                disk.discard(at, n as u64).await?;
            }
            Ok(())
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move { try_join_all(self.parts.iter().map(|(_, d)| d.flush())).await.map(drop) })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            match self.pieces(offset, len).first() {
                // Its place in one of several files is of no use.
                Some(&(disk, at, n)) => Ok(Extent { host: None, ..disk.status(at, n as u64).await? }),
                None => Ok(Extent::hole(0)),
            }
        })
    }

    fn resize(&self, _size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            let doing = format!("cannot resize '{}'", self.info.name);
            Err(Error::new(ErrorKind::Unsupported, doing, "it is several disks"))
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move { try_join_all(self.parts.iter().map(|(_, d)| d.close())).await.map(drop) })
    }
}
