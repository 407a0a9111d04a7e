//! What the simulator found: each is the smallest case of a seed that failed.

use crate::bench::{Bench, Claim, Fate, Machine, PORT, SLOT, always, millis, options};
use std::time::Duration;
use storage_socket_proto::{
    Challenge, Cipher, ConnectOptions, ConnectionId, CoordinatorEvent, Counter, DeviceIndex,
    DeviceMask, Epoch, Incarnation, IoOp, IoRequest, MemberEvent, ResetReason, Stamp, StopReason,
    TagKey, Timeouts, UnitCount,
    block::{AnswerPage, Place},
};

const SECOND: Duration = Duration::from_secs(1);

/// Seed 209: a server that was told to stop while it waited for its claim, on a device that hung, was due for ever.
#[test]
fn a_claim_that_was_stopped_is_not_due_for_its_wait_any_more() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::Wait);
    bench.run(SECOND, &mut [&mut coordinator], &mut always);
    let mut hang = |_: usize, request: &IoRequest, _: &[_]| match request.op {
        IoOp::Write(_) => Fate::Hold,
        _ => Fate::Do,
    };
    // A heartbeat's write is under way when it is stopped.
    bench.run(SECOND, &mut [&mut coordinator], &mut hang);
    coordinator.stop(bench.now);
    let claim = Timeouts::default().claim;
    bench.now = bench.now + claim;
    coordinator.handle_timeout(bench.now);
    bench.settle(&mut [&mut coordinator], &mut hang);
    let due = Machine::poll_timeout(&coordinator);
    assert!(due.is_some_and(|due| due > bench.now), "due at {due:?}");
}

/// Seed 3254: a clone's pages were overwritten before the member read its own place, and its coordinator believed
/// nothing that the member wrote ever after.
#[test]
fn a_member_whose_coordinator_has_seen_a_later_counter_in_its_slot_stops() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(10);
    let mut machines: [&mut dyn Machine; 2] = [&mut coordinator, &mut member];
    bench.run(3 * SECOND, &mut machines, &mut always);
    let page = AnswerPage {
        incarnation: Incarnation(77),
        challenge: Challenge::default(),
        devices: DeviceMask(1),
        seen: Counter(1 << 40),
        entries: [None; 32],
    };
    let place = Place {
        pool: bench.geometry.pool(),
        device: DeviceIndex(0),
        slot: SLOT,
    };
    let stamp = Stamp {
        counter: Counter(1 << 41),
        writer: Epoch(1).0,
    };
    let block = page.encode(&place, stamp, &TagKey::public());
    let lba = bench.geometry.answer_page(SLOT);
    bench.devices[0].put(lba.0, &block.0);
    bench.run(2 * SECOND + millis(1), &mut [&mut member], &mut always);
    let said: Vec<MemberEvent> = std::iter::from_fn(|| member.poll_event()).collect();
    let stopped = MemberEvent::Stopped(StopReason::ClonedHost {
        slot: SLOT,
        found: Incarnation(77),
    });
    assert!(said.contains(&stopped), "{said:?}");
}

/// Seed 1017318: a request that stood while its coordinator was replaced was granted by both, each as its first; the
/// frames that the first had written before were taken for the second's.
#[test]
fn two_epochs_grant_one_request_under_different_generations() {
    let mut bench = Bench::new(1);
    let mut generations = Vec::new();
    for epoch in [1, 2] {
        let mut coordinator = bench.coordinator(epoch, Claim::SameHost);
        let mut member = bench.member(10 + epoch);
        let options = ConnectOptions {
            connection: ConnectionId([9; 16]),
            port: PORT,
            cipher: Cipher::Checksum,
            frame_units: UnitCount(1),
            window_to_coordinator: UnitCount(3),
            window_to_member: UnitCount(3),
            devices: DeviceMask(1),
            patience: 60 * SECOND,
        };
        member.connect(bench.now, options).unwrap();
        let mut machines: [&mut dyn Machine; 2] = [&mut coordinator, &mut member];
        bench.run(8 * SECOND, &mut machines, &mut always);
        let said = std::iter::from_fn(|| coordinator.poll_event());
        generations.extend(said.filter_map(|event| match event {
            CoordinatorEvent::Incoming(grant) => Some(grant.group.generation),
            _ => None,
        }));
    }
    assert_eq!(generations.len(), 2, "{generations:?}");
    assert_ne!(generations[0], generations[1]);
}

/// Seed 1002126: the first pages of a predecessor, which landed after its successor had read the slot, were taken for a
/// clone's.
#[test]
fn a_predecessors_first_pages_that_land_late_are_outdone() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    bench.run(2 * SECOND, &mut [&mut coordinator], &mut always);
    // The pages of a process that wrote into the blank slot, kept from a bench of their own.
    let lba = bench.geometry.member_page(SLOT).0;
    let mut elsewhere = Bench::new(1);
    let mut predecessor = elsewhere.member(10);
    elsewhere.run(2 * SECOND, &mut [&mut predecessor], &mut always);
    let ghost = elsewhere.devices[0].bytes(lba, 2);
    let mut member = bench.member(11);
    bench.settle(&mut [&mut member], &mut always);
    // The coordinator reads them before it reads anything of the successor.
    bench.devices[0].put(lba, &ghost);
    bench.run(millis(200), &mut [&mut coordinator], &mut always);
    let mut machines: [&mut dyn Machine; 2] = [&mut coordinator, &mut member];
    bench.run(10 * SECOND, &mut machines, &mut always);
    let said: Vec<MemberEvent> = std::iter::from_fn(|| member.poll_event()).collect();
    let is_stop = |event: &MemberEvent| matches!(event, MemberEvent::Stopped(_));
    assert!(!said.iter().any(is_stop), "{said:?}");
    let views = coordinator.members(bench.now);
    let seen = views.iter().find(|view| view.slot == SLOT).unwrap();
    assert_eq!((seen.incarnation, seen.alive), (Incarnation(11), true));
}

/// Seed 292: the answers that tell a member that its coordinator knows of a later counter in its slot were lost once, and
/// never written again, for a slot isn't alive whose member isn't heard.
#[test]
fn a_member_that_is_not_heard_is_told_so_until_it_knows() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(10);
    let lba = bench.geometry.member_page(SLOT).0;
    let mut machines: [&mut dyn Machine; 2] = [&mut coordinator, &mut member];
    bench.run(3 * SECOND, &mut machines, &mut always);
    // Another process with a far later counter wrote into the slot; the coordinator alone reads that.
    let mut elsewhere = Bench::new(1);
    for incarnation in [20, 21, 22] {
        let mut other = elsewhere.member(incarnation);
        elsewhere.run(2 * SECOND, &mut [&mut other], &mut always);
    }
    let own = bench.devices[0].bytes(lba, 2);
    bench.devices[0].put(lba, &elsewhere.devices[0].bytes(lba, 2));
    // What it answers is lost, and the slot is as it was.
    let answers = bench.geometry.answer_page(SLOT);
    let mut lose = |_: usize, request: &IoRequest, _: &[_]| {
        let is_answer = request.lba.0 & !1 == answers.0 & !1;
        if is_answer && matches!(request.op, IoOp::Write(_)) {
            Fate::Lose
        } else {
            Fate::Do
        }
    };
    bench.run(millis(300), &mut [&mut coordinator], &mut lose);
    bench.devices[0].put(lba, &own);
    bench.run(millis(300), &mut [&mut coordinator], &mut lose);
    let mut machines: [&mut dyn Machine; 2] = [&mut coordinator, &mut member];
    bench.run(5 * SECOND, &mut machines, &mut always);
    let said: Vec<MemberEvent> = std::iter::from_fn(|| member.poll_event()).collect();
    let is_stop =
        |event: &MemberEvent| matches!(event, MemberEvent::Stopped(StopReason::ClonedHost { .. }));
    assert!(said.iter().any(is_stop), "{said:?}");
}

/// Seed 1007605: a coordinator that had read another incarnation's page in a slot let go of what the first had open, and
/// said nothing of it when the first was back: its stream hung in silence.
#[test]
fn a_stream_that_its_coordinator_let_go_of_for_another_incarnation_is_closed() {
    let mut bench = Bench::new(1);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(10);
    let lba = bench.geometry.member_page(SLOT).0;
    let mut machines: [&mut dyn Machine; 2] = [&mut coordinator, &mut member];
    bench.run(3 * SECOND, &mut machines, &mut always);
    member.connect(bench.now, options(9)).unwrap();
    let mut machines: [&mut dyn Machine; 2] = [&mut coordinator, &mut member];
    bench.run(SECOND, &mut machines, &mut always);
    // Another process wrote into the slot, which was as blank when it began; the coordinator alone reads that.
    let mut elsewhere = Bench::new(1);
    let mut other = elsewhere.member(20);
    elsewhere.run(40 * SECOND, &mut [&mut other], &mut always);
    let own = bench.devices[0].bytes(lba, 2);
    bench.devices[0].put(lba, &elsewhere.devices[0].bytes(lba, 2));
    bench.run(millis(300), &mut [&mut coordinator], &mut always);
    bench.devices[0].put(lba, &own);
    let mut machines: [&mut dyn Machine; 2] = [&mut coordinator, &mut member];
    bench.run(5 * SECOND, &mut machines, &mut always);
    let said: Vec<MemberEvent> = std::iter::from_fn(|| member.poll_event()).collect();
    let connection = options(9).connection;
    let reason = Some(ResetReason::PeerClosed);
    let closed = MemberEvent::Closed { connection, reason };
    assert!(said.contains(&closed), "{said:?}");
}
