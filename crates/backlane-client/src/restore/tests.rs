//! Trees that no honest backup writes.

use super::*;
use backlane_proto::{ByteRange, ObjectInfo, ObjectKind, ObjectName, PackContents};
use backlane_repo::{InitOptions, ObjectStore, Repository, StoreError};
use bytes::Bytes;
use std::{collections::BTreeMap, sync::Mutex};

#[derive(Default)]
struct Memory(Mutex<BTreeMap<ObjectName, Bytes>>);

impl ObjectStore for Memory {
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError> {
        let all = self.0.lock().unwrap();
        let of_kind = all.iter().filter(|(name, _)| name.kind == kind);
        let info = |(name, body): (&ObjectName, &Bytes)| ObjectInfo {
            id: name.id,
            bytes: body.len() as u64,
        };
        Ok(of_kind.map(info).collect())
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
        assert!(range.is_none());
        let found = self.0.lock().unwrap().get(&name).cloned();
        found.ok_or(StoreError::NotFound { name })
    }

    fn write(&self, name: ObjectName, _: PackContents, body: Bytes) -> Result<(), StoreError> {
        self.0.lock().unwrap().insert(name, body);
        Ok(())
    }

    fn remove(&self, _: ObjectName) -> Result<(), StoreError> {
        unreachable!()
    }
}

fn node(name: &str, kind: FileKind) -> Node {
    Node {
        name: name.into(),
        kind,
        meta: Metadata::default(),
        content: Vec::new(),
        subtree: None,
    }
}

/// Restores a tree into `target` and gives the warnings.
fn restore_tree(nodes: Vec<Node>, target: &Path) -> Warnings {
    restore_tree_with(nodes, target, &RestoreOptions::default(), |_| {})
}

fn restore_tree_with(
    nodes: Vec<Node>,
    target: &Path,
    options: &RestoreOptions,
    prepare: impl FnOnce(&Places),
) -> Warnings {
    let store: Arc<dyn ObjectStore> = Arc::new(Memory::default());
    let repository = Repository::init(store, "x", &InitOptions::default()).unwrap();
    let reader = repository.reader().unwrap();
    let handle = open_target(target, options).unwrap().unwrap();
    let reporter = Reporter::new(Arc::new(()), Cancel::default());
    let places = Places::new(handle, target).unwrap();
    prepare(&places);
    let names = TemporaryNames::new().unwrap();
    let job = Job::new(&reader, &places, &names, &reporter, options);
    Descender::new(&job, &[])
        .run(
            Tree { nodes },
            None,
            Some(PlaceId::TARGET),
            Reach::Inside { device: None },
        )
        .unwrap();
    reporter.warnings()
}

#[test]
fn names_that_lead_elsewhere_are_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    let bad = ["..", ".", "", "/", "../escape", "a/b", "/tmp/x", "n\0l"];
    let mut nodes: Vec<_> = bad.map(|name| node(name, FileKind::File)).into();
    nodes.push(node("..", FileKind::Directory));
    nodes.push(node("good", FileKind::File));
    let warnings = restore_tree(nodes, &target);
    assert_eq!(warnings.count(WarningKind::NotRestored), 9);
    assert!(warnings.first.iter().any(|w| w.what.contains("../escape")));
    let names = |path: &Path| std::fs::read_dir(path).unwrap().count();
    assert_eq!((names(dir.path()), names(&target)), (1, 1));
}

#[test]
fn a_link_and_a_directory_of_one_name_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let link = FileKind::Symlink {
        target: outside.as_os_str().as_bytes().to_vec(),
    };
    let nodes = vec![node("x", link), node("x", FileKind::Directory)];
    let warnings = restore_tree(nodes, &dir.path().join("target"));
    assert_eq!(warnings.count(WarningKind::NotRestored), 1);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn what_is_of_an_unknown_kind_is_named_and_what_stands_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    let unknown = |name| {
        let kind = "irregular".to_owned();
        node(name, FileKind::Unknown { kind })
    };
    std::fs::create_dir_all(target.join("full/of")).unwrap();
    std::fs::write(target.join("file"), "precious").unwrap();
    std::fs::write(target.join("extra"), "goes").unwrap();
    let nodes = vec![
        unknown("absent"),
        unknown("file"),
        unknown("full"),
        node("good", FileKind::Fifo),
    ];
    let options = RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    };
    let warnings = restore_tree_with(nodes, &target, &options, |_| {});
    assert_eq!(warnings.count(WarningKind::NotRestored), 3);
    assert_eq!(warnings.total(), 3, "{warnings:?}");
    for (warning, name) in warnings.first.iter().zip(["absent", "file", "full"]) {
        assert_eq!(warning.path, target.join(name));
        assert!(warning.what.contains("`irregular`"), "{warning:?}");
    }
    let mut left: Vec<_> = std::fs::read_dir(&target)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["file", "full", "good"]);
    assert!(target.join("full/of").is_dir());
    let content = std::fs::read_to_string(target.join("file")).unwrap();
    assert_eq!(content, "precious");
}

#[test]
fn a_second_restore_into_the_same_target_is_refused() {
    let target = tempfile::tempdir().unwrap();
    let options = RestoreOptions::default();
    let _first = open_target(target.path(), &options).unwrap();
    let second = open_target(target.path(), &options);
    assert!(matches!(second, Err(Error::TargetBusy { .. })));
}

/// Where names of two directories lead to one, what has a temporary name there may be a file of the other's.
#[test]
fn a_temporary_file_is_left_over_only_where_no_other_directory_is_the_same() {
    for has_twin in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::create_dir_all(target.join("a")).unwrap();
        let temporary = target.join("a").join(TemporaryNames::of("x".as_ref()));
        std::fs::write(&temporary, "half").unwrap();
        let prepare = |places: &Places| {
            if has_twin {
                let a = fs::open_dir(CWD, target.join("a").as_os_str()).unwrap();
                places.add(PlaceId::TARGET, "A".as_ref(), a).unwrap();
            }
        };
        let nodes = vec![node("a", FileKind::Directory)];
        let options = RestoreOptions::default();
        let warnings = restore_tree_with(nodes, &target, &options, prepare);
        assert_eq!(warnings.total(), 0, "{warnings:?}");
        assert_eq!(temporary.exists(), has_twin);
    }
}
