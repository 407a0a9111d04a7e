//! What a restored server's directory says of itself.
//!
//! Invariant: binary logs are replayed into a restore once. One that was interrupted may have done a part of it, and another
//! would do that part again.

use crate::error::Error;
use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Gid, OFlags, Uid, fchown, statat, syncfs};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The file, among those of the server, which doesn't look at it.
const NAME: &str = "backlane-restored.json";

/// Where it is written before it has that name.
const NEW_NAME: &str = "backlane-restored.json.new";

/// Which backup a directory is restored from, and what was done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The snapshot.
    pub(super) snapshot: String,
    /// The replay that was begun.
    pub(super) replay: Option<Replayed>,
}

/// A replay that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replayed {
    /// To which moment.
    pub(super) until: String,
    /// When it had done all; `None` if it hasn't.
    pub(super) ended: Option<Timestamp>,
}

impl Mark {
    /// Reads what a server's directory says.
    pub(super) fn read(data_directory: &Path) -> Result<Self, Error> {
        let path = data_directory.join(NAME);
        // The directory may be another user's, who may have put a link there.
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let mut text = Vec::new();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&path);
        let read = opened.and_then(|mut file| file.read_to_end(&mut text));
        read.map_err(|source| match source.kind() {
            ErrorKind::NotFound => Error::NotRestored {
                path: data_directory.to_owned(),
            },
            _ => Error::Mark {
                path: path.clone(),
                source,
            },
        })?;
        serde_json::from_slice(&text).map_err(|error| Error::Mark {
            path,
            source: error.into(),
        })
    }

    /// Writes it, durably, and whole or not at all. It belongs to whom the directory belongs to.
    pub(super) fn write(&self, data_directory: &Path) -> Result<(), Error> {
        let path = data_directory.join(NAME);
        let written = || -> io::Result<()> {
            let new = data_directory.join(NEW_NAME);
            match fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut make = OpenOptions::new();
            make.write(true).create_new(true).mode(0o600);
            let mut file = make.open(&new)?;
            let owner = statat(CWD, data_directory, AtFlags::empty())?;
            fchown(
                &file,
                Some(Uid::from_raw(owner.st_uid)),
                Some(Gid::from_raw(owner.st_gid)),
            )?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            syncfs(&file)?;
            Ok(())
        };
        written().map_err(|source| Error::Mark {
            path: PathBuf::from(&path),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_knows_what_was_done_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let none = Mark::read(directory.path()).unwrap_err();
        assert!(matches!(none, Error::NotRestored { .. }), "{none}");
        let mut mark = Mark {
            snapshot: "0123".to_owned(),
            replay: None,
        };
        mark.write(directory.path()).unwrap();
        mark.replay = Some(Replayed {
            until: "latest".to_owned(),
            ended: None,
        });
        mark.write(directory.path()).unwrap();
        assert_eq!(Mark::read(directory.path()).unwrap(), mark);
        // A link is neither followed nor written through.
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::remove_file(directory.path().join(NAME)).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), directory.path().join(NAME)).unwrap();
        let link = Mark::read(directory.path()).unwrap_err();
        assert!(matches!(link, Error::Mark { .. }), "{link}");
        mark.write(directory.path()).unwrap();
        assert_eq!(Mark::read(directory.path()).unwrap(), mark);
        assert_eq!(elsewhere.as_file().metadata().unwrap().len(), 0);
        fs::write(directory.path().join(NAME), "{").unwrap();
        let broken = Mark::read(directory.path()).unwrap_err();
        assert!(matches!(broken, Error::Mark { .. }), "{broken}");
    }
}
