//! Rules of the one coordinator.

use crate::bench::{
    Bench, Claim, Fate, always, coordinator_events, member_events, millis, writes_block,
};
use std::time::Duration;
use storage_socket_proto::{
    Coordinator, CoordinatorEvent, EndReason, Epoch, Fence, IoFailure, IoOp, IoRequest,
    MemberEvent, Name, Timeouts,
};

fn serves(coordinator: &mut Coordinator) -> bool {
    coordinator_events(coordinator).contains(&CoordinatorEvent::Serving)
}

fn ended(coordinator: &mut Coordinator) -> Option<EndReason> {
    coordinator_events(coordinator)
        .into_iter()
        .find_map(|event| match event {
            CoordinatorEvent::Ended(reason) => Some(reason),
            _ => None,
        })
}

#[test]
fn a_claimant_waits_and_reads_again_before_it_serves() {
    let mut bench = Bench::new(2);
    let claim = Timeouts::default().claim;
    let mut one = bench.coordinator(1, Claim::Wait);
    bench.run(claim - millis(100), &mut [&mut one], &mut always);
    assert!(!serves(&mut one));
    bench.run(millis(300), &mut [&mut one], &mut always);
    assert!(serves(&mut one));
}

#[test]
fn of_two_claimants_at_most_one_serves() {
    for delay in [0, 1, 300, 2500, 4900] {
        let mut bench = Bench::new(1);
        let mut one = bench.coordinator(1, Claim::Wait);
        bench.run(millis(delay), &mut [&mut one], &mut always);
        let mut two = bench.coordinator(2, Claim::Wait);
        bench.run(
            Duration::from_secs(20),
            &mut [&mut one, &mut two],
            &mut always,
        );
        let (one, two) = (coordinator_events(&mut one), coordinator_events(&mut two));
        let serving = |events: &[CoordinatorEvent]| {
            let ended = |event: &CoordinatorEvent| matches!(event, CoordinatorEvent::Ended(_));
            events.contains(&CoordinatorEvent::Serving) && !events.iter().any(ended)
        };
        assert!(
            !(serving(&one) && serving(&two)),
            "{delay} ms: {one:?} {two:?}"
        );
    }
}

#[test]
fn another_epoch_during_the_wait_makes_a_claimant_withdraw() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::Wait);
    bench.run(millis(2500), &mut [&mut one], &mut always);
    let mut two = bench.coordinator(2, Claim::SameHost);
    bench.run(millis(1100), &mut [&mut two], &mut always);
    bench.run(millis(1100), &mut [&mut one], &mut always);
    assert!(matches!(
        ended(&mut one),
        Some(EndReason::ForeignEpoch {
            epoch: Epoch(2),
            ..
        })
    ));
    assert!(serves(&mut two));
}

#[test]
fn a_coordinator_ends_at_the_heartbeat_that_reads_a_foreign_epoch() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut one], &mut always);
    assert!(serves(&mut one));
    let mut two = bench.coordinator(2, Claim::SameHost);
    bench.settle(&mut [&mut two], &mut always);
    let mut written = 0;
    let mut say = |who: usize, request: &IoRequest, _: &[_]| {
        written += u32::from(who == 0 && writes_block(request));
        Fate::Do
    };
    bench.run(millis(1001), &mut [&mut one, &mut two], &mut say);
    assert!(matches!(
        ended(&mut one),
        Some(EndReason::ForeignEpoch {
            epoch: Epoch(2),
            ..
        })
    ));
    bench.run(Duration::from_secs(10), &mut [&mut one], &mut say);
    assert!(written <= 1, "nothing is written once it has ended");
}

#[test]
fn an_heir_that_reads_the_pool_as_it_was_before_its_predecessor_comes_after_it_all_the_same() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::Wait);
    // Time for both copies.
    bench.run(millis(1500), &mut [&mut one], &mut always);
    let mut two = bench.coordinator(2, Claim::SameHost);
    let mut has_written = false;
    let mut say = |_: usize, request: &IoRequest, _: &[_]| {
        has_written |= writes_block(request);
        if request.op == IoOp::Read && !has_written {
            return Fate::Lie(vec![0; request.blocks.bytes()]);
        }
        Fate::Do
    };
    bench.run(Duration::from_secs(20), &mut [&mut two], &mut say);
    assert_eq!(coordinator_events(&mut two), [CoordinatorEvent::Serving]);
}

#[test]
fn an_heir_after_whose_predecessor_another_one_came_is_none() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut one], &mut always);
    let mut heir = bench.coordinator(2, Claim::SameHost);
    let mut other = bench.coordinator(3, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut other], &mut always);
    bench.run(
        Duration::from_secs(5),
        &mut [&mut other, &mut heir],
        &mut always,
    );
    assert_eq!(
        ended(&mut heir),
        Some(EndReason::Owned {
            epoch: Epoch(3),
            host: Name::lossy("server"),
        })
    );
    assert_eq!(ended(&mut other), None);
}

#[test]
fn a_pool_with_a_living_coordinator_is_not_claimed_and_its_owner_goes_on() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut one], &mut always);
    let mut two = bench.coordinator(2, Claim::Wait);
    bench.run(
        Duration::from_secs(5),
        &mut [&mut one, &mut two],
        &mut always,
    );
    assert!(matches!(
        ended(&mut two),
        Some(EndReason::Owned {
            epoch: Epoch(1),
            ..
        })
    ));
    assert_eq!(ended(&mut one), None);
}

#[test]
fn a_silent_coordinators_pool_is_claimed_only_after_the_time_out() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut one], &mut always);
    let dead = Timeouts::default().dead;
    let mut two = bench.coordinator(2, Claim::Wait);
    bench.run(dead - millis(1500), &mut [&mut two], &mut always);
    let before = bench.devices[0].bytes(2, 2);
    bench.run(millis(1), &mut [&mut two], &mut always);
    assert!(
        bench.devices[0].bytes(2, 2) == before,
        "nothing is written while it watches"
    );
    bench.run(
        Timeouts::default().claim + millis(4000),
        &mut [&mut two],
        &mut always,
    );
    assert!(serves(&mut two));
}

#[test]
fn a_coordinator_that_ended_in_order_leaves_a_pool_that_can_be_claimed_without_the_time_out() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut one], &mut always);
    one.stop(bench.now);
    bench.run(Duration::from_secs(1), &mut [&mut one], &mut always);
    assert_eq!(ended(&mut one), Some(EndReason::Requested));
    assert!(one.is_stopped());
    let mut two = bench.coordinator(2, Claim::Wait);
    bench.run(
        Timeouts::default().claim + millis(500),
        &mut [&mut two],
        &mut always,
    );
    assert!(serves(&mut two));
}

#[test]
fn a_restart_on_the_same_host_skips_the_wait() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut one], &mut always);
    let mut two = bench.coordinator(2, Claim::SameHost);
    bench.run(millis(10), &mut [&mut two], &mut always);
    assert!(serves(&mut two));
}

#[test]
fn a_predecessors_ghost_is_overwritten_and_ends_no_one() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut one], &mut always);
    let ghost = bench.devices[0].bytes(2, 1);
    let mut two = bench.coordinator(2, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut two, &mut member],
        &mut always,
    );
    let _ = member_events(&mut member);
    bench.devices[0].put(2, &ghost);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut two, &mut member],
        &mut always,
    );
    assert_eq!(ended(&mut two), None);
    assert!(bench.devices[0].bytes(2, 1) != ghost);
    let events = member_events(&mut member);
    assert!(events.is_empty(), "the member saw newer: {events:?}");
}

#[test]
fn a_cloned_coordinator_ends_and_so_does_its_clone() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(millis(700), &mut [&mut one], &mut always);
    let mut clone = bench.coordinator(1, Claim::SameHost);
    bench.run(millis(10_000), &mut [&mut one, &mut clone], &mut always);
    assert_eq!(ended(&mut one), Some(EndReason::ClonedHost));
}

#[test]
fn a_coordinator_that_cannot_write_its_counter_is_fenced_until_it_was_written_and_read() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut one], &mut always);
    let _ = coordinator_events(&mut one);
    let fence = Timeouts::default().fence;
    let mut hold = |_: usize, request: &IoRequest, _: &[_]| {
        if writes_block(request) {
            Fate::Hold
        } else {
            Fate::Do
        }
    };
    bench.run(fence - millis(1500), &mut [&mut one], &mut hold);
    assert!(coordinator_events(&mut one).is_empty());
    bench.run(millis(2000), &mut [&mut one], &mut hold);
    assert_eq!(coordinator_events(&mut one), [CoordinatorEvent::Fenced]);
    let _ = Fence::Closed;
}

#[test]
fn a_member_of_a_coordinator_that_ended_is_told_of_its_loss() {
    let mut bench = Bench::new(1);
    let mut one = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        Duration::from_secs(2),
        &mut [&mut one, &mut member],
        &mut always,
    );
    let joined = member_events(&mut member);
    assert!(
        matches!(
            joined[..],
            [MemberEvent::Joined {
                epoch: Epoch(1),
                ..
            }]
        ),
        "{joined:?}"
    );
    // It falls silent: suspicion at half the time-out, loss at its end.
    let dead = Timeouts::default().dead;
    bench.run(dead / 2 + millis(1500), &mut [&mut member], &mut always);
    assert_eq!(
        member_events(&mut member),
        [MemberEvent::CoordinatorSuspect { epoch: Epoch(1) }]
    );
    // It is heard of over the network: the count begins anew.
    member.handle_vouched(bench.now);
    bench.run(dead - millis(1500), &mut [&mut member], &mut always);
    let _ = member_events(&mut member);
    assert_eq!(member.epoch(), Some(Epoch(1)));
    bench.run(millis(3000), &mut [&mut member], &mut always);
    assert_eq!(
        member_events(&mut member),
        [MemberEvent::CoordinatorLost { epoch: Epoch(1) }]
    );
}

#[test]
fn a_device_that_hangs_from_the_start_holds_up_neither_claim_nor_member() {
    let mut bench = Bench::new(2);
    let mut one = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    let mut hang = |_: usize, request: &IoRequest, _: &[_]| {
        if request.device.0 == 0 {
            Fate::Fail(IoFailure::TimedOut)
        } else {
            Fate::Do
        }
    };
    // The driver's deadline passes once: here the answer is immediate. Then members are looked at for three heartbeats.
    bench.run(millis(4500), &mut [&mut one, &mut member], &mut hang);
    assert!(serves(&mut one));
    assert_eq!(member.proved().0, 0b10);
}

#[test]
fn devices_that_were_lost_are_found_again() {
    let mut bench = Bench::new(2);
    let mut one = bench.coordinator(1, Claim::SameHost);
    bench.run(Duration::from_secs(2), &mut [&mut one], &mut always);
    let mut fail = |_: usize, request: &IoRequest, _: &[_]| {
        if request.device.0 == 1 {
            Fate::Fail(IoFailure::DeviceGone)
        } else {
            Fate::Do
        }
    };
    bench.run(Duration::from_secs(30), &mut [&mut one], &mut fail);
    let lost = |event: &CoordinatorEvent| matches!(event, CoordinatorEvent::DeviceLost { .. });
    assert_eq!(
        coordinator_events(&mut one)
            .iter()
            .filter(|event| lost(event))
            .count(),
        1
    );
    bench.run(Timeouts::default().dead * 2, &mut [&mut one], &mut always);
    let found = |event: &CoordinatorEvent| matches!(event, CoordinatorEvent::DeviceFound { .. });
    assert!(coordinator_events(&mut one).iter().any(found));
}
