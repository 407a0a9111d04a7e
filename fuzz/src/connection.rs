//! Two connection machines over one medium, and a list of operations that says what becomes of each of their I/Os.
//!
//! Whatever the list: what is delivered is a prefix of what was sent, nobody is accused of breaking protocol, and when the
//! list is over and the medium is well, both machines come to an end.

use std::{collections::BTreeMap, time::Duration};
use storage_socket_proto::{
    BLOCK_BYTES, Cipher, Connection, ConnectionConfig, ConnectionEvent, ConnectionId, Depths,
    DeviceMask, Direction, Doorbell, Epoch, FRAME_HEADER_BYTES, Fence, FrameOpener, FrameSealer,
    FrameVerdict, Generation, Grant, Incarnation, IoFailure, IoOp, IoOutcome, IoRequest, PoolId,
    Port, Protection, ResetReason, Segment, SegmentGroup, Sequence, SlotIndex, Tick, Timeouts,
    UnitCount, UnitIndex,
};

struct Side {
    machine: Connection,
    sealer: FrameSealer,
    opener: FrameOpener,
    kept: BTreeMap<Sequence, Vec<u8>>,
    opened: BTreeMap<Sequence, Vec<u8>>,
    sends: Direction,
    sent: u64,
    delivered: u64,
    under_way: Vec<IoRequest>,
    is_closed: bool,
}

#[derive(Default)]
struct Medium {
    blocks: BTreeMap<u64, Vec<u8>>,
    /// Earlier writes, to land again.
    ghosts: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Failed(IoFailure),
    FailedAndDone,
    Lost,
    Torn,
}

/// Two bytes an operation.
pub fn operations(data: &[u8]) {
    let mut sides = [side(Direction::ToCoordinator), side(Direction::ToMember)];
    let mut medium = Medium::default();
    let mut now = Tick::from_millis(1);
    for operation in data.chunks_exact(2).take(600) {
        let (code, detail) = (operation[0], operation[1]);
        let side = &mut sides[usize::from(code & 1)];
        now = now + Duration::from_micros(20);
        match (code >> 1) % 12 {
            0 => now = now + Duration::from_micros(u64::from(detail) * 400),
            1 => side.send(now, detail),
            2 | 3 => side.end(now, detail, Fate::Done, &mut medium),
            4 => side.end(now, detail, Fate::Failed(IoFailure::Error), &mut medium),
            5 => side.end(now, detail, Fate::FailedAndDone, &mut medium),
            6 => side.end(now, detail, Fate::Lost, &mut medium),
            7 => side.end(now, detail, Fate::Torn, &mut medium),
            8 => side.machine.handle_doorbell(now),
            9 => side.machine.set_fenced(
                now,
                if detail & 1 == 0 {
                    Fence::Closed
                } else {
                    Fence::Open
                },
            ),
            10 => medium.haunt(detail),
            _ if detail == 255 => side.machine.abort(now, ResetReason::Aborted),
            _ if detail > 250 => side.machine.finish(now),
            _ => medium.rot(detail),
        }
        for side in &mut sides {
            side.pump(now);
        }
    }
    settle(&mut sides, &mut medium, now);
}

/// The medium is well from now on: both have to end.
fn settle(sides: &mut [Side; 2], medium: &mut Medium, mut now: Tick) {
    for side in sides.iter_mut() {
        side.machine.set_fenced(now, Fence::Open);
        side.machine.finish(now);
        side.pump(now);
    }
    for _ in 0..20_000 {
        if sides.iter().all(|side| side.is_closed) {
            return;
        }
        for side in sides.iter_mut() {
            while !side.under_way.is_empty() {
                now = now + Duration::from_micros(20);
                side.end(now, 0, Fate::Done, medium);
                side.pump(now);
            }
        }
        let due = sides
            .iter()
            .filter_map(|side| side.machine.poll_timeout())
            .min();
        now = due.map_or(now + Duration::from_millis(50), |due| {
            due.max(now + Duration::from_micros(20))
        });
        // What a driver learns from the other side's page.
        let [one, other] = sides;
        one.learn(now, other.is_closed);
        other.learn(now, one.is_closed);
        for side in sides.iter_mut() {
            side.pump(now);
        }
    }
    panic!("the machines come to no end");
}

fn side(sends: Direction) -> Side {
    let segment = |first| Segment {
        first: UnitIndex(first),
        units: UnitCount(4),
    };
    let grant = Grant {
        connection: ConnectionId([7; 16]),
        port: Port(7),
        slot: SlotIndex(0),
        incarnation: Incarnation(3),
        epoch: Epoch(2),
        group: SegmentGroup {
            generation: Generation(1),
            devices: DeviceMask(1),
            cipher: Cipher::Checksum,
            frame_units: UnitCount(1),
            to_coordinator: segment(16),
            to_member: segment(20),
        },
    };
    let protection = Protection::Checksum;
    let identity = ConnectionConfig::identity(PoolId::default(), &grant);
    let receives = sends.opposite();
    let config = ConnectionConfig {
        pool: PoolId::default(),
        grant,
        sends,
        timeouts: Timeouts::default(),
        own_key: protection.control_key(&identity, sends),
        peer_key: protection.control_key(&identity, receives),
        depths: Depths::default(),
        doorbell: Doorbell::Absent,
    };
    Side {
        machine: Connection::new(Tick::from_millis(1), config).expect("a sound grant"),
        sealer: FrameSealer::new(identity, sends, &protection),
        opener: FrameOpener::new(identity, receives, &protection),
        kept: BTreeMap::new(),
        opened: BTreeMap::new(),
        sends,
        sent: 0,
        delivered: 0,
        under_way: Vec::new(),
        is_closed: false,
    }
}

fn payload(direction: Direction, sequence: u64) -> Vec<u8> {
    let length = usize::try_from(sequence * 1_931 % 9000).unwrap_or(0) + 1;
    vec![(sequence * 7 + direction as u64 + 1).to_le_bytes()[0]; length]
}

impl Side {
    fn send(&mut self, now: Tick, count: u8) {
        for _ in 0..count % 4 + 1 {
            let payload = payload(self.sends, self.sent);
            let Ok(ticket) = self.machine.reserve(now, payload.len()) else {
                return;
            };
            assert_eq!(ticket.sequence.0, self.sent);
            let mut frame = vec![0; ticket.blocks.bytes()];
            self.sealer
                .seal_from(ticket.sequence, &payload, &mut frame)
                .expect("a reserved frame can be sealed");
            self.kept.insert(ticket.sequence, frame);
            self.machine.handle_sealed(now, ticket.sequence);
            self.sent += 1;
        }
    }

    /// Ends one of the I/Os under way.
    fn end(&mut self, now: Tick, which: u8, fate: Fate, medium: &mut Medium) {
        if self.under_way.is_empty() {
            return;
        }
        let at = usize::from(which) % self.under_way.len();
        let request = self.under_way.remove(at);
        let written = match &request.op {
            IoOp::Write(block) => Some(block.0.to_vec()),
            IoOp::WriteFrame(sequence) => self.kept.get(sequence).cloned(),
            IoOp::Read | IoOp::ReadFrame(_) => None,
        };
        let failure = match fate {
            Fate::Failed(failure) => Some(failure),
            Fate::FailedAndDone => Some(IoFailure::TimedOut),
            Fate::Done | Fate::Lost | Fate::Torn => None,
        };
        if let Some(bytes) = written {
            match fate {
                Fate::Done | Fate::FailedAndDone => medium.write(request.lba.0, &bytes),
                Fate::Torn => medium.write(request.lba.0, &bytes[..bytes.len() / 2]),
                Fate::Failed(_) | Fate::Lost => {}
            }
            let outcome = failure.map_or(IoOutcome::Written, IoOutcome::Failed);
            self.machine.handle_io(now, request.id, outcome);
            return;
        }
        let mut bytes = medium.read(request.lba.0, request.blocks.0);
        match fate {
            Fate::Torn => bytes
                .iter_mut()
                .skip(600)
                .take(512)
                .for_each(|byte| *byte = 0),
            Fate::Lost => bytes.fill(0),
            _ => {}
        }
        if let IoOp::ReadFrame(sequence) = request.op {
            let verdict = match failure {
                Some(failure) => FrameVerdict::Failed(failure),
                None => self.opener.open_in_place(sequence, &mut bytes),
            };
            if let FrameVerdict::Whole { payload_bytes } = verdict {
                let payload = bytes[FRAME_HEADER_BYTES..][..payload_bytes].to_vec();
                self.opened.insert(sequence, payload);
            }
            self.machine.handle_frame_read(now, request.id, verdict);
        } else {
            let outcome = failure.map_or(IoOutcome::Read(&bytes), IoOutcome::Failed);
            self.machine.handle_io(now, request.id, outcome);
        }
    }

    fn learn(&mut self, now: Tick, is_peer_closed: bool) {
        if is_peer_closed && !self.is_closed {
            self.machine
                .handle_peer_gone(now, Some(ResetReason::PeerClosed));
        }
    }

    fn pump(&mut self, now: Tick) {
        if self.machine.poll_timeout().is_some_and(|due| due <= now) {
            self.machine.handle_timeout(now);
        }
        while let Some(event) = self.machine.poll_event() {
            match event {
                ConnectionEvent::Acknowledged { below } => self.kept = self.kept.split_off(&below),
                ConnectionEvent::Delivered { sequence, .. } => {
                    assert_eq!(sequence.0, self.delivered, "in order, and once");
                    let found = self.opened.remove(&sequence).expect("it was opened");
                    assert_eq!(found, payload(self.sends.opposite(), sequence.0));
                    self.delivered += 1;
                    self.machine.release(now, sequence);
                }
                ConnectionEvent::Reset { reason, .. } => {
                    assert_ne!(reason, ResetReason::Protocol, "both obey");
                }
                ConnectionEvent::Closed { .. } => self.is_closed = true,
                _ => {}
            }
        }
        while let Some(request) = self.machine.poll_io(now) {
            self.under_way.push(request);
        }
        assert!(
            self.under_way.len() <= 64,
            "more I/Os under way than depths allow"
        );
    }
}

impl Medium {
    fn write(&mut self, lba: u64, bytes: &[u8]) {
        if self.ghosts.len() < 64 {
            self.ghosts.push((lba, bytes.to_vec()));
        }
        self.put(lba, bytes);
    }

    fn put(&mut self, lba: u64, bytes: &[u8]) {
        for (content, block) in bytes.chunks(BLOCK_BYTES).zip(lba..) {
            let cell = self
                .blocks
                .entry(block)
                .or_insert_with(|| vec![0; BLOCK_BYTES]);
            cell[..content.len()].copy_from_slice(content);
        }
    }

    fn read(&self, lba: u64, blocks: u32) -> Vec<u8> {
        let zeros = vec![0; BLOCK_BYTES];
        let block = |block| self.blocks.get(&block).unwrap_or(&zeros).clone();
        (lba..lba + u64::from(blocks)).flat_map(block).collect()
    }

    /// An earlier write lands again.
    fn haunt(&mut self, which: u8) {
        if let Some((lba, bytes)) = self.ghosts.get(usize::from(which)).cloned() {
            self.put(lba, &bytes);
        }
    }

    fn rot(&mut self, which: u8) {
        let count = self.blocks.len().max(1);
        if let Some((_, block)) = self.blocks.iter_mut().nth(usize::from(which) % count) {
            block[usize::from(which) * 16 % BLOCK_BYTES] ^= 1;
        }
    }
}
