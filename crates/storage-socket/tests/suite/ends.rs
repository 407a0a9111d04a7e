//! How streams begin and end, between two drivers of one process.

use crate::{
    media::patient,
    work::{Ground, PATIENCE, checked, exchange, pair, sealed},
};
use std::{
    future::Future,
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    pin::pin,
    task::{Context, Waker},
    thread,
    time::{Duration, Instant},
};
use storage_socket::{
    EngineChoice, Error, ListenProtection, Listener, Port, RefusalReason, ResetReason, Stream,
    StreamOptions,
};

const POOL_BYTES: u64 = 64 << 20;

fn ground() -> Ground {
    Ground::new(1, None, POOL_BYTES, patient()).unwrap()
}

fn reason(error: &std::io::Error) -> &Error {
    error.get_ref().unwrap().downcast_ref().unwrap()
}

#[test]
fn half_closed_stream_still_carries_the_other_direction() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    for options in [sealed(), checked()] {
        let (mut accepted, mut connected) = pair(&server, &client, &options);
        connected.write_all(b"question").unwrap();
        connected.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            connected.write(b"more").unwrap_err().kind(),
            ErrorKind::BrokenPipe
        );
        let mut heard = String::new();
        accepted.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "question");
        for _ in 0..3 {
            accepted.write_all(b"answer ").unwrap();
        }
        drop(accepted);
        let mut heard = String::new();
        connected.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "answer answer answer ");
    }
}

#[test]
fn small_messages_go_to_and_fro_without_a_flush() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::ThreadPool);
    let (mut accepted, mut connected) = pair(&server, &client, &sealed());
    for round in 0..50_u8 {
        let mut heard = [0; 1];
        connected.write_all(&[round]).unwrap();
        accepted.read_exact(&mut heard).unwrap();
        assert_eq!(heard, [round]);
        accepted.write_all(&[!round]).unwrap();
        connected.read_exact(&mut heard).unwrap();
        assert_eq!(heard, [!round]);
    }
    // The answer to a frame may come before the word that it was written.
    let deadline = Instant::now() + PATIENCE;
    while connected.stats().frames_sent < 50 && Instant::now() < deadline {
        thread::yield_now();
    }
    let stats = connected.stats();
    assert_eq!((stats.bytes_sent, stats.bytes_received), (50, 50));
    assert_eq!((stats.frames_sent, stats.frames_received), (50, 50));
}

#[test]
fn connecting_where_nobody_listens_is_refused_with_the_reason() {
    let ground = ground();
    let _server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let error = Stream::connect(&client, Port(77), sealed(), PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(matches!(
        reason(&error),
        Error::Refused {
            port: Port(77),
            reason: RefusalReason::NoListener
        }
    ));
}

#[test]
fn listener_for_sealed_streams_refuses_a_checksum() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let listener = Listener::bind(&server, Port(5), ListenProtection::Sealed).unwrap();
    let taken = Listener::bind(&server, Port(5), ListenProtection::Sealed).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    let error = Stream::connect(&client, listener.port(), checked(), PATIENCE).unwrap_err();
    assert!(matches!(
        reason(&error),
        Error::Refused {
            reason: RefusalReason::Cipher,
            ..
        }
    ));
    let error = Listener::bind(&client, Port(5), ListenProtection::Sealed).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn connection_that_is_not_accepted_fails_at_its_member() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let listener = Listener::bind(&server, Port(0), ListenProtection::Sealed).unwrap();
    assert!(listener.port().0 >= 1024);
    let port = listener.port();
    let connecting = thread::spawn(move || {
        let stream = Stream::connect(&client, port, sealed(), PATIENCE);
        stream.and_then(|mut stream| stream.read(&mut [0; 1]))
    });
    listener.accept_timeout(PATIENCE).unwrap().refuse();
    let error = connecting.join().unwrap().unwrap_err();
    // Which it is depends on whether the grant was seen before it was taken back.
    let kinds = [
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionAborted,
    ];
    assert!(kinds.contains(&error.kind()), "{error}");
}

#[test]
fn a_slot_takes_an_eighth_of_a_pool_and_no_more_and_others_find_something() {
    let ground = Ground::new(1, None, 2 << 30, patient()).unwrap();
    let server = ground.coordinator(EngineChoice::Auto);
    let greedy = ground.member(EngineChoice::Auto);
    let listener = Listener::bind(&server, Port(5), ListenProtection::Checksum).unwrap();
    let options = StreamOptions {
        window_bytes: 256 << 20,
        ..checked()
    };
    let mut held = Vec::new();
    let mut granted = 0;
    let refused = loop {
        match Stream::connect(&greedy, Port(5), options.clone(), PATIENCE) {
            Ok(stream) => held.push((stream, listener.accept_timeout(PATIENCE).unwrap())),
            Err(error) => break error,
        }
        granted += 1;
    };
    assert!(granted >= 4, "{granted}");
    let refused = reason(&refused);
    assert!(
        matches!(
            refused,
            Error::Refused {
                reason: RefusalReason::NoSegments,
                ..
            }
        ),
        "{refused}"
    );
    let other = ground.member(EngineChoice::Auto);
    Stream::connect(&other, Port(5), options, PATIENCE).unwrap();
}

/// Begins to wait, and gives up at once.
fn cancelled(waiting: impl Future) {
    let mut context = Context::from_waker(Waker::noop());
    // Whether it was ready already makes no difference: nobody takes the outcome.
    let _outcome = pin!(waiting).poll(&mut context);
}

#[test]
fn cancelled_connects_and_accepts_return_their_segments() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let listener = Listener::bind(&server, Port(0), ListenProtection::Sealed).unwrap();
    let port = listener.port();
    // Each connection takes an eighth of the pool.
    for _ in 0..10 {
        cancelled(Stream::connect_async(&client, port, sealed(), PATIENCE));
        let incoming = listener.accept_timeout(PATIENCE).unwrap();
        let mut accepted = incoming.accept(sealed()).unwrap();
        accepted.set_read_timeout(Some(PATIENCE));
        let end = accepted.read(&mut [0; 1]);
        assert!(matches!(end, Ok(0)), "{end:?}");
    }
    for _ in 0..10 {
        let pool = client.clone();
        let connecting =
            thread::spawn(move || Stream::connect(&pool, port, sealed(), PATIENCE).unwrap());
        let incoming = listener.accept_timeout(PATIENCE).unwrap();
        cancelled(incoming.accept_async(sealed()));
        let mut connected = connecting.join().unwrap();
        connected.set_read_timeout(Some(PATIENCE));
        let end = connected.read(&mut [0; 1]);
        assert!(matches!(end, Ok(0)), "{end:?}");
    }
}

#[test]
fn cancelled_bind_gives_its_port_back() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let protection = ListenProtection::Sealed;
    cancelled(Listener::bind_async(&server, Port(5), protection));
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = Listener::bind(&server, Port(5), protection) {
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(Instant::now() < deadline, "the port is still taken");
    }
}

#[test]
fn dropped_listener_refuses_what_waits_for_it() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let listener = Listener::bind(&server, Port(0), ListenProtection::Sealed).unwrap();
    let mut connected = Stream::connect(&client, listener.port(), sealed(), PATIENCE).unwrap();
    drop(listener);
    connected.set_read_timeout(Some(PATIENCE));
    let error = connected.read(&mut [0; 1]).unwrap_err();
    let kinds = [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];
    assert!(kinds.contains(&error.kind()), "{error}");
}

#[test]
fn waits_end_at_their_time_outs() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let (mut accepted, mut connected) = pair(&server, &client, &sealed());
    accepted.set_read_timeout(Some(Duration::from_millis(20)));
    assert_eq!(
        accepted.read(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    // Nobody reads: ring and buffers fill up, and then the writer waits in vain.
    connected.set_write_timeout(Some(Duration::from_millis(300)));
    let piece = vec![1; 1 << 20];
    let error = loop {
        if let Err(error) = connected.write(&piece) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let written = connected.stats().bytes_sent;
    assert!(written <= 24 << 20, "{written} bytes went nowhere");
    let nobody = Listener::bind(&server, Port(0), ListenProtection::Sealed).unwrap();
    let error = nobody
        .accept_timeout(Duration::from_millis(20))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn a_gauge_shows_frames_on_their_way_and_credits_and_holds_no_stream() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let (mut accepted, mut connected) = pair(&server, &client, &sealed());
    let gauge = connected.gauge();
    let look = || gauge.stats().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let until = |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            assert!(Instant::now() < deadline, "{:?}", gauge.stats());
            thread::yield_now();
        }
    };
    until(&|| look().credits > 0);
    let (all, written) = (look().credits, connected.payload_bytes_max());
    assert_eq!(look().frames_outstanding, 0);
    // Nobody reads, so that the peer acknowledges no more than it has read ahead.
    connected.set_write_timeout(Some(Duration::from_millis(300)));
    let mut sent = 0;
    while let Ok(count) = connected.write(&vec![1; written]) {
        sent += count as u64;
    }
    let full = look();
    assert_eq!((full.credits, full.frames_outstanding), (0, all));
    let heard = std::io::copy(&mut (&mut accepted).take(sent), &mut std::io::sink());
    assert_eq!(heard.unwrap(), sent);
    until(&|| (look().credits, look().frames_outstanding) == (all, 0));
    drop((accepted, connected));
    until(&|| gauge.stats().is_none());
}

#[test]
fn wrong_secret_never_delivers_a_byte() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let listener = Listener::bind(&server, Port(0), ListenProtection::Sealed).unwrap();
    let port = listener.port();
    let connecting = thread::spawn(move || {
        let mut stream = Stream::connect(&client, port, sealed(), PATIENCE).unwrap();
        stream.write_all(b"secret").unwrap();
        (stream, client)
    });
    let mut other = sealed();
    other.protection =
        storage_socket::Protection::Aes256Gcm(storage_socket::StreamSecret::new([6; 32]));
    let incoming = listener.accept_timeout(PATIENCE).unwrap();
    let mut accepted = incoming.accept(other).unwrap();
    accepted.set_read_timeout(Some(Duration::from_millis(500)));
    assert!(accepted.read(&mut [0; 8]).is_err());
    assert_eq!(accepted.stats().bytes_received, 0);
    drop(connecting.join().unwrap());
}

#[test]
fn closing_a_pool_ends_what_waits_on_it() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let (accepted, mut connected) = pair(&server, &client, &sealed());
    let listener = Listener::bind(&server, Port(0), ListenProtection::Sealed).unwrap();
    let waiting = thread::spawn(move || listener.accept().map(drop));
    server.close();
    assert_eq!(
        waiting.join().unwrap().unwrap_err().kind(),
        ErrorKind::NotConnected
    );
    drop(accepted);
    // The peer sees an orderly end, or the loss of its coordinator.
    let end = connected.read(&mut [0; 1]);
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    let lost = Stream::connect(&client, Port(1), sealed(), Duration::from_millis(300));
    assert!(lost.is_err());
    // The place is free again: a new coordinator serves.
    let again = ground.coordinator(EngineChoice::Auto);
    let fresh = ground.member(EngineChoice::Auto);
    let (one, two) = pair(&again, &fresh, &sealed());
    thread::scope(|scope| {
        scope.spawn(|| exchange(&one, ("server", "client"), 1 << 20));
        scope.spawn(|| exchange(&two, ("client", "server"), 1 << 20));
    });
}

#[test]
fn second_coordinator_and_a_taken_slot_are_refused() {
    let ground = ground();
    let _server = ground.coordinator(EngineChoice::Auto);
    let slots = std::collections::BTreeSet::new();
    let role = storage_socket::Role::Coordinator { slots };
    let options = storage_socket::PoolOptions::new(role, "server", &ground.locks());
    let refusal = storage_socket::Pool::open(&ground.devices, options.clone()).unwrap_err();
    assert!(matches!(refusal, Error::CoordinatorRunning { .. }));
    // Another host has other locks; the pool itself tells it.
    let elsewhere = storage_socket::PoolOptions {
        lock_dir: ground.directory.path().join("elsewhere"),
        ..options
    };
    let pool = storage_socket::Pool::open(&ground.devices, elsewhere).unwrap();
    let refusal = pool.wait_ready(PATIENCE).unwrap_err();
    assert!(
        matches!(
            &refusal,
            Error::Stopped {
                why: storage_socket::StopReason::Displaced(_),
                ..
            }
        ),
        "{refusal}"
    );
    let members: Vec<_> = (0..8)
        .map(|_| ground.member(EngineChoice::ThreadPool))
        .collect();
    let slots = (0..8).map(storage_socket::SlotIndex).collect();
    let role = storage_socket::Role::Member { slots };
    let options = storage_socket::PoolOptions::new(role, "client", &ground.locks());
    let refusal = storage_socket::Pool::open(&ground.devices, options).unwrap_err();
    assert!(matches!(refusal, Error::SlotsTaken { .. }), "{refusal}");
    drop(members);
}

#[test]
fn member_whose_slot_another_host_writes_stops_and_says_so() {
    let ground = ground();
    let _server = ground.coordinator(EngineChoice::Auto);
    let first = ground.member(EngineChoice::Auto);
    let slots = vec![first.slot().unwrap()];
    let role = storage_socket::Role::Member { slots };
    // A cloned host has its locks elsewhere.
    let elsewhere = ground.directory.path().join("elsewhere");
    let options = storage_socket::PoolOptions::new(role, "clone", &elsewhere);
    let second = storage_socket::Pool::open(&ground.devices, options).unwrap();
    // Whichever looks first stops; the other may have lost nothing.
    let deadline = std::time::Instant::now() + PATIENCE;
    let why = 'noticed: loop {
        assert!(std::time::Instant::now() < deadline, "nobody noticed");
        for pool in [&first, &second] {
            let connect = Stream::connect(pool, Port(9), sealed(), Duration::from_millis(100));
            if let Error::Stopped { why, .. } = reason(&connect.unwrap_err()) {
                break 'noticed why.clone();
            }
        }
    };
    assert!(
        matches!(why, storage_socket::StopReason::Cloned(_)),
        "{why}"
    );
}

#[test]
fn challenges_of_each_side_are_read_by_the_other() {
    let ground = Ground::new(3, None, 16 << 20, patient()).unwrap();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let slot = client.slot().unwrap();
    for _ in 0..2 {
        let of_client = client.challenges(slot).unwrap();
        let of_server = server.challenges(slot).unwrap();
        assert_eq!(of_client.len(), 3);
        assert!(of_client.iter().chain(&of_server).all(Option::is_some));
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let seen_by_server = server.peer_challenges(slot).unwrap();
            let seen_by_client = client.peer_challenges(slot).unwrap();
            if seen_by_server.challenges == of_client && seen_by_client.challenges == of_server {
                assert_eq!(seen_by_server.writer, Some(client.writer()));
                assert_eq!(seen_by_client.writer, Some(server.writer()));
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{seen_by_server:?}");
        }
    }
}

#[test]
fn doorbells_are_rung_and_a_lost_one_delays_but_does_not_lose() {
    use std::sync::{Arc, OnceLock};
    let ground = ground();
    let peers: [Arc<OnceLock<storage_socket::Pool>>; 2] = Default::default();
    let open = |role, name: &str, peer: &Arc<OnceLock<storage_socket::Pool>>| {
        let mut options = storage_socket::PoolOptions::new(role, name, &ground.locks());
        let peer = peer.clone();
        options.doorbell = Some(Arc::new(move |slot| {
            if let Some(pool) = peer.get() {
                pool.rang(slot);
            }
        }));
        let pool = storage_socket::Pool::open(&ground.devices, options).unwrap();
        pool.wait_ready(PATIENCE).unwrap();
        pool
    };
    let slots = (0..8).map(storage_socket::SlotIndex);
    let coordinator = storage_socket::Role::Coordinator {
        slots: slots.clone().collect(),
    };
    let member = storage_socket::Role::Member {
        slots: slots.collect(),
    };
    let server = open(coordinator, "server", &peers[1]);
    let client = open(member, "client", &peers[0]);
    let slot = client.slot().unwrap();
    for pool in [&server, &client] {
        pool.set_doorbell(slot, storage_socket::Doorbell::Present);
    }
    let (mut accepted, mut connected) = pair(&server, &client, &sealed());
    // As yet every ring is lost.
    connected.write_all(b"lost").unwrap();
    accepted.read_exact(&mut [0; 4]).unwrap();
    peers[0].set(server.clone()).unwrap();
    peers[1].set(client.clone()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| exchange(&accepted, ("server", "client"), 8 << 20));
        scope.spawn(|| exchange(&connected, ("client", "server"), 8 << 20));
    });
    assert!(connected.stats().doorbells_rung > 0);
    assert!(accepted.stats().doorbells_heard > 0);
}

#[test]
fn reset_names_its_reason() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let (accepted, mut connected) = pair(&server, &client, &sealed());
    // A server that ends without its streams having ended takes them along.
    connected.write_all(b"unread").unwrap();
    server.close();
    drop(accepted);
    let error = loop {
        match connected.read(&mut [0; 8]) {
            Ok(0) => match connected.write(b"?") {
                Ok(_) => {}
                Err(error) => break error,
            },
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(
        matches!(
            reason(&error),
            Error::Reset {
                reason: ResetReason::CoordinatorGone
                    | ResetReason::PeerClosed
                    | ResetReason::Linger
                    | ResetReason::Aborted,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn frames_are_read_without_a_copy_and_hold_the_stream_until_dropped() {
    let ground = ground();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let options = StreamOptions {
        depth: 2,
        ..sealed()
    };
    let (accepted, mut connected) = pair(&server, &client, &options);
    let piece: Vec<u8> = (0..=u8::MAX)
        .cycle()
        .take(connected.payload_bytes_max())
        .collect();
    let writer = thread::spawn(move || {
        for _ in 0..12 {
            connected.write_all(&piece).unwrap();
        }
        piece
    });
    let mut first = [9; 3];
    (&accepted).read_exact(&mut first).unwrap();
    let rest = accepted.read_frame().unwrap().unwrap();
    // Reading holds twice the depth, this one among them; nothing more comes while they are kept.
    let mut kept = vec![rest];
    kept.extend((0..3).map(|_| accepted.read_frame().unwrap().unwrap()));
    accepted.set_read_timeout(Some(Duration::from_millis(300)));
    let error = accepted.read_frame().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    accepted.set_read_timeout(Some(PATIENCE));
    let mut heard = first.to_vec();
    heard.extend(kept.drain(..).flat_map(|frame| frame.to_vec()));
    while let Some(frame) = accepted.read_frame().unwrap() {
        heard.extend_from_slice(&frame);
    }
    assert!(accepted.read_frame().unwrap().is_none());
    assert_eq!(heard, writer.join().unwrap().repeat(12));
    assert_eq!(accepted.stats().bytes_received, heard.len() as u64);
}
