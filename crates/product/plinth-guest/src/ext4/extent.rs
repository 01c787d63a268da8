//! Extents: which blocks of the image hold a file.

use super::layout::{put16, put32};
use super::{BLOCK, BLOCK_LEN};

const MAGIC: u64 = 0xf30a;
/// Blocks one extent can cover.
const EXTENT_BLOCKS: u64 = 32_768;
/// Entries that fit into an inode, and into a block.
const IN_INODE: usize = 4;
const IN_BLOCK: usize = (BLOCK_LEN - 12) / 12;

/// Content in the image: its runs of blocks and its length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents {
    /// First block and number of blocks, in the order of the content.
    pub(super) runs: Vec<(u64, u64)>,
    /// Bytes.
    pub(super) len: u64,
}

impl Extents {
    /// Blocks taken by the content.
    pub(super) fn blocks(&self) -> u64 {
        self.runs.iter().map(|(_, n)| n).sum()
    }

    /// Byte ranges of the image that hold the content: offset and length.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut left = self.len;
        self.runs.iter().map(move |(block, n)| {
            let len = left.min(n * BLOCK);
            left -= len;
            (block * BLOCK, len)
        })
    }
}

/// The map in an inode's `i_block`, and the blocks of the tree below it.
pub(super) struct ExtentMap {
    pub root: [u8; 60],
    /// Leaf blocks and their content.
    pub leaves: Vec<(u64, Vec<u8>)>,
}

impl ExtentMap {
    /// Lays out the map. `allocate` gives a block for each leaf; `None` when there are too many runs for
    /// a tree of one level (over 170 GB of the most scattered kind) or no block is left.
    pub fn new(extents: &Extents, allocate: &mut dyn FnMut() -> Option<u64>) -> Option<Self> {
        let mut entries = Vec::new();
        let mut logical = 0;
        for (start, blocks) in &extents.runs {
            let mut done = 0;
            while done < *blocks {
                let len = (blocks - done).min(EXTENT_BLOCKS);
                entries.push((logical, start + done, len));
                logical += len;
                done += len;
            }
        }
        let mut root = [0; 60];
        let mut leaves = Vec::new();
        if entries.len() <= IN_INODE {
            header(&mut root, entries.len(), IN_INODE, 0);
            for (i, entry) in entries.iter().enumerate() {
                leaf_entry(&mut root[12 + i * 12..], *entry);
            }
        } else {
            let chunks: Vec<_> = entries.chunks(IN_BLOCK).collect();
            if chunks.len() > IN_INODE {
                return None;
            }
            header(&mut root, chunks.len(), IN_INODE, 1);
            for (i, chunk) in chunks.into_iter().enumerate() {
                let block = allocate()?;
                let mut leaf = vec![0; BLOCK_LEN];
                header(&mut leaf, chunk.len(), IN_BLOCK, 0);
                for (j, entry) in chunk.iter().enumerate() {
                    leaf_entry(&mut leaf[12 + j * 12..], *entry);
                }
                let index = &mut root[12 + i * 12..];
                put32(index, 0, chunk[0].0);
                put32(index, 4, block);
                put16(index, 8, block >> 32);
                leaves.push((block, leaf));
            }
        }
        Some(Self { root, leaves })
    }
}

fn header(bytes: &mut [u8], entries: usize, most: usize, depth: u64) {
    put16(bytes, 0, MAGIC);
    put16(bytes, 2, entries as u64);
    put16(bytes, 4, most as u64);
    put16(bytes, 6, depth);
}

fn leaf_entry(bytes: &mut [u8], (logical, start, len): (u64, u64, u64)) {
    put32(bytes, 0, logical);
    put16(bytes, 4, len);
    put16(bytes, 6, start >> 32);
    put32(bytes, 8, start);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_every_depth() {
        let mut next = 1000;
        let mut allocate = || {
            next += 1;
            Some(next)
        };
        let scattered =
            |n: u64| Extents { runs: (0..n).map(|i| (i * 2 + 10_000, 1)).collect(), len: n * BLOCK };
        for (runs, leaves) in [(0, 0), (1, 0), (4, 0), (5, 1), (340, 1), (341, 2), (1360, 4)] {
            let map = ExtentMap::new(&scattered(runs), &mut allocate).unwrap();
            assert_eq!(map.leaves.len(), leaves, "{runs} runs");
        }
        assert!(ExtentMap::new(&scattered(1361), &mut allocate).is_none());
        // A long run takes several extents.
        let long = Extents { runs: vec![(5, 100_000)], len: 100_000 * BLOCK };
        assert_eq!(ExtentMap::new(&long, &mut allocate).unwrap().root[2], 4);
    }
}
