//! Looking through the table of a dynamic VHD, and setting it right.

use std::fmt;

use super::dynamic::{FREE, Vhd};
use super::footer::{FOOTER, Footer, HEADER};
use crate::format::blocks::scan::scan;
use crate::format::{CheckReport, Progress, Repair};
use crate::graph::{IoBuf, copy_within};
use crate::{Error, SECTOR};

/// Gaps that an open fills by itself, at most: a power cut leaves few.
const FILL_AT_OPEN: u64 = 64;
/// Blocks that are moved between two barriers.
const MOVES: usize = 64;

/// What the table says.
struct Survey {
    /// Where blocks begin, with their numbers, in the file's order.
    blocks: Vec<(u32, u32)>,
    /// Those of them that begin where there can be no block, or where another one is.
    wrong: Vec<Wrong>,
    fragmented: u64,
    /// Where the last block ends.
    end: u64,
}

/// An entry that cannot be right: there is one of these for each entry of the table at most.
struct Wrong {
    block: u32,
    sector: u32,
    overlaps: bool,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (block, at) = (self.block, u64::from(self.sector) * SECTOR);
        match self.overlaps {
            true => write!(f, "block {block} overlaps another one at byte {at}"),
            false => write!(f, "block {block} is said to be at byte {at}, where it cannot be"),
        }
    }
}

impl Vhd {
    async fn survey(&self) -> Result<Survey, Error> {
        let (table, entries, span) = {
            let header = self.header.borrow();
            (header.table, header.entries, header.block_size + header.bitmap())
        };
        let mut blocks = Vec::new();
        let mut fragmented = 0;
        scan(&self.file, table, u64::from(entries) * 4, "its table of blocks", |at, bytes| {
            for (block, entry) in ((at / 4) as u32..).zip(bytes.as_chunks::<4>().0) {
                let entry = u32::from_be_bytes(*entry);
                if entry != FREE {
                    let last = blocks.last().map(|&(at, _): &(u32, u32)| u64::from(at) * SECTOR + span);
                    fragmented +=
                        u64::from(last.is_some_and(|l| self.next_block(l) != u64::from(entry) * SECTOR));
                    blocks.push((entry, block));
                }
            }
            Ok(())
        })
        .await?;
        blocks.sort_unstable();
        let reserved = self.reserved();
        let mut wrong = Vec::new();
        let mut end: u64 = 0;
        for &(sector, block) in &blocks {
            let at = u64::from(sector) * SECTOR;
            let inside = reserved.iter().any(|r| at < r.1 && r.0 < at + span);
            let nowhere = inside || at + self.header.borrow().bitmap() > self.file.size();
            if nowhere || at < end {
                wrong.push(Wrong { block, sector, overlaps: !nowhere });
            } else {
                end = at + span;
            }
        }
        let start = reserved.iter().map(|r| r.1).max().unwrap_or(0);
        Ok(Survey { blocks, wrong, fragmented, end: end.max(start) })
    }

    /// Ranges of the file, without the blocks.
    fn reserved(&self) -> Vec<(u64, u64)> {
        let (header, footer) = (self.header.borrow(), self.footer.borrow());
        let mut ranges = vec![
            (0, FOOTER as u64),
            (footer.header, footer.header + HEADER as u64),
            (header.table, header.table + header.table_len()),
        ];
        let len = self.file.size();
        for locator in header.locators().filter(|l| l.len > 0) {
            if let Some(end) = locator.offset.checked_add(locator.len.into()).filter(|&e| e <= len) {
                ranges.push((locator.offset, end.next_multiple_of(SECTOR)));
            }
        }
        ranges
    }

    /// Finds the end of the last block; in an image that is written, sets right what a crash has left.
    pub async fn survey_end(&self, read_only: bool, last_is_right: bool) -> Result<(), Error> {
        if read_only {
            return Ok(());
        }
        let s = self.survey().await?;
        if let Some(wrong) = s.wrong.first() {
            *self.damage.borrow_mut() = Some(wrong.to_string());
            return Ok(());
        }
        self.end.set(s.end);
        // Space behind the last block that another program has taken is its business, unless there was a crash.
        let moves = self.moves(&s, FILL_AT_OPEN as usize + 1).len() as u64;
        if last_is_right && self.file.size() <= s.end + self.span() && moves == 0 {
            // No block is behind them, and none comes there before they are filled.
            *self.unused.borrow_mut() = self.gaps(&s);
            return Ok(());
        }
        self.tidy(if moves > FILL_AT_OPEN { 0 } else { FILL_AT_OPEN }).await
    }

    /// Where blocks could begin between others, in the file's order.
    fn gaps(&self, s: &Survey) -> Vec<u64> {
        let span = self.span();
        let mut ranges = self.reserved();
        ranges.extend(s.blocks.iter().map(|b| (u64::from(b.0) * SECTOR, u64::from(b.0) * SECTOR + span)));
        // Entries that lead nowhere do not make the file long.
        ranges.retain(|r| r.0 < s.end);
        ranges.sort_unstable();
        let mut gaps = Vec::new();
        let mut end = 0;
        for (from, to) in ranges {
            let mut at = self.next_block(end);
            while at + span <= from && gaps.len() as u64 <= FILL_AT_OPEN {
                gaps.push(at);
                at = self.next_block(at + span);
            }
            end = end.max(to);
        }
        gaps
    }

    /// The last blocks of the file, and gaps before them to move them to.
    fn moves(&self, s: &Survey, limit: usize) -> Vec<((u32, u32), u64)> {
        let last = s.blocks.iter().rev().take(limit).copied();
        last.zip(self.gaps(s)).filter(|(b, gap)| *gap < u64::from(b.0) * SECTOR).collect()
    }

    /// Fills gaps with the last blocks, `limit` at most, cuts the file off and writes the footer at its end.
    pub async fn tidy(&self, limit: u64) -> Result<(), Error> {
        let mut left = limit;
        let s = loop {
            let s = self.survey().await?;
            let moves = self.moves(&s, MOVES.min(left.min(usize::MAX as u64) as usize));
            if moves.is_empty() {
                break s;
            }
            for &((from, _), to) in &moves {
                copy_within(&*self.file, u64::from(from) * SECTOR, to, self.span()).await?;
            }
            self.file.flush().await?;
            self.tables.clear();
            self.set_entries(moves.iter().map(|&((_, block), to)| (block.into(), (to / SECTOR) as u32)))
                .await?;
            left = left.saturating_sub(moves.len() as u64);
        };
        // What is left are gaps behind which no block is.
        *self.unused.borrow_mut() = self.gaps(&s);
        self.end.set(s.end);
        self.write_last_footer().await?;
        self.file.flush().await?;
        if self.file.size() > s.end + FOOTER as u64 {
            match self.file.resize(s.end + FOOTER as u64).await {
                // A device stays as long as it is.
                Err(e) if e.kind == crate::ErrorKind::Unsupported => {}
                result => result?,
            }
        }
        Ok(())
    }

    pub async fn check_table(
        &self,
        _size: u64,
        repair: Repair,
        progress: &Progress,
    ) -> Result<CheckReport, Error> {
        let s = self.survey().await?;
        let entries = u64::from(self.header.borrow().entries);
        progress.total.set(entries);
        progress.done.set(entries);
        let mut report = CheckReport {
            total_clusters: entries,
            allocated_clusters: s.blocks.len() as u64,
            fragmented_clusters: s.fragmented,
            image_end: s.end + FOOTER as u64,
            ..CheckReport::default()
        };
        for wrong in &s.wrong {
            report.corruptions += 1;
            report.say(wrong);
        }
        let footer = self.footer.borrow().bytes();
        if self.file.read(0, IoBuf::new(FOOTER)).await?[..] != footer {
            report.corruptions += 1;
            report.say("the copy of the footer at the beginning is not like it");
        }
        // Blocks that are still on their way have moved the end.
        let at = self.file.size().checked_sub(FOOTER as u64);
        let last = match at {
            Some(at) => Footer::parse(&self.file.read(at, IoBuf::new(FOOTER)).await?),
            None => None,
        };
        if last.is_none_or(|l| l.bytes() != footer) && !self.begun.get() {
            report.corruptions += 1;
            report.say("there is no footer at the end, or it is not like its copy at the beginning");
        }
        let moves = self.moves(&s, FILL_AT_OPEN as usize + 1);
        let gaps = moves.iter().filter(|(_, gap)| !self.unused.borrow().contains(gap)).count() as u64;
        let behind = self.file.size().saturating_sub(s.end + FOOTER as u64) / self.span();
        let unfinished = if self.begun.get() { 0 } else { behind };
        report.leaks = gaps + unfinished;
        if report.leaks > 0 {
            let leaks = report.leaks;
            report.say(format_args!("there is space in the file for {leaks} blocks that is not used"));
        }
        if repair == Repair::No || (repair == Repair::Leaks && !s.wrong.is_empty()) {
            return Ok(report);
        }
        if repair == Repair::All {
            self.mend(&s).await?;
            report.corruptions_fixed = report.corruptions;
        }
        self.tidy(u64::MAX).await?;
        self.file.flush().await?;
        report.leaks_fixed = report.leaks;
        Ok(report)
    }

    /// Gives blocks that overlap others their own space, takes entries away that lead nowhere, and writes the
    /// footer's copy again.
    async fn mend(&self, s: &Survey) -> Result<(), Error> {
        let (span, len) = (self.span(), self.file.size());
        let reserved = self.reserved();
        let mut end = s.end;
        let mut entries = Vec::new();
        for wrong in &s.wrong {
            let (block, at) = (u64::from(wrong.block), u64::from(wrong.sector) * SECTOR);
            let nowhere = at + span > len || reserved.iter().any(|r| at < r.1 && r.0 < at + span);
            if nowhere {
                entries.push((block, FREE));
                continue;
            }
            let to = self.next_block(end);
            copy_within(&*self.file, at, to, span).await?;
            entries.push((block, (to / SECTOR) as u32));
            end = to + span;
        }
        self.file.flush().await?;
        self.tables.clear();
        self.set_entries(entries.into_iter()).await?;
        self.end.set(end);
        let bytes = self.footer.borrow().bytes();
        self.file.write(0, crate::graph::IoData::copy_of(&bytes)).await?;
        *self.damage.borrow_mut() = None;
        Ok(())
    }
}
