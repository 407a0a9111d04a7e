//! What a run is planned to be: who starts when, which trouble comes when, and what lies on the devices before.

use super::{AUDIT, FOREIGN, Happening, World, hosts::Wish, trouble::Trouble};
use crate::{
    coverage::Fault,
    host::{HostIndex, MEMBERS, SERVER, slot_of},
    stream::Intent,
};
use std::{sync::Arc, time::Duration};
use storage_socket_proto::{
    BlockCount, Challenge, ConnectionId, Counter, DeviceIndex, Direction, ENTRIES, Epoch,
    FrameSealer, Generation, Incarnation, Name, PoolId, Protection, Sequence, SlotIndex, Stamp,
    StreamIdentity, TagKey, UNIT_BLOCKS, UnitIndex,
    block::{
        AnswerPage, CoordinatorBlock, CoordinatorState, MemberEntry, MemberPage, MemberState, Place,
    },
};
use uuid::Uuid;

impl World {
    pub(super) fn plan(&mut self) {
        let members = MEMBERS..MEMBERS + self.scenario.members;
        for host in members.clone() {
            let wishes = self.wishes_of_one();
            self.wishes.insert(host, wishes);
        }
        if self.scenario.rates.of(Fault::Residue) > 0 {
            self.hit.fault(Fault::Residue);
            self.leave_residue();
        }
        self.plan_trouble();
        if self.scenario.rates.of(Fault::Rivals) + self.scenario.rates.of(Fault::RivalClone) == 0 {
            self.schedule(Duration::ZERO, Happening::Start(SERVER));
        }
        for host in members {
            let after = Duration::from_micros(u64::from(host) * 300);
            self.schedule(after, Happening::Start(host));
        }
        self.schedule(AUDIT, Happening::Audit);
        self.schedule(self.scenario.faults_end, Happening::FaultsEnd);
    }

    /// What a member is to do, in a random order.
    fn wishes_of_one(&mut self) -> Vec<Wish> {
        let streams = usize::try_from(self.scenario.streams).unwrap_or(1);
        let mut wishes = vec![Wish::stream(Intent::Full); streams];
        let way = if self.rng.chance(500_000) {
            Direction::ToCoordinator
        } else {
            Direction::ToMember
        };
        let rates = self.scenario.rates.clone();
        for (fault, intent) in [
            (Fault::SlowReader, Intent::Slow),
            (Fault::OneWay, Intent::OneWay(way)),
            (Fault::Abort, Intent::Abort(way)),
            (Fault::Linger, Intent::Linger(way)),
        ] {
            if rates.of(fault) > 0 {
                wishes.push(Wish::stream(intent));
            }
        }
        if rates.of(Fault::BadRequest) > 0 {
            let which = self.rng.below(3);
            wishes.push(Wish::bad(which));
        }
        if rates.of(Fault::Impatient) > 0 {
            wishes.push(Wish::impatient());
        }
        for at in (1..wishes.len()).rev() {
            let other = usize::try_from(self.rng.below(at as u64 + 1)).unwrap_or(0);
            wishes.swap(at, other);
        }
        wishes
    }

    fn plan_trouble(&mut self) {
        let rates = self.scenario.rates.clone();
        let many = self.scenario.devices > 1;
        for (fault, rate) in rates.on() {
            for _ in 0..rate.min(TROUBLES_MAX) {
                let trouble = match fault {
                    Fault::DeviceHangs => Trouble::DeviceHangs(self.some_device()),
                    Fault::OnlyDeviceGone if !many => Trouble::DeviceGone(0, fault),
                    Fault::StripedDeviceGone if many => {
                        Trouble::DeviceGone(self.some_device(), fault)
                    }
                    Fault::PathHangs => Trouble::PathHangs(self.some_host(), self.some_device()),
                    Fault::PathGone => Trouble::PathGone(self.some_host(), self.some_device()),
                    Fault::CoordinatorCrash => Trouble::Crash(SERVER),
                    Fault::CoordinatorPause => Trouble::Pause(SERVER),
                    Fault::CoordinatorStop => Trouble::Stop(SERVER),
                    Fault::MemberCrash => Trouble::Crash(self.some_member()),
                    Fault::MemberPause => Trouble::Pause(self.some_member()),
                    Fault::MemberStop => Trouble::Stop(self.some_member()),
                    Fault::Clone | Fault::CloneRunning => Trouble::Clone(self.some_member(), fault),
                    Fault::Rivals | Fault::RivalClone => Trouble::Rivals(fault),
                    Fault::Revoked => Trouble::Revoke(slot_of(self.some_member())),
                    _ => break,
                };
                let end = self.scenario.faults_end;
                let low = Duration::from_millis(20).min(end);
                // Two servers start at the very first moment.
                let is_rivalry = matches!(trouble, Trouble::Rivals(_));
                let after = if is_rivalry {
                    Duration::ZERO
                } else {
                    self.rng.span(low, end)
                };
                self.schedule(after, Happening::Begin(trouble));
            }
        }
    }

    fn some_device(&mut self) -> usize {
        usize::try_from(self.rng.below(self.devices.len() as u64)).unwrap_or(0)
    }

    fn some_member(&mut self) -> HostIndex {
        let member = self.rng.below(u64::from(self.scenario.members));
        MEMBERS + u32::try_from(member).unwrap_or(0)
    }

    fn some_host(&mut self) -> HostIndex {
        if self.rng.chance(400_000) {
            SERVER
        } else {
            self.some_member()
        }
    }

    /// What another pool left, and the first device of a stripe on the others: all valid, all newer than anything here.
    fn leave_residue(&mut self) {
        let stamp = Stamp {
            counter: Counter(1 << 60),
            writer: FOREIGN,
        };
        let key = TagKey::public();
        let other = PoolId(Uuid::from_u128(0x0dd));
        let geometry = Arc::clone(&self.geometry);
        let count = u16::try_from(self.devices.len()).unwrap_or(1);
        let host = Name::lossy("elsewhere");
        let rates = &self.scenario.rates;
        let strays = rates.of(Fault::MisdirectedRead) + rates.of(Fault::MisdirectedWrite) > 0;
        for (index, device) in (0..count).map(DeviceIndex).zip(&mut self.devices) {
            let block = CoordinatorBlock {
                state: CoordinatorState::Serving,
                host: host.clone(),
            };
            let mut place = CoordinatorBlock::place(other, index);
            device.put(2, &block.encode(&place, stamp, &key).0);
            // What lies on the wrong device is told by that; not if reads go astray between devices.
            if count > 1 && !strays {
                place =
                    CoordinatorBlock::place(geometry.pool(), DeviceIndex((index.0 + 1) % count));
            }
            device.put(3, &block.encode(&place, stamp, &key).0);
            for slot in (0..geometry.slots()).map(SlotIndex) {
                let place = Place {
                    pool: other,
                    device: index,
                    slot,
                };
                let page = MemberPage {
                    state: MemberState::Running,
                    devices: geometry.all_devices(),
                    confirmed: Epoch(FOREIGN),
                    challenge: Challenge::default(),
                    host: host.clone(),
                    entries: [MemberEntry::Empty; ENTRIES],
                };
                let page = page.encode(&place, stamp, &key);
                device.put(geometry.member_page(slot).0, &page.0);
                let answers = AnswerPage {
                    incarnation: Incarnation(FOREIGN),
                    challenge: Challenge::default(),
                    devices: geometry.all_devices(),
                    seen: Counter(1 << 60),
                    entries: [None; ENTRIES],
                };
                let answers = answers.encode(&place, stamp, &key);
                device.put(geometry.answer_page(slot).0 + 1, &answers.0);
            }
        }
        self.leave_frames(other);
    }

    /// A frame of another pool's stream at the start of each unit.
    fn leave_frames(&mut self, pool: PoolId) {
        let identity = StreamIdentity {
            pool,
            connection: ConnectionId([0xdd; 16]),
            generation: Generation(1),
            epoch: Epoch(FOREIGN),
            incarnation: Incarnation(FOREIGN),
            frame_blocks: BlockCount(UNIT_BLOCKS),
        };
        let sealer = FrameSealer::new(identity, Direction::ToMember, &Protection::Checksum);
        let start = self.geometry.data_start().0;
        for (unit, sequence) in (start..start + 40).zip(0..) {
            let mut frame = vec![0; storage_socket_proto::BLOCK_BYTES];
            let sealed = sealer.seal_from(Sequence(sequence), b"of another pool", &mut frame);
            debug_assert!(sealed.is_ok(), "a short frame can be sealed");
            for device in &mut self.devices {
                device.put(UnitIndex(unit).lba().0, &frame);
            }
        }
    }
}

/// Troubles of one kind in a run at most.
const TROUBLES_MAX: u32 = 4;
