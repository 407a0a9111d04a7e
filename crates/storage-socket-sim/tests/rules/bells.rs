//! Rules of doorbells: each slot has its own, and is polled as its own allows.

use crate::bench::{Bench, Fate, SLOT, always, member_events, millis, options};
use std::{collections::BTreeMap, time::Duration};
use storage_socket_proto::{
    Claim, Coordinator, Doorbell, IoOp, IoRequest, Member, MemberConfig, MemberEvent, SlotIndex,
    TagKey,
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

#[test]
fn a_slot_with_a_doorbell_is_polled_once_a_heartbeat_and_one_without_as_often_as_pays() {
    let (mut bench, mut coordinator, ..) = start();
    let mut polls = [0; 2];
    let other = Bench::with_slots(1, 64);
    let mut count = |_: usize, request: &IoRequest, _: &[_]| {
        for (polls, slot) in polls.iter_mut().zip([SLOT, FAR]) {
            *polls += u32::from(covers(&other, request, slot));
        }
        Fate::Do
    };
    bench.run(10 * SECOND, &mut [&mut coordinator], &mut count);
    assert!((9..=11).contains(&polls[0]), "{polls:?}");
    assert!((90..=130).contains(&polls[1]), "{polls:?}");
    // Its doorbell goes, and it is polled as the other is.
    coordinator.set_doorbell(bench.now, SLOT, Doorbell::Absent);
    coordinator.set_doorbell(bench.now, FAR, Doorbell::Present);
    polls = [0; 2];
    let mut count = |_: usize, request: &IoRequest, _: &[_]| {
        for (polls, slot) in polls.iter_mut().zip([SLOT, FAR]) {
            *polls += u32::from(covers(&other, request, slot));
        }
        Fate::Do
    };
    bench.run(10 * SECOND, &mut [&mut coordinator], &mut count);
    assert!((9..=11).contains(&polls[1]), "{polls:?}");
    assert!((90..=130).contains(&polls[0]), "{polls:?}");
}

#[test]
fn news_for_a_member_ring_it_alone_and_a_member_without_a_doorbell_is_never_rung() {
    let (mut bench, mut coordinator, mut member, mut far) = start();
    for (number, asks) in [(1, &mut far), (2, &mut member)] {
        asks.connect(bench.now, options(number)).unwrap();
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
fn a_heartbeat_reads_the_slots_that_may_be_used_and_a_few_others_however_many_there_are() {
    let mut bench = Bench::with_slots(1, 512);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    bench.run(2 * SECOND, &mut [&mut coordinator], &mut always);
    coordinator.set_doorbell(bench.now, SLOT, Doorbell::Present);
    let pages = bench.geometry.member_page(SlotIndex(0)).0;
    let answers = bench.geometry.answer_page(SlotIndex(0)).0;
    let mut blocks = 0;
    let mut strange = false;
    let last = bench.geometry.member_page(SlotIndex(511)).0;
    let mut count = |_: usize, request: &IoRequest, _: &[_]| {
        if request.op == IoOp::Read && (pages..answers).contains(&request.lba.0) {
            blocks += request.blocks.0;
            strange |= request.lba.0 + u64::from(request.blocks.0) > last;
        }
        Fate::Do
    };
    bench.run(10 * SECOND, &mut [&mut coordinator], &mut count);
    assert!(blocks <= 11 * 2 * (64 + 1), "{blocks}");
    assert!(strange, "a stranger is seen within a few heartbeats");
}
