//! Two processes over one pool: the test is the coordinator, a child that it starts is the member.

use crate::{
    media::{hasty, patient},
    work::{Ground, PATIENCE, checked, coordinator, exchange, member, sealed},
};
use std::{
    env,
    io::{ErrorKind, Read, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};
use storage_socket::{
    EngineChoice, EngineKind, Error, ListenProtection, Listener, Pool, Port, ResetReason, Stream,
    Timeouts,
};

/// What a child is told, as a variable each.
struct Errand<'a> {
    port: Port,
    engine: &'a str,
    streams: usize,
    bytes: u64,
}

/// A child that is the coordinator, and waits to be killed.
fn spawn_coordinator(ground: &Ground) -> Child {
    let devices: Vec<_> = ground.devices.iter().collect();
    assert_eq!(devices.len(), 1);
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "processes::child_coordinator", "--nocapture"])
        .env("STORAGE_SOCKET_COORDINATOR", devices[0])
        .env("LOCKS", ground.locks())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a test of its own: what a child process does that is the coordinator.
#[test]
fn child_coordinator() {
    let Ok(device) = env::var("STORAGE_SOCKET_COORDINATOR") else {
        return;
    };
    let locks = PathBuf::from(env::var("LOCKS").unwrap());
    let pool = coordinator(&[device.into()], &locks, EngineChoice::Auto);
    let listener = Listener::bind(&pool, Port(100), ListenProtection::Sealed).unwrap();
    let mut streams = Vec::new();
    while let Ok(incoming) = listener.accept_timeout(PATIENCE) {
        let mut stream = incoming.accept(sealed()).unwrap();
        stream.write_all(b"served").unwrap();
        streams.push(stream);
    }
}

fn spawn(ground: &Ground, errand: &Errand<'_>) -> Child {
    let devices: Vec<_> = ground
        .devices
        .iter()
        .map(|path| path.to_str().unwrap())
        .collect();
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "processes::child", "--nocapture"])
        .env("STORAGE_SOCKET_CHILD", errand.engine)
        .env("DEVICES", devices.join(":"))
        .env("LOCKS", ground.locks())
        .env("PORT", errand.port.to_string())
        .env("STREAMS", errand.streams.to_string())
        .env("BYTES", errand.bytes.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn engine(name: &str) -> EngineChoice {
    match name {
        "threads" => EngineChoice::ThreadPool,
        "io_uring" => EngineChoice::IoUring,
        other => panic!("{other}"),
    }
}

/// Not a test of its own: what a child process does.
#[test]
fn child() {
    let Ok(name) = env::var("STORAGE_SOCKET_CHILD") else {
        return;
    };
    let number = |name: &str| env::var(name).unwrap().parse::<u64>().unwrap();
    let devices: Vec<PathBuf> = env::var("DEVICES")
        .unwrap()
        .split(':')
        .map(PathBuf::from)
        .collect();
    let pool = member(
        &devices,
        &PathBuf::from(env::var("LOCKS").unwrap()),
        engine(&name),
    );
    let port = Port(u16::try_from(number("PORT")).unwrap());
    let bytes = number("BYTES");
    if bytes == 0 {
        // To be killed.
        let mut stream = Stream::connect(&pool, port, sealed(), PATIENCE).unwrap();
        stream.write_all(b"alive").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        return;
    }
    thread::scope(|scope| {
        for index in 0..number("STREAMS") {
            let pool = &pool;
            let options = if index % 2 == 0 { sealed() } else { checked() };
            let port = Port(port.0 + u16::from(index % 2 == 1));
            scope.spawn(move || {
                let stream = Stream::connect(pool, port, options, PATIENCE).unwrap();
                exchange(&stream, ("client", "server"), bytes);
            });
        }
    });
    pool.close();
}

/// Every other stream is sealed, every other has a checksum; each carries `bytes` each way at once.
fn check(ground: &Ground, name: &str, streams: usize, bytes: u64) {
    if name == "io_uring" && no_ring() {
        return;
    }
    let server = ground.coordinator(engine(name));
    let sealed_port = Listener::bind(&server, Port(100), ListenProtection::Sealed).unwrap();
    let checked_port = Listener::bind(&server, Port(101), ListenProtection::Checksum).unwrap();
    let errand = Errand {
        port: Port(100),
        engine: name,
        streams,
        bytes,
    };
    let mut child = spawn(ground, &errand);
    thread::scope(|scope| {
        for index in 0..streams {
            let (listener, options) = if index % 2 == 0 {
                (&sealed_port, sealed())
            } else {
                (&checked_port, checked())
            };
            scope.spawn(move || {
                let incoming = listener.accept_timeout(PATIENCE).unwrap();
                let stream = incoming.accept(options).unwrap();
                exchange(&stream, ("server", "client"), bytes);
            });
        }
    });
    assert!(child.wait().unwrap().success());
    server.close();
}

fn no_ring() -> bool {
    let ground = Ground::new(1, None, 16 << 20, patient()).unwrap();
    let pool = ground.coordinator(EngineChoice::Auto);
    let (kind, refusal) = pool.engine();
    if kind == EngineKind::ThreadPool {
        eprintln!("SKIPPED: io_uring is refused here: {refusal:?}");
    }
    kind == EngineKind::ThreadPool
}

fn ground(
    devices: usize,
    block_bytes: Option<u32>,
    mebibytes: u64,
    timeouts: Timeouts,
) -> Option<Ground> {
    Ground::new(devices, block_bytes, mebibytes << 20, timeouts)
}

#[test]
fn file_carries_both_directions_at_once() {
    let ground = ground(1, None, 64, patient()).unwrap();
    check(&ground, "io_uring", 1, 24 << 20);
    check(&ground, "threads", 1, 24 << 20);
}

#[test]
fn loop_device_with_small_blocks_carries_both_directions_at_once() {
    if let Some(ground) = ground(1, Some(512), 64, patient()) {
        check(&ground, "io_uring", 1, 24 << 20);
        check(&ground, "threads", 1, 8 << 20);
    }
}

#[test]
fn loop_device_with_large_blocks_carries_both_directions_at_once() {
    if let Some(ground) = ground(1, Some(4096), 64, patient()) {
        check(&ground, "io_uring", 1, 24 << 20);
        check(&ground, "threads", 1, 8 << 20);
    }
}

#[test]
fn three_devices_are_striped() {
    let ground = ground(3, None, 64, patient()).unwrap();
    check(&ground, "io_uring", 2, 24 << 20);
    check(&ground, "threads", 2, 8 << 20);
}

#[test]
fn large_pool_carries_sixteen_connections_at_once() {
    let ground = ground(1, None, 1024, patient()).unwrap();
    check(&ground, "io_uring", 16, 4 << 20);
}

#[test]
fn loop_devices_carry_sixteen_connections_at_once() {
    for block_bytes in [512, 4096] {
        if let Some(ground) = ground(1, Some(block_bytes), 256, patient()) {
            check(&ground, "io_uring", 16, 2 << 20);
            check(&ground, "threads", 16, 1 << 20);
        }
    }
}

#[test]
fn killed_peer_resets_its_streams_and_its_place_is_used_again() {
    let ground = ground(1, None, 64, hasty()).unwrap();
    let server = ground.coordinator(EngineChoice::Auto);
    let listener = Listener::bind(&server, Port(100), ListenProtection::Sealed).unwrap();
    let errand = Errand {
        port: Port(100),
        engine: "threads",
        streams: 1,
        bytes: 0,
    };
    for _ in 0..2 {
        let mut child = spawn(&ground, &errand);
        let incoming = listener.accept_timeout(PATIENCE).unwrap();
        let mut stream = incoming.accept(sealed()).unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        let reason: &Error = error.get_ref().unwrap().downcast_ref().unwrap();
        assert!(
            matches!(
                reason,
                Error::Reset {
                    reason: ResetReason::PeerDead,
                    ..
                }
            ),
            "{reason}"
        );
    }
}

#[test]
fn killed_coordinator_resets_streams_and_its_successor_serves_the_same_member() {
    let ground = ground(1, None, 64, hasty()).unwrap();
    let mut child = spawn_coordinator(&ground);
    let client = ground.member(EngineChoice::Auto);
    for _ in 0..2 {
        let mut stream = connect(&client);
        stream.read_exact(&mut [0; 6]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        child = spawn_coordinator(&ground);
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        let reason: &Error = error.get_ref().unwrap().downcast_ref().unwrap();
        assert!(
            matches!(
                reason,
                Error::Reset {
                    reason: ResetReason::CoordinatorGone,
                    ..
                }
            ),
            "{reason}"
        );
    }
    connect(&client).read_exact(&mut [0; 6]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Connects, again and again while a coordinator comes up.
fn connect(client: &Pool) -> Stream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Stream::connect(client, Port(100), sealed(), PATIENCE) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}
