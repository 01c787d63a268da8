//! Requests to a virtio disk.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_virtio::fuzz_blk(data));
