//! I/O on its way: what is asked for, what lands, and how it ends.

use super::{Happening, World};
use crate::{
    broken::{Broken, Promise},
    coverage::{Coverage, Fault, Transition},
    device::{Effect, Landing, Part, ReadFate, Written},
    host::{Host, HostIndex, Machine, Outcome, Owner},
    pairs::PairPlace,
    scenario::timeouts,
};
use std::{rc::Rc, time::Duration};
use storage_socket_proto::{
    BLOCK_BYTES, CONTROL_STRIDE, Fence, IoFailure, IoId, IoOp, IoRequest, Sequence, Tick,
};

/// A write on its way to the medium.
#[derive(Debug)]
pub(super) struct Flight {
    device: usize,
    landing: Landing,
    host: HostIndex,
    life: u64,
    /// Tells I/Os apart, in the order in which they were asked for.
    pub(super) number: u64,
    /// When its writer takes it for timed out.
    deadline: Tick,
    /// It goes out after its writer was suspended.
    pub(super) is_held: bool,
}

/// Buffers to be read into again.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    narrow: Vec<Vec<u8>>,
    /// Those that both copies of a control block are read into.
    wide: Vec<Vec<u8>>,
}

impl Buffers {
    pub(super) fn put(&mut self, buffer: Vec<u8>) {
        if buffer.len() == WIDE_BLOCKS as usize * BLOCK_BYTES {
            self.wide.push(buffer);
        } else if buffer.capacity() > 0 {
            self.narrow.push(buffer);
        }
    }
}

/// From the first copy of a control block to the second.
const WIDE_BLOCKS: u32 = CONTROL_STRIDE.0 + 1;

/// An I/O that will end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) host: HostIndex,
    pub(super) life: u64,
    pub(super) number: u64,
    owner: Owner,
    id: IoId,
    device: usize,
    lba: u64,
    blocks: u32,
    frame: Option<Sequence>,
    result: Result<(), IoFailure>,
    /// For a read: what becomes of it, and what stood there when it began.
    read: Option<(ReadFate, Vec<u8>)>,
}

impl Flight {
    pub(super) fn is_of(&self, host: HostIndex, life: u64) -> bool {
        self.host == host && self.life == life
    }
}

impl Answer {
    pub(super) fn is_of(&self, host: HostIndex, life: u64) -> bool {
        self.host == host && self.life == life
    }
}

impl World {
    pub(super) fn submit(
        &mut self,
        index: HostIndex,
        owner: Owner,
        request: IoRequest,
    ) -> Result<(), Broken> {
        self.report.ios += 1;
        let number = self.report.ios;
        let device = usize::from(request.device.0);
        let lba = request.lba.0;
        self.check_place(index, device, lba, request.blocks.0)?;
        let Some(host) = self.hosts.get_mut(&index) else {
            return Ok(());
        };
        let count = host.begun(owner);
        let deadline = host.clock.span(timeouts().io_deadline);
        let mut answer = Answer {
            host: index,
            life: host.life,
            number,
            owner,
            id: request.id,
            device,
            lba,
            blocks: request.blocks.0,
            frame: None,
            result: Ok(()),
            read: None,
        };
        let bytes = match request.op {
            IoOp::Read => None,
            IoOp::ReadFrame(sequence) => {
                answer.frame = Some(sequence);
                None
            }
            IoOp::Write(block) => {
                let block: Written = Rc::from(block.0);
                if let Some(place) = host.pair_place(owner, device, lba) {
                    let block = Rc::clone(&block);
                    host.pairs.begin(place, lba, block, &mut self.hit)?;
                }
                host.watch_claim(self.now, owner, &block, &mut self.hit);
                Some(block)
            }
            IoOp::WriteFrame(sequence) => {
                answer.frame = Some(sequence);
                Some(self.frame_bytes(index, owner, sequence, request.blocks.bytes())?)
            }
        };
        self.check_depth(index, owner, count)?;
        let answered = match bytes {
            Some(bytes) => {
                self.check_gone(index, owner)?;
                self.send_write(&answer, deadline, &bytes)
            }
            None => self.send_read(&mut answer),
        };
        let (after, result) = answered
            .filter(|(after, _)| *after < deadline)
            .unwrap_or((deadline, Err(IoFailure::TimedOut)));
        answer.result = result;
        self.schedule(after, Happening::Answer(answer));
        Ok(())
    }

    fn check_place(
        &self,
        index: HostIndex,
        device: usize,
        lba: u64,
        blocks: u32,
    ) -> Result<(), Broken> {
        let end = self
            .geometry
            .devices()
            .get(device)
            .map_or(0, |device| device.blocks);
        if blocks == 0 || lba < 2 || lba + u64::from(blocks) >= end {
            let what = format!("host {index} goes for {blocks} blocks at {lba} of device {device}");
            return Err(Promise::Bounds.broken(what));
        }
        Ok(())
    }

    fn frame_bytes(
        &mut self,
        index: HostIndex,
        owner: Owner,
        sequence: Sequence,
        length: usize,
    ) -> Result<Written, Broken> {
        let Some(host) = self.hosts.get(&index) else {
            return Ok(Rc::from([]));
        };
        if host.fence == Fence::Closed {
            let what = format!("host {index} writes frame {sequence} behind its fence");
            return Err(Promise::Fence.broken(what));
        }
        let Owner::Connection(connection) = owner else {
            return Err(Promise::Prefix.broken("a frame without a connection"));
        };
        let endpoint = host.connections.get(&connection);
        if let Some(endpoint) = endpoint {
            endpoint.writes(sequence, &mut self.hit);
        }
        let frame = endpoint.and_then(|endpoint| endpoint.frame(sequence));
        let Some(frame) = frame.filter(|frame| frame.len() == length) else {
            let what = format!("frame {sequence} is to be written and not kept");
            return Err(Promise::Prefix.broken(what));
        };
        let frame = Rc::clone(frame);
        if let Some(payload) = endpoint.and_then(|endpoint| endpoint.sealed_payload(sequence)) {
            self.nonces.check(&frame, payload)?;
        }
        self.check_overwrite(index, connection, sequence)?;
        Ok(frame)
    }

    fn send_write(
        &mut self,
        answer: &Answer,
        deadline: Duration,
        bytes: &Written,
    ) -> crate::device::Answered {
        let (index, device, lba) = (answer.host, answer.device, answer.lba);
        let flight = |world: &mut Self, after: Duration, device: usize, landing: Landing| {
            let flight = Flight {
                device,
                landing,
                host: index,
                life: answer.life,
                number: answer.number,
                deadline: world.now + deadline,
                is_held: false,
            };
            world.schedule(after, Happening::Land(flight));
        };
        if self.is_gone(index, device) {
            return Some((Duration::from_micros(50), Err(IoFailure::DeviceGone)));
        }
        if self.hangs(index, device) {
            if self.rng.chance(500_000) {
                let landing = Landing {
                    lba,
                    bytes: Rc::clone(bytes),
                    part: Part::Whole,
                    effect: Effect::Written,
                };
                let after = self
                    .rng
                    .span(Duration::from_millis(1), self.faults.ghost_max);
                flight(self, after, device, landing);
            }
            return None;
        }
        let fate = self.faults.write(lba, bytes, &mut self.hit);
        for (after, landing) in fate.landings {
            flight(self, after, device, landing);
        }
        if let Some((after, draw)) = fate.astray {
            let other = usize::try_from(draw >> 32).unwrap_or(0) % self.devices.len();
            let target = self.devices[other].hot(draw & 0xffff_ffff);
            let landing = Landing {
                lba: target,
                bytes: Rc::clone(bytes),
                part: Part::Whole,
                effect: Effect::Stray,
            };
            flight(self, after, other, landing);
        }
        fate.answer
    }

    fn send_read(&mut self, answer: &mut Answer) -> crate::device::Answered {
        let (index, device) = (answer.host, answer.device);
        let fate = if self.is_gone(index, device) {
            ReadFate {
                answer: Some((Duration::from_micros(50), Err(IoFailure::DeviceGone))),
                ..ReadFate::default()
            }
        } else if self.hangs(index, device) {
            ReadFate::default()
        } else {
            self.faults.read(&mut self.hit)
        };
        let answered = fate.answer;
        let before = fate
            .torn
            .map(|_| self.devices[device].bytes(answer.lba, answer.blocks));
        answer.read = Some((fate, before.unwrap_or_default()));
        answered
    }

    /// Bytes reach the medium.
    pub(super) fn land(&mut self, flight: Flight) {
        let lives = |host: &Host| host.life == flight.life;
        let is_alive = self.hosts.get(&flight.host).is_some_and(lives);
        if !is_alive {
            self.hit.fault(Fault::GhostOfDead);
        }
        if flight.is_held {
            self.hit.fault(Fault::HeldWrite);
        } else if self.now > flight.deadline {
            self.hit.fault(Fault::Ghost);
        }
        if flight.number < self.landed {
            self.hit.fault(Fault::AnyOrder);
        }
        self.landed = self.landed.max(flight.number);
        self.devices[flight.device].land(self.now, &flight.landing);
    }

    /// How an I/O ends; nothing if nobody is there to be told.
    pub(super) fn outcome(&mut self, mut answer: Answer) -> Option<Outcome> {
        let is_there = |host: &Host| host.life == answer.life;
        if !self.hosts.get(&answer.host).is_some_and(is_there) {
            return None;
        }
        let is_write = answer.read.is_none();
        let result = match (answer.result, answer.read.take()) {
            (Err(failure), _) => Err(failure),
            (Ok(()), None) => Ok(Vec::new()),
            (Ok(()), Some((fate, before))) => Ok(self.read(&answer, &fate, &before)),
        };
        Some(Outcome {
            owner: answer.owner,
            id: answer.id,
            device: answer.device,
            lba: answer.lba,
            is_write,
            frame: answer.frame,
            result,
        })
    }

    fn read(&mut self, answer: &Answer, fate: &ReadFate, before: &[u8]) -> Vec<u8> {
        let mut from = answer.lba;
        let mut device = answer.device;
        if let Some(draw) = fate.astray {
            device = usize::try_from(draw >> 32).unwrap_or(0) % self.devices.len();
            from = self.devices[device].hot(draw & 0xffff_ffff);
        }
        let device = &self.devices[device];
        let is_wide = answer.blocks == WIDE_BLOCKS && answer.frame.is_none();
        let mut bytes;
        if is_wide && matches!(answer.owner, Owner::Connection(_)) {
            // Both copies of a control block: what lies between them is nobody's, and not worth the time.
            let most = WIDE_BLOCKS as usize * BLOCK_BYTES;
            bytes = self.buffers.wide.pop().unwrap_or_else(|| vec![0xee; most]);
            device.read_block(from, &mut bytes[..BLOCK_BYTES]);
            let last = from + u64::from(WIDE_BLOCKS) - 1;
            device.read_block(last, &mut bytes[most - BLOCK_BYTES..]);
        } else {
            bytes = self.buffers.narrow.pop().unwrap_or_default();
            bytes.clear();
            device.read_into(from, answer.blocks, &mut bytes);
        }
        if let Some(sector) = fate.torn {
            for (new, old) in bytes.chunks_mut(sector).zip(before.chunks(sector)) {
                if self.rng.chance(500_000) {
                    new.copy_from_slice(old);
                }
            }
        }
        if let Some(bound) = fate.stale {
            device.read_stale(self.now, bound, from, &mut bytes);
        }
        bytes
    }
}

impl Host {
    /// The pair that a block belongs to, if it is one of this host's.
    fn pair_place(&self, owner: Owner, device: usize, lba: u64) -> Option<PairPlace> {
        let first = match owner {
            Owner::Machine => lba & !1,
            Owner::Connection(connection) => {
                self.connections.get(&connection)?.control_pair(lba)?
            }
        };
        Some(PairPlace {
            owner,
            device,
            first,
        })
    }

    /// Follows the pairs by the ends of their I/Os.
    pub(super) fn watch_pair(&mut self, outcome: &Outcome, hit: &mut Coverage) {
        if outcome.frame.is_some() {
            return;
        }
        let place = self.pair_place(outcome.owner, outcome.device, outcome.lba);
        let Some(place) = place else {
            return;
        };
        match &outcome.result {
            result if outcome.is_write => self.pairs.written(place, result.is_ok(), hit),
            Ok(bytes) if bytes.len() == BLOCK_BYTES => self.pairs.read_back(place, bytes, hit),
            _ => {}
        }
    }

    /// What is written for the first time, or asked for again, tells a transition.
    fn watch_claim(&mut self, now: Tick, owner: Owner, block: &[u8], hit: &mut Coverage) {
        match (&self.machine, owner) {
            (Machine::Coordinator(_), Owner::Machine)
                if block[..4] == *b"BLco" && !self.has_claimed =>
            {
                self.has_claimed = true;
                let watched = now.since(self.started) > timeouts().dead / 2;
                hit.transition(match block[80] {
                    2 => Transition::ClaimSameHost,
                    _ if watched => Transition::ClaimSilent,
                    _ => Transition::ClaimFree,
                });
            }
            (_, Owner::Connection(_)) => {
                let count = usize::from(block[152]).min(32);
                let attempt = |index: usize| block[160 + 16 * index + 8];
                if (0..count).any(|index| attempt(index) > 1) {
                    hit.transition(Transition::FrameAskedTwice);
                }
            }
            _ => {}
        }
    }
}
