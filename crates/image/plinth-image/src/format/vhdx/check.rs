//! Looking through the block table of a VHDX, setting it right, and changing its size.

use super::header::{MIB, REGIONS, Region, SECTOR};
use super::layout::{FULL, PARTIAL, STATE, Touched, Vhdx, ZERO};
use super::metadata::MAX_SIZE;
use crate::format::blocks::scan::{Bits, copy_all, scan};
use crate::format::{CheckReport, Progress, Repair};
use crate::graph::copy_within;
use crate::{Error, ErrorKind};

/// Blocks that an open moves by itself, at most: a power cut leaves few gaps.
const MOVE_AT_OPEN: u64 = 1024;
/// Bytes of them, at most.
const MOVE_BYTES: u64 = 256 << 20;
/// Blocks that are moved between two barriers.
const MOVES: usize = 64;
/// MiB of a file that are looked after.
const MAX_MIB: u64 = 1 << 28;
/// Wrong entries that are remembered.
const REMEMBERED: usize = 1 << 16;
const S: u64 = SECTOR as u64;

/// What the table says.
struct Survey {
    /// MiB of the file that something is in.
    used: Bits,
    /// Where the first block begins. Other programs leave space before it.
    first: u64,
    /// Where the last thing ends.
    end: u64,
    allocated: u64,
    fragmented: u64,
    /// Entries that lead nowhere, or where something else is, and why.
    wrong: Vec<(u64, String)>,
}

impl Vhdx {
    /// Shows the table's entries: number, entry, and bytes of what it leads to (0 if nothing).
    async fn each_entry(&self, mut see: impl FnMut(u64, u64, u64)) -> Result<(), Error> {
        let (block_size, has_parent, size) = {
            let m = self.metadata.borrow();
            (m.block_size, m.has_parent, m.size)
        };
        let (bat, ratio) = (self.regions.borrow().bat.at, self.ratio());
        let entries = self.entries(size);
        scan(&self.file, bat, entries * 8, "its table of blocks", |at, bytes| {
            for (index, entry) in (at / 8..).zip(bytes.as_chunks::<8>().0) {
                let entry = u64::from_le_bytes(*entry);
                let is_bitmap = index % (ratio + 1) == ratio;
                let len = match entry & STATE {
                    FULL if is_bitmap && has_parent => MIB,
                    _ if is_bitmap => 0,
                    FULL | PARTIAL => block_size,
                    // It may keep its space.
                    1..=3 if entry >> 20 != 0 => block_size,
                    _ => 0,
                };
                see(index, entry, len);
            }
            Ok(())
        })
        .await
    }

    async fn survey(&self) -> Result<Survey, Error> {
        let len = self.file.size();
        if len / MIB > MAX_MIB {
            let why = format!("the file has {len} bytes, and Plinth looks after {} at most", MAX_MIB * MIB);
            return Err(Error::new(ErrorKind::Limit, format!("cannot use '{}'", self.name()), why));
        }
        let mut s = Survey {
            used: Bits::new(len.div_ceil(MIB) + 1),
            first: u64::MAX,
            end: MIB,
            allocated: 0,
            fragmented: 0,
            wrong: Vec::new(),
        };
        s.used.set(0);
        for region in self.reserved() {
            for n in region.at / MIB..region.end().div_ceil(MIB) {
                s.used.set(n);
            }
            s.end = s.end.max(region.end());
        }
        let mut last = None;
        self.each_entry(|index, entry, size| {
            if size == 0 {
                return;
            }
            let at = (entry >> 20) * MIB;
            s.allocated += u64::from(size != MIB || matches!(entry & STATE, FULL | PARTIAL));
            s.fragmented += u64::from(last.is_some_and(|l| l != at));
            last = Some(at.saturating_add(size));
            let why = if at < MIB || at >= len {
                "is not in the file"
            } else if (at / MIB..(at + size) / MIB).any(|n| s.used.get(n)) {
                "belongs to something else too"
            } else {
                (at / MIB..(at + size) / MIB).for_each(|n| _ = s.used.set(n));
                (s.first, s.end) = (s.first.min(at), s.end.max(at + size));
                return;
            };
            if s.wrong.len() < REMEMBERED {
                s.wrong.push((index, format!("entry {index} of the table leads to byte {at}, which {why}")));
            }
        })
        .await?;
        Ok(s)
    }

    /// What is not in the table.
    fn reserved(&self) -> [Region; 3] {
        let (header, regions) = (self.header.borrow(), self.regions.borrow());
        [Region { at: header.log_at, len: header.log_len.into() }, regions.bat, regions.metadata]
    }

    /// Sets right what a crash has left. The log is replayed.
    pub(super) async fn recover(&self) -> Result<(), Error> {
        let s = self.survey().await?;
        if let Some((_, why)) = s.wrong.first() {
            *self.damage.borrow_mut() = Some(why.clone());
            return Ok(());
        }
        self.end.set(s.end);
        let limit = MOVE_AT_OPEN.min(MOVE_BYTES / self.metadata.borrow().block_size);
        let moves = self.moves(&s, limit as usize + 1).await?.len() as u64;
        // Other programs leave gaps where they like, which are as good as any free space.
        self.tidy(if self.clean || moves > limit { 0 } else { limit }).await?;
        self.gaps_at_open.set(self.unused.borrow().len());
        Ok(())
    }

    /// Moves blocks into gaps that were not there when the image was opened.
    pub(super) async fn tidy_ours(&self) -> Result<(), Error> {
        let gaps = self.gaps(&self.survey().await?).len();
        self.tidy(gaps.saturating_sub(self.gaps_at_open.get()) as u64).await
    }

    /// Where blocks could be between others.
    fn gaps(&self, s: &Survey) -> Vec<u64> {
        let per = self.metadata.borrow().block_size / MIB;
        let mut gaps = Vec::new();
        let (mut free, mut run) = (0, 0);
        for n in s.used.clear_below(s.end / MIB) {
            run = if run > 0 && free + run == n { run + 1 } else { 1 };
            free = n + 1 - run;
            if run == per {
                gaps.push(free * MIB);
                run = 0;
            }
        }
        gaps
    }

    /// The last blocks of the file (where they are, entry's number, entry), and gaps before them to move them to.
    async fn moves(&self, s: &Survey, limit: usize) -> Result<Vec<((u64, u64, u64), u64)>, Error> {
        let block_size = self.metadata.borrow().block_size;
        let gaps: Vec<u64> = self.gaps(s).into_iter().filter(|&gap| gap > s.first).take(limit).collect();
        let mut last: Vec<(u64, u64, u64)> = Vec::new();
        let shorten = |last: &mut Vec<(u64, u64, u64)>| {
            last.sort_unstable_by(|a, b| b.cmp(a));
            last.truncate(gaps.len());
        };
        self.each_entry(|index, entry, size| {
            let at = (entry >> 20) * MIB;
            if size == block_size && gaps.first().is_some_and(|&gap| gap < at) {
                last.push((at, index, entry));
                if last.len() > 2 * gaps.len() + 64 {
                    shorten(&mut last);
                }
            }
        })
        .await?;
        shorten(&mut last);
        Ok(last.into_iter().zip(gaps).filter(|((at, ..), gap)| gap < at).collect())
    }

    /// Moves the last blocks into gaps, `limit` at most, and cuts the file off.
    pub(super) async fn tidy(&self, limit: u64) -> Result<(), Error> {
        let block_size = self.metadata.borrow().block_size;
        let mut left = limit;
        loop {
            let s = self.survey().await?;
            let moves = self.moves(&s, MOVES.min(left.min(usize::MAX as u64) as usize)).await?;
            if moves.is_empty() {
                self.end.set(s.end);
                // What is left are gaps behind which no block is.
                *self.unused.borrow_mut() = self.gaps(&s).into_iter().take(REMEMBERED).collect();
                break;
            }
            for &((from, ..), to) in &moves {
                copy_within(&*self.file, from, to, block_size).await?;
            }
            self.file.flush().await?;
            let mut touched = Touched::new();
            for &((_, index, entry), to) in &moves {
                self.set_entry(&mut touched, index, to | entry & (MIB - 1)).await?;
            }
            self.write_logged(touched).await?;
            self.file.flush().await?;
            left = left.saturating_sub(moves.len() as u64);
        }
        if self.file.size() == self.end.get() {
            return Ok(());
        }
        // The log says how long the file is at least.
        self.empty_log().await?;
        match self.file.resize(self.end.get()).await {
            // A device stays as long as it is.
            Err(e) if e.kind == ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    pub(super) async fn check_table(
        &self,
        _size: u64,
        repair: Repair,
        progress: &Progress,
    ) -> Result<CheckReport, Error> {
        let s = self.survey().await?;
        let (size, block_size) = {
            let m = self.metadata.borrow();
            (m.size, m.block_size)
        };
        let blocks = size.div_ceil(block_size);
        progress.total.set(blocks);
        progress.done.set(blocks);
        let moves = self.moves(&s, REMEMBERED).await?;
        // Gaps that were there at a clean open are no leaks: of those a writer knows, a reader need not.
        let ours = !(self.clean && self.read_only.get());
        let gaps = moves.iter().filter(|(_, gap)| ours && !self.unused.borrow().contains(gap));
        let leaks = gaps.count() as u64;
        let behind = self.file.size().max(s.end).saturating_sub(self.end.get().max(s.end)) / block_size;
        let mut report = CheckReport {
            total_clusters: blocks,
            allocated_clusters: s.allocated,
            fragmented_clusters: s.fragmented,
            image_end: s.end,
            corruptions: s.wrong.len() as u64,
            leaks: leaks + behind,
            ..CheckReport::default()
        };
        for (_, why) in &s.wrong {
            report.say(why);
        }
        if report.leaks > 0 {
            let leaks = report.leaks;
            report.say(format_args!("there is space in the file for {leaks} blocks that is not used"));
        }
        if repair == Repair::No || (repair == Repair::Leaks && !s.wrong.is_empty()) {
            return Ok(report);
        }
        self.mend(&s).await?;
        report.corruptions_fixed = report.corruptions;
        // There may be more than one survey remembers.
        let left = self.survey().await?.wrong.len() as u64;
        if left > 0 {
            report.corruptions += left;
            return Ok(report);
        }
        self.tidy(u64::MAX).await?;
        report.leaks_fixed = report.leaks;
        *self.damage.borrow_mut() = None;
        Ok(report)
    }

    /// Gives blocks that share their space their own, and takes away entries that lead nowhere.
    async fn mend(&self, s: &Survey) -> Result<(), Error> {
        let (block_size, len) = (self.metadata.borrow().block_size, self.file.size());
        let mut end = s.end;
        let mut new = Vec::new();
        let mut entries = Vec::new();
        self.each_entry(|index, entry, size| {
            if s.wrong.binary_search_by_key(&index, |w| w.0).is_ok() {
                entries.push((index, entry, size));
            }
        })
        .await?;
        let reserved = self.reserved();
        for (index, entry, size) in entries {
            let at = (entry >> 20) * MIB;
            let nowhere = at < MIB
                || at.saturating_add(size) > len
                || reserved.iter().any(|r| at < r.end() && r.at < at + size);
            if nowhere || size != block_size || matches!(entry & STATE, 1..=3) {
                // Without data: zeros or the parent's, as it was said to be.
                new.push((index, if matches!(entry & STATE, 1..=3) { ZERO } else { 0 }));
                continue;
            }
            copy_within(&*self.file, at, end, size).await?;
            new.push((index, end | entry & (MIB - 1)));
            end += size;
        }
        if self.file.size() < end {
            self.file.write_zeroes(end - 1, 1, true).await?;
        }
        self.file.flush().await?;
        let mut touched = Touched::new();
        for (index, entry) in new {
            self.set_entry(&mut touched, index, entry).await?;
        }
        self.write_logged(touched).await?;
        self.file.flush().await
    }

    /// Nothing is in flight.
    pub(super) async fn set_disk_size(&self, old: u64, new: u64) -> Result<(), Error> {
        let doing = || format!("cannot resize '{}' to {new} bytes", self.name());
        let logical = self.metadata.borrow().logical;
        if new > MAX_SIZE || !new.is_multiple_of(logical) {
            let why = format!("a VHDX disk has 64 TiB at most, and whole sectors of {logical} bytes");
            return Err(Error::new(ErrorKind::Invalid, doing(), why));
        }
        let (before, after) = (self.entries(old), self.entries(new));
        let bat = self.regions.borrow().bat;
        if after * 8 > bat.len {
            return self.move_table(before, after, new).await;
        }
        if after > before {
            // What was there, if the disk was larger before, is nothing.
            self.clear_entries(before..after).await?;
        }
        let mut touched = Touched::new();
        self.set_size(&mut touched, new).await?;
        self.write_logged(touched).await?;
        self.file.flush().await?;
        self.metadata.borrow_mut().size = new;
        if after < before {
            self.clear_entries(after..before).await?;
            self.tidy(u64::MAX).await?;
        } else {
            self.fill_fixed(old, new).await?;
        }
        Ok(())
    }

    async fn set_size(&self, touched: &mut Touched, size: u64) -> Result<(), Error> {
        let at = self.metadata.borrow().size_at;
        self.patch(touched, at, &size.to_le_bytes()).await
    }

    async fn clear_entries(&self, range: std::ops::Range<u64>) -> Result<(), Error> {
        // So many that their sectors fit into one entry of the log.
        const AT_ONCE: u64 = 32_768;
        let bat = self.regions.borrow().bat.at;
        let mut at = range.start;
        while at < range.end {
            let n = AT_ONCE.min(range.end - at);
            let mut touched = Touched::new();
            self.patch(&mut touched, bat + at * 8, &vec![0; n as usize * 8]).await?;
            self.write_logged(touched).await?;
            self.file.flush().await?;
            at += n;
        }
        Ok(())
    }

    /// Puts a larger table at the end of the file. One entry of the log has both region tables and the size.
    async fn move_table(&self, before: u64, after: u64, size: u64) -> Result<(), Error> {
        let old = self.regions.borrow().bat;
        let bat = Region { at: self.end.get().next_multiple_of(MIB), len: (after * 8).next_multiple_of(MIB) };
        self.file.write_zeroes(bat.at, bat.len, true).await?;
        copy_all(&self.file, old.at, bat.at, before * 8).await?;
        self.end.set(bat.end());
        self.file.flush().await?;
        let next = self.regions.borrow().with_bat(bat);
        let bytes = next.bytes();
        let used = (16 + 32 * usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))).next_multiple_of(SECTOR);
        let mut touched = Touched::new();
        for at in REGIONS {
            self.patch(&mut touched, at, &bytes[..used.min(bytes.len())]).await?;
        }
        self.set_size(&mut touched, size).await?;
        debug_assert!(touched.keys().all(|k| k.is_multiple_of(S)));
        self.write_logged(touched).await?;
        self.file.flush().await?;
        let old_size = std::mem::replace(&mut self.metadata.borrow_mut().size, size);
        *self.regions.borrow_mut() = next;
        self.fill_fixed(old_size, size).await?;
        self.tidy(u64::MAX).await
    }

    /// Blocks of a fixed image have their space from the start.
    async fn fill_fixed(&self, old: u64, new: u64) -> Result<(), Error> {
        let (keep, block_size) = {
            let m = self.metadata.borrow();
            (m.keep && !m.has_parent, m.block_size)
        };
        let (first, last) = (old.div_ceil(block_size), new.div_ceil(block_size));
        if !keep || first >= last {
            return Ok(());
        }
        let at = self.end.get().next_multiple_of(MIB);
        let len = (last - first) * block_size;
        self.file.write_zeroes(at, len, true).await?;
        self.end.set(at + len);
        self.file.flush().await?;
        let mut touched = Touched::new();
        for block in first..last {
            self.set_entry(&mut touched, self.index(block), (at + (block - first) * block_size) | FULL)
                .await?;
        }
        self.write_logged(touched).await?;
        self.file.flush().await
    }
}
