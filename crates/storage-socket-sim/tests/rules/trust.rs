//! Rules of trust: nobody acts on another's connection, and a proof is as old as what it proves.

use crate::bench::{
    Bench, Claim, Fate, Machine, PORT, SLOT, always, coordinator_events, member_events, millis,
    options, writes_block,
};
use std::{collections::BTreeMap, time::Duration};
use storage_socket_proto::{
    Challenge, Cipher, ConnectOptions, ConnectionId, Coordinator, CoordinatorEvent, Counter,
    DeviceIndex, DeviceMask, Epoch, Geometry, Grant, Incarnation, IoFailure, IoId, IoOp, IoOutcome,
    IoRequest, Lba, Member, MemberConfig, MemberEvent, Name, Place, RefusalReason, ResetReason,
    SlotIndex, Stamp, TagKey, Timeouts, Unchecked, UnitCount,
    block::{Answer, AnswerPage, MemberEntry, MemberPage, MemberState, Request},
};
use storage_socket_sim::device::SimDevice;

const OTHER: SlotIndex = SlotIndex(2);
const SECOND: Duration = Duration::from_secs(1);

fn member_of(bench: &Bench, slot: SlotIndex, incarnation: u64) -> Member {
    let config = bench.member_config(incarnation);
    Member::new(bench.now, MemberConfig { slot, ..config })
}

fn start() -> (Bench, Coordinator, Member) {
    start_on(Bench::new(1))
}

fn start_on(mut bench: Bench) -> (Bench, Coordinator, Member) {
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(2 * SECOND, both, &mut always);
    let _ = coordinator_events(&mut coordinator);
    let _ = member_events(&mut member);
    (bench, coordinator, member)
}

fn granted(events: &[MemberEvent]) -> Option<Grant> {
    events.iter().find_map(|event| match event {
        MemberEvent::Connected(grant) => Some(*grant),
        _ => None,
    })
}

fn connect(bench: &mut Bench, coordinator: &mut Coordinator, member: &mut Member) -> Grant {
    member.connect(bench.now, options(1)).unwrap();
    let both: &mut [&mut dyn Machine] = &mut [&mut *coordinator, &mut *member];
    bench.run(millis(300), both, &mut always);
    let grant = granted(&member_events(member)).unwrap();
    coordinator.accepted(bench.now, grant.connection);
    let _ = coordinator_events(coordinator);
    grant
}

fn place(bench: &Bench, slot: SlotIndex) -> Place {
    Place {
        pool: bench.geometry.pool(),
        device: DeviceIndex(0),
        slot,
    }
}

fn closed(events: &[CoordinatorEvent]) -> bool {
    let closed = |event: &CoordinatorEvent| matches!(event, CoordinatorEvent::Closed { .. });
    events.iter().any(closed)
}

#[test]
fn a_member_that_names_anothers_connection_closes_nothing_of_it() {
    let (mut bench, mut coordinator, mut member) = start();
    let slots = [(SLOT, TagKey::public()), (OTHER, TagKey::public())];
    coordinator.set_slots(bench.now, slots.into());
    let free = coordinator.free_units(DeviceMask(1));
    let grant = connect(&mut bench, &mut coordinator, &mut member);
    // Another member asks under the same id, is refused, and forgets it.
    let mut thief = member_of(&bench, OTHER, 6);
    thief.connect(bench.now, options(1)).unwrap();
    bench.run(
        3 * SECOND,
        &mut [&mut coordinator, &mut member, &mut thief],
        &mut always,
    );
    let connection = grant.connection;
    let reason = RefusalReason::Malformed;
    let refused = MemberEvent::Refused { connection, reason };
    assert!(member_events(&mut thief).contains(&refused));
    assert!(!closed(&coordinator_events(&mut coordinator)));
    // And its page says that it has closed it, as it says that of one of its own.
    let request = Request {
        connection,
        port: PORT,
        cipher: Cipher::Checksum,
        frame_units: UnitCount(1),
        window_to_coordinator: UnitCount(5),
        window_to_member: UnitCount(5),
        devices: DeviceMask(1),
    };
    let reason = None;
    let said = [
        MemberEntry::Request(request),
        MemberEntry::Closed { connection, reason },
    ];
    for (entry, counter) in said.into_iter().zip(1 << 50..) {
        let mut entries = [MemberEntry::Empty; 32];
        entries[3] = entry;
        put_page(&mut bench, OTHER, counter, entries);
        bench.run(SECOND, &mut [&mut coordinator, &mut member], &mut always);
    }
    assert!(!closed(&coordinator_events(&mut coordinator)));
    coordinator.close(bench.now, connection, None);
    assert_eq!(
        coordinator.free_units(DeviceMask(1)),
        free - 10,
        "its member still writes there"
    );
}

#[test]
fn of_a_slot_that_nobody_may_use_nothing_is_kept_and_nothing_is_answered_there() {
    let (mut bench, mut coordinator, mut member) = start();
    let mut entries = [MemberEntry::Empty; 32];
    entries[0] = MemberEntry::Request(Request {
        connection: ConnectionId([7; 16]),
        port: PORT,
        cipher: Cipher::Checksum,
        frame_units: UnitCount(1),
        window_to_coordinator: UnitCount(5),
        window_to_member: UnitCount(5),
        devices: DeviceMask(1),
    });
    // The slots beside it are used, so that its page is read along with theirs.
    let beside = [SLOT, SlotIndex(3)].map(|slot| (slot, TagKey::public()));
    coordinator.set_slots(bench.now, beside.into());
    put_page(&mut bench, OTHER, 1 << 50, entries);
    coordinator.handle_doorbell_of(bench.now, OTHER);
    let answers = bench.geometry.answer_page(OTHER);
    let mut written = 0;
    let mut count = |_: usize, request: &IoRequest, _: &[_]| {
        written += u32::from(writes_block(request) && meets(request, answers));
        Fate::Do
    };
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(5 * SECOND, both, &mut count);
    assert_eq!(written, 0);
    let known = coordinator.members(bench.now);
    let known: Vec<SlotIndex> = known.iter().map(|member| member.slot).collect();
    assert_eq!(known, [SLOT]);
    // Once it is allowed, what it asks is answered.
    let slots = [(SLOT, TagKey::public()), (OTHER, TagKey::public())];
    coordinator.set_slots(bench.now, slots.into());
    let both: &mut [&mut dyn Machine] = &mut [&mut coordinator, &mut member];
    bench.run(5 * SECOND, both, &mut always);
    let incoming = |event: &CoordinatorEvent| matches!(event, CoordinatorEvent::Incoming(_));
    assert!(coordinator_events(&mut coordinator).iter().any(incoming));
}

/// Writes a member page by hand.
fn put_page(bench: &mut Bench, slot: SlotIndex, counter: u64, entries: [MemberEntry; 32]) {
    let page = MemberPage {
        state: MemberState::Running,
        devices: DeviceMask(1),
        confirmed: Epoch(1),
        challenge: Challenge::default(),
        host: Name::lossy("thief"),
        entries,
    };
    let stamp = Stamp {
        counter: Counter(counter),
        writer: 7,
    };
    let block = page.encode(&place(bench, slot), stamp, &TagKey::public());
    let lba = bench.geometry.member_page(slot);
    bench.devices[0].put(lba.0, &block.0);
}

#[test]
fn a_grant_that_lands_while_a_successor_waits_rests_under_it() {
    let (mut bench, mut one, mut member) = start();
    let answers = bench.geometry.answer_page(SLOT);
    // The grant's write hangs, its coordinator dies, and long after the write lands.
    let mut ghost = None;
    let mut hang = |who: usize, request: &IoRequest, _: &[_]| match &request.op {
        IoOp::Write(block) if who == 0 && meets(request, answers) => {
            ghost = Some((request.lba, block.clone()));
            Fate::Hold
        }
        _ => Fate::Do,
    };
    member.connect(bench.now, options(1)).unwrap();
    bench.run(SECOND, &mut [&mut one, &mut member], &mut hang);
    let (lba, block) = ghost.unwrap();
    let mut two = bench.coordinator(2, Claim::Wait);
    let timeouts = Timeouts::default();
    bench.run(timeouts.dead + 3 * SECOND, &mut [&mut two], &mut always);
    let said = coordinator_events(&mut two);
    assert!(said.is_empty(), "it waits: {said:?}");
    let free = two.free_units(DeviceMask(1));
    bench.devices[0].put(lba.0, &block.0);
    bench.run(timeouts.claim, &mut [&mut two], &mut always);
    let said = coordinator_events(&mut two);
    assert_eq!(said, [CoordinatorEvent::Serving]);
    assert_eq!(two.free_units(DeviceMask(1)), free - 10);
}

/// Whether a request meets the pair of blocks that begins at `first`.
fn meets(request: &IoRequest, first: Lba) -> bool {
    request.lba == first || request.lba.0 == first.0 + 1
}

#[test]
fn a_claim_is_read_again_on_each_device_however_often_on_one() {
    let mut bench = Bench::new(2);
    let claim = Timeouts::default().claim;
    let mut one = bench.coordinator(1, Claim::Wait);
    bench.run(claim - millis(100), &mut [&mut one], &mut always);
    let mut slow = |_: usize, request: &IoRequest, _: &[_]| {
        let is_hanging = request.device.0 == 1 && request.op == IoOp::Read;
        let is_block = request.lba == Geometry::COORDINATOR;
        if is_hanging && is_block {
            Fate::Hold
        } else {
            Fate::Do
        }
    };
    bench.run(10 * SECOND, &mut [&mut one], &mut slow);
    let said = coordinator_events(&mut one);
    assert!(said.is_empty(), "one device was not read again: {said:?}");
}

#[test]
fn a_fenced_coordinator_grants_nothing_and_writes_no_answer() {
    let (mut bench, mut coordinator, mut member) = start();
    let mut held: Option<IoId> = None;
    let mut hang = |who: usize, request: &IoRequest, _: &[_]| {
        if who == 0 && writes_block(request) && meets(request, Geometry::COORDINATOR) {
            held = Some(request.id);
            return Fate::Hold;
        }
        Fate::Do
    };
    let fence = Timeouts::default().fence + SECOND;
    bench.run(fence, &mut [&mut coordinator, &mut member], &mut hang);
    assert_eq!(
        coordinator_events(&mut coordinator),
        [CoordinatorEvent::Fenced]
    );
    let asks = ConnectOptions {
        patience: 20 * SECOND,
        ..options(1)
    };
    member.connect(bench.now, asks).unwrap();
    let mut written = 0;
    let mut hang = |who: usize, request: &IoRequest, _: &[_]| {
        written += u32::from(who == 0 && writes_block(request));
        Fate::Do
    };
    bench.run(5 * SECOND, &mut [&mut coordinator, &mut member], &mut hang);
    assert_eq!(written, 0);
    assert_eq!(coordinator_events(&mut coordinator), []);
    assert_eq!(granted(&member_events(&mut member)), None);
    // Free again, it answers what was asked meanwhile.
    let failed = IoOutcome::Failed(IoFailure::TimedOut);
    coordinator.handle_io(bench.now, held.unwrap(), failed);
    bench.run(
        3 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert!(granted(&member_events(&mut member)).is_some());
}

#[test]
fn a_counter_out_of_range_stops_nobody_who_follows() {
    for counter in [u64::MAX, u64::MAX - 1, 1 << 63] {
        let mut bench = Bench::new(1);
        put_page(&mut bench, SLOT, counter, [MemberEntry::Empty; 32]);
        let mut coordinator = bench.coordinator(1, Claim::SameHost);
        let mut member = bench.member(5);
        bench.run(
            3 * SECOND,
            &mut [&mut coordinator, &mut member],
            &mut always,
        );
        let members = coordinator.members(bench.now);
        assert_eq!(members[0].incarnation, Incarnation(5), "{counter:x}");
        let joined = member_events(&mut member);
        assert!(matches!(joined[..], [MemberEvent::Joined { .. }]));
    }
}

#[test]
fn entries_of_requests_given_up_before_an_answer_are_free_again() {
    let mut bench = Bench::new(2);
    let mut coordinator = bench.coordinator(1, Claim::SameHost);
    let mut member = bench.member(5);
    // A device that is never proved: requests wait for it longer than they have patience.
    let mut say = |who: usize, request: &IoRequest, _: &[_]| {
        let denied = who == 1 && request.device.0 == 1 && writes_block(request);
        if denied { Fate::Lose } else { Fate::Do }
    };
    bench.run(3 * SECOND, &mut [&mut coordinator, &mut member], &mut say);
    for number in 1..=32 {
        let asks = ConnectOptions {
            patience: millis(300),
            ..options(number)
        };
        member.connect(bench.now, asks).unwrap();
    }
    bench.run(5 * SECOND, &mut [&mut coordinator, &mut member], &mut say);
    member.connect(bench.now, options(33)).unwrap();
}

#[test]
fn a_grant_of_more_than_was_asked_for_is_refused() {
    for (asked, wide) in [(4, false), (8, true)] {
        let (mut bench, mut coordinator, mut member) = start();
        let asks = ConnectOptions {
            frame_units: UnitCount(2),
            window_to_coordinator: UnitCount(asked),
            ..options(1)
        };
        member.connect(bench.now, asks).unwrap();
        let answers = bench.geometry.answer_page(SLOT);
        let at = place(&bench, SLOT);
        // The page that the member reads says more than the coordinator granted.
        let mut say = |who: usize, request: &IoRequest, devices: &[SimDevice]| {
            if who != 1 || request.op != IoOp::Read || request.lba != answers {
                return Fate::Do;
            }
            let mut bytes = devices[0].bytes(answers.0, 2);
            for copy in bytes.chunks_mut(4096) {
                let key = TagKey::public();
                let found = Unchecked::new(copy).ok();
                let Some((stamp, mut page)) =
                    found.and_then(|block| AnswerPage::parse(block, &at, &key).ok())
                else {
                    continue;
                };
                if let Some(Answer::Accepted { group, .. }) = &mut page.entries[0] {
                    if wide {
                        group.to_coordinator.units = UnitCount(200);
                        group.to_member.first.0 += 300;
                    } else {
                        group.frame_units = UnitCount(3);
                    }
                }
                copy.copy_from_slice(&page.encode(&at, stamp, &key).0);
            }
            Fate::Lie(bytes)
        };
        bench.run(SECOND, &mut [&mut coordinator, &mut member], &mut say);
        let connection = ConnectionId([1; 16]);
        let reason = RefusalReason::Malformed;
        let refused = MemberEvent::Refused { connection, reason };
        assert_eq!(member_events(&mut member), [refused]);
    }
}

#[test]
fn one_slot_is_granted_no_more_than_its_share() {
    let mut bench = Bench::new(1);
    bench.slot_units = UnitCount(160);
    let (mut bench, mut coordinator, mut member) = start_on(bench);
    let free = coordinator.free_units(DeviceMask(1));
    let share = u64::from(bench.slot_units.0);
    let mut last = None;
    for number in 1..=12 {
        let asks = ConnectOptions {
            window_to_coordinator: UnitCount(60),
            window_to_member: UnitCount(40),
            ..options(number)
        };
        member.connect(bench.now, asks).unwrap();
        bench.run(SECOND, &mut [&mut coordinator, &mut member], &mut always);
        coordinator.accepted(bench.now, asks.connection);
        last = member_events(&mut member).pop();
        assert!(free - coordinator.free_units(DeviceMask(1)) <= share);
    }
    let reason = RefusalReason::NoSegments;
    let connection = ConnectionId([12; 16]);
    assert_eq!(last, Some(MemberEvent::Refused { connection, reason }));
    // Another slot has a share of its own.
    let slots = [(SLOT, TagKey::public()), (OTHER, TagKey::public())];
    coordinator.set_slots(bench.now, slots.into());
    let mut other = member_of(&bench, OTHER, 6);
    other.connect(bench.now, options(99)).unwrap();
    bench.run(
        3 * SECOND,
        &mut [&mut coordinator, &mut member, &mut other],
        &mut always,
    );
    assert!(granted(&member_events(&mut other)).is_some());
}

#[test]
fn a_stream_that_asks_for_all_of_its_slots_share_leaves_half_to_the_next() {
    let mut bench = Bench::new(1);
    bench.slot_units = UnitCount(80);
    let (mut bench, mut coordinator, mut member) = start_on(bench);
    for (number, most) in [(1, 40), (2, 20), (3, 10)] {
        let asks = ConnectOptions {
            window_to_coordinator: UnitCount(40),
            window_to_member: UnitCount(40),
            ..options(number)
        };
        let free = coordinator.free_units(DeviceMask(1));
        member.connect(bench.now, asks).unwrap();
        bench.run(SECOND, &mut [&mut coordinator, &mut member], &mut always);
        coordinator.accepted(bench.now, asks.connection);
        assert_eq!(free - coordinator.free_units(DeviceMask(1)), most);
    }
}

/// The member's page can't be written until it is fenced, and can be from then on.
fn fence(bench: &mut Bench, coordinator: &mut Coordinator, member: &mut Member) {
    let mut held: Option<IoId> = None;
    let mut hang = |who: usize, request: &IoRequest, _: &[_]| {
        if who == 1 && writes_block(request) {
            held = Some(request.id);
            return Fate::Hold;
        }
        Fate::Do
    };
    let span = Timeouts::default().fence + SECOND;
    bench.run(span, &mut [coordinator, member], &mut hang);
    assert_eq!(member_events(member), [MemberEvent::Fenced]);
    let failed = IoOutcome::Failed(IoFailure::TimedOut);
    member.handle_io(bench.now, held.unwrap(), failed);
}

#[test]
fn a_fenced_member_is_free_again_only_by_the_coordinators_present_word() {
    let answers = Bench::new(1).geometry.answer_page(SLOT);
    // Answers that are illegible prove nothing, nor do answers alone.
    for hidden in [answers, Geometry::COORDINATOR] {
        let (mut bench, mut coordinator, mut member) = start();
        fence(&mut bench, &mut coordinator, &mut member);
        // Its page is written from now on.
        let mut garbage = |who: usize, request: &IoRequest, _: &[_]| {
            let is_hidden = who == 1 && request.op == IoOp::Read && request.lba == hidden;
            if is_hidden {
                Fate::Lie(vec![0x5a; request.blocks.bytes()])
            } else {
                Fate::Do
            }
        };
        bench.run(
            3 * SECOND,
            &mut [&mut coordinator, &mut member],
            &mut garbage,
        );
        assert_eq!(member_events(&mut member), [], "hidden: {hidden}");
        bench.run(
            3 * SECOND,
            &mut [&mut coordinator, &mut member],
            &mut always,
        );
        assert_eq!(member_events(&mut member), [MemberEvent::Unfenced]);
    }
}

#[test]
fn a_revoked_slot_loses_its_connections_and_its_units_return_once_it_has_let_go() {
    let (mut bench, mut coordinator, mut member) = start();
    let free = coordinator.free_units(DeviceMask(1));
    let grant = connect(&mut bench, &mut coordinator, &mut member);
    coordinator.set_slots(bench.now, BTreeMap::new());
    let connection = grant.connection;
    let reason = Some(ResetReason::PeerClosed);
    let event = CoordinatorEvent::Closed { connection, reason };
    assert_eq!(coordinator_events(&mut coordinator), [event]);
    coordinator.close(bench.now, connection, reason);
    bench.run(
        SECOND * 2,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert_eq!(coordinator.free_units(DeviceMask(1)), free - 10);
    let told = MemberEvent::Closed { connection, reason };
    assert_eq!(member_events(&mut member), [told]);
    member.close(bench.now, connection, reason);
    bench.run(
        SECOND * 2,
        &mut [&mut coordinator, &mut member],
        &mut always,
    );
    assert_eq!(coordinator.free_units(DeviceMask(1)), free);
}

#[test]
fn a_fenced_member_whose_answers_were_destroyed_is_answered_again() {
    let (mut bench, mut coordinator, mut member) = start();
    let answers = bench.geometry.answer_page(SLOT);
    fence(&mut bench, &mut coordinator, &mut member);
    // Until they are written again, which is lost once more.
    let mut written = 0;
    let mut destroyed = |who: usize, request: &IoRequest, _: &[_]| {
        let is_answers = meets(request, answers);
        if who == 0 && is_answers && writes_block(request) {
            written += 1;
            return if written == 1 { Fate::Lose } else { Fate::Do };
        }
        if who == 1 && is_answers && request.op == IoOp::Read && written < 2 {
            return Fate::Lie(vec![0x5a; request.blocks.bytes()]);
        }
        Fate::Do
    };
    bench.run(
        6 * SECOND,
        &mut [&mut coordinator, &mut member],
        &mut destroyed,
    );
    assert_eq!(member_events(&mut member), [MemberEvent::Unfenced]);
    let proved = coordinator.members(bench.now)[0].proved;
    assert_eq!(proved, bench.geometry.all_devices());
}
