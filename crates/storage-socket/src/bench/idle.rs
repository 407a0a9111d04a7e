//! What a listener costs whose members have no network and say nothing, and how soon it hears one that does.

use super::{
    BenchOptions, Shape, cpu_seconds,
    fleet::{Fleet, FleetTask, coordinator},
};
use crate::{Listener, Stream};
use std::{
    io::{self, Read, Write},
    process::Command,
    thread,
    time::{Duration, Instant},
};
use storage_socket_proto::Port;

/// How a listener idles.
#[derive(Clone, Copy, Debug)]
pub struct IdleOptions {
    /// Members that have joined, and say nothing.
    pub members: u32,
    /// How long the process is watched.
    pub watch: Duration,
    /// How often a first byte is sent after a rest, on an open stream and on one that is asked for.
    pub calls: usize,
    /// The rest before each.
    pub rest: Duration,
}

impl Default for IdleOptions {
    fn default() -> Self {
        Self {
            members: 64,
            watch: Duration::from_secs(10),
            calls: 5,
            rest: Duration::from_secs(2),
        }
    }
}

/// What was measured of a listener that idles.
#[derive(Clone, Debug)]
pub struct IdleReport {
    /// CPU time of its process, as a share of one core.
    pub core_share: f64,
    /// Reads of devices in a second.
    pub reads_per_s: f64,
    /// Bytes read from devices in a second.
    pub bytes_read_per_s: f64,
    /// Seconds from a byte's write on an open stream that had idled to its answer: there and back.
    pub answer_seconds: Vec<f64>,
    /// Seconds from a connect to the answer to a byte on the new stream.
    pub call_seconds: Vec<f64>,
}

/// Measures a listener whose members are all in the process that `child` starts, which has to call
/// [`fleet_child`](super::fleet_child). One of them keeps a stream open.
///
/// # Errors
/// The devices are in use, or fail; the child does not come.
pub fn idle(
    options: &BenchOptions,
    shape: &Shape,
    how: &IdleOptions,
    child: &mut Command,
) -> io::Result<IdleReport> {
    let pool = coordinator(options, how.members)?;
    let listener = Listener::bind(&pool, Port(0), shape.seal.listens())?;
    let (port, shape) = (listener.port().0, *shape);
    thread::Builder::new().spawn(move || serve(&listener, &shape))?;
    let mut fleet = Fleet::start(options, (0, how.members), child)?;
    fleet.ask(&FleetTask::Open { port, shape })?;
    thread::sleep(how.rest);
    let (start, spent, before) = (Instant::now(), cpu_seconds(), pool.io_stats());
    thread::sleep(how.watch);
    let (spent, after) = (cpu_seconds() - spent, pool.io_stats());
    let seconds = start.elapsed().as_secs_f64();
    let mut report = IdleReport {
        core_share: spent / seconds,
        reads_per_s: (after.reads - before.reads) as f64 / seconds,
        bytes_read_per_s: (after.bytes_read - before.bytes_read) as f64 / seconds,
        answer_seconds: Vec::new(),
        call_seconds: Vec::new(),
    };
    for call in 0..how.calls {
        thread::sleep(how.rest);
        report.answer_seconds.push(fleet.ask(&FleetTask::Ask)?);
        thread::sleep(how.rest);
        let member = 1 + call % (how.members.max(2) as usize - 1);
        let call = FleetTask::Call {
            member,
            port,
            shape,
        };
        report.call_seconds.push(fleet.ask(&call)?);
    }
    drop(fleet);
    pool.close();
    Ok(report)
}

/// Answers every byte, until the pool is left.
fn serve(listener: &Listener, shape: &Shape) {
    for incoming in listener.incoming().map_while(Result::ok) {
        if let Ok(stream) = incoming.accept(shape.options()) {
            thread::spawn(move || answer(stream));
        }
    }
}

fn answer(mut stream: Stream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}
