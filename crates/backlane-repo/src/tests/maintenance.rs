//! Comparing, checking, forgetting, pruning.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backlane_proto::{ObjectKind, ObjectName};

use super::support::{
    MadeUp, back_up, content, dir, file, memory_repository, nodes, noise, options, snapshots,
};
use crate::{
    BlobKind, Change, ChangeKind, CheckOptions, DryRun, KeepPolicy, ObjectStore, PruneDelete,
    PruneOptions, RepoError, Repository,
};

#[test]
fn differences_are_given_by_path_with_their_kind() {
    let (_, repository) = memory_repository();
    let old = back_up(
        &repository,
        MadeUp::new(|| {
            vec![
                dir(b"/a"),
                file(b"/a/changed", b"one".to_vec()),
                file(b"/a/gone", b"x".to_vec()),
                file(b"/a/same", b"x".to_vec()),
                dir(b"/becomes"),
                file(b"/becomes/file", b"x".to_vec()),
                file(b"/mode", b"x".to_vec()),
            ]
        }),
    );
    let new = back_up(
        &repository,
        MadeUp::new(|| {
            let mut mode = file(b"/mode", b"x".to_vec());
            if let Ok(entry) = &mut mode {
                entry.meta.mode = Some(0o600);
            }
            let mut same = file(b"/a/same", b"x".to_vec());
            if let Ok(entry) = &mut same {
                entry.meta.inode = 77;
                entry.meta.accessed = None;
            }
            let mut changed = file(b"/a/changed", b"two".to_vec());
            if let Ok(entry) = &mut changed {
                entry.meta.inode = 78;
            }
            vec![
                dir(b"/a"),
                changed,
                same,
                file(b"/becomes", b"x".to_vec()),
                mode,
                dir(b"/new"),
                file(b"/new/file", b"x".to_vec()),
            ]
        }),
    );
    let reader = repository.reader().unwrap();
    let mut changes = Vec::new();
    let keep = &mut |change: &Change| {
        changes.push((String::from_utf8(change.path.clone()).unwrap(), change.kind));
    };
    reader.diff(old.tree, new.tree, keep).unwrap();
    let changes: Vec<_> = changes
        .iter()
        .map(|(path, kind)| (path.as_str(), *kind))
        .collect();
    let want = [
        ("/a/changed", ChangeKind::Content),
        ("/a/gone", ChangeKind::Removed),
        ("/becomes", ChangeKind::Type),
        ("/becomes/file", ChangeKind::Removed),
        ("/mode", ChangeKind::Metadata),
        ("/new", ChangeKind::Added),
        ("/new/file", ChangeKind::Added),
    ];
    assert_eq!(changes, want);
}

#[test]
fn a_check_finds_rotten_and_missing_packs() {
    let (store, repository) = memory_repository();
    let source = MadeUp::new(|| vec![file(b"/a", noise(1, 3 << 20))]);
    let summary = back_up(&repository, source);
    let check = |options| repository.check(options).unwrap();
    let clean = check(CheckOptions::ReadData);
    assert!(clean.is_clean(), "{clean:?}");
    assert_eq!(clean.snapshots, 1);

    let reader = repository.reader().unwrap();
    let (_, node) = nodes(&reader, &summary).remove(0);
    let place = reader.place(BlobKind::Data, node.content[0]).unwrap();
    let pack = ObjectName {
        kind: ObjectKind::Pack,
        id: place.pack,
    };
    store.rot(pack, |bytes| bytes[100] ^= 1);
    assert!(check(CheckOptions::Structure).is_clean());
    assert!(!check(CheckOptions::ReadData).is_clean());
    store.rot(pack, |bytes| bytes.truncate(50));
    assert!(!check(CheckOptions::Structure).is_clean());
    store.lose(pack);
    assert!(!check(CheckOptions::Structure).is_clean());
}

#[test]
fn a_check_finds_a_damaged_snapshot() {
    let (store, repository) = memory_repository();
    let source = MadeUp::new(|| vec![file(b"/a", b"a".to_vec())]);
    let summary = back_up(&repository, source);
    let name = ObjectName {
        kind: ObjectKind::Snapshot,
        id: summary.snapshot.unwrap(),
    };
    store.rot(name, |bytes| bytes[20] ^= 1);
    assert!(
        !repository
            .check(CheckOptions::Structure)
            .unwrap()
            .is_clean()
    );
}

fn back_up_at(repository: &Repository, days_ago: u64, seed: u8, tag: &str) {
    let mut options = options();
    let age = Duration::from_secs(days_ago * 86_400);
    options.time = Some(SystemTime::now() - age);
    options.tags = vec![tag.to_owned()];
    let source =
        MadeUp::new(move || vec![file(b"/a", noise(seed.into(), 200_000 + usize::from(seed)))]);
    repository.archive(&options, source).unwrap();
}

#[test]
fn forget_keeps_what_the_policy_says_and_prune_frees_the_rest() {
    let (store, repository) = memory_repository();
    for (days, seed, tag) in [(9, 1, "x"), (3, 2, "keep"), (1, 3, "x"), (0, 4, "x")] {
        back_up_at(&repository, days, seed, tag);
    }
    let nothing = repository.forget(&KeepPolicy::default(), DryRun::No);
    assert!(matches!(nothing, Err(RepoError::KeepsNothing)));
    let policy = KeepPolicy {
        last: Some(1),
        tags: vec!["keep".to_owned()],
        ..KeepPolicy::default()
    };
    let planned = repository.forget(&policy, DryRun::Yes).unwrap();
    assert_eq!(snapshots(&store), 4);
    let done = repository.forget(&policy, DryRun::No).unwrap();
    assert_eq!(planned, done);
    assert_eq!(snapshots(&store), 2);
    let left = repository.snapshots().unwrap();
    assert_eq!(left[0].tags, ["keep"]);
    assert_eq!(done.iter().filter(|decision| decision.keep).count(), 2);

    let options = PruneOptions {
        unused_percent_max: 0,
        delete: PruneDelete::AtOnce,
        dry_run: DryRun::Yes,
    };
    let packs = store.count(ObjectKind::Pack);
    let planned = repository.prune(&options).unwrap();
    assert!(planned.bytes_freed > 350_000, "{planned:?}");
    assert_eq!(store.count(ObjectKind::Pack), packs);
    let dry_run = DryRun::No;
    assert_eq!(
        repository
            .prune(&PruneOptions { dry_run, ..options })
            .unwrap(),
        planned
    );
    assert!(store.count(ObjectKind::Pack) < packs);

    let report = repository.check(CheckOptions::ReadData).unwrap();
    assert!(
        report.is_clean() && report.warnings.is_empty(),
        "{report:?}"
    );
    let reader = repository.reader().unwrap();
    for (info, seed) in left.iter().zip([2_u8, 4]) {
        let node = reader.node_at(info.tree, b"/a").unwrap();
        let want = noise(seed.into(), 200_000 + usize::from(seed));
        assert!(content(&reader, &node).unwrap() == want);
    }
}

#[test]
fn policies_by_time_keep_the_newest_of_each_span() {
    let (store, repository) = memory_repository();
    for days in [0, 1, 2, 40, 41, 800] {
        back_up_at(&repository, days, 1, "x");
    }
    let within = KeepPolicy {
        within: Some(Duration::from_secs(41 * 86_400 - 60)),
        ..KeepPolicy::default()
    };
    let kept = |policy: &KeepPolicy| {
        let decisions = repository.forget(policy, DryRun::Yes).unwrap();
        decisions.iter().filter(|decision| decision.keep).count()
    };
    assert_eq!(kept(&within), 4);
    let daily = KeepPolicy {
        daily: Some(3),
        ..KeepPolicy::default()
    };
    assert_eq!(kept(&daily), 3);
    let yearly = KeepPolicy {
        yearly: Some(10),
        ..KeepPolicy::default()
    };
    assert!((2..=3).contains(&kept(&yearly)), "{}", kept(&yearly));
    assert_eq!(snapshots(&store), 6);
}

#[test]
fn a_rotten_snapshot_stops_nobody_who_does_not_need_it() {
    let (store, repository) = memory_repository();
    let old = back_up(&repository, tree(1)).snapshot.unwrap();
    let rotten = back_up(&repository, tree(2)).snapshot.unwrap();
    let object = ObjectName {
        kind: ObjectKind::Snapshot,
        id: rotten,
    };
    store.rot(object, |bytes| bytes[30] ^= 1);

    let found = repository.resolve(&old.to_string()[..10]).unwrap();
    assert_eq!(found.id, old);
    // Nobody knows whether the rotten one is the latest.
    let latest = repository.resolve("latest");
    assert!(matches!(latest, Err(RepoError::Damaged { .. })));
    let (readable, damage) = repository.readable_snapshots().unwrap();
    assert_eq!((readable.len(), damage.len()), (1, 1));
    assert!(damage[0].to_string().contains(&rotten.to_string()));
    let next = back_up(&repository, tree(3));
    assert_eq!(next.parent, Some(old));

    repository.forget_snapshot(rotten).unwrap();
    assert_eq!(repository.snapshots().unwrap().len(), 2);
}

#[test]
fn a_rotten_index_object_hides_only_what_it_alone_knows() {
    let (store, repository) = memory_repository();
    let first = back_up(&repository, tree(1));
    let known = store.list(ObjectKind::Index).unwrap();
    back_up(&repository, tree(2));
    let newer = store.list(ObjectKind::Index).unwrap();
    let rotten = newer.iter().find(|info| !known.contains(info)).unwrap();
    let object = ObjectName {
        kind: ObjectKind::Index,
        id: rotten.id,
    };
    store.rot(object, |bytes| bytes[30] ^= 1);
    assert!(repository.index().is_err());
    let reader = repository.reader().unwrap();
    assert_eq!(reader.index_damage().len(), 1);
    assert!(
        reader.index_damage()[0]
            .to_string()
            .contains(&rotten.id.to_string())
    );
    reader.tree(first.tree).unwrap();
}

fn tree(seed: u8) -> Arc<MadeUp> {
    MadeUp::new(move || {
        vec![
            dir(b"/srv"),
            dir(b"/srv/data"),
            // Another size each time: what looks unchanged is not read.
            file(
                b"/srv/data/file",
                noise(seed.into(), 10_000 + usize::from(seed)),
            ),
        ]
    })
}
