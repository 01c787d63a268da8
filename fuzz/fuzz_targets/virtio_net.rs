//! Frames and headers of a virtio network card.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_virtio::fuzz_net(data));
