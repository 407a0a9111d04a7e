//! Backups of PostgreSQL clusters and their restore, as parts of `backlane backup` and `backlane restore`; and what can be
//! brought back.

mod status;

use super::damage::Damage;
use crate::{
    Context,
    cli::{PostgresBackupArgs, PostgresCommand, PostgresRestoreArgs},
    failure::Advise,
    output::Outcome,
};
use anyhow::{Result, bail};
use backlane_client::{PostgresBackup, PostgresRestore, wal::Partly};
use backlane_repo::{Repository, SnapshotInfo};
use backlane_source::{
    mariadb,
    postgres::{BaseBackup, TAG},
};
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

/// Whose backups are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    Mariadb,
}

/// The snapshot that the user names; `latest` is the latest of a cluster, or of a server.
///
/// # Errors
/// When there is none, or of several clusters.
pub(crate) fn resolve(
    repository: &Repository,
    wanted: &str,
    kind: Kind,
    damaged: &mut Damage,
) -> Result<SnapshotInfo> {
    if wanted != "latest" {
        return Ok(damaged.resolve(repository, wanted)?);
    }
    latest(damaged.snapshots(repository)?, kind)
}

fn latest(mut snapshots: Vec<SnapshotInfo>, kind: Kind) -> Result<SnapshotInfo> {
    let (tag, one, several) = match kind {
        Kind::Postgres => (TAG, "a PostgreSQL cluster", "clusters"),
        Kind::Mariadb => (mariadb::TAG, "a MariaDB server", "servers"),
    };
    snapshots.retain(|snapshot| snapshot.tags.iter().any(|it| it == tag));
    if snapshots.windows(2).any(|two| two[0].paths != two[1].paths) {
        return Err(anyhow::anyhow!("there are backups of several {several}")).advise(format!(
            "name the snapshot by its id; `backlane snapshots --tag {tag}` lists them"
        ));
    }
    match snapshots.pop() {
        Some(latest) => Ok(latest),
        None => bail!("there is no backup of {one}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlane_proto::ObjectId;
    use backlane_repo::BlobId;

    fn snapshot(id: u8, path: &str, tag: &str) -> SnapshotInfo {
        SnapshotInfo {
            id: ObjectId([id; 32]),
            time: String::new(),
            unix_seconds: i64::from(id),
            host: "a".to_owned(),
            paths: vec![path.to_owned()],
            tags: vec![tag.to_owned()],
            tree: BlobId([0; 32]),
            parent: None,
            description: None,
            program: String::new(),
            warnings: None,
            summary: None,
        }
    }

    #[test]
    fn latest_is_the_latest_of_one_cluster() {
        let mut all = vec![
            snapshot(1, "/postgresql/7", TAG),
            snapshot(2, "/postgresql/7", TAG),
            snapshot(3, "/etc", "nightly"),
        ];
        assert_eq!(
            latest(all.clone(), Kind::Postgres).unwrap().id,
            ObjectId([2; 32])
        );
        assert!(latest(all.clone(), Kind::Mariadb).is_err());
        assert!(latest(all.split_off(2), Kind::Postgres).is_err());
        all.push(snapshot(4, "/postgresql/8", TAG));
        let error = latest(all, Kind::Postgres).unwrap_err();
        assert!(
            format!("{error:#}").contains("several clusters"),
            "{error:#}"
        );
    }

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
