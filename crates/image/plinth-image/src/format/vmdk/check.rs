//! Checking, and mending.
//!
//! An extent has no record of its free space, so what no table points to is found by looking at all tables. Grains
//! at the end are moved into such gaps, and the file is cut: first the copies are durable, then the tables, then the
//! file gets shorter, so that a cut of power leaves gaps again but no damage.

use std::collections::HashMap;

use super::sparse::{Place, SparseExtent};
use super::{Data, VmdkImage};
use crate::format::{CheckReport, Progress, Repair};
use crate::graph::{IoBuf, IoData, copy_within};
use crate::{Error, ErrorKind, SECTOR};

/// Bits of a map of the file's space at most (64 MiB).
const MAX_SLOTS: u64 = 1 << 29;
/// Bytes of tables that are read at once.
const AT_ONCE: u64 = 1 << 20;
/// Repairs that are done in one go, and grains that an open moves at most.
const MAX_REPAIRS: usize = 4096;

/// One bit for each unit of the file.
struct Map {
    bits: Vec<u64>,
    unit: u64,
}

impl Map {
    fn new(name: &str, bytes: u64, unit: u64) -> Result<Self, Error> {
        let slots = bytes.div_ceil(unit);
        if slots > MAX_SLOTS {
            let why = format!("{bytes} bytes in pieces of {unit} are too many");
            return Err(Error::new(ErrorKind::Limit, format!("cannot check '{name}'"), why));
        }
        Ok(Self { bits: vec![0; slots.div_ceil(64) as usize], unit })
    }

    fn has(&self, slot: u64) -> bool {
        self.bits.get((slot / 64) as usize).is_some_and(|w| w >> (slot % 64) & 1 != 0)
    }

    /// How many of a range of slots are not marked.
    fn free(&self, first: u64, last: u64) -> u64 {
        let mut free = 0;
        let mut slot = first;
        while slot < last {
            let word = self.bits.get((slot / 64) as usize).copied().unwrap_or(0);
            let n = (64 - slot % 64).min(last - slot);
            let bits = word >> (slot % 64) & (u64::MAX >> (64 - n));
            free += n - u64::from(bits.count_ones());
            slot += n;
        }
        free
    }

    /// Marks what a range touches; true if some of it was marked.
    fn mark(&mut self, at: u64, len: u64) -> bool {
        let mut was = false;
        for slot in at / self.unit..(at + len).div_ceil(self.unit) {
            if let Some(word) = self.bits.get_mut((slot / 64) as usize) {
                was |= *word >> (slot % 64) & 1 != 0;
                *word |= 1 << (slot % 64);
            }
        }
        was
    }
}

/// What is to be done with one grain's entry.
enum Fix {
    /// It becomes this.
    Entry(u32),
    /// It gets a copy of what is there.
    Copy(u64),
}

/// What a look at all tables found.
struct Scan {
    map: Map,
    report: CheckReport,
    fixes: Vec<(u64, Fix)>,
    /// Tables that differ from their copies.
    differ: Vec<u64>,
    /// Where directories and tables are that do not lie before all grains; in order.
    fixed: Vec<u32>,
    /// Grains do not lie at multiples of their size.
    odd: bool,
}

/// Tables from number `n` on that lie one behind the other (or are not there), and their bytes.
async fn tables(
    e: &SparseExtent,
    n: u64,
    most: u64,
    at: impl Fn(u64) -> Option<u64>,
) -> Result<(u64, Option<IoBuf>), Error> {
    let len = e.tables.block_size() as u64;
    let mut count = 1;
    let Some(start) = at(n) else {
        while count < most && at(n + count).is_none() {
            count += 1;
        }
        return Ok((count, None));
    };
    while count < most && (count + 1) * len <= AT_ONCE && at(n + count) == Some(start + count * len) {
        count += 1;
    }
    let hole = e.file.status(start, len * count).await?;
    if !hole.data && hole.len >= len {
        return Ok((count.min(hole.len / len), None));
    }
    let bytes = crate::graph::read_table(&*e.file, start, (len * count) as usize, "a grain table").await?;
    Ok((count, Some(bytes)))
}

impl Scan {
    async fn new(e: &SparseExtent, end: u64, progress: Option<&Progress>) -> Result<Self, Error> {
        let (grain, overhead, count) = {
            let g = e.geometry.borrow();
            (g.grain, g.overhead, g.capacity.div_ceil(g.span()))
        };
        let unit = if e.packed { SECTOR } else { grain };
        let mut scan = Self {
            map: Map::new(e.name(), end, unit)?,
            report: CheckReport::default(),
            fixes: Vec::new(),
            differ: Vec::new(),
            fixed: Vec::new(),
            odd: false,
        };
        scan.map.mark(0, overhead);
        scan.mark_metadata(e, count);
        if scan.report.corruptions > 0 {
            return Ok(scan);
        }
        let mut n = 0;
        while n < count {
            let (k, bytes) = tables(e, n, count - n, |n| e.table_at(n)).await?;
            if let Some(bytes) = &bytes {
                scan.entries(e, n, bytes, grain, end).await?;
            }
            if e.redundant.is_some() {
                scan.copies(e, n, k, bytes.as_deref()).await?;
            }
            n += k;
            if let Some(p) = progress {
                p.add(k);
            }
        }
        Ok(scan)
    }

    /// Directories, tables and their copies.
    fn mark_metadata(&mut self, e: &SparseExtent, count: u64) {
        let len = e.tables.block_size() as u64;
        let (first, second, entry) = {
            let g = e.geometry.borrow();
            (Some(g.directory), g.redundant, g.entry())
        };
        for at in [first, second].into_iter().flatten() {
            self.keep(at, count * entry);
        }
        for directory in [Some(&e.directory), e.redundant.as_ref()].into_iter().flatten() {
            let mut sorted = directory.borrow().clone();
            sorted.sort_unstable();
            let twice = sorted.windows(2).filter(|w| w[0] == w[1] && w[0] != 0).count();
            if twice > 0 {
                self.report.corruptions += twice as u64;
                self.report.say(format_args!("{twice} grain tables are in the directory more than once"));
            }
        }
        for n in 0..count {
            for at in [e.table_at(n), e.copy_at(n)].into_iter().flatten() {
                self.keep(at, len);
            }
        }
        self.fixed.sort_unstable();
        self.fixed.dedup();
    }

    /// Marks a range that cannot be moved.
    fn keep(&mut self, at: u64, len: u64) {
        self.map.mark(at, len);
        let slots = at / self.map.unit..(at + len).div_ceil(self.map.unit);
        for slot in slots.filter_map(|s| u32::try_from(s).ok()) {
            // Neighbours share a slot mostly.
            if self.fixed.last() != Some(&slot) {
                self.fixed.push(slot);
            }
        }
    }

    async fn entries(
        &mut self,
        e: &SparseExtent,
        first: u64,
        bytes: &[u8],
        grain: u64,
        end: u64,
    ) -> Result<(), Error> {
        let (entry, per_table, capacity, seek) = {
            let g = e.geometry.borrow();
            (
                g.entry() as usize,
                g.entries,
                g.capacity,
                matches!(g.tables, super::header::Tables::SeSparse { .. }),
            )
        };
        let mut before = None;
        for (i, word) in bytes.chunks_exact(entry).enumerate() {
            if word.iter().all(|&b| b == 0) {
                before = None;
                continue;
            }
            let number = first * per_table + i as u64;
            let value = word.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
            if number >= capacity.div_ceil(grain) {
                // Beyond the disk's end there must be nothing.
                self.wrong(number, Fix::Entry(0), format!("grain {number} is beyond the disk's end"));
                continue;
            }
            match e.decode(number, value) {
                Ok(Place::At(at)) => {
                    self.report.allocated_clusters += 1;
                    self.report.compressed_clusters += u64::from(e.packed);
                    self.report.fragmented_clusters += u64::from(before.is_some_and(|b| b + grain != at));
                    before = Some(at);
                    let len = if e.packed { SECTOR } else { grain };
                    self.report.image_end = self.report.image_end.max((at + len).min(end));
                    self.odd |= !e.packed && !seek && at % grain != 0;
                    if self.map.mark(at, len) && !self.odd {
                        self.wrong(number, Fix::Copy(at), format!("grain {number} shares its space at {at}"));
                    }
                }
                Ok(_) => before = None,
                Err(why) => {
                    let good = match e.copy_at(number / per_table) {
                        Some(at) => {
                            let copy = e.tables.load(at, "a copy of a grain table").await?;
                            let word = copy.le32((number % per_table) as usize);
                            e.decode(number, word.into()).ok().map(|_| word)
                        }
                        None => None,
                    };
                    self.wrong(number, Fix::Entry(good.unwrap_or(0)), why.source.to_string());
                }
            }
        }
        Ok(())
    }

    fn wrong(&mut self, grain: u64, fix: Fix, why: String) {
        self.report.corruptions += 1;
        self.report.say(why);
        if self.fixes.len() < MAX_REPAIRS {
            self.fixes.push((grain, fix));
        }
    }

    /// Compares tables with their copies.
    async fn copies(
        &mut self,
        e: &SparseExtent,
        first: u64,
        count: u64,
        bytes: Option<&[u8]>,
    ) -> Result<(), Error> {
        let len = e.tables.block_size();
        let mut n = first;
        while n < first + count {
            let (k, copies) = tables(e, n, first + count - n, |n| e.copy_at(n)).await?;
            for i in 0..k {
                let part = |b: &[u8], i: u64| b[i as usize * len..(i as usize + 1) * len].to_vec();
                let mine = bytes.map(|b| part(b, n - first + i)).filter(|b| !crate::graph::is_zero(b));
                let copy = copies.as_deref().map(|b| part(b, i)).filter(|b| !crate::graph::is_zero(b));
                if mine != copy && e.copy_at(n + i).is_some() {
                    self.differ.push(n + i);
                }
            }
            n += k;
        }
        Ok(())
    }

    /// Space that nothing refers to, before `end`: how many grains, and the first of them.
    fn gaps(&self, e: &SparseExtent, end: u64) -> (u64, Vec<u64>) {
        if self.odd || e.packed || e.header.borrow().is_none() {
            return (0, Vec::new());
        }
        let first = e.geometry.borrow().overhead.div_ceil(self.map.unit);
        let last = end.div_ceil(self.map.unit);
        let free = self.map.free(first, last);
        (free, (first..last).filter(|&s| !self.map.has(s)).take(MAX_REPAIRS.min(free as usize)).collect())
    }
}

/// Where an extent's grains end, without what is reserved for new ones.
fn end_of(e: &SparseExtent) -> u64 {
    e.file.size().min(e.next.get())
}

/// Checks one extent. With `copies`, copies of tables that differ are written again, whatever `repair` says.
pub async fn check_extent(e: &SparseExtent, repair: Repair, copies: bool) -> Result<CheckReport, Error> {
    check_with(e, repair, copies, None).await
}

async fn check_with(
    e: &SparseExtent,
    repair: Repair,
    copies: bool,
    progress: Option<&Progress>,
) -> Result<CheckReport, Error> {
    let end = end_of(e);
    let mut scan = Scan::new(e, end, progress).await?;
    scan.report.total_clusters = e.geometry.borrow().capacity.div_ceil(e.grain());
    if let Some(why) = e.frozen.borrow().as_ref().filter(|w| w.contains("damaged")) {
        scan.report.corruptions += 1;
        scan.report.say(format_args!("{why}: convert the disk to get it whole"));
    }
    let differ = scan.differ.len() as u64;
    scan.report.corruptions += differ;
    for &n in scan.differ.iter().take(CheckReport::MESSAGES) {
        scan.report.say(format_args!("grain table {n} differs from its copy"));
    }
    let gaps = scan.gaps(e, end);
    scan.report.leaks = gaps.0;
    if let Some(first) = gaps.1.first() {
        let first = first * scan.map.unit;
        scan.report.say(format_args!("{} grains of space are used by nothing, the first at {first}", gaps.0));
    }
    let writable = e.frozen.borrow().is_none() && !e.packed && !e.file.info().read_only;
    if repair == Repair::No && !copies || !writable {
        return Ok(scan.report);
    }
    let (mut end, mut gaps) = (end, gaps);
    if repair == Repair::All && !scan.fixes.is_empty() {
        mend(e, &mut scan).await?;
        // What was taken for a gap may belong to a grain whose entry was mended.
        end = end_of(e);
        let again = Scan::new(e, end, None).await?;
        gaps = again.gaps(e, end);
        scan.report.leaks = gaps.0;
        scan.map = again.map;
        scan.differ = again.differ;
        if again.report.corruptions > 0 {
            return Ok(scan.report);
        }
    }
    if repair == Repair::All || copies {
        for &n in &scan.differ {
            write_copy(e, n).await?;
        }
        e.file.flush().await?;
        scan.report.corruptions_fixed += differ;
    }
    let sound = scan.report.corruptions == scan.report.corruptions_fixed && scan.fixes.is_empty();
    if repair != Repair::No && sound && gaps.0 > 0 {
        scan.report.leaks_fixed = close_gaps(e, &scan, &gaps.1, end).await?;
    }
    Ok(scan.report)
}

async fn write_copy(e: &SparseExtent, n: u64) -> Result<(), Error> {
    let Some(at) = e.copy_at(n) else { return Ok(()) };
    let data = match e.table_at(n) {
        Some(table) => e.tables.load(table, "a grain table").await?.with(IoData::copy_of),
        None => IoBuf::zeroed(e.tables.block_size()).freeze(),
    };
    e.tables.forget(at);
    e.file.write(at, data).await
}

/// Entries that cannot be right get the copy's, or nothing; grains that share space get their own.
async fn mend(e: &SparseExtent, scan: &mut Scan) -> Result<(), Error> {
    e.begin().await?;
    for (number, fix) in scan.fixes.drain(..) {
        let entry = match fix {
            Fix::Entry(entry) => entry,
            Fix::Copy(from) => {
                let at = e.allocate(1).await?;
                copy_within(&*e.file, from, at, e.grain()).await?;
                (at / SECTOR) as u32
            }
        };
        e.pending.borrow_mut().insert(number, entry);
        scan.report.corruptions_fixed += 1;
    }
    e.flush().await
}

/// Moves the last grains into gaps, and cuts the file: how many gaps are gone.
async fn close_gaps(e: &SparseExtent, scan: &Scan, gaps: &[u64], end: u64) -> Result<u64, Error> {
    let grain = e.grain();
    let mut moves: HashMap<u64, u64> = HashMap::new();
    let mut last = end.div_ceil(grain);
    // Nothing below this is free, once the moves are done.
    let mut full = e.geometry.borrow().overhead.div_ceil(grain);
    let metadata = |slot: u64| u32::try_from(slot).is_ok_and(|s| scan.fixed.binary_search(&s).is_ok());
    for &gap in gaps.iter().take(MAX_REPAIRS) {
        while last > gap && !scan.map.has(last - 1) {
            last -= 1;
        }
        if last <= gap + 1 || metadata(last - 1) {
            break;
        }
        last -= 1;
        moves.insert(last, gap);
        full = gap + 1;
    }
    while last > full && !scan.map.has(last - 1) {
        last -= 1;
    }
    let mut owners = Vec::with_capacity(moves.len());
    if !moves.is_empty() {
        let (count, per_table) = {
            let g = e.geometry.borrow();
            (g.capacity.div_ceil(g.span()), g.entries)
        };
        let mut n = 0;
        while n < count {
            let (k, bytes) = tables(e, n, count - n, |n| e.table_at(n)).await?;
            let words = bytes.as_deref().map_or(&[][..], |b| b.as_chunks::<4>().0);
            for (i, word) in words.iter().enumerate() {
                let number = n * per_table + i as u64;
                if let Ok(Place::At(at)) = e.decode(number, u32::from_le_bytes(*word).into())
                    && let Some(gap) = moves.get(&(at / grain))
                {
                    owners.push((number, at, gap * grain));
                }
            }
            n += k;
        }
    }
    for (number, from, to) in owners {
        copy_within(&*e.file, from, to, grain).await?;
        e.pending.borrow_mut().insert(number, (to / SECTOR) as u32);
    }
    e.flush().await?;
    let overhead = e.geometry.borrow().overhead;
    let new_end = overhead.max(last * grain);
    e.file.resize(new_end).await?;
    e.file.flush().await?;
    e.next.set(new_end.next_multiple_of(grain));
    e.reserved.set(e.file.size());
    let first = overhead.div_ceil(grain);
    let left = scan.map.free(first, last).saturating_sub(moves.len() as u64);
    Ok(scan.report.leaks.saturating_sub(left))
}

impl VmdkImage {
    /// Checks all extents.
    pub(super) async fn check_all(&self, repair: Repair, progress: &Progress) -> Result<CheckReport, Error> {
        if repair != Repair::No {
            crate::graph::check_write(self, 0, 0)?;
        }
        let mut all = CheckReport::default();
        let tables = |e: &SparseExtent| e.directory.borrow().len() as u64;
        progress.total.set(self.pieces.iter().filter_map(|p| p.data.sparse()).map(tables).sum());
        for piece in &self.pieces {
            match &piece.data {
                Data::Zero => {}
                Data::Flat { file, offset } => {
                    if file.size() < offset + piece.len.get() {
                        all.corruptions += 1;
                        let name = &file.info().name;
                        all.say(format_args!(
                            "'{name}' ends at byte {}, before its extent does",
                            file.size()
                        ));
                    }
                }
                Data::Sparse(e) => {
                    if !self.info.read_only {
                        e.flush().await?;
                    }
                    add(&mut all, check_with(e, repair, false, Some(progress)).await?);
                }
                Data::Packed(e) => {
                    e.flush().await?;
                    add(&mut all, check_with(&e.tables, Repair::No, false, Some(progress)).await?);
                }
            }
        }
        Ok(all)
    }
}

fn add(all: &mut CheckReport, one: CheckReport) {
    all.corruptions += one.corruptions;
    all.corruptions_fixed += one.corruptions_fixed;
    all.leaks += one.leaks;
    all.leaks_fixed += one.leaks_fixed;
    all.errors += one.errors;
    all.total_clusters += one.total_clusters;
    all.allocated_clusters += one.allocated_clusters;
    all.fragmented_clusters += one.fragmented_clusters;
    all.compressed_clusters += one.compressed_clusters;
    all.image_end = all.image_end.max(one.image_end);
    one.messages.into_iter().for_each(|m| all.say(m));
}
