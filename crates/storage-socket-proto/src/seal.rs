//! Frames (§4.2): their header, and how they are sealed and opened.
//!
//! - The whole header is associated data and holds nothing that differs between sends: a resend is the same bytes.
//! - Nonce and key epoch are functions of the sequence, which is never used twice under one connection.
//! - A key serves 64 GiB; its successor comes from a chain that can't be run backwards, and all but the last two are erased.
//!
//! Both sealing and opening take one pass over the payload, in place or from one buffer to another.

use crate::{
    block::TagKey,
    error::{FormatError, UsageError},
    types::{
        BLOCK_BYTES, BlockCount, ConnectionId, Direction, Epoch, Generation, Incarnation, KeyEpoch,
        KeyId, PoolId, Sequence,
    },
};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    hkdf,
};
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a frame's header; the payload follows.
pub const FRAME_HEADER_BYTES: usize = 128;

/// How the frames of a stream are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// CRC-64/NVME: finds accidents, not forgery.
    Checksum,
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

impl Cipher {
    /// The number in headers and entries.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Checksum => 1,
            Self::Aes256Gcm => 2,
            Self::ChaCha20Poly1305 => 3,
        }
    }

    /// The cipher with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Checksum),
            2 => Some(Self::Aes256Gcm),
            3 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    /// Whether the stream needs a secret.
    #[must_use]
    pub fn is_sealed(self) -> bool {
        self != Self::Checksum
    }
}

/// The secret that both users of a stream share; erased from memory when dropped.
#[derive(Clone)]
pub struct StreamSecret(Zeroizing<[u8; 32]>);

impl StreamSecret {
    /// Takes the secret.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        Self(Zeroizing::new(secret))
    }
}

impl std::fmt::Debug for StreamSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamSecret(…)")
    }
}

/// How a stream is protected, with what that takes.
#[derive(Clone, Debug)]
pub enum Protection {
    /// A checksum only.
    Checksum,
    /// Sealed with AES-256-GCM.
    Aes256Gcm(StreamSecret),
    /// Sealed with ChaCha20-Poly1305.
    ChaCha20Poly1305(StreamSecret),
}

impl Protection {
    /// The cipher.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        match self {
            Self::Checksum => Cipher::Checksum,
            Self::Aes256Gcm(_) => Cipher::Aes256Gcm,
            Self::ChaCha20Poly1305(_) => Cipher::ChaCha20Poly1305,
        }
    }

    fn secret(&self) -> Option<&StreamSecret> {
        match self {
            Self::Checksum => None,
            Self::Aes256Gcm(secret) | Self::ChaCha20Poly1305(secret) => Some(secret),
        }
    }

    /// The key that tags the control blocks that the sender of `direction` writes: derived from the secret under key
    /// id 1, or the public constant.
    #[must_use]
    pub fn control_key(&self, identity: &StreamIdentity, direction: Direction) -> TagKey {
        let Some(secret) = self.secret() else {
            return TagKey::public();
        };
        let info = identity.info(b"control", self.cipher(), direction);
        let key = expand(&root(identity, secret), &info);
        TagKey::new(CONTROL_KEY, *key)
    }
}

/// What makes the frames of one connection its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamIdentity {
    /// The pool.
    pub pool: PoolId,
    /// The connection.
    pub connection: ConnectionId,
    /// The grant.
    pub generation: Generation,
    /// The coordinator that granted it: generations begin anew in each epoch.
    pub epoch: Epoch,
    /// The member that it was granted to.
    pub incarnation: Incarnation,
    /// Blocks of a frame slot.
    pub frame_blocks: BlockCount,
}

impl StreamIdentity {
    /// The most that a frame's payload holds.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        self.frame_blocks.bytes().saturating_sub(FRAME_HEADER_BYTES)
    }

    /// The key epoch of a frame: a new one each 64 GiB of frame slots.
    #[must_use]
    pub fn key_epoch(&self, sequence: Sequence) -> KeyEpoch {
        let frames = KEY_BYTES_MAX / (self.frame_blocks.bytes() as u64).max(1);
        KeyEpoch(u32::try_from(sequence.0 / frames.max(1)).unwrap_or(u32::MAX))
    }

    /// Every field has a fixed width, so that no two contexts give the same bytes.
    fn info(&self, purpose: &[u8; 7], cipher: Cipher, direction: Direction) -> Vec<u8> {
        let mut info = b"storage-socket 1 ".to_vec();
        info.extend_from_slice(purpose);
        info.extend_from_slice(&self.connection.0);
        info.extend_from_slice(&self.generation.0.to_le_bytes());
        info.extend_from_slice(&self.epoch.0.to_le_bytes());
        info.extend_from_slice(&self.incarnation.0.to_le_bytes());
        info.push(cipher.code());
        info.push(direction as u8);
        info
    }
}

/// Blocks that a frame with this payload takes.
#[must_use]
pub fn frame_blocks(payload_bytes: usize) -> BlockCount {
    BlockCount::covering(FRAME_HEADER_BYTES.saturating_add(payload_bytes))
}

/// What became of a frame's bytes when they were opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameVerdict {
    /// Whole and right; so many bytes of payload.
    Whole {
        /// Bytes of payload.
        payload_bytes: usize,
    },
    /// The header fits, but the frame is longer than what was read: read so many blocks.
    Longer {
        /// Blocks of the frame by its header's word, no more than a frame slot.
        blocks: BlockCount,
    },
    /// Something else is there: blank, older, foreign.
    NotYet(FormatError),
    /// The header fits and the tag doesn't: torn, rotten or forged.
    Damaged(FormatError),
    /// The read failed.
    Failed(crate::io::IoFailure),
}

/// Seals the frames of one direction. Workers may share it.
#[derive(Debug)]
pub struct FrameSealer(Frames);

/// Opens the frames of one direction. Workers may share it.
#[derive(Debug)]
pub struct FrameOpener(Frames);

impl FrameSealer {
    /// A sealer for the frames that are sent in `direction`.
    #[must_use]
    pub fn new(identity: StreamIdentity, direction: Direction, protection: &Protection) -> Self {
        Self(Frames::new(identity, direction, protection))
    }

    /// Seals the frame whose payload stands behind the header's place in `frame`, in place: writes the header, and
    /// zeros up to the end of the last block. Returns how many blocks of `frame` are to be written.
    ///
    /// # Errors
    /// [`UsageError::PayloadLength`], [`UsageError::BufferLength`], or [`UsageError::NoKey`] for a sequence that is
    /// far behind or ahead of the others.
    pub fn seal_in_place(
        &self,
        sequence: Sequence,
        payload_bytes: usize,
        frame: &mut [u8],
    ) -> Result<BlockCount, UsageError> {
        let blocks = self.0.begin(sequence, payload_bytes, frame)?;
        let (header, rest) = frame.split_at_mut(FRAME_HEADER_BYTES);
        let payload = &mut rest[..payload_bytes];
        let tag = match self.0.key(sequence)? {
            None => checksum(header, payload),
            Some(key) => {
                let mut tag = [0; TAG_BYTES];
                let aad = Aad::from(&header[..TAG_AT]);
                let sealed = key
                    .seal_in_place_separate_tag(nonce(sequence), aad, payload)
                    .expect("a frame is far shorter than what a nonce may seal");
                tag.copy_from_slice(sealed.as_ref());
                tag
            }
        };
        header[TAG_AT..].copy_from_slice(&tag);
        Ok(blocks)
    }

    /// Seals `payload` into `frame`, reading the one and writing the other in the same pass. Returns how many blocks
    /// of `frame` are to be written.
    ///
    /// # Errors
    /// As [`FrameSealer::seal_in_place`].
    pub fn seal_from(
        &self,
        sequence: Sequence,
        payload: &[u8],
        frame: &mut [u8],
    ) -> Result<BlockCount, UsageError> {
        let blocks = self.0.begin(sequence, payload.len(), frame)?;
        let (header, rest) = frame.split_at_mut(FRAME_HEADER_BYTES);
        let out = &mut rest[..payload.len()];
        let tag = match self.0.key(sequence)? {
            None => {
                out.copy_from_slice(payload);
                checksum(header, out)
            }
            Some(key) => {
                let mut tag = [0; TAG_BYTES];
                let aad = Aad::from(&header[..TAG_AT]);
                key.seal_out_of_place_scatter(nonce(sequence), aad, payload, out, &[], &mut tag)
                    .expect("lengths agree and a frame is far shorter than what a nonce may seal");
                tag
            }
        };
        header[TAG_AT..].copy_from_slice(&tag);
        Ok(blocks)
    }
}

impl FrameOpener {
    /// An opener for the frames that are received in `direction`.
    #[must_use]
    pub fn new(identity: StreamIdentity, direction: Direction, protection: &Protection) -> Self {
        Self(Frames::new(identity, direction, protection))
    }

    /// Opens the frame in place: after [`FrameVerdict::Whole`] the payload stands behind the header.
    ///
    /// After [`FrameVerdict::Damaged`] the buffer's content is worth nothing.
    #[must_use]
    pub fn open_in_place(&self, sequence: Sequence, frame: &mut [u8]) -> FrameVerdict {
        let (payload_bytes, key) = match self.0.header(sequence, frame) {
            Ok(found) => found,
            Err(verdict) => return verdict,
        };
        let (header, rest) = frame.split_at_mut(FRAME_HEADER_BYTES);
        let payload = &mut rest[..payload_bytes];
        let whole = match key {
            None => checksum(header, payload) == header[TAG_AT..],
            Some(key) => {
                let (aad, tag) = header.split_at(TAG_AT);
                key.open_in_place_separate_tag(nonce(sequence), Aad::from(aad), tag, payload)
                    .is_ok()
            }
        };
        verdict(whole, payload_bytes)
    }

    /// Opens the frame into `out`, which has to be as long as the payload at least.
    ///
    /// # Errors
    /// [`UsageError::BufferLength`] if `out` is too short for a frame that fits otherwise.
    pub fn open_into(
        &self,
        sequence: Sequence,
        frame: &[u8],
        out: &mut [u8],
    ) -> Result<FrameVerdict, UsageError> {
        let (payload_bytes, key) = match self.0.header(sequence, frame) {
            Ok(found) => found,
            Err(verdict) => return Ok(verdict),
        };
        let got = out.len();
        let Some(out) = out.get_mut(..payload_bytes) else {
            return Err(UsageError::BufferLength {
                want: payload_bytes,
                got,
            });
        };
        let (header, rest) = frame.split_at(FRAME_HEADER_BYTES);
        let payload = &rest[..payload_bytes];
        let whole = match key {
            None => {
                out.copy_from_slice(payload);
                checksum(header, out) == header[TAG_AT..]
            }
            Some(key) => {
                let (aad, tag) = header.split_at(TAG_AT);
                key.open_separate_gather(nonce(sequence), Aad::from(aad), payload, tag, out)
                    .is_ok()
            }
        };
        Ok(verdict(whole, payload_bytes))
    }
}

fn verdict(whole: bool, payload_bytes: usize) -> FrameVerdict {
    if whole {
        FrameVerdict::Whole { payload_bytes }
    } else {
        FrameVerdict::Damaged(FormatError::BadTag)
    }
}

/// What sealer and opener share.
#[derive(Debug)]
struct Frames {
    identity: StreamIdentity,
    direction: Direction,
    cipher: Cipher,
    chain: Option<Mutex<KeyChain>>,
}

impl Frames {
    fn new(identity: StreamIdentity, direction: Direction, protection: &Protection) -> Self {
        let cipher = protection.cipher();
        let chain = protection.secret().map(|secret| {
            let info = identity.info(b"chain 0", cipher, direction);
            Mutex::new(KeyChain {
                cipher,
                link: expand(&root(&identity, secret), &info),
                next: KeyEpoch(0),
                keys: Vec::new(),
            })
        });
        Self {
            identity,
            direction,
            cipher,
            chain,
        }
    }

    fn key(&self, sequence: Sequence) -> Result<Option<Arc<LessSafeKey>>, UsageError> {
        let Some(chain) = &self.chain else {
            return Ok(None);
        };
        let epoch = self.identity.key_epoch(sequence);
        // The chain is replaced as a whole at each step, so that it is sound even if a holder of the lock panicked.
        let mut chain = chain.lock().unwrap_or_else(PoisonError::into_inner);
        chain.key(epoch).map(Some).ok_or(UsageError::NoKey(epoch))
    }

    /// Checks the lengths, writes the header without its tag, and zeros after the payload.
    fn begin(
        &self,
        sequence: Sequence,
        payload_bytes: usize,
        frame: &mut [u8],
    ) -> Result<BlockCount, UsageError> {
        let most = self.identity.payload_bytes_max();
        let length = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        if payload_bytes == 0 || payload_bytes > most {
            return Err(UsageError::PayloadLength {
                most,
                got: payload_bytes,
            });
        }
        let blocks = frame_blocks(payload_bytes);
        let got = frame.len();
        let Some(used) = frame.get_mut(..blocks.bytes()) else {
            return Err(UsageError::BufferLength {
                want: blocks.bytes(),
                got,
            });
        };
        used[FRAME_HEADER_BYTES + payload_bytes..].fill(0);
        let header = &mut used[..FRAME_HEADER_BYTES];
        header.fill(0);
        header[0..4].copy_from_slice(&FRAME_MAGIC);
        header[4..6].copy_from_slice(&crate::block::FORMAT_VERSION.to_le_bytes());
        header[6] = self.cipher.code();
        header[7] = self.direction as u8;
        header[8..24].copy_from_slice(self.identity.pool.0.as_bytes());
        header[24..40].copy_from_slice(&self.identity.connection.0);
        header[40..48].copy_from_slice(&self.identity.generation.0.to_le_bytes());
        header[48..56].copy_from_slice(&sequence.0.to_le_bytes());
        header[56..60].copy_from_slice(&self.identity.key_epoch(sequence).0.to_le_bytes());
        header[60..64].copy_from_slice(&length.to_le_bytes());
        Ok(blocks)
    }

    /// Checks everything of the header but its tag; gives the payload's length and the key.
    fn header(
        &self,
        sequence: Sequence,
        frame: &[u8],
    ) -> Result<(usize, Option<Arc<LessSafeKey>>), FrameVerdict> {
        let payload_bytes = self
            .check_header(sequence, frame)
            .map_err(FrameVerdict::NotYet)?;
        let most = self.identity.payload_bytes_max();
        if payload_bytes == 0 || payload_bytes > most {
            return Err(FrameVerdict::Damaged(FormatError::BadField {
                field: "payload length",
                got: payload_bytes as u64,
            }));
        }
        let blocks = frame_blocks(payload_bytes);
        if frame.len() < blocks.bytes() {
            return Err(FrameVerdict::Longer { blocks });
        }
        let epoch = self.identity.key_epoch(sequence);
        let key = self.key(sequence).map_err(|_| {
            FrameVerdict::NotYet(FormatError::OtherKeyEpoch {
                want: epoch,
                got: epoch,
            })
        })?;
        Ok((payload_bytes, key))
    }

    fn check_header(&self, sequence: Sequence, frame: &[u8]) -> Result<usize, FormatError> {
        use crate::block::FORMAT_VERSION;
        let Some(header) = frame.get(..FRAME_HEADER_BYTES) else {
            return Err(FormatError::Truncated {
                want: FRAME_HEADER_BYTES,
                got: frame.len(),
            });
        };
        if header.iter().all(|&byte| byte == 0) {
            return Err(FormatError::Blank);
        }
        if header[0..4] != FRAME_MAGIC {
            return Err(FormatError::BadMagic {
                want: u32::from_le_bytes(FRAME_MAGIC),
                got: u32::from_le_bytes(field(header, 0)),
            });
        }
        let version = u16::from_le_bytes(field(header, 4));
        if version != FORMAT_VERSION {
            return Err(FormatError::NewerFormat {
                got: version,
                readable_from: version,
                supported: FORMAT_VERSION,
            });
        }
        self.check_identity(header)?;
        let got = Sequence(u64::from_le_bytes(field(header, 48)));
        if got != sequence {
            return Err(FormatError::OtherSequence {
                want: sequence,
                got,
            });
        }
        let want = self.identity.key_epoch(sequence);
        let got = KeyEpoch(u32::from_le_bytes(field(header, 56)));
        if got != want {
            return Err(FormatError::OtherKeyEpoch { want, got });
        }
        let length = u32::from_le_bytes(field(header, 60));
        Ok(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn check_identity(&self, header: &[u8]) -> Result<(), FormatError> {
        let pool = PoolId(uuid::Uuid::from_bytes(field(header, 8)));
        if pool != self.identity.pool {
            return Err(FormatError::OtherPool {
                want: self.identity.pool,
                got: pool,
            });
        }
        let connection = ConnectionId(field(header, 24));
        if connection != self.identity.connection {
            return Err(FormatError::OtherConnection {
                want: self.identity.connection,
                got: connection,
            });
        }
        let generation = Generation(u64::from_le_bytes(field(header, 40)));
        if generation != self.identity.generation {
            return Err(FormatError::OtherGeneration {
                want: self.identity.generation,
                got: generation,
            });
        }
        if header[7] != self.direction as u8 {
            return Err(FormatError::OtherDirection {
                want: self.direction,
            });
        }
        if header[6] != self.cipher.code() {
            return Err(FormatError::OtherCipher {
                want: self.cipher.code(),
                got: header[6],
            });
        }
        Ok(())
    }
}

/// The successive keys of one direction.
struct KeyChain {
    cipher: Cipher,
    link: Zeroizing<[u8; 32]>,
    next: KeyEpoch,
    keys: Vec<(KeyEpoch, Arc<LessSafeKey>)>,
}

impl std::fmt::Debug for KeyChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyChain(next {})", self.next)
    }
}

impl KeyChain {
    /// The key of `epoch`: one of the last two, or the next.
    fn key(&mut self, epoch: KeyEpoch) -> Option<Arc<LessSafeKey>> {
        if epoch == self.next {
            self.advance();
        }
        self.keys
            .iter()
            .find(|(known, _)| *known == epoch)
            .map(|(_, key)| Arc::clone(key))
    }

    fn advance(&mut self) {
        let algorithm = match self.cipher {
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Cipher::Aes256Gcm | Cipher::Checksum => &AES_256_GCM,
        };
        let bytes = expand(&prk(&self.link), b"storage-socket 1 key");
        let key = UnboundKey::new(algorithm, &bytes[..]).expect("both ciphers take 32 bytes");
        self.keys.push((self.next, Arc::new(LessSafeKey::new(key))));
        if self.keys.len() > KEYS_KEPT {
            self.keys.remove(0);
        }
        self.link = expand(&prk(&self.link), b"storage-socket 1 next");
        self.next = KeyEpoch(self.next.0.saturating_add(1));
    }
}

fn root(identity: &StreamIdentity, secret: &StreamSecret) -> hkdf::Prk {
    hkdf::Salt::new(hkdf::HKDF_SHA256, identity.pool.0.as_bytes()).extract(&secret.0[..])
}

fn prk(link: &Zeroizing<[u8; 32]>) -> hkdf::Prk {
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &link[..])
}

fn expand(prk: &hkdf::Prk, info: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut out = [0; 32];
    prk.expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out))
        .expect("32 bytes are within what HKDF-SHA256 gives");
    let kept = Zeroizing::new(out);
    out.zeroize();
    kept
}

fn nonce(sequence: Sequence) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&sequence.0.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn checksum(header: &[u8], payload: &[u8]) -> [u8; TAG_BYTES] {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(&header[..TAG_AT]);
    digest.update(payload);
    let mut tag = [0; TAG_BYTES];
    tag[..8].copy_from_slice(&digest.finalize().to_le_bytes());
    tag
}

fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[at..at + N]);
    field
}

const FRAME_MAGIC: [u8; 4] = *b"BLfr";
const TAG_AT: usize = 112;
const TAG_BYTES: usize = 16;
const _: () = assert!(TAG_AT + TAG_BYTES == FRAME_HEADER_BYTES && FRAME_HEADER_BYTES < BLOCK_BYTES);

/// Bytes of frame slots that one key serves.
pub const KEY_BYTES_MAX: u64 = 64 << 30;
/// Keys in memory: the newest, and the one before for frames that are still under way.
const KEYS_KEPT: usize = 2;
/// The id under which the control blocks of a sealed stream name their key.
const CONTROL_KEY: KeyId = KeyId(1);
