//! RISC-V vector instructions.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_isa_riscv::harness::fuzz::vector(data));
