//! RISC-V page tables and physical memory protection.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_isa_riscv::harness::fuzz::pages(data));
