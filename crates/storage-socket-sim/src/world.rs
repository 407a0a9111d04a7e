//! Hosts and devices in virtual time.
//!
//! The world moves from one happening to the next: something lands, is answered, rings, breaks or is due. It plays the
//! driver of every host and the users of every stream; what it watches, it watches from outside (`check`).

mod agenda;
mod check;
mod events;
mod hosts;
mod io;
mod nonces;
mod plan;
mod trouble;

use crate::{
    broken::{Broken, Promise},
    coverage::{Coverage, Fault},
    device::{Faults, SimDevice},
    host::{Arrival, Host, HostIndex, MEMBERS},
    report::Report,
    rng::{Rng, mix},
    scenario::{Scenario, timeouts},
};
use agenda::Agenda;
use hosts::Wish;
use io::{Answer, Buffers, Flight};
pub(crate) use nonces::KEYSTREAM_BYTES;
use nonces::Nonces;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use storage_socket_proto::{
    ConnectionId, DeviceMask, DeviceSize, Epoch, Geometry, Incarnation, PoolId, Port, SlotIndex,
    Tick,
};
use trouble::{Outage, Trouble};

/// What happens at some time.
#[derive(Debug)]
enum Happening {
    /// Bytes reach the medium.
    Land(Flight),
    /// An I/O ends.
    Answer(Answer),
    Ring(HostIndex, Bell),
    Start(HostIndex),
    Connect(HostIndex),
    Accept(HostIndex, ConnectionId),
    Wake(HostIndex, u64),
    Begin(Trouble),
    /// A device or a path is there again.
    Return(Outage),
    Allow(SlotIndex),
    /// The checkers look round.
    Audit,
    FaultsEnd,
}

#[derive(Clone, Copy, Debug)]
enum Bell {
    Machine,
    Connection(ConnectionId),
}

/// A run.
#[derive(Debug)]
pub struct World {
    /// The virtual time.
    pub now: Tick,
    seed: u64,
    rng: Rng,
    scenario: Scenario,
    faults: Faults,
    geometry: Arc<Geometry>,
    devices: Vec<SimDevice>,
    /// What is out of order now, and how often it was made so.
    outages: BTreeMap<Outage, u32>,
    hosts: BTreeMap<HostIndex, Host>,
    due: BTreeSet<(Tick, HostIndex)>,
    lives: u64,
    /// The newest write that has landed.
    landed: u64,
    agenda: Agenda<Happening>,
    happened: u64,
    wishes: BTreeMap<HostIndex, Vec<Wish>>,
    /// The epochs that each server has had. Its local lock remembers the last.
    epochs: BTreeMap<HostIndex, Vec<Epoch>>,
    /// The newest epoch that stood on the devices when each server started last.
    found: BTreeMap<HostIndex, Option<Epoch>>,
    revoked: BTreeSet<SlotIndex>,
    /// Slots in which there is, or was just now, a clone.
    contested: BTreeSet<SlotIndex>,
    /// The pool has had two claimants at once.
    is_rivalled: bool,
    faults_over: bool,
    /// The epoch that two cloned servers share, until each has used it.
    shared_epoch: Option<(u64, Vec<HostIndex>)>,
    /// The epoch that they share, for ever.
    cloned_epoch: Option<Epoch>,
    /// The incarnation of the clone that starts next, if it is that of a running process.
    clones_incarnation: Option<Incarnation>,
    /// The server that doesn't come back.
    retired: Option<HostIndex>,
    /// From when on everything has to make progress.
    settled_from: Tick,
    is_settled: bool,
    /// When no two coordinators served last.
    alone_at: Tick,
    /// What was hit.
    pub hit: Coverage,
    /// What came of it so far.
    pub report: Report,
    nonces: Nonces,
    trace: Option<VecDeque<String>>,
    buffers: Buffers,
}

/// Lines of trace that are kept.
const TRACE_MAX: usize = 400;
/// Happenings in a run at most, so that a livelock is found.
const HAPPENINGS_MAX: u64 = 1_000_000;
const PORT: Port = Port(7);
/// Who wrote what lies on the devices from before, and has to be believed by nobody.
const FOREIGN: u64 = 0x0bad;

impl World {
    /// A pool, its coordinator and its members, about to start.
    ///
    /// # Panics
    /// If the scenario makes no pool: a bug of the scenario.
    #[must_use]
    pub fn new(seed: u64, scenario: Scenario) -> Self {
        let slots = scenario.members + 2;
        let crowd = u64::from(scenario.members.saturating_sub(4));
        let size = DeviceSize {
            blocks: 2048 + crowd * u64::from(scenario.window) * 64,
            logical_block: 512,
        };
        let sizes = vec![size; usize::from(scenario.devices)];
        let geometry = Geometry::new(PoolId::default(), slots, &sizes, timeouts());
        let members = MEMBERS..MEMBERS + scenario.members;
        let mut world = Self {
            now: Tick::from_millis(1),
            seed,
            rng: Rng::new(seed),
            faults: Faults::new(seed, scenario.rates.clone(), scenario.slow_max),
            geometry: Arc::new(geometry.expect("a sound geometry")),
            devices: sizes.iter().map(|_| SimDevice::new()).collect(),
            outages: BTreeMap::new(),
            hosts: BTreeMap::new(),
            due: BTreeSet::new(),
            lives: 0,
            landed: 0,
            agenda: Agenda::new(),
            happened: 0,
            wishes: members.map(|host| (host, Vec::new())).collect(),
            epochs: BTreeMap::new(),
            found: BTreeMap::new(),
            revoked: BTreeSet::new(),
            contested: BTreeSet::new(),
            is_rivalled: false,
            faults_over: false,
            shared_epoch: None,
            cloned_epoch: None,
            clones_incarnation: None,
            retired: None,
            settled_from: Tick::default(),
            is_settled: false,
            alone_at: Tick::default(),
            hit: Coverage::default(),
            report: Report::default(),
            nonces: Nonces::default(),
            trace: None,
            buffers: Buffers::default(),
            scenario,
        };
        world.plan();
        world
    }

    /// Keeps what happens last, for the message of a failed run.
    pub fn trace(&mut self) {
        self.trace = Some(VecDeque::new());
    }

    /// What happened last.
    #[must_use]
    pub fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default().into()
    }

    /// Runs until every goal is reached, and everything that was granted is free again.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn run(&mut self) -> Result<(), Broken> {
        let deadline = self.now + self.scenario.faults_end + self.scenario.patience;
        while !self.is_settled {
            if self.now > deadline {
                return Err(Promise::Finishes.broken(self.unfinished()));
            }
            self.step()?;
        }
        self.report.millis = self.now.as_micros() / 1000;
        self.report.happenings = self.happened;
        Ok(())
    }

    fn step(&mut self) -> Result<(), Broken> {
        self.happened += 1;
        if self.happened > HAPPENINGS_MAX {
            let what = format!("{HAPPENINGS_MAX} happenings and no end: a livelock");
            return Err(Promise::Finishes.broken(what));
        }
        let planned = self.agenda.next_at();
        match (planned, self.due.first().copied()) {
            (planned, Some((at, host))) if planned.is_none_or(|planned| at < planned) => {
                self.now = self.now.max(at);
                self.wake(host)
            }
            (Some(at), _) => {
                self.now = self.now.max(at);
                match self.agenda.take() {
                    Some(happening) => self.happen(happening),
                    None => Ok(()),
                }
            }
            (None, _) => Err(Promise::Finishes.broken("nothing will ever happen again")),
        }
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Land(flight) => self.land(flight),
            Happening::Answer(answer) => {
                let (host, life) = (answer.host, answer.life);
                if let Some(outcome) = self.outcome(answer) {
                    return self.arrive(host, Some(life), Arrival::Outcome(outcome));
                }
            }
            Happening::Ring(host, bell) => {
                let arrival = match bell {
                    Bell::Machine => Arrival::Bell,
                    Bell::Connection(connection) => Arrival::BellFor(connection),
                };
                return self.arrive(host, None, arrival);
            }
            Happening::Start(host) => return self.start(host),
            Happening::Connect(host) => return self.connect(host),
            Happening::Accept(host, connection) => return self.accept(host, connection),
            Happening::Wake(host, life) => return self.woken(host, life),
            Happening::Begin(trouble) => return self.begin(trouble),
            Happening::Return(outage) => self.heal(outage),
            Happening::Allow(slot) => {
                self.revoked.remove(&slot);
                return self.tell_slots();
            }
            Happening::Audit => {
                self.schedule(AUDIT, Happening::Audit);
                return self.audit();
            }
            Happening::FaultsEnd => return self.end_faults(),
        }
        Ok(())
    }

    fn schedule(&mut self, after: Duration, happening: Happening) {
        self.agenda.plan(self.now + after, happening);
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() >= TRACE_MAX {
                trace.pop_front();
            }
            trace.push_back(format!("{} {}", self.now, line()));
        }
    }

    /// Rings a host, or doesn't, or late, or twice.
    fn ring(&mut self, host: HostIndex, bell: Bell) {
        if self.faults.hits(Fault::BellLost) {
            self.hit.fault(Fault::BellLost);
            return;
        }
        let mut times = 1;
        if self.faults.hits(Fault::BellTwice) {
            self.hit.fault(Fault::BellTwice);
            times = 2;
        }
        for _ in 0..times {
            let (low, mut high) = (Duration::from_micros(30), Duration::from_millis(1));
            if self.faults.hits(Fault::BellLate) {
                self.hit.fault(Fault::BellLate);
                high = Duration::from_millis(700);
            }
            let after = self.rng.span(low, high);
            self.schedule(after, Happening::Ring(host, bell));
        }
    }

    fn all_devices(&self) -> DeviceMask {
        self.geometry.all_devices()
    }

    /// A number that follows from the seed and `of` alone.
    fn fixed(&self, of: u64) -> u64 {
        fixed(self.seed, of)
    }
}

fn fixed(seed: u64, of: u64) -> u64 {
    mix(seed ^ mix(of))
}

/// How often the checkers look round.
const AUDIT: Duration = Duration::from_millis(100);
