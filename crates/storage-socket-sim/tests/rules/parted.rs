//! Rules of two sides that have lost different devices: neither knows what the other does where it can't look.

use crate::bench::{
    Bench, Claim, Fate, Machine, SLOT, always, coordinator_events, member_events, options,
    writes_block,
};
use std::time::Duration;
use storage_socket_proto::{
    Coordinator, CoordinatorEvent, DeviceIndex, DeviceMask, Epoch, Grant, IoFailure, IoRequest,
    Member, MemberEvent, ResetReason, Timeouts,
};
use storage_socket_sim::device::SimDevice;

const SECOND: Duration = Duration::from_secs(1);
const DEAD: Duration = Duration::from_secs(60);
const BOTH: DeviceMask = DeviceMask(3);

/// Hides a device from each machine, by its place in the list.
fn hide(hidden: &'static [Option<u16>]) -> impl FnMut(usize, &IoRequest, &[SimDevice]) -> Fate {
    move |who, request, _| {
        let hidden = hidden.get(who).copied().flatten();
        if hidden.map(DeviceIndex) == Some(request.device) {
            Fate::Fail(IoFailure::DeviceGone)
        } else {
            Fate::Do
        }
    }
}

/// A coordinator and its member, which see both devices.
fn start() -> (Bench, Coordinator, Member) {
    assert_eq!(Timeouts::default().dead, DEAD);
    let mut bench = Bench::new(2);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(3 * SECOND, both, &mut always);
    let _ = coordinator_events(&mut coordinator);
    let _ = member_events(&mut member);
    (bench, coordinator, member)
}

/// The same, with a stream over both devices.
fn start_stream() -> (Bench, Coordinator, Member, Grant) {
    let (mut bench, mut coordinator, mut member) = start();
    member.connect(bench.now, options(1)).unwrap();
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(SECOND, both, &mut always);
    let grant = member_events(&mut member)
        .into_iter()
        .find_map(|event| match event {
            MemberEvent::Connected(grant) => Some(grant),
            _ => None,
        });
    let grant = grant.unwrap();
    assert_eq!(grant.group.devices, BOTH);
    coordinator.accepted(bench.now, grant.connection);
    let _ = coordinator_events(&mut coordinator);
    (bench, coordinator, member, grant)
}

/// The coordinator has lost the second device, and its member is heard no more: it is dead.
fn die(bench: &mut Bench, coordinator: &mut Coordinator, grant: &Grant) {
    bench.run(3 * SECOND, &mut [&mut *coordinator], &mut hide(&[Some(1)]));
    coordinator.close(bench.now, grant.connection, Some(ResetReason::DeviceLost));
    bench.run(
        DEAD + 5 * SECOND,
        &mut [&mut *coordinator],
        &mut hide(&[Some(1)]),
    );
    let down = CoordinatorEvent::MemberDown {
        slot: SLOT,
        incarnation: grant.incarnation,
        stopped: false,
    };
    assert!(coordinator_events(coordinator).contains(&down));
}

fn all_units(bench: &Bench) -> u64 {
    u64::from(bench.geometry.data_end(BOTH).0 - bench.geometry.data_start().0)
}

#[test]
fn a_member_whose_devices_are_all_lost_to_its_coordinator_is_not_dead() {
    let (mut bench, mut coordinator, mut member) = start();
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(3 * SECOND, both, &mut hide(&[None, Some(0)]));
    let _ = coordinator_events(&mut coordinator);
    // From here on they share none.
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(3 * DEAD, both, &mut hide(&[Some(1), Some(0)]));
    let events = coordinator_events(&mut coordinator);
    assert!(
        matches!(events[..], [CoordinatorEvent::DeviceLost { .. }]),
        "{events:?}"
    );
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(DEAD + 5 * SECOND, both, &mut always);
    assert!(coordinator.members(bench.now)[0].alive);
    // It may die now as ever.
    bench.run(DEAD + 5 * SECOND, &mut [&mut coordinator], &mut always);
    assert!(!coordinator.members(bench.now)[0].alive);
}

#[test]
fn a_coordinator_whose_devices_are_all_lost_to_its_member_is_not_gone() {
    let (mut bench, mut coordinator, mut member) = start();
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(3 * SECOND, both, &mut hide(&[Some(1), None]));
    let _ = member_events(&mut member);
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(3 * DEAD, both, &mut hide(&[Some(1), Some(0)]));
    let events = member_events(&mut member);
    assert!(
        matches!(events[..], [MemberEvent::DeviceLost { .. }]),
        "{events:?}"
    );
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(DEAD + 5 * SECOND, both, &mut always);
    let _ = member_events(&mut member);
    bench.run(DEAD + 5 * SECOND, &mut [&mut member], &mut always);
    let gone = MemberEvent::CoordinatorLost { epoch: Epoch(1) };
    assert!(member_events(&mut member).contains(&gone));
}

#[test]
fn a_member_whose_coordinator_is_out_of_reach_follows_the_one_that_it_can_hear() {
    let mut bench = Bench::new(2);
    let mut one = bench.coordinator(1, Claim::Wait);
    let mut two = bench.coordinator(2, Claim::Wait);
    let mut member = bench.member(5);
    // The first one's counter is far ahead.
    bench.run(300 * SECOND, &mut [&mut one], &mut hide(&[Some(1)]));
    let two_serve: &mut [&mut dyn Machine] = &mut [&mut one, &mut two];
    bench.run(20 * SECOND, two_serve, &mut hide(&[Some(1), Some(0)]));
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(30 * SECOND, all, &mut hide(&[Some(1), Some(0), None]));
    assert_eq!(member.epoch(), Some(Epoch(1)));
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(30 * SECOND, all, &mut hide(&[Some(1), Some(0), Some(0)]));
    assert_eq!(member.epoch(), Some(Epoch(2)));
}

#[test]
fn what_a_dead_member_was_granted_is_free_only_after_every_device_was_silent() {
    let (mut bench, mut coordinator, _, grant) = start_stream();
    die(&mut bench, &mut coordinator, &grant);
    bench.run(3 * DEAD, &mut [&mut coordinator], &mut hide(&[Some(1)]));
    for device in [DeviceMask(1), DeviceMask(2)] {
        assert_eq!(coordinator.free_units(device), all_units(&bench) - 10);
    }
    // The lost device is found, by a probe, within `dead`; what is read there counts from then on.
    let is_found = |event: &CoordinatorEvent| matches!(event, CoordinatorEvent::DeviceFound { .. });
    while !coordinator_events(&mut coordinator).iter().any(is_found) {
        bench.run(SECOND, &mut [&mut coordinator], &mut always);
    }
    bench.run(DEAD - 5 * SECOND, &mut [&mut coordinator], &mut always);
    assert_eq!(coordinator.free_units(BOTH), all_units(&bench) - 10);
    bench.run(25 * SECOND, &mut [&mut coordinator], &mut always);
    assert_eq!(coordinator.free_units(BOTH), all_units(&bench));
}

#[test]
fn what_a_dead_member_was_granted_is_free_only_after_its_end_stands_on_every_device() {
    let (mut bench, mut coordinator, member, grant) = start_stream();
    coordinator.close(bench.now, grant.connection, Some(ResetReason::DeviceLost));
    let answers = bench.geometry.answer_page(SLOT).0;
    let mut hung = 0;
    let mut say = |_: usize, request: &IoRequest, _: &[SimDevice]| {
        let is_answer = (answers..answers + 2).contains(&request.lba.0);
        if writes_block(request) && is_answer && request.device == DeviceIndex(1) {
            hung += 1;
            return Fate::Hold;
        }
        Fate::Do
    };
    bench.run(3 * DEAD, &mut [&mut coordinator], &mut say);
    assert_eq!(hung, 1);
    assert!(!coordinator.members(bench.now)[0].alive);
    assert_eq!(coordinator.free_units(BOTH), all_units(&bench) - 10);
    drop(member);
}

#[test]
fn a_member_that_lived_where_its_coordinator_could_not_look_lets_go_by_its_own_word() {
    let (mut bench, mut coordinator, mut member, grant) = start_stream();
    die(&mut bench, &mut coordinator, &grant);
    assert_eq!(coordinator.free_units(BOTH), all_units(&bench) - 10);
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(2 * SECOND, both, &mut hide(&[Some(1), None]));
    let reason = Some(ResetReason::PeerDead);
    let connection = grant.connection;
    let told = MemberEvent::Closed { connection, reason };
    assert!(member_events(&mut member).contains(&told));
    assert_eq!(coordinator.free_units(BOTH), all_units(&bench) - 10);
    member.close(bench.now, connection, reason);
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(2 * SECOND, both, &mut hide(&[Some(1), None]));
    assert_eq!(coordinator.free_units(BOTH), all_units(&bench));
}

#[test]
fn a_member_that_was_dead_and_follows_another_has_let_go() {
    let (mut bench, mut coordinator, mut member, grant) = start_stream();
    die(&mut bench, &mut coordinator, &grant);
    let mut two = bench.coordinator(2, Claim::Wait);
    let two_serve: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut two];
    bench.run(
        DEAD + 20 * SECOND,
        two_serve,
        &mut hide(&[Some(1), Some(0)]),
    );
    assert!(coordinator_events(&mut two).contains(&CoordinatorEvent::Serving));
    // It confirms the other one before the first one reads of it.
    bench.run(
        3 * SECOND,
        &mut [&mut two, &mut member],
        &mut hide(&[Some(0), None]),
    );
    let gone = Some(ResetReason::CoordinatorGone);
    member.close(bench.now, grant.connection, gone);
    bench.run(
        3 * SECOND,
        &mut [&mut two, &mut member],
        &mut hide(&[Some(0), None]),
    );
    assert_eq!(coordinator.free_units(BOTH), all_units(&bench) - 10);
    let all: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut two, &mut member];
    bench.run(3 * SECOND, all, &mut hide(&[Some(1), Some(0), None]));
    assert_eq!(member.epoch(), Some(Epoch(2)));
    assert_eq!(coordinator.free_units(BOTH), all_units(&bench));
}

#[test]
fn what_a_predecessor_granted_rests_until_every_device_was_silent() {
    let (mut bench, _, _, _) = start_stream();
    let mut heir = bench.coordinator(2, Claim::SameHost);
    bench.run(10 * SECOND, &mut [&mut heir], &mut always);
    bench.run(3 * DEAD, &mut [&mut heir], &mut hide(&[Some(1)]));
    assert_eq!(heir.free_units(DeviceMask(1)), all_units(&bench) - 10);
    bench.run(3 * DEAD, &mut [&mut heir], &mut always);
    assert_eq!(heir.free_units(BOTH), all_units(&bench));
}
