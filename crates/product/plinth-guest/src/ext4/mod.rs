//! Writer of ext4 file systems: makes a complete, clean image of a [`Tree`] in user space.
//!
//! The image is for reading and writing by Linux from its first mount on: extents, directory entries
//! with file types, a journal, 256-byte inodes with nanosecond fields. Directories are linear; with
//! `dir_index` set, Linux indexes those that grow. Checksums of metadata are left out, which Linux
//! accepts. The layout follows the kernel's Documentation/filesystems/ext4.
//!
//! File content goes into the image first ([`ImageWriter::store`], from several threads at once), the
//! tree and all tables at the end ([`ImageWriter::finish`]). What is not written stays a hole of the
//! image file.
//!
//! [`Tree`]: crate::tree::Tree

mod dir;
mod extent;
mod inode;
mod layout;
mod writer;

pub use extent::Extents;
pub use layout::{Options, check_size};
pub use writer::ImageWriter;

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;
/// The same as a length.
pub(crate) const BLOCK_LEN: usize = 4096;
