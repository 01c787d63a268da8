//! A qcow2 image.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_image::fuzz::fuzz_qcow2(data));
