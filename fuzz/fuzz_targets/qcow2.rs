//! A qcow2 image.

#![no_main]

use plinth_image::format::Format;

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_image::fuzz::fuzz_changes(Format::Qcow2, data));
