//! Sealing and opening objects and blobs: AES-256-CTR with Poly1305-AES, zstd, SHA-256, as the restic format has them.
//!
//! Sealed bytes are a nonce of 16 bytes, the ciphertext, and a tag of 16 bytes. Nothing is decompressed before its tag
//! was checked, and never to more than the length that was announced.

use std::cell::RefCell;
use std::io::Read;

use aes256ctr_poly1305aes::aead::AeadInPlace;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key};
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use zeroize::Zeroizing;

use crate::error::Damage;
use crate::index::{BlobId, BlobPlace};

const NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// What sealing adds to the plain bytes.
pub(crate) const SEAL_BYTES: u32 = 32;

/// No object of JSON is larger than this once decompressed; far above what any engine writes.
const OBJECT_PLAIN_BYTES_MAX: u64 = 1 << 30;

/// zstd's own default level, which the engine uses as well.
const OBJECT_LEVEL: i32 = 0;

/// First byte of an object that is compressed, before the zstd frame.
const COMPRESSED: u8 = 2;

/// A key of 64 bytes: 32 for AES-256-CTR, 16 for AES in Poly1305-AES, 16 for r.
#[derive(Clone)]
pub(crate) struct SealKey(Zeroizing<[u8; 64]>);

impl SealKey {
    /// Joins the three parts; `None` when one of them hasn't its length.
    pub(crate) fn from_parts(encrypt: &[u8], k: &[u8], r: &[u8]) -> Option<Self> {
        if (encrypt.len(), k.len(), r.len()) != (32, 16, 16) {
            return None;
        }
        let mut key = Zeroizing::new([0; 64]);
        key[..32].copy_from_slice(encrypt);
        key[32..48].copy_from_slice(k);
        key[48..].copy_from_slice(r);
        Some(Self(key))
    }

    /// The parts again: for AES-256-CTR, for AES in Poly1305-AES, and r.
    pub(crate) fn parts(&self) -> (&[u8], &[u8], &[u8]) {
        (&self.0[..32], &self.0[32..48], &self.0[48..])
    }

    fn cipher(&self) -> Aes256CtrPoly1305Aes {
        Aes256CtrPoly1305Aes::new(Key::from_slice(&self.0[..]))
    }

    /// Opens sealed bytes.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Damage> {
        let short = Damage::TooShort {
            bytes: sealed.len(),
        };
        let (nonce, rest) = sealed.split_at_checked(NONCE_BYTES).ok_or(short.clone())?;
        let plain = rest.len().checked_sub(TAG_BYTES).ok_or(short)?;
        let (body, tag) = rest.split_at(plain);
        let mut body = body.to_vec();
        self.cipher()
            .decrypt_in_place_detached(nonce.into(), &[], &mut body, tag.into())
            .map_err(|_| Damage::Tag)?;
        Ok(body)
    }

    /// Opens an object of JSON, compressed or not.
    pub(crate) fn open_object(&self, sealed: &[u8]) -> Result<Vec<u8>, Damage> {
        let plain = self.open(sealed)?;
        match plain.split_first() {
            Some((b'{' | b'[', _)) => Ok(plain),
            Some((&COMPRESSED, frame)) => decompress_object(frame),
            _ => Err(Damage::Content {
                what: "it is neither JSON nor compressed".to_owned(),
            }),
        }
    }

    /// Compresses and seals an object of JSON; `None` when the system has no randomness or memory.
    pub(crate) fn seal_object(&self, json: &[u8]) -> Option<Bytes> {
        let mut plain = vec![COMPRESSED];
        zstd::stream::copy_encode(json, &mut plain, OBJECT_LEVEL).ok()?;
        self.seal(&plain)
    }

    /// Seals bytes; `None` when the system has no randomness.
    pub(crate) fn seal(&self, plain: &[u8]) -> Option<Bytes> {
        let mut sealed = Vec::with_capacity(plain.len() + SEAL_BYTES as usize);
        self.seal_onto(plain, &mut sealed)?;
        Some(sealed.into())
    }

    /// Seals bytes at the end of others; how long they are there, or `None` when the system has no randomness or they are
    /// too many.
    pub(crate) fn seal_onto(&self, plain: &[u8], sealed: &mut Vec<u8>) -> Option<u32> {
        let length = u32::try_from(plain.len()).ok()?.checked_add(SEAL_BYTES)?;
        let mut nonce = [0; NONCE_BYTES];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        sealed.extend_from_slice(&nonce);
        let start = sealed.len();
        sealed.extend_from_slice(plain);
        let tag = self
            .cipher()
            .encrypt_in_place_detached((&nonce).into(), &[], &mut sealed[start..])
            .ok()?;
        sealed.extend_from_slice(&tag);
        Some(length)
    }

    /// Opens a blob and checks its hash against its name.
    pub(crate) fn open_blob(&self, place: &BlobPlace, sealed: &[u8]) -> Result<Bytes, Damage> {
        let mut plain = self.open(sealed)?;
        if place.compressed {
            plain = decompress_blob(&plain, place.plain_length)?;
        }
        let (want, got) = (u64::from(place.plain_length), plain.len() as u64);
        if want != got {
            return Err(Damage::Length { want, got });
        }
        let got = BlobId(sha256(&plain));
        if got != place.id {
            let want = place.id;
            return Err(Damage::Hash { want, got });
        }
        Ok(plain.into())
    }
}

/// The SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn decompress_object(frame: &[u8]) -> Result<Vec<u8>, Damage> {
    let failed = |error: std::io::Error| Damage::Compression {
        what: error.to_string(),
    };
    let mut plain = Vec::new();
    zstd::stream::Decoder::new(frame)
        .map_err(failed)?
        .take(OBJECT_PLAIN_BYTES_MAX + 1)
        .read_to_end(&mut plain)
        .map_err(failed)?;
    if plain.len() as u64 > OBJECT_PLAIN_BYTES_MAX {
        return Err(Damage::Compression {
            what: format!("it is larger than {OBJECT_PLAIN_BYTES_MAX} bytes"),
        });
    }
    Ok(plain)
}

fn decompress_blob(frame: &[u8], length: u32) -> Result<Vec<u8>, Damage> {
    // One context a thread: making one costs as much as a small blob.
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
            const { RefCell::new(None) };
    }
    let failed = |error: std::io::Error| Damage::Compression {
        what: error.to_string(),
    };
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let context = match slot {
            Some(context) => context,
            None => slot.insert(zstd::bulk::Decompressor::new().map_err(failed)?),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        context.decompress(frame, length).map_err(failed)
    })
}

#[cfg(test)]
mod tests {
    use backlane_proto::ObjectId;

    use super::*;
    use crate::index::BlobKind;

    fn key() -> SealKey {
        SealKey::from_parts(&[1; 32], &[2; 16], &[3; 16]).unwrap()
    }

    fn place(plain: &[u8], compressed: bool) -> BlobPlace {
        BlobPlace {
            id: BlobId(sha256(plain)),
            kind: BlobKind::Data,
            pack: ObjectId::NONE,
            offset: 0,
            length: 0,
            plain_length: u32::try_from(plain.len()).unwrap(),
            compressed,
        }
    }

    fn sealed(plain: &[u8]) -> Vec<u8> {
        let nonce = [9; 16];
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(plain);
        let tag = key()
            .cipher()
            .encrypt_in_place_detached((&nonce).into(), &[], &mut bytes[16..])
            .unwrap();
        bytes.extend_from_slice(&tag);
        bytes
    }

    #[test]
    fn objects_survive_sealing() {
        let json = br#"{"a":1}"#;
        assert_eq!(
            key().open_object(&key().seal_object(json).unwrap()),
            Ok(json.to_vec())
        );
        assert_eq!(key().open_object(&sealed(json)), Ok(json.to_vec()));
    }

    #[test]
    fn every_changed_or_missing_byte_is_found() {
        let whole = key().seal_object(br#"{"a":1}"#).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.to_vec();
            bad[at] ^= 1;
            assert_eq!(key().open_object(&bad), Err(Damage::Tag), "byte {at}");
            assert!(key().open_object(&whole[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_blob_is_only_given_out_under_its_own_hash_and_length() {
        let plain = b"some content, some content";
        let frame = zstd::encode_all(&plain[..], 3).unwrap();
        let good = place(plain, true);
        assert_eq!(key().open_blob(&good, &sealed(&frame)).unwrap(), plain[..]);
        let raw = place(plain, false);
        assert_eq!(key().open_blob(&raw, &sealed(plain)).unwrap(), plain[..]);

        let other = place(b"some content, some cOntent", true);
        let damage = key().open_blob(&other, &sealed(&frame)).unwrap_err();
        assert!(matches!(damage, Damage::Hash { .. }), "{damage}");
        let longer = place(b"some content, some content!", true);
        let damage = key().open_blob(&longer, &sealed(&frame)).unwrap_err();
        assert!(matches!(damage, Damage::Length { .. }), "{damage}");
        let shorter = place(b"some", true);
        let damage = key().open_blob(&shorter, &sealed(&frame)).unwrap_err();
        assert!(matches!(damage, Damage::Compression { .. }), "{damage}");
    }
}
