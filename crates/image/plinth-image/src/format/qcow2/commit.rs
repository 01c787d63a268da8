//! Making changes durable, in an order that a power cut at any point does no harm to.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use async_lock::Mutex;
use futures_util::future::try_join_all;
use futures_util::join;

use super::alloc::Freed;
use super::header::{self, EXT_LEAKS};
use super::refcount::SECTOR_ENTRIES;
use super::{Core, Writes};
use crate::Error;
use crate::format::table::Staged;
use crate::graph::{IoBuf, IoData};

/// What commits remember of each other.
#[derive(Default)]
pub struct Commits {
    lock: Mutex<()>,
    started: Cell<u64>,
    done: Cell<u64>,
    /// Something is to be written.
    pub changed: Cell<bool>,
    /// L2 tables that no L1 table in the file refers to yet.
    pub new_l2: RefCell<HashSet<u64>>,
    /// The mark that something may leak, or the dirty bit, is in the file.
    pub marked: Cell<bool>,
}

/// Changes as they were at one moment.
struct Batch<'a> {
    core: &'a Core,
    done: bool,
    l1: Vec<usize>,
    ref_sectors: Vec<usize>,
    new_blocks: HashSet<u64>,
    moved: Vec<Freed>,
    table_at: Option<(u64, u32)>,
    frees: Vec<Freed>,
}

impl Drop for Batch<'_> {
    /// What was not written is to be written still.
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let core = self.core;
        core.l1.borrow_mut().dirty.extend(self.l1.drain(..));
        core.refs.dirty.borrow_mut().extend(self.ref_sectors.drain(..));
        core.refs.new_blocks.borrow_mut().extend(self.new_blocks.drain());
        core.alloc.moved.borrow_mut().append(&mut self.moved);
        if core.alloc.table_at.get().is_none() {
            core.alloc.table_at.set(self.table_at);
        }
        core.alloc.pending.borrow_mut().append(&mut self.frees);
        core.changed();
    }
}

/// Big-endian words of sectors of a table.
fn sectors(entries: &[u64], at: u64, sectors: &[usize]) -> Writes {
    let mut writes = Writes::new();
    for &sector in sectors {
        let first = sector * SECTOR_ENTRIES;
        let part = &entries[first..entries.len().min(first + SECTOR_ENTRIES)];
        let bytes: Vec<u8> = part.iter().flat_map(|e| e.to_be_bytes()).collect();
        writes.push((at + first as u64 * 8, IoData::copy_of(&bytes)));
    }
    writes
}

impl Core {
    /// Notes that something is to be written by the next commit.
    pub fn changed(&self) {
        self.commits.changed.set(true);
    }

    pub async fn write_all(&self, writes: Writes) -> Result<(), Error> {
        const AT_ONCE: usize = 32;
        let mut writes = writes.into_iter();
        loop {
            let some = writes.by_ref().take(AT_ONCE).map(|(at, data)| self.file.write(at, data));
            let some: Vec<_> = some.collect();
            if some.is_empty() {
                return Ok(());
            }
            try_join_all(some).await?;
        }
    }

    /// Makes everything durable that was complete before.
    pub async fn commit(&self) -> Result<(), Error> {
        self.commit_with(false).await
    }

    /// `all`: counts too where they are kept lazily.
    pub async fn commit_with(&self, all: bool) -> Result<(), Error> {
        let commits = &self.commits;
        let want = commits.started.get() + 1;
        let _alone = commits.lock.lock().await;
        // One that began after us has done our work.
        if commits.done.get() >= want && !all {
            return Ok(());
        }
        let number = commits.started.get() + 1;
        commits.started.set(number);
        let frees = self.commit_once(all).await?;
        commits.done.set(number);
        self.free(&frees).await
    }

    /// Makes everything durable, and then also that what was given back by that is free.
    pub async fn settle(&self) -> Result<(), Error> {
        self.changed();
        self.commit_with(true).await?;
        if self.commits.changed.get() {
            self.commit_with(true).await?;
        }
        Ok(())
    }

    /// Commits if the changes take up most of their room in memory.
    pub async fn relieve(&self) -> Result<(), Error> {
        if self.pressure.get() < 64 {
            self.pressure.set(self.pressure.get() + 1);
            return Ok(());
        }
        self.pressure.set(0);
        if self.l2.is_crowded() || self.refs.cache.is_crowded() || self.alloc.pending.borrow().len() > 1 << 16
        {
            self.commit().await?;
        }
        Ok(())
    }

    async fn barrier(&self) -> Result<(), Error> {
        self.file.flush().await
    }

    async fn commit_once(&self, all: bool) -> Result<Vec<Freed>, Error> {
        if !self.commits.changed.replace(false) {
            match &self.data {
                Some(data) => _ = futures_util::try_join!(data.flush(), self.barrier())?,
                None => self.barrier().await?,
            }
            return Ok(Vec::new());
        }
        // Everything as it is at this moment, without a wait in between.
        let lazy = self.is_lazy() && !all && !self.refs.cache.is_crowded();
        let new_l2 = self.commits.new_l2.borrow().clone();
        let mask = !(self.cluster - 1);
        let fresh_tables = self.l2.stage(|b| new_l2.contains(&(b.offset() & mask)));
        let tables = self.l2.stage(|_| true);
        let mut batch = Batch {
            core: self,
            done: false,
            l1: std::mem::take(&mut self.l1.borrow_mut().dirty).into_iter().collect(),
            ref_sectors: Vec::new(),
            new_blocks: HashSet::new(),
            moved: Vec::new(),
            table_at: None,
            frees: std::mem::take(&mut self.alloc.pending.borrow_mut()),
        };
        let mut counts = Staged::default();
        if !lazy {
            counts = self.refs.cache.stage(|_| true);
            batch.ref_sectors = std::mem::take(&mut *self.refs.dirty.borrow_mut()).into_iter().collect();
            batch.new_blocks = std::mem::take(&mut self.refs.new_blocks.borrow_mut());
            batch.moved = std::mem::take(&mut self.alloc.moved.borrow_mut());
            batch.table_at = self.alloc.table_at.take();
        }
        let l1_writes = {
            let l1 = self.l1.borrow();
            sectors(&l1.entries, l1.offset, &batch.l1)
        };
        let (whole_table, table_writes) = {
            let table = self.refs.table.borrow();
            match batch.table_at {
                Some((at, _)) => {
                    let all: Vec<_> = (0..table.len().div_ceil(SECTOR_ENTRIES)).collect();
                    (sectors(&table, at, &all), Writes::new())
                }
                None => {
                    let at = self.header.borrow().reftable_offset;
                    (Writes::new(), sectors(&table, at, &batch.ref_sectors))
                }
            }
        };
        self.mark().await?;
        // Counts that nothing in the file leads to yet come first of all: with the blocks' and the table's own.
        if !batch.new_blocks.is_empty() || batch.table_at.is_some() {
            let counts = std::mem::take(&mut counts);
            let (a, b) = join!(self.refs.cache.write_staged(counts), self.write_all(whole_table));
            a.and(b)?;
            self.barrier().await?;
        }
        // What is counted more than it is referred to does no harm, nor tables that nothing refers to.
        let move_table = async {
            match batch.table_at {
                Some((offset, clusters)) => {
                    self.change_header(|h| {
                        h.reftable_offset = offset;
                        h.reftable_clusters = clusters;
                    })
                    .await
                }
                None => Ok(()),
            }
        };
        let (a, b, c, d) = join!(
            self.refs.cache.write_staged(counts),
            self.l2.write_staged(fresh_tables),
            self.write_all(table_writes),
            move_table
        );
        a.and(b).and(c).and(d)?;
        match &self.data {
            Some(data) => _ = futures_util::try_join!(data.flush(), self.barrier())?,
            None => self.barrier().await?,
        }
        // Everything that they refer to is durable now.
        if !tables.is_empty() || !l1_writes.is_empty() {
            let (a, b) = join!(self.l2.write_staged(tables), self.write_all(l1_writes));
            a.and(b)?;
            self.barrier().await?;
        }
        batch.done = true;
        self.commits.new_l2.borrow_mut().retain(|t| !new_l2.contains(t));
        let mut frees = std::mem::take(&mut batch.frees);
        frees.append(&mut batch.moved);
        Ok(frees)
    }

    /// True if counts need not be durable before what they count.
    fn is_lazy(&self) -> bool {
        self.header.borrow().compatible & header::LAZY_REFCOUNTS != 0
    }

    /// Says in the file, durably, that it is not closed in good order: by the dirty bit if counts are lazy, else by
    /// a mark of our own that means no more than that something may leak.
    async fn mark(&self) -> Result<(), Error> {
        if self.commits.marked.get() {
            return Ok(());
        }
        if self.is_lazy() {
            self.change_header(|h| h.incompatible |= header::DIRTY).await?;
        } else {
            self.write_leak_mark(true).await?;
        }
        self.barrier().await?;
        self.commits.marked.set(true);
        Ok(())
    }

    /// Takes the marks back, when all is durable; those of an image that is damaged besides stay.
    pub async fn unmark(&self) -> Result<(), Error> {
        if !self.commits.marked.get() {
            return Ok(());
        }
        let header = self.header.borrow().clone();
        if self.guard.broken.get() || header.incompatible & header::CORRUPT != 0 {
            return Ok(());
        }
        if header.incompatible & header::DIRTY != 0 {
            self.change_header(|h| h.incompatible &= !header::DIRTY).await?;
        }
        if header.leaks {
            self.write_leak_mark(false).await?;
        }
        self.barrier().await?;
        self.commits.marked.set(false);
        Ok(())
    }

    /// Changes fields of the header, all of which are in its first sector, which is written at once.
    pub async fn change_header(&self, change: impl FnOnce(&mut header::Header)) -> Result<(), Error> {
        let _alone = self.header_lock.lock().await;
        let mut new = self.header.borrow().clone();
        change(&mut new);
        let bytes = new.encode(&self.info.name)?;
        let sector = bytes.len().min(crate::SECTOR as usize);
        let fixed = if new.version >= 3 { 112 } else { 72 };
        // The backing name's place is in these fields too, and stays where it is.
        let mut first = self.file.read(0, IoBuf::new(sector.max(fixed))).await?;
        let old = IoData::copy_of(&first);
        let place: [u8; 12] = first[8..20].try_into().expect("twelve bytes");
        let length = new.length.min(fixed as u32) as usize;
        let own_length: [u8; 4] = first.get(100..104).and_then(|b| b.try_into().ok()).unwrap_or_default();
        first[..length].copy_from_slice(&bytes[..length]);
        first[8..20].copy_from_slice(&place);
        if new.version >= 3 {
            first[100..104].copy_from_slice(&own_length);
        }
        if let Err(e) = self.file.write(0, first.freeze()).await {
            // It may have been written all the same, and what it says is taken back by who asked for it.
            if self.file.write(0, old).await.is_ok() {
                let _ = self.file.flush().await;
            }
            return Err(e);
        }
        *self.header.borrow_mut() = new;
        Ok(())
    }

    /// Writes the header with all extensions and names anew. The sectors behind the first one are written before
    /// it, so that what the first one says of them is true.
    pub async fn rewrite_header(&self, change: impl FnOnce(&mut header::Header)) -> Result<(), Error> {
        let _alone = self.header_lock.lock().await;
        let mut new = self.header.borrow().clone();
        change(&mut new);
        if new.version >= 3 {
            new.length = new.length.max(112);
        }
        let mut bytes = new.encode(&self.info.name)?;
        bytes.resize(bytes.len().next_multiple_of(512).min(self.cluster as usize), 0);
        let data = IoData::copy_of(&bytes);
        if data.len() > 512 {
            self.file.write(512, data.slice(512..)).await?;
            self.barrier().await?;
        }
        self.file.write(0, data.slice(..512)).await?;
        self.barrier().await?;
        *self.header.borrow_mut() = new;
        Ok(())
    }

    /// Puts our mark before the end of the extensions, or takes it away: eight bytes that change at once.
    async fn write_leak_mark(&self, there: bool) -> Result<(), Error> {
        let _alone = self.header_lock.lock().await;
        let head = self.file.read(0, IoBuf::new(self.cluster as usize)).await?;
        let length = if self.header.borrow().version >= 3 { header::be32(&head, 100) } else { 72 };
        let mut at = length as usize;
        // To the end mark, or to our mark just before it.
        loop {
            let kind = header::be32(&head, at);
            let name_at = header::be64(&head, 8) as usize;
            if at + 16 > head.len() || (name_at != 0 && at + 8 > name_at) {
                // No room: what a crash leaves is found by a check.
                return Ok(());
            }
            if kind == header::EXT_END || kind == EXT_LEAKS {
                break;
            }
            at += 8 + (header::be32(&head, at + 4) as usize).next_multiple_of(8);
        }
        let (name_at, name_len) = (header::be64(&head, 8) as usize, header::be32(&head, 16) as usize);
        if there && header::be32(&head, at) == header::EXT_END {
            if name_at != 0 && name_at < at + 16 && !self.move_name(&head, name_at, name_len, at + 16).await?
            {
                return Ok(());
            }
            if head[at + 8..at + 16].iter().any(|&b| b != 0) {
                self.file.write((at + 8) as u64, IoBuf::zeroed(8).freeze()).await?;
                self.barrier().await?;
            }
        }
        let mut mark = [0; 8];
        if there {
            mark[..4].copy_from_slice(&EXT_LEAKS.to_be_bytes());
        }
        self.file.write(at as u64, IoData::copy_of(&mark)).await?;
        self.header.borrow_mut().leaks = there;
        Ok(())
    }

    /// Moves the name of the image below to make room for the mark; false if there is none.
    async fn move_name(&self, head: &[u8], at: usize, len: usize, least: usize) -> Result<bool, Error> {
        let Some(name) = at.checked_add(len).and_then(|end| head.get(at..end)) else { return Ok(false) };
        // Not over itself: a cut in between must leave one of the two.
        let to = least.max(at + len).next_multiple_of(8);
        if to + len > head.len() {
            return Ok(false);
        }
        self.file.write(to as u64, IoData::copy_of(name)).await?;
        self.barrier().await?;
        self.file.write(8, IoData::copy_of(&(to as u64).to_be_bytes())).await?;
        self.barrier().await?;
        Ok(true)
    }
}
