//! Register accesses to UART, interrupt controllers, clock and timers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_platform::fuzz::fuzz_platform(data));
