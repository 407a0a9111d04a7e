//! What backups of MariaDB say of themselves, in the descriptions of their snapshots.

use super::Server;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt,
    path::{Path, PathBuf},
};

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
    /// Everything that was written before this is in them, or in older ones. Not in snapshots of earlier versions.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

/// The name of a binary log, which are numbered: `binlog.000012`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BinlogName {
    /// What the names of all of a server's begin with.
    pub base: String,
    /// Which one it is.
    pub number: u64,
}

impl BinlogName {
    /// Understands a name; `None` of another file's.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (base, number) = name.rsplit_once('.')?;
        let is_number = number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit());
        let is_plain = !base.is_empty() && !base.contains('/');
        (is_number && is_plain).then_some(())?;
        Some(Self {
            base: base.to_owned(),
            number: number.parse().ok()?,
        })
    }

    /// The name of another one of the same server.
    #[must_use]
    pub fn with(&self, number: u64) -> Self {
        Self {
            base: self.base.clone(),
            number,
        }
    }
}

impl fmt::Display for BinlogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.base, self.number)
    }
}

impl From<BinlogName> for String {
    fn from(name: BinlogName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for BinlogName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::parse(&name).ok_or_else(|| format!("`{name}` is not like `binlog.000012`"))
    }
}

/// How the binary logs of a backup go on from those of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// None is missing in between.
    Whole,
    /// Some are.
    Gap,
    /// The server has begun to count anew: they belong to another history.
    Anew,
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
    /// The directory in snapshots that those of a server are in, by the directory of its files.
    #[must_use]
    pub fn path(data_directory: &Path) -> PathBuf {
        Server::root_of(data_directory).join("binlog")
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

    /// How these go on from those of an earlier backup.
    #[must_use]
    pub fn follows(&self, earlier: &Self) -> Follows {
        let parse = |name: &str| BinlogName::parse(name);
        let (Some(before), Some(first), Some(last)) =
            (parse(&earlier.last), parse(&self.first), parse(&self.last))
        else {
            return Follows::Whole;
        };
        match () {
            () if last.base != before.base || last.number < before.number => Follows::Anew,
            () if first.number > before.number + 1 => Follows::Gap,
            () => Follows::Whole,
        }
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
            until: Some(Timestamp::UNIX_EPOCH),
        };
        assert_eq!(of(9, 12).follows(&of(3, 10)), Follows::Whole);
        assert_eq!(of(11, 12).follows(&of(3, 10)), Follows::Whole);
        assert_eq!(of(12, 12).follows(&of(3, 10)), Follows::Gap);
        assert_eq!(of(1, 2).follows(&of(3, 10)), Follows::Anew);
        let mut other = of(9, 12);
        other.last = "other.000012".to_owned();
        assert_eq!(other.follows(&of(3, 10)), Follows::Anew);
        let said = of(1, 2).description();
        assert_eq!(BinlogBackup::from_description(&said), Some(of(1, 2)));
        assert_eq!(PhysicalBackup::from_description(&said), None);
        let before =
            r#"MariaDB binlogs {"data_directory":"/d","first":"b.000001","last":"b.000002"}"#;
        let before = BinlogBackup::from_description(before).unwrap();
        assert_eq!(before.until, None);
    }

    #[test]
    fn names_of_binary_logs_are_numbered() {
        let name = BinlogName::parse("host.log.000099").unwrap();
        assert_eq!((name.base.as_str(), name.number), ("host.log", 99));
        assert_eq!(name.with(1_000_000).to_string(), "host.log.1000000");
        assert_eq!(name.to_string(), "host.log.000099");
        for other in [
            "binlog.index",
            "binlog.12",
            ".000001",
            "../b.000001",
            "binlog",
        ] {
            assert_eq!(BinlogName::parse(other), None, "{other}");
        }
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
