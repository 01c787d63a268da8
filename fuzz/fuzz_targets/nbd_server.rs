//! What an NBD client sends.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_nbd::fuzz::fuzz_nbd_server(data));
