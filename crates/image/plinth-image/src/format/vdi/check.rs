//! Looking through the table of a VDI, and setting it right.

use super::header::{FREE, ZERO};
use super::{Error, Vdi};
use crate::format::blocks::scan::{Bits, scan};
use crate::format::{CheckReport, Progress, Repair};
use crate::graph::copy_within;

/// Blocks that nothing refers to, at most, that an open fills by itself: a power cut leaves few.
const FILL_AT_OPEN: u64 = 1024;
/// Blocks that are moved between two barriers.
const MOVES: usize = 64;

/// What the table says.
struct Survey {
    /// Blocks of the file that the table names.
    used: Bits,
    allocated: u64,
    fragmented: u64,
    /// Blocks of the disk whose entry names a block of the file that another one has too.
    twice: Vec<u64>,
    /// Blocks of the disk whose entry is beyond all.
    wild: Vec<u64>,
}

/// Wrong entries that are remembered.
const REMEMBERED: usize = 1 << 16;

impl Vdi {
    async fn survey(&self) -> Result<Survey, Error> {
        let header = self.header.borrow().clone();
        let mut s = Survey {
            used: Bits::new(header.limit().into()),
            allocated: 0,
            fragmented: 0,
            twice: Vec::new(),
            wild: Vec::new(),
        };
        let mut last = None;
        self.each_entry(|block, entry| {
            if matches!(entry, FREE | ZERO) {
                return;
            }
            if entry >= header.limit() {
                s.wild.push(block);
                s.wild.truncate(REMEMBERED);
                return;
            }
            s.allocated += 1;
            s.fragmented += u64::from(last.is_some_and(|l: u32| l.checked_add(1) != Some(entry)));
            last = Some(entry);
            if s.used.set(entry.into()) {
                s.twice.push(block);
                s.twice.truncate(REMEMBERED);
            }
        })
        .await?;
        Ok(s)
    }

    pub(super) async fn each_entry(&self, mut see: impl FnMut(u64, u32)) -> Result<(), Error> {
        let (table, len) = {
            let header = self.header.borrow();
            (header.table, u64::from(header.blocks) * 4)
        };
        scan(&self.file, table, len, "its table of blocks", |at, bytes| {
            let (entries, _) = bytes.as_chunks::<4>();
            for (block, entry) in (at / 4..).zip(entries) {
                see(block, u32::from_le_bytes(*entry));
            }
            Ok(())
        })
        .await
    }

    /// Sets right what a crash, ours or another program's, has left.
    pub(super) async fn tidy(&self) -> Result<(), Error> {
        let s = self.survey().await?;
        if let Some(block) = s.wild.first() {
            *self.damage.borrow_mut() =
                Some(format!("the table's entry of block {block} is beyond the file"));
            return Ok(());
        }
        if let Some(block) = s.twice.first() {
            *self.damage.borrow_mut() = Some(format!("block {block} shares its space with another one"));
            return Ok(());
        }
        self.taken.set(s.used.end() as u32);
        let holes = s.used.end() - s.allocated;
        if holes > 0 && holes <= FILL_AT_OPEN {
            self.fill_holes(holes).await?;
        }
        self.trim().await
    }

    /// Moves the last blocks of the file to where blocks are that nothing refers to, `limit` at most.
    pub(super) async fn fill_holes(&self, limit: u64) -> Result<(), Error> {
        // Until the file is cut off behind the last block.
        self.zeros_from.set(u64::MAX);
        let mut left = limit;
        loop {
            let s = self.survey().await?;
            let end = s.used.end();
            // Where blocks share their space, what is a hole is not known; a repair parts them first.
            if left == 0 || !s.twice.is_empty() || end == s.allocated {
                self.taken.set(end as u32);
                self.unused.borrow_mut().clear();
                return Ok(());
            }
            let count = MOVES.min(left.min(usize::MAX as u64) as usize);
            let holes: Vec<u64> = s.used.clear_below(s.allocated).take(count).collect();
            // The last ones first, so that the file gets shorter.
            let last: Vec<u64> =
                (s.allocated..end).rev().filter(|&n| s.used.get(n)).take(holes.len()).collect();
            let mut moves: Vec<_> = last.iter().copied().zip(holes).collect();
            moves.sort_unstable();
            let mut entries = Vec::new();
            self.each_entry(|block, entry| {
                if let Ok(n) = moves.binary_search_by_key(&u64::from(entry), |m| m.0) {
                    entries.push((block, moves[n].1 as u32));
                }
            })
            .await?;
            let header = self.header.borrow().clone();
            for &(from, to) in &moves {
                copy_within(&*self.file, header.host(from as u32), header.host(to as u32), header.block_size)
                    .await?;
            }
            self.file.flush().await?;
            self.set_entries(entries.into_iter()).await?;
            left = left.saturating_sub(moves.len() as u64);
        }
    }

    /// Makes the header's number and the file's length right. No block of the file is behind `taken`.
    pub(super) async fn trim(&self) -> Result<(), Error> {
        self.zeros_from.set(u64::MAX);
        let taken = self.taken.get();
        if self.header.borrow().allocated != taken {
            self.header.borrow_mut().allocated = taken;
            self.write_header().await?;
        }
        let end = self.header.borrow().end(taken);
        let len = self.file.size();
        if len < end {
            self.file.write_zeroes(len, end - len, true).await?;
        } else if len > end && !self.file.info().read_only {
            // A device stays as long as it is.
            match self.file.resize(end).await {
                Err(e) if e.kind == crate::ErrorKind::Unsupported => {}
                result => result?,
            }
        }
        self.zeros_from.set(self.file.size());
        Ok(())
    }

    pub(super) async fn check_table(
        &self,
        _size: u64,
        repair: Repair,
        progress: &Progress,
    ) -> Result<CheckReport, Error> {
        let s = self.survey().await?;
        let header = self.header.borrow().clone();
        progress.total.set(header.blocks.into());
        progress.done.set(header.blocks.into());
        let mut report = CheckReport {
            total_clusters: header.blocks.into(),
            allocated_clusters: s.allocated,
            fragmented_clusters: s.fragmented,
            image_end: header.end(s.used.end() as u32),
            ..CheckReport::default()
        };
        for block in &s.wild {
            report.corruptions += 1;
            report.say(format_args!(
                "block {block} is said to be beyond the {} blocks of the file",
                header.blocks
            ));
        }
        for block in &s.twice {
            report.corruptions += 1;
            report.say(format_args!("block {block} shares its space in the file with another block"));
        }
        let end = s.used.end() as u32;
        let held = self.unused.borrow().len() as u64;
        if header.allocated < end {
            report.corruptions += 1;
            let n = header.allocated;
            report.say(format_args!(
                "the header says that {n} blocks have space, and the last one that has is the {end}th"
            ));
        }
        let distinct = s.allocated - s.twice.len() as u64;
        report.leaks = u64::from(header.allocated.max(end)).saturating_sub(distinct).saturating_sub(held);
        if report.leaks > 0 {
            let leaks = report.leaks;
            report.say(format_args!("{leaks} blocks of the file belong to no block of the disk"));
        }
        if repair == Repair::No {
            return Ok(report);
        }
        let mut left = s;
        if repair == Repair::All {
            self.mend(&left, &mut report).await?;
            // There may be more than one survey remembers.
            left = self.survey().await?;
            report.corruptions += (left.wild.len() + left.twice.len()) as u64;
        }
        if left.wild.is_empty() && left.twice.is_empty() {
            self.fill_holes(u64::MAX).await?;
            self.trim().await?;
            self.file.flush().await?;
            report.corruptions_fixed = report.corruptions;
            report.leaks_fixed = report.leaks;
            *self.damage.borrow_mut() = None;
        }
        Ok(report)
    }

    /// Gives blocks that share their space their own, and takes entries away that lead nowhere.
    async fn mend(&self, s: &Survey, report: &mut CheckReport) -> Result<(), Error> {
        let header = self.header.borrow().clone();
        let mut next = s.used.end() as u32;
        let mut entries: Vec<_> = s.wild.iter().map(|&block| (block, FREE)).collect();
        let mut holes = s.used.clear_below(next.into());
        let mut shared = Vec::new();
        self.each_entry(|block, entry| {
            if s.twice.binary_search(&block).is_ok() {
                shared.push((block, entry));
            }
        })
        .await?;
        for (block, entry) in shared {
            // Each block of the disk has one of the file when all are parted: there are holes when the end is full.
            let to = match next < header.blocks {
                true => next,
                false => holes.next().map_or(next, |n| n as u32),
            };
            copy_within(&*self.file, header.host(entry), header.host(to), header.block_size).await?;
            entries.push((block, to));
            next = next.max(to + 1);
        }
        self.zeros_from.set(u64::MAX);
        self.header.borrow_mut().allocated = next;
        self.write_header().await?;
        self.file.flush().await?;
        report.corruptions_fixed += entries.len() as u64;
        self.taken.set(next);
        self.set_entries(entries.into_iter()).await
    }
}
