//! The seed of what is drawn: given, or that of the commit.

use std::process::Command;

use anyhow::{Context, Result};

/// The seed that follows from the commit that is checked out: what one run of CI tries is not what the next one tries,
/// and can be tried again.
///
/// # Errors
/// When git can't say.
pub fn commit_seed() -> Result<u64> {
    let mut git = Command::new("git");
    git.args(["rev-parse", "--short=8", "HEAD"]);
    git.current_dir(env!("CARGO_MANIFEST_DIR"));
    let name = crate::output(&mut git).context("no seed was given, and git names no commit")?;
    let digits = name.get(..8).context("a commit's name is too short")?;
    Ok(u64::from_str_radix(digits, 16)?)
}
