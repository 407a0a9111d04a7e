//! `backlane postgres status`: to when clusters can be brought back.

use crate::{
    Context,
    cli::PostgresStatusArgs,
    commands::{damage::Damage, server::time, session},
    output::{Outcome, table},
};
use anyhow::Result;
use backlane_client::wal::{
    Span,
    archive::{self, ArchivedSystem},
};
use backlane_proto::{ObjectId, ObjectKind, WalFile, WalName};
use backlane_repo::SnapshotInfo;
use backlane_source::postgres::{BaseBackup, Lsn, WalMode};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

#[derive(Serialize)]
struct StatusDocument {
    clusters: Vec<ClusterDocument>,
    /// Snapshots of which nothing is known: base backups may be among them.
    damaged: Damage,
}

#[derive(Serialize)]
struct ClusterDocument {
    system: String,
    /// The version of the newest backup.
    version: Option<String>,
    /// Times that recovery can aim at.
    windows: Vec<WindowDocument>,
    newest_wal: Option<NewestDocument>,
    /// Segments that are missing between others.
    missing: Vec<MissingDocument>,
    backups: Vec<BackupDocument>,
}

#[derive(Serialize)]
struct WindowDocument {
    from: String,
    /// When the last segment, or piece of one, arrived that can be reached.
    to: String,
    /// The base backup that it begins with.
    snapshot: String,
    /// That one.
    last_wal: String,
}

#[derive(Serialize)]
struct NewestDocument {
    file: String,
    /// The address up to which WAL is archived.
    lsn: Option<String>,
    arrived: String,
    lag_seconds: u64,
}

#[derive(Serialize)]
struct MissingDocument {
    first: String,
    last: String,
    files: u64,
}

#[derive(Serialize)]
struct BackupDocument {
    snapshot: String,
    ended: String,
    timeline: u32,
    start_wal: String,
    stop_wal: String,
    /// Whether it can be restored: its WAL is in it, or archived from its start to its end.
    restorable: bool,
}

/// Tells it of every cluster of this host's repository.
///
/// # Errors
/// When the repository or the archive can't be read.
pub(super) fn status(args: &PostgresStatusArgs, context: &Context) -> Result<Outcome> {
    let (snapshots, damaged, systems, arrivals) =
        session::job("postgres status", context, &args.route, |client| {
            let repository = client.repository()?;
            let mut damaged = Damage::none(context);
            let snapshots = damaged.snapshots(&repository)?;
            let systems = archive::read(&*client.store(), &repository.wal_key())?;
            let arrivals = client.arrivals(ObjectKind::Wal)?;
            Ok((snapshots, damaged, systems, arrivals))
        })?;
    let document = StatusDocument {
        clusters: clusters(&snapshots, &systems, &arrivals, SystemTime::now()),
        damaged,
    };
    context.output.result(&document, StatusDocument::text)?;
    Ok(document.damaged.outcome())
}

fn clusters(
    snapshots: &[SnapshotInfo],
    systems: &[ArchivedSystem],
    arrivals: &BTreeMap<ObjectId, SystemTime>,
    now: SystemTime,
) -> Vec<ClusterDocument> {
    let mut backups: BTreeMap<u64, Vec<(ObjectId, BaseBackup)>> = BTreeMap::new();
    for system in systems {
        backups.entry(system.system).or_default();
    }
    for snapshot in snapshots {
        let description = snapshot.description.as_deref();
        if let Some(backup) = description.and_then(BaseBackup::from_description) {
            let of_system = backups.entry(backup.system).or_default();
            of_system.push((snapshot.id, backup));
        }
    }
    let backups = backups.into_iter();
    let cluster = |(system, mut backups): (u64, Vec<(ObjectId, BaseBackup)>)| {
        backups.sort_by_key(|(_, backup)| backup.ended);
        let archived = systems.iter().find(|it| it.system == system);
        cluster(system, &backups, archived, (arrivals, now))
    };
    backups.map(cluster).collect()
}

fn cluster(
    system: u64,
    backups: &[(ObjectId, BaseBackup)],
    archived: Option<&ArchivedSystem>,
    (arrivals, now): (&BTreeMap<ObjectId, SystemTime>, SystemTime),
) -> ClusterDocument {
    let mut windows: Vec<WindowDocument> = Vec::new();
    let mut rows = Vec::new();
    for (snapshot, backup) in backups {
        let reached = archived.and_then(|archived| {
            archived.reach(Span {
                timeline: backup.timeline,
                start: backup.start_lsn.0,
                stop: backup.stop_lsn.0,
            })
        });
        rows.push(BackupDocument {
            snapshot: snapshot.to_string(),
            ended: time(backup.ended.into()),
            timeline: backup.timeline,
            start_wal: backup.start_wal.clone(),
            stop_wal: backup.stop_wal.clone(),
            restorable: reached.is_some() || backup.wal == WalMode::Include,
        });
        let Some(reached) = reached else { continue };
        let last_wal = reached.file_name();
        // An older backup that comes as far has begun this window.
        if windows.iter().all(|window| window.last_wal != last_wal) {
            let arrived = arrivals.get(&reached.id()).copied();
            windows.push(WindowDocument {
                from: time(backup.ended.into()),
                to: arrived.map_or_else(|| "unknown".to_owned(), time),
                snapshot: snapshot.to_string(),
                last_wal,
            });
        }
    }
    let segments = arrivals.iter().filter_map(|(id, at)| {
        let name = WalName::from_id(*id)?;
        let is_segment = matches!(name.file, WalFile::Segment(_) | WalFile::Piece(..));
        (name.system == system && is_segment).then_some((*at, name))
    });
    let newest = segments.max_by_key(|(at, _)| *at);
    let missing = archived.map(ArchivedSystem::gaps).unwrap_or_default();
    ClusterDocument {
        system: system.to_string(),
        version: backups.last().map(|(_, backup)| backup.version.clone()),
        windows,
        newest_wal: newest.map(|(at, name)| NewestDocument {
            file: name.file_name(),
            lsn: archived
                .and_then(ArchivedSystem::newest_address)
                .map(|address| Lsn(address).to_string()),
            arrived: time(at),
            lag_seconds: now.duration_since(at).unwrap_or(Duration::ZERO).as_secs(),
        }),
        missing: missing
            .iter()
            .map(|gap| MissingDocument {
                first: gap.first.file_name(),
                last: gap.last.file_name(),
                files: gap.files,
            })
            .collect(),
        backups: rows,
    }
}

impl StatusDocument {
    fn text(&self) -> String {
        if self.clusters.is_empty() {
            return "no cluster was backed up, and no WAL archived\n".to_owned();
        }
        self.clusters.iter().map(ClusterDocument::text).collect()
    }
}

impl ClusterDocument {
    fn text(&self) -> String {
        let version = self.version.as_ref();
        let version = version.map_or(String::new(), |version| format!(", PostgreSQL {version}"));
        let mut text = format!("cluster {}{version}\n", self.system);
        for window in &self.windows {
            text.push_str(&format!(
                "  can be brought back to any time from {} to {}\n",
                window.from, window.to
            ));
        }
        if self.windows.is_empty() {
            text.push_str("  can't be brought back to a time of choice: there is no base backup with WAL behind it\n");
        }
        match &self.newest_wal {
            Some(newest) => text.push_str(&format!(
                "  newest archived WAL: {}{}, {} ago\n",
                newest.file,
                newest
                    .lsn
                    .as_ref()
                    .map_or(String::new(), |lsn| format!(" (up to {lsn})")),
                humantime::format_duration(Duration::from_secs(newest.lag_seconds))
            )),
            None => text.push_str("  no WAL is archived\n"),
        }
        for missing in &self.missing {
            text.push_str(&match missing.files {
                1 => format!("  missing WAL: {}\n", missing.first),
                files => format!(
                    "  missing WAL: {files} segments from {} to {}\n",
                    missing.first, missing.last
                ),
            });
        }
        let head = [
            "backup",
            "ended",
            "timeline",
            "needs WAL from",
            "to",
            "restorable",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.backups.iter().map(|backup| {
            vec![
                backup.snapshot[..8].to_owned(),
                backup.ended.clone(),
                backup.timeline.to_string(),
                backup.start_wal.clone(),
                backup.stop_wal.clone(),
                if backup.restorable {
                    "yes"
                } else {
                    "no: WAL is missing"
                }
                .to_owned(),
            ]
        }));
        if rows.len() > 1 {
            for line in table(&rows).lines() {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlane_client::wal::archive::{ArchivedTimeline, SegmentRange};

    const SIZE: u64 = 16 << 20;

    /// A backup that needs a segment and the next one, and ended as many minutes after the epoch.
    fn backup(segment: u64, wal: &str) -> BaseBackup {
        let document = serde_json::json!({
            "system": "7", "version": "15.1", "origin": "primary", "timeline": 1,
            "start_lsn": format!("0/{:X}", segment * SIZE + 40),
            "stop_lsn": format!("0/{:X}", (segment + 1) * SIZE + 40),
            "start_wal": "a", "stop_wal": "b", "wal": wal,
            "began": "1970-01-01T00:00:00Z", "ended": format!("1970-01-01T00:{segment:02}:00Z"),
            "data_directory": "/data", "tablespaces": [],
        });
        serde_json::from_value(document).unwrap()
    }

    /// The windows and what can be restored, where these segments are archived, each after as many seconds.
    fn told(backups: &[BaseBackup], ranges: &[(u64, u64)]) -> (Vec<String>, Vec<bool>) {
        let range = |&(first, last): &(u64, u64)| SegmentRange {
            first,
            last,
            stored_bytes: 1,
        };
        let archived = ArchivedSystem {
            system: 7,
            segment_bytes: Some(SIZE),
            files: 0,
            stored_bytes: 0,
            timelines: vec![ArchivedTimeline {
                timeline: 1,
                ranges: ranges.iter().map(range).collect(),
                tail: None,
                origin: None,
            }],
        };
        let segments = ranges.iter().flat_map(|&(first, last)| first..=last);
        let arrivals = segments.map(|number| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
            (archived.segment(1, number).unwrap().id(), at)
        });
        let arrivals = arrivals.collect();
        let backups: Vec<_> = (0..)
            .map(|id| ObjectId([id; 32]))
            .zip(backups.iter().cloned())
            .collect();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let told = cluster(7, &backups, Some(&archived), (&arrivals, now));
        let newest = told.newest_wal.unwrap();
        assert_eq!(newest.lag_seconds, 100 - ranges.last().unwrap().1);
        let minutes = |text: &str| text["1970-01-01T00:".len()..].to_owned();
        let windows = told.windows.iter();
        let windows = windows.map(|it| format!("{} {}", minutes(&it.from), minutes(&it.to)));
        let restorable = told.backups.iter().map(|it| it.restorable);
        (windows.collect(), restorable.collect())
    }

    #[test]
    fn windows_begin_with_backups_and_end_where_wal_is_missing() {
        let [one, two] = [backup(3, "archive"), backup(6, "archive")];
        let both = [one.clone(), two.clone()];
        let window = |text: &str| text.to_owned();
        assert_eq!(
            told(&both, &[(3, 9)]),
            (vec![window("03:00Z 00:09Z")], vec![true, true])
        );
        assert_eq!(
            told(&both, &[(3, 4), (6, 9)]),
            (
                vec![window("03:00Z 00:04Z"), window("06:00Z 00:09Z")],
                vec![true, true]
            )
        );
        assert_eq!(
            told(&both, &[(4, 9)]),
            (vec![window("06:00Z 00:09Z")], vec![false, true])
        );
        assert_eq!(
            told(&[backup(3, "include"), two], &[(9, 9)]),
            (vec![], vec![true, false])
        );
    }
}
