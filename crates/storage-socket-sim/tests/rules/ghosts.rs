//! Rules of what a dead coordinator's last words may still do when they land late.

use crate::bench::{
    Bench, Claim, Fate, SLOT, always, coordinator_events, member_events, millis, options,
};
use std::{collections::BTreeMap, time::Duration};
use storage_socket_proto::{
    BLOCK_BYTES, Coordinator, DeviceIndex, DeviceMask, Epoch, Geometry, Grant, IoOp, IoOutcome,
    IoRequest, Lba, Member, MemberConfig, MemberEvent, Place, SegmentGroup, SlotIndex, TagKey,
    Timeouts, Unchecked,
    block::{Answer, AnswerPage},
};
use storage_socket_sim::device::SimDevice;

const OTHER: SlotIndex = SlotIndex(2);
const SECOND: Duration = Duration::from_secs(1);

/// A write that hangs and lands whenever a test says.
struct Ghost {
    lba: Lba,
    bytes: Vec<u8>,
    group: SegmentGroup,
}

fn granted(events: &[MemberEvent]) -> Option<Grant> {
    events.iter().find_map(|event| match event {
        MemberEvent::Connected(grant) => Some(*grant),
        _ => None,
    })
}

fn slots() -> BTreeMap<SlotIndex, TagKey> {
    [SLOT, OTHER].map(|slot| (slot, TagKey::public())).into()
}

/// A coordinator that dies while its answer to the member of `SLOT` hangs; that member and another one.
fn start(devices: u16) -> (Bench, Member, Member, Ghost) {
    let mut bench = Bench::new(devices);
    let mut one = bench.coordinator(1, Claim::SameHost);
    one.set_slots(bench.now, slots());
    let mut member = bench.member(5);
    let config = bench.member_config(6);
    let slot = OTHER;
    let mut other = Member::new(bench.now, MemberConfig { slot, ..config });
    let machines: &mut [&mut dyn crate::bench::Machine] = &mut [&mut one, &mut member, &mut other];
    bench.run(3 * SECOND, machines, &mut always);
    let answers = bench.geometry.answer_page(SLOT).0;
    let mut ghost = None;
    let mut hang = |who: usize, request: &IoRequest, _: &[_]| match &request.op {
        IoOp::Write(block) if who == 0 && (answers..answers + 2).contains(&request.lba.0) => {
            ghost = Some((request.lba, block.0.to_vec()));
            Fate::Hold
        }
        _ => Fate::Do,
    };
    member.connect(bench.now, options(1)).unwrap();
    bench.run(millis(200), &mut [&mut one, &mut member], &mut hang);
    let (lba, bytes) = ghost.unwrap();
    let place = Place {
        pool: bench.geometry.pool(),
        device: DeviceIndex(devices - 1),
        slot: SLOT,
    };
    let page = Unchecked::new(&bytes)
        .and_then(|block| AnswerPage::parse(block, &place, &TagKey::public()))
        .unwrap()
        .1;
    let group = page
        .entries
        .iter()
        .flatten()
        .find_map(|answer| match answer {
            Answer::Accepted { group, .. } => Some(*group),
            _ => None,
        });
    let group = group.unwrap();
    let _ = (member_events(&mut member), member_events(&mut other));
    (bench, member, other, Ghost { lba, bytes, group })
}

fn successor(bench: &Bench) -> Coordinator {
    let mut two = bench.coordinator(2, Claim::SameHost);
    two.set_slots(bench.now, slots());
    two
}

#[test]
fn a_grant_that_lands_after_a_restart_on_the_same_host_shares_no_unit_with_a_new_one() {
    let (mut bench, _asleep, mut other, ghost) = start(1);
    let mut two = successor(&bench);
    other.connect(bench.now, options(2)).unwrap();
    bench.run(2 * SECOND, &mut [&mut two, &mut other], &mut always);
    assert_eq!(other.epoch(), Some(Epoch(2)), "it serves at once");
    assert_eq!(
        granted(&member_events(&mut other)),
        None,
        "what the sleeper may still take isn't known"
    );
    bench.devices[0].put(ghost.lba.0, &ghost.bytes);
    let claim = Timeouts::default().claim + SECOND;
    bench.run(claim, &mut [&mut two, &mut other], &mut always);
    let grant = granted(&member_events(&mut other)).unwrap();
    let theirs = [ghost.group.to_coordinator, ghost.group.to_member];
    for segment in [grant.group.to_coordinator, grant.group.to_member] {
        assert!(!theirs.iter().any(|rests| rests.overlaps(segment)));
    }
}

#[test]
fn a_restart_grants_at_once_when_every_member_has_left_its_predecessor() {
    let (mut bench, mut member, mut other, _) = start(1);
    let mut two = successor(&bench);
    other.connect(bench.now, options(2)).unwrap();
    bench.run(
        3 * SECOND,
        &mut [&mut two, &mut member, &mut other],
        &mut always,
    );
    assert!(granted(&member_events(&mut other)).is_some());
    let _ = coordinator_events(&mut two);
}

#[test]
fn a_stale_page_of_an_incarnation_that_stopped_frees_nothing_that_the_next_one_was_granted() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    one.set_slots(bench.now, slots());
    let mut before = bench.member(5);
    bench.run(3 * SECOND, &mut [&mut one, &mut before], &mut always);
    before.stop(bench.now);
    bench.run(SECOND, &mut [&mut one, &mut before], &mut always);
    let page = bench.geometry.member_page(SLOT).0;
    let stale = bench.devices[0].bytes(page, 2);
    let mut asleep = bench.member(6);
    let config = bench.member_config(7);
    let slot = OTHER;
    let mut other = Member::new(bench.now, MemberConfig { slot, ..config });
    let machines: &mut [&mut dyn crate::bench::Machine] = &mut [&mut one, &mut asleep, &mut other];
    bench.run(3 * SECOND, machines, &mut always);
    asleep.connect(bench.now, options(1)).unwrap();
    bench.run(3 * SECOND, &mut [&mut one, &mut asleep], &mut always);
    let group = granted(&member_events(&mut asleep)).unwrap().group;

    let mut two = successor(&bench);
    other.connect(bench.now, options(2)).unwrap();
    let mut lie = |who: usize, request: &IoRequest, devices: &[SimDevice]| {
        let at = page.checked_sub(request.lba.0);
        let at = at.filter(|at| at + 2 <= u64::from(request.blocks.0));
        match at {
            Some(at) if who == 0 && request.op == IoOp::Read => {
                let mut bytes = devices[0].bytes(request.lba.0, request.blocks.0);
                let at = usize::try_from(at).unwrap() * BLOCK_BYTES;
                bytes[at..at + stale.len()].copy_from_slice(&stale);
                Fate::Lie(bytes)
            }
            _ => Fate::Do,
        }
    };
    bench.run(3 * SECOND, &mut [&mut two, &mut other], &mut lie);
    let events = member_events(&mut other);
    assert_eq!(granted(&events), None, "what is read isn't what is there");
    let claim = Timeouts::default().claim + SECOND;
    bench.run(claim, &mut [&mut two, &mut other], &mut always);
    let grant = granted(&member_events(&mut other)).unwrap();
    let theirs = [group.to_coordinator, group.to_member];
    for segment in [grant.group.to_coordinator, grant.group.to_member] {
        assert!(!theirs.iter().any(|rests| rests.overlaps(segment)));
    }
}

#[test]
fn a_member_takes_no_grant_before_it_has_looked_again_who_serves() {
    let (mut bench, mut member, _, ghost) = start(1);
    let before = bench.devices[0].bytes(Geometry::COORDINATOR.0, 2);
    let mut two = successor(&bench);
    bench.run(SECOND, &mut [&mut two], &mut always);
    bench.devices[0].put(ghost.lba.0, &ghost.bytes);
    // What it reads of the coordinator was on its way already when the successor came.
    let mut held = Vec::new();
    let mut slow = |_: usize, request: &IoRequest, _: &[_]| {
        if request.op == IoOp::Read && request.lba == Geometry::COORDINATOR {
            held.push(request.id);
            return Fate::Hold;
        }
        Fate::Do
    };
    bench.run(2 * SECOND, &mut [&mut member], &mut slow);
    assert_eq!(granted(&member_events(&mut member)), None);
    for id in held {
        member.handle_io(bench.now, id, IoOutcome::Read(&before));
    }
    bench.run(2 * SECOND, &mut [&mut member], &mut always);
    let events = member_events(&mut member);
    assert_eq!(granted(&events), None, "{events:?}");
    assert_eq!(member.epoch(), Some(Epoch(2)));
}

#[test]
fn what_was_granted_is_learnt_from_a_device_that_is_found_late() {
    let (mut bench, _asleep, mut other, ghost) = start(2);
    // The grant stands on the second device alone, which is gone while the successor starts.
    bench.devices[1].put(ghost.lba.0, &ghost.bytes);
    let mut two = successor(&bench);
    let mut gone = |who: usize, request: &IoRequest, _: &[_]| {
        if who == 0 && request.device == DeviceIndex(1) {
            Fate::Fail(storage_socket_proto::IoFailure::DeviceGone)
        } else {
            Fate::Do
        }
    };
    bench.run(8 * SECOND, &mut [&mut two, &mut other], &mut gone);
    bench.run(20 * SECOND, &mut [&mut two, &mut other], &mut always);
    other.connect(bench.now, options(2)).unwrap();
    bench.run(3 * SECOND, &mut [&mut two, &mut other], &mut always);
    let grant = granted(&member_events(&mut other)).unwrap();
    assert_eq!(grant.group.devices, DeviceMask(3));
    let theirs = [ghost.group.to_coordinator, ghost.group.to_member];
    for segment in [grant.group.to_coordinator, grant.group.to_member] {
        assert!(!theirs.iter().any(|rests| rests.overlaps(segment)));
    }
}

#[test]
fn everything_rests_while_a_member_uses_what_no_record_tells() {
    for (claim, wait) in [
        (Claim::SameHost, Duration::ZERO),
        (Claim::Wait, Timeouts::default().dead),
    ] {
        let mut bench = Bench::new(1);
        let mut one = bench.coordinator(1, Claim::SameHost);
        let mut member = bench.member(5);
        bench.run(3 * SECOND, &mut [&mut one, &mut member], &mut always);
        let answers = bench.geometry.answer_page(SLOT).0;
        let old = bench.devices[0].bytes(answers, 2);
        let free = one.free_units(DeviceMask(1));
        member.connect(bench.now, options(1)).unwrap();
        bench.run(3 * SECOND, &mut [&mut one, &mut member], &mut always);
        let grant = granted(&member_events(&mut member)).unwrap();
        // Ghosts leave the record as it was before, and the coordinator dies.
        bench.devices[0].put(answers, &old);
        let mut two = bench.coordinator(2, claim);
        let span = wait + Timeouts::default().claim + 3 * SECOND;
        bench.run(span, &mut [&mut two], &mut always);
        assert_eq!(two.free_units(DeviceMask(1)), 0, "{claim:?}");
        // Once its member has let go of what it had, everything is free.
        bench.run(3 * SECOND, &mut [&mut two, &mut member], &mut always);
        member.close(bench.now, grant.connection, None);
        bench.run(3 * SECOND, &mut [&mut two, &mut member], &mut always);
        assert_eq!(two.free_units(DeviceMask(1)), free, "{claim:?}");
    }
}

#[test]
fn a_request_that_a_successor_grants_again_is_told_apart_from_what_its_predecessor_granted() {
    let (mut bench, mut member, mut other, ghost) = start(1);
    let mut two = successor(&bench);
    let machines: &mut [&mut dyn crate::bench::Machine] = &mut [&mut two, &mut member, &mut other];
    bench.run(3 * SECOND, machines, &mut always);
    let grant = granted(&member_events(&mut member)).unwrap();
    assert_eq!(grant.epoch, Epoch(2));
    assert!(
        grant.group.generation > ghost.group.generation,
        "frames of the dead coordinator would be taken for the new one's"
    );
}
