//! Reading, and what is known of ranges without reading them.

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::Core;
use super::map::{Kind, Run, View};
use crate::Error;
use crate::graph::{Extent, IoBuf, NodeRef};

/// Parts of one request that are read at once.
const PARTS: usize = 16;

impl Core {
    /// The node with the data of clusters that are not compressed.
    pub fn data_node(&self) -> &NodeRef {
        self.data.as_ref().unwrap_or(&self.file)
    }

    /// Reads any bytes; what is in the image must not change meanwhile.
    pub async fn read_view(&self, view: View<'_>, offset: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        if buf.is_empty() {
            return Ok(buf);
        }
        self.check_key()?;
        let run = self.lookup(view, offset, buf.len() as u64).await?;
        if run.len == buf.len() as u64 {
            return self.read_run(offset, run, buf).await;
        }
        let mut rest = buf.split_off(run.len as usize);
        let mut reads = FuturesUnordered::new();
        let mut done = vec![None];
        let mut number = 0;
        let read = |number: usize, at: u64, run: Run, part: IoBuf| async move {
            (number, self.read_run(at, run, part).await)
        };
        reads.push(read(0, offset, run, buf));
        let mut at = offset + run.len;
        while !rest.is_empty() {
            let run = self.lookup(view, at, rest.len() as u64).await?;
            let after = rest.split_off(run.len as usize);
            number += 1;
            done.push(None);
            reads.push(read(number, at, run, rest));
            at += run.len;
            rest = after;
            while reads.len() >= PARTS
                && let Some((n, part)) = reads.next().await
            {
                done[n] = Some(part?);
            }
        }
        while let Some((n, part)) = reads.next().await {
            done[n] = Some(part?);
        }
        let mut parts = done.into_iter().flatten().chain([rest]);
        let first = parts.next().expect("there is a first part");
        parts.try_fold(first, IoBuf::join).map_err(|_| self.internal("parts of a read do not fit together"))
    }

    fn internal(&self, why: &str) -> Error {
        Error::new(crate::ErrorKind::Io, format!("cannot read '{}'", self.info.name), why)
    }

    async fn read_run(&self, offset: u64, run: Run, mut buf: IoBuf) -> Result<IoBuf, Error> {
        match (run.kind, run.host) {
            (Kind::Data, Some(host)) => self.read_host(offset, host, buf).await,
            (Kind::Compressed, _) => {
                let cluster = self.unpack(run.entry).await?;
                let within = (offset % self.cluster) as usize;
                let len = buf.len();
                buf.copy_from_slice(&cluster[within..within + len]);
                Ok(buf)
            }
            (Kind::Unallocated, _) => self.read_backing(offset, buf).await,
            _ => {
                buf.fill(0);
                Ok(buf)
            }
        }
    }

    async fn read_backing(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        let backing = self.backing.borrow().clone();
        let Some(backing) = backing.filter(|b| b.size() > offset) else {
            buf.fill(0);
            return Ok(buf);
        };
        let inside = (backing.size() - offset).min(buf.len() as u64) as usize;
        if inside == buf.len() {
            return backing.read(offset, buf).await;
        }
        let mut rest = buf.split_off(inside);
        rest.fill(0);
        let buf = backing.read(offset, buf).await?;
        buf.join(rest).map_err(|_| self.internal("parts of a read do not fit together"))
    }

    /// True if a range is known to read as zeros.
    pub async fn is_known_zero(&self, mut offset: u64, end: u64) -> Result<bool, Error> {
        while offset < end {
            let run = self.lookup(View::Active, offset, end - offset).await?;
            match run.kind {
                Kind::Zero => {}
                Kind::Unallocated if self.backing.borrow().as_ref().is_none_or(|b| b.size() <= offset) => {}
                _ => return Ok(false),
            }
            offset += run.len;
        }
        Ok(true)
    }

    /// What is known of data. Where clusters were allocated and not written, the file may have holes.
    async fn stored(&self, run: Run) -> Result<Extent, Error> {
        if self.crypt.is_some() {
            // A hole of the file is not one of the disk then, and what is there is nothing for others to read.
            return Ok(Extent::stored(run.len, None));
        }
        let all = Extent::stored(run.len, run.host);
        let sparse = self.sparse.get().unwrap_or_else(|| self.data_node().is_sparse());
        self.sparse.set(Some(sparse));
        let Some(host) = run.host.filter(|_| sparse) else { return Ok(all) };
        let below = self.data_node().status(host, run.len).await?;
        Ok(Extent { len: below.len.clamp(1, run.len), zero: below.zero, ..all })
    }

    pub async fn status_view(&self, view: View<'_>, offset: u64, len: u64) -> Result<Extent, Error> {
        if len == 0 {
            return Ok(Extent::hole(0));
        }
        let mut run = self.lookup(view, offset, len).await?;
        // Runs end with slices of tables; a longer answer is worth a few more looks.
        let mut looks = 0;
        while run.len < len && looks < 4096 && !matches!(run.kind, Kind::Compressed) {
            let next = self.lookup(view, offset + run.len, len - run.len).await?;
            let follows = match (run.kind, run.host) {
                (Kind::Data, Some(h)) => next.host == Some(h + run.len),
                _ => true,
            };
            if next.kind != run.kind || !follows {
                break;
            }
            run.len += next.len;
            looks += 1;
        }
        Ok(match run.kind {
            Kind::Data => self.stored(run).await?,
            Kind::Compressed => Extent { compressed: true, ..Extent::stored(run.len, None) },
            Kind::Zero => Extent::zeros(run.len),
            Kind::Unallocated => {
                let backing = self.backing.borrow().clone();
                match backing {
                    Some(b) if b.size() > offset => {
                        let inside = run.len.min(b.size() - offset);
                        let below = b.status(offset, inside).await?;
                        Extent { depth: below.depth + 1, ..below }
                    }
                    Some(_) => Extent { depth: 1, ..Extent::hole(run.len) },
                    None => Extent::hole(run.len),
                }
            }
        })
    }
}
