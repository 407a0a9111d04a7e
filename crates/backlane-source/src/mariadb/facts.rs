//! What backups of MariaDB say of themselves, in the descriptions of their snapshots.

use super::Server;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::PathBuf;

/// The tag of snapshots that are physical backups.
pub const TAG: &str = "mariadb";
/// The tag of those that are binary logs.
pub const BINLOG_TAG: &str = "mariadb-binlog";

/// What comes before the documents in descriptions.
const HEAD: &str = "MariaDB ";
const BINLOG_HEAD: &str = "MariaDB binlogs ";

/// What a physical backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhysicalBackup {
    /// The server's version.
    pub version: String,
    /// Where its files were.
    pub data_directory: PathBuf,
    /// The binary log in which the backup ends, and the place there; `None` without one.
    pub binlog: Option<Position>,
    /// When it began.
    pub began: Timestamp,
    /// When all was read.
    pub ended: Timestamp,
}

/// A place in the binary logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The file's name.
    pub file: String,
    /// The byte in it.
    pub position: u64,
    /// The last transaction before it, where transactions have global numbers.
    pub gtid: Option<String>,
}

/// What a backup of binary logs is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BinlogBackup {
    /// Where the server's files were.
    pub data_directory: PathBuf,
    /// The oldest of the files.
    pub first: String,
    /// The newest.
    pub last: String,
}

impl PhysicalBackup {
    /// The stream's path in the snapshot of a server's backup.
    #[must_use]
    pub fn path(server: &Server) -> PathBuf {
        server.root().join("backup.mbstream")
    }

    /// Understands what mariadb-backup wrote of where a backup ends: file, position and number, parted by tabs.
    #[must_use]
    pub fn position(text: &str) -> Option<Position> {
        let mut fields = text.lines().next()?.split('\t').map(str::trim);
        Some(Position {
            file: fields.next().filter(|file| !file.is_empty())?.to_owned(),
            position: fields.next()?.parse().ok()?,
            gtid: fields
                .next()
                .filter(|gtid| !gtid.is_empty())
                .map(str::to_owned),
        })
    }

    /// The description of its snapshot.
    #[must_use]
    pub fn description(&self) -> String {
        description(HEAD, self)
    }

    /// Understands a description; more may follow in it. `None` of another snapshot's.
    #[must_use]
    pub fn from_description(text: &str) -> Option<Self> {
        from_description(HEAD, text)
    }
}

impl BinlogBackup {
    /// The directory in the snapshot that they are in.
    #[must_use]
    pub fn path(server: &Server) -> PathBuf {
        server.root().join("binlog")
    }

    /// The description of its snapshot.
    #[must_use]
    pub fn description(&self) -> String {
        description(BINLOG_HEAD, self)
    }

    /// Understands a description; more may follow in it. `None` of another snapshot's.
    #[must_use]
    pub fn from_description(text: &str) -> Option<Self> {
        from_description(BINLOG_HEAD, text)
    }

    /// Whether no file is missing between those of an earlier backup and these. Files are numbered: `binlog.000012`.
    #[must_use]
    pub fn follows(&self, earlier: &Self) -> bool {
        let number = |name: &str| name.rsplit_once('.')?.1.parse::<u64>().ok();
        let (last, first) = (number(&earlier.last), number(&self.first));
        last.zip(first)
            .is_none_or(|(last, first)| first <= last + 1)
    }
}

fn description(head: &str, document: &impl Serialize) -> String {
    let document = serde_json::to_string(document).expect("all keys are text");
    format!("{head}{document}")
}

fn from_description<T: DeserializeOwned>(head: &str, text: &str) -> Option<T> {
    let document = text.strip_prefix(head)?;
    let mut documents = serde_json::Deserializer::from_str(document).into_iter();
    documents.next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_binary_log_is_noticed() {
        let of = |first: u32, last: u32| BinlogBackup {
            data_directory: "/d".into(),
            first: format!("host.log.{first:06}"),
            last: format!("host.log.{last:06}"),
        };
        assert!(of(9, 12).follows(&of(3, 10)));
        assert!(of(11, 12).follows(&of(3, 10)));
        assert!(!of(12, 12).follows(&of(3, 10)));
        let said = of(1, 2).description();
        assert_eq!(BinlogBackup::from_description(&said), Some(of(1, 2)));
        assert_eq!(PhysicalBackup::from_description(&said), None);
    }

    #[test]
    fn a_description_says_where_the_backup_ends() {
        let position = PhysicalBackup::position("binlog.000001\t224913035\t0-1-33\n");
        let position = position.unwrap();
        assert_eq!(
            (position.file.as_str(), position.position),
            ("binlog.000001", 224_913_035)
        );
        assert_eq!(position.gtid.as_deref(), Some("0-1-33"));
        let without = PhysicalBackup::position("binlog.000001\t4\t\n").unwrap();
        assert_eq!(without.gtid, None);
        assert_eq!(PhysicalBackup::position(""), None);
        assert_eq!(PhysicalBackup::position("binlog.000001\tx"), None);
        let backup = PhysicalBackup {
            version: "10.11.14-MariaDB".to_owned(),
            data_directory: "/var/lib/mysql".into(),
            binlog: Some(position),
            began: Timestamp::UNIX_EPOCH,
            ended: Timestamp::UNIX_EPOCH,
        };
        let said = backup.description() + " [2 warnings]";
        assert_eq!(PhysicalBackup::from_description(&said), Some(backup));
        assert_eq!(PhysicalBackup::from_description("PostgreSQL {}"), None);
    }
}
