//! Changes of an image's tables that are not in the tables yet.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Place;

/// Ranges of numbers, in order, that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a range.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|r| r.end < range.start);
        let after = self.0.partition_point(|r| r.start <= range.end);
        if first == after {
            self.0.insert(first, range);
            return;
        }
        let start = range.start.min(self.0[first].start);
        let end = range.end.max(self.0[after - 1].end);
        self.0[first] = start..end;
        self.0.drain(first + 1..after);
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().cloned()
    }

    /// Marks what is in `self` within `present`, whose first element stands for number `first`.
    pub fn mark(&self, first: u64, present: &mut [bool]) {
        let end = first + present.len() as u64;
        for r in &self.0[self.0.partition_point(|r| r.end <= first)..] {
            if r.start >= end {
                break;
            }
            let (from, to) = (r.start.max(first) - first, r.end.min(end) - first);
            present[from as usize..to as usize].fill(true);
        }
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// What has changed since the tables were last written.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Blocks that have a new place.
    pub places: BTreeMap<u64, Place>,
    /// Sectors that became present, by block, counted from the block's start.
    pub sectors: BTreeMap<u64, Ranges>,
    ranges: usize,
}

/// Changes that are kept in memory at most before the tables are written.
const MANY: usize = 1 << 16;

impl Changes {
    /// Nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty() && self.sectors.is_empty()
    }

    /// There are so many that they should be written.
    pub fn are_many(&self) -> bool {
        self.places.len() + self.ranges > MANY
    }

    /// Sectors of a block became present.
    pub fn add_sectors(&mut self, block: u64, range: Range<u64>) {
        let ranges = self.sectors.entry(block).or_default();
        let before = ranges.len();
        ranges.add(range);
        self.ranges = self.ranges + ranges.len() - before;
    }

    /// Takes over what `older` has; where both say something, `self` is right.
    pub fn merge_older(&mut self, older: &Changes) {
        for (&block, &place) in &older.places {
            self.places.entry(block).or_insert(place);
        }
        for (&block, ranges) in &older.sectors {
            for range in ranges.iter() {
                self.add_sectors(block, range);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge() {
        let mut ranges = Ranges::default();
        for r in [10..20, 30..40, 25..28, 0..5, 20..25, 5..6, 39..50] {
            ranges.add(r);
        }
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..6, 10..28, 30..50]);
        ranges.add(1..60);
        assert!(ranges.iter().eq(std::iter::once(0..60)));
        let mut marks = [false; 4];
        let mut ranges = Ranges::default();
        ranges.add(3..5);
        ranges.add(7..9);
        ranges.mark(4, &mut marks);
        assert_eq!(marks, [true, false, false, true]);
    }
}
