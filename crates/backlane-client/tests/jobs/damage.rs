//! Damaged objects: each costs what it alone holds, is named, and stops nothing else. What can't be written ends a job.

use crate::support::World;
use backlane_client::{
    Cancel, CommandLine, Error, RestoreOptions, RestoreSummary, WarningKind, backup_output,
};
use backlane_proto::{ObjectId, ObjectKind, ObjectName};
use backlane_repo::{BlobKind, CheckOptions, ObjectStore, RepoError};
use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs,
    num::NonZero,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Changes an object where it lies.
fn spoil(world: &World, kind: ObjectKind, id: ObjectId, change: impl FnOnce(&mut Vec<u8>)) {
    let path = world.store.path(ObjectName { kind, id });
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
}

fn listed(world: &World, kind: ObjectKind) -> BTreeSet<ObjectId> {
    let listed = world.store.list(kind).unwrap();
    listed.into_iter().map(|info| info.id).collect()
}

/// Backs up, and gives the one object of a kind that this made.
fn made_by_backup(world: &World, kind: ObjectKind) -> ObjectId {
    let before = listed(world, kind);
    assert_eq!(world.back_up().warnings.total(), 0);
    let made = &listed(world, kind) - &before;
    assert_eq!(made.len(), 1);
    made.into_iter().next().unwrap()
}

fn not_restored(restored: &RestoreSummary) -> BTreeSet<&Path> {
    let warnings = restored.warnings.first.iter();
    let failed = warnings.filter(|warning| warning.kind == WarningKind::NotRestored);
    failed.map(|warning| warning.path.as_path()).collect()
}

fn assert_equal(world: &World, name: &str) {
    let read = |base: &Path| fs::read(base.join(name)).unwrap();
    assert!(read(&world.source) == read(&world.target), "{name}");
}

/// A world with a file in an index object of its own, which has rotted: the object.
fn with_rotten_index(world: &World) -> ObjectId {
    fs::create_dir(world.source.join("dir")).unwrap();
    fs::write(world.source.join("dir/old"), vec![1; 300_000]).unwrap();
    world.back_up();
    fs::write(world.source.join("new"), vec![2; 300_000]).unwrap();
    let index = made_by_backup(world, ObjectKind::Index);
    spoil(world, ObjectKind::Index, index, |bytes| bytes[40] ^= 1);
    index
}

#[test]
fn a_restore_without_a_part_of_the_index_names_it_and_restores_what_the_rest_knows() {
    let world = World::new();
    fs::write(world.source.join("old"), vec![1; 300_000]).unwrap();
    world.back_up();
    let snapshot = world.repository.resolve("latest").unwrap();
    fs::write(world.source.join("new"), vec![2; 300_000]).unwrap();
    let index = made_by_backup(&world, ObjectKind::Index);
    spoil(&world, ObjectKind::Index, index, |bytes| bytes[40] ^= 1);
    let restored = backlane_client::restore(
        &world.repository.reader().unwrap(),
        &snapshot,
        Some(&world.source),
        &world.target,
        &RestoreOptions::default(),
        std::sync::Arc::new(()),
        backlane_client::Cancel::default(),
    )
    .unwrap();
    assert_eq!(restored.warnings.total(), 1, "{:?}", restored.warnings);
    let warning = &restored.warnings.first[0];
    assert_eq!(warning.kind, WarningKind::Repository);
    assert!(warning.what.contains(&index.to_string()), "{warning:?}");
    assert_equal(&world, "old");
}

#[test]
fn a_backup_over_a_rotten_part_of_the_index_is_whole_and_says_so() {
    let world = World::new();
    let index = with_rotten_index(&world);
    let summary = world.back_up();
    assert_eq!(summary.warnings.total(), 1, "{:?}", summary.warnings);
    let warning = &summary.warnings.first[0];
    assert_eq!(warning.kind, WarningKind::Repository);
    assert!(warning.what.contains(&index.to_string()), "{warning:?}");
    // Nothing is missing in it, so that --delete is not refused for it.
    let delete = RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    };
    let restored = world.restore_with(&delete).unwrap();
    assert_eq!(restored.failed, 0, "{:?}", restored.warnings);
    assert_eq!(restored.warnings.count(WarningKind::Repository), 1);
    world.assert_same();
}

#[test]
fn a_pack_that_was_cut_off_is_named_with_the_files_that_it_costs_and_no_others() {
    let world = World::new();
    fs::write(world.source.join("other"), vec![1; 300_000]).unwrap();
    world.back_up();
    fs::write(world.source.join("cut"), vec![2; 300_000]).unwrap();
    let before = listed(&world, ObjectKind::Pack);
    world.back_up();
    let index = world.repository.index().unwrap();
    let data = index
        .blobs()
        .find(|blob| blob.kind == BlobKind::Data && !before.contains(&blob.pack))
        .unwrap();
    spoil(&world, ObjectKind::Pack, data.pack, |bytes| {
        bytes.truncate(20)
    });
    let restored = world.restore();
    let cut = world.target.join("cut");
    assert_eq!(not_restored(&restored), BTreeSet::from([cut.as_path()]));
    let what = &restored.warnings.first[0].what;
    for id in [data.pack, ObjectId(data.id.0)] {
        assert!(what.contains(&id.to_string()), "{what}");
    }
    assert!(!cut.exists());
    assert_equal(&world, "other");

    let report = world.repository.check(CheckOptions::Structure).unwrap();
    let named = |text: &str| report.errors.iter().any(|error| error.contains(text));
    assert!(named(&data.pack.to_string()), "{report:?}");
    let path = world.source.join("cut");
    assert!(named(path.to_str().unwrap()), "{report:?}");
    assert!(named(&data.id.to_string()), "{report:?}");
    let other = world.source.join("other");
    assert!(!named(other.to_str().unwrap()), "{report:?}");
}

#[test]
fn delete_removes_nothing_in_a_directory_that_cannot_be_read() {
    let world = World::new();
    fs::create_dir(world.source.join("dir")).unwrap();
    fs::write(world.source.join("dir/file"), "x").unwrap();
    world.back_up();
    world.restore();
    let (spared, extra) = (world.target.join("dir/extra"), world.target.join("extra"));
    for path in [&spared, &extra] {
        fs::write(path, "not in the snapshot").unwrap();
    }
    let reader = world.repository.reader().unwrap();
    let snapshot = world.repository.resolve("latest").unwrap();
    let path = world.source.join("dir");
    let node = reader.node_at(snapshot.tree, path.as_os_str().as_encoded_bytes());
    let tree = node.unwrap().subtree.unwrap();
    let place = reader.place(BlobKind::Tree, tree).unwrap();
    let middle = usize::try_from(place.offset + place.length / 2).unwrap();
    spoil(&world, ObjectKind::Pack, place.pack, |bytes| {
        bytes[middle] ^= 1
    });

    let delete = RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    };
    let restored = world.restore_with(&delete).unwrap();
    let dir = world.target.join("dir");
    assert_eq!(not_restored(&restored), BTreeSet::from([dir.as_path()]));
    assert_eq!(restored.deleted, 1);
    assert!(spared.exists() && dir.join("file").exists() && !extra.exists());
}

#[test]
fn a_failed_write_ends_the_backup_of_a_command_that_has_gone_silent() {
    let world = World::new();
    // No pack can be stored.
    fs::write(world.store.0.join("data"), "").unwrap();
    let script = "head -c 16M /dev/urandom; exec sleep 120";
    let words = ["sh", "-c", script].map(OsString::from);
    let command = CommandLine::new(words.to_vec()).unwrap();
    let mut options = world.options();
    // Otherwise it may all be in packs that are open.
    options.threads = NonZero::new(1);
    let began = Instant::now();
    let error = backup_output(
        &world.repository,
        (OsStr::new("noise"), &command),
        &options,
        Arc::new(()),
        &Cancel::default(),
    )
    .unwrap_err();
    let failed = matches!(error, Error::Repository(RepoError::WriteFailed { .. }));
    assert!(failed, "{error}");
    assert!(began.elapsed() < Duration::from_secs(60));
}
