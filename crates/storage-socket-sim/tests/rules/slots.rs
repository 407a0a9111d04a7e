//! Rules of slots: one authorised writer, ghosts, clones, fences, liveness.

use crate::bench::{
    Bench, Claim, Fate, SLOT, always, coordinator_events, member_events, millis, writes_block,
};
use std::time::Duration;
use storage_socket_proto::{
    CoordinatorEvent, Incarnation, IoFailure, IoOp, IoRequest, KeyId, Member, MemberEvent,
    StopReason, TagKey, Timeouts,
};

fn stopped(member: &mut Member) -> Option<StopReason> {
    member_events(member)
        .into_iter()
        .find_map(|event| match event {
            MemberEvent::Stopped(reason) => Some(reason),
            _ => None,
        })
}

#[test]
fn a_running_process_that_was_cloned_stops_on_both_hosts() {
    let mut bench = Bench::new(1);
    let mut one = bench.member(5);
    let mut clone = bench.member(5);
    bench.settle(&mut [&mut one], &mut always);
    // The clone wakes up later; both write under one incarnation.
    bench.run(millis(400), &mut [&mut one], &mut always);
    bench.run(
        Duration::from_secs(10),
        &mut [&mut one, &mut clone],
        &mut always,
    );
    let cloned = StopReason::ClonedHost {
        slot: SLOT,
        found: Incarnation(5),
    };
    let (one, clone) = (stopped(&mut one), stopped(&mut clone));
    assert!(
        one == Some(cloned) || clone == Some(cloned),
        "{one:?} {clone:?}"
    );
}

#[test]
fn a_process_whose_slot_another_one_took_stops_and_writes_no_more() {
    let mut bench = Bench::new(1);
    let mut one = bench.member(5);
    bench.run(Duration::from_secs(3), &mut [&mut one], &mut always);
    let mut two = bench.member(6);
    bench.settle(&mut [&mut two], &mut always);
    bench.run(millis(1100), &mut [&mut one, &mut two], &mut always);
    let found = Incarnation(6);
    assert_eq!(
        stopped(&mut one),
        Some(StopReason::ClonedHost { slot: SLOT, found })
    );
    let mut say = |who: usize, request: &IoRequest, _: &[_]| {
        assert!(who != 0 || !writes_block(request));
        Fate::Do
    };
    bench.run(Duration::from_secs(5), &mut [&mut one, &mut two], &mut say);
    assert_eq!(stopped(&mut two), None);
}

#[test]
fn a_predecessors_ghosts_are_rewritten_and_a_predecessor_that_lives_stops_its_successor() {
    let mut bench = Bench::new(1);
    let lba = bench.geometry.member_page(SLOT).0;
    let mut one = bench.member(5);
    let mut ghosts = Vec::new();
    for _ in 0..8 {
        bench.run(millis(1000), &mut [&mut one], &mut always);
        ghosts.push(bench.devices[0].bytes(lba, 2));
    }
    let mut two = {
        // What the successor finds is the first of them: the others land later.
        bench.devices[0].put(lba, &ghosts[0]);
        bench.member(6)
    };
    bench.run(Duration::from_secs(2), &mut [&mut two], &mut always);
    bench.devices[0].put(lba, &ghosts[1][..4096]);
    bench.run(Duration::from_secs(3), &mut [&mut two], &mut always);
    assert_eq!(stopped(&mut two), None);
    assert!(
        bench.devices[0].bytes(lba, 1) != ghosts[1][..4096],
        "rewritten"
    );
    for ghost in &ghosts[2..] {
        bench.devices[0].put(lba, &ghost[..4096]);
        bench.devices[0].put(lba + 1, &ghost[4096..]);
        bench.run(millis(1100), &mut [&mut two], &mut always);
    }
    let found = Incarnation(5);
    assert_eq!(
        stopped(&mut two),
        Some(StopReason::ClonedHost { slot: SLOT, found })
    );
}

#[test]
fn a_member_that_cannot_write_its_counter_is_fenced_until_it_was_written_and_the_answers_were_read()
{
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let _ = member_events(&mut member);
    let fence = Timeouts::default().fence;
    let mut held: Vec<IoRequest> = Vec::new();
    let mut hold = |who: usize, request: &IoRequest, _: &[_]| {
        if who == 1 && writes_block(request) {
            held.push(request.clone());
            return Fate::Hold;
        }
        Fate::Do
    };
    bench.run(
        fence - millis(1500),
        &mut [&mut coordinator, &mut member],
        &mut hold,
    );
    assert!(member_events(&mut member).is_empty());
    bench.run(
        millis(2000),
        &mut [&mut coordinator, &mut member],
        &mut hold,
    );
    assert_eq!(member_events(&mut member), [MemberEvent::Fenced]);
    // The write fails at last; the next one lands. The answers can't be read yet: still fenced.
    let request = held.remove(0);
    let failed = storage_socket_proto::IoOutcome::Failed(IoFailure::TimedOut);
    member.handle_io(bench.now, request.id, failed);
    let answers = bench.geometry.answer_page(SLOT);
    let mut blind = |_: usize, request: &IoRequest, _: &[_]| {
        let hidden = request.op == IoOp::Read && request.lba == answers;
        if hidden { Fate::Hold } else { Fate::Do }
    };
    bench.run(millis(1500), &mut [&mut member], &mut blind);
    assert!(member_events(&mut member).is_empty());
}

#[test]
fn a_member_is_unfenced_after_its_page_was_written_and_the_answers_read() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let _ = member_events(&mut member);
    let mut held: Option<IoRequest> = None;
    let mut hold = |who: usize, request: &IoRequest, _: &[_]| {
        if who == 1 && writes_block(request) {
            held = Some(request.clone());
            return Fate::Hold;
        }
        Fate::Do
    };
    let fence = Timeouts::default().fence + millis(1000);
    bench.run(fence, &mut [&mut coordinator, &mut member], &mut hold);
    assert_eq!(member_events(&mut member), [MemberEvent::Fenced]);
    let failed = storage_socket_proto::IoOutcome::Failed(IoFailure::TimedOut);
    member.handle_io(bench.now, held.unwrap().id, failed);
    bench.run(
        Duration::from_secs(2),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert_eq!(member_events(&mut member), [MemberEvent::Unfenced]);
}

#[test]
fn a_silent_member_is_dead_after_the_time_out_and_not_if_it_is_vouched_for() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let up = coordinator_events(&mut coordinator);
    assert!(
        up.iter()
            .any(|event| matches!(event, CoordinatorEvent::MemberUp { .. }))
    );
    let dead = Timeouts::default().dead;
    let incarnation = Incarnation(5);
    bench.run(
        dead / 2 + millis(2000),
        &mut [&mut coordinator],
        &mut always,
    );
    let suspect = CoordinatorEvent::MemberSuspect {
        slot: SLOT,
        incarnation,
    };
    assert_eq!(coordinator_events(&mut coordinator), [suspect]);
    coordinator.handle_vouched(bench.now, SLOT);
    bench.run(dead - millis(2000), &mut [&mut coordinator], &mut always);
    assert!(coordinator.members(bench.now)[0].alive);
    let _ = coordinator_events(&mut coordinator);
    bench.run(millis(4000), &mut [&mut coordinator], &mut always);
    let down = CoordinatorEvent::MemberDown {
        slot: SLOT,
        incarnation,
        stopped: false,
    };
    assert_eq!(coordinator_events(&mut coordinator), [down]);
}

#[test]
fn a_read_that_failed_says_nothing_about_a_peers_life() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let _ = coordinator_events(&mut coordinator);
    // The pages can't be read for twice the time-out; every other read succeeds in between.
    let pages = bench
        .geometry
        .member_page(storage_socket_proto::SlotIndex(0));
    let slot = bench.geometry.member_page(SLOT);
    let mut blind = |_: usize, request: &IoRequest, _: &[_]| {
        let hidden = request.op == IoOp::Read && (request.lba == pages || request.lba == slot);
        if hidden { Fate::Hold } else { Fate::Do }
    };
    bench.run(
        Timeouts::default().dead * 2,
        &mut [&mut coordinator, &mut member],
        &mut blind,
    );
    assert!(coordinator_events(&mut coordinator).is_empty());
}

#[test]
fn only_a_greater_counter_under_a_valid_tag_is_a_sign_of_life() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    let lba = bench.geometry.member_page(SLOT).0;
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let old = bench.devices[0].bytes(lba, 2);
    let _ = coordinator_events(&mut coordinator);
    // A forger writes the old page with ever greater counters and can't make the tag.
    let end = bench.now + Timeouts::default().dead + millis(5000);
    let mut counter = 1_u64 << 40;
    while bench.now < end {
        let mut forged = old.clone();
        counter += 1;
        forged[40..48].copy_from_slice(&counter.to_le_bytes());
        bench.devices[0].put(lba, &forged);
        bench.run(millis(700), &mut [&mut coordinator], &mut always);
    }
    let events = coordinator_events(&mut coordinator);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, CoordinatorEvent::MemberDown { .. }))
    );
}

#[test]
fn a_page_under_another_key_is_no_member() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut config = bench.member_config(5);
    config.page_key = TagKey::new(KeyId(3), [1; 32]);
    let mut member = Member::new(bench.now, config);
    bench.run(
        Duration::from_secs(5),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert!(coordinator.members(bench.now).is_empty());
    let slots = [(SLOT, TagKey::new(KeyId(3), [1; 32]))];
    coordinator.set_slots(bench.now, slots.into());
    bench.run(
        Duration::from_secs(2),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert_eq!(coordinator.members(bench.now).len(), 1);
}

#[test]
fn a_member_that_ends_in_order_says_so() {
    let mut bench = Bench::new(2);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    member.stop(bench.now);
    bench.run(
        Duration::from_secs(2),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert_eq!(stopped(&mut member), Some(StopReason::Requested));
    assert!(member.is_stopped());
    let down = CoordinatorEvent::MemberDown {
        slot: SLOT,
        incarnation: Incarnation(5),
        stopped: true,
    };
    assert!(coordinator_events(&mut coordinator).contains(&down));
}

#[test]
fn a_member_whose_own_pages_rotted_starts_above_what_the_coordinator_saw() {
    let mut bench = Bench::new(1);
    let lba = bench.geometry.member_page(SLOT).0;
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut one = bench.member(5);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut one],
        &mut always,
    );
    bench.devices[0].decay(lba, 2000);
    bench.devices[0].decay(lba + 1, 2000);
    let mut two = bench.member(6);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut two],
        &mut always,
    );
    let members = coordinator.members(bench.now);
    assert_eq!(members[0].incarnation, Incarnation(6));
}

#[test]
fn both_sides_prove_each_device_and_see_each_others_challenges() {
    let mut bench = Bench::new(3);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    // The member can't write one of the devices.
    let mut say = |who: usize, request: &IoRequest, _: &[_]| {
        let denied = who == 1 && request.device.0 == 1 && writes_block(request);
        if denied { Fate::Lose } else { Fate::Do }
    };
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut say,
    );
    assert_eq!(member.proved().0, 0b101);
    let challenge = |byte: u8| storage_socket_proto::Challenge([byte; 32]);
    member.set_challenges(bench.now, vec![challenge(1), challenge(2), challenge(3)]);
    coordinator.set_challenges(
        bench.now,
        SLOT,
        vec![challenge(4), challenge(5), challenge(6)],
    );
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut say,
    );
    let device = storage_socket_proto::DeviceIndex;
    assert_eq!(
        coordinator.challenge_seen(SLOT, device(0)),
        Some(challenge(1))
    );
    assert_eq!(coordinator.challenge_seen(SLOT, device(1)), None);
    assert_eq!(
        coordinator.challenge_seen(SLOT, device(2)),
        Some(challenge(3))
    );
    assert_eq!(member.challenge_seen(device(2)), Some(challenge(6)));
}
