//! What is typed for backups of MariaDB servers and their restore.

use super::RouteArgs;
use backlane_source::mariadb::{Access, Until};
use clap::{Args, Subcommand, ValueHint};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum MariadbCommand {
    /// Show to when each server can be brought back, by its backups and the binary logs that are archived, and what is
    /// missing. The server of this machine is asked what it has written since.
    Status(MariadbStatusArgs),
    /// Bring a server that was restored, and runs, to a later moment, by its archived binary logs. Nobody else may write to
    /// it meanwhile.
    Replay(MariadbReplayArgs),
}

/// How the server is reached.
#[derive(Debug, Args)]
pub(crate) struct MariadbAccessArgs {
    /// MariaDB's option file to read in place of the usual ones.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) defaults_file: Option<PathBuf>,
    /// The MariaDB server's socket [default: what the option files say].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,
}

impl MariadbAccessArgs {
    pub(crate) fn access(&self) -> Access {
        Access {
            defaults_file: self.defaults_file.clone(),
            socket: self.socket.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct MariadbStatusArgs {
    #[command(flatten)]
    pub(crate) access: MariadbAccessArgs,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MariadbReplayArgs {
    /// The snapshot that the server was restored from: its id, or the beginning of it.
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) snapshot: String,
    /// `latest` (all that is archived), `time=2026-01-31 12:00:00` (before everything that was written from that second
    /// on; of this machine's time zone, if none is given) or `position=binlog.000012:4711`.
    #[arg(long, value_name = "MOMENT")]
    pub(crate) until: Until,
    #[command(flatten)]
    pub(crate) access: MariadbAccessArgs,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MariadbBackupArgs {
    /// Back up the MariaDB server of this machine by mariadb-backup, while it runs. User and password come from MariaDB's
    /// option files, or the socket lets root in.
    #[arg(
        long,
        group = "of_mariadb",
        conflicts_with_all = ["paths", "sqlite", "output_name", "postgres", "of_files", "dry_run"]
    )]
    pub(crate) mariadb: bool,
    /// Have it begin another binary log, and back up those before it: with them a backup is brought to a later moment.
    #[arg(
        long,
        group = "of_mariadb",
        conflicts_with_all = ["paths", "sqlite", "output_name", "postgres", "of_files", "dry_run"]
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
    /// An option file of this machine that says from where the keys of encrypted tables come: under [mysqld] it names the
    /// plugin (`plugin_load_add`) and its settings.
    #[arg(long, value_name = "FILE", requires = "mariadb", value_hint = ValueHint::FilePath)]
    pub(crate) key_settings: Option<PathBuf>,
}
