//! Keys: each opens the repository with a password of its own, and all of them hold the same master key.
//!
//! Invariants: a key that was added has been read back and opened before that is told; the key that a repository was
//! opened with is not removed, so that one is always left.

use backlane_proto::{ObjectId, ObjectKind, ObjectName};
use bytes::Bytes;
use rustic_core::repofile::KeyFile;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::engine;
use crate::error::{Damage, RepoError};
use crate::repository::{Repository, damaged, master_json, name, unreadable};
use crate::seal::{SealKey, sha256};
use crate::snapshot::as_text;
use crate::store::ObjectStore;

/// Memory that a key may make scrypt use: far above what any program writes, far below what would hurt.
const SCRYPT_BYTES_MAX: u64 = 1 << 30;

/// A password of so many characters is taken for one that nobody finds by trying, as those are that Backlane makes.
const LONG_PASSWORD: usize = 40;

/// The logarithm of scrypt's N for those: 32 MiB.
const LONG_LOG_N: u32 = 15;

/// The same for passwords that somebody may have thought of, which is what the engine takes: 128 MiB.
const SHORT_LOG_N: u32 = 17;

/// What is known of a key without its password. Nothing in it is authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// The key's object.
    #[serde(serialize_with = "as_text")]
    pub id: ObjectId,
    /// Whether it is the one that this repository was opened with.
    pub is_open: bool,
    /// The host that it was made for or on.
    pub host: Option<String>,
    /// The user who made it.
    pub user: Option<String>,
    /// When it was made, as RFC 3339 to the second, in UTC.
    pub created: Option<String>,
    /// What is wrong with its object, if it can't be used.
    pub damage: Option<String>,
}

impl Repository {
    /// Lists the keys, the oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn keys(&self) -> Result<Vec<KeyInfo>, RepoError> {
        let store = self.inner.store.as_ref();
        let mut keys = Vec::new();
        for object in store.list(ObjectKind::Key)? {
            let (file, damage) = match read_key(store, object.id) {
                Ok(file) => (Some(file), None),
                Err(error) if error.is_damage() => (None, Some(error.to_string())),
                Err(error) => return Err(error),
            };
            let (host, user, created) = file
                .map(|file| (file.hostname, file.username, file.created))
                .unwrap_or_default();
            let created = created.map(|created| created.timestamp());
            let text = |time: jiff::Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            keys.push((
                created,
                KeyInfo {
                    id: object.id,
                    is_open: object.id == self.inner.opened_by,
                    host,
                    user,
                    created: created.map(text),
                    damage,
                },
            ));
        }
        keys.sort_by_key(|(created, key)| (*created, key.id));
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }

    /// Adds a key for another password, which `host` says who has, and opens it as it was stored.
    ///
    /// # Errors
    /// When it can't be stored, or doesn't open what is stored.
    pub fn add_key(&self, password: &str, host: &str) -> Result<ObjectId, RepoError> {
        let inner = &self.inner;
        let master = master_json(&inner.key);
        let (name, body) = new_key(master.as_bytes(), password, Some(host.to_owned()))?;
        inner
            .backend
            .write_after_all(name, body)
            .map_err(|cause| RepoError::WriteFailed { cause })?;
        let id = name.id;
        let opened = open_key(inner.store.as_ref(), id, password)?;
        match opened.is_some_and(|key| key.parts() == inner.key.parts()) {
            true => Ok(id),
            false => Err(bad(
                id,
                "it does not open with the password that it was made for",
            )),
        }
    }

    /// Removes a key, named by its id or the beginning of it. What its password opens, another's opens as well.
    ///
    /// # Errors
    /// [`RepoError::KeyNotFound`]; [`RepoError::OnlyKey`] and [`RepoError::KeyInUse`], for a key that must stay; or when
    /// it can't be removed.
    pub fn remove_key(&self, wanted: &str) -> Result<ObjectId, RepoError> {
        let inner = &self.inner;
        let keys = inner.store.list(ObjectKind::Key)?;
        let prefix = wanted.to_ascii_lowercase();
        let alike = |id: &ObjectId| !prefix.is_empty() && id.to_string().starts_with(&prefix);
        let found: Vec<_> = keys.iter().map(|key| key.id).filter(alike).collect();
        let [id] = found[..] else {
            return Err(RepoError::KeyNotFound {
                wanted: wanted.to_owned(),
                matches: found.len(),
            });
        };
        if keys.len() == 1 {
            return Err(RepoError::OnlyKey { id });
        }
        if id == inner.opened_by {
            return Err(RepoError::KeyInUse { id });
        }
        inner
            .backend
            .delete(name(ObjectKind::Key, id))
            .map_err(|cause| RepoError::WriteFailed { cause })?;
        Ok(id)
    }
}

/// An object that holds a master key, as JSON, for a password.
pub(crate) fn new_key(
    master: &[u8],
    password: &str,
    host: Option<String>,
) -> Result<(ObjectName, Bytes), RepoError> {
    let failed = |what: &str| RepoError::Engine {
        doing: "making a key",
        what: what.to_owned(),
    };
    let mut salt = vec![0; 64];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| failed("the system has no randomness"))?;
    let log_n = match password.chars().count() < LONG_PASSWORD {
        true => SHORT_LOG_N,
        false => LONG_LOG_N,
    };
    let mut file = KeyFile {
        hostname: host,
        username: None,
        created: Some(jiff::Zoned::now()),
        kdf: "scrypt".to_owned(),
        n: 1 << log_n,
        r: 8,
        p: 1,
        data: Vec::new(),
        salt,
    };
    let key = engine::caught("making a key", || Ok(file.kdf_key(&password)?.to_keys()))?;
    let sealed = seal_key(key).and_then(|key| key.seal(master));
    file.data = sealed.ok_or_else(|| failed("it can't be sealed"))?.into();
    let json = serde_json::to_vec(&file).map_err(|error| failed(&error.to_string()))?;
    let id = ObjectId(sha256(&json));
    Ok((name(ObjectKind::Key, id), json.into()))
}

/// The engine's key in three parts; `None` when one of them hasn't its length.
fn seal_key((encrypt, k, r): (Vec<u8>, Vec<u8>, Vec<u8>)) -> Option<SealKey> {
    let [encrypt, k, r] = [encrypt, k, r].map(Zeroizing::new);
    SealKey::from_parts(&encrypt, &k, &r)
}

fn bad(id: ObjectId, what: &str) -> RepoError {
    let what = what.to_owned();
    damaged(name(ObjectKind::Key, id), Damage::Content { what })
}

fn read_key(store: &dyn ObjectStore, id: ObjectId) -> Result<KeyFile, RepoError> {
    let name = name(ObjectKind::Key, id);
    let json = store.read(name, None)?;
    serde_json::from_slice(&json).map_err(|error| unreadable(name, &error))
}

/// The key in a key object, if the password opens it.
pub(crate) fn open_key(
    store: &dyn ObjectStore,
    id: ObjectId,
    password: &str,
) -> Result<Option<SealKey>, RepoError> {
    let file = read_key(store, id)?;
    // The object is not authenticated before the password has opened it: no parameter is believed blindly.
    let memory = 128 * u64::from(file.n) * u64::from(file.r);
    let sane = file.kdf == "scrypt" && file.n.is_power_of_two() && (1..=64).contains(&file.p);
    if !sane || memory == 0 || memory > SCRYPT_BYTES_MAX {
        return Err(bad(id, "its scrypt parameters are out of range"));
    }
    let opened = engine::caught("opening a key", || {
        match file.key_from_password(&password) {
            Ok(key) => Ok(Some(key.to_keys())),
            // The engine's code for a tag that doesn't fit.
            Err(error) if error.is_code("C001") => Ok(None),
            Err(error) => Err(error),
        }
    })?;
    let Some(parts) = opened else {
        return Ok(None);
    };
    let key = seal_key(parts);
    key.map(Some)
        .ok_or_else(|| bad(id, "its key has a wrong length"))
}
