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
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use storage_socket_proto::{
    ConnectionId, Coordinator, DeviceIndex, Epoch, Fence, Grant, Incarnation, IoFailure, IoId,
    IoRequest, Member, ResetReason, Sequence, SlotIndex, Tick,
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
    /// What may have something to do: the machine, and connections. Only that is called, as a frugal driver would, so
    /// that a machine which forgets to say when it is due is found.
    pub(crate) machine_touched: bool,
    touched: Vec<ConnectionId>,
    /// When the machine wants to be called.
    machine_due: Option<Tick>,
    /// Whether it may write.
    pub(crate) fence: Fence,
    /// The devices that its machine has lost, and until when if it has found them again.
    away: BTreeMap<DeviceIndex, Option<Tick>>,
    /// Suspended until this tick.
    pub(crate) paused: Option<Tick>,
    pub(crate) woke: Tick,
    /// What came meanwhile.
    pub(crate) inbox: Vec<Arrival>,
    /// When it wants to be called.
    pub(crate) due: Option<Tick>,
    /// I/Os of the machine under way.
    under_way: usize,
    pub(crate) pairs: Pairs,
    /// A coordinator: whether it has written a block, and whether it serves.
    pub(crate) has_claimed: bool,
    pub(crate) serves: bool,
    /// The coordinators that a member says it has lost, unless it has found them again.
    pub(crate) left: BTreeSet<Epoch>,
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
            machine_touched: true,
            touched: Vec::new(),
            machine_due: None,
            fence: Fence::Open,
            away: BTreeMap::new(),
            paused: None,
            woke: now,
            inbox: Vec::new(),
            due: None,
            under_way: 0,
            pairs: Pairs::default(),
            has_claimed: false,
            serves: false,
            left: BTreeSet::new(),
            is_stopping: false,
            rested: false,
        }
    }

    /// Its machine has lost a device.
    pub(crate) fn lose(&mut self, device: DeviceIndex) {
        self.away.insert(device, None);
    }

    /// Its machine has found a device again.
    pub(crate) fn find(&mut self, now: Tick, device: DeviceIndex) {
        self.away.insert(device, Some(now));
    }

    /// Whether a device wasn't lost to its machine within the last `span`.
    pub(crate) fn had(&self, now: Tick, device: DeviceIndex, span: Duration) -> bool {
        let away = self.away.get(&device);
        away.is_none_or(|until| until.is_some_and(|until| now.since(until) > span))
    }

    /// Tells every connection whether it may write.
    pub(crate) fn set_fence(&mut self, now: Tick, fence: Fence) {
        self.fence = fence;
        for (&id, endpoint) in &mut self.connections {
            endpoint.connection.set_fenced(now, fence);
            self.touched.push(id);
        }
    }

    /// Aborts the connections that `which` picks.
    pub(crate) fn abort(&mut self, now: Tick, reason: ResetReason, which: impl Fn(&Grant) -> bool) {
        for (&id, endpoint) in &mut self.connections {
            if which(endpoint.connection.grant()) {
                endpoint.connection.abort(now, reason);
                self.touched.push(id);
            }
        }
    }

    /// A connection, to which something is about to be told.
    pub(crate) fn touch(&mut self, connection: ConnectionId) -> Option<&mut Endpoint> {
        let endpoint = self.connections.get_mut(&connection)?;
        self.touched.push(connection);
        Some(endpoint)
    }

    /// Counts an I/O, and tells how many its owner has under way.
    pub(crate) fn begun(&mut self, owner: Owner) -> usize {
        let count = self.count_of(owner);
        count.map_or(0, |count| {
            *count += 1;
            *count
        })
    }

    /// An I/O has ended.
    pub(crate) fn ended(&mut self, owner: Owner) {
        if let Some(count) = self.count_of(owner) {
            *count -= 1;
        }
    }

    fn count_of(&mut self, owner: Owner) -> Option<&mut usize> {
        match owner {
            Owner::Machine => Some(&mut self.under_way),
            Owner::Connection(connection) => {
                let endpoint = self.connections.get_mut(&connection)?;
                Some(&mut endpoint.under_way)
            }
        }
    }

    /// Lets everything that was touched go on, and takes what it wants read or written; the machine first, as it may
    /// raise the fence.
    pub(crate) fn work(&mut self, now: Tick, hit: &mut Coverage) -> Result<Work, Broken> {
        let mut work = Work::default();
        if std::mem::take(&mut self.machine_touched) {
            loop {
                let request = match &mut self.machine {
                    Machine::Member(member) => member.poll_io(now),
                    Machine::Coordinator(coordinator) => coordinator.poll_io(now),
                };
                match request {
                    Some(request) => work.requests.push((Owner::Machine, request)),
                    None => break,
                }
            }
            self.machine_due = match &self.machine {
                Machine::Member(member) => member.poll_timeout(),
                Machine::Coordinator(coordinator) => coordinator.poll_timeout(),
            };
        }
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for &id in &touched {
            let Some(endpoint) = self.connections.get_mut(&id) else {
                continue;
            };
            endpoint.work(now, hit, |request| {
                work.requests.push((Owner::Connection(id), request));
            })?;
            if endpoint.connection.poll_doorbell() {
                work.rings.push(id);
            }
            work.buffers.append(&mut endpoint.spare);
            if let Some(ended) = endpoint.ended {
                work.ended.push((id, *endpoint.connection.grant(), ended));
                self.connections.remove(&id);
            }
        }
        touched.clear();
        self.touched = touched;
        Ok(work)
    }

    /// When something in this host is due, by its own clock.
    pub(crate) fn poll_timeout(&self) -> Option<Tick> {
        let endpoints = self.connections.values();
        let due = endpoints.filter_map(|endpoint| endpoint.due);
        due.chain(self.machine_due).min()
    }

    /// Does what is due in the machine. Returns whether anything was.
    pub(crate) fn handle_timeout(&mut self, now: Tick) -> bool {
        if self.machine_due.is_none_or(|at| at > now) {
            return false;
        }
        self.machine_touched = true;
        match &mut self.machine {
            Machine::Member(member) => member.handle_timeout(now),
            Machine::Coordinator(coordinator) => coordinator.handle_timeout(now),
        }
        true
    }

    /// Does what is due in the connections: after the machine's word of a fence was taken.
    pub(crate) fn handle_connection_timeouts(&mut self, now: Tick) {
        for (&id, endpoint) in &mut self.connections {
            if endpoint.due.is_some_and(|at| at <= now) {
                endpoint.handle_timeout(now);
                self.touched.push(id);
            }
        }
    }
}

/// What came of letting a host go on.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// What is to be read and written.
    pub(crate) requests: Vec<(Owner, IoRequest)>,
    /// Connections whose peers are to be rung.
    pub(crate) rings: Vec<ConnectionId>,
    /// Connections whose machines are drained; the host has forgotten them.
    pub(crate) ended: Vec<(ConnectionId, Grant, Ended)>,
    /// Buffers that are free.
    pub(crate) buffers: Vec<Vec<u8>>,
}
