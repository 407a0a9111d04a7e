//! What a restore parses, once it is opened; the first byte picks what it is.

#![no_main]

use backlane_repo::fuzzing::{Sealed, parse};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&pick, data)) = data.split_first() else {
        return;
    };
    let what = match pick % 4 {
        0 => Sealed::Tree,
        1 => Sealed::Index,
        2 => Sealed::Snapshot,
        _ => Sealed::Header,
    };
    parse(what, data);
});
