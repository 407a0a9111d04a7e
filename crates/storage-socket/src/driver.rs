//! The driver of a pool: one thread that joins the machines to devices, clocks and users.
//!
//! The thread alone owns the machines and the engine. It never waits for a user and never for a single transfer: what
//! hangs is answered at its deadline. Each turn takes what users left, lets timers run, pumps what has news, and waits.

mod agenda;
mod commands;
mod conn;
mod io;
mod machine;
mod returns;
#[cfg(test)]
pub(crate) mod tests;
mod watch;
pub(crate) mod wheel;

use crate::{
    Error, StreamOptions,
    error::StopReason,
    flow::{End, Flow, OwnedFlow},
    inbox::Inbox,
    listener::Backlog,
    pool::{HearSuspicion, Identity, RingDoorbell, Role},
    promise::Fulfil,
};
use agenda::Agenda;
use conn::Conn;
use direct_io::{Device, Engine};
use io::{Expired, Finished, Io, Kind, Owner, Task, tick};
use machine::{Attended, Machine, MachineEvent};
use returns::Returns;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use storage_socket_proto::{
    ConnectionId, Coordinator, CoordinatorConfig, DeviceIndex, Doorbell, FRAME_UNITS_MAX, Fence,
    Geometry, IoFailure, IoOp, IoOutcome, IoRequest, Lba, Member, MemberConfig, Name, Polling,
    Port, ResetReason, SlotIndex, TagKey, Tick, Timeouts, UnitCount, block::Stamp,
};
use watch::Watches;
use wheel::Turn;

/// Opening this much takes longer than starting a read.
const WORTH_STARTING_BYTES: usize = 256 << 10;

/// How long an orderly stop may take: closing, the last writes, and one deadline of I/O.
pub(crate) fn stop_patience(timeouts: &Timeouts) -> Duration {
    timeouts.linger + timeouts.heartbeat * 2 + Duration::from_secs(3)
}

/// What a driver is made of.
pub(crate) struct Parts {
    pub(crate) geometry: Arc<Geometry>,
    pub(crate) identity: Identity,
    pub(crate) predecessor: Option<Stamp>,
    pub(crate) host_name: String,
    pub(crate) role: Role,
    pub(crate) polling: Polling,
    pub(crate) doorbell: Option<RingDoorbell>,
    pub(crate) suspicion: Option<HearSuspicion>,
    pub(crate) devices: Vec<Arc<Device>>,
}

pub(crate) struct Driver {
    geometry: Arc<Geometry>,
    inbox: Arc<Inbox>,
    io: Io,
    machine: Attended,
    conns: HashMap<ConnectionId, Conn>,
    agenda: Agenda,
    /// Requests that wait for their grant.
    connecting: HashMap<ConnectionId, Connecting>,
    /// Grants that no listener has taken, with their port.
    unaccepted: HashMap<ConnectionId, Port>,
    listeners: HashMap<Port, Arc<Backlog>>,
    ready: Readiness,
    watches: Watches,
    returns: Returns,
    polling: Polling,
    /// A user drives, and the thread stands by.
    is_lent: bool,
    ring: Option<RingDoorbell>,
    suspicion: Option<HearSuspicion>,
    doorbells: HashMap<SlotIndex, Doorbell>,
    fence: Fence,
    ended: Option<StopReason>,
    stop: Option<Stop>,
    /// Why the thread ends; nothing if a bug ends it.
    why: Option<StopReason>,
}

struct Connecting {
    port: Port,
    options: Box<StreamOptions>,
    reply: Fulfil<Result<OwnedFlow, Error>>,
}

#[derive(Default)]
struct Readiness {
    is_ready: bool,
    waiting: Vec<Fulfil<Result<(), Error>>>,
}

/// An orderly stop that is under way.
struct Stop {
    until: Tick,
    is_machine_told: bool,
}

impl Driver {
    pub(crate) fn new(parts: Parts, engine: Engine, inbox: Arc<Inbox>) -> Self {
        let now = tick();
        let geometry = parts.geometry;
        let host = Name::lossy(&parts.host_name);
        let devices = geometry.all_devices();
        let machine = match parts.identity {
            Identity::Member(slot, incarnation) => Machine::Member(Box::new(Member::new(
                now,
                MemberConfig {
                    geometry: geometry.clone(),
                    slot,
                    incarnation,
                    host,
                    devices,
                    page_key: TagKey::public(),
                    coordinator_key: TagKey::public(),
                    doorbell: Doorbell::Absent,
                },
            ))),
            Identity::Coordinator(epoch) => {
                let mut coordinator = Coordinator::new(
                    now,
                    CoordinatorConfig {
                        geometry: geometry.clone(),
                        epoch,
                        host,
                        devices,
                        predecessor: parts.predecessor,
                        key: TagKey::public(),
                        doorbell: Doorbell::Absent,
                        frame_units_max: UnitCount(FRAME_UNITS_MAX),
                        window_max: WINDOW_UNITS_MAX,
                        slot_units_max: slot_share(&geometry),
                    },
                );
                if let Role::Coordinator { slots } = parts.role {
                    coordinator.set_slots(now, public_keys(slots));
                }
                Machine::Coordinator(Box::new(coordinator))
            }
        };
        let timeouts = geometry.timeouts();
        let deadline = timeouts.io_deadline;
        Self {
            geometry,
            io: Io::new(engine, parts.devices, deadline, inbox.io.clone()),
            inbox,
            machine: Attended::new(machine),
            conns: HashMap::new(),
            agenda: Agenda::default(),
            connecting: HashMap::new(),
            unaccepted: HashMap::new(),
            listeners: HashMap::new(),
            ready: Readiness::default(),
            watches: Watches::default(),
            returns: Returns::new(timeouts),
            polling: parts.polling,
            is_lent: false,
            ring: parts.doorbell,
            suspicion: parts.suspicion,
            doorbells: HashMap::new(),
            fence: Fence::Open,
            ended: None,
            stop: None,
            why: None,
        }
    }

    /// The thread's life.
    pub(crate) fn run(self) {
        let mut driver = Box::new(self);
        let inbox = driver.inbox.clone();
        while driver.turn(None) == Turn::Goes {
            let Some(reader) = driver.sole_reader() else {
                continue;
            };
            match inbox
                .wheel
                .lend(driver, || reader.tell_reader(), || inbox.wake_up())
            {
                Some(back) => driver = back,
                None => return,
            }
        }
    }

    /// One turn: takes what users left, lets timers run, pumps what has news, waits for as long as nothing has to be
    /// done, but no longer than `most`, and takes what has come.
    fn turn(&mut self, most: Option<Duration>) -> Turn {
        if self.why.is_none() {
            self.why = self
                .try_turn(most)
                .unwrap_or_else(|error| Some(StopReason::Driver(error.to_string())));
        }
        match self.why {
            None => Turn::Goes,
            Some(_) => Turn::Over,
        }
    }

    /// Returns why the driver has ended, if it has.
    fn try_turn(&mut self, most: Option<Duration>) -> Result<Option<StopReason>, direct_io::Error> {
        let (commands, touched) = self.inbox.take();
        let now = tick();
        touched.into_iter().for_each(|id| self.agenda.add(id));
        for command in commands {
            self.command(now, command);
        }
        self.run_timers(now);
        self.pump(now);
        if let Some(why) = self.over(now) {
            return Ok(Some(why));
        }
        let mut timeout = self.timeout(now).into_iter().chain(most).min();
        if self.is_lent
            && self.io.in_flight() > 0
            && let Some(wait) = timeout.take_if(|wait| *wait > Duration::ZERO)
        {
            self.inbox.wheel.wake_at(now + wait);
        }
        let finished = self.io.wait(timeout)?;
        let now = tick();
        self.read_on(now, &finished)?;
        for transfer in finished {
            self.complete(now, transfer);
        }
        Ok(None)
    }

    /// Tells users what has come, and begins nothing.
    fn tell(&mut self) {
        let now = tick();
        for id in self.agenda.news() {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.tell(now, &self.io);
            }
        }
    }

    /// The stream whose reader is the only user that waits: he may as well drive.
    fn sole_reader(&self) -> Option<Arc<Flow>> {
        if self.polling != Polling::Hot || self.stop.is_some() || self.inbox.waiting() != 1 {
            return None;
        }
        let mut readers = self.conns.values().filter(|conn| conn.flow.is_read());
        readers.next().map(|conn| conn.flow.clone())
    }

    /// Frames have come: the next reads start before these are opened, which takes as long as a read. But the machine
    /// comes first: the fence may have come down while this thread slept, and connections have to know before they write.
    fn read_on(&mut self, now: Tick, finished: &[Finished]) -> Result<(), direct_io::Error> {
        let mut bytes = 0;
        for Finished { task, result, .. } in finished {
            let (Kind::ReadFrame(_), Owner::Connection(id), Ok(())) =
                (task.kind, task.owner, result)
            else {
                continue;
            };
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.machine.handle_frame_landed(task.id);
                self.agenda.add(id);
                bytes += task.bytes;
            }
        }
        if bytes < WORTH_STARTING_BYTES || self.machine.is_due(now) {
            return Ok(());
        }
        self.pump(now);
        self.io.start_submitted()
    }

    fn run_timers(&mut self, now: Tick) {
        for Expired { task, withdrawn } in self.io.expired(now) {
            // First the buffer: the machine may want it again.
            if let Some(withdrawn) = withdrawn {
                self.complete(now, withdrawn);
            }
            self.fail(now, &task, IoFailure::TimedOut);
        }
        if self.machine.is_due(now) {
            self.machine.handle_timeout(now);
        }
        self.look_for_lost(now);
        while let Some(id) = self.agenda.pop_due(now) {
            self.agenda.add(id);
            if let Some(conn) = self.conns.get_mut(&id)
                && conn.machine.poll_timeout().is_some_and(|due| due <= now)
            {
                conn.machine.handle_timeout(now);
            }
        }
    }

    /// Lets the machine and every connection with news do what they can, until nothing more comes of it.
    fn pump(&mut self, now: Tick) {
        let machine = &*self.machine;
        for (slot, challenges) in self.watches.take_unset(|slot| machine.has_peer(now, slot)) {
            self.machine.set_challenges(now, slot, challenges);
        }
        let mut rings = BTreeSet::new();
        loop {
            if self.machine.is_touched() {
                self.pump_machine(now, &mut rings);
            }
            let news = self.agenda.take_news();
            if news.is_empty() {
                break;
            }
            for id in news {
                let Some(conn) = self.conns.get_mut(&id) else {
                    continue;
                };
                if conn.pump(now, &mut self.io) {
                    rings.insert(conn.slot);
                }
                self.agenda.set_due(id, conn.due(now));
                if let Some(reason) = conn.closed {
                    self.conns.remove(&id);
                    self.agenda.set_due(id, None);
                    self.machine.close(now, id, reason);
                }
            }
        }
        for slot in rings {
            let is_present = self.doorbells.get(&slot) == Some(&Doorbell::Present);
            if let Some(ring) = self.ring.as_ref().filter(|_| is_present) {
                ring(slot);
            }
        }
        let machine = &*self.machine;
        let devices = self.geometry.devices().len();
        self.watches
            .settle(now, |slot| commands::look(machine, now, slot, devices));
    }

    fn pump_machine(&mut self, now: Tick, rings: &mut BTreeSet<SlotIndex>) {
        loop {
            let mut is_quiet = true;
            while let Some(request) = self.machine.poll_io(now) {
                self.start(now, request);
                is_quiet = false;
            }
            while let Some(event) = self.machine.poll_event() {
                self.apply(now, event);
                is_quiet = false;
            }
            if is_quiet {
                break;
            }
        }
        // Each slot once: the machine may name one again and again, and is asked once more in the next turn.
        let mut named = BTreeSet::new();
        while let Some(slot) = self.machine.poll_doorbell() {
            rings.insert(slot);
            if !named.insert(slot) {
                return;
            }
        }
        self.machine.settle();
    }

    /// Starts a transfer of the machine.
    fn start(&mut self, now: Tick, request: IoRequest) {
        let bytes = request.blocks.bytes();
        let (kind, buf) = match &request.op {
            IoOp::Read => (Kind::Read, self.io.buffer(bytes)),
            IoOp::Write(block) => (Kind::Write, self.io.filled(block)),
            IoOp::ReadFrame(_) | IoOp::WriteFrame(_) => {
                unreachable!("only connections move frames")
            }
        };
        let task = Task {
            owner: Owner::Machine,
            id: request.id,
            kind,
            device: request.device,
            lba: request.lba,
            bytes,
            started: now,
        };
        match buf {
            Ok(buf) => self.io.start(task, buf),
            Err(error) => {
                tracing::error!(%error, "no buffer for a fixed block");
                self.fail(now, &task, IoFailure::Error);
            }
        }
    }

    fn fail(&mut self, now: Tick, task: &Task, failure: IoFailure) {
        match task.owner {
            Owner::Machine => {
                let outcome = IoOutcome::Failed(failure);
                self.machine.handle_io(now, task.id, outcome);
            }
            Owner::Connection(id) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.fail(now, task, failure);
                    self.agenda.add(id);
                }
            }
        }
    }

    fn complete(&mut self, now: Tick, finished: Finished) {
        let Owner::Connection(id) = finished.task.owner else {
            self.complete_own(now, &finished);
            return;
        };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.complete(now, finished);
            self.agenda.add(id);
        }
    }

    /// A transfer of the machine has ended.
    fn complete_own(&mut self, now: Tick, finished: &Finished) {
        let Finished { task, buf, .. } = finished;
        if finished.is_late {
            return;
        }
        let bytes = &buf[..task.bytes];
        let outcome = match (finished.result, task.kind) {
            (Err(failure), _) => IoOutcome::Failed(failure),
            (Ok(()), Kind::Read) => IoOutcome::Read(bytes),
            (Ok(()), _) => IoOutcome::Written,
        };
        if finished.result.is_ok() {
            self.watches.note(task, bytes);
        }
        self.machine.handle_io(now, task.id, outcome);
    }

    fn apply(&mut self, now: Tick, event: MachineEvent) {
        match event {
            MachineEvent::Ready => {
                self.ready.is_ready = true;
                for waiting in self.ready.waiting.drain(..) {
                    waiting.fulfil(Ok(()));
                }
            }
            MachineEvent::NotReady => self.ready.is_ready = false,
            MachineEvent::Granted(grant) => self.granted(now, grant),
            MachineEvent::Refused(id, reason) => {
                self.connect_failed(id, |port| Error::Refused { port, reason });
            }
            MachineEvent::ConnectTimedOut(id) => {
                self.connect_failed(id, |_| Error::TimedOut { what: "connecting" });
            }
            MachineEvent::PeerGone(id, reason) => self.peer_gone(now, id, reason),
            MachineEvent::Fence(fence) => {
                self.fence = fence;
                for conn in self.conns.values_mut() {
                    conn.machine.set_fenced(now, fence);
                    self.agenda.add(conn.id);
                }
            }
            MachineEvent::PeerSuspect(slot) => {
                tracing::info!(pool = %self.inbox.pool, %slot, "no sign of life on storage for a while");
                if let Some(hear) = &self.suspicion {
                    hear(slot);
                }
            }
            MachineEvent::DeviceLost(device, failure) => self.lose_device(now, device, failure),
            MachineEvent::DeviceFound(device) => self.find_device(device),
            MachineEvent::Ended(why) => {
                if why != StopReason::Closed {
                    tracing::error!(pool = %self.inbox.pool, %why, "the pool is lost to this process");
                }
                for conn in self.conns.values_mut() {
                    conn.flow.end(&End::Stopped(why.clone()));
                    conn.machine.abort(now, ResetReason::CoordinatorGone);
                    self.agenda.add(conn.id);
                }
                self.end_waiting(&why);
                self.ended = Some(why);
            }
            MachineEvent::Note(note) => tracing::debug!(pool = %self.inbox.pool, note),
        }
    }

    /// Tells everybody who waits for something to begin that it won't.
    fn end_waiting(&mut self, why: &StopReason) {
        let error = || Error::Stopped {
            pool: self.inbox.pool,
            why: why.clone(),
        };
        self.unaccepted.clear();
        for backlog in self.listeners.values() {
            backlog.close(why);
        }
        for (_, connecting) in self.connecting.drain() {
            connecting.reply.fulfil(Err(error()));
        }
        for waiting in self.ready.waiting.drain(..) {
            waiting.fulfil(Err(error()));
        }
    }

    fn peer_gone(&mut self, now: Tick, id: ConnectionId, reason: Option<ResetReason>) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.machine.handle_peer_gone(now, reason);
            self.agenda.add(id);
        } else if let Some(port) = self.unaccepted.remove(&id) {
            if let Some(backlog) = self.listeners.get(&port) {
                backlog.forget(id);
            }
            self.machine.close(now, id, reason);
        }
    }

    fn lose_device(&mut self, now: Tick, device: DeviceIndex, failure: IoFailure) {
        let path = self
            .io
            .device(device)
            .map(|device| device.path().to_owned());
        let path = path.unwrap_or_default();
        let last = self.io.last_failure(device).unwrap_or_default();
        tracing::error!(device = %path.display(), %failure, last, "device lost");
        self.returns.lost(now, device);
        for conn in self.conns.values_mut() {
            conn.lose_device(now, device, path.clone());
            self.agenda.add(conn.id);
        }
    }

    /// How long nothing has to be done.
    fn timeout(&self, now: Tick) -> Option<Duration> {
        let agenda = self.agenda.next_due().into_iter();
        agenda
            .chain(self.machine.due())
            .chain(self.io.next_deadline())
            .chain(self.watches.next_timeout())
            .chain(self.returns.next_timeout())
            .chain(self.stop.as_ref().map(|stop| stop.until))
            .min()
            .map(|due| due.since(now))
    }

    /// Moves an orderly stop on, and says when the thread may end.
    fn over(&mut self, now: Tick) -> Option<StopReason> {
        if let Some(why) = &self.ended
            && self.conns.is_empty()
            && self.machine.is_stopped()
        {
            return Some(why.clone());
        }
        let stop = self.stop.as_mut()?;
        if self.conns.is_empty() && !stop.is_machine_told && self.ended.is_none() {
            stop.is_machine_told = true;
            self.machine.stop(now);
            let mut rings = BTreeSet::new();
            self.pump_machine(now, &mut rings);
        }
        (now >= self.stop.as_ref()?.until).then_some(StopReason::Closed)
    }
}

/// Units of a direction's segment on each device at most: 256 MiB of frames, and the control unit.
const WINDOW_UNITS_MAX: UnitCount = UnitCount(4096 + 1);
/// Units of all of a slot's segments on each device at most: an eighth of the smallest one, so that a host with a few
/// slots leaves something to others; 128 MiB at least; 4 GiB at most, twice what as many streams as it may have take as a
/// rule.
fn slot_share(geometry: &Geometry) -> UnitCount {
    let units = geometry.data_end(geometry.all_devices()).0 - geometry.data_start().0;
    UnitCount((units / 8).clamp(1 << 11, 1 << 16))
}

/// Tells everybody who still waits that it is over, whichever way the thread ends.
impl Drop for Driver {
    fn drop(&mut self) {
        let bug = || StopReason::Driver("a bug ended its thread".to_owned());
        let why = self.why.take().unwrap_or_else(bug);
        self.inbox.close(why.clone());
        for conn in self.conns.values() {
            conn.flow.end(&End::Stopped(why.clone()));
        }
        self.end_waiting(&why);
    }
}

/// Until enrolment issues keys for pages, they are tagged with the public constant.
fn public_keys(slots: BTreeSet<SlotIndex>) -> BTreeMap<SlotIndex, TagKey> {
    slots
        .into_iter()
        .map(|slot| (slot, TagKey::public()))
        .collect()
}

/// Where the page lies that a slot's peer writes.
fn peer_page(machine: &Machine, geometry: &Geometry, slot: SlotIndex) -> Lba {
    match machine {
        Machine::Member(_) => geometry.answer_page(slot),
        Machine::Coordinator(_) => geometry.member_page(slot),
    }
}
