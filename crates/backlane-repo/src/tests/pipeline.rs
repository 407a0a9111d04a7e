//! What holds however many threads a backup has, and however large a file or a directory is.

use std::io::{self, Read};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::support::{
    MadeUp, back_up, content, dir, file, memory_repository, nodes, noise, options, other, read_as,
    snapshots,
};
use crate::{
    ArchiveOptions, Cancel, CheckOptions, Entries, FileKind, Parent, RepoError, Repository, Source,
    Warning, Xattr,
};

const MIB: usize = 1 << 20;

fn on_threads(threads: usize) -> ArchiveOptions {
    ArchiveOptions {
        threads: NonZero::new(threads),
        parent: Parent::None,
        ..options()
    }
}

fn assert_clean(repository: &Repository) {
    let report = repository.check(CheckOptions::ReadData).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Files of one piece and of many, some alike, in several directories.
fn mixed() -> Arc<MadeUp> {
    MadeUp::new(|| {
        let mut entries = vec![dir(b"/a"), file(b"/a/large", noise(1, 40 * MIB))];
        for n in 0..200u64 {
            let path = format!("/a/small{n:03}");
            entries.push(file(path.as_bytes(), noise(n % 50, 3000)));
        }
        entries.extend([
            dir(b"/b"),
            file(b"/b/again", noise(1, 40 * MIB)),
            file(b"/b/edge", noise(2, MIB / 2)),
            file(b"/b/empty", Vec::new()),
            file(b"/b/runs", vec![7; 20 * MIB]),
        ]);
        entries
    })
}

#[test]
fn a_snapshot_is_the_same_on_any_number_of_threads() {
    let mut trees = Vec::new();
    let (_, one_repository) = memory_repository();
    for threads in [1, 2, 7] {
        // In one repository, whose secret tells where files are cut.
        let summary = one_repository
            .archive(&on_threads(threads), mixed())
            .unwrap();
        assert_eq!(summary.files_new, 205);
        trees.push(summary.tree);
        if threads > 1 {
            assert_eq!(summary.bytes_added, 0, "{threads} threads");
        }
    }
    assert!(trees.iter().all(|tree| *tree == trees[0]), "{trees:?}");
    assert_clean(&one_repository);

    let (_, repository) = memory_repository();
    let summary = repository.archive(&on_threads(5), mixed()).unwrap();
    // `/b/again` and 150 small files are known, and of the runs all but two pieces.
    assert!(summary.bytes_added < 56 * MIB as u64, "{summary:?}");
    let reader = repository.reader().unwrap();
    let all = nodes(&reader, &summary);
    let of = |path: &[u8]| &all.iter().find(|(found, _)| found == path).unwrap().1;
    assert!(content(&reader, of(b"/a/large")).unwrap() == noise(1, 40 * MIB));
    assert!(of(b"/a/large").content.len() > 10);
    assert_eq!(of(b"/a/large").content, of(b"/b/again").content);
    assert_eq!(
        content(&reader, of(b"/a/small007")).unwrap(),
        noise(7, 3000)
    );
    assert_eq!(of(b"/b/edge").content.len(), 1);
    assert_eq!(of(b"/b/empty").content, []);
    assert!(content(&reader, of(b"/b/runs")).unwrap() == vec![7; 20 * MIB]);
    assert_clean(&repository);
}

/// A directory whose list is several times as long as what is kept of one.
fn crowded() -> Arc<MadeUp> {
    MadeUp::new(|| {
        let mut entries = vec![dir(b"/many")];
        for n in 0..12_000 {
            let path = format!("/many/{n:05}");
            entries.push(match n % 4 {
                0 => file(path.as_bytes(), n.to_string().into_bytes()),
                _ => other(path.as_bytes(), FileKind::Fifo),
            });
        }
        entries.extend([dir(b"/many/x"), file(b"/many/x/y", b"z".to_vec())]);
        entries
    })
}

#[test]
fn the_list_of_a_large_directory_is_whole_and_the_same_again() {
    let (_, repository) = memory_repository();
    let first = back_up(&repository, crowded());
    assert_eq!((first.files_new, first.dirs_new), (12_001, 3));
    let reader = repository.reader().unwrap();
    let all = nodes(&reader, &first);
    assert_eq!(all.len(), 12_003);
    for (n, (path, node)) in all[1..].iter().take(12_000).enumerate() {
        assert_eq!(*path, format!("/many/{n:05}").into_bytes());
        if n % 400 == 0 {
            assert_eq!(content(&reader, node).unwrap(), n.to_string().into_bytes());
        }
    }
    // The parent's list is read one entry at a time.
    let second = back_up(&repository, crowded());
    assert_eq!(second.tree, first.tree);
    assert_eq!(
        (second.files_unmodified, second.dirs_unmodified),
        (12_001, 3)
    );
    assert_eq!(second.bytes_added, 0);
    assert_clean(&repository);
}

#[test]
fn a_source_that_panics_fails_the_backup_in_its_words() {
    let (_, repository) = memory_repository();
    let opens = MadeUp::new(|| {
        let panics = || -> io::Result<_> { panic!("what a source says") };
        vec![file(b"/a", noise(1, 100)), read_as(b"/b", 10, panics)]
    });
    let walks = MadeUp::streaming(|| {
        let entries = (0..3).map(|n| match n {
            2 => panic!("what a source says"),
            n => file(format!("/{n}").as_bytes(), b"x".to_vec()),
        });
        Box::new(entries)
    });
    for source in [opens, walks] {
        let ended = repository.archive(&options(), source).unwrap_err();
        assert!(matches!(ended, RepoError::Engine { .. }), "{ended}");
        assert!(ended.to_string().contains("what a source says"), "{ended}");
    }
    assert_eq!(back_up(&repository, mixed()).files_new, 205);
}

/// Has more to count than anyone waits for, and a walk that fails.
struct Countless {
    told: AtomicBool,
}

impl Source for Countless {
    fn count(&self, is_over: &dyn Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end && !self.told.load(Ordering::SeqCst) {
            self.told.store(is_over(), Ordering::SeqCst);
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn entries(&self) -> Entries {
        Box::new(
            [file(b"/a", noise(1, 100))]
                .into_iter()
                .chain([()].into_iter().map(|()| panic!("no more"))),
        )
    }

    fn warn(&self, _: &Warning) {}
}

#[test]
fn nobody_counts_on_when_a_backup_is_over() {
    let (_, repository) = memory_repository();
    let source = Arc::new(Countless {
        told: AtomicBool::new(false),
    });
    repository
        .archive(&on_threads(2), source.clone())
        .unwrap_err();
    assert!(source.told.load(Ordering::SeqCst));
}

/// Gives the same for ever, and cancels after a while.
struct Endless(Cancel, usize);

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 += 1;
        if self.1 == 100 {
            self.0.cancel();
        }
        Ok(buffer.len())
    }
}

#[test]
fn the_last_file_of_all_can_be_given_up() {
    let (store, repository) = memory_repository();
    let options = on_threads(2);
    let cancel = options.cancel.clone();
    let source = MadeUp::new(move || {
        let endless = Endless(cancel.clone(), 0);
        vec![read_as(b"/endless", 1 << 50, move || {
            Ok(Box::new(endless) as _)
        })]
    });
    let ended = repository.archive(&options, Arc::clone(&source) as Arc<dyn Source>);
    assert!(matches!(ended, Err(RepoError::Cancelled)), "{ended:?}");
    assert_eq!(source.warnings(), []);
    assert_eq!(snapshots(&store), 0);
}

#[test]
fn few_files_are_begun_before_others_are_done() {
    let (_, repository) = memory_repository();
    let waiting = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let source = MadeUp::streaming({
        let (waiting, most) = (Arc::clone(&waiting), Arc::clone(&most));
        move || {
            let (waiting, most) = (Arc::clone(&waiting), Arc::clone(&most));
            let entries = (0..2000).map(move |n| {
                let open = waiting.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(open, Ordering::SeqCst);
                let waiting = Arc::clone(&waiting);
                read_as(format!("/{n:04}").as_bytes(), 0, move || {
                    waiting.fetch_sub(1, Ordering::SeqCst);
                    Ok(Box::new(io::empty()) as _)
                })
            });
            Box::new(entries)
        }
    });
    let summary = repository.archive(&on_threads(2), Arc::clone(&source) as Arc<dyn Source>);
    assert_eq!(summary.unwrap().files_new, 2000);
    let most = most.load(Ordering::SeqCst);
    // Handed in, the one that waits for room, and one for each thread.
    assert!(most <= 64 + 1 + 2, "{most}");
}

#[test]
fn the_walk_waits_while_much_waits_for_what_comes_before_it() {
    let (_, repository) = memory_repository();
    let given = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(AtomicUsize::new(0));
    let source = MadeUp::streaming({
        let (given, seen) = (Arc::clone(&given), Arc::clone(&seen));
        move || {
            let (all, seen) = (Arc::clone(&given), Arc::clone(&seen));
            // The first is read until the walk stands still.
            let first = read_as(b"/a", 0, move || {
                let mut before = 0;
                while before == 0 || all.load(Ordering::SeqCst) > before {
                    before = all.load(Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(300));
                }
                seen.store(before, Ordering::SeqCst);
                Ok(Box::new(io::empty()) as _)
            });
            let given = Arc::clone(&given);
            let others = (0..2000).map(move |n| {
                given.fetch_add(1, Ordering::SeqCst);
                let mut entry = other(format!("/b{n:04}").as_bytes(), FileKind::Fifo).unwrap();
                entry.meta.xattrs.push(Xattr {
                    name: b"user.long".to_vec(),
                    value: noise(n, 64 << 10),
                });
                Ok(entry)
            });
            Box::new(std::iter::once(first).chain(others))
        }
    });
    let summary = repository.archive(&on_threads(2), Arc::clone(&source) as Arc<dyn Source>);
    summary.unwrap();
    assert_eq!(given.load(Ordering::SeqCst), 2000);
    // Base64 makes 88 KiB of each, and 32 MiB may wait.
    let seen = seen.load(Ordering::SeqCst);
    assert!((1..=390).contains(&seen), "{seen}");
}

#[test]
fn once_a_write_has_failed_the_walk_goes_no_further() {
    let (store, repository) = memory_repository();
    store.fail_writes_from_now("disk is full");
    let given = Arc::new(AtomicUsize::new(0));
    let source = MadeUp::streaming({
        let given = Arc::clone(&given);
        move || {
            let given = Arc::clone(&given);
            // Nothing of these is stored before their directory ends.
            let others = (0..10_000).map(move |n| {
                given.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(1));
                other(format!("/b{n:04}").as_bytes(), FileKind::Fifo)
            });
            let first = file(b"/a", noise(1, 20 * MIB));
            Box::new(std::iter::once(first).chain(others))
        }
    });
    let failed = repository
        .archive(&on_threads(2), Arc::clone(&source) as Arc<dyn Source>)
        .unwrap_err();
    assert!(failed.to_string().contains("disk is full"), "{failed}");
    assert!(given.load(Ordering::SeqCst) < 10_000);
}
