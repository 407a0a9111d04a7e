//! The steps of a backup, each on one thread: `cargo bench -p backlane-repo --bench stages`.

use backlane_repo::stages::Stages;
use divan::{Bencher, black_box, counter::BytesCount};

/// One blob of the usual size.
const BYTES: usize = 1 << 20;

/// What can't be compressed, and what can: words of a thousand, as in the table beside other tools.
const KINDS: [&str; 2] = ["noise", "words"];

fn main() {
    divan::main();
}

fn content(kind: &str) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(BYTES + 16);
    while bytes.len() < BYTES {
        match kind {
            "noise" => bytes.extend(next().to_le_bytes()),
            _ => bytes.extend(format!("{:x} ", (next() % 1000) * 7919).bytes()),
        }
    }
    bytes.truncate(BYTES);
    bytes
}

fn step<T>(bencher: Bencher<'_, '_>, kind: &str, run: impl Fn(&mut Stages, &[u8]) -> T) {
    let bytes = content(kind);
    let mut stages = Stages::new().expect("memory");
    bencher
        .counter(BytesCount::new(BYTES))
        .bench_local(|| run(&mut stages, black_box(&bytes)));
}

#[divan::bench(args = KINDS)]
fn cut(bencher: Bencher<'_, '_>, kind: &str) {
    step(bencher, kind, |stages, bytes| stages.cut(bytes));
}

#[divan::bench(args = KINDS)]
fn hash(bencher: Bencher<'_, '_>, kind: &str) {
    step(bencher, kind, |stages, bytes| stages.hash(bytes));
}

#[divan::bench(args = KINDS)]
fn compress(bencher: Bencher<'_, '_>, kind: &str) {
    step(bencher, kind, Stages::compress);
}

#[divan::bench(args = KINDS)]
fn seal(bencher: Bencher<'_, '_>, kind: &str) {
    step(bencher, kind, Stages::seal);
}
