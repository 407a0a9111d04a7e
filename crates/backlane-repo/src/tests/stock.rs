//! A real directory tree through a real directory store, with stock restic as the witness.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backlane_proto::ObjectKind;

use super::support::{MadeUp, PASSWORD, content, nodes, noise, options};
use crate::testing::LocalStore;
use crate::{
    BlobKind, CheckOptions, Entry, FileKind, InitOptions, Metadata, ObjectStore, PruneOptions,
    Repository, Time, Warning,
};

#[test]
fn stock_restic_finds_nothing_wrong_and_restores_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (root, data) = (folder.path().join("repository"), folder.path().join("data"));
    make_tree(&data);
    let store = Arc::new(LocalStore::new(&root));
    let repository = Repository::init(store, PASSWORD, &InitOptions::default()).unwrap();
    let mut options = options();
    options.paths = vec![data.as_os_str().as_bytes().to_vec()];
    let walked = data.clone();
    let source = MadeUp::new(move || walk(&walked));
    let first = repository.archive(&options, source.clone()).unwrap();
    fs::write(data.join("sub/added"), noise(5, 100_000)).unwrap();
    let second = repository.archive(&options, source.clone()).unwrap();
    assert_eq!(source.warnings(), []);
    assert_eq!((second.files_new, second.files_changed), (1, 0));
    // The new file, and the trees above it.
    assert!(second.bytes_packed < 150_000, "{second:?}");

    let reader = repository.reader().unwrap();
    assert!(nodes(&reader, &first).len() < nodes(&reader, &second).len());
    for (path, node) in nodes(&reader, &second) {
        let path = PathBuf::from(OsStr::from_bytes(&path));
        let meta = path.symlink_metadata().unwrap();
        assert_eq!(node.meta.inode, meta.ino(), "{}", path.display());
        if node.kind == FileKind::File {
            assert!(content(&reader, &node).unwrap() == fs::read(&path).unwrap());
        }
    }
    assert!(repository.check(CheckOptions::ReadData).unwrap().is_clean());

    restic(&root, &["check", "--read-data"]);
    let target = folder.path().join("restored");
    restic(
        &root,
        &["restore", "latest", "--target", target.to_str().unwrap()],
    );
    let restored = target.join(data.strip_prefix("/").unwrap());
    let compared = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([&data, &restored])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
    let mode = |path: &Path| path.metadata().unwrap().mode();
    assert_eq!(mode(&restored.join("suid")), mode(&data.join("suid")));
    let inode = |name: &str| restored.join(name).metadata().unwrap().ino();
    assert_eq!(inode("hard"), inode("suid"));
}

#[test]
fn stock_restic_reads_a_repository_of_version_1_after_a_backup_into_it() {
    let folder = tempfile::tempdir().unwrap();
    let (root, data) = (folder.path().join("repository"), folder.path().join("data"));
    make_tree(&data);
    restic(&root, &["init", "--repository-version", "1"]);
    let repository = Repository::open(Arc::new(LocalStore::new(&root)), PASSWORD).unwrap();
    assert_eq!(repository.version(), 1);
    let walked = data.clone();
    let source = MadeUp::new(move || walk(&walked));
    let first = repository.archive(&options(), source.clone()).unwrap();
    restic(&root, &["check", "--read-data"]);
    restic(&root, &["ls", &first.snapshot.unwrap().to_string()]);
    assert!(repository.check(CheckOptions::ReadData).unwrap().is_clean());
    let second = repository.archive(&options(), source).unwrap();
    assert_eq!((second.files_new, second.files_changed), (0, 0));
    assert_eq!(second.files_unmodified, first.files_new);
}

#[test]
fn stock_restic_rebuilds_an_index_and_the_next_backup_stores_what_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (root, data) = (folder.path().join("repository"), folder.path().join("data"));
    make_tree(&data);
    let store = Arc::new(LocalStore::new(&root));
    let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as _;
    let repository = Repository::init(shared, PASSWORD, &InitOptions::default()).unwrap();
    let walked = data.clone();
    let source = MadeUp::new(move || walk(&walked));
    let first = repository.archive(&options(), source.clone()).unwrap();
    fs::write(data.join("sub/added"), noise(5, 100_000)).unwrap();
    repository.archive(&options(), source.clone()).unwrap();
    let is_whole = || repository.check(CheckOptions::ReadData).unwrap().is_clean();
    assert!(is_whole());

    let index = store.list(ObjectKind::Index).unwrap()[0].id;
    let index = root.join("index").join(index.to_string());
    let mut bytes = fs::read(&index).unwrap();
    bytes[30] ^= 1;
    fs::remove_file(&index).unwrap();
    fs::write(&index, bytes).unwrap();
    assert!(!is_whole());
    restic(&root, &["rebuild-index"]);
    assert!(is_whole());

    // A pack that can't be saved is taken away; what it held is still on disk.
    let reader = repository.reader().unwrap();
    let node = reader.node_at(first.tree, data.join("sub/large").as_os_str().as_bytes());
    let place = reader
        .place(BlobKind::Data, node.unwrap().content[0])
        .unwrap();
    let pack = place.pack.to_string();
    fs::remove_file(root.join("data").join(&pack[..2]).join(&pack)).unwrap();
    assert!(!is_whole());
    restic(&root, &["rebuild-index"]);
    repository.archive(&options(), source.clone()).unwrap();
    assert_eq!(source.warnings(), []);
    let report = repository.check(CheckOptions::ReadData).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn stock_restic_reads_what_an_interrupted_backup_left_and_the_next_one_took_up() {
    let folder = tempfile::tempdir().unwrap();
    let (root, data) = (folder.path().join("repository"), folder.path().join("data"));
    make_tree(&data);
    let store: Arc<dyn ObjectStore> = Arc::new(LocalStore::new(&root));
    let repository = Repository::init(store, PASSWORD, &InitOptions::default()).unwrap();
    let source = MadeUp::new(move || walk(&data));
    repository.archive(&options(), source.clone()).unwrap();
    for lost in ["index", "snapshots"] {
        fs::remove_dir_all(root.join(lost)).unwrap();
        fs::create_dir(root.join(lost)).unwrap();
    }
    let next = repository.archive(&options(), source).unwrap();
    // Trees alone are new, as reading has changed access times.
    assert_eq!(next.packs_continued, 2);
    assert!(next.bytes_added < 1 << 20, "{next:?}");
    restic(&root, &["check", "--read-data"]);
}

#[test]
fn stock_restic_restores_what_was_stored_again_after_packs_were_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (root, data) = (folder.path().join("repository"), folder.path().join("data"));
    make_tree(&data);
    let store: Arc<dyn ObjectStore> = Arc::new(LocalStore::new(&root));
    let repository = Repository::init(store, PASSWORD, &InitOptions::default()).unwrap();
    let walked = data.clone();
    let source = MadeUp::new(move || walk(&walked));
    let mut options = options();
    options.paths = vec![data.as_os_str().as_bytes().to_vec()];
    let first = repository.archive(&options, source.clone()).unwrap();
    let index = repository.index().unwrap();
    for kind in [BlobKind::Data, BlobKind::Tree] {
        let place = index.blobs().find(|place| place.kind == kind).unwrap();
        let pack = place.pack.to_string();
        fs::remove_file(root.join("data").join(&pack[..2]).join(&pack)).unwrap();
    }
    let next = repository.archive(&options, source).unwrap();
    assert_eq!(next.packs_missing, 2);
    assert!(next.blobs_stored_again >= 200, "{next:?}");

    // Reading has changed access times: the lists of directories are others now, and those of the first stay lost.
    let first = first.snapshot.unwrap();
    repository.forget_snapshot(first).unwrap();
    repository.prune(&PruneOptions::default()).unwrap();
    restic(&root, &["check", "--read-data"]);
    let target = folder.path().join("target");
    let snapshot = next.snapshot.unwrap().to_string();
    restic(
        &root,
        &["restore", &snapshot, "--target", target.to_str().unwrap()],
    );
    let restored = target.join(data.strip_prefix("/").unwrap());
    let compared = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([&data, &restored])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
}

fn make_tree(data: &Path) {
    fs::create_dir_all(data.join("sub/empty")).unwrap();
    fs::write(data.join("suid"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(data.join("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(data.join("suid"), data.join("hard")).unwrap();
    fs::write(data.join("nothing"), b"").unwrap();
    fs::write(data.join("sub/large"), noise(9, 5 << 20)).unwrap();
    fs::write(data.join(OsStr::from_bytes(b"\xff\n\"\\")), b"odd name").unwrap();
    fs::write(data.join("sub.txt"), b"sorts after sub").unwrap();
    symlink("../nowhere", data.join("sub/link")).unwrap();
    for number in 0..200 {
        fs::write(data.join(format!("sub/{number}")), format!("{number}\n")).unwrap();
    }
}

fn restic(root: &Path, arguments: &[&str]) {
    let output = Command::new("restic")
        .args(["--no-cache", "--no-lock", "-r"])
        .arg(root)
        .args(arguments)
        .env("RESTIC_PASSWORD", PASSWORD)
        .output()
        .expect("stock restic is installed");
    assert!(output.status.success(), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("error"), "{errors}");
}

/// A plain walk: parents first, then what is below, sorted by name.
fn walk(root: &Path) -> Vec<Result<Entry, Warning>> {
    let mut parents: Vec<_> = root.ancestors().skip(1).collect();
    parents.reverse();
    let mut entries: Vec<_> = parents.into_iter().map(entry).collect();
    let mut stack = vec![root.to_owned()];
    while let Some(path) = stack.pop() {
        if path.symlink_metadata().unwrap().is_dir() {
            let mut below: Vec<_> = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            below.sort_by(|a, b| b.file_name().cmp(&a.file_name()));
            stack.extend(below);
        }
        entries.push(entry(&path));
    }
    entries
}

fn entry(path: &Path) -> Result<Entry, Warning> {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let kind = if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        let target = fs::read_link(path).unwrap().into_os_string().into_vec();
        FileKind::Symlink { target }
    } else {
        assert!(!kind.is_fifo() && kind.is_file());
        FileKind::File
    };
    let time = |seconds, nanoseconds: i64| {
        Some(Time {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap(),
        })
    };
    let opened = path.to_owned();
    let directory = kind == FileKind::Directory;
    Ok(Entry {
        path: path.as_os_str().as_bytes().to_vec(),
        meta: Metadata {
            mode: Some(meta.mode() & 0o7777),
            uid: Some(meta.uid()),
            gid: Some(meta.gid()),
            modified: time(meta.mtime(), meta.mtime_nsec()),
            accessed: time(meta.atime(), meta.atime_nsec()),
            changed: time(meta.ctime(), meta.ctime_nsec()),
            inode: meta.ino(),
            device: meta.dev(),
            links: if directory { 0 } else { meta.nlink() },
            size: if kind == FileKind::File {
                meta.size()
            } else {
                0
            },
            ..Metadata::default()
        },
        kind,
        open: Some(Box::new(move || Ok(Box::new(fs::File::open(opened)?) as _))),
    })
}
