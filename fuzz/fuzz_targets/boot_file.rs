//! Kernels and firmware: images, compressed ones, ELF programs.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_machine::fuzz::fuzz_boot_file(data));
