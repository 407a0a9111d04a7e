//! Locks between the processes of one host: one for each slot, one for the coordinator of a pool.
//!
//! They are advisory locks on files of a directory that the processes agree on; the system drops them when their
//! holder dies. Between hosts nothing is ever locked.

use crate::Error;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};
use storage_socket_proto::{PoolId, SlotIndex};

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// The number that the last holder noted, if there is one.
    pub(crate) fn note(&self) -> Result<Option<u64>, Error> {
        let mut text = [0; 16];
        match self.file.read_exact_at(&mut text, 0) {
            Ok(()) => Ok(std::str::from_utf8(&text)
                .ok()
                .and_then(|text| u64::from_str_radix(text, 16).ok())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(source) => Err(self.failed("read the lock", source)),
        }
    }

    /// Notes a number for the next holder, who may come after a loss of power.
    pub(crate) fn set_note(&mut self, number: u64) -> Result<(), Error> {
        self.file
            .write_all_at(format!("{number:016x}").as_bytes(), 0)
            .and_then(|()| self.file.sync_all())
            .map_err(|source| self.failed("write the lock", source))
    }

    fn failed(&self, action: &'static str, source: io::Error) -> Error {
        Error::Os {
            path: self.path.clone(),
            action,
            source,
        }
    }
}

/// What a lock is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Coordinator,
    Slot(SlotIndex),
}

/// The file of a lock.
pub(crate) fn lock_path(directory: &Path, pool: PoolId, purpose: Purpose) -> PathBuf {
    directory.join(match purpose {
        Purpose::Coordinator => format!("{pool}.coordinator.lock"),
        Purpose::Slot(slot) => format!("{pool}.slot-{slot}.lock"),
    })
}

/// Takes the lock, or returns `None` at once when another process holds it.
///
/// # Errors
/// [`Error::Os`] when the directory or file can't be made or opened.
pub(crate) fn try_lock(
    directory: &Path,
    pool: PoolId,
    purpose: Purpose,
) -> Result<Option<Lock>, Error> {
    let failed = |path: &Path, action, source| Error::Os {
        path: path.to_owned(),
        action,
        source,
    };
    fs::create_dir_all(directory)
        .map_err(|source| failed(directory, "make the directory of locks", source))?;
    let path = lock_path(directory, pool, purpose);
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| failed(&path, "open the lock", error.into()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock {
            file: file.into(),
            path,
        })),
        Err(error) if io::Error::from(error).kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(failed(&path, "take the lock", error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_has_one_holder_and_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let take = |purpose| try_lock(directory.path(), PoolId::default(), purpose).unwrap();
        let mut first = take(Purpose::Slot(SlotIndex(3)));
        assert_eq!(first.as_ref().unwrap().note().unwrap(), None);
        first.as_mut().unwrap().set_note(77).unwrap();
        assert!(take(Purpose::Slot(SlotIndex(3))).is_none());
        assert!(take(Purpose::Slot(SlotIndex(4))).is_some());
        assert!(take(Purpose::Coordinator).is_some());
        drop(first);
        let second = take(Purpose::Slot(SlotIndex(3))).unwrap();
        assert_eq!(second.note().unwrap(), Some(77));
    }
}
