//! Making and opening repositories.
//!
//! A password opens a key, the key opens the config, and only a key that does both is believed. What an object is and
//! whether it is whole is decided here, before anything is parsed.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use backlane_proto::{ByteRange, ObjectId, ObjectKind, ObjectName};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use rustic_core::repofile::{ConfigFile, MasterKey};
use rustic_core::{ConfigOptions, Credentials};
use zeroize::Zeroizing;

use crate::backend::Backend;
use crate::engine::{self, Engine};
use crate::error::{Damage, RepoError};
use crate::index::{Index, Places};
use crate::keys::{new_key, open_key};
use crate::parallel;
use crate::progress::{Progress, ProgressSlot};
use crate::reader::Reader;
use crate::seal::SealKey;
use crate::store::{ObjectStore, StoreError};

/// A pack is closed when it reaches this size; see [`crate::backend`] for why it is no larger.
pub(crate) const PACK_TARGET_BYTES: u32 = 8 << 20;

/// Packs of trees are small, so that a reader may fetch whole ones.
pub(crate) const TREE_PACK_TARGET_BYTES: u32 = 4 << 20;

/// And no pack has more blobs: its header has to be read whole.
pub(crate) const PACK_BLOBS_MAX: usize = 10_000;

/// An open repository. Clones share it, also its failure.
#[derive(Clone)]
pub struct Repository {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) backend: Arc<Backend>,
    pub(crate) progress: ProgressSlot,
    pub(crate) key: SealKey,
    /// The object that the key was in.
    pub(crate) opened_by: ObjectId,
    credentials: Credentials,
    pub(crate) config: ConfigFile,
}

/// What a new repository shall be like.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// The level of zstd; `None` is zstd's default.
    pub compression_level: Option<i32>,
    /// Recorded in the key: who made it.
    pub host: Option<String>,
}

impl Repository {
    /// Makes a new repository, version 2, and opens it.
    ///
    /// # Errors
    /// [`RepoError::AlreadyExists`] when there is one; otherwise what the store or the engine reports.
    pub fn init(
        store: Arc<dyn ObjectStore>,
        password: &str,
        options: &InitOptions,
    ) -> Result<Self, RepoError> {
        if !store.list(ObjectKind::Config)?.is_empty() {
            return Err(RepoError::AlreadyExists);
        }
        let backend = Arc::new(Backend::new(Arc::clone(&store), None));
        let bytes = |bytes: u32| bytesize::ByteSize(bytes.into());
        // Stock rustic goes by it too.
        let mut config = ConfigOptions::default()
            .set_version(2)
            .set_treepack_size(bytes(TREE_PACK_TARGET_BYTES))
            .set_treepack_size_limit(bytes(TREE_PACK_TARGET_BYTES))
            .set_treepack_growfactor(0)
            .set_datapack_size(bytes(PACK_TARGET_BYTES))
            .set_datapack_size_limit(bytes(PACK_TARGET_BYTES))
            .set_datapack_growfactor(0);
        config.set_compression = options.compression_level;
        let master = MasterKey::new();
        let json = serde_json::to_vec(&master).map(Zeroizing::new);
        let json = json.map_err(|error| RepoError::Engine {
            doing: "making a key",
            what: error.to_string(),
        })?;
        let (name, key) = new_key(&json, password, options.host.clone())?;
        let written = backend.write_after_all(name, key);
        written.map_err(|cause| RepoError::WriteFailed { cause })?;
        // The config comes last: with it there is a repository.
        engine::guarded(&backend, "making the repository", || {
            let (credentials, none) = (
                Credentials::Masterkey(master),
                rustic_core::KeyOptions::default(),
            );
            engine::unopened(&backend, &ProgressSlot::default())?
                .init(&credentials, &none, &config)
                .map(drop)
        })?;
        Self::open(store, password)
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// [`RepoError::NotARepository`], [`RepoError::WrongPassword`], [`RepoError::UnsupportedVersion`],
    /// [`RepoError::Damaged`], or what the store reports.
    pub fn open(store: Arc<dyn ObjectStore>, password: &str) -> Result<Self, RepoError> {
        if store.list(ObjectKind::Config)?.is_empty() {
            let what = "it has no config";
            return Err(RepoError::NotARepository { what });
        }
        let config_name = name(ObjectKind::Config, ObjectId::NONE);
        let sealed_config = store.read(config_name, None)?;
        let keys = store.list(ObjectKind::Key)?;
        if keys.is_empty() {
            let what = "it has no key";
            return Err(RepoError::NotARepository { what });
        }
        let mut closed = None;
        for info in &keys {
            match open_key(store.as_ref(), info.id, password) {
                Ok(Some(key)) => match key.open_object(&sealed_config) {
                    Ok(json) => return Self::with_key(store, key, info.id, &json),
                    Err(damage) => closed = Some(damaged(config_name, damage)),
                },
                Ok(None) => {}
                // Another key may be the one that the password is for.
                Err(error) if error.is_damage() => closed = closed.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(closed.unwrap_or(RepoError::WrongPassword { keys: keys.len() }))
    }

    fn with_key(
        store: Arc<dyn ObjectStore>,
        key: SealKey,
        opened_by: ObjectId,
        config: &[u8],
    ) -> Result<Self, RepoError> {
        let config: ConfigFile = serde_json::from_slice(config)
            .map_err(|error| unreadable(name(ObjectKind::Config, ObjectId::NONE), &error))?;
        if !(1..=2).contains(&config.version) {
            let version = config.version;
            return Err(RepoError::UnsupportedVersion { version });
        }
        let engines_config = engines_config(&key, &config)?;
        let inner = Inner {
            backend: Arc::new(Backend::new(Arc::clone(&store), Some(engines_config))),
            store,
            progress: ProgressSlot::default(),
            credentials: Credentials::Masterkey(master_key(&key)?),
            key,
            opened_by,
            config,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The repository's identity: random, made when it was.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        crate::convert::object_id(&self.inner.config.id.into_inner())
    }

    /// The format's version: 1 or 2.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.inner.config.version
    }

    /// Sets who is told of progress; `None` is nobody.
    pub fn set_progress(&self, progress: Option<Arc<dyn Progress>>) {
        self.inner.progress.set(progress);
    }

    /// Whether a write has failed, after which nothing but errors comes from this handle. Cheap.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.inner.backend.window().failed()
    }

    /// The write failure that ended this handle.
    #[must_use]
    pub fn first_failure(&self) -> Option<Arc<StoreError>> {
        self.inner.backend.window().first_error()
    }

    /// Reads the index and gives access to trees and blobs. Objects of the index that are damaged are named
    /// ([`Reader::index_damage`]): what the others know can still be read.
    ///
    /// # Errors
    /// When the store fails.
    pub fn reader(&self) -> Result<Reader, RepoError> {
        let (index, damage) = self.inner.index()?;
        Ok(Reader::new(Arc::clone(&self.inner), index, damage))
    }

    /// Reads the index.
    ///
    /// # Errors
    /// When an index object can't be read, or is damaged.
    pub fn index(&self) -> Result<Index, RepoError> {
        let (index, mut damage) = self.inner.index()?;
        damage.pop().map_or(Ok(index), Err)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.id())
            .finish()
    }
}

impl Inner {
    /// A fresh engine.
    pub(crate) fn engine(&self) -> rustic_core::RusticResult<Engine> {
        engine::opened(&self.backend, &self.progress, &self.credentials)
    }

    /// The index, and what was wrong with objects of it.
    pub(crate) fn index(&self) -> Result<(Index, Vec<RepoError>), RepoError> {
        let index = Mutex::new(Index::default());
        let damage = self.for_each_object(ObjectKind::Index, |id, json| {
            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
            index
                .add_json(&json)
                .map_err(|damage| damaged(name(ObjectKind::Index, id), damage))
        })?;
        let mut index = index.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Of a blob in two packs one may be gone, and it stands in two because of that.
        if index.sort() == Places::Several {
            let packs = self.store.list(ObjectKind::Pack)?;
            index.prefer(&packs.iter().map(|pack| pack.id).collect());
        }
        index.finish();
        Ok((index, damage))
    }

    /// Runs a call of the engine that reads the index. Where objects of it are damaged, the call is run again without
    /// them, and what is wrong with them comes beside what it gives: the engine doesn't know then what they alone know.
    pub(crate) fn over_damaged_index<T>(
        &self,
        doing: &'static str,
        call: impl Fn() -> rustic_core::RusticResult<T>,
    ) -> Result<(T, Vec<RepoError>), RepoError> {
        let failed = match engine::guarded(&self.backend, doing, &call) {
            Ok(done) => return Ok((done, Vec::new())),
            Err(error @ RepoError::WriteFailed { .. }) => return Err(error),
            Err(error) => error,
        };
        let (_, damage) = self.index()?;
        if damage.is_empty() {
            return Err(failed);
        }
        let objects = damage.iter().filter_map(RepoError::object);
        let nothing = objects.map(|object| (object.id, None)).collect();
        let _without = self.backend.show_instead(nothing);
        let done = engine::guarded(&self.backend, doing, &call)?;
        Ok((done, damage))
    }

    /// The damaged snapshot or part of the index that made the engine fail, if there is one: the engine's own words
    /// don't always name it.
    pub(crate) fn cause_of(&self, error: RepoError) -> RepoError {
        if !matches!(
            error,
            RepoError::Engine { .. } | RepoError::EnginePanicked { .. }
        ) {
            return error;
        }
        let snapshots = self.readable_snapshots().map(|(_, damage)| damage);
        let index = || self.index().map(|(_, damage)| damage);
        let first = |damage: Vec<RepoError>| damage.into_iter().next();
        let found = snapshots.ok().and_then(first);
        let found = found.or_else(|| index().ok().and_then(first));
        found.unwrap_or(error)
    }

    /// Reads and opens every object of a kind, several at once, in no order, and gives the errors of those that are
    /// damaged. Stops at the first other error.
    pub(crate) fn for_each_object(
        &self,
        kind: ObjectKind,
        take: impl Fn(ObjectId, Vec<u8>) -> Result<(), RepoError> + Sync,
    ) -> Result<Vec<RepoError>, RepoError> {
        let listed = self.store.list(kind)?;
        let damage = Mutex::new(Vec::new());
        parallel::for_each(&listed, |info| {
            let one = self.object(kind, info.id);
            match one.and_then(|json| take(info.id, json)) {
                Err(error) if error.is_damage() => {
                    let mut damage = damage.lock().unwrap_or_else(PoisonError::into_inner);
                    damage.push(error);
                    Ok(())
                }
                other => other,
            }
        })?;
        Ok(damage.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads exactly a range of a pack, sealed as it is.
    pub(crate) fn read_pack(&self, pack: ObjectId, range: ByteRange) -> Result<Bytes, RepoError> {
        let name = name(ObjectKind::Pack, pack);
        let bytes = self.store.read(name, Some(range))?;
        if bytes.len() as u64 == range.length {
            return Ok(bytes);
        }
        let (got, want) = (bytes.len(), range.length);
        let what = format!("{got} bytes came instead of {want}");
        Err(StoreError::Damaged { name, what }.into())
    }

    /// Seals an object of JSON, compressed where the format's version knows that.
    pub(crate) fn sealed(&self, json: &[u8], doing: &'static str) -> Result<Bytes, RepoError> {
        let sealed = match self.config.version {
            1 => self.key.seal(json),
            _ => self.key.seal_object(json),
        };
        sealed.ok_or_else(|| RepoError::Engine {
            doing,
            what: "it can't be sealed".to_owned(),
        })
    }

    /// Reads and opens an object of JSON.
    pub(crate) fn object(&self, kind: ObjectKind, id: ObjectId) -> Result<Vec<u8>, RepoError> {
        let name = name(kind, id);
        let sealed = self.store.read(name, None)?;
        self.key
            .open_object(&sealed)
            .map_err(|damage| damaged(name, damage))
    }
}

/// The full name of an object.
pub(crate) fn name(kind: ObjectKind, id: ObjectId) -> ObjectName {
    ObjectName { kind, id }
}

pub(crate) fn damaged(object: ObjectName, damage: Damage) -> RepoError {
    RepoError::Damaged { object, damage }
}

/// A damaged pack.
pub(crate) fn damaged_pack(id: ObjectId, damage: Damage) -> RepoError {
    damaged(name(ObjectKind::Pack, id), damage)
}

pub(crate) fn unreadable(object: ObjectName, error: &serde_json::Error) -> RepoError {
    let what = error.to_string();
    damaged(object, Damage::Content { what })
}

/// The engine's form of the key, which can be made only by parsing.
/// The master key as key objects hold it.
pub(crate) fn master_json(key: &SealKey) -> Zeroizing<String> {
    let (encrypt, k, r) = key.parts();
    let text = |bytes| Zeroizing::new(BASE64_STANDARD.encode(bytes));
    let (encrypt, k, r) = (text(encrypt), text(k), text(r));
    Zeroizing::new(format!(
        r#"{{"mac":{{"k":"{}","r":"{}"}},"encrypt":"{}"}}"#,
        *k, *r, *encrypt
    ))
}

fn master_key(key: &SealKey) -> Result<MasterKey, RepoError> {
    serde_json::from_str(&master_json(key)).map_err(|error| RepoError::Engine {
        doing: "handing over the key",
        what: error.to_string(),
    })
}

/// The config as the engine shall see it, sealed: by that of a repository which another program has made, its packs would
/// grow with the repository, and with them what an interrupted backup sends again.
fn engines_config(key: &SealKey, config: &ConfigFile) -> Result<Bytes, RepoError> {
    let config = ConfigFile {
        treepack_size: Some(TREE_PACK_TARGET_BYTES),
        treepack_size_limit: Some(TREE_PACK_TARGET_BYTES),
        treepack_growfactor: Some(0),
        datapack_size: Some(PACK_TARGET_BYTES),
        datapack_size_limit: Some(PACK_TARGET_BYTES),
        datapack_growfactor: Some(0),
        ..config.clone()
    };
    let failed = |what: String| RepoError::Engine {
        doing: "handing over the config",
        what,
    };
    let json = serde_json::to_vec(&config).map_err(|error| failed(error.to_string()))?;
    let sealed = key.seal_object(&json);
    sealed.ok_or_else(|| failed("it can't be sealed".to_owned()))
}
