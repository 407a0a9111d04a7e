//! `backlane forget` and `backlane prune`: what removes, with the repository held alone.
//!
//! The server has no key unless one is in escrow. So either its administrator names the host's key file, on the server's
//! machine, or the host does it, by a permission and through a session that has the repository to itself. While one of these
//! runs, sessions of that host are refused; while one of them is open, these are.

use super::{
    damage::Damage,
    key::Escrow,
    server,
    session::{self, Client},
    wal::expire::{self, AtPrune},
};
use crate::{
    Context,
    cli::{ForgetArgs, MaintainArgs, PruneArgs, UndeleteArgs},
    config,
    failure::{Advise, Usage},
    output::{Outcome, bytes, table},
    progress::Phases,
    signals::Cancel,
};
use anyhow::{Context as _, Result};
use backlane_proto::{ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents};
use backlane_repo::{
    Arrivals, DryRun, Flood, ForgetDecision, KeepPolicy, ObjectStore, PruneOptions, PruneSummary,
    Repack, RepoError, Repository, StoreError, maintain::PruneDelete,
};
use backlane_server::{ExclusiveRepository, HostName, Removal, ServerError};
use bytes::Bytes;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

/// A repository at the server, as the repository's engine wants it.
///
/// Interrupted, it begins nothing new: no object is read or written any more. Removals go on, since by the time that
/// they begin everything that they rest on is in place, and each leaves the repository whole.
struct Store {
    repository: ExclusiveRepository,
    cancel: Cancel,
}

impl Store {
    fn begin(&self) -> Result<&ExclusiveRepository, StoreError> {
        match self.cancel.is_set() {
            true => Err(StoreError::Failed("interrupted".into())),
            false => Ok(&self.repository),
        }
    }
}

impl ObjectStore for Store {
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError> {
        self.begin()?.list(kind).map_err(failed)
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
        let read = self.begin()?.read(name, range);
        read.map_err(|error| match error {
            error if error.is_damage() => StoreError::Damaged {
                name,
                what: error.to_string(),
            },
            error => failed(error),
        })
    }

    fn write(
        &self,
        name: ObjectName,
        contents: PackContents,
        body: Bytes,
    ) -> Result<(), StoreError> {
        self.begin()?.write(name, contents, &body).map_err(failed)
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        self.repository.remove(name).map_err(failed)
    }
}

fn failed(error: ServerError) -> StoreError {
    match error {
        ServerError::NotFound { name } => StoreError::NotFound { name },
        ServerError::Denied(what) => StoreError::Denied {
            what: what.to_owned(),
        },
        error => StoreError::Failed(Box::new(error)),
    }
}

/// A repository that this process holds alone.
pub(super) struct Held {
    store: Arc<Store>,
    pub(super) host: HostName,
    pub(super) repository: Repository,
    pub(super) escrow: Escrow,
}

impl Held {
    /// Opens a repository that is held with a password; `key_file` is where that came from, if it didn't from escrow.
    pub(super) fn open(
        exclusive: ExclusiveRepository,
        escrow: Escrow,
        password: &str,
        key_file: Option<&Path>,
        context: &Context,
    ) -> Result<Self> {
        let host = escrow.host().clone();
        let store = Arc::new(Store {
            repository: exclusive,
            cancel: context.cancel.clone(),
        });
        let opened = Repository::open(Arc::clone(&store) as Arc<dyn ObjectStore>, password);
        let is_wrong_key = matches!(opened, Err(RepoError::WrongPassword { .. }));
        let opened = opened.with_context(|| format!("cannot open the repository of {host}"));
        let repository = match (is_wrong_key, key_file) {
            (false, _) => opened,
            (true, Some(_)) => {
                opened.advise("the key file is the one that `backlane join` made on that host")
            }
            (true, None) => opened.advise(
                "the key in escrow has been removed from the repository: `backlane key escrow` with the host's key file",
            ),
        }?;
        Ok(Self {
            store,
            host,
            repository,
            escrow,
        })
    }

    /// Reads of packs what they hold, and records it at the server. Returns what is wrong with those that don't say.
    ///
    /// # Errors
    /// When the store or the state database fails.
    pub(super) fn label(&self, packs: &[ObjectInfo]) -> Result<Vec<RepoError>> {
        let kinds = self.repository.pack_kinds(packs)?;
        let server = &self.store.repository;
        server.label_packs(&kinds.trees, PackContents::Trees)?;
        server.label_packs(&kinds.data, PackContents::Data)?;
        Ok(kinds.damaged)
    }

    /// Whether a password opens the repository, whatever else is open.
    ///
    /// # Errors
    /// When that can't be told.
    pub(super) fn opens_with(&self, password: &str) -> Result<bool> {
        let store = Arc::clone(&self.store) as Arc<dyn ObjectStore>;
        match Repository::open(store, password) {
            Ok(_) => Ok(true),
            Err(RepoError::WrongPassword { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// What removes needs of the place where the repository is, beside its objects.
pub(super) trait Place {
    fn repository(&self) -> &Repository;

    /// When each snapshot arrived at the server.
    fn arrivals(&self) -> Result<BTreeMap<ObjectId, SystemTime>>;

    /// Which packs a prune may write anew.
    fn repack(&self) -> Repack;

    fn remove(&self, name: ObjectName) -> Result<(), StoreError>;

    /// All archived WAL.
    fn wal(&self) -> Result<Vec<ObjectInfo>>;

    /// Whether archived WAL can be removed from here.
    fn may_remove_wal(&self) -> bool;

    /// When all is done: says what of the removed can be had back.
    fn settle(&self, context: &Context) -> Result<()>;
}

impl Place for Held {
    fn repository(&self) -> &Repository {
        &self.repository
    }

    fn arrivals(&self) -> Result<BTreeMap<ObjectId, SystemTime>> {
        Ok(self.store.repository.arrivals(ObjectKind::Snapshot)?)
    }

    fn repack(&self) -> Repack {
        Repack::All
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        self.store.remove(name)
    }

    fn wal(&self) -> Result<Vec<ObjectInfo>> {
        Ok(self.store.list(ObjectKind::Wal)?)
    }

    fn may_remove_wal(&self) -> bool {
        true
    }

    fn settle(&self, context: &Context) -> Result<()> {
        let repository = &self.store.repository;
        let expired = repository.expire()?;
        let left = repository.removed()?;
        if expired.objects > 0 {
            context.output.note(format!(
                "{} that were removed before are deleted for good",
                bytes(expired.bytes)
            ));
        }
        if !left.is_empty() {
            context.output.note(format!(
                "{} that were removed can be had back by `backlane server undelete {}`",
                bytes(left.iter().map(|object| object.bytes).sum()),
                self.host
            ));
        }
        Ok(())
    }
}

/// A host that clears its own repository up.
struct Helper<'a> {
    client: &'a Client,
    repository: Repository,
    repack: Repack,
}

impl Place for Helper<'_> {
    fn repository(&self) -> &Repository {
        &self.repository
    }

    fn arrivals(&self) -> Result<BTreeMap<ObjectId, SystemTime>> {
        self.client.arrivals(ObjectKind::Snapshot)
    }

    fn repack(&self) -> Repack {
        self.repack
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        self.client.remove(name)
    }

    fn wal(&self) -> Result<Vec<ObjectInfo>> {
        Ok(self.client.store().list(ObjectKind::Wal)?)
    }

    // Never by a host (`wal.md` §3).
    fn may_remove_wal(&self) -> bool {
        false
    }

    fn settle(&self, context: &Context) -> Result<()> {
        context.output.note(format!(
            "what was removed can be had back for a while, at the server: `backlane server undelete {}`",
            self.client.host()
        ));
        Ok(())
    }
}

/// Works on the repository that was named, wherever it is.
fn with(
    command: &str,
    args: &MaintainArgs,
    context: &Context,
    work: impl FnOnce(&dyn Place) -> Result<Outcome>,
) -> Result<Outcome> {
    let at = |place: &dyn Place| {
        let outcome = work(place)?;
        if !args.dry_run {
            place.settle(context)?;
        }
        Ok(outcome)
    };
    if let Some(host) = &args.host {
        return at(&hold(host, args, context)?);
    }
    let help = |client: &Client| {
        let repository = client.repository()?;
        let repack = match args.repack_data {
            true => Repack::All,
            false => Repack::Trees,
        };
        at(&Helper {
            client,
            repository,
            repack,
        })
    };
    match args.dry_run {
        true => session::job(command, context, &args.route, help),
        false => session::maintenance(command, context, &args.route, help),
    }
}

fn hold(host: &str, args: &MaintainArgs, context: &Context) -> Result<Held> {
    let removal = match args.break_retention {
        true => Removal::Final,
        false => Removal::Recoverable,
    };
    let held = hold_with(host, args.key_file.as_deref(), removal, context)?;
    if args.break_retention && !args.dry_run {
        // First: the disk may be full.
        held.store.repository.expire()?;
    }
    Ok(held)
}

/// Holds a host's repository, and opens it with the key file, or the key that is in escrow.
pub(super) fn hold_with(
    host: &str,
    key_file: Option<&Path>,
    removal: Removal,
    context: &Context,
) -> Result<Held> {
    let host: HostName = host.parse().map_err(|error| Usage(format!("{error}")))?;
    let named = key_file.map(config::read_key).transpose()?;
    let state = context.runtime.block_on(server::open_state(context))?;
    let escrow = Escrow::of(state.config(), &host);
    let password = match named {
        Some(key) => key,
        None => escrow.key()?,
    };
    let exclusive = context
        .runtime
        .block_on(state.exclusive(&host, removal))
        .advise("wait until no job of that host runs, and try again")?;
    Held::open(exclusive, escrow, &password, key_file, context)
}

fn dry_run(args: &MaintainArgs) -> DryRun {
    if args.dry_run {
        DryRun::Yes
    } else {
        DryRun::No
    }
}

#[derive(Serialize)]
struct ForgetDocument {
    dry_run: bool,
    decisions: Vec<ForgetDecision>,
    /// Damaged snapshots that were named by their whole id, and forgotten like the others.
    damaged_forgotten: Vec<String>,
    /// Damaged snapshots that stay, because nothing is known of them.
    damaged: Damage,
    prune: Option<PruneSummary>,
    /// What the prune removed, or would remove, of archived WAL.
    #[serde(flatten)]
    wal: AtPrune,
}

/// Removes snapshots: those that are named, or those that a policy doesn't keep.
///
/// # Errors
/// When the repository can't be held, or something can't be read or removed.
pub(crate) fn forget(args: &ForgetArgs, context: &Context) -> Result<Outcome> {
    let policy = KeepPolicy {
        last: args.keep_last,
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
        within: args.keep_within,
        tags: args.keep_tags.clone(),
    };
    if (policy == KeepPolicy::default()) == args.snapshots.is_empty() {
        let what = "name either the snapshots to forget, or what to keep (--keep-last and so on)";
        return Err(Usage(what.to_owned()).into());
    }
    if args.snapshots.is_empty() && policy.keeps_nothing() {
        let what = "what is to be kept comes to nothing: every snapshot would be forgotten";
        return Err(Usage(what.to_owned()).into());
    }
    with("forget", &args.repository, context, |place| {
        forget_at(place, &policy, args, context)
    })
}

fn forget_at(
    place: &dyn Place,
    policy: &KeepPolicy,
    args: &ForgetArgs,
    context: &Context,
) -> Result<Outcome> {
    let dry = dry_run(&args.repository);
    let mut damaged = Damage::none(context);
    let mut is_flooded = false;
    let named = if args.snapshots.is_empty() {
        let arrivals = Arrivals {
            times: place.arrivals()?,
            flood: match args.count_flood {
                true => Flood::Count,
                false => Flood::Protect,
            },
        };
        let forgotten = place.repository().forget(policy, &arrivals, dry);
        let forgotten = uninterrupted(forgotten, context)?;
        for flood in &forgotten.floods {
            context.output.warning(format!(
                "{flood}: nothing of that is forgotten; look what came, and --count-flood lets it count"
            ));
        }
        is_flooded = !forgotten.floods.is_empty();
        for error in &forgotten.damaged {
            damaged.note(error, "it stays, whatever is to be kept");
        }
        Named {
            decisions: forgotten.decisions,
            damaged: Vec::new(),
        }
    } else {
        uninterrupted(forget_named(place, &args.snapshots, dry, context), context)?
    };
    // What a damaged snapshot needs isn't known: a prune would refuse.
    let prune = match args.prune && damaged.is_empty() {
        // Nothing was removed, so nothing more can be said to be unused.
        true if dry == DryRun::No => Some(uninterrupted(prune_at(place, dry, context), context)?),
        _ => None,
    };
    let wal = match args.prune && damaged.is_empty() {
        true => expire::at_prune(place, &named.gone(), dry, context)?,
        false => AtPrune::default(),
    };
    let document = ForgetDocument {
        dry_run: args.repository.dry_run,
        decisions: named.decisions,
        damaged_forgotten: named.damaged.iter().map(ToString::to_string).collect(),
        damaged,
        prune,
        wal,
    };
    context.output.result(&document, ForgetDocument::text)?;
    if args.prune && !document.damaged.is_empty() {
        context.output.warning(
            "nothing was pruned: what the damaged snapshots need is not known; forget them by their whole ids first",
        );
    }
    match is_flooded || document.wal.warned() {
        true => Ok(Outcome::Warnings),
        false => Ok(document.damaged.outcome()),
    }
}

#[derive(Serialize)]
struct UndeleteDocument {
    host: String,
    /// What is recoverable, where that was asked for.
    recoverable: Option<Vec<RemovedDocument>>,
    put_back: u64,
    put_back_bytes: u64,
    /// Of which another file had come since.
    displaced: Vec<String>,
    left_out: u64,
}

#[derive(Serialize)]
struct RemovedDocument {
    object: String,
    removed: String,
    bytes: u64,
}

/// Puts back what maintenance removed.
///
/// # Errors
/// When the repository can't be held, or something can't be put back.
pub(super) fn undelete(args: &UndeleteArgs, context: &Context) -> Result<Outcome> {
    let host = server::host_name(&args.host.host)?;
    let repository = context
        .runtime
        .block_on(async {
            let state = server::open_state(context).await?;
            Ok::<_, anyhow::Error>(state.exclusive(&host, Removal::Recoverable).await?)
        })
        .advise("wait until no job of that host runs, and try again")?;
    let since = args.since.map_or(SystemTime::UNIX_EPOCH, SystemTime::from);
    let mut document = UndeleteDocument {
        host: host.to_string(),
        recoverable: None,
        put_back: 0,
        put_back_bytes: 0,
        displaced: Vec::new(),
        left_out: 0,
    };
    if args.list {
        let mut removed = repository.removed()?;
        removed.retain(|object| object.removed_at >= since);
        let removed = removed.into_iter().map(|object| RemovedDocument {
            object: object.name.to_string(),
            removed: server::time(object.removed_at),
            bytes: object.bytes,
        });
        document.recoverable = Some(removed.collect());
    } else {
        let put_back = repository.undelete(since)?;
        (document.put_back, document.put_back_bytes) = (put_back.objects, put_back.bytes);
        for name in put_back.displaced {
            context.output.warning(format!(
                "{name} was put back over another file that had come under its name: that one lies in damaged/ of the \
                 repository; if it is the right one, exchange the two, and give what archives there a host of its own"
            ));
            document.displaced.push(name.to_string());
        }
        if let Some(after) = args.leave_out_after {
            document.left_out = repository.leave_out(after.into())?.objects;
        }
    }
    context.output.result(&document, UndeleteDocument::text)?;
    match document.displaced.is_empty() {
        true => Ok(Outcome::Done),
        false => Ok(Outcome::Warnings),
    }
}

impl UndeleteDocument {
    fn text(&self) -> String {
        let Some(recoverable) = &self.recoverable else {
            let mut text = format!(
                "{} objects of {} are back, {}\n",
                self.put_back,
                self.host,
                bytes(self.put_back_bytes)
            );
            if self.left_out > 0 {
                text.push_str(&format!(
                    "{} snapshots and indexes are left out\n",
                    self.left_out
                ));
            }
            return text;
        };
        let row = |object: &RemovedDocument| {
            vec![
                object.removed.clone(),
                object.object.clone(),
                bytes(object.bytes),
            ]
        };
        let head = ["removed", "object", "bytes"].map(str::to_owned).to_vec();
        let mut rows = vec![head];
        rows.extend(recoverable.iter().map(row));
        table(&rows)
    }
}

/// What a piece of work came to, told as an interruption where that is why it failed.
fn uninterrupted<T>(done: Result<T, impl Into<anyhow::Error>>, context: &Context) -> Result<T> {
    done.map_err(|error| match context.check_cancelled() {
        Err(interrupted) => interrupted,
        Ok(()) => error.into(),
    })
}

/// Snapshots that were named, and forgotten.
struct Named {
    decisions: Vec<ForgetDecision>,
    /// Those of which no more is known than their ids.
    damaged: Vec<ObjectId>,
}

impl Named {
    /// What is forgotten of it.
    fn gone(&self) -> BTreeSet<ObjectId> {
        let decisions = self.decisions.iter().filter(|it| !it.keep);
        decisions.map(|it| it.snapshot.id).collect()
    }
}

fn forget_named(
    place: &dyn Place,
    wanted: &[String],
    dry: DryRun,
    context: &Context,
) -> Result<Named> {
    // All of them are found before the first goes.
    let mut seen = BTreeSet::new();
    let mut found = Named {
        decisions: Vec::new(),
        damaged: Vec::new(),
    };
    for wanted in wanted {
        match place.repository().resolve(wanted) {
            Ok(snapshot) if seen.insert(snapshot.id) => found.decisions.push(ForgetDecision {
                snapshot,
                keep: false,
                reasons: Vec::new(),
            }),
            Ok(_) => {}
            Err(error) => {
                let id = damaged_snapshot(wanted, error)?;
                if seen.insert(id) {
                    found.damaged.push(id);
                }
            }
        }
    }
    for id in &seen {
        context.check_cancelled()?;
        if dry == DryRun::No {
            let kind = ObjectKind::Snapshot;
            let name = ObjectName { kind, id: *id };
            place
                .remove(name)
                .with_context(|| format!("cannot remove snapshot {id}"))?;
        }
    }
    Ok(found)
}

/// The damaged snapshot that is meant, if it was named beyond doubt: nobody can look at it before it goes.
fn damaged_snapshot(wanted: &str, error: RepoError) -> Result<ObjectId> {
    let wanted = wanted.to_ascii_lowercase();
    let damaged = error.object().filter(|object| {
        object.kind == ObjectKind::Snapshot && object.id.to_string().starts_with(&wanted)
    });
    match damaged {
        Some(object) if object.id.to_string() == wanted => Ok(object.id),
        Some(object) => Err(error).advise(format!(
            "to remove it although nobody can read what it is, name it by its whole id: {}",
            object.id
        )),
        None => Err(error.into()),
    }
}

impl ForgetDocument {
    fn text(&self) -> String {
        let mut rows = Vec::new();
        for decision in &self.decisions {
            let what = match (decision.keep, self.dry_run) {
                (true, _) => "keep",
                (false, false) => "forgotten",
                (false, true) => "would be forgotten",
            };
            rows.push(vec![
                decision.snapshot.id.to_string()[..8].to_owned(),
                decision.snapshot.time.clone(),
                what.to_owned(),
                decision.reasons.join(", "),
            ]);
        }
        for id in &self.damaged_forgotten {
            let what = if self.dry_run {
                "would be forgotten"
            } else {
                "forgotten"
            };
            let row = [&id[..8], "(damaged)", what];
            rows.push(row.map(str::to_owned).to_vec());
        }
        let mut text = table(&rows);
        if let Some(prune) = &self.prune {
            text.push_str(&prune_text(prune, self.dry_run));
        }
        text.push_str(&self.wal.line(self.dry_run));
        text
    }
}

#[derive(Serialize)]
struct PruneDocument {
    dry_run: bool,
    #[serde(flatten)]
    summary: PruneSummary,
    /// What was, or would be, removed of archived WAL.
    #[serde(flatten)]
    wal: AtPrune,
}

/// Removes what no snapshot needs.
///
/// # Errors
/// When the repository can't be held, is not whole, or something can't be removed.
pub(crate) fn prune(args: &PruneArgs, context: &Context) -> Result<Outcome> {
    with("prune", &args.repository, context, |place| {
        let dry = dry_run(&args.repository);
        let summary = uninterrupted(prune_at(place, dry, context), context)?;
        let document = PruneDocument {
            dry_run: args.repository.dry_run,
            summary,
            wal: expire::at_prune(place, &BTreeSet::new(), dry, context)?,
        };
        context.output.result(&document, |document| {
            let wal = document.wal.line(document.dry_run);
            prune_text(&document.summary, document.dry_run) + &wal
        })?;
        Ok(Outcome::from_warnings(document.wal.warned().into()))
    })
}

fn prune_at(place: &dyn Place, dry_run: DryRun, context: &Context) -> Result<PruneSummary> {
    let options = PruneOptions {
        // Right, since no session of this host can be open.
        delete: PruneDelete::AtOnce,
        repack: place.repack(),
        dry_run,
        ..PruneOptions::default()
    };
    Phases::show(context.output, place.repository());
    let pruned = place.repository().prune(&options)?;
    let stays = pruned.bytes_unused.saturating_sub(pruned.bytes_freed);
    if place.repack() == Repack::Trees && stays > 0 {
        context.output.note(format!(
            "{} that nothing uses stay, in packs of file contents of which something is used; --repack-data frees them",
            bytes(stays)
        ));
    }
    Ok(pruned)
}

fn prune_text(summary: &PruneSummary, dry_run: bool) -> String {
    let verb = if dry_run { "would be" } else { "were" };
    format!(
        "{} of {} unused {verb} freed; {} stay\n",
        bytes(summary.bytes_freed),
        bytes(summary.bytes_unused),
        bytes(summary.bytes_left)
    )
}
