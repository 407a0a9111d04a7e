//! MariaDB, by its own tools: mariadb-backup copies a server's files while it runs, and makes them consistent before they
//! are used; the client asks the server.
//!
//! Invariants: credentials are the tools' business, which find them in option files or do with the socket; no password
//! comes through here, and none is on a command line.

mod facts;
mod keys;
mod providers;
mod server;
mod stream;
mod until;

pub use facts::{BINLOG_TAG, BinlogBackup, BinlogName, Follows, PhysicalBackup, Position, TAG};
pub use keys::{KeyPlugin, is_setting as is_key_setting};
pub use providers::{loaded, provider_directory};
pub use server::{Access, Binlogs, Server, Tool, Written};
pub use stream::{Sink, Stream, StreamError};
pub use until::Until;

use std::{io, path::PathBuf};

/// Files of which mariadb-backup writes one last, by its version.
pub const LAST: &[&str] = &["xtrabackup_info", "mariadb_backup_info"];

/// Why a server can't be backed up, or its backup not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// One of MariaDB's programs can't be started.
    #[error("{program} can't be started: {source}")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// One of them failed.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: String,
        /// What it said last.
        said: String,
    },
    /// The server's answer is not what was asked for.
    #[error("the server's answer makes no sense: {what}")]
    Answer {
        /// What is wrong.
        what: String,
    },
    /// The server keeps no binary log.
    #[error("the server keeps no binary log")]
    NoBinlog,
    /// A binary log is encrypted.
    #[error("{name} is encrypted, which mariadb-binlog reads from a running server alone")]
    EncryptedBinlog {
        /// Its name.
        name: BinlogName,
    },
    /// What mariadb-backup wrote is no backup.
    #[error("what mariadb-backup wrote is no whole backup: {0}")]
    Stream(#[from] StreamError),
    /// An option file names no plugin that gives keys.
    #[error("{} names no plugin for the keys of encrypted tables, or none that is there", path.display())]
    NoKeyPlugin {
        /// The file.
        path: PathBuf,
    },
    /// The backup is of a server that has such a plugin, and it isn't known which one is to be loaded here.
    #[error(
        "the backup was made of a server that has the keys of encrypted tables from a plugin ({line}); a restore loads none on a backup's word"
    )]
    Keys {
        /// What the backup says.
        line: String,
    },
    /// The server had loaded a plugin that decompresses pages, which isn't here.
    #[error("the backup was made of a server that had loaded {name}, which is not in {}", directory.display())]
    NoProvider {
        /// Its name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The backup wants to be prepared with settings that may do anything.
    #[error("the backup's {} has a setting that a restore doesn't take: {line}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The line.
        line: String,
    },
}
