//! Check, forget, prune: the engine's, with its findings as values.
//!
//! Forget and prune remove objects, which only the server's side of a store allows. Prune must run alone: the engine
//! knows no locks.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use backlane_proto::ObjectId;
use rustic_core::repofile::SnapshotFile;
use rustic_core::{
    CheckResults, Id, KeepOptions, LimitOption, PrunePlan, RusticResult, StringList, TreeId, jiff,
};
use serde::Serialize;

use crate::archive::DryRun;
use crate::engine;
use crate::error::RepoError;
use crate::repository::{Inner, Repository};
use crate::snapshot::{Snapshot, SnapshotInfo};

/// What a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CheckOptions {
    /// Index, snapshots and trees, and that every pack is there with its size.
    #[default]
    Structure,
    /// All this, and every byte of every pack that is in use.
    ReadData,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// What is wrong.
    pub errors: Vec<String>,
    /// What is odd but harms nobody: packs that nothing refers to, say.
    pub warnings: Vec<String>,
    /// How many snapshots could be read.
    pub snapshots: usize,
}

/// Which snapshots to keep. They are judged by host and paths, each such group by itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeepPolicy {
    /// The newest so many.
    pub last: Option<u32>,
    /// The newest of each of the last so many hours that have one.
    pub hourly: Option<u32>,
    /// The same by days.
    pub daily: Option<u32>,
    /// The same by weeks.
    pub weekly: Option<u32>,
    /// The same by months.
    pub monthly: Option<u32>,
    /// The same by years.
    pub yearly: Option<u32>,
    /// All that are no older than this, counted back from the newest.
    pub within: Option<Duration>,
    /// All that have one of these tags.
    pub tags: Vec<String>,
}

/// By what time snapshots are judged: when they arrived at the server, where that is known. A client writes what time it
/// likes into its snapshots, and must not move others out of a policy's reach by it.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// When each snapshot arrived.
    pub times: BTreeMap<ObjectId, SystemTime>,
    /// What is made of more snapshots in a day than ever came before.
    pub flood: Flood,
}

/// What a policy makes of a flood: more snapshots of one group within a day than [`FLOOD_FACTOR`] times as many as came on
/// the busiest day before, where older ones are there. It is one for as long as its snapshots are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Flood {
    /// Nothing of the group is forgotten, whatever the policy says: without the flood's own snapshots nobody would see that
    /// there was one.
    #[default]
    Protect,
    /// It counts like any others.
    Count,
}

/// See [`Flood`].
pub const FLOOD_FACTOR: usize = 3;

/// What becomes of a snapshot, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ForgetDecision {
    /// The snapshot.
    pub snapshot: SnapshotInfo,
    /// Whether it stays.
    pub keep: bool,
    /// The parts of the policy that keep it.
    pub reasons: Vec<String>,
}

/// What a policy came to.
#[derive(Debug)]
pub struct Forgotten {
    /// What becomes of each snapshot that can be read.
    pub decisions: Vec<ForgetDecision>,
    /// What is wrong with the others. They stay, whatever the policy says.
    pub damaged: Vec<RepoError>,
    /// Floods; of their groups nothing is forgotten.
    pub floods: Vec<String>,
}

/// How a prune goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// How much that is not in use may stay, in percent of the repository.
    pub unused_percent_max: u8,
    /// When packs that nothing uses are removed.
    pub delete: PruneDelete,
    /// Which packs are written anew where they are used in part.
    pub repack: Repack,
    /// Whether to do it.
    pub dry_run: DryRun,
}

/// Which packs are written anew, without what is not in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Repack {
    /// Those of which it pays.
    #[default]
    All,
    /// Of these, those that hold trees: no file contents are read.
    Trees,
}

/// When packs that nothing uses are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PruneDelete {
    /// A later prune removes them, 23 hours after this one has marked them.
    #[default]
    Later,
    /// At once: right where nobody else has the repository open.
    AtOnce,
}

/// What a prune did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PruneSummary {
    /// Packs that are kept as they are.
    pub packs_kept: u64,
    /// Packs written anew without what is not in use.
    pub packs_repacked: u64,
    /// Packs that nothing uses.
    pub packs_unused: u64,
    /// Marked packs that are removed now.
    pub packs_removed: u64,
    /// Bytes that were not in use before.
    pub bytes_unused: u64,
    /// Bytes that were not in use and are freed, now or when the marked packs go.
    pub bytes_freed: u64,
    /// Bytes that stay.
    pub bytes_left: u64,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            unused_percent_max: 5,
            delete: PruneDelete::default(),
            repack: Repack::default(),
            dry_run: DryRun::default(),
        }
    }
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }
}

impl Repository {
    /// Checks the repository. What is wrong with it is in the report, not an error: every damaged object that was found,
    /// and every file and directory that can't be restored because of it.
    ///
    /// # Errors
    /// When the store fails in a way that ends the check.
    pub fn check(&self, options: CheckOptions) -> Result<CheckReport, RepoError> {
        let (snapshots, damage) = self.readable_snapshots()?;
        let mut report = CheckReport {
            errors: damage.iter().map(ToString::to_string).collect(),
            warnings: Vec::new(),
            snapshots: snapshots.len(),
        };
        self.inner.check_structure(&snapshots, &mut report)?;
        let reader = self.reader()?;
        let packs = match options {
            CheckOptions::ReadData => reader.read_packs()?,
            // It costs a walk through all trees.
            CheckOptions::Structure if report.is_clean() => return Ok(report),
            CheckOptions::Structure => reader.cut_off()?,
        };
        report.errors.extend(packs.findings.iter().cloned());
        if !(report.is_clean() && packs.is_empty()) {
            report.errors.extend(reader.costs(&snapshots, &packs)?);
        }
        Ok(report)
    }

    /// Removes the snapshots that a policy doesn't keep; what they alone used goes with the next prune. A snapshot that is
    /// damaged is neither counted nor removed.
    ///
    /// # Errors
    /// [`RepoError::KeepsNothing`] where [`KeepPolicy::keeps_nothing`]; when the store fails, or a snapshot can't be removed.
    pub fn forget(
        &self,
        policy: &KeepPolicy,
        arrivals: &Arrivals,
        dry_run: DryRun,
    ) -> Result<Forgotten, RepoError> {
        let keep = policy.engine_options()?;
        let mut groups: BTreeMap<_, Vec<Snapshot>> = BTreeMap::new();
        let (snapshots, damaged) = self.inner.readable_snapshots()?;
        for snapshot in snapshots {
            let paths: Vec<_> = snapshot.file.paths.iter().cloned().collect();
            let group = (snapshot.file.hostname.clone(), paths);
            groups.entry(group).or_default().push(snapshot);
        }
        let mut decisions = Vec::new();
        let mut forgotten = Vec::new();
        let mut floods = Vec::new();
        for (_, group) in groups {
            let mut files: Vec<_> = group.iter().map(|snapshot| snapshot.file.clone()).collect();
            for file in &mut files {
                arrivals.set_time(file);
            }
            let flood = arrivals.flood_of(&files);
            let decided = engine::caught("applying the policy", || {
                keep.apply(files, &jiff::Zoned::now())
            })?;
            floods.extend(flood.clone());
            for mut decision in decided {
                if flood.is_some() && !decision.keep {
                    decision.keep = true;
                    decision.reasons = vec!["flood".to_owned()];
                }
                let id = decision.snapshot.id;
                let snapshot = group.iter().find(|snapshot| snapshot.file.id == id);
                let Some(snapshot) = snapshot else { continue };
                if !decision.keep {
                    forgotten.push(id);
                }
                decisions.push(ForgetDecision {
                    snapshot: snapshot.info(),
                    keep: decision.keep,
                    reasons: decision.reasons,
                });
            }
        }
        if dry_run == DryRun::No && !forgotten.is_empty() {
            let inner = &self.inner;
            engine::guarded(&inner.backend, "forgetting snapshots", || {
                inner.engine()?.delete_snapshots(&forgotten)
            })?;
        }
        Ok(Forgotten {
            decisions,
            damaged,
            floods,
        })
    }

    /// Removes one snapshot, whose object is not read: it may be damaged.
    ///
    /// # Errors
    /// When it doesn't exist or can't be removed.
    pub fn forget_snapshot(&self, id: ObjectId) -> Result<(), RepoError> {
        let inner = &self.inner;
        let ids = [rustic_core::repofile::SnapshotId::from(
            rustic_core::Id::new(id.0),
        )];
        engine::guarded(&inner.backend, "forgetting a snapshot", || {
            inner.engine()?.delete_snapshots(&ids)
        })
    }

    /// Frees what no snapshot uses. Nobody else may write to the repository meanwhile. The index no longer names packs
    /// that are missing then.
    ///
    /// # Errors
    /// When the store fails, a snapshot, a tree or a part of the index is damaged (what it needs would be freed too), or
    /// a snapshot needs what was in a pack that is missing.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneSummary, RepoError> {
        let inner = &self.inner;
        let missing = inner.missing(inner.packs()?.not_listed)?;
        if !missing.is_empty() {
            let planned = {
                let _without = inner.without(&missing);
                let dry_run = DryRun::Yes;
                inner.prune(&PruneOptions {
                    dry_run,
                    ..*options
                })?
            };
            if options.dry_run == DryRun::Yes {
                return Ok(planned);
            }
            inner.drop_from_index(missing)?;
        }
        inner.prune(options)
    }
}

impl Inner {
    fn prune(&self, options: &PruneOptions) -> Result<PruneSummary, RepoError> {
        let pruned = engine::guarded(&self.backend, "pruning", || {
            let engine = self.engine()?;
            let how = rustic_core::PruneOptions::default()
                .max_unused(LimitOption::Percentage(options.unused_percent_max.into()))
                .max_repack(LimitOption::Unlimited)
                .repack_cacheable_only(options.repack == Repack::Trees)
                .instant_delete(options.delete == PruneDelete::AtOnce);
            let plan = PrunePlan::from_prune_options(&engine, &how)?;
            let summary = summary_of(&plan);
            if options.dry_run == DryRun::No {
                engine.prune(&how, plan)?;
            }
            RusticResult::Ok(summary)
        });
        pruned.map_err(|error| self.cause_of(error))
    }

    /// The engine's check of index, trees, and the list of packs.
    fn check_structure(
        &self,
        snapshots: &[SnapshotInfo],
        report: &mut CheckReport,
    ) -> Result<(), RepoError> {
        // Of a blob in two packs the engine may look for the one that is gone.
        let missing = self.missing(self.packs()?.not_listed)?;
        let gone = missing
            .names()
            .map(|pack| format!("{pack} is gone, and the index names it"));
        report.errors.extend(gone);
        let _without = self.without(&missing);
        let tree = |snapshot: &SnapshotInfo| TreeId::from(Id::new(snapshot.tree.0));
        let trees: Vec<_> = snapshots.iter().map(tree).collect();
        let found = self.over_damaged_index("checking", || {
            let options = rustic_core::CheckOptions::default();
            self.engine()?.check_with_trees(options, trees.clone())
        });
        match found {
            Ok((CheckResults(findings), damage)) => {
                report.errors.extend(damage.iter().map(ToString::to_string));
                for finding in findings {
                    // The engine's type of a level can't be named; this asks whether it counts as an error.
                    let one = CheckResults(vec![finding]);
                    let list = if one.is_ok().is_err() {
                        &mut report.errors
                    } else {
                        &mut report.warnings
                    };
                    list.extend(one.0.iter().map(|(_, finding)| finding.to_string()));
                }
            }
            // It panics over content that it can't cope with.
            Err(error)
                if error.is_damage() || matches!(error, RepoError::EnginePanicked { .. }) =>
            {
                report.errors.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Arrivals {
    fn set_time(&self, file: &mut SnapshotFile) {
        let arrived = self
            .times
            .get(&crate::convert::object_id(&file.id.into_inner()));
        if let Some(arrived) = arrived
            && let Ok(arrived) = jiff::Timestamp::try_from(*arrived)
        {
            file.time = arrived.to_zoned(jiff::tz::TimeZone::system());
        } else {
            // Days, weeks and months are this machine's: by zones of its own choice a client could make many of one.
            file.time = file.time.with_time_zone(jiff::tz::TimeZone::system());
        }
    }

    fn flood_of(&self, files: &[SnapshotFile]) -> Option<String> {
        const DAY_SECONDS: i64 = 24 * 60 * 60;
        if self.flood == Flood::Count {
            return None;
        }
        let newest = files.iter().map(|file| file.time.timestamp()).max()?;
        let mut by_day: BTreeMap<i64, Vec<&SnapshotFile>> = BTreeMap::new();
        for file in files {
            let age = newest.as_second() - file.time.timestamp().as_second();
            by_day.entry(age / DAY_SECONDS).or_default().push(file);
        }
        // From the oldest day on. A flood is no measure of the days after it.
        let mut busiest = 0;
        let mut found = None;
        for day in by_day.into_values().rev() {
            if busiest == 0 || day.len() <= FLOOD_FACTOR * busiest {
                busiest = busiest.max(day.len());
                continue;
            }
            let of = day.first()?;
            found = Some(format!(
                "{} snapshots of {} ({}) arrived within a day, where at most {busiest} came on any day before",
                day.len(),
                of.hostname,
                of.paths
            ));
        }
        found
    }
}

impl KeepPolicy {
    /// Whether it would keep no snapshot at all: it names nothing, or nothing but zeros.
    #[must_use]
    pub fn keeps_nothing(&self) -> bool {
        let counts = [
            self.last,
            self.hourly,
            self.daily,
            self.weekly,
            self.monthly,
            self.yearly,
        ];
        // The engine is told whole seconds.
        let seconds = self.within.map_or(0, |within| within.as_secs());
        self.tags.is_empty() && seconds == 0 && counts.into_iter().flatten().all(|count| count == 0)
    }

    fn engine_options(&self) -> Result<KeepOptions, RepoError> {
        if self.keeps_nothing() {
            return Err(RepoError::KeepsNothing);
        }
        let count = |count: Option<u32>| {
            let what = "a number of snapshots to keep";
            count
                .map(|count| i32::try_from(count).map_err(|_| RepoError::OutOfRange { what }))
                .transpose()
        };
        let mut keep = KeepOptions::default()
            .keep_last(count(self.last)?)
            .keep_hourly(count(self.hourly)?)
            .keep_daily(count(self.daily)?)
            .keep_weekly(count(self.weekly)?)
            .keep_monthly(count(self.monthly)?)
            .keep_yearly(count(self.yearly)?);
        if let Some(within) = self.within {
            let what = "the time to keep snapshots for";
            let seconds = i64::try_from(within.as_secs()).ok();
            let span = seconds.and_then(|seconds| jiff::Span::new().try_seconds(seconds).ok());
            keep.keep_within = Some(span.ok_or(RepoError::OutOfRange { what })?);
        }
        for tag in &self.tags {
            let mut list = StringList::default();
            list.add(tag.clone());
            keep.keep_tags.push(list);
        }
        Ok(keep)
    }
}

fn summary_of(plan: &PrunePlan) -> PruneSummary {
    let stats = &plan.stats;
    let size = stats.size_sum();
    let freed = size.remove + size.repackrm;
    PruneSummary {
        packs_kept: stats.packs.keep,
        packs_repacked: stats.packs.repack,
        packs_unused: stats.packs.unused,
        packs_removed: stats.packs_to_delete.remove,
        bytes_unused: size.unused,
        bytes_freed: freed,
        bytes_left: (size.used + size.unused).saturating_sub(freed),
    }
}
