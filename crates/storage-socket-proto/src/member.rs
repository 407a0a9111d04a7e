//! The member machine: its slot's page, its sign of life, its requests, and what it makes of the coordinator's answers.
//!
//! Invariants: only its own page is written; what it reads counts only if newer than what it saw; it confirms an epoch
//! only when nothing granted by another one is written to any more.

mod device;
mod entries;
mod follow;

use crate::{
    areas::{AreaOutcome, AreaWork, AreaWrites, FixedAreas, Wrote},
    block::{Grant, MemberPage, MemberState, Place, TagKey},
    connection::Doorbell,
    error::UsageError,
    geometry::Geometry,
    io::{IoFailure, IoId, IoOutcome, IoRequest},
    poll::Poll,
    reasons::{RefusalReason, ResetReason},
    seal::Cipher,
    types::{
        BlockCount, Challenge, ConnectionId, Counter, DeviceIndex, DeviceMask, ENTRIES, Epoch,
        Incarnation, Name, Port, SlotIndex, Tick, UnitCount,
    },
};
use device::{Area, MemberReads};
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
    /// Another coordinator lives on a device, and neither has found the other: devices of the pool are lost to their
    /// hosts. This member goes on with the one that it follows.
    RivalCoordinator {
        /// The device.
        device: DeviceIndex,
        /// Its epoch.
        epoch: Epoch,
        /// Its host.
        host: Name,
        /// The epoch of the one that is followed.
        followed: Epoch,
        /// The host of the one that is followed.
        followed_host: Name,
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
    phase: Phase,
    /// The highest counter of another incarnation below that, and how often it has advanced.
    foreign: (Counter, u32),
    areas: FixedAreas<MemberReads>,
    entries: [Entry; ENTRIES],
    challenges: Vec<Challenge>,
    confirmed: Epoch,
    followed: Followed,
    events: VecDeque<MemberEvent>,
    proof: Proof,
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

/// What was read, with reads begun after the page was written, before a fenced member is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Proof {
    /// The epoch whose coordinator block was read, as that of the coordinator that is followed.
    block: Option<Epoch>,
    /// The epoch whose answers to this incarnation were read.
    answers: Option<Epoch>,
    /// The answers were read, and weren't that.
    is_unanswered: bool,
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
        let page = geometry.member_page(config.slot);
        let areas = FixedAreas::new(
            now,
            geometry,
            config.devices,
            (config.incarnation.0, [page, page + BlockCount(1)]),
            || MemberReads::new(geometry, config.slot),
        );
        let mut member = Self {
            phase: Phase::Starting,
            foreign: (Counter(0), 0),
            areas,
            entries: [Entry::default(); ENTRIES],
            challenges: Vec::new(),
            confirmed: Epoch(0),
            followed: Followed::new(geometry.timeouts()),
            events: VecDeque::new(),
            proof: Proof::default(),
            poll: Poll::new(now, POLL_MIN),
            ring: false,
            deadline: None,
            config,
        };
        if member.areas.devices.is_empty() {
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
        let options = ConnectOptions {
            devices: options.devices.and(self.areas.answering(now)),
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
        let at = self.areas.position(device)?;
        self.areas.devices[at].reads.challenge_seen
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
        let Some((at, done)) = self.areas.handle_io(now, id, outcome) else {
            return;
        };
        if self.phase == Phase::Stopped {
            return;
        }
        match done {
            AreaOutcome::Written(wrote) => self.written(wrote),
            AreaOutcome::Read(area, started) => {
                if let IoOutcome::Read(bytes) = outcome {
                    self.handle_read(now, at, area, started, bytes);
                }
            }
            AreaOutcome::Nothing => {}
            AreaOutcome::GivenUp => self.given_up(),
            AreaOutcome::Lost(failure) => self.lost(now, at, failure),
            AreaOutcome::Found => {
                let device = &mut self.areas.devices[at];
                device.repair();
                device.reads.want_all();
                let device = device.index();
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
            if let Some(device) = self.areas.primary()
                && device.reads.want_answer()
            {
                self.poll.begun(now, most);
            }
        }
        match self.areas.poll_io(now, self.page_writes())? {
            AreaWork::Request(request) => Some(request),
            AreaWork::Write(at) => Some(self.write_page(now, at)),
        }
    }

    /// When [`Member::handle_timeout`] has to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        if self.phase == Phase::Stopped {
            return None;
        }
        let runs = self.phase == Phase::Running;
        let polls = self.phase != Phase::Starting;
        let polls = polls && self.areas.is_primary(|reads| !reads.is_reading_answer());
        [
            Some(self.areas.poll_timeout(self.page_writes())),
            polls.then(|| self.poll.at()),
            self.areas.fence_at().filter(|_| runs),
            self.deadline,
        ]
        .into_iter()
        .flatten()
        .chain(self.entries.iter().filter_map(Entry::deadline))
        .min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Tick) {
        if self.phase == Phase::Stopped {
            return;
        }
        self.poll.is_due(now);
        if self.areas.is_beat_due(now) {
            for device in &mut self.areas.devices {
                device.reads.want_all();
            }
            // A ring may be lost, and nobody reads this page while nothing is outstanding there.
            self.ring |= self.entries.iter().any(Entry::is_in_talk);
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
        if self.phase == Phase::Running && self.areas.is_fenced_now(now) {
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
        self.phase == Phase::Stopped && self.areas.are_quiet()
    }

    /// The devices whose coordinator block of the present epoch was read and whose own page was written.
    fn seen_devices(&self) -> DeviceMask {
        let epoch = self.followed.known();
        self.areas
            .mask(|reads| epoch.is_some() && reads.sees == epoch)
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
        self.areas.changed();
        self.poll.hasten(now);
    }

    fn page_writes(&self) -> AreaWrites {
        if self.phase == Phase::Starting {
            AreaWrites::Forbidden
        } else {
            AreaWrites::Allowed
        }
    }

    fn write_page(&mut self, now: Tick, at: usize) -> IoRequest {
        let stamp = self.areas.stamp();
        let index = self.areas.devices[at].index();
        let page = MemberPage {
            state: if self.phase == Phase::Stopping {
                MemberState::Stopped
            } else {
                MemberState::Running
            },
            // A fenced member that names none asks for its answers again.
            devices: if self.proof.is_unanswered {
                DeviceMask::NONE
            } else {
                self.seen_devices()
            },
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
        self.areas.write(now, at, block)
    }

    fn place(&self, device: DeviceIndex) -> Place {
        Place {
            pool: self.config.geometry.pool(),
            device,
            slot: self.config.slot,
        }
    }

    fn written(&mut self, wrote: Wrote) {
        self.ring |= wrote.is_news;
        if wrote.is_proving {
            self.proof = Proof::default();
            self.poll.want();
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
                self.prove(started, |proof| {
                    proof.answers = found.or(proof.answers);
                    proof.is_unanswered = proof.answers.is_none();
                });
            }
        }
    }

    /// A fenced member is free once the coordinator that it follows has said so much as its block and its answers do.
    fn prove(&mut self, started: Tick, add: impl FnOnce(&mut Proof)) {
        let since = self.areas.proving_since();
        if since.is_none_or(|since| started < since) {
            return;
        }
        add(&mut self.proof);
        let known = self.followed.known();
        if known.is_some() && self.proof.block == known && self.proof.answers == known {
            self.areas.unfence();
            self.events.push_back(MemberEvent::Unfenced);
        }
    }

    /// A device is lost from now on.
    fn lost(&mut self, now: Tick, at: usize, failure: IoFailure) {
        let device = self.areas.devices[at].index();
        self.events
            .push_back(MemberEvent::DeviceLost { device, failure });
        self.changed(now);
        self.given_up();
    }

    fn given_up(&mut self) {
        if self.areas.are_all_given_up() {
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
            Phase::Starting if self.areas.are_known() => {
                self.areas.succeed(now);
                self.phase = Phase::Running;
                self.poll.hasten(now);
            }
            Phase::Stopping => {
                let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
                if is_late || self.areas.has_said_all() {
                    self.end(StopReason::Requested);
                }
            }
            Phase::Running => self.take_offer(now),
            Phase::Starting | Phase::Stopped => {}
        }
    }
}
