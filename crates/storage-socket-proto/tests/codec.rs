//! The codec: what is written is read back, what is damaged is refused, and no input makes a parser panic.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, where a panic is the finding"
)]
#![expect(clippy::disallowed_methods, reason = "images are files")]

use proptest::prelude::*;
use std::time::Duration;
use storage_socket_proto::{
    BLOCK_BYTES, Block, Challenge, Cipher, ConnectionId, Counter, DeviceIndex, DeviceMask,
    DeviceSize, Direction, ENTRIES, Epoch, FormatError, Generation, Geometry, GeometryError,
    Incarnation, KeyId, Name, Place, PoolId, Port, RefusalReason, ResetReason, Segment,
    SegmentGroup, Sequence, SlotIndex, Stamp, Superblock, TagKey, Timeouts, Unchecked, UnitCount,
    UnitIndex,
    block::{
        Answer, AnswerPage, ControlBlock, CoordinatorBlock, CoordinatorState, LENGTHS_MAX,
        MemberEntry, MemberPage, MemberState, NO_SLOT, Request, Resend,
    },
};

fn pool() -> PoolId {
    PoolId(uuid::Uuid::from_bytes(*b"a pool for tests"))
}

fn place(slot: SlotIndex) -> Place {
    Place {
        pool: pool(),
        device: DeviceIndex(1),
        slot,
    }
}

const STAMP: Stamp = Stamp {
    counter: Counter(0x0102_0304_0506_0708),
    writer: 0x1112_1314_1516_1718,
};

fn secret() -> TagKey {
    TagKey::new(KeyId(7), [9; 32])
}

fn geometry() -> Geometry {
    let size = |blocks, logical_block| DeviceSize {
        blocks,
        logical_block,
    };
    let sizes = [size(20_000, 512), size(30_000, 4096)];
    Geometry::new(pool(), 64, &sizes, Timeouts::default()).unwrap()
}

fn superblock() -> Superblock {
    Superblock::of(&geometry(), Name::lossy("räume"), DeviceIndex(1)).unwrap()
}

fn coordinator() -> CoordinatorBlock {
    CoordinatorBlock {
        state: CoordinatorState::Serving,
        host: Name::lossy("server.example"),
    }
}

fn group() -> SegmentGroup {
    SegmentGroup {
        generation: Generation(99),
        devices: DeviceMask(3),
        cipher: Cipher::ChaCha20Poly1305,
        frame_units: UnitCount(16),
        to_coordinator: Segment {
            first: UnitIndex(32),
            units: UnitCount(129),
        },
        to_member: Segment {
            first: UnitIndex(161),
            units: UnitCount(33),
        },
    }
}

fn member() -> MemberPage {
    let mut entries = [MemberEntry::Empty; ENTRIES];
    entries[0] = MemberEntry::Request(Request {
        connection: ConnectionId([1; 16]),
        port: Port(4711),
        cipher: Cipher::Aes256Gcm,
        frame_units: UnitCount(16),
        window_to_coordinator: UnitCount(129),
        window_to_member: UnitCount(65),
        devices: DeviceMask(3),
    });
    entries[5] = MemberEntry::Open {
        connection: ConnectionId([2; 16]),
        generation: Generation(98),
    };
    entries[31] = MemberEntry::Closed {
        connection: ConnectionId([3; 16]),
        reason: Some(ResetReason::Medium),
    };
    MemberPage {
        state: MemberState::Running,
        devices: DeviceMask(3),
        confirmed: Epoch(0xabcd),
        challenge: Challenge([5; 32]),
        host: Name::lossy("client"),
        entries,
    }
}

fn answer() -> AnswerPage {
    let mut entries = [None; ENTRIES];
    entries[0] = Some(Answer::Accepted {
        connection: ConnectionId([1; 16]),
        port: Port(4711),
        group: group(),
    });
    entries[1] = Some(Answer::Refused {
        connection: ConnectionId([4; 16]),
        reason: RefusalReason::NoSegments,
    });
    entries[31] = Some(Answer::Closed {
        connection: ConnectionId([3; 16]),
        reason: Some(ResetReason::PeerDead),
        group: group(),
    });
    AnswerPage {
        incarnation: Incarnation(77),
        challenge: Challenge([6; 32]),
        devices: DeviceMask(1),
        seen: Counter(5_000_000_000),
        entries,
    }
}

fn control() -> ControlBlock {
    let mut lengths = Box::new([0; LENGTHS_MAX]);
    lengths[0] = 256;
    lengths[LENGTHS_MAX - 1] = 3;
    ControlBlock {
        connection: ConnectionId([1; 16]),
        generation: Generation(99),
        direction: Direction::ToMember,
        consumed: Sequence(1000),
        announced: Sequence(2000),
        fin: Some(Sequence(2000)),
        fin_seen: true,
        reset: Some(ResetReason::Aborted),
        revision: 12,
        seen: 13,
        resends: vec![Resend {
            sequence: Sequence(1001),
            attempt: 2,
        }],
        served: vec![
            Resend {
                sequence: Sequence(1999),
                attempt: 1,
            };
            32
        ],
        lengths,
    }
}

const CONTROL: (ConnectionId, Generation, Direction) =
    (ConnectionId([1; 16]), Generation(99), Direction::ToMember);

/// Each kind of block, encoded with fixed content.
fn images() -> Vec<(&'static str, Box<Block>)> {
    let slot = SlotIndex(3);
    vec![
        ("superblock", superblock().encode()),
        (
            "coordinator",
            coordinator().encode(&place(NO_SLOT), STAMP, &TagKey::public()),
        ),
        ("member", member().encode(&place(slot), STAMP, &secret())),
        (
            "answer",
            answer().encode(&place(slot), STAMP, &TagKey::public()),
        ),
        ("control", control().encode(&place(slot), STAMP, &secret())),
    ]
}

/// Parses `bytes` as each kind in turn; says which it is.
fn kinds(bytes: &[u8]) -> Vec<&'static str> {
    let Ok(block) = Unchecked::new(bytes) else {
        return Vec::new();
    };
    let slot = place(SlotIndex(3));
    let mut kinds = Vec::new();
    if Superblock::parse(block).is_ok() {
        kinds.push("superblock");
    }
    if CoordinatorBlock::parse(block, &place(NO_SLOT), &TagKey::public()).is_ok() {
        kinds.push("coordinator");
    }
    if MemberPage::parse(block, &slot, &secret()).is_ok() {
        kinds.push("member");
    }
    if AnswerPage::parse(block, &slot, &TagKey::public()).is_ok() {
        kinds.push("answer");
    }
    if ControlBlock::parse(block, &slot, &secret(), CONTROL).is_ok() {
        kinds.push("control");
    }
    kinds
}

#[test]
fn every_block_is_read_back_as_it_was_written() {
    let slot = place(SlotIndex(3));
    let found: Vec<_> = images()
        .into_iter()
        .map(|(name, block)| (name, kinds(&block.0)))
        .collect();
    for (name, kinds) in found {
        assert_eq!(kinds, [name]);
    }
    let block = |index: usize| images()[index].1.clone();
    let superblock_read = Superblock::parse(Unchecked::new(&block(0).0).unwrap()).unwrap();
    assert_eq!(superblock_read, superblock());
    let bytes = block(1);
    let read = CoordinatorBlock::parse(
        Unchecked::new(&bytes.0).unwrap(),
        &place(NO_SLOT),
        &TagKey::public(),
    );
    assert_eq!(read.unwrap(), (STAMP, coordinator()));
    let bytes = block(2);
    let read = MemberPage::parse(Unchecked::new(&bytes.0).unwrap(), &slot, &secret());
    assert_eq!(read.unwrap(), (STAMP, member()));
    let bytes = block(3);
    let read = AnswerPage::parse(Unchecked::new(&bytes.0).unwrap(), &slot, &TagKey::public());
    assert_eq!(read.unwrap(), (STAMP, answer()));
    let bytes = block(4);
    let read = ControlBlock::parse(Unchecked::new(&bytes.0).unwrap(), &slot, &secret(), CONTROL);
    assert_eq!(read.unwrap(), (STAMP, control()));
}

/// Images of format version 1, as its first release wrote them. They are never written again; a new version adds its own.
#[test]
fn images_of_format_version_1_are_read_for_ever() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/v1");
    for (name, block) in images() {
        let path = directory.join(format!("{name}.bin"));
        if std::env::var_os("WRITE_IMAGES").is_some() && !path.exists() {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(&path, block.0).unwrap();
        }
        let image = std::fs::read(&path).unwrap();
        assert_eq!(kinds(&image), [name]);
        assert!(
            image == block.0,
            "this program writes {name} otherwise than version 1 did"
        );
    }
}

#[test]
fn any_flipped_bit_of_a_block_is_noticed() {
    for (name, block) in images() {
        for at in (0..BLOCK_BYTES).step_by(7).chain(0..256) {
            let mut bytes = block.0;
            bytes[at] ^= 1 << (at % 8);
            // The superblock's slot field and the like are covered by the tag as well: nothing is outside of it.
            assert!(kinds(&bytes).is_empty(), "{name}: byte {at}");
        }
    }
}

#[test]
fn errors_say_what_was_found() {
    let slot = place(SlotIndex(3));
    let page = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = images()[2].1.0;
        change(&mut bytes);
        let found = MemberPage::parse(Unchecked::new(&bytes).unwrap(), &slot, &secret());
        found.map(|_| ()).unwrap_err()
    };
    let want = u32::from_le_bytes(*b"BLme");
    assert_eq!(page(&|bytes| bytes.fill(0)), FormatError::Blank);
    let got = u32::from_le_bytes(*b"BLct");
    assert_eq!(
        page(&|bytes| bytes[..4].copy_from_slice(b"BLct")),
        FormatError::BadMagic { want, got }
    );
    assert!(matches!(
        page(&|bytes| bytes[9] ^= 1),
        FormatError::OtherPool { .. }
    ));
    assert_eq!(
        page(&|bytes| bytes[6] = 4),
        FormatError::OtherDevice {
            want: DeviceIndex(1),
            got: DeviceIndex(4)
        }
    );
    assert_eq!(
        page(&|bytes| bytes[24] = 9),
        FormatError::OtherSlot {
            want: SlotIndex(3),
            got: SlotIndex(9)
        }
    );
    assert_eq!(
        page(&|bytes| bytes[28] = 8),
        FormatError::OtherKey {
            want: KeyId(7),
            got: KeyId(8)
        }
    );
    assert_eq!(
        page(&|bytes| bytes[4] = 2),
        FormatError::NewerFormat {
            got: 2,
            readable_from: 2,
            supported: 1
        }
    );
    assert_eq!(page(&|bytes| bytes[4000] = 1), FormatError::BadTag);
    let short = Unchecked::new(&[0; 100]).map(|_| ()).unwrap_err();
    assert_eq!(
        short,
        FormatError::Truncated {
            want: 4096,
            got: 100
        }
    );
}

#[test]
fn a_counter_that_could_overflow_is_no_counter() {
    let slot = place(SlotIndex(3));
    let key = TagKey::public();
    let far = Counter(1 << 63);
    for (counter, seen, is_sound) in [
        (Counter(far.0 - 1), Counter(far.0 - 1), true),
        (far, Counter(1), false),
        (Counter(u64::MAX), Counter(1), false),
        (Counter(1), far, false),
        (Counter(1), Counter(u64::MAX), false),
    ] {
        let stamp = Stamp { counter, writer: 1 };
        let page = AnswerPage { seen, ..answer() };
        let block = page.encode(&slot, stamp, &key);
        let found = AnswerPage::parse(Unchecked::new(&block.0).unwrap(), &slot, &key);
        assert_eq!(found.is_ok(), is_sound, "{counter} {seen}");
        assert!(is_sound || matches!(found, Err(FormatError::BadField { .. })));
    }
}

#[test]
fn a_control_block_of_another_connection_generation_or_direction_is_foreign() {
    let bytes = images()[4].1.0;
    let slot = place(SlotIndex(3));
    let parse = |want| {
        let block = Unchecked::new(&bytes).unwrap();
        ControlBlock::parse(block, &slot, &secret(), want)
            .map(|_| ())
            .unwrap_err()
    };
    let (connection, generation, direction) = CONTROL;
    assert!(matches!(
        parse((ConnectionId([8; 16]), generation, direction)),
        FormatError::OtherConnection { .. }
    ));
    assert!(matches!(
        parse((connection, Generation(98), direction)),
        FormatError::OtherGeneration { .. }
    ));
    assert!(matches!(
        parse((connection, generation, direction.opposite())),
        FormatError::OtherDirection { .. }
    ));
}

#[test]
fn devices_that_make_no_pool_together_are_told_apart() {
    let geometry = geometry();
    let of = |index| Superblock::of(&geometry, Name::lossy("p"), DeviceIndex(index)).unwrap();
    let check = |superblocks: &[Superblock]| Geometry::from_superblocks(superblocks);
    assert_eq!(check(&[of(1), of(0)]).unwrap(), geometry);
    assert!(matches!(
        check(&[of(1)]),
        Err(GeometryError::MissingDevice {
            device: DeviceIndex(0)
        })
    ));
    assert!(matches!(
        check(&[of(1), of(1)]),
        Err(GeometryError::DuplicateDevice { .. })
    ));
    let mut foreign = of(1);
    foreign.pool = PoolId::default();
    assert!(matches!(
        check(&[of(0), foreign]),
        Err(GeometryError::OtherPool { .. })
    ));
    let mut other = of(1);
    other.slots = 65;
    assert!(matches!(
        check(&[of(0), other]),
        Err(GeometryError::Contradiction { field: "slots", .. })
    ));
    let mut moved = of(1);
    moved.data_end = UnitIndex(moved.data_end.0 - 1);
    assert!(matches!(
        check(&[of(0), moved]),
        Err(GeometryError::Contradiction {
            field: "data area",
            ..
        })
    ));
}

#[test]
fn more_devices_than_a_pool_may_have_are_refused() {
    let geometry = geometry();
    let first = Superblock::of(&geometry, Name::lossy("p"), DeviceIndex(0)).unwrap();
    for device_count in [0, 33, u16::MAX] {
        let of = |device| Superblock {
            device: DeviceIndex(device),
            device_count,
            ..first.clone()
        };
        let superblocks: Vec<_> = (0..device_count.clamp(1, 33)).map(of).collect();
        let got = usize::from(device_count);
        assert_eq!(
            Geometry::from_superblocks(&superblocks),
            Err(GeometryError::DeviceCount { got })
        );
    }
}

#[test]
fn a_peer_is_declared_dead_only_after_it_must_have_stopped_writing() {
    let mut timeouts = Timeouts::default();
    assert!(timeouts.check().is_ok());
    timeouts.dead = timeouts.fence + timeouts.io_deadline + timeouts.stale;
    assert!(matches!(
        timeouts.check(),
        Err(GeometryError::Timeouts { .. })
    ));
    timeouts.dead += Duration::from_millis(1);
    assert!(timeouts.check().is_ok());
    timeouts.claim = timeouts.stale - Duration::from_millis(1);
    assert!(timeouts.check().is_err());
}

#[test]
fn the_fixed_areas_do_not_overlap_and_the_data_area_begins_on_a_mebibyte() {
    for slots in [1, 7, 64, 1000, 16_384] {
        let size = DeviceSize {
            blocks: 1 << 20,
            logical_block: 512,
        };
        let geometry = Geometry::new(pool(), slots, &[size], Timeouts::default()).unwrap();
        let last = SlotIndex(slots - 1);
        assert!(Geometry::COORDINATOR.0 + 2 <= geometry.member_page(SlotIndex(0)).0);
        assert_eq!(
            geometry.member_page(last).0 + 2,
            geometry.answer_page(SlotIndex(0)).0
        );
        let data = geometry.data_start().lba().0;
        assert!(geometry.answer_page(last).0 + 2 <= data);
        assert_eq!(data % 256, 0);
        let end = geometry.data_end(DeviceMask(1)).lba().0;
        assert!(end + 256 <= geometry.superblock_copy(DeviceIndex(0)).unwrap().0 + 1);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(kinds(&bytes).is_empty());
    }

    #[test]
    fn truncated_and_spliced_blocks_are_refused(
        which in 0..5_usize, other in 0..5_usize, cut in 0..BLOCK_BYTES
    ) {
        let images = images();
        prop_assert!(kinds(&images[which].1.0[..cut]).is_empty());
        // A tear: the first sectors of one block, the rest of another.
        let cut = cut / 512 * 512;
        let mut torn = images[which].1.0;
        torn[cut..].copy_from_slice(&images[other].1.0[cut..]);
        let found = kinds(&torn);
        let same_tail = images[which].1.0[cut..] == images[other].1.0[cut..];
        let whole = cut == 0 || which == other || same_tail;
        prop_assert_eq!(!found.is_empty(), whole);
    }

    #[test]
    fn frames_of_a_ring_never_share_a_place_within_its_length(
        units in 2..200_u32, frame in 1..20_u32, mask in 1..16_u32, first in any::<u32>()
    ) {
        let segment = Segment { first: UnitIndex(1000), units: UnitCount(units) };
        let ring = storage_socket_proto::Ring::new(segment, UnitCount(frame), DeviceMask(mask));
        let Some(ring) = ring else {
            prop_assert!(units <= frame);
            return Ok(());
        };
        let from = u64::from(first);
        let mut places = std::collections::BTreeSet::new();
        for sequence in from..from + ring.frames() {
            let place = ring.place(Sequence(sequence));
            let end = place.lba.0 + u64::from(ring.frame_blocks().0);
            // Behind the control unit, inside the segment.
            prop_assert!(place.lba.0 >= segment.first.lba().0 + 16);
            prop_assert!(end <= segment.end() * 16);
            let within = place.lba.0 - segment.first.lba().0 - 16;
            prop_assert!(within.is_multiple_of(u64::from(ring.frame_blocks().0)));
            prop_assert!(places.insert((place.device, place.lba)));
            prop_assert_eq!(place, ring.place(Sequence(sequence + ring.frames())));
        }
    }

    #[test]
    fn member_entries_survive_encoding(
        state in 0..4_u8, id in any::<[u8; 16]>(), numbers in any::<[u32; 4]>(), code in any::<u16>(), wide in any::<u64>()
    ) {
        let connection = ConnectionId(id);
        let mut page = member();
        page.entries[17] = match state {
            0 => MemberEntry::Empty,
            1 => MemberEntry::Request(Request {
                connection, port: Port(code), cipher: Cipher::Checksum,
                frame_units: UnitCount(numbers[0]), window_to_coordinator: UnitCount(numbers[1]),
                window_to_member: UnitCount(numbers[2]), devices: DeviceMask(numbers[3]),
            }),
            2 => MemberEntry::Open { connection, generation: Generation(wide) },
            _ => MemberEntry::Closed { connection, reason: ResetReason::from_code(code) },
        };
        let slot = place(SlotIndex(3));
        let block = page.encode(&slot, STAMP, &secret());
        let read = MemberPage::parse(Unchecked::new(&block.0).unwrap(), &slot, &secret());
        prop_assert_eq!(read.unwrap().1, page);
    }
}
