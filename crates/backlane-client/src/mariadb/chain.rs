//! Which archived binary logs bring a backup to a later moment.
//!
//! Invariant: what a chain has is one server's history without a gap, from the file on in which the backup ends. What was
//! written after the server began to count anew is not in it, nor what comes behind a missing file.

use crate::error::Error;
use backlane_repo::{FileKind, Node, Reader, RepoError, SnapshotInfo};
use backlane_source::mariadb::{BinlogBackup, BinlogName, PhysicalBackup, Until};
use jiff::Timestamp;
use std::{collections::BTreeMap, os::unix::ffi::OsStrExt, path::Path};

/// The binary logs that one backup of them has.
#[derive(Clone, Debug)]
pub struct Run {
    /// Everything that was written before this is in them, or in older ones.
    pub until: Timestamp,
    /// The newest that the server had closed.
    pub last: BinlogName,
    /// Those that are in the snapshot.
    pub files: BTreeMap<BinlogName, Node>,
}

/// Reads which binary logs of a server the snapshots have, oldest first. What is damaged is told beside it.
///
/// # Errors
/// When the server fails.
pub fn read_runs(
    reader: &Reader,
    snapshots: &[SnapshotInfo],
    data_directory: &Path,
) -> Result<(Vec<Run>, Vec<RepoError>), Error> {
    let path = BinlogBackup::path(data_directory);
    let (mut runs, mut damaged) = (Vec::new(), Vec::new());
    for snapshot in snapshots {
        let description = snapshot.description.as_deref();
        let Some(backup) = description.and_then(BinlogBackup::from_description) else {
            continue;
        };
        let is_of_server = backup.data_directory == data_directory;
        let Some(last) = BinlogName::parse(&backup.last).filter(|_| is_of_server) else {
            continue;
        };
        let said = Timestamp::from_second(snapshot.unix_seconds).unwrap_or_default();
        match files(reader, snapshot, &path) {
            Ok(files) => runs.push(Run {
                until: backup.until.unwrap_or(said),
                last,
                files,
            }),
            Err(error) if error.is_damage() => damaged.push(error),
            Err(error) => return Err(error.into()),
        }
    }
    runs.sort_by_key(|run| run.until);
    Ok((runs, damaged))
}

fn files(
    reader: &Reader,
    snapshot: &SnapshotInfo,
    path: &Path,
) -> Result<BTreeMap<BinlogName, Node>, RepoError> {
    let directory = reader.node_at(snapshot.tree, path.as_os_str().as_bytes());
    let directory = match directory {
        // None of its files could be read.
        Err(RepoError::PathNotFound { .. }) => return Ok(BTreeMap::new()),
        directory => directory?,
    };
    let tree = directory
        .subtree
        .map(|tree| reader.tree(tree))
        .transpose()?;
    let nodes = tree.unwrap_or_default().nodes.into_iter();
    let named = nodes.filter_map(|node| {
        let name = BinlogName::parse(std::str::from_utf8(&node.name).ok()?)?;
        (node.kind == FileKind::File).then_some((name, node))
    });
    Ok(named.collect())
}

/// The binary logs that a backup can be brought on by.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The files, the first of them that in which the backup ends.
    pub files: Vec<(BinlogName, Node)>,
    /// Everything that was written before this is in the backup and in them.
    pub reaches: Timestamp,
    /// Why it goes no further.
    pub end: End,
    /// The newest file of each run, by the time up to which it has everything.
    runs: Vec<(Timestamp, u64)>,
}

/// What comes after the last file of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing is archived yet.
    Newest,
    /// These are missing, and later ones are there.
    Missing {
        /// The first of them.
        first: BinlogName,
        /// The last of them.
        last: BinlogName,
    },
    /// The server had begun its binary logs anew by then.
    Anew(Timestamp),
}

impl Chain {
    /// Joins what brings a backup on. `None` if it doesn't say where in the binary logs it ends.
    #[must_use]
    pub fn new(backup: &PhysicalBackup, runs: &[Run]) -> Option<Self> {
        let ends = backup.binlog.as_ref()?;
        let from = BinlogName::parse(&ends.file)?;
        let mut known: BTreeMap<u64, &Node> = BTreeMap::new();
        let mut newest = None;
        let mut anew = None;
        let mut reached = Vec::new();
        // An earlier one has nothing of the file in which the backup ends.
        for run in runs.iter().filter(|run| run.until >= backup.began) {
            let least = newest.unwrap_or(match run.until > backup.ended {
                true => from.number,
                false => 0,
            });
            let files = run
                .files
                .iter()
                .filter(|(name, _)| name.base == from.base && name.number >= from.number);
            // The file in which the backup ends has that place.
            let is_short = |(name, node): (&BinlogName, &Node)| {
                name.number == from.number && node.meta.size < ends.position
            };
            let differs = |(name, node): (&BinlogName, &Node)| {
                let before = known.get(&name.number);
                before.is_some_and(|before| before.content != node.content)
            };
            let is_other = run.last.base != from.base || run.last.number < least;
            if is_other || files.clone().any(is_short) || files.clone().any(differs) {
                anew = Some(run.until);
                break;
            }
            known.extend(files.map(|(name, node)| (name.number, node)));
            newest = Some(run.last.number);
            reached.push((run.until, run.last.number));
        }
        let number = |(&number, &node): (&u64, &&Node)| (number, node.clone());
        let files = known.iter().map(number).zip(from.number..);
        let files = files.map_while(|((number, node), expected)| {
            (number == expected).then(|| (from.with(number), node))
        });
        let files: Vec<_> = files.collect();
        let next = from.number + files.len() as u64;
        let behind = known.range(next..).next().map(|(number, _)| number - 1);
        let last = behind.or(newest.filter(|newest| *newest >= next));
        let end = match (last, anew) {
            (Some(last), _) => End::Missing {
                first: from.with(next),
                last: from.with(last),
            },
            (None, Some(at)) => End::Anew(at),
            (None, None) => End::Newest,
        };
        reached.retain(|(_, last)| *last < next && *last >= from.number);
        Some(Self {
            reaches: reached
                .last()
                .map_or(backup.ended, |(until, _)| backup.ended.max(*until)),
            files,
            end,
            runs: reached,
        })
    }

    /// The files that it takes to come to a moment.
    ///
    /// # Errors
    /// When the backup is of a later moment, or they don't come there.
    pub fn to(
        &self,
        backup: &PhysicalBackup,
        until: &Until,
    ) -> Result<&[(BinlogName, Node)], Error> {
        let not_reached = || Error::BinlogsEnd {
            until: until.to_string(),
            reaches: self.reaches,
            why: self.end.to_string(),
        };
        let last = match until {
            Until::Time(time) if *time < backup.ended => {
                return Err(Error::BeforeBackup {
                    until: until.to_string(),
                    ends: format!("at {}", backup.ended),
                });
            }
            Until::Time(time) => {
                let first = self.runs.iter().find(|(until, _)| until >= time);
                first.ok_or_else(not_reached)?.1
            }
            Until::Position(file, position) => {
                let ends = backup.binlog.as_ref().ok_or(Error::NoBinlogPosition)?;
                let is_before = BinlogName::parse(&ends.file).is_some_and(|first| {
                    file.base != first.base
                        || (file.number, *position) < (first.number, ends.position)
                });
                if is_before {
                    return Err(Error::BeforeBackup {
                        until: until.to_string(),
                        ends: format!("in {} at {}", ends.file, ends.position),
                    });
                }
                file.number
            }
            Until::Latest => match (&self.end, self.files.last()) {
                // What comes behind a gap, or in another history, is newer than what there is.
                (End::Newest, Some((last, _))) => last.number,
                _ => return Err(not_reached()),
            },
        };
        let end = self.files.iter().position(|(name, node)| {
            let reaches = match until {
                Until::Position(_, position) => node.meta.size >= *position,
                _ => true,
            };
            name.number == last && reaches
        });
        Ok(&self.files[..=end.ok_or_else(not_reached)?])
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Newest => f.write_str("later binary logs are in no backup yet"),
            Self::Missing { first, last } if first == last => {
                write!(f, "{first} is in no backup, and later ones are")
            }
            Self::Missing { first, last } => {
                write!(f, "{first} to {last} are in no backup, and later ones are")
            }
            Self::Anew(at) => write!(f, "the server had begun its binary logs anew by {at}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlane_repo::{BlobId, Metadata};

    fn at(minute: u8) -> Timestamp {
        format!("2026-01-31T12:{minute:02}:00Z").parse().unwrap()
    }

    fn name(number: u64) -> BinlogName {
        BinlogName::parse("b.000000").unwrap().with(number)
    }

    /// One that ends in the fifth file, at minute 10.
    fn backup() -> PhysicalBackup {
        let text = r#"MariaDB {"version":"10","data_directory":"/d","binlog":{"file":"b.000005","position":400,"gtid":null},
            "began":"2026-01-31T12:09:00Z","ended":"2026-01-31T12:10:00Z"}"#;
        PhysicalBackup::from_description(text).unwrap()
    }

    /// Some files of a history, archived at some minute.
    fn run(minute: u8, numbers: &[u64], history: u8) -> Run {
        let file = |number: &u64| {
            let content = [history; 32];
            let node = Node {
                name: name(*number).to_string().into_bytes(),
                kind: FileKind::File,
                meta: Metadata {
                    size: 1000,
                    ..Metadata::default()
                },
                content: vec![BlobId(content)],
                subtree: None,
            };
            (name(*number), node)
        };
        Run {
            until: at(minute),
            last: name(*numbers.last().unwrap()),
            files: numbers.iter().map(file).collect(),
        }
    }

    fn chain(runs: &[Run]) -> (Vec<u64>, Timestamp, End) {
        let chain = Chain::new(&backup(), runs).unwrap();
        let files = chain.files.iter().map(|(name, _)| name.number);
        (files.collect(), chain.reaches, chain.end)
    }

    #[test]
    fn a_run_that_was_begun_before_the_backup_ended_reaches_no_less_than_it() {
        let mut early = run(9, &[5, 6], 1);
        early.until = "2026-01-31T12:09:30Z".parse().unwrap();
        assert_eq!(chain(&[early]), (vec![5, 6], at(10), End::Newest));
    }

    #[test]
    fn a_chain_begins_where_the_backup_ends_and_has_no_gap() {
        let missing = |first, last| End::Missing {
            first: name(first),
            last: name(last),
        };
        let first = run(20, &[3, 4, 5], 1);
        assert_eq!(chain(&[]), (vec![], at(10), End::Newest));
        assert_eq!(chain(&[run(8, &[3, 4], 1)]), (vec![], at(10), End::Newest));
        assert_eq!(
            chain(std::slice::from_ref(&first)),
            (vec![5], at(20), End::Newest)
        );
        let both = [first.clone(), run(30, &[5, 6, 7], 1)];
        assert_eq!(chain(&both), (vec![5, 6, 7], at(30), End::Newest));
        let purged = [first.clone(), run(30, &[8, 9], 1)];
        assert_eq!(chain(&purged), (vec![5], at(20), missing(6, 7)));
        assert_eq!(chain(&purged[1..]), (vec![], at(10), missing(5, 7)));
        // One that could not be read, though it was the last.
        let mut unread = run(30, &[6, 7], 1);
        unread.files.remove(&name(7));
        assert_eq!(chain(&[first, unread]), (vec![5, 6], at(20), missing(7, 7)));
    }

    #[test]
    fn what_another_history_wrote_is_no_part_of_it() {
        let first = run(20, &[3, 4, 5, 6], 1);
        for other in [run(30, &[1, 2, 3], 2), run(30, &[5, 6, 7], 2)] {
            let both = [first.clone(), other];
            assert_eq!(chain(&both), (vec![5, 6], at(20), End::Anew(at(30))));
        }
        // The first one after the backup.
        let anew = chain(&[run(30, &[1, 2], 2), run(40, &[3, 4, 5], 2)]);
        assert_eq!(anew, (vec![], at(10), End::Anew(at(30))));
        // Of the same number, and too short for what the backup has of it.
        let mut short = run(20, &[5, 6], 2);
        short.files.get_mut(&name(5)).unwrap().meta.size = 399;
        assert_eq!(chain(&[short]), (vec![], at(10), End::Anew(at(20))));
        // Another server's, whose names only count alike.
        let mut renamed = run(20, &[5], 1);
        let other = BinlogName::parse("c.000006").unwrap();
        let node = renamed.files[&name(5)].clone();
        renamed.files.insert(other, node);
        assert_eq!(chain(&[renamed]), (vec![5], at(20), End::Newest));
        // Of the history before the one that the backup is of.
        let before = chain(&[run(7, &[5, 6, 7, 8], 2), first]);
        assert_eq!(before, (vec![5, 6], at(20), End::Newest));
    }

    #[test]
    fn a_moment_takes_no_more_files_than_it_has_to() {
        let runs = [run(20, &[5, 6], 1), run(30, &[7], 1), run(40, &[9], 1)];
        let chain = Chain::new(&backup(), &runs).unwrap();
        let to = |until: &str| {
            let files = chain.to(&backup(), &until.parse().unwrap());
            files.map(|files| files.last().unwrap().0.number)
        };
        assert_eq!(to("time=2026-01-31T12:10:00Z").unwrap(), 6);
        assert_eq!(to("time=2026-01-31T12:20:00Z").unwrap(), 6);
        assert_eq!(to("time=2026-01-31T12:20:01Z").unwrap(), 7);
        assert_eq!(to("position=b.000005:400").unwrap(), 5);
        assert_eq!(to("position=b.000007:4").unwrap(), 7);
        for beyond in [
            "time=2026-01-31T12:30:01Z",
            "position=b.000009:4",
            "position=b.000007:1001",
            "latest",
        ] {
            let refused = to(beyond).unwrap_err().to_string();
            assert!(refused.contains("b.000008 is in no backup"), "{refused}");
            assert!(refused.contains("12:30:00Z"), "{refused}");
        }
        let anew = [runs[0].clone(), run(30, &[1], 2)];
        let anew = Chain::new(&backup(), &anew).unwrap();
        let latest = anew.to(&backup(), &Until::Latest).unwrap_err().to_string();
        assert!(latest.contains("anew"), "{latest}");
        for early in [
            "time=2026-01-31T12:09:59Z",
            "position=b.000005:399",
            "position=c.000005:500",
        ] {
            let refused = to(early).unwrap_err();
            assert!(matches!(refused, Error::BeforeBackup { .. }), "{refused}");
        }
    }
}
