//! Lists of operations for two connection machines over one medium.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backlane_fuzz::connection::operations(data));
