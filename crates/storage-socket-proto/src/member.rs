//! The member machine: its slot's page, its sign of life, its requests, and what it makes of the coordinator's answers.
//!
//! Invariants: only its own page is written; what it reads counts only if newer than what it saw; it confirms an epoch
//! only when nothing granted by another one is written to any more.

mod device;
mod entries;
mod follow;

use crate::{
    block::{Grant, MemberPage, MemberState, Place, Stamp, TagKey},
    connection::Doorbell,
    error::UsageError,
    geometry::Geometry,
    io::{IoFailure, IoId, IoIds, IoOutcome, IoRequest},
    pair::PairOutcome,
    poll::Poll,
    reasons::{RefusalReason, ResetReason},
    seal::Cipher,
    types::{
        Challenge, ConnectionId, Counter, DeviceIndex, DeviceMask, ENTRIES, Epoch, Incarnation,
        Name, Port, SlotIndex, Tick, UnitCount,
    },
};
use device::{Area, Device, DeviceOutcome};
use entries::Entry;
use follow::Followed;
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// What a member is made of.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// The pool's layout.
    pub geometry: Arc<Geometry>,
    /// The slot; the caller holds the local lock on it.
    pub slot: SlotIndex,
    /// Random, new at each start.
    pub incarnation: Incarnation,
    /// This host's name.
    pub host: Name,
    /// The devices that were opened.
    pub devices: DeviceMask,
    /// The key that tags this member's page.
    pub page_key: TagKey,
    /// The key that tags the coordinator's blocks.
    pub coordinator_key: TagKey,
    /// Whether a doorbell tells of news; without, devices are polled more often.
    pub doorbell: Doorbell,
}

/// What a member asks for when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Random, never used before.
    pub connection: ConnectionId,
    /// The port.
    pub port: Port,
    /// How frames are protected.
    pub cipher: Cipher,
    /// Units of a frame slot.
    pub frame_units: UnitCount,
    /// Units per device for what this member sends, the control unit included.
    pub window_to_coordinator: UnitCount,
    /// Units per device for what it receives, the control unit included.
    pub window_to_member: UnitCount,
    /// The devices that may be used.
    pub devices: DeviceMask,
    /// How long to wait for an answer.
    pub patience: Duration,
}

/// What a member has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberEvent {
    /// The page is written and a coordinator that serves was seen.
    Joined {
        /// The coordinator's epoch.
        epoch: Epoch,
        /// The coordinator's host.
        host: Name,
    },
    /// The coordinator shows no sign of life for half the time-out: ask it over the network, and call
    /// [`Member::handle_vouched`] if it answers.
    CoordinatorSuspect {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The coordinator stopped, died or was replaced. Each connection of its epoch is told of in a `Closed` of its own.
    CoordinatorLost {
        /// Its epoch.
        epoch: Epoch,
    },
    /// A request was granted: make a [`crate::Connection`] of it.
    Connected(Grant),
    /// A request was refused; its entry is free again.
    Refused {
        /// The request.
        connection: ConnectionId,
        /// Why.
        reason: RefusalReason,
    },
    /// No answer came in time; the entry is free again.
    ConnectTimedOut {
        /// The request.
        connection: ConnectionId,
    },
    /// The coordinator closed the connection or has gone: call `Connection::handle_peer_gone`, and, when that is
    /// drained, [`Member::close`].
    Closed {
        /// The connection.
        connection: ConnectionId,
        /// Why; `None` if both directions were finished.
        reason: Option<ResetReason>,
    },
    /// The counter couldn't be written for the fence time: no connection may write (`Connection::set_fenced`).
    Fenced,
    /// The counter was written and the answers read again: connections may write.
    Unfenced,
    /// A device is lost to this member: connections over it are to be aborted with `DeviceLost`.
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
    /// The coordinator's challenge on a device has changed.
    ChallengeSeen {
        /// The device.
        device: DeviceIndex,
        /// The challenge.
        challenge: Challenge,
    },
    /// The member has ended; nothing is written any more.
    Stopped(StopReason),
}

/// Why a member ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// It was told to.
    #[error("stopped")]
    Requested,
    /// Another process writes under the same slot: a cloned host or a second process without the local lock.
    #[error("slot {slot} is written by incarnation {found} as well: a cloned host")]
    ClonedHost {
        /// The slot.
        slot: SlotIndex,
        /// The other incarnation; this member's own if the running process was cloned.
        found: Incarnation,
    },
    /// No device is left.
    #[error("no device is left")]
    NoDevice,
}

/// The member machine.
#[derive(Debug)]
pub struct Member {
    config: MemberConfig,
    ids: IoIds,
    phase: Phase,
    /// The last counter that was written, or that a predecessor left.
    counter: Counter,
    /// This member's counters are above this.
    inherited: Counter,
    /// The highest counter of another incarnation below that, and how often it has advanced.
    foreign: (Counter, u32),
    /// Advances with every change of the page's content.
    revision: u64,
    devices: Vec<Device>,
    entries: [Entry; ENTRIES],
    challenges: Vec<Challenge>,
    confirmed: Epoch,
    followed: Followed,
    events: VecDeque<MemberEvent>,
    fence: FenceState,
    /// When the last page that was written was begun.
    written_at: Tick,
    beat_at: Tick,
    poll: Poll,
    ring: bool,
    deadline: Option<Tick>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Reads what is in its slot.
    Starting,
    Running,
    Stopping,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FenceState {
    Open,
    Fenced,
    /// The page was written again.
    Proving(Proof),
}

/// What has to be read, with reads begun after the page was written, before a fenced member is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Proof {
    since: Tick,
    /// The epoch whose coordinator block was read, as that of the coordinator that is followed.
    block: Option<Epoch>,
    /// The epoch whose answers to this incarnation were read.
    answers: Option<Epoch>,
}

/// The shortest time between two polls of the answers.
const POLL_MIN: Duration = Duration::from_millis(1);
/// The longest while a request is open and no doorbell is there.
const POLL_MAX_REQUEST: Duration = Duration::from_millis(20);
/// Advances of a predecessor's counter that may be ghosts; more are the work of a living process.
const FOREIGN_ADVANCES_MAX: u32 = 4;

impl Member {
    /// A member that begins to read its slot.
    #[must_use]
    pub fn new(now: Tick, config: MemberConfig) -> Self {
        let geometry = &config.geometry;
        let devices: Vec<Device> = geometry
            .all_devices()
            .and(config.devices)
            .iter()
            .map(|index| Device::new(index, geometry, config.slot))
            .collect();
        let mut member = Self {
            ids: IoIds::default(),
            phase: Phase::Starting,
            counter: Counter(0),
            inherited: Counter(0),
            foreign: (Counter(0), 0),
            revision: 1,
            devices,
            entries: [Entry::default(); ENTRIES],
            challenges: Vec::new(),
            confirmed: Epoch(0),
            followed: Followed::new(geometry.timeouts()),
            events: VecDeque::new(),
            fence: FenceState::Open,
            written_at: now,
            beat_at: now + geometry.timeouts().heartbeat,
            poll: Poll::new(now, POLL_MIN),
            ring: false,
            deadline: None,
            config,
        };
        if member.devices.is_empty() {
            member.end(StopReason::NoDevice);
        }
        member
    }

    /// The slot.
    #[must_use]
    pub fn slot(&self) -> SlotIndex {
        self.config.slot
    }

    /// The epoch of the coordinator that serves, if one is known.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.followed.serving()
    }

    /// The devices that both sides have proved: read and written by both under the present epoch and incarnation.
    #[must_use]
    pub fn proved(&self) -> DeviceMask {
        self.seen_devices().and(self.followed.devices)
    }

    /// Asks for a connection.
    ///
    /// # Errors
    /// [`UsageError::TooManyConnections`], [`UsageError::BadConnectionId`], [`UsageError::OutOfRange`] or
    /// [`UsageError::Stopped`].
    pub fn connect(&mut self, now: Tick, options: ConnectOptions) -> Result<(), UsageError> {
        if !matches!(self.phase, Phase::Starting | Phase::Running) {
            return Err(UsageError::Stopped);
        }
        let forgotten = self.followed.serving().is_none();
        let there = self.devices.iter().filter(|device| !device.is_lost());
        let there = there.fold(DeviceMask::NONE, |mask, device| {
            mask.or(DeviceMask::only(device.index()))
        });
        let options = ConnectOptions {
            devices: options.devices.and(there),
            ..options
        };
        let entry = entries::place(&mut self.entries, &options, forgotten)?;
        *entry = Entry::request(&options, now + options.patience);
        self.changed(now);
        Ok(())
    }

    /// Says that the connection's machine is drained: its segments are let go of.
    pub fn close(&mut self, now: Tick, connection: ConnectionId, reason: Option<ResetReason>) {
        let entry = self
            .entries
            .iter_mut()
            .find(|entry| entry.is_live(connection));
        if let Some(entry) = entry {
            entry.close(reason);
            self.confirm(now);
            self.changed(now);
        }
    }

    /// Sets the challenges that this member writes, one a device by index.
    pub fn set_challenges(&mut self, now: Tick, challenges: Vec<Challenge>) {
        self.challenges = challenges;
        self.changed(now);
    }

    /// The coordinator's challenge on a device, if a current one was read.
    #[must_use]
    pub fn challenge_seen(&self, device: DeviceIndex) -> Option<Challenge> {
        let device = self.devices.iter().find(|known| known.index() == device)?;
        device.challenge_seen
    }

    /// The coordinator was heard of over the network: its silence counts from now.
    pub fn handle_vouched(&mut self, _now: Tick) {
        self.followed.silence.reset();
    }

    /// Ends the member in order: the page says so, then `Stopped` comes.
    pub fn stop(&mut self, now: Tick) {
        match self.phase {
            Phase::Starting => self.end(StopReason::Requested),
            Phase::Running => {
                for entry in &mut self.entries {
                    entry.close_if_live(ResetReason::PeerClosed);
                }
                self.phase = Phase::Stopping;
                self.deadline = Some(now + self.config.geometry.timeouts().linger);
                self.changed(now);
            }
            Phase::Stopping | Phase::Stopped => {}
        }
    }

    /// Says whether a doorbell is there.
    pub fn set_doorbell(&mut self, now: Tick, doorbell: Doorbell) {
        self.config.doorbell = doorbell;
        self.poll.hasten(now);
    }

    /// The coordinator rang: there are news to read.
    pub fn handle_doorbell(&mut self, now: Tick) {
        self.poll.hasten(now);
        self.poll.want();
    }

    /// Whether the coordinator should be rung; asked once per ring.
    pub fn poll_doorbell(&mut self) -> bool {
        std::mem::take(&mut self.ring) && self.config.doorbell == Doorbell::Present
    }

    /// Takes the outcome of a request.
    pub fn handle_io(&mut self, now: Tick, id: IoId, outcome: IoOutcome<'_>) {
        let Some(at) = self.devices.iter().position(|device| device.owns(id)) else {
            return;
        };
        let done = self.devices[at].handle_io(now, id, outcome);
        if self.phase == Phase::Stopped {
            return;
        }
        match done {
            DeviceOutcome::Pair(outcome) => self.handle_pair(now, at, outcome),
            DeviceOutcome::Read(area, started) => {
                if let IoOutcome::Read(bytes) = outcome {
                    self.handle_read(now, at, area, started, bytes);
                }
            }
            DeviceOutcome::Again => {}
            DeviceOutcome::Lost(failure) => self.lose(now, at, failure),
            DeviceOutcome::Found => {
                let device = self.devices[at].index();
                self.events.push_back(MemberEvent::DeviceFound { device });
                self.changed(now);
            }
        }
        self.advance(now);
    }

    /// The next request for I/O.
    pub fn poll_io(&mut self, now: Tick) -> Option<IoRequest> {
        if self.phase == Phase::Stopped {
            return None;
        }
        if self.poll.is_wanted() && self.phase != Phase::Starting {
            let most = self.poll_max();
            if let Some(device) = self.devices.iter_mut().find(|device| !device.is_lost())
                && device.want_answer()
            {
                self.poll.begun(now, most);
            }
        }
        for at in 0..self.devices.len() {
            if let Some(request) = self.devices[at].poll_read(now, &mut self.ids) {
                return Some(request);
            }
            let may_write = matches!(self.phase, Phase::Running | Phase::Stopping);
            if may_write && self.devices[at].wants_write(now, self.revision) {
                return Some(self.write_page(now, at));
            }
        }
        None
    }

    /// When [`Member::handle_timeout`] has to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        if self.phase == Phase::Stopped {
            return None;
        }
        let fence = self.config.geometry.timeouts().fence;
        let primary = self.devices.iter().find(|device| !device.is_lost());
        let poll = primary.is_some_and(|device| !device.is_reading_answer());
        let writes = self.phase != Phase::Starting;
        let retry = |device: &Device| device.retry_at(self.revision).filter(|_| writes);
        [
            Some(self.beat_at),
            (poll && self.phase != Phase::Starting).then(|| self.poll.at()),
            (self.fence == FenceState::Open && self.phase == Phase::Running)
                .then(|| self.written_at + fence),
            self.deadline,
        ]
        .into_iter()
        .flatten()
        .chain(self.entries.iter().filter_map(Entry::deadline))
        .chain(self.devices.iter().filter_map(retry))
        .min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Tick) {
        if self.phase == Phase::Stopped {
            return;
        }
        self.poll.is_due(now);
        if now >= self.beat_at {
            self.beat_at = now + self.config.geometry.timeouts().heartbeat;
            for device in &mut self.devices {
                device.beat();
            }
        }
        let mut any = false;
        for entry in &mut self.entries {
            if let Some(connection) = entry.give_up(now) {
                self.events
                    .push_back(MemberEvent::ConnectTimedOut { connection });
                any = true;
            }
        }
        if any {
            self.changed(now);
        }
        let fence = self.config.geometry.timeouts().fence;
        if self.phase == Phase::Running
            && self.fence == FenceState::Open
            && now >= self.written_at + fence
        {
            self.fence = FenceState::Fenced;
            self.events.push_back(MemberEvent::Fenced);
        }
        self.advance(now);
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<MemberEvent> {
        self.events.pop_front()
    }

    /// Whether the member has ended and no I/O is under way.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped && self.devices.iter().all(Device::is_quiet)
    }

    /// The devices whose coordinator block of the present epoch was read and whose own page was written.
    fn seen_devices(&self) -> DeviceMask {
        let epoch = self.followed.known();
        self.devices
            .iter()
            .filter(|device| device.sees(epoch))
            .fold(DeviceMask::NONE, |mask, device| {
                mask.or(DeviceMask::only(device.index()))
            })
    }

    fn poll_max(&self) -> Duration {
        let heartbeat = self.config.geometry.timeouts().heartbeat;
        let is_asking = self.entries.iter().any(|entry| entry.deadline().is_some());
        if is_asking && self.config.doorbell == Doorbell::Absent {
            POLL_MAX_REQUEST.min(heartbeat)
        } else {
            heartbeat
        }
    }

    fn changed(&mut self, now: Tick) {
        self.revision += 1;
        self.poll.hasten(now);
    }

    fn write_page(&mut self, now: Tick, at: usize) -> IoRequest {
        self.counter = self.counter.next();
        let stamp = Stamp {
            counter: self.counter,
            writer: self.config.incarnation.0,
        };
        let index = self.devices[at].index();
        let page = MemberPage {
            state: if self.phase == Phase::Stopping {
                MemberState::Stopped
            } else {
                MemberState::Running
            },
            devices: self.seen_devices(),
            confirmed: self.confirmed,
            challenge: self
                .challenges
                .get(usize::from(index.0))
                .copied()
                .unwrap_or_default(),
            host: self.config.host.clone(),
            entries: self.entries.map(|entry| entry.page()),
        };
        let block = page.encode(&self.place(index), stamp, &self.config.page_key);
        self.devices[at].write(now, &mut self.ids, block, self.revision)
    }

    fn place(&self, device: DeviceIndex) -> Place {
        Place {
            pool: self.config.geometry.pool(),
            device,
            slot: self.config.slot,
        }
    }

    fn handle_pair(&mut self, now: Tick, at: usize, outcome: PairOutcome) {
        match outcome {
            PairOutcome::Written => {
                let (began, news) = self.devices[at].written();
                self.written_at = self.written_at.max(began);
                self.ring |= news;
                if self.fence == FenceState::Fenced {
                    self.fence = FenceState::Proving(Proof {
                        since: now,
                        block: None,
                        answers: None,
                    });
                    self.poll.want();
                }
            }
            PairOutcome::ReadBack | PairOutcome::Failed(_) => {}
            PairOutcome::Lost(failure) => self.lose(now, at, failure),
        }
    }

    fn handle_read(&mut self, now: Tick, at: usize, area: Area, started: Tick, bytes: &[u8]) {
        match area {
            Area::Own => self.read_own(now, at, bytes),
            Area::Coordinator => {
                let found = self.read_coordinator(now, at, bytes);
                self.prove(started, |proof| proof.block = found.or(proof.block));
            }
            Area::Answer => {
                let found = self.read_answer(now, at, bytes);
                self.prove(started, |proof| proof.answers = found.or(proof.answers));
            }
        }
    }

    /// A fenced member is free once the coordinator that it follows has said so much as its block and its answers do.
    fn prove(&mut self, started: Tick, add: impl FnOnce(&mut Proof)) {
        let FenceState::Proving(proof) = &mut self.fence else {
            return;
        };
        if started < proof.since {
            return;
        }
        add(proof);
        let known = self.followed.known();
        if known.is_some() && proof.block == known && proof.answers == known {
            self.fence = FenceState::Open;
            self.events.push_back(MemberEvent::Unfenced);
        }
    }

    fn lose(&mut self, now: Tick, at: usize, failure: IoFailure) {
        let device = &mut self.devices[at];
        if device.is_lost() {
            return;
        }
        device.set_lost(now, &self.config.geometry.timeouts());
        let device = device.index();
        self.events
            .push_back(MemberEvent::DeviceLost { device, failure });
        self.changed(now);
        if self.devices.iter().all(Device::is_lost) {
            self.end(StopReason::NoDevice);
        }
    }

    fn end(&mut self, reason: StopReason) {
        if self.phase != Phase::Stopped {
            self.phase = Phase::Stopped;
            self.deadline = None;
            self.events.push_back(MemberEvent::Stopped(reason));
        }
    }

    fn advance(&mut self, now: Tick) {
        match self.phase {
            Phase::Starting if self.devices.iter().all(Device::is_known) => {
                self.inherited = self.counter.succession();
                self.counter = self.inherited;
                self.foreign.0 = self.foreign.0.max(Counter(0));
                self.phase = Phase::Running;
                self.written_at = now;
                self.poll.hasten(now);
            }
            Phase::Stopping => {
                let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
                let said = |device: &Device| device.has_written(self.revision);
                if is_late || self.devices.iter().all(said) {
                    self.end(StopReason::Requested);
                }
            }
            Phase::Starting | Phase::Running | Phase::Stopped => {}
        }
    }
}
