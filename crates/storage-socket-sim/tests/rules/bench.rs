//! Machines on shared devices with immediate I/O, whose every request a test may lose, fail, hold or falsify.

use std::{collections::BTreeMap, sync::Arc, time::Duration};
use storage_socket_proto::{
    Cipher, ConnectOptions, Connection, ConnectionConfig, ConnectionEvent, ConnectionId,
    Coordinator, CoordinatorConfig, CoordinatorEvent, Depths, DeviceIndex, DeviceMask, DeviceSize,
    Direction, Doorbell, Epoch, FRAME_HEADER_BYTES, FrameOpener, FrameSealer, FrameVerdict,
    Generation, Geometry, Grant, Incarnation, IoFailure, IoId, IoOp, IoOutcome, IoRequest,
    ListenOptions, ListenProtection, Member, MemberConfig, MemberEvent, Name, PoolId, Port,
    Protection, Segment, SegmentGroup, Sequence, SlotIndex, TagKey, Tick, Timeouts, Unchecked,
    UnitCount, UnitIndex,
    block::{CoordinatorBlock, Stamp},
};
use storage_socket_sim::device::SimDevice;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is done.
    Do,
    /// A write that is acknowledged and never lands.
    Lose,
    /// It fails, and nothing lands.
    Fail(IoFailure),
    /// It is never answered.
    Hold,
    /// A read that returns these bytes.
    Lie(Vec<u8>),
}

/// How a coordinator of the bench claims the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Claim {
    Wait,
    /// As the heir of the one whose block is the newest.
    SameHost,
}

/// A test's say in every request: who asks, and for what.
pub(crate) type Say<'a> = &'a mut dyn FnMut(usize, &IoRequest, &[SimDevice]) -> Fate;

pub(crate) fn always(_: usize, _: &IoRequest, _: &[SimDevice]) -> Fate {
    Fate::Do
}

pub(crate) trait Machine {
    fn poll_io(&mut self, now: Tick) -> Option<IoRequest>;
    fn poll_timeout(&self) -> Option<Tick>;
    fn handle_timeout(&mut self, now: Tick);
    fn complete(&mut self, now: Tick, request: &IoRequest, outcome: Result<Vec<u8>, IoFailure>);
    /// The bytes that a write writes.
    fn bytes(&self, request: &IoRequest) -> Option<Vec<u8>>;
    fn settle(&mut self, _now: Tick) {}
}

fn outcome<'a>(request: &IoRequest, result: &'a Result<Vec<u8>, IoFailure>) -> IoOutcome<'a> {
    match result {
        Err(failure) => IoOutcome::Failed(*failure),
        Ok(_) if matches!(request.op, IoOp::Write(_) | IoOp::WriteFrame(_)) => IoOutcome::Written,
        Ok(bytes) => IoOutcome::Read(bytes),
    }
}

macro_rules! machine {
    ($name:ty) => {
        impl Machine for $name {
            fn poll_io(&mut self, now: Tick) -> Option<IoRequest> {
                Self::poll_io(self, now)
            }
            fn poll_timeout(&self) -> Option<Tick> {
                Self::poll_timeout(self)
            }
            fn handle_timeout(&mut self, now: Tick) {
                Self::handle_timeout(self, now);
            }
            fn complete(
                &mut self,
                now: Tick,
                request: &IoRequest,
                result: Result<Vec<u8>, IoFailure>,
            ) {
                self.handle_io(now, request.id, outcome(request, &result));
            }
            fn bytes(&self, request: &IoRequest) -> Option<Vec<u8>> {
                match &request.op {
                    IoOp::Write(block) => Some(block.0.to_vec()),
                    _ => None,
                }
            }
        }
    };
}

machine!(Member);
machine!(Coordinator);

/// The devices and the time.
pub(crate) struct Bench {
    pub(crate) now: Tick,
    pub(crate) devices: Vec<SimDevice>,
    pub(crate) geometry: Arc<Geometry>,
    /// What a slot may be granted per device.
    pub(crate) slot_units: UnitCount,
    /// Connections that a listener keeps until they are accepted.
    pub(crate) backlog: usize,
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) const SLOT: SlotIndex = SlotIndex(1);
pub(crate) const PORT: Port = Port(7);

impl Bench {
    pub(crate) fn new(devices: u16) -> Self {
        Self::with_slots(devices, 4)
    }

    pub(crate) fn with_slots(devices: u16, slots: u32) -> Self {
        let size = DeviceSize {
            blocks: 4096,
            logical_block: 4096,
        };
        let sizes = vec![size; usize::from(devices)];
        let geometry = Geometry::new(PoolId::default(), slots, &sizes, Timeouts::default());
        let geometry = geometry.unwrap();
        Self {
            now: Tick::from_millis(1000),
            devices: sizes.iter().map(|_| SimDevice::new()).collect(),
            geometry: Arc::new(geometry),
            slot_units: UnitCount(1024),
            backlog: 2,
        }
    }

    pub(crate) fn member(&self, incarnation: u64) -> Member {
        Member::new(self.now, self.member_config(incarnation))
    }

    pub(crate) fn member_config(&self, incarnation: u64) -> MemberConfig {
        MemberConfig {
            geometry: Arc::clone(&self.geometry),
            slot: SLOT,
            incarnation: Incarnation(incarnation),
            host: Name::lossy("client"),
            devices: self.geometry.all_devices(),
            page_key: TagKey::public(),
            coordinator_key: TagKey::public(),
            doorbell: Doorbell::Absent,
        }
    }

    pub(crate) fn coordinator(&self, epoch: u64, claim: Claim) -> Coordinator {
        let config = CoordinatorConfig {
            geometry: Arc::clone(&self.geometry),
            epoch: Epoch(epoch),
            host: Name::lossy("server"),
            devices: self.geometry.all_devices(),
            predecessor: match claim {
                Claim::Wait => None,
                Claim::SameHost => Some(self.newest_block()),
            },
            key: TagKey::public(),
            doorbell: Doorbell::Absent,
            frame_units_max: UnitCount(4),
            window_max: UnitCount(64),
            slot_units_max: self.slot_units,
        };
        let mut coordinator = Coordinator::new(self.now, config);
        let slots = BTreeMap::from([(SLOT, TagKey::public())]);
        coordinator.set_slots(self.now, slots);
        let options = ListenOptions {
            backlog: self.backlog,
            protection: ListenProtection::Checksum,
        };
        coordinator.bind(self.now, PORT, options).unwrap();
        coordinator
    }

    /// The stamp of the coordinator's newest block on the devices.
    fn newest_block(&self) -> Stamp {
        let mut newest = Stamp::default();
        for (device, index) in self.devices.iter().zip(0..) {
            let place = CoordinatorBlock::place(self.geometry.pool(), DeviceIndex(index));
            for copy in [Geometry::COORDINATOR.0, Geometry::COORDINATOR.0 + 1] {
                let found = device.bytes(copy, 1);
                let found = Unchecked::new(&found)
                    .and_then(|block| CoordinatorBlock::parse(block, &place, &TagKey::public()));
                newest = newest.max(found.map_or(Stamp::default(), |(stamp, _)| stamp));
            }
        }
        newest
    }

    /// Runs the machines for `span`.
    pub(crate) fn run(&mut self, span: Duration, machines: &mut [&mut dyn Machine], say: Say<'_>) {
        let end = self.now + span;
        self.settle(machines, say);
        while let Some(at) = machines
            .iter()
            .filter_map(|machine| machine.poll_timeout())
            .min()
        {
            if at > end {
                break;
            }
            // Every step takes a little, so that time passes whatever the machines wish.
            self.now = at.max(self.now + Duration::from_micros(50));
            for machine in machines.iter_mut() {
                if machine.poll_timeout().is_some_and(|at| at <= self.now) {
                    machine.handle_timeout(self.now);
                }
            }
            self.settle(machines, say);
        }
        self.now = self.now.max(end);
    }

    pub(crate) fn settle(&mut self, machines: &mut [&mut dyn Machine], say: Say<'_>) {
        for _ in 0..10_000 {
            let mut any = false;
            for (who, machine) in machines.iter_mut().enumerate() {
                machine.settle(self.now);
                while let Some(request) = machine.poll_io(self.now) {
                    any = true;
                    let fate = say(who, &request, &self.devices);
                    self.perform(*machine, &request, fate);
                    machine.settle(self.now);
                }
            }
            if !any {
                return;
            }
            self.now = self.now + Duration::from_micros(20);
        }
        panic!("the machines never come to rest");
    }

    fn perform(&mut self, machine: &mut dyn Machine, request: &IoRequest, fate: Fate) {
        let device = &mut self.devices[usize::from(request.device.0)];
        let result = match fate {
            Fate::Hold => return,
            Fate::Fail(failure) => Err(failure),
            Fate::Lie(bytes) => Ok(bytes),
            Fate::Lose => Ok(Vec::new()),
            Fate::Do => match machine.bytes(request) {
                Some(bytes) => {
                    device.put(request.lba.0, &bytes);
                    Ok(bytes)
                }
                None => Ok(device.bytes(request.lba.0, request.blocks.0)),
            },
        };
        machine.complete(self.now, request, result);
    }
}

pub(crate) fn options(connection: u8) -> ConnectOptions {
    ConnectOptions {
        connection: ConnectionId([connection; 16]),
        port: PORT,
        cipher: Cipher::Checksum,
        frame_units: UnitCount(1),
        window_to_coordinator: UnitCount(5),
        window_to_member: UnitCount(5),
        devices: DeviceMask(u32::MAX),
        patience: Duration::from_secs(10),
    }
}

pub(crate) fn member_events(member: &mut Member) -> Vec<MemberEvent> {
    std::iter::from_fn(|| member.poll_event())
        .filter(|event| !matches!(event, MemberEvent::ChallengeSeen { .. }))
        .collect()
}

pub(crate) fn coordinator_events(coordinator: &mut Coordinator) -> Vec<CoordinatorEvent> {
    std::iter::from_fn(|| coordinator.poll_event())
        .filter(|event| !matches!(event, CoordinatorEvent::ChallengeSeen { .. }))
        .collect()
}

/// One end of a connection, driven by hand.
pub(crate) struct End {
    pub(crate) connection: Connection,
    sealer: FrameSealer,
    opener: FrameOpener,
    pub(crate) kept: BTreeMap<Sequence, Vec<u8>>,
    opened: BTreeMap<Sequence, Vec<u8>>,
    /// What was delivered, frame by frame.
    pub(crate) received: Vec<Vec<u8>>,
    pub(crate) events: Vec<ConnectionEvent>,
    /// Delivered frames keep their buffers.
    pub(crate) greedy: bool,
    lent: Vec<Sequence>,
}

/// Both ends of a connection on a fresh bench: 0 sends to the coordinator, 1 to the member.
pub(crate) fn ends(devices: u16, units: u32, doorbell: Doorbell) -> (Bench, End, End) {
    let depths = Depths {
        write: 2,
        read: 3,
        held: 3,
    };
    ends_with(devices, units, doorbell, depths)
}

/// As [`ends`], with other depths.
pub(crate) fn ends_with(
    devices: u16,
    units: u32,
    doorbell: Doorbell,
    depths: Depths,
) -> (Bench, End, End) {
    let bench = Bench::new(devices);
    let segment = |first| Segment {
        first: UnitIndex(first),
        units: UnitCount(units),
    };
    let grant = Grant {
        connection: ConnectionId([9; 16]),
        port: PORT,
        slot: SLOT,
        incarnation: Incarnation(11),
        epoch: Epoch(22),
        group: SegmentGroup {
            generation: Generation(1),
            devices: bench.geometry.all_devices(),
            cipher: Cipher::Checksum,
            frame_units: UnitCount(1),
            to_coordinator: segment(64),
            to_member: segment(64 + units),
        },
    };
    let end = |sends| End::new(bench.now, &grant, sends, (doorbell, depths));
    let (a, b) = (end(Direction::ToCoordinator), end(Direction::ToMember));
    (bench, a, b)
}

impl End {
    fn new(
        now: Tick,
        grant: &Grant,
        sends: Direction,
        (doorbell, depths): (Doorbell, Depths),
    ) -> Self {
        let pool = PoolId::default();
        let identity = ConnectionConfig::identity(pool, grant);
        let config = ConnectionConfig {
            pool,
            grant: *grant,
            sends,
            timeouts: Timeouts::default(),
            own_key: TagKey::public(),
            peer_key: TagKey::public(),
            depths,
            doorbell,
        };
        Self {
            connection: Connection::new(now, config).unwrap(),
            sealer: FrameSealer::new(identity, sends, &Protection::Checksum),
            opener: FrameOpener::new(identity, sends.opposite(), &Protection::Checksum),
            kept: BTreeMap::new(),
            opened: BTreeMap::new(),
            received: Vec::new(),
            events: Vec::new(),
            greedy: false,
            lent: Vec::new(),
        }
    }

    /// Sends a frame, or says that there is no room.
    pub(crate) fn send(&mut self, now: Tick, payload: &[u8]) -> bool {
        let Ok(ticket) = self.connection.reserve(now, payload.len()) else {
            return false;
        };
        let mut frame = vec![0; ticket.blocks.bytes()];
        self.sealer
            .seal_from(ticket.sequence, payload, &mut frame)
            .unwrap();
        self.kept.insert(ticket.sequence, frame);
        self.connection.handle_sealed(now, ticket.sequence);
        true
    }

    pub(crate) fn release(&mut self, now: Tick) {
        for sequence in self.lent.drain(..) {
            self.connection.release(now, sequence);
        }
    }

    pub(crate) fn has(&self, want: &ConnectionEvent) -> bool {
        self.events.contains(want)
    }
}

impl Machine for End {
    fn poll_io(&mut self, now: Tick) -> Option<IoRequest> {
        self.connection.poll_io(now)
    }
    fn poll_timeout(&self) -> Option<Tick> {
        self.connection.poll_timeout()
    }
    fn handle_timeout(&mut self, now: Tick) {
        self.connection.handle_timeout(now);
    }
    fn complete(&mut self, now: Tick, request: &IoRequest, result: Result<Vec<u8>, IoFailure>) {
        let id: IoId = request.id;
        let IoOp::ReadFrame(sequence) = request.op else {
            self.connection
                .handle_io(now, id, outcome(request, &result));
            return;
        };
        let verdict = match result {
            Err(failure) => FrameVerdict::Failed(failure),
            Ok(mut bytes) => {
                let verdict = self.opener.open_in_place(sequence, &mut bytes);
                if let FrameVerdict::Whole { payload_bytes } = verdict {
                    let payload = bytes[FRAME_HEADER_BYTES..][..payload_bytes].to_vec();
                    self.opened.insert(sequence, payload);
                }
                verdict
            }
        };
        self.connection.handle_frame_read(now, id, verdict);
    }
    fn bytes(&self, request: &IoRequest) -> Option<Vec<u8>> {
        match &request.op {
            IoOp::Write(block) => Some(block.0.to_vec()),
            IoOp::WriteFrame(sequence) => Some(self.kept[sequence].clone()),
            IoOp::Read | IoOp::ReadFrame(_) => None,
        }
    }
    fn settle(&mut self, now: Tick) {
        while let Some(event) = self.connection.poll_event() {
            if let ConnectionEvent::Delivered { sequence, .. } = event {
                self.received.push(self.opened.remove(&sequence).unwrap());
                self.lent.push(sequence);
            }
            self.events.push(event);
        }
        if !self.greedy {
            self.release(now);
        }
    }
}

pub(crate) fn device(request: &IoRequest) -> DeviceIndex {
    request.device
}

/// Whether a request writes a control block or a page.
pub(crate) fn writes_block(request: &IoRequest) -> bool {
    matches!(request.op, IoOp::Write(_))
}

pub(crate) fn writes_frame(request: &IoRequest, sequence: u64) -> bool {
    request.op == IoOp::WriteFrame(Sequence(sequence))
}

pub(crate) fn reads_frame(request: &IoRequest, sequence: u64) -> bool {
    request.op == IoOp::ReadFrame(Sequence(sequence))
}
