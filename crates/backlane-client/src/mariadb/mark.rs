//! What a restored server's directory says of itself.
//!
//! Invariant: binary logs are replayed into a restore once. One that was interrupted may have done a part of it, and another
//! would do that part again.

use crate::error::Error;
use backlane_source::mariadb::PhysicalBackup;
use jiff::Timestamp;
use rustix::fs::syncfs;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

/// The file, among those of the server, which doesn't look at it.
const NAME: &str = "backlane-restored.json";

/// Which backup a directory is restored from, and what was done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The snapshot.
    pub(super) snapshot: String,
    /// What it is.
    pub(super) backup: PhysicalBackup,
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
        let text = fs::read(&path).map_err(|source| match source.kind() {
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

    /// Writes it, durably. Its owner stays who it was.
    pub(super) fn write(&self, data_directory: &Path) -> Result<(), Error> {
        let path = data_directory.join(NAME);
        let written = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(&serde_json::to_vec(self)?)?;
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
        let text = r#"MariaDB {"version":"10","data_directory":"/d","binlog":null,
            "began":"2026-01-31T12:09:00Z","ended":"2026-01-31T12:10:00Z"}"#;
        let mut mark = Mark {
            snapshot: "0123".to_owned(),
            backup: PhysicalBackup::from_description(text).unwrap(),
            replay: None,
        };
        mark.write(directory.path()).unwrap();
        mark.replay = Some(Replayed {
            until: "latest".to_owned(),
            ended: None,
        });
        mark.write(directory.path()).unwrap();
        assert_eq!(Mark::read(directory.path()).unwrap(), mark);
        fs::write(directory.path().join(NAME), "{").unwrap();
        let broken = Mark::read(directory.path()).unwrap_err();
        assert!(matches!(broken, Error::Mark { .. }), "{broken}");
    }
}
