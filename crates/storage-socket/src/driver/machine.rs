//! The member or coordinator machine of a pool, behind one face.

use crate::error::StopReason;
use std::ops::{Deref, DerefMut};
use storage_socket_proto::{
    Challenge, ConnectionId, Coordinator, CoordinatorEvent, DeviceIndex, EndReason, Epoch, Fence,
    Grant, Incarnation, IoFailure, IoId, IoOutcome, IoRequest, Member, MemberEvent, RefusalReason,
    ResetReason, SlotIndex, StopReason as MemberStop, Tick,
};

pub(crate) enum Machine {
    Member(Box<Member>),
    Coordinator(Box<Coordinator>),
}

/// What either machine has to tell.
pub(crate) enum MachineEvent {
    Ready,
    NotReady,
    Granted(Grant),
    Refused(ConnectionId, RefusalReason),
    ConnectTimedOut(ConnectionId),
    PeerGone(ConnectionId, Option<ResetReason>),
    Fence(Fence),
    /// The peer of this slot has been silent for half the time-out.
    PeerSuspect(SlotIndex),
    DeviceLost(DeviceIndex, IoFailure),
    DeviceFound(DeviceIndex),
    Ended(StopReason),
    /// For the log alone.
    Note(String),
}

/// A machine, and whether anything was done to it since it came to rest: only then it is asked what it wants.
pub(crate) struct Attended {
    machine: Machine,
    is_touched: bool,
    due: Option<Tick>,
}

impl Attended {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            is_touched: true,
            due: None,
        }
    }

    pub(crate) fn is_touched(&self) -> bool {
        self.is_touched
    }

    /// It wants nothing more at present.
    pub(crate) fn settle(&mut self) {
        self.is_touched = false;
        self.due = self.machine.poll_timeout();
    }

    /// When it has something to do, if nothing comes before.
    pub(crate) fn due(&self) -> Option<Tick> {
        if self.is_touched {
            self.machine.poll_timeout()
        } else {
            self.due
        }
    }

    /// Whether it has something to do at once, whatever has come.
    pub(crate) fn is_due(&self, now: Tick) -> bool {
        self.due().is_some_and(|due| due <= now)
    }
}

impl Deref for Attended {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl DerefMut for Attended {
    fn deref_mut(&mut self) -> &mut Machine {
        self.is_touched = true;
        &mut self.machine
    }
}

macro_rules! either {
    ($self:ident, $machine:ident => $call:expr) => {
        match $self {
            Machine::Member($machine) => $call,
            Machine::Coordinator($machine) => $call,
        }
    };
}

impl Machine {
    pub(crate) fn poll_io(&mut self, now: Tick) -> Option<IoRequest> {
        either!(self, machine => machine.poll_io(now))
    }

    pub(crate) fn handle_io(&mut self, now: Tick, id: IoId, outcome: IoOutcome<'_>) {
        either!(self, machine => machine.handle_io(now, id, outcome));
    }

    pub(crate) fn poll_timeout(&self) -> Option<Tick> {
        either!(self, machine => machine.poll_timeout())
    }

    pub(crate) fn handle_timeout(&mut self, now: Tick) {
        either!(self, machine => machine.handle_timeout(now));
    }

    /// There are news of the peer in a slot: a coordinator reads the page of that member alone.
    pub(crate) fn handle_doorbell_of(&mut self, now: Tick, slot: SlotIndex) {
        match self {
            Self::Member(member) => member.handle_doorbell(now),
            Self::Coordinator(coordinator) => coordinator.handle_doorbell_of(now, slot),
        }
    }

    pub(crate) fn close(&mut self, now: Tick, id: ConnectionId, reason: Option<ResetReason>) {
        either!(self, machine => machine.close(now, id, reason));
    }

    pub(crate) fn stop(&mut self, now: Tick) {
        either!(self, machine => machine.stop(now));
    }

    pub(crate) fn is_stopped(&self) -> bool {
        either!(self, machine => machine.is_stopped())
    }

    pub(crate) fn vouch(&mut self, now: Tick, slot: SlotIndex) {
        match self {
            Machine::Member(member) => member.handle_vouched(now),
            Machine::Coordinator(coordinator) => coordinator.handle_vouched(now, slot),
        }
    }

    pub(crate) fn set_challenges(&mut self, now: Tick, slot: SlotIndex, all: Vec<Challenge>) {
        match self {
            Machine::Member(member) => member.set_challenges(now, all),
            Machine::Coordinator(coordinator) => coordinator.set_challenges(now, slot, all),
        }
    }

    pub(crate) fn challenge_seen(&self, slot: SlotIndex, at: DeviceIndex) -> Option<Challenge> {
        match self {
            Machine::Member(member) => member.challenge_seen(at),
            Machine::Coordinator(coordinator) => coordinator.challenge_seen(slot, at),
        }
    }

    /// Whether challenges for a slot's peer have a place to be written to.
    pub(crate) fn has_peer(&self, now: Tick, slot: SlotIndex) -> bool {
        match self {
            Machine::Member(_) => true,
            Machine::Coordinator(_) => self.peer_writer(now, slot).is_some(),
        }
    }

    /// The random number of a slot's peer: the coordinator's epoch, or the member's incarnation.
    pub(crate) fn peer_writer(&self, now: Tick, slot: SlotIndex) -> Option<u64> {
        match self {
            Machine::Member(member) => member.epoch().map(|Epoch(epoch)| epoch),
            Machine::Coordinator(coordinator) => coordinator
                .members(now)
                .into_iter()
                .find(|member| member.slot == slot && member.alive)
                .map(|member| {
                    let Incarnation(incarnation) = member.incarnation;
                    incarnation
                }),
        }
    }

    /// The slot that is to be rung; a member rings by its own.
    pub(crate) fn poll_doorbell(&mut self) -> Option<SlotIndex> {
        match self {
            Machine::Member(member) => member.poll_doorbell().then(|| member.slot()),
            Machine::Coordinator(coordinator) => coordinator.poll_doorbell(),
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<MachineEvent> {
        match self {
            Machine::Member(member) => {
                let slot = member.slot();
                member.poll_event().map(|event| of_member(event, slot))
            }
            Machine::Coordinator(coordinator) => coordinator.poll_event().map(of_coordinator),
        }
    }
}

fn of_member(event: MemberEvent, own: SlotIndex) -> MachineEvent {
    match event {
        MemberEvent::Joined { .. } => MachineEvent::Ready,
        MemberEvent::CoordinatorLost { .. } => MachineEvent::NotReady,
        MemberEvent::Connected(grant) => MachineEvent::Granted(grant),
        MemberEvent::Refused { connection, reason } => MachineEvent::Refused(connection, reason),
        MemberEvent::ConnectTimedOut { connection } => MachineEvent::ConnectTimedOut(connection),
        MemberEvent::Closed { connection, reason } => MachineEvent::PeerGone(connection, reason),
        MemberEvent::CoordinatorSuspect { .. } => MachineEvent::PeerSuspect(own),
        MemberEvent::Fenced => MachineEvent::Fence(Fence::Closed),
        MemberEvent::Unfenced => MachineEvent::Fence(Fence::Open),
        MemberEvent::DeviceLost { device, failure } => MachineEvent::DeviceLost(device, failure),
        MemberEvent::DeviceFound { device } => MachineEvent::DeviceFound(device),
        MemberEvent::Stopped(why) => MachineEvent::Ended(match why {
            MemberStop::Requested => StopReason::Closed,
            MemberStop::ClonedHost { .. } => StopReason::Cloned(why.to_string()),
            other => StopReason::Devices(other.to_string()),
        }),
        MemberEvent::RivalCoordinator {
            device,
            epoch,
            host,
            followed,
            followed_host,
        } => {
            tracing::warn!(
                %device, %epoch, %host, %followed, %followed_host,
                "another coordinator writes to a device of this pool; neither sees the other's devices"
            );
            MachineEvent::Note("another coordinator".to_owned())
        }
        other => MachineEvent::Note(format!("{other:?}")),
    }
}

fn of_coordinator(event: CoordinatorEvent) -> MachineEvent {
    match event {
        CoordinatorEvent::Serving => MachineEvent::Ready,
        CoordinatorEvent::Incoming(grant) => MachineEvent::Granted(grant),
        CoordinatorEvent::Closed { connection, reason } => {
            MachineEvent::PeerGone(connection, reason)
        }
        CoordinatorEvent::MemberSuspect { slot, .. } => MachineEvent::PeerSuspect(slot),
        CoordinatorEvent::Fenced => MachineEvent::Fence(Fence::Closed),
        CoordinatorEvent::Unfenced => MachineEvent::Fence(Fence::Open),
        CoordinatorEvent::DeviceLost { device, failure } => {
            MachineEvent::DeviceLost(device, failure)
        }
        CoordinatorEvent::DeviceFound { device } => MachineEvent::DeviceFound(device),
        CoordinatorEvent::Ended(why) => MachineEvent::Ended(match why {
            EndReason::Requested => StopReason::Closed,
            EndReason::Owned { .. } | EndReason::ForeignEpoch { .. } => {
                StopReason::Displaced(why.to_string())
            }
            EndReason::ClonedHost => StopReason::Cloned(why.to_string()),
            other => StopReason::Devices(other.to_string()),
        }),
        other => MachineEvent::Note(format!("{other:?}")),
    }
}
