//! Looking at routes: probes, the server's view of them, and what became of every connection.

use crate::{
    hostile::Peer,
    storage::{Files, config, world},
    world::{Proxy, World, in_time, until},
};
use backlane_net::{ClientConfig, DataPorts, Error, Session, Survey};
use backlane_proto::{
    Answer, CallId, ErrorCode, Health, ObjectKind, PoolStatus, Probe, ProbeDirection, Reason,
    Request, Route, RoutePolicy, ServerRoutes, message::PROBE_BYTES_MAX,
};
use std::{sync::atomic::Ordering, time::Duration};

const BOTH_WAYS: [ProbeDirection; 2] = [ProbeDirection::ToServer, ProbeDirection::ToClient];

fn probe(direction: ProbeDirection, bytes: u64, route: Route) -> Probe {
    Probe {
        direction,
        bytes,
        route,
    }
}

async fn session(world: &World, files: &Files, policy: RoutePolicy) -> Session {
    let connecting = Session::connect(config(world, files, policy));
    in_time("the session", connecting).await.unwrap()
}

async fn survey(config: ClientConfig) -> Survey {
    in_time("a survey", Session::survey(config)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_goes_either_way_by_the_route_that_it_names_and_leaves_nothing() {
    let files = Files::new(1);
    let world = world(&files).await;
    let session = session(&world, &files, RoutePolicy::PreferStorage).await;
    for direction in BOTH_WAYS {
        for route in [Route::Network, Route::Storage] {
            let probe = probe(direction, 3_000_000, route);
            let took = in_time("a probe", session.probe(probe)).await.unwrap();
            assert!(took > Duration::ZERO, "{probe:?}");
        }
    }
    assert_eq!(session.list(ObjectKind::Pack).await.unwrap(), []);
    let report = in_time("the close", session.close()).await.unwrap();
    for carried in [report.sent, report.received] {
        assert_eq!(carried.network.bytes, 3_000_000, "{report:?}");
        assert_eq!(carried.storage.bytes, 3_000_000, "{report:?}");
    }
    assert_eq!(report.reasons[&Reason::Probe].objects, 2, "{report:?}");
    assert_eq!(
        world.service.store("db1").open_sinks.load(Ordering::SeqCst),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_keeps_to_the_policy_and_to_its_bound_whoever_asks() {
    let files = Files::new(1);
    let world = world(&files).await;
    let session = session(&world, &files, RoutePolicy::RequireStorage).await;
    for direction in BOTH_WAYS {
        let refused = session.probe(probe(direction, 10, Route::Network)).await;
        assert!(
            matches!(
                &refused,
                Err(Error::NoRoute {
                    reason: Reason::Policy,
                    ..
                })
            ),
            "{refused:?}"
        );
        let large = probe(direction, PROBE_BYTES_MAX + 1, Route::Storage);
        let refused = session.probe(large).await;
        assert!(
            matches!(
                &refused,
                Err(Error::Server {
                    code: ErrorCode::BadBody,
                    ..
                })
            ),
            "{refused:?}"
        );
    }
    // A client that doesn't keep to it is refused by the server.
    let mut peer = Peer::host(&world, "db1").await;
    peer.welcomed(RoutePolicy::RequireStorage).await;
    for (direction, call) in BOTH_WAYS.into_iter().zip(1..) {
        let by_network = probe(direction, 10, Route::Network);
        peer.ask(call, Request::Probe(by_network)).await;
        let (answered, answer) = peer.answer().await;
        assert_eq!(answered, CallId(call));
        assert!(
            matches!(&answer, Answer::Failed(failure) if failure.reason == Some(Reason::Policy)),
            "{answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_whose_route_fails_under_it_ends_and_is_not_made_again() {
    for direction in BOTH_WAYS {
        // Data connections come to the designated port, and so through the proxy.
        let world = World::with(|_, options| options.data_ports = DataPorts::Designated).await;
        let proxy = Proxy::new(world.addr).await;
        let mut config = world.client("db1");
        config.server = proxy.addr.to_string();
        let session = Session::connect(config).await.unwrap();
        until("three connections", || proxy.count() == 3).await;
        proxy.freeze();
        let probing = tokio::spawn({
            let session = session.clone();
            async move {
                session
                    .probe(probe(direction, PROBE_BYTES_MAX, Route::Network))
                    .await
            }
        });
        until("the probe to be under way", || session.calls() == 1).await;
        // All but control, the first: which of the others carries data isn't known.
        for passing in &proxy.passed.lock().unwrap()[1..] {
            passing.abort();
        }
        let failed = in_time("its end", probing).await.unwrap();
        assert!(
            matches!(
                &failed,
                Err(Error::RouteFailed {
                    reason: Reason::NetworkDown,
                    ..
                })
            ),
            "{failed:?}"
        );
        assert_eq!(session.report().repeated.objects, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_says_how_it_sees_the_routes() {
    let files = Files::new(1);
    let world = world(&files).await;
    let pool = Some(PoolStatus {
        uuid: files.uuid,
        down: None,
    });
    let session = session(&world, &files, RoutePolicy::PreferStorage).await;
    let routes = in_time("an answer", session.server_routes()).await.unwrap();
    let health = Health::WELL;
    let want = ServerRoutes { health, pool };
    assert_eq!(routes, want);
    // The server waits for a client that will not come through the pool.
    let session = Session::connect(world.client("db1")).await.unwrap();
    let routes = in_time("an answer", session.server_routes()).await.unwrap();
    assert_eq!(routes.health.storage, Err(Reason::Pending));
    let without_pool = World::new().await;
    let session = Session::connect(without_pool.client("db1")).await.unwrap();
    let routes = in_time("an answer", session.server_routes()).await.unwrap();
    let storage = Err(Reason::ServerHasNoPool);
    let health = Health { storage, ..health };
    let pool = None;
    assert_eq!(routes, ServerRoutes { health, pool });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survey_tries_requests_by_both_mechanisms_and_bodies_by_both() {
    let files = Files::new(1);
    let world = world(&files).await;
    for policy in [
        RoutePolicy::PreferStorage,
        RoutePolicy::RequireStorage,
        RoutePolicy::Network,
        RoutePolicy::StorageOnly,
    ] {
        let found = survey(config(&world, &files, policy)).await;
        let ruled_out = |allows: fn(RoutePolicy, Route) -> bool| {
            let up = |route| match allows(policy, route) {
                true => Ok(()),
                false => Err(Reason::Policy),
            };
            Health {
                network: up(Route::Network),
                storage: up(Route::Storage),
            }
        };
        assert_eq!(
            found.control.health(),
            ruled_out(RoutePolicy::allows_control),
            "{policy}"
        );
        assert_eq!(
            found.data.health(),
            ruled_out(RoutePolicy::allows),
            "{policy}"
        );
        let session = found.session.unwrap();
        let there = in_time("an answer", session.server_routes()).await.unwrap();
        assert_eq!(there.health, found.data.health(), "{policy}");
        in_time("the close", session.close()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survey_says_why_there_is_no_session() {
    let files = Files::new(1);
    let server = world(&files).await;
    let mut config = config(&server, &files, RoutePolicy::RequireStorage);
    let pool = config.pool.as_mut().unwrap();
    pool.devices = vec!["/nonexistent/lun7".into()];
    in_time("the stop", server.stop()).await;
    let found = survey(config.clone()).await;
    assert!(found.session.is_none());
    let (network, storage) = (Err(Reason::Unreachable), Err(Reason::PoolNotFound));
    assert_eq!(found.control.health(), Health { network, storage });
    let network = Err(Reason::Policy);
    assert_eq!(found.data.health(), Health { network, storage });
    let named = found.control.storage.unwrap_err().detail;
    assert!(named.contains("/nonexistent/lun7"), "{named}");

    // A server of another authority doesn't let this host in.
    let other = World::new().await;
    config.server = other.addr.to_string();
    config.pool = None;
    let found = survey(config).await;
    let network = Err(Reason::Refused);
    let storage = Err(Reason::NoPool);
    assert_eq!(found.control.health(), Health { network, storage });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survey_finds_the_way_through_the_pool_when_there_is_no_network() {
    let files = Files::new(1);
    let world = world(&files).await;
    let mut config = config(&world, &files, RoutePolicy::PreferStorage);
    // Nobody listens there.
    config.server = "127.0.0.1:1".to_owned();
    let found = survey(config).await;
    let network = Err(Reason::Unreachable);
    let storage = Ok(());
    assert_eq!(found.control.health(), Health { network, storage });
    assert_eq!(found.data.health().storage, Ok(()));
    let session = found.session.unwrap();
    for direction in BOTH_WAYS {
        let probe = probe(direction, 3_000_000, Route::Storage);
        in_time("a probe", session.probe(probe)).await.unwrap();
    }
    in_time("the close", session.close()).await.unwrap();
}
