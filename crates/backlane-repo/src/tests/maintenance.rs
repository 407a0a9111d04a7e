//! Comparing, checking, forgetting, pruning.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backlane_proto::{ObjectId, ObjectKind, ObjectName};

use super::support::{
    MadeUp, back_up, content, dir, file, memory_repository, nodes, noise, options, snapshots,
};
use crate::testing::MemoryStore;
use crate::{
    Arrivals, BlobKind, Change, ChangeKind, CheckOptions, DryRun, FileKind, Flood, KeepPolicy,
    ObjectStore, PruneDelete, PruneOptions, RepoError, Repository, Visit, WarningKind,
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
fn a_check_that_reads_goes_on_after_damage_and_names_what_it_costs() {
    let (store, repository) = memory_repository();
    let summary = back_up(
        &repository,
        MadeUp::new(|| {
            vec![
                file(b"/rotten", noise(1, 20 << 20)),
                dir(b"/unreadable"),
                file(b"/unreadable/in", b"x".to_vec()),
                file(b"/whole", noise(2, 20 << 20)),
            ]
        }),
    );
    let reader = repository.reader().unwrap();
    let found = nodes(&reader, &summary);
    let node = |path: &[u8]| &found.iter().find(|(at, _)| at == path).unwrap().1;
    let change = |kind, id| {
        let place = reader.place(kind, id).unwrap();
        let at = (place.offset + place.length / 2) as usize;
        let pack = ObjectName {
            kind: ObjectKind::Pack,
            id: place.pack,
        };
        store.rot(pack, |bytes| bytes[at] ^= 1);
        place.pack
    };
    let blob = node(b"/rotten").content[0];
    let pack = change(BlobKind::Data, blob);
    change(BlobKind::Tree, node(b"/unreadable").subtree.unwrap());

    let report = repository.check(CheckOptions::ReadData).unwrap();
    let about = |text: &str| {
        let errors = report.errors.iter();
        errors.filter(|error| error.contains(text)).count()
    };
    assert!(about(&pack.to_string()) > 0, "{report:?}");
    assert!(about(&blob.to_string()) > 0, "{report:?}");
    assert_eq!(about(", /rotten: its data blob"), 1, "{report:?}");
    assert_eq!(about(", /unreadable: "), 1, "{report:?}");
    assert_eq!(about("/whole"), 0, "{report:?}");
}

#[test]
fn a_check_that_reads_finds_a_pack_that_rotted_outside_of_its_blobs() {
    let (store, repository) = memory_repository();
    back_up(&repository, tree(1));
    for info in store.list(ObjectKind::Pack).unwrap() {
        let pack = ObjectName {
            kind: ObjectKind::Pack,
            id: info.id,
        };
        let header = usize::try_from(info.bytes).unwrap() - 10;
        store.rot(pack, |bytes| bytes[header] ^= 1);
    }
    let report = repository.check(CheckOptions::ReadData).unwrap();
    for info in store.list(ObjectKind::Pack).unwrap() {
        let name = info.id.to_string();
        let named = report.errors.iter().any(|error| error.contains(&name));
        assert!(named, "{report:?}");
    }
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

/// Days ago that every snapshot arrived, by its tag.
fn arrived(repository: &Repository, days_ago: &[(&str, u64)]) -> Arrivals {
    let arrival = |snapshot: &crate::SnapshotInfo| {
        let days = days_ago.iter().find(|(tag, _)| snapshot.tags == [*tag])?.1;
        let at = SystemTime::now() - Duration::from_secs(days * 86_400);
        Some((snapshot.id, at))
    };
    Arrivals {
        times: repository
            .snapshots()
            .unwrap()
            .iter()
            .filter_map(arrival)
            .collect(),
        flood: Flood::Protect,
    }
}

fn tags_left(repository: &Repository) -> Vec<String> {
    let snapshots = repository.snapshots().unwrap();
    let mut tags: Vec<_> = snapshots.into_iter().flat_map(|it| it.tags).collect();
    tags.sort();
    tags
}

#[test]
fn a_policy_goes_by_arrival_whatever_time_a_snapshot_claims() {
    let (_, repository) = memory_repository();
    // One that arrived long ago claims to be the newest, and the newest to be old.
    for (claims, seed, tag) in [(0, 1, "first"), (5, 2, "second"), (9, 3, "third")] {
        back_up_at(&repository, claims, seed, tag);
    }
    let arrivals = arrived(&repository, &[("first", 8), ("second", 4), ("third", 1)]);
    let policy = KeepPolicy {
        last: Some(2),
        ..KeepPolicy::default()
    };
    repository.forget(&policy, &arrivals, DryRun::No).unwrap();
    assert_eq!(tags_left(&repository), ["second", "third"]);
}

#[test]
fn a_flood_of_snapshots_ages_out_nothing_that_was_there_before() {
    let (_, repository) = memory_repository();
    let old = [("a", 4), ("b", 3), ("c", 2)];
    for (seed, (tag, days)) in (1..).zip(old) {
        back_up_at(&repository, days, seed, tag);
    }
    // Three times as many as came on any day before are no flood yet.
    for seed in 10..13 {
        back_up_at(&repository, 0, seed, "today");
    }
    let policy = KeepPolicy {
        last: Some(2),
        ..KeepPolicy::default()
    };
    let mut arrivals = arrived(&repository, &old);
    let forget =
        |arrivals: &Arrivals, dry_run| repository.forget(&policy, arrivals, dry_run).unwrap();
    let calm = forget(&arrivals, DryRun::Yes);
    assert_eq!(calm.floods, [""; 0]);
    assert_eq!(calm.decisions.iter().filter(|it| it.keep).count(), 2);
    back_up_at(&repository, 0, 13, "today");
    let flooded = forget(&arrivals, DryRun::No);
    assert_eq!(flooded.floods.len(), 1, "{flooded:?}");
    let all = ["a", "b", "c", "today", "today", "today", "today"];
    assert_eq!(tags_left(&repository), all);
    // Calm days after it change nothing of that.
    back_up_at(&repository, 0, 14, "later");
    back_up_at(&repository, 0, 15, "later");
    let days = [("a", 6), ("b", 5), ("c", 4), ("today", 2), ("later", 0)];
    arrivals = arrived(&repository, &days);
    assert_eq!(forget(&arrivals, DryRun::No).floods.len(), 1);
    assert_eq!(tags_left(&repository).len(), all.len() + 2);
    arrivals.flood = Flood::Count;
    forget(&arrivals, DryRun::No);
    assert_eq!(tags_left(&repository), ["later", "later"]);
}

#[test]
fn forget_keeps_what_the_policy_says_and_prune_frees_the_rest() {
    let (store, repository) = memory_repository();
    for (days, seed, tag) in [(9, 1, "x"), (3, 2, "keep"), (1, 3, "x"), (0, 4, "x")] {
        back_up_at(&repository, days, seed, tag);
    }
    let nothing = [
        KeepPolicy::default(),
        KeepPolicy {
            last: Some(0),
            yearly: Some(0),
            ..KeepPolicy::default()
        },
        KeepPolicy {
            within: Some(Duration::from_millis(999)),
            ..KeepPolicy::default()
        },
    ];
    for policy in nothing {
        let kept = repository.forget(&policy, &Arrivals::default(), DryRun::No);
        assert!(matches!(kept, Err(RepoError::KeepsNothing)), "{policy:?}");
    }
    assert_eq!(snapshots(&store), 4);
    let policy = KeepPolicy {
        last: Some(1),
        tags: vec!["keep".to_owned()],
        ..KeepPolicy::default()
    };
    let forget = |dry_run| {
        repository
            .forget(&policy, &Arrivals::default(), dry_run)
            .unwrap()
            .decisions
    };
    let planned = forget(DryRun::Yes);
    assert_eq!(snapshots(&store), 4);
    let done = forget(DryRun::No);
    assert_eq!(planned, done);
    assert_eq!(snapshots(&store), 2);
    let left = repository.snapshots().unwrap();
    assert_eq!(left[0].tags, ["keep"]);
    assert_eq!(done.iter().filter(|decision| decision.keep).count(), 2);

    let options = PruneOptions {
        unused_percent_max: 0,
        delete: PruneDelete::AtOnce,
        dry_run: DryRun::Yes,
        ..PruneOptions::default()
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
        let decisions = repository
            .forget(policy, &Arrivals::default(), DryRun::Yes)
            .unwrap()
            .decisions;
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

/// A repository with two snapshots, the newer of which has rotted: the store, the handle, the old one, the rotten one.
fn with_rotten_snapshot() -> (Arc<MemoryStore>, Repository, ObjectId, ObjectId) {
    let (store, repository) = memory_repository();
    let old = back_up(&repository, tree(1)).snapshot.unwrap();
    let rotten = back_up(&repository, tree(2)).snapshot.unwrap();
    rot(&store, ObjectKind::Snapshot, rotten);
    (store, repository, old, rotten)
}

fn rot(store: &MemoryStore, kind: ObjectKind, id: ObjectId) {
    store.rot(ObjectName { kind, id }, |bytes| bytes[30] ^= 1);
}

#[test]
fn a_rotten_snapshot_stops_nobody_who_does_not_need_it() {
    let (_, repository, old, rotten) = with_rotten_snapshot();
    let found = repository.resolve(&old.to_string()[..10]).unwrap();
    assert_eq!(found.id, old);
    let (readable, damage) = repository.readable_snapshots().unwrap();
    assert_eq!((readable.len(), damage.len()), (1, 1));
    assert!(damage[0].to_string().contains(&rotten.to_string()));
    let next = back_up(&repository, tree(3));
    assert_eq!(next.parent, Some(old));

    repository.forget_snapshot(rotten).unwrap();
    assert_eq!(repository.snapshots().unwrap().len(), 2);
}

#[test]
fn the_latest_readable_snapshot_comes_with_what_might_be_newer() {
    let (store, repository, old, rotten) = with_rotten_snapshot();
    // Nobody knows whether the rotten one is the latest.
    let latest = repository.resolve("latest");
    assert!(matches!(latest, Err(RepoError::Damaged { .. })));
    let (found, damage) = repository.resolve_readable("latest").unwrap();
    assert_eq!((found.id, damage.len()), (old, 1));
    let name = damage[0].object().unwrap();
    assert_eq!((name.kind, name.id), (ObjectKind::Snapshot, rotten));
    let (found, damage) = repository.resolve_readable(&old.to_string()).unwrap();
    assert_eq!((found.id, damage.len()), (old, 0));
    let named = repository.resolve_readable(&rotten.to_string());
    assert!(matches!(named, Err(RepoError::Damaged { .. })));
    // Where none can be read, it is damage that is told, and not that there is none.
    rot(&store, ObjectKind::Snapshot, old);
    let none = repository.resolve_readable("latest");
    assert!(matches!(none, Err(RepoError::Damaged { .. })));
}

#[test]
fn a_policy_neither_counts_nor_removes_a_rotten_snapshot() {
    let (store, repository, old, rotten) = with_rotten_snapshot();
    let policy = KeepPolicy {
        last: Some(1),
        ..KeepPolicy::default()
    };
    let forgotten = repository
        .forget(&policy, &Arrivals::default(), DryRun::No)
        .unwrap();
    assert_eq!(forgotten.decisions.len(), 1);
    assert_eq!(forgotten.decisions[0].snapshot.id, old);
    assert!(forgotten.decisions[0].keep);
    let damaged = forgotten.damaged[0].object().unwrap();
    assert_eq!((forgotten.damaged.len(), damaged.id), (1, rotten));
    assert_eq!(snapshots(&store), 2);
}

#[test]
fn a_prune_frees_nothing_while_a_snapshot_or_a_part_of_the_index_is_rotten() {
    let (store, repository, _, rotten) = with_rotten_snapshot();
    let options = PruneOptions {
        delete: PruneDelete::AtOnce,
        ..PruneOptions::default()
    };
    let objects = store.count(ObjectKind::Pack) + store.count(ObjectKind::Index);
    let refused = |id: ObjectId| {
        let error = repository.prune(&options).unwrap_err();
        assert_eq!(error.object().map(|name| name.id), Some(id), "{error}");
        let left = store.count(ObjectKind::Pack) + store.count(ObjectKind::Index);
        assert_eq!(left, objects);
    };
    refused(rotten);
    repository.forget_snapshot(rotten).unwrap();
    let tree = repository.snapshots().unwrap()[0].tree;
    let reader = repository.reader().unwrap();
    let pack = ObjectName {
        kind: ObjectKind::Pack,
        id: reader.place(BlobKind::Tree, tree).unwrap().pack,
    };
    let whole = store.read(pack, None).unwrap();
    store.rot(pack, |bytes| bytes.truncate(20));
    refused(pack.id);
    store.rot(pack, |bytes| *bytes = whole.to_vec());
    let index = store.list(ObjectKind::Index).unwrap()[0].id;
    rot(&store, ObjectKind::Index, index);
    refused(index);
}

#[test]
fn a_check_goes_on_after_a_rotten_snapshot_and_a_rotten_part_of_the_index() {
    let (store, repository, _, rotten) = with_rotten_snapshot();
    let mut last = None;
    let index = index_of(&store, || last = Some(back_up(&repository, tree(3)).tree));
    rot(&store, ObjectKind::Index, index);
    let report = repository.check(CheckOptions::Structure).unwrap();
    assert_eq!(report.snapshots, 2);
    let named = |text: &str| report.errors.iter().any(|error| error.contains(text));
    assert!(named(&rotten.to_string()), "{report:?}");
    assert!(named(&index.to_string()), "{report:?}");
    // What is lost with it is named as well.
    assert!(named(&last.unwrap().to_string()), "{report:?}");
}

#[test]
fn a_rotten_index_object_hides_only_what_it_alone_knows() {
    let (store, repository) = memory_repository();
    let first = back_up(&repository, tree(1));
    let rotten = index_of(&store, || _ = back_up(&repository, tree(2)));
    rot(&store, ObjectKind::Index, rotten);
    assert!(repository.index().is_err());
    let reader = repository.reader().unwrap();
    assert_eq!(reader.index_damage().len(), 1);
    let named = reader.index_damage()[0].object().map(|name| name.id);
    assert_eq!(named, Some(rotten));
    reader.tree(first.tree).unwrap();
}

fn with_top(top: &'static [u8]) -> Arc<MadeUp> {
    MadeUp::new(move || {
        vec![
            dir(b"/srv"),
            file(b"/srv/file", noise(1, 300_000)),
            file(b"/top", top.to_vec()),
        ]
    })
}

/// The object of the index that some work has made.
fn index_of(store: &MemoryStore, work: impl FnOnce()) -> ObjectId {
    let known = store.list(ObjectKind::Index).unwrap();
    work();
    let newer = store.list(ObjectKind::Index).unwrap();
    newer.iter().find(|info| !known.contains(info)).unwrap().id
}

#[test]
fn a_backup_reads_from_the_packs_what_only_a_rotten_part_of_the_index_knew() {
    let (store, repository) = memory_repository();
    let rotten = index_of(&store, || _ = back_up(&repository, with_top(b"1")));
    let second = back_up(&repository, with_top(b"two"));
    rot(&store, ObjectKind::Index, rotten);

    let source = with_top(b"two");
    let third = back_up(&repository, Arc::clone(&source));
    assert_eq!(source.warnings().len(), 1, "{:?}", source.warnings());
    assert_eq!((third.packs_continued, third.bytes_added), (2, 0));
    assert_eq!((third.parent, third.tree), (second.snapshot, second.tree));
}

#[test]
fn a_backup_goes_on_without_a_rotten_part_of_the_index_and_stores_again_what_only_that_knew() {
    let (store, repository) = memory_repository();
    let rotten = index_of(&store, || _ = back_up(&repository, with_top(b"1")));
    let packs = store.list(ObjectKind::Pack).unwrap();
    // Its root is new; the tree of `/srv` is that of the first.
    let second = back_up(&repository, with_top(b"two"));
    rot(&store, ObjectKind::Index, rotten);
    for pack in packs {
        store.lose(ObjectName {
            kind: ObjectKind::Pack,
            id: pack.id,
        });
    }

    let source = with_top(b"two");
    let third = back_up(&repository, Arc::clone(&source));
    let told = source.warnings();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].kind, WarningKind::Repository);
    assert!(told[0].reason.contains(&rotten.to_string()), "{told:?}");
    // The snapshot lacks nothing.
    assert_eq!(third.warnings, 0);
    assert_eq!((third.parent, third.tree), (second.snapshot, second.tree));
    assert!(third.bytes_added >= 300_000, "{third:?}");
    let reader = repository.reader().unwrap();
    let read: Vec<_> = nodes(&reader, &third)
        .iter()
        .filter(|(_, node)| node.kind == FileKind::File)
        .map(|(_, node)| content(&reader, node).unwrap())
        .collect();
    assert_eq!(read, [noise(1, 300_000), b"two".to_vec()]);

    // From now on everything is known again, and so there is a parent.
    let fourth = back_up(&repository, with_top(b"two"));
    assert_eq!((fourth.parent, fourth.bytes_added), (third.snapshot, 0));
    // The rotten object is still there, and a check names it.
    let report = repository.check(CheckOptions::Structure).unwrap();
    let rotten = rotten.to_string();
    assert!(report.errors.iter().any(|error| error.contains(&rotten)));
}

#[test]
fn a_rotten_tree_costs_a_walk_no_more_than_that_directory() {
    let (store, repository) = memory_repository();
    let given = |name: &'static [u8], mode: u32| {
        MadeUp::new(move || {
            let mut made = dir(name);
            if let Ok(entry) = &mut made {
                entry.meta.mode = Some(mode);
            }
            let inner = file(&[name, b"/x"].concat(), name.to_vec());
            vec![made, inner, file(b"/z", b"z".to_vec())]
        })
    };
    let old = back_up(&repository, given(b"/a", 0o755)).tree;
    let mut lost = None;
    let rotten = index_of(&store, || {
        lost = Some(back_up(&repository, given(b"/b", 0o755)).tree);
    });
    // A new root over the same directory.
    let new = back_up(&repository, given(b"/b", 0o700)).tree;
    rot(&store, ObjectKind::Index, rotten);
    let reader = repository.reader().unwrap();
    let mut seen = Vec::new();
    let unread = reader
        .walk(new, b"", &mut |path, _| {
            seen.push(path.to_vec());
            Visit::Continue
        })
        .unwrap();
    assert_eq!(seen, [b"/b".to_vec(), b"/z".to_vec()]);
    assert_eq!((unread.len(), &unread[0].path[..]), (1, &b"/b"[..]));
    let mut changes = Vec::new();
    let uncompared = reader
        .diff(old, new, &mut |change| {
            changes.push((change.path.clone(), change.kind));
        })
        .unwrap();
    assert!(
        changes.contains(&(b"/b".to_vec(), ChangeKind::Added)),
        "{changes:?}"
    );
    assert_eq!((uncompared.len(), &uncompared[0].path[..]), (1, &b"/b"[..]));
    // Where not even the first directory can be read, nothing was walked.
    let lost = reader.walk(lost.unwrap(), b"", &mut |_, _| Visit::Continue);
    assert!(lost.unwrap_err().is_damage());
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
