//! A host as a driver would run it: the machines of one process, its connections, and the bytes they carry.
//!
//! It owns no time and no device: requests leave for the world, which brings their outcomes back.

use crate::stream::{Checker, Source};
use std::collections::{BTreeMap, BTreeSet};
use storage_socket_proto::{
    Cipher, Connection, ConnectionConfig, ConnectionEvent, ConnectionId, ConnectionStats,
    Coordinator, Depths, Direction, Doorbell, Fence, FrameOpener, FrameSealer, FrameVerdict, Grant,
    IoFailure, IoId, IoOutcome, Member, PoolId, Protection, ResetReason, Sequence, StreamSecret,
    Tick, Timeouts,
};

/// Who in a host asked for an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Its member or coordinator.
    Machine,
    /// One of its connections.
    Connection(ConnectionId),
}

/// The machine that makes a host what it is.
#[derive(Debug)]
pub enum Machine {
    /// It holds a slot.
    Member(Box<Member>),
    /// It owns the pool.
    Coordinator(Box<Coordinator>),
}

/// One process.
#[derive(Debug)]
pub struct Host {
    /// Member or coordinator.
    pub machine: Machine,
    /// Its connections, drained ones included until they were closed.
    pub connections: BTreeMap<ConnectionId, Endpoint>,
    /// Whether it may write.
    pub fence: Fence,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why; `None` if both directions were finished.
    pub reason: Option<ResetReason>,
    /// Bytes of the other side that were delivered.
    pub delivered: u64,
    /// Frames of the other side that were delivered.
    pub frames: u64,
    /// Whether the other side's end was reached.
    pub complete: bool,
    /// What the machine counted.
    pub stats: ConnectionStats,
}

/// One end of a connection, with what drives it.
#[derive(Debug)]
pub struct Endpoint {
    /// The machine.
    pub connection: Connection,
    sealer: FrameSealer,
    opener: FrameOpener,
    kept: BTreeMap<Sequence, Vec<u8>>,
    opened: BTreeMap<Sequence, Vec<u8>>,
    source: Source,
    checker: Checker,
    /// Set when the machine is drained.
    pub ended: Option<Ended>,
    peer_finished: bool,
}

/// What a scenario asks of each connection.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Bytes from member to coordinator.
    pub to_coordinator: u64,
    /// Bytes from coordinator to member.
    pub to_member: u64,
    /// Payload bytes of a frame at most.
    pub payload_max: u64,
}

/// The secret of every stream in the simulation.
#[must_use]
pub fn protection(cipher: Cipher) -> Protection {
    let secret = StreamSecret::new([7; 32]);
    match cipher {
        Cipher::Checksum => Protection::Checksum,
        Cipher::Aes256Gcm => Protection::Aes256Gcm(secret),
        Cipher::ChaCha20Poly1305 => Protection::ChaCha20Poly1305(secret),
    }
}

impl Endpoint {
    /// The end of a granted connection that sends in `sends`.
    ///
    /// # Panics
    /// If the grant makes no connection: a bug of the machine that granted it.
    #[must_use]
    pub fn new(
        now: Tick,
        pool: PoolId,
        timeouts: Timeouts,
        grant: Grant,
        sends: Direction,
        doorbell: Doorbell,
        traffic: &Traffic,
    ) -> Self {
        let protection = protection(grant.group.cipher);
        let identity = ConnectionConfig::identity(pool, &grant);
        let receives = sends.opposite();
        let config = ConnectionConfig {
            pool,
            grant,
            sends,
            timeouts,
            own_key: protection.control_key(&identity, sends),
            peer_key: protection.control_key(&identity, receives),
            depths: Depths { write: 4, read: 4 },
            doorbell,
        };
        let length = |direction| match direction {
            Direction::ToCoordinator => traffic.to_coordinator,
            Direction::ToMember => traffic.to_member,
        };
        Self {
            connection: Connection::new(now, config).expect("a grant makes a connection"),
            sealer: FrameSealer::new(identity, sends, &protection),
            opener: FrameOpener::new(identity, receives, &protection),
            kept: BTreeMap::new(),
            opened: BTreeMap::new(),
            source: Source::new(grant.connection, sends, length(sends), traffic.payload_max),
            checker: Checker::new(grant.connection, receives, length(receives)),
            ended: None,
            peer_finished: false,
        }
    }

    /// The bytes that are written for a frame.
    #[must_use]
    pub fn frame(&self, sequence: Sequence) -> Option<&[u8]> {
        self.kept.get(&sequence).map(Vec::as_slice)
    }

    /// Frames of the other side that were delivered.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.checker.frames()
    }

    /// Opens a frame that was read, and hands the verdict on.
    pub fn handle_frame(
        &mut self,
        now: Tick,
        id: IoId,
        sequence: Sequence,
        read: Result<Vec<u8>, IoFailure>,
    ) {
        let verdict = match read {
            Err(failure) => FrameVerdict::Failed(failure),
            Ok(mut bytes) => {
                let verdict = self.opener.open_in_place(sequence, &mut bytes);
                if let FrameVerdict::Whole { payload_bytes } = verdict {
                    let start = storage_socket_proto::FRAME_HEADER_BYTES;
                    self.opened
                        .insert(sequence, bytes[start..start + payload_bytes].to_vec());
                }
                verdict
            }
        };
        self.connection.handle_frame_read(now, id, verdict);
    }

    /// Takes the outcome of any other I/O.
    pub fn handle_io(&mut self, now: Tick, id: IoId, outcome: IoOutcome<'_>) {
        self.connection.handle_io(now, id, outcome);
    }

    /// Sends what there is room for, and takes what the machine has to tell. Returns a broken promise, if there is one.
    ///
    /// # Errors
    /// The promise that was broken, in words.
    pub fn pump(&mut self, now: Tick) -> Result<(), String> {
        while let Some(payload) = self.source.peek() {
            let Ok(ticket) = self.connection.reserve(now, payload.len()) else {
                break;
            };
            let mut frame = vec![0xaa; ticket.blocks.bytes()];
            self.sealer
                .seal_from(ticket.sequence, &payload, &mut frame)
                .map_err(|error| format!("a reserved frame can't be sealed: {error}"))?;
            self.source.take(payload.len());
            self.kept.insert(ticket.sequence, frame);
            self.connection.handle_sealed(now, ticket.sequence);
        }
        if self.source.is_empty() {
            self.connection.finish(now);
        }
        while let Some(event) = self.connection.poll_event() {
            self.take(now, event)?;
        }
        Ok(())
    }

    fn take(&mut self, now: Tick, event: ConnectionEvent) -> Result<(), String> {
        match event {
            ConnectionEvent::Acknowledged { below } => self.kept = self.kept.split_off(&below),
            ConnectionEvent::Delivered {
                sequence,
                payload_bytes,
            } => {
                let payload = self
                    .opened
                    .remove(&sequence)
                    .ok_or_else(|| format!("frame {sequence} was delivered and never opened"))?;
                if payload.len() != payload_bytes {
                    return Err(format!(
                        "frame {sequence} was delivered with another length"
                    ));
                }
                self.checker.take(sequence, &payload)?;
                self.connection.release(now, sequence);
            }
            ConnectionEvent::PeerFinished => {
                self.peer_finished = true;
                if !self.checker.is_complete() {
                    return Err("the end was reported before everything was delivered".to_owned());
                }
            }
            ConnectionEvent::Closed { reason } => {
                if reason.is_none() && !(self.peer_finished && self.source.is_empty()) {
                    return Err("closed in order, and not both directions were finished".to_owned());
                }
                self.ended = Some(Ended {
                    reason,
                    delivered: self.checker.bytes(),
                    frames: self.checker.frames(),
                    complete: self.peer_finished,
                    stats: self.connection.stats(),
                });
            }
            _ => {}
        }
        Ok(())
    }
}

impl Host {
    /// Tells every connection whether it may write.
    pub fn set_fence(&mut self, now: Tick, fence: Fence) {
        self.fence = fence;
        for endpoint in self.connections.values_mut() {
            endpoint.connection.set_fenced(now, fence);
        }
    }

    /// Aborts the connections that `which` picks.
    pub fn abort(&mut self, now: Tick, reason: ResetReason, which: impl Fn(&Grant) -> bool) {
        for endpoint in self.connections.values_mut() {
            if which(endpoint.connection.grant()) {
                endpoint.connection.abort(now, reason);
            }
        }
    }

    /// The connections whose machines are drained; they are forgotten here.
    pub fn take_ended(&mut self) -> Vec<(ConnectionId, Ended)> {
        let ended: BTreeSet<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, endpoint)| endpoint.ended.is_some())
            .map(|(&id, _)| id)
            .collect();
        ended
            .into_iter()
            .filter_map(|id| self.connections.remove(&id)?.ended.map(|ended| (id, ended)))
            .collect()
    }

    /// When something in this host is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
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

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Tick) {
        match &mut self.machine {
            Machine::Member(member) => {
                if member.poll_timeout().is_some_and(|at| at <= now) {
                    member.handle_timeout(now);
                }
            }
            Machine::Coordinator(coordinator) => {
                if coordinator.poll_timeout().is_some_and(|at| at <= now) {
                    coordinator.handle_timeout(now);
                }
            }
        }
        for endpoint in self.connections.values_mut() {
            if endpoint
                .connection
                .poll_timeout()
                .is_some_and(|at| at <= now)
            {
                endpoint.connection.handle_timeout(now);
            }
        }
    }
}
