//! SQLite databases that are written to while they are backed up.

use crate::support::World;
use backlane_client::{Error, RestoreOptions, WarningKind};
use rusqlite::{Connection, params};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// All that the accounts hold together, at any time.
const SUM: i64 = 1000;

fn open(path: &Path) -> Connection {
    let database = Connection::open(path).unwrap();
    database.busy_timeout(Duration::from_secs(60)).unwrap();
    database
}

/// Accounts, in a database of a few hundred pages.
fn plant(path: &Path, mode: &str) {
    let database = open(path);
    database.pragma_update(None, "journal_mode", mode).unwrap();
    let make = "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER);
        INSERT INTO accounts VALUES (1, 600), (2, 400);
        CREATE TABLE moves (id INTEGER PRIMARY KEY, amount INTEGER);
        CREATE TABLE ballast (id INTEGER PRIMARY KEY, noise BLOB);";
    database.execute_batch(make).unwrap();
    for number in 0..400 {
        let insert = "INSERT INTO ballast VALUES (?1, randomblob(3000))";
        database.execute(insert, params![number]).unwrap();
    }
}

/// Moves money until it is told to stop.
fn write(path: &Path, stop: &AtomicBool, committed: &AtomicU64) {
    let mut database = open(path);
    for amount in (1..=7_i64).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let change = database.transaction().unwrap();
        for (id, by) in [(1, -amount), (2, amount)] {
            let update = "UPDATE accounts SET balance = balance + ?2 WHERE id = ?1";
            change.execute(update, params![id, by]).unwrap();
        }
        let insert = "INSERT INTO moves (amount) VALUES (?1)";
        change.execute(insert, params![amount]).unwrap();
        change.commit().unwrap();
        committed.fetch_add(1, Ordering::Relaxed);
    }
}

fn number(database: &Connection, query: &str) -> i64 {
    database.query_row(query, [], |row| row.get(0)).unwrap()
}

/// Whether it is a database that nothing is wrong with; how many moves it has seen.
fn judge(path: &Path) -> u64 {
    let database = open(path);
    let check: String = database
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    assert_eq!(number(&database, "SELECT sum(balance) FROM accounts"), SUM);
    assert_eq!(
        number(&database, "SELECT balance FROM accounts WHERE id = 2") - 400,
        number(&database, "SELECT coalesce(sum(amount), 0) FROM moves"),
    );
    number(&database, "SELECT count(*) FROM moves").unsigned_abs()
}

#[test]
fn a_database_is_backed_up_as_it_stood_while_others_write_to_it() {
    for mode in ["wal", "delete"] {
        let world = World::new();
        let path = world.source.join("app.db");
        plant(&path, mode);
        let (stop, committed) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut options = world.options();
        options.sqlite = vec![path.clone()];
        let (before, after) = thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| write(&path, &stop, &committed));
            }
            while committed.load(Ordering::Relaxed) < 20 {
                thread::yield_now();
            }
            let before = committed.load(Ordering::Relaxed);
            let summary = world.back_up_with(&options);
            let after = committed.load(Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
            let summary = summary.unwrap();
            assert_eq!(summary.warnings.total(), 0, "{mode}: {summary:?}");
            (before, after)
        });
        world.restore_with(&RestoreOptions::default()).unwrap();
        let names: Vec<_> = fs::read_dir(&world.target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["app.db"], "{mode}");
        let seen = judge(&world.target.join("app.db"));
        // A writer counts after it has committed, so that one for each may be seen and not counted yet.
        assert!(
            (before..=after + 2).contains(&seen),
            "{mode}: {seen} of {before} to {after}"
        );
    }
}

#[test]
fn what_was_written_beside_the_file_is_in_the_next_backup_and_little_else() {
    let world = World::new();
    let path = world.source.join("app.db");
    plant(&path, "wal");
    // Kept open: what is committed stays in the file beside it.
    let database = open(&path);
    database
        .pragma_update(None, "wal_autocheckpoint", 0)
        .unwrap();
    // Of several pieces, however large the first and the last are.
    let more = "INSERT INTO ballast SELECT NULL, randomblob(3000) FROM ballast, (VALUES (1), (2), (3), (4), (5), (6), (7), (8))";
    database.execute(more, []).unwrap();
    database
        .pragma_update(None, "wal_checkpoint", "TRUNCATE")
        .unwrap();
    let mut options = world.options();
    (options.paths, options.sqlite) = (Vec::new(), vec![path.clone()]);
    let first = world.back_up_with(&options).unwrap();
    assert_eq!(first.warnings.total(), 0, "{first:?}");
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    let insert = "INSERT INTO moves (amount) VALUES (0)";
    database.execute(insert, []).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
    let second = world.back_up_with(&options).unwrap();
    assert!(
        second.archive.bytes_added < first.archive.bytes_added / 4 * 3,
        "{first:?} {second:?}"
    );
    world.restore();
    assert_eq!(judge(&world.target.join("app.db")), 1);
}

#[test]
fn a_database_that_can_not_be_copied_or_is_excluded_is_named() {
    let world = World::new();
    let path = world.source.join("app.db");
    fs::write(
        &path,
        "no database at all, and long enough to have a header of one",
    )
    .unwrap();
    let mut options = world.options();
    options.sqlite = vec![path.clone()];
    let refused = world.back_up_with(&options).unwrap_err();
    assert!(
        matches!(&refused, Error::Sqlite { why, .. } if why.contains("not a database")),
        "{refused}"
    );
    assert!(refused.to_string().contains("app.db"), "{refused}");
    options.sqlite = vec![world.source.join("none.db")];
    let missing = world.back_up_with(&options).unwrap_err().to_string();
    assert!(missing.contains("none.db"), "{missing}");

    fs::remove_file(&path).unwrap();
    plant(&path, "wal");
    options.sqlite = vec![path];
    options.source.excludes.patterns = vec!["*.db".to_owned()];
    let warnings = world.back_up_with(&options).unwrap().warnings;
    assert_eq!(warnings.count(WarningKind::LeftOut), 1);
    assert!(warnings.first[0].path.ends_with("app.db"));
}

#[test]
fn a_database_in_use_whose_file_alone_is_backed_up_is_named() {
    let world = World::new();
    let path = world.source.join("app.db");
    plant(&path, "wal");
    let database = open(&path);
    let insert = "INSERT INTO moves (amount) VALUES (0)";
    database.execute(insert, []).unwrap();
    let warned = world.back_up().warnings;
    assert_eq!(warned.total(), 1, "{warned:?}");
    assert!(warned.first[0].path == path && warned.first[0].what.contains("--sqlite"));
    let mut excluding = world.options();
    excluding.source.excludes.patterns = vec!["app.db*".to_owned()];
    let excluded = world.back_up_with(&excluding).unwrap().warnings;
    assert_eq!(excluded.total(), 0, "{excluded:?}");
    drop(database);
    let closed = world.back_up().warnings;
    assert_eq!(closed.total(), 0, "{closed:?}");
}

#[test]
fn what_sqlite_left_beside_a_database_that_is_restored_alone_is_named_or_removed() {
    let world = World::new();
    let path = world.source.join("app.db");
    plant(&path, "wal");
    let mut options = world.options();
    (options.paths, options.sqlite) = (Vec::new(), vec![path]);
    world.back_up_with(&options).unwrap();
    world.restore();
    for end in ["-wal", "-shm", "-journal", "-other"] {
        let path = world.target.join(format!("app.db{end}"));
        fs::write(path, "of the database that stood there").unwrap();
    }
    let left = || fs::read_dir(&world.target).unwrap().count();
    let named = world.restore().warnings;
    assert_eq!(named.count(WarningKind::NotDeleted), 3, "{named:?}");
    assert_eq!((named.total(), left()), (3, 5));
    let delete = |dry_run| {
        let options = RestoreOptions {
            delete: true,
            dry_run,
            ..RestoreOptions::default()
        };
        let restored = world.restore_with(&options).unwrap();
        assert_eq!(restored.warnings.total(), 0, "{restored:?}");
        restored.deleted
    };
    assert_eq!((delete(true), left()), (3, 5));
    assert_eq!((delete(false), left()), (3, 2));
    assert!(world.target.join("app.db-other").exists());
    judge(&world.target.join("app.db"));
}

#[test]
fn a_copy_that_a_killed_backup_has_left_goes_with_the_next() {
    let world = World::new();
    let path = world.source.join("app.db");
    plant(&path, "wal");
    let copies = world.dir.path().join("copies");
    let left = copies.join("sqlite-left");
    fs::create_dir_all(&left).unwrap();
    for name in ["held", "copy"] {
        fs::write(left.join(name), "half").unwrap();
    }
    let mut options = world.options();
    (options.sqlite, options.copies_in) = (vec![path], Some(copies.clone()));
    world.back_up_with(&options).unwrap();
    assert_eq!(fs::read_dir(&copies).unwrap().count(), 0);
}
