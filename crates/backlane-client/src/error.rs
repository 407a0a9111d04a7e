//! What can end a job. What merely goes wrong on the way is a [`Warning`](crate::Warning).

use jiff::Timestamp;
use std::{ffi::OsString, io, path::PathBuf, process::ExitStatus};

/// Why a job, or its preparation, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No path was given to back up.
    #[error("nothing to back up: no path given")]
    NoPaths,
    /// A path that was given to back up can't be found.
    #[error("{} can't be backed up: {source}", path.display())]
    Path {
        /// The path as it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pattern or a file of them is no good.
    #[error("{of} {what}: {reason}")]
    Pattern {
        /// What it is for.
        of: &'static str,
        /// The pattern or the file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// /proc is not there, without which extended attributes can't be read or set.
    #[error("/proc/self/fd can't be used ({source}): is /proc mounted?")]
    Proc {
        /// What the system said.
        source: io::Error,
    },
    /// A SQLite database can't be copied.
    #[error("SQLite database {} can't be copied to {}: {why}", path.display(), directory.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// Where to.
        directory: PathBuf,
        /// What SQLite or the system said.
        why: String,
    },
    /// The name for a command's output is none of a file.
    #[error(
        "{name:?} can't be the name of a file: it is what the command's output is called in the snapshot"
    )]
    Name {
        /// The name.
        name: OsString,
    },
    /// A command can't be started.
    #[error("{} can't be started: {source}", program.display())]
    CommandStart {
        /// The program.
        program: OsString,
        /// What the system said.
        source: io::Error,
    },
    /// A command has ended without success.
    #[error("{} failed ({status})", program.display())]
    CommandFailed {
        /// The program.
        program: OsString,
        /// How it ended.
        status: ExitStatus,
    },
    /// A command has ended with success, before it had taken everything.
    #[error("{} ended before it had taken everything", program.display())]
    CommandLeft {
        /// The program.
        program: OsString,
    },
    /// A PostgreSQL cluster can't be backed up.
    #[error(transparent)]
    Postgres(#[from] backlane_source::postgres::Error),
    /// The snapshot is no base backup of PostgreSQL.
    #[error("snapshot {snapshot} is no base backup of PostgreSQL")]
    NoBaseBackup {
        /// The snapshot.
        snapshot: String,
    },
    /// A MariaDB server can't be backed up, or its backup not be prepared.
    #[error(transparent)]
    Mariadb(#[from] backlane_source::mariadb::Error),
    /// The snapshot is no physical backup of MariaDB.
    #[error("snapshot {snapshot} is no physical backup of MariaDB")]
    NoPhysicalBackup {
        /// The snapshot.
        snapshot: String,
    },
    /// There is something in the directory that a MariaDB server is to be restored into.
    #[error("{} is not empty: a MariaDB server is restored into a directory of its own", path.display())]
    MariadbTargetNotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The backup doesn't say where in the binary logs it ends.
    #[error(
        "the backup was made of a server without binary logs: nothing brings it to a later moment"
    )]
    NoBinlogPosition,
    /// The moment to come to is not behind the backup.
    #[error("{until} is before the backup, which ends {ends}")]
    BeforeBackup {
        /// The moment.
        until: String,
        /// Where the backup ends.
        ends: String,
    },
    /// The archived binary logs don't come to the moment.
    #[error(
        "the archived binary logs don't come to {until}: {why}; without a gap they come to {reaches:.0}"
    )]
    BinlogsEnd {
        /// The moment.
        until: String,
        /// How far they come.
        reaches: Timestamp,
        /// Why no further.
        why: String,
    },
    /// A server's files are none that a restore has made.
    #[error("the server in {} was not restored by `backlane restore --mariadb`", path.display())]
    NotRestored {
        /// Its directory.
        path: PathBuf,
    },
    /// A server's files are of another snapshot.
    #[error("the server in {} was restored from snapshot {snapshot}", path.display())]
    RestoredFromAnother {
        /// Its directory.
        path: PathBuf,
        /// The snapshot.
        snapshot: String,
    },
    /// A server was brought to a later moment before.
    #[error("binary logs were replayed into {} before, to {until}, which {how}", path.display())]
    Replayed {
        /// Its directory.
        path: PathBuf,
        /// To which moment.
        until: String,
        /// How that ended.
        how: String,
    },
    /// What a server's directory says of its restore can't be read or written.
    #[error("{}: {source}", path.display())]
    Mark {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// There is something in the directory that a cluster is to be restored into.
    #[error("{} is not empty", path.display())]
    TargetNotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A server runs on the directory that a cluster is to be restored into.
    #[error("a PostgreSQL server runs on {} (process {process})", path.display())]
    PostgresRuns {
        /// The directory.
        path: PathBuf,
        /// The server's process.
        process: u32,
    },
    /// The directory to restore into is another cluster's, or none.
    #[error("{} is not the cluster of the backup: {what}", path.display())]
    TargetOfAnother {
        /// The directory.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// The directory of a tablespace may be in use by another cluster.
    #[error("tablespace {name} belongs into {}, which is not empty", path.display())]
    TablespaceNotEmpty {
        /// The tablespace.
        name: String,
        /// Its directory.
        path: PathBuf,
    },
    /// A tablespace has no place to go to, is none of the backup's, or its place is no absolute path.
    #[error("tablespace {what}")]
    Tablespace {
        /// What is wrong.
        what: String,
    },
    /// Recovery would have to end before the backup does.
    #[error("the recovery target {target} lies before {stop}, where the backup ends")]
    TargetTooEarly {
        /// The position that was asked for.
        target: backlane_source::postgres::Lsn,
        /// The earliest one that can be had.
        stop: backlane_source::postgres::Lsn,
    },
    /// Some of a cluster was not restored.
    #[error(
        "{failed} files of the cluster could not be restored into {}: it has no pg_control, so that no server starts on it",
        path.display()
    )]
    ClusterIncomplete {
        /// The directory.
        path: PathBuf,
        /// How many.
        failed: u64,
    },
    /// The job was asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The repository, or the way to it, failed.
    #[error(transparent)]
    Repository(#[from] backlane_repo::RepoError),
    /// The snapshot has no such path.
    #[error("the snapshot holds no {}", path.display())]
    NotInSnapshot {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// What the snapshot lacks may be what its backup could not read, and was to be deleted.
    #[error(
        "snapshot {snapshot} was made with {warnings} warnings: to delete what it lacks may delete what its backup could not read"
    )]
    DeleteIncomplete {
        /// The snapshot.
        snapshot: String,
        /// How many warnings it says there were.
        warnings: u64,
    },
    /// The directory to restore into can't be made or opened.
    #[error("can't restore into {}: {source}", path.display())]
    Target {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another job restores into the same directory.
    #[error("another restore into {} is running", path.display())]
    TargetBusy {
        /// The directory.
        path: PathBuf,
    },
    /// The file system being restored to is full.
    #[error("no space left for {}: {source}", path.display())]
    NoSpace {
        /// The file that did not fit.
        path: PathBuf,
        /// What the system said: full, or over quota.
        source: io::Error,
    },
    /// A file of the write-ahead log can't be archived or fetched.
    #[error("{}: {why}", path.display())]
    WalFile {
        /// The file, or its name.
        path: PathBuf,
        /// What is wrong with it, or the spooler's or the server's words.
        why: String,
    },
    /// The spooler can't be reached, or went away.
    #[error("the spooler of `backlane wal run` at {}: {source}", socket.display())]
    Spooler {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
