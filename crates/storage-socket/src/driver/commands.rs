//! What users ask of the driver.

use super::{Conn, Connecting, Driver, Machine, Stop, peer_page, public_keys, stop_patience};
use crate::{
    Error, StreamOptions,
    error::StopReason,
    flow::{Buffers, Flow, OwnedFlow, StreamAddr},
    inbox::{Command, PeerChallenges},
    listener::{Backlog, Bound},
    pool::random_bytes,
    promise::Fulfil,
    stream::send_buffers,
};
use std::{sync::Arc, time::Duration};
use storage_socket_proto::{
    ConnectOptions, Connection, ConnectionConfig, ConnectionId, DEVICES_MAX, Depths, DeviceIndex,
    Direction, Doorbell, FrameOpener, FrameSealer, Grant, ListenOptions, Port, ResetReason,
    SlotIndex, Tick, UsageError,
};

impl Driver {
    pub(super) fn command(&mut self, now: Tick, command: Command) {
        match command {
            Command::Connect {
                port,
                options,
                patience,
                reply,
            } => self.connect(now, port, options, patience, reply),
            Command::Bind {
                port,
                options,
                backlog,
                reply,
            } => reply.fulfil(self.bind(now, port, options, backlog)),
            Command::Unbind(port) => self.unbind(now, port),
            Command::Accept {
                grant,
                options,
                reply,
            } => reply.fulfil(self.accept(now, &grant, &options)),
            Command::Refuse(id) => self.refuse(now, id),
            Command::Allow(slots) => {
                if let Machine::Coordinator(coordinator) = &mut *self.machine {
                    coordinator.set_slots(now, public_keys(slots));
                }
            }
            Command::Rang(slot) => self.rang(now, slot),
            Command::Doorbell(slot, doorbell) => self.set_doorbell(now, slot, doorbell),
            Command::Vouch(slot) => self.machine.vouch(now, slot),
            Command::SetChallenges {
                slot,
                challenges,
                reply,
            } => self.watches.watch_own(now, (slot, challenges), reply),
            Command::PeerChallenges { slot, reply } => {
                let page = peer_page(&self.machine, &self.geometry, slot);
                self.watches
                    .watch_peer(now, &self.geometry, (slot, page), reply);
                self.machine.handle_doorbell_of(now, slot);
            }
            Command::LookedFor { device, found } => self.looked_for(now, device, found),
            Command::IsPeerAlive { slot, reply } => {
                reply.fulfil(self.is_peer_alive(now, slot));
            }
            Command::Members(reply) => reply.fulfil(match &*self.machine {
                Machine::Coordinator(coordinator) => coordinator.members(now),
                Machine::Member(_) => Vec::new(),
            }),
            Command::Ready(reply) => match &self.ended {
                Some(why) => reply.fulfil(Err(Error::Stopped {
                    pool: self.inbox.pool,
                    why: why.clone(),
                })),
                None if self.ready.is_ready => reply.fulfil(Ok(())),
                None => self.ready.waiting.push(reply),
            },
            Command::Stop => self.begin_stop(now),
        }
    }

    fn connect(
        &mut self,
        now: Tick,
        port: Port,
        options: Box<StreamOptions>,
        patience: Duration,
        reply: Fulfil<Result<OwnedFlow, Error>>,
    ) {
        if let Some(error) = self.over_error() {
            reply.fulfil(Err(error));
            return;
        }
        match self.request(now, port, &options, patience) {
            Ok(id) => {
                let connecting = Connecting {
                    port,
                    options,
                    reply,
                };
                self.connecting.insert(id, connecting);
            }
            Err(error) => reply.fulfil(Err(error)),
        }
    }

    /// Why nothing new begins: the pool has ended, or is being left.
    fn over_error(&self) -> Option<Error> {
        let leaving = self.stop.is_some().then_some(StopReason::Closed);
        let why = self.ended.clone().or(leaving)?;
        Some(Error::Stopped {
            pool: self.inbox.pool,
            why,
        })
    }

    /// Puts a request into this member's page.
    fn request(
        &mut self,
        now: Tick,
        port: Port,
        options: &StreamOptions,
        patience: Duration,
    ) -> Result<ConnectionId, Error> {
        let devices = self.geometry.all_devices();
        let Machine::Member(member) = &mut *self.machine else {
            return Err(Error::WrongRole {
                role: "coordinator",
                what: "connect",
            });
        };
        let connection = ConnectionId(random_bytes()?);
        let window = options.window_units()?;
        member.connect(
            now,
            ConnectOptions {
                connection,
                port,
                cipher: options.protection.cipher(),
                frame_units: options.frame_units()?,
                window_to_coordinator: window,
                window_to_member: window,
                devices,
                patience,
            },
        )?;
        Ok(connection)
    }

    pub(super) fn connect_failed(&mut self, id: ConnectionId, why: impl FnOnce(Port) -> Error) {
        if let Some(connecting) = self.connecting.remove(&id) {
            let error = why(connecting.port);
            connecting.reply.fulfil(Err(error));
        }
    }

    /// The coordinator granted a request of ours, or we as coordinator granted one.
    pub(super) fn granted(&mut self, now: Tick, grant: Grant) {
        let id = grant.connection;
        if let Some(error) = self.over_error() {
            self.machine.close(now, id, Some(ResetReason::Aborted));
            self.connect_failed(id, |_| error);
            return;
        }
        if let Machine::Coordinator(_) = &*self.machine {
            match self.listeners.get(&grant.port) {
                Some(backlog) => {
                    self.unaccepted.insert(id, grant.port);
                    backlog.push(grant);
                }
                None => self.machine.close(now, id, Some(ResetReason::PeerClosed)),
            }
            return;
        }
        let Some(connecting) = self.connecting.remove(&id) else {
            self.machine.close(now, id, Some(ResetReason::Aborted));
            return;
        };
        let made = self.make(now, &grant, &connecting.options);
        connecting.reply.fulfil(made);
    }

    fn bind(
        &mut self,
        now: Tick,
        port: Port,
        options: ListenOptions,
        backlog: Arc<Backlog>,
    ) -> Result<Bound, Error> {
        if let Some(error) = self.over_error() {
            return Err(error);
        }
        let Machine::Coordinator(coordinator) = &mut *self.machine else {
            return Err(Error::WrongRole {
                role: "member",
                what: "listen",
            });
        };
        let port = if port == Port(0) {
            coordinator.bind_dynamic(now, options)?
        } else {
            coordinator.bind(now, port, options)?;
            port
        };
        self.listeners.insert(port, backlog);
        Ok(Bound::new(port, self.inbox.clone()))
    }

    fn unbind(&mut self, now: Tick, port: Port) {
        if let Machine::Coordinator(coordinator) = &mut *self.machine {
            coordinator.unbind(now, port);
        }
        let Some(backlog) = self.listeners.remove(&port) else {
            return;
        };
        // What came in until now has nobody left who could accept it.
        for id in backlog.take_all() {
            self.refuse(now, id);
        }
    }

    fn accept(
        &mut self,
        now: Tick,
        grant: &Grant,
        options: &StreamOptions,
    ) -> Result<OwnedFlow, Error> {
        let id = grant.connection;
        if let Some(error) = self.over_error() {
            self.refuse(now, id);
            return Err(error);
        }
        if self.unaccepted.remove(&id).is_none() {
            return Err(Error::Reset {
                reason: ResetReason::PeerClosed,
                device: None,
            });
        }
        if let Machine::Coordinator(coordinator) = &mut *self.machine {
            coordinator.accepted(now, id);
        }
        if options.protection.cipher() != grant.group.cipher {
            self.machine.close(now, id, Some(ResetReason::Protocol));
            return Err(Error::Usage(UsageError::OutOfRange {
                what: "the protection, which differs from the connector's,",
            }));
        }
        self.make(now, grant, options)
    }

    fn refuse(&mut self, now: Tick, id: ConnectionId) {
        if self.unaccepted.remove(&id).is_some() {
            if let Machine::Coordinator(coordinator) = &mut *self.machine {
                coordinator.accepted(now, id);
            }
            self.machine.close(now, id, Some(ResetReason::Aborted));
        }
    }

    /// Makes a connection of a grant.
    fn make(
        &mut self,
        now: Tick,
        grant: &Grant,
        options: &StreamOptions,
    ) -> Result<OwnedFlow, Error> {
        let made = self.try_make(now, grant, options);
        if made.is_err() {
            self.machine
                .close(now, grant.connection, Some(ResetReason::Aborted));
        }
        made
    }

    fn try_make(
        &mut self,
        now: Tick,
        grant: &Grant,
        options: &StreamOptions,
    ) -> Result<OwnedFlow, Error> {
        let pool = self.geometry.pool();
        let sends = match &*self.machine {
            Machine::Member(_) => Direction::ToCoordinator,
            Machine::Coordinator(_) => Direction::ToMember,
        };
        let identity = ConnectionConfig::identity(pool, grant);
        let protection = &options.protection;
        let (depth, held) = (options.depth(), options.held());
        let mut machine = Connection::new(
            now,
            ConnectionConfig {
                pool,
                grant: *grant,
                sends,
                timeouts: self.geometry.timeouts(),
                own_key: protection.control_key(&identity, sends),
                peer_key: protection.control_key(&identity, sends.opposite()),
                depths: Depths {
                    write: depth,
                    read: depth,
                    held,
                },
                doorbell: self.doorbell(grant.slot),
            },
        )?;
        machine.set_fenced(now, self.fence);
        let frame_bytes = identity.frame_blocks.bytes();
        let ring = grant.group.ring(sends);
        let frames = ring.map_or(0, |ring| ring.frames());
        let frames = usize::try_from(frames).unwrap_or(usize::MAX);
        let addr = StreamAddr {
            pool,
            slot: grant.slot,
            incarnation: grant.incarnation,
            port: grant.port,
            connection: grant.connection,
        };
        let receives = options.receive_buffers(frame_bytes);
        let flow = Arc::new(Flow::new(
            addr,
            machine.payload_bytes_max(),
            FrameSealer::new(identity, sends, protection),
            Buffers {
                sends: send_buffers(frame_bytes, frames),
                receives: receives.clone(),
            },
            (self.polling, self.inbox.clone()),
        ));
        let conn = Conn::new(
            machine,
            flow.clone(),
            FrameOpener::new(identity, sends.opposite(), protection),
            receives,
        );
        self.conns.insert(grant.connection, conn);
        self.agenda.add(grant.connection);
        Ok(OwnedFlow::new(flow))
    }

    fn doorbell(&self, slot: SlotIndex) -> Doorbell {
        // Without a way to ring, the peer can't count on being rung, so the device is polled.
        let known = self.doorbells.get(&slot).copied();
        known
            .filter(|_| self.ring.is_some())
            .unwrap_or(Doorbell::Absent)
    }

    fn set_doorbell(&mut self, now: Tick, slot: SlotIndex, doorbell: Doorbell) {
        self.doorbells.insert(slot, doorbell);
        let doorbell = self.doorbell(slot);
        for conn in self.conns.values_mut().filter(|conn| conn.slot == slot) {
            conn.machine.set_doorbell(now, doorbell);
            self.agenda.add(conn.id);
        }
        match &mut *self.machine {
            Machine::Member(member) => member.set_doorbell(now, doorbell),
            Machine::Coordinator(coordinator) => coordinator.set_doorbell(now, slot, doorbell),
        }
    }

    fn rang(&mut self, now: Tick, slot: SlotIndex) {
        if self.doorbells.get(&slot) != Some(&Doorbell::Present) {
            self.set_doorbell(now, slot, Doorbell::Present);
        }
        self.machine.handle_doorbell_of(now, slot);
        for conn in self.conns.values_mut().filter(|conn| conn.slot == slot) {
            conn.machine.handle_doorbell(now);
            let heard = &conn.flow.counters.doorbells_heard;
            heard.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.agenda.add(conn.id);
        }
    }

    fn is_peer_alive(&self, now: Tick, slot: SlotIndex) -> bool {
        match &*self.machine {
            Machine::Member(_) => self.ready.is_ready && self.ended.is_none(),
            Machine::Coordinator(_) => self.machine.peer_writer(now, slot).is_some(),
        }
    }

    fn begin_stop(&mut self, now: Tick) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(Stop {
            until: now + stop_patience(&self.geometry.timeouts()),
            is_machine_told: false,
        });
        for conn in self.conns.values_mut() {
            conn.flow.close();
            self.agenda.add(conn.id);
        }
        for (id, _) in self.unaccepted.drain() {
            self.machine.close(now, id, Some(ResetReason::Aborted));
        }
        for (_, connecting) in self.connecting.drain() {
            connecting.reply.fulfil(Err(Error::Stopped {
                pool: self.inbox.pool,
                why: StopReason::Closed,
            }));
        }
    }
}

/// What the machine knows of a peer's challenges.
pub(super) fn look(
    machine: &Machine,
    now: Tick,
    slot: SlotIndex,
    devices: usize,
) -> PeerChallenges {
    PeerChallenges {
        writer: machine.peer_writer(now, slot),
        challenges: (0..DEVICES_MAX)
            .take(devices)
            .map(|device| machine.challenge_seen(slot, DeviceIndex(device)))
            .map(|seen| seen.map(|challenge| challenge.0))
            .collect(),
    }
}
