//! Bodies of archived WAL (`docs/design/wal.md` §2): sealed and opened under keys of their own, which come from the
//! repository's master key.
//!
//! Invariants: nothing is decompressed before its tag was checked, and never to more than the length that was announced;
//! a file is only given out under its own name and digest.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    digest::{Context, SHA256},
    hkdf::{HKDF_SHA256, KeyType, Prk, Salt},
    hmac,
};
use backlane_proto::{
    ObjectKind, ObjectName, WalHeader, WalName,
    wal::{HEADER_BYTES, SUMMED_BYTES},
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::{Damage, RepoError};
use crate::repository::{Repository, damaged};
use crate::seal::SealKey;

/// PostgreSQL's largest segments have so many bytes, and its other files are small.
pub const WAL_FILE_BYTES_MAX: usize = 1 << 30;

const DIGEST_LABEL: &[u8] = b"backlane wal digest v1";
const SEAL_LABEL: &[u8] = b"backlane wal seal v1";
const KEY_BYTES: usize = 32;
/// zstd's own default, as for other objects.
const LEVEL: i32 = 0;

/// Seals and opens archived WAL of one repository.
#[derive(Clone)]
pub struct WalKey {
    master: Prk,
    digest: hmac::Key,
}

/// A master key as `restic cat masterkey` prints it.
#[derive(Deserialize)]
struct MasterKeyJson {
    mac: MacJson,
    encrypt: String,
}

#[derive(Deserialize)]
struct MacJson {
    k: String,
    r: String,
}

/// The length of every key here.
struct KeyLength;

impl KeyType for KeyLength {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

impl Repository {
    /// The key of the WAL that is archived beside this repository.
    #[must_use]
    pub fn wal_key(&self) -> WalKey {
        WalKey::new(&self.inner.key)
    }
}

impl WalKey {
    fn new(key: &SealKey) -> Self {
        let (encrypt, k, r) = key.parts();
        let master = Zeroizing::new([encrypt, k, r].concat());
        let master = Salt::new(HKDF_SHA256, &[]).extract(&master);
        let digest = hmac::Key::new(hmac::HMAC_SHA256, &*derived(&master, &[DIGEST_LABEL]));
        Self { master, digest }
    }

    /// From a master key as `restic cat masterkey` prints it; `None` where that isn't one.
    #[must_use]
    pub fn from_master_key(json: &[u8]) -> Option<Self> {
        let json: MasterKeyJson = serde_json::from_slice(json).ok()?;
        let part = |text: &str| BASE64_STANDARD.decode(text).ok().map(Zeroizing::new);
        let (encrypt, k, r) = (part(&json.encrypt)?, part(&json.mac.k)?, part(&json.mac.r)?);
        SealKey::from_parts(&encrypt, &k, &r).map(|key| Self::new(&key))
    }

    /// Seals a file; `None` when the system has no randomness or memory, or the file is larger than any of PostgreSQL's.
    #[must_use]
    pub fn seal(&self, name: WalName, file: &[u8]) -> Option<Bytes> {
        if file.len() > WAL_FILE_BYTES_MAX {
            return None;
        }
        let mut header = WalHeader {
            plain_bytes: file.len() as u64,
            nonce: [0; 12],
            name,
            digest: self.digest(name, file),
            sum: [0; 32],
        };
        aws_lc_rs::rand::fill(&mut header.nonce).ok()?;
        self.seal_with(header, file)
    }

    fn seal_with(&self, mut header: WalHeader, file: &[u8]) -> Option<Bytes> {
        let mut body = header.encode().to_vec();
        zstd::stream::copy_encode(file, &mut body, LEVEL).ok()?;
        let (clear, sealed) = body.split_at_mut(HEADER_BYTES);
        let tag = self
            .cipher(&header)
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(header.nonce),
                Aad::from(&clear[..SUMMED_BYTES]),
                sealed,
            )
            .ok()?;
        body.extend_from_slice(tag.as_ref());
        header.sum = sum(&body);
        body[..HEADER_BYTES].copy_from_slice(&header.encode());
        Some(body.into())
    }

    /// Opens the body of an object.
    ///
    /// # Errors
    /// [`RepoError::Damaged`] where it isn't the one of this name, of this repository, or not whole.
    pub fn open(&self, name: WalName, body: &[u8]) -> Result<Vec<u8>, RepoError> {
        let object = ObjectName {
            kind: ObjectKind::Wal,
            id: name.id(),
        };
        self.open_body(name, body)
            .map_err(|damage| damaged(object, damage))
    }

    fn open_body(&self, name: WalName, body: &[u8]) -> Result<Vec<u8>, Damage> {
        let content = |what: String| Damage::Content { what };
        let header = WalHeader::decode(body).map_err(|bad| content(bad.to_string()))?;
        if header.name != name {
            return Err(content(format!("it is {}", header.name)));
        }
        if header.sum != sum(body) {
            return Err(content("its SHA-256 is another".to_owned()));
        }
        let length = usize::try_from(header.plain_bytes).ok();
        let length = length.filter(|length| *length <= WAL_FILE_BYTES_MAX);
        let length = length.ok_or_else(|| content(format!("of {} bytes", header.plain_bytes)))?;
        let mut sealed = body[HEADER_BYTES..].to_vec();
        let frame = self
            .cipher(&header)
            .open_in_place(
                Nonce::assume_unique_for_key(header.nonce),
                Aad::from(&body[..SUMMED_BYTES]),
                &mut sealed,
            )
            .map_err(|_| Damage::Tag)?;
        let file = zstd::bulk::decompress(frame, length).map_err(|error| Damage::Compression {
            what: error.to_string(),
        })?;
        if file.len() != length {
            let (want, got) = (length as u64, file.len() as u64);
            return Err(Damage::Length { want, got });
        }
        match self.digest(name, &file) == header.digest {
            true => Ok(file),
            false => Err(content("its digest is another's".to_owned())),
        }
    }

    /// What the same file under the same name has, and no other.
    fn digest(&self, name: WalName, file: &[u8]) -> [u8; 32] {
        let mut digest = hmac::Context::with_key(&self.digest);
        digest.update(&name.id().0);
        digest.update(file);
        bytes_of(digest.sign().as_ref())
    }

    /// Under which one file of one name is sealed.
    fn cipher(&self, header: &WalHeader) -> LessSafeKey {
        let key = derived(
            &self.master,
            &[SEAL_LABEL, &header.name.id().0, &header.digest],
        );
        let key = UnboundKey::new(&AES_256_GCM, &*key);
        LessSafeKey::new(key.expect("the key has the cipher's length"))
    }
}

fn derived(master: &Prk, info: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    master
        .expand(info, KeyLength)
        .and_then(|okm| okm.fill(&mut *key))
        .expect("HKDF gives a hash's length and more");
    key
}

/// The SHA-256 that stands in a body's header, of the rest.
fn sum(body: &[u8]) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    hash.update(&body[..SUMMED_BYTES]);
    hash.update(&body[HEADER_BYTES..]);
    bytes_of(hash.finish().as_ref())
}

fn bytes_of(hash: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &[u8] = include_bytes!("../tests/images/wal-v1.bin");
    const MASTER_KEY: &[u8] = include_bytes!("../tests/images/wal-v1.masterkey.json");

    fn key() -> WalKey {
        WalKey::from_master_key(MASTER_KEY).unwrap()
    }

    fn name(file: &str) -> WalName {
        WalName::from_file_name(7_000_000_000_000_000_001, file).unwrap()
    }

    fn file() -> Vec<u8> {
        let line = |n: u32| format!("row {n} of a table\n").into_bytes();
        (0..200).flat_map(line).collect()
    }

    fn segment() -> WalName {
        name("00000001000000000000000A")
    }

    #[test]
    fn a_body_of_version_1_opens_for_ever() {
        assert_eq!(key().open(segment(), IMAGE).unwrap(), file());
    }

    #[test]
    fn a_changed_or_missing_byte_anywhere_is_noticed() {
        for at in 0..IMAGE.len() {
            let mut changed = IMAGE.to_vec();
            changed[at] ^= 1;
            key().open(segment(), &changed).unwrap_err();
            key().open(segment(), &IMAGE[..at]).unwrap_err();
        }
        key().open(segment(), &[IMAGE, &[0]].concat()).unwrap_err();
    }

    #[test]
    fn whoever_changes_a_body_and_its_sum_is_noticed_too() {
        for at in (0..SUMMED_BYTES).chain(HEADER_BYTES..IMAGE.len()) {
            let mut changed = IMAGE.to_vec();
            changed[at] ^= 1;
            let sum = sum(&changed);
            changed[SUMMED_BYTES..HEADER_BYTES].copy_from_slice(&sum);
            key().open(segment(), &changed).unwrap_err();
        }
    }

    #[test]
    fn a_body_opens_under_its_own_name_and_key_alone() {
        let body = key().seal(segment(), &file()).unwrap();
        assert_eq!(key().open(segment(), &body).unwrap(), file());
        let other = name("00000001000000000000000B");
        let error = key().open(other, &body).unwrap_err().to_string();
        assert!(error.contains("00000001000000000000000A"), "{error}");
        let other = SealKey::from_parts(&[1; 32], &[2; 16], &[3; 16]).unwrap();
        WalKey::new(&other).open(segment(), &body).unwrap_err();
    }

    #[test]
    fn the_same_file_has_the_same_digest_and_no_nonce_comes_twice() {
        let seal = |name, file: &[u8]| WalHeader::decode(&key().seal(name, file).unwrap()).unwrap();
        let (one, two) = (seal(segment(), b"file"), seal(segment(), b"file"));
        assert_eq!(one.digest, two.digest);
        assert_ne!(one.nonce, two.nonce);
        assert_ne!(seal(segment(), b"another").digest, one.digest);
        assert_ne!(seal(name("00000002.history"), b"file").digest, one.digest);
    }

    #[test]
    fn what_decompresses_to_more_than_was_announced_is_refused() {
        let file = vec![0; 1 << 20];
        for announced in [0, 1, (1 << 20) - 1, (1 << 20) + 1, u64::MAX] {
            let header = WalHeader {
                plain_bytes: announced,
                nonce: [1; 12],
                name: segment(),
                digest: key().digest(segment(), &file),
                sum: [0; 32],
            };
            let body = key().seal_with(header, &file).unwrap();
            key().open(segment(), &body).unwrap_err();
        }
    }
}
