//! Where things are in the image: block groups, superblock and group descriptors.

use super::{BLOCK, BLOCK_LEN};
use crate::error::{GuestError, Result};

/// Blocks of a group: as many as one bitmap block has bits.
pub(super) const GROUP_BLOCKS: u64 = BLOCK * 8;
/// Bytes of an inode.
pub(super) const INODE_LEN: usize = 256;
const INODES_PER_BLOCK: u64 = BLOCK / INODE_LEN as u64;
/// Bytes of a group descriptor without the `64bit` feature.
const DESCRIPTOR_LEN: usize = 32;
/// Bytes of the image per inode. Debian's packages have files of 30 KB on average, a user's own trees
/// often have smaller ones, and an unused table is a hole.
const BYTES_PER_INODE: u64 = 8192;
/// Smaller than this an image has no room for a journal and a system.
const SMALLEST: u64 = 16 << 20;
/// Block numbers are 32 bits wide without the `64bit` feature.
const LARGEST: u64 = 8 << 40;
/// A last group with less room for data than this is left out.
const SMALLEST_GROUP: u64 = 64;

/// The first inode that is not reserved; `lost+found` gets it, as everywhere.
pub(super) const FIRST_INODE: u32 = 11;
/// The inode of the root directory.
pub(super) const ROOT_INODE: u32 = 2;
/// The inode of the journal.
pub(super) const JOURNAL_INODE: u32 = 8;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_EXT_ATTR: u32 = 0x8;
const COMPAT_DIR_INDEX: u32 = 0x20;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_EXTENTS: u32 = 0x40;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_LARGE_FILE: u32 = 0x2;
const RO_COMPAT_DIR_NLINK: u32 = 0x20;
const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;

/// Refuses sizes that no image can have.
pub fn check_size(size: u64) -> Result<()> {
    Layout::new(size).map(drop)
}

/// What kind of file system to make.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of the image.
    pub size: u64,
    /// The volume's name; the first 16 bytes count.
    pub label: String,
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// The time everything in it was made, seconds since 1970.
    pub time: i64,
}

/// Sizes and places derived from [`Options`].
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Blocks of the file system.
    pub blocks: u64,
    /// Block groups.
    pub groups: u64,
    /// Inodes of each group.
    pub inodes_per_group: u64,
    /// Blocks of the group descriptor table.
    descriptor_blocks: u64,
    /// Blocks of the journal.
    pub journal_blocks: u64,
}

/// What is used in one group.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GroupUse {
    pub free_blocks: u64,
    pub free_inodes: u64,
    pub directories: u64,
}

/// Values of the superblock that only the finished tree gives.
pub(super) struct Totals {
    pub free_blocks: u64,
    pub free_inodes: u64,
    /// `i_block` of the journal and its size, kept twice as `mke2fs` does.
    pub journal_map: [u8; 60],
}

impl Layout {
    pub fn new(size: u64) -> Result<Self> {
        if size < SMALLEST {
            return Err(GuestError::ImageFull {
                needed: format!("{size} bytes, at least 16 MiB are needed"),
            });
        }
        if size > LARGEST {
            return Err(GuestError::Invalid("an image can have 8 TiB at most".into()));
        }
        let mut blocks = size / BLOCK;
        loop {
            let groups = blocks.div_ceil(GROUP_BLOCKS);
            let inodes = (size / BYTES_PER_INODE).max(1024);
            let inodes_per_group =
                inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK).min(GROUP_BLOCKS);
            let layout = Self {
                blocks,
                groups,
                inodes_per_group,
                descriptor_blocks: (groups * DESCRIPTOR_LEN as u64).div_ceil(BLOCK),
                journal_blocks: journal_blocks(blocks),
            };
            let last = layout.groups - 1;
            let (start, end) = (layout.data_start(last), layout.group_end(last));
            if end >= start + SMALLEST_GROUP || last == 0 {
                return Ok(layout);
            }
            blocks = last * GROUP_BLOCKS;
        }
    }

    pub fn inodes(&self) -> u64 {
        self.groups * self.inodes_per_group
    }

    pub fn inode_table_blocks(&self) -> u64 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    pub fn group_start(&self, group: u64) -> u64 {
        group * GROUP_BLOCKS
    }

    pub fn group_end(&self, group: u64) -> u64 {
        ((group + 1) * GROUP_BLOCKS).min(self.blocks)
    }

    /// Copies of the superblock are in groups 0, 1 and the powers of 3, 5 and 7 (`sparse_super`).
    pub fn has_superblock(&self, group: u64) -> bool {
        let power_of = |base: u64| {
            let mut n = base;
            while n < group {
                n *= base;
            }
            n == group
        };
        group <= 1 || [3, 5, 7].into_iter().any(power_of)
    }

    pub fn block_bitmap(&self, group: u64) -> u64 {
        let super_blocks = if self.has_superblock(group) { 1 + self.descriptor_blocks } else { 0 };
        self.group_start(group) + super_blocks
    }

    pub fn inode_bitmap(&self, group: u64) -> u64 {
        self.block_bitmap(group) + 1
    }

    pub fn inode_table(&self, group: u64) -> u64 {
        self.block_bitmap(group) + 2
    }

    /// The first block of a group that is free for files.
    pub fn data_start(&self, group: u64) -> u64 {
        self.inode_table(group) + self.inode_table_blocks()
    }

    /// Byte offset of an inode in the image.
    pub fn inode_offset(&self, inode: u32) -> u64 {
        let index = u64::from(inode) - 1;
        let table = self.inode_table(index / self.inodes_per_group);
        table * BLOCK + index % self.inodes_per_group * INODE_LEN as u64
    }

    /// The group descriptor table, padded to blocks.
    pub fn descriptors(&self, uses: &[GroupUse]) -> Vec<u8> {
        let mut table = vec![0; usize::try_from(self.descriptor_blocks * BLOCK).unwrap_or_default()];
        for (group, (used, entry)) in (0..).zip(uses.iter().zip(table.chunks_exact_mut(DESCRIPTOR_LEN))) {
            put32(entry, 0, self.block_bitmap(group));
            put32(entry, 4, self.inode_bitmap(group));
            put32(entry, 8, self.inode_table(group));
            put16(entry, 12, used.free_blocks);
            put16(entry, 14, used.free_inodes);
            put16(entry, 16, used.directories);
        }
        table
    }

    /// The superblock as it stands in `group`: 1024 bytes.
    pub fn superblock(&self, options: &Options, totals: &Totals, group: u64) -> Vec<u8> {
        let mut sb = vec![0; 1024];
        let time = u64::try_from(options.time).unwrap_or_default();
        put32(&mut sb, 0, self.inodes());
        put32(&mut sb, 4, self.blocks);
        put32(&mut sb, 8, self.blocks / 100); // for root alone
        put32(&mut sb, 12, totals.free_blocks);
        put32(&mut sb, 16, totals.free_inodes);
        put32(&mut sb, 24, 2); // block size: 1024 << 2
        put32(&mut sb, 28, 2); // cluster size
        put32(&mut sb, 32, GROUP_BLOCKS);
        put32(&mut sb, 36, GROUP_BLOCKS);
        put32(&mut sb, 40, self.inodes_per_group);
        put32(&mut sb, 48, time); // last write
        put16(&mut sb, 54, 0xffff); // no check after a number of mounts
        put16(&mut sb, 56, 0xef53);
        put16(&mut sb, 58, 1); // clean
        put16(&mut sb, 60, 1); // on errors go on
        put32(&mut sb, 64, time); // last check
        put32(&mut sb, 76, 1); // revision
        put32(&mut sb, 84, u64::from(FIRST_INODE));
        put16(&mut sb, 88, INODE_LEN as u64);
        put16(&mut sb, 90, group);
        put32(&mut sb, 92, u64::from(COMPAT_HAS_JOURNAL | COMPAT_EXT_ATTR | COMPAT_DIR_INDEX));
        put32(&mut sb, 96, u64::from(INCOMPAT_FILETYPE | INCOMPAT_EXTENTS));
        let ro = RO_COMPAT_SPARSE_SUPER | RO_COMPAT_LARGE_FILE | RO_COMPAT_DIR_NLINK | RO_COMPAT_EXTRA_ISIZE;
        put32(&mut sb, 100, u64::from(ro));
        sb[104..120].copy_from_slice(&options.uuid);
        let label = &options.label.as_bytes()[..options.label.len().min(16)];
        sb[120..120 + label.len()].copy_from_slice(label);
        put32(&mut sb, 224, u64::from(JOURNAL_INODE));
        // The seed of the directory hash has only to differ between file systems.
        sb[236..252].copy_from_slice(&options.uuid);
        sb[252] = 1; // half MD4
        sb[253] = 1; // the journal's map is kept below
        put32(&mut sb, 256, 0xc); // mount with user_xattr and acl
        put32(&mut sb, 264, time); // made
        sb[268..328].copy_from_slice(&totals.journal_map);
        put32(&mut sb, 268 + 16 * 4, self.journal_blocks * BLOCK);
        put32(&mut sb, 268 + 15 * 4, (self.journal_blocks * BLOCK) >> 32);
        put16(&mut sb, 348, 32); // smallest i_extra_isize
        put16(&mut sb, 350, 32); // wanted i_extra_isize
        put32(&mut sb, 352, 1); // hashes of signed characters
        sb
    }
}

/// The size `mke2fs` would choose, for the same reasons.
fn journal_blocks(blocks: u64) -> u64 {
    match blocks {
        0..32_768 => 1024,
        32_768..262_144 => 4096,
        262_144..524_288 => 8192,
        524_288..4_194_304 => 16_384,
        _ => 32_768,
    }
}

/// The superblock of an empty journal of the second version (jbd2), whose numbers are big-endian.
pub(super) fn journal_superblock(blocks: u64, uuid: &[u8; 16]) -> Vec<u8> {
    let mut sb = vec![0; BLOCK_LEN];
    let mut put = |at: usize, value: u64| {
        sb[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
    };
    put(0, 0xc03b_3998); // magic
    put(4, 4); // superblock, second version
    put(12, BLOCK);
    put(16, blocks);
    put(20, 1); // first block of the log
    put(24, 1); // first transaction expected
    put(28, 0); // the log is empty
    put(64, 1); // file systems using it
    sb[48..64].copy_from_slice(uuid);
    sb
}

/// Writes the low 16 bits, little-endian.
pub(super) fn put16(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
}

/// Writes the low 32 bits, little-endian.
pub(super) fn put32(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblock_copies() {
        let layout = Layout::new(64 << 30).unwrap();
        let copies: Vec<_> = (0..100).filter(|g| layout.has_superblock(*g)).collect();
        assert_eq!(copies, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81]);
    }

    #[test]
    fn groups_have_room_for_their_tables() {
        for size in (16..700).map(|mib| mib << 20).chain([2 << 30, (2 << 30) + 12_345, 3 << 40]) {
            let layout = Layout::new(size).unwrap();
            assert!(layout.blocks * BLOCK <= size);
            for group in [0, layout.groups / 2, layout.groups - 1] {
                assert!(layout.data_start(group) < layout.group_end(group), "{size} {group}");
            }
            assert!(layout.inodes() >= 1024);
        }
        assert!(Layout::new(1 << 20).is_err());
        assert!(Layout::new(u64::MAX).is_err());
    }
}
