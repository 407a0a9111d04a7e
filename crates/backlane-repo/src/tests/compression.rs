//! How hard contents are compressed.

use std::thread;
use std::time::Duration;

use super::support::{MadeUp, dir, file, memory_repository, nodes, noise, options};
use crate::{ArchiveOptions, BlobKind, Compression, Node, Reader, Repository};

/// Lines of letters by chance and of words that come again and again, which no other seed has.
fn words(seed: u8, bytes: usize) -> Vec<u8> {
    let mut text = noise(seed.into(), bytes);
    for line in text.chunks_exact_mut(48) {
        let word = line[0] % 200;
        for (at, byte) in (0..).zip(line) {
            let in_word = at >= 32;
            *byte = b' '
                + if in_word {
                    word.wrapping_mul(at) % 64
                } else {
                    *byte % 64
                };
        }
    }
    text
}

/// Plain and stored bytes of a file's pieces, if they are compressed.
fn compressed(reader: &Reader, node: &Node) -> Option<(u64, u64)> {
    let places: Vec<_> = node
        .content
        .iter()
        .map(|id| reader.place(BlobKind::Data, *id).unwrap())
        .collect();
    let sum =
        |of: fn(&crate::BlobPlace) -> u32| places.iter().map(|place| u64::from(of(place))).sum();
    let all = places.iter().all(|place| place.compressed);
    let none = places.iter().all(|place| !place.compressed);
    assert!(all != none, "{places:?}");
    all.then(|| (sum(|place| place.plain_length), sum(|place| place.length)))
}

fn stored(repository: &Repository, options: &ArchiveOptions) -> Vec<Option<(u64, u64)>> {
    let entries = || -> crate::Entries {
        let files = ["off", "own", "hard"].into_iter().enumerate();
        let files = files.flat_map(|(number, name)| {
            let number = 2 * u8::try_from(number).unwrap();
            [
                file(
                    format!("/s/{name}.large").as_bytes(),
                    words(number, 3 << 20),
                ),
                file(
                    format!("/s/{name}.small").as_bytes(),
                    words(number + 1, 30_000),
                ),
            ]
        });
        let mut all: Vec<_> = files.collect();
        all.sort_by_key(|entry| entry.as_ref().unwrap().path.clone());
        Box::new(std::iter::once(dir(b"/s")).chain(all))
    };
    let source = MadeUp::with_rule(entries, |path| match path {
        path if path.starts_with(b"/s/off") => Some(Compression::Off),
        path if path.starts_with(b"/s/hard") => Some(Compression::Level(15)),
        _ => None,
    });
    let summary = repository.archive(options, source).unwrap();
    let reader = repository.reader().unwrap();
    let all = nodes(&reader, &summary);
    let files = all.iter().filter(|(path, _)| path.contains(&b'.'));
    files.map(|(_, node)| compressed(&reader, node)).collect()
}

#[test]
fn contents_are_compressed_as_their_rules_say_and_others_as_was_asked() {
    let mut light = Vec::new();
    for asked in [Compression::Auto, Compression::Level(1), Compression::Off] {
        let (_, repository) = memory_repository();
        let options = ArchiveOptions {
            compression: asked,
            ..options()
        };
        // In the order of their names: hard, off, own; the large one first.
        let all = stored(&repository, &options);
        let [
            hard_large,
            hard_small,
            off_large,
            off_small,
            own_large,
            own_small,
        ] = all[..]
        else {
            panic!("{all:?}");
        };
        assert_eq!((off_large, off_small), (None, None));
        assert!(
            hard_large.is_some_and(|(plain, stored)| stored < plain / 10 * 8),
            "{all:?}"
        );
        assert!(hard_small.is_some(), "{all:?}");
        match asked {
            Compression::Off => assert_eq!((own_large, own_small), (None, None)),
            _ => {
                assert!(
                    own_large
                        .is_some_and(|(_, own)| hard_large.is_some_and(|(_, hard)| own > hard))
                );
                light.push(own_small);
            }
        }
    }
    assert_ne!(
        light[0], light[1],
        "the level that was asked for isn't what it is by itself"
    );
}

#[test]
fn a_backup_that_waits_for_the_store_compresses_by_another_level() {
    let [free, held] = [false, true].map(|holds| {
        let (store, repository) = memory_repository();
        let options = ArchiveOptions {
            threads: std::num::NonZero::new(1),
            ..options()
        };
        let source = MadeUp::streaming(|| {
            let files = (0..200).map(|number| {
                // One piece: where others are cut differs from repository to repository.
                let content = words(number, 500 << 10);
                file(format!("/{number:03}").as_bytes(), content)
            });
            Box::new(files)
        });
        let gate = holds.then(|| store.hold_writes());
        let summary = thread::scope(|scope| {
            if let Some(gate) = gate {
                scope.spawn(move || {
                    // The window is full of them; the thread that has a fifth pack waits from now on.
                    gate.wait_for_waiting(4);
                    thread::sleep(Duration::from_secs(5));
                    gate.open();
                });
            }
            repository.archive(&options, source).unwrap()
        });
        let reader = repository.reader().unwrap();
        let files = nodes(&reader, &summary);
        let files = files.iter().map(|(_, node)| compressed(&reader, node));
        files.collect::<Vec<_>>()
    });
    let first = free.iter().zip(&held).position(|(free, held)| free != held);
    assert!(first.is_some_and(|first| first > 50), "{free:?} {held:?}");
}
