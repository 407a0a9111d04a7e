//! The coordinator machine: claims the pool, reads the members' pages, grants and takes back segments.
//!
//! Invariants: no unit is granted twice, nor while it rests; a foreign epoch ends the coordinator at once; a member is
//! dead only by this coordinator's own successful reads and its own clock.

use crate::{
    block::{Grant, TagKey},
    connection::Doorbell,
    error::UsageError,
    geometry::Geometry,
    io::{IoFailure, IoId, IoOutcome, IoRequest},
    reasons::ResetReason,
    seal::Cipher,
    types::{
        Challenge, ConnectionId, DeviceIndex, DeviceMask, Epoch, Incarnation, Name, Port,
        SlotIndex, Tick, UnitCount,
    },
};
use std::{collections::BTreeMap, sync::Arc};

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
    /// How the pool is claimed.
    pub claim: Claim,
    /// The key that tags the coordinator's blocks.
    pub key: TagKey,
    /// Whether doorbells tell of news; without, the pages are polled more often.
    pub doorbell: Doorbell,
    /// Units of a frame slot at most.
    pub frame_units_max: UnitCount,
    /// Units per device and direction of a grant at most.
    pub window_max: UnitCount,
}

/// How a pool is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Watch for another coordinator, write, wait, read again.
    Wait,
    /// The same host holds its local lock, so that its predecessor is known to be gone: no wait.
    SameHost,
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
}

impl Coordinator {
    /// A coordinator that begins to claim the pool.
    #[must_use]
    pub fn new(_now: Tick, config: CoordinatorConfig) -> Self {
        Self { config }
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.config.epoch
    }

    /// Allows slots, each with the key that tags its member's page; others are refused.
    pub fn set_slots(&mut self, _now: Tick, _slots: BTreeMap<SlotIndex, TagKey>) {}

    /// Takes requests for a port from now on.
    ///
    /// # Errors
    /// [`UsageError::PortTaken`] or [`UsageError::Stopped`].
    pub fn bind(
        &mut self,
        _now: Tick,
        _port: Port,
        _options: ListenOptions,
    ) -> Result<(), UsageError> {
        Err(UsageError::Stopped)
    }

    /// Takes requests for a dynamic port, which is returned.
    ///
    /// # Errors
    /// [`UsageError::NoPort`] or [`UsageError::Stopped`].
    pub fn bind_dynamic(
        &mut self,
        _now: Tick,
        _options: ListenOptions,
    ) -> Result<Port, UsageError> {
        Err(UsageError::Stopped)
    }

    /// Takes no more requests for a port; its connections go on.
    pub fn unbind(&mut self, _now: Tick, _port: Port) {}

    /// Says that a listener took the connection from its backlog.
    pub fn accepted(&mut self, _now: Tick, _connection: ConnectionId) {}

    /// Says that the connection's machine is drained: its segments return once the member has let go as well.
    pub fn close(&mut self, _now: Tick, _connection: ConnectionId, _reason: Option<ResetReason>) {}

    /// Sets the challenges for the member of a slot, one a device by index.
    pub fn set_challenges(&mut self, _now: Tick, _slot: SlotIndex, _challenges: Vec<Challenge>) {}

    /// The challenge of a slot's member on a device, if a current one was read.
    #[must_use]
    pub fn challenge_seen(&self, _slot: SlotIndex, _device: DeviceIndex) -> Option<Challenge> {
        None
    }

    /// The members that were seen under this epoch.
    #[must_use]
    pub fn members(&self, _now: Tick) -> Vec<MemberView> {
        Vec::new()
    }

    /// The member of a slot was heard of over the network: its silence counts from now.
    pub fn handle_vouched(&mut self, _now: Tick, _slot: SlotIndex) {}

    /// Units of the data area that could be granted on all of `devices` now.
    #[must_use]
    pub fn free_units(&self, _devices: DeviceMask) -> u64 {
        0
    }

    /// Ends in order: new requests are refused, the block says so, then `Ended` comes.
    pub fn stop(&mut self, _now: Tick) {}

    /// Says whether doorbells are there.
    pub fn set_doorbell(&mut self, _now: Tick, _doorbell: Doorbell) {}

    /// A member rang: there are news to read.
    pub fn handle_doorbell(&mut self, _now: Tick) {}

    /// The slot of a member that should be rung; asked once per ring.
    pub fn poll_doorbell(&mut self) -> Option<SlotIndex> {
        None
    }

    /// Takes the outcome of a request.
    pub fn handle_io(&mut self, _now: Tick, _id: IoId, _outcome: IoOutcome<'_>) {}

    /// The next request for I/O.
    pub fn poll_io(&mut self, _now: Tick) -> Option<IoRequest> {
        None
    }

    /// When [`Coordinator::handle_timeout`] has to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        None
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Tick) {}

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<CoordinatorEvent> {
        None
    }

    /// Whether the coordinator has ended and no I/O is under way.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        false
    }
}
