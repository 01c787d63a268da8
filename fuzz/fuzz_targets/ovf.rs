//! The envelope of a package of virtual machines.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_image::fuzz::fuzz_ovf_changes(data));
