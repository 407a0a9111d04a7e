//! The common header of fixed and control blocks (§3.1), and the way from bytes to a checked block.

use crate::{
    block::wire::{put, put_u16, put_u32, put_u64, take, take_u16, take_u32, take_u64},
    error::FormatError,
    types::{BLOCK_BYTES, Block, Counter, DeviceIndex, KeyId, PoolId, SlotIndex},
};
use uuid::Uuid;
use zeroize::Zeroizing;

/// The format version that this program writes and reads.
pub const FORMAT_VERSION: u16 = 1;

/// The slot of blocks that belong to none: the superblock and the coordinator's blocks.
pub const NO_SLOT: SlotIndex = SlotIndex(u32::MAX);

/// Where a block belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pool.
    pub pool: PoolId,
    /// The device of the pool.
    pub device: DeviceIndex,
    /// The slot, or [`NO_SLOT`].
    pub slot: SlotIndex,
}

/// Who wrote a block, and when in the order of what was written there.
///
/// A writer begins far above what its predecessors left in the same place, so that counters alone tell the newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Advances with every write.
    pub counter: Counter,
    /// A member's incarnation or a coordinator's epoch.
    pub writer: u64,
}

/// The key that tags the fixed blocks of one writer; erased from memory when dropped.
#[derive(Clone)]
pub struct TagKey {
    id: KeyId,
    key: Zeroizing<[u8; 32]>,
}

impl TagKey {
    /// The public constant: the tag is a checksum and proves nothing of its writer.
    #[must_use]
    pub fn public() -> Self {
        Self::new(KeyId(0), *b"storage socket public checksum 1")
    }

    /// A secret key under the id that blocks name it by.
    #[must_use]
    pub fn new(id: KeyId, key: [u8; 32]) -> Self {
        Self {
            id,
            key: Zeroizing::new(key),
        }
    }

    /// The id that blocks name this key by.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    fn tag(&self, block: &[u8]) -> [u8; TAG_BYTES] {
        // In one piece: BLAKE3 takes four chunks at once then, which pieces that don't end with a chunk keep it from.
        let mut whole = [0; BLOCK_BYTES];
        whole.copy_from_slice(&block[..BLOCK_BYTES]);
        whole[TAG_AT..TAG_AT + TAG_BYTES].fill(0);
        take(blake3::keyed_hash(&self.key, &whole).as_bytes(), 0)
    }
}

impl std::fmt::Debug for TagKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TagKey({})", self.id)
    }
}

/// The kinds of blocks, by their magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Magic {
    Superblock = u32::from_le_bytes(*b"BLsb"),
    Coordinator = u32::from_le_bytes(*b"BLco"),
    Member = u32::from_le_bytes(*b"BLme"),
    Answer = u32::from_le_bytes(*b"BLan"),
    Control = u32::from_le_bytes(*b"BLct"),
}

/// A block's bytes as they came from the medium; nothing in them is believed.
#[derive(Clone, Copy, Debug)]
pub struct Unchecked<'a>(&'a [u8]);

impl<'a> Unchecked<'a> {
    /// Takes the first 4096 of `bytes`.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] if there are fewer.
    pub fn new(bytes: &'a [u8]) -> Result<Self, FormatError> {
        bytes
            .get(..BLOCK_BYTES)
            .map(Unchecked)
            .ok_or(FormatError::Truncated {
                want: BLOCK_BYTES,
                got: bytes.len(),
            })
    }

    /// What the block says its stamp is: good only for skipping what was read before.
    #[must_use]
    pub fn claimed_stamp(&self) -> Stamp {
        Stamp {
            counter: Counter(take_u64(self.0, 40)),
            writer: take_u64(self.0, 32),
        }
    }

    /// Reads the magic number and version without a wanted pool, for a superblock that is yet unknown.
    pub(crate) fn check_format(&self, magic: Magic) -> Result<(), FormatError> {
        let got = take_u32(self.0, 0);
        if got != magic as u32 {
            return Err(if self.0.iter().all(|&byte| byte == 0) {
                FormatError::Blank
            } else {
                FormatError::BadMagic {
                    want: magic as u32,
                    got,
                }
            });
        }
        Ok(())
    }

    pub(crate) fn check_tag(&self, key: &TagKey) -> Result<(), FormatError> {
        let got = KeyId(take_u32(self.0, 28));
        if got != key.id {
            return Err(FormatError::OtherKey { want: key.id, got });
        }
        let found: [u8; TAG_BYTES] = take(self.0, TAG_AT);
        aws_lc_rs::constant_time::verify_slices_are_equal(&found, &key.tag(self.0))
            .map_err(|_| FormatError::BadTag)
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            pool: PoolId(Uuid::from_bytes(take(self.0, 8))),
            device: DeviceIndex(take_u16(self.0, 6)),
            slot: SlotIndex(take_u32(self.0, 24)),
        }
    }

    pub(crate) fn version(&self) -> u16 {
        take_u16(self.0, 4)
    }

    /// Checks everything that the common header holds; the body is the caller's.
    pub(crate) fn check(
        self,
        magic: Magic,
        want: &Place,
        key: &TagKey,
    ) -> Result<(Stamp, &'a [u8]), FormatError> {
        self.check_format(magic)?;
        let got = self.place();
        if got.pool != want.pool {
            return Err(FormatError::OtherPool {
                want: want.pool,
                got: got.pool,
            });
        }
        let version = self.version();
        if version > FORMAT_VERSION {
            return Err(FormatError::NewerFormat {
                got: version,
                readable_from: version,
                supported: FORMAT_VERSION,
            });
        }
        if got.device != want.device {
            return Err(FormatError::OtherDevice {
                want: want.device,
                got: got.device,
            });
        }
        if got.slot != want.slot {
            return Err(FormatError::OtherSlot {
                want: want.slot,
                got: got.slot,
            });
        }
        self.check_tag(key)?;
        if version == 0 {
            return Err(FormatError::BadField {
                field: "version",
                got: 0,
            });
        }
        let stamp = self.claimed_stamp();
        check_counter("counter", stamp.counter)?;
        Ok((stamp, self.0))
    }

    pub(crate) fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// Refuses a counter whose successors could overflow: no honest writer comes near.
pub(crate) fn check_counter(field: &'static str, counter: Counter) -> Result<(), FormatError> {
    if counter >= COUNTERS_END {
        return Err(FormatError::BadField {
            field,
            got: counter.0,
        });
    }
    Ok(())
}

/// Writes the common header; [`seal`] has to follow once the body is there.
pub(crate) fn begin(magic: Magic, place: &Place, stamp: Stamp) -> Box<Block> {
    let mut block = Block::zeroed();
    put_u32(&mut block, 0, magic as u32);
    put_u16(&mut block, 4, FORMAT_VERSION);
    put_u16(&mut block, 6, place.device.0);
    put(&mut block, 8, place.pool.0.as_bytes());
    put_u32(&mut block, 24, place.slot.0);
    put_u64(&mut block, 32, stamp.writer);
    put_u64(&mut block, 40, stamp.counter.0);
    block
}

/// Writes key id and tag over the finished block.
pub(crate) fn seal(mut block: Box<Block>, key: &TagKey) -> Box<Block> {
    put_u32(&mut block, 28, key.id.0);
    let tag = key.tag(&block.0);
    put(&mut block, TAG_AT, &tag);
    block
}

/// Counters are below this: 2³¹ successions (§3.1) fit in between.
const COUNTERS_END: Counter = Counter(1 << 63);
const TAG_AT: usize = 48;
const TAG_BYTES: usize = 16;
/// Bytes of the common header; bodies begin here.
pub(crate) const HEADER_BYTES: usize = 80;
const _: () = assert!(TAG_AT + TAG_BYTES <= HEADER_BYTES);
