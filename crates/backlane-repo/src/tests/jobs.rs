//! Backup and reading back.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backlane_proto::{ObjectId, ObjectKind, ObjectName, PackContents};

use super::support::{
    MadeUp, PASSWORD, back_up, content, dir, file, memory_repository, meta, nodes, noise, options,
    other, read_as, snapshots,
};
use crate::backend::PACK_BYTES_MAX;
use crate::testing::MemoryStore;
use crate::{
    BlobKind, DryRun, Entries, FileKind, InitOptions, Metadata, ObjectStore, Parent, RepoError,
    Repository, Warning, WarningKind, Xattr,
};

#[test]
fn what_was_backed_up_is_read_back_with_all_its_metadata() {
    let (_, repository) = memory_repository();
    let xattr = Xattr {
        name: b"security.capability".to_vec(),
        value: vec![0, 1, 255],
    };
    let deep: Vec<u8> = b"/d".iter().copied().cycle().take(5000).collect();
    let given = move || {
        let link = FileKind::Symlink {
            target: b"../\xff".to_vec(),
        };
        let mut special = file(b"/srv/data/setuid", b"x".to_vec());
        if let Ok(entry) = &mut special {
            entry.meta.mode = Some(0o6755);
            entry.meta.xattrs = vec![xattr.clone()];
            entry.meta.links = 2;
        }
        let mut parent = dir(b"/srv");
        if let Ok(entry) = &mut parent {
            entry.meta.mode = Some(0o1770);
        }
        let mut entries: Vec<_> = (1..=deep.len() / 2).map(|n| dir(&deep[..2 * n])).collect();
        entries.extend([
            parent,
            dir(b"/srv/data"),
            other(b"/srv/data/char", FileKind::CharDevice { rdev: 0x0103 }),
            file(b"/srv/data/empty", Vec::new()),
            other(b"/srv/data/fifo", FileKind::Fifo),
            file(b"/srv/data/large", noise(1, 6 << 20)),
            other(b"/srv/data/link", link),
            file(b"/srv/data/new\nline", b"short".to_vec()),
            special,
            dir(b"/srv/data/sub"),
            file(b"/srv/data/sub/zeros", vec![0; 3 << 20]),
            other(b"/srv/data/\xff\"\\", FileKind::Socket),
        ]);
        entries
    };
    let source = MadeUp::new(given.clone());
    let summary = back_up(&repository, Arc::clone(&source));
    assert_eq!(source.warnings(), []);
    assert_eq!((summary.warnings, summary.files_new), (0, 9));

    let reader = repository.reader().unwrap();
    let found = nodes(&reader, &summary);
    let given = given();
    assert_eq!(found.len(), given.len());
    for ((path, node), entry) in found.iter().zip(given) {
        let entry = entry.unwrap();
        let name = path.escape_ascii();
        assert_eq!(*path, entry.path, "{name}");
        assert_eq!(node.kind, entry.kind, "{name}");
        assert_eq!(node.meta, entry.meta, "{name}");
        if let Some(open) = entry.open {
            let mut want = Vec::new();
            open.open().unwrap().read_to_end(&mut want).unwrap();
            assert!(content(&reader, node).unwrap() == want, "{name}");
        }
    }
}

#[test]
fn an_unchanged_tree_is_neither_read_nor_stored_again() {
    let (store, repository) = memory_repository();
    let opened = Arc::new(AtomicU64::new(0));
    let given = |opened: &Arc<AtomicU64>, second: u8| {
        let opened = Arc::clone(opened);
        MadeUp::new(move || {
            let count = Arc::clone(&opened);
            let same = read_as(b"/a", 1 << 20, move || {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(Box::new(io::Cursor::new(noise(3, 1 << 20))))
            });
            let mut changed = file(b"/b", vec![second; 10]);
            if let Ok(entry) = &mut changed {
                entry.meta.inode = second.into();
            }
            vec![same, changed, file(b"/c", noise(3, 1 << 20))]
        })
    };
    let first = back_up(&repository, given(&opened, 1));
    assert!(first.bytes_added < (1 << 20) + 5000, "no dedup: {first:?}");
    let again = back_up(&repository, given(&opened, 1));
    assert_eq!((again.files_unmodified, again.bytes_added), (3, 0));
    assert_eq!(again.parent, first.snapshot);
    assert_eq!(opened.load(Ordering::SeqCst), 1);
    // Size and times are alike, the inode is not.
    let changed = back_up(&repository, given(&opened, 2));
    assert_eq!((changed.files_unmodified, changed.files_changed), (2, 1));
    let mut trusting = options();
    trusting.signs.inode = false;
    trusting.parent = Parent::Snapshot(first.snapshot.unwrap());
    let same = repository.archive(&trusting, given(&opened, 2)).unwrap();
    assert_eq!((same.files_unmodified, same.files_changed), (3, 0));
    let mut whole = options();
    whole.parent = Parent::None;
    let whole = repository.archive(&whole, given(&opened, 2)).unwrap();
    assert_eq!((whole.files_new, whole.bytes_added), (3, 0));
    assert_eq!(opened.load(Ordering::SeqCst), 2);
    let mut elsewhere = options();
    elsewhere.host = "there".to_owned();
    let other = repository.archive(&elsewhere, given(&opened, 2)).unwrap();
    assert_eq!(other.parent, None);
    elsewhere.parent = Parent::Snapshot(ObjectId([7; 32]));
    let missing = repository.archive(&elsewhere, given(&opened, 2));
    assert!(missing.unwrap_err().to_string().contains("does not exist"));
    elsewhere.parent = Parent::Snapshot(changed.snapshot.unwrap());
    let named = repository.archive(&elsewhere, given(&opened, 2)).unwrap();
    assert_eq!(
        (named.parent, named.files_unmodified),
        (changed.snapshot, 3)
    );
    assert_eq!(snapshots(&store), 7);
}

#[test]
fn packs_stay_small_and_say_whether_they_hold_trees() {
    let (store, repository) = memory_repository();
    let source = MadeUp::new(|| {
        let large = |n: u8| file(&[b'/', n], noise(n.into(), 20 << 20));
        vec![large(b'a'), large(b'b')]
    });
    let summary = back_up(&repository, source);
    assert_packs_are_small(&store);
    let index = repository.index().unwrap();
    for (name, contents) in store.order_of_writes() {
        let mut blobs = index.blobs().filter(|blob| blob.pack == name.id);
        if name.kind == ObjectKind::Pack {
            let trees = blobs.all(|blob| blob.kind == BlobKind::Tree);
            assert_eq!(trees, contents == PackContents::Trees, "{name}");
        }
    }
    assert!(index.find(BlobKind::Tree, summary.tree).is_some());
}

/// 40 MiB lie in packs of which each is as small as it should be, and not smaller.
fn assert_packs_are_small(store: &MemoryStore) {
    let packs = store.list(ObjectKind::Pack).unwrap();
    assert!((4..=6).contains(&packs.len()), "{packs:?}");
    let small = |bytes: u64| bytes <= PACK_BYTES_MAX as u64;
    assert!(packs.iter().all(|pack| small(pack.bytes)), "{packs:?}");
}

#[test]
fn packs_stay_small_where_another_program_wants_them_to_grow() {
    let (store, repository) = memory_repository();
    let config = ObjectName {
        kind: ObjectKind::Config,
        id: ObjectId::NONE,
    };
    let key = &repository.inner.key;
    store.rot(config, |bytes| {
        let json = key.open_object(bytes).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let fields = json.as_object_mut().unwrap();
        let before = fields.len();
        fields.retain(|name, _| !name.contains("pack"));
        assert_eq!(fields.len(), before - 6);
        *bytes = key.seal_object(json.to_string().as_bytes()).unwrap().into();
    });
    let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as _;
    let opened = Repository::open(shared, PASSWORD).unwrap();
    back_up(
        &opened,
        MadeUp::new(|| vec![file(b"/large", noise(1, 40 << 20))]),
    );
    assert_packs_are_small(&store);
}

#[test]
fn what_cannot_be_read_is_named_and_counted_and_the_rest_is_kept() {
    let (_, repository) = memory_repository();
    let source = MadeUp::new(|| {
        let vanished = Warning {
            path: b"/b".to_vec(),
            kind: WarningKind::LeftOut,
            reason: "gone".to_owned(),
        };
        let breaks = |after: usize| {
            move || {
                let start = io::Cursor::new(noise(7, after));
                Ok(Box::new(start.chain(Broken)) as Box<dyn Read + Send>)
            }
        };
        vec![
            file(b"/a", b"kept".to_vec()),
            Err(vanished),
            read_as(b"/c", 5, || Err(io::Error::other("no permission"))),
            read_as(b"/d", 5000, breaks(1000)),
            // Of which pieces have been stored by then.
            read_as(b"/d large", 50 << 20, breaks(20 << 20)),
            read_as(b"/e", 9, || Ok(Box::new(&b"short"[..]))),
            read_as(b"/f", 4, || Ok(Box::new(&b"grown meanwhile"[..]))),
            read_as(b"/g", 0, || Ok(Box::new(&b"size unknown"[..]))),
        ]
    });
    let summary = back_up(&repository, Arc::clone(&source));
    let warned: Vec<_> = source
        .warnings()
        .into_iter()
        .map(|warning| (warning.path, warning.kind))
        .collect();
    assert_eq!(summary.warnings, 5);
    for want in [
        (b"/b".to_vec(), WarningKind::LeftOut),
        (b"/c".to_vec(), WarningKind::LeftOut),
        (b"/d".to_vec(), WarningKind::LeftOut),
        (b"/d large".to_vec(), WarningKind::LeftOut),
        (b"/e".to_vec(), WarningKind::Incomplete),
    ] {
        assert!(warned.contains(&want), "{warned:?}");
    }
    let reader = repository.reader().unwrap();
    let kept: Vec<_> = nodes(&reader, &summary)
        .into_iter()
        .map(|(path, node)| (path, content(&reader, &node).unwrap()))
        .collect();
    let want: [(&[u8], &[u8]); 4] = [
        (b"/a", b"kept"),
        (b"/e", b"short"),
        (b"/f", b"grow"),
        (b"/g", b"size unknown"),
    ];
    assert_eq!(kept.len(), 4);
    for ((path, bytes), want) in kept.iter().zip(want) {
        assert_eq!((&path[..], &bytes[..]), want);
    }
    let info = repository.resolve("latest").unwrap();
    assert_eq!(info.warnings, Some(5));
    let time: jiff::Timestamp = info.time.parse().unwrap();
    assert_eq!(time.as_second(), info.unix_seconds);
    assert_eq!(info.description.as_deref(), Some("[5 warnings]"));
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("bad sector"))
    }
}

/// Files without end, each of a MiB; counts how many were opened.
fn endless(opened: &Arc<AtomicU64>) -> Arc<MadeUp> {
    let opened = Arc::clone(opened);
    MadeUp::streaming(move || -> Entries {
        let opened = Arc::clone(&opened);
        Box::new((0..u64::MAX).map(move |number| {
            let opened = Arc::clone(&opened);
            read_as(format!("/{number:020}").as_bytes(), 1 << 20, move || {
                opened.fetch_add(1, Ordering::SeqCst);
                Ok(Box::new(io::Cursor::new(noise(number + 7, 1 << 20))))
            })
        }))
    })
}

#[test]
fn a_failed_write_ends_the_backup_at_once_without_a_snapshot() {
    let (store, repository) = memory_repository();
    store.fail_after_packs(1);
    let opened = Arc::new(AtomicU64::new(0));
    let result = repository.archive(&options(), endless(&opened));
    match result {
        Err(RepoError::WriteFailed { cause }) => {
            assert!(cause.to_string().contains("no space left"), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    assert!(opened.load(Ordering::SeqCst) < 200, "read on");
    store.heal();
    assert!(repository.failed());
    let source = MadeUp::new(|| vec![file(b"/a", b"a".to_vec())]);
    let again = repository.archive(&options(), Arc::clone(&source) as _);
    assert!(matches!(again, Err(RepoError::WriteFailed { .. })));
    assert_eq!(snapshots(&store), 0);
    // Another handle on the same store works.
    let store: Arc<dyn ObjectStore> = store;
    let fresh = Repository::open(store, PASSWORD).unwrap();
    fresh.archive(&options(), source).unwrap();
    assert!(
        fresh
            .check(crate::CheckOptions::ReadData)
            .unwrap()
            .is_clean()
    );
}

#[test]
fn a_failed_snapshot_write_is_a_failed_backup() {
    let (store, repository) = memory_repository();
    let failing = Arc::clone(&store);
    let source = MadeUp::new(move || {
        failing.fail_writes_from_now("server went away");
        vec![file(b"/a", b"a".to_vec())]
    });
    let result = repository.archive(&options(), source);
    assert!(
        matches!(result, Err(RepoError::WriteFailed { .. })),
        "{result:?}"
    );
    assert_eq!(snapshots(&store), 0);
}

#[test]
fn a_cancelled_backup_ends_at_once_and_leaves_no_snapshot() {
    let (store, repository) = memory_repository();
    let options = options();
    let opened = Arc::new(AtomicU64::new(0));
    let (cancel, count) = (options.cancel.clone(), Arc::clone(&opened));
    let source = MadeUp::streaming(move || {
        let (cancel, count) = (cancel.clone(), Arc::clone(&count));
        let endless = super::jobs::endless(&count);
        Box::new(crate::Source::entries(endless.as_ref()).inspect(move |_| {
            if count.load(Ordering::SeqCst) >= 30 {
                cancel.cancel();
            }
        }))
    });
    let result = repository.archive(&options, source.clone());
    assert!(matches!(result, Err(RepoError::Cancelled)), "{result:?}");
    assert!(opened.load(Ordering::SeqCst) < 100, "read on");
    assert_eq!(source.warnings(), [], "files in flight are not warned of");
    assert_eq!(snapshots(&store), 0);
    // What was uploaded is in the index and isn't uploaded again.
    let known = repository.index().unwrap().len();
    assert!(known > 10, "{known}");
    let first = MadeUp::new(|| vec![file(b"/x", noise(7, 1 << 20))]);
    let summary = back_up(&repository, first);
    assert!(summary.bytes_added < 10_000, "{summary:?}");
}

#[test]
fn a_source_out_of_order_fails_the_backup() {
    let (store, repository) = memory_repository();
    let source = MadeUp::new(|| vec![dir(b"/b"), dir(b"/a")]);
    let result = repository.archive(&options(), source);
    assert!(
        matches!(result, Err(RepoError::BadSource { .. })),
        "{result:?}"
    );
    assert_eq!(snapshots(&store), 0);
}

#[test]
fn a_dry_run_writes_nothing() {
    let (store, repository) = memory_repository();
    let before = store.writes_tried();
    let mut options = options();
    options.dry_run = DryRun::Yes;
    let source = MadeUp::new(|| vec![file(b"/a", noise(1, 100_000))]);
    let summary = repository.archive(&options, source).unwrap();
    assert_eq!((summary.snapshot, summary.files_new), (None, 1));
    assert_eq!(store.writes_tried(), before);
}

#[test]
fn opening_says_what_is_wrong() {
    let (store, _) = memory_repository();
    let shared = || -> Arc<dyn ObjectStore> { Arc::clone(&store) as _ };
    let again = Repository::init(shared(), PASSWORD, &InitOptions::default());
    assert!(matches!(again, Err(RepoError::AlreadyExists)));
    let wrong = Repository::open(shared(), "wrong").unwrap_err();
    assert!(
        matches!(wrong, RepoError::WrongPassword { keys: 1 }),
        "{wrong}"
    );

    let config = ObjectName {
        kind: ObjectKind::Config,
        id: ObjectId::NONE,
    };
    store.rot(config, |bytes| bytes[40] ^= 1);
    let damaged = Repository::open(shared(), PASSWORD).unwrap_err();
    assert!(
        damaged.to_string().starts_with("config is damaged"),
        "{damaged}"
    );
    store.lose(config);
    let missing = Repository::open(shared(), PASSWORD).unwrap_err();
    assert!(
        matches!(missing, RepoError::NotARepository { .. }),
        "{missing}"
    );
}

#[test]
fn a_damaged_blob_is_never_given_out() {
    let (store, repository) = memory_repository();
    let source = MadeUp::new(|| vec![file(b"/a", noise(1, 5 << 20))]);
    let summary = back_up(&repository, source);
    let reader = repository.reader().unwrap();
    let (_, node) = nodes(&reader, &summary).remove(0);
    let place = reader.place(BlobKind::Data, node.content[0]).unwrap();
    let pack = ObjectName {
        kind: ObjectKind::Pack,
        id: place.pack,
    };
    let at = (place.offset + place.length / 2) as usize;
    store.rot(pack, |bytes| bytes[at] ^= 1);
    let error = content(&reader, &node).unwrap_err();
    assert!(matches!(error, RepoError::Damaged { .. }), "{error}");
    store.lose(pack);
    assert!(content(&reader, &node).is_err());
}

#[test]
fn a_walk_fetches_a_pack_of_trees_whole_and_once() {
    let (store, repository) = memory_repository();
    let source = MadeUp::new(|| {
        (0..500)
            .map(|n| dir(format!("/{n:03}").as_bytes()))
            .collect()
    });
    let summary = back_up(&repository, source);
    let mut empty = meta();
    empty.size = 0;
    let reader = repository.reader().unwrap();
    store.take_reads();
    let found = nodes(&reader, &summary);
    assert_eq!(found.len(), 500);
    assert!(
        found
            .iter()
            .all(|(_, node)| node.meta == Metadata { ..empty.clone() })
    );
    let reads = store.take_reads().len();
    assert!(reads <= 2, "{reads} reads");
}

#[test]
fn nodes_are_found_by_path_by_name_and_by_pattern() {
    let (_, repository) = memory_repository();
    let source = MadeUp::new(|| {
        vec![
            dir(b"/srv"),
            file(b"/srv/a.txt", b"a".to_vec()),
            dir(b"/srv/sub"),
            file(b"/srv/sub/b.txt", b"b".to_vec()),
        ]
    });
    let summary = back_up(&repository, source);
    let reader = repository.reader().unwrap();
    let at = |path: &[u8]| reader.node_at(summary.tree, path);
    assert_eq!(at(b"/srv/sub/b.txt").unwrap().name, b"b.txt");
    assert_eq!(at(b"/").unwrap().subtree, Some(summary.tree));
    assert!(matches!(at(b"/srv/x"), Err(RepoError::PathNotFound { .. })));
    let below = at(b"/srv/a.txt/x");
    assert!(matches!(below, Err(RepoError::NotADirectory { .. })));
    let dump = content(&reader, &at(b"/srv").unwrap());
    assert!(matches!(dump, Err(RepoError::NotAFile { .. })));

    let found = |pattern: &str| {
        let mut paths = Vec::new();
        let keep = &mut |path: &[u8], _: &crate::Node| paths.push(path.to_vec());
        reader.find(summary.tree, pattern, keep).map(|_| paths)
    };
    assert_eq!(found("*.txt").unwrap().len(), 2);
    assert_eq!(found("/srv/*.txt").unwrap(), [b"/srv/a.txt"]);
    assert_eq!(found("/**/*.txt").unwrap().len(), 2);
    assert!(matches!(found("["), Err(RepoError::BadPattern { .. })));
}
