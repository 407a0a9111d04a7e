//! The member machine: its slot's page, its sign of life, its requests, and what it makes of the coordinator's answers.
//!
//! Invariants: only its own page is written; what it reads counts only if newer than what it saw; it confirms an epoch
//! only when nothing granted by another one is written to any more.

use crate::{
    block::{Grant, TagKey},
    error::UsageError,
    geometry::Geometry,
    io::{IoFailure, IoId, IoOutcome, IoRequest},
    reasons::{RefusalReason, ResetReason},
    seal::Cipher,
    types::{
        Challenge, ConnectionId, DeviceIndex, DeviceMask, Epoch, Incarnation, Name, Port,
        SlotIndex, Tick, UnitCount,
    },
};
use std::{sync::Arc, time::Duration};

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
    pub doorbell: crate::connection::Doorbell,
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
}

impl Member {
    /// A member that begins to read its slot.
    #[must_use]
    pub fn new(_now: Tick, config: MemberConfig) -> Self {
        Self { config }
    }

    /// The slot.
    #[must_use]
    pub fn slot(&self) -> SlotIndex {
        self.config.slot
    }

    /// The epoch of the coordinator that serves, if one is known.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        None
    }

    /// The devices that both sides have proved: read and written by both under the present epoch and incarnation.
    #[must_use]
    pub fn proved(&self) -> DeviceMask {
        DeviceMask::NONE
    }

    /// Asks for a connection.
    ///
    /// # Errors
    /// [`UsageError::TooManyConnections`], [`UsageError::BadConnectionId`], [`UsageError::OutOfRange`] or
    /// [`UsageError::Stopped`].
    pub fn connect(&mut self, _now: Tick, _options: ConnectOptions) -> Result<(), UsageError> {
        Err(UsageError::Stopped)
    }

    /// Says that the connection's machine is drained: its segments are let go of.
    pub fn close(&mut self, _now: Tick, _connection: ConnectionId, _reason: Option<ResetReason>) {}

    /// Sets the challenges that this member writes, one a device by index.
    pub fn set_challenges(&mut self, _now: Tick, _challenges: Vec<Challenge>) {}

    /// The coordinator's challenge on a device, if a current one was read.
    #[must_use]
    pub fn challenge_seen(&self, _device: DeviceIndex) -> Option<Challenge> {
        None
    }

    /// The coordinator was heard of over the network: its silence counts from now.
    pub fn handle_vouched(&mut self, _now: Tick) {}

    /// Ends the member in order: the page says so, then `Stopped` comes.
    pub fn stop(&mut self, _now: Tick) {}

    /// Says whether a doorbell is there.
    pub fn set_doorbell(&mut self, _now: Tick, _doorbell: crate::connection::Doorbell) {}

    /// The coordinator rang: there are news to read.
    pub fn handle_doorbell(&mut self, _now: Tick) {}

    /// Whether the coordinator should be rung; asked once per ring.
    pub fn poll_doorbell(&mut self) -> bool {
        false
    }

    /// Takes the outcome of a request.
    pub fn handle_io(&mut self, _now: Tick, _id: IoId, _outcome: IoOutcome<'_>) {}

    /// The next request for I/O.
    pub fn poll_io(&mut self, _now: Tick) -> Option<IoRequest> {
        None
    }

    /// When [`Member::handle_timeout`] has to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        None
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Tick) {}

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<MemberEvent> {
        None
    }

    /// Whether the member has ended and no I/O is under way.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        false
    }
}
