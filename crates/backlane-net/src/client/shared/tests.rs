//! Calls of a session whose line a test reads and answers.

use super::*;
use crate::client::call::{Wanted, make};
use backlane_proto::{
    ErrorCode, Failure, ObjectId, ObjectKind, ObjectName, PackContents, PoolStatus,
};
use bytes::Bytes;
use tokio::time::timeout;
use uuid::Uuid;

/// A session with a line that a test reads and answers.
pub(in crate::client) fn shared() -> (Shared, mpsc::UnboundedReceiver<FromClient>) {
    with_patience(Duration::from_secs(600))
}

fn with_patience(route_wait: Duration) -> (Shared, mpsc::UnboundedReceiver<FromClient>) {
    let (line, requests) = mpsc::unbounded_channel();
    let terms = Terms {
        server: "s:1".into(),
        host: "db1".into(),
        policy: RoutePolicy::PreferStorage,
        calls_max: 8,
        route_wait,
        limits: crate::Limits::default(),
    };
    let shared = Shared::new(terms, &Hand::new(false));
    shared.line_up(Route::Network, line);
    (shared, requests)
}

/// A put of four bytes under way.
fn putting(shared: &Arc<Shared>) -> tokio::task::JoinHandle<Result<(), Error>> {
    let name = ObjectName {
        kind: ObjectKind::Pack,
        id: ObjectId::NONE,
    };
    let wanted = Wanted::Put(name, PackContents::Data, Bytes::from_static(b"body"));
    let shared = Arc::clone(shared);
    tokio::spawn(async move { make(&shared, &wanted).await.map(drop) })
}

#[tokio::test]
async fn a_call_whose_pair_lets_go_before_it_says_why_is_made_again() {
    let (shared, mut requests) = shared();
    let shared = Arc::new(shared);
    let (chunks, gone) = mpsc::channel(1);
    drop(gone);
    shared.route_up(Route::Storage, chunks);
    let making = putting(&shared);
    let mut next_put = async || loop {
        let message = requests.recv().await.unwrap();
        if matches!(message.request, Request::Put { .. }) {
            return message.call;
        }
    };
    let first = next_put().await;
    shared.answered(first, Answer::Ready).unwrap();
    next_put().await;
    assert_eq!(shared.account.report().repeated.bytes, 4);
    making.abort();
}

/// The next put that is asked for, which is told that its body may come; calls that are given up are ended.
async fn next_put(
    shared: &Shared,
    requests: &mut mpsc::UnboundedReceiver<FromClient>,
) -> Option<Route> {
    loop {
        let next = timeout(Duration::from_secs(10), requests.recv()).await;
        let FromClient { call, request } = next.ok()??;
        let cancelled = Failure {
            code: ErrorCode::Cancelled,
            text: String::new(),
            reason: None,
        };
        match request {
            Request::Put { route, .. } => {
                shared.answered(call, Answer::Ready).unwrap();
                return Some(route);
            }
            _ => shared.answered(call, Answer::Failed(cancelled)).unwrap(),
        }
    }
}

#[tokio::test]
async fn a_call_without_patience_takes_the_route_that_is_left_and_waits_for_none() {
    let (shared, mut requests) = with_patience(Duration::ZERO);
    let shared = Arc::new(shared);
    let mut kept = Vec::new();
    let mut up = |route| {
        let (chunks, pair) = mpsc::channel(1);
        kept.push(pair);
        shared.route_up(route, chunks);
    };
    up(Route::Storage);
    up(Route::Network);
    let making = putting(&shared);
    let mut next = async || next_put(&shared, &mut requests).await;
    assert_eq!(next().await, Some(Route::Storage));
    let down = RouteDown::new(Reason::DeviceError, "lun7");
    shared.route_down(Route::Storage, &down);
    assert_eq!(next().await, Some(Route::Network));
    up(Route::Storage);
    shared.route_down(Route::Network, &RouteDown::new(Reason::NetworkDown, ""));
    assert_eq!(next().await, Some(Route::Storage));
    shared.route_down(Route::Storage, &down);
    let failed = making.await.unwrap();
    assert!(
        matches!(failed, Err(Error::RouteFailed { .. })),
        "{failed:?}"
    );
    let none = putting(&shared).await.unwrap();
    assert!(matches!(none, Err(Error::NoRoute { .. })), "{none:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_had_a_route_waits_for_the_next_as_long_as_for_the_first() {
    const LONG: Duration = Duration::from_secs(600);
    let (shared, mut requests) = with_patience(LONG);
    let shared = Arc::new(shared);
    let making = putting(&shared);
    for _ in 0..3 {
        tokio::time::sleep(LONG * 2 / 3).await;
        let (chunks, _kept) = mpsc::channel(1);
        shared.route_up(Route::Storage, chunks);
        let route = next_put(&shared, &mut requests).await;
        assert_eq!(route, Some(Route::Storage));
        shared.route_down(Route::Storage, &RouteDown::new(Reason::DeviceError, ""));
    }
    let began = Instant::now();
    let failed = making.await.unwrap();
    assert!(matches!(failed, Err(Error::NoRoute { .. })), "{failed:?}");
    assert_eq!(began.elapsed(), LONG);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_its_pair_each_time_is_not_sent_for_ever() {
    let (shared, mut requests) = shared();
    let shared = Arc::new(shared);
    let mut making = putting(&shared);
    let mut sent = 0;
    let failed = loop {
        let (chunks, _kept) = mpsc::channel(1);
        shared.route_up(Route::Storage, chunks);
        tokio::select! {
            failed = &mut making => break failed.unwrap(),
            _ = next_put(&shared, &mut requests) => sent += 1,
        }
        assert!(sent < 100, "it is sent for ever");
        shared.route_down(Route::Storage, &RouteDown::new(Reason::StreamReset, ""));
    };
    assert!(
        matches!(failed, Err(Error::RouteFailed { .. })),
        "{failed:?}"
    );
    assert!(sent > 8, "{sent}");
}

#[tokio::test]
async fn a_body_whose_route_the_server_has_lost_first_counts_as_repeated() {
    let (shared, mut requests) = shared();
    let shared = Arc::new(shared);
    let (chunks, _kept) = mpsc::channel(1);
    shared.route_up(Route::Storage, chunks);
    let making = putting(&shared);
    let first = requests.recv().await.unwrap().call;
    shared.answered(first, Answer::Ready).unwrap();
    let ended = Answer::Failed(Failure {
        code: ErrorCode::Route,
        text: String::new(),
        reason: Some(Reason::StreamReset),
    });
    shared.answered(first, ended).unwrap();
    let second = requests.recv().await.unwrap().request;
    assert!(matches!(second, Request::Put { .. }), "{second:?}");
    assert_eq!(shared.account.report().repeated.objects, 1);
    making.abort();
}

#[tokio::test]
async fn a_pair_whose_other_end_is_gone_is_left_with_the_first_body_that_is_refused() {
    let (shared, mut requests) = shared();
    let shared = Arc::new(shared);
    let (chunks, _kept) = mpsc::channel(1);
    let left = shared.route_up(Route::Storage, chunks);
    let making = putting(&shared);
    let call = requests.recv().await.unwrap().call;
    let refused = Answer::Failed(Failure {
        code: ErrorCode::Route,
        text: String::new(),
        reason: Some(Reason::DeviceError),
    });
    shared.answered(call, refused).unwrap();
    let down = RouteDown::new(Reason::DeviceError, "server s:1");
    assert_eq!(left.await.unwrap(), down);
    assert_eq!(shared.routes().storage, Err(down));
    making.abort();
}

#[tokio::test]
async fn what_the_server_says_of_its_pool_is_told_with_its_name_and_nothing_is_made_up() {
    let (shared, _requests) = shared();
    for (pool, detail) in [
        (None, "server s:1"),
        (Some("no device is left"), "server s:1: no device is left"),
    ] {
        let (chunks, _kept) = mpsc::channel(1);
        shared.route_up(Route::Storage, chunks);
        let health = Health {
            storage: Err(Reason::DeviceError),
            ..Health::WELL
        };
        let pool = pool.map(|text: &str| PoolStatus {
            uuid: Uuid::nil(),
            down: Some((Reason::DeviceError, text.to_owned())),
        });
        shared.server_lost(ServerRoutes { health, pool });
        let down = RouteDown::new(Reason::DeviceError, detail);
        assert_eq!(shared.routes().storage, Err(down));
    }
}

#[tokio::test]
async fn a_route_that_fails_is_told_to_the_calls_that_count_on_it_alone() {
    let (shared, _requests) = shared();
    let name = ObjectName {
        kind: ObjectKind::Pack,
        id: ObjectId::NONE,
    };
    let put = |route| {
        let contents = PackContents::Data;
        let bytes = 5;
        let put = Request::Put {
            name,
            contents,
            bytes,
            route,
        };
        shared.begin(put, None).unwrap()
    };
    let (mut storage, mut network) = (put(Route::Storage), put(Route::Network));
    let expected = Expected {
        route: None,
        bytes_max: 10,
        exact: false,
    };
    let get = Request::Get {
        name,
        range: None,
        routes: shared.health(),
    };
    let mut get = shared.begin(get, Some(expected)).unwrap();
    let (bytes, decision) = (10, Decision::Storage);
    let header = Answer::Body { bytes, decision };
    shared.answered(get.id, header).unwrap();
    let down = RouteDown::new(Reason::DeviceError, "lun7");
    shared.route_down(Route::Storage, &down);
    assert!(matches!(get.news.try_recv(), Ok(News::Answer(_))));
    for told in [&mut storage, &mut get] {
        let news = told.news.try_recv();
        assert!(
            matches!(news, Ok(News::RouteFailed(Route::Storage, _))),
            "{news:?}"
        );
    }
    assert!(network.news.try_recv().is_err());
    assert_eq!(shared.routes().storage, Err(down));
}
