//! Hosts that start, crash, stop, sleep and wake; what their users want; and the loop that drives each.

use super::{Bell, Happening, PORT, World};
use crate::{
    broken::{Broken, Promise},
    clock::Clock,
    coverage::{Coverage, Fault},
    endpoint::{Ended, Endpoint, EndpointConfig, Peers},
    host::{Arrival, CLONES, Host, HostIndex, Machine, Owner, SERVER, is_server, slot_of},
    scenario::{Keys, timeouts},
    stream::Intent,
};
use std::{collections::BTreeMap, time::Duration};
use storage_socket_proto::{
    Cipher, ConnectOptions, ConnectionId, Coordinator, CoordinatorConfig, DeviceMask, Direction,
    Epoch, Grant, Incarnation, IoOutcome, KeyId, ListenOptions, ListenProtection, Member,
    MemberConfig, Name, Port, ResetReason, SlotIndex, TagKey, Tick, Unchecked, UnitCount,
    block::{CoordinatorBlock, Stamp},
};

/// What a member's user wants in a run at most.
const WISHES_MAX: usize = 12;

/// Something that a member's user wants, once.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    want: Want,
    state: WishState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// A stream.
    Stream(Intent),
    /// To be refused.
    Refusal(Flaw),
    /// A stream, or to hear nothing for a moment.
    Impatient,
    /// What a clone wants: it needn't get it.
    Anything,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Port,
    Cipher,
    Device,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WishState {
    Open,
    Asked(ConnectionId),
    Done,
}

impl Wish {
    fn new(want: Want) -> Self {
        Self {
            want,
            state: WishState::Open,
        }
    }

    pub(super) fn stream(intent: Intent) -> Self {
        Self::new(Want::Stream(intent))
    }

    pub(super) fn bad(which: u64) -> Self {
        Self::new(Want::Refusal(match which {
            0 => Flaw::Port,
            1 => Flaw::Cipher,
            _ => Flaw::Device,
        }))
    }

    pub(super) fn impatient() -> Self {
        Self::new(Want::Impatient)
    }

    pub(super) fn clone_of_one() -> Self {
        Self::new(Want::Anything)
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == WishState::Done || self.want == Want::Anything
    }
}

impl World {
    pub(super) fn start(&mut self, index: HostIndex) -> Result<(), Broken> {
        if self.hosts.contains_key(&index) || self.retired == Some(index) {
            return Ok(());
        }
        let clock = self.clock(index);
        let now = clock.local(self.now);
        let mut incarnation = Incarnation(self.rng.bits() | 1);
        let machine = if is_server(index) {
            Machine::Coordinator(Box::new(self.new_coordinator(index, now)))
        } else {
            if index >= CLONES {
                incarnation = self.clones_incarnation.take().unwrap_or(incarnation);
            }
            Machine::Member(Box::new(self.new_member(index, now, incarnation)))
        };
        self.lives += 1;
        self.note(|| format!("host {index} starts"));
        let mut host = Host::new(machine, self.lives, self.now, clock);
        host.incarnation = incarnation;
        self.hosts.insert(index, host);
        if !is_server(index) {
            self.want_more(index);
        }
        self.settle(index)
    }

    /// As many requests as the host may have at once are made soon.
    fn want_more(&mut self, index: HostIndex) {
        for _ in 0..self.scenario.streams_at_once {
            self.schedule(Duration::from_millis(1), Happening::Connect(index));
        }
    }

    fn clock(&mut self, index: HostIndex) -> Clock {
        let start = self.fixed(u64::from(index) ^ 0xc10c);
        let rates = &self.scenario.rates;
        let (fast, slow) = (rates.of(Fault::ClockFast), rates.of(Fault::ClockSlow));
        let rate = match start % 3 {
            0 if fast > 0 => {
                self.hit.fault(Fault::ClockFast);
                1_000_000 + u64::from(fast)
            }
            1 if slow > 0 => {
                self.hit.fault(Fault::ClockSlow);
                1_000_000 - u64::from(slow)
            }
            _ => 1_000_000,
        };
        Clock::new(start % 1_000_000_000, rate)
    }

    fn coordinator_key(&self) -> TagKey {
        match self.scenario.keys {
            Keys::Public => TagKey::public(),
            Keys::Own => TagKey::new(KeyId(2), [0x22; 32]),
        }
    }

    fn page_key(&self, slot: SlotIndex) -> TagKey {
        match self.scenario.keys {
            Keys::Public => TagKey::public(),
            Keys::Own => TagKey::new(KeyId(100 + slot.0), [0x33; 32]),
        }
    }

    fn slots(&self) -> BTreeMap<SlotIndex, TagKey> {
        (0..self.scenario.members)
            .map(SlotIndex)
            .filter(|slot| !self.revoked.contains(slot))
            .map(|slot| (slot, self.page_key(slot)))
            .collect()
    }

    pub(super) fn tell_slots(&mut self) -> Result<(), Broken> {
        let slots = self.slots();
        for index in self.servers() {
            if let Some(host) = self.hosts.get_mut(&index)
                && let Machine::Coordinator(coordinator) = &mut host.machine
            {
                let now = host.clock.local(self.now);
                coordinator.set_slots(now, slots.clone());
                self.settle(index)?;
            }
        }
        Ok(())
    }

    pub(super) fn servers(&self) -> Vec<HostIndex> {
        let servers = self.hosts.range(..crate::host::MEMBERS);
        servers.map(|(&index, _)| index).collect()
    }

    fn new_coordinator(&mut self, index: HostIndex, now: Tick) -> Coordinator {
        let before = self.newest_block();
        let known = self.epochs.get(&index).and_then(|epochs| epochs.last());
        let predecessor = before.filter(|stamp| known == Some(&Epoch(stamp.writer)));
        let mut epoch = self.rng.bits() | 1;
        if let Some((shared, users)) = &mut self.shared_epoch
            && let Some(at) = users.iter().position(|user| *user == index)
        {
            users.remove(at);
            epoch = *shared;
        }
        self.epochs.entry(index).or_default().push(Epoch(epoch));
        self.found
            .insert(index, before.map(|stamp| Epoch(stamp.writer)));
        let config = CoordinatorConfig {
            geometry: std::sync::Arc::clone(&self.geometry),
            epoch: Epoch(epoch),
            host: Name::lossy("server"),
            devices: self.all_devices(),
            predecessor,
            key: self.coordinator_key(),
            doorbell: self.scenario.doorbell,
            frame_units_max: UnitCount(16),
            window_max: UnitCount(64),
            slot_units_max: UnitCount(self.scenario.slot_units),
        };
        let mut coordinator = Coordinator::new(now, config);
        coordinator.set_slots(now, self.slots());
        let options = ListenOptions {
            backlog: self.scenario.backlog,
            protection: if self.scenario.cipher.is_sealed() {
                ListenProtection::Sealed
            } else {
                ListenProtection::Checksum
            },
        };
        let bound = coordinator.bind(now, PORT, options);
        debug_assert!(bound.is_ok(), "a new coordinator has no ports");
        coordinator
    }

    /// The newest coordinator block on the devices: what a server compares with its lock's note.
    fn newest_block(&self) -> Option<Stamp> {
        let key = self.coordinator_key();
        let mut newest = None;
        for (device, index) in self.devices.iter().zip(0..) {
            let place = CoordinatorBlock::place(
                self.geometry.pool(),
                storage_socket_proto::DeviceIndex(index),
            );
            for copy in [2, 3] {
                let bytes = device.bytes(copy, 1);
                let found = Unchecked::new(&bytes)
                    .and_then(|block| CoordinatorBlock::parse(block, &place, &key));
                newest = newest.max(found.ok().map(|(stamp, _)| stamp));
            }
        }
        newest
    }

    fn new_member(&mut self, index: HostIndex, now: Tick, incarnation: Incarnation) -> Member {
        let slot = slot_of(index);
        let config = MemberConfig {
            geometry: std::sync::Arc::clone(&self.geometry),
            slot,
            incarnation,
            host: Name::lossy("client"),
            devices: self.all_devices(),
            page_key: self.page_key(slot),
            coordinator_key: self.coordinator_key(),
            doorbell: self.scenario.doorbell,
        };
        let mut member = Member::new(now, config);
        let challenge = storage_socket_proto::Challenge([self.rng.bits().to_le_bytes()[0]; 32]);
        member.set_challenges(now, vec![challenge; self.devices.len()]);
        member
    }

    /// The process ends at once; it starts again after `rest`.
    pub(super) fn crash(&mut self, index: HostIndex, rest: Option<Duration>) {
        let Some(host) = self.hosts.remove(&index) else {
            return;
        };
        self.note(|| format!("host {index} ends, and starts again after {rest:?}"));
        if let Some(due) = host.due {
            self.due.remove(&(due, index));
        }
        if let Some(wishes) = self.wishes.get_mut(&index) {
            for wish in wishes {
                if let WishState::Asked(_) = wish.state {
                    wish.state = WishState::Open;
                }
            }
        }
        match rest {
            Some(rest) => self.schedule(rest, Happening::Start(index)),
            None => {
                self.wishes.remove(&index);
            }
        }
        // What a cloned server granted its clone doesn't know: with one of them the other is started anew.
        let is_clone = |host: &Host| match &host.machine {
            Machine::Coordinator(server) => Some(server.epoch()) == self.cloned_epoch,
            Machine::Member(_) => false,
        };
        if is_clone(&host) {
            let clones = self.hosts.range(..crate::host::MEMBERS);
            let mut others = clones
                .filter(|(_, host)| is_clone(host))
                .map(|(&index, _)| index);
            if let Some(other) = others.next_back() {
                self.crash(other, Some(Duration::from_millis(150)));
            }
        }
    }

    pub(super) fn stop(&mut self, index: HostIndex) -> Result<(), Broken> {
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        if host.paused.is_some() {
            return Ok(());
        }
        let now = host.clock.local(self.now);
        match &mut host.machine {
            Machine::Member(member) => {
                self.hit.fault(Fault::MemberStop);
                member.stop(now);
                // Its driver lets go of every stream first; what is under way then is a ghost.
                host.is_stopping = true;
                host.abort(now, ResetReason::Aborted, |_| true);
            }
            Machine::Coordinator(coordinator) => {
                self.hit.fault(Fault::CoordinatorStop);
                coordinator.stop(now);
            }
        }
        self.settle(index)
    }

    pub(super) fn woken(&mut self, index: HostIndex, life: u64) -> Result<(), Broken> {
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        if host.life != life || host.paused.is_none() {
            return Ok(());
        }
        host.paused = None;
        host.woke = self.now;
        if self.faults_over {
            self.settled_from = self.now;
        }
        host.machine_touched = true;
        let inbox = std::mem::take(&mut host.inbox);
        self.note(|| format!("host {index} wakes"));
        self.wake(index)?;
        for arrival in inbox {
            self.arrive(index, Some(life), arrival)?;
        }
        Ok(())
    }

    /// Something is due in a host: first in its machine, which may raise the fence, then in its connections.
    pub(super) fn wake(&mut self, index: HostIndex) -> Result<(), Broken> {
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        let now = host.clock.local(self.now);
        if host.paused.is_some() {
            self.update_due(index);
            return Ok(());
        }
        if host.handle_timeout(now) {
            self.take_events(index)?;
        }
        if let Some(host) = self.hosts.get_mut(&index) {
            host.handle_connection_timeouts(now);
        }
        self.settle_touched(index)
    }

    pub(super) fn arrive(
        &mut self,
        index: HostIndex,
        life: Option<u64>,
        arrival: Arrival,
    ) -> Result<(), Broken> {
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        if life.is_some_and(|life| life != host.life) {
            return Ok(());
        }
        if host.paused.is_some() {
            host.inbox.push(arrival);
            return Ok(());
        }
        let now = host.clock.local(self.now);
        match arrival {
            Arrival::Outcome(outcome) => {
                host.machine_touched |= outcome.owner == Owner::Machine;
                let buffer = host.handle_outcome(now, outcome, &mut self.hit);
                if let Some(buffer) = buffer {
                    self.buffers.put(buffer);
                }
            }
            Arrival::Bell => {
                host.machine_touched = true;
                match &mut host.machine {
                    Machine::Member(member) => member.handle_doorbell(now),
                    Machine::Coordinator(coordinator) => coordinator.handle_doorbell(now),
                }
            }
            Arrival::BellFor(connection) => {
                if let Some(endpoint) = host.touch(connection) {
                    endpoint.connection.handle_doorbell(now);
                }
            }
        }
        self.settle_touched(index)
    }

    /// Lets a host do what it can do now, after its machine was told something.
    pub(super) fn settle(&mut self, index: HostIndex) -> Result<(), Broken> {
        if let Some(host) = self.hosts.get_mut(&index) {
            host.machine_touched = true;
        }
        self.settle_touched(index)
    }

    /// Lets whatever was touched of a host do what it can do now.
    fn settle_touched(&mut self, index: HostIndex) -> Result<(), Broken> {
        loop {
            let is_touched = self
                .hosts
                .get(&index)
                .is_some_and(|host| host.machine_touched);
            let any = is_touched && self.take_events(index)?;
            let Some(host) = self.hosts.get_mut(&index) else {
                return Ok(());
            };
            if host.paused.is_some() {
                break;
            }
            let now = host.clock.local(self.now);
            let mut work = host.work(now, &mut self.hit)?;
            for buffer in work.buffers.drain(..) {
                self.buffers.put(buffer);
            }
            let is_idle = !any && work.ended.is_empty();
            for (id, grant, ended) in work.ended {
                self.ended(index, id, &grant, ended);
            }
            for connection in work.rings {
                if let Some(peer) = self.peer_host(index, connection) {
                    self.ring(peer, Bell::Connection(connection));
                }
            }
            for (owner, request) in work.requests {
                self.submit(index, owner, request)?;
            }
            if is_idle {
                break;
            }
        }
        self.update_due(index);
        Ok(())
    }

    fn update_due(&mut self, index: HostIndex) {
        let Some(host) = self.hosts.get_mut(&index) else {
            return;
        };
        let due = if host.paused.is_some() {
            None
        } else {
            host.poll_timeout().map(|at| host.clock.world(at))
        };
        if host.due != due {
            if let Some(before) = std::mem::replace(&mut host.due, due) {
                self.due.remove(&(before, index));
            }
            self.due.extend(due.map(|due| (due, index)));
        }
    }

    pub(super) fn connect(&mut self, index: HostIndex) -> Result<(), Broken> {
        let most = usize::try_from(self.scenario.streams_at_once).unwrap_or(1);
        let (cipher, window) = (self.scenario.cipher, UnitCount(self.scenario.window));
        let id = self.rng.id();
        let Some(wishes) = self.wishes.get_mut(&index) else {
            return Ok(());
        };
        let is_asked = |wish: &&Wish| matches!(wish.state, WishState::Asked(_));
        if wishes.iter().filter(is_asked).count() >= most {
            return Ok(());
        }
        // As long as there are faults, there is something for them to hit.
        let is_busy = wishes.iter().any(|wish| wish.state != WishState::Done);
        if !is_busy && !self.faults_over && wishes.len() < WISHES_MAX {
            wishes.push(Wish::stream(Intent::Full));
        }
        let is_open = |wish: &&mut Wish| wish.state == WishState::Open;
        let Some(wish) = wishes.iter_mut().find(is_open) else {
            return Ok(());
        };
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        let Machine::Member(member) = &mut host.machine else {
            return Ok(());
        };
        if host.paused.is_some() {
            self.schedule(Duration::from_millis(100), Happening::Connect(index));
            return Ok(());
        }
        let intent = match wish.want {
            Want::Stream(intent) => intent,
            _ => Intent::Full,
        };
        let mut options = ConnectOptions {
            connection: intent.mark(id),
            port: PORT,
            cipher,
            frame_units: UnitCount(1),
            window_to_coordinator: window,
            window_to_member: window,
            devices: DeviceMask(u32::MAX),
            patience: Duration::from_secs(3),
        };
        match wish.want {
            Want::Refusal(Flaw::Port) => options.port = Port(99),
            Want::Refusal(Flaw::Cipher) => {
                options.cipher = if cipher == Cipher::Checksum {
                    Cipher::Aes256Gcm
                } else {
                    Cipher::Checksum
                };
            }
            Want::Refusal(Flaw::Device) => options.devices = DeviceMask(1 << 31),
            Want::Impatient => options.patience = Duration::from_millis(2),
            Want::Stream(_) | Want::Anything => {}
        }
        let now = host.clock.local(self.now);
        if member.connect(now, options).is_ok() {
            wish.state = WishState::Asked(options.connection);
        } else {
            self.schedule(Duration::from_millis(100), Happening::Connect(index));
        }
        self.settle(index)
    }

    /// A listener takes a connection out of its backlog.
    pub(super) fn accept(
        &mut self,
        index: HostIndex,
        connection: ConnectionId,
    ) -> Result<(), Broken> {
        if let Some(host) = self.hosts.get_mut(&index)
            && host.paused.is_none()
            && let Machine::Coordinator(coordinator) = &mut host.machine
        {
            let now = host.clock.local(self.now);
            coordinator.accepted(now, connection);
            return self.settle(index);
        }
        Ok(())
    }

    /// A request was refused or given up.
    pub(super) fn not_granted(&mut self, index: HostIndex, connection: ConnectionId) {
        if let Some(wish) = self.wish(index, connection) {
            wish.state = match wish.want {
                Want::Refusal(_) | Want::Impatient => WishState::Done,
                Want::Stream(_) | Want::Anything => WishState::Open,
            };
            let fault = match wish.want {
                Want::Refusal(_) => Some(Fault::BadRequest),
                Want::Impatient => Some(Fault::Impatient),
                Want::Stream(_) | Want::Anything => None,
            };
            if let Some(fault) = fault {
                self.hit.fault(fault);
            }
        }
        self.schedule(Duration::from_millis(40), Happening::Connect(index));
    }

    fn wish(&mut self, index: HostIndex, connection: ConnectionId) -> Option<&mut Wish> {
        let wishes = self.wishes.get_mut(&index)?;
        let asked = WishState::Asked(connection);
        wishes.iter_mut().find(|wish| wish.state == asked)
    }

    fn ended(&mut self, index: HostIndex, id: ConnectionId, grant: &Grant, ended: Ended) {
        self.note(|| format!("host {index}: {id} ended: {:?}", ended.reason));
        let Some(host) = self.hosts.get_mut(&index) else {
            return;
        };
        let now = host.clock.local(self.now);
        host.pairs.forget(Owner::Connection(id));
        host.machine_touched = true;
        match &mut host.machine {
            Machine::Member(member) => member.close(now, id, ended.reason),
            Machine::Coordinator(coordinator) => coordinator.close(now, id, ended.reason),
        }
        self.report.frames += ended.frames;
        self.report.resends += ended.stats.frames_resent;
        self.report.damaged += ended.stats.damaged_reads;
        if is_server(index) {
            return;
        }
        let is_well = ended.reason.is_none();
        if let Some(reason) = ended.reason {
            *self.report.reset.entry(reason.to_string()).or_default() += 1;
        } else {
            self.report.finished += 1;
        }
        let is_goal = Intent::of(grant.connection).is_goal();
        if let Some(wish) = self.wish(index, id) {
            wish.state = if is_well || !is_goal {
                WishState::Done
            } else {
                WishState::Open
            };
        }
        self.schedule(Duration::from_millis(1), Happening::Connect(index));
    }

    pub(super) fn open(
        &mut self,
        index: HostIndex,
        grant: Grant,
        sends: Direction,
    ) -> Result<(), Broken> {
        self.check_grant(index, &grant)?;
        let config = EndpointConfig {
            pool: self.geometry.pool(),
            timeouts: timeouts(),
            doorbell: self.scenario.doorbell,
            payload_max: self.scenario.payload_max,
            peers: if self.cloned_epoch == Some(grant.epoch) {
                Peers::Cloned
            } else {
                Peers::One
            },
        };
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        let now = host.clock.local(self.now);
        let mut endpoint = Endpoint::new(now, grant, sends, config)?;
        endpoint.connection.set_fenced(now, host.fence);
        endpoint.connection.set_polling(now, self.scenario.polling);
        if host
            .connections
            .insert(grant.connection, endpoint)
            .is_some()
        {
            let what = format!("host {index} is granted {} twice", grant.connection);
            return Err(Promise::Grants.broken(what));
        }
        host.touch(grant.connection);
        Ok(())
    }

    /// Whether a member's host runs and can be asked over the network.
    pub(super) fn answers_on_network(&self, index: HostIndex) -> bool {
        let is_there = self.scenario.network == crate::scenario::Network::There;
        let host = self.hosts.get(&index);
        is_there && host.is_some_and(|host| host.paused.is_none())
    }

    pub(super) fn main_server(&self) -> HostIndex {
        let serves = |index: &&HostIndex| self.hosts.get(index).is_some_and(|host| host.serves);
        let servers = self.servers();
        servers.iter().find(serves).copied().unwrap_or(SERVER)
    }
}

impl Host {
    /// Hands the outcome of an I/O to whom it belongs. Returns the buffer.
    fn handle_outcome(
        &mut self,
        now: Tick,
        outcome: crate::host::Outcome,
        hit: &mut Coverage,
    ) -> Option<Vec<u8>> {
        self.ended(outcome.owner);
        self.watch_pair(&outcome, hit);
        let result = outcome.result;
        let told = match &result {
            Err(failure) => IoOutcome::Failed(*failure),
            Ok(_) if outcome.is_write => IoOutcome::Written,
            Ok(bytes) => IoOutcome::Read(bytes),
        };
        match outcome.owner {
            Owner::Machine => match &mut self.machine {
                Machine::Member(member) => member.handle_io(now, outcome.id, told),
                Machine::Coordinator(coordinator) => {
                    coordinator.handle_io(now, outcome.id, told);
                }
            },
            Owner::Connection(connection) => {
                if let Some(endpoint) = self.touch(connection) {
                    match outcome.frame {
                        Some(sequence) if !outcome.is_write => {
                            return endpoint.handle_frame(now, outcome.id, sequence, result, hit);
                        }
                        frame => {
                            if let Some(sequence) = frame {
                                endpoint.written(sequence, result.is_ok());
                            }
                            endpoint.connection.handle_io(now, outcome.id, told);
                        }
                    }
                }
            }
        }
        result.ok()
    }
}
