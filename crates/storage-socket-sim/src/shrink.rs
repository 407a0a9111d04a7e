//! Makes a run that failed smaller: kinds of fault are switched off and parameters reduced as long as it still breaks
//! the same promise.

use crate::{
    broken::Broken,
    coverage::Fault,
    run_scenario, run_world,
    scenario::{Damage, Keys, Network, Scenario},
    world::World,
};
use std::{fmt::Write as _, time::Duration};
use storage_socket_proto::{Cipher, Doorbell, Polling};

/// A run that failed, made as small as could be.
#[derive(Clone, Debug)]
pub struct Shrunken {
    /// The seed.
    pub seed: u64,
    /// What is left of its scenario.
    pub scenario: Scenario,
    /// What it broke in the end.
    pub broken: Broken,
    /// How many runs that took.
    pub runs: u32,
    /// What happened last.
    pub log: Vec<String>,
}

/// Runs that are made at most.
const RUNS_MAX: u32 = 400;

/// Shrinks a scenario that broke a promise with a seed.
#[must_use]
pub fn shrink(seed: u64, scenario: Scenario, broken: Broken) -> Shrunken {
    let mut best = Shrunken {
        seed,
        scenario,
        broken,
        runs: 0,
        log: Vec::new(),
    };
    while best.runs < RUNS_MAX && round(&mut best) {}
    let mut world = World::new(seed, best.scenario.clone());
    world.trace();
    if let Err(broken) = run_world(&mut world) {
        best.broken = broken;
    }
    best.log = world.take_trace();
    best
}

/// Tries every step once. Returns whether any helped.
fn round(best: &mut Shrunken) -> bool {
    let before = best.runs;
    let mut any = false;
    let on: Vec<(Fault, u32)> = best.scenario.rates.on().collect();
    for (fault, rate) in on {
        any |= attempt(best, |scenario| scenario.rates.set(fault, 0));
        if rate > 3 && best.scenario.rates.of(fault) > 0 {
            any |= attempt(best, |scenario| scenario.rates.set(fault, rate / 4));
        }
    }
    let steps: [&dyn Fn(&mut Scenario); 11] = [
        &|scenario| scenario.members = 1,
        &|scenario| scenario.streams = 1,
        &|scenario| scenario.streams_at_once = 1,
        &|scenario| scenario.devices = 1,
        &|scenario| scenario.window = 3,
        &|scenario| scenario.payload_max = 3000,
        &|scenario| scenario.cipher = Cipher::Checksum,
        &|scenario| scenario.keys = Keys::Public,
        &|scenario| scenario.doorbell = Doorbell::Absent,
        &|scenario| {
            scenario.polling = Polling::Adaptive;
            scenario.network = Network::Absent;
            scenario.damage = Damage::Stays;
            scenario.backlog = 16;
            scenario.slot_units = 1024;
        },
        &|scenario| {
            let shorter = scenario.faults_end * 2 / 3;
            scenario.faults_end = shorter.max(Duration::from_millis(30));
        },
    ];
    for step in steps {
        any |= attempt(best, step);
    }
    any && best.runs > before
}

fn attempt(best: &mut Shrunken, step: impl Fn(&mut Scenario)) -> bool {
    let mut smaller = best.scenario.clone();
    step(&mut smaller);
    if format!("{smaller:?}") == format!("{:?}", best.scenario) || best.runs >= RUNS_MAX {
        return false;
    }
    best.runs += 1;
    match run_scenario(best.seed, smaller.clone()) {
        Err(broken) if broken.promise == best.broken.promise => {
            best.scenario = smaller;
            best.broken = broken;
            true
        }
        _ => false,
    }
}

impl Shrunken {
    /// What is printed of it.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for line in &self.log {
            let _ = writeln!(text, "  {line}");
        }
        let Scenario {
            devices,
            members,
            streams,
            window,
            ..
        } = self.scenario;
        let _ = writeln!(
            text,
            "shrunken in {} runs to {members} members, {streams} streams, {devices} devices, window {window}, with:",
            self.runs
        );
        for (fault, rate) in self.scenario.rates.on() {
            let _ = writeln!(text, "  {} ({rate})", fault.name());
        }
        let _ = writeln!(text, "broken there: {}", self.broken);
        text
    }
}
