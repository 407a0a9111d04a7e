//! The coordinator machine: claims the pool, reads the members' pages, grants and takes back segments.
//!
//! Invariants: no unit is granted twice, nor while it rests; a foreign epoch ends the coordinator at once; a member is
//! dead only by this coordinator's own successful reads and its own clock.

mod claim;
mod device;
mod grants;
mod scan;
mod slots;

use crate::{
    allocator::Allocator,
    areas::{AreaOutcome, AreaWork, AreaWrites, FixedAreas, Wrote},
    block::{CoordinatorBlock, CoordinatorState, Grant, Stamp, TagKey},
    connection::Doorbell,
    error::UsageError,
    geometry::Geometry,
    io::{IoFailure, IoId, IoOutcome, IoRequest},
    poll::Poll,
    reasons::ResetReason,
    seal::Cipher,
    types::{
        BlockCount, Challenge, ConnectionId, DeviceIndex, DeviceMask, Epoch, Generation,
        Incarnation, Name, Port, SlotIndex, Tick, UnitCount,
    },
};
use claim::Claiming;
use device::{Area, CoordinatorReads, SlotRun};
use grants::Held;
use scan::SCAN_MIN;
use slots::{Rest, Slot};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// What a coordinator is made of.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// The pool's layout.
    pub geometry: Arc<Geometry>,
    /// Random, new at each claim.
    pub epoch: Epoch,
    /// This host's name.
    pub host: Name,
    /// The devices that were opened.
    pub devices: DeviceMask,
    /// The newest block of this host's own predecessor, which is known to be gone by the local lock: it isn't waited for.
    /// With none, the claimant watches for another coordinator, writes, waits and reads again.
    pub predecessor: Option<Stamp>,
    /// The key that tags the coordinator's blocks.
    pub key: TagKey,
    /// Whether doorbells tell of news of members of whom nothing else was said ([`Coordinator::set_doorbell`]).
    pub doorbell: Doorbell,
    /// Units of a frame slot at most.
    pub frame_units_max: UnitCount,
    /// Units per device and direction of a grant at most.
    pub window_max: UnitCount,
    /// Units per device of all grants of one slot at most, until both sides have let go of them.
    pub slot_units_max: UnitCount,
}

/// What may connect to a port, and how many may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Granted connections that were not accepted yet, at most.
    pub backlog: usize,
    /// The ciphers that are taken: checksum only, or sealed only.
    pub protection: ListenProtection,
}

/// Which streams a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenProtection {
    /// Checksum only.
    Checksum,
    /// Sealed, with either cipher.
    Sealed,
}

impl ListenProtection {
    /// Whether a stream with this cipher is taken.
    #[must_use]
    pub fn takes(self, cipher: Cipher) -> bool {
        cipher.is_sealed() == (self == Self::Sealed)
    }
}

/// What a coordinator has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CoordinatorEvent {
    /// The pool is claimed; requests are answered from now on.
    Serving,
    /// A member's first page under a new incarnation was read.
    MemberUp {
        /// Its slot.
        slot: SlotIndex,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Its host.
        host: Name,
    },
    /// A member shows no sign of life for half the time-out: ask it over the network, and call
    /// [`Coordinator::handle_vouched`] if it answers.
    MemberSuspect {
        /// Its slot.
        slot: SlotIndex,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// A member is dead or has stopped; each of its connections is told of in a `Closed` of its own.
    MemberDown {
        /// Its slot.
        slot: SlotIndex,
        /// Its incarnation.
        incarnation: Incarnation,
        /// True if it ended in order.
        stopped: bool,
    },
    /// A connection was granted: make a [`crate::Connection`] of it, and say [`Coordinator::accepted`] when its
    /// listener takes it.
    Incoming(Grant),
    /// The member closed the connection or has gone: call `Connection::handle_peer_gone`, and, when that is drained,
    /// [`Coordinator::close`].
    Closed {
        /// The connection.
        connection: ConnectionId,
        /// Why; `None` if both directions were finished.
        reason: Option<ResetReason>,
    },
    /// The heartbeat couldn't be written for the fence time: no connection may write (`Connection::set_fenced`).
    Fenced,
    /// The heartbeat was written and read again: connections may write.
    Unfenced,
    /// A device is lost: connections over it are to be aborted with `DeviceLost`.
    DeviceLost {
        /// The device.
        device: DeviceIndex,
        /// How it failed last.
        failure: IoFailure,
    },
    /// A lost device answers again: once both sides have proved it, new connections may use it.
    DeviceFound {
        /// The device.
        device: DeviceIndex,
    },
    /// A member's challenge on a device has changed.
    ChallengeSeen {
        /// The member's slot.
        slot: SlotIndex,
        /// The device.
        device: DeviceIndex,
        /// The challenge.
        challenge: Challenge,
    },
    /// The coordinator has ended; nothing is written any more, and every connection is to be aborted.
    Ended(EndReason),
}

/// Why a coordinator ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndReason {
    /// It was told to.
    #[error("stopped")]
    Requested,
    /// Another coordinator owns the pool.
    #[error("the pool belongs to a coordinator on {host} (epoch {epoch})")]
    Owned {
        /// Its epoch.
        epoch: Epoch,
        /// Its host.
        host: Name,
    },
    /// Another epoch was written while this coordinator claimed or served.
    #[error("a coordinator on {host} took the pool (epoch {epoch})")]
    ForeignEpoch {
        /// Its epoch.
        epoch: Epoch,
        /// Its host.
        host: Name,
    },
    /// The running process was cloned: its own epoch goes on without it.
    #[error("another process writes under this coordinator's epoch: a cloned host")]
    ClonedHost,
    /// No device is left.
    #[error("no device is left")]
    NoDevice,
}

/// A member as the coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its slot.
    pub slot: SlotIndex,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its host.
    pub host: Name,
    /// The devices that both sides have proved.
    pub proved: DeviceMask,
    /// How many connections it has.
    pub connections: usize,
    /// How long it has been silent.
    pub silence: std::time::Duration,
    /// Whether it is taken for alive.
    pub alive: bool,
}

/// The coordinator machine.
#[derive(Debug)]
pub struct Coordinator {
    config: CoordinatorConfig,
    phase: Phase,
    claiming: Claiming,
    state: CoordinatorState,
    areas: FixedAreas<CoordinatorReads>,
    allowed: BTreeMap<SlotIndex, TagKey>,
    /// Slots that were allowed once: their members' pages still have to be read, until they have let go of everything.
    revoked: BTreeMap<SlotIndex, TagKey>,
    slots: BTreeMap<SlotIndex, Slot>,
    rests: BTreeMap<SlotIndex, Rest>,
    ports: BTreeMap<Port, Listener>,
    held: BTreeMap<ConnectionId, Held>,
    allocator: Allocator,
    generation: Generation,
    next_dynamic: u16,
    events: VecDeque<CoordinatorEvent>,
    rings: VecDeque<SlotIndex>,
    /// What was said of single slots.
    doorbells: BTreeMap<SlotIndex, Doorbell>,
    /// Members that rang and were not read since.
    rung: BTreeSet<SlotIndex>,
    /// Members with doorbells that rang of late, and by how many more heartbeats they are read.
    attended: BTreeMap<SlotIndex, u32>,
    poll: Poll,
    deadline: Option<Tick>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Claiming,
    Serving,
    Stopping,
    Ended,
}

#[derive(Debug)]
struct Listener {
    options: ListenOptions,
    waiting: usize,
}

impl Coordinator {
    /// A coordinator that begins to claim the pool.
    #[must_use]
    pub fn new(now: Tick, config: CoordinatorConfig) -> Self {
        let geometry = Arc::clone(&config.geometry);
        let first = Geometry::COORDINATOR;
        let areas = FixedAreas::new(
            now,
            &geometry,
            config.devices,
            (config.epoch.0, [first, first + BlockCount(1)]),
            || CoordinatorReads::new(&geometry),
        );
        let mut coordinator = Self {
            phase: Phase::Claiming,
            claiming: Claiming::new(geometry.timeouts(), config.predecessor),
            state: CoordinatorState::Claiming,
            areas,
            allowed: BTreeMap::new(),
            revoked: BTreeMap::new(),
            slots: BTreeMap::new(),
            rests: BTreeMap::new(),
            ports: BTreeMap::new(),
            held: BTreeMap::new(),
            allocator: Allocator::new(Arc::clone(&geometry)),
            // Never used twice, not by another epoch either: a checksummed frame names no epoch (§4.2).
            generation: Generation(config.epoch.0 << 24),
            next_dynamic: Port::DYNAMIC_FIRST.0,
            events: VecDeque::new(),
            rings: VecDeque::new(),
            doorbells: BTreeMap::new(),
            rung: BTreeSet::new(),
            attended: BTreeMap::new(),
            poll: Poll::new(now, SCAN_MIN),
            deadline: None,
            config,
        };
        if coordinator.areas.devices.is_empty() {
            coordinator.end(EndReason::NoDevice);
        }
        coordinator
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.config.epoch
    }

    /// Allows slots, each with the key that tags its member's page; others are refused, and those that were allowed
    /// until now lose their connections: each is told of in a `Closed`.
    pub fn set_slots(&mut self, now: Tick, slots: BTreeMap<SlotIndex, TagKey>) {
        let before = std::mem::replace(&mut self.allowed, slots);
        self.revoked
            .retain(|slot, _| !self.allowed.contains_key(slot));
        for (slot, key) in before {
            if !self.allowed.contains_key(&slot) {
                self.revoked.insert(slot, key);
                self.revoke(slot);
            }
        }
        self.poll.hasten(now);
    }

    /// Takes requests for a port from now on.
    ///
    /// # Errors
    /// [`UsageError::PortTaken`] or [`UsageError::Stopped`].
    pub fn bind(
        &mut self,
        now: Tick,
        port: Port,
        options: ListenOptions,
    ) -> Result<(), UsageError> {
        if matches!(self.phase, Phase::Stopping | Phase::Ended) {
            return Err(UsageError::Stopped);
        }
        if self.ports.contains_key(&port) {
            return Err(UsageError::PortTaken(port));
        }
        let listener = Listener {
            options,
            waiting: 0,
        };
        self.ports.insert(port, listener);
        self.poll.hasten(now);
        Ok(())
    }

    /// Takes requests for a dynamic port, which is returned.
    ///
    /// # Errors
    /// [`UsageError::NoPort`] or [`UsageError::Stopped`].
    pub fn bind_dynamic(&mut self, now: Tick, options: ListenOptions) -> Result<Port, UsageError> {
        let first = Port::DYNAMIC_FIRST.0;
        for _ in first..=u16::MAX {
            let port = Port(self.next_dynamic);
            self.next_dynamic = self.next_dynamic.checked_add(1).unwrap_or(first);
            if !self.ports.contains_key(&port) {
                self.bind(now, port, options)?;
                return Ok(port);
            }
        }
        Err(UsageError::NoPort)
    }

    /// Takes no more requests for a port; its connections go on.
    pub fn unbind(&mut self, _now: Tick, port: Port) {
        self.ports.remove(&port);
    }

    /// Says that a listener took the connection from its backlog.
    pub fn accepted(&mut self, _now: Tick, connection: ConnectionId) {
        if let Some(held) = self.held.get_mut(&connection) {
            let port = held.leave_backlog();
            self.leave_backlog(port);
        }
    }

    /// Says that the connection's machine is drained: its segments return once the member has let go as well.
    pub fn close(&mut self, now: Tick, connection: ConnectionId, reason: Option<ResetReason>) {
        self.drained(now, connection, reason);
    }

    /// Sets the challenges for the member of a slot, one a device by index.
    pub fn set_challenges(&mut self, now: Tick, slot: SlotIndex, challenges: Vec<Challenge>) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.set_challenges(challenges);
            self.poll.hasten(now);
        }
    }

    /// The challenge of a slot's member on a device, if a current one was read.
    #[must_use]
    pub fn challenge_seen(&self, slot: SlotIndex, device: DeviceIndex) -> Option<Challenge> {
        self.slots.get(&slot)?.challenge_seen(device)
    }

    /// The members that were seen under this epoch.
    #[must_use]
    pub fn members(&self, _now: Tick) -> Vec<MemberView> {
        self.slots
            .iter()
            .map(|(&index, slot)| {
                let mine = |held: &&Held| held.grant.slot == index && !held.is_released();
                MemberView {
                    slot: index,
                    incarnation: slot.incarnation(),
                    host: slot.host().clone(),
                    proved: slot.proved(),
                    connections: self.held.values().filter(mine).count(),
                    silence: slot.silent(),
                    alive: slot.is_alive(),
                }
            })
            .collect()
    }

    /// The member of a slot was heard of over the network: its silence counts from now.
    pub fn handle_vouched(&mut self, _now: Tick, slot: SlotIndex) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.heard();
        }
    }

    /// Units of the data area that could be granted on all of `devices` now.
    #[must_use]
    pub fn free_units(&self, devices: DeviceMask) -> u64 {
        self.allocator.free_units(devices)
    }

    /// Ends in order: new requests are refused, the block says so, then `Ended` comes. Connections are to be closed or
    /// aborted first: their members take them for reset once they see the block.
    pub fn stop(&mut self, now: Tick) {
        match self.phase {
            Phase::Claiming if !self.claiming.writes() => {
                self.end(EndReason::Requested);
            }
            Phase::Claiming | Phase::Serving => {
                self.phase = Phase::Stopping;
                // Nothing is waited for any more: a wait that is over would be due for ever.
                self.state = CoordinatorState::Stopped;
                self.areas.changed();
                self.deadline = Some(now + self.config.geometry.timeouts().linger);
            }
            Phase::Stopping | Phase::Ended => {}
        }
    }

    /// Takes the outcome of a request.
    pub fn handle_io(&mut self, now: Tick, id: IoId, outcome: IoOutcome<'_>) {
        match self.areas.handle_io(now, id, outcome) {
            Some(_) if self.phase == Phase::Ended => return,
            Some((at, AreaOutcome::Written(wrote))) => self.written(at, wrote),
            Some((at, AreaOutcome::Read(area, started))) => {
                if let IoOutcome::Read(bytes) = outcome {
                    self.handle_read(now, at, area, started, bytes);
                }
            }
            Some((at, AreaOutcome::Lost(failure))) => self.lost(at, failure),
            Some((at, AreaOutcome::Found)) => self.find(at),
            Some((_, AreaOutcome::Nothing)) => {}
            Some((_, AreaOutcome::GivenUp)) => self.given_up(),
            None => self.handle_answer_written(now, id, outcome),
        }
        self.advance(now);
    }

    /// The next request for I/O.
    pub fn poll_io(&mut self, now: Tick) -> Option<IoRequest> {
        if self.phase == Phase::Ended {
            return None;
        }
        self.scan(now);
        match self.areas.poll_io(now, self.block_writes()) {
            Some(AreaWork::Request(request)) => return Some(request),
            Some(AreaWork::Write(at)) => return Some(self.write_block(now, at)),
            None => {}
        }
        if matches!(self.phase, Phase::Serving | Phase::Stopping) {
            return self.write_answer(now);
        }
        None
    }

    /// When [`Coordinator::handle_timeout`] has to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        if self.phase == Phase::Ended {
            return None;
        }
        let serves = self.phase == Phase::Serving;
        // A claim that was stopped waits for nothing: its time would be due for ever.
        let claims = serves || self.phase == Phase::Claiming;
        [
            Some(self.areas.poll_timeout(self.block_writes())),
            self.scan_at(),
            self.areas.fence_at().filter(|_| serves),
            self.deadline,
            self.claiming.deadline().filter(|_| claims),
        ]
        .into_iter()
        .flatten()
        .chain(self.answers_due())
        .min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Tick) {
        if self.phase == Phase::Ended {
            return;
        }
        self.poll.is_due(now);
        if self.areas.is_beat_due(now) {
            let slots = match self.phase {
                Phase::Serving => self.beat_slots(),
                Phase::Claiming if self.claiming.is_watching() && self.is_degraded() => {
                    self.all_slots()
                }
                _ => Vec::new(),
            };
            self.read_all(&slots);
            for slot in self.slots.values_mut() {
                slot.refresh();
            }
        }
        if self.phase == Phase::Serving && self.areas.is_fenced_now(now) {
            self.events.push_back(CoordinatorEvent::Fenced);
        }
        self.advance(now);
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<CoordinatorEvent> {
        self.events.pop_front()
    }

    /// Whether the coordinator has ended and no I/O is under way.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Ended
            && self.areas.are_quiet()
            && self.slots.values().all(Slot::is_quiet)
    }

    fn block_writes(&self) -> AreaWrites {
        let may = match self.phase {
            Phase::Claiming => self.claiming.writes(),
            Phase::Serving | Phase::Stopping => true,
            Phase::Ended => false,
        };
        if may {
            AreaWrites::Allowed
        } else {
            AreaWrites::Forbidden
        }
    }

    fn write_block(&mut self, now: Tick, at: usize) -> IoRequest {
        let stamp = self.areas.stamp();
        let device = self.areas.devices[at].index();
        let place = CoordinatorBlock::place(self.config.geometry.pool(), device);
        let block = CoordinatorBlock {
            state: self.state,
            host: self.config.host.clone(),
        };
        let block = block.encode(&place, stamp, &self.config.key);
        self.areas.write(now, at, block)
    }

    fn written(&mut self, at: usize, wrote: Wrote) {
        if wrote.is_proving {
            self.areas.devices[at].reads.want_block();
        }
    }

    /// The block is read on each device, and the pages of `slots`.
    fn read_all(&mut self, slots: &[SlotRun]) {
        let all = self.all_slots();
        let is_open = self.phase == Phase::Serving && !self.claiming.is_settled();
        let count = self.config.geometry.slots();
        for device in &mut self.areas.devices {
            device.reads.want_block();
            // Until it settles, a coordinator has to have read every page on each device once.
            let has_read = !is_open || self.claiming.is_scanned(device.index(), count);
            if !device.is_lost() {
                device.reads.want_scan(if has_read { slots } else { &all });
            }
        }
    }

    fn handle_read(&mut self, now: Tick, at: usize, area: Area, started: Tick, bytes: &[u8]) {
        match area {
            Area::Block => {
                self.read_block(now, at, started, bytes);
                let since = self.areas.proving_since();
                if self.phase == Phase::Serving && since.is_some_and(|since| started >= since) {
                    self.areas.unfence();
                    self.events.push_back(CoordinatorEvent::Unfenced);
                }
            }
            Area::OldAnswers(first) => self.read_old_answers(at, first, bytes),
            Area::Pages(first) => self.read_pages(now, at, first, bytes),
        }
    }

    /// A device is lost from now on.
    fn lost(&mut self, at: usize, failure: IoFailure) {
        let device = self.areas.devices[at].index();
        for slot in self.slots.values_mut() {
            slot.lose_device(device);
        }
        self.events
            .push_back(CoordinatorEvent::DeviceLost { device, failure });
        self.given_up();
    }

    fn given_up(&mut self) {
        if self.areas.are_all_given_up() {
            self.end(EndReason::NoDevice);
        }
    }

    /// A lost device answers again.
    fn find(&mut self, at: usize) {
        let slots = self.all_slots();
        let claims = self.phase == Phase::Claiming;
        let device = &mut self.areas.devices[at];
        device.repair();
        device.reads.want_block();
        if !claims {
            device.reads.want_scan(&slots);
        }
        // What predecessors granted may be said there alone.
        device.reads.want_old_answers(self.config.geometry.slots());
        let device = device.index();
        for slot in self.slots.values_mut() {
            slot.find_device(device);
        }
        self.events
            .push_back(CoordinatorEvent::DeviceFound { device });
    }

    fn end(&mut self, reason: EndReason) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            self.deadline = None;
            self.events.push_back(CoordinatorEvent::Ended(reason));
        }
    }

    fn advance(&mut self, now: Tick) {
        match self.phase {
            Phase::Claiming => self.advance_claim(now),
            Phase::Stopping => {
                let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
                if is_late || self.areas.has_said_all() {
                    self.end(EndReason::Requested);
                }
            }
            Phase::Serving if !self.claiming.is_settled() => self.advance_claim(now),
            Phase::Serving | Phase::Ended => {}
        }
    }

    /// Claimed: grants from now on.
    fn serve(&mut self, now: Tick) {
        let allocator = &mut self.allocator;
        self.rests.retain(|_, rest| rest.hold(allocator));
        self.phase = Phase::Serving;
        self.state = CoordinatorState::Serving;
        self.areas.changed();
        self.areas.restart_fence(now);
        self.poll.hasten(now);
        self.poll.want();
        self.events.push_back(CoordinatorEvent::Serving);
        let slots = self.all_slots();
        self.areas.beat();
        self.read_all(&slots);
    }
}
