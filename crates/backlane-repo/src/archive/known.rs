//! Which blobs need not be stored: those that the index knows, and those that this backup has taken on.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::index::{BlobId, BlobKind};
use crate::reader::Reader;

/// Parts of the set, so that threads seldom wait for each other.
const PARTS: usize = 16;

/// What is stored, or is being stored.
pub(crate) struct Known<'a> {
    reader: &'a Reader,
    new: [Mutex<HashSet<(BlobId, BlobKind)>>; PARTS],
}

impl<'a> Known<'a> {
    pub(crate) fn new(reader: &'a Reader) -> Self {
        Self {
            reader,
            new: Default::default(),
        }
    }

    /// Whether a blob was there before this backup.
    pub(crate) fn was_there(&self, kind: BlobKind, id: BlobId) -> bool {
        self.reader.index().find(kind, id).is_some()
    }

    /// Whether the caller has to store a blob: it isn't there, and nobody else has been told so.
    pub(crate) fn claim(&self, kind: BlobKind, id: BlobId) -> bool {
        if self.was_there(kind, id) {
            return false;
        }
        let part = &self.new[usize::from(id.0[0]) % PARTS];
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        part.insert((id, kind))
    }
}
