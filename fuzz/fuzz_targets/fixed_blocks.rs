//! Bytes of the pool's fixed blocks and control blocks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backlane_fuzz::blocks::fixed_block(data));
