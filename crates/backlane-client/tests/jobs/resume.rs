//! Restores that were interrupted and are run again.

use crate::support::World;
use aws_lc_rs::digest::{SHA256, digest};
use backlane_client::{Cancel, Error, Progress, RestoreOptions, RestoreSummary, restore};
use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

const MIB: u64 = 1 << 20;

/// Cancels when so many bytes are done.
struct CancelAfter(AtomicU64, Cancel);

impl Progress for CancelAfter {
    fn advanced(&self, _: u64, bytes: u64) {
        let before = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(left.saturating_sub(bytes))
            });
        if before.is_ok_and(|left| left <= bytes) && bytes > 0 {
            self.1.cancel();
        }
    }
}

impl World {
    /// A world with one file that was backed up.
    fn with_file(content: &[u8]) -> Self {
        let world = Self::new();
        fs::write(world.source.join("large"), content).unwrap();
        world.back_up();
        world
    }

    fn restore_interrupted_after(&self, bytes: u64) {
        let cancel = Cancel::default();
        let ended = restore(
            &self.repository.reader().unwrap(),
            &self.repository.resolve("latest").unwrap(),
            Some(&self.source),
            &self.target,
            &RestoreOptions::default(),
            Arc::new(CancelAfter(bytes.into(), cancel.clone())),
            cancel,
        );
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    }

    /// The temporary files in the target.
    fn unfinished(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.target).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let is_temporary = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(".backlane-")
        };
        paths.filter(is_temporary).collect()
    }

    /// Interrupts a restore in the middle of its one file, and gives the temporary file.
    fn half_restored(&self) -> PathBuf {
        self.restore_interrupted_after(6 * MIB);
        let mut unfinished = self.unfinished();
        assert!(!self.target.join("large").exists());
        assert_eq!(unfinished.len(), 1);
        unfinished.remove(0)
    }

    /// Restores once more, expects that all is right then, and gives how many bytes of it were kept.
    fn restore_again(&self) -> u64 {
        let restored = self.restore();
        assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
        self.assert_same();
        assert_eq!(self.unfinished(), [] as [PathBuf; 0]);
        let all: u64 = fs::read_dir(&self.source)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(restored.bytes_kept + restored.bytes_restored, all);
        restored.bytes_kept
    }
}

/// Bytes that can't be compressed.
fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    fidelity::Random::new(seed).bytes(usize::try_from(bytes).unwrap())
}

#[test]
fn a_restore_goes_on_where_it_was_interrupted_within_files_too() {
    let world = World::with_file(&noise(1, 24 * MIB));
    for name in ["a", "b"] {
        fs::write(world.source.join(name), noise(2, 3 * MIB)).unwrap();
    }
    world.back_up();
    world.restore_interrupted_after(12 * MIB);
    assert!(!world.target.join("large").exists());

    let dry = RestoreOptions {
        dry_run: true,
        ..RestoreOptions::default()
    };
    let would: RestoreSummary = world.restore_with(&dry).unwrap();
    let restored = world.restore();
    assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
    assert!(restored.bytes_kept >= 8 * MIB, "{restored:?}");
    assert_eq!(restored.bytes_kept + restored.bytes_restored, 30 * MIB);
    // What lies between two blobs that are wanted is read too, but no blob that isn't.
    assert!(
        restored.bytes_fetched < restored.bytes_restored + MIB,
        "{restored:?}"
    );
    let numbers = |summary: &RestoreSummary| {
        (
            summary.files_restored,
            summary.files_kept,
            summary.bytes_restored,
            summary.bytes_kept,
        )
    };
    assert_eq!(numbers(&would), numbers(&restored));
    assert_eq!(world.unfinished(), [] as [PathBuf; 0]);
    world.assert_same();
    let third = world.restore();
    assert_eq!((third.files_kept, third.bytes_kept), (3, 30 * MIB));
    assert_eq!(third.bytes_fetched, 0);
}

#[test]
fn what_is_wrong_in_a_half_written_file_is_written_again() {
    let world = World::with_file(&noise(1, 24 * MIB));
    let unfinished = world.half_restored();
    let half = File::options().write(true).open(&unfinished).unwrap();
    half.write_all_at(b"wrong", 5).unwrap();
    // Another length is as wrong.
    half.set_len(25 * MIB).unwrap();
    let kept = world.restore_again();
    assert!(kept > MIB, "{kept}");

    fs::remove_file(world.target.join("large")).unwrap();
    fs::write(&unfinished, noise(2, 24 * MIB)).unwrap();
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.restore_again(), 0);
}

#[test]
fn holes_and_zeros_of_a_half_written_file_come_back_as_they_were() {
    let world = World::new();
    let source = File::create(world.source.join("large")).unwrap();
    source.write_all_at(&noise(1, 12 * MIB), 0).unwrap();
    source.write_all_at(&vec![0; 4 << 20], 12 * MIB).unwrap();
    source.write_all_at(&noise(2, MIB), 36 * MIB).unwrap();
    // The end lies in a hole, and in the middle of a block.
    source.set_len(40 * MIB + 1000).unwrap();
    source.sync_all().unwrap();
    drop(source);
    assert_eq!(world.back_up().warnings.total(), 0);
    let unfinished = world.half_restored();
    let half = File::options().write(true).open(&unfinished).unwrap();
    // In the middle of a hole, at the end, and behind it.
    half.write_all_at(&noise(3, 4 * MIB), 25 * MIB).unwrap();
    half.write_all_at(&noise(4, MIB), 39 * MIB).unwrap();
    half.write_all_at(&noise(5, MIB), 41 * MIB).unwrap();
    let kept = world.restore_again();
    assert!(kept > MIB, "{kept}");
    let found = fidelity::compare(&world.source, &world.target).unwrap();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_file_into_which_others_can_write_is_not_gone_on_with() {
    let world = World::with_file(&noise(1, 24 * MIB));
    let unfinished = world.half_restored();
    fs::set_permissions(&unfinished, Permissions::from_mode(0o620)).unwrap();
    assert_eq!(world.restore_again(), 0);

    fs::remove_file(world.target.join("large")).unwrap();
    let unfinished = world.half_restored();
    let elsewhere = world.dir.path().join("elsewhere");
    fs::hard_link(&unfinished, &elsewhere).unwrap();
    let before = fs::read(&elsewhere).unwrap();
    assert_eq!(world.restore_again(), 0);
    assert!(fs::read(&elsewhere).unwrap() == before);

    fs::remove_file(world.target.join("large")).unwrap();
    fs::create_dir_all(unfinished.join("full")).unwrap();
    assert_eq!(world.restore_again(), 0);
}

#[test]
fn what_no_file_of_the_snapshot_goes_on_with_is_removed() {
    let world = World::with_file(&noise(1, 24 * MIB));
    let unfinished = world.half_restored();
    let half = fs::read(&unfinished).unwrap();
    // The file is whole meanwhile.
    world.restore();
    fs::write(&unfinished, &half).unwrap();
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.restore_again(), 24 * MIB);

    // What has its name is no file.
    fs::write(&unfinished, &half).unwrap();
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(world.source.join("large")).unwrap();
    std::os::unix::fs::symlink("x", world.source.join("large")).unwrap();
    world.back_up();
    world.restore();
    assert_eq!(world.unfinished(), [] as [PathBuf; 0]);
    world.assert_same();
}

#[test]
fn files_with_the_names_of_temporary_ones_are_files_like_others() {
    let world = World::with_file(&noise(1, 24 * MIB));
    let hash = digest(&SHA256, b"large");
    let name = format!(".backlane-{}", hex::encode(&hash.as_ref()[..16]));
    let unfinished = world.half_restored();
    assert_eq!(unfinished.file_name().unwrap().to_str(), Some(&name[..]));
    fs::write(world.source.join(&name), noise(2, 3 * MIB)).unwrap();
    world.back_up();
    for _ in 0..2 {
        let restored = world.restore();
        assert_eq!(restored.warnings.total(), 0, "{:?}", restored.warnings);
        world.assert_same();
    }
}

#[test]
fn a_file_that_is_right_but_for_its_time_is_not_fetched_again() {
    let world = World::with_file(&noise(1, 3 * MIB));
    world.restore();
    let file = world.target.join("large");
    let inode = file.metadata().unwrap().ino();
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    let restored = world.restore();
    assert_eq!((restored.files_kept, restored.bytes_fetched), (1, 0));
    assert_eq!(file.metadata().unwrap().ino(), inode);
    world.assert_same();
}

#[test]
fn of_a_file_that_was_changed_only_what_differs_is_fetched() {
    let world = World::with_file(&noise(1, 24 * MIB));
    world.restore();
    let file = world.target.join("large");
    let elsewhere = world.dir.path().join("elsewhere");
    let changes: [&dyn Fn(&File); 3] = [
        &|file| file.write_all_at(b"changed", 13 * MIB).unwrap(),
        &|file| file.set_len(20 * MIB).unwrap(),
        &|file| file.write_all_at(&noise(3, MIB), 24 * MIB).unwrap(),
    ];
    for change in changes {
        let open = File::options().write(true).open(&file).unwrap();
        change(&open);
        // Whoever has the file under another name keeps what they have.
        fs::hard_link(&file, &elsewhere).unwrap();
        let before = fs::read(&elsewhere).unwrap();
        let dry = RestoreOptions {
            dry_run: true,
            ..RestoreOptions::default()
        };
        let would = world.restore_with(&dry).unwrap();
        assert_eq!(world.unfinished(), [] as [PathBuf; 0]);
        let kept = world.restore_again();
        assert!(kept >= 12 * MIB, "{kept}");
        assert_eq!(would.bytes_kept, kept);
        assert!(fs::read(&elsewhere).unwrap() == before);
        fs::remove_file(&elsewhere).unwrap();
    }
}

#[test]
fn nothing_is_taken_from_a_file_that_is_another() {
    let world = World::with_file(&noise(1, 24 * MIB));
    world.restore();
    fs::write(world.target.join("large"), noise(2, 24 * MIB)).unwrap();
    assert_eq!(world.restore_again(), 0);
}

#[test]
fn holes_of_a_file_that_was_changed_come_back_as_they_were() {
    let world = World::new();
    let source = File::create(world.source.join("large")).unwrap();
    source.write_all_at(&noise(1, 12 * MIB), 0).unwrap();
    source.write_all_at(&noise(2, 12 * MIB), 36 * MIB).unwrap();
    source.set_len(56 * MIB + 1000).unwrap();
    source.sync_all().unwrap();
    drop(source);
    assert_eq!(world.back_up().warnings.total(), 0);
    world.restore();
    let file = world.target.join("large");
    let file = File::options().write(true).open(file).unwrap();
    file.write_all_at(&noise(3, MIB), 25 * MIB).unwrap();
    file.write_all_at(b"changed", 5 * MIB).unwrap();
    file.sync_all().unwrap();
    let kept = world.restore_again();
    assert!(kept >= 12 * MIB, "{kept}");
    let found = fidelity::compare(&world.source, &world.target).unwrap();
    assert!(found.is_empty(), "{found:?}");
}
