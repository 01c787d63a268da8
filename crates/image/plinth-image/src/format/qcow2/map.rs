//! Where the disk's bytes are: the L1 table, L2 tables and their entries (qcow2 specification, "Cluster mapping").

use std::collections::BTreeSet;
use std::rc::Rc;

use super::Core;
use super::alloc::Freed;
use super::guard::Kind as Guarded;
use super::refcount::SECTOR_ENTRIES;
use crate::Error;
use crate::format::table::Block;

/// Offsets in entries.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Exactly one reference: it may be written in place.
pub const COPIED: u64 = 1 << 63;
pub const COMPRESSED: u64 = 1 << 62;
/// It reads as zeros (version 3, entries that are not extended).
pub const ZERO: u64 = 1;
/// Bytes of a table that are read at once by who goes through it in order.
const MAX_AHEAD: u64 = 128 << 10;
/// Subclusters of a cluster with an extended entry.
pub const SUBCLUSTERS: u64 = 32;

/// The active L1 table.
#[derive(Debug, Default)]
pub struct L1 {
    pub entries: Vec<u64>,
    pub offset: u64,
    /// Changed sectors of it.
    pub dirty: BTreeSet<usize>,
}

impl L1 {
    pub fn set(&mut self, index: usize, entry: u64) {
        self.entries[index] = entry;
        self.dirty.insert(index / SECTOR_ENTRIES);
    }
}

/// Whose L1 table: the disk's, or a snapshot's.
#[derive(Clone, Copy)]
pub enum View<'a> {
    Active,
    Table(&'a [u64]),
}

/// An L2 entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub word: u64,
    /// State of subclusters, if entries are extended: allocated ones in the lower half, zeros in the upper.
    pub bitmap: u64,
}

/// What is known of a part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unallocated,
    Zero,
    Data,
    Compressed,
}

/// Bytes of one kind in a row.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub kind: Kind,
    pub len: u64,
    /// Where they are, for data; where the space for them is, for zeros that have some.
    pub host: Option<u64>,
    /// They may be written in place.
    pub copied: bool,
    /// The entry of the first cluster.
    pub entry: Entry,
}

impl Core {
    pub fn entry_size(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster / self.entry_size()
    }

    /// Bytes that are allocated, or noted as zeros, at once.
    pub fn unit(&self) -> u64 {
        if self.extended { self.cluster / SUBCLUSTERS } else { self.cluster }
    }

    pub fn read_entry(&self, bytes: &[u8], index: usize) -> Entry {
        let n = self.entry_size() as usize;
        let word = super::header::be64(bytes, index * n);
        let bitmap = if self.extended { super::header::be64(bytes, index * n + 8) } else { 0 };
        Entry { word, bitmap }
    }

    pub fn write_entry(&self, bytes: &mut [u8], index: usize, entry: Entry) {
        let n = self.entry_size() as usize;
        bytes[index * n..index * n + 8].copy_from_slice(&entry.word.to_be_bytes());
        if self.extended {
            bytes[index * n + 8..index * n + 16].copy_from_slice(&entry.bitmap.to_be_bytes());
        }
    }

    /// The cluster of the file that an entry refers to, if it is not compressed.
    pub fn host(&self, entry: Entry) -> Option<u64> {
        let offset = entry.word & OFFSET;
        let at_zero = self.data.is_some() && entry.word & COPIED != 0;
        (entry.word & COMPRESSED == 0 && (offset != 0 || at_zero)).then_some(offset)
    }

    /// Where a compressed cluster is: byte, and bytes up to the end of its last sector.
    pub fn compressed(&self, entry: Entry) -> (u64, u64) {
        let x = 62 - (self.bits - 8);
        let offset = entry.word & ((1 << x) - 1) & (OFFSET | 0x1ff);
        let sectors = (entry.word & !(COPIED | COMPRESSED)) >> x;
        (offset, (sectors + 1) * 512 - offset % 512)
    }

    /// The entry of a compressed cluster of `len` bytes; `None` if it is too far away for one.
    pub fn compressed_entry(&self, offset: u64, len: u64) -> Option<Entry> {
        let x = 62 - (self.bits - 8);
        let sectors = ((offset + len - 1) >> 9) - (offset >> 9);
        let fits = offset < 1 << x.min(56);
        fits.then_some(Entry { word: COMPRESSED | offset | sectors << x, bitmap: 0 })
    }

    /// What an entry says of its `sub`th unit.
    fn kind(&self, entry: Entry, sub: u64) -> Option<Kind> {
        if entry.word & COMPRESSED != 0 {
            return (self.data.is_none()).then_some(Kind::Compressed);
        }
        let host = self.host(entry);
        if host.is_some_and(|h| h % self.cluster != 0) {
            return None;
        }
        if !self.extended {
            return Some(match (entry.word & ZERO != 0 && self.v3(), host) {
                (true, _) => Kind::Zero,
                (false, Some(_)) => Kind::Data,
                (false, None) => Kind::Unallocated,
            });
        }
        match (entry.bitmap >> sub & 1, entry.bitmap >> (sub + 32) & 1) {
            (0, 0) => Some(Kind::Unallocated),
            (0, _) => Some(Kind::Zero),
            (_, 0) if host.is_some() => Some(Kind::Data),
            _ => None,
        }
    }

    /// The first run of up to `len` bytes at `within` of the cluster of entry `index`, in one slice of a table.
    fn scan(&self, bytes: &[u8], index: usize, within: u64, len: u64) -> Option<Run> {
        let unit = self.unit();
        let entries = bytes.len() / self.entry_size() as usize;
        let first = self.read_entry(bytes, index);
        let kind = self.kind(first, within / unit)?;
        let host = self.host(first).map(|h| h + within);
        let copied = first.word & COPIED != 0 || self.data.is_some();
        let mut run = Run { kind, len: 0, host, copied, entry: first };
        let (mut at, mut within, mut entry) = (index, within, first);
        if !self.extended && kind != Kind::Compressed && (kind == Kind::Data || host.is_none()) {
            // Entries in a row that only count up, or are all the same, need no closer look.
            let step = if kind == Kind::Data { self.cluster } else { 0 };
            let most = (OFFSET - (first.word & OFFSET)) >> self.bits;
            let wanted = (len.saturating_add(within)).div_ceil(self.cluster).min(most.max(1)) as usize;
            let mut word = first.word;
            let same =
                bytes[(index + 1) * 8..].as_chunks::<8>().0.iter().take(wanted.saturating_sub(1)).take_while(
                    |e| {
                        word = word.wrapping_add(step);
                        u64::from_be_bytes(**e) == word
                    },
                );
            let count = same.count() as u64;
            at += count as usize;
            run.len = (count << self.bits).saturating_sub(within);
            within = if count > 0 { 0 } else { within };
            entry = self.read_entry(bytes, at);
        }
        loop {
            let n = if kind == Kind::Compressed { self.cluster - within } else { unit - within % unit };
            run.len += n;
            within += n;
            if run.len >= len || kind == Kind::Compressed {
                break;
            }
            if within == self.cluster {
                (at, within) = (at + 1, 0);
                if at == entries {
                    break;
                }
                entry = self.read_entry(bytes, at);
            }
            // A damaged entry further on is for whoever comes to it.
            let same = self.kind(entry, within / unit) == Some(kind)
                && (entry.word & COPIED != 0 || self.data.is_some()) == copied
                && match (kind, run.host) {
                    (Kind::Data | Kind::Zero, Some(h)) => {
                        self.host(entry).is_some_and(|n| n + within == h + run.len)
                    }
                    (_, host) => self.host(entry).is_some() == host.is_some(),
                };
            if !same {
                break;
            }
        }
        run.len = run.len.min(len);
        Some(run)
    }

    pub fn l1_entry(&self, view: View<'_>, index: u64) -> u64 {
        let index = index as usize;
        match view {
            View::Active => self.l1.borrow().entries.get(index).copied().unwrap_or(0),
            View::Table(table) => table.get(index).copied().unwrap_or(0),
        }
    }

    /// Where an L1 entry says its table is; `None` for no table.
    pub fn l2_offset(&self, entry: u64) -> Result<Option<u64>, Error> {
        let offset = entry & OFFSET;
        if !offset.is_multiple_of(self.cluster) {
            return Err(Error::corrupt(&self.info.name, format!("an L2 table cannot be at {offset:#x}")));
        }
        Ok(Some(offset).filter(|&o| o != 0))
    }

    /// Which slice of a table has the entry of guest cluster `cluster`, and the entry's index in it.
    fn slice_of(&self, cluster: u64) -> (u64, usize) {
        let byte = cluster % self.l2_entries() * self.entry_size();
        let slice = self.l2.block_size() as u64;
        (byte / slice * slice, (byte % slice / self.entry_size()) as usize)
    }

    /// The slice that maps guest cluster `cluster`, and the entry's index in it; `None` if there is no table.
    pub async fn slice(&self, view: View<'_>, cluster: u64) -> Result<Option<(Rc<Block>, usize)>, Error> {
        let (slice, index) = self.slice_of(cluster);
        loop {
            let entry = self.l1_entry(view, cluster / self.l2_entries());
            let Some(table) = self.l2_offset(entry)? else { return Ok(None) };
            let block = match self.l2.get(table + slice) {
                Some(block) => block,
                None => {
                    // Who goes through the disk in order needs the rest of the table next.
                    let step = self.l2.block_size() as u64;
                    let number = cluster / (step / self.entry_size());
                    let in_order = number == self.next_slice.replace(number + 1);
                    let rest = ((self.cluster - slice).min(MAX_AHEAD) / step) as usize;
                    let count = if in_order { rest } else { 1 };
                    self.next_slice.set(number + count as u64);
                    self.l2.load_row(table + slice, count, "an L2 table").await?
                }
            };
            // It may have been copied meanwhile.
            if self.l1_entry(view, cluster / self.l2_entries()) == entry {
                return Ok(Some((block, index)));
            }
        }
    }

    /// What the disk has at `offset`: the first bytes of one kind, of `len` at most.
    pub async fn lookup(&self, view: View<'_>, offset: u64, len: u64) -> Result<Run, Error> {
        let cluster = offset >> self.bits;
        let within = offset % self.cluster;
        let Some((block, index)) = self.slice(view, cluster).await? else {
            let span = self.l2_entries() << self.bits;
            let len = len.min(span - offset % span);
            let entry = Entry::default();
            return Ok(Run { kind: Kind::Unallocated, len, host: None, copied: false, entry });
        };
        block.with(|b| self.scan(b, index, within, len)).ok_or_else(|| {
            let entry = block.with(|b| self.read_entry(b, index));
            let why =
                format!("the L2 entry {:#x} {:#x} at {offset:#x} makes no sense", entry.word, entry.bitmap);
            Error::corrupt(&self.info.name, why)
        })
    }

    /// Entries of guest clusters from `cluster` on, at most `count` of them and those of one slice.
    pub async fn entries(&self, cluster: u64, count: u64) -> Result<Vec<Entry>, Error> {
        let per = (self.l2.block_size() as u64) / self.entry_size();
        let count = count.min(per - cluster % per) as usize;
        let Some((block, index)) = self.slice(View::Active, cluster).await? else {
            return Ok(vec![Entry::default(); count]);
        };
        Ok(block.with(|b| (0..count).map(|n| self.read_entry(b, index + n)).collect()))
    }

    /// The offset of the L2 table of `index` for a change of its entries: made, or copied if a snapshot has it too.
    pub async fn table_for_change(&self, index: u64) -> Result<u64, Error> {
        let ready = |entry: u64| Ok::<_, Error>(self.l2_offset(entry)?.filter(|_| entry & COPIED != 0));
        if let Some(table) = ready(self.l1_entry(View::Active, index))? {
            if !matches!(self.kind_of(table >> self.bits), None | Some(Guarded::L2))
                || self.row_at(table >> self.bits).is_some()
            {
                return Err(self
                    .damaged("an L2 table would be over another table", table >> self.bits)
                    .await);
            }
            return Ok(table);
        }
        let _alone = self.l1_locks.lock(index..index + 1, true).await;
        let entry = self.l1_entry(View::Active, index);
        if let Some(table) = ready(entry)? {
            return Ok(table);
        }
        let space = self.allocate(1).await?;
        let offset = space.offset;
        let step = self.l2.block_size() as u64;
        let old = self.l2_offset(entry)?;
        let done = async {
            for at in (0..self.cluster).step_by(step as usize) {
                self.l2.forget(offset + at);
            }
            match old {
                None if space.fresh => Ok(()),
                None => self.file.write_zeroes(offset, self.cluster, true).await,
                Some(old) => {
                    for at in (0..self.cluster).step_by(step as usize) {
                        let from = self.l2.load(old + at, "an L2 table").await?;
                        from.with(|f| self.l2.create(offset + at).change(|t| t.copy_from_slice(f)));
                    }
                    Ok(())
                }
            }
        };
        if let Err(e) = done.await {
            for at in (0..self.cluster).step_by(step as usize) {
                self.l2.forget(offset + at);
            }
            space.give_back();
            return Err(e);
        }
        space.keep();
        self.commits.new_l2.borrow_mut().insert(offset);
        self.guard.add(offset >> self.bits, Guarded::L2);
        self.l1.borrow_mut().set(index as usize, offset | COPIED);
        if let Some(old) = old {
            self.alloc.pending.borrow_mut().push(Freed::table(old >> self.bits, 1));
        }
        self.changed();
        Ok(offset)
    }

    /// Gives guest clusters from `cluster` on these entries, and takes back what the old ones referred to.
    /// `punch`: space that becomes free goes back to the file system.
    pub async fn set_entries(&self, cluster: u64, entries: &[Entry], punch: bool) -> Result<(), Error> {
        let mut done = 0;
        while done < entries.len() {
            let at = cluster + done as u64;
            let table = self.table_for_change(at / self.l2_entries()).await?;
            let (slice, index) = self.slice_of(at);
            let block = self.l2.load(table + slice, "an L2 table").await?;
            let mut freed = Vec::new();
            let old: Vec<_> = block.with(|b| {
                let n = (b.len() / self.entry_size() as usize - index).min(entries.len() - done);
                (0..n).map(|i| self.read_entry(b, index + i)).collect()
            });
            self.guard_free(&old, &entries[done..]).await?;
            // It may have gone from the cache meanwhile.
            let block = self.l2.load(table + slice, "an L2 table").await?;
            let n = old.len();
            block.change(|b| {
                for i in 0..n {
                    let (old, new) = (self.read_entry(b, index + i), entries[done + i]);
                    self.write_entry(b, index + i, new);
                    self.forget_data(old, new, punch, &mut freed);
                }
            });
            self.alloc.pending.borrow_mut().append(&mut freed);
            self.changed();
            done += n;
        }
        self.relieve().await
    }

    /// Adds to `freed` what `old` refers to and `new` does not.
    fn forget_data(&self, old: Entry, new: Entry, punch: bool, freed: &mut Vec<Freed>) {
        if self.data.is_some() {
            return;
        }
        let mut push = |first: u64, count: u64, punch: bool| match freed.last_mut() {
            Some(last) if last.cluster + last.count == first && last.punch == punch => last.count += count,
            _ => freed.push(Freed { punch, ..Freed::data(first, count) }),
        };
        if old.word & COMPRESSED != 0 {
            let (offset, len) = self.compressed(old);
            let (first, last) = (offset >> self.bits, (offset + len - 1) >> self.bits);
            push(first, last - first + 1, false);
            self.unpacked.borrow_mut().clear();
        } else if let Some(host) = self.host(old)
            && self.host(new) != Some(host)
        {
            push(host >> self.bits, 1, punch);
        }
    }
}
