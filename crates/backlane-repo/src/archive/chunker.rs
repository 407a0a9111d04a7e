//! Where a file's content is cut: at places that its bytes alone decide, so that what moved is found again.
//!
//! A hash of the last 64 bytes, moved on by one shift and one sum a byte (a gear hash). A chunk ends where the hash's
//! upper bits are zero. The table follows from the repository's secret: how long chunks are tells a stranger nothing about
//! known files.
//!
//! Invariants: where a chunk ends depends on its bytes and the table, never on how they were read; each has
//! [`BYTES_MIN`] to [`BYTES_MAX`] bytes, the last of a file apart, which may be shorter.

use aws_lc_rs::digest::{Context, SHA256};

/// No chunk but a file's last is shorter. The same as restic's and rustic's: a smaller file is one chunk for all three.
pub(crate) const BYTES_MIN: usize = 512 << 10;

/// No chunk is longer.
pub(crate) const BYTES_MAX: usize = 8 << 20;

/// How many bytes the hash remembers.
const MEMORY_BYTES: usize = 64;

/// One place in 256 Ki ends a chunk: of random bytes they have 768 KiB on average.
const END: u64 = !0 << (64 - 18);

/// A number for each value of a byte.
pub(crate) struct Gear([u64; 256]);

impl Gear {
    /// The table of a repository.
    pub(crate) fn new(secret: &[u8]) -> Self {
        let mut table = [0; 256];
        for (byte, number) in (0u8..=255).zip(&mut table) {
            let mut context = Context::new(&SHA256);
            context.update(b"backlane gear 1");
            context.update(&[byte]);
            context.update(secret);
            let digest = context.finish();
            let mut first = [0; 8];
            first.copy_from_slice(&digest.as_ref()[..8]);
            *number = u64::from_le_bytes(first);
        }
        Self(table)
    }

    fn next(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.0[usize::from(byte)])
    }

    /// Takes in bytes up to the first that ends a chunk; how many that were.
    fn find(&self, hash: &mut u64, bytes: &[u8]) -> Option<usize> {
        let mut now = *hash;
        for (at, &byte) in bytes.iter().enumerate() {
            now = self.next(now, byte);
            if now & END == 0 {
                return Some(at + 1);
            }
        }
        *hash = now;
        None
    }
}

/// The search for the end of one chunk.
#[derive(Default)]
pub(crate) struct Cut {
    hash: u64,
    /// How many bytes of the chunk were looked at.
    at: usize,
}

impl Cut {
    /// Goes on with the search: `bytes` begin with the chunk, and are what is there of it and after it. The chunk's size,
    /// once its end is among them.
    pub(crate) fn find(&mut self, gear: &Gear, bytes: &[u8]) -> Option<usize> {
        let end = bytes.len().min(BYTES_MAX);
        self.at = self.at.max(BYTES_MIN - MEMORY_BYTES);
        // Nothing ends before the shortest chunk does.
        let early = self.at.min(end)..BYTES_MIN.min(end);
        self.at = self.at.max(early.end);
        for &byte in bytes.get(early).unwrap_or_default() {
            self.hash = gear.next(self.hash, byte);
        }
        let late = bytes.get(self.at..end).unwrap_or_default();
        if let Some(size) = gear.find(&mut self.hash, late) {
            return Some(self.at + size);
        }
        self.at = self.at.max(end);
        (end == BYTES_MAX).then_some(BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::noise;
    use proptest::prelude::{ProptestConfig, any, proptest};
    use std::collections::HashSet;

    /// The sizes of the chunks of `bytes`, which come in steps.
    fn sizes(gear: &Gear, bytes: &[u8], mut step: impl FnMut() -> usize) -> Vec<usize> {
        let (mut sizes, mut start, mut there) = (Vec::new(), 0, 0);
        let mut cut = Cut::default();
        while start < bytes.len() {
            match cut.find(gear, &bytes[start..there]) {
                Some(size) => {
                    sizes.push(size);
                    start += size;
                    cut = Cut::default();
                }
                None if there == bytes.len() => {
                    sizes.push(there - start);
                    start = there;
                }
                None => there = (there + step().max(1)).min(bytes.len()),
            }
        }
        sizes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn boundaries_follow_from_the_content_alone(seed in any::<u64>(), length in 0usize..12 << 20, steps in proptest::collection::vec(1usize..3 << 20, 1..8)) {
            let gear = Gear::new(b"secret");
            let bytes = noise(seed, length);
            let whole = sizes(&gear, &bytes, || length);
            let mut turn = steps.iter().cycle();
            let parts = sizes(&gear, &bytes, || *turn.next().unwrap());
            assert_eq!(whole, parts);
            assert_eq!(whole.iter().sum::<usize>(), length);
            for size in &whole[..whole.len().saturating_sub(1)] {
                assert!((BYTES_MIN..=BYTES_MAX).contains(size), "{size}");
            }
        }
    }

    #[test]
    fn what_moved_is_cut_at_the_same_places() {
        let gear = Gear::new(b"secret");
        let old = noise(1, 48 << 20);
        let new = [noise(2, 12_345), old.clone()].concat();
        let ends = |bytes: &[u8]| {
            let mut at = 0;
            let sizes = sizes(&gear, bytes, || bytes.len());
            let ends = sizes.into_iter().map(|size| {
                at += size;
                bytes.len() - at
            });
            ends.collect::<HashSet<_>>()
        };
        let (old, new) = (ends(&old), ends(&new));
        assert!(old.len() > 20, "{}", old.len());
        assert!(
            old.intersection(&new).count() + 3 > old.len(),
            "{old:?} {new:?}"
        );
    }

    #[test]
    fn chunks_have_three_quarters_of_a_mebibyte_on_average() {
        let bytes = noise(4, 48 << 20);
        let sizes = sizes(&Gear::new(b"secret"), &bytes, || bytes.len());
        assert!((58..=70).contains(&sizes.len()), "{}", sizes.len());
    }

    #[test]
    fn runs_and_secrets() {
        let gear = Gear::new(b"secret");
        let zeros = vec![0; 40 << 20];
        let sizes_of_zeros = sizes(&gear, &zeros, || 1 << 20);
        let different: HashSet<_> = sizes_of_zeros.iter().collect();
        assert!(different.len() <= 2, "{different:?}");
        let other = Gear::new(b"another secret");
        let bytes = noise(3, 16 << 20);
        let all = || bytes.len();
        assert_ne!(sizes(&gear, &bytes, all), sizes(&other, &bytes, all));
    }
}
