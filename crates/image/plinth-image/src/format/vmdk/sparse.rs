//! Extents of grains: a directory of tables of grains.
//!
//! # Order of writes
//!
//! A new grain goes to the file's end, which reads as zeros, and is known in memory only (`pending`) until a flush:
//!
//! 1. Before the first new grain of a session the header's mark of an unclean shutdown is set and flushed.
//! 2. Data of new grains is written.
//! 3. A flush makes data durable, then writes the tables (both copies) that point to it, and flushes again. A new
//!    table is durable before the redundant directory has it, and that before the directory has it.
//! 4. Closing flushes, cuts off what was reserved, flushes, and takes the mark back.
//!
//! A cut between any of these leaves tables that point to durable data only. What it can leave is grains that no
//! table points to, and copies of tables that differ; the mark tells the next open, which mends both
//! ([`recover`](super::check)). A table's entry never straddles a sector, so a torn table is old or new entry by
//! entry. Grains are never freed: what is discarded becomes a hole of the host's file, and stays mapped.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use async_lock::Mutex;
use futures_util::future::join_all;

use super::header::{Geometry, Hosted, Tables};
use crate::format::table::{Block, TableCache, table_len};
use crate::graph::{Extent, Io, IoBuf, IoData, Node, NodeRef, RangeLocks, is_zero, joined, read_table};
use crate::{Error, ErrorKind, SECTOR};

/// Bytes of a directory at most: for 64 TiB with grains of 64 KiB.
pub const MAX_DIRECTORY: u64 = 8 << 20;
/// How the error of a file that is too short begins; where the first grain would be comes then.
pub const CUT_SHORT: &str = "its first grain would be at";
/// Bytes of tables that are kept in memory.
const TABLE_MEMORY: usize = 4 << 20;
/// New grains that are kept in memory until tables are written, at most.
const MAX_PENDING: usize = 8192;
/// Bytes by which the file is made longer at once.
const RESERVE: u64 = 16 << 20;
/// Grains that one question about status looks at.
pub const LOOK_AHEAD: u64 = 1 << 16;
/// Bytes of a grain that are copied at once; grains may have a GiB.
const AT_ONCE: u64 = 1 << 20;

/// The image below an extent.
#[derive(Clone, Copy)]
pub struct Below<'a> {
    pub node: Option<&'a dyn Node>,
    /// Byte of the disk where the extent begins.
    pub base: u64,
}

impl Below<'_> {
    /// Nothing below.
    pub const NOTHING: Below<'static> = Below { node: None, base: 0 };

    fn is_there(&self) -> bool {
        self.node.is_some()
    }

    /// Reads what is below byte `at` of the extent; zeros where there is nothing.
    pub async fn read(&self, at: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        let at = self.base + at;
        let inside = self.node.map_or(0, |n| n.size().saturating_sub(at)).min(buf.len() as u64);
        let Some(node) = self.node.filter(|_| inside > 0) else {
            buf.fill(0);
            return Ok(buf);
        };
        let mut rest = buf.split_off(inside as usize);
        rest.fill(0);
        let buf = node.read(at, buf).await?;
        Ok(joined(vec![buf, rest]))
    }

    async fn status(&self, at: u64, len: u64) -> Result<Extent, Error> {
        let at = self.base + at;
        let inside = self.node.map_or(0, |n| n.size().saturating_sub(at)).min(len);
        match self.node.filter(|_| inside > 0) {
            None => Ok(Extent { depth: self.node.is_some().into(), ..Extent::hole(len) }),
            Some(node) => {
                let e = node.status(at, inside).await?;
                Ok(Extent { depth: e.depth + 1, host: None, ..e })
            }
        }
    }
}

/// Where a grain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Not in this extent.
    None,
    /// Nowhere: zeros.
    Zero,
    /// At this byte of the file.
    At(u64),
}

/// A part of the extent that is in one piece, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub at: u64,
    pub len: u64,
    pub place: Place,
}

/// Directories, as sectors of the file or numbers of tables plus one; 0: no table.
pub type Directory = RefCell<Vec<u32>>;

/// An open extent.
pub struct SparseExtent {
    pub file: NodeRef,
    pub geometry: RefCell<Geometry>,
    /// What is written anew when something in it changes; hosted sparse extents have it.
    pub header: RefCell<Option<Hosted>>,
    pub directory: Directory,
    pub redundant: Option<Directory>,
    pub tables: TableCache,
    /// Why it can only be read, if so.
    pub frozen: RefCell<Option<String>>,
    /// Entries that are not in tables yet, by grain.
    pub pending: RefCell<BTreeMap<u64, u32>>,
    /// Tables whose copies are not written yet, and tables that directories do not have yet.
    touched: RefCell<BTreeSet<u64>>,
    new_tables: RefCell<BTreeSet<u64>>,
    /// First byte behind all grains, and the byte up to which the file is made.
    pub next: Cell<u64>,
    pub reserved: Cell<u64>,
    growing: Mutex<()>,
    locks: RangeLocks,
    /// True while the mark of use is in the file.
    started: Mutex<bool>,
    flushing: Mutex<()>,
    /// Space was lost to a request that failed or was given up; the mark stays, and the next open finds it.
    leaky: Cell<bool>,
    /// Compressed grains follow each other at any distance.
    pub packed: bool,
}

/// Marks space as lost unless it comes to good use.
struct Lost<'a>(&'a Cell<bool>);

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

impl SparseExtent {
    /// Opens an extent whose header was read.
    pub async fn open(file: NodeRef, geometry: Geometry, header: Option<Hosted>) -> Result<Self, Error> {
        let name = file.info().name.clone();
        let count = geometry.capacity.div_ceil(geometry.span());
        table_len(&name, "grain directory", count, geometry.entry(), MAX_DIRECTORY)?;
        if geometry.overhead > file.size() {
            let (at, end) = (geometry.overhead, file.size());
            let why = format!("{CUT_SHORT} {at}, beyond the file's end at {end}: the file is cut short");
            return Err(Error::corrupt(&name, why));
        }
        let primary = read_directory(&*file, &geometry, geometry.directory).await;
        let second = match geometry.redundant {
            Some(at) => read_directory(&*file, &geometry, at).await.ok(),
            None => None,
        };
        let good = |d: &Vec<u32>| {
            (0..d.len())
                .all(|i| table_at(&geometry, d, i as u64).is_none_or(|at| inside(&*file, &geometry, at)))
        };
        let usable = second.filter(good);
        let mut frozen = None;
        let (directory, redundant) = match (primary, usable) {
            (Ok(p), second) if good(&p) => (p, second),
            (_, Some(second)) => {
                frozen = Some("its grain directory is damaged, and the redundant one is used".to_owned());
                (second, None)
            }
            (Ok(p), None) => {
                frozen = Some("its grain directory is damaged".to_owned());
                (p, None)
            }
            (Err(e), None) => return Err(e),
        };
        match (&header, geometry.tables) {
            (Some(h), _) if h.version == 3 && h.compression == 0 => {
                frozen =
                    Some("it is of version 3, whose record of changed blocks only VMware can keep".into());
            }
            (Some(h), _) if h.compression == 0 => {}
            (Some(_), _) => {
                frozen = Some("a stream-optimized image is written once, from start to end".into())
            }
            (None, Tables::SeSparse { .. }) => frozen = Some("Plinth writes no seSparse extents".into()),
            (None, _) => frozen = Some("Plinth writes no vmfsSparse extents".into()),
        }
        let extent = Self::with(file, geometry, header, directory);
        *extent.frozen.borrow_mut() = frozen;
        Ok(Self { redundant: redundant.map(RefCell::new), ..extent })
    }

    /// An extent with this directory, and no second one.
    pub fn with(file: NodeRef, geometry: Geometry, header: Option<Hosted>, directory: Vec<u32>) -> Self {
        let table = (geometry.entries * geometry.entry()) as usize;
        let end = file.size().max(geometry.overhead);
        Self {
            tables: TableCache::new(file.clone(), table, TABLE_MEMORY),
            next: Cell::new(end.next_multiple_of(geometry.grain)),
            reserved: Cell::new(file.size()),
            packed: header.as_ref().is_some_and(|h| h.compression != 0),
            directory: RefCell::new(directory),
            redundant: None,
            geometry: RefCell::new(geometry),
            header: RefCell::new(header),
            file,
            frozen: RefCell::default(),
            pending: RefCell::default(),
            touched: RefCell::default(),
            new_tables: RefCell::default(),
            growing: Mutex::new(()),
            locks: RangeLocks::default(),
            started: Mutex::new(false),
            flushing: Mutex::new(()),
            leaky: Cell::new(false),
        }
    }

    pub fn name(&self) -> &str {
        &self.file.info().name
    }

    pub fn grain(&self) -> u64 {
        self.geometry.borrow().grain
    }

    /// Where table `n` is.
    pub fn table_at(&self, n: u64) -> Option<u64> {
        table_at(&self.geometry.borrow(), &self.directory.borrow(), n)
    }

    /// Where the copy of table `n` is.
    pub fn copy_at(&self, n: u64) -> Option<u64> {
        let copies = self.redundant.as_ref()?;
        table_at(&self.geometry.borrow(), &copies.borrow(), n)
    }

    /// What an entry means; an error if it cannot be right.
    pub fn decode(&self, grain: u64, entry: u64) -> Result<Place, Error> {
        let g = self.geometry.borrow();
        let wrong = |why: String| Error::corrupt(self.name(), format!("the entry of grain {grain} {why}"));
        let at = match g.tables {
            Tables::Hosted { zero_grains } => match entry {
                0 => return Ok(Place::None),
                1 if zero_grains => return Ok(Place::Zero),
                sector => sector * SECTOR,
            },
            Tables::SeSparse { grains, .. } => match entry >> 60 {
                0 if entry == 0 => return Ok(Place::None),
                // Unmapped by the guest, and zeros.
                1 | 2 => return Ok(Place::Zero),
                3 => {
                    let number = (entry >> 48 & 0xfff) | (entry & 0xffff_ffff_ffff) << 12;
                    let sector = number.checked_mul(g.grain / SECTOR).and_then(|s| s.checked_add(grains));
                    let at = sector.and_then(|s| s.checked_mul(SECTOR)).filter(|&a| a <= i64::MAX as u64);
                    at.ok_or_else(|| wrong(format!("({entry:#x}) is beyond any file")))?
                }
                _ => return Err(wrong(format!("is of no known kind ({entry:#x})"))),
            },
        };
        if at < g.overhead || at >= self.file.size().max(self.reserved.get()) {
            return Err(wrong(format!("points to byte {at}, where no grain can be")));
        }
        Ok(Place::At(at))
    }

    fn entry(&self, block: &Block, index: u64) -> u64 {
        match self.geometry.borrow().entry() {
            4 => block.le32(index as usize).into(),
            _ => block.le64(index as usize),
        }
    }

    /// What the tables say of a grain; the copy of its table if its own cannot be right.
    async fn look(&self, grain: u64, block: Option<&Block>) -> Result<Place, Error> {
        if let Some(&entry) = self.pending.borrow().get(&grain) {
            return self.decode(grain, entry.into());
        }
        let entries = self.geometry.borrow().entries;
        let Some(block) = block else { return Ok(Place::None) };
        let first = self.decode(grain, self.entry(block, grain % entries));
        if first.is_err()
            && let Some(at) = self.copy_at(grain / entries)
        {
            let copy = self.tables.load(at, "a copy of a grain table").await?;
            return self.decode(grain, self.entry(&copy, grain % entries)).or(first);
        }
        first
    }

    /// Table `n`, from its copy if it cannot be read.
    async fn table(&self, n: u64) -> Result<Option<Rc<Block>>, Error> {
        let Some(at) = self.table_at(n) else { return Ok(None) };
        let loaded = match self.tables.get(at) {
            Some(block) => Ok(block),
            None => self.tables.load_ahead(at, self.row_end(n, at), "a grain table").await,
        };
        match loaded {
            Err(e) => match self.copy_at(n) {
                Some(copy) => {
                    Ok(Some(self.tables.load(copy, "a copy of a grain table").await.map_err(|_| e)?))
                }
                None => Err(e),
            },
            block => block.map(Some),
        }
    }

    /// Where tables end that lie in the file one behind the other, as those of a new image do: table `n` at `at`, and
    /// some after it.
    fn row_end(&self, n: u64, at: u64) -> u64 {
        const ROW: u64 = 32;
        let len = self.tables.block_size() as u64;
        let row = (1..ROW).take_while(|k| self.table_at(n + k) == Some(at + k * len)).count() as u64;
        at + (row + 1) * len
    }

    /// How many grains, from one on that is nowhere and of `most`, have the same entry in a table.
    fn alike(&self, grain: u64, block: &Block, most: u64) -> u64 {
        let (entries, entry) = {
            let g = self.geometry.borrow();
            (g.entries, g.entry())
        };
        // Where this is not what counts, a copy of the table does.
        let own = self.decode(grain, self.entry(block, grain % entries));
        if !matches!(own, Ok(Place::None | Place::Zero)) {
            return 1;
        }
        let index = (grain % entries) as usize;
        if entry == 4 { block.alike::<4>(index, most) } else { block.alike::<8>(index, most) }
    }

    /// The longest run from byte `at`, within `len`.
    pub async fn run(&self, at: u64, len: u64) -> Result<Run, Error> {
        let (grain, span, entries) = {
            let g = self.geometry.borrow();
            (g.grain, g.span(), g.entries)
        };
        let end = at + len;
        let mut run = Run { at, len: 0, place: Place::None };
        let mut pos = at;
        while pos < end {
            let table = pos / span;
            let table_end = end.min((table + 1) * span);
            let block = self.table(table).await?;
            let settled = self.none_pending(table * entries..(table + 1) * entries);
            if block.is_none() && settled {
                if run.len > 0 && run.place != Place::None {
                    return Ok(run);
                }
                run.len += table_end - pos;
                pos = table_end;
                continue;
            }
            while pos < table_end {
                let place = match self.look(pos / grain, block.as_deref()).await? {
                    Place::At(start) if !self.packed => Place::At(start + pos % grain),
                    other => other,
                };
                let alike = match (place, &block) {
                    (Place::None | Place::Zero, Some(block)) if settled => {
                        self.alike(pos / grain, block, (table_end - pos).div_ceil(grain)).max(1)
                    }
                    _ => 1,
                };
                let n = table_end.min((pos / grain + alike) * grain) - pos;
                let goes_on = match (run.place, place) {
                    (Place::At(a), Place::At(b)) => !self.packed && a + run.len == b,
                    (a, b) => a == b,
                };
                if run.len > 0 && !goes_on {
                    return Ok(run);
                }
                if run.len == 0 {
                    run.place = place;
                }
                run.len += n;
                pos += n;
            }
        }
        Ok(run)
    }

    fn none_pending(&self, grains: std::ops::Range<u64>) -> bool {
        self.pending.borrow().range(grains).next().is_none()
    }

    /// All runs of a range.
    pub async fn runs(&self, at: u64, len: u64) -> Result<Vec<Run>, Error> {
        let mut runs = Vec::new();
        let mut pos = at;
        while pos < at + len {
            let run = self.run(pos, at + len - pos).await?;
            pos += run.len;
            runs.push(run);
        }
        Ok(runs)
    }

    pub async fn read(&self, at: u64, buf: IoBuf, below: Below<'_>) -> Result<IoBuf, Error> {
        let runs = self.runs(at, buf.len() as u64).await?;
        let mut rest = buf;
        let mut jobs = Vec::with_capacity(runs.len());
        for run in runs {
            let next = rest.split_off(run.len as usize);
            let mut part = std::mem::replace(&mut rest, next);
            jobs.push(async move {
                match run.place {
                    Place::At(at) => self.file.read(at, part).await,
                    Place::None if below.is_there() => below.read(run.at, part).await,
                    _ => {
                        part.fill(0);
                        Ok(part)
                    }
                }
            });
        }
        Ok(joined(join_all(jobs).await.into_iter().collect::<Result<_, _>>()?))
    }

    /// Sets the mark of use, once.
    pub async fn begin(&self) -> Result<(), Error> {
        let mut started = self.started.lock().await;
        if !*started {
            self.write_mark(true).await?;
            *started = true;
        }
        Ok(())
    }

    /// Writes the header's sector, with or without the mark of use, and makes it durable.
    pub async fn write_mark(&self, unclean: bool) -> Result<(), Error> {
        let mut sector = read_table(&*self.file, 0, SECTOR as usize, "the header").await?;
        sector[Hosted::UNCLEAN_AT] = unclean.into();
        self.file.write(0, sector.freeze()).await?;
        self.file.flush().await?;
        if let Some(h) = self.header.borrow_mut().as_mut() {
            h.unclean = unclean;
        }
        Ok(())
    }

    /// Space for `grains` new grains in a row, which reads as zeros.
    pub async fn allocate(&self, grains: u64) -> Result<u64, Error> {
        let len = grains * self.grain();
        loop {
            let at = self.next.get();
            let end = at + len;
            if end / SECTOR > u64::from(u32::MAX) {
                let doing = format!("cannot write to '{}'", self.name());
                return Err(Error::new(ErrorKind::NoSpace, doing, "an extent can hold 2 TiB at most"));
            }
            if end <= self.reserved.get() {
                self.next.set(end);
                return Ok(at);
            }
            let _alone = self.growing.lock().await;
            let size = self.reserved.get();
            // Others may have come first.
            let end = self.next.get() + len;
            if end > size {
                let want = end + RESERVE.min(end / 8).next_multiple_of(self.grain());
                self.file.write_zeroes(size, want - size, true).await?;
                self.reserved.set(want);
            }
        }
    }

    pub async fn write(&self, at: u64, data: IoData, below: Below<'_>) -> Result<(), Error> {
        let len = data.len() as u64;
        let runs = self.runs(at, len).await?;
        let part = |run: &Run| data.slice((run.at - at) as usize..(run.at - at + run.len) as usize);
        let there = |run: &Run| matches!(run.place, Place::At(_));
        if runs.iter().all(there) {
            let writes = runs.iter().map(|run| self.overwrite(run, part(run)));
            return join_all(writes).await.into_iter().collect();
        }
        self.begin().await?;
        let grain = self.grain();
        let guard = self.locks.lock(at / grain..(at + len).div_ceil(grain), true).await;
        // Others may have come first.
        let runs = self.runs(at, len).await?;
        let mut writes: Vec<Io<'_, ()>> = Vec::with_capacity(runs.len());
        for run in &runs {
            let data = part(run);
            writes.push(if there(run) {
                Box::pin(self.overwrite(run, data))
            } else {
                Box::pin(self.fill(*run, Some(data), below))
            });
        }
        let done: Result<(), Error> = join_all(writes).await.into_iter().collect();
        drop(guard);
        done?;
        self.relieve().await
    }

    async fn overwrite(&self, run: &Run, data: IoData) -> Result<(), Error> {
        let Place::At(at) = run.place else { unreachable!("only what is there is written over") };
        self.file.write(at, data).await
    }

    /// Makes new grains for a run that has none; zeros without `data`. Their locks are held.
    async fn fill(&self, run: Run, data: Option<IoData>, below: Below<'_>) -> Result<(), Error> {
        let grain = self.grain();
        let (first, last) = (run.at / grain, (run.at + run.len).div_ceil(grain));
        let at = self.allocate(last - first).await?;
        let lost = Lost(&self.leaky);
        let mut writes: Vec<Io<'_, ()>> = Vec::new();
        if let Some(data) = data {
            writes.push(self.file.write(at + run.at % grain, data));
        }
        if run.place == Place::None && below.is_there() {
            let end = run.at + run.len;
            for (from, to) in [(first * grain, run.at), (end, last * grain)] {
                let to = to.min(self.geometry.borrow().capacity);
                if from < to {
                    writes.push(Box::pin(self.fill_from(below, from..to, at + (from - first * grain))));
                }
            }
        }
        join_all(writes).await.into_iter().collect::<Result<(), Error>>()?;
        std::mem::forget(lost);
        let mut pending = self.pending.borrow_mut();
        for n in 0..last - first {
            pending.insert(first + n, ((at + n * grain) / SECTOR) as u32);
        }
        Ok(())
    }

    /// Copies what is below to new grains, which read as zeros.
    async fn fill_from(&self, below: Below<'_>, range: Range<u64>, to: u64) -> Result<(), Error> {
        for from in range.clone().step_by(AT_ONCE as usize) {
            let n = AT_ONCE.min(range.end - from);
            let copy = below.read(from, IoBuf::new(n as usize)).await?;
            if !is_zero(&copy) {
                self.file.write(to + (from - range.start), copy.freeze()).await?;
            }
        }
        Ok(())
    }

    /// Writes tables when many new grains are in memory only.
    pub async fn relieve(&self) -> Result<(), Error> {
        if self.pending.borrow().len() < MAX_PENDING {
            return Ok(());
        }
        self.flush().await
    }

    pub async fn write_zeroes(&self, at: u64, len: u64, unmap: bool, below: Below<'_>) -> Result<(), Error> {
        let (grain, capacity, zero_grains) = {
            let g = self.geometry.borrow();
            (g.grain, g.capacity, g.tables == Tables::Hosted { zero_grains: true })
        };
        let nothing_below = !below.is_there();
        let mut pos = at;
        while pos < at + len {
            // Bounded, so that the runs are.
            let part = (at + len - pos).min(LOOK_AHEAD * grain);
            let mut runs = self.runs(pos, part).await?;
            pos += part;
            let needs = |r: &Run| r.place == Place::None && !nothing_below;
            let mut guard = None;
            if runs.iter().any(needs) {
                self.begin().await?;
                let (from, to) = ((pos - part) / grain, pos.div_ceil(grain));
                guard = Some(self.locks.lock(from..to, true).await);
                runs = self.runs(pos - part, part).await?;
            }
            for run in runs {
                match run.place {
                    Place::At(at) => self.file.write_zeroes(at, run.len, unmap).await?,
                    Place::None if !nothing_below => {
                        self.zero_above(run, grain, capacity, zero_grains, below).await?;
                    }
                    _ => {}
                }
            }
            drop(guard);
            self.relieve().await?;
        }
        Ok(())
    }

    /// Hides what is below a run.
    async fn zero_above(
        &self,
        run: Run,
        grain: u64,
        capacity: u64,
        zero_grains: bool,
        below: Below<'_>,
    ) -> Result<(), Error> {
        let end = run.at + run.len;
        let whole = run.at.next_multiple_of(grain)..if end == capacity { end } else { end - end % grain };
        if !zero_grains || whole.start >= whole.end {
            return self.fill(run, None, below).await;
        }
        for (from, to) in [(run.at, whole.start), (whole.end, end)] {
            if from < to {
                self.fill(Run { at: from, len: to - from, place: Place::None }, None, below).await?;
            }
        }
        let mut pending = self.pending.borrow_mut();
        for n in whole.start / grain..whole.end.div_ceil(grain) {
            pending.insert(n, 1);
        }
        Ok(())
    }

    pub async fn discard(&self, at: u64, len: u64) -> Result<(), Error> {
        let mut pos = at;
        while pos < at + len {
            let run = self.run(pos, (at + len - pos).min(LOOK_AHEAD * self.grain())).await?;
            if let Place::At(at) = run.place {
                self.file.discard(at, run.len).await?;
            }
            pos += run.len;
        }
        Ok(())
    }

    pub async fn status(&self, at: u64, len: u64, below: Below<'_>) -> Result<Extent, Error> {
        let len = len.min(LOOK_AHEAD * self.grain());
        let mut run = self.run(at, len).await?;
        while self.packed && matches!(run.place, Place::At(_)) && run.len < len {
            let more = self.run(at + run.len, len - run.len).await?;
            if !matches!(more.place, Place::At(_)) {
                break;
            }
            run.len += more.len;
        }
        match run.place {
            Place::At(_) if self.packed => Ok(Extent { compressed: true, ..Extent::stored(run.len, None) }),
            Place::At(at) => Ok(Extent::stored(run.len, Some(at))),
            Place::Zero => Ok(Extent::zeros(run.len)),
            Place::None => below.status(at, run.len).await,
        }
    }

    /// Makes everything durable that is complete, in the order that the module's documentation has.
    pub async fn flush(&self) -> Result<(), Error> {
        let _alone = self.flushing.lock().await;
        let entries: Vec<_> = self.pending.borrow().iter().map(|(&g, &e)| (g, e)).collect();
        self.file.flush().await?;
        if entries.is_empty() && self.touched.borrow().is_empty() && self.new_tables.borrow().is_empty() {
            return Ok(());
        }
        let per_table = self.geometry.borrow().entries;
        for (grain, entry) in entries {
            let n = grain / per_table;
            let block = match self.table_at(n) {
                Some(at) => self.tables.load(at, "a grain table").await?,
                None => self.new_table(n).await?,
            };
            block.set((grain % per_table) as usize, &entry.to_le_bytes());
            self.touched.borrow_mut().insert(n);
            let mut pending = self.pending.borrow_mut();
            if pending.get(&grain) == Some(&entry) {
                pending.remove(&grain);
            }
        }
        let touched: Vec<_> = self.touched.borrow().iter().copied().collect();
        let mut blocks = Vec::with_capacity(touched.len());
        for &n in &touched {
            let at = self.table_at(n).expect("tables that were changed are there");
            blocks.push((n, self.tables.load(at, "a grain table").await?));
        }
        self.tables.write_dirty().await?;
        for some in blocks.chunks(32) {
            let writes = some.iter().filter_map(|(n, block)| {
                Some(self.file.write(self.copy_at(*n)?, block.with(IoData::copy_of)))
            });
            join_all(writes).await.into_iter().collect::<Result<(), Error>>()?;
        }
        self.file.flush().await?;
        self.touched.borrow_mut().clear();
        self.write_directories().await
    }

    /// Makes a table, empty, with its copy.
    async fn new_table(&self, n: u64) -> Result<Rc<Block>, Error> {
        let len = self.tables.block_size() as u64;
        let copy = self.copy_at(n);
        let copies = u64::from(self.redundant.is_some() && copy.is_none());
        let at = self.allocate((len * (1 + copies)).div_ceil(self.grain())).await?;
        let block = self.tables.create(at);
        if copies > 0
            && let Some(redundant) = &self.redundant
        {
            redundant.borrow_mut()[n as usize] = ((at + len) / SECTOR) as u32;
        }
        self.directory.borrow_mut()[n as usize] = (at / SECTOR) as u32;
        self.new_tables.borrow_mut().insert(n);
        Ok(block)
    }

    /// Writes the parts of directories that new tables are in.
    async fn write_directories(&self) -> Result<(), Error> {
        const IN_SECTOR: u64 = SECTOR / 4;
        let new: Vec<_> = self.new_tables.borrow().iter().copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut parts: Vec<_> = new.iter().map(|n| n / IN_SECTOR).collect();
        parts.dedup();
        let (first, second) = {
            let g = self.geometry.borrow();
            (g.directory, g.redundant)
        };
        for (start, words) in [(second, self.redundant.as_ref()), (Some(first), Some(&self.directory))] {
            let (Some(start), Some(words)) = (start, words) else { continue };
            for part in &parts {
                let mut sector = IoBuf::zeroed(SECTOR as usize);
                for (n, word) in sector.chunks_mut(4).enumerate() {
                    let value = words.borrow().get(*part as usize * IN_SECTOR as usize + n).copied();
                    word.copy_from_slice(&value.unwrap_or(0).to_le_bytes());
                }
                self.file.write(start + part * SECTOR, sector.freeze()).await?;
            }
            self.file.flush().await?;
        }
        for n in new {
            self.new_tables.borrow_mut().remove(&n);
        }
        Ok(())
    }

    /// Cuts off what was reserved, and takes the mark of use back.
    pub async fn close(&self) -> Result<(), Error> {
        if self.packed || self.frozen.borrow().is_some() {
            return Ok(());
        }
        self.flush().await?;
        let mut started = self.started.lock().await;
        if *started && !self.leaky.get() {
            if self.next.get() < self.reserved.get() {
                self.file.resize(self.next.get()).await?;
                // Durable before the mark is gone, or the next open would not look for what is left over.
                self.file.flush().await?;
                self.reserved.set(self.next.get());
            }
            self.write_mark(false).await?;
            *started = false;
        }
        Ok(())
    }
}

/// True if a table at `at` is inside of the file, behind its header.
fn inside(file: &dyn Node, g: &Geometry, at: u64) -> bool {
    let len = g.entries * g.entry();
    at >= SECTOR && at.checked_add(len).is_some_and(|end| end <= file.size())
}

fn table_at(g: &Geometry, directory: &[u32], n: u64) -> Option<u64> {
    let word = u64::from(*directory.get(n as usize)?);
    match g.tables {
        _ if word == 0 => None,
        Tables::Hosted { .. } => Some(word * SECTOR),
        // At most 2^32 tables of 4 KiB behind a sector that is inside of some file.
        Tables::SeSparse { tables, .. } => (tables * SECTOR).checked_add((word - 1) * g.entries * 8),
    }
}

async fn read_directory(file: &dyn Node, g: &Geometry, at: u64) -> Result<Vec<u32>, Error> {
    let count = g.capacity.div_ceil(g.span());
    let bytes = read_table(file, at, (count * g.entry()) as usize, "the grain directory").await?;
    if at == 0 {
        return Err(Error::corrupt(&file.info().name, "it has no grain directory"));
    }
    if g.entry() == 4 {
        return Ok(bytes.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect());
    }
    let word = |w: &[u8; 8]| match u64::from_le_bytes(*w) {
        0 => Ok(0),
        w if w >> 32 == 0x1000_0000 && w as u32 != u32::MAX => Ok(w as u32 + 1),
        w => Err(Error::corrupt(&file.info().name, format!("its grain directory has an entry {w:#x}"))),
    };
    bytes.as_chunks::<8>().0.iter().map(word).collect()
}
