//! `backlane restore`.

use super::{
    damage::Damage,
    documents::{RestoreDocument, WarningsDocument},
    mariadb::RestoredDocument,
    postgres as cluster, session,
};
use crate::{
    Context,
    cli::RestoreArgs,
    failure::{Advise, Usage},
    output::{Outcome, bytes, rate},
    progress::Bar,
};
use anyhow::{Result, bail};
use backlane_client::{Progress, RestoreOptions, RestoreSummary};
use backlane_repo::{Repository, SnapshotInfo};
use backlane_source::{mariadb, postgres};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

/// Restores a snapshot, or a part of one.
///
/// # Errors
/// When the job ended early. What could not be restored or set is a warning.
pub(crate) fn run(args: &RestoreArgs, context: &Context) -> Result<Outcome> {
    let kind = match (args.cluster.postgres, args.mariadb.mariadb) {
        (true, _) => Some(Kind::Postgres),
        (_, true) => Some(Kind::Mariadb),
        _ => None,
    };
    if kind.is_some() && !args.snapshot.path.is_empty() {
        let what = "--postgres and --mariadb restore all of it: name the snapshot alone";
        return Err(Usage(what.to_owned()).into());
    }
    let keys = args.mariadb.key_settings.as_deref();
    let keys = keys.map(mariadb::KeyPlugin::read).transpose()?;
    let document = session::job("restore", context, &args.route, |client| {
        let mut damaged = Damage::none(context);
        let repository = client.repository()?;
        let wanted = &args.snapshot.snapshot;
        let snapshot = match kind {
            Some(kind) => resolve(&repository, wanted, kind, &mut damaged)?,
            None => damaged.resolve(&repository, wanted)?,
        };
        if (args.delete || args.cluster.delta) && !damaged.is_empty() {
            return Err(anyhow::anyhow!(
                "--delete would remove what is newer than snapshot {}, which may not be the latest",
                &snapshot.id.to_string()[..8]
            ))
            .advise("name the snapshot by its id; `backlane snapshots` lists what can be read");
        }
        // What is wrong with its index, the job tells.
        let reader = repository.reader()?;
        let path = Some(Path::new(OsStr::from_bytes(&args.snapshot.path)));
        let options = RestoreOptions {
            delete: args.delete,
            delete_despite_warnings: args.delete_despite_warnings,
            dry_run: args.dry_run,
            verify: args.verify,
            ..RestoreOptions::default()
        };
        let bar = Bar::new(context.output, client.carried());
        let cancel = context.cancel.token();
        let progress: Arc<dyn Progress> = bar.clone();
        let target = &args.target;
        let done = if kind == Some(Kind::Postgres) {
            let how = cluster::how(&args.cluster, args.verify, context);
            backlane_client::restore_postgres(&reader, &snapshot, target, &how, &progress, &cancel)
                .map(|summary| (summary, None))
        } else if kind == Some(Kind::Mariadb) {
            backlane_client::restore_mariadb(
                &reader,
                &snapshot,
                (target, keys.as_ref()),
                &progress,
                &cancel,
            )
            .map(|(summary, backup)| {
                let document = RestoredDocument::new(&summary.snapshot, backup, target);
                (summary, Some(document))
            })
        } else {
            backlane_client::restore(
                &reader,
                &snapshot,
                path.filter(|path| !path.as_os_str().is_empty()),
                &args.target,
                &options,
                progress,
                cancel,
            )
            .map(|summary| (summary, None))
        };
        bar.finish();
        let (summary, mariadb) = done?;
        let mut document = document(&summary, client.routes());
        document.mariadb = mariadb;
        damaged.add_to(&mut document.warnings);
        Ok(document)
    })?;
    context.output.result(&document, text)?;
    Ok(Outcome::from_warnings(document.warnings.count))
}

fn document(summary: &RestoreSummary, routes: super::summary::Routes) -> RestoreDocument {
    RestoreDocument {
        snapshot: summary.snapshot.clone(),
        dry_run: summary.dry_run,
        files_restored: summary.files_restored,
        files_kept: summary.files_kept,
        files_verified: summary.files_verified,
        directories: summary.directories,
        others: summary.others,
        hard_links: summary.hard_links,
        deleted: summary.deleted,
        failed: summary.failed,
        bytes: summary.bytes_restored + summary.bytes_kept,
        bytes_restored: summary.bytes_restored,
        bytes_kept: summary.bytes_kept,
        mariadb: None,
        seconds: summary.seconds,
        routes,
        warnings: WarningsDocument::from(&summary.warnings),
    }
}

fn text(document: &RestoreDocument) -> String {
    let verb = if document.dry_run {
        "would restore"
    } else {
        "restored"
    };
    let mut text = format!(
        "{verb} {} files ({}), {} directories, {} links and others of snapshot {} in {:.1} s ({})\n",
        document.files_restored,
        bytes(document.bytes_restored),
        document.directories,
        document.others + document.hard_links,
        &document.snapshot[..8.min(document.snapshot.len())],
        document.seconds,
        rate(document.bytes, document.seconds),
    );
    if document.files_kept > 0 || document.bytes_kept > 0 {
        text.push_str(&format!(
            "kept: {} files that stood there already, {} with what an interrupted restore had begun\n",
            document.files_kept,
            bytes(document.bytes_kept),
        ));
    }
    if document.files_verified > 0 {
        text.push_str(&format!(
            "{} files read again and right\n",
            document.files_verified
        ));
    }
    if document.deleted > 0 {
        text.push_str(&format!(
            "{} entries that the snapshot doesn't have removed\n",
            document.deleted
        ));
    }
    text.push_str(&document.routes.text(document.seconds));
    text.push_str(&document.warnings.text());
    if let Some(mariadb) = &document.mariadb {
        text.push_str(&mariadb.text());
    }
    text
}

/// Of what a backup is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Postgres,
    Mariadb,
}

/// The snapshot that the user names; `latest` is the latest of a cluster, or of a server.
fn resolve(
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
        Kind::Postgres => (postgres::TAG, "a PostgreSQL cluster", "clusters"),
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
            snapshot(1, "/postgresql/7", postgres::TAG),
            snapshot(2, "/postgresql/7", postgres::TAG),
            snapshot(3, "/etc", "nightly"),
        ];
        assert_eq!(
            latest(all.clone(), Kind::Postgres).unwrap().id,
            ObjectId([2; 32])
        );
        assert!(latest(all.clone(), Kind::Mariadb).is_err());
        assert!(latest(all.split_off(2), Kind::Postgres).is_err());
        all.push(snapshot(4, "/postgresql/8", postgres::TAG));
        let error = latest(all, Kind::Postgres).unwrap_err();
        assert!(
            format!("{error:#}").contains("several clusters"),
            "{error:#}"
        );
    }
}
