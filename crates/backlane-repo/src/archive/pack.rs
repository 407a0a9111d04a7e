//! Packs blobs, and enters them into the index.
//!
//! Several packs are open at once, so that threads seldom wait for each other; what is left in them at the end goes into
//! as few as hold it. An object of the index is written when there is much to be entered, or the last one is old: what an
//! interrupted backup has stored is found without it (see [`crate::resume`]), but not for nothing.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use backlane_proto::{ObjectId, PackContents};
use bytes::Bytes;

use super::DryRun;
use crate::error::RepoError;
use crate::headers::write_header;
use crate::index::{BlobId, BlobJson, BlobKind, HexId, KindJson, PackJson};
use crate::repository::{Inner, PACK_BLOBS_MAX, PACK_TARGET_BYTES, TREE_PACK_TARGET_BYTES};
use crate::seal::sha256;

/// Packs of pieces of files that are open at once.
const OPEN_PACKS_MAX: usize = 4;

/// Buffers that wait to be used again.
const SPARE_MAX: usize = 2;

/// An object of the index is closed when it has so many blobs, or so long after the last.
const INDEX_BLOBS_MAX: usize = 50_000;
const INDEX_AGE_MAX: Duration = Duration::from_secs(300);

/// Takes blobs, and stores packs of them.
pub(crate) struct Packer<'a> {
    inner: &'a Inner,
    dry_run: DryRun,
    data: Vec<Mutex<OpenPack>>,
    trees: Vec<Mutex<OpenPack>>,
    index: Mutex<OpenIndex>,
    spare: Arc<Spare>,
    pub(crate) data_added: Added,
    pub(crate) trees_added: Added,
}

/// What was added of one kind.
#[derive(Default)]
pub(crate) struct Added {
    pub(crate) blobs: AtomicU64,
    /// Before and after compressing and sealing.
    pub(crate) plain_bytes: AtomicU64,
    pub(crate) packed_bytes: AtomicU64,
}

#[derive(Default)]
struct OpenPack {
    bytes: Vec<u8>,
    blobs: Vec<BlobJson>,
}

/// Buffers of packs that were stored. To have memory from the system anew for each pack is a twelfth of a backup's work.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

/// The bytes of a pack on its way to the store, whose buffer is used again afterwards.
struct Body {
    bytes: Vec<u8>,
    spare: Arc<Spare>,
}

struct OpenIndex {
    packs: Vec<PackJson>,
    blobs: usize,
    since: Instant,
}

/// A blob as it shall be stored.
pub(crate) struct Blob<'a> {
    pub(crate) kind: BlobKind,
    pub(crate) id: BlobId,
    /// Not yet sealed.
    pub(crate) stored: &'a [u8],
    pub(crate) plain_length: u32,
    pub(crate) is_compressed: bool,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(inner: &'a Inner, threads: usize, dry_run: DryRun) -> Self {
        let open = |count| std::iter::repeat_with(Mutex::default).take(count).collect();
        Self {
            inner,
            dry_run,
            data: open(threads.clamp(1, OPEN_PACKS_MAX)),
            trees: open(1),
            index: Mutex::new(OpenIndex::new()),
            spare: Arc::default(),
            data_added: Added::default(),
            trees_added: Added::default(),
        }
    }

    /// Adds a blob; stores a pack that is full with it. How long that waited then for room on the way to the store.
    pub(crate) fn add(&self, blob: &Blob<'_>) -> Result<Option<Duration>, RepoError> {
        let (packs, added, target) = match blob.kind {
            BlobKind::Data => (&self.data, &self.data_added, PACK_TARGET_BYTES),
            BlobKind::Tree => (&self.trees, &self.trees_added, TREE_PACK_TARGET_BYTES),
        };
        let mut pack = free(packs);
        if pack.bytes.capacity() == 0 {
            pack.bytes = self.spare.take(target as usize + (1 << 20));
        }
        let length = pack.push(self.inner, blob)?;
        let is_full = pack.bytes.len() >= target as usize || pack.blobs.len() >= PACK_BLOBS_MAX;
        let full = is_full.then(|| mem::take(&mut *pack));
        drop(pack);
        added.blobs.fetch_add(1, Ordering::Relaxed);
        added
            .plain_bytes
            .fetch_add(blob.plain_length.into(), Ordering::Relaxed);
        added
            .packed_bytes
            .fetch_add(length.into(), Ordering::Relaxed);
        let waited = full.map(|full| self.close(full, blob.kind));
        waited.transpose()
    }

    /// Stores what is left.
    pub(crate) fn finish(&self) -> Result<(), RepoError> {
        for (packs, kind, target) in [
            (&self.data, BlobKind::Data, PACK_TARGET_BYTES),
            (&self.trees, BlobKind::Tree, TREE_PACK_TARGET_BYTES),
        ] {
            let mut last = OpenPack::default();
            for pack in packs {
                let next = mem::take(&mut *lock(pack));
                if last.bytes.len() + next.bytes.len() > target as usize
                    || last.blobs.len() + next.blobs.len() > PACK_BLOBS_MAX
                {
                    self.close(mem::take(&mut last), kind)?;
                }
                last.append(next);
            }
            self.close(last, kind)?;
        }
        let packs = mem::take(&mut lock(&self.index).packs);
        self.write_index(packs)
    }

    fn close(&self, mut pack: OpenPack, kind: BlobKind) -> Result<Duration, RepoError> {
        if pack.blobs.is_empty() || self.dry_run == DryRun::Yes {
            return Ok(Duration::ZERO);
        }
        let header = write_header(&pack.blobs);
        let sealed = self
            .inner
            .key
            .seal_onto(&header, &mut pack.bytes)
            .ok_or_else(unsealed)?;
        pack.bytes.extend_from_slice(&sealed.to_le_bytes());
        let id = ObjectId(sha256(&pack.bytes));
        let contents = match kind {
            BlobKind::Data => PackContents::Data,
            BlobKind::Tree => PackContents::Trees,
        };
        let began = Instant::now();
        let window = self.inner.backend.window();
        let body = Body {
            bytes: pack.bytes,
            spare: Arc::clone(&self.spare),
        };
        window
            .push(id, contents, Bytes::from_owner(body))
            .map_err(|cause| RepoError::WriteFailed { cause })?;
        let waited = began.elapsed();
        self.enter(id, pack.blobs)?;
        Ok(waited)
    }

    fn enter(&self, id: ObjectId, blobs: Vec<BlobJson>) -> Result<(), RepoError> {
        let mut index = lock(&self.index);
        index.blobs += blobs.len();
        let id = HexId(id.0);
        index.packs.push(PackJson { id, blobs });
        if index.blobs < INDEX_BLOBS_MAX && index.since.elapsed() < INDEX_AGE_MAX {
            return Ok(());
        }
        let packs = mem::replace(&mut *index, OpenIndex::new()).packs;
        drop(index);
        self.write_index(packs)
    }

    fn write_index(&self, packs: Vec<PackJson>) -> Result<(), RepoError> {
        match packs.is_empty() {
            true => Ok(()),
            false => self.inner.write_index(packs),
        }
    }
}

impl Spare {
    fn take(&self, bytes: usize) -> Vec<u8> {
        let spare = lock(&self.0).pop();
        let mut buffer = spare.unwrap_or_default();
        buffer.reserve(bytes);
        buffer
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let mut bytes = mem::take(&mut self.bytes);
        bytes.clear();
        let mut spare = lock(&self.spare.0);
        if spare.len() < SPARE_MAX {
            spare.push(bytes);
        }
    }
}

impl OpenPack {
    /// Seals a blob at the end; its length there.
    fn push(&mut self, inner: &Inner, blob: &Blob<'_>) -> Result<u32, RepoError> {
        let too_long = RepoError::OutOfRange {
            what: "the size of a pack",
        };
        let Ok(offset) = u32::try_from(self.bytes.len()) else {
            return Err(too_long);
        };
        let sealed = inner.key.seal_onto(blob.stored, &mut self.bytes);
        let length = sealed.ok_or_else(unsealed)?;
        if offset.checked_add(length).is_none() {
            return Err(too_long);
        }
        self.blobs.push(BlobJson {
            id: HexId(blob.id.0),
            kind: match blob.kind {
                BlobKind::Data => KindJson::Data,
                BlobKind::Tree => KindJson::Tree,
            },
            offset,
            length,
            uncompressed_length: blob.is_compressed.then_some(blob.plain_length),
        });
        Ok(length)
    }

    /// Puts another one's blobs behind one's own, which the caller has found to have room.
    fn append(&mut self, other: Self) {
        if self.blobs.is_empty() {
            *self = other;
            return;
        }
        let by = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&other.bytes);
        self.blobs
            .extend(other.blobs.into_iter().map(|blob| BlobJson {
                offset: blob.offset + by,
                ..blob
            }));
    }
}

impl OpenIndex {
    fn new() -> Self {
        Self {
            packs: Vec::new(),
            blobs: 0,
            since: Instant::now(),
        }
    }
}

/// The first open pack that nobody holds; the first of all if all are held.
fn free(packs: &[Mutex<OpenPack>]) -> MutexGuard<'_, OpenPack> {
    for pack in packs {
        match pack.try_lock() {
            Ok(pack) => return pack,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    lock(&packs[0])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unsealed() -> RepoError {
    RepoError::Engine {
        doing: "sealing",
        what: "the system has no randomness".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use backlane_proto::ObjectKind;

    use super::*;
    use crate::repository::Repository;
    use crate::tests::support::memory_repository;

    fn packer(repository: &Repository) -> Packer<'_> {
        Packer::new(&repository.inner, 2, DryRun::No)
    }

    #[test]
    fn packs_that_were_open_are_joined_up_to_so_many_blobs_and_no_more() {
        for (second, packs) in [(1, 1), (2, 2)] {
            let (store, repository) = memory_repository();
            let packer = packer(&repository);
            let add = |count: usize| {
                for number in 0..count {
                    let number = number.to_le_bytes();
                    let blob = Blob {
                        kind: BlobKind::Data,
                        id: BlobId(sha256(&number)),
                        stored: &number,
                        plain_length: 8,
                        is_compressed: false,
                    };
                    packer.add(&blob).unwrap();
                }
            };
            add(PACK_BLOBS_MAX - 1);
            let held = lock(&packer.data[0]);
            add(second);
            drop(held);
            assert_eq!(store.count(ObjectKind::Pack), 0);
            packer.finish().unwrap();
            assert_eq!(store.count(ObjectKind::Pack), packs);
        }
    }

    #[test]
    fn an_object_of_the_index_is_written_while_the_backup_goes_on() {
        let (store, repository) = memory_repository();
        let blob = |offset| BlobJson {
            id: HexId([1; 32]),
            kind: KindJson::Data,
            offset,
            length: 40,
            uncompressed_length: None,
        };
        let packer = packer(&repository);
        let enter =
            |pack, count| packer.enter(ObjectId([pack; 32]), (0..count).map(blob).collect());
        let most = u32::try_from(INDEX_BLOBS_MAX).unwrap();
        enter(1, most - 1).unwrap();
        assert_eq!(store.count(ObjectKind::Index), 0);
        enter(2, 1).unwrap();
        assert_eq!(store.count(ObjectKind::Index), 1);
        lock(&packer.index).since -= INDEX_AGE_MAX;
        enter(3, 1).unwrap();
        assert_eq!(store.count(ObjectKind::Index), 2);
        enter(4, 1).unwrap();
        assert_eq!(store.count(ObjectKind::Index), 2);
    }

    #[test]
    fn a_buffer_comes_back_empty_once_nobody_has_the_body_any_more_and_few_are_kept() {
        let spare = Arc::new(Spare::default());
        let bodies = [7; SPARE_MAX + 1].map(|byte| {
            let body = Body {
                bytes: vec![byte; 1000],
                spare: Arc::clone(&spare),
            };
            Bytes::from_owner(body)
        });
        let kept = bodies[0].slice(3..5);
        drop(bodies);
        assert_eq!(lock(&spare.0).len(), SPARE_MAX);
        let again = spare.take(10);
        assert!(again.is_empty() && again.capacity() >= 1000);
        assert_eq!(kept, [7; 2][..]);
        drop(kept);
        assert_eq!(lock(&spare.0).len(), SPARE_MAX);
    }
}
