//! What is typed for backups of PostgreSQL clusters and their restore.

use super::RouteArgs;
use backlane_source::postgres::{Checkpoint, Recovery, Target, TargetAction, WalMode};
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum PostgresCommand {
    /// Show to when each cluster can be brought back, by its base backups and the WAL that is archived, and what is missing.
    Status(PostgresStatusArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PostgresStatusArgs {
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PostgresBackupArgs {
    /// Back up the PostgreSQL cluster (13 to 17) that a server on this machine runs, while it runs. psql connects: give
    /// `postgresql://…`, `service=…` or keywords, and keep the password in .pgpass or a service file.
    #[arg(
        long,
        value_name = "CONNECTION",
        conflicts_with_all = ["paths", "sqlite", "output_name", "of_files", "dry_run"]
    )]
    pub(crate) postgres: Option<String>,
    /// The cluster's directory, where this machine has it elsewhere than the server says.
    #[arg(long, value_name = "DIR", requires = "postgres", value_hint = ValueHint::DirPath)]
    pub(crate) pgdata: Option<PathBuf>,
    /// Where the WAL is that the backup needs.
    #[arg(long, value_enum, default_value_t = WalArg::Archive, requires = "postgres")]
    pub(crate) wal: WalArg,
    /// How the server writes out what it has in memory, which the backup begins with.
    #[arg(long, value_enum, default_value_t = CheckpointArg::Spread, requires = "postgres")]
    pub(crate) checkpoint: CheckpointArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WalArg {
    /// In the server's archive: the backup ends when it is there.
    Archive,
    /// In the snapshot, which can be restored alone.
    Include,
}

impl From<WalArg> for WalMode {
    fn from(wal: WalArg) -> Self {
        match wal {
            WalArg::Archive => Self::Archive,
            WalArg::Include => Self::Include,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CheckpointArg {
    /// At the pace of its checkpoints, which may take minutes.
    Spread,
    /// As fast as it can.
    Fast,
}

impl From<CheckpointArg> for Checkpoint {
    fn from(checkpoint: CheckpointArg) -> Self {
        match checkpoint {
            CheckpointArg::Spread => Self::Spread,
            CheckpointArg::Fast => Self::Fast,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PostgresRestoreArgs {
    /// Restore a backup of a PostgreSQL cluster, so that a server can be started on the target. `latest` is the latest
    /// of these.
    #[arg(long, conflicts_with_all = ["delete", "dry_run"])]
    pub(crate) postgres: bool,
    /// Go over what is left of the same cluster: fetch what differs, remove what the backup doesn't have.
    #[arg(long, requires = "postgres")]
    pub(crate) delta: bool,
    /// Where a tablespace goes, which is known by its name, number or old directory; once for each.
    #[arg(long = "tablespace", value_name = "WHICH=DIR", requires = "postgres", value_parser = parse_tablespace)]
    pub(crate) tablespaces: Vec<(String, PathBuf)>,
    /// Recover to `latest`, `immediate` (the end of the backup), `time=…`, `lsn=…`, `xid=…` or `name=…` [default:
    /// latest; with what is in the snapshot alone, where it has its WAL].
    #[arg(long, value_name = "TARGET", requires = "postgres")]
    pub(crate) recovery_target: Option<Target>,
    /// Stop right before the target.
    #[arg(long, requires = "recovery_target")]
    pub(crate) recovery_exclusive: bool,
    /// Recover along this timeline: a number, `current` or `latest`.
    #[arg(long, value_name = "TIMELINE", requires = "postgres")]
    pub(crate) recovery_timeline: Option<String>,
    /// What the server does at the target [default: what its configuration says, or else pause].
    #[arg(long, value_enum, value_name = "ACTION", requires = "recovery_target")]
    pub(crate) recovery_action: Option<ActionArg>,
    /// Go on as a standby.
    #[arg(long, requires = "postgres")]
    pub(crate) standby: bool,
}

impl PostgresRestoreArgs {
    /// How the cluster recovers, with a command that fetches WAL.
    pub(crate) fn recovery(&self, restore_command: String) -> Recovery {
        Recovery {
            target: self.recovery_target.clone(),
            is_exclusive: self.recovery_exclusive,
            timeline: self.recovery_timeline.clone(),
            action: self.recovery_action.map(Into::into),
            is_standby: self.standby,
            restore_command,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ActionArg {
    /// Wait, and answer those who only read.
    Pause,
    /// Become a server that is written to.
    Promote,
    /// End.
    Shutdown,
}

impl From<ActionArg> for TargetAction {
    fn from(action: ActionArg) -> Self {
        match action {
            ActionArg::Pause => Self::Pause,
            ActionArg::Promote => Self::Promote,
            ActionArg::Shutdown => Self::Shutdown,
        }
    }
}

fn parse_tablespace(text: &str) -> Result<(String, PathBuf), String> {
    match text.rsplit_once('=') {
        Some((which, place)) if !which.is_empty() && !place.is_empty() => {
            Ok((which.to_owned(), place.into()))
        }
        _ => Err(format!("`{text}` is not like `fast=/srv/fast`")),
    }
}
