//! What is done with whole images: copying, comparing, mapping, and changing what they stand on.
//!
//! A job runs inside of [`block_on`](plinth_host::aio::block_on). One that is dropped half-way leaves its target as
//! a crash would; new images have no name until [`OutputFiles::finish`](crate::format::OutputFiles::finish).

mod bench;
mod chain;
mod compact;
mod compare;
mod concat;
mod convert;
mod copy;
mod map;
mod measure;
mod plan;

pub use bench::{BenchOptions, BenchReport, bench};
pub use chain::{commit, rebase_safe};
pub use compact::{CompactReport, punch_zeros};
pub use compare::{CompareOptions, CompareReport, Difference, compare};
pub use concat::Concat;
pub use convert::{ConvertRequest, convert, create, starts_as_zeros};
pub use copy::{CopyOptions, CopyReport, copy};
pub use map::{MapEntry, map};
pub use measure::{Contents, Measured, measure};
