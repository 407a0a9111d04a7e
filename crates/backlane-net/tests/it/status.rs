//! How sessions stand while they run, as both of their sides see them.

use crate::{
    routes::{Away, Stuck, files},
    service::name_of,
    storage::{Files, body, config, world},
    world::{in_time, until},
};
use backlane_net::{ServerStatus, Session, SessionStatus};
use backlane_proto::{
    ObjectKind, PackContents, Route, RoutePolicy,
    calls::CALLS_MAX,
    report::{Change, Traffic},
};

const PREFER: RoutePolicy = RoutePolicy::PreferStorage;

fn only(server: Option<ServerStatus>) -> SessionStatus {
    let mut sessions = server.unwrap().sessions;
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    sessions.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_under_way_are_seen_by_both_sides() {
    let files = Files::new(1);
    let world = world(&files).await;
    let session = Session::connect(config(&world, &files, PREFER))
        .await
        .unwrap();
    let mut stuck = Vec::new();
    for seed in 1..=3 {
        stuck.push(Stuck::begin(&world, &session, seed).await);
    }
    // What can be on its way is, and nothing moves.
    until("the ring to be full", || {
        let stream = session.status().storage.stream;
        let is_full = stream.is_some_and(|it| it.credits == 0 && it.frames_outstanding > 0);
        // The ring may be full before the server has heard of the last one.
        is_full && only(world.view.status()).calls == 3
    })
    .await;
    let (here, there) = (session.status(), only(world.view.status()));
    assert_eq!((here.calls, there.calls), (3, 3));
    assert!(here.storage.queued > Some(0), "{here:?}");
    for (sent, what) in [(here.storage.sent, &here), (there.storage.received, &there)] {
        let is_part = sent.objects < 3 && (1..180_000_000).contains(&sent.bytes);
        assert!(is_part, "{what:?}");
        assert_eq!((what.host.as_str(), what.policy), ("db1", PREFER));
        assert_eq!(what.control, Some(Route::Network));
        assert!(what.network.down.is_none() && what.storage.down.is_none());
    }
    assert!(there.id.is_some() && there.storage.stream.is_some());
    for stuck in stuck {
        stuck.go_on(&world, &session).await;
    }
    let (here, there) = (session.status(), only(world.view.status()));
    let whole = Traffic {
        objects: 3,
        bytes: 180_000_000,
    };
    for (one, other) in [(&here, &there), (&there, &here)] {
        assert_eq!(one.storage.sent, whole);
        assert_eq!(other.storage.received, whole);
        assert_eq!(one.network.sent, Traffic::default());
        assert!(one.changes.is_empty(), "{one:?}");
    }
    in_time("the close", session.close()).await.unwrap();
    assert!(world.view.status().unwrap().sessions.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_for_their_turn_are_told_from_those_under_way() {
    let world = crate::world::World::new().await;
    let session = Session::connect(world.client("db1")).await.unwrap();
    let store = world.service.store("db1");
    let all = store.gate.available_permits();
    store.gate.forget_permits(all);
    let calls = CALLS_MAX as usize;
    let puts: Vec<_> = (0..calls + 3)
        .map(|seed| {
            let (session, body) = (session.clone(), body(1000, seed as u8));
            let name = name_of(ObjectKind::Pack, &body);
            tokio::spawn(async move { session.put(name, PackContents::Data, body).await })
        })
        .collect();
    until("three calls to wait", || {
        let status = session.status();
        (status.calls, status.calls_waiting) == (calls, Some(3))
    })
    .await;
    store.gate.add_permits(1_000_000);
    for put in puts {
        in_time("a put", put).await.unwrap().unwrap();
    }
    assert_eq!(session.status().calls_waiting, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_seen_by_both_sides_with_its_reason_and_facts() {
    let files = files();
    let world = world(&files).await;
    let session = Session::connect(config(&world, &files, PREFER))
        .await
        .unwrap();
    let stuck = Stuck::begin(&world, &session, 1).await;
    let device = Away::pull(&files);
    for status in [
        &(|| session.status()) as &dyn Fn() -> SessionStatus,
        &|| only(world.view.status()),
    ] {
        until("storage to be lost", || status().storage.down.is_some()).await;
        let status = status();
        let lost = status.changes.iter().any(
            |it| matches!(&it.change, Change::Lost(Route::Storage, _, facts) if !facts.is_empty()),
        );
        assert!(lost, "{status:?}");
        assert!(status.storage.since < status.network.since, "{status:?}");
        assert!(status.storage.stream.is_none(), "{status:?}");
    }
    stuck.go_on(&world, &session).await;
    let status = session.status();
    assert_eq!(status.repeated.map(|it| it.objects), Some(1));
    assert_eq!(status.network.sent.bytes, 60_000_000);
    device.returns();
    until("storage to be taken back", || {
        let changes = session.status().changes;
        let newest = changes.last().map(|last| last.change.clone());
        newest == Some(Change::TakenBack(Route::Storage))
    })
    .await;
}
