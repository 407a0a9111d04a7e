//! What both ends of a test do: join a pool, and send and check streams of bytes.

use crate::media::{Loop, directory, options};
use std::{
    io::{Read, Write},
    net::Shutdown,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use storage_socket::{
    EngineChoice, ListenProtection, Listener, Pool, PoolOptions, Port, Protection, Role, SlotIndex,
    Stream, StreamOptions, StreamSecret, Timeouts, format,
};

/// How long anything may take on a busy machine before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A pool that was formatted, with the directory that it and the locks live in.
pub(crate) struct Ground {
    pub(crate) devices: Vec<PathBuf>,
    pub(crate) directory: tempfile::TempDir,
    _loops: Vec<Loop>,
}

impl Ground {
    /// A pool over `count` files, or loop devices with blocks of `block_bytes` bytes.
    pub(crate) fn new(
        count: usize,
        block_bytes: Option<u32>,
        bytes: u64,
        timeouts: Timeouts,
    ) -> Option<Self> {
        let directory = directory();
        let mut devices = Vec::new();
        let mut loops = Vec::new();
        for index in 0..count {
            let name = format!("device-{index}");
            match block_bytes {
                None => devices.push(directory.path().join(name)),
                Some(block_bytes) => {
                    let device = Loop::new(directory.path(), &name, bytes, block_bytes)?;
                    devices.push(device.path.clone());
                    loops.push(device);
                }
            }
        }
        let mut how = options(bytes);
        how.timeouts = timeouts;
        format(&devices, &how).unwrap();
        Some(Self {
            devices,
            directory,
            _loops: loops,
        })
    }

    /// A pool that stands on these devices already.
    pub(crate) fn over(devices: Vec<PathBuf>) -> Self {
        Self {
            devices,
            directory: directory(),
            _loops: Vec::new(),
        }
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.directory.path().join("locks")
    }

    /// Joins as the coordinator and waits until it serves.
    pub(crate) fn coordinator(&self, engine: EngineChoice) -> Pool {
        coordinator(&self.devices, &self.locks(), engine)
    }

    /// Joins as a member and waits until it sees the coordinator.
    pub(crate) fn member(&self, engine: EngineChoice) -> Pool {
        member(&self.devices, &self.locks(), engine)
    }
}

pub(crate) fn coordinator(devices: &[PathBuf], locks: &Path, engine: EngineChoice) -> Pool {
    let slots = (0..8).map(SlotIndex).collect();
    let mut options = PoolOptions::new(Role::Coordinator { slots }, "server", locks);
    options.engine = engine;
    let pool = Pool::open(devices, options).unwrap();
    pool.wait_ready(PATIENCE).unwrap();
    pool
}

pub(crate) fn member(devices: &[PathBuf], locks: &Path, engine: EngineChoice) -> Pool {
    let slots = (0..8).map(SlotIndex).collect();
    let mut options = PoolOptions::new(Role::Member { slots }, "client", locks);
    options.engine = engine;
    let pool = Pool::open(devices, options).unwrap();
    pool.wait_ready(PATIENCE).unwrap();
    pool
}

pub(crate) fn sealed() -> StreamOptions {
    StreamOptions {
        window_bytes: 4 << 20,
        ..StreamOptions::new(Protection::Aes256Gcm(StreamSecret::new([5; 32])))
    }
}

pub(crate) fn checked() -> StreamOptions {
    StreamOptions {
        window_bytes: 4 << 20,
        ..StreamOptions::new(Protection::Checksum)
    }
}

/// A listener and a connected pair of streams: the coordinator's end, then the member's.
pub(crate) fn pair(server: &Pool, client: &Pool, options: &StreamOptions) -> (Stream, Stream) {
    let protection = if options.protection.cipher().is_sealed() {
        ListenProtection::Sealed
    } else {
        ListenProtection::Checksum
    };
    let listener = Listener::bind(server, Port(0), protection).unwrap();
    let port = listener.port();
    let (pool, how) = (client.clone(), options.clone());
    let connecting = thread::spawn(move || Stream::connect(&pool, port, how, PATIENCE).unwrap());
    let incoming = listener.accept_timeout(PATIENCE).unwrap();
    let accepted = incoming.accept(options.clone()).unwrap();
    (accepted, connecting.join().unwrap())
}

/// A stream of bytes that both ends can make: no two places look alike.
pub(crate) struct Pattern {
    state: u64,
}

impl Pattern {
    pub(crate) fn new(seed: &[u8]) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15;
        for byte in seed {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Self { state: state | 1 }
    }

    /// `out` has to be a multiple of 8 long.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_exact_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            chunk.copy_from_slice(&self.state.to_le_bytes());
        }
    }
}

fn seed(stream: &Stream, sender: &str) -> Vec<u8> {
    let mut seed = stream.peer_addr().connection.0.to_vec();
    seed.extend_from_slice(sender.as_bytes());
    seed
}

/// Sends `bytes` bytes in pieces of uneven sizes, then shuts the direction down.
pub(crate) fn send(mut stream: &Stream, sender: &str, bytes: u64) {
    let mut pattern = Pattern::new(&seed(stream, sender));
    let sizes = [1 << 20, 8, 4096, 3 << 20, 40, 65_536, 100_000];
    let mut buf = vec![0; 3 << 20];
    let mut left = usize::try_from(bytes).unwrap();
    for size in sizes.iter().cycle() {
        if left == 0 {
            break;
        }
        let count = left.min(*size);
        pattern.fill(&mut buf[..count]);
        stream.write_all(&buf[..count]).unwrap();
        left -= count;
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads to the end and checks every byte.
pub(crate) fn receive(mut stream: &Stream, sender: &str, bytes: u64) {
    let mut pattern = Pattern::new(&seed(stream, sender));
    let mut expected = vec![0; 1 << 16];
    let mut buf = vec![0; 1 << 16];
    let mut left = usize::try_from(bytes).unwrap();
    while left > 0 {
        let count = left.min(buf.len());
        stream.read_exact(&mut buf[..count]).unwrap();
        pattern.fill(&mut expected[..count]);
        assert!(
            buf[..count] == expected[..count],
            "{sender}: wrong bytes, {left} before the end"
        );
        left -= count;
    }
    assert_eq!(
        stream.read(&mut buf).unwrap(),
        0,
        "{sender}: more than was sent"
    );
}

/// Both directions at once, full speed.
pub(crate) fn exchange(stream: &Stream, (us, them): (&str, &str), bytes: u64) {
    thread::scope(|scope| {
        scope.spawn(|| send(stream, us, bytes));
        scope.spawn(|| receive(stream, them, bytes));
    });
    stream.wait_finished(PATIENCE).unwrap();
}
