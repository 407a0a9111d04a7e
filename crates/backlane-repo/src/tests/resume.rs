//! What a backup that was killed has stored, and what the next one makes of it.

use std::sync::Arc;
use std::thread;

use backlane_proto::{ObjectId, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;

use super::support::{
    MadeUp, PASSWORD, back_up, content, file, memory_repository, nodes, noise, options,
};
use crate::seal::sha256;
use crate::testing::MemoryStore;
use crate::{
    CheckOptions, CheckReport, DryRun, ObjectStore, PruneOptions, RepoError, Repository,
    WarningKind,
};

const MIB: usize = 1 << 20;

fn large() -> Arc<MadeUp> {
    MadeUp::new(|| {
        let one = |n: u8| file(&[b'/', n], noise(n.into(), 8 * MIB));
        (b'a'..b'h').map(one).collect()
    })
}

/// So many blobs that their list is longer than what is read of a pack's end at first.
fn small() -> Arc<MadeUp> {
    MadeUp::new(|| {
        let one = |n: u64| file(format!("/{n:03}").as_bytes(), noise(n, 1000));
        (0..500).map(one).collect()
    })
}

/// The same store, opened by another job.
fn reopened(store: &Arc<MemoryStore>) -> Repository {
    let shared: Arc<dyn ObjectStore> = Arc::clone(store) as _;
    Repository::open(shared, PASSWORD).unwrap()
}

/// Leaves of a backup what it leaves when it is killed before it has written an index.
fn lose_index_and_snapshots(store: &MemoryStore) {
    for kind in [ObjectKind::Index, ObjectKind::Snapshot] {
        for info in store.list(kind).unwrap() {
            store.lose(ObjectName { kind, id: info.id });
        }
    }
}

fn pack_names(store: &MemoryStore) -> Vec<ObjectName> {
    let kind = ObjectKind::Pack;
    let packs = store.list(kind).unwrap().into_iter();
    packs.map(|info| ObjectName { kind, id: info.id }).collect()
}

fn pack_bytes(store: &MemoryStore) -> u64 {
    let packs = store.list(ObjectKind::Pack).unwrap();
    packs.iter().map(|pack| pack.bytes).sum()
}

fn assert_sound(repository: &Repository) {
    let report = repository.check(CheckOptions::ReadData).unwrap();
    let sound = CheckReport {
        errors: Vec::new(),
        warnings: Vec::new(),
        snapshots: report.snapshots,
    };
    assert_eq!(report, sound);
}

#[test]
fn what_was_stored_before_the_end_is_not_stored_again() {
    let (whole, repository) = memory_repository();
    back_up(&repository, large());

    let (store, repository) = memory_repository();
    store.fail_after_packs(4);
    let ended = repository.archive(&options(), large());
    assert!(matches!(ended, Err(RepoError::WriteFailed { .. })));
    store.heal();
    assert_eq!(store.count(ObjectKind::Index), 0);
    let left = pack_bytes(&store);

    let next = reopened(&store);
    let source = large();
    let summary = back_up(&next, Arc::clone(&source));
    assert_eq!(source.warnings(), []);
    assert_eq!(
        (summary.packs_continued, summary.bytes_continued),
        (4, left)
    );
    assert!(summary.bytes_added < (56 - 32) * MIB as u64, "{summary:?}");
    // Where packs are cut is different then, and with it their number.
    let more = pack_bytes(&store).abs_diff(pack_bytes(&whole));
    assert!(more < 10_000, "{more}");
    let reader = next.reader().unwrap();
    for (path, node) in nodes(&reader, &summary) {
        assert!(content(&reader, &node).unwrap() == noise(path[1].into(), 8 * MIB));
    }
    assert_sound(&next);
    let third = back_up(&next, large());
    assert_eq!((third.packs_continued, third.bytes_added), (0, 0));
}

#[test]
fn packs_of_many_blobs_and_of_trees_are_used_as_well() {
    let (store, repository) = memory_repository();
    back_up(&repository, small());
    lose_index_and_snapshots(&store);
    store.take_reads();
    let next = reopened(&store);
    let summary = back_up(&next, small());
    assert_eq!((summary.packs_continued, summary.bytes_added), (2, 0));
    assert_sound(&next);
    let read = |(name, range): (ObjectName, Option<backlane_proto::ByteRange>)| {
        let of_pack = range.filter(|_| name.kind == ObjectKind::Pack);
        of_pack.map_or(0, |range| range.length)
    };
    let read: u64 = store.take_reads().into_iter().map(read).sum();
    assert!(read < pack_bytes(&store) * 3, "{read}");
}

#[test]
fn packs_that_cannot_be_used_are_named_and_left_alone() {
    let (store, repository) = memory_repository();
    back_up(&repository, large());
    lose_index_and_snapshots(&store);
    let names = pack_names(&store);
    assert!(names.len() >= 6, "{names:?}");
    store.rot(names[0], |bytes| {
        let sealed = bytes.len() - 10;
        bytes[sealed] ^= 1;
    });
    store.rot(names[1], |bytes| bytes.truncate(3));
    store.rot(names[2], |bytes| {
        let length = bytes.len() - 1;
        bytes[length] = 0xff;
    });
    // The header is right, and is that of another pack.
    store.rot(names[3], |bytes| bytes.insert(0, 0));
    let foreign = Bytes::from(noise(99, 5000));
    let foreign_name = ObjectName {
        kind: ObjectKind::Pack,
        id: ObjectId(sha256(&foreign)),
    };
    store
        .write(foreign_name, PackContents::Data, foreign)
        .unwrap();

    let next = reopened(&store);
    let source = large();
    let summary = back_up(&next, Arc::clone(&source));
    let warnings = source.warnings();
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    for name in names[..4].iter().chain([&foreign_name]) {
        let told = warnings.iter().find(|warning| {
            warning.kind == WarningKind::Repository && warning.reason.contains(&name.to_string())
        });
        assert!(told.is_some(), "{name}: {warnings:?}");
    }
    assert_eq!(summary.packs_continued, names.len() as u64 - 4);
    // It lacks nothing: what the others hold is stored again.
    assert_eq!(summary.warnings, 0);
    let reader = next.reader().unwrap();
    for (path, node) in nodes(&reader, &summary) {
        assert!(content(&reader, &node).unwrap() == noise(path[1].into(), 8 * MIB));
    }
    assert_eq!(store.removals(), 0);
}

#[test]
fn packs_of_a_job_that_still_runs_are_named_twice_and_nothing_breaks() {
    let (store, repository) = memory_repository();
    let beside = Arc::clone(&store);
    let source = MadeUp::streaming(move || {
        let store = Arc::clone(&beside);
        // Four packs may be open with up to 8 MiB each, however many are stored.
        let first = (0..50).map(|n| file(format!("/{n:02}").as_bytes(), noise(n, MIB)));
        let last = std::iter::once_with(move || {
            while store.count(ObjectKind::Pack) < 2 {
                thread::yield_now();
            }
            let other = back_up(&reopened(&store), small());
            assert!(other.packs_continued >= 2, "{other:?}");
            file(b"/last", b"last".to_vec())
        });
        Box::new(first.chain(last))
    });
    let summary = back_up(&repository, source);
    assert_eq!(summary.packs_continued, 0);
    assert_sound(&repository);
    let objects = store.count(ObjectKind::Pack);
    repository.prune(&PruneOptions::default()).unwrap();
    assert_eq!(store.count(ObjectKind::Pack), objects);
    assert_sound(&repository);
    let again = back_up(&repository, small());
    assert_eq!((again.packs_continued, again.bytes_added), (0, 0));
}

#[test]
fn packs_that_a_prune_has_marked_are_not_taken_back() {
    let (store, repository) = memory_repository();
    let summary = back_up(&repository, small());
    repository
        .forget_snapshot(summary.snapshot.unwrap())
        .unwrap();
    let pruned = repository.prune(&PruneOptions::default()).unwrap();
    assert_eq!((pruned.packs_unused, pruned.packs_removed), (2, 0));
    let next = back_up(&repository, MadeUp::new(Vec::new));
    assert_eq!(next.packs_continued, 0);
    assert!(store.count(ObjectKind::Pack) >= 2);
}

#[test]
fn a_dry_run_leaves_what_was_left_as_it_is() {
    let (store, repository) = memory_repository();
    back_up(&repository, small());
    lose_index_and_snapshots(&store);
    let before = store.writes_tried();
    let mut options = options();
    options.dry_run = DryRun::Yes;
    let summary = reopened(&store).archive(&options, small()).unwrap();
    assert_eq!((summary.packs_continued, store.writes_tried()), (0, before));
}

#[test]
fn a_cancelled_backup_reads_no_more_of_what_was_left() {
    let (store, repository) = memory_repository();
    back_up(&repository, small());
    lose_index_and_snapshots(&store);
    let options = options();
    options.cancel.cancel();
    store.take_reads();
    let ended = reopened(&store).archive(&options, small());
    assert!(matches!(ended, Err(RepoError::Cancelled)), "{ended:?}");
    let of_packs = |read: &(ObjectName, _)| read.0.kind == ObjectKind::Pack;
    assert!(!store.take_reads().iter().any(of_packs));
    assert_eq!(store.count(ObjectKind::Index), 0);
}
