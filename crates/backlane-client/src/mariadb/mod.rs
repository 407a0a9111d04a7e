//! Physical backups of MariaDB servers, their binary logs, and what comes back of them.
//!
//! A snapshot of a server holds what mariadb-backup writes, as one file `/mariadb/DATADIR/backup.mbstream`; one of its
//! binary logs holds them as files below `/mariadb/DATADIR/binlog`. docs/design/mariadb.md tells why.

mod binlog;
mod chain;
mod mark;
mod replay;
mod restore;

pub use binlog::backup_binlogs;
pub use chain::{Chain, End, Run, read_runs};
pub use replay::{ReplaySummary, Restored, replay};
pub use restore::restore_mariadb;

use crate::{
    backup::{BackupOptions, BackupSummary},
    error::Error,
    output::{Watch, archive_output},
    progress::{Progress, Reporter, WarningKind},
    scratch::Scratch,
};
use backlane_repo::{Cancel, Closing, Repository};
use backlane_source::mariadb::{
    self, Access, LAST, PhysicalBackup, Server, Sink, Stream, TAG, Tool,
};
use jiff::Timestamp;
use restore::SETTINGS;
use std::{
    io,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// Where mariadb-backup writes the place in the binary logs at which a backup ends, by its version.
const BINLOG_INFO: &[&str] = &["xtrabackup_binlog_info", "mariadb_backup_binlog_info"];

/// How much of that, and of its settings, is read.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Backs up a server of this machine. Blocks until the snapshot is durable. Of `options` paths and what concerns them are
/// not looked at.
///
/// # Errors
/// As [`backup`](crate::backup), and [`Error::Mariadb`] when mariadb-backup fails, or what it writes is no whole backup;
/// there is no snapshot then.
pub fn backup_mariadb(
    repository: &Repository,
    access: &Access,
    options: &BackupOptions,
    progress: Arc<dyn Progress>,
    cancel: &Cancel,
) -> Result<(BackupSummary, PhysicalBackup), Error> {
    let server = Server::ask(access)?;
    let path = PhysicalBackup::path(&server);
    let done = Arc::new(Mutex::new(None));
    let watch = Box::new(Watcher {
        stream: Stream::default(),
        seen: Seen::default(),
        server,
        began: Timestamp::now(),
        done: Arc::clone(&done),
    });
    // Its temporary files, which are small.
    let directory = options.copies_in.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::new(&directory, "mariadb-").map_err(|source| Error::Path {
        path: directory,
        source,
    })?;
    let mut command = access.command(Tool::Backup);
    command.args(["--backup", "--stream=mbstream"]);
    command.arg("--target-dir").arg(scratch.path());
    command.arg("--tmpdir").arg(scratch.path());
    let started = command.stdout(Stdio::piped()).spawn();
    let mut child = started.map_err(|error| Tool::Backup.cannot_start(error))?;
    let stderr = child.stderr.take();
    let said = thread::spawn(move || stderr.map(|stderr| Tool::Backup.listen(stderr)));
    let output = (path.as_path(), child, watch as Box<dyn Watch>);
    let (status, archived) = archive_output(repository, output, options, progress, cancel);
    let said = said.join().ok().flatten().unwrap_or_default();
    if let Some(status) = status
        && !status.success()
    {
        return Err(Tool::Backup.failed(status, said).into());
    }
    let summary = archived?;
    let done = done.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok((summary, done.ok_or(Error::Cancelled)?))
}

/// Reads the stream while it is stored.
struct Watcher {
    stream: Stream,
    seen: Seen,
    server: Server,
    began: Timestamp,
    /// What it is, once it is whole.
    done: Arc<Mutex<Option<PhysicalBackup>>>,
}

impl Watch for Watcher {
    fn saw(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let fed = self.stream.feed(bytes, &mut self.seen);
        Ok(fed.map_err(mariadb::Error::from)?)
    }

    fn end(&mut self, reporter: &Reporter) -> Result<Closing, Error> {
        self.stream.end(LAST).map_err(mariadb::Error::from)?;
        if let Some(line) = restore::foreign_setting(&self.seen.settings) {
            let path = self.server.data_directory.join(SETTINGS);
            let what = format!(
                "a restore won't take its setting `{line}`: this backup will have to be prepared by hand"
            );
            reporter.warn(WarningKind::Incomplete, &path, what);
        }
        let backup = PhysicalBackup {
            version: self.server.version.clone(),
            data_directory: self.server.data_directory.clone(),
            binlog: PhysicalBackup::position(&String::from_utf8_lossy(&self.seen.binlog_info)),
            began: self.began,
            ended: Timestamp::now(),
        };
        let description = Some(backup.description());
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(backup);
        Ok(Closing {
            tags: vec![TAG.to_owned()],
            description,
        })
    }
}

/// What is of interest of a stream's files.
#[derive(Default)]
struct Seen {
    binlog_info: Vec<u8>,
    settings: Vec<u8>,
}

impl Sink for Seen {
    fn data(&mut self, path: &Path, _at: u64, bytes: &[u8]) -> io::Result<()> {
        let kept = if BINLOG_INFO.iter().any(|name| path == Path::new(name)) {
            &mut self.binlog_info
        } else if path == Path::new(SETTINGS) {
            &mut self.settings
        } else {
            return Ok(());
        };
        let room = READ_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..room.min(bytes.len())]);
        Ok(())
    }

    fn closed(&mut self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn renamed(&mut self, _from: &Path, _to: &Path) -> io::Result<()> {
        Ok(())
    }

    fn removed(&mut self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
}
