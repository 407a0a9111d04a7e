//! Sessions whose bodies go through a pool: files that both sides open, with all of the storage sockets' machinery.

use crate::{
    devices::Freezer,
    service::name_of,
    world::{Proxy, World, in_time, until},
};
use backlane_net::{
    ClientConfig, DESIGNATED_STORAGE_PORT, EngineChoice, EngineKind, Error, PoolChoice, ServerPool,
    Session,
};
use backlane_proto::{Event, ObjectKind, ObjectName, PackContents, Reason, RoutePolicy};
use bytes::Bytes;
use std::{path::PathBuf, sync::atomic::Ordering, time::Duration};
use storage_socket::{
    FormatOptions, Pool, PoolOptions, Port, Protection, Role, SlotIndex, Stream, StreamOptions,
    Timeouts,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use uuid::Uuid;

/// A pool in files.
pub(crate) struct Files {
    pub(crate) dir: TempDir,
    pub(crate) devices: Vec<PathBuf>,
    pub(crate) uuid: Uuid,
    pub(crate) engine: EngineChoice,
}

impl Files {
    pub(crate) fn new(devices: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let devices = (0..devices)
            .map(|n| dir.path().join(format!("device{n}")))
            .collect();
        Self::at(dir, devices, 256 << 20, timeouts())
    }

    /// A pool in these files, with the locks in a directory.
    pub(crate) fn at(dir: TempDir, devices: Vec<PathBuf>, bytes: u64, timeouts: Timeouts) -> Self {
        let mut options = FormatOptions::new("test");
        options.slots = 16;
        options.file_bytes = Some(bytes);
        options.timeouts = timeouts;
        let info = storage_socket::format(&devices, &options).unwrap();
        let uuid = info.uuid;
        Self {
            dir,
            devices,
            uuid,
            engine: EngineChoice::Auto,
        }
    }

    pub(crate) fn server(&self) -> ServerPool {
        ServerPool {
            uuid: Some(self.uuid),
            devices: self.devices.clone(),
            lock_dir: self.dir.path().to_owned(),
            engine: self.engine,
        }
    }

    pub(crate) fn client(&self, slots: &[u32]) -> PoolChoice {
        PoolChoice {
            uuid: None,
            devices: self.devices.clone(),
            slots: slots.to_vec(),
            lock_dir: self.dir.path().to_owned(),
            engine: self.engine,
        }
    }
}

/// Short where a test waits for it, long where only a busy machine would feel it.
pub(crate) fn timeouts() -> Timeouts {
    Timeouts {
        heartbeat: Duration::from_millis(50),
        claim: Duration::from_millis(100),
        stale: Duration::from_millis(100),
        linger: Duration::from_secs(3),
        ..Timeouts::default()
    }
}

pub(crate) async fn world(files: &Files) -> World {
    World::with(|_, options| options.pool = Some(files.server())).await
}

pub(crate) fn config(world: &World, files: &Files, policy: RoutePolicy) -> ClientConfig {
    let mut config = world.client("db1");
    config.pool = Some(files.client(&[1, 2, 3, 4]));
    config.policy = policy;
    config
}

pub(crate) fn body(bytes: usize, seed: u8) -> Bytes {
    (0..bytes)
        .map(|n| (n as u8).wrapping_mul(31).wrapping_add((n >> 8) as u8) ^ seed)
        .collect()
}

pub(crate) async fn put(session: &Session, body: &Bytes) -> ObjectName {
    let name = name_of(ObjectKind::Pack, body);
    let stored = session.put(name, PackContents::Data, body.clone());
    in_time("a put", stored).await.unwrap();
    name
}

/// A server that has been told of a doorbell looks once a heartbeat: a client that doesn't ring yet waits for that.
#[tokio::test(flavor = "multi_thread")]
async fn storage_comes_up_without_waiting_for_a_heartbeat() {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("device");
    let slow = Timeouts::default();
    let files = Files::at(dir, vec![device], 256 << 20, slow);
    let world = world(&files).await;
    let mut shortest = slow.heartbeat;
    // Each comes when the server has just looked, if the one before had to wait for that.
    for _ in 0..4 {
        let begun = std::time::Instant::now();
        let session = Session::connect(config(&world, &files, RoutePolicy::RequireStorage));
        let session = in_time("a session", session).await.unwrap();
        shortest = shortest.min(begun.elapsed());
        session.close().await.unwrap();
    }
    assert!(shortest < slow.heartbeat / 2, "{shortest:?}");
    world.stop().await;
}

/// A client that waits for a ring when no ring can come any more looks once a heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_does_not_wait_for_a_heartbeat() {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("device");
    let slow = Timeouts {
        heartbeat: Duration::from_secs(9),
        ..Timeouts::default()
    };
    let files = Files::at(dir, vec![device], 256 << 20, slow);
    let world = world(&files).await;
    let body = body(500, 3);
    for _ in 0..30 {
        let session = Session::connect(config(&world, &files, RoutePolicy::RequireStorage));
        let session = in_time("a session", session).await.unwrap();
        put(&session, &body).await;
        let begun = std::time::Instant::now();
        session.close().await.unwrap();
        let took = begun.elapsed();
        assert!(took < slow.heartbeat / 2, "{took:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn require_storage_carries_every_body_through_the_pool() {
    for devices in [1, 3] {
        let files = Files::new(devices);
        let world = world(&files).await;
        let config = config(&world, &files, RoutePolicy::RequireStorage);
        let session = Session::connect(config).await.unwrap();
        assert_eq!(session.routes().storage, Ok(()));
        let mut sum = 0;
        for bytes in [0, 1, 100, 1_048_576, 1_048_577, 20_000_000] {
            let body = body(bytes, 1);
            let name = put(&session, &body).await;
            let read = in_time("a get", session.get(name, None)).await.unwrap();
            assert_eq!(read, body);
            sum += bytes as u64;
        }
        let report = in_time("the close", session.close()).await.unwrap();
        assert_eq!(report.network().objects, 0, "{report:?}");
        assert_eq!(
            (report.sent.storage.objects, report.sent.storage.bytes),
            (6, sum)
        );
        assert_eq!(
            (
                report.received.storage.objects,
                report.received.storage.bytes
            ),
            (6, sum)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_do_their_io_with_the_engine_that_was_chosen() {
    for (choice, kind) in [
        (EngineChoice::IoUring, EngineKind::IoUring),
        (EngineChoice::ThreadPool, EngineKind::ThreadPool),
    ] {
        let mut files = Files::new(1);
        files.engine = choice;
        let world = world(&files).await;
        let config = config(&world, &files, RoutePolicy::RequireStorage);
        let session = Session::connect(config).await.unwrap();
        assert_eq!((world.engine, session.engine()), (Some(kind), Some(kind)));
        let body = body(3_000_000, 8);
        let name = put(&session, &body).await;
        assert_eq!(session.get(name, None).await.unwrap(), body);
        in_time("the close", session.close()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefer_storage_gives_the_network_small_bodies_within_their_share() {
    let files = Files::new(1);
    let world = world(&files).await;
    let config = config(&world, &files, RoutePolicy::PreferStorage);
    let session = Session::connect(config).await.unwrap();
    assert_eq!(session.routes().storage, Ok(()));
    // Small, and nothing was carried by storage yet.
    put(&session, &body(100, 2)).await;
    put(&session, &body(8_000_000, 2)).await;
    put(&session, &body(1000, 2)).await;
    let report = in_time("the close", session.close()).await.unwrap();
    assert_eq!(report.sent.storage.bytes, 8_000_100);
    assert_eq!(report.reasons[&Reason::Small].bytes, 1000);
    assert!(report.network().bytes * 50 < report.storage().bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bodies_go_both_ways_at_once() {
    let files = Files::new(2);
    let world = world(&files).await;
    let config = config(&world, &files, RoutePolicy::RequireStorage);
    let session = Session::connect(config).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..80_usize {
        let session = session.clone();
        calls.spawn(async move {
            let body = body(n * 20_000, 3);
            let name = put(&session, &body).await;
            assert_eq!(session.get(name, None).await.unwrap(), body);
        });
    }
    while let Some(done) = in_time("every call", calls.join_next()).await {
        done.unwrap();
    }
    in_time("the close", session.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_share_a_pool_and_leave_it_as_they_found_it() {
    let files = Files::new(1);
    let world = world(&files).await;
    // The rings of a session take a quarter of the pool: more rounds than fit prove that segments return.
    for round in 0..5 {
        let connect = || Session::connect(config(&world, &files, RoutePolicy::RequireStorage));
        let (one, two) =
            in_time("two sessions", async { tokio::join!(connect(), connect()) }).await;
        let (one, two) = (one.unwrap(), two.unwrap());
        let name = put(&one, &body(3_000_000, round)).await;
        assert_eq!(two.get(name, None).await.unwrap().len(), 3_000_000);
        let (one, two) = tokio::join!(one.close(), two.close());
        one.unwrap();
        two.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_pool_is_never_used() {
    let (files, other) = (Files::new(1), Files::new(1));
    let server = world(&files).await;
    // The other pool is alive, with a server of its own.
    let _other_server = world(&other).await;
    let mut config = config(&server, &files, RoutePolicy::PreferStorage);
    config.pool = Some(other.client(&[1]));
    let session = in_time("the session", Session::connect(config.clone()))
        .await
        .unwrap();
    let down = session.routes().storage.unwrap_err();
    assert_eq!(down.reason, Reason::OtherPool, "{down}");
    assert!(down.detail.contains(&files.uuid.to_string()), "{down}");
    assert!(down.detail.contains(&other.uuid.to_string()), "{down}");
    // Each body carries the reason, also what the server sent: it only knows that storage never came.
    let name = put(&session, &body(100_000, 4)).await;
    session.get(name, None).await.unwrap();
    assert_eq!(session.report().reasons[&Reason::OtherPool].objects, 2);
    // Under require-storage it is the error.
    config.pool = Some(other.client(&[2]));
    config.policy = RoutePolicy::RequireStorage;
    let refused = in_time("the refusal", Session::connect(config))
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::NoRoute {
                reason: Reason::OtherPool,
                ..
            }
        ),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_does_not_wait_for_storage_longer_than_it_may() {
    let (files, asleep) = (Files::new(1), Files::new(1));
    let server = world(&files).await;
    let mut config = config(&server, &files, RoutePolicy::PreferStorage);
    // Nobody coordinates this pool.
    config.pool = Some(asleep.client(&[1]));
    config.storage_wait = Duration::from_millis(10);
    let session = in_time("the session", Session::connect(config))
        .await
        .unwrap();
    assert_eq!(
        session.routes().storage.unwrap_err().reason,
        Reason::Pending
    );
    put(&session, &body(100_000, 4)).await;
    assert_eq!(session.report().reasons[&Reason::Pending].objects, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_of_another_host_is_refused() {
    let files = Files::new(1);
    let world = world(&files).await;
    let mut config = config(&world, &files, RoutePolicy::RequireStorage);
    config.pool = Some(files.client(&[9]));
    let refused = in_time("the refusal", Session::connect(config))
        .await
        .unwrap_err();
    let why = refused.to_string();
    assert!(
        matches!(
            refused,
            Error::NoRoute {
                reason: Reason::SlotRefused,
                ..
            }
        ),
        "{why}"
    );
}

/// A stream on the designated port, from this member.
async fn designated(pool: &Pool) -> std::io::Result<Stream> {
    let options = StreamOptions {
        frame_bytes: 64 * 1024,
        window_bytes: 256 * 1024,
        depth: 1,
        ..StreamOptions::new(Protection::Checksum)
    };
    let port = Port(DESIGNATED_STORAGE_PORT);
    Stream::connect_async(pool, port, options, Duration::from_secs(20)).await
}

/// Whether the stream stands: ended by the server it can be read to its end, and nothing else is ever said on it.
async fn stands(stream: std::io::Result<Stream>) -> Option<Stream> {
    let mut stream = stream.ok()?;
    let ends = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut [0])).await;
    ends.is_err().then_some(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_has_four_streams_on_the_designated_port_whatever_others_have() {
    let files = Files::new(1);
    let _world = world(&files).await;
    let member = |slot| {
        let slots = vec![SlotIndex(slot)];
        let options = PoolOptions::new(Role::Member { slots }, "db1", files.dir.path());
        Pool::open(&files.devices, options).unwrap()
    };
    let (greedy, other) = (member(1), member(2));
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(in_time("a stream", designated(&greedy)).await);
    }
    let fifth = in_time("an answer", designated(&greedy)).await;
    assert!(stands(fifth).await.is_none());
    let of_other = in_time("an answer", designated(&other)).await;
    assert!(stands(of_other).await.is_some());
    for stream in held.drain(..) {
        assert!(stands(stream).await.is_some());
    }
    // They have ended, and there is room for others.
    let another = async { while stands(designated(&greedy).await).await.is_none() {} };
    in_time("another stream", another).await;
    tokio::task::spawn_blocking(move || (greedy.close(), other.close()))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_devices_are_named_and_the_network_serves() {
    let files = Files::new(1);
    let world = world(&files).await;
    let mut config = config(&world, &files, RoutePolicy::PreferStorage);
    let pool = config.pool.as_mut().unwrap();
    pool.devices = vec!["/nonexistent/lun7".into()];
    let session = in_time("the session", Session::connect(config))
        .await
        .unwrap();
    let down = session.routes().storage.unwrap_err();
    assert_eq!(down.reason, Reason::PoolNotFound);
    assert!(down.detail.contains("/nonexistent/lun7"), "{down}");
    let name = put(&session, &body(100_000, 5)).await;
    session.get(name, None).await.unwrap();
    let report = session.close().await.unwrap();
    assert_eq!(report.reasons[&Reason::PoolNotFound].objects, 2);
    assert_eq!(report.network().objects, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_silent_on_storage_is_asked_over_the_network_before_it_counts_as_dead() {
    let (mounted, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(freezer) = Freezer::new(mounted.path()) else {
        return;
    };
    let millis = Duration::from_millis;
    let timeouts = Timeouts {
        dead: millis(3000),
        fence: millis(300),
        io_deadline: millis(2500),
        ..timeouts()
    };
    let devices = vec![freezer.mount.join("device")];
    let files = Files::at(locks, devices, 160 << 20, timeouts);
    let world = world(&files).await;
    let config = config(&world, &files, RoutePolicy::RequireStorage);
    let session = Session::connect(config).await.unwrap();
    // Neither side's counter reaches the device any more; both can still be read.
    freezer.set("--freeze");
    tokio::time::sleep(timeouts.dead * 3 / 2).await;
    assert_eq!(session.routes().storage, Ok(()));
    freezer.set("--unfreeze");
    let body = body(3_000_000, 9);
    let name = put(&session, &body).await;
    assert_eq!(session.get(name, None).await.unwrap(), body);
    in_time("the close", session.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_loses_its_events_goes_on_and_gets_them_back() {
    let files = Files::new(1);
    let world = world(&files).await;
    let proxy = Proxy::new(world.addr).await;
    let mut config = config(&world, &files, RoutePolicy::RequireStorage);
    config.server = proxy.addr.to_string();
    config.route_wait = Duration::ZERO;
    let session = Session::connect(config).await.unwrap();
    let mut events = session.events();
    until("the events connection", || proxy.count() == 2).await;
    proxy.passed.lock().unwrap()[1].abort();
    until("another one", || proxy.count() == 3).await;
    for round in 0..3 {
        let body = body(3_000_000, round);
        let name = put(&session, &body).await;
        assert_eq!(session.get(name, None).await.unwrap(), body);
    }
    // What the server says comes by the new connection.
    in_time("the stop", world.stop()).await;
    while in_time("the end of events", events.next()).await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_dropped_midway_through_the_pool_leaves_nothing() {
    let files = Files::new(1);
    let world = world(&files).await;
    let store = world.service.store("db1");
    let mut config = config(&world, &files, RoutePolicy::RequireStorage);
    config.route_wait = Duration::ZERO;
    let session = Session::connect(config).await.unwrap();
    let all = store.gate.available_permits();
    store.gate.forget_permits(all);
    let large = body(60_000_000, 6);
    let name = name_of(ObjectKind::Pack, &large);
    let stored = tokio::spawn({
        let (session, large) = (session.clone(), large.clone());
        async move { session.put(name, PackContents::Data, large).await }
    });
    store.gate.add_permits(2);
    until("two pieces taken", || store.gate.available_permits() == 0).await;
    stored.abort();
    store.gate.add_permits(1_000_000);
    until("the sink dropped", || {
        store.abandoned.load(Ordering::SeqCst) == 1
    })
    .await;
    put(&session, &large).await;
    in_time("the close", session.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_under_a_body_is_noticed_at_once() {
    let files = Files::new(1);
    let world = world(&files).await;
    let store = world.service.store("db1");
    let mut config = config(&world, &files, RoutePolicy::RequireStorage);
    config.route_wait = Duration::ZERO;
    let session = Session::connect(config).await.unwrap();
    let all = store.gate.available_permits();
    store.gate.forget_permits(all);
    let large = body(60_000_000, 7);
    let name = name_of(ObjectKind::Pack, &large);
    let stored = tokio::spawn({
        let session = session.clone();
        async move { session.put(name, PackContents::Data, large).await }
    });
    until("a sink", || store.open_sinks.load(Ordering::SeqCst) == 1).await;
    world.kill().await;
    let lost = in_time("the put's end", stored).await.unwrap().unwrap_err();
    assert!(
        matches!(lost, Error::Lost { .. } | Error::RouteFailed { .. }),
        "{lost:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_logs_the_end_of_storage_to_its_client() {
    let files = Files::new(1);
    let world = world(&files).await;
    let mut config = config(&world, &files, RoutePolicy::PreferStorage);
    config.route_wait = Duration::ZERO;
    let session = Session::connect(config).await.unwrap();
    let mut events = session.events();
    in_time("the stop", world.stop()).await;
    let mut seen = Vec::new();
    while let Some(event) = in_time("an event", events.next()).await {
        seen.push(event);
    }
    // The session's end may be faster than its log; nothing else is ever said.
    assert!(
        seen.iter().all(|event| matches!(event, Event::Log { .. })),
        "{seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_whose_owner_died_on_another_host_is_taken_once_that_is_dead() {
    let short = Duration::from_secs(1);
    let timeouts = Timeouts {
        fence: short,
        io_deadline: short,
        // Longer than everything else that a claim waits for.
        dead: 12 * short,
        ..timeouts()
    };
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("device");
    let files = Files::at(dir, vec![device.clone()], 32 << 20, timeouts);
    let first = world(&files).await;
    let serving = std::fs::read(&device).unwrap();
    first.stop().await;
    // Its last words are lost, and this host doesn't know its locks.
    std::fs::write(&device, serving).unwrap();
    let locks = tempfile::tempdir().unwrap();
    let second = World::with(|_, options| {
        let lock_dir = locks.path().to_owned();
        let pool = files.server();
        options.pool = Some(ServerPool { lock_dir, ..pool });
    });
    let second = in_time("the claim", second).await;
    let config = config(&second, &files, RoutePolicy::RequireStorage);
    let session = Session::connect(config).await.unwrap();
    put(&session, &body(1000, 1)).await;
}
