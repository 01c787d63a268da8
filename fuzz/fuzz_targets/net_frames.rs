//! Frames that a guest sends into the user network.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plinth_net::fuzzing::fuzz_frames(data));
