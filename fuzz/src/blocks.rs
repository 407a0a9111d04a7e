//! Fixed blocks, control blocks and frames: no input makes a parser panic, and what is parsed can be written and read
//! again without a difference.

use storage_socket_proto::{
    BLOCK_BYTES, BlockCount, Cipher, ConnectionId, DeviceIndex, Direction, Epoch,
    FRAME_HEADER_BYTES, FrameOpener, FrameVerdict, Generation, Incarnation, PoolId, Protection,
    Sequence, SlotIndex, StreamIdentity, Superblock, TagKey, Unchecked,
    block::{AnswerPage, ControlBlock, CoordinatorBlock, MemberPage, Place},
};

const CONNECTION: ConnectionId = ConnectionId([7; 16]);
const MAGICS: [&[u8; 4]; 5] = [b"BLsb", b"BLme", b"BLan", b"BLco", b"BLct"];

/// The first byte picks the kind of block and whether header and tag are put right; the rest is its content.
pub fn fixed_block(data: &[u8]) {
    let Some((&pick, data)) = data.split_first() else {
        return;
    };
    let mut block = vec![0; BLOCK_BYTES];
    let kind = usize::from(pick % 5);
    let is_right = pick < 200;
    let start = if is_right { 64 } else { 0 };
    let count = data.len().min(BLOCK_BYTES - start);
    block[start..start + count].copy_from_slice(&data[..count]);
    if is_right {
        put_right(&mut block, kind);
    }
    parse(&block, kind);
}

/// Writes a header that fits, and the tag.
fn put_right(block: &mut [u8], kind: usize) {
    block[..4].copy_from_slice(MAGICS[kind]);
    block[4] = 1;
    let slot: u32 = if matches!(kind, 0 | 3) { u32::MAX } else { 0 };
    block[24..28].copy_from_slice(&slot.to_le_bytes());
    // Writer and counter are the content's own.
    let (head, body) = block.split_at_mut(64);
    head[32..46].copy_from_slice(&body[1000..1014]);
    if kind == 4 {
        block[80..96].copy_from_slice(&CONNECTION.0);
        block[96..104].copy_from_slice(&1_u64.to_le_bytes());
        block[104] = 0;
    }
    block[48..64].fill(0);
    let key = b"storage socket public checksum 1";
    let tag = blake3::keyed_hash(key, block);
    block[48..64].copy_from_slice(&tag.as_bytes()[..16]);
}

fn parse(bytes: &[u8], kind: usize) {
    let Ok(block) = Unchecked::new(bytes) else {
        return;
    };
    let key = TagKey::public();
    let place = Place {
        pool: PoolId::default(),
        device: DeviceIndex(0),
        slot: SlotIndex(0),
    };
    match kind {
        0 => {
            if let Ok(found) = Superblock::parse(block) {
                let again = found.encode();
                let again = Unchecked::new(&again.0).and_then(Superblock::parse);
                assert_eq!(again.as_ref(), Ok(&found));
                let _ = storage_socket_proto::Geometry::from_superblocks(&[found]);
            }
        }
        1 => {
            if let Ok((stamp, page)) = MemberPage::parse(block, &place, &key) {
                let again = page.encode(&place, stamp, &key);
                let again = Unchecked::new(&again.0)
                    .and_then(|block| MemberPage::parse(block, &place, &key));
                assert_eq!(again, Ok((stamp, page)));
            }
        }
        2 => {
            if let Ok((stamp, page)) = AnswerPage::parse(block, &place, &key) {
                let again = page.encode(&place, stamp, &key);
                let again = Unchecked::new(&again.0)
                    .and_then(|block| AnswerPage::parse(block, &place, &key));
                assert_eq!(again, Ok((stamp, page)));
            }
        }
        3 => {
            let place = CoordinatorBlock::place(PoolId::default(), DeviceIndex(0));
            if let Ok((stamp, page)) = CoordinatorBlock::parse(block, &place, &key) {
                let again = page.encode(&place, stamp, &key);
                let again = Unchecked::new(&again.0)
                    .and_then(|block| CoordinatorBlock::parse(block, &place, &key));
                assert_eq!(again, Ok((stamp, page)));
            }
        }
        _ => {
            let want = (CONNECTION, Generation(1), Direction::ToCoordinator);
            if let Ok((stamp, page)) = ControlBlock::parse(block, &place, &key, want) {
                let again = page.encode(&place, stamp, &key);
                let again = Unchecked::new(&again.0)
                    .and_then(|block| ControlBlock::parse(block, &place, &key, want));
                assert_eq!(again, Ok((stamp, page)));
            }
        }
    }
}

/// The first byte says whether header and checksum are put right; then come the payload's length and the frame.
pub fn frame(data: &[u8]) {
    let Some((head, data)) = data.split_first_chunk::<5>() else {
        return;
    };
    let [pick, length @ ..] = *head;
    let blocks = data.len().div_ceil(BLOCK_BYTES).clamp(1, 16);
    let mut frame = vec![0; blocks * BLOCK_BYTES];
    let count = data.len().min(frame.len());
    frame[..count].copy_from_slice(&data[..count]);
    let identity = StreamIdentity {
        pool: PoolId::default(),
        connection: CONNECTION,
        generation: Generation(1),
        epoch: Epoch(2),
        incarnation: Incarnation(3),
        frame_blocks: BlockCount(16),
    };
    if pick < 200 {
        let length = u32::from_le_bytes(length) % 70_000;
        put_frame_right(&mut frame, length);
    }
    let protection = Protection::Checksum;
    assert_eq!(protection.cipher(), Cipher::Checksum);
    let opener = FrameOpener::new(identity, Direction::ToMember, &protection);
    let most = identity.payload_bytes_max();
    let mut out = vec![0; most];
    let into = opener.open_into(Sequence(9), &frame, &mut out);
    let verdict = opener.open_in_place(Sequence(9), &mut frame);
    assert_eq!(into.as_ref(), Ok(&verdict));
    match verdict {
        FrameVerdict::Whole { payload_bytes } => {
            assert!(payload_bytes <= most);
            assert_eq!(
                frame[FRAME_HEADER_BYTES..][..payload_bytes],
                out[..payload_bytes]
            );
        }
        FrameVerdict::Longer { blocks } => assert!(blocks.0 > 0 && blocks.0 <= 16),
        _ => {}
    }
}

fn put_frame_right(frame: &mut [u8], length: u32) {
    frame[..112].fill(0);
    frame[..4].copy_from_slice(b"BLfr");
    frame[4] = 1;
    frame[6] = 1;
    frame[7] = 1;
    frame[24..40].copy_from_slice(&CONNECTION.0);
    frame[40..48].copy_from_slice(&1_u64.to_le_bytes());
    frame[48..56].copy_from_slice(&9_u64.to_le_bytes());
    frame[60..64].copy_from_slice(&length.to_le_bytes());
    let end = FRAME_HEADER_BYTES + usize::try_from(length).unwrap_or(usize::MAX);
    let payload = frame.get(FRAME_HEADER_BYTES..end).unwrap_or_default();
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(&frame[..112]);
    digest.update(payload);
    let tag = digest.finalize().to_le_bytes();
    frame[112..128].fill(0);
    frame[112..120].copy_from_slice(&tag);
}
