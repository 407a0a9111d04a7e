//! One after the other: a tree changes, is backed up and restored, by jobs that are killed now and then.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fidelity::Random;
use rustix::process::Signal;
use serde_json::Value;

use super::{Soak, below};
use crate::data::same;
use crate::matrix::{Policy, Work};
use crate::process::Ended;
use crate::system::{Client, System};

/// Files of a tree.
const FILES: usize = 6;

/// Bytes of each.
const FILE_BYTES: usize = 4 << 20;

/// How many jobs may come to nothing before one has to be done.
const ATTEMPTS_MAX: u32 = 24;

/// Before another job where one found no way: a device that is lost again and again is looked at once a minute at last,
/// and with these pauses the attempts outlast that.
const PAUSE: Duration = Duration::from_secs(10);

/// One job in so many is killed.
const KILLED_ONE_IN: usize = 10;

/// A job that begins so soon after a fault, or meets one so soon after its start, may find no way to the server, and says
/// so.
const START: Duration = Duration::from_secs(20);

/// A job that takes longer is killed, which is against the rule: it waits for a route for ten minutes.
const JOB_DEADLINE: Duration = Duration::from_secs(660);

const POLL: Duration = Duration::from_millis(20);

/// Whoever runs jobs.
pub(super) struct Worker {
    client: Client,
    source: PathBuf,
    target: PathBuf,
    random: Random,
}

/// What came of jobs.
#[derive(Default)]
pub(super) struct Tally {
    /// How often each outcome was seen.
    pub(super) outcomes: BTreeMap<&'static str, u32>,
    /// Bytes of bodies by each route, as the jobs that were done say.
    pub(super) bytes: BTreeMap<&'static str, u64>,
    /// What was against the rule.
    pub(super) unlawful: Vec<String>,
}

/// What came of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Killed,
    NoWay,
    Unlawful,
}

impl Worker {
    pub(super) fn new(number: u64, client: &Client, system: &System, seed: u64) -> Self {
        Self {
            client: client.clone(),
            source: system.path(format!("soak-source-{number}")),
            target: system.path(format!("soak-target-{number}")),
            random: Random::labelled(seed, &number.to_le_bytes()),
        }
    }

    /// Works until the soak is over.
    pub(super) fn work(&mut self, soak: &Soak) -> Result<Tally> {
        let mut tally = Tally::default();
        while !soak.over.load(Ordering::SeqCst) {
            self.change()?;
            let source = self.source.display().to_string();
            let Some(document) =
                self.do_it(soak, Work::Backup, &["backup", &source], &mut tally)?
            else {
                continue;
            };
            let snapshot = document["snapshot"].as_str().context("no snapshot")?;
            let (snapshot, target) = (format!("{snapshot}:{source}"), self.target.clone());
            if target.exists() {
                std::fs::remove_dir_all(&target)?;
            }
            let target = target.display().to_string();
            let restore = ["restore", &snapshot, "--target", &target];
            if self
                .do_it(soak, Work::Restore, &restore, &mut tally)?
                .is_some()
                && let Err(why) = same(&self.source, &self.target)
            {
                tally.unlawful.push(format!("{why:#}"));
            }
        }
        Ok(tally)
    }

    /// Writes some files of the tree anew.
    fn change(&mut self) -> Result<()> {
        std::fs::create_dir_all(&self.source)?;
        for number in 0..FILES {
            let path = self.source.join(format!("file-{number}"));
            if !path.exists() || self.random.below(2) == 0 {
                std::fs::write(&path, self.random.bytes(FILE_BYTES))?;
            }
        }
        Ok(())
    }

    /// Runs a job again and again until it is done, and returns its document; `None` if it never is.
    fn do_it(
        &mut self,
        soak: &Soak,
        work: Work,
        arguments: &[&str],
        tally: &mut Tally,
    ) -> Result<Option<Value>> {
        let mut last = String::new();
        for _ in 0..ATTEMPTS_MAX {
            let policy = Policy::ALL[below(&mut self.random, Policy::ALL.len())];
            let is_killed = below(&mut self.random, KILLED_ONE_IN) == 0;
            let kill_after = Duration::from_millis(self.random.below(3000));
            let start = Instant::now();
            let ended = self.run(soak, policy, arguments, is_killed.then_some(kill_after))?;
            let met_fault = soak.had_fault(start - START, start + START);
            let outcome = judge(&ended, policy, is_killed, met_fault)?;
            tally.count(work, outcome);
            match outcome {
                Outcome::Done => {
                    let document = ended.json()?;
                    tally.count_bytes(&document)?;
                    return Ok(Some(document));
                }
                Outcome::Killed => {}
                Outcome::NoWay => {
                    last = ended.to_string();
                    std::thread::sleep(PAUSE);
                }
                Outcome::Unlawful => tally.unlawful.push(format!("{policy}: {ended}")),
            }
        }
        let never = format!("{ATTEMPTS_MAX} jobs came to nothing, the last one by {last}");
        tally.unlawful.push(never);
        Ok(None)
    }

    fn run(
        &self,
        soak: &Soak,
        policy: Policy,
        arguments: &[&str],
        kill_after: Option<Duration>,
    ) -> Result<Ended> {
        let policy = policy.to_string();
        let arguments = arguments.iter().copied();
        let arguments = arguments.chain(["--verbose", "--route", &policy]);
        let mut job = soak.system().start(&self.client, arguments)?;
        let start = Instant::now();
        let mut kill_after = Some(kill_after.unwrap_or(JOB_DEADLINE));
        while job.is_running()? {
            if kill_after
                .take_if(|after| start.elapsed() >= *after)
                .is_some()
            {
                job.signal(Signal::KILL)?;
            }
            std::thread::sleep(POLL);
        }
        job.wait()
    }
}

impl Tally {
    fn count(&mut self, work: Work, outcome: Outcome) {
        let name = match (work, outcome) {
            (Work::Backup, Outcome::Done) => "backup done",
            (Work::Restore, Outcome::Done) => "restore done",
            (_, Outcome::Killed) => "killed",
            (_, Outcome::NoWay) => "no way to the server at the start",
            (_, Outcome::Unlawful) => "against the rule",
        };
        *self.outcomes.entry(name).or_default() += 1;
    }

    fn count_bytes(&mut self, document: &Value) -> Result<()> {
        for (route, field) in [
            ("by storage", "bytes_storage"),
            ("by network", "bytes_network"),
        ] {
            let bytes = document[field].as_u64().context(field)?;
            *self.bytes.entry(route).or_default() += bytes;
        }
        Ok(())
    }

    pub(super) fn add(&mut self, other: Self) {
        for (name, count) in other.outcomes {
            *self.outcomes.entry(name).or_default() += count;
        }
        for (route, bytes) in other.bytes {
            *self.bytes.entry(route).or_default() += bytes;
        }
        self.unlawful.extend(other.unlawful);
    }
}

/// What the rule says of a job that ended.
fn judge(ended: &Ended, policy: Policy, is_killed: bool, met_fault: bool) -> Result<Outcome> {
    const KILLED: i32 = 128 + Signal::KILL.as_raw();
    Ok(match ended.code() {
        KILLED if is_killed => Outcome::Killed,
        0 if policy == Policy::Prefer || ended.json()?["bytes_network"] == 0 => Outcome::Done,
        1 | 4 if met_fault && ended.text().contains("no session") => Outcome::NoWay,
        // A job that was killed holds its own until it is taken for dead, and nobody is while a device is lost.
        4 if ended.text().contains("reason: no_free_segments") => Outcome::NoWay,
        _ => Outcome::Unlawful,
    })
}
