//! Backups of MariaDB servers and of their binary logs, and their restore, as parts of `backlane backup` and `backlane
//! restore`; to when they can be brought back, and bringing them there.

mod replay;
mod status;

use crate::{Context, cli::MariadbCommand, output::Outcome};
use anyhow::Result;
use backlane_source::mariadb::{BinlogBackup, PhysicalBackup};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Does what was typed after `backlane mariadb`.
///
/// # Errors
/// When it can't be done.
pub(super) fn run(command: &MariadbCommand, context: &Context) -> Result<Outcome> {
    match command {
        MariadbCommand::Status(args) => status::status(args, context),
        MariadbCommand::Replay(args) => replay::replay(args, context),
    }
}

/// What `backup` prints of a server or its binary logs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum MariadbDocument {
    Server(PhysicalBackup),
    Binlogs(BinlogBackup),
}

impl MariadbDocument {
    /// A line for people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Server(backup) => format!("{}\n", ends(backup)),
            Self::Binlogs(backup) => format!(
                "MariaDB in {}: binary logs {} to {}\n",
                backup.data_directory.display(),
                backup.first,
                backup.last,
            ),
        }
    }
}

fn ends(backup: &PhysicalBackup) -> String {
    let what = format!(
        "MariaDB {} in {}",
        backup.version,
        backup.data_directory.display()
    );
    match &backup.binlog {
        Some(binlog) => format!("{what}: ends in {} at {}", binlog.file, binlog.position),
        None => format!("{what}: without binary logs"),
    }
}

/// What `restore` prints of a server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RestoredDocument {
    #[serde(flatten)]
    backup: PhysicalBackup,
    /// Commands for what comes next.
    next: Vec<String>,
}

impl RestoredDocument {
    pub(crate) fn new(snapshot: &str, backup: PhysicalBackup, target: &Path) -> Self {
        let target = quoted(target);
        let mut next = vec![
            format!("chown -R mysql:mysql {target}"),
            format!("mariadbd --user=mysql --datadir={target}"),
        ];
        if backup.binlog.is_some() {
            let snapshot = &snapshot[..8.min(snapshot.len())];
            next.push(format!(
                "backlane mariadb replay {snapshot} --until 'time=YYYY-MM-DD hh:mm:ss'"
            ));
        }
        Self { backup, next }
    }

    /// Lines for people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\nnext, to start a server on it:\n", ends(&self.backup));
        for (index, command) in self.next.iter().enumerate() {
            if index == 2 {
                text.push_str(
                    "and to bring it to a later moment, by its archived binary logs, before anybody writes to it:\n",
                );
            }
            text.push_str(&format!("  {command}\n"));
        }
        text
    }
}

/// For a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_says_how_to_go_on() {
        let description = r#"MariaDB {"version":"10.11.14-MariaDB","data_directory":"/var/lib/mysql","binlog":
            {"file":"binlog.000007","position":58211,"gtid":null},"began":"2026-01-31T12:00:00Z","ended":"2026-01-31T12:01:00Z"}"#;
        let mut backup = PhysicalBackup::from_description(description).unwrap();
        let said =
            RestoredDocument::new("3fa9c2d177", backup.clone(), Path::new("/srv/new")).text();
        assert_eq!(
            said,
            "MariaDB 10.11.14-MariaDB in /var/lib/mysql: ends in binlog.000007 at 58211\n\
             next, to start a server on it:\n  \
             chown -R mysql:mysql /srv/new\n  \
             mariadbd --user=mysql --datadir=/srv/new\n\
             and to bring it to a later moment, by its archived binary logs, before anybody writes to it:\n  \
             backlane mariadb replay 3fa9c2d1 --until 'time=YYYY-MM-DD hh:mm:ss'\n"
        );
        backup.binlog = None;
        let said = RestoredDocument::new("3fa9c2d177", backup, Path::new("/srv/new")).text();
        assert!(said.contains("without binary logs") && !said.contains("replay"));
    }

    #[test]
    fn names_of_a_snapshot_are_quoted_for_the_shell() {
        assert_eq!(quoted(Path::new("/var/lib/mysql-2")), "/var/lib/mysql-2");
        assert_eq!(quoted(Path::new("a'; rm -rf b")), r"'a'\''; rm -rf b'");
    }
}
