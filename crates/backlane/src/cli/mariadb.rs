//! What is typed for backups of MariaDB servers and their restore.

use backlane_source::mariadb::Access;
use clap::{Args, ValueHint};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct MariadbBackupArgs {
    /// Back up the MariaDB server of this machine by mariadb-backup, while it runs. User and password come from MariaDB's
    /// option files, or the socket lets root in.
    #[arg(
        long,
        group = "of_mariadb",
        conflicts_with_all = ["paths", "sqlite", "output_name", "postgres", "excludes", "exclude_files", "one_file_system", "dry_run"]
    )]
    pub(crate) mariadb: bool,
    /// Have it begin another binary log, and back up those before it: with them a backup is brought to a later moment.
    #[arg(
        long,
        group = "of_mariadb",
        conflicts_with_all = ["paths", "sqlite", "output_name", "postgres", "excludes", "exclude_files", "one_file_system", "dry_run"]
    )]
    pub(crate) mariadb_binlogs: bool,
    /// MariaDB's option file to read in place of the usual ones.
    #[arg(long, value_name = "FILE", requires = "of_mariadb", value_hint = ValueHint::FilePath)]
    pub(crate) defaults_file: Option<PathBuf>,
    /// The MariaDB server's socket [default: what the option files say].
    #[arg(long, value_name = "FILE", requires = "of_mariadb", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,
}

impl MariadbBackupArgs {
    /// How the server is reached.
    pub(crate) fn access(&self) -> Access {
        Access {
            defaults_file: self.defaults_file.clone(),
            socket: self.socket.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct MariadbRestoreArgs {
    /// Restore a backup of a MariaDB server, and have mariadb-backup prepare it, so that a server can be started on the
    /// target. `latest` is the latest of these.
    #[arg(long, conflicts_with_all = ["postgres", "delete", "dry_run", "verify"])]
    pub(crate) mariadb: bool,
}
