//! Rules of a device that doesn't answer: a stream leaves it, nothing waits its turn there, and it is found again.

use crate::bench::{
    Bench, Claim, Fate, always, coordinator_events, device, ends, member_events, millis, options,
    writes_frame,
};
use std::time::Duration;
use storage_socket_proto::{
    ConnectionEvent, CoordinatorEvent, DeviceIndex, DeviceMask, Doorbell, EndReason, Geometry,
    IoFailure, IoOp, IoOutcome, IoRequest, MemberEvent, ResetReason, SlotIndex, Timeouts,
};

const SECOND: Duration = Duration::from_secs(1);

fn is_reset(events: &[ConnectionEvent]) -> Option<(ResetReason, Option<IoFailure>)> {
    events.iter().find_map(|event| match event {
        ConnectionEvent::Reset {
            reason, failure, ..
        } => Some((*reason, *failure)),
        _ => None,
    })
}

#[test]
fn a_stream_leaves_a_device_that_has_answered_nothing_for_the_time_in_which_a_route_is_left() {
    let (mut bench, mut a, mut b) = ends(2, 9, Doorbell::Absent);
    bench.run(SECOND, &mut [&mut a, &mut b], &mut always);
    for number in 0..6_u8 {
        assert!(a.send(bench.now, &[number; 100]));
    }
    let mut held = Vec::new();
    let mut hang = |who: usize, request: &IoRequest, _: &[_]| {
        if who == 0 && device(request) == DeviceIndex(1) {
            held.push(request.id);
            return Fate::Hold;
        }
        Fate::Do
    };
    let patience = Timeouts::default().route_leave;
    bench.run(patience - millis(100), &mut [&mut a, &mut b], &mut hang);
    assert_eq!(is_reset(&a.events), None);
    bench.run(millis(200), &mut [&mut a, &mut b], &mut hang);
    let why = Some((ResetReason::DeviceLost, Some(IoFailure::TimedOut)));
    assert_eq!(is_reset(&a.events), why);
    let named = a.events.iter().find_map(|event| match event {
        ConnectionEvent::Reset { device, .. } => *device,
        _ => None,
    });
    assert_eq!(named, Some(DeviceIndex(1)));
    bench.run(SECOND, &mut [&mut a, &mut b], &mut hang);
    assert_eq!(
        is_reset(&b.events),
        Some((ResetReason::DeviceLost, None)),
        "told by the control block"
    );
    // Its buffers are away until every I/O has come back.
    let closed = |events: &[ConnectionEvent]| {
        let is = |event: &ConnectionEvent| matches!(event, ConnectionEvent::Closed { .. });
        events.iter().any(is)
    };
    bench.run(15 * SECOND, &mut [&mut a, &mut b], &mut always);
    assert!(!closed(&a.events) && closed(&b.events));
    for id in held {
        let failed = storage_socket_proto::IoOutcome::Failed(IoFailure::TimedOut);
        a.connection.handle_io(bench.now, id, failed);
    }
    bench.settle(&mut [&mut a], &mut always);
    assert!(closed(&a.events));
}

#[test]
fn a_single_write_that_hangs_resets_nothing_while_the_device_answers_others() {
    let (mut bench, mut a, mut b) = ends(1, 9, Doorbell::Absent);
    for number in 0..3_u8 {
        assert!(a.send(bench.now, &[number; 100]));
    }
    let mut hang = |_: usize, request: &IoRequest, _: &[_]| {
        if writes_frame(request, 1) {
            Fate::Hold
        } else {
            Fate::Do
        }
    };
    bench.run(25 * SECOND, &mut [&mut a, &mut b], &mut hang);
    assert_eq!(is_reset(&a.events), None);
}

#[test]
fn a_stream_whose_machine_was_suspended_is_not_reset_for_that() {
    let (mut bench, mut a, mut b) = ends(1, 9, Doorbell::Absent);
    assert!(a.send(bench.now, b"frame"));
    let mut held: Option<IoRequest> = None;
    let mut hang = |who: usize, request: &IoRequest, _: &[_]| {
        if who == 0 {
            held.get_or_insert(request.clone());
            return Fate::Hold;
        }
        Fate::Do
    };
    bench.settle(&mut [&mut a], &mut hang);
    bench.now = bench.now + 50 * SECOND;
    bench.run(SECOND, &mut [&mut a, &mut b], &mut always);
    assert_eq!(is_reset(&a.events), None);
    bench.run(5 * SECOND, &mut [&mut a, &mut b], &mut hang);
    assert!(is_reset(&b.events).is_none());
}

#[test]
fn a_device_is_lost_to_its_writers_at_the_first_time_out_without_any_answer_and_found_again() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        3 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let _ = (
        coordinator_events(&mut coordinator),
        member_events(&mut member),
    );
    let mut asked = 0;
    let mut hang = |_: usize, _: &IoRequest, _: &[_]| {
        asked += 1;
        Fate::Fail(IoFailure::TimedOut)
    };
    bench.run(4 * SECOND, &mut [&mut coordinator, &mut member], &mut hang);
    let (device, failure) = (DeviceIndex(0), IoFailure::TimedOut);
    assert_eq!(
        coordinator_events(&mut coordinator),
        [CoordinatorEvent::DeviceLost { device, failure }],
        "and the only device that is silent ends nobody"
    );
    assert_eq!(
        member_events(&mut member),
        [MemberEvent::DeviceLost { device, failure }]
    );
    assert!(asked <= 2, "nothing more is asked of it: {asked}");
    bench.run(
        10 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert_eq!(
        coordinator_events(&mut coordinator),
        [CoordinatorEvent::DeviceFound { device }]
    );
    assert_eq!(member.proved(), DeviceMask(1));
}

#[test]
fn a_device_that_stays_silent_is_given_up_in_the_end() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    bench.run(3 * SECOND, &mut [&mut coordinator], &mut always);
    let mut hang = |_: usize, _: &IoRequest, _: &[_]| Fate::Fail(IoFailure::TimedOut);
    bench.run(60 * SECOND, &mut [&mut coordinator], &mut hang);
    let events = coordinator_events(&mut coordinator);
    let ended = CoordinatorEvent::Ended(EndReason::NoDevice);
    assert_eq!(events.last(), Some(&ended), "{events:?}");
}

#[test]
fn the_only_device_ends_nobody_if_it_is_silent_for_a_while_at_the_start() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    let mut hang = |_: usize, _: &IoRequest, _: &[_]| Fate::Fail(IoFailure::TimedOut);
    bench.run(SECOND, &mut [&mut coordinator, &mut member], &mut hang);
    bench.run(
        10 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert_eq!(member.proved(), DeviceMask(1));
}

#[test]
fn a_device_that_was_found_is_not_lost_for_one_read_of_old_answers_that_hangs() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    bench.run(3 * SECOND, &mut [&mut coordinator], &mut always);
    let mut hang = |_: usize, _: &IoRequest, _: &[_]| Fate::Fail(IoFailure::TimedOut);
    bench.run(2 * SECOND, &mut [&mut coordinator], &mut hang);
    let _ = coordinator_events(&mut coordinator);
    let old = bench.geometry.answer_page(SlotIndex(0));
    let mut held = None;
    let mut hold = |_: usize, request: &IoRequest, _: &[_]| {
        if request.op == IoOp::Read && request.lba == old {
            held = Some(request.id);
            return Fate::Hold;
        }
        Fate::Do
    };
    let span = 10 * SECOND + Timeouts::default().io_deadline;
    bench.run(span, &mut [&mut coordinator], &mut hold);
    let failed = IoOutcome::Failed(IoFailure::TimedOut);
    coordinator.handle_io(bench.now, held.unwrap(), failed);
    bench.run(3 * SECOND, &mut [&mut coordinator], &mut always);
    let device = DeviceIndex(0);
    assert_eq!(
        coordinator_events(&mut coordinator),
        [CoordinatorEvent::DeviceFound { device }]
    );
}

#[test]
fn a_device_that_answers_nothing_but_probes_is_found_ever_more_rarely() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    bench.run(3 * SECOND, &mut [&mut coordinator], &mut always);
    let _ = coordinator_events(&mut coordinator);
    let mut hang = |_: usize, request: &IoRequest, _: &[_]| {
        if request.op == IoOp::Read && request.lba == Geometry::COORDINATOR {
            Fate::Do
        } else {
            Fate::Fail(IoFailure::TimedOut)
        }
    };
    bench.run(300 * SECOND, &mut [&mut coordinator], &mut hang);
    let found = |events: Vec<CoordinatorEvent>| {
        let is = |event: &&CoordinatorEvent| matches!(event, CoordinatorEvent::DeviceFound { .. });
        events.iter().filter(is).count()
    };
    let times = found(coordinator_events(&mut coordinator));
    assert!((4..=9).contains(&times), "found {times} times");
    // Once it has held out for long, it is looked at as soon as ever.
    bench.run(180 * SECOND, &mut [&mut coordinator], &mut always);
    let _ = coordinator_events(&mut coordinator);
    bench.run(2 * SECOND, &mut [&mut coordinator], &mut hang);
    bench.run(8 * SECOND, &mut [&mut coordinator], &mut always);
    assert_eq!(found(coordinator_events(&mut coordinator)), 1);
}

#[test]
fn a_new_stream_is_not_granted_on_a_device_that_does_not_answer() {
    let mut bench = Bench::new(2);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        3 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert_eq!(member.proved(), DeviceMask(3));
    let mut hang = |who: usize, request: &IoRequest, _: &[_]| {
        let is_silent = who == 0 && device(request) == DeviceIndex(1);
        if is_silent { Fate::Hold } else { Fate::Do }
    };
    let patience = Timeouts::default().route_leave + 2 * SECOND;
    bench.run(patience, &mut [&mut coordinator, &mut member], &mut hang);
    let _ = member_events(&mut member);
    member.connect(bench.now, options(1)).unwrap();
    bench.run(3 * SECOND, &mut [&mut coordinator, &mut member], &mut hang);
    let granted = member_events(&mut member).into_iter().find_map(|event| {
        let MemberEvent::Connected(grant) = event else {
            return None;
        };
        Some(grant.group.devices)
    });
    assert_eq!(granted, Some(DeviceMask(1)));
}
