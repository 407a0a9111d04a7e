//! Messages of a session.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backlane_fuzz::session::message(data));
