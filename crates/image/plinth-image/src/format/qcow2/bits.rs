//! The bits of a bitmap in memory.

use std::collections::BTreeMap;

/// Bytes of a part.
const CHUNK: usize = 4096;
/// Parts with bits of both kinds that are kept at most: 16 MiB.
const MAX_CHUNKS: usize = (16 << 20) / CHUNK;
/// Ranges that are given at most: 16 MiB of them.
const MAX_RANGES: usize = 1 << 20;

#[derive(Clone, Debug)]
enum Chunk {
    /// All bits are set.
    Ones,
    Bits(Box<[u8]>),
}

/// The bits of a bitmap. Parts without a set bit are not there, and those with all bits set take no space.
#[derive(Clone, Debug, Default)]
pub struct Bits {
    chunks: BTreeMap<u64, Chunk>,
    /// Parts with bits of both kinds.
    mixed: usize,
}

impl Bits {
    /// True if no more parts fit.
    pub fn is_full(&self) -> bool {
        self.mixed >= MAX_CHUNKS
    }

    /// Sets a range of bits. When memory is full, some bits beside them are set too: more than what changed is
    /// noted then, and never less.
    pub fn set(&mut self, first: u64, end: u64) {
        const BITS: u64 = CHUNK as u64 * 8;
        let mut at = first;
        while at < end {
            let number = at / BITS;
            let to = end.min((number + 1) * BITS);
            let whole = to - at == BITS;
            let known = self.chunks.contains_key(&number);
            if whole || (!known && self.is_full()) {
                if let Some(Chunk::Bits(_)) = self.chunks.insert(number, Chunk::Ones) {
                    self.mixed -= 1;
                }
                at = to;
                continue;
            }
            self.mixed += usize::from(!known);
            let chunk = self.chunks.entry(number).or_insert_with(|| Chunk::Bits(vec![0; CHUNK].into()));
            let Chunk::Bits(chunk) = chunk else {
                at = to;
                continue;
            };
            while at < to {
                let byte = (at / 8) as usize % CHUNK;
                if at.is_multiple_of(8) && to - at >= 8 {
                    chunk[byte] = 0xff;
                    at += 8;
                } else {
                    chunk[byte] |= 1 << (at % 8);
                    at += 1;
                }
            }
        }
    }

    /// True if no bit is set in `len` bytes from `first` on.
    pub fn is_clear(&self, first: u64, len: u64) -> bool {
        let size = CHUNK as u64;
        self.chunks.range(first / size..(first + len).div_ceil(size)).next().is_none()
    }

    /// Bytes from `first` on.
    pub fn copy(&self, first: u64, out: &mut [u8]) {
        out.fill(0);
        let end = first + out.len() as u64;
        for (&n, chunk) in self.chunks.range(first / CHUNK as u64..end.div_ceil(CHUNK as u64)) {
            let at = n * CHUNK as u64;
            let (from, to) = (at.max(first), (at + CHUNK as u64).min(end));
            let out = &mut out[(from - first) as usize..(to - first) as usize];
            match chunk {
                Chunk::Ones => out.fill(0xff),
                Chunk::Bits(bits) => out.copy_from_slice(&bits[(from - at) as usize..(to - at) as usize]),
            }
        }
    }

    /// Takes bytes as they are stored, of parts that have none yet.
    pub fn put(&mut self, first: u64, bytes: &[u8]) {
        for (n, part) in bytes.chunks(CHUNK).enumerate() {
            let at = first + (n * CHUNK) as u64;
            if part.iter().all(|&b| b == 0) {
                continue;
            }
            let number = at / CHUNK as u64;
            if part.len() == CHUNK && part.iter().all(|&b| b == 0xff) {
                self.chunks.insert(number, Chunk::Ones);
                continue;
            }
            // Parts of clusters smaller than a chunk meet in one.
            self.mixed += usize::from(!self.chunks.contains_key(&number));
            let chunk = self.chunks.entry(number).or_insert_with(|| Chunk::Bits(vec![0; CHUNK].into()));
            if let Chunk::Bits(bits) = chunk {
                let within = (at % CHUNK as u64) as usize;
                bits[within..within + part.len()].copy_from_slice(part);
            }
        }
    }

    /// Clears all bits from `count` on.
    pub fn truncate(&mut self, count: u64) {
        let size = CHUNK as u64 * 8;
        let gone = self.chunks.split_off(&count.div_ceil(size));
        self.mixed -= gone.values().filter(|c| matches!(c, Chunk::Bits(_))).count();
        let Some(chunk) = self.chunks.get_mut(&(count / size)) else { return };
        if let Chunk::Ones = chunk {
            *chunk = Chunk::Bits(vec![0xff; CHUNK].into());
            self.mixed += 1;
        }
        if let Chunk::Bits(bits) = chunk {
            let keep = (count % size) as usize;
            bits[keep.div_ceil(8)..].fill(0);
            if !keep.is_multiple_of(8) {
                bits[keep / 8] &= (1 << (keep % 8)) - 1;
            }
        }
    }

    /// First bits and lengths of what is set, below `count`; `None` if there are more of them than fit into memory.
    pub fn ranges(&self, count: u64) -> Option<Vec<(u64, u64)>> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut add = |at: u64, len: u64| {
            let len = len.min(count.saturating_sub(at));
            match ranges.last_mut() {
                _ if len == 0 => {}
                Some((first, have)) if *first + *have == at => *have += len,
                _ => ranges.push((at, len)),
            }
            ranges.len() <= MAX_RANGES
        };
        for (&n, chunk) in &self.chunks {
            let start = n * CHUNK as u64 * 8;
            let Chunk::Bits(bits) = chunk else {
                if !add(start, CHUNK as u64 * 8) {
                    return None;
                }
                continue;
            };
            for (at, &byte) in (start..).step_by(8).zip(bits.iter()) {
                let fits = match byte {
                    0 => true,
                    0xff => add(at, 8),
                    _ => (0..8).filter(|bit| byte >> bit & 1 != 0).all(|bit| add(at + bit, 1)),
                };
                if !fits {
                    return None;
                }
            }
        }
        Some(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITS: u64 = CHUNK as u64 * 8;

    #[test]
    fn ranges_come_back() {
        let mut bits = Bits::default();
        bits.set(3, 5);
        bits.set(BITS - 1, 3 * BITS + 1);
        assert_eq!(bits.ranges(u64::MAX).unwrap(), [(3, 2), (BITS - 1, 2 * BITS + 2)]);
        assert_eq!(bits.mixed, 2);
        let mut bytes = vec![0; 4 * CHUNK];
        bits.copy(0, &mut bytes);
        let mut again = Bits::default();
        bytes.chunks(512).enumerate().for_each(|(n, part)| again.put(n as u64 * 512, part));
        assert_eq!(again.ranges(u64::MAX), bits.ranges(u64::MAX));
        assert!(bits.is_clear(4 * CHUNK as u64, 1 << 40) && !bits.is_clear(2 * CHUNK as u64, 1));
        bits.truncate(2 * BITS - 3);
        assert_eq!(bits.ranges(u64::MAX).unwrap(), [(3, 2), (BITS - 1, BITS - 2)]);
        bits.truncate(0);
        assert_eq!((bits.ranges(u64::MAX).unwrap().len(), bits.mixed), (0, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut bits = Bits::default();
        for n in 0..2 * MAX_CHUNKS as u64 {
            bits.set(n * BITS + 7, n * BITS + 8);
        }
        assert!(bits.is_full() && bits.mixed == MAX_CHUNKS);
        // What found no space is noted more coarsely, and nothing is lost.
        let ranges = bits.ranges(u64::MAX).unwrap();
        assert_eq!(ranges[0], (7, 1));
        assert_eq!(ranges.last(), Some(&(MAX_CHUNKS as u64 * BITS, MAX_CHUNKS as u64 * BITS)));
        let mut many = Bits::default();
        many.put(0, &[0x55; MAX_RANGES / 2]);
        assert!(many.ranges(u64::MAX).is_none());
    }
}
