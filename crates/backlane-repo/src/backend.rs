//! rustic_core's backend over an [`ObjectStore`].
//!
//! Packs are acknowledged early, within a [`Window`]. A write of anything else, and every removal, is a barrier: it first
//! waits for, and reports, each write before it. Listing and reading see what was acknowledged early. After one failure
//! every call fails.
//!
//! The engine gets a config of ours in the place of the stored one, which says how large packs are.
//!
//! In the place of some objects of the index the engine sees others, or none ([`Backend::show_instead`]): it can't go on
//! over a damaged one, and believes that every pack that is named is there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backlane_proto::{ByteRange, ObjectId, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;
use rustic_core::{
    BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend,
};

use crate::repository::{PACK_BLOBS_MAX, PACK_TARGET_BYTES};
use crate::seal::SEAL_BYTES;
use crate::store::{ObjectStore, StoreError};
use crate::window::{Window, WindowLimits};

/// What a backup that is killed had begun to send, and the next one may have to send again, is no more than this. What is
/// in open packs, and in those that wait for room in the window, was not sent.
const UNACKNOWLEDGED_BYTES_MAX: usize = 64 << 20;

/// Room for four packs of the usual size (the target and half a chunk), which keeps four writes in flight.
const WINDOW: WindowLimits = WindowLimits {
    packs: 4,
    bytes: 40 << 20,
};

/// No pack of data is larger: it is closed when it has reached its target, and then has one chunk more of 8 MiB at most,
/// which zstd makes larger by less than 64 KiB if it can't make it smaller, and the list of at most 10,000 blobs, of 41
/// bytes each.
pub(crate) const PACK_BYTES_MAX: usize = PACK_TARGET_BYTES as usize
    + (8 << 20)
    + (64 << 10)
    + PACK_BLOBS_MAX * 41
    + 2 * SEAL_BYTES as usize
    + 4;

const _: () = assert!(PACK_BYTES_MAX <= WINDOW.bytes && WINDOW.bytes <= UNACKNOWLEDGED_BYTES_MAX);

/// The backend. Shared by all engines of one repository handle.
pub(crate) struct Backend {
    store: Arc<dyn ObjectStore>,
    /// The config as the engine shall see it; the stored one if `None`.
    config: Option<Bytes>,
    window: Window,
    instead: Mutex<IndexInstead>,
}

/// What the engine sees in the place of objects of the index; where it is `None`, nothing.
pub(crate) type IndexInstead = BTreeMap<ObjectId, Option<Bytes>>;

impl Backend {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, config: Option<Bytes>) -> Self {
        Self {
            window: Window::new(Arc::clone(&store), WINDOW),
            store,
            config,
            instead: Mutex::default(),
        }
    }

    /// Shows the engine other objects of the index, or none, in the place of these, as long as what is returned lives.
    pub(crate) fn show_instead(&self, instead: IndexInstead) -> Shown<'_> {
        let ids = instead.keys().copied().collect();
        self.instead().extend(instead);
        Shown { backend: self, ids }
    }

    fn instead(&self) -> MutexGuard<'_, IndexInstead> {
        self.instead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The early writes.
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Stores an object that is not a pack, after everything before it.
    pub(crate) fn write_after_all(
        &self,
        name: ObjectName,
        body: Bytes,
    ) -> Result<(), Arc<StoreError>> {
        self.window.drain()?;
        self.store
            .write(name, PackContents::Data, body)
            .map_err(|error| self.window.fail(error))
    }

    fn list_all(&self, kind: ObjectKind) -> Result<Vec<(Id, u32)>, Arc<StoreError>> {
        // Before the store is asked: what becomes durable in between is then in both lists, and never in none.
        let mut rows: Vec<(ObjectId, u64)> = Vec::new();
        if kind == ObjectKind::Pack {
            let pending = self.window.pending()?;
            rows.extend(pending.iter().map(|(id, bytes)| (*id, *bytes as u64)));
        } else {
            self.window.pending()?;
        }
        let listed = self.store.list(kind)?;
        rows.extend(listed.iter().map(|info| (info.id, info.bytes)));
        rows.sort_unstable();
        rows.dedup_by_key(|row| row.0);
        if kind == ObjectKind::Index {
            let instead = self.instead();
            rows.retain(|row| !matches!(instead.get(&row.0), Some(None)));
        }
        rows.into_iter()
            .map(|(id, bytes)| {
                let bytes = u32::try_from(bytes).map_err(|_| {
                    let name = ObjectName { kind, id };
                    StoreError::Failed(format!("{name} has {bytes} bytes, too many").into())
                })?;
                Ok((Id::new(id.0), bytes))
            })
            .collect()
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, Arc<StoreError>> {
        // Also where no pack is read: a failed handle must not go on.
        let pending = self.window.find(name.id)?;
        if let (ObjectKind::Config, Some(config)) = (name.kind, &self.config) {
            return Ok(config.clone());
        }
        if name.kind == ObjectKind::Index
            && let Some(Some(body)) = self.instead().get(&name.id)
        {
            return Ok(body.clone());
        }
        let Some(body) = pending.filter(|_| name.kind == ObjectKind::Pack) else {
            let body = self.store.read(name, range)?;
            let want = range.map_or(body.len() as u64, |range| range.length);
            if body.len() as u64 != want {
                let what = format!("{name}: {} bytes came instead of {want}", body.len());
                return Err(StoreError::Failed(what.into()).into());
            }
            return Ok(body);
        };
        let Some(range) = range else { return Ok(body) };
        let end = range.offset.saturating_add(range.length);
        if end > body.len() as u64 {
            let what = format!("{name} ends before byte {end}");
            return Err(StoreError::Failed(what.into()).into());
        }
        let at = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX);
        Ok(body.slice(at(range.offset)..at(end)))
    }

    fn write(
        &self,
        name: ObjectName,
        contents: PackContents,
        body: Bytes,
    ) -> Result<(), Arc<StoreError>> {
        match name.kind {
            ObjectKind::Pack => self.window.push(name.id, contents, body),
            _ => self.write_after_all(name, body),
        }
    }

    /// Removes an object, after everything before it.
    pub(crate) fn delete(&self, name: ObjectName) -> Result<(), Arc<StoreError>> {
        self.window.drain()?;
        self.store
            .remove(name)
            .map_err(|error| self.window.fail(error))
    }
}

/// Objects of the index that the engine sees in the place of the stored ones, as long as it lives.
pub(crate) struct Shown<'a> {
    backend: &'a Backend,
    ids: Vec<ObjectId>,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let mut instead = self.backend.instead();
        for id in &self.ids {
            instead.remove(id);
        }
    }
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        "backlane".to_owned()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let kind = object_kind(kind);
        self.list_all(kind)
            .map_err(|error| engine_error(&format!("can't list objects of kind {kind}"), error))
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        let name = object_name(kind, id);
        self.read(name, None)
            .map_err(|error| engine_error(&format!("can't read {name}"), error))
    }

    fn read_partial(
        &self,
        kind: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let name = object_name(kind, id);
        let range = ByteRange {
            offset: offset.into(),
            length: length.into(),
        };
        self.read(name, Some(range))
            .map_err(|error| engine_error(&format!("can't read {name}"), error))
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        object_name(kind, id).to_string()
    }
}

impl WriteBackend for Backend {
    fn write_bytes(
        &self,
        kind: FileType,
        id: &Id,
        cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        let name = object_name(kind, id);
        // The engine marks exactly the packs of trees as cacheable.
        let contents = match (name.kind, cacheable) {
            (ObjectKind::Pack, true) => PackContents::Trees,
            _ => PackContents::Data,
        };
        self.write(name, contents, joined(content))
            .map_err(|error| engine_error(&format!("can't write {name}"), error))
    }

    fn remove(&self, kind: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        let name = object_name(kind, id);
        self.delete(name)
            .map_err(|error| engine_error(&format!("can't remove {name}"), error))
    }
}

fn object_kind(kind: FileType) -> ObjectKind {
    match kind {
        FileType::Config => ObjectKind::Config,
        FileType::Index => ObjectKind::Index,
        FileType::Key => ObjectKind::Key,
        FileType::Snapshot => ObjectKind::Snapshot,
        FileType::Pack => ObjectKind::Pack,
    }
}

fn object_name(kind: FileType, id: &Id) -> ObjectName {
    let kind = object_kind(kind);
    let id = match kind {
        // The engine makes up an identity for the config when it writes one.
        ObjectKind::Config => ObjectId::NONE,
        _ => crate::convert::object_id(id),
    };
    ObjectName { kind, id }
}

fn joined(content: BytesList) -> Bytes {
    let size = content.size();
    let mut parts = content.into_vec();
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut body = Vec::with_capacity(size);
    for part in parts {
        body.extend_from_slice(&part);
    }
    body.into()
}

fn engine_error(what: &str, error: Arc<StoreError>) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, what, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemoryStore, pack_name};

    fn backend() -> (Arc<MemoryStore>, Backend) {
        let store = Arc::new(MemoryStore::default());
        let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as _;
        (store, Backend::new(shared, None))
    }

    fn id(number: u8) -> Id {
        Id::new(pack_name(number).id.0)
    }

    #[test]
    fn packs_are_acknowledged_before_they_are_stored_and_can_be_read_and_listed() {
        let (store, backend) = backend();
        let gate = store.hold_writes();
        let body = Bytes::from_static(b"0123456789");
        backend
            .write_bytes(FileType::Pack, &id(1), false, body.clone().into())
            .unwrap();
        assert_eq!(store.count(ObjectKind::Pack), 0);
        let listed = backend.list_with_size(FileType::Pack).unwrap();
        assert_eq!(listed, [(id(1), 10)]);
        assert_eq!(backend.read_full(FileType::Pack, &id(1)).unwrap(), body);
        let part = backend.read_partial(FileType::Pack, &id(1), false, 3, 4);
        assert_eq!(part.unwrap(), b"3456"[..]);
        let beyond = backend.read_partial(FileType::Pack, &id(1), false, 8, 3);
        assert!(beyond.is_err(), "cut short");
        gate.open();
        backend.window().drain().unwrap();
        let listed = backend.list_with_size(FileType::Pack).unwrap();
        assert_eq!(listed, [(id(1), 10)]);
    }

    #[test]
    fn an_index_is_stored_after_every_pack_before_it() {
        let (store, backend) = backend();
        for number in 0..20 {
            let body = Bytes::from(vec![number; 10]);
            backend
                .write_bytes(FileType::Pack, &id(number), number % 2 == 0, body.into())
                .unwrap();
        }
        backend
            .write_bytes(FileType::Index, &id(99), false, Bytes::new().into())
            .unwrap();
        let order = store.order_of_writes();
        assert_eq!(order.len(), 21);
        assert_eq!(order[20].0.kind, ObjectKind::Index);
        for (name, contents) in &order[..20] {
            let even = name.id.0[0] % 2 == 0;
            let want = if even {
                PackContents::Trees
            } else {
                PackContents::Data
            };
            assert_eq!(*contents, want, "{name}");
        }
    }

    #[test]
    fn a_barrier_reports_a_pack_that_failed_and_is_not_written() {
        for removal in [false, true] {
            let (store, backend) = backend();
            store.fail_writes_from_now("no space left");
            let body = Bytes::from_static(b"pack");
            drop(backend.write_bytes(FileType::Pack, &id(1), false, body.into()));
            let result = if removal {
                backend.remove(FileType::Snapshot, &id(2), true)
            } else {
                backend.write_bytes(FileType::Index, &id(2), false, Bytes::new().into())
            };
            let text = result.unwrap_err().display_log();
            assert!(text.contains("no space left"), "{text}");
            store.heal();
            assert!(backend.list_with_size(FileType::Index).is_err());
            assert!(backend.read_full(FileType::Config, &id(0)).is_err());
            assert_eq!(store.count(ObjectKind::Index), 0);
            assert_eq!(store.removals(), 0);
        }
    }
}
