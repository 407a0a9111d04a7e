//! Packs that the index names and that are gone: the next backup stores again what it meets of them.

use std::sync::Arc;

use backlane_proto::{ObjectId, ObjectKind, ObjectName};

use super::support::{
    MadeUp, back_up, content, dir, file, memory_repository, nodes, noise, options,
};
use crate::testing::MemoryStore;
use crate::{
    ArchiveSummary, BlobKind, CheckOptions, DryRun, FileKind, ObjectStore, PruneOptions, Repository,
};

const FILE_BYTES: usize = 5 << 20;

/// Enough for several packs of data, and directories in two levels.
fn tree(files: &'static [u8]) -> Arc<MadeUp> {
    MadeUp::new(move || {
        let mut entries = vec![dir(b"/srv"), dir(b"/srv/deep")];
        for name in files {
            let path = [b"/srv/deep/", &[*name][..]].concat();
            entries.push(file(&path, noise((*name).into(), FILE_BYTES)));
        }
        entries
    })
}

fn lose_pack(store: &MemoryStore, id: ObjectId) {
    let kind = ObjectKind::Pack;
    store.lose(ObjectName { kind, id });
}

/// The packs that hold blobs of a kind.
fn packs_of(repository: &Repository, kind: BlobKind) -> Vec<ObjectId> {
    let index = repository.index().unwrap();
    let of_kind = index.blobs().filter(|place| place.kind == kind);
    let mut packs: Vec<_> = of_kind.map(|place| place.pack).collect();
    packs.sort();
    packs.dedup();
    packs
}

fn blobs_in(repository: &Repository, packs: &[ObjectId]) -> u64 {
    let index = repository.index().unwrap();
    let gone = index.blobs().filter(|place| packs.contains(&place.pack));
    gone.count() as u64
}

fn assert_content(repository: &Repository, summary: &ArchiveSummary, files: &[u8]) {
    let reader = repository.reader().unwrap();
    let mut read = Vec::new();
    for (path, node) in nodes(&reader, summary) {
        if node.kind == FileKind::File {
            let name = *path.last().unwrap();
            assert!(content(&reader, &node).unwrap() == noise(name.into(), FILE_BYTES));
            read.push(name);
        }
    }
    assert_eq!(read, files);
}

#[test]
fn what_was_in_missing_packs_is_stored_again_and_nothing_else_is() {
    let (store, repository) = memory_repository();
    let first = back_up(&repository, tree(b"abcdef"));
    let gone = [
        packs_of(&repository, BlobKind::Data)[0],
        packs_of(&repository, BlobKind::Tree)[0],
    ];
    let blobs = blobs_in(&repository, &gone);
    let whole = store.count(ObjectKind::Pack);
    gone.iter().for_each(|pack| lose_pack(&store, *pack));

    let source = tree(b"abcdef");
    let second = back_up(&repository, Arc::clone(&source));
    assert_eq!(source.warnings(), []);
    assert_eq!(second.packs_missing, 2);
    assert_eq!(
        (second.blobs_missing, second.blobs_stored_again),
        (blobs, blobs)
    );
    // The parent's directories are gone, so that every file is read; what is elsewhere is not stored again.
    assert_eq!((second.parent, second.tree), (first.snapshot, first.tree));
    assert_eq!(second.files_unmodified, 0);
    assert!(second.bytes_added < 3 * FILE_BYTES as u64, "{second:?}");
    assert_content(&repository, &second, b"abcdef");
    // The older snapshot has the same content, and is whole again.
    assert_content(&repository, &first, b"abcdef");

    let third = back_up(&repository, tree(b"abcdef"));
    assert_eq!((third.parent, third.bytes_added), (second.snapshot, 0));
    assert_eq!((third.packs_missing, third.blobs_missing), (2, 0));

    // Only the names of the missing packs are left to complain of, until a prune.
    let report = repository.check(CheckOptions::ReadData).unwrap();
    assert_eq!(report.errors.len(), 2, "{report:?}");
    for pack in gone {
        let named = |error: &String| error.contains(&pack.to_string());
        assert!(report.errors.iter().any(named), "{pack}: {report:?}");
    }
    repository.prune(&PruneOptions::default()).unwrap();
    let report = repository.check(CheckOptions::ReadData).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_content(&repository, &third, b"abcdef");
    assert_eq!(back_up(&repository, tree(b"abcdef")).packs_missing, 0);
    assert!(store.count(ObjectKind::Pack) <= whole + 1);
}

#[test]
fn a_file_is_read_again_if_its_content_is_missing_though_it_is_unchanged() {
    let (store, repository) = memory_repository();
    let first = back_up(&repository, tree(b"abcdef"));
    lose_pack(&store, packs_of(&repository, BlobKind::Data)[0]);
    let second = back_up(&repository, tree(b"abcdef"));
    assert_eq!(second.parent, first.snapshot);
    // Those that lay in the pack; the others are taken over from the parent.
    assert!((1..6).contains(&second.files_changed), "{second:?}");
    assert_eq!(second.files_changed + second.files_unmodified, 6);
    assert_eq!(second.blobs_stored_again, second.blobs_missing);
    assert_content(&repository, &second, b"abcdef");
}

#[test]
fn what_is_no_longer_in_the_source_stays_missing_and_is_counted() {
    let (store, repository) = memory_repository();
    let first = back_up(&repository, tree(b"abcdef"));
    let gone = packs_of(&repository, BlobKind::Data);
    gone.iter().for_each(|pack| lose_pack(&store, *pack));
    let second = back_up(&repository, tree(b"ab"));
    assert_eq!(second.packs_missing, gone.len() as u64);
    let (missing, again) = (second.blobs_missing, second.blobs_stored_again);
    assert!(0 < again && again < missing, "{second:?}");
    assert_content(&repository, &second, b"ab");

    // The first needs what is gone: nothing changes, so that a pack that comes back is known.
    let before = store.list(ObjectKind::Index).unwrap();
    repository.prune(&PruneOptions::default()).unwrap_err();
    assert_eq!(store.list(ObjectKind::Index).unwrap(), before);
    repository.forget_snapshot(first.snapshot.unwrap()).unwrap();
    let dry_run = PruneOptions {
        dry_run: DryRun::Yes,
        ..PruneOptions::default()
    };
    repository.prune(&dry_run).unwrap();
    assert_eq!(store.list(ObjectKind::Index).unwrap(), before);
    repository.prune(&PruneOptions::default()).unwrap();
    let report = repository.check(CheckOptions::ReadData).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_dry_run_counts_what_is_missing_and_stores_nothing() {
    let (store, repository) = memory_repository();
    back_up(&repository, tree(b"ab"));
    lose_pack(&store, packs_of(&repository, BlobKind::Data)[0]);
    let before = store.writes_tried();
    let mut options = options();
    options.dry_run = DryRun::Yes;
    let summary = repository.archive(&options, tree(b"ab")).unwrap();
    assert_eq!((summary.packs_missing, summary.blobs_stored_again), (1, 0));
    assert!(
        summary.blobs_missing > 0 && summary.bytes_added > 0,
        "{summary:?}"
    );
    assert_eq!(store.writes_tried(), before);
}

#[test]
fn a_pack_that_another_job_has_put_meanwhile_is_not_missing() {
    let (store, repository) = memory_repository();
    back_up(&repository, tree(b"a"));
    let packs = repository.inner.packs().unwrap();
    assert_eq!(packs.not_listed, []);
    // As if it had been listed before the other job put it.
    let there = packs_of(&repository, BlobKind::Data);
    let missing = repository.inner.missing(there).unwrap();
    assert_eq!(missing.packs(), 0);
    assert!(store.count(ObjectKind::Pack) > 1);
}
