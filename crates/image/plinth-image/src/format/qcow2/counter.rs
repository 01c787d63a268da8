//! Counting of references to clusters, for a check.

use std::collections::{BTreeMap, HashMap};

use super::refcount;

/// Clusters whose references are counted together.
pub const CHUNK: u64 = 1 << 16;
/// Chunks in memory at once: 32 MiB, for 2 TiB of clusters of 64 KiB. More are counted in several passes.
const CHUNKS: usize = 512;

/// References to clusters, of those from `start` to `limit`.
pub struct Counter {
    pub start: u64,
    pub limit: u64,
    pub chunks: BTreeMap<u64, Box<[u8]>>,
    /// Counts that do not fit a byte.
    over: HashMap<u64, u64>,
    /// Behind the last cluster that is referred to.
    pub end: u64,
    /// Some cluster is referred to more than once.
    pub shared: bool,
}

impl Counter {
    pub fn new(start: u64) -> Self {
        let (chunks, over) = (BTreeMap::new(), HashMap::new());
        Self { start, limit: u64::MAX, chunks, over, end: 0, shared: false }
    }

    pub fn add(&mut self, cluster: u64, times: u64) {
        self.end = self.end.max(cluster + 1);
        if cluster < self.start || cluster >= self.limit {
            return;
        }
        let number = cluster / CHUNK;
        if !self.chunks.contains_key(&number) && self.chunks.len() >= CHUNKS {
            // The last ones are for the next pass.
            let last = self.chunks.last_key_value().map_or(0, |c| *c.0).max(number);
            self.limit = last * CHUNK;
            self.chunks.remove(&last);
            self.over.retain(|&c, _| c < last * CHUNK);
            if number == last {
                return;
            }
        }
        let chunk = self.chunks.entry(number).or_insert_with(|| vec![0; CHUNK as usize].into());
        let byte = &mut chunk[(cluster % CHUNK) as usize];
        let sum = u64::from(*byte) + times;
        self.shared |= sum > 1;
        if sum < 255 {
            *byte = sum as u8;
            return;
        }
        let more = if *byte == 255 { times } else { sum };
        *byte = 255;
        *self.over.entry(cluster).or_default() += more;
    }

    /// One reference, or several, to each of `count` clusters in a row.
    pub fn add_row(&mut self, cluster: u64, count: u64, times: u64) {
        let (mut at, end) = (cluster, cluster + count);
        while at < end {
            let to = end.min((at / CHUNK + 1) * CHUNK);
            // This makes the chunk, if it is not for the next pass.
            self.add(at, times);
            at += 1;
            // The usual case, without a look at each: nobody else refers to them.
            if times < 255
                && at >= self.start
                && to <= self.limit
                && let Some(chunk) = self.chunks.get_mut(&((at - 1) / CHUNK))
            {
                let first = (at - 1) % CHUNK + 1;
                let row = &mut chunk[first as usize..(first + to - at) as usize];
                if crate::graph::is_zero(row) {
                    row.fill(times as u8);
                    self.shared |= times > 1 && !row.is_empty();
                    self.end = self.end.max(to);
                    at = to;
                    continue;
                }
            }
            for c in at..to {
                self.add(c, times);
            }
            at = to;
        }
    }

    /// Counts from `cluster` on, up to the end of what is counted together; `None` if none of it is referred to.
    pub fn row(&self, cluster: u64) -> Option<&[u8]> {
        self.chunks.get(&(cluster / CHUNK)).map(|c| &c[(cluster % CHUNK) as usize..])
    }

    pub fn get(&self, cluster: u64) -> u64 {
        match self.chunks.get(&(cluster / CHUNK)).map_or(0, |c| c[(cluster % CHUNK) as usize]) {
            255 => self.over.get(&cluster).copied().unwrap_or(255),
            n => u64::from(n),
        }
    }
}

/// How many of `most` counts are as they were counted. `counted`: what is right (without it, all are 0), `stored`: a
/// block of counts that are 2^`order` bits wide (without it, all are 0), the first of them at `index`. One that does
/// not fit a byte ends them.
pub fn alike(counted: Option<&[u8]>, most: usize, stored: Option<&[u8]>, order: u32, index: u64) -> u64 {
    let Some(stored) = stored else {
        return counted.map_or(most, |row| zeros(&row[..most])) as u64;
    };
    // Zeros, by eight bytes of the block.
    let per_word = 64 >> order;
    let first = index as usize;
    let mut i = 0;
    while i < most {
        let at = first + i;
        if at.is_multiple_of(per_word) && per_word <= most - i {
            let word = at / per_word * 8;
            let none = counted.is_none_or(|row| row[i] == 0 && crate::graph::is_zero(&row[i..i + per_word]));
            if none && stored[word..word + 8] == [0; 8] {
                i += per_word;
                continue;
            }
        }
        let right = counted.map_or(0, |row| row[i]);
        let same = match order {
            4 => stored[at * 2..at * 2 + 2] == [0, right],
            _ => refcount::get(stored, order, at) == u64::from(right),
        };
        if !same || right == 255 {
            break;
        }
        i += 1;
    }
    i as u64
}

/// Parts of what ranges cover, in order: where each begins and ends, and how many ranges it is in.
pub fn covered(ranges: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64, u64)> {
    let mut changes = BTreeMap::<u64, i64>::new();
    for (from, to) in ranges.into_iter().filter(|r| r.0 < r.1) {
        *changes.entry(from).or_default() += 1;
        *changes.entry(to).or_default() -= 1;
    }
    let (mut parts, mut from, mut times) = (Vec::new(), 0, 0);
    for (at, change) in changes {
        if times > 0 && change != 0 {
            parts.push((from, at, times as u64));
        }
        if change != 0 {
            from = at;
        }
        times += change;
    }
    parts
}

/// How many zeros a row begins with.
fn zeros(row: &[u8]) -> usize {
    row.iter().position(|&n| n != 0).unwrap_or(row.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_as_their_clusters_are() {
        let rows =
            [(10, 5, 1), (12, 200_000, 1), (70_000, 3, 2), (65_535, 2, 300), (65_000, 1000, 254), (0, 1, 3)];
        let (mut by_row, mut one_by_one) = (Counter::new(5), Counter::new(5));
        for (cluster, count, times) in rows {
            by_row.add_row(cluster, count, times);
            (cluster..cluster + count).for_each(|c| one_by_one.add(c, times));
            assert_eq!((by_row.end, by_row.shared), (one_by_one.end, one_by_one.shared));
            assert!((0..210_000).all(|c| by_row.get(c) == one_by_one.get(c)));
        }
        // More than is counted together.
        by_row.add_row(0, (CHUNKS as u64 + 3) * CHUNK, 1);
        one_by_one.limit = CHUNKS as u64 * CHUNK;
        assert_eq!((by_row.limit, by_row.chunks.len()), (one_by_one.limit, CHUNKS));
    }

    #[test]
    fn ranges_are_cut_where_they_overlap() {
        let parts = covered([(10, 20), (30, 30), (15, 40), (10, 20), (40, 50), (60, 61)]);
        assert_eq!(parts, [(10, 15, 2), (15, 20, 3), (20, 50, 1), (60, 61, 1)]);
        assert_eq!(covered([(1, 3), (3, 5)]), [(1, 5, 1)]);
    }

    #[test]
    fn counts_that_are_right_are_passed_over() {
        for order in 0..7 {
            let most = refcount::max(order).min(300);
            let mut counter = Counter::new(0);
            let mut block = vec![0; 4096];
            let used = [(3, 1), (64, most.min(2)), (65, 1), (200, most.min(254)), (300, most)];
            for (cluster, times) in used {
                counter.add(cluster, times);
                refcount::set(&mut block, order, cluster as usize, times);
            }
            let alike = |counter: &Counter, block: &[u8], from: u64| {
                let most = 400 - from as usize;
                super::alike(counter.row(from).map(|r| &r[..most]), most, Some(block), order, from)
            };
            let all = if most < 255 { 400 } else { 300 };
            assert_eq!(alike(&counter, &block, 0), all, "{order}");
            assert_eq!(alike(&counter, &block, 5), all - 5, "{order}");
            assert_eq!(super::alike(counter.row(0), 400, None, order, 0), 3);
            refcount::set(&mut block, order, 130, 1);
            assert_eq!(alike(&counter, &block, 1), 129, "{order}");
            refcount::set(&mut block, order, 130, 0);
            refcount::set(&mut block, order, 65, 0);
            assert_eq!(alike(&counter, &block, 64), 1, "{order}");
            assert_eq!(super::alike(None, 300, Some(&block), order, 1), 2, "{order}");
        }
    }
}
