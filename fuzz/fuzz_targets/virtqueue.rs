//! Rings and descriptor chains as a guest writes them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_virtio::fuzz_virtqueue(data));
