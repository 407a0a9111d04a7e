//! The object service on real directories.

use crate::common::{HOST, get, join, name_of, put, put_as, repository, server, session};
use backlane_net::service::{Service, ServiceError, VerifiedHost};
use backlane_proto::{
    ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents, SessionFor,
};
use backlane_server::{Removal, ServerError};
use bytes::Bytes;
use std::{fs, path::Path, sync::Arc};

/// Nothing is left behind by a put that failed.
fn check_nothing_left(directory: &Path, name: ObjectName) {
    let root = repository(directory);
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    let id = name.id.to_string();
    assert!(!root.join("data").join(&id[..2]).join(&id).exists());
}

/// Every kind, as a repository is made: a key before the config, and both before everything else.
const IN_ORDER: [ObjectKind; 5] = [
    ObjectKind::Key,
    ObjectKind::Config,
    ObjectKind::Index,
    ObjectKind::Snapshot,
    ObjectKind::Pack,
];

#[tokio::test]
async fn every_kind_of_object_comes_back_as_it_was_put() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    for kind in IN_ORDER {
        let body: Vec<u8> = (0..300_000_u32)
            .map(|i| i.to_le_bytes()[usize::try_from(i % 3).unwrap()])
            .collect();
        let name = put(&*session, kind, &body).await.unwrap();
        assert_eq!(get(&*session, name, None).await.unwrap(), body, "{kind}");
        let want = ObjectInfo {
            id: name.id,
            bytes: body.len() as u64,
        };
        assert_eq!(session.list(kind).await.unwrap(), [want], "{kind}");
    }
}

#[tokio::test]
async fn range_is_exact_and_never_cut_short() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let body: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let name = put(&*session, ObjectKind::Pack, &body).await.unwrap();
    let part = |offset, length| Some(ByteRange { offset, length });
    for (offset, length) in [
        (0, 0),
        (0, 5000),
        (10, 1),
        (1234, 2500),
        (5000, 0),
        (4999, 1),
    ] {
        let want = &body[offset..offset + length];
        let found = get(&*session, name, part(offset as u64, length as u64)).await;
        assert_eq!(found.unwrap(), want, "{length} from {offset}");
    }
    for (offset, length) in [
        (0, 5001),
        (5000, 1),
        (5001, 0),
        (u64::MAX, 2),
        (1, u64::MAX),
    ] {
        let error = get(&*session, name, part(offset, length))
            .await
            .unwrap_err();
        // The object is shorter than its reader knows it: others may be well.
        assert!(matches!(error, ServiceError::Damaged(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("has 5000 bytes"), "{text}");
    }
}

#[tokio::test]
async fn body_that_is_not_its_name_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let name = name_of(ObjectKind::Pack, b"right");
    let error = put_as(&*session, name, b"wrong").await.unwrap_err();
    assert!(matches!(error, ServiceError::BadBody { name: found, .. } if found == name));
    assert!(error.to_string().contains("SHA-256"), "{error}");
    check_nothing_left(directory.path(), name);
    put_as(&*session, name, b"right").await.unwrap();
}

#[tokio::test]
async fn body_of_another_length_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let body = Bytes::from_static(b"0123456789");
    let name = name_of(ObjectKind::Pack, &body);
    for announced in [9, 11, 0] {
        let put = session.put(name, PackContents::Data, announced);
        let mut sink = put.await.unwrap();
        let written = sink.write(body.clone()).await;
        // More than was announced is not even written.
        assert_eq!(written.is_err(), announced < 10, "{announced}");
        // A sink that failed once takes nothing more.
        let again = sink.write(Bytes::new()).await;
        assert_eq!(written.is_err(), again.is_err(), "{announced}");
        let committed = sink.commit().await;
        assert!(written.and(committed).is_err(), "{announced}");
        check_nothing_left(directory.path(), name);
    }
    let most = u64::MAX;
    assert!(session.put(name, PackContents::Data, most).await.is_err());
    check_nothing_left(directory.path(), name);
}

#[tokio::test]
async fn dropped_put_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let name = name_of(ObjectKind::Pack, b"abc");
    let mut sink = session.put(name, PackContents::Data, 3).await.unwrap();
    sink.write(Bytes::from_static(b"abc")).await.unwrap();
    drop(sink);
    check_nothing_left(directory.path(), name);
    assert_eq!(session.list(ObjectKind::Pack).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn same_object_put_by_many_at_once_is_a_success_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let state = Arc::new(server(directory.path()).await);
    let body = Bytes::from(vec![7; 500_000]);
    let name = name_of(ObjectKind::Pack, &body);
    let puts: Vec<_> = (0..16)
        .map(|_| {
            let (state, body) = (Arc::clone(&state), body.clone());
            tokio::spawn(async move {
                let session = session(&state).await;
                put_as(&*session, name, &body).await
            })
        })
        .collect();
    for put in puts {
        put.await.unwrap().unwrap();
    }
    let session = session(&state).await;
    assert_eq!(session.list(ObjectKind::Pack).await.unwrap().len(), 1);
    assert_eq!(get(&*session, name, None).await.unwrap(), body);
}

#[tokio::test]
async fn damaged_object_is_not_acknowledged_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let name = put(&*session, ObjectKind::Index, b"abc").await.unwrap();
    let path = repository(directory.path()).join(format!("index/{}", name.id));
    fs::write(path, b"abd").unwrap();
    let error = put_as(&*session, name, b"abc").await.unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[tokio::test]
async fn config_is_created_once_and_behind_a_key() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let early = put(&*session, ObjectKind::Config, b"one").await;
    assert!(matches!(early, Err(ServiceError::Denied(_))), "{early:?}");
    put(&*session, ObjectKind::Key, b"key").await.unwrap();
    let name = put(&*session, ObjectKind::Config, b"one").await.unwrap();
    put(&*session, ObjectKind::Config, b"one").await.unwrap();
    let error = put(&*session, ObjectKind::Config, b"two")
        .await
        .unwrap_err();
    assert!(matches!(error, ServiceError::Denied(_)), "{error}");
    // Whatever id a client invents, there is one config.
    let id = ObjectId([9; 32]);
    let invented = ObjectName { id, ..name };
    assert!(put_as(&*session, invented, b"two").await.is_err());
    assert_eq!(get(&*session, invented, None).await.unwrap(), b"one");
}

#[tokio::test]
async fn client_removes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    for kind in IN_ORDER {
        let name = put(&*session, kind, b"abc").await.unwrap();
        let error = session.remove(name).await.unwrap_err();
        assert!(matches!(error, ServiceError::Denied(_)), "{error}");
        assert_eq!(get(&*session, name, None).await.unwrap(), b"abc");
    }
}

#[tokio::test]
async fn a_config_that_is_lost_costs_no_key() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let first = session(&state).await;
    for kind in IN_ORDER {
        put(&*first, kind, b"abc").await.unwrap();
    }
    drop(first);
    fs::remove_file(repository(directory.path()).join("config")).unwrap();
    // A client finds no repository and would make one.
    let second = session(&state).await;
    let refused = put(&*second, ObjectKind::Key, b"new").await.unwrap_err();
    assert!(refused.to_string().contains("put it back"), "{refused}");
    assert_eq!(second.list(ObjectKind::Key).await.unwrap().len(), 1);
}

#[tokio::test]
async fn missing_object_is_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let name = name_of(ObjectKind::Snapshot, b"never put");
    let error = get(&*session, name, None).await.unwrap_err();
    assert!(matches!(error, ServiceError::NotFound(found) if found == name));
}

#[tokio::test]
async fn hosts_see_their_own_repository_alone() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let first = session(&state).await;
    let second = crate::common::open(&state, "web2").await.unwrap();
    let name = put(&*first, ObjectKind::Pack, b"abc").await.unwrap();
    assert!(get(&*second, name, None).await.is_err());
    assert_eq!(second.list(ObjectKind::Pack).await.unwrap(), []);
    for stranger in ["web3", "../web1", "", "web1/../web2"] {
        let known = join(&state, HOST).await;
        let name = stranger.to_owned();
        let stranger_host = VerifiedHost { name, ..known };
        let refused = Service::open(&state, &stranger_host, SessionFor::Jobs)
            .await
            .err()
            .unwrap();
        assert!(
            matches!(refused, ServiceError::Denied(_)),
            "{stranger}: {refused}"
        );
    }
    assert!(!directory.path().join("data/repositories/web3").exists());
}

#[tokio::test]
async fn foreign_file_fails_the_list_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let session = session(&state).await;
    let foreign = repository(directory.path()).join("snapshots/notes.txt");
    fs::write(&foreign, b"mine").unwrap();
    let error = session.list(ObjectKind::Snapshot).await.unwrap_err();
    assert!(error.to_string().contains("snapshots/notes.txt"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_is_alone_and_may_remove() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let host = HOST.parse().unwrap();
    let open = session(&state).await;
    let name = put(&*open, ObjectKind::Pack, b"abc").await.unwrap();
    let removals = open.removals().await.unwrap();
    let busy = state.exclusive(&host, Removal::Final).await.err().unwrap();
    assert!(matches!(busy, ServerError::Busy { .. }), "{busy}");
    drop(open);
    let alone = state.exclusive(&host, Removal::Final).await.unwrap();
    let busy = crate::common::open(&state, HOST).await.err().unwrap();
    assert!(matches!(busy, ServiceError::Busy(_)), "{busy}");
    let trees = Bytes::from_static(b"trees");
    let tree_pack = name_of(ObjectKind::Pack, &trees);
    tokio::task::spawn_blocking(move || {
        assert_eq!(alone.read(name, None).unwrap(), "abc");
        alone.remove(name).unwrap();
        assert!(alone.remove(name).is_err());
        alone.write(tree_pack, PackContents::Trees, &trees).unwrap();
        alone.write(tree_pack, PackContents::Data, &trees).unwrap();
        // The first word about a pack stays, and what nobody spoke of counts as data.
        assert_eq!(alone.pack_contents(tree_pack).unwrap(), PackContents::Trees);
        assert_eq!(alone.pack_contents(name).unwrap(), PackContents::Data);
        assert_eq!(alone.list(ObjectKind::Pack).unwrap().len(), 1);
    })
    .await
    .unwrap();
    let hosts = state.hosts().await.unwrap();
    assert_eq!((hosts[0].objects, hosts[0].bytes), (1, 5));
    // A session that knew the repository before can tell.
    let after = session(&state).await.removals().await.unwrap();
    assert_eq!(after, removals + 1);
}
