//! Zeros, and data that no longer matters.

use super::map::{COMPRESSED, COPIED, Entry, Kind, View, ZERO};
use super::{Core, header};
use crate::Error;
use crate::graph::IoBuf;

/// Bitmap of an extended entry all of whose subclusters read as zeros.
const ALL_ZERO: u64 = 0xffff_ffff << 32;

impl Core {
    fn has_raw_data_file(&self) -> bool {
        self.data.is_some() && self.header.borrow().autoclear & header::DATA_FILE_RAW != 0
    }

    /// True if what is not allocated at `offset` reads as zeros.
    fn nothing_below(&self, offset: u64) -> bool {
        self.backing.borrow().as_ref().is_none_or(|b| b.size() <= offset)
    }

    pub async fn zero_data(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        if len == 0 {
            return Ok(());
        }
        self.check_key()?;
        self.begin_change(offset, len).await?;
        let _alone = self.locks.lock(self.clusters(offset, len), true).await;
        let end = offset + len;
        if self.has_raw_data_file() {
            return self.zero_raw(offset, end, unmap).await;
        }
        // The last unit may be cut off by the end of the disk.
        let unit = self.unit();
        let from = offset.next_multiple_of(unit);
        let to = if end == self.size.get() { end.next_multiple_of(unit) } else { end - end % unit };
        if from >= to {
            return self.write_zeros(offset, end).await;
        }
        self.write_zeros(offset, from).await?;
        self.zero_units(from, to, unmap).await?;
        self.write_zeros(to, end).await
    }

    /// Zeros as data, where there is not known to be zeros already.
    async fn write_zeros(&self, offset: u64, end: u64) -> Result<(), Error> {
        if offset >= end || self.is_known_zero(offset, end).await? {
            return Ok(());
        }
        self.write_locked(offset, IoBuf::zeroed((end - offset) as usize).freeze()).await
    }

    /// The data file must have the zeros itself.
    async fn zero_raw(&self, mut offset: u64, end: u64, unmap: bool) -> Result<(), Error> {
        while offset < end {
            let run = self.lookup(View::Active, offset, end - offset).await?;
            match (run.kind, run.host) {
                (Kind::Data, Some(host)) => self.data_node().write_zeroes(host, run.len, unmap).await?,
                _ => self.data_node().write_zeroes(offset, run.len, unmap).await?,
            }
            offset += run.len;
        }
        Ok(())
    }

    async fn zero_units(&self, from: u64, to: u64, unmap: bool) -> Result<(), Error> {
        let mut at = from;
        while at < to {
            let (cluster, last) = (at >> self.bits, (to - 1) >> self.bits);
            let old = self.entries(cluster, last - cluster + 1).await?;
            let mut new = Vec::with_capacity(old.len());
            for (n, &entry) in old.iter().enumerate() {
                let start = (cluster + n as u64) << self.bits;
                let part = at.max(start)..to.min(start + self.cluster);
                let Some(zeros) = self.zero_entry(entry, start, &part, unmap) else { break };
                new.push(zeros);
            }
            if new.is_empty() {
                // There is no note for these zeros.
                let start = cluster << self.bits;
                let part = at.max(start)..to.min(start + self.cluster);
                self.zero_as_data(old[0], &part).await?;
                at = part.end;
                continue;
            }
            let next = (cluster + new.len() as u64) << self.bits;
            if new[..] != old[..new.len()] {
                self.set_entries(cluster, &new, unmap).await?;
            }
            at = next.min(to);
        }
        Ok(())
    }

    async fn zero_as_data(&self, old: Entry, part: &std::ops::Range<u64>) -> Result<(), Error> {
        let owned = old.word & COPIED != 0 && !self.extended && self.crypt.is_none();
        if let Some(host) = self.host(old).filter(|_| owned) {
            let at = host + part.start % self.cluster;
            return self.data_node().write_zeroes(at, part.end - part.start, false).await;
        }
        self.write_locked(part.start, IoBuf::zeroed((part.end - part.start) as usize).freeze()).await
    }

    /// The entry that makes `part` of the cluster at `start` zeros; `None` if the format has none.
    fn zero_entry(&self, old: Entry, start: u64, part: &std::ops::Range<u64>, unmap: bool) -> Option<Entry> {
        let host = self.host(old);
        let bare = self.nothing_below(start);
        let untouched = old.word & COMPRESSED == 0 && host.is_none();
        if !self.v3() {
            return match untouched {
                true if bare => Some(old),
                false if bare && unmap => Some(Entry::default()),
                _ => None,
            };
        }
        let kept = host.is_some() && !unmap && (old.word & COPIED != 0 || self.data.is_some());
        if !self.extended {
            return Some(match () {
                () if untouched && old.word & ZERO == 0 && bare => old,
                () if kept => Entry { word: old.word | ZERO, bitmap: 0 },
                () => Entry { word: ZERO, bitmap: 0 },
            });
        }
        if untouched && old.bitmap == 0 && bare {
            return Some(old);
        }
        let whole = part.end - part.start == self.cluster;
        if whole {
            return Some(Entry { word: if kept { old.word } else { 0 }, bitmap: ALL_ZERO });
        }
        if old.word & COMPRESSED != 0 {
            return None;
        }
        let unit = self.unit();
        let bits = (1u64 << ((part.end - start) / unit)) - (1u64 << ((part.start - start) / unit));
        Some(Entry { word: old.word, bitmap: old.bitmap & !bits | bits << 32 })
    }

    pub async fn discard_data(&self, offset: u64, len: u64) -> Result<(), Error> {
        let end = offset + len;
        let from = offset.next_multiple_of(self.cluster);
        let to = if end == self.size.get() {
            end.next_multiple_of(self.cluster)
        } else {
            end - end % self.cluster
        };
        if from >= to {
            return Ok(());
        }
        self.begin_change(offset, len).await?;
        let _alone = self.locks.lock(self.clusters(offset, len), true).await;
        if self.has_raw_data_file() {
            return self.data_node().discard(from, end.min(to) - from).await;
        }
        let mut cluster = from >> self.bits;
        let last = to >> self.bits;
        while cluster < last {
            let old = self.entries(cluster, last - cluster).await?;
            let new: Vec<_> =
                old.iter().enumerate().map(|(n, &e)| self.discarded(e, cluster + n as u64)).collect();
            if new != old {
                self.set_entries(cluster, &new, true).await?;
            }
            cluster += old.len() as u64;
        }
        if let Some(data) = &self.data {
            data.discard(from, end.min(to) - from).await?;
        }
        Ok(())
    }

    fn discarded(&self, old: Entry, cluster: u64) -> Entry {
        let untouched = old.word & COMPRESSED == 0 && self.host(old).is_none();
        if untouched {
            return old;
        }
        // What is below must not come to light.
        match (self.nothing_below(cluster << self.bits), self.v3()) {
            (true, _) => Entry::default(),
            (false, false) => old,
            (false, true) if self.extended => Entry { word: 0, bitmap: ALL_ZERO },
            (false, true) => Entry { word: ZERO, bitmap: 0 },
        }
    }
}
