//! One host's repository: a store, with the rules that hold whatever keeps the bytes (§2).
//!
//! A body is hashed while it is written and given its name only when length and hash are right; what a pack holds is
//! recorded first, so that no pack is ever seen without. The config, which has no hash, is created once.

use crate::{
    HostName, ServerError,
    db::{Arrival, Database, HostId, Timestamp},
    store::{ByteSink, ByteSource, ByteStore, Hold, LocalStore, Placed},
};
use aws_lc_rs::digest::{Context, SHA256};
use backlane_proto::{ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;
use std::{path::Path, sync::Arc};
use tokio::{runtime::Handle, sync::OnceCell, task::spawn_blocking};

/// Largest object that is taken: no tool of the format writes larger packs, and everything else is smaller.
pub(crate) const OBJECT_BYTES_MAX: u64 = 4 << 30;
/// How much of an object is read at a time.
pub(crate) const PIECE_BYTES_MAX: usize = 4 << 20;

/// One host's repository, held by a session or by maintenance.
pub(crate) struct Repository {
    host: HostId,
    store: Arc<dyn ByteStore>,
    database: Database,
}

impl Repository {
    /// Opens the repository of `name` under `repositories`, and makes it if it is not there yet.
    pub(crate) async fn open(
        database: &Database,
        repositories: &Path,
        name: &HostName,
        hold: Hold,
    ) -> Result<Arc<Self>, ServerError> {
        let host = database.host(name).await?;
        let root = repositories.join(name.as_str());
        let name = name.clone();
        let store = blocking(move || LocalStore::open(&root, &name, hold)).await?;
        Ok(Arc::new(Self {
            host,
            store: Arc::new(store),
            database: database.clone(),
        }))
    }

    /// Lists every object of a kind. Blocks.
    pub(crate) fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, ServerError> {
        self.store.list(kind)
    }

    /// Opens an object, or the part of it that `range` names. Blocks.
    pub(crate) fn read(
        &self,
        name: ObjectName,
        range: Option<ByteRange>,
    ) -> Result<Outlet, ServerError> {
        let source = self.store.open(canonical(name))?;
        let bytes = source.length();
        let range = range.unwrap_or(ByteRange {
            offset: 0,
            length: bytes,
        });
        let end = range
            .offset
            .checked_add(range.length)
            .filter(|end| *end <= bytes)
            .ok_or(ServerError::OutOfRange { name, bytes, range })?;
        Ok(Outlet {
            source,
            next: range.offset,
            end,
        })
    }

    /// Begins to take an object of `bytes` bytes. Blocks.
    pub(crate) fn begin(self: &Arc<Self>, put: Arrival) -> Result<Intake, ServerError> {
        let name = canonical(put.name);
        if put.bytes > OBJECT_BYTES_MAX {
            return Err(ServerError::BadBody {
                name,
                found: format!(
                    "{} bytes were announced, {OBJECT_BYTES_MAX} is the most",
                    put.bytes
                ),
            });
        }
        Ok(Intake {
            repository: Arc::clone(self),
            sink: self.store.create(name, put.bytes)?,
            hash: Context::new(&SHA256),
            put: Arrival { name, ..put },
            received: 0,
        })
    }

    /// Whose it is.
    pub(crate) fn host(&self) -> HostId {
        self.host
    }

    /// Whether a part of a pack is within its header, the sealed list of its blobs at its end, whose length (u32,
    /// little-endian) stands behind it. Blocks.
    pub(crate) fn is_in_header(
        &self,
        pack: ObjectName,
        range: ByteRange,
    ) -> Result<bool, ServerError> {
        let source = self.store.open(canonical(pack))?;
        let bytes = source.length();
        let Some(end) = bytes.checked_sub(4) else {
            return Ok(true);
        };
        let length = source.read(end, 4)?;
        let length: [u8; 4] = (&*length).try_into().unwrap_or_default();
        let length = u64::from(u32::from_le_bytes(length));
        let start = end.checked_sub(length).unwrap_or(end);
        Ok(range.offset >= start)
    }

    /// What a pack holds, as it was said when it was put.
    pub(crate) async fn pack_contents(
        &self,
        name: ObjectName,
    ) -> Result<PackContents, ServerError> {
        self.database.pack_contents(self.host, name).await
    }

    /// How many times objects were removed, ever.
    pub(crate) async fn removals(&self) -> Result<u64, ServerError> {
        self.database.removals(self.host).await
    }

    /// Removes an object and what is remembered of it.
    async fn remove(self: &Arc<Self>, name: ObjectName) -> Result<(), ServerError> {
        let name = canonical(name);
        let this = Arc::clone(self);
        blocking(move || this.store.remove(name)).await?;
        self.database.forget_object(self.host, name).await
    }
}

/// A repository that is held alone, for maintenance: the only way in which objects are removed.
///
/// Its calls block. They must not be made on a thread that runs asynchronous tasks, and the runtime in which the
/// repository was opened has to be running.
pub struct ExclusiveRepository {
    repository: Arc<Repository>,
    runtime: Handle,
    /// That something is removed was counted.
    counted: OnceCell<()>,
}

impl ExclusiveRepository {
    pub(crate) fn new(repository: Arc<Repository>, runtime: Handle) -> Self {
        Self {
            repository,
            runtime,
            counted: OnceCell::new(),
        }
    }

    /// Lists every object of a kind.
    ///
    /// # Errors
    /// When the list can't be had whole.
    pub fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, ServerError> {
        self.repository.list(kind)
    }

    /// Reads an object, or exactly the part of it that `range` names.
    ///
    /// # Errors
    /// When it doesn't exist, is shorter than the part, or can't be read.
    pub fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, ServerError> {
        let mut outlet = self.repository.read(name, range)?;
        let bytes = outlet.remaining();
        let whole = usize::try_from(bytes)
            .ok()
            .filter(|_| bytes <= OBJECT_BYTES_MAX)
            .ok_or_else(|| ServerError::BadBody {
                name,
                found: format!("{bytes} bytes, {OBJECT_BYTES_MAX} is the most"),
            })?;
        Ok(outlet.next(whole)?.unwrap_or_default())
    }

    /// Stores an object, as durably as a session does. The same object put again is a success.
    ///
    /// # Errors
    /// When the body is not what its name says, or is not known to be durable.
    pub fn write(
        &self,
        name: ObjectName,
        contents: PackContents,
        body: &Bytes,
    ) -> Result<(), ServerError> {
        let mut intake = self.repository.begin(Arrival {
            name,
            contents,
            bytes: body.len() as u64,
        })?;
        intake.take(body)?;
        self.runtime.block_on(intake.commit())
    }

    /// Removes an object.
    ///
    /// # Errors
    /// When it doesn't exist, or its removal is not known to be durable.
    pub fn remove(&self, name: ObjectName) -> Result<(), ServerError> {
        let Repository { host, database, .. } = &*self.repository;
        self.runtime.block_on(async {
            // Whoever finds the count unchanged knows that nothing has gone. Once is enough: nobody can read it before
            // this hold ends.
            let count = || database.count_removals(*host);
            self.counted.get_or_try_init(count).await?;
            self.repository.remove(name).await
        })
    }

    /// What a pack holds, as it was said when it was put; what was not said to be trees counts as data.
    ///
    /// # Errors
    /// When the state database fails.
    pub fn pack_contents(&self, name: ObjectName) -> Result<PackContents, ServerError> {
        self.runtime.block_on(self.repository.pack_contents(name))
    }
}

/// An object, or a part of one, on its way out.
pub(crate) struct Outlet {
    source: Box<dyn ByteSource>,
    next: u64,
    end: u64,
}

impl Outlet {
    pub(crate) fn remaining(&self) -> u64 {
        self.end - self.next
    }

    /// The next piece of at most `most` bytes. Blocks.
    pub(crate) fn next(&mut self, most: usize) -> Result<Option<Bytes>, ServerError> {
        let left = usize::try_from(self.remaining()).unwrap_or(usize::MAX);
        let bytes = left.min(most.max(1));
        if bytes == 0 {
            return Ok(None);
        }
        let piece = self.source.read(self.next, bytes)?;
        self.next += bytes as u64;
        Ok(Some(piece))
    }
}

/// An object on its way in.
pub(crate) struct Intake {
    repository: Arc<Repository>,
    sink: Box<dyn ByteSink>,
    hash: Context,
    put: Arrival,
    received: u64,
}

impl Intake {
    /// Takes the next piece. Blocks.
    pub(crate) fn take(&mut self, piece: &[u8]) -> Result<(), ServerError> {
        self.received += piece.len() as u64;
        if self.received > self.put.bytes {
            return Err(ServerError::BadBody {
                name: self.put.name,
                found: format!("more than the {} bytes announced", self.put.bytes),
            });
        }
        self.hash.update(piece);
        self.sink.write(piece)
    }

    /// Checks the body, makes it durable, and gives it its name.
    pub(crate) async fn commit(self) -> Result<(), ServerError> {
        let (put, repository) = (self.put, Arc::clone(&self.repository));
        let verified = blocking(move || self.verify()).await?;
        // Before the name: a pack is never seen without what it holds. If placing it fails, a row stays which says
        // that the body was here once, and nothing more.
        repository
            .database
            .record_arrival(repository.host, put, Timestamp::now())
            .await?;
        blocking(move || verified.place()).await
    }

    fn verify(mut self) -> Result<Verified, ServerError> {
        let name = self.put.name;
        let refused = |found| Err(ServerError::BadBody { name, found });
        if self.received != self.put.bytes {
            return refused(format!(
                "{} bytes came of the {} announced",
                self.received, self.put.bytes
            ));
        }
        let hash = finish(self.hash);
        if name.kind != ObjectKind::Config && hash != name.id {
            return refused(format!("its content has the SHA-256 {hash}"));
        }
        self.sink.sync()?;
        Ok(Verified {
            repository: self.repository,
            sink: self.sink,
            name,
            hash,
        })
    }
}

/// A body that is whole, durable, and what its name says, still without that name.
struct Verified {
    repository: Arc<Repository>,
    sink: Box<dyn ByteSink>,
    name: ObjectName,
    hash: ObjectId,
}

impl Verified {
    fn place(self) -> Result<(), ServerError> {
        match self.sink.place()? {
            Placed::Created => Ok(()),
            // To say yes without looking would acknowledge an object that rotted on the disk.
            Placed::Existed => {
                let mut outlet = self.repository.read(self.name, None)?;
                let mut hash = Context::new(&SHA256);
                while let Some(piece) = outlet.next(PIECE_BYTES_MAX)? {
                    hash.update(&piece);
                }
                let found = finish(hash);
                match self.name.kind {
                    _ if found == self.hash => Ok(()),
                    ObjectKind::Config => Err(ServerError::ConfigExists),
                    _ => Err(ServerError::Damaged {
                        name: self.name,
                        found,
                    }),
                }
            }
        }
    }
}

/// Runs blocking work where it holds nobody up.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServerError> + Send + 'static,
) -> Result<T, ServerError> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ServerError::Stopping),
        },
    }
}

fn finish(hash: Context) -> ObjectId {
    let mut id = [0; 32];
    id.copy_from_slice(hash.finish().as_ref());
    ObjectId(id)
}

/// The config has no id, whatever the caller wrote there.
fn canonical(name: ObjectName) -> ObjectName {
    match name.kind {
        ObjectKind::Config => ObjectName {
            id: ObjectId::NONE,
            ..name
        },
        _ => name,
    }
}
