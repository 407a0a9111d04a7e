//! Hosts and devices in virtual time, and the checkers that watch them from outside.
//!
//! The checkers know nothing of the machines' state: they see bytes, grants and requests. What they hold them to:
//! delivered is a prefix of what was sent; a frame slot is written only after what was there was delivered; no unit is
//! in two grants that both may still be written; and once faults have ended, everything finishes.

mod events;

use crate::{
    device::{Faults, Landing, ReadFate, SimDevice},
    host::{Ended, Host, Machine, Owner},
    rng::Rng,
    scenario::{Scenario, timeouts},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use storage_socket_proto::{
    Claim, ConnectOptions, ConnectionId, Coordinator, CoordinatorConfig, DeviceMask, DeviceSize,
    Direction, Doorbell, Epoch, Fence, Geometry, Grant, Incarnation, IoFailure, IoId, IoOp,
    IoOutcome, IoRequest, ListenOptions, ListenProtection, Member, MemberConfig, Name, PoolId,
    Port, Sequence, SlotIndex, TagKey, Tick, UnitCount,
};

/// Names a host: 0 is the coordinator's.
pub type HostIndex = u32;

/// What happens at some time.
#[derive(Debug)]
enum Happening {
    Land(usize, Landing),
    Answer(Answer),
    Ring(HostIndex, Bell),
    Crash(HostIndex),
    Start(HostIndex),
    Connect(HostIndex),
    Freeze(usize),
    Thaw(usize),
    FaultsEnd,
}

#[derive(Debug)]
struct Answer {
    host: HostIndex,
    life: u64,
    owner: Owner,
    id: IoId,
    device: usize,
    result: Result<(), IoFailure>,
    read: Option<(ReadFate, (u64, u32))>,
    frame: Option<Sequence>,
}

#[derive(Clone, Copy, Debug)]
enum Bell {
    Machine,
    Connection(ConnectionId),
}

/// A grant as the checkers see it.
#[derive(Clone, Copy, Debug)]
struct Watched {
    grant: Grant,
    at_coordinator: bool,
    at_member: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Streams that were brought to a good end.
    pub finished: u32,
    /// Streams that were reset on the way, by reason.
    pub reset: BTreeMap<String, u32>,
    /// Requests that were refused, by reason.
    pub refused: BTreeMap<String, u32>,
    /// Frames written again because the reader asked.
    pub resends: u64,
    /// Reads of announced frames that didn't open.
    pub damaged: u64,
    /// Frames delivered.
    pub frames: u64,
    /// I/Os that were asked for.
    pub ios: u64,
    /// Virtual time, in milliseconds.
    pub millis: u64,
}

/// A run.
#[derive(Debug)]
pub struct World {
    /// The virtual time.
    pub now: Tick,
    rng: Rng,
    /// What it is about.
    pub scenario: Scenario,
    faults: Faults,
    pool: PoolId,
    geometry: Arc<Geometry>,
    /// The devices.
    pub devices: Vec<SimDevice>,
    /// The hosts that run.
    pub hosts: BTreeMap<HostIndex, Host>,
    lives: BTreeMap<HostIndex, u64>,
    agenda: BTreeMap<(Tick, u64), Happening>,
    happened: u64,
    goals: BTreeMap<HostIndex, u32>,
    watched: Vec<Watched>,
    served_before: bool,
    faults_over: bool,
    /// What came of it so far.
    pub report: Report,
    /// The last things that happened, for the message of a failed run.
    pub trace: VecDeque<String>,
}

/// Lines of trace that are kept.
const TRACE_MAX: usize = 60;
/// Happenings in a run at most, so that a livelock is found.
const HAPPENINGS_MAX: u64 = 600_000;
const PORT: Port = Port(7);

impl World {
    /// A pool, its coordinator and its members, about to start.
    ///
    /// # Panics
    /// If the scenario makes no pool: a bug of the scenario.
    #[must_use]
    pub fn new(seed: u64, scenario: Scenario) -> Self {
        let pool = PoolId::default();
        let size = DeviceSize {
            blocks: 4096,
            logical_block: 512,
        };
        let sizes = vec![size; usize::from(scenario.devices)];
        let geometry = Geometry::new(pool, SLOTS, &sizes, timeouts()).expect("a sound geometry");
        let mut world = Self {
            now: Tick::from_millis(1),
            rng: Rng::new(seed),
            faults: scenario.faults.clone(),
            pool,
            geometry: Arc::new(geometry),
            devices: sizes.iter().map(|_| SimDevice::new()).collect(),
            hosts: BTreeMap::new(),
            lives: BTreeMap::new(),
            agenda: BTreeMap::new(),
            happened: 0,
            goals: (1..=scenario.members).map(|host| (host, 0)).collect(),
            watched: Vec::new(),
            served_before: false,
            faults_over: false,
            report: Report::default(),
            trace: VecDeque::new(),
            scenario,
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        let end = self.scenario.faults_end;
        for host in 0..=self.scenario.members {
            self.schedule(
                Duration::from_micros(u64::from(host) * 300),
                Happening::Start(host),
            );
        }
        let crashes = (0..self.scenario.coordinator_crashes).map(|_| 0);
        let members = u64::from(self.scenario.members);
        let crashes: Vec<HostIndex> = crashes
            .chain((0..self.scenario.member_crashes).map(|_| 1))
            .collect();
        for host in crashes {
            let after = self.rng.span(Duration::from_millis(20), end);
            let which = u32::try_from(self.rng.below(members)).unwrap_or(0);
            self.schedule(
                after,
                Happening::Crash(host + if host > 0 { which } else { 0 }),
            );
        }
        for _ in 0..self.scenario.freezes {
            let after = self.rng.span(Duration::from_millis(20), end);
            let device = usize::try_from(self.rng.below(self.devices.len() as u64)).unwrap_or(0);
            let span = self
                .rng
                .span(Duration::from_millis(5), Duration::from_millis(700));
            self.schedule(after, Happening::Freeze(device));
            self.schedule(after + span, Happening::Thaw(device));
        }
        self.schedule(end, Happening::FaultsEnd);
    }

    /// Runs until every goal is reached.
    ///
    /// # Errors
    /// The promise that was broken, in words.
    pub fn run(&mut self) -> Result<(), String> {
        let deadline = self.now + self.scenario.faults_end + self.scenario.patience;
        while !self.is_done() {
            if self.now > deadline {
                return Err(format!(
                    "not finished {:?} after the last fault",
                    self.scenario.patience
                ));
            }
            self.step()?;
        }
        self.report.millis = self.now.as_micros() / 1000;
        Ok(())
    }

    /// Runs until `until`.
    ///
    /// # Errors
    /// The promise that was broken, in words.
    pub fn run_until(&mut self, until: Tick) -> Result<(), String> {
        while self.next_time().is_some_and(|at| at <= until) {
            self.step()?;
        }
        self.now = self.now.max(until);
        Ok(())
    }

    fn is_done(&self) -> bool {
        let reached = |(_, done): (&HostIndex, &u32)| *done >= self.scenario.streams;
        self.faults_over && self.goals.iter().all(reached)
    }

    fn next_time(&self) -> Option<Tick> {
        let agenda = self.agenda.keys().next().map(|(at, _)| *at);
        self.hosts
            .values()
            .filter_map(Host::poll_timeout)
            .chain(agenda)
            .min()
            .map(|at| at.max(self.now))
    }

    fn step(&mut self) -> Result<(), String> {
        self.happened += 1;
        if self.happened > HAPPENINGS_MAX {
            return Err(format!(
                "{HAPPENINGS_MAX} happenings and no end: a livelock"
            ));
        }
        let Some(at) = self.next_time() else {
            return Err("nothing will ever happen again".to_owned());
        };
        self.now = at;
        if let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= at
        {
            let happening = entry.remove();
            self.happen(happening)?;
        } else {
            for host in self.hosts.values_mut() {
                host.handle_timeout(at);
            }
        }
        for index in 0..=self.scenario.members {
            self.pump(index)?;
        }
        Ok(())
    }

    fn schedule(&mut self, after: Duration, happening: Happening) {
        self.happened += 1;
        self.agenda
            .insert((self.now + after, self.happened), happening);
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() >= TRACE_MAX {
            self.trace.pop_front();
        }
        let line = format!("{} {}", self.now, line());
        self.trace.push_back(line);
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Land(device, landing) => {
                self.devices[device].land(&mut self.rng, self.now, &landing);
            }
            Happening::Answer(answer) => self.answer(answer),
            Happening::Ring(host, bell) => self.rung(host, bell),
            Happening::Crash(host) => {
                self.note(|| format!("host {host} crashes"));
                self.crash(host, Duration::from_millis(30));
            }
            Happening::Start(host) => self.start(host),
            Happening::Connect(host) => self.connect(host)?,
            Happening::Freeze(device) => {
                self.note(|| format!("device {device} hangs"));
                self.devices[device].frozen = true;
            }
            Happening::Thaw(device) => self.devices[device].frozen = false,
            Happening::FaultsEnd => {
                self.note(|| "faults end".to_owned());
                self.faults_over = true;
                let sector_bytes = self.faults.sector_bytes;
                self.faults = Faults {
                    sector_bytes,
                    ..Faults::none()
                };
                self.scenario.bells_lost = 0;
                for device in &mut self.devices {
                    device.frozen = false;
                }
            }
        }
        Ok(())
    }

    fn crash(&mut self, index: HostIndex, rest: Duration) {
        if self.hosts.remove(&index).is_none() {
            return;
        }
        for watched in &mut self.watched {
            if index == 0 {
                watched.at_coordinator = false;
            } else if watched.grant.slot == slot_of(index) {
                watched.at_member = false;
            }
        }
        *self.lives.entry(index).or_default() += 1;
        self.schedule(rest, Happening::Start(index));
    }

    fn start(&mut self, index: HostIndex) {
        if self.hosts.contains_key(&index) {
            return;
        }
        self.note(|| format!("host {index} starts"));
        let machine = if index == 0 {
            Machine::Coordinator(Box::new(self.new_coordinator()))
        } else {
            Machine::Member(Box::new(self.new_member(index)))
        };
        let host = Host {
            machine,
            connections: BTreeMap::new(),
            fence: Fence::Open,
        };
        self.hosts.insert(index, host);
        if index > 0 {
            for _ in 0..self.scenario.streams_at_once {
                self.schedule(Duration::ZERO, Happening::Connect(index));
            }
        }
    }

    fn new_coordinator(&mut self) -> Coordinator {
        let claim = if self.served_before || self.rng.chance(500_000) {
            Claim::SameHost
        } else {
            Claim::Wait
        };
        self.served_before = true;
        let config = CoordinatorConfig {
            geometry: Arc::clone(&self.geometry),
            epoch: Epoch(self.rng.bits() | 1),
            host: Name::lossy("server"),
            devices: self.geometry.all_devices(),
            claim,
            key: TagKey::public(),
            doorbell: self.scenario.doorbell,
            frame_units_max: UnitCount(16),
            window_max: UnitCount(64),
            slot_units_max: UnitCount(1024),
        };
        let mut coordinator = Coordinator::new(self.now, config);
        let slots = (1..=self.scenario.members).map(|host| (slot_of(host), TagKey::public()));
        coordinator.set_slots(self.now, slots.collect());
        let options = ListenOptions {
            backlog: 16,
            protection: if self.scenario.cipher.is_sealed() {
                ListenProtection::Sealed
            } else {
                ListenProtection::Checksum
            },
        };
        let bound = coordinator.bind(self.now, PORT, options);
        debug_assert!(bound.is_ok(), "a new coordinator has no ports");
        coordinator
    }

    fn new_member(&mut self, index: HostIndex) -> Member {
        let config = MemberConfig {
            geometry: Arc::clone(&self.geometry),
            slot: slot_of(index),
            incarnation: Incarnation(self.rng.bits() | 1),
            host: Name::lossy("client"),
            devices: self.geometry.all_devices(),
            page_key: TagKey::public(),
            coordinator_key: TagKey::public(),
            doorbell: self.scenario.doorbell,
        };
        Member::new(self.now, config)
    }

    fn connect(&mut self, index: HostIndex) -> Result<(), String> {
        let done = self.goals.get(&index).copied().unwrap_or(0);
        let Some(Host {
            machine: Machine::Member(member),
            ..
        }) = self.hosts.get_mut(&index)
        else {
            return Ok(());
        };
        if done >= self.scenario.streams {
            return Ok(());
        }
        let options = ConnectOptions {
            connection: ConnectionId(self.rng.id()),
            port: PORT,
            cipher: self.scenario.cipher,
            frame_units: UnitCount(1),
            window_to_coordinator: UnitCount(self.scenario.window),
            window_to_member: UnitCount(self.scenario.window),
            devices: DeviceMask(u32::MAX),
            patience: Duration::from_secs(3),
        };
        if member.connect(self.now, options).is_err() {
            self.schedule(Duration::from_millis(100), Happening::Connect(index));
        }
        Ok(())
    }

    fn rung(&mut self, index: HostIndex, bell: Bell) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&index) else {
            return;
        };
        match (bell, &mut host.machine) {
            (Bell::Machine, Machine::Member(member)) => member.handle_doorbell(now),
            (Bell::Machine, Machine::Coordinator(coordinator)) => coordinator.handle_doorbell(now),
            (Bell::Connection(connection), _) => {
                if let Some(endpoint) = host.connections.get_mut(&connection) {
                    endpoint.connection.handle_doorbell(now);
                }
            }
        }
    }

    fn ring(&mut self, host: HostIndex, bell: Bell) {
        if !self.rng.chance(self.scenario.bells_lost) {
            let after = self
                .rng
                .span(Duration::from_micros(30), Duration::from_millis(1));
            self.schedule(after, Happening::Ring(host, bell));
        }
    }

    fn answer(&mut self, answer: Answer) {
        let now = self.now;
        let bytes = answer.read.as_ref().map(|(fate, range)| {
            let device = &self.devices[answer.device];
            device.finish_read(&mut self.rng, now, &self.faults, fate, *range)
        });
        let life = self.lives.get(&answer.host).copied().unwrap_or(0);
        let Some(host) = self.hosts.get_mut(&answer.host) else {
            return;
        };
        if life != answer.life {
            return;
        }
        let outcome = match (&answer.result, &bytes) {
            (Err(failure), _) => IoOutcome::Failed(*failure),
            (Ok(()), Some(bytes)) => IoOutcome::Read(bytes),
            (Ok(()), None) => IoOutcome::Written,
        };
        match answer.owner {
            Owner::Machine => match &mut host.machine {
                Machine::Member(member) => member.handle_io(now, answer.id, outcome),
                Machine::Coordinator(coordinator) => coordinator.handle_io(now, answer.id, outcome),
            },
            Owner::Connection(connection) => {
                let Some(endpoint) = host.connections.get_mut(&connection) else {
                    return;
                };
                match answer.frame {
                    Some(sequence) if bytes.is_some() => {
                        let read = answer.result.map(|()| bytes.unwrap_or_default());
                        endpoint.handle_frame(now, answer.id, sequence, read);
                    }
                    _ => endpoint.handle_io(now, answer.id, outcome),
                }
            }
        }
    }

    /// Lets a host do what it can do now.
    fn pump(&mut self, index: HostIndex) -> Result<(), String> {
        let now = self.now;
        loop {
            let Some(host) = self.hosts.get_mut(&index) else {
                return Ok(());
            };
            for endpoint in host.connections.values_mut() {
                endpoint.pump(now)?;
            }
            let ended = host.take_ended();
            let mut rings = Vec::new();
            for (id, endpoint) in &mut host.connections {
                if endpoint.connection.poll_doorbell() {
                    rings.push(*id);
                }
            }
            let requests = poll_requests(host, now);
            let is_idle = ended.is_empty() && requests.is_empty();
            for (id, ended) in ended {
                self.ended(index, id, ended);
            }
            for connection in rings {
                let peer = self.peer(index, connection);
                if let Some(peer) = peer {
                    self.ring(peer, Bell::Connection(connection));
                }
            }
            for (owner, request) in requests {
                self.submit(index, owner, request)?;
            }
            if !self.take_events(index)? && is_idle {
                return Ok(());
            }
        }
    }

    fn peer(&self, index: HostIndex, connection: ConnectionId) -> Option<HostIndex> {
        self.hosts
            .iter()
            .find(|(other, host)| **other != index && host.connections.contains_key(&connection))
            .map(|(&other, _)| other)
    }

    fn submit(&mut self, index: HostIndex, owner: Owner, request: IoRequest) -> Result<(), String> {
        self.report.ios += 1;
        let device = usize::from(request.device.0);
        let host = self.hosts.get(&index).ok_or("no such host")?;
        let lba = request.lba.0;
        let blocks = request.blocks.0;
        let mut answer = Answer {
            host: index,
            life: self.lives.get(&index).copied().unwrap_or(0),
            owner,
            id: request.id,
            device,
            result: Ok(()),
            read: None,
            frame: None,
        };
        let bytes = match &request.op {
            IoOp::Read => None,
            IoOp::ReadFrame(sequence) => {
                answer.frame = Some(*sequence);
                None
            }
            IoOp::Write(block) => Some(block.0.to_vec()),
            IoOp::WriteFrame(sequence) => {
                let Owner::Connection(connection) = owner else {
                    return Err("a frame without a connection".to_owned());
                };
                if host.fence == Fence::Closed {
                    return Err(format!("host {index} writes data behind its fence"));
                }
                self.check_overwrite(index, connection, *sequence)?;
                let endpoint = host
                    .connections
                    .get(&connection)
                    .ok_or("no such connection")?;
                let frame = endpoint
                    .frame(*sequence)
                    .ok_or_else(|| format!("frame {sequence} is to be written and not kept"))?;
                Some(frame[..request.blocks.bytes()].to_vec())
            }
        };
        let deadline = timeouts().io_deadline;
        let answered = if let Some(bytes) = bytes {
            let fate = self.devices[device].write(&mut self.rng, &self.faults, lba, &bytes);
            for (after, landing) in fate.landings {
                self.schedule(after, Happening::Land(device, landing));
            }
            fate.answer
        } else {
            let fate = self.devices[device].read(&mut self.rng, &self.faults, lba, blocks);
            let answered = fate.answer;
            answer.read = Some((fate, (lba, blocks)));
            answered
        };
        let (after, result) = answered
            .filter(|(after, _)| *after < deadline)
            .unwrap_or((deadline, Err(IoFailure::TimedOut)));
        answer.result = result;
        self.schedule(after, Happening::Answer(answer));
        Ok(())
    }

    /// A frame slot is written only after what was there was delivered.
    fn check_overwrite(
        &self,
        index: HostIndex,
        connection: ConnectionId,
        sequence: Sequence,
    ) -> Result<(), String> {
        let Some(peer) = self.peer(index, connection) else {
            return Ok(());
        };
        let Some(endpoint) = self.hosts[&peer].connections.get(&connection) else {
            return Ok(());
        };
        let group = endpoint.connection.grant().group;
        let direction = if index == 0 {
            Direction::ToMember
        } else {
            Direction::ToCoordinator
        };
        let frames = group.ring(direction).map_or(0, |ring| ring.frames());
        if sequence.0 >= endpoint.delivered() + frames {
            return Err(format!(
                "frame {sequence} overwrites an unread one: {} delivered, {frames} in the ring",
                endpoint.delivered()
            ));
        }
        Ok(())
    }

    fn ended(&mut self, index: HostIndex, id: ConnectionId, ended: Ended) {
        let now = self.now;
        self.note(|| format!("host {index}: {id} ended: {ended:?}"));
        let Some(host) = self.hosts.get_mut(&index) else {
            return;
        };
        match &mut host.machine {
            Machine::Member(member) => member.close(now, id, ended.reason),
            Machine::Coordinator(coordinator) => coordinator.close(now, id, ended.reason),
        }
        for watched in &mut self.watched {
            if watched.grant.connection == id {
                if index == 0 {
                    watched.at_coordinator = false;
                } else {
                    watched.at_member = false;
                }
            }
        }
        self.report.frames += ended.frames;
        self.report.resends += ended.stats.frames_resent;
        self.report.damaged += ended.stats.damaged_reads;
        if index == 0 {
            return;
        }
        if let Some(reason) = ended.reason {
            *self.report.reset.entry(reason.to_string()).or_default() += 1;
        } else {
            self.report.finished += 1;
            *self.goals.entry(index).or_default() += 1;
        }
        self.schedule(Duration::from_millis(1), Happening::Connect(index));
    }

    /// Rings nobody, and says whether doorbells are there at all.
    #[must_use]
    pub fn doorbell(&self) -> Doorbell {
        self.scenario.doorbell
    }
}

fn poll_requests(host: &mut Host, now: Tick) -> Vec<(Owner, IoRequest)> {
    let mut requests = Vec::new();
    loop {
        let request = match &mut host.machine {
            Machine::Member(member) => member.poll_io(now),
            Machine::Coordinator(coordinator) => coordinator.poll_io(now),
        };
        match request {
            Some(request) => requests.push((Owner::Machine, request)),
            None => break,
        }
    }
    for (id, endpoint) in &mut host.connections {
        while let Some(request) = endpoint.connection.poll_io(now) {
            requests.push((Owner::Connection(*id), request));
        }
    }
    requests
}

/// The slot that a member's host holds.
#[must_use]
pub fn slot_of(host: HostIndex) -> SlotIndex {
    SlotIndex(host.saturating_sub(1))
}

/// Slots of a simulated pool.
const SLOTS: u32 = 8;
