//! A state database that is lost is rebuilt from the repositories.

use crate::common::{HOST, config, get, name_of, put, put_pack, repository, server, session};
use backlane_net::service::ServiceError;
use backlane_proto::{ObjectInfo, ObjectKind, PackContents};
use backlane_server::{
    ExclusiveRepository, HostInfo, HostName, Leave, Removal, Repositories, ServerConfig,
    ServerError, ServerState,
};
use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

fn host() -> HostName {
    HOST.parse().unwrap()
}

/// A server over the same repositories, whose state is new.
async fn anew(directory: &Path) -> ServerState {
    let config = ServerConfig {
        state: directory.join("another"),
        ..config(directory)
    };
    ServerState::init(config, &["127.0.0.1".into()])
        .await
        .unwrap()
}

/// Does maintenance, as a program of its own would.
async fn maintain<T: Send + 'static>(
    alone: ExclusiveRepository,
    work: impl FnOnce(&ExclusiveRepository) -> T + Send + 'static,
) -> T {
    tokio::task::spawn_blocking(move || work(&alone))
        .await
        .unwrap()
}

fn stored(host: &HostInfo) -> (&str, u64, u64) {
    (&host.name, host.objects, host.bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_state_is_rebuilt_from_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let open = session(&state).await;
    for kind in [ObjectKind::Key, ObjectKind::Config, ObjectKind::Index] {
        put(&*open, kind, b"small").await.unwrap();
    }
    let snapshot = put(&*open, ObjectKind::Snapshot, b"one").await.unwrap();
    let gone = put(&*open, ObjectKind::Snapshot, b"gone").await.unwrap();
    put_pack(&*open, PackContents::Trees, b"trees").await;
    put_pack(&*open, PackContents::Data, b"data").await;
    drop(open);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let between = SystemTime::now();
    let alone = state.exclusive(&host(), Removal::Recoverable).await;
    maintain(alone.unwrap(), move |alone| alone.remove(gone).unwrap()).await;
    let before = state.hosts().await.unwrap();
    drop(state);

    let state = anew(directory.path()).await;
    fs::create_dir(directory.path().join("data/repositories/lost+found")).unwrap();
    let others = vec![directory.path().join("data/repositories/lost+found")];
    let hosts = vec![host()];
    assert_eq!(
        state.repositories().unwrap(),
        Repositories { hosts, others }
    );
    let adopted = state.adopt(&host()).await.unwrap();
    assert_eq!((adopted.new.objects, &adopted.unlabelled[..]), (7, &[][..]));
    // What it knew of them it knows again: their times, and what was removed when.
    maintain(adopted.repository, move |alone| {
        let arrivals = alone.arrivals(ObjectKind::Snapshot).unwrap();
        assert!(arrivals.len() == 1 && arrivals[&snapshot.id] < between);
        assert_eq!(alone.undelete(between).unwrap().objects, 1);
        let arrivals = alone.arrivals(ObjectKind::Snapshot).unwrap();
        assert!(arrivals.len() == 2 && arrivals[&gone.id] < between);
        alone.remove(gone).unwrap();
    })
    .await;
    let after = state.hosts().await.unwrap();
    assert_eq!(stored(&after[0]), stored(&before[0]));
    assert_eq!(after[0].certificate_expires_at, None);
    // What the packs hold as well.
    let open = session(&state).await;
    let [trees, data] = [b"trees".as_slice(), b"data"].map(|it| name_of(ObjectKind::Pack, it));
    get(&*open, trees, None).await.unwrap();
    let denied = get(&*open, data, None).await;
    assert!(matches!(denied, Err(ServiceError::Denied(_))), "{denied:?}");
    drop(open);
    assert_eq!(state.adopt(&host()).await.unwrap().new.objects, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_of_which_nothing_says_what_it_holds_counts_as_data_until_it_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    let open = session(&state).await;
    for kind in [ObjectKind::Key, ObjectKind::Config] {
        put(&*open, kind, b"small").await.unwrap();
    }
    drop(open);
    state.revoke_leave(&host(), Leave::Restore).await.unwrap();
    // As a stock tool brings one.
    let body = b"from elsewhere";
    let name = name_of(ObjectKind::Pack, body);
    let place = repository(directory.path())
        .join(format!("data/{:02x}", name.id.0[0]))
        .join(name.id.to_string());
    fs::write(&place, body).unwrap();
    let adopted = state.adopt(&host()).await.unwrap();
    let bytes = body.len() as u64;
    assert_eq!(adopted.unlabelled, [ObjectInfo { id: name.id, bytes }]);
    drop(adopted);
    let open = session(&state).await;
    get(&*open, name, None).await.unwrap_err();
    drop(open);
    let adopted = state.adopt(&host()).await.unwrap();
    maintain(adopted.repository, move |alone| {
        alone.label_packs(&[name.id], PackContents::Trees).unwrap();
        // The first word stays.
        alone.label_packs(&[name.id], PackContents::Data).unwrap();
    })
    .await;
    assert_eq!(state.adopt(&host()).await.unwrap().unlabelled, []);
    let open = session(&state).await;
    assert_eq!(get(&*open, name, None).await.unwrap(), body);
}

#[tokio::test]
async fn where_no_repository_is_none_is_adopted() {
    let directory = tempfile::tempdir().unwrap();
    let state = server(directory.path()).await;
    for name in ["web2", "web1"] {
        let refused = state.adopt(&name.parse().unwrap()).await.map(drop);
        assert!(
            matches!(refused, Err(ServerError::NoRepository { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(state.hosts().await.unwrap().len(), 1);
}
