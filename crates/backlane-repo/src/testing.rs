//! Stores for tests: in memory with faults, and a directory in restic's layout.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use backlane_proto::{ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;

use crate::store::{ObjectStore, StoreError};

/// The name of a made-up pack.
pub(crate) fn pack_name(number: u8) -> ObjectName {
    ObjectName {
        kind: ObjectKind::Pack,
        id: ObjectId([number; 32]),
    }
}

/// A store in memory that fails, holds and counts as a test wants it.
#[derive(Default)]
pub(crate) struct MemoryStore {
    state: Mutex<MemoryState>,
    gate: Mutex<Option<Gate>>,
}

#[derive(Default)]
struct MemoryState {
    objects: BTreeMap<ObjectName, Bytes>,
    order: Vec<(ObjectName, PackContents)>,
    tried: usize,
    removals: usize,
    reads: Vec<(ObjectName, Option<ByteRange>)>,
    running: usize,
    most_running: usize,
    packs_until_failure: Option<usize>,
    failure: Option<&'static str>,
    panic: bool,
    rot_writes: Option<fn(&mut Vec<u8>)>,
}

/// Holds writes until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<(usize, bool)>, Condvar)>);

impl Gate {
    pub(crate) fn wait_for_waiting(&self, count: usize) {
        let (state, changed) = &*self.0;
        let state = state.lock().unwrap();
        drop(changed.wait_while(state, |state| state.0 < count).unwrap());
    }

    pub(crate) fn open(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().1 = true;
        changed.notify_all();
    }

    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.0 += 1;
        changed.notify_all();
        drop(changed.wait_while(state, |state| !state.1).unwrap());
    }
}

impl MemoryStore {
    pub(crate) fn hold_writes(&self) -> Gate {
        let gate = Gate::default();
        *self.gate.lock().unwrap() = Some(gate.clone());
        gate
    }

    pub(crate) fn fail_writes_from_now(&self, why: &'static str) {
        self.state.lock().unwrap().failure = Some(why);
    }

    pub(crate) fn fail_after_packs(&self, packs: usize) {
        self.state.lock().unwrap().packs_until_failure = Some(packs);
    }

    pub(crate) fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.failure = None;
        state.packs_until_failure = None;
    }

    pub(crate) fn panic_on_write(&self) {
        self.state.lock().unwrap().panic = true;
    }

    pub(crate) fn count(&self, kind: ObjectKind) -> usize {
        self.list(kind).unwrap().len()
    }

    pub(crate) fn writes_tried(&self) -> usize {
        self.state.lock().unwrap().tried
    }

    pub(crate) fn removals(&self) -> usize {
        self.state.lock().unwrap().removals
    }

    pub(crate) fn most_writes_at_once(&self) -> usize {
        self.state.lock().unwrap().most_running
    }

    pub(crate) fn order_of_writes(&self) -> Vec<(ObjectName, PackContents)> {
        self.state.lock().unwrap().order.clone()
    }

    pub(crate) fn take_reads(&self) -> Vec<(ObjectName, Option<ByteRange>)> {
        std::mem::take(&mut self.state.lock().unwrap().reads)
    }

    /// Changes one object's bytes, as a rotten disk would.
    pub(crate) fn rot(&self, name: ObjectName, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock().unwrap();
        let object = state.objects.get_mut(&name).unwrap();
        let mut bytes = object.to_vec();
        change(&mut bytes);
        *object = bytes.into();
    }

    /// Changes every object as it is stored, as a disk that lies would.
    pub(crate) fn rot_writes(&self, change: fn(&mut Vec<u8>)) {
        self.state.lock().unwrap().rot_writes = Some(change);
    }

    pub(crate) fn lose(&self, name: ObjectName) {
        self.state.lock().unwrap().objects.remove(&name).unwrap();
    }

    fn before_write(&self, name: ObjectName) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap();
        state.tried += 1;
        state.running += 1;
        state.most_running = state.most_running.max(state.running);
        assert!(!state.panic, "as the test wants it");
        if name.kind == ObjectKind::Pack
            && let Some(left) = &mut state.packs_until_failure
        {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => state.failure = Some("no space left"),
            }
        }
        state
            .failure
            .map_or(Ok(()), |why| Err(StoreError::Failed(why.into())))
    }
}

impl ObjectStore for MemoryStore {
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError> {
        let state = self.state.lock().unwrap();
        let of_kind = state.objects.iter().filter(|(name, _)| name.kind == kind);
        let info = of_kind.map(|(name, body)| ObjectInfo {
            id: name.id,
            bytes: body.len() as u64,
        });
        Ok(info.collect())
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
        let mut state = self.state.lock().unwrap();
        state.reads.push((name, range));
        let body = state.objects.get(&name);
        cut(name, body.ok_or(StoreError::NotFound { name })?, range)
    }

    fn write(
        &self,
        name: ObjectName,
        contents: PackContents,
        body: Bytes,
    ) -> Result<(), StoreError> {
        let result = self.before_write(name);
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.pass();
        }
        let mut state = self.state.lock().unwrap();
        state.running -= 1;
        result?;
        let mut body = body;
        if let Some(change) = state.rot_writes {
            let mut bytes = body.to_vec();
            change(&mut bytes);
            body = bytes.into();
        }
        state.order.push((name, contents));
        state.objects.entry(name).or_insert(body);
        Ok(())
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap();
        state.removals += 1;
        let removed = state.objects.remove(&name);
        removed.map(drop).ok_or(StoreError::NotFound { name })
    }
}

fn cut(name: ObjectName, body: &Bytes, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
    let Some(range) = range else {
        return Ok(body.clone());
    };
    let start = usize::try_from(range.offset).unwrap();
    let end = start + usize::try_from(range.length).unwrap();
    if end > body.len() {
        let what = format!("it ends at byte {}", body.len());
        return Err(StoreError::Damaged { name, what });
    }
    Ok(body.slice(start..end))
}

/// A directory in restic's layout, which stock tools can read.
pub(crate) struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    pub(crate) fn new(root: &Path) -> Self {
        for folder in ["keys", "index", "snapshots", "data", "locks"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        Self {
            root: root.to_owned(),
        }
    }

    fn folder(&self, kind: ObjectKind) -> PathBuf {
        self.root.join(match kind {
            ObjectKind::Config => "",
            ObjectKind::Key => "keys",
            ObjectKind::Index => "index",
            ObjectKind::Snapshot => "snapshots",
            ObjectKind::Pack => "data",
            ObjectKind::Wal => "wal",
        })
    }

    fn path(&self, name: ObjectName) -> PathBuf {
        let text = name.id.to_string();
        match name.kind {
            ObjectKind::Config => self.root.join("config"),
            ObjectKind::Pack => self.folder(name.kind).join(&text[..2]).join(text),
            kind => self.folder(kind).join(text),
        }
    }
}

impl ObjectStore for LocalStore {
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError> {
        if kind == ObjectKind::Config {
            let config = fs::metadata(self.root.join("config"));
            let info = config.map(|meta| ObjectInfo {
                id: ObjectId::NONE,
                bytes: meta.len(),
            });
            return Ok(info.into_iter().collect());
        }
        let mut folders = vec![self.folder(kind)];
        if kind == ObjectKind::Pack {
            let inner = fs::read_dir(&folders[0]).map_err(failed)?;
            folders = inner.map(|entry| entry.unwrap().path()).collect();
        }
        let mut rows = Vec::new();
        for folder in folders {
            for entry in fs::read_dir(folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let id = ObjectId::from_hex(entry.file_name().to_str().unwrap()).unwrap();
                let bytes = entry.metadata().map_err(failed)?.len();
                rows.push(ObjectInfo { id, bytes });
            }
        }
        Ok(rows)
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
        match fs::read(self.path(name)) {
            Ok(body) => cut(name, &body.into(), range),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NotFound { name })
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn write(
        &self,
        name: ObjectName,
        _contents: PackContents,
        body: Bytes,
    ) -> Result<(), StoreError> {
        let hash = ObjectId(crate::seal::sha256(&body));
        assert!(name.kind == ObjectKind::Config || hash == name.id, "{name}");
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).map_err(failed)?;
        let part = path.with_extension("part");
        fs::write(&part, &body).map_err(failed)?;
        fs::rename(part, path).map_err(failed)
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        fs::remove_file(self.path(name)).map_err(failed)
    }
}

fn failed(error: io::Error) -> StoreError {
    StoreError::Failed(Box::new(error))
}
