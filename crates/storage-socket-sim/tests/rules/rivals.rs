//! Rules of two coordinators on devices that the other one doesn't see.

use crate::bench::{
    Bench, Claim, Fate, Machine, always, coordinator_events, member_events, options,
};
use std::time::Duration;
use storage_socket_proto::{
    Coordinator, CoordinatorEvent, DeviceIndex, DeviceMask, EndReason, Epoch, IoFailure, IoRequest,
    Member, MemberEvent, Name, ResetReason, Timeouts,
};
use storage_socket_sim::device::SimDevice;

const SECOND: Duration = Duration::from_secs(1);

/// The first machine sees device 0 alone, the second device 1 alone, the third both.
fn apart(who: usize, request: &IoRequest, _: &[SimDevice]) -> Fate {
    let hidden = [1, 0].get(who).copied().map(DeviceIndex);
    if hidden == Some(request.device) {
        Fate::Fail(IoFailure::DeviceGone)
    } else {
        Fate::Do
    }
}

#[test]
fn of_two_coordinators_that_see_no_common_device_a_member_is_served_by_one_alone() {
    let mut bench = Bench::new(2);
    let mut one = bench.coordinator(1, Claim::Wait);
    let mut two = bench.coordinator(2, Claim::Wait);
    let mut member = bench.member(5);
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(20 * SECOND, all, &mut apart);
    for coordinator in [&mut one, &mut two] {
        let events = coordinator_events(coordinator);
        assert!(events.contains(&CoordinatorEvent::Serving), "{events:?}");
    }
    let served = member.epoch().unwrap();
    member.connect(bench.now, options(1)).unwrap();
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(20 * SECOND, all, &mut apart);
    let events = member_events(&mut member);
    let count = |is: fn(&MemberEvent) -> bool| events.iter().filter(|event| is(event)).count();
    assert_eq!(count(|e| matches!(e, MemberEvent::Joined { .. })), 1);
    assert_eq!(
        count(|e| matches!(e, MemberEvent::CoordinatorLost { .. })),
        0
    );
    assert_eq!(
        count(|e| matches!(e, MemberEvent::RivalCoordinator { .. })),
        1,
        "told once: {events:?}"
    );
    let epochs = events.iter().find_map(|event| match event {
        MemberEvent::RivalCoordinator {
            epoch, followed, ..
        } => Some((*followed, *epoch)),
        _ => None,
    });
    let rival = Epoch(3 - served.0);
    assert_eq!(epochs, Some((served, rival)));
    let grants: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            MemberEvent::Connected(grant) => Some((grant.epoch, grant.group.devices)),
            _ => None,
        })
        .collect();
    let devices = if served == Epoch(1) { 1 } else { 2 };
    assert_eq!(grants, [(served, DeviceMask(devices))]);
    let incoming = |event: &CoordinatorEvent| matches!(event, CoordinatorEvent::Incoming(_));
    let granted = [&mut one, &mut two].map(|c| coordinator_events(c).iter().any(incoming));
    assert_eq!(granted, [served == Epoch(1), served == Epoch(2)]);
}

#[test]
fn a_member_stays_with_its_coordinator_when_a_rival_with_a_higher_counter_appears() {
    let mut bench = Bench::new(2);
    let mut one = bench.coordinator(1, Claim::Wait);
    let mut two = bench.coordinator(2, Claim::Wait);
    let mut member = bench.member(5);
    let mut second =
        |_: usize, request: &IoRequest, devices: &[SimDevice]| apart(1, request, devices);
    bench.run(100 * SECOND, &mut [&mut two], &mut second);
    // The member comes by the first device alone.
    let mut first = |who: usize, request: &IoRequest, devices: &[SimDevice]| {
        apart(if who == 1 { 1 } else { 0 }, request, devices)
    };
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(10 * SECOND, all, &mut first);
    assert_eq!(member.epoch(), Some(Epoch(1)));
    let _ = member_events(&mut member);
    // Then the other device comes back to it.
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(70 * SECOND, all, &mut apart);
    let events = member_events(&mut member);
    let is_rival = |event: &MemberEvent| matches!(event, MemberEvent::RivalCoordinator { .. });
    assert!(events.iter().any(is_rival), "{events:?}");
    let is_lost = |event: &MemberEvent| matches!(event, MemberEvent::CoordinatorLost { .. });
    assert!(!events.iter().any(is_lost), "{events:?}");
    assert_eq!(member.epoch(), Some(Epoch(1)));
}

#[test]
fn a_member_whose_coordinator_died_follows_the_one_that_lives_however_low_its_counter() {
    let mut bench = Bench::new(2);
    let mut one = bench.coordinator(1, Claim::Wait);
    let mut two = bench.coordinator(2, Claim::Wait);
    let mut member = bench.member(5);
    // The first one's counter is far ahead.
    bench.run(300 * SECOND, &mut [&mut one], &mut apart);
    bench.run(10 * SECOND, &mut [&mut one, &mut two], &mut apart);
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(20 * SECOND, all, &mut apart);
    assert_eq!(member.epoch(), Some(Epoch(1)));
    let mut rest =
        |who: usize, request: &IoRequest, devices: &[SimDevice]| apart(who + 1, request, devices);
    let dead = Timeouts::default().dead + 20 * SECOND;
    bench.run(dead, &mut [&mut two, &mut member], &mut rest);
    assert_eq!(member.epoch(), Some(Epoch(2)));
}

/// The owner of two devices, which loses the second one, and its member, which sees both.
fn owner() -> (Bench, Coordinator, Member) {
    let mut bench = Bench::new(2);
    let mut one = bench.coordinator(1, Claim::Wait);
    let mut member = bench.member(5);
    bench.run(20 * SECOND, &mut [&mut one, &mut member], &mut always);
    assert_eq!(member.epoch(), Some(Epoch(1)));
    let mut parted = |who: usize, request: &IoRequest, devices: &[SimDevice]| {
        apart([0, 2][who], request, devices)
    };
    bench.run(10 * SECOND, &mut [&mut one, &mut member], &mut parted);
    let _ = (member_events(&mut member), coordinator_events(&mut one));
    (bench, one, member)
}

#[test]
fn a_device_that_its_owner_has_lost_is_not_claimed_while_members_see_the_owner() {
    let (mut bench, mut one, mut member) = owner();
    let mut two = bench.coordinator(2, Claim::Wait);
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(Timeouts::default().dead * 2, all, &mut apart);
    let events = coordinator_events(&mut two);
    let host = Name::lossy("server");
    let owned = EndReason::Owned {
        epoch: Epoch(1),
        host,
    };
    assert_eq!(
        events.last(),
        Some(&CoordinatorEvent::Ended(owned)),
        "{events:?}"
    );
    let events = member_events(&mut member);
    let is_lost = |event: &MemberEvent| matches!(event, MemberEvent::CoordinatorLost { .. });
    assert!(!events.iter().any(is_lost), "{events:?}");
    assert_eq!(member.epoch(), Some(Epoch(1)));
}

#[test]
fn a_device_whose_owner_is_dead_is_claimed_though_its_members_live_and_another_device_is_gone() {
    let (mut bench, _one, mut member) = owner();
    let mut two = bench.coordinator(2, Claim::Wait);
    let mut rest =
        |who: usize, request: &IoRequest, devices: &[SimDevice]| apart(who + 1, request, devices);
    let dead = Timeouts::default().dead + 20 * SECOND;
    bench.run(dead, &mut [&mut two, &mut member], &mut rest);
    let events = coordinator_events(&mut two);
    assert!(events.contains(&CoordinatorEvent::Serving), "{events:?}");
    assert_eq!(member.epoch(), Some(Epoch(2)));
}

#[test]
fn a_coordinator_lets_go_of_a_member_that_follows_another() {
    let mut bench = Bench::new(2);
    let mut one = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(3 * SECOND, &mut [&mut one, &mut member], &mut always);
    member.connect(bench.now, options(1)).unwrap();
    bench.run(SECOND, &mut [&mut one, &mut member], &mut always);
    let connection = member_events(&mut member)
        .into_iter()
        .find_map(|event| match event {
            MemberEvent::Connected(grant) => Some(grant.connection),
            _ => None,
        })
        .unwrap();
    let free = one.free_units(DeviceMask(1));
    // The devices part; another host takes the pool by the second one.
    let mut two = bench.coordinator(2, Claim::SameHost);
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(5 * SECOND, all, &mut apart);
    let reason = Some(ResetReason::CoordinatorGone);
    let closed = MemberEvent::Closed { connection, reason };
    assert!(member_events(&mut member).contains(&closed));
    member.close(bench.now, connection, reason);
    let all: &mut [&mut dyn Machine] = &mut [&mut one, &mut two, &mut member];
    bench.run(5 * SECOND, all, &mut apart);
    let reason = Some(ResetReason::PeerClosed);
    let events = coordinator_events(&mut one);
    let closed = CoordinatorEvent::Closed { connection, reason };
    assert!(events.contains(&closed), "{events:?}");
    one.close(bench.now, connection, reason);
    assert_eq!(one.free_units(DeviceMask(1)), free + 10);
}

/// A server that starts again on its own host knows that its predecessor is gone, and not who took the pool since by
/// devices that it doesn't see.
#[test]
fn a_restart_on_the_same_host_that_misses_a_device_takes_the_members_for_witnesses_as_well() {
    let (mut bench, one, mut member) = owner();
    drop(one);
    let mut again = bench.coordinator(3, Claim::SameHost);
    // Another host takes the pool by the second device.
    let mut two = bench.coordinator(2, Claim::Wait);
    let mut rest =
        |who: usize, request: &IoRequest, devices: &[SimDevice]| apart(who + 1, request, devices);
    let dead = Timeouts::default().dead + 20 * SECOND;
    bench.run(dead, &mut [&mut two, &mut member], &mut rest);
    assert_eq!(member.epoch(), Some(Epoch(2)));
    let all: &mut [&mut dyn Machine] = &mut [&mut again, &mut two, &mut member];
    bench.run(Timeouts::default().dead, all, &mut apart);
    let events = coordinator_events(&mut again);
    let host = Name::lossy("another host");
    let owned = EndReason::Owned {
        epoch: Epoch(2),
        host,
    };
    let serves = events.contains(&CoordinatorEvent::Serving);
    assert!(!serves, "{events:?}");
    assert_eq!(events.last(), Some(&CoordinatorEvent::Ended(owned)));
    assert_eq!(member.epoch(), Some(Epoch(2)));
}

#[test]
fn a_restart_on_the_same_host_that_misses_a_device_serves_soon_if_members_know_its_predecessor() {
    let (mut bench, one, mut member) = owner();
    drop(one);
    let mut again = bench.coordinator(3, Claim::SameHost);
    let mut parted = |who: usize, request: &IoRequest, devices: &[SimDevice]| {
        apart([0, 2][who], request, devices)
    };
    let heartbeats = Timeouts::default().heartbeat * 6;
    bench.run(heartbeats, &mut [&mut again, &mut member], &mut parted);
    let events = coordinator_events(&mut again);
    assert!(events.contains(&CoordinatorEvent::Serving), "{events:?}");
    assert_eq!(member.epoch(), Some(Epoch(3)));
}

#[test]
fn of_two_coordinators_that_meet_again_the_later_succession_survives() {
    let mut bench = Bench::new(2);
    // On the second device somebody served before.
    let mut second =
        |_: usize, request: &IoRequest, devices: &[SimDevice]| apart(1, request, devices);
    let mut before = bench.coordinator(9, Claim::Wait);
    bench.run(10 * SECOND, &mut [&mut before], &mut second);
    before.stop(bench.now);
    bench.run(SECOND, &mut [&mut before], &mut second);
    let mut one = bench.coordinator(1, Claim::Wait);
    let mut two = bench.coordinator(2, Claim::Wait);
    bench.run(20 * SECOND, &mut [&mut one, &mut two], &mut apart);
    let (first, later) = (coordinator_events(&mut one), coordinator_events(&mut two));
    assert!(first.contains(&CoordinatorEvent::Serving), "{first:?}");
    assert!(later.contains(&CoordinatorEvent::Serving), "{later:?}");
    bench.run(200 * SECOND, &mut [&mut one, &mut two], &mut always);
    let ended = |events: Vec<CoordinatorEvent>| {
        let mut events = events.into_iter();
        events.any(|event| matches!(event, CoordinatorEvent::Ended(_)))
    };
    assert!(ended(coordinator_events(&mut one)));
    assert!(!ended(coordinator_events(&mut two)));
}
