//! Where a repository's objects are: behind a session, or, for a dry run before the first backup, nowhere.

use backlane_net::{Blocking, Error};
use backlane_proto::{ByteRange, ObjectInfo, ObjectKind, ObjectName, PackContents};
use backlane_repo::{ObjectStore, StoreError};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A session as the repository wants it.
pub(super) struct Remote(pub(super) Blocking);

impl ObjectStore for Remote {
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError> {
        self.0.list(kind).map_err(failed)
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
        self.0.get(name, range).map_err(failed)
    }

    fn write(
        &self,
        name: ObjectName,
        contents: PackContents,
        body: Bytes,
    ) -> Result<(), StoreError> {
        self.0.put(name, contents, body).map_err(failed)
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        self.0.remove(name).map_err(failed)
    }
}

fn failed(error: Error) -> StoreError {
    match error {
        Error::NotFound { name } => StoreError::NotFound { name },
        Error::Damaged { name, what } => StoreError::Damaged { name, what },
        Error::Denied { what } => StoreError::Denied { what },
        error => StoreError::Failed(Box::new(error)),
    }
}

/// Objects in memory, for a dry run where there is no repository yet.
#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<ObjectName, Bytes>>);

impl Memory {
    fn objects(&self) -> MutexGuard<'_, BTreeMap<ObjectName, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ObjectStore for Memory {
    fn list(&self, kind: ObjectKind) -> Result<Vec<ObjectInfo>, StoreError> {
        let objects = self.objects();
        let of_kind = objects.iter().filter(|(name, _)| name.kind == kind);
        Ok(of_kind
            .map(|(name, body)| ObjectInfo {
                id: name.id,
                bytes: body.len() as u64,
            })
            .collect())
    }

    fn read(&self, name: ObjectName, range: Option<ByteRange>) -> Result<Bytes, StoreError> {
        let objects = self.objects();
        let body = objects.get(&name).ok_or(StoreError::NotFound { name })?;
        let Some(range) = range else {
            return Ok(body.clone());
        };
        let at = |offset: u64| usize::try_from(offset).ok();
        let end = range.offset.checked_add(range.length).and_then(at);
        match (at(range.offset), end) {
            (Some(start), Some(end)) if end <= body.len() => Ok(body.slice(start..end)),
            _ => Err(StoreError::Failed(
                format!("{name} is shorter than that").into(),
            )),
        }
    }

    fn write(&self, name: ObjectName, _: PackContents, body: Bytes) -> Result<(), StoreError> {
        self.objects().insert(name, body);
        Ok(())
    }

    fn remove(&self, name: ObjectName) -> Result<(), StoreError> {
        self.objects().remove(&name);
        Ok(())
    }
}
