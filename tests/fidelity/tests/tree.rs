//! The tree is repeatable, and holds what its head promises.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use fidelity::{TreeOptions, compare, make_tree};

fn small() -> TreeOptions {
    TreeOptions {
        big_file_bytes: 1 << 20,
        small_files: 20,
        xattr_names_not_utf8: true,
        written_zeros: true,
        ..TreeOptions::default()
    }
}

fn made(options: &TreeOptions) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for left_out in make_tree(dir.path(), options).unwrap().left_out {
        eprintln!("left out: {left_out}");
    }
    dir
}

#[test]
fn one_seed_gives_one_tree() {
    let (first, second) = (made(&small()), made(&small()));
    assert_eq!(compare(first.path(), second.path()).unwrap(), []);
}

#[test]
fn another_seed_gives_another_tree_of_the_same_names() {
    let (first, second) = (made(&small()), made(&TreeOptions { seed: 2, ..small() }));
    let seen = compare(first.path(), second.path()).unwrap();
    let kinds: BTreeSet<_> = seen
        .iter()
        .map(|d| d.kind.to_string().split(' ').next().unwrap().to_owned())
        .collect();
    assert!(
        kinds.contains("time") && kinds.contains("content"),
        "{kinds:?}"
    );
    assert!(
        !kinds.contains("missing") && !kinds.contains("extra"),
        "{kinds:?}"
    );
}

#[test]
fn fills_only_an_empty_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("in the way"), b"").unwrap();
    let error = make_tree(dir.path(), &small()).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error:#}");
}

#[test]
fn holds_what_it_promises() {
    let dir = made(&small());
    let stat = |path: &str| std::fs::symlink_metadata(dir.path().join(path)).unwrap();
    assert_eq!(stat("big").size(), 1 << 20);
    assert_eq!(stat("links/file").nlink(), 4);
    assert_eq!(stat("links/fifo").nlink(), 2);
    assert_eq!(stat("sparse/all-hole").blocks(), 0);
    assert!(stat("sparse/zeros-that-are-data").blocks() > 0);
    assert_eq!(
        (
            stat("times/before-1970").mtime(),
            stat("times/before-1970").mtime_nsec()
        ),
        (-1_000_000_000, 123_456_789)
    );
    assert_eq!(stat("times/in-2400").mtime(), 13_569_465_600);
    assert_eq!(stat("modes/file-6755").mode() & 0o7777, 0o6755);
    assert_eq!(
        std::fs::read_dir(dir.path().join("small/0000"))
            .unwrap()
            .count(),
        20
    );
    // A tool that knows nothing of this crate finds the over-long path too.
    assert!(longest_path(dir.path()) > 4096);
}

/// The length of the longest path below `dir`, as find(1) prints it.
fn longest_path(dir: &Path) -> usize {
    let found = Command::new("find")
        .arg(".")
        .arg("-print0")
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(found.status.success());
    found
        .stdout
        .split(|&byte| byte == 0)
        .map(<[u8]>::len)
        .max()
        .unwrap()
}
