//! Backups of a server's binary logs: the files that it writes to no more.
//!
//! Invariants: a file is open before its entry is given out. What the server has purged before it was in a backup is named.

use super::super::source::examine::metadata;
use crate::{
    backup::{BackupOptions, BackupSummary, summary, warn},
    error::Error,
    fs::{self, Facts},
    progress::{Progress, Reporter, WarningKind},
    source::AccessTimes,
};
use backlane_repo::{Cancel, Closing, Entries, Entry, FileKind, Repository, Warning};
use backlane_source::mariadb::{Access, BINLOG_TAG, BinlogBackup, Binlogs, Follows, Server};
use jiff::Timestamp;
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Has a server begin another binary log, and backs up those before it. Blocks until the snapshot is durable. Of `options`
/// paths and what concerns them are not looked at.
///
/// # Errors
/// As [`backup`](crate::backup), and [`Error::Mariadb`]; there is no snapshot then. A file that can't be read, or is no
/// longer there, is a warning.
pub fn backup_binlogs(
    repository: &Repository,
    access: &Access,
    options: &BackupOptions,
    progress: Arc<dyn Progress>,
    cancel: &Cancel,
) -> Result<(BackupSummary, BinlogBackup), Error> {
    let server = Server::ask(access)?;
    let until = Timestamp::now();
    let binlogs = Binlogs::close(access)?;
    let path = BinlogBackup::path(&server.data_directory);
    let (Some(first), Some(last)) = (binlogs.names.first(), binlogs.names.last()) else {
        return Err(backlane_source::mariadb::Error::NoBinlog.into());
    };
    let backup = BinlogBackup {
        data_directory: server.data_directory,
        first: first.clone(),
        last: last.clone(),
        until: Some(until),
    };
    let at = |source| Error::Path {
        path: binlogs.directory.clone(),
        source,
    };
    let directory = File::open(&binlogs.directory).map_err(at)?.into();
    let reporter = Arc::new(Reporter::new(progress, cancel.clone()));
    if let Some(earlier) = newest(repository, &path)?
        && let Some(what) = missing(&backup, &earlier)
    {
        reporter.warn(WarningKind::LeftOut, &binlogs.directory, what);
    }
    if binlogs.are_encrypted {
        let what = "the server encrypts them (encrypt_binlog), and can't be brought forward by encrypted ones: set encrypt_binlog=OFF, in the repository they are encrypted all the same";
        reporter.warn(WarningKind::Incomplete, &binlogs.directory, what);
    }
    let archive = options.archive(vec![path.as_os_str().as_bytes().to_vec()], cancel.clone());
    let source = Source {
        directory: Arc::new(directory),
        binlogs,
        path: path.clone(),
        description: backup.description(),
        reporter: Arc::clone(&reporter),
    };
    let archived = repository.archive(&archive, Arc::new(source));
    Ok((summary(archived, options, &[path], &reporter)?, backup))
}

/// What is missing between an earlier backup and this one, in words.
fn missing(backup: &BinlogBackup, earlier: &BinlogBackup) -> Option<String> {
    let last = &earlier.last;
    match backup.follows(earlier) {
        Follows::Whole => None,
        Follows::Gap => Some(format!(
            "the server has purged some after {last}, which are in no backup: nothing from before can be brought past that"
        )),
        Follows::Anew => Some(format!(
            "the server has begun its binary logs anew, and comes after {last} no more: nothing from before can be brought past that; back the server up itself (--mariadb)"
        )),
    }
}

/// What the newest snapshot of this server's binary logs has.
fn newest(repository: &Repository, path: &Path) -> Result<Option<BinlogBackup>, Error> {
    // What is damaged is named by others.
    let (snapshots, _) = repository.readable_snapshots()?;
    let of_server = snapshots
        .iter()
        .filter(|snapshot| snapshot.paths.iter().map(Path::new).eq([path]));
    let found = of_server.filter_map(|snapshot| snapshot.description.as_deref());
    Ok(found.filter_map(BinlogBackup::from_description).next_back())
}

/// The files as the repository wants them.
struct Source {
    directory: Arc<OwnedFd>,
    binlogs: Binlogs,
    /// Where they are in the snapshot.
    path: PathBuf,
    description: String,
    reporter: Arc<Reporter>,
}

impl backlane_repo::Source for Source {
    fn entries(&self) -> Entries {
        let mut names = self.binlogs.names.clone();
        // In the order of trees.
        names.sort_unstable();
        let (directory, path) = (Arc::clone(&self.directory), self.path.clone());
        let reporter = Arc::clone(&self.reporter);
        let own_path = self.binlogs.directory.clone();
        Box::new(names.into_iter().filter_map(move |name| {
            let file = (name.as_str(), path.join(&name));
            match entry(&directory, file, &reporter) {
                Ok(entry) => Some(Ok(entry)),
                Err(error) => {
                    let what = format!("it can't be read: {error}");
                    reporter.warn(WarningKind::LeftOut, &own_path.join(&name), what);
                    None
                }
            }
        }))
    }

    fn warn(&self, warning: &Warning) {
        warn(&self.reporter, warning);
    }

    fn warnings(&self, _told: u64) -> u64 {
        let warnings = self.reporter.warnings();
        warnings.total() - warnings.count(WarningKind::Repository)
    }

    fn closing(&self) -> Closing {
        Closing {
            tags: vec![BINLOG_TAG.to_owned()],
            description: Some(self.description.clone()),
        }
    }
}

fn entry(
    directory: &OwnedFd,
    (name, path): (&str, PathBuf),
    reporter: &Arc<Reporter>,
) -> io::Result<Entry> {
    let file = fs::open_file(directory, OsStr::new(name))?;
    let facts = Facts::of_open(&file)?;
    let size = facts.size;
    let reporter = Arc::clone(reporter);
    Ok(Entry {
        path: Path::new(&path).as_os_str().as_bytes().to_vec(),
        kind: FileKind::File,
        meta: metadata(&facts, AccessTimes::AsModified),
        open: Some(Box::new(move || {
            reporter.progress.advanced(1, size);
            Ok(Box::new(File::from(file).take(size)) as Box<dyn Read + Send>)
        })),
    })
}
