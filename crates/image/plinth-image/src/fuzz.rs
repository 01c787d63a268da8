//! Entry point for fuzzing what is read of a disk's contents.

use crate::probe::{probe, stated_size};

/// Treats `data` as the first bytes of a disk.
pub fn fuzz_disk_head(data: &[u8]) {
    // Both are asked on every disk that is opened; any answer is right but a panic.
    let _format = probe(data);
    let _size = stated_size(data);
}
