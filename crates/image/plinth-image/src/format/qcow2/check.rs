//! Checking and mending: the references that tables make are counted and compared with the counts in the file.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Display;

use futures_util::StreamExt;
use futures_util::stream;

use super::counter::{CHUNK, Counter, alike, covered};
use super::differences::Differences;
use super::guard::Kind as Guarded;
use super::map::{COMPRESSED, COPIED, Entry, OFFSET, ZERO};
use super::snapshot_table::Damage;
use super::{Core, header, refcount};
use crate::Error;
use crate::format::{CheckReport, Progress, Repair};
use crate::graph::{IoBuf, read_table};

/// Reads of tables in flight, and bytes of each at most.
const READS: usize = 8;
const READ: u64 = 1 << 20;

/// What a pass over the counts is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// The user asked for it.
    Asked,
    /// As [`Core::mend_itself`] does.
    Careful,
    /// To give back what the old counts took up.
    AfterRebuild,
}

/// An L2 table: how many L1 tables have it, and if the active one is among them.
#[derive(Clone, Copy, Default)]
struct Table {
    times: u64,
    active: bool,
}

/// An entry of an L2 table that is to be mended.
struct Misplaced {
    /// The table, and the entry's index in it.
    table: u64,
    index: usize,
    /// What is right.
    entry: Entry,
}

/// Entries to mend at once at most: a damaged image may have any number, and more are mended by the next check.
const MAX_MISPLACED: usize = 1 << 16;

/// One check.
pub struct Check<'a> {
    core: &'a Core,
    report: CheckReport,
    pub counter: Counter,
    /// Entries whose place in the file cannot be, and does not matter.
    misplaced: Vec<Misplaced>,
    /// They are mended.
    mend: bool,
    /// What is said of counts that are mended one by one.
    repairs: Vec<String>,
    /// Bytes of the file, in whole clusters.
    file_end: u64,
    /// Where the next cluster would follow the last one.
    next: u64,
    /// Flags of the active tables may be wrong.
    flags_doubtful: bool,
    /// There are more references to something than a count can say.
    overflow: bool,
    /// Something is in use that is counted as free.
    uncounted: bool,
    /// Wrong counts are not told.
    quiet: bool,
    /// The blocks of counts themselves are damaged.
    structure: u64,
    pub first_pass: bool,
}

impl Check<'_> {
    fn corrupt(&mut self, why: impl Display) {
        if self.first_pass {
            self.report.corruptions += 1;
            self.report.say(why);
        }
    }

    fn add_bytes(&mut self, offset: u64, len: u64, times: u64) {
        let bits = self.core.bits;
        let end = (offset + len).div_ceil(self.core.cluster);
        self.counter.add_row(offset >> bits, end - (offset >> bits), times);
    }

    /// A table of clusters that must be aligned and inside of the file.
    fn add_table(&mut self, what: &str, offset: u64, len: u64) -> bool {
        let right = self.can_be_table(what, offset, len);
        if right {
            self.add_bytes(offset, len, 1);
        }
        right
    }

    fn can_be_table(&mut self, what: &str, offset: u64, len: u64) -> bool {
        let end = offset.checked_add(len);
        if !offset.is_multiple_of(self.core.cluster) || end.is_none_or(|e| e > self.file_end) {
            self.corrupt(format_args!("{what} cannot be at {offset:#x} with {len} bytes"));
            return false;
        }
        true
    }

    /// Snapshots' L1 tables. Those of a damaged image may overlap, and are looked at once all the same.
    async fn add_snapshots(&mut self, tables: &mut BTreeMap<u64, Table>) -> Result<(), Error> {
        let core = self.core;
        let mut ranges = Vec::new();
        for snapshot in core.snapshots.borrow().iter() {
            let len = u64::from(snapshot.l1_size) * 8;
            // In QEMU's words, which scripts look for.
            let wrong = match () {
                () if len > header::MAX_L1 => {
                    Some(format!("l1_size={:#x}: L1 table is too large", snapshot.l1_size))
                }
                () if !snapshot.l1_offset.is_multiple_of(core.cluster) => {
                    Some(format!("l1_offset={:#x}: L1 table is not cluster aligned", snapshot.l1_offset))
                }
                () => None,
            };
            if let Some(wrong) = wrong {
                let (id, name) = (&snapshot.info.id, &snapshot.info.name);
                self.corrupt(format_args!(
                    "ERROR snapshot {id} ({name}) {wrong}; snapshot table entry corrupted"
                ));
                continue;
            }
            if self.can_be_table("a snapshot's L1 table", snapshot.l1_offset, len) {
                ranges.push((snapshot.l1_offset, snapshot.l1_offset + len));
            }
        }
        let bits = core.bits;
        for (from, to, times) in covered(ranges.iter().map(|r| (r.0 >> bits, r.1.div_ceil(core.cluster)))) {
            self.counter.add_row(from, to - from, times);
        }
        for (from, to, times) in covered(ranges) {
            // The file's last cluster may be cut off.
            let to = to.min(core.file.size() / 8 * 8);
            for at in (from..to).step_by(READ as usize) {
                let bytes = core.file.read(at, IoBuf::new((to - at).min(READ) as usize)).await?;
                let entries: Vec<_> = bytes.chunks_exact(8).map(|c| header::be64(c, 0)).collect();
                self.add_l1(&entries, false, times, tables);
            }
        }
        Ok(())
    }

    /// An entry whose place is not that of a cluster. What it refers to may hold what it should, and is counted, unless
    /// the entry says that it does not matter; then the place is all that has to go.
    fn add_misplaced(&mut self, host: u64, contents: bool, times: u64, mut place: Misplaced) {
        // In QEMU's words, which scripts look for.
        let wrong = "cluster is not properly aligned; L2 entry corrupted.";
        if contents {
            self.corrupt(format_args!("ERROR offset={host:x}: Data {wrong}"));
            if self.core.data.is_none() && host < self.file_end {
                self.counter.add_row(host >> self.core.bits, 2, times);
            }
            return;
        }
        let kind = if self.core.extended { "" } else { "zero " };
        let mend = self.mend && self.misplaced.len() < MAX_MISPLACED && self.core.may_be_l2(place.table);
        let did = if mend { "Repairing" } else { "ERROR" };
        self.corrupt(format_args!("{did} offset={host:x}: Preallocated {kind}{wrong}"));
        if mend && self.first_pass {
            place.entry.word &= !(OFFSET | COPIED);
            self.misplaced.push(place);
        }
    }

    /// Counts what the entries of one table, which is at `at`, refer to.
    fn add_entries(&mut self, bytes: &[u8], at: u64, table: Table) {
        let core = self.core;
        let n = core.entry_size() as usize;
        let v3 = core.v3();
        let with_data_file = core.data.is_some();
        // Bytes of entries that were looked at as a row.
        let mut done = 0;
        for (i, raw) in bytes.chunks_exact(n).enumerate() {
            if i * n < done {
                continue;
            }
            let word = header::be64(raw, 0);
            let bitmap = if n == 16 { header::be64(raw, 8) } else { 0 };
            if word == 0 && bitmap == 0 {
                continue;
            }
            let entry = Entry { word, bitmap };
            if word & COMPRESSED != 0 {
                let (offset, len) = core.compressed(entry);
                if word & COPIED != 0 || with_data_file {
                    self.corrupt(format_args!(
                        "the compressed entry {word:#x} has a flag that it cannot have"
                    ));
                }
                if offset >= self.file_end {
                    self.corrupt(format_args!(
                        "the compressed cluster at {offset:#x} is beyond the file's end"
                    ));
                    continue;
                }
                // The last sector may be cut off by the file's end.
                self.add_bytes(offset, len.min(self.file_end - offset), table.times);
                if table.active && self.first_pass {
                    self.report.allocated_clusters += 1;
                    self.report.compressed_clusters += 1;
                    self.report.fragmented_clusters += 1;
                }
                continue;
            }
            if bitmap & (bitmap >> 32) & 0xffff_ffff != 0 {
                self.corrupt(format_args!(
                    "entry {i} of an L2 table has subclusters that are data and zeros at once"
                ));
            }
            let Some(host) = core.host(entry) else {
                if bitmap & 0xffff_ffff != 0 {
                    self.corrupt(format_args!("entry {i} of an L2 table has subclusters without a place"));
                }
                continue;
            };
            let data = if n == 16 { bitmap & 0xffff_ffff != 0 } else { !(v3 && word & ZERO != 0) };
            if table.active && self.first_pass && data {
                self.report.allocated_clusters += 1;
                if self.next != 0 && self.next != host {
                    self.report.fragmented_clusters += 1;
                }
                self.next = host + core.cluster;
            }
            if host % core.cluster != 0 {
                self.add_misplaced(host, data, table.times, Misplaced { table: at, index: i, entry });
                continue;
            }
            if with_data_file {
                continue;
            }
            if host >= self.file_end {
                self.corrupt(format_args!(
                    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                     offset {host:#x} size {:#x}",
                    core.cluster
                ));
                continue;
            }
            self.flags_doubtful |= table.active && word & COPIED == 0;
            // Entries that follow and only count up are right as this one is.
            let mut row = 1;
            if n == 8 && data {
                let most = (self.file_end - host).div_ceil(core.cluster) as usize;
                let rest = bytes[i * n..].as_chunks::<8>().0.iter().take(most);
                let mut next = word;
                let alike = rest.take_while(|e| {
                    let same = u64::from_be_bytes(**e) == next;
                    next = next.wrapping_add(core.cluster);
                    same
                });
                row = alike.count().max(1) as u64;
                done = (i + row as usize) * n;
                if table.active && self.first_pass {
                    self.report.allocated_clusters += row - 1;
                    self.next = host + (row << core.bits);
                }
            }
            self.counter.add_row(host >> core.bits, row, table.times);
        }
    }

    /// Adds the L2 tables of an L1 table to `tables`.
    fn add_l1(&mut self, entries: &[u64], active: bool, times: u64, tables: &mut BTreeMap<u64, Table>) {
        for &entry in entries {
            let offset = entry & OFFSET;
            if offset == 0 {
                continue;
            }
            if !offset.is_multiple_of(self.core.cluster) || offset >= self.file_end {
                self.corrupt(format_args!("an L2 table cannot be at {offset:#x}"));
                continue;
            }
            let table = tables.entry(offset).or_default();
            if active && table.active {
                self.corrupt(format_args!("the L2 table at {offset:#x} is in the L1 table twice"));
            }
            table.active |= active;
            table.times += times;
            self.flags_doubtful |= active && entry & COPIED == 0;
        }
    }

    /// All references of the image. `counts`: those to the refcount structures too.
    pub async fn collect(&mut self, counts: bool, progress: &Progress) -> Result<(), Error> {
        let core = self.core;
        let header = core.header.borrow().clone();
        self.counter.add(0, 1);
        let mut tables = BTreeMap::new();
        let active = core.l1.borrow().entries.clone();
        self.add_table("the L1 table", header.l1_offset, active.len() as u64 * 8);
        self.add_l1(&active, true, 1, &mut tables);
        drop(active);
        self.add_snapshots(&mut tables).await?;
        self.add_bytes(header.snapshots_offset, core.snapshot_table_len.get(), 1);
        if let Some((at, len)) = header.crypt_area() {
            self.add_table("the encryption header", at, len);
        }
        for (offset, len) in core.bitmap_space().await? {
            self.add_table("a bitmap", offset, len);
        }
        progress.total.set(tables.len() as u64);
        progress.done.set(0);
        for (&offset, table) in &tables {
            self.counter.add(offset >> core.bits, table.times);
        }
        self.collect_tables(tables, progress).await?;
        if counts {
            self.add_counts(&header);
        }
        Ok(())
    }

    /// References to the refcount structures.
    fn add_counts(&mut self, header: &header::Header) {
        let core = self.core;
        let at = header.reftable_offset;
        self.add_table("the refcount table", at, u64::from(header.reftable_clusters) << core.bits);
        let blocks = core.refs.table.borrow().clone();
        let mut seen = HashSet::new();
        for entry in blocks {
            let offset = entry & !0x1ff;
            if entry == 0 {
                continue;
            }
            let wrong = !self.add_table("a refcount block", offset, core.cluster);
            // Each of them would be read, and a change of one be a change of all.
            let again = !wrong && !seen.insert(offset);
            if again {
                self.corrupt(format_args!("the refcount block at {offset:#x} is in the table twice"));
            }
            self.structure += u64::from(wrong || again);
        }
    }

    /// Counts what the refcount structures take up where nothing else is known to be, so that it is not free yet.
    pub fn keep_counts(&mut self) {
        let core = self.core;
        let header = core.header.borrow();
        let table = (header.reftable_offset >> core.bits, u64::from(header.reftable_clusters));
        drop(header);
        let blocks: BTreeSet<u64> =
            core.refs.table.borrow().iter().map(|e| (e & !0x1ff) >> core.bits).collect();
        let rows = std::iter::once(table).chain(blocks.into_iter().map(|b| (b, 1)));
        for cluster in rows.flat_map(|(first, count)| first..first + count) {
            if cluster < self.file_end >> core.bits && self.counter.get(cluster) == 0 {
                self.counter.add(cluster, 1);
            }
        }
    }

    async fn collect_tables(
        &mut self,
        tables: BTreeMap<u64, Table>,
        progress: &Progress,
    ) -> Result<(), Error> {
        // Neighbours in the file are read together.
        let core = self.core;
        let mut groups: Vec<(u64, Vec<Table>)> = Vec::new();
        let together = (READ / core.cluster).max(1) as usize;
        for (offset, table) in tables {
            match groups.last_mut() {
                Some((at, group))
                    if *at + ((group.len() as u64) << core.bits) == offset && group.len() < together =>
                {
                    group.push(table);
                }
                _ => groups.push((offset, vec![table])),
            }
        }
        let cluster = core.cluster as usize;
        let mut reads = stream::iter(groups)
            .map(|(offset, group)| async move {
                let bytes = core.file.read(offset, IoBuf::new(group.len() * cluster)).await?;
                Ok::<_, Error>((offset, group, bytes))
            })
            .buffered(READS);
        while let Some(read) = reads.next().await {
            let (offset, group, bytes) = read?;
            for (n, (table, bytes)) in (0..).zip(group.iter().zip(bytes.chunks_exact(cluster))) {
                self.add_entries(bytes, offset + (n << core.bits), *table);
            }
            progress.add(group.len() as u64);
        }
        Ok(())
    }

    /// Compares with the counts in the file, of one pass; what is to be mended.
    async fn compare(&mut self, repair: Repair, free: bool) -> Result<Vec<(u64, u64)>, Error> {
        let core = self.core;
        let per = core.refs.per_block();
        let order = core.refs.order();
        let (start, limit) = (self.counter.start, self.counter.limit);
        let table = core.refs.table.borrow().clone();
        let (raise, lower) = (repair == Repair::All, repair != Repair::No && free);
        let mut differences = Differences::new(core.bits, order, raise, lower);
        differences.quiet = self.quiet;
        let cluster = core.cluster;
        let mut seen = HashSet::new();
        // The blocks of the table, and those behind it that something refers to: a damaged table may refer to places
        // far beyond the file's end.
        let known = table.len() as u64;
        let behind = self.counter.chunks.range(known * per / CHUNK..);
        let behind: BTreeSet<_> =
            behind.flat_map(|(c, _)| c * CHUNK / per..=((c + 1) * CHUNK - 1) / per).collect();
        let ends = start / per..limit.div_ceil(per);
        let wanted: Vec<_> = (0..known)
            .chain(behind.range(known..).copied())
            .filter(|n| ends.contains(n))
            .filter_map(|n| {
                let offset = table.get(n as usize).map_or(0, |e| e & !0x1ff);
                let valid = offset != 0 && offset.is_multiple_of(cluster) && offset < self.file_end;
                let valid = valid && seen.insert(offset);
                let counted = valid
                    || self
                        .counter
                        .chunks
                        .range(n * per / CHUNK..=((n + 1) * per - 1) / CHUNK)
                        .next()
                        .is_some();
                counted.then_some((n, valid.then_some(offset)))
            })
            .collect();
        let mut reads = stream::iter(wanted)
            .map(|(n, offset)| async move {
                let bytes = match offset {
                    Some(offset) => Some(core.file.read(offset, IoBuf::new(cluster as usize)).await?),
                    None => None,
                };
                Ok::<_, Error>((n, bytes))
            })
            .buffered(READS);
        while let Some(read) = reads.next().await {
            let (n, bytes) = read?;
            // Behind the last cluster that is referred to and the last count that is not zero, nothing can differ.
            let stored = bytes.as_ref().and_then(|b| b.iter().rposition(|&b| b != 0));
            let stored = stored.map_or(0, |last| ((last as u64 + 1) * 8).div_ceil(1 << order));
            let used = self.counter.end.saturating_sub(n * per);
            let mut next = start.saturating_sub(n * per);
            let end = per.min(stored.max(used)).min(limit.saturating_sub(n * per));
            while next < end {
                let c = n * per + next;
                let most = (end - next).min(CHUNK - c % CHUNK);
                let counted = self.counter.row(c).map(|row| &row[..most as usize]);
                let mut i = 0;
                loop {
                    let rest = counted.map(|row| &row[i as usize..]);
                    i += alike(rest, (most - i) as usize, bytes.as_deref(), order, next + i);
                    if i == most {
                        break;
                    }
                    let stored = bytes.as_ref().map_or(0, |b| refcount::get(b, order, (next + i) as usize));
                    let right = match counted.map_or(0, |row| row[i as usize]) {
                        255 => self.counter.get(c + i),
                        n => n.into(),
                    };
                    differences.note(c + i, stored, right, &mut self.report);
                    i += 1;
                }
                next += most;
            }
        }
        self.repairs.append(&mut differences.repairs);
        self.flags_doubtful |= differences.flags_doubtful;
        self.overflow |= differences.overflow;
        self.uncounted |= differences.uncounted;
        self.structure += u64::from(differences.many);
        Ok(differences.fixes)
    }
}

impl Core {
    /// The entries of an L1 table in the file.
    pub async fn read_l1(&self, offset: u64, size: u32) -> Result<Vec<u64>, Error> {
        if u64::from(size) * 8 > header::MAX_L1 || !offset.is_multiple_of(self.cluster) {
            return Err(Error::corrupt(&self.info.name, "an L1 table makes no sense"));
        }
        let bytes = read_table(&*self.file, offset, size as usize * 8, "an L1 table").await?;
        Ok(bytes.chunks_exact(8).map(|c| header::be64(c, 0)).collect())
    }

    /// True if an L2 table may be at `table`, as far as is known what is there.
    fn may_be_l2(&self, table: u64) -> bool {
        let cluster = table >> self.bits;
        matches!(self.kind_of(cluster), None | Some(Guarded::L2)) && self.row_at(cluster).is_none()
    }

    /// Writes entries of L2 tables anew, durably.
    async fn mend_entries(&self, misplaced: &[Misplaced]) -> Result<(), Error> {
        let step = self.l2.block_size() as u64;
        for Misplaced { table, index, entry } in misplaced {
            let byte = *index as u64 * self.entry_size();
            let block = self.l2.load(table + byte / step * step, "an L2 table").await?;
            block.change(|b| self.write_entry(b, (byte % step / self.entry_size()) as usize, *entry));
            self.changed();
            self.relieve().await?;
        }
        // What they referred to may be given back when nothing in the file does so any more.
        if misplaced.is_empty() { Ok(()) } else { self.commit_with(true).await }
    }

    /// Checks the counts; if the flags of the active tables have to be looked at, too.
    async fn check_counts(
        &self,
        repair: Repair,
        pass: Pass,
        progress: &Progress,
    ) -> Result<(CheckReport, bool), Error> {
        let careful = pass == Pass::Careful;
        // With such a table nothing has been written yet, and nothing is.
        let readable = self.snapshot_damage.borrow().refusal().is_none();
        if !self.info.read_only && readable {
            self.settle().await?;
        }
        let mut check = self.new_check();
        check.mend = repair == Repair::All && !careful && readable;
        check.quiet = pass == Pass::AfterRebuild;
        let mut fixes = Vec::new();
        let mut start = 0;
        let mut free = true;
        loop {
            let shared = check.counter.shared;
            check.counter = Counter::new(start);
            check.counter.shared = shared;
            check.collect(true, progress).await?;
            if check.first_pass {
                free = !careful || check.report.corruptions <= check.structure;
                self.mend_entries(&check.misplaced).await?;
            }
            fixes.extend(check.compare(repair, free).await?);
            check.first_pass = false;
            if check.counter.limit == u64::MAX {
                break;
            }
            start = check.counter.limit;
        }
        let mut report = std::mem::take(&mut check.report);
        report.total_clusters = self.size.get().div_ceil(self.cluster);
        report.image_end = check.counter.end << self.bits;
        let doubtful = (check.flags_doubtful || check.counter.shared) && !check.overflow;
        let structure = check.structure;
        // What is in use and counted as free may have been given away in part: nothing of such counts is relied on.
        // (Those of more clusters than are counted at once are not written anew.)
        let anew = check.uncounted && free && start == 0 && !check.overflow;
        let mended = !check.misplaced.is_empty();
        let repairs = std::mem::take(&mut check.repairs);
        drop(check);
        let before = (report.corruptions, report.leaks);
        if repair != Repair::No && (!fixes.is_empty() || structure > 0 || mended) {
            let missing = fixes.iter().any(|f| !matches!(self.refs.block_offset(f.0), Ok(Some(_))));
            let mut next = (Repair::No, pass);
            if repair == Repair::All && (structure > 0 || missing || anew) {
                if !free {
                    let why = "its tables and its counts are damaged: repair it";
                    return Err(Error::corrupt(&self.info.name, why));
                }
                report.say("Rebuilding refcount structure");
                self.rebuild_counts(self.refs.order(), progress).await?;
                next = (Repair::Leaks, Pass::AfterRebuild);
            } else {
                repairs.into_iter().for_each(|r| report.say(r));
                for &(cluster, right) in &fixes {
                    self.refs.set(cluster, right).await?;
                }
                self.changed();
                self.commit_with(true).await?;
            }
            self.guard.forget();
            self.alloc.cursor.set(0);
            self.alloc.packing.set(None);
            // Counted anew, because one mended thing can show another.
            let (again, _) = Box::pin(self.check_counts(next.0, next.1, progress)).await?;
            report.leaks_fixed = before.1.saturating_sub(again.leaks - again.leaks_fixed);
            report.corruptions_fixed = before.0.saturating_sub(again.corruptions - again.corruptions_fixed);
            report.image_end = again.image_end;
            if next.0 != Repair::No {
                again.messages.into_iter().for_each(|m| report.say(m));
            }
        }
        Ok((report, doubtful))
    }

    /// Checks the image; the caller holds all of it alone.
    pub async fn check_all(&self, repair: Repair, progress: &Progress) -> Result<CheckReport, Error> {
        self.check_with(repair, false, progress).await
    }

    /// Sets right what a crash or a failed request has left, without being asked. Where tables are damaged besides,
    /// what nothing refers to may be what a damaged entry referred to, and stays as it is.
    pub async fn mend_itself(&self, repair: Repair) -> Result<CheckReport, Error> {
        self.check_with(repair, true, &Progress::default()).await
    }

    async fn check_with(
        &self,
        repair: Repair,
        careful: bool,
        progress: &Progress,
    ) -> Result<CheckReport, Error> {
        let damage = match careful {
            true => Damage::default(),
            false => self.snapshot_damage.borrow().clone(),
        };
        // What belongs to snapshots that only a repair of everything removes is no leak before that.
        let of_counts = match repair {
            Repair::Leaks if damage.refusal().is_some() => Repair::No,
            other => other,
        };
        let pass = if careful { Pass::Careful } else { Pass::Asked };
        let (mut report, mut doubtful) = self.check_counts(of_counts, pass, progress).await?;
        let findings = damage.findings();
        report.corruptions += findings.len() as u64;
        findings.iter().for_each(|f| report.say(f));
        if !findings.is_empty() && repair == Repair::All {
            // The counts are right now, which a new table's place goes by; what has fallen off is not in use any more.
            self.mend_snapshots().await?;
            let (again, more) = self.check_counts(repair, pass, progress).await?;
            doubtful |= more;
            report.corruptions += again.corruptions;
            report.corruptions_fixed += findings.len() as u64 + again.corruptions_fixed;
            report.leaks += again.leaks;
            report.leaks_fixed += again.leaks_fixed;
            report.image_end = again.image_end;
            again.messages.into_iter().for_each(|m| report.say(m));
        }
        if doubtful && self.data.is_none() {
            let wrong = self.mend_flags(repair == Repair::All, Some(&mut report)).await?;
            report.corruptions += wrong;
            if repair == Repair::All {
                self.commit_with(true).await?;
                report.corruptions_fixed += wrong;
            }
        }
        if repair == Repair::All && report.is_clean() {
            let wrong = header::DIRTY | header::CORRUPT;
            if self.header.borrow().incompatible & wrong != 0 {
                self.change_header(|h| h.incompatible &= !wrong).await?;
                self.file.flush().await?;
                self.commits.marked.set(self.header.borrow().leaks);
            }
            self.guard.broken.set(false);
        }
        Ok(report)
    }

    pub fn new_check(&self) -> Check<'_> {
        Check {
            core: self,
            report: CheckReport::default(),
            counter: Counter::new(0),
            misplaced: Vec::new(),
            mend: false,
            repairs: Vec::new(),
            file_end: self.file.size().checked_next_multiple_of(self.cluster).unwrap_or(u64::MAX),
            next: 0,
            flags_doubtful: false,
            overflow: false,
            uncounted: false,
            quiet: false,
            structure: 0,
            first_pass: true,
        }
    }

    /// Compares the flags of the active tables with the counts; how many are wrong. With `mend`, they are not
    /// any more.
    pub async fn mend_flags(&self, mend: bool, report: Option<&mut CheckReport>) -> Result<u64, Error> {
        let mut wrong = 0;
        let mut unread = CheckReport::default();
        let report = report.unwrap_or(&mut unread);
        let kind = if mend { "Repairing" } else { "ERROR" };
        let count = self.l1.borrow().entries.len();
        let slice = self.l2.block_size() as u64;
        for index in 0..count {
            let entry = self.l1.borrow().entries[index];
            let Ok(Some(table)) = self.l2_offset(entry) else { continue };
            if table >= self.file.size() {
                continue;
            }
            let count = self.refs.get(table >> self.bits).await?;
            let alone = count == 1;
            if alone != (entry & COPIED != 0) {
                wrong += 1;
                report.say(format_args!(
                    "{kind} OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={count}"
                ));
                if mend {
                    self.l1.borrow_mut().set(index, if alone { entry | COPIED } else { entry & !COPIED });
                    self.changed();
                }
            }
            for at in (0..self.cluster).step_by(slice as usize) {
                let block = self.l2.load(table + at, "an L2 table").await?;
                let entries = block.with(|b| {
                    let n = b.len() / self.entry_size() as usize;
                    (0..n).map(|i| self.read_entry(b, i)).collect::<Vec<_>>()
                });
                for (i, old) in entries.into_iter().enumerate() {
                    let Some(host) = self.host(old).filter(|h| h % self.cluster == 0) else { continue };
                    let count = self.refs.get(host >> self.bits).await?;
                    let alone = count == 1;
                    if alone == (old.word & COPIED != 0) {
                        continue;
                    }
                    wrong += 1;
                    report.say(format_args!(
                        "{kind} OFLAG_COPIED data cluster: l2_entry={:x} refcount={count}",
                        old.word
                    ));
                    if mend {
                        let word = if alone { old.word | COPIED } else { old.word & !COPIED };
                        block.change(|b| self.write_entry(b, i, Entry { word, ..old }));
                        self.changed();
                    }
                }
            }
            if mend {
                self.relieve().await?;
            }
        }
        Ok(wrong)
    }

    /// Cuts off what is free at the file's end. Nothing may be under way.
    pub async fn trim(&self) -> Result<(), Error> {
        if !self.alloc.lost.borrow().is_empty() || self.commits.changed.get() {
            return Ok(());
        }
        let order = self.refs.order();
        let size = self.file.size();
        // What is behind the reach of the counts is free. A damaged image may have made the file very long.
        let mut end = size.div_ceil(self.cluster).min(self.refs.covered());
        let per = self.refs.per_slice();
        while end > 1 {
            let last = end - 1;
            let Some((slice, index)) = self.refs.slice(last).await? else {
                end = last - last % self.refs.per_block();
                continue;
            };
            match slice.with(|b| (0..=index).rev().find(|&i| refcount::get(b, order, i) != 0)) {
                Some(i) => {
                    end = last - index as u64 + i as u64 + 1;
                    break;
                }
                None => end = last - last % per,
            }
        }
        let to = end << self.bits;
        if to < size && to > 0 {
            self.file.resize(to).await?;
            self.alloc.high.set(to);
            self.alloc.reach.set(to);
            self.alloc.cursor.set(self.alloc.cursor.get().min(end));
        }
        Ok(())
    }
}
