//! Framing: messages with a length before them, and chunks of bodies with a header before them.
//!
//! Lengths are checked before memory is taken for what follows.

use crate::CallId;
use bytes::{BufMut, BytesMut};

/// Largest message, in bytes. Listings come in pages, so that none needs more.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of the length before a message.
pub const LENGTH_BYTES: usize = 4;
/// Bytes of a chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 16;
/// Largest chunk of a body, in bytes.
pub const CHUNK_BYTES_MAX: u32 = 1024 * 1024;
/// Largest body, in bytes. Packs have at most 64 MiB; an index or a snapshot of that size would be far from usual.
pub const BODY_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The header of a chunk: call id u64, payload length u32, flags u8, three zero bytes; little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The call whose body this is a part of.
    pub call: CallId,
    /// Bytes of payload that follow.
    pub bytes: u32,
    /// Whether more follows.
    pub flag: ChunkFlag,
}

/// What a chunk says about its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkFlag {
    /// More chunks follow.
    More,
    /// This is the last one.
    Last,
    /// The body ends here unfinished; no payload.
    Abort,
}

/// Bytes that are no message or no chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A message is longer than any may be.
    #[error("message of {bytes} bytes, at most {MESSAGE_BYTES_MAX} allowed")]
    MessageTooLong {
        /// The length that was announced.
        bytes: u64,
    },
    /// A chunk is longer than any may be.
    #[error("chunk of {bytes} bytes, at most {CHUNK_BYTES_MAX} allowed")]
    ChunkTooLong {
        /// The length that was announced.
        bytes: u32,
    },
    /// A chunk's header has bits that must be zero, or flags that exclude each other.
    #[error("chunk header with flags {flags:#04x} and reserved bytes {reserved:02x?}")]
    BadChunkHeader {
        /// The flags.
        flags: u8,
        /// The bytes that must be zero.
        reserved: [u8; 3],
    },
    /// A message can't be decoded.
    #[error("message can't be decoded: {what}")]
    BadMessage {
        /// What is wrong with it.
        what: String,
    },
    /// A field of a message has a value that it can't have.
    #[error("field {field} has no valid value")]
    BadField {
        /// The field.
        field: &'static str,
    },
}

impl From<prost::DecodeError> for CodecError {
    fn from(error: prost::DecodeError) -> Self {
        Self::BadMessage {
            what: error.to_string(),
        }
    }
}

const FLAG_LAST: u8 = 1;
const FLAG_ABORT: u8 = 2;

impl ChunkHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut out = [0; CHUNK_HEADER_BYTES];
        out[..8].copy_from_slice(&self.call.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        out[12] = match self.flag {
            ChunkFlag::More => 0,
            ChunkFlag::Last => FLAG_LAST,
            ChunkFlag::Abort => FLAG_ABORT,
        };
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When the length is beyond [`CHUNK_BYTES_MAX`] or a bit is set that must not be.
    pub fn decode(raw: [u8; CHUNK_HEADER_BYTES]) -> Result<Self, CodecError> {
        let [
            c0,
            c1,
            c2,
            c3,
            c4,
            c5,
            c6,
            c7,
            l0,
            l1,
            l2,
            l3,
            flags,
            r0,
            r1,
            r2,
        ] = raw;
        let call = CallId(u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]));
        let bytes = u32::from_le_bytes([l0, l1, l2, l3]);
        let reserved = [r0, r1, r2];
        let bad = CodecError::BadChunkHeader { flags, reserved };
        if reserved != [0; 3] {
            return Err(bad);
        }
        let flag = match flags {
            0 => ChunkFlag::More,
            FLAG_LAST => ChunkFlag::Last,
            FLAG_ABORT if bytes == 0 => ChunkFlag::Abort,
            _ => return Err(bad),
        };
        if bytes > CHUNK_BYTES_MAX {
            return Err(CodecError::ChunkTooLong { bytes });
        }
        Ok(Self { call, bytes, flag })
    }
}

/// Reads the length before a message.
///
/// # Errors
/// When it is beyond [`MESSAGE_BYTES_MAX`].
pub fn message_bytes(prefix: [u8; LENGTH_BYTES]) -> Result<usize, CodecError> {
    let bytes = u32::from_le_bytes(prefix);
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= MESSAGE_BYTES_MAX)
        .ok_or(CodecError::MessageTooLong {
            bytes: bytes.into(),
        })
}

/// Puts a message behind its length.
///
/// # Errors
/// When it is longer than [`MESSAGE_BYTES_MAX`].
pub fn frame(message: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
    let too_long = CodecError::MessageTooLong {
        bytes: message.len() as u64,
    };
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(too_long);
    }
    let bytes = u32::try_from(message.len()).map_err(|_| too_long)?;
    out.reserve(LENGTH_BYTES + message.len());
    out.put_u32_le(bytes);
    out.put_slice(message);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_header() -> impl Strategy<Value = ChunkHeader> {
        let flag =
            proptest::sample::select(vec![ChunkFlag::More, ChunkFlag::Last, ChunkFlag::Abort]);
        (any::<u64>(), 0..=CHUNK_BYTES_MAX, flag).prop_map(|(call, bytes, flag)| ChunkHeader {
            call: CallId(call),
            bytes: if flag == ChunkFlag::Abort { 0 } else { bytes },
            flag,
        })
    }

    proptest! {
        #[test]
        fn chunk_header_survives_the_wire(header in any_header()) {
            prop_assert_eq!(ChunkHeader::decode(header.encode()), Ok(header));
        }

        #[test]
        fn any_sixteen_bytes_are_a_header_or_an_error(raw in any::<[u8; CHUNK_HEADER_BYTES]>()) {
            if let Ok(header) = ChunkHeader::decode(raw) {
                prop_assert!(header.bytes <= CHUNK_BYTES_MAX);
                prop_assert_eq!(header.encode(), raw);
            }
        }
    }

    #[test]
    fn giant_lengths_are_refused_before_memory_is_taken() {
        assert!(message_bytes(u32::MAX.to_le_bytes()).is_err());
        let giant = vec![0; MESSAGE_BYTES_MAX + 1];
        assert!(frame(&giant, &mut BytesMut::new()).is_err());
        let edge = u32::try_from(MESSAGE_BYTES_MAX).unwrap();
        assert_eq!(message_bytes(edge.to_le_bytes()), Ok(MESSAGE_BYTES_MAX));
    }
}
