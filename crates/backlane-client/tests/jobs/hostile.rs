//! Hostile snapshots, targets with traps and garbage, and what goes wrong on the way.

use crate::support::{self, World};
use backlane_client::{
    Cancel, Error, Excludes, FileSystems, Progress, RestoreOptions, WarningKind, restore,
};
use backlane_proto::ObjectKind;
use backlane_repo::{
    ArchiveOptions, Entries, Entry, FileKind, Metadata, ObjectStore, Source, Warning,
};
use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

fn delete() -> RestoreOptions {
    RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    }
}

/// A little tree, backed up.
fn world() -> World {
    let world = World::new();
    fs::create_dir(world.source.join("dir")).unwrap();
    fs::write(world.source.join("dir/file"), "right").unwrap();
    fs::write(world.source.join("top"), vec![3; 2 << 20]).unwrap();
    fs::hard_link(world.source.join("top"), world.source.join("top2")).unwrap();
    symlink("dir", world.source.join("link")).unwrap();
    assert_eq!(world.back_up().warnings.total(), 0);
    world
}

#[test]
fn links_planted_in_the_target_are_replaced_and_never_followed() {
    let world = world();
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    fs::create_dir(&world.target).unwrap();
    symlink(&outside, world.target.join("dir")).unwrap();
    symlink(outside.join("file"), world.target.join("top")).unwrap();
    let restored = world.restore_with(&delete()).unwrap();
    assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
    world.assert_same();
    assert_eq!(
        fs::read_to_string(outside.join("file")).unwrap(),
        "precious"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_file_with_a_hard_link_elsewhere_is_replaced_and_not_written_into() {
    let world = world();
    world.restore();
    let elsewhere = world.dir.path().join("elsewhere");
    fs::hard_link(world.target.join("dir/file"), &elsewhere).unwrap();
    fs::set_permissions(&elsewhere, Permissions::from_mode(0o600)).unwrap();
    let restored = world.restore();
    assert_eq!(restored.files_restored, 1);
    world.assert_same();
    assert_eq!(elsewhere.metadata().unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn garbage_in_the_target_is_replaced_or_named() {
    let world = world();
    fs::create_dir_all(world.target.join("top/full")).unwrap();
    fs::create_dir(world.target.join("link")).unwrap();
    fs::write(world.target.join("dir"), "a file").unwrap();
    let restored = world.restore();
    // The full directory in the way of a file stays, and so the file's other name can't be made from it.
    let failed = &restored.warnings.first;
    assert!(
        restored.failed >= 1 && failed.iter().any(|w| w.path.ends_with("top")),
        "{failed:?}"
    );
    assert!(world.target.join("link").is_symlink());

    // A half-written file of right size and time is no whole one.
    fs::remove_dir_all(world.target.join("top")).unwrap();
    let file = world.target.join("dir/file");
    let time = file.metadata().unwrap().modified().unwrap();
    fs::write(&file, "wrong").unwrap();
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(time)
        .unwrap();
    fs::write(
        world.target.join(".backlane-0123456789abcdef-7"),
        "left over",
    )
    .unwrap();
    fs::write(world.target.join("extra"), "kept").unwrap();
    let restored = world.restore();
    assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
    assert_eq!(fs::read_to_string(&file).unwrap(), "right");
    assert!(!world.target.join(".backlane-0123456789abcdef-7").exists());
    assert_eq!(
        fs::read_to_string(world.target.join("extra")).unwrap(),
        "kept"
    );

    let restored = world.restore_with(&delete()).unwrap();
    assert_eq!(restored.deleted, 1);
    world.assert_same();
}

#[test]
fn delete_clears_the_way_and_spares_what_was_never_backed_up() {
    let world = world();
    let root = world.target.join(world.source.strip_prefix("/").unwrap());
    fs::create_dir_all(root.join("top/full")).unwrap();
    fs::write(root.join("extra"), "goes").unwrap();
    let neighbour = root.parent().unwrap().join("neighbour");
    fs::write(&neighbour, "stays").unwrap();
    let restored = world.restore_path(None, &delete()).unwrap();
    assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
    assert_eq!(restored.deleted, 3);
    assert_eq!(support::rsync_differences(&world.source, &root), "");
    assert_eq!(fs::read_to_string(&neighbour).unwrap(), "stays");
}

#[test]
fn delete_spares_what_only_looks_like_a_path_that_was_backed_up() {
    let world = World::new();
    let [whole, above] = [b"\xff", b"\xfe"].map(|name| OsStr::from_bytes(name));
    let below = world.source.join(above).join("sub");
    fs::create_dir(world.source.join(whole)).unwrap();
    fs::create_dir_all(&below).unwrap();
    let mut options = world.options();
    options.paths = vec![world.source.join(whole), below];
    assert_eq!(world.back_up_with(&options).unwrap().warnings.total(), 0);
    world.restore();
    for name in [whole, above] {
        fs::write(world.target.join(name).join("extra"), "stays").unwrap();
    }
    let restored = world.restore_with(&delete()).unwrap();
    assert_eq!(restored.deleted, 0);
    let warnings = &restored.warnings;
    assert_eq!(warnings.count(WarningKind::NotDeleted), 2, "{warnings:?}");
    assert_eq!(warnings.total(), 2, "{warnings:?}");
    for name in [whole, above] {
        assert!(world.target.join(name).join("extra").exists());
    }
}

#[test]
fn a_dry_run_changes_nothing_and_counts_everything() {
    let world = world();
    let dry = RestoreOptions {
        dry_run: true,
        delete: true,
        ..RestoreOptions::default()
    };
    let counted = world.restore_with(&dry).unwrap();
    assert!(!world.target.exists());
    assert_eq!(
        (counted.files_restored, counted.hard_links, counted.others),
        (2, 1, 1)
    );
    world.restore();
    fs::write(world.target.join("extra"), "").unwrap();
    let counted = world.restore_with(&dry).unwrap();
    assert_eq!(
        (counted.files_restored, counted.files_kept, counted.deleted),
        (0, 2, 1)
    );
    assert!(world.target.join("extra").exists());

    let mut options = world.options();
    options.dry_run = true;
    let summary = world.back_up_with(&options).unwrap();
    assert_eq!(summary.archive.snapshot, None);
    assert_eq!(world.repository.snapshots().unwrap().len(), 1);
}

#[test]
fn a_damaged_pack_loses_only_the_files_in_it_and_names_them() {
    let world = world();
    spoil_data(&world, |bytes| bytes[20] ^= 1);
    let restored = world.restore();
    assert!(restored.failed >= 1, "{:?}", restored.warnings);
    assert!(
        restored
            .warnings
            .first
            .iter()
            .all(|w| w.kind == WarningKind::NotRestored)
    );
    let left: Vec<_> = fs::read_dir(&world.target)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_str().unwrap().starts_with(".backlane")),
        "{left:?}"
    );
    assert!(world.target.join("link").is_symlink());
}

/// Changes every pack of data.
fn spoil_data(world: &World, change: impl Fn(&mut Vec<u8>)) {
    let index = world.repository.index().unwrap();
    for info in world.store.list(ObjectKind::Pack).unwrap() {
        let holds_data = index
            .blobs()
            .any(|blob| blob.pack == info.id && blob.kind == backlane_repo::BlobKind::Data);
        if holds_data {
            let path = world.store.path(backlane_proto::ObjectName {
                kind: ObjectKind::Pack,
                id: info.id,
            });
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
        }
    }
}

#[test]
fn a_pack_that_was_cut_off_loses_only_the_files_in_it_and_names_them() {
    let world = world();
    spoil_data(&world, |bytes| bytes.truncate(10));
    let restored = world.restore();
    // Two files, and the other name of one of them.
    assert_eq!(restored.failed, 3, "{:?}", restored.warnings);
    assert!(world.target.join("link").is_symlink());
    assert!(world.target.join("dir").is_dir());
}

#[test]
fn no_link_is_made_to_what_could_not_be_restored() {
    let world = World::new();
    fs::write(world.source.join("a"), "right").unwrap();
    fs::hard_link(world.source.join("a"), world.source.join("b")).unwrap();
    world.back_up();
    spoil_data(&world, |bytes| bytes[20] ^= 1);
    fs::create_dir(&world.target).unwrap();
    for name in ["a", "b"] {
        fs::write(world.target.join(name), format!("old {name}")).unwrap();
    }
    let restored = world.restore();
    assert_eq!(restored.failed, 2, "{:?}", restored.warnings);
    assert!(
        restored
            .warnings
            .first
            .iter()
            .any(|w| w.path.ends_with("b"))
    );
    for name in ["a", "b"] {
        let content = fs::read_to_string(world.target.join(name)).unwrap();
        assert_eq!(content, format!("old {name}"));
    }
}

/// Gives one entry with a name of choice.
struct OneEntry(&'static str);

impl Source for OneEntry {
    fn entries(&self) -> Entries {
        let entry = |path: &str, kind| Entry {
            path: path.as_bytes().to_vec(),
            kind,
            meta: Metadata::default(),
            open: Some(Box::new(|| Ok(Box::new(&b"hello"[..]) as _))),
        };
        let all = [
            entry("d", FileKind::Directory),
            entry(self.0, FileKind::File),
        ];
        Box::new(all.map(Ok).into_iter())
    }

    fn warn(&self, _: &Warning) {}
}

#[test]
fn the_middle_of_a_restore_can_be_cancelled_and_no_partial_file_passes_for_a_whole_one() {
    struct CancelAtFirstByte(Cancel, AtomicBool);
    impl Progress for CancelAtFirstByte {
        fn advanced(&self, _: u64, bytes: u64) {
            if bytes > 0 {
                self.0.cancel();
                self.1.store(true, Ordering::Relaxed);
            }
        }
    }
    let world = World::new();
    for name in 0..50u8 {
        fs::write(world.source.join(name.to_string()), vec![name; 3 << 20]).unwrap();
    }
    world.back_up();
    let cancel = Cancel::default();
    let progress = Arc::new(CancelAtFirstByte(cancel.clone(), AtomicBool::new(false)));
    let result = restore(
        &world.repository.reader().unwrap(),
        &world.repository.resolve("latest").unwrap(),
        Some(&world.source),
        &world.target,
        &RestoreOptions::default(),
        progress.clone(),
        cancel,
    );
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(progress.1.load(Ordering::Relaxed));
    for entry in fs::read_dir(&world.target).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with(".backlane-") {
            continue;
        }
        let value: u8 = name.parse().unwrap();
        assert!(fs::read(entry.path()).unwrap() == vec![value; 3 << 20]);
    }
    world.restore();
    world.assert_same();
}

#[test]
fn what_comes_under_a_name_that_was_free_is_not_replaced() {
    /// Takes the names in a new directory before their turn comes, as another name does that is one with them.
    struct Intruder(PathBuf);
    impl Progress for Intruder {
        fn current(&self, path: &Path) {
            if path.starts_with(&self.0) && path != self.0 {
                fs::write(path, "intruder").unwrap();
            }
        }
    }
    let world = World::new();
    let names = ["file", "link", "name"];
    fs::create_dir(world.source.join("dir")).unwrap();
    fs::write(world.source.join("dir/file"), "file").unwrap();
    symlink("file", world.source.join("dir/link")).unwrap();
    fs::write(world.source.join("another"), "name").unwrap();
    fs::hard_link(world.source.join("another"), world.source.join("dir/name")).unwrap();
    world.back_up();
    let dir = world.target.join("dir");
    let restored = restore(
        &world.repository.reader().unwrap(),
        &world.repository.resolve("latest").unwrap(),
        Some(&world.source),
        &world.target,
        &RestoreOptions::default(),
        Arc::new(Intruder(dir.clone())),
        Cancel::default(),
    )
    .unwrap();
    let warnings = &restored.warnings;
    assert_eq!(warnings.count(WarningKind::NotRestored), 3, "{warnings:?}");
    assert_eq!(warnings.total(), 3, "{warnings:?}");
    for name in names {
        assert_eq!(fs::read(dir.join(name)).unwrap(), b"intruder", "{name}");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
}

#[test]
fn the_middle_of_a_backup_can_be_cancelled_and_leaves_no_snapshot() {
    struct CancelAtOnce(Cancel);
    impl Progress for CancelAtOnce {
        fn current(&self, _: &Path) {
            self.0.cancel();
        }
    }
    let world = World::new();
    fs::write(world.source.join("a"), vec![1; 3 << 20]).unwrap();
    fs::write(world.source.join("b"), vec![2; 3 << 20]).unwrap();
    let cancel = Cancel::default();
    let progress = Arc::new(CancelAtOnce(cancel.clone()));
    let result = backlane_client::backup(&world.repository, &world.options(), progress, cancel);
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!(world.repository.snapshots().unwrap().len(), 0);
    world.back_up();
    world.restore();
    world.assert_same();
}

#[test]
fn a_file_that_vanishes_or_changes_while_the_backup_runs_is_named() {
    /// Meddles with the files when the first is opened, whichever that is.
    struct Meddle(std::path::PathBuf, AtomicBool);
    impl Progress for Meddle {
        fn current(&self, _: &Path) {
            if !self.1.swap(true, Ordering::Relaxed) {
                let _ = fs::remove_file(self.0.join("gone"));
                fs::write(self.0.join("grown"), vec![1; 2000]).unwrap();
                fs::write(self.0.join("shrunk"), "1").unwrap();
            }
        }
    }
    let world = World::new();
    fs::write(world.source.join("a"), "a").unwrap();
    // How far the walk is ahead of the reader, and which files are read at once, is not known: each was examined, and
    // read, before or after the meddling.
    let before = vec![1; 1000];
    for name in ["gone", "grown", "shrunk"] {
        fs::write(world.source.join(name), &before).unwrap();
    }
    let progress = Arc::new(Meddle(world.source.clone(), AtomicBool::new(false)));
    let options = world.options();
    let summary =
        backlane_client::backup(&world.repository, &options, progress, Cancel::default()).unwrap();
    let named = |name: &str| {
        summary
            .warnings
            .first
            .iter()
            .any(|w| w.path.ends_with(name))
    };
    world.restore();
    // What isn't named is as it was, or as it is.
    for name in ["gone", "grown", "shrunk"] {
        let restored = fs::read(world.target.join(name)).ok();
        let is_whole = restored.as_ref() == Some(&before)
            || restored == fs::read(world.source.join(name)).ok();
        assert!(named(name) || is_whole, "{name}");
    }
}

#[test]
fn the_snapshot_counts_the_warnings_of_files_that_changed_while_they_were_read() {
    /// Appends to the file when it has been opened and something of it was read.
    struct Append(std::path::PathBuf);
    impl Progress for Append {
        fn advanced(&self, items: u64, bytes: u64) {
            if items == 0 && bytes > 0 {
                let mut file = fs::File::options().append(true).open(&self.0).unwrap();
                io::Write::write_all(&mut file, b"more").unwrap();
            }
        }
    }
    let world = World::new();
    let path = world.source.join("grows");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let progress = Arc::new(Append(path));
    let options = world.options();
    let summary =
        backlane_client::backup(&world.repository, &options, progress, Cancel::default()).unwrap();
    assert_eq!(summary.warnings.total(), 1, "{:?}", summary.warnings);
    assert_eq!(summary.archive.warnings, 1);
    let snapshot = world.repository.resolve("latest").unwrap();
    assert_eq!(snapshot.warnings, Some(1));
}

#[test]
fn who_may_not_read_is_told_the_name_and_the_rest_is_kept() {
    let world = World::new();
    fs::write(world.source.join("open"), "1").unwrap();
    fs::set_permissions(world.source.join("open"), Permissions::from_mode(0o6755)).unwrap();
    fs::write(world.source.join("closed"), "2").unwrap();
    fs::create_dir(world.source.join("locked")).unwrap();
    fs::write(world.source.join("locked/in"), "3").unwrap();
    for name in ["closed", "locked"] {
        fs::set_permissions(world.source.join(name), Permissions::from_mode(0o000)).unwrap();
    }
    let base = world.dir.path();
    fs::set_permissions(base, Permissions::from_mode(0o777)).unwrap();
    support::as_nobody(base, "hostile::as_nobody_files_are_named_and_owners_too");
    for name in ["closed", "locked"] {
        fs::set_permissions(world.source.join(name), Permissions::from_mode(0o700)).unwrap();
    }
}

/// The part of the test above that runs as another user, in another process.
#[test]
fn as_nobody_files_are_named_and_owners_too() {
    let Some(base) = support::base_of_nobody() else {
        return;
    };
    let mut world = World::new();
    world.source = base.join("source");
    let summary = world.back_up();
    let of = |kind| {
        let all = summary.warnings.first.iter();
        let names = all
            .filter(|w| w.kind == kind)
            .map(|w| w.path.file_name().unwrap());
        names
            .map(|name| name.to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(WarningKind::LeftOut), ["closed"]);
    assert_eq!(of(WarningKind::Incomplete), ["locked"]);
    assert_eq!(summary.left_out, 1);

    for _ in 0..2 {
        let restored = world.restore();
        assert_eq!(restored.failed, 0);
        // Three things belong to somebody else: both directories and the file.
        assert_eq!(restored.warnings.count(WarningKind::Owner), 3);
        // And so the file must not run with the rights of whoever restores it.
        assert_eq!(restored.warnings.count(WarningKind::Mode), 1);
        let mode = world.target.join("open").metadata().unwrap().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert_eq!(restored.warnings.total(), 4, "{:?}", restored.warnings);
        assert_eq!(fs::read_to_string(world.target.join("open")).unwrap(), "1");
        let mode = world.target.join("locked").metadata().unwrap().mode();
        assert_eq!(mode & 0o7777, 0);
    }
    delete_spares_what_was_unreadable(&world);
}

fn delete_spares_what_was_unreadable(world: &World) {
    let closed = world.target.join("closed");
    let locked = world.target.join("locked/in");
    fs::write(&closed, "precious").unwrap();
    fs::set_permissions(world.target.join("locked"), Permissions::from_mode(0o700)).unwrap();
    fs::write(&locked, "precious").unwrap();
    let error = world.restore_with(&delete()).unwrap_err();
    let refused = matches!(error, Error::DeleteIncomplete { warnings: 2, .. });
    assert!(refused, "{error}");
    assert!(closed.exists() && locked.exists());

    // By force, what was left out goes; a directory that was not listed is spared all the same.
    let mut forced = delete();
    forced.delete_despite_warnings = true;
    assert_eq!(world.restore_with(&forced).unwrap().deleted, 1);
    fs::set_permissions(world.target.join("locked"), Permissions::from_mode(0o700)).unwrap();
    assert!(!closed.exists() && locked.exists());
}

#[test]
fn excludes_and_markers_leave_out_what_they_say() {
    let world = World::new();
    for dir in ["keep", "cache", "marked"] {
        fs::create_dir(world.source.join(dir)).unwrap();
        fs::write(world.source.join(dir).join("file.o"), "").unwrap();
        fs::write(world.source.join(dir).join("file.c"), "").unwrap();
    }
    fs::write(world.source.join("marked/.nobackup"), "").unwrap();
    let list = world.dir.path().join("list");
    fs::write(&list, "# a comment\n*.o\n!**/keep/file.o\n").unwrap();
    let mut options = world.options();
    options.source.excludes = Excludes {
        patterns: vec!["cache/".to_owned()],
        files: vec![list],
        if_present: vec![".nobackup".into()],
    };
    options.source.file_systems = FileSystems::One;
    world.back_up_with(&options).unwrap();
    world.restore();
    let mut found = vec![];
    for dir in fs::read_dir(&world.target).unwrap() {
        for file in fs::read_dir(dir.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            found.push(
                path.strip_prefix(&world.target)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            );
        }
    }
    found.sort();
    assert_eq!(found, ["keep/file.c", "keep/file.o", "marked/.nobackup"]);
}

#[test]
fn a_path_that_is_not_there_is_an_error_that_names_it() {
    let world = World::new();
    let mut options = world.options();
    options.paths.push(world.source.join("no such"));
    let error = world.back_up_with(&options).unwrap_err().to_string();
    assert!(error.contains("no such"), "{error}");
    world.back_up();
    let missing = world.source.join("missing");
    let error = world.restore_path(Some(&missing), &RestoreOptions::default());
    assert!(
        matches!(error, Err(Error::NotInSnapshot { .. })),
        "{error:?}"
    );
}

#[test]
fn one_file_of_a_snapshot_comes_alone() {
    let world = world();
    fs::create_dir(&world.target).unwrap();
    fs::write(world.target.join("other"), "").unwrap();
    // Also where the directory that it is in is what was backed up.
    for (path, name) in [("dir/file", "file"), ("top", "top")] {
        let path = world.source.join(path);
        let restored = world.restore_path(Some(&path), &delete()).unwrap();
        assert_eq!((restored.files_restored, restored.deleted), (1, 0));
        let content = fs::read(world.target.join(name)).unwrap();
        assert!(content == fs::read(path).unwrap(), "{name}");
    }
    assert!(world.target.join("other").exists());
}

#[test]
fn files_without_known_time_and_owner_are_restored() {
    let world = World::new();
    let options = ArchiveOptions {
        host: "test".to_owned(),
        paths: vec![b"d".to_vec()],
        ..ArchiveOptions::default()
    };
    world
        .repository
        .archive(&options, Arc::new(OneEntry("d/e")))
        .unwrap();
    let restored = world
        .restore_path(None, &RestoreOptions::default())
        .unwrap();
    assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
    assert_eq!(
        fs::read_to_string(world.target.join("d/e")).unwrap(),
        "hello"
    );
}
