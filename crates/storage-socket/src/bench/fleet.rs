//! Many members in one other process, which has no network: they idle, ask for a word, or all send at once.

use super::{
    BenchOptions, PATIENCE, Shape,
    pair::{Engines, Peer, read_line, write_line},
};
use crate::{FormatOptions, Pool, PoolOptions, Role, Stream, format};
use direct_io::EngineChoice;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, BufRead, Read, Write},
    path::PathBuf,
    process::Command,
    thread,
    time::Instant,
};
use storage_socket_proto::{Port, SlotIndex};

/// What the process of a fleet is told first.
#[derive(Serialize, Deserialize)]
struct Errand {
    devices: Vec<PathBuf>,
    lock_dir: PathBuf,
    #[serde(with = "Engines")]
    engine: EngineChoice,
    /// The first slot, and how many.
    slots: (u32, u32),
}

/// What it is told next.
#[derive(Serialize, Deserialize)]
pub(super) enum FleetTask {
    /// The first member opens a stream, and keeps it.
    Open { port: u16, shape: Shape },
    /// The first member sends a byte on it and waits for the answer.
    Ask,
    /// A member connects, sends a byte and waits for the answer.
    Call {
        member: usize,
        port: u16,
        shape: Shape,
    },
    /// Every member connects and sends until its stream is reset.
    Flood { port: u16, shape: Shape },
}

#[derive(Serialize, Deserialize)]
struct Took {
    seconds: f64,
    failed: Option<String>,
}

/// The coordinator of a fleet, in this process, with slots for all.
pub(super) fn coordinator(options: &BenchOptions, members: u32) -> io::Result<Pool> {
    let again = FormatOptions {
        force: true,
        slots: members,
        ..options.format.clone()
    };
    format(&options.devices, &again)?;
    let slots = (0..members).map(SlotIndex).collect();
    let mut how = PoolOptions::new(Role::Coordinator { slots }, "bench", &options.lock_dir);
    how.engine = options.engine;
    let pool = Pool::open(&options.devices, how)?;
    pool.wait_ready(PATIENCE)?;
    Ok(pool)
}

/// The process of a fleet, as its coordinator sees it.
pub(super) struct Fleet(Peer);

impl Fleet {
    /// Starts it, and waits until its members have joined.
    pub(super) fn start(
        options: &BenchOptions,
        slots: (u32, u32),
        child: &mut Command,
    ) -> io::Result<Self> {
        let mut fleet = Self(Peer::start(child)?);
        fleet.0.tell(&Errand {
            devices: options.devices.clone(),
            lock_dir: options.lock_dir.clone(),
            engine: options.engine,
            slots,
        })?;
        fleet.wait()?;
        Ok(fleet)
    }

    /// Has it do something; returns the seconds that it took.
    pub(super) fn ask(&mut self, task: &FleetTask) -> io::Result<f64> {
        self.0.tell(task)?;
        self.wait()
    }

    fn wait(&mut self) -> io::Result<f64> {
        let took: Took = self.0.hear()?;
        match took.failed {
            None => Ok(took.seconds),
            Some(why) => Err(io::Error::other(why)),
        }
    }
}

/// The process of a fleet: does what it is told on its standard input until that ends.
///
/// # Errors
/// A pool can't be joined; what fails later is told to the one that asked.
pub fn fleet_child() -> io::Result<()> {
    let (mut tasks, mut answers) = (io::stdin().lock(), io::stdout().lock());
    let mut members = Members::join(&mut tasks)?;
    write_line(&mut answers, &took(Ok(()), Instant::now()))?;
    while let Some(task) = read_line(&mut tasks)? {
        let start = Instant::now();
        let done = members.perform(task);
        write_line(&mut answers, &took(done, start))?;
    }
    Ok(())
}

fn took(done: io::Result<()>, start: Instant) -> Took {
    Took {
        seconds: start.elapsed().as_secs_f64(),
        failed: done.err().map(|error| error.to_string()),
    }
}

struct Members {
    pools: Vec<Pool>,
    open: Option<Stream>,
}

impl Members {
    fn join(tasks: &mut impl BufRead) -> io::Result<Self> {
        let errand: Errand = read_line(tasks)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (first, count) = errand.slots;
        let mut pools = Vec::new();
        for slot in first..first + count {
            let slots = vec![SlotIndex(slot)];
            let mut how = PoolOptions::new(Role::Member { slots }, "bench", &errand.lock_dir);
            how.engine = errand.engine;
            pools.push(Pool::open(&errand.devices, how)?);
        }
        for pool in &pools {
            pool.wait_ready(PATIENCE)?;
        }
        Ok(Self { pools, open: None })
    }

    fn perform(&mut self, task: FleetTask) -> io::Result<()> {
        match task {
            FleetTask::Open { port, shape } => {
                let stream = connect(&self.pools[0], port, &shape)?;
                exchange(&stream)?;
                self.open = Some(stream);
                Ok(())
            }
            FleetTask::Ask => exchange(self.open.as_ref().ok_or(io::ErrorKind::NotConnected)?),
            FleetTask::Call {
                member,
                port,
                shape,
            } => {
                let pool = self.pools.get(member).ok_or(io::ErrorKind::NotFound)?;
                exchange(&connect(pool, port, &shape)?)
            }
            FleetTask::Flood { port, shape } => {
                for pool in &self.pools {
                    let stream = connect(pool, port, &shape)?;
                    thread::Builder::new().spawn(move || flood(stream))?;
                }
                Ok(())
            }
        }
    }
}

fn connect(pool: &Pool, port: u16, shape: &Shape) -> io::Result<Stream> {
    Stream::connect(pool, Port(port), shape.options(), PATIENCE)
}

fn exchange(mut stream: &Stream) -> io::Result<()> {
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])
}

/// Sends until the other end has enough.
fn flood(mut stream: Stream) {
    let piece = vec![7; stream.payload_bytes_max()];
    while stream.write_all(&piece).is_ok() {}
}
