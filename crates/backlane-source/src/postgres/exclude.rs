//! What of a cluster's directory belongs into a base backup: what pg_basebackup takes.

use super::RelationFile;

/// What becomes of something in a cluster's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is kept.
    Whole,
    /// It is a directory, and kept without what is in it.
    Empty,
    /// It is left out.
    Not,
}

/// Directories in the cluster's own whose content the server makes anew. Some may be symbolic links.
const EMPTIED: [&str; 8] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// Files in the cluster's own directory that are about the server that runs, or about an earlier backup or recovery.
const LEFT_OUT: [&str; 11] = [
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "current_logfiles.tmp",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "tablespace_map.old",
];

/// What begins the names of temporary files and directories, anywhere.
const TEMPORARY: &str = "pgsql_tmp";

/// What begins the names of a cache that the server makes anew, anywhere.
const CACHE: &str = "pg_internal.init";

/// The directory in a tablespace that belongs to clusters of a version.
#[must_use]
pub fn version_directory(major: u32, catalogue: u32) -> String {
    format!("PG_{major}_{catalogue}")
}

/// What becomes of `name` in `directory`, a path relative to the cluster's. `has` tells whether the directory has a file.
#[must_use]
pub fn kept(directory: &str, name: &str, has: impl Fn(&str) -> bool) -> Kept {
    if name.starts_with(TEMPORARY) || name.starts_with(CACHE) {
        return Kept::Not;
    }
    if directory.is_empty() {
        return if EMPTIED.contains(&name) {
            Kept::Empty
        } else if LEFT_OUT.contains(&name) {
            Kept::Not
        } else {
            Kept::Whole
        };
    }
    if !is_of_database(directory) {
        // It comes last, when all else was read.
        return match (directory, name) {
            ("global", "pg_control") => Kept::Not,
            _ => Kept::Whole,
        };
    }
    if RelationFile::is_temporary(name) {
        return Kept::Not;
    }
    match RelationFile::parse(name) {
        // An unlogged relation is made anew of its initial fork.
        Some(file) if !file.is_initial() && has(&format!("{}_init", file.number)) => Kept::Not,
        _ => Kept::Whole,
    }
}

/// The relation's file that `name` in `directory` is, a path relative to the cluster's. Numbers are the names of other
/// files elsewhere.
#[must_use]
pub fn relation<'a>(directory: &str, name: &'a str) -> Option<RelationFile<'a>> {
    let has_relations = directory == "global" || is_of_database(directory);
    RelationFile::parse(name).filter(|_| has_relations)
}

/// Whether a directory has the relations of a database.
fn is_of_database(directory: &str) -> bool {
    let parts: Vec<_> = directory.split('/').collect();
    let database = match parts[..] {
        ["base", database] | ["pg_tblspc", _, _, database] => database,
        _ => return false,
    };
    database.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_where_databases_are() {
        for directory in ["global", "base/5", "pg_tblspc/16385/PG_15_202209061/5"] {
            assert!(relation(directory, "1260").is_some(), "{directory}");
            assert_eq!(relation(directory, "PG_VERSION"), None);
        }
        for directory in ["", "base", "pg_xact", "pg_multixact/offsets", "log"] {
            assert_eq!(relation(directory, "0000"), None, "{directory}");
        }
    }

    #[test]
    fn what_pg_basebackup_takes_is_kept() {
        let has = |name: &str| name == "16400_init";
        for (directory, name, expected) in [
            ("", "PG_VERSION", Kept::Whole),
            ("", "base", Kept::Whole),
            ("", "postgresql.auto.conf", Kept::Whole),
            ("", "postgresql.auto.conf.tmp", Kept::Not),
            ("", "pg_wal", Kept::Empty),
            ("", "pg_replslot", Kept::Empty),
            ("", "pg_stat_tmp", Kept::Empty),
            ("", "postmaster.pid", Kept::Not),
            ("", "backup_label.old", Kept::Not),
            ("", "current_logfiles", Kept::Whole),
            ("", "current_logfiles.tmp", Kept::Not),
            ("log", "postmaster.pid", Kept::Whole),
            ("base", "pgsql_tmp", Kept::Not),
            ("base/pgsql_tmp", "pgsql_tmp123.0", Kept::Not),
            ("global", "pg_control", Kept::Not),
            ("global", "pg_filenode.map", Kept::Whole),
            ("global", "pg_internal.init", Kept::Not),
            ("base/5", "pg_internal.init.77", Kept::Not),
            ("base/5", "PG_VERSION", Kept::Whole),
            ("base/5", "1259", Kept::Whole),
            ("base/5", "1259_vm", Kept::Whole),
            ("base/5", "t3_16390", Kept::Not),
            ("base/5", "t3_16390_fsm", Kept::Not),
            ("base/5", "t3_16390.1", Kept::Not),
            ("base/5", "16400", Kept::Not),
            ("base/5", "16400.1", Kept::Not),
            ("base/5", "16400_fsm", Kept::Not),
            ("base/5", "16400_init", Kept::Whole),
            ("base/5", "164000", Kept::Whole),
            ("pg_tblspc/16385/PG_15_202209061/5", "16400", Kept::Not),
            ("pg_tblspc/16385/PG_15_202209061/5", "t3_1", Kept::Not),
            ("pg_tblspc/16385/PG_15_202209061", "pgsql_tmp", Kept::Not),
            ("pg_xact", "0000", Kept::Whole),
            // Not a relation, though its name is a number.
            ("log", "16400", Kept::Whole),
        ] {
            assert_eq!(kept(directory, name, has), expected, "{directory}/{name}");
        }
    }
}
