//! One host's repository: a store, with the rules that hold whatever keeps the bytes (§2).
//!
//! A body is hashed while it is written and given its name only when length and hash are right; what a pack holds is
//! recorded first, so that no pack is ever seen without. The config, which has no hash, is created once.

use crate::{
    HostName, ServerError,
    audit::AuditEvent,
    content::Content,
    db::{Arrival, Database, Event, HostId, Timestamp},
    store::{ByteSink, ByteSource, ByteStore, Hold, LaidAside, LocalStore, Placed, Shelf},
};
use backlane_proto::{ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{runtime::Handle, sync::OnceCell, task::spawn_blocking};

/// Largest object that is taken: no tool of the format writes larger packs, and everything else is smaller.
pub(crate) const OBJECT_BYTES_MAX: u64 = 4 << 30;
/// How much of an object is read at a time.
pub(crate) const PIECE_BYTES_MAX: usize = 4 << 20;

/// One host's repository, held by a session or by maintenance.
pub(crate) struct Repository {
    host: HostId,
    name: HostName,
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
        let (name, whose) = (name.clone(), name.clone());
        let store = blocking(move || LocalStore::open(&root, &whose, hold)).await?;
        Ok(Arc::new(Self {
            host,
            name,
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

    /// What an object has in common with the same one ([`Content::finish`]). Blocks.
    fn identity(&self, name: ObjectName) -> Result<ObjectId, ServerError> {
        self.read(name, None)?.identity(name)
    }

    /// The same of something that was removed. What is named by its hash is what its name says. Blocks.
    fn removed_identity(&self, aside: &LaidAside) -> Result<ObjectId, ServerError> {
        let name = aside.name;
        if !matches!(name.kind, ObjectKind::Wal | ObjectKind::Config) {
            return Ok(name.id);
        }
        let source = self.store.open_aside(Shelf::Removed, aside)?;
        let (next, end) = (0, source.length());
        Outlet { source, next, end }.identity(name)
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
            sink: self.store.create(Arrival { name, ..put })?,
            content: Content::new(name),
            put: Arrival { name, ..put },
            received: 0,
        })
    }

    /// Whose it is.
    pub(crate) fn host(&self) -> HostId {
        self.host
    }

    /// Whose it is, and what is remembered of it.
    pub(crate) fn known(&self) -> (HostId, Database) {
        (self.host, self.database.clone())
    }

    /// Lays an object aside. Blocks.
    pub(crate) fn lay_aside(
        &self,
        name: ObjectName,
        shelf: Shelf,
        at: Timestamp,
    ) -> Result<(), ServerError> {
        self.store.lay_aside(canonical(name), shelf, at)
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

    /// Removes an object: for good with all that is remembered of it, or so that it can be put back.
    async fn remove(
        self: &Arc<Self>,
        name: ObjectName,
        removal: Removal,
    ) -> Result<(), ServerError> {
        let name = canonical(name);
        let now = Timestamp::now();
        let this = Arc::clone(self);
        match removal {
            Removal::Recoverable => {
                blocking(move || this.store.lay_aside(name, Shelf::Removed, now)).await?;
                self.database.set_removed(self.host, name, Some(now)).await
            }
            Removal::Final => {
                blocking(move || this.store.remove(name)).await?;
                self.database
                    .set_removed(self.host, name, Some(now))
                    .await?;
                self.database.forget_object(self.host, name).await
            }
        }
    }
}

/// A session's hold on its repository.
#[derive(Clone)]
pub(crate) enum Held {
    /// Beside other sessions; nothing is removed.
    Shared(Arc<Repository>),
    /// For maintenance.
    Alone(Arc<ExclusiveRepository>),
    /// For archived WAL, whatever happens to the rest meanwhile (`wal.md` §3).
    Wal(Arc<Repository>),
}

impl Held {
    pub(crate) fn repository(&self) -> &Arc<Repository> {
        match self {
            Self::Shared(repository) | Self::Wal(repository) => repository,
            Self::Alone(alone) => &alone.repository,
        }
    }
}

/// A repository that is held alone, for maintenance: the only way in which objects are removed.
///
/// Its calls block. They must not be made on a thread that runs asynchronous tasks, and the runtime in which the
/// repository was opened has to be running.
pub struct ExclusiveRepository {
    repository: Arc<Repository>,
    runtime: Handle,
    name: HostName,
    /// How long what is removed stays recoverable.
    keep: Duration,
    removal: Removal,
    /// That something is removed was counted, and is in the audit log.
    counted: OnceCell<()>,
}

/// What becomes of objects that maintenance removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They stay recoverable for the time that the configuration says (`keep-removed`).
    Recoverable,
    /// They are gone at once, and so is what was removed before.
    Final,
}

/// Objects that can be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovedObject {
    /// Which.
    pub name: ObjectName,
    /// When it was removed.
    pub removed_at: SystemTime,
    /// Its size.
    pub bytes: u64,
}

/// What was put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undeleted {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names of which another file had come since: that one is in `damaged/` now.
    pub displaced: Vec<ObjectName>,
}

/// How many objects something was done to, and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectCount {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl ObjectCount {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

impl ExclusiveRepository {
    pub(crate) fn new(
        repository: Arc<Repository>,
        name: HostName,
        keep: Duration,
        removal: Removal,
    ) -> Self {
        Self {
            repository,
            runtime: Handle::current(),
            name,
            keep,
            removal,
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
        self.runtime.block_on(self.remove_counted(name))
    }

    pub(crate) async fn remove_counted(&self, name: ObjectName) -> Result<(), ServerError> {
        self.count_removals().await?;
        self.repository.remove(name, self.removal).await
    }

    /// Whoever finds the count unchanged knows that nothing has gone. Once is enough: nobody can read it before this hold
    /// ends.
    async fn count_removals(&self) -> Result<(), ServerError> {
        let Repository { host, database, .. } = &*self.repository;
        let count = || async {
            let kept_for = match self.removal {
                Removal::Recoverable => self.keep.as_secs(),
                Removal::Final => 0,
            };
            self.audit(
                AuditEvent::ObjectsRemoved,
                json!({"kept_for_seconds": kept_for}),
            )
            .await?;
            database.count_removals(*host).await
        };
        self.counted.get_or_try_init(count).await?;
        Ok(())
    }

    async fn audit(&self, event: AuditEvent, detail: Value) -> Result<(), ServerError> {
        let event = Event::new(event, Some(&self.name), detail);
        self.repository.database.audit(event).await
    }

    /// When the objects of a kind arrived, by this server's clock.
    ///
    /// # Errors
    /// When the state database fails.
    pub fn arrivals(
        &self,
        kind: ObjectKind,
    ) -> Result<BTreeMap<ObjectId, SystemTime>, ServerError> {
        let Repository { host, database, .. } = &*self.repository;
        let arrivals = self.runtime.block_on(database.arrivals(*host, kind))?;
        let time = |(id, at): (ObjectId, Timestamp)| (id, at.system_time());
        Ok(arrivals.into_iter().map(time).collect())
    }

    /// What was removed and can be put back, in the order of its removal.
    ///
    /// # Errors
    /// When it can't be listed.
    pub fn removed(&self) -> Result<Vec<RemovedObject>, ServerError> {
        let removed = self.repository.store.shelf(Shelf::Removed)?;
        let object = |aside: LaidAside| RemovedObject {
            name: aside.name,
            removed_at: aside.at.system_time(),
            bytes: aside.bytes,
        };
        Ok(removed.into_iter().map(object).collect())
    }

    /// Puts back everything that was removed at `since` or later: packs first, snapshots last, so that whatever is there
    /// has what it needs.
    ///
    /// # Errors
    /// When something can't be put back; calling it again goes on from there.
    pub fn undelete(&self, since: SystemTime) -> Result<Undeleted, ServerError> {
        let Repository {
            host,
            database,
            store,
            ..
        } = &*self.repository;
        let mut removed = store.shelf(Shelf::Removed)?;
        removed.retain(|aside| aside.at.system_time() >= since);
        removed.sort_by_key(|aside| {
            let kind = match aside.name.kind {
                ObjectKind::Pack => 0,
                ObjectKind::Index => 1,
                _ => 2,
            };
            // Of several files of one name the first comes last, and keeps the name.
            (kind, Reverse(aside.at))
        });
        let mut count = ObjectCount::default();
        for aside in &removed {
            count.add(aside.bytes);
        }
        let detail = json!({"objects": count.objects, "bytes": count.bytes});
        self.runtime
            .block_on(self.audit(AuditEvent::Undeleted, detail))?;
        let mut undeleted = Undeleted::default();
        for aside in &removed {
            // In this order: what is on the shelf still is put back by the next try.
            self.runtime
                .block_on(database.set_removed(*host, aside.name, None))?;
            self.put_back(aside, &mut undeleted)?;
        }
        Ok(undeleted)
    }

    /// Puts an object back. Another file of its name, as there may be of WAL, came when this one was gone: that is laid
    /// aside, for the first of a name stays.
    fn put_back(&self, aside: &LaidAside, undeleted: &mut Undeleted) -> Result<(), ServerError> {
        let (repository, name) = (&self.repository, aside.name);
        let store = &repository.store;
        // Sessions for WAL go on meanwhile, and may be faster.
        while store.put_back(Shelf::Removed, aside)? == Placed::Existed {
            let there = match repository.identity(name) {
                Ok(there) => Some(there),
                // What was removed may be sound.
                Err(error) if error.is_damage() => None,
                Err(error) => return Err(error),
            };
            if let Some(there) = there {
                match repository.removed_identity(aside) {
                    Ok(removed) if removed == there => {
                        store.discard(Shelf::Removed, aside)?;
                        break;
                    }
                    Ok(_) => {
                        let why = "the file that had this name before it is put back";
                        let detail = json!({"object": name.to_string(), "why": why});
                        self.runtime
                            .block_on(self.audit(AuditEvent::ObjectDamaged, detail))?;
                        undeleted.displaced.push(name);
                    }
                    Err(error) if error.is_damage() => {
                        tracing::warn!(%error, "not put back, and another file has its name");
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                }
            }
            store.lay_aside(name, Shelf::Damaged, Timestamp::now())?;
        }
        undeleted.objects += 1;
        undeleted.bytes += aside.bytes;
        Ok(())
    }

    /// Removes, so that they can be put back, the indexes and snapshots that arrived after a time: those of a host that
    /// wasn't one's own any more. What they add to the repository stays until a prune.
    ///
    /// # Errors
    /// When one can't be removed.
    pub fn leave_out(&self, after: SystemTime) -> Result<ObjectCount, ServerError> {
        let mut count = ObjectCount::default();
        // Snapshots first: none is left without what it needs.
        for kind in [ObjectKind::Snapshot, ObjectKind::Index] {
            let arrivals = self.arrivals(kind)?;
            for ObjectInfo { id, bytes } in self.list(kind)? {
                // One that came by another tool has no arrival; it came with the server stopped, by an administrator.
                if arrivals.get(&id).is_some_and(|at| *at > after) {
                    let name = ObjectName { kind, id };
                    self.runtime.block_on(async {
                        self.count_removals().await?;
                        self.repository.remove(name, Removal::Recoverable).await
                    })?;
                    count.add(bytes);
                }
            }
        }
        Ok(count)
    }

    /// Deletes what was removed longer ago than it has to stay recoverable; everything, where removals are final.
    ///
    /// # Errors
    /// When something can't be deleted.
    pub fn expire(&self) -> Result<ObjectCount, ServerError> {
        let Repository {
            host,
            database,
            store,
            ..
        } = &*self.repository;
        let now = SystemTime::now();
        let keep = match self.removal {
            Removal::Recoverable => self.keep,
            Removal::Final => Duration::ZERO,
        };
        let mut expired = store.shelf(Shelf::Removed)?;
        // A removal of the future is one of a clock that was put back since; it stays.
        expired.retain(|aside| {
            now.duration_since(aside.at.system_time())
                .is_ok_and(|age| age >= keep)
        });
        let mut count = ObjectCount::default();
        for aside in &expired {
            count.add(aside.bytes);
        }
        if count.objects == 0 {
            return Ok(count);
        }
        let is_early = self.removal == Removal::Final;
        let detail =
            json!({"objects": count.objects, "bytes": count.bytes, "before_its_time": is_early});
        self.runtime
            .block_on(self.audit(AuditEvent::RemovedExpired, detail))?;
        for aside in &expired {
            store.discard(Shelf::Removed, aside)?;
            // A crash may have come between its removal and the record of that.
            if matches!(store.open(aside.name), Err(ServerError::NotFound { .. })) {
                let removed = database.set_removed(*host, aside.name, Some(aside.at));
                self.runtime.block_on(removed)?;
            }
            self.runtime
                .block_on(database.forget_object(*host, aside.name))?;
        }
        Ok(count)
    }

    pub(crate) fn store(&self) -> Arc<dyn ByteStore> {
        Arc::clone(&self.repository.store)
    }

    /// Records what packs hold of which that isn't known.
    ///
    /// # Errors
    /// When the state database fails.
    pub fn label_packs(
        &self,
        packs: &[ObjectId],
        contents: PackContents,
    ) -> Result<(), ServerError> {
        let Repository { host, database, .. } = &*self.repository;
        self.runtime
            .block_on(database.label_packs(*host, packs, contents))
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

    /// What the object has in common with the same one ([`Content::finish`]). Blocks.
    fn identity(mut self, name: ObjectName) -> Result<ObjectId, ServerError> {
        let mut content = Content::new(name);
        while let Some(piece) = self.next(PIECE_BYTES_MAX)? {
            content.take(&piece);
        }
        content.finish_stored()
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
    content: Content,
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
        self.content.take(piece);
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
        let identity = match self.content.finish() {
            Ok(identity) => identity,
            Err(found) => return refused(found),
        };
        self.sink.sync()?;
        Ok(Verified {
            repository: self.repository,
            sink: self.sink,
            name,
            identity,
        })
    }
}

/// A body that is whole, durable, and what its name says, still without that name.
struct Verified {
    repository: Arc<Repository>,
    sink: Box<dyn ByteSink>,
    name: ObjectName,
    identity: ObjectId,
}

impl Verified {
    fn place(self) -> Result<(), ServerError> {
        match self.sink.place()? {
            Placed::Created => Ok(()),
            // To say yes without looking would acknowledge an object that rotted on the disk.
            Placed::Existed => {
                let found = self.repository.identity(self.name)?;
                match self.name.kind {
                    _ if found == self.identity => Ok(()),
                    ObjectKind::Config => Err(ServerError::ConfigExists),
                    _ => Err(ServerError::WalConflict {
                        host: self.repository.name.to_string(),
                        name: self.name,
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
