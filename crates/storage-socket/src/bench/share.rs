//! How many clients that send at once share a device.

use super::{
    BenchOptions, Shape,
    fleet::{Fleet, FleetTask, coordinator},
};
use crate::{Listener, Stream};
use std::{
    io,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use storage_socket_proto::Port;

/// What was measured of clients that send at once.
#[derive(Clone, Debug)]
pub struct ShareReport {
    /// Bytes a second that each client got through.
    pub bytes_per_s: Vec<f64>,
}

impl ShareReport {
    /// Bytes a second of all together.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.bytes_per_s.iter().sum()
    }

    /// The least and the greatest share, each as a multiple of an equal one.
    #[must_use]
    pub fn extremes(&self) -> [f64; 2] {
        let equal = self.total() / self.bytes_per_s.len() as f64;
        let of = |pick: fn(f64, f64) -> f64, start| {
            self.bytes_per_s.iter().copied().fold(start, pick) / equal
        };
        [of(f64::min, f64::INFINITY), of(f64::max, 0.0)]
    }
}

/// Has `clients` members send to the coordinator for `warm` and then for `watch`, which counts. They are in as many
/// processes as `children` has commands, each of which has to call [`fleet_child`](super::fleet_child).
///
/// # Errors
/// The devices are in use or too small for so many rings, or fail; a child does not come.
pub fn share(
    options: &BenchOptions,
    shape: &Shape,
    clients: u32,
    (warm, watch): (Duration, Duration),
    children: &mut [Command],
) -> io::Result<ShareReport> {
    let pool = coordinator(options, clients)?;
    let listener = Listener::bind(&pool, Port(0), shape.seal.listens())?;
    let (port, shape) = (listener.port().0, *shape);
    let each = clients.div_ceil(u32::try_from(children.len().max(1)).unwrap_or(1));
    let mut fleets = Vec::new();
    for (index, child) in (0..).zip(children) {
        let first = index * each;
        let count = each.min(clients.saturating_sub(first));
        fleets.push(Fleet::start(options, (first, count), child)?);
    }
    let accepting = thread::Builder::new().spawn(move || receive(&listener, &shape, clients))?;
    for fleet in &mut fleets {
        fleet.ask(&FleetTask::Flood { port, shape })?;
    }
    let joined = accepting.join();
    let received = joined.map_err(|_panicked| io::Error::other("a bug ended a thread"))??;
    thread::sleep(warm);
    let look = || -> Vec<u64> {
        let counted = received.iter();
        counted.map(|count| count.load(Ordering::Relaxed)).collect()
    };
    let (start, before) = (Instant::now(), look());
    thread::sleep(watch);
    let (seconds, after) = (start.elapsed().as_secs_f64(), look());
    drop(fleets);
    pool.close();
    let moved = after.iter().zip(before);
    Ok(ShareReport {
        bytes_per_s: moved
            .map(|(after, before)| (after - before) as f64 / seconds)
            .collect(),
    })
}

/// Accepts every client's stream, and counts what comes.
fn receive(listener: &Listener, shape: &Shape, clients: u32) -> io::Result<Vec<Arc<AtomicU64>>> {
    let mut received = Vec::new();
    for _ in 0..clients {
        let incoming = listener.accept_timeout(super::PATIENCE)?;
        let stream = incoming.accept(shape.options())?;
        let count = Arc::new(AtomicU64::new(0));
        received.push(count.clone());
        thread::Builder::new().spawn(move || drain(&stream, &count))?;
    }
    Ok(received)
}

fn drain(stream: &Stream, count: &AtomicU64) {
    while let Ok(Some(frame)) = stream.read_frame() {
        count.fetch_add(frame.len() as u64, Ordering::Relaxed);
    }
}
