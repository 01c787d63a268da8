//! Register accesses to virtio devices over MMIO and PCI.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_virtio::fuzz_transport(data));
