//! Writing data: in place where that is allowed, else to new clusters.

use std::ops::Range;

use futures_util::future::try_join_all;
use futures_util::try_join;

use super::map::{COPIED, Entry, Kind, OFFSET, Run, View};
use super::{Core, header};
use crate::graph::{IoBuf, IoData};
use crate::{Error, ErrorKind};

/// Up to so many bytes, what surrounds new data in its clusters is copied together with it, to be written at once.
const COMPOSE: u64 = 256 << 10;

/// Data on its way to clusters in a row.
struct Fill<'a> {
    /// First guest cluster, and the clusters' old entries.
    cluster: u64,
    old: &'a [Entry],
    /// Byte of the file where the first cluster's data goes.
    host: u64,
    /// It reads as zeros.
    fresh: bool,
    /// The old entry has this place already.
    reuse: bool,
    /// Where on the disk.
    offset: u64,
    data: IoData,
}

impl Core {
    /// Whole clusters around a range.
    pub fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let end = (offset + len).checked_next_multiple_of(self.cluster).unwrap_or(u64::MAX);
        offset - offset % self.cluster..end
    }

    /// What must be done before the disk's contents change.
    pub async fn begin_change(&self, offset: u64, len: u64) -> Result<(), Error> {
        if self.guard.broken.get() || self.header.borrow().incompatible & header::CORRUPT != 0 {
            let why = "it is marked as damaged: check it with repair first";
            return Err(Error::new(ErrorKind::Corrupt, format!("cannot write to '{}'", self.info.name), why));
        }
        self.record_change(offset, len).await
    }

    pub async fn write_data(&self, offset: u64, data: IoData) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        self.check_key()?;
        self.begin_change(offset, data.len() as u64).await?;
        let clusters = self.clusters(offset, data.len() as u64);
        {
            let _shared = self.locks.lock(clusters.clone(), false).await;
            if self.write_in_place(offset, &data).await? {
                return Ok(());
            }
        }
        let _alone = self.locks.lock(clusters, true).await;
        self.write_locked(offset, data).await
    }

    /// Writes if all of it may be written in place.
    async fn write_in_place(&self, offset: u64, data: &IoData) -> Result<bool, Error> {
        let in_place = |run: &Run| (run.kind == Kind::Data && run.copied).then_some(run.host).flatten();
        let len = data.len() as u64;
        if self.splits_sectors(offset, len) {
            return Ok(false);
        }
        let first = self.lookup(View::Active, offset, len).await?;
        let Some(host) = in_place(&first) else { return Ok(false) };
        if first.len == len {
            self.write_host(offset, host, data.clone()).await?;
            return Ok(true);
        }
        let mut parts = vec![(offset, host, data.slice(..first.len as usize))];
        let mut done = first.len;
        while done < len {
            let run = self.lookup(View::Active, offset + done, len - done).await?;
            let Some(host) = in_place(&run) else { return Ok(false) };
            parts.push((offset + done, host, data.slice(done as usize..(done + run.len) as usize)));
            done += run.len;
        }
        try_join_all(parts.into_iter().map(|(at, host, part)| self.write_host(at, host, part))).await?;
        Ok(true)
    }

    /// Writes anywhere; the caller holds its clusters alone.
    pub async fn write_locked(&self, offset: u64, data: IoData) -> Result<(), Error> {
        let (offset, data) = self.whole_sectors(offset, data).await?;
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let part = |to: u64| data.slice((at - offset) as usize..(to - offset) as usize);
            let run = self.lookup(View::Active, at, end - at).await?;
            if let (Kind::Data, true, Some(host)) = (run.kind, run.copied, run.host) {
                self.write_host(at, host, part(at + run.len)).await?;
                at += run.len;
                continue;
            }
            let (cluster, last) = (at >> self.bits, (end - 1) >> self.bits);
            let old = self.entries(cluster, last - cluster + 1).await?;
            let own_host = |e: &Entry| self.host(*e).filter(|_| e.word & COPIED != 0 || self.data.is_some());
            let to = |count: u64| end.min((cluster + count) << self.bits);
            if let Some(host) = own_host(&old[0]) {
                let (data, old) = (part(to(1)), &old[..1]);
                let fill = Fill { cluster, old, host, fresh: false, reuse: true, offset: at, data };
                let new = self.fill(fill).await?;
                self.set_entries(cluster, &new, false).await?;
                at = to(1);
                continue;
            }
            let count = old.iter().take_while(|e| own_host(e).is_none()).count() as u64;
            if self.data.is_some() {
                let (data, old, host) = (part(to(count)), &old[..count as usize], cluster << self.bits);
                let fill = Fill { cluster, old, host, fresh: false, reuse: false, offset: at, data };
                let new = self.fill(fill).await?;
                self.set_entries(cluster, &new, false).await?;
                at = to(count);
                continue;
            }
            // The table comes first, so that it does not lie between data that is written in a row.
            self.table_for_change(cluster / self.l2_entries()).await?;
            let space = self.allocate(count).await?;
            let count = space.clusters;
            let (data, old) = (part(to(count)), &old[..count as usize]);
            // Where nothing was written, there are no encrypted zeros.
            let (host, fresh) = (space.offset, space.fresh && self.crypt.is_none());
            let fill = Fill { cluster, old, host, fresh, reuse: false, offset: at, data };
            let done = async {
                let new = self.fill(fill).await?;
                self.set_entries(cluster, &new, false).await
            };
            match done.await {
                Ok(()) => space.keep(),
                Err(e) => {
                    self.undo(space, cluster).await;
                    return Err(e);
                }
            }
            at = to(count);
        }
        Ok(())
    }

    /// Takes back the space of a write that failed, unless the entries were changed already.
    async fn undo(&self, space: super::alloc::Space<'_>, cluster: u64) {
        for n in 0..space.clusters {
            match self.entries(cluster + n, 1).await {
                Ok(e) if self.host(e[0]) != Some(space.offset + (n << self.bits)) => {}
                // It is referred to, or that is not known: a later check gives it back if nothing does.
                Ok(_) => return space.keep(),
                Err(_) => return,
            }
        }
        space.give_back();
    }

    /// Writes data, and what is missing to whole units around it, and says which entries that gives.
    async fn fill(&self, fill: Fill<'_>) -> Result<Vec<Entry>, Error> {
        let (start, end) = (fill.offset, fill.offset + fill.data.len() as u64);
        let base = fill.cluster << self.bits;
        let count = fill.old.len() as u64;
        let head = self.edge(&fill, 0, start, false);
        let tail = self.edge(&fill, count - 1, end, true);
        let to = fill.host + (head - base);
        let (mut head_zero, mut tail_zero) = (true, true);
        if head < start {
            head_zero = self.is_known_zero(head, start).await?;
        }
        if end < tail {
            tail_zero = self.is_known_zero(end, tail).await?;
        }
        let write_head = head < start && !(fill.fresh && head_zero);
        let write_tail = end < tail && !(fill.fresh && tail_zero);
        if !write_head && !write_tail {
            self.write_host(start, fill.host + (start - base), fill.data).await?;
        } else if tail - head <= COMPOSE {
            let mut all = IoBuf::new((tail - head) as usize);
            let (data_at, data_end) = ((start - head) as usize, (end - head) as usize);
            all[data_at..data_end].copy_from_slice(&fill.data);
            for (zero, from, range) in
                [(head_zero, head, 0..data_at), (tail_zero, end, data_end..(tail - head) as usize)]
            {
                if zero {
                    all[range].fill(0);
                } else {
                    let part = self.read_view(View::Active, from, IoBuf::new(range.len())).await?;
                    all[range].copy_from_slice(&part);
                }
            }
            self.write_host(head, to, all.freeze()).await?;
        } else {
            let side = async |there: bool, zero: bool, from: u64, to: u64| {
                let at = fill.host + (from - base);
                if !there {
                    return Ok(());
                }
                if zero {
                    return self.zero_host(from, at, to - from, true).await;
                }
                let part = self.read_view(View::Active, from, IoBuf::new((to - from) as usize)).await?;
                self.write_host(from, at, part.freeze()).await
            };
            try_join!(
                side(write_head, head_zero, head, start),
                side(write_tail, tail_zero, end, tail),
                self.write_host(start, fill.host + (start - base), fill.data.clone())
            )?;
        }
        let entry = |n: u64| {
            let cluster_at = base + (n << self.bits);
            let word = ((fill.host + (n << self.bits)) & OFFSET) | COPIED;
            let mut bitmap = 0;
            if self.extended {
                let unit = self.unit();
                let first = (head.max(cluster_at) - cluster_at) / unit;
                let last = (tail.min(cluster_at + self.cluster) - cluster_at) / unit;
                let bits = (1u64 << last) - (1u64 << first);
                let old = fill.old[n as usize];
                let kept = if old.word & super::map::COMPRESSED != 0 { 0 } else { old.bitmap };
                bitmap = (kept | bits) & !(bits << 32);
            }
            Entry { word, bitmap }
        };
        Ok((0..count).map(entry).collect())
    }

    /// How far before (or behind) `at` must be written, in the `n`th cluster of a fill.
    fn edge(&self, fill: &Fill<'_>, n: u64, at: u64, behind: bool) -> u64 {
        let unit = self.unit();
        let cluster_at = (fill.cluster + n) << self.bits;
        let old = fill.old[n as usize];
        let to = |unit: u64| if behind { at.next_multiple_of(unit) } else { at - at % unit };
        if !self.extended {
            return to(self.cluster);
        }
        let has_data = old.word & super::map::COMPRESSED != 0 || old.bitmap & 0xffff_ffff != 0;
        if !fill.reuse {
            return to(if has_data { self.cluster } else { unit });
        }
        // Units that are there already are written in place.
        let inside = if behind { at - 1 } else { at };
        let there = old.bitmap >> ((inside - cluster_at) / unit) & 1 != 0;
        if there { at } else { to(unit) }
    }
}
