//! Entry point for fuzzing what is read of a disk's contents.

use crate::format::{Sample, probe};
use crate::probe::{not_a_disk, stated_size};

/// Treats `data` as the first bytes of a disk.
pub fn fuzz_disk_head(data: &[u8]) {
    // All are asked on every disk that is opened; any answer is right but a panic.
    let _format = probe(&Sample { head: data, tail: data, len: data.len() as u64, name: "fuzz" });
    let _kind = not_a_disk(data);
    let _size = stated_size(data);
}
