//! Databases that a walk comes by and that are in use: their files, read one after the other, are no backup of them.

use std::ffi::{OsStr, OsString};

/// A database in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Database<'a> {
    /// The directory is a PostgreSQL cluster, and its server runs.
    Postgres,
    /// The directory is one of MariaDB or MySQL, and its server runs.
    InnoDb,
    /// This file is a SQLite database, and what was written to it lately may be in a file beside it.
    Sqlite(&'a OsStr),
}

impl Database<'_> {
    /// What to do instead.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Postgres => {
                "a PostgreSQL server runs on it: its files are no backup of it; `backlane backup --postgres` takes the cluster, and `--command` what pg_dump writes"
            }
            Self::InnoDb => {
                "a MariaDB or MySQL server runs on it: its files are no backup of it; `backlane backup --mariadb` takes the server (MariaDB's alone), and `--command` what mariadb-dump writes"
            }
            Self::Sqlite(_) => {
                "it is a SQLite database in use: its file is no backup of it; `backlane backup --sqlite` takes it as it stands at one moment"
            }
        }
    }
}

/// The databases in a directory, by the sorted names in it.
pub(crate) fn in_use(names: &[OsString]) -> Vec<Database<'_>> {
    let has = |name: &str| names.binary_search(&name.into()).is_ok();
    let mut found = Vec::new();
    // The second of each is there only while the server runs.
    if has("PG_VERSION") && has("postmaster.pid") {
        found.push(Database::Postgres);
    }
    if has("ibdata1") && has("ibtmp1") {
        found.push(Database::InnoDb);
    }
    for name in names {
        let beside = |companion: &str| {
            let mut beside = name.clone();
            beside.push(companion);
            names.binary_search(&beside).is_ok()
        };
        if ["-wal", "-journal"].into_iter().any(beside) {
            found.push(Database::Sqlite(name));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> usize {
        let mut names: Vec<_> = names.iter().map(OsString::from).collect();
        names.sort_unstable();
        in_use(&names).len()
    }

    #[test]
    fn databases_show_by_what_is_there_only_while_they_are_in_use() {
        assert_eq!(
            found(&["PG_VERSION", "base", "global", "postmaster.pid"]),
            1
        );
        assert_eq!(found(&["PG_VERSION", "base", "global"]), 0);
        assert_eq!(found(&["ibdata1", "ibtmp1", "mysql"]), 1);
        assert_eq!(found(&["ibdata1", "mysql"]), 0);
        assert_eq!(found(&["a.db", "a.db-shm", "a.db-wal", "b.db"]), 1);
        assert_eq!(found(&["a.db", "a.db-journal", "c.db", "c.db-wal"]), 2);
        // Names may come in between.
        assert_eq!(found(&["a.db", "a.db#", "a.db-1", "a.db-wal"]), 1);
        assert_eq!(found(&["a.db", "b.db-wal", "x-wal"]), 0);
    }
}
