//! Copies of SQLite databases that are in use: what a backup keeps in their place.
//!
//! A copy is made by SQLite's online backup interface, under one read transaction: it is the database as it stood at one
//! moment, with everything that was committed by then and nothing else. In WAL mode writers go on meanwhile; in the other
//! modes they wait, as they would for any reader. Pages stay where they are, so that pages which haven't changed are found
//! again in the repository.

use crate::{error::Error, scratch::Scratch};
use backlane_repo::{Cancel, Time};
use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

/// How long a copy waits for a writer that keeps readers out.
const BUSY_WAIT: Duration = Duration::from_secs(60);
/// Pages between two looks whether the backup was cancelled.
const PAGES_A_STEP: i32 = 2000;
/// What SQLite keeps beside a database. It belongs to the file as it was, and not to the copy.
pub(crate) const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The copies of a backup, by the paths of their databases.
#[derive(Default)]
pub(crate) struct Copies(BTreeMap<PathBuf, Copy>);

/// One database's copy, in a file without a name.
pub(crate) struct Copy {
    file: Arc<File>,
    pub(crate) bytes: u64,
    pub(crate) made_at: Time,
    is_kept: AtomicBool,
}

impl Copies {
    /// Copies databases, whose paths are absolute, to files without names in a directory.
    pub(crate) fn make(
        databases: &[PathBuf],
        directory: &Path,
        cancel: &Cancel,
    ) -> Result<Self, Error> {
        let mut copies = BTreeMap::new();
        for path in databases {
            let copied = copy(path, directory, cancel);
            let copied = copied.map_err(|why| match cancel.is_cancelled() {
                true => Error::Cancelled,
                false => Error::Sqlite {
                    path: path.clone(),
                    directory: directory.to_owned(),
                    why: why.to_string(),
                },
            })?;
            copies.insert(path.clone(), copied);
        }
        Ok(Self(copies))
    }

    /// The copy that stands for a file.
    pub(crate) fn of(&self, path: &Path) -> Option<&Copy> {
        self.0.get(path)
    }

    /// Whether a file belongs to one of the databases as they were.
    pub(crate) fn is_companion(&self, path: &Path) -> bool {
        let bytes = path.as_os_str().as_bytes();
        COMPANIONS.iter().any(|companion| {
            let database = bytes.strip_suffix(companion.as_bytes());
            database.is_some_and(|path| self.0.contains_key(Path::new(OsStr::from_bytes(path))))
        })
    }

    /// The databases that the walk did not come by.
    pub(crate) fn left_out(&self) -> impl Iterator<Item = &Path> {
        let left_out = |(_, copy): &(&PathBuf, &Copy)| !copy.is_kept.load(Ordering::Relaxed);
        self.0
            .iter()
            .filter(left_out)
            .map(|(path, _)| path.as_path())
    }
}

impl Copy {
    /// Its content, from the beginning.
    pub(crate) fn reader(&self) -> Box<dyn Read + Send> {
        self.is_kept.store(true, Ordering::Relaxed);
        Box::new(Reading {
            file: Arc::clone(&self.file),
            at: 0,
        })
    }
}

struct Reading {
    file: Arc<File>,
    at: u64,
}

impl Read for Reading {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read_at(out, self.at)?;
        self.at += bytes as u64;
        Ok(bytes)
    }
}

fn copy(
    path: &Path,
    directory: &Path,
    cancel: &Cancel,
) -> Result<Copy, Box<dyn std::error::Error>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(path, flags)?;
    source.busy_timeout(BUSY_WAIT)?;
    // One transaction, so that the copy never has to begin anew because of a writer. It begins with the first read.
    source.execute_batch("BEGIN")?;
    source.query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
        row.get::<_, i64>(0)
    })?;
    let scratch = Scratch::new(directory, "sqlite-")?;
    let place = scratch.path().join("copy");
    let mut target = Connection::open(&place)?;
    // Whoever doesn't come to an end has no use for it.
    target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
    let backup = Backup::new(&source, &mut target)?;
    while backup.step(PAGES_A_STEP)? != StepResult::Done {
        if cancel.is_cancelled() {
            return Err("cancelled".into());
        }
    }
    drop(backup);
    target.close().map_err(|(_, error)| error)?;
    // Without a name from here on.
    let file = File::open(&place)?;
    Ok(Copy {
        bytes: file.metadata()?.size(),
        file: Arc::new(file),
        made_at: SystemTime::now().into(),
        is_kept: AtomicBool::new(false),
    })
}
