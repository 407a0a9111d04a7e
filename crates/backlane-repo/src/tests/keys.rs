//! Several passwords for one repository.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backlane_proto::{ObjectId, ObjectKind, ObjectName};

use super::support::{PASSWORD, memory_repository};
use crate::testing::LocalStore;
use crate::{InitOptions, ObjectStore, RepoError, Repository};

const LONG: &str = "0123456789abcdef0123456789abcdef01234567";

fn key(id: ObjectId) -> ObjectName {
    let kind = ObjectKind::Key;
    ObjectName { kind, id }
}

#[test]
fn each_key_opens_the_same_repository_until_it_is_removed() {
    let (store, repository) = memory_repository();
    let open = |password| Repository::open(Arc::clone(&store) as Arc<dyn ObjectStore>, password);
    let first = repository.keys().unwrap().remove(0).id;
    let only = repository.remove_key(&first.to_string()).unwrap_err();
    assert!(
        matches!(only, RepoError::OnlyKey { id } if id == first),
        "{only}"
    );

    let second = repository.add_key("second", "there").unwrap();
    let opened = open("second").unwrap();
    assert_eq!(opened.id(), repository.id());
    let listed = opened.keys().unwrap();
    let seen: Vec<_> = listed.iter().map(|key| (key.id, key.is_open)).collect();
    assert_eq!(seen, [(first, false), (second, true)]);
    assert_eq!(listed[1].host.as_deref(), Some("there"));
    assert!(listed[1].created.is_some());

    let in_use = opened.remove_key(&second.to_string()).unwrap_err();
    assert!(
        matches!(in_use, RepoError::KeyInUse { id } if id == second),
        "{in_use}"
    );
    for (wanted, matches) in [("", 0), ("x", 0)] {
        let error = opened.remove_key(wanted).unwrap_err();
        let found =
            matches!(error, RepoError::KeyNotFound { matches: found, .. } if found == matches);
        assert!(found, "{error}");
    }
    assert_eq!(store.removals(), 0);
    let removed = opened.remove_key(&first.to_string()[..12]).unwrap();
    assert_eq!(removed, first);
    assert!(matches!(
        open(PASSWORD),
        Err(RepoError::WrongPassword { keys: 1 })
    ));
    open("second").unwrap();
}

#[test]
fn a_damaged_key_is_listed_and_can_be_removed_and_the_others_open() {
    let (store, repository) = memory_repository();
    let first = repository.keys().unwrap().remove(0).id;
    let second = repository.add_key("second", "there").unwrap();
    store.rot(key(first), |bytes| bytes.truncate(20));
    let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as _;
    let opened = Repository::open(Arc::clone(&shared), "second").unwrap();
    // The password may have been right, for the one that is damaged.
    let error = Repository::open(shared, PASSWORD).unwrap_err();
    assert!(error.to_string().contains(&first.to_string()), "{error}");
    let listed = opened.keys().unwrap();
    let damaged = listed.iter().find(|key| key.id == first).unwrap();
    assert!(damaged.damage.is_some(), "{damaged:?}");
    opened.remove_key(&first.to_string()).unwrap();
    let left: Vec<_> = opened.keys().unwrap().iter().map(|key| key.id).collect();
    assert_eq!(left, [second]);
}

#[test]
fn a_key_that_is_not_stored_as_it_was_made_is_not_told_to_be_there() {
    let (store, repository) = memory_repository();
    store.rot_writes(|bytes| bytes.truncate(20));
    let error = repository.add_key("second", "there").unwrap_err();
    assert!(error.is_damage(), "{error}");
}

#[test]
fn stock_restic_lists_the_same_keys_and_opens_with_each() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let store: Arc<dyn ObjectStore> = Arc::new(LocalStore::new(&root));
    let repository = Repository::init(store, PASSWORD, &InitOptions::default()).unwrap();
    let added = repository.add_key(LONG, "there").unwrap();
    for password in [PASSWORD, LONG] {
        let listed = restic_keys(&root, password);
        let id = |key: &serde_json::Value| key["id"].as_str().unwrap().to_owned();
        let mut ids: Vec<_> = listed.iter().map(id).collect();
        let keys = repository.keys().unwrap();
        let mut want: Vec<_> = keys.iter().map(|key| short(key.id)).collect();
        ids.sort();
        want.sort();
        assert_eq!(ids, want, "{listed:?}");
        let of_second = listed.iter().find(|key| id(key) == short(added));
        let of_second = of_second.unwrap();
        assert_eq!(of_second["hostName"], "there");
        assert_eq!(of_second["current"], password == LONG);
    }
}

fn short(id: ObjectId) -> String {
    id.to_string()[..8].to_owned()
}

fn restic_keys(root: &Path, password: &str) -> Vec<serde_json::Value> {
    let output = Command::new("restic")
        .args(["--no-cache", "--no-lock", "--json", "-r"])
        .arg(root)
        .args(["key", "list"])
        .env("RESTIC_PASSWORD", password)
        .output()
        .expect("stock restic is installed");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_password_that_nobody_could_think_of_costs_less_than_one_that_somebody_may_have() {
    let (store, repository) = memory_repository();
    for (password, n) in [(LONG, 1 << 15), (&LONG[1..], 1 << 17)] {
        let id = repository.add_key(password, "there").unwrap();
        let json = store.read(key(id), None).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let costs = [&json["N"], &json["r"], &json["p"]].map(|it| it.as_u64().unwrap());
        assert_eq!(costs, [n, 8, 1], "{password}");
        Repository::open(Arc::clone(&store) as Arc<dyn ObjectStore>, password).unwrap();
    }
}
