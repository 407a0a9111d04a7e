//! The soak: jobs of both kinds beside each other, hour after hour if need be, while random faults come and go; at the end
//! every outcome has to have been lawful, every byte right, and nothing may have been kept.

mod footprint;
mod worker;

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fidelity::Random;

use footprint::Footprint;
use worker::{Tally, Worker};

use crate::device::Medium;
use crate::fault::Fault;
use crate::lane::Side;
use crate::system::{Client, Setup, System};

/// How long to soak, and what is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What faults and jobs follow from.
    pub seed: u64,
    /// How long faults come.
    pub length: Duration,
}

/// Jobs that run beside each other, and the host of each.
const WORKERS: [&str; 3] = ["alpha", "alpha", "beta"];

/// Megabits a second of the disk.
const DISK_MBIT: u32 = 800;

/// A fault lasts from half a second up to this.
const FAULT_MAX: Duration = Duration::from_secs(10);

/// So does the pause before the next. A route that is lost again within a minute is tried ever more rarely, up to once a
/// minute: without longer pauses jobs that must take storage would never find it.
const PAUSE_MAX: Duration = Duration::from_secs(40);

/// Room for the jobs that run beside each other, and so little more that segments which somebody kept are missed.
const POOL_BYTES: u64 = 96 << 20;

/// A silent peer is dead after 60 s of reads, and what an earlier claim left rests as long.
const PEER_DEAD: Duration = Duration::from_secs(90);

/// How much the server's memory may have grown.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// Who works, what is drawn, and what has come of it.
struct Course {
    workers: Vec<Worker>,
    random: Random,
    /// How often each fault was made.
    faults: BTreeMap<&'static str, u32>,
    tally: Tally,
}

/// What was left of it all.
struct Soaked {
    course: Course,
    /// The server, at half-time and at the end, each time without a session.
    footprints: [Footprint; 2],
    /// How many sessions found room in the pool at the same time, at half-time and at the end.
    sessions: [usize; 2],
}

/// What workers and the maker of faults share.
struct Soak {
    system: Mutex<System>,
    /// Nobody begins another job.
    over: AtomicBool,
    /// When faults began and ended; the last may not have ended.
    faults: Mutex<Vec<(Instant, Option<Instant>)>>,
}

/// Soaks, and prints what came of it before that is held against the rule.
///
/// # Errors
/// When the outcome of any job was against the rule, what was stored isn't right, or something was kept.
pub fn soak(plan: Plan) -> Result<()> {
    let mut system = System::new(&Setup {
        medium: Medium::Breakable,
        pool_bytes: POOL_BYTES,
        ..Setup::default()
    })?;
    for side in [Side::Server, Side::Client] {
        system.devices[0].chain(side)?.set_rate(DISK_MBIT)?;
    }
    let clients = BTreeMap::from([
        ("alpha", system.client("alpha")?),
        ("beta", system.client("beta")?),
    ]);
    let workers = (0..).zip(WORKERS);
    let workers =
        workers.map(|(number, host)| Worker::new(number, &clients[host], &system, plan.seed));
    let mut course = Course {
        workers: workers.collect(),
        random: Random::labelled(plan.seed, b"faults"),
        faults: BTreeMap::new(),
        tally: Tally::default(),
    };
    let soak = Soak {
        system: Mutex::new(system),
        over: AtomicBool::new(false),
        faults: Mutex::default(),
    };
    let mut phase = || -> Result<(Footprint, usize)> {
        course.phase(&soak, plan.length / 2)?;
        soak.measure(&clients)
    };
    // Whatever is made once and kept has been made at half-time.
    let (before, sessions_before) = phase()?;
    let (after, sessions_after) = phase()?;
    let soaked = Soaked {
        course,
        footprints: [before, after],
        sessions: [sessions_before, sessions_after],
    };
    println!("{soaked}");
    let unlawful = &soaked.course.tally.unlawful;
    ensure!(
        unlawful.is_empty(),
        "against the rule: {}",
        unlawful.join("\n\n")
    );
    soaked.nothing_was_kept()?;
    let system = soak.system();
    for client in clients.values() {
        system
            .restic(client, &["check", "--read-data"])?
            .success()?;
    }
    Ok(())
}

impl Course {
    /// Lets jobs run and makes faults, and waits for the last job.
    fn phase(&mut self, soak: &Soak, length: Duration) -> Result<()> {
        soak.over.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let workers = self.workers.iter_mut();
            let running: Vec<_> = workers
                .map(|worker| scope.spawn(|| worker.work(soak)))
                .collect();
            let end = Instant::now() + length;
            let made = make_faults(soak, end, &mut self.random, &mut self.faults);
            soak.over.store(true, Ordering::SeqCst);
            for worker in running {
                self.tally
                    .add(worker.join().expect("a worker doesn't panic")?);
            }
            made
        })
    }
}

fn make_faults(
    soak: &Soak,
    end: Instant,
    random: &mut Random,
    made: &mut BTreeMap<&'static str, u32>,
) -> Result<()> {
    while Instant::now() < end {
        std::thread::sleep(span(random, PAUSE_MAX));
        let fault = MADE[below(random, MADE.len())];
        *made.entry(fault.name()).or_default() += 1;
        soak.faults().push((Instant::now(), None));
        fault.begin(&mut soak.system())?;
        std::thread::sleep(span(random, FAULT_MAX));
        fault.end(&mut soak.system())?;
        if let Some((_, ended)) = soak.faults().last_mut() {
            *ended = Some(Instant::now());
        }
    }
    Ok(())
}

impl Soak {
    fn system(&self) -> MutexGuard<'_, System> {
        self.system.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Vec<(Instant, Option<Instant>)>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a fault was there at any time of these.
    fn had_fault(&self, from: Instant, to: Instant) -> bool {
        let faults = self.faults();
        let mut faults = faults.iter();
        faults.any(|(begun, ended)| *begun < to && ended.is_none_or(|ended| ended > from))
    }

    /// What the server holds when nothing runs, and how many sessions have room in the pool.
    fn measure(&self, clients: &BTreeMap<&str, Client>) -> Result<(Footprint, usize)> {
        // Whoever was killed holds segments until then.
        std::thread::sleep(PEER_DEAD);
        let mut system = self.system();
        system.connections_are_gone()?;
        let sessions = footprint::sessions_at_once(&system, clients.values());
        let sessions = sessions.with_context(|| {
            let server = system.server().map(|server| server.said());
            format!("the server:\n{}", server.unwrap_or_default())
        })?;
        system.connections_are_gone()?;
        let footprint = Footprint::of(system.server()?.id())?;
        Ok((footprint, sessions))
    }
}

impl Display for Soaked {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Course { faults, tally, .. } = &self.course;
        for (what, count) in tally.outcomes.iter().chain(faults) {
            writeln!(f, "{count:>6}  {what}")?;
        }
        for (what, bytes) in &tally.bytes {
            writeln!(f, "{:>6}  MiB {what}", bytes >> 20)?;
        }
        let whens = ["at half-time", "at the end"].iter().zip(&self.footprints);
        for ((when, server), sessions) in whens.zip(self.sessions) {
            let (files, threads) = (server.open_files(), server.threads);
            let mib = server.memory_bytes >> 20;
            writeln!(
                f,
                "{when} the server holds {files} open files, {threads} threads and {mib} MiB; \
                 the pool has room for {sessions} sessions"
            )?;
        }
        Ok(())
    }
}

impl Soaked {
    fn nothing_was_kept(&self) -> Result<()> {
        let [before, after] = &self.footprints;
        let kept = || format!("at half-time {before:?}, at the end {after:?}");
        ensure!(
            after.open_files() <= before.open_files(),
            "open files: {}",
            kept()
        );
        ensure!(after.threads <= before.threads, "threads: {}", kept());
        let memory_max = before.memory_bytes + GROWTH_BYTES_MAX;
        ensure!(after.memory_bytes <= memory_max, "memory: {}", kept());
        let [before, after] = self.sessions;
        ensure!(
            after >= before,
            "{before} sessions had room in the pool, {after} have now"
        );
        Ok(())
    }
}

/// What is made: all but the death of the server, for whatever it keeps must add up.
const MADE: [Fault; 11] = [
    Fault::ServerLosesDisk,
    Fault::ClientLosesDisk,
    Fault::IoErrors,
    Fault::HangingIo,
    Fault::SlowIo,
    Fault::DiskOverwritten,
    Fault::CableCut,
    Fault::AddressGone,
    Fault::ConnectionsReset,
    Fault::AnswersLost,
    Fault::ServerPaused,
];

fn span(random: &mut Random, max: Duration) -> Duration {
    const SPAN_MIN: Duration = Duration::from_millis(500);
    let more = max - SPAN_MIN;
    SPAN_MIN + more.mul_f64(random.below(1000) as f64 / 1000.0)
}

/// A number below `bound`.
fn below(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).expect("below a usize")
}
