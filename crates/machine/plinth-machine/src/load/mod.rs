//! Loaders: what a boot file is, and getting it into guest RAM. Files are not trusted: every length in
//! them is checked against the file and against RAM before it is used.

mod content;
mod elf;
mod kind;

pub(crate) use content::Content;
pub(crate) use elf::load_elf;
pub(crate) use kind::HEAD;
pub use kind::{Compression, ImageHeader, Kind, identify};

/// Where a program came to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Address of its first instruction.
    pub entry: u64,
    /// First address after it.
    pub end: u64,
    /// Address of its `tohost` symbol (the host-target interface of bare test programs).
    pub tohost: Option<u64>,
}
