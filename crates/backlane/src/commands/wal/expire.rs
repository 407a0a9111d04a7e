//! `backlane wal expire`, and what a prune does of it (`docs/design/wal.md` §6).
//!
//! Invariant: where it isn't known what a base backup needs, nothing is removed.

use crate::{
    Context,
    cli::WalExpireArgs,
    commands::maintain::{self, Place},
    output::{Outcome, bytes},
};
use anyhow::{Context as _, Result, bail};
use backlane_client::wal::expire::Needed;
use backlane_proto::{ObjectId, ObjectInfo, ObjectKind, ObjectName, WalName};
use backlane_repo::DryRun;
use backlane_server::Removal;
use backlane_source::postgres::{BaseBackup, TAG};
use serde::Serialize;
use std::collections::BTreeSet;

/// What was, or would be, removed of archived WAL.
#[derive(Serialize)]
struct Expired {
    files: u64,
    stored_bytes: u64,
}

/// What a prune came to of archived WAL; part of its document.
#[derive(Default, Serialize)]
pub(in crate::commands) struct AtPrune {
    /// What was, or would be, removed; none where all of it stays.
    wal: Option<Expired>,
    /// Why it stays, where it isn't known what is needed.
    wal_stays: Option<String>,
}

#[derive(Serialize)]
struct ExpireDocument {
    dry_run: bool,
    #[serde(flatten)]
    expired: Expired,
}

/// Removes what no base backup needs.
///
/// # Errors
/// When it isn't known what is needed, or something can't be removed.
pub(super) fn expire(args: &WalExpireArgs, context: &Context) -> Result<Outcome> {
    let (host, key_file) = (&args.repository.host, args.repository.key_file.as_deref());
    let held = maintain::hold_with(host, key_file, Removal::Recoverable, context)?;
    let dry_run = match args.dry_run {
        true => DryRun::Yes,
        false => DryRun::No,
    };
    let unneeded = unneeded(&held, &BTreeSet::new(), args.before.as_deref())?;
    let document = ExpireDocument {
        dry_run: args.dry_run,
        expired: remove(&held, &unneeded, dry_run, context)?,
    };
    if !args.dry_run {
        held.settle(context)?;
    }
    context.output.result(&document, |document| {
        document.expired.text(document.dry_run)
    })?;
    Ok(Outcome::Done)
}

/// The part of a prune: as [`expire`], of what is needed once some snapshots are gone. All of it stays where it isn't known
/// what is needed, or this side may not remove WAL; both are said.
///
/// # Errors
/// When something can't be removed.
pub(in crate::commands) fn at_prune(
    place: &dyn Place,
    gone: &BTreeSet<ObjectId>,
    dry_run: DryRun,
    context: &Context,
) -> Result<AtPrune> {
    let unneeded = match unneeded(place, gone, None) {
        Ok(unneeded) => unneeded,
        Err(error) => {
            let why = format!("{error:#}");
            let output = context.output;
            output.warning(format!("archived WAL stays as it is: {why}"));
            return Ok(AtPrune {
                wal_stays: Some(why),
                ..AtPrune::default()
            });
        }
    };
    if place.may_remove_wal() {
        return Ok(AtPrune {
            wal: Some(remove(place, &unneeded, dry_run, context)?),
            ..AtPrune::default()
        });
    }
    if !unneeded.is_empty() {
        context.output.note(format!(
            "{} files of WAL that nothing needs stay: a prune at the server removes them, or `backlane wal expire` there",
            unneeded.len()
        ));
    }
    Ok(AtPrune::default())
}

/// What no base backup needs, apart from those that are gone or about to go.
fn unneeded(
    place: &dyn Place,
    gone: &BTreeSet<ObjectId>,
    before: Option<&str>,
) -> Result<Vec<ObjectInfo>> {
    let archive = place.wal()?;
    if archive.is_empty() {
        return Ok(archive);
    }
    let (mut snapshots, damaged) = place.repository().readable_snapshots()?;
    if let Some(error) = damaged.into_iter().next() {
        // It may be the oldest base backup.
        return Err(error)
            .context("what a damaged snapshot needs is not known, so that nothing is removed");
    }
    snapshots.retain(|snapshot| !gone.contains(&snapshot.id));
    let mut backups = Vec::new();
    for snapshot in &snapshots {
        let description = snapshot.description.as_deref();
        match description.and_then(BaseBackup::from_description) {
            Some(backup) => backups.push(backup),
            None if snapshot.tags.iter().any(|tag| tag == TAG) => bail!(
                "snapshot {} has the tag {TAG} and doesn't say what WAL it needs, so that nothing is removed",
                snapshot.id
            ),
            None => {}
        }
    }
    let needed = Needed::by(&backups)?;
    let needed = match before {
        Some(segment) => needed.from_segment(segment)?,
        None => needed,
    };
    let names = archive.iter().filter_map(|it| WalName::from_id(it.id));
    let expired = needed.expired(&names.collect::<Vec<_>>());
    let expired: BTreeSet<_> = expired.into_iter().map(WalName::id).collect();
    let archive = archive.into_iter();
    Ok(archive.filter(|it| expired.contains(&it.id)).collect())
}

fn remove(
    place: &dyn Place,
    unneeded: &[ObjectInfo],
    dry_run: DryRun,
    context: &Context,
) -> Result<Expired> {
    if dry_run == DryRun::No {
        for object in unneeded {
            context.check_cancelled()?;
            place.remove(ObjectName {
                kind: ObjectKind::Wal,
                id: object.id,
            })?;
        }
    }
    Ok(Expired {
        files: unneeded.len() as u64,
        stored_bytes: unneeded.iter().map(|it| it.bytes).sum(),
    })
}

impl AtPrune {
    /// Whether a warning was given.
    pub(in crate::commands) fn warned(&self) -> bool {
        self.wal_stays.is_some()
    }

    /// A line for people; where WAL is nobody's concern, none.
    pub(in crate::commands) fn line(&self, is_dry_run: bool) -> String {
        match &self.wal {
            Some(expired) if expired.files > 0 => {
                format!("archived WAL: {}", expired.text(is_dry_run))
            }
            _ => String::new(),
        }
    }
}

impl Expired {
    fn text(&self, is_dry_run: bool) -> String {
        let verb = if is_dry_run { "would be" } else { "were" };
        let size = bytes(self.stored_bytes);
        format!("{} files {verb} removed, {size}\n", self.files)
    }
}
