//! Calls to the built-in SBI firmware.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_isa_riscv::harness::fuzz::sbi(data));
