//! Routes that fail under calls, and come back: the calls go by what is left.

use crate::{
    devices::Pulled,
    service::name_of,
    storage::{Files, body, config, put, timeouts, world},
    world::{Proxy, World, in_time, until},
};
use backlane_net::{ClientConfig, DataPorts, Error, Session};
use backlane_proto::{ObjectKind, PackContents, Reason, Route, RoutePolicy, report::Change};
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use storage_socket::Timeouts;

/// A pool whose only device can be pulled, and comes back soon.
pub(crate) fn files() -> Files {
    let timeouts = Timeouts {
        route_leave: Duration::from_secs(3),
        ..timeouts()
    };
    let dir = tempfile::tempdir().unwrap();
    let devices = vec![dir.path().join("device")];
    Files::at(dir, devices, 256 << 20, timeouts)
}

/// The pool's device, while it is away: its path leads nowhere, and whoever has it open finds nothing there.
pub(crate) struct Away {
    path: PathBuf,
    content: PathBuf,
    _pulled: Pulled,
}

impl Away {
    pub(crate) fn pull(files: &Files) -> Self {
        let path = files.devices[0].clone();
        let content = files.dir.path().join("away");
        fs::copy(&path, &content).unwrap();
        let pulled = Pulled::new(&path);
        fs::remove_file(&path).unwrap();
        Self {
            path,
            content,
            _pulled: pulled,
        }
    }

    pub(crate) fn returns(&self) {
        fs::rename(&self.content, &self.path).unwrap();
    }
}

/// A put that is stuck at the server with part of its body.
pub(crate) struct Stuck {
    stored: tokio::task::JoinHandle<Result<(), Error>>,
    body: bytes::Bytes,
}

impl Stuck {
    pub(crate) async fn begin(world: &World, session: &Session, seed: u8) -> Self {
        let store = world.service.store("db1");
        let all = store.gate.available_permits();
        store.gate.forget_permits(all);
        let body = body(60_000_000, seed);
        let stored = tokio::spawn({
            let (session, body) = (session.clone(), body.clone());
            let name = name_of(ObjectKind::Pack, &body);
            async move { session.put(name, PackContents::Data, body).await }
        });
        store.gate.add_permits(2);
        until("two pieces taken", || store.gate.available_permits() == 0).await;
        Self { stored, body }
    }

    pub(crate) async fn go_on(self, world: &World, session: &Session) {
        world.service.store("db1").gate.add_permits(1_000_000);
        in_time("the put's end", self.stored)
            .await
            .unwrap()
            .unwrap();
        let name = name_of(ObjectKind::Pack, &self.body);
        assert_eq!(session.get(name, None).await.unwrap(), self.body);
    }
}

/// Connects through a proxy, so that connections can be cut.
async fn proxied(world: &World, mut config: ClientConfig) -> (Proxy, Session) {
    let proxy = Proxy::new(world.addr).await;
    config.server = proxy.addr.to_string();
    let session = Session::connect(config).await.unwrap();
    (proxy, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_leave_a_storage_that_is_lost_and_return_to_it() {
    let files = files();
    let world = world(&files).await;
    let config = config(&world, &files, RoutePolicy::PreferStorage);
    let session = Session::connect(config).await.unwrap();
    assert_eq!(session.routes().storage, Ok(()));
    let stuck = Stuck::begin(&world, &session, 1).await;
    let device = Away::pull(&files);
    until("storage to be left", || session.routes().storage.is_err()).await;
    stuck.go_on(&world, &session).await;
    let report = session.report();
    assert_eq!(report.sent.network.bytes, 60_000_000, "{report:?}");
    assert!(report.repeated.objects >= 1, "{report:?}");
    // It comes back, and both sides take it.
    device.returns();
    until("storage to be taken back", || {
        session.routes().storage.is_ok()
    })
    .await;
    let body = body(3_000_000, 2);
    let name = put(&session, &body).await;
    assert_eq!(session.get(name, None).await.unwrap(), body);
    let report = in_time("the close", session.close()).await.unwrap();
    assert_eq!(report.sent.storage.bytes, 3_000_000, "{report:?}");
    let changes: Vec<_> = report.changes.iter().map(|it| &it.change).collect();
    assert!(
        matches!(
            changes[..],
            [
                Change::Lost(Route::Storage, ..),
                Change::TakenBack(Route::Storage)
            ]
        ),
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_leave_a_network_that_is_lost_and_return_to_it() {
    // Data connections come to the designated port, and so through the proxy.
    let world = World::with(|_, options| options.data_ports = DataPorts::Designated).await;
    let (proxy, session) = proxied(&world, world.client("db1")).await;
    let stuck = Stuck::begin(&world, &session, 4).await;
    assert_eq!(proxy.count(), 3);
    // The first of the three carries the requests; of the others either may be the data connection.
    for passed in &proxy.passed.lock().unwrap()[1..] {
        passed.abort();
    }
    until("other connections", || proxy.count() == 5).await;
    stuck.go_on(&world, &session).await;
    let report = in_time("the close", session.close()).await.unwrap();
    assert!(report.repeated.objects >= 1, "{report:?}");
    let lost = &report.changes[0].change;
    assert!(
        matches!(lost, Change::Lost(Route::Network, Reason::NetworkDown, _)),
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_must_take_storage_waits_for_it_and_not_for_ever() {
    for patience in [Duration::from_secs(600), Duration::from_millis(200)] {
        let files = files();
        let world = world(&files).await;
        let mut config = config(&world, &files, RoutePolicy::RequireStorage);
        config.route_wait = patience;
        let session = Session::connect(config).await.unwrap();
        let device = Away::pull(&files);
        until("storage to be left", || session.routes().storage.is_err()).await;
        let body = body(3_000_000, 3);
        let name = name_of(ObjectKind::Pack, &body);
        let stored = tokio::spawn({
            let (session, body) = (session.clone(), body.clone());
            async move { session.put(name, PackContents::Data, body).await }
        });
        if patience < Duration::from_secs(1) {
            let refused = in_time("the refusal", stored).await.unwrap().unwrap_err();
            assert!(matches!(refused, Error::NoRoute { .. }), "{refused:?}");
        } else {
            device.returns();
            in_time("the put", stored).await.unwrap().unwrap();
            assert_eq!(session.get(name, None).await.unwrap(), body);
            let report = in_time("the close", session.close()).await.unwrap();
            assert_eq!(report.network().objects, 0, "{report:?}");
        }
        let sinks = &world.service.store("db1").open_sinks;
        until("no sink", || sinks.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_lose_their_connection_are_made_again_on_another() {
    let world = World::with(|_, options| options.data_ports = DataPorts::Designated).await;
    let (proxy, session) = proxied(&world, world.client("db1")).await;
    let stuck = Stuck::begin(&world, &session, 5).await;
    proxy.passed.lock().unwrap()[0].abort();
    let store = world.service.store("db1");
    until("another session", || {
        store.abandoned.load(Ordering::SeqCst) == 1 && store.open_sinks.load(Ordering::SeqCst) == 1
    })
    .await;
    // The one before has let go.
    assert_eq!(store.held.load(Ordering::SeqCst), 1);
    stuck.go_on(&world, &session).await;
    let report = in_time("the close", session.close()).await.unwrap();
    assert_eq!(report.repeated.bytes, 60_000_000, "{report:?}");
    let changes: Vec<_> = report.changes.iter().map(|it| &it.change).collect();
    // Which of the two losses is seen first is open.
    let lost = |change: &&Change| matches!(change, Change::ControlLost(Route::Network, ..));
    assert!(changes[..2].iter().any(lost), "{report:?}");
    assert!(
        matches!(
            changes[2..],
            [
                Change::Control(Route::Network),
                Change::TakenBack(Route::Network)
            ]
        ),
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_through_the_pool_when_the_network_is_gone_or_says_nothing() {
    for is_silent in [false, true] {
        let files = Files::new(1);
        let world = world(&files).await;
        let config = config(&world, &files, RoutePolicy::PreferStorage);
        let (proxy, session) = proxied(&world, config).await;
        let stuck = Stuck::begin(&world, &session, 6).await;
        if is_silent {
            proxy.freeze();
        } else {
            proxy.close();
        }
        until("requests to move", || {
            session.report().control == Some(Route::Storage)
        })
        .await;
        stuck.go_on(&world, &session).await;
        let report = in_time("the close", session.close()).await.unwrap();
        assert_eq!(report.sent.storage.bytes, 60_000_000, "{report:?}");
        assert_eq!(world.service.store("db1").held.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_needs_no_network() {
    let files = Files::new(1);
    let world = world(&files).await;
    let mut config = config(&world, &files, RoutePolicy::StorageOnly);
    // Nobody is there.
    config.server = "127.0.0.1:1".to_owned();
    let session = in_time("the session", Session::connect(config))
        .await
        .unwrap();
    let body = body(3_000_000, 8);
    let name = put(&session, &body).await;
    assert_eq!(session.get(name, None).await.unwrap(), body);
    assert_eq!(session.list(ObjectKind::Pack).await.unwrap().len(), 1);
    let report = in_time("the close", session.close()).await.unwrap();
    assert_eq!(report.network().objects, 0, "{report:?}");
    assert_eq!(report.control, Some(Route::Storage));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_does_not_go_on_when_objects_were_removed_meanwhile() {
    let world = World::with(|_, options| options.data_ports = DataPorts::Designated).await;
    let (proxy, session) = proxied(&world, world.client("db1")).await;
    let store = world.service.store("db1");
    store.removals.fetch_add(1, Ordering::SeqCst);
    proxy.passed.lock().unwrap()[0].abort();
    until("the session's end", || session.failure().is_some()).await;
    let failure = session.failure();
    assert!(
        matches!(failure, Some(Error::Removed { .. })),
        "{failure:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_has_the_last_word_about_routes() {
    let files = Files::new(1);
    let world = World::with(|_, options| {
        options.pool = Some(files.server());
        options.route_ceiling = RoutePolicy::RequireStorage;
    })
    .await;
    let session = Session::connect(config(&world, &files, RoutePolicy::PreferStorage));
    let session = session.await.unwrap();
    assert_eq!(session.policy(), RoutePolicy::RequireStorage);
    put(&session, &body(100, 9)).await;
    let report = in_time("the close", session.close()).await.unwrap();
    assert_eq!(report.network().objects, 0, "{report:?}");
    let refused = Session::connect(config(&world, &files, RoutePolicy::Network)).await;
    assert!(
        matches!(&refused, Err(Error::Refused { text, .. }) if text.contains("route-ceiling")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_when_its_server_stops_in_good_order_and_starts_again() {
    let mut world = World::new().await;
    let session = Session::connect(world.client("db1")).await.unwrap();
    let (addr, ca, service) = (world.addr, world.ca.clone(), Arc::clone(&world.service));
    let body = body(3_000_000, 10);
    for _ in 0..3 {
        // A call is under way at any time.
        let calls = tokio::spawn({
            let session = session.clone();
            async move {
                for _ in 0..200 {
                    session.list(ObjectKind::Pack).await?;
                }
                Ok::<_, Error>(())
            }
        });
        in_time("the stop", world.stop()).await;
        world = World::again(addr, ca.clone(), Arc::clone(&service), |_| ()).await;
        in_time("the calls", calls).await.unwrap().unwrap();
    }
    let name = put(&session, &body).await;
    assert_eq!(session.get(name, None).await.unwrap(), body);
    in_time("the close", session.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_is_cut_says_nothing_for_good() {
    let world = World::with(|_, options| options.data_ports = DataPorts::Designated).await;
    let (proxy, session) = proxied(&world, world.client("db1")).await;
    until("three connections", || proxy.count() == 3).await;
    let (addr, ca, service) = (world.addr, world.ca.clone(), Arc::clone(&world.service));
    world.kill().await;
    // The proxy takes connections all the same, and drops each of them as soon as it is asked for TLS.
    until("handshakes that were cut", || proxy.count() > 3).await;
    assert!(session.failure().is_none(), "{:?}", session.failure());
    let _world = World::again(addr, ca, service, |_| ()).await;
    in_time("a list", session.list(ObjectKind::Pack))
        .await
        .unwrap();
    in_time("the close", session.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_lost_while_there_is_no_line_is_left_and_joined_again() {
    let files = files();
    let server = world(&files).await;
    let config = config(&server, &files, RoutePolicy::StorageOnly);
    let session = Session::connect(config).await.unwrap();
    let (addr, ca, service) = (server.addr, server.ca.clone(), Arc::clone(&server.service));
    in_time("the stop", server.stop()).await;
    let device = Away::pull(&files);
    until("the pool to be left", || session.pool().is_none()).await;
    device.returns();
    let _server = World::again(addr, ca, service, |options| {
        options.pool = Some(files.server());
    })
    .await;
    let body = body(3_000_000, 11);
    let name = put(&session, &body).await;
    assert_eq!(session.get(name, None).await.unwrap(), body);
    in_time("the close", session.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_says_so_to_sessions_through_the_pool_too() {
    let files = Files::new(1);
    let world = world(&files).await;
    let mut config = config(&world, &files, RoutePolicy::StorageOnly);
    config.route_wait = Duration::ZERO;
    let session = Session::connect(config).await.unwrap();
    in_time("the stop", world.stop()).await;
    until("the session's end", || session.failure().is_some()).await;
    let failure = session.failure().map(|failure| failure.to_string());
    let says_so = |failure: &String| failure.contains("the server is shutting down");
    assert!(failure.as_ref().is_some_and(says_so), "{failure:?}");
}

#[tokio::test]
async fn a_session_with_nothing_to_do_keeps_its_connections() {
    let world = World::with(|_, options| options.data_ports = DataPorts::Designated).await;
    let (proxy, session) = proxied(&world, world.client("db1")).await;
    until("three connections", || proxy.count() == 3).await;
    // Longer than anyone may be silent.
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    tokio::time::resume();
    in_time("a list", session.list(ObjectKind::Pack))
        .await
        .unwrap();
    let report = in_time("the close", session.close()).await.unwrap();
    assert_eq!((proxy.count(), &report.changes[..]), (3, &[][..]));
}
