//! Plain data to move, where what it looks like doesn't matter.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Bytes of each file that [`plant`] makes.
const FILE_BYTES: u64 = 8 << 20;

/// Fills `dir`, which is made, with files of together `bytes` that can neither be compressed nor deduplicated; another
/// `seed` gives other bytes.
///
/// # Errors
/// When they can't be written.
pub fn plant(dir: &Path, bytes: u64, seed: u64) -> Result<()> {
    let shown = || format!("planting data in {}", dir.display());
    fs::create_dir_all(dir).with_context(shown)?;
    let mut random = fidelity::Random::new(seed);
    let mut left = bytes;
    for number in 0.. {
        if left == 0 {
            break;
        }
        let len = left.min(FILE_BYTES);
        let content = random.bytes(usize::try_from(len)?);
        fs::write(dir.join(format!("data-{number:04}")), content).with_context(shown)?;
        left -= len;
    }
    Ok(())
}

/// Fails if the witness sees any difference between two trees.
///
/// # Errors
/// With the first of the differences, or when a tree can't be read.
pub fn same(first: &Path, second: &Path) -> Result<()> {
    const SHOWN_MAX: usize = 40;
    let found = fidelity::compare(first, second)?;
    let shown: Vec<_> = found
        .iter()
        .take(SHOWN_MAX)
        .map(ToString::to_string)
        .collect();
    anyhow::ensure!(
        found.is_empty(),
        "{} differences between {} and {}:\n{}",
        found.len(),
        first.display(),
        second.display(),
        shown.join("\n")
    );
    Ok(())
}
