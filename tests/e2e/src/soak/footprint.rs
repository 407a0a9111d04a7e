//! What a process holds, and how much room there is in a pool.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::process::{Process, until};
use crate::system::{Client, System};

/// What a process holds when it has nothing to do.
#[derive(Debug, Clone)]
pub(super) struct Footprint {
    /// Open files, by what they are.
    pub(super) files: BTreeMap<String, usize>,
    /// Threads.
    pub(super) threads: usize,
    /// Resident memory in bytes.
    pub(super) memory_bytes: u64,
}

/// Threads of a pool of threads end when they had nothing to do for ten seconds.
const SETTLES_WITHIN: Duration = Duration::from_secs(15);

const POLL: Duration = Duration::from_millis(100);

/// Slots of a host.
const SLOTS: usize = 4;

impl Footprint {
    /// The least that the process holds within a while.
    pub(super) fn of(process: u32) -> Result<Self> {
        let end = Instant::now() + SETTLES_WITHIN;
        let mut least = Self::now(process)?;
        while Instant::now() < end {
            std::thread::sleep(POLL);
            let now = Self::now(process)?;
            least = Self {
                files: match now.open_files() < least.open_files() {
                    true => now.files,
                    false => least.files,
                },
                threads: least.threads.min(now.threads),
                memory_bytes: least.memory_bytes.min(now.memory_bytes),
            };
        }
        Ok(least)
    }

    /// How many files are open.
    pub(super) fn open_files(&self) -> usize {
        self.files.values().sum()
    }

    fn now(process: u32) -> Result<Self> {
        let of = format!("/proc/{process}");
        let entries = |what: &str| {
            let entries = std::fs::read_dir(format!("{of}/{what}"));
            entries.with_context(|| format!("listing {of}/{what}"))
        };
        let mut files = BTreeMap::new();
        // A file may be closed before it is looked at.
        for file in entries("fd")?
            .flatten()
            .filter_map(|entry| entry.path().read_link().ok())
        {
            let file = file.display().to_string();
            let kind = file
                .split_once(":[")
                .map_or(file.as_str(), |(kind, _)| kind);
            *files.entry(kind.to_owned()).or_default() += 1;
        }
        let status = std::fs::read_to_string(format!("{of}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|line| line.split_whitespace().next());
        let kib: u64 = kib.context("no VmRSS")?.parse()?;
        Ok(Self {
            files,
            threads: entries("task")?.count(),
            memory_bytes: kib * 1024,
        })
    }
}

/// How many sessions find room in the pool at the same time: each takes the most that it can get, so that what is left
/// after them is less than the least that one takes. Sessions are of jobs that are stopped once they have theirs.
pub(super) fn sessions_at_once<'a>(
    system: &System,
    clients: impl Iterator<Item = &'a Client>,
) -> Result<usize> {
    const READ_ALL: [&str; 5] = [
        "check",
        "--read-data",
        "--route",
        "require-storage",
        "--verbose",
    ];
    let mut held: Vec<Process> = Vec::new();
    for client in clients {
        for _ in 0..SLOTS {
            let mut job = system.start(client, READ_ALL)?;
            let mut is_running = true;
            until("a job has its segments, or none", || {
                is_running = job.is_running()?;
                Ok(!is_running || job.said().contains("storage is used"))
            })?;
            if !is_running {
                let ended = job.wait()?;
                ended
                    .without_a_route(&["no free segments"])
                    .with_context(|| {
                        let held: Vec<_> = held.iter().map(Process::said).collect();
                        format!("sessions beside it:\n{}", held.join("\n"))
                    })?;
                return Ok(held.len());
            }
            job.signal(Signal::STOP)?;
            held.push(job);
        }
    }
    bail!(
        "{} sessions had room in the pool, and more would have",
        held.len()
    )
}
