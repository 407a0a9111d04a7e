//! Backups of PostgreSQL clusters and their restore, as parts of `backlane backup` and `backlane restore`; and what can be
//! brought back.

mod status;

use crate::{
    Context,
    cli::{PostgresBackupArgs, PostgresCommand, PostgresRestoreArgs},
    output::Outcome,
};
use anyhow::Result;
use backlane_client::{PostgresBackup, PostgresRestore, wal::Partly};
use backlane_source::postgres::BaseBackup;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What `backup` prints of a cluster.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PostgresDocument {
    #[serde(flatten)]
    backup: BaseBackup,
}

impl PostgresDocument {
    pub(crate) fn new(backup: BaseBackup) -> Self {
        Self { backup }
    }

    /// A line for people.
    pub(crate) fn text(&self) -> String {
        let backup = &self.backup;
        format!(
            "PostgreSQL {}, system {}: needs the WAL from {} to {} on timeline {} ({} to {})\n",
            backup.version,
            backup.system,
            backup.start_lsn,
            backup.stop_lsn,
            backup.timeline,
            backup.start_wal,
            backup.stop_wal,
        )
    }
}

/// Does what was typed after `backlane postgres`.
///
/// # Errors
/// When it can't be done.
pub(super) fn run(command: &PostgresCommand, context: &Context) -> Result<Outcome> {
    match command {
        PostgresCommand::Status(args) => status::status(args, context),
    }
}

/// Which cluster to back up, if any.
pub(crate) fn cluster(args: &PostgresBackupArgs) -> Option<PostgresBackup> {
    Some(PostgresBackup {
        connection: args.postgres.clone()?,
        data_directory: args.pgdata.clone(),
        checkpoint: args.checkpoint.into(),
        wal: args.wal.into(),
    })
}

/// How to restore a cluster.
pub(crate) fn how(args: &PostgresRestoreArgs, verify: bool, context: &Context) -> PostgresRestore {
    // To a standby whole segments may still come, and nobody asks again for what it has.
    let partly = match args.standby {
        true => Partly::Absent,
        false => Partly::Pieces,
    };
    PostgresRestore {
        is_delta: args.delta,
        tablespaces: args.tablespaces.clone(),
        recovery: args.recovery(restore_command(context.config.as_deref(), partly)),
        verify,
    }
}

/// The command by which the restored server gets its WAL.
fn restore_command(config: Option<&Path>, partly: Partly) -> String {
    // In a shell; a per cent sign begins what the server puts in.
    let quoted = |path: &Path| {
        path.display()
            .to_string()
            .replace('\'', r"'\''")
            .replace('%', "%%")
    };
    let config = config.map_or(String::new(), |path| {
        format!("--config '{}' ", quoted(path))
    });
    let pieces = match partly {
        Partly::Pieces => "--pieces ",
        Partly::Absent => "",
    };
    format!("backlane {config}wal fetch {pieces}%f \"%p\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restored_servers_fetch_wal_by_the_configuration_that_restored_them() {
        assert_eq!(
            restore_command(None, Partly::Absent),
            r#"backlane wal fetch %f "%p""#
        );
        let config = Path::new("/etc/it's 5%.toml");
        let expected = r#"backlane --config '/etc/it'\''s 5%%.toml' wal fetch --pieces %f "%p""#;
        assert_eq!(restore_command(Some(config), Partly::Pieces), expected);
    }
}
