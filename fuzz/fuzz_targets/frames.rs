//! Bytes of a frame.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backlane_fuzz::blocks::frame(data));
