//! Bytes through a stream for a while, in one direction or both at once.

use super::{
    Shape,
    counters::{Sample, Spent},
};
use crate::{Stream, promise::locked};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Write},
    net::Shutdown,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// From the member to the coordinator, as in a backup.
    ToCoordinator,
    /// From the coordinator to the member, as in a restore.
    ToMember,
    /// Both at once.
    Both,
}

/// What was measured of a stream.
#[derive(Clone, Debug)]
pub struct FlowReport {
    /// What the coordinator spent; what it received went to it.
    pub coordinator: Spent,
    /// What the member spent.
    pub member: Spent,
    /// Bytes of buffers for frames that both ends of the stream had together.
    pub buffer_bytes: u64,
    /// Resident memory of the two processes at most.
    pub resident_bytes_max: [u64; 2],
}

impl FlowReport {
    pub(super) fn new(before: &[Sample; 2], after: &[Sample; 2]) -> Self {
        let [coordinator, member] = after;
        Self {
            coordinator: coordinator.since(&before[0]),
            member: member.since(&before[1]),
            buffer_bytes: coordinator.buffer_bytes + member.buffer_bytes,
            resident_bytes_max: [coordinator.resident_bytes[1], member.resident_bytes[1]],
        }
    }

    /// Bytes a second in both directions together.
    #[must_use]
    pub fn bytes_per_s(&self) -> f64 {
        let rate = |spent: &Spent| spent.received as f64 / spent.seconds;
        rate(&self.coordinator) + rate(&self.member)
    }

    /// CPU seconds of both processes for a GiB that went through.
    #[must_use]
    pub fn cpu_seconds_per_gib(&self) -> f64 {
        let spent = self.coordinator.cpu_seconds + self.member.cpu_seconds;
        spent * f64::from(1 << 30) / self.received()
    }

    /// Bytes that both processes read from and wrote to each device.
    #[must_use]
    pub fn device_bytes(&self) -> Vec<u64> {
        let members = self.member.device_bytes.iter();
        let both = self.coordinator.device_bytes.iter().zip(members);
        both.map(|(one, other)| one + other).collect()
    }

    /// Bytes read and written for each byte that went through; two would be ideal.
    #[must_use]
    pub fn device_bytes_per_byte(&self) -> f64 {
        self.device_bytes().iter().sum::<u64>() as f64 / self.received()
    }

    pub(super) fn received(&self) -> f64 {
        (self.coordinator.received + self.member.received) as f64
    }
}

/// What one end of a measured stream does, until it is told to end.
pub(super) struct Traffic {
    stream: Stream,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Counts {
    is_over: AtomicBool,
    received: AtomicU64,
    /// Directions that aren't warm yet.
    cold: Mutex<usize>,
    warmed: Condvar,
}

/// What this end does of a way.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Coordinator,
    Member,
}

impl Traffic {
    pub(super) fn start(stream: Stream, way: Way, end: End, shape: &Shape, devices: usize) -> Self {
        let receives = match end {
            End::Coordinator => way != Way::ToMember,
            End::Member => way != Way::ToCoordinator,
        };
        let sends = match end {
            End::Coordinator => way != Way::ToCoordinator,
            End::Member => way != Way::ToMember,
        };
        // Until the rings have gone round, buffers and extents are new: not what a long job sees.
        let warm = shape.window_bytes * devices as u64 * 2;
        let counts = Arc::new(Counts::default());
        *locked(&counts.cold) = usize::from(receives) + usize::from(sends);
        let mut threads = Vec::new();
        if receives {
            let (stream, counts) = (stream.clone(), counts.clone());
            threads.push(thread::spawn(move || receive(&stream, &counts, warm)));
        }
        if sends {
            let (stream, counts) = (stream.clone(), counts.clone());
            threads.push(thread::spawn(move || send(&stream, &counts, warm)));
        }
        Self {
            stream,
            counts,
            threads,
        }
    }

    /// Waits until the rings have gone round, or a direction has failed.
    pub(super) fn wait_warm(&self) {
        let mut cold = locked(&self.counts.cold);
        while *cold > 0 {
            let woken = self.counts.warmed.wait(cold);
            cold = woken.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Bytes received so far, and bytes of buffers.
    pub(super) fn counted(&self) -> (u64, u64) {
        let received = self.counts.received.load(Ordering::Relaxed);
        (received, self.stream.stats().buffer_bytes)
    }

    /// Whether a direction has ended unasked: nothing more can come.
    pub(super) fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Sends nothing more; what the other end sends is still taken.
    pub(super) fn stop(&self) {
        self.counts.is_over.store(true, Ordering::Relaxed);
    }

    /// Waits until both ends have stopped, and everything has come.
    pub(super) fn wait(self) -> io::Result<()> {
        for thread in self.threads {
            thread.join().expect("a measuring thread does not panic")?;
        }
        Ok(())
    }
}

impl Counts {
    fn warm(&self) {
        let mut cold = locked(&self.cold);
        *cold = cold.saturating_sub(1);
        self.warmed.notify_all();
    }
}

fn receive(stream: &Stream, counts: &Counts, warm: u64) -> io::Result<()> {
    let mut is_warm = Once::new(counts);
    while let Some(frame) = stream.read_frame()? {
        let count = frame.len() as u64;
        drop(frame);
        let before = counts.received.fetch_add(count, Ordering::Relaxed);
        if before + count >= warm {
            is_warm.say();
        }
    }
    Ok(())
}

fn send(mut stream: &Stream, counts: &Counts, warm: u64) -> io::Result<()> {
    let mut is_warm = Once::new(counts);
    let piece = vec![0x5a; stream.payload_bytes_max()];
    let mut sent = 0;
    while !counts.is_over.load(Ordering::Relaxed) {
        stream.write_all(&piece)?;
        sent += piece.len() as u64;
        if sent >= warm {
            is_warm.say();
        }
    }
    stream.shutdown(Shutdown::Write)
}

/// Says once that a direction is warm, at the latest when its thread ends.
struct Once<'a>(Option<&'a Counts>);

impl<'a> Once<'a> {
    fn new(counts: &'a Counts) -> Self {
        Self(Some(counts))
    }

    fn say(&mut self) {
        if let Some(counts) = self.0.take() {
            counts.warm();
        }
    }
}

impl Drop for Once<'_> {
    fn drop(&mut self) {
        self.say();
    }
}
