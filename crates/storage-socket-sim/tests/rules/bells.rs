//! Rules of doorbells: each slot has its own, and is polled as its own allows.

use crate::bench::{
    Bench, Claim, Fate, SLOT, always, coordinator_events, member_events, millis, options,
};
use std::{collections::BTreeMap, time::Duration};
use storage_socket_proto::{
    Coordinator, CoordinatorEvent, Doorbell, IoOp, IoRequest, Member, MemberConfig, MemberEvent,
    SlotIndex, TagKey, Timeouts,
};

/// Far from the other, so that no read that is meant for one reads the other along.
const FAR: SlotIndex = SlotIndex(40);
const SECOND: Duration = Duration::from_secs(1);

/// A coordinator and the members of `SLOT` and `FAR`, joined; the first has a doorbell.
fn start() -> (Bench, Coordinator, Member, Member) {
    let mut bench = Bench::with_slots(1, 64);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let slots = [SLOT, FAR].map(|slot| (slot, TagKey::public()));
    coordinator.set_slots(bench.now, BTreeMap::from(slots));
    coordinator.set_doorbell(bench.now, SLOT, Doorbell::Present);
    let mut member = bench.member(5);
    let mut far = Member::new(
        bench.now,
        MemberConfig {
            slot: FAR,
            ..bench.member_config(6)
        },
    );
    let machines: &mut [&mut dyn crate::bench::Machine] =
        &mut [&mut coordinator, &mut member, &mut far];
    bench.run(3 * SECOND, machines, &mut always);
    while coordinator.poll_doorbell().is_some() {}
    let _ = (member_events(&mut member), member_events(&mut far));
    (bench, coordinator, member, far)
}

fn covers(bench: &Bench, request: &IoRequest, slot: SlotIndex) -> bool {
    let page = bench.geometry.member_page(slot).0;
    let end = request.lba.0 + u64::from(request.blocks.0);
    request.op == IoOp::Read && (request.lba.0..end).contains(&page)
}

/// How often the pages of `SLOT` and `FAR` are read in ten seconds.
fn polls(bench: &mut Bench, machines: &mut [&mut dyn crate::bench::Machine]) -> [u32; 2] {
    let mut polls = [0; 2];
    let other = Bench::with_slots(1, 64);
    let mut count = |who: usize, request: &IoRequest, _: &[_]| {
        for (polls, slot) in polls.iter_mut().zip([SLOT, FAR]) {
            *polls += u32::from(who == 0 && covers(&other, request, slot));
        }
        Fate::Do
    };
    bench.run(10 * SECOND, machines, &mut count);
    polls
}

#[test]
fn a_slot_with_a_doorbell_is_polled_only_while_something_is_outstanding_and_one_without_as_often_as_pays()
 {
    let (mut bench, mut coordinator, mut member, _far) = start();
    bench.run(3 * SECOND, &mut [&mut coordinator], &mut always);
    let idle = polls(&mut bench, &mut [&mut coordinator]);
    assert_eq!(idle[0], 0, "nothing is outstanding");
    assert!((90..=130).contains(&idle[1]), "{idle:?}");
    // What it was granted is outstanding until both sides have let go of it.
    member.connect(bench.now, options(1)).unwrap();
    bench.settle(&mut [&mut member], &mut always);
    coordinator.handle_doorbell_of(bench.now, SLOT);
    bench.run(SECOND, &mut [&mut coordinator, &mut member], &mut always);
    let granted = |event: &MemberEvent| matches!(event, MemberEvent::Connected(_));
    assert!(member_events(&mut member).iter().any(granted));
    bench.run(
        5 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let busy = polls(&mut bench, &mut [&mut coordinator, &mut member]);
    assert!((9..=11).contains(&busy[0]), "{busy:?}");
    let connection = options(1).connection;
    coordinator.close(bench.now, connection, None);
    member.close(bench.now, connection, None);
    bench.run(
        5 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let idle = polls(&mut bench, &mut [&mut coordinator, &mut member]);
    assert_eq!(idle[0], 0, "it was let go of");
    // Its doorbell goes, and it is polled as the other is.
    coordinator.set_doorbell(bench.now, SLOT, Doorbell::Absent);
    coordinator.set_doorbell(bench.now, FAR, Doorbell::Present);
    bench.run(
        5 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let swapped = polls(&mut bench, &mut [&mut coordinator, &mut member]);
    assert_eq!(swapped[1], 0, "{swapped:?}");
    assert!((90..=130).contains(&swapped[0]), "{swapped:?}");
}

#[test]
fn a_member_that_was_granted_something_dies_by_its_silence_though_it_has_a_doorbell_and_hears_of_it_when_it_wakes()
 {
    let (mut bench, mut coordinator, mut member, _far) = start();
    member.connect(bench.now, options(1)).unwrap();
    bench.settle(&mut [&mut member], &mut always);
    coordinator.handle_doorbell_of(bench.now, SLOT);
    bench.run(SECOND, &mut [&mut coordinator, &mut member], &mut always);
    let _ = coordinator_events(&mut coordinator);
    let dead = Timeouts::default().dead + 3 * SECOND;
    let answers = bench.geometry.answer_page(SLOT).0;
    let mut say = |_: usize, request: &IoRequest, _: &[_]| match request.op {
        // What tells the member that its stream was let go of.
        IoOp::Write(_) if (answers..answers + 2).contains(&request.lba.0) => Fate::Lose,
        _ => Fate::Do,
    };
    bench.run(dead, &mut [&mut coordinator], &mut say);
    let events = coordinator_events(&mut coordinator);
    let is_down = |event: &CoordinatorEvent| matches!(event, CoordinatorEvent::MemberDown { slot, .. } if *slot == SLOT);
    assert!(events.iter().any(is_down), "{events:?}");
    // It wakes, has nothing to say on its stream, and its doorbell is lost: it learns all the same that the stream is
    // over.
    coordinator.close(bench.now, options(1).connection, None);
    bench.run(dead, &mut [&mut coordinator], &mut say);
    let _ = member_events(&mut member);
    let both: &mut [&mut dyn crate::bench::Machine] = &mut [&mut coordinator, &mut member];
    bench.run(5 * SECOND, both, &mut always);
    let events = member_events(&mut member);
    let is_closed = |event: &MemberEvent| matches!(event, MemberEvent::Closed { .. });
    assert!(events.iter().any(is_closed), "{events:?}");
}

#[test]
fn a_ring_that_is_lost_costs_a_heartbeat() {
    let (mut bench, mut coordinator, mut member, _far) = start();
    member.set_doorbell(bench.now, Doorbell::Present);
    bench.run(
        5 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    while member.poll_doorbell() {}
    member.connect(bench.now, options(1)).unwrap();
    bench.settle(&mut [&mut member], &mut always);
    assert!(member.poll_doorbell(), "this one is lost");
    bench.run(
        millis(1100),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert!(member.poll_doorbell(), "it rings again");
    coordinator.handle_doorbell_of(bench.now, SLOT);
    bench.run(
        millis(100),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert_eq!(coordinator.poll_doorbell(), Some(SLOT));
    member.handle_doorbell(bench.now);
    bench.run(
        millis(100),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let granted = |event: &MemberEvent| matches!(event, MemberEvent::Connected(_));
    assert!(member_events(&mut member).iter().any(granted));
}

#[test]
fn news_for_a_member_ring_it_alone_and_a_member_without_a_doorbell_is_never_rung() {
    let (mut bench, mut coordinator, mut member, mut far) = start();
    for (number, asks) in [(1, &mut far), (2, &mut member)] {
        asks.connect(bench.now, options(number)).unwrap();
        bench.settle(&mut [&mut *asks], &mut always);
        if number == 2 {
            coordinator.handle_doorbell_of(bench.now, SLOT);
        }
        bench.run(2 * SECOND, &mut [&mut coordinator, asks], &mut always);
        let events = member_events(asks);
        let granted = |event: &MemberEvent| matches!(event, MemberEvent::Connected(_));
        assert!(events.iter().any(granted), "{events:?}");
        let mut rung: Vec<SlotIndex> = std::iter::from_fn(|| coordinator.poll_doorbell()).collect();
        rung.dedup();
        assert_eq!(rung, if number == 1 { vec![] } else { vec![SLOT] });
    }
}

#[test]
fn a_member_that_rings_is_read_at_once_and_no_other_is() {
    let (mut bench, mut coordinator, mut member, _) = start();
    coordinator.set_doorbell(bench.now, FAR, Doorbell::Present);
    // Just after a heartbeat: the next one is far.
    bench.run(millis(500), &mut [&mut coordinator], &mut always);
    member.connect(bench.now, options(1)).unwrap();
    bench.settle(&mut [&mut member], &mut always);
    let other = Bench::with_slots(1, 64);
    let mut read = [0; 2];
    let mut count = |_: usize, request: &IoRequest, _: &[_]| {
        for (read, slot) in read.iter_mut().zip([SLOT, FAR]) {
            *read += u32::from(covers(&other, request, slot));
        }
        Fate::Do
    };
    coordinator.handle_doorbell_of(bench.now, SLOT);
    bench.settle(&mut [&mut coordinator], &mut count);
    assert_eq!(read, [1, 0]);
    bench.settle(&mut [&mut coordinator], &mut always);
    assert_eq!(coordinator.poll_doorbell(), Some(SLOT), "its answer");
}

#[test]
fn an_idle_pool_is_read_no_more_however_many_slots_it_has() {
    let mut bench = Bench::with_slots(1, 512);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    coordinator.set_doorbell(bench.now, SLOT, Doorbell::Present);
    bench.run(8 * SECOND, &mut [&mut coordinator], &mut always);
    let pages = bench.geometry.member_page(SlotIndex(0)).0;
    let answers = bench.geometry.answer_page(SlotIndex(0)).0;
    let mut blocks = 0;
    let mut count = |_: usize, request: &IoRequest, _: &[_]| {
        if request.op == IoOp::Read && (pages..answers).contains(&request.lba.0) {
            blocks += request.blocks.0;
        }
        Fate::Do
    };
    bench.run(10 * SECOND, &mut [&mut coordinator], &mut count);
    assert_eq!(blocks, 0);
}

/// What ten seconds cost a coordinator that has eight streams, and all slots joined: its I/Os, and the blocks that it reads.
fn cost(slots: u32) -> [u32; 2] {
    let mut bench = Bench::with_slots(1, slots);
    bench.backlog = 8;
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let all: BTreeMap<SlotIndex, TagKey> = (0..slots)
        .map(|slot| (SlotIndex(slot), TagKey::public()))
        .collect();
    let mut members = Vec::new();
    for &slot in all.keys() {
        coordinator.set_doorbell(bench.now, slot, Doorbell::Present);
        let config = MemberConfig {
            slot,
            doorbell: Doorbell::Present,
            ..bench.member_config(u64::from(slot.0) + 5)
        };
        members.push(Member::new(bench.now, config));
    }
    coordinator.set_slots(bench.now, all);
    run(&mut bench, &mut coordinator, &mut members, &mut always);
    let joined = |member: &Member| member.epoch().is_some();
    assert!(members.iter().all(joined));
    // The same eight, side by side, however many slots there are.
    for (member, number) in members.iter_mut().take(8).zip(1..) {
        member.connect(bench.now, options(number)).unwrap();
        bench.settle(&mut [member], &mut always);
        coordinator.handle_doorbell_of(bench.now, member.slot());
    }
    run(&mut bench, &mut coordinator, &mut members, &mut always);
    let granted = |event: &CoordinatorEvent| matches!(event, CoordinatorEvent::Incoming(_));
    let events = coordinator_events(&mut coordinator);
    assert_eq!(events.iter().filter(|event| granted(event)).count(), 8);
    let mut cost = [0; 2];
    let mut count = |who: usize, request: &IoRequest, _: &[_]| {
        if who == 0 {
            cost[0] += 1;
            let is_read = request.op == IoOp::Read;
            cost[1] += if is_read { request.blocks.0 } else { 0 };
        }
        Fate::Do
    };
    run(&mut bench, &mut coordinator, &mut members, &mut count);
    cost
}

/// Ten seconds of them all.
fn run(
    bench: &mut Bench,
    coordinator: &mut Coordinator,
    members: &mut [Member],
    say: crate::bench::Say<'_>,
) {
    let mut machines: Vec<&mut dyn crate::bench::Machine> = vec![coordinator];
    for member in members {
        machines.push(member);
    }
    bench.run(10 * SECOND, &mut machines, say);
}

#[test]
fn what_polling_and_liveness_cost_follows_from_streams_and_not_from_slots() {
    let [few, more, many] = [16, 64, 256].map(cost);
    assert_eq!((few, few), (more, many));
    // Each second: the block written and read, and the pages of eight neighbours in one read.
    assert!((29..=34).contains(&few[0]), "{few:?}");
}
