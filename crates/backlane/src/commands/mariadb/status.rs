//! `backlane mariadb status`: to when servers can be brought back.

use crate::{
    Context,
    cli::MariadbStatusArgs,
    commands::{damage::Damage, server::time, session},
    output::{Outcome, bytes, table},
};
use anyhow::Result;
use backlane_client::mariadb::{Chain, End, Run, read_runs};
use backlane_proto::ObjectId;
use backlane_source::mariadb::{BinlogBackup, PhysicalBackup, Written};
use jiff::Timestamp;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

#[derive(Serialize)]
struct StatusDocument {
    servers: Vec<ServerDocument>,
    /// Why the server of this machine was not asked.
    not_asked: Option<String>,
    /// Snapshots of which nothing is known: backups may be among them.
    damaged: Damage,
}

#[derive(Serialize)]
struct ServerDocument {
    data_directory: PathBuf,
    /// The version of the newest backup.
    version: Option<String>,
    /// Times that a replay can come to.
    windows: Vec<WindowDocument>,
    newest_binlog: Option<NewestDocument>,
    /// What the server has and no backup, if it was asked.
    unarchived: Option<UnarchivedDocument>,
    /// Binary logs that are missing between others.
    missing: Vec<MissingDocument>,
    backups: Vec<BackupDocument>,
}

#[derive(Serialize)]
struct WindowDocument {
    from: String,
    /// Everything that was written before is archived.
    to: String,
    /// The backup that it begins with.
    snapshot: String,
    last_binlog: String,
}

#[derive(Serialize)]
struct NewestDocument {
    file: String,
    /// Everything that was written before is archived.
    until: String,
    lag_seconds: u64,
}

#[derive(Serialize)]
struct UnarchivedDocument {
    files: u64,
    bytes: u64,
}

#[derive(Serialize, PartialEq, Eq)]
struct MissingDocument {
    first: String,
    last: String,
    files: u64,
}

#[derive(Serialize)]
struct BackupDocument {
    snapshot: String,
    ended: String,
    /// Where in the binary logs it ends.
    binlog: Option<String>,
    position: Option<u64>,
    /// To when it can be brought, the end of the backup at least.
    to: String,
    /// Why no further, where that isn't only for lack of newer ones.
    why: Option<String>,
}

/// Tells it of every server of this host's repository.
///
/// # Errors
/// When the repository can't be read.
pub(super) fn status(args: &MariadbStatusArgs, context: &Context) -> Result<Outcome> {
    let written = Written::ask(&args.access.access());
    let (servers, damaged) = session::job("mariadb status", context, &args.route, |client| {
        let repository = client.repository()?;
        let mut damaged = Damage::none(context);
        let snapshots = damaged.snapshots(&repository)?;
        let mut backups: BTreeMap<PathBuf, Vec<(ObjectId, PhysicalBackup)>> = BTreeMap::new();
        for snapshot in &snapshots {
            let text = snapshot.description.as_deref().unwrap_or_default();
            if let Some(backup) = PhysicalBackup::from_description(text) {
                let of_server = backups.entry(backup.data_directory.clone()).or_default();
                of_server.push((snapshot.id, backup));
            } else if let Some(binlogs) = BinlogBackup::from_description(text) {
                backups.entry(binlogs.data_directory).or_default();
            }
        }
        let reader = damaged.reader(&repository)?;
        let mut servers = Vec::new();
        for (directory, mut backups) in backups {
            backups.sort_by_key(|(_, backup)| backup.ended);
            let (runs, unread) = read_runs(&reader, &snapshots, &directory)?;
            for error in &unread {
                damaged.note(error, "which binary logs that snapshot has isn't known");
            }
            let written = written.as_ref().ok();
            let now = (written, SystemTime::now());
            servers.push(server(&directory, &backups, &runs, now));
        }
        Ok((servers, damaged))
    })?;
    let document = StatusDocument {
        servers,
        not_asked: written.err().map(|error| error.to_string()),
        damaged,
    };
    context.output.result(&document, StatusDocument::text)?;
    Ok(document.damaged.outcome())
}

fn server(
    directory: &Path,
    backups: &[(ObjectId, PhysicalBackup)],
    runs: &[Run],
    (written, now): (Option<&Written>, SystemTime),
) -> ServerDocument {
    let mut windows: Vec<WindowDocument> = Vec::new();
    let mut missing = Vec::new();
    let mut rows = Vec::new();
    for (snapshot, backup) in backups {
        let chain = Chain::new(backup, runs);
        let reaches = chain.as_ref().map_or(backup.ended, |chain| chain.reaches);
        let end = chain.as_ref().map(|chain| &chain.end);
        rows.push(BackupDocument {
            snapshot: snapshot.to_string(),
            ended: text_of(backup.ended),
            binlog: backup.binlog.as_ref().map(|binlog| binlog.file.clone()),
            position: backup.binlog.as_ref().map(|binlog| binlog.position),
            to: text_of(reaches),
            why: match end {
                None => Some("without binary logs".to_owned()),
                Some(End::Newest) => None,
                Some(end) => Some(end.to_string()),
            },
        });
        if let Some(End::Missing { first, last }) = end {
            let gap = MissingDocument {
                first: first.to_string(),
                last: last.to_string(),
                files: last.number + 1 - first.number,
            };
            if !missing.contains(&gap) {
                missing.push(gap);
            }
        }
        let last = chain.as_ref().and_then(|chain| chain.files.last());
        let Some((last, _)) = last.filter(|_| reaches > backup.ended) else {
            continue;
        };
        let (to, last_binlog) = (text_of(reaches), last.to_string());
        // An older backup that comes as far has begun this window.
        let is_known =
            |window: &WindowDocument| window.last_binlog == last_binlog && window.to == to;
        if !windows.iter().any(is_known) {
            windows.push(WindowDocument {
                from: text_of(backup.ended),
                to,
                snapshot: snapshot.to_string(),
                last_binlog,
            });
        }
    }
    let newest = runs.iter().max_by_key(|run| run.until);
    let written = written.filter(|written| written.data_directory == directory);
    ServerDocument {
        data_directory: directory.to_owned(),
        version: backups.last().map(|(_, backup)| backup.version.clone()),
        windows,
        newest_binlog: newest.map(|run| NewestDocument {
            file: run.last.to_string(),
            until: text_of(run.until),
            lag_seconds: now
                .duration_since(run.until.into())
                .unwrap_or(Duration::ZERO)
                .as_secs(),
        }),
        unarchived: written.map(|written| {
            // A server that counts anew, or by another name, has nothing of what is archived.
            let newest_there = written.files.last().map(|(name, _)| name);
            let last = newest.map(|run| &run.last).filter(|last| {
                newest_there.is_some_and(|newest| newest.base == last.base && newest >= *last)
            });
            let is_new = |name| last.is_none_or(|last| name > last);
            let new = written.files.iter().filter(|(name, _)| is_new(name));
            UnarchivedDocument {
                files: new.clone().count() as u64,
                bytes: new.map(|(_, bytes)| bytes).sum(),
            }
        }),
        missing,
        backups: rows,
    }
}

fn text_of(at: Timestamp) -> String {
    time(at.into())
}

impl StatusDocument {
    fn text(&self) -> String {
        if self.servers.is_empty() {
            return "no MariaDB server was backed up, and no binary log archived\n".to_owned();
        }
        let mut text: String = self.servers.iter().map(ServerDocument::text).collect();
        if let Some(why) = &self.not_asked {
            text.push_str(&format!(
                "what the server of this machine has written since isn't known: {why}\n"
            ));
        }
        text
    }
}

impl ServerDocument {
    fn text(&self) -> String {
        let version = self.version.as_ref();
        let version = version.map_or(String::new(), |version| format!(", MariaDB {version}"));
        let mut text = format!("server {}{version}\n", self.data_directory.display());
        for window in &self.windows {
            text.push_str(&format!(
                "  can be brought back to any time from {} to {}\n",
                window.from, window.to
            ));
        }
        if self.windows.is_empty() {
            text.push_str("  can't be brought back to a time of choice: there is no backup with binary logs behind it\n");
        }
        match &self.newest_binlog {
            Some(newest) => text.push_str(&format!(
                "  newest archived binary log: {}, with everything up to {}, {} ago\n",
                newest.file,
                newest.until,
                humantime::format_duration(Duration::from_secs(newest.lag_seconds))
            )),
            None => text.push_str("  no binary log is archived\n"),
        }
        if let Some(unarchived) = &self.unarchived {
            let logs = match unarchived.files {
                1 => "1 binary log".to_owned(),
                files => format!("{files} binary logs"),
            };
            let bytes = bytes(unarchived.bytes);
            text.push_str(&format!("  not archived yet: {logs} ({bytes})\n"));
        }
        for missing in &self.missing {
            text.push_str(&match missing.files {
                1 => format!("  missing binary log: {}\n", missing.first),
                files => format!(
                    "  missing binary logs: {files} from {} to {}\n",
                    missing.first, missing.last
                ),
            });
        }
        let head = [
            "backup",
            "ended",
            "ends in",
            "at",
            "comes to",
            "and no further",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let text_of = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        rows.extend(self.backups.iter().map(|backup| {
            vec![
                backup.snapshot[..8].to_owned(),
                backup.ended.clone(),
                text_of(backup.binlog.clone()),
                text_of(backup.position.map(|position| position.to_string())),
                backup.to.clone(),
                text_of(backup.why.clone()),
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
    use backlane_repo::{FileKind, Metadata, Node};
    use backlane_source::mariadb::BinlogName;

    fn name(number: u64) -> BinlogName {
        BinlogName::parse("b.000000").unwrap().with(number)
    }

    /// A backup that ended in a file, as many minutes after the epoch.
    fn backup(number: u64) -> PhysicalBackup {
        let minute = format!("1970-01-01T00:{number:02}:00Z");
        let document = serde_json::json!({
            "version": "10.11", "data_directory": "/d", "began": minute, "ended": minute,
            "binlog": { "file": name(number).to_string(), "position": 4, "gtid": null },
        });
        serde_json::from_value(document).unwrap()
    }

    /// Files that were archived half a minute after the last of them was begun.
    fn run(numbers: std::ops::RangeInclusive<u64>) -> Run {
        let last = *numbers.end();
        let file = |number| {
            let node = Node {
                name: Vec::new(),
                kind: FileKind::File,
                meta: Metadata {
                    size: 1000,
                    ..Metadata::default()
                },
                content: Vec::new(),
                subtree: None,
            };
            (name(number), node)
        };
        Run {
            until: Timestamp::from_second(last as i64 * 60 + 30).unwrap(),
            last: name(last),
            files: numbers.map(file).collect(),
        }
    }

    fn told(backups: &[u64], runs: &[Run]) -> ServerDocument {
        let backups: Vec<_> = backups
            .iter()
            .map(|it| (ObjectId([1; 32]), backup(*it)))
            .collect();
        let written = Written {
            data_directory: "/d".into(),
            files: vec![(name(9), 1000), (name(10), 20), (name(11), 3)],
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(700);
        server(Path::new("/d"), &backups, runs, (Some(&written), now))
    }

    #[test]
    fn windows_begin_with_backups_and_end_where_binary_logs_are_missing() {
        let windows = |told: &ServerDocument| -> Vec<String> {
            let minutes = |text: &str| text["1970-01-01T00:".len()..].to_owned();
            let windows = told.windows.iter();
            windows
                .map(|it| format!("{} {}", minutes(&it.from), minutes(&it.to)))
                .collect()
        };
        let whole = told(&[3, 6], &[run(1..=5), run(4..=9)]);
        assert_eq!(windows(&whole), ["03:00Z 09:30Z"]);
        assert!(whole.missing.is_empty());
        assert_eq!(whole.newest_binlog.as_ref().unwrap().lag_seconds, 130);
        let unarchived = whole.unarchived.as_ref().unwrap();
        assert_eq!((unarchived.files, unarchived.bytes), (2, 23));
        assert!(
            whole
                .text()
                .contains("not archived yet: 2 binary logs (23 B)"),
            "{}",
            whole.text()
        );

        let gap = told(&[3, 6], &[run(1..=3), run(5..=9)]);
        assert_eq!(windows(&gap), ["03:00Z 03:30Z", "06:00Z 09:30Z"]);
        assert!(
            gap.text().contains("missing binary log: b.000004\n"),
            "{}",
            gap.text()
        );
        assert_eq!(
            gap.backups[0].why.as_deref().unwrap(),
            "b.000004 is in no backup, and later ones are"
        );

        // It had come to 12 before it began anew.
        let anew = told(&[3], &[run(1..=12)]).unarchived.unwrap();
        assert_eq!((anew.files, anew.bytes), (3, 1023));

        let none = told(&[9], &[]);
        assert_eq!(
            (windows(&none).len(), none.unarchived.unwrap().files),
            (0, 3)
        );
    }
}
