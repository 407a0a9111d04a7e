//! What a server says of its cluster, and the two calls between which the cluster is read.

use super::{Control, Error, Lsn, Origin, Session};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The versions whose functions and files are known.
const VERSIONS: std::ops::RangeInclusive<u32> = 13..=17;

/// Where the WAL is that a backup needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WalMode {
    /// In the archive that the server keeps.
    #[default]
    Archive,
    /// In the backup.
    Include,
}

/// How the server writes out what the backup begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checkpoint {
    /// At the pace of its checkpoints, which may take minutes.
    #[default]
    Spread,
    /// As fast as it can.
    Fast,
}

/// A part of a cluster that is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its number, which is its name below `pg_tblspc`.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its directory.
    pub location: PathBuf,
}

/// What a server says of its cluster.
#[derive(Debug, Deserialize)]
pub struct Cluster {
    version_number: u32,
    /// The server's version.
    pub version: String,
    #[serde(deserialize_with = "number")]
    /// The number that a cluster gets when it is made and that its standbys share.
    pub system: u64,
    /// Where it is.
    pub data_directory: PathBuf,
    /// The files that configure it.
    pub config_files: Vec<PathBuf>,
    checksums: String,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Pages of a relation's file, before the next one begins.
    pub segment_pages: u32,
    /// Bytes of a segment of the WAL.
    pub wal_segment_bytes: u64,
    in_recovery: bool,
    archive_mode: String,
    archive_command: Option<String>,
    archive_library: Option<String>,
}

const CLUSTER: &str = "\
SELECT json_build_object(
 'version_number', current_setting('server_version_num')::int / 10000,
 'version', split_part(current_setting('server_version'), ' ', 1),
 'system', (SELECT system_identifier::text FROM pg_control_system()),
 'data_directory', current_setting('data_directory'),
 'config_files', json_build_array(current_setting('config_file'), current_setting('hba_file'),
  current_setting('ident_file')),
 'checksums', current_setting('data_checksums'),
 'page_bytes', current_setting('block_size')::int,
 'segment_pages', (SELECT setting::int FROM pg_settings WHERE name = 'segment_size'),
 'wal_segment_bytes', (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
 'in_recovery', pg_is_in_recovery(),
 'archive_mode', current_setting('archive_mode'),
 'archive_command', current_setting('archive_command', true),
 'archive_library', current_setting('archive_library', true))";

const TABLESPACES: &str = "\
SELECT coalesce(json_agg(json_build_object('oid', oid::bigint, 'name', spcname,
 'location', pg_tablespace_location(oid)) ORDER BY oid), '[]'::json)
FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'";

/// A temporary slot, which goes with the session, keeps the WAL from now on.
const SLOT: &str = "\
SELECT to_json(slot_name) FROM
 pg_create_physical_replication_slot('backlane_' || pg_backend_pid(), true, true)";

const TIMELINE: &str = "SELECT to_json(min_recovery_end_timeline) FROM pg_control_recovery()";

impl Cluster {
    /// Asks a server.
    ///
    /// # Errors
    /// As [`Session`]; [`Error::Version`].
    pub fn ask(session: &mut Session, is_cancelled: &dyn Fn() -> bool) -> Result<Self, Error> {
        let doing = "asking the server where its cluster is";
        let cluster: Self = session.ask(doing, CLUSTER, is_cancelled)?;
        match VERSIONS.contains(&cluster.version_number) {
            true => Ok(cluster),
            false => Err(Error::Version {
                version: cluster.version,
            }),
        }
    }

    /// The number that its directories are named by.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version_number
    }

    /// What kind of server it is.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self.in_recovery {
            true => Origin::Standby,
            false => Origin::Primary,
        }
    }

    /// Whether its pages have checksums.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.checksums == "on"
    }

    /// Expects that the WAL of a backup is archived when the backup ends.
    ///
    /// # Errors
    /// [`Error::NoArchive`]
    pub fn check_archive(&self) -> Result<(), Error> {
        let is_set = |setting: &Option<String>| {
            let setting = setting.as_deref().unwrap_or_default();
            !setting.is_empty() && setting != "(disabled)"
        };
        let why = match (self.archive_mode.as_str(), self.origin()) {
            ("off", _) => "archive_mode is off",
            ("on", Origin::Standby) => "a standby archives only if its archive_mode is always",
            _ if !is_set(&self.archive_command) && !is_set(&self.archive_library) => {
                "archive_command is empty"
            }
            _ => return Ok(()),
        };
        Err(Error::NoArchive { why })
    }

    /// Reads the control file in a directory, and expects that it is this cluster's.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::OtherCluster`]
    pub fn check_directory(&self, directory: &Path) -> Result<Control, Error> {
        let control = Control::read(directory)?;
        match control.system == self.system {
            true => Ok(control),
            false => Err(Error::OtherCluster {
                path: directory.to_owned(),
                found: control.system,
                wanted: self.system,
            }),
        }
    }
}

/// A backup that the server has begun.
#[derive(Debug)]
pub struct Begun {
    /// Where recovery begins.
    pub start: Lsn,
    /// The tablespaces that there are.
    pub tablespaces: Vec<Tablespace>,
}

impl Begun {
    /// Has the server begin a backup, which lasts as long as the session at most.
    ///
    /// # Errors
    /// As [`Session`].
    pub fn begin(
        session: &mut Session,
        cluster: &Cluster,
        (checkpoint, wal): (Checkpoint, WalMode),
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, Error> {
        if wal == WalMode::Include {
            let doing = "making a temporary replication slot, which keeps the WAL";
            let _: String = session.ask(doing, SLOT, is_cancelled)?;
        }
        let fast = checkpoint == Checkpoint::Fast;
        let call = match cluster.major() {
            ..15 => format!("pg_start_backup('backlane', {fast}, false)"),
            15.. => format!("pg_backup_start('backlane', {fast})"),
        };
        let doing = "beginning the backup";
        let start = session.ask(doing, &format!("SELECT to_json({call})"), is_cancelled)?;
        let doing = "asking for tablespaces";
        let tablespaces = session.ask(doing, TABLESPACES, is_cancelled)?;
        Ok(Self { start, tablespaces })
    }
}

/// What the server says at the end of a backup.
#[derive(Debug, Deserialize)]
pub struct Stopped {
    /// Where recovery may end at the earliest.
    pub stop: Lsn,
    /// The content of `backup_label`.
    pub label: String,
    /// The content of `tablespace_map`; empty where there are none.
    pub map: String,
}

impl Stopped {
    /// Has the server end the backup. Where the WAL is archived, this waits until it is.
    ///
    /// # Errors
    /// As [`Session`]; [`Error::Timeline`].
    pub fn stop(
        session: &mut Session,
        cluster: &Cluster,
        wal: WalMode,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, Error> {
        let wait = wal == WalMode::Archive;
        let call = match cluster.major() {
            ..15 => format!("pg_stop_backup(false, {wait})"),
            15.. => format!("pg_backup_stop({wait})"),
        };
        let query = format!(
            "SELECT json_build_object('stop', lsn, 'label', labelfile, 'map', spcmapfile) FROM {call}"
        );
        let stopped: Self = session.ask("ending the backup", &query, is_cancelled)?;
        if cluster.origin() == Origin::Standby {
            let doing = "asking for the timeline";
            let (from, to) = (
                stopped.timeline()?,
                session.ask(doing, TIMELINE, is_cancelled)?,
            );
            if from != to {
                return Err(Error::Timeline { from, to });
            }
        }
        Ok(stopped)
    }

    /// The timeline that the backup is on.
    ///
    /// # Errors
    /// [`Error::Answer`]
    pub fn timeline(&self) -> Result<u32, Error> {
        let mut lines = self.label.lines();
        let line = lines.find_map(|line| line.strip_prefix("START TIMELINE: "));
        let timeline = line.and_then(|line| line.trim().parse().ok());
        timeline.ok_or_else(|| Error::Answer {
            doing: "ending the backup",
            what: "no timeline in backup_label".to_owned(),
        })
    }
}

fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    // The server shows it as a signed number.
    let number = text.parse::<i64>().map(i64::cast_unsigned);
    number.map_err(serde::de::Error::custom)
}
