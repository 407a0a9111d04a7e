//! Frames: sealing, opening, keys, and everything that has to fail.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, where a panic is the finding"
)]
#![expect(clippy::disallowed_methods, reason = "images are files")]

use proptest::prelude::*;
use storage_socket_proto::{
    BLOCK_BYTES, BlockCount, Cipher, ConnectionId, Direction, Epoch, FRAME_HEADER_BYTES,
    FormatError, FrameOpener, FrameSealer, FrameVerdict, Generation, Incarnation, KEY_BYTES_MAX,
    PoolId, Protection, Sequence, StreamIdentity, StreamSecret, UsageError, frame_blocks,
};

const FRAME_BLOCKS: BlockCount = BlockCount(16);

fn identity() -> StreamIdentity {
    StreamIdentity {
        pool: PoolId(uuid::Uuid::from_bytes(*b"a pool for tests")),
        connection: ConnectionId(*b"one connection !"),
        generation: Generation(3),
        epoch: Epoch(0x0e0e_0e0e),
        incarnation: Incarnation(0x1c1c_1c1c),
        frame_blocks: FRAME_BLOCKS,
    }
}

fn protections() -> [Protection; 3] {
    let secret = StreamSecret::new([42; 32]);
    [
        Protection::Checksum,
        Protection::Aes256Gcm(secret.clone()),
        Protection::ChaCha20Poly1305(secret),
    ]
}

fn name(protection: &Protection) -> &'static str {
    match protection.cipher() {
        Cipher::Checksum => "frame-checksum",
        Cipher::Aes256Gcm => "frame-aes",
        Cipher::ChaCha20Poly1305 => "frame-chacha",
    }
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| u8::try_from(at * 7 % 251).unwrap())
        .collect()
}

fn sealed(protection: &Protection, sequence: u64, bytes: usize) -> Vec<u8> {
    let sealer = FrameSealer::new(identity(), Direction::ToMember, protection);
    let mut frame = vec![0xee; FRAME_BLOCKS.bytes()];
    let blocks = sealer
        .seal_from(Sequence(sequence), &payload(bytes), &mut frame)
        .unwrap();
    frame.truncate(blocks.bytes());
    frame
}

fn open(protection: &Protection, sequence: u64, frame: &[u8]) -> (FrameVerdict, Vec<u8>) {
    let opener = FrameOpener::new(identity(), Direction::ToMember, protection);
    let mut buffer = frame.to_vec();
    let verdict = opener.open_in_place(Sequence(sequence), &mut buffer);
    (verdict, buffer)
}

#[test]
fn sealing_in_place_and_from_a_buffer_give_the_same_bytes_and_both_ways_of_opening_the_same_payload()
 {
    for protection in protections() {
        for bytes in [
            1,
            100,
            3967,
            3968,
            3969,
            40_000,
            FRAME_BLOCKS.bytes() - FRAME_HEADER_BYTES,
        ] {
            let frame = sealed(&protection, 5, bytes);
            assert_eq!(frame.len(), frame_blocks(bytes).bytes());
            let sealer = FrameSealer::new(identity(), Direction::ToMember, &protection);
            let mut again = vec![0x11; FRAME_BLOCKS.bytes()];
            again[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + bytes].copy_from_slice(&payload(bytes));
            let blocks = sealer
                .seal_in_place(Sequence(5), bytes, &mut again)
                .unwrap();
            assert!(again[..blocks.bytes()] == frame[..]);
            let (verdict, opened) = open(&protection, 5, &frame);
            assert_eq!(
                verdict,
                FrameVerdict::Whole {
                    payload_bytes: bytes
                }
            );
            assert!(opened[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + bytes] == payload(bytes)[..]);
            let opener = FrameOpener::new(identity(), Direction::ToMember, &protection);
            let mut out = vec![0; bytes];
            let verdict = opener.open_into(Sequence(5), &frame, &mut out).unwrap();
            assert_eq!(
                verdict,
                FrameVerdict::Whole {
                    payload_bytes: bytes
                }
            );
            assert!(out == payload(bytes));
        }
    }
}

#[test]
fn sealed_payload_is_not_in_the_frame_and_no_old_memory_is_behind_it() {
    for protection in protections() {
        let frame = sealed(&protection, 5, 5000);
        let clear = frame
            .windows(32)
            .any(|window| window == &payload(5000)[100..132]);
        assert_eq!(clear, protection.cipher() == Cipher::Checksum);
        assert!(
            frame[FRAME_HEADER_BYTES + 5000..]
                .iter()
                .all(|&byte| byte == 0)
        );
    }
}

/// A control block with fixed content, tagged with `key`.
fn control_block(key: &storage_socket_proto::TagKey) -> Vec<u8> {
    use storage_socket_proto::{DeviceIndex, Place, SlotIndex, Stamp, block::ControlBlock};
    let me = identity();
    let place = Place {
        pool: me.pool,
        device: DeviceIndex(0),
        slot: SlotIndex(0),
    };
    let block = ControlBlock::new(me.connection, me.generation, Direction::ToMember);
    block.encode(&place, Stamp::default(), key).0.to_vec()
}

#[test]
fn any_flipped_bit_of_header_or_payload_is_noticed() {
    for protection in protections() {
        let frame = sealed(&protection, 5, 5000);
        for at in (0..FRAME_HEADER_BYTES + 5000)
            .step_by(13)
            .chain(0..FRAME_HEADER_BYTES)
        {
            let mut bad = frame.clone();
            bad[at] ^= 1 << (at % 8);
            let (verdict, _) = open(&protection, 5, &bad);
            assert!(!matches!(verdict, FrameVerdict::Whole { .. }), "byte {at}");
        }
    }
}

#[test]
fn an_older_frame_is_not_yet_and_a_torn_one_is_damaged() {
    for protection in protections() {
        let older = sealed(&protection, 5, 9000);
        let newer = sealed(&protection, 13, 9000);
        let (verdict, _) = open(&protection, 13, &older);
        let want = FormatError::OtherSequence {
            want: Sequence(13),
            got: Sequence(5),
        };
        assert_eq!(verdict, FrameVerdict::NotYet(want));
        let mut torn = newer.clone();
        torn[BLOCK_BYTES..2 * BLOCK_BYTES].copy_from_slice(&older[BLOCK_BYTES..2 * BLOCK_BYTES]);
        if protection.cipher() == Cipher::Checksum {
            // The same payload: nothing to notice. Another payload is noticed.
            torn[BLOCK_BYTES] ^= 0xff;
        }
        let (verdict, _) = open(&protection, 13, &torn);
        assert_eq!(verdict, FrameVerdict::Damaged(FormatError::BadTag));
        assert_eq!(
            open(&protection, 13, &vec![0; BLOCK_BYTES]).0,
            FrameVerdict::NotYet(FormatError::Blank)
        );
    }
}

#[test]
fn the_first_block_of_a_longer_frame_tells_its_length() {
    for protection in protections() {
        let frame = sealed(&protection, 5, 9000);
        let (verdict, _) = open(&protection, 5, &frame[..BLOCK_BYTES]);
        assert_eq!(
            verdict,
            FrameVerdict::Longer {
                blocks: BlockCount(3)
            }
        );
    }
}

#[test]
fn frames_of_another_stream_direction_grant_or_secret_do_not_open() {
    let mine = &protections()[1];
    let frame = sealed(mine, 5, 100);
    let try_with = |identity: StreamIdentity, direction, protection: &Protection| {
        let opener = FrameOpener::new(identity, direction, protection);
        opener.open_in_place(Sequence(5), &mut frame.clone())
    };
    let me = identity();
    assert!(matches!(
        try_with(me, Direction::ToMember, mine),
        FrameVerdict::Whole { .. }
    ));
    let connection = ConnectionId([3; 16]);
    let other = StreamIdentity { connection, ..me };
    assert!(matches!(
        try_with(other, Direction::ToMember, mine),
        FrameVerdict::NotYet(FormatError::OtherConnection { .. })
    ));
    let generation = Generation(4);
    let other = StreamIdentity { generation, ..me };
    assert!(matches!(
        try_with(other, Direction::ToMember, mine),
        FrameVerdict::NotYet(FormatError::OtherGeneration { .. })
    ));
    assert!(matches!(
        try_with(me, Direction::ToCoordinator, mine),
        FrameVerdict::NotYet(FormatError::OtherDirection { .. })
    ));
    // Generations begin anew in each epoch, and the secret and the connection's identity may have been given twice.
    let later = StreamIdentity {
        epoch: Epoch(5),
        ..me
    };
    let successor = StreamIdentity {
        incarnation: Incarnation(5),
        ..me
    };
    for other in [later, successor] {
        assert_eq!(
            try_with(other, Direction::ToMember, mine),
            FrameVerdict::Damaged(FormatError::BadTag)
        );
        for direction in [Direction::ToCoordinator, Direction::ToMember] {
            let tag = |identity: &StreamIdentity| {
                let key = mine.control_key(identity, direction);
                control_block(&key)
            };
            assert!(tag(&me) != tag(&other));
        }
    }
    let stranger = Protection::Aes256Gcm(StreamSecret::new([43; 32]));
    assert_eq!(
        try_with(me, Direction::ToMember, &stranger),
        FrameVerdict::Damaged(FormatError::BadTag)
    );
    assert!(matches!(
        try_with(me, Direction::ToMember, &Protection::Checksum),
        FrameVerdict::NotYet(FormatError::OtherCipher { .. })
    ));
}

#[test]
fn a_key_serves_64_gib_and_the_one_before_the_last_is_erased() {
    let frames = KEY_BYTES_MAX / FRAME_BLOCKS.bytes() as u64;
    for protection in &protections()[1..] {
        let sealer = FrameSealer::new(identity(), Direction::ToMember, protection);
        let opener = FrameOpener::new(identity(), Direction::ToMember, protection);
        let check = |sequence: u64| {
            let mut frame = vec![0; BLOCK_BYTES];
            sealer.seal_from(Sequence(sequence), b"payload", &mut frame)?;
            Ok(opener.open_in_place(Sequence(sequence), &mut frame))
        };
        let whole = Ok(FrameVerdict::Whole { payload_bytes: 7 });
        assert_eq!(
            identity().key_epoch(Sequence(frames - 1)).0 + 1,
            identity().key_epoch(Sequence(frames)).0
        );
        for sequence in [
            0,
            frames - 1,
            frames,
            frames - 2,
            2 * frames,
            2 * frames - 1,
        ] {
            assert_eq!(check(sequence), whole, "{sequence}");
        }
        assert!(matches!(check(0), Err(UsageError::NoKey(_))), "erased");
        assert!(
            matches!(check(4 * frames), Err(UsageError::NoKey(_))),
            "not due by far"
        );
        // What an old key has sealed opens no more, and new keys differ: the same sequence modulo the epoch differs.
        let mut old = sealed(protection, 3, 100);
        assert!(matches!(
            opener.open_in_place(Sequence(3), &mut old),
            FrameVerdict::NotYet(_)
        ));
    }
}

#[test]
fn payloads_and_buffers_of_wrong_length_are_refused() {
    let sealer = FrameSealer::new(identity(), Direction::ToMember, &Protection::Checksum);
    let mut frame = vec![0; BLOCK_BYTES];
    assert!(matches!(
        sealer.seal_in_place(Sequence(0), 0, &mut frame),
        Err(UsageError::PayloadLength { .. })
    ));
    assert!(matches!(
        sealer.seal_in_place(Sequence(0), FRAME_BLOCKS.bytes(), &mut frame),
        Err(UsageError::PayloadLength { .. })
    ));
    assert!(matches!(
        sealer.seal_in_place(Sequence(0), 4000, &mut frame),
        Err(UsageError::BufferLength {
            want: 8192,
            got: 4096
        })
    ));
    let opener = FrameOpener::new(identity(), Direction::ToMember, &Protection::Checksum);
    let whole = sealed(&Protection::Checksum, 0, 100);
    assert!(opener.open_into(Sequence(0), &whole, &mut [0; 99]).is_err());
}

#[test]
fn control_keys_differ_by_direction_and_secret_and_have_key_id_1() {
    let secret = StreamSecret::new([1; 32]);
    let sealed = Protection::Aes256Gcm(secret);
    let key = |protection: &Protection, direction| protection.control_key(&identity(), direction);
    assert_eq!(key(&sealed, Direction::ToMember).id().0, 1);
    assert_eq!(key(&Protection::Checksum, Direction::ToMember).id().0, 0);
    let tag = |key| {
        use storage_socket_proto::{DeviceIndex, Place, SlotIndex, Stamp, block::ControlBlock};
        let block = ControlBlock::new(identity().connection, Generation(3), Direction::ToMember);
        let place = Place {
            pool: identity().pool,
            device: DeviceIndex(0),
            slot: SlotIndex(0),
        };
        block.encode(&place, Stamp::default(), &key).0[48..64].to_vec()
    };
    let other = Protection::Aes256Gcm(StreamSecret::new([2; 32]));
    let tags = [
        tag(key(&sealed, Direction::ToMember)),
        tag(key(&sealed, Direction::ToCoordinator)),
        tag(key(&other, Direction::ToMember)),
        tag(key(&Protection::Checksum, Direction::ToMember)),
    ];
    let distinct: std::collections::BTreeSet<_> = tags.iter().collect();
    assert_eq!(distinct.len(), 4);
}

/// As for the fixed blocks: what version 1 wrote is opened for ever, which also pins key derivation and nonces.
#[test]
fn frames_of_format_version_1_are_opened_for_ever() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/v1");
    for protection in protections() {
        let path = directory.join(format!("{}.bin", name(&protection)));
        // Under the second key: the first is passed on the way.
        let sealer = FrameSealer::new(identity(), Direction::ToMember, &protection);
        let mut frame = vec![0; frame_blocks(5000).bytes()];
        for sequence in [0, 1_234_567] {
            let sequence = Sequence(sequence);
            sealer
                .seal_from(sequence, &payload(5000), &mut frame)
                .unwrap();
        }
        if std::env::var_os("WRITE_IMAGES").is_some() && !path.exists() {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(&path, &frame).unwrap();
        }
        let image = std::fs::read(&path).unwrap();
        let opener = FrameOpener::new(identity(), Direction::ToMember, &protection);
        let first = opener.open_in_place(Sequence(0), &mut sealed(&protection, 0, 100));
        assert!(matches!(first, FrameVerdict::Whole { .. }));
        let (verdict, opened) = open_late(&opener, &image);
        assert_eq!(
            verdict,
            FrameVerdict::Whole {
                payload_bytes: 5000
            }
        );
        assert!(opened[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + 5000] == payload(5000)[..]);
        assert!(image == frame);
    }
}

fn open_late(opener: &FrameOpener, image: &[u8]) -> (FrameVerdict, Vec<u8>) {
    let mut buffer = image.to_vec();
    let verdict = opener.open_in_place(Sequence(1_234_567), &mut buffer);
    (verdict, buffer)
}

proptest! {
    #[test]
    fn no_bytes_make_the_opener_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..9000), header in any::<bool>(), sequence in any::<u64>()
    ) {
        for protection in protections() {
            if header && bytes.len() >= FRAME_HEADER_BYTES {
                // A header that fits, with a length that may not.
                let frame = sealed(&protection, 5, 100);
                bytes[..60].copy_from_slice(&frame[..60]);
            }
            let opener = FrameOpener::new(identity(), Direction::ToMember, &protection);
            let mut out = vec![0; 100_000];
            for sequence in [5, sequence] {
                let into = opener.open_into(Sequence(sequence), &bytes, &mut out).unwrap();
                let in_place = opener.open_in_place(Sequence(sequence), &mut bytes.clone());
                prop_assert_eq!(&into, &in_place);
                let whole = matches!(into, FrameVerdict::Whole { .. });
                prop_assert!(!whole);
            }
        }
    }
}
