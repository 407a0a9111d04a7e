//! A host as a driver would run it: the machine of one process, its connections, and its clock.
//!
//! It owns no device: requests leave for the world, which brings their outcomes back.

use crate::{
    broken::Broken,
    clock::Clock,
    coverage::Coverage,
    endpoint::{Ended, Endpoint},
    pairs::Pairs,
};
use std::collections::BTreeMap;
use storage_socket_proto::{
    ConnectionId, Coordinator, Fence, Grant, Incarnation, IoFailure, IoId, IoRequest, Member,
    ResetReason, Sequence, SlotIndex, Tick,
};

/// Names a host: 0 and 1 are servers', then come the members', and from [`CLONES`] on their clones'.
pub(crate) type HostIndex = u32;

/// The server that there always is.
pub(crate) const SERVER: HostIndex = 0;
/// The one that comes to take the pool from it.
pub(crate) const RIVAL: HostIndex = 1;
/// The first member.
pub(crate) const MEMBERS: HostIndex = 2;
/// The clone of host n is this and n.
pub(crate) const CLONES: HostIndex = 100_000;

/// The slot that a member's host, or its clone, holds.
pub(crate) fn slot_of(host: HostIndex) -> SlotIndex {
    SlotIndex((host % CLONES).saturating_sub(MEMBERS))
}

/// Whether this is a server's.
pub(crate) fn is_server(host: HostIndex) -> bool {
    host < MEMBERS
}

/// Who in a host asked for an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// Its member or coordinator.
    Machine,
    /// One of its connections.
    Connection(ConnectionId),
}

/// The machine that makes a host what it is.
#[derive(Debug)]
pub(crate) enum Machine {
    /// It holds a slot.
    Member(Box<Member>),
    /// It owns the pool.
    Coordinator(Box<Coordinator>),
}

/// Something that reaches a host.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// An I/O ended.
    Outcome(Outcome),
    /// Its machine is rung.
    Bell,
    /// One of its connections is.
    BellFor(ConnectionId),
}

/// How an I/O ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) owner: Owner,
    pub(crate) id: IoId,
    pub(crate) device: usize,
    pub(crate) lba: u64,
    pub(crate) is_write: bool,
    pub(crate) frame: Option<Sequence>,
    /// What was read; nothing for a write.
    pub(crate) result: Result<Vec<u8>, IoFailure>,
}

/// One process.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) machine: Machine,
    /// Tells this process from others on the same host.
    pub(crate) life: u64,
    /// A member's incarnation.
    pub(crate) incarnation: Incarnation,
    pub(crate) started: Tick,
    pub(crate) clock: Clock,
    /// Its connections, drained ones included until they were closed.
    pub(crate) connections: BTreeMap<ConnectionId, Endpoint>,
    /// Whether it may write.
    pub(crate) fence: Fence,
    /// Suspended until this tick.
    pub(crate) paused: Option<Tick>,
    pub(crate) woke: Tick,
    /// What came meanwhile.
    pub(crate) inbox: Vec<Arrival>,
    /// When it wants to be called.
    pub(crate) due: Option<Tick>,
    /// I/Os under way.
    pub(crate) under_way: BTreeMap<Owner, usize>,
    pub(crate) pairs: Pairs,
    /// A coordinator: whether it has written a block, and whether it serves.
    pub(crate) has_claimed: bool,
    pub(crate) serves: bool,
    /// A member that was told to stop.
    pub(crate) is_stopping: bool,
    /// Grants of an earlier epoch rested when it began to serve.
    pub(crate) rested: bool,
}

impl Host {
    pub(crate) fn new(machine: Machine, life: u64, now: Tick, clock: Clock) -> Self {
        Self {
            machine,
            life,
            incarnation: Incarnation(0),
            started: now,
            clock,
            connections: BTreeMap::new(),
            fence: Fence::Open,
            paused: None,
            woke: now,
            inbox: Vec::new(),
            due: None,
            under_way: BTreeMap::new(),
            pairs: Pairs::default(),
            has_claimed: false,
            serves: false,
            is_stopping: false,
            rested: false,
        }
    }

    /// Tells every connection whether it may write.
    pub(crate) fn set_fence(&mut self, now: Tick, fence: Fence) {
        self.fence = fence;
        for endpoint in self.connections.values_mut() {
            endpoint.connection.set_fenced(now, fence);
        }
    }

    /// Aborts the connections that `which` picks.
    pub(crate) fn abort(&mut self, now: Tick, reason: ResetReason, which: impl Fn(&Grant) -> bool) {
        for endpoint in self.connections.values_mut() {
            if which(endpoint.connection.grant()) {
                endpoint.connection.abort(now, reason);
            }
        }
    }

    /// Lets every connection go on.
    pub(crate) fn pump(&mut self, now: Tick, hit: &mut Coverage) -> Result<(), Broken> {
        self.connections
            .values_mut()
            .try_for_each(|endpoint| endpoint.pump(now, hit))
    }

    /// The connections whose machines are drained; they are forgotten here.
    pub(crate) fn take_ended(&mut self) -> Vec<(ConnectionId, Grant, Ended)> {
        let is_ended = |endpoint: &Endpoint| endpoint.ended.is_some();
        if !self.connections.values().any(is_ended) {
            return Vec::new();
        }
        let ended = |(&id, endpoint): (&ConnectionId, &Endpoint)| {
            let grant = *endpoint.connection.grant();
            endpoint.ended.map(|ended| (id, grant, ended))
        };
        let ended: Vec<_> = self.connections.iter().filter_map(ended).collect();
        for (id, ..) in &ended {
            self.connections.remove(id);
            self.under_way.remove(&Owner::Connection(*id));
        }
        ended
    }

    /// Everything that wants to be read or written now; the machine first, as it may raise the fence.
    pub(crate) fn poll_requests(&mut self, now: Tick) -> Vec<(Owner, IoRequest)> {
        let mut requests = Vec::new();
        loop {
            let request = match &mut self.machine {
                Machine::Member(member) => member.poll_io(now),
                Machine::Coordinator(coordinator) => coordinator.poll_io(now),
            };
            match request {
                Some(request) => requests.push((Owner::Machine, request)),
                None => break,
            }
        }
        for (id, endpoint) in &mut self.connections {
            while let Some(request) = endpoint.connection.poll_io(now) {
                requests.push((Owner::Connection(*id), request));
            }
        }
        requests
    }

    /// When something in this host is due, by its own clock.
    pub(crate) fn poll_timeout(&self) -> Option<Tick> {
        let machine = match &self.machine {
            Machine::Member(member) => member.poll_timeout(),
            Machine::Coordinator(coordinator) => coordinator.poll_timeout(),
        };
        self.connections
            .values()
            .filter_map(|endpoint| endpoint.connection.poll_timeout())
            .chain(machine)
            .min()
    }

    /// Does what is due in the machine.
    pub(crate) fn handle_timeout(&mut self, now: Tick) {
        let is_due = |at: Option<Tick>| at.is_some_and(|at| at <= now);
        match &mut self.machine {
            Machine::Member(member) => {
                if is_due(member.poll_timeout()) {
                    member.handle_timeout(now);
                }
            }
            Machine::Coordinator(coordinator) => {
                if is_due(coordinator.poll_timeout()) {
                    coordinator.handle_timeout(now);
                }
            }
        }
    }

    /// Does what is due in the connections: after the machine's word of a fence was taken.
    pub(crate) fn handle_connection_timeouts(&mut self, now: Tick) {
        for endpoint in self.connections.values_mut() {
            let at = endpoint.connection.poll_timeout();
            if at.is_some_and(|at| at <= now) {
                endpoint.connection.handle_timeout(now);
            }
        }
    }
}
