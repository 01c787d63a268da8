//! Disk images: block devices over files, in any of the formats that virtual machines keep their disks in.
//!
//! A disk is a graph of [nodes](graph::Node): a [file](graph::FileNode) holds bytes, a [format](format) makes a
//! disk of them, other nodes lie between or above. All of it is asynchronous and runs on one thread
//! ([`plinth_host::aio::block_on`]), with as many requests in flight as their futures.
//! [`disk`] has what a running machine uses from several threads.
//!
//! An image file is hostile: whatever is read from it is checked before anything depends on it.

pub mod disk;
mod error;
pub mod format;
#[doc(hidden)]
pub mod fuzz;
pub mod graph;
pub mod job;
mod probe;
#[doc(hidden)]
pub mod testing;

pub use error::{Error, ErrorKind};
pub use plinth_host::buffer::{IoBuf, IoData};
pub use probe::stated_size;

/// Bytes of a sector: sizes of disks are multiples of it.
pub const SECTOR: u64 = 512;
