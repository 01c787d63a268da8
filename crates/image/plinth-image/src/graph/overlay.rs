//! A layer over a node that keeps what is written, and what was read if that is wanted.

use std::cell::{Cell, RefCell};

use super::{
    Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, RangeLocks, check_range, check_write,
    write_zero_bytes,
};
use crate::{Error, ErrorKind};

/// What a layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// What is written. The node below stays as it is.
    Writes,
    /// What was read, so that it is read from below only once. Writes are refused.
    Reads,
}

/// A layer, whose data is in another node, at the same place as in the disk. What the layer has is known only
/// here: it is forgotten with it.
pub struct OverlayNode {
    info: NodeInfo,
    below: NodeRef,
    store: NodeRef,
    keep: Keep,
    /// Bytes that are kept or not, as one.
    cluster: u64,
    size: Cell<u64>,
    /// One bit for each cluster: the store has it.
    present: RefCell<Vec<u64>>,
    /// Clusters that are being filled.
    filling: RangeLocks,
}

impl OverlayNode {
    /// A layer over `below`, with its data in `store`, in clusters of `cluster` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] if the list of clusters would be too large.
    pub fn new(below: NodeRef, store: NodeRef, keep: Keep, cluster: u32) -> Result<Self, Error> {
        /// Enough for 4 TiB in clusters of 4 KiB.
        const MOST: u64 = 16 << 20;
        let cluster = u64::from(cluster).next_power_of_two().max(512);
        let words = below.size().div_ceil(cluster).div_ceil(64);
        if words > MOST {
            let doing = format!("cannot put a layer over '{}'", below.info().name);
            return Err(Error::new(
                ErrorKind::Limit,
                doing,
                "its clusters are too small for so large a disk",
            ));
        }
        let info = NodeInfo { read_only: keep == Keep::Reads, ..below.info().clone() };
        let size = Cell::new(below.size());
        let present = RefCell::new(vec![0; words as usize]);
        Ok(Self { info, below, store, keep, cluster, size, present, filling: RangeLocks::default() })
    }

    fn has(&self, cluster: u64) -> bool {
        let present = self.present.borrow();
        present.get((cluster / 64) as usize).is_some_and(|w| w >> (cluster % 64) & 1 != 0)
    }

    fn set(&self, cluster: u64) {
        if let Some(w) = self.present.borrow_mut().get_mut((cluster / 64) as usize) {
            *w |= 1 << (cluster % 64);
        }
    }

    /// The first part of a range that the layer has wholly or not at all: its length, and which.
    fn run(&self, offset: u64, end: u64) -> (u64, bool) {
        let first = offset / self.cluster;
        let has = self.has(first);
        let mut next = first + 1;
        while next * self.cluster < end && self.has(next) == has {
            next += 1;
        }
        ((next * self.cluster).min(end) - offset, has)
    }

    /// Bytes of a range from below, zeros behind its end.
    async fn read_below(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        let inside = self.below.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut rest = buf.split_off(inside);
        rest.fill(0);
        if inside > 0 {
            buf = self.below.read(offset, buf).await?;
        }
        Ok(buf.join(rest).unwrap_or_else(|_| unreachable!("the parts come from one buffer")))
    }

    /// Puts whole clusters around a range into the store.
    async fn fill(&self, offset: u64, len: u64) -> Result<(), Error> {
        let mut at = offset / self.cluster * self.cluster;
        let end = (offset + len).next_multiple_of(self.cluster).min(self.size());
        while at < end {
            let _alone = self.filling.lock(at..at + self.cluster, true).await;
            let n = self.cluster.min(end - at);
            if !self.has(at / self.cluster) {
                let data = self.read_below(at, IoBuf::new(n as usize)).await?;
                self.store.write(at, data.freeze()).await?;
                self.set(at / self.cluster);
            }
            at += n;
        }
        Ok(())
    }

    /// Changes a range of the store, of which the clusters that are not wholly inside are filled first.
    async fn change(&self, offset: u64, len: u64, change: Change) -> Result<(), Error> {
        let end = offset + len;
        let (first, last) = (offset / self.cluster, end.div_ceil(self.cluster));
        if !offset.is_multiple_of(self.cluster) {
            self.fill(offset, 1).await?;
        }
        if !end.is_multiple_of(self.cluster) && end < self.size() {
            self.fill(end - 1, 1).await?;
        }
        // Nobody fills them with old data meanwhile.
        let _alone = self.filling.lock(first * self.cluster..last * self.cluster, false).await;
        match change {
            Change::Data(data) => self.store.write(offset, data).await?,
            Change::Zeros { unmap } => self.store.write_zeroes(offset, len, unmap).await?,
        }
        (first..last).for_each(|c| self.set(c));
        Ok(())
    }
}

enum Change {
    Data(IoData),
    Zeros { unmap: bool },
}

impl Node for OverlayNode {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            check_range(self, "read", offset, buf.len() as u64)?;
            if self.keep == Keep::Reads {
                self.fill(offset, buf.len() as u64).await?;
                return self.store.read(offset, buf).await;
            }
            let end = offset + buf.len() as u64;
            let mut at = offset;
            let mut whole: Option<IoBuf> = None;
            while at < end {
                let (n, has) = self.run(at, end);
                let rest = buf.split_off(n as usize);
                let part =
                    if has { self.store.read(at, buf).await? } else { self.read_below(at, buf).await? };
                whole = Some(match whole {
                    None => part,
                    Some(w) => {
                        w.join(part).unwrap_or_else(|_| unreachable!("the parts come from one buffer"))
                    }
                });
                buf = rest;
                at += n;
            }
            Ok(whole.unwrap_or(buf))
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, data.len() as u64)?;
            if data.is_empty() {
                return Ok(());
            }
            self.change(offset, data.len() as u64, Change::Data(data)).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            if len == 0 {
                return Ok(());
            }
            self.change(offset, len, Change::Zeros { unmap }).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            // Whole clusters of the store are given back and read as zeros; the rest keeps what it has.
            let start = offset.next_multiple_of(self.cluster);
            let end = (offset + len) / self.cluster * self.cluster;
            if start < end {
                self.change(start, end - start, Change::Zeros { unmap: true }).await
            } else {
                Ok(())
            }
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        // The layer is forgotten with this node, so there is nothing that could last.
        Box::pin(async { Ok(()) })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            if len == 0 {
                return Ok(Extent::hole(0));
            }
            let (n, has) = self.run(offset, offset + len);
            if has {
                return Ok(Extent { present: true, host: None, ..self.store.status(offset, n).await? });
            }
            let below = self.below.size();
            if offset >= below {
                return Ok(Extent::hole(n));
            }
            let extent = self.below.status(offset, n.min(below - offset)).await?;
            Ok(Extent { depth: extent.depth + 1, host: None, ..extent })
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _alone = self.filling.lock(0..u64::MAX, true).await;
            let old = self.size.get();
            if size < old {
                // What is cut off must not come back from below when the disk grows again.
                let whole = size.div_ceil(self.cluster);
                let tail = (whole * self.cluster).min(old);
                drop(_alone);
                write_zero_bytes(self, size, tail - size).await?;
                self.store.write_zeroes(tail, old - tail, true).await?;
                (whole..old.div_ceil(self.cluster)).for_each(|c| self.set(c));
            }
            self.present.borrow_mut().resize(size.max(old).div_ceil(self.cluster).div_ceil(64) as usize, 0);
            self.size.set(size);
            Ok(())
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
            self.store.close().await?;
            self.below.close().await
        })
    }
}
