//! Rules of requests, grants and the return of segments.

use crate::bench::{
    Bench, Claim, Fate, PORT, SLOT, always, coordinator_events, member_events, millis, options,
    writes_block,
};
use std::{collections::BTreeMap, time::Duration};
use storage_socket_proto::{
    Cipher, ConnectOptions, ConnectionId, Coordinator, CoordinatorEvent, DeviceMask, Direction,
    Epoch, Grant, IoRequest, ListenOptions, ListenProtection, Member, MemberEvent, Port,
    RefusalReason, ResetReason, Timeouts, UnitCount,
};

fn start() -> (Bench, Coordinator, Member) {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    bench.run(
        Duration::from_secs(2),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let _ = (
        coordinator_events(&mut coordinator),
        member_events(&mut member),
    );
    (bench, coordinator, member)
}

fn granted(events: &[MemberEvent]) -> Vec<Grant> {
    let grants = events.iter().filter_map(|event| match event {
        MemberEvent::Connected(grant) => Some(*grant),
        _ => None,
    });
    grants.collect()
}

fn connect(
    bench: &mut Bench,
    coordinator: &mut Coordinator,
    member: &mut Member,
    number: u8,
) -> Grant {
    member.connect(bench.now, options(number)).unwrap();
    bench.run(
        millis(300),
        &mut [&mut *coordinator, &mut *member],
        &mut always,
    );
    let grants = granted(&member_events(member));
    assert_eq!(grants.len(), 1);
    coordinator.accepted(bench.now, grants[0].connection);
    grants[0]
}

#[test]
fn both_sides_learn_the_same_grant_and_its_segments_lie_in_the_data_area() {
    let (mut bench, mut coordinator, mut member) = start();
    let grant = connect(&mut bench, &mut coordinator, &mut member, 1);
    let incoming = coordinator_events(&mut coordinator);
    assert_eq!(incoming, [CoordinatorEvent::Incoming(grant)]);
    assert_eq!(
        (grant.slot, grant.epoch, grant.port),
        (SLOT, Epoch(1), PORT)
    );
    let group = grant.group;
    for direction in [Direction::ToCoordinator, Direction::ToMember] {
        let segment = group.segment(direction);
        assert!(segment.first >= bench.geometry.data_start());
        assert!(segment.end() <= u64::from(bench.geometry.data_end(group.devices).0));
        assert_eq!(group.ring(direction).unwrap().frames(), 4);
    }
    assert!(!group.to_coordinator.overlaps(group.to_member));
}

#[test]
fn each_refusal_has_its_reason() {
    let (mut bench, mut coordinator, mut member) = start();
    let sealed = ListenOptions {
        backlog: 1,
        protection: ListenProtection::Sealed,
    };
    coordinator.bind(bench.now, Port(9), sealed).unwrap();
    assert!(coordinator.bind(bench.now, Port(9), sealed).is_err());
    let dynamic = coordinator.bind_dynamic(bench.now, sealed).unwrap();
    assert!(dynamic >= Port::DYNAMIC_FIRST);
    let base = options(1);
    let cases = [
        (
            ConnectOptions {
                port: Port(8),
                ..base
            },
            RefusalReason::NoListener,
        ),
        (
            ConnectOptions {
                port: Port(9),
                ..base
            },
            RefusalReason::Cipher,
        ),
        (
            ConnectOptions {
                cipher: Cipher::Aes256Gcm,
                ..base
            },
            RefusalReason::Cipher,
        ),
        (
            ConnectOptions {
                devices: DeviceMask(4),
                ..base
            },
            RefusalReason::NoCommonDevice,
        ),
    ];
    for (number, (options, want)) in (1_u8..).zip(cases) {
        let connection = ConnectionId([number; 16]);
        member
            .connect(
                bench.now,
                ConnectOptions {
                    connection,
                    ..options
                },
            )
            .unwrap();
        bench.run(
            Duration::from_secs(3),
            &mut [&mut coordinator, &mut member],
            &mut always,
        );
        let reason = want;
        assert_eq!(
            member_events(&mut member),
            [MemberEvent::Refused { connection, reason }]
        );
    }
    // Two wait in the backlog that holds two; the third is one too many.
    for number in 21..24 {
        member.connect(bench.now, options(number)).unwrap();
    }
    bench.run(
        Duration::from_secs(1),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let events = member_events(&mut member);
    let connection = ConnectionId([23; 16]);
    let reason = RefusalReason::Busy;
    assert!(
        events.contains(&MemberEvent::Refused { connection, reason }),
        "{events:?}"
    );
    coordinator.set_slots(bench.now, BTreeMap::new());
    member.connect(bench.now, options(31)).unwrap();
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let connection = ConnectionId([31; 16]);
    let reason = RefusalReason::NotEnrolled;
    let refused = MemberEvent::Refused { connection, reason };
    let events = member_events(&mut member);
    assert!(events.contains(&refused), "{events:?}");
}

#[test]
fn a_request_that_nobody_answers_ends_after_its_patience_and_leaves_its_entry_free() {
    let mut bench = Bench::new(1);
    let mut member = bench.member(5);
    for round in 0..3_u8 {
        for number in 0..32 {
            let options = options(1 + round * 32 + number);
            member.connect(bench.now, options).unwrap();
        }
        assert!(
            member.connect(bench.now, options(200)).is_err(),
            "32 at most"
        );
        bench.run(Duration::from_secs(11), &mut [&mut member], &mut always);
        let timed_out = member_events(&mut member);
        let all = timed_out
            .iter()
            .all(|event| matches!(event, MemberEvent::ConnectTimedOut { .. }));
        assert!(all && timed_out.len() == 32);
    }
}

#[test]
fn segments_return_only_when_both_sides_have_let_go() {
    let (mut bench, mut coordinator, mut member) = start();
    let all = DeviceMask(1);
    let free = coordinator.free_units(all);
    for member_first in [true, false] {
        let number = 1 + u8::from(member_first);
        let grant = connect(&mut bench, &mut coordinator, &mut member, number);
        assert_eq!(coordinator.free_units(all), free - 10);
        let id = grant.connection;
        if member_first {
            member.close(bench.now, id, None);
        } else {
            coordinator.close(bench.now, id, None);
        }
        bench.run(
            Duration::from_secs(3),
            &mut [&mut coordinator, &mut member],
            &mut always,
        );
        assert_eq!(
            coordinator.free_units(all),
            free - 10,
            "one side still uses it"
        );
        let reason = None;
        if member_first {
            let events = coordinator_events(&mut coordinator);
            assert!(events.contains(&CoordinatorEvent::Closed {
                connection: id,
                reason
            }));
            coordinator.close(bench.now, id, None);
        } else {
            let events = member_events(&mut member);
            assert!(events.contains(&MemberEvent::Closed {
                connection: id,
                reason
            }));
            member.close(bench.now, id, None);
        }
        bench.run(
            Duration::from_secs(3),
            &mut [&mut coordinator, &mut member],
            &mut always,
        );
        assert_eq!(coordinator.free_units(all), free);
    }
}

#[test]
fn a_dead_members_segments_return_and_are_not_confirmed_when_it_wakes_up() {
    let (mut bench, mut coordinator, mut member) = start();
    let free = coordinator.free_units(DeviceMask(1));
    let id = connect(&mut bench, &mut coordinator, &mut member, 1).connection;
    let _ = coordinator_events(&mut coordinator);
    let dead = Timeouts::default().dead + millis(3000);
    bench.run(dead, &mut [&mut coordinator], &mut always);
    let reason = Some(ResetReason::PeerDead);
    let events = coordinator_events(&mut coordinator);
    assert!(events.contains(&CoordinatorEvent::Closed {
        connection: id,
        reason
    }));
    coordinator.close(bench.now, id, reason);
    assert_eq!(coordinator.free_units(DeviceMask(1)), free - 10);
    let told = Duration::from_secs(15);
    bench.run(told, &mut [&mut coordinator], &mut always);
    assert_eq!(coordinator.free_units(DeviceMask(1)), free);
    // It wakes up, and learns that its grant is gone.
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let events = member_events(&mut member);
    assert!(
        events.contains(&MemberEvent::Closed {
            connection: id,
            reason
        }),
        "{events:?}"
    );
    member.close(bench.now, id, reason);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    connect(&mut bench, &mut coordinator, &mut member, 2);
}

#[test]
fn grants_of_an_earlier_epoch_rest_until_their_member_confirms_the_new_one() {
    let (mut bench, mut coordinator, mut member) = start();
    let free = coordinator.free_units(DeviceMask(1));
    let id = connect(&mut bench, &mut coordinator, &mut member, 1).connection;
    let mut second = bench.coordinator(2, Claim::SameHost);
    bench.run(millis(100), &mut [&mut second], &mut always);
    assert_eq!(second.free_units(DeviceMask(1)), free - 10);
    // The member sees the new epoch and says that its connection has ended; it isn't drained yet.
    bench.run(
        Duration::from_secs(20),
        &mut [&mut second, &mut member],
        &mut always,
    );
    let reason = Some(ResetReason::CoordinatorGone);
    let events = member_events(&mut member);
    assert!(events.contains(&MemberEvent::Closed {
        connection: id,
        reason
    }));
    assert_eq!(second.free_units(DeviceMask(1)), free - 10);
    // A third coordinator comes before that: it knows of the first one's grant all the same.
    let mut third = bench.coordinator(3, Claim::SameHost);
    bench.run(
        Duration::from_secs(5),
        &mut [&mut third, &mut member],
        &mut always,
    );
    assert_eq!(third.free_units(DeviceMask(1)), free - 10);
    member.close(bench.now, id, reason);
    bench.run(
        Duration::from_secs(3),
        &mut [&mut third, &mut member],
        &mut always,
    );
    assert_eq!(third.free_units(DeviceMask(1)), free);
    let _ = member_events(&mut member);
    connect(&mut bench, &mut third, &mut member, 2);
}

#[test]
fn grants_of_an_earlier_epoch_rest_until_their_member_is_dead() {
    let (mut bench, mut coordinator, mut member) = start();
    let free = coordinator.free_units(DeviceMask(1));
    connect(&mut bench, &mut coordinator, &mut member, 1);
    let mut second = bench.coordinator(2, Claim::SameHost);
    let dead = Timeouts::default().dead;
    bench.run(dead - millis(2000), &mut [&mut second], &mut always);
    assert_eq!(second.free_units(DeviceMask(1)), free - 10);
    bench.run(millis(4000), &mut [&mut second], &mut always);
    assert_eq!(second.free_units(DeviceMask(1)), free);
}

#[test]
fn nothing_is_granted_while_an_illegible_record_may_hold_anything() {
    let (mut bench, mut coordinator, mut member) = start();
    connect(&mut bench, &mut coordinator, &mut member, 1);
    let lba = bench.geometry.answer_page(SLOT).0;
    bench.devices[0].decay(lba, 1000);
    bench.devices[0].decay(lba + 1, 1000);
    let mut second = bench.coordinator(2, Claim::SameHost);
    bench.run(Duration::from_secs(3), &mut [&mut second], &mut always);
    assert_eq!(second.free_units(DeviceMask(1)), 0);
    bench.run(Timeouts::default().dead, &mut [&mut second], &mut always);
    assert!(second.free_units(DeviceMask(1)) > 0);
}

#[test]
fn windows_shrink_when_the_pool_is_nearly_full_and_then_requests_are_refused() {
    let (mut bench, mut coordinator, mut member) = start();
    let mut windows = Vec::new();
    for number in 1..32 {
        let wish = ConnectOptions {
            window_to_coordinator: UnitCount(64),
            window_to_member: UnitCount(64),
            ..options(number)
        };
        member.connect(bench.now, wish).unwrap();
        bench.run(
            millis(300),
            &mut [&mut coordinator, &mut member],
            &mut always,
        );
        let events = member_events(&mut member);
        let Some(grant) = granted(&events).first().copied() else {
            let connection = ConnectionId([number; 16]);
            let reason = RefusalReason::NoSegments;
            assert_eq!(events, [MemberEvent::Refused { connection, reason }]);
            assert_eq!(coordinator.free_units(DeviceMask(1)) / 4, 0);
            assert_eq!(windows, [64, 32, 16]);
            return;
        };
        coordinator.accepted(bench.now, grant.connection);
        windows.push(grant.group.to_member.units.0);
    }
    panic!("the pool never filled: {windows:?}");
}

#[test]
fn a_new_process_in_a_slot_ends_what_the_old_one_was_granted() {
    let (mut bench, mut coordinator, mut member) = start();
    let free = coordinator.free_units(DeviceMask(1));
    let id = connect(&mut bench, &mut coordinator, &mut member, 1).connection;
    let _ = coordinator_events(&mut coordinator);
    let mut two = bench.member(6);
    bench.run(
        Duration::from_secs(2),
        &mut [&mut coordinator, &mut two],
        &mut always,
    );
    let reason = Some(ResetReason::PeerDead);
    let events = coordinator_events(&mut coordinator);
    assert!(events.contains(&CoordinatorEvent::Closed {
        connection: id,
        reason
    }));
    coordinator.close(bench.now, id, reason);
    assert_eq!(coordinator.free_units(DeviceMask(1)), free);
    connect(&mut bench, &mut coordinator, &mut two, 2);
}

#[test]
fn answers_that_never_landed_are_written_again() {
    let (mut bench, mut coordinator, mut member) = start();
    member.connect(bench.now, options(1)).unwrap();
    let answers = bench.geometry.answer_page(SLOT);
    let mut lost = 0;
    let mut say = |_: usize, request: &IoRequest, _: &[_]| {
        let hit =
            writes_block(request) && (request.lba == answers || request.lba.0 == answers.0 + 1);
        if hit && lost < 3 {
            lost += 1;
            return Fate::Lose;
        }
        Fate::Do
    };
    bench.run(
        Duration::from_secs(6),
        &mut [&mut coordinator, &mut member],
        &mut say,
    );
    assert_eq!(granted(&member_events(&mut member)).len(), 1);
    assert_eq!(lost, 3);
}

#[test]
fn a_grant_waits_until_every_device_is_proved_and_then_uses_all() {
    let mut bench = Bench::new(3);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    member.connect(bench.now, options(1)).unwrap();
    bench.run(
        Duration::from_secs(3),
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    let grants = granted(&member_events(&mut member));
    assert_eq!(grants[0].group.devices, DeviceMask(7));
}
