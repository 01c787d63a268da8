//! Space for clusters: taken from the counts, given back when it is safe.

use std::cell::{Cell, RefCell};

use async_lock::Mutex;

use super::Core;
use super::guard::Kind;
use super::header::MAX_REFTABLE;
use super::refcount;
use crate::graph::lengthen;
use crate::{Error, ErrorKind};

/// Space that nothing refers to any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// First cluster, and how many.
    pub cluster: u64,
    pub count: u64,
    /// The file system gets the space back too.
    pub punch: bool,
    /// It held a table.
    pub table: bool,
}

impl Freed {
    /// Data, whose space is kept for new data.
    pub fn data(cluster: u64, count: u64) -> Self {
        Self { cluster, count, punch: false, table: false }
    }

    /// A table.
    pub fn table(cluster: u64, count: u64) -> Self {
        Self { cluster, count, punch: false, table: true }
    }
}

/// What the allocator remembers between requests.
#[derive(Default)]
pub struct Alloc {
    /// Held while blocks of counts are added, and while the file is made longer.
    growing: Mutex<()>,
    /// Held while space for compressed clusters is taken.
    packing_lock: Mutex<()>,
    /// Clusters before it are in use, but for those that are found later.
    pub cursor: Cell<u64>,
    /// Bytes of the file that may have been written to: what is behind reads as zeros.
    pub high: Cell<u64>,
    /// Bytes of the file that are there: nothing is written behind them but by who holds `growing`.
    pub reach: Cell<u64>,
    /// Where the next compressed cluster goes, within a cluster that has others already.
    pub packing: Cell<Option<u64>>,
    /// Space whose last reference was taken out of a table in memory: it is free when that is durable.
    pub pending: RefCell<Vec<Freed>>,
    /// Space of requests that were given up: something may still be written there.
    pub lost: RefCell<Vec<Freed>>,
    /// Where the refcount table is and how many clusters it has, if the header does not say so yet.
    pub table_at: Cell<Option<(u64, u32)>>,
    /// Where it was before that.
    pub moved: RefCell<Vec<Freed>>,
}

/// Clusters in a row that were taken.
#[derive(Debug)]
pub struct Space<'a> {
    core: &'a Core,
    pub offset: u64,
    pub clusters: u64,
    /// Nothing was ever written there, and it reads as zeros.
    pub fresh: bool,
    settled: bool,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({})", self.info.name)
    }
}

impl Space<'_> {
    fn freed(&self) -> Freed {
        Freed::table(self.offset >> self.core.bits, self.clusters)
    }

    /// A table refers to it now.
    pub fn keep(mut self) {
        self.settled = true;
    }

    /// Nothing refers to it, and nothing is being written to it.
    pub fn give_back(mut self) {
        self.settled = true;
        self.core.alloc.pending.borrow_mut().push(self.freed());
        self.core.changed();
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.core.alloc.lost.borrow_mut().push(self.freed());
        }
    }
}

impl Core {
    /// Takes up to `want` clusters in a row, at least one.
    pub async fn allocate(&self, want: u64) -> Result<Space<'_>, Error> {
        let alloc = &self.alloc;
        loop {
            let at = alloc.cursor.get();
            self.check_reach(at)?;
            if self.refs.block_offset(at)?.is_none() {
                let _alone = alloc.growing.lock().await;
                if at == alloc.cursor.get() && self.refs.block_offset(at)?.is_none() {
                    self.grow_counts(at).await?;
                }
                continue;
            }
            let Some((slice, index)) = self.refs.slice(at).await? else { continue };
            // Others came first meanwhile.
            if alloc.cursor.get() != at {
                continue;
            }
            let order = self.refs.order();
            let per = self.refs.per_slice() as usize;
            let free = slice.with(|b| (index..per).find(|&i| refcount::get(b, order, i) == 0));
            let Some(first) = free else {
                alloc.cursor.set(at + (per - index) as u64);
                continue;
            };
            let start = at + (first - index) as u64;
            if let Some(end) = self.metadata_at(start) {
                // A damaged image counts its own tables as free.
                alloc.cursor.set(end);
                continue;
            }
            self.check_reach(start)?;
            // What is fresh and what is not are taken apart.
            let high = alloc.high.get().div_ceil(self.cluster);
            let limit = if start < high { want.min(high - start) } else { want };
            let count = slice.change(|b| {
                let mut n = 0;
                while (n as u64) < limit
                    && first + n < per
                    && refcount::get(b, order, first + n) == 0
                    && (n == 0 || self.metadata_at(start + n as u64).is_none())
                {
                    refcount::set(b, order, first + n, 1);
                    n += 1;
                }
                n as u64
            });
            alloc.cursor.set(start + count);
            let end = (start + count) << self.bits;
            alloc.high.set(alloc.high.get().max(end));
            self.changed();
            let space = Space {
                core: self,
                offset: start << self.bits,
                clusters: count,
                fresh: start >= high,
                settled: false,
            };
            if end > alloc.reach.get()
                && let Err(e) = self.lengthen(end).await
            {
                space.give_back();
                return Err(e);
            }
            return Ok(space);
        }
    }

    /// Makes the file longer than `end`, so that the writes of many clusters to come are inside of it. A file
    /// system does those side by side, and those that make the file longer one after the other.
    async fn lengthen(&self, end: u64) -> Result<(), Error> {
        /// Bytes at most.
        const AHEAD: u64 = 32 << 20;
        let alloc = &self.alloc;
        let _alone = alloc.growing.lock().await;
        if end <= alloc.reach.get() {
            return Ok(());
        }
        // Those who wait for this have taken space too.
        let high = alloc.high.get();
        let ahead = (high / 4).clamp(self.cluster, AHEAD);
        // What goes behind the file's end waits for `reach`.
        lengthen(&*self.file, high, ahead).await?;
        alloc.reach.set(self.file.size());
        Ok(())
    }

    /// Cuts off what the file was made longer by and nobody has taken. Nothing may be under way.
    pub async fn shorten(&self) {
        let end = self.alloc.high.get().next_multiple_of(self.cluster);
        // It takes up no space, so this need not go well.
        if self.alloc.reach.get() > end && self.file.size() > end && self.file.resize(end).await.is_ok() {
            self.alloc.reach.set(end);
        }
    }

    /// Takes `count` clusters in a row, at the file's end if need be.
    pub async fn allocate_row(&self, count: u64) -> Result<Space<'_>, Error> {
        // Where a block of counts is made, it is in the middle of what it counts.
        if count >= self.refs.per_block() {
            return self.allocate_long_row(count).await;
        }
        let mut space = self.allocate(count).await?;
        if space.clusters == count {
            return Ok(space);
        }
        // Where there is nothing yet, pieces follow each other unless a block of counts comes between.
        space.give_back();
        let end = self.alloc.high.get().div_ceil(self.cluster).max(self.alloc.cursor.get());
        let before = self.alloc.cursor.replace(end);
        space = self.allocate(count).await?;
        while space.clusters < count {
            let next = self.allocate(count - space.clusters).await?;
            if next.offset == space.offset + (space.clusters << self.bits) {
                space.clusters += next.clusters;
                next.keep();
            } else {
                space.give_back();
                space = next;
            }
        }
        self.alloc.cursor.set(before.min(self.alloc.cursor.get()));
        Ok(space)
    }

    /// Takes more clusters in a row than one block counts, behind everything else. The blocks that count them come
    /// before them.
    async fn allocate_long_row(&self, count: u64) -> Result<Space<'_>, Error> {
        let _alone = self.alloc.growing.lock().await;
        let per = self.refs.per_block();
        loop {
            let start = self.alloc.high.get().div_ceil(self.cluster).max(self.alloc.cursor.get());
            let mut missing = Vec::new();
            let mut blocks = 0;
            let end = loop {
                let end = start + blocks + count;
                missing.clear();
                for index in start / per..=(end - 1) / per {
                    if self.refs.block_offset(index * per)?.is_none() {
                        missing.push(index);
                    }
                }
                if missing.len() as u64 <= blocks {
                    break end;
                }
                blocks = missing.len() as u64;
            };
            self.check_reach(end)?;
            if end > self.refs.covered() {
                self.grow_table(self.refs.covered()).await?;
                continue;
            }
            // Counts of what is there already may say that something is behind the file's end.
            let mut used = None;
            for cluster in start..end {
                if self.refs.get(cluster).await? != 0 || self.metadata_at(cluster).is_some() {
                    used = Some(cluster);
                }
            }
            if let Some(used) = used {
                self.alloc.high.set(self.alloc.high.get().max((used + 1) << self.bits));
                continue;
            }
            self.alloc.high.set(end << self.bits);
            self.file.write_zeroes(start << self.bits, (end - start) << self.bits, true).await?;
            let step = self.refs.cache.block_size() as u64;
            for (n, &index) in missing.iter().enumerate() {
                let offset = (start + n as u64) << self.bits;
                self.refs.set_block(index as usize, offset);
                self.guard.add(start + n as u64, Kind::RefcountBlock);
                for at in (offset..offset + self.cluster).step_by(step as usize) {
                    self.refs.cache.create(at);
                }
            }
            let own = missing.len() as u64;
            let space = Space {
                core: self,
                offset: (start + blocks) << self.bits,
                clusters: count,
                fresh: true,
                settled: false,
            };
            for cluster in (start..start + own).chain(start + blocks..end) {
                self.refs.set(cluster, 1).await?;
            }
            self.changed();
            return Ok(space);
        }
    }

    /// Refuses space that tables cannot point to.
    fn check_reach(&self, cluster: u64) -> Result<(), Error> {
        const MOST: u64 = 1 << 56;
        if cluster < MOST >> self.bits {
            return Ok(());
        }
        let doing = format!("cannot write to '{}'", self.info.name);
        Err(Error::new(ErrorKind::NoSpace, doing, "the file has reached the format's limit"))
    }

    /// If a table is at `cluster`: where it ends. Counts that say that such a cluster is free are wrong, and would
    /// have the table overwritten.
    fn metadata_at(&self, cluster: u64) -> Option<u64> {
        match self.row_at(cluster) {
            Some((_, end)) => Some(end),
            None => self.kind_of(cluster).map(|_| cluster + 1),
        }
    }

    /// Adds a block that counts `cluster` and those near it, none of which is in use; the table grows if it
    /// is too short.
    async fn grow_counts(&self, cluster: u64) -> Result<(), Error> {
        if cluster >= self.refs.covered() {
            return self.grow_table(cluster).await;
        }
        let index = cluster / self.refs.per_block();
        let mut at = cluster;
        while let Some(end) = self.metadata_at(at) {
            at = end;
        }
        if at / self.refs.per_block() != index {
            self.alloc.cursor.set(at);
            return Ok(());
        }
        let offset = at << self.bits;
        self.alloc.high.set(self.alloc.high.get().max(offset + self.cluster));
        self.file.write_zeroes(offset, self.cluster, true).await?;
        self.forget_counts(offset);
        let (slice, place) = self.refs.place(at);
        let order = self.refs.order();
        self.refs.cache.create(offset + slice).change(|b| refcount::set(b, order, place, 1));
        self.refs.set_block(index as usize, offset);
        self.guard.add(at, Kind::RefcountBlock);
        self.alloc.cursor.set(at + 1);
        self.changed();
        Ok(())
    }

    fn forget_counts(&self, offset: u64) {
        let step = self.refs.cache.block_size() as u64;
        for at in (offset..offset + self.cluster).step_by(step as usize) {
            self.refs.cache.forget(at);
        }
    }

    /// A larger table of blocks in a new place, at `cluster`, which the present one does not reach.
    async fn grow_table(&self, cluster: u64) -> Result<(), Error> {
        // Not over anything, even if the present table is damaged and counts next to nothing.
        let cluster = cluster.max(self.alloc.high.get().div_ceil(self.cluster));
        self.check_reach(cluster)?;
        let per = self.refs.per_block();
        let old_entries = self.refs.table.borrow().len() as u64;
        // Half as much again, and all that it takes to count itself.
        let mut clusters = (old_entries * 3 / 2 * 8).div_ceil(self.cluster).max(1);
        let mut blocks = 1;
        loop {
            let end = cluster + clusters + blocks;
            let need_blocks = (end - 1) / per - cluster / per + 1;
            let need_clusters = (((end - 1) / per + 1) * 8).div_ceil(self.cluster);
            if need_blocks <= blocks && need_clusters <= clusters {
                break;
            }
            blocks = blocks.max(need_blocks);
            clusters = clusters.max(need_clusters);
        }
        if clusters << self.bits > MAX_REFTABLE {
            let why = "the file has reached the size that its refcount table can have; larger clusters help";
            return Err(Error::new(ErrorKind::NoSpace, format!("cannot write to '{}'", self.info.name), why));
        }
        let (table_at, blocks_at) = (cluster << self.bits, (cluster + clusters) << self.bits);
        let end = cluster + clusters + blocks;
        self.alloc.high.set(self.alloc.high.get().max(end << self.bits));
        self.file.write_zeroes(table_at, (end - cluster) << self.bits, true).await?;
        // From here on nothing fails.
        let order = self.refs.order();
        let entries = (clusters << self.bits) / 8;
        self.refs.table.borrow_mut().resize(entries as usize, 0);
        let step = self.refs.cache.block_size() as u64;
        for n in 0..blocks {
            let offset = blocks_at + (n << self.bits);
            self.refs.set_block((cluster / per + n) as usize, offset);
            self.guard.add(offset >> self.bits, Kind::RefcountBlock);
            for at in (offset..offset + self.cluster).step_by(step as usize) {
                self.refs.cache.create(at);
            }
        }
        for used in cluster..end {
            let block = blocks_at + ((used / per - cluster / per) << self.bits);
            let (slice, place) = self.refs.place(used);
            if let Some(slice) = self.refs.cache.get(block + slice) {
                slice.change(|b| refcount::set(b, order, place, 1));
            }
        }
        let header = self.header.borrow();
        let (was_at, count) =
            self.alloc.table_at.get().unwrap_or((header.reftable_offset, header.reftable_clusters));
        drop(header);
        self.alloc.table_at.set(Some((table_at, clusters as u32)));
        let old = Freed::table(was_at >> self.bits, u64::from(count));
        self.alloc.moved.borrow_mut().push(old);
        self.alloc.cursor.set(end);
        self.changed();
        Ok(())
    }

    /// Takes `len` bytes for a compressed cluster, which follow those of the last one if possible.
    pub async fn allocate_bytes(&self, len: u64) -> Result<u64, Error> {
        let alloc = &self.alloc;
        let _alone = alloc.packing_lock.lock().await;
        let mut offset = None;
        if let Some(next) = alloc.packing.get() {
            let end = next.next_multiple_of(self.cluster);
            if next + len <= end {
                if self.refs.add(next >> self.bits).await? {
                    offset = Some(next);
                }
            } else {
                let space = self.allocate(1).await?;
                if space.offset == end && self.refs.add(next >> self.bits).await? {
                    offset = Some(next);
                } else {
                    offset = Some(space.offset);
                }
                space.keep();
            }
        }
        let offset = match offset {
            Some(offset) => offset,
            None => {
                let space = self.allocate(1).await?;
                let offset = space.offset;
                space.keep();
                offset
            }
        };
        self.changed();
        let next = offset + len;
        alloc.packing.set(Some(next).filter(|n| n % self.cluster != 0));
        Ok(offset)
    }

    /// Takes references back. Only for what no durable table refers to.
    pub async fn free(&self, freed: &[Freed]) -> Result<(), Error> {
        // Whatever becomes of this, what is not done is done by the next commit.
        struct Rest<'a>(&'a Core, &'a [Freed], u64);
        impl Drop for Rest<'_> {
            fn drop(&mut self) {
                let mut rest = self.1.to_vec();
                if let Some(first) = rest.first_mut() {
                    first.cluster += self.2;
                    first.count -= self.2;
                    self.0.alloc.pending.borrow_mut().extend(rest);
                    self.0.changed();
                }
            }
        }
        let mut rest = Rest(self, freed, 0);
        while let Some(f) = rest.1.first() {
            self.punch(f).await?;
            for n in 0..f.count {
                self.free_one(f.cluster + n, f.table).await?;
                rest.2 = n + 1;
            }
            (rest.1, rest.2) = (&rest.1[1..], 0);
        }
        Ok(())
    }

    async fn free_one(&self, cluster: u64, table: bool) -> Result<(), Error> {
        if self.refs.drop_one(cluster).await? == 0 {
            self.guard.remove(cluster);
            self.alloc.cursor.set(self.alloc.cursor.get().min(cluster));
            if self.alloc.packing.get().is_some_and(|p| p >> self.bits == cluster) {
                self.alloc.packing.set(None);
            }
            if table {
                self.forget_tables(cluster << self.bits);
            }
        }
        self.changed();
        Ok(())
    }

    /// Gives space back to the file system while it is still counted, so that nobody writes there.
    async fn punch(&self, f: &Freed) -> Result<(), Error> {
        if f.punch {
            let mut from = f.cluster;
            for c in f.cluster..=f.cluster + f.count {
                let last = c == f.cluster + f.count;
                if last || self.refs.get(c).await? != 1 {
                    if c > from {
                        let (at, len) = (from << self.bits, (c - from) << self.bits);
                        // A hint, for which nothing has to go well.
                        let _ = self.file.discard(at, len).await;
                    }
                    from = c + 1;
                }
            }
        }
        Ok(())
    }

    /// What the cluster at `offset` held is no table any more.
    fn forget_tables(&self, offset: u64) {
        self.commits.new_l2.borrow_mut().remove(&offset);
        let step = self.l2.block_size() as u64;
        for at in (offset..offset + self.cluster).step_by(step as usize) {
            self.l2.forget(at);
            self.refs.cache.forget(at);
        }
    }
}
