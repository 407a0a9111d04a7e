//! Directories for what a job needs on this machine's disk for a while.
//!
//! Invariant: what a killed job has left goes with the next one that makes such a directory, and what a job is at stays.

use rustix::fs::{FlockOperation, OFlags, flock};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::Path,
};
use tempfile::TempDir;

/// The file in such a directory that its job keeps locked.
const HELD: &str = "held";

/// A directory of a job's own, which goes with this.
pub(crate) struct Scratch {
    directory: TempDir,
    _held: File,
}

impl Scratch {
    /// A new one in `directory`, from which those are removed that killed jobs have left; the names of both begin with
    /// `prefix`.
    pub(crate) fn new(directory: &Path, prefix: &str) -> io::Result<Self> {
        let try_lock = |file: &File| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok();
        let mut open = OpenOptions::new();
        // Others may write where this is.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        open.write(true).custom_flags(flags.bits().cast_signed());
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_name().as_bytes().starts_with(prefix.as_bytes())
                && let Ok(held) = open.open(path.join(HELD))
                && try_lock(&held)
                && let Err(error) = fs::remove_dir_all(&path)
            {
                tracing::warn!(path = %path.display(), %error, "what a job has left stays");
            }
        }
        let directory = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(directory)?;
        let name = directory.path().join(HELD);
        let unlocked = name.with_extension("new");
        let held = File::create_new(&unlocked)?;
        // Under its name it is locked: who can lock it finds that the job is over.
        if try_lock(&held) {
            fs::rename(unlocked, name)?;
        }
        Ok(Self {
            directory,
            _held: held,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_job_has_left_is_removed_and_what_another_is_at_stays() {
        let state = tempfile::tempdir().unwrap();
        let left = state.path().join("binlogs-left");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("binlog.000001"), "1").unwrap();
        fs::write(left.join(HELD), "").unwrap();
        // Of nobody knows whom.
        let unknown = state.path().join("binlogs-unknown");
        fs::create_dir(&unknown).unwrap();
        fs::write(state.path().join("repository.key"), "k").unwrap();
        let first = Scratch::new(state.path(), "binlogs-").unwrap();
        let second = Scratch::new(state.path(), "binlogs-").unwrap();
        assert!(!left.exists() && unknown.exists() && state.path().join("repository.key").exists());
        assert!(first.path().exists() && second.path().exists());
    }
}
