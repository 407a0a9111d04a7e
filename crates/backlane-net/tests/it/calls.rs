//! Calls of a session, as its users make them.

use crate::{
    service::name_of,
    world::{World, in_time, until},
};
use backlane_net::{Blocking, ClientConfig, DataPorts, Error, Session};
use backlane_proto::{
    ByteRange, ErrorCode, ObjectId, ObjectKind, ObjectName, PackContents, Reason, RoutePolicy,
    SessionFor,
};
use bytes::Bytes;
use std::{sync::atomic::Ordering, time::Duration};

fn body(bytes: usize, seed: u8) -> Bytes {
    (0..bytes)
        .map(|n| (n as u8).wrapping_mul(31).wrapping_add((n >> 8) as u8) ^ seed)
        .collect()
}

async fn put(session: &Session, body: &Bytes) -> ObjectName {
    let name = name_of(ObjectKind::Pack, body);
    let stored = session.put(name, PackContents::Trees, body.clone());
    stored.await.unwrap();
    name
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_is_listed_and_read_back_whole_and_in_part() {
    let world = World::new().await;
    let session = Session::connect(world.client("db1")).await.unwrap();
    assert_eq!(session.host(), "db1");
    for bytes in [0, 1, 128 * 1024, 128 * 1024 + 1, 3_000_000] {
        let body = body(bytes, 1);
        let name = put(&session, &body).await;
        assert_eq!(session.get(name, None).await.unwrap(), body);
        // Put again, it is a success.
        put(&session, &body).await;
    }
    let whole = body(3_000_000, 1);
    let name = name_of(ObjectKind::Pack, &whole);
    let range = ByteRange {
        offset: 777,
        length: 1_000_000,
    };
    let part = session.get(name, Some(range)).await.unwrap();
    assert_eq!(part, whole.slice(777..1_000_777));
    let beyond = ByteRange {
        offset: 2_999_999,
        length: 2,
    };
    assert!(session.get(name, Some(beyond)).await.is_err());

    let listed = session.list(ObjectKind::Pack).await.unwrap();
    assert_eq!(listed.len(), 5);
    assert_eq!(session.list(ObjectKind::Snapshot).await.unwrap(), vec![]);
    let (contents, _) = world.service.store("db1").objects.lock().unwrap()[&name].clone();
    assert_eq!(contents, PackContents::Trees);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_is_counted_with_its_route_and_reason() {
    let world = World::new().await;
    let session = Session::connect(world.client("db1")).await.unwrap();
    assert_eq!(session.routes().storage.unwrap_err().reason, Reason::NoPool);
    let body = body(1000, 2);
    let name = put(&session, &body).await;
    session.get(name, None).await.unwrap();
    let report = session.close().await.unwrap();
    assert_eq!(
        (report.sent.network.objects, report.sent.network.bytes),
        (1, 1000)
    );
    assert_eq!(
        (
            report.received.network.objects,
            report.received.network.bytes
        ),
        (1, 1000)
    );
    assert_eq!(report.storage().objects, 0);
    // The client had no pool, the server knew of none: each names what keeps it from storage.
    assert_eq!(report.reasons[&Reason::NoPool].bytes, 1000);
    assert_eq!(report.reasons[&Reason::ServerHasNoPool].bytes, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_listings_come_whole() {
    let world = World::new().await;
    let store = world.service.store("db1");
    {
        let mut objects = store.objects.lock().unwrap();
        for n in 0..10_000_u32 {
            let name = name_of(ObjectKind::Index, &n.to_le_bytes());
            objects.insert(name, (PackContents::Data, Bytes::new()));
        }
    }
    let session = Session::connect(world.client("db1")).await.unwrap();
    let listed = session.list(ObjectKind::Index).await.unwrap();
    assert_eq!(listed.len(), 10_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_of_many_hosts_run_at_once_and_stay_apart() {
    let world = World::with(|_, options| options.data_ports = DataPorts::Designated).await;
    let host = async |host: &str, seed: u8| {
        let session = Session::connect(world.client(host)).await.unwrap();
        let mut calls = tokio::task::JoinSet::new();
        // More than a session may have under way, so that some wait for their turn.
        for n in 0..150_usize {
            let session = session.clone();
            calls.spawn(async move {
                let body = body(n * 1000, seed);
                let name = put(&session, &body).await;
                assert_eq!(session.get(name, None).await.unwrap(), body);
            });
        }
        while let Some(done) = calls.join_next().await {
            done.unwrap();
        }
        let listed = session.list(ObjectKind::Pack).await.unwrap();
        assert_eq!(listed.len(), 150);
        session.close().await.unwrap();
    };
    tokio::join!(host("a", 1), host("b", 2), host("c", 3));
    // Only the empty object is the same for all.
    let ids = |host: &str| {
        let listed = world.service.store(host);
        let objects = listed.objects.lock().unwrap();
        objects
            .keys()
            .map(|name| name.id)
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(ids("a").intersection(&ids("b")).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_refusals_arrive_as_what_they_are() {
    let world = World::new().await;
    let session = Session::connect(world.client("db1")).await.unwrap();
    let (good, other) = (body(300_000, 3), body(300_000, 4));
    let name = name_of(ObjectKind::Pack, &good);

    let missing = session.get(name, None).await;
    assert!(
        matches!(missing, Err(Error::NotFound { name: n }) if n == name),
        "{missing:?}"
    );
    let denied = session.remove(name).await;
    assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    let bad = session.put(name, PackContents::Data, other).await;
    assert!(
        matches!(
            bad,
            Err(Error::Server {
                code: ErrorCode::BadBody,
                ..
            })
        ),
        "{bad:?}"
    );

    let store = world.service.store("db1");
    store.full.store(true, Ordering::SeqCst);
    let full = session.put(name, PackContents::Data, good.clone()).await;
    assert!(
        matches!(&full, Err(Error::Full { what }) if what.contains("/srv/objects")),
        "{full:?}"
    );
    // The rest of the refused body is out of the way of what follows.
    store.full.store(false, Ordering::SeqCst);
    session
        .put(name, PackContents::Data, good.clone())
        .await
        .unwrap();
    assert_eq!(session.get(name, None).await.unwrap(), good);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_is_dropped_midway_leaves_nothing_and_the_session_goes_on() {
    let world = World::new().await;
    let store = world.service.store("db1");
    let session = Session::connect(world.client("db1")).await.unwrap();
    let all = store.gate.available_permits();
    store.gate.forget_permits(all);
    let large = body(5_000_000, 5);
    let name = name_of(ObjectKind::Pack, &large);
    let stored = tokio::spawn({
        let (session, large) = (session.clone(), large.clone());
        async move { session.put(name, PackContents::Data, large).await }
    });
    store.gate.add_permits(3);
    until("three pieces taken", || store.gate.available_permits() == 0).await;
    stored.abort();
    assert!(stored.await.unwrap_err().is_cancelled());
    until("the sink dropped", || {
        store.abandoned.load(Ordering::SeqCst) == 1
    })
    .await;
    store.gate.add_permits(1_000_000);
    assert!(store.objects.lock().unwrap().is_empty());
    put(&session, &large).await;
    session.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_that_is_dropped_midway_frees_the_way() {
    let world = World::new().await;
    let store = world.service.store("db1");
    let session = Session::connect(world.client("db1")).await.unwrap();
    let large = body(5_000_000, 6);
    let name = put(&session, &large).await;
    for _ in 0..100 {
        let all = store.gate.available_permits();
        store.gate.forget_permits(all);
        let read = tokio::spawn({
            let session = session.clone();
            async move { session.get(name, None).await }
        });
        store.gate.add_permits(2);
        until("two pieces read", || store.gate.available_permits() == 0).await;
        if read.is_finished() {
            panic!(
                "read ended: {:?}",
                read.await.map(|read| read.map(|body| body.len()))
            );
        }
        read.abort();
        store.gate.add_permits(1_000_000);
    }
    assert_eq!(session.get(name, None).await.unwrap(), large);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_the_server_does_not_take_holds_back_its_sender() {
    let world = World::new().await;
    let store = world.service.store("db1");
    let all = store.gate.available_permits();
    store.gate.forget_permits(all);
    let session = Session::connect(world.client("db1")).await.unwrap();
    let large = body(60_000_000, 7);
    let name = name_of(ObjectKind::Pack, &large);
    let put = session.put(name, PackContents::Data, large.clone());
    tokio::pin!(put);
    tokio::select! {
        done = &mut put => panic!("stored without the server: {done:?}"),
        () = until("a sink", || store.open_sinks.load(Ordering::SeqCst) == 1) => {}
    }
    store.gate.add_permits(1_000_000);
    in_time("the put", put).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn require_storage_without_storage_fails_with_the_reason() {
    let world = World::new().await;
    let mut config = world.client("db1");
    config.policy = RoutePolicy::RequireStorage;
    let refused = Session::connect(config).await;
    assert!(
        matches!(
            refused,
            Err(Error::NoRoute {
                reason: Reason::NoPool,
                ..
            })
        ),
        "{refused:?}"
    );
    let store = world.service.store("db1");
    until("the session let go", || {
        store.held.load(Ordering::SeqCst) == 0
    })
    .await;
}

/// A client that doesn't wait for a server that is gone.
fn impatient(world: &World) -> ClientConfig {
    let mut config = world.client("db1");
    config.route_wait = Duration::ZERO;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_fails_every_call_at_once() {
    let world = World::new().await;
    let store = world.service.store("db1");
    let all = store.gate.available_permits();
    store.gate.forget_permits(all);
    let session = Session::connect(impatient(&world)).await.unwrap();
    let addr = world.addr.to_string();
    let mut events = session.events();
    let mut puts = tokio::task::JoinSet::new();
    for seed in 0..5 {
        let session = session.clone();
        puts.spawn(async move {
            let body = body(1_000_000, seed);
            let name = name_of(ObjectKind::Pack, &body);
            session.put(name, PackContents::Data, body).await
        });
    }
    until("five sinks", || {
        store.open_sinks.load(Ordering::SeqCst) == 5
    })
    .await;
    world.kill().await;
    while let Some(put) = in_time("every put", puts.join_next()).await {
        let lost = put.unwrap().unwrap_err();
        // The data pair may be seen to end before the control connection.
        let expected = matches!(&lost, Error::Lost { .. } | Error::RouteFailed { .. });
        assert!(expected, "{lost:?}");
    }
    assert_eq!(in_time("the end of events", events.next()).await, None);
    let after = session.list(ObjectKind::Pack).await.unwrap_err();
    assert!(
        matches!(&after, Error::Lost { server, .. } if *server == addr),
        "{after:?}"
    );
    assert_eq!(store.open_sinks.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_says_so() {
    let world = World::new().await;
    let session = Session::connect(impatient(&world)).await.unwrap();
    in_time("the server's end", world.stop()).await;
    until("the session's end", || session.failure().is_some()).await;
    let why = session
        .list(ObjectKind::Pack)
        .await
        .unwrap_err()
        .to_string();
    assert!(why.contains("shutting down"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_lets_go_of_its_repository() {
    let world = World::new().await;
    let store = world.service.store("db1");
    let session = Session::connect(world.client("db1")).await.unwrap();
    assert_eq!(store.held.load(Ordering::SeqCst), 1);
    let clone = session.clone();
    session.close().await.unwrap();
    // Closed means that the server has let go already.
    assert_eq!(store.held.load(Ordering::SeqCst), 0);
    assert!(matches!(
        clone.list(ObjectKind::Key).await,
        Err(Error::Closed)
    ));

    let session = Session::connect(world.client("db1")).await.unwrap();
    assert_eq!(store.held.load(Ordering::SeqCst), 1);
    drop(session);
    until("the server noticed", || {
        store.held.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[test]
fn threads_without_a_runtime_use_a_session() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new());
    let handle = runtime.handle().clone();
    let session = Blocking::connect(world.client("db1"), handle).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let session = &session;
            scope.spawn(move || {
                let body = body(500_000, seed);
                let name = name_of(ObjectKind::Pack, &body);
                session.put(name, PackContents::Data, body.clone()).unwrap();
                assert_eq!(session.get(name, None).unwrap(), body);
            });
        }
    });
    assert_eq!(session.list(ObjectKind::Pack).unwrap().len(), 4);
    session.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_for_maintenance_removes_and_learns_of_every_object_when_it_arrived() {
    let world = World::new().await;
    let store = world.service.store("db1");
    // More than a page.
    let named = |number: u32| {
        let mut id = [7; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        let kind = ObjectKind::Snapshot;
        ObjectName {
            kind,
            id: ObjectId(id),
        }
    };
    let mut all: Vec<_> = (0..10_000).map(named).collect();
    all.sort_unstable();
    for name in &all {
        let object = (PackContents::Data, Bytes::new());
        store.objects.lock().unwrap().insert(*name, object);
    }
    let mut config = world.client("db1");
    config.session_for = SessionFor::Maintenance;
    let session = Session::connect(config).await.unwrap();
    let arrived = session.arrivals(ObjectKind::Snapshot).await.unwrap();
    let ids: Vec<_> = arrived.iter().map(|arrived| arrived.id).collect();
    assert_eq!(ids, all.iter().map(|name| name.id).collect::<Vec<_>>());
    assert!(arrived.iter().all(|it| it.at_ms == i64::from(it.id.0[0])));
    assert_eq!(session.arrivals(ObjectKind::Pack).await.unwrap(), []);
    session.remove(all[5]).await.unwrap();
    assert_eq!(store.objects.lock().unwrap().len(), all.len() - 1);
    session.close().await.unwrap();
    world.stop().await;
}
