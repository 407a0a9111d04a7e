//! Many seeds on all cores.

use crate::{Broken, Run, Scenario, run};
use std::{
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Which seeds are run.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    /// The first.
    pub seed: u64,
    /// How many.
    pub seeds: u64,
    /// On how many threads.
    pub threads: usize,
    /// After how many failures no more are run.
    pub failures_max: usize,
}

/// What many runs came to.
#[derive(Debug, Default)]
pub struct Total {
    /// The runs that kept every promise.
    pub runs: u64,
    /// All of them together.
    pub sum: Run,
    /// The seeds that failed, in order.
    pub failed: Vec<(u64, Broken)>,
    /// How long it took.
    pub took: Duration,
}

/// The threads that this machine runs at once.
#[must_use]
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Seeds that a thread takes at a time.
const CHUNK: u64 = 8;

impl Fleet {
    /// Runs them, up to the last failure that is wanted.
    #[must_use]
    pub fn sail(&self) -> Total {
        let begin = Instant::now();
        let next = AtomicU64::new(0);
        let total = Mutex::new(Total::default());
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| self.work(&next, &total));
            }
        });
        let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
        total.took = begin.elapsed();
        total.failed.sort_by_key(|(seed, _)| *seed);
        total
    }

    fn work(&self, next: &AtomicU64, total: &Mutex<Total>) {
        loop {
            let first = next.fetch_add(CHUNK, Ordering::Relaxed);
            if first >= self.seeds {
                return;
            }
            let mut sum = Run::default();
            let mut runs = 0;
            for offset in first..(first + CHUNK).min(self.seeds) {
                let seed = self.seed.wrapping_add(offset);
                match run(seed) {
                    Ok(run) => {
                        sum.report.add(&run.report);
                        sum.hit.add(&run.hit);
                        runs += 1;
                    }
                    Err(broken) => {
                        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                        total.failed.push((seed, broken));
                        if total.failed.len() >= self.failures_max {
                            next.store(self.seeds, Ordering::Relaxed);
                            return;
                        }
                    }
                }
            }
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.runs += runs;
            total.sum.report.add(&sum.report);
            total.sum.hit.add(&sum.hit);
        }
    }
}

/// The scenario of a seed, in a few words: which kinds of fault are on.
#[must_use]
pub fn describe(seed: u64) -> String {
    let scenario = Scenario::from_seed(seed);
    let on: Vec<&str> = scenario.rates.on().map(|(fault, _)| fault.name()).collect();
    format!(
        "{} members, {} devices, {} streams; {}",
        scenario.members,
        scenario.devices,
        scenario.streams,
        on.join(", ")
    )
}
