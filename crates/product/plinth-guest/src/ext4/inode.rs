//! Inodes.

use super::BLOCK;
use super::layout::{INODE_LEN, put16, put32};
use crate::tree::{Kind, Meta};

const FLAG_EXTENTS: u64 = 0x8_0000;
/// Symbolic links shorter than this are in the inode.
const FAST_LINK: usize = 60;

/// The type bits of `i_mode`.
pub(super) const TYPE_FIFO: u16 = 0o010_000;
pub(super) const TYPE_CHAR: u16 = 0o020_000;
pub(super) const TYPE_DIRECTORY: u16 = 0o040_000;
pub(super) const TYPE_BLOCK: u16 = 0o060_000;
pub(super) const TYPE_REGULAR: u16 = 0o100_000;
pub(super) const TYPE_SYMLINK: u16 = 0o120_000;

/// What an inode has in `i_block`.
pub(super) enum Body {
    /// An extent map, with the bytes of content and the blocks taken by both.
    Extents { map: [u8; 60], len: u64, blocks: u64 },
    /// The target of a short symbolic link.
    Link(Vec<u8>),
    /// A device number.
    Device(u32, u32),
    /// Nothing.
    Empty,
}

/// An inode to write.
pub(super) struct Inode {
    pub file_type: u16,
    pub meta: Meta,
    pub links: u64,
    pub body: Body,
}

impl Inode {
    pub fn encode(&self) -> [u8; INODE_LEN] {
        let mut out = [0; INODE_LEN];
        let (uid, gid) = (u64::from(self.meta.uid), u64::from(self.meta.gid));
        put16(&mut out, 0, u64::from(self.file_type | (self.meta.mode & 0o7777)));
        put16(&mut out, 2, uid);
        put16(&mut out, 24, gid);
        put16(&mut out, 120, uid >> 16);
        put16(&mut out, 122, gid >> 16);
        // Two more bits of the seconds are in the low bits of the extra fields.
        let time = self.meta.mtime.clamp(0, (1 << 34) - 1).cast_unsigned();
        let epoch = (time + (1 << 31)) >> 32;
        for at in [8, 12, 16, 144] {
            put32(&mut out, at, time);
        }
        for at in [132, 136, 140, 148] {
            put32(&mut out, at, epoch);
        }
        put16(&mut out, 26, self.links);
        put16(&mut out, 128, 32); // i_extra_isize
        match &self.body {
            Body::Extents { map, len, blocks } => {
                put32(&mut out, 4, *len);
                put32(&mut out, 108, len >> 32);
                let sectors = blocks * (BLOCK / 512);
                put32(&mut out, 28, sectors);
                put16(&mut out, 116, sectors >> 32);
                put32(&mut out, 32, FLAG_EXTENTS);
                out[40..100].copy_from_slice(map);
            }
            Body::Link(target) => {
                put32(&mut out, 4, target.len() as u64);
                out[40..40 + target.len()].copy_from_slice(target);
            }
            Body::Device(major, minor) if *major < 256 && *minor < 256 => {
                put32(&mut out, 40, u64::from(major << 8 | minor));
            }
            Body::Device(major, minor) => {
                put32(&mut out, 44, u64::from((minor & 0xff) | major << 8 | (minor & !0xff) << 12));
            }
            Body::Empty => {}
        }
        out
    }
}

/// The type bits of a node.
pub(super) fn file_type<S>(kind: &Kind<S>) -> u16 {
    match kind {
        Kind::Directory(_) => TYPE_DIRECTORY,
        Kind::File(_) => TYPE_REGULAR,
        Kind::Symlink(_) => TYPE_SYMLINK,
        Kind::CharDevice(..) => TYPE_CHAR,
        Kind::BlockDevice(..) => TYPE_BLOCK,
        Kind::Fifo => TYPE_FIFO,
    }
}

/// Can the target stand in the inode?
pub(super) fn is_fast_link(target: &[u8]) -> bool {
    target.len() < FAST_LINK
}
