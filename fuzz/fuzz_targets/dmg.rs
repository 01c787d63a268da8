//! The first bytes of a disk.

#![no_main]

use plinth_image::format::Format;

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_image::fuzz::fuzz_changes(Format::Dmg, data));
