//! The work: files are read, cut and stored, and directories when they are whole.

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Change, File, Pipeline, Unread};
use crate::archive::Compression;
use crate::archive::chunker::{BYTES_MIN, Cut};
use crate::archive::compress::Compressor;
use crate::archive::node::Leads;
use crate::archive::pack::Blob;
use crate::archive::pool::Job;
use crate::archive::read::{Buffer, Content, STEP_BYTES};
use crate::archive::trees::{Before, Ended, Whole};
use crate::error::RepoError;
use crate::index::{BlobId, BlobKind};
use crate::seal::sha256;
use crate::source::{OpenFile, WarningKind};

/// A file of more than one piece.
struct Large {
    /// The source's rule for it.
    compression: Option<Compression>,
    state: Mutex<LargeState>,
}

struct LargeState {
    /// What isn't known yet is `None`.
    content: Vec<Option<BlobId>>,
    unknown: usize,
    bytes: u64,
    reading: Reading,
    entry: Option<Unread>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    GoesOn,
    Ended,
    Failed,
}

/// A piece of a large file.
pub(super) struct Piece {
    of: Arc<Large>,
    number: usize,
    buffer: Buffer,
}

impl Pipeline<'_> {
    pub(super) fn work(&self) -> Result<(), RepoError> {
        let mut compressor = Compressor::new();
        while let Some(job) = self.pool.take() {
            match job {
                Job::File(file) => self.read(&mut compressor, *file)?,
                Job::Piece(piece) => self.store_piece(&mut compressor, piece)?,
                Job::Tree(whole) => self.store_trees(&mut compressor, *whole)?,
            }
            // It may have been given up half-way, and be the last that there was: the others would wait for ever.
            if self.must_end() {
                self.pool.end();
            }
        }
        Ok(())
    }

    fn read(&self, compressor: &mut Compressor, file: File) -> Result<(), RepoError> {
        let File {
            path,
            open,
            compression,
            entry,
        } = file;
        let missing = || std::io::Error::other("the source gave no way to open it");
        let mut content = match open.ok_or_else(missing).and_then(OpenFile::open) {
            Ok(opened) => Content::new(opened, entry.draft.meta.size),
            Err(error) => {
                let reason = format!("can't be opened: {error}");
                self.warn(&path, WarningKind::LeftOut, reason);
                return self.finish(compressor, entry, None);
            }
        };
        let mut buffer = self.buffers.take();
        if !self.fill(&path, &mut content, &mut buffer, BYTES_MIN) {
            return self.finish(compressor, entry, None);
        }
        if !content.has_ended() {
            let large = Large::new(entry, compression);
            return self.read_large(compressor, (&path, large), content, buffer);
        }
        drop(content);
        let bytes = buffer.filled().len() as u64;
        let mut ids = Vec::new();
        if bytes > 0 {
            let level = self.levels.of(compression);
            ids.push(self.store(compressor, BlobKind::Data, buffer.filled(), level)?);
        }
        self.buffers.give_back(buffer);
        self.finish(compressor, entry, Some((ids, bytes)))
    }

    /// Reads on. Whether that went well; otherwise the source was told.
    fn fill(&self, path: &[u8], content: &mut Content, buffer: &mut Buffer, more: usize) -> bool {
        match content.fill(buffer, more) {
            Ok(None) => true,
            Ok(Some(left)) => {
                let reason = format!("shrank by {left} bytes while it was read");
                self.warn(path, WarningKind::Incomplete, reason);
                true
            }
            Err(_) if self.must_end() => false,
            Err(error) => {
                let reason = format!("can't be read: {error}");
                self.warn(path, WarningKind::LeftOut, reason);
                false
            }
        }
    }

    fn read_large(
        &self,
        compressor: &mut Compressor,
        (path, large): (&[u8], Large),
        mut content: Content,
        mut buffer: Buffer,
    ) -> Result<(), RepoError> {
        let large = Arc::new(large);
        let mut cut = Cut::default();
        let reading = loop {
            if self.must_end() {
                return Ok(());
            }
            if let Some(size) = cut.find(&self.gear, buffer.filled()) {
                cut = Cut::default();
                let mut rest = self.buffers.take();
                buffer.split_into(size, &mut rest);
                let whole = mem::replace(&mut buffer, rest);
                self.hand_in(compressor, &large, whole)?;
            } else if content.has_ended() {
                break Reading::Ended;
            } else if !self.fill(path, &mut content, &mut buffer, STEP_BYTES) {
                break Reading::Failed;
            }
        };
        drop(content);
        match reading {
            Reading::Ended if !buffer.filled().is_empty() => {
                self.hand_in(compressor, &large, buffer)?;
            }
            _ => self.buffers.give_back(buffer),
        }
        let mut state = large.state();
        state.reading = reading;
        self.finish_large(compressor, state)
    }

    /// Hands in a piece, or stores it at once.
    fn hand_in(
        &self,
        compressor: &mut Compressor,
        large: &Arc<Large>,
        buffer: Buffer,
    ) -> Result<(), RepoError> {
        let mut state = large.state();
        let number = state.content.len();
        state.content.push(None);
        state.unknown += 1;
        state.bytes += buffer.filled().len() as u64;
        drop(state);
        let of = Arc::clone(large);
        match self.pool.offer(Piece { of, number, buffer }) {
            Ok(()) => Ok(()),
            Err(piece) => self.store_piece(compressor, piece),
        }
    }

    fn store_piece(&self, compressor: &mut Compressor, piece: Piece) -> Result<(), RepoError> {
        let level = self.levels.of(piece.of.compression);
        let id = self.store(compressor, BlobKind::Data, piece.buffer.filled(), level)?;
        self.buffers.give_back(piece.buffer);
        let mut state = piece.of.state();
        state.content[piece.number] = Some(id);
        state.unknown -= 1;
        self.finish_large(compressor, state)
    }

    /// Ends a file, when all of it is known.
    fn finish_large(
        &self,
        compressor: &mut Compressor,
        mut state: MutexGuard<'_, LargeState>,
    ) -> Result<(), RepoError> {
        if state.reading == Reading::GoesOn || state.unknown > 0 {
            return Ok(());
        }
        let Some(entry) = state.entry.take() else {
            return Ok(());
        };
        let ids = mem::take(&mut state.content)
            .into_iter()
            .flatten()
            .collect();
        let content = (state.reading == Reading::Ended).then_some((ids, state.bytes));
        drop(state);
        self.finish(compressor, entry, content)
    }

    /// Puts an entry into its directory with its content, or drops it.
    fn finish(
        &self,
        compressor: &mut Compressor,
        entry: Unread,
        content: Option<(Vec<BlobId>, u64)>,
    ) -> Result<(), RepoError> {
        let Unread {
            mut draft,
            place,
            change,
        } = entry;
        let json = match content {
            None => None,
            Some((ids, bytes)) => {
                draft.meta.size = bytes;
                self.count(change, bytes);
                Some(draft.json(Leads::ToContent(&ids))?)
            }
        };
        match self.trees.fill(place, json)? {
            Some(whole) => self.store_trees(compressor, whole),
            None => Ok(()),
        }
    }

    /// Stores a directory, and those above that are whole with it.
    fn store_trees(&self, compressor: &mut Compressor, first: Whole) -> Result<(), RepoError> {
        let mut next = Some(first);
        while let Some(whole) = next.take() {
            let id = self.store_list(compressor, whole.list.end()?)?;
            self.counts.directories.add(match whole.before {
                Before::NotThere => Change::New,
                Before::Tree(before) if before == id => Change::Unmodified,
                _ => Change::Changed,
            });
            let Some(own) = whole.own else {
                self.outcome().root = Some(id);
                self.pool.end();
                return Ok(());
            };
            let json = own.draft.json(Leads::ToTree(id))?;
            next = self.trees.fill(own.place, Some(json))?;
        }
        Ok(())
    }

    fn store_list(&self, compressor: &mut Compressor, list: Ended) -> Result<BlobId, RepoError> {
        let kind = BlobKind::Tree;
        let (id, bytes) = match list {
            Ended::Small(json) => {
                let level = self.levels.of_lists();
                (
                    self.store(compressor, kind, &json, level)?,
                    json.len() as u64,
                )
            }
            Ended::Large {
                id,
                compressed,
                plain_length,
            } => {
                if self.known.claim(kind, id) {
                    self.pack(&Blob {
                        kind,
                        id,
                        stored: &compressed,
                        plain_length,
                        is_compressed: true,
                    })?;
                }
                (id, plain_length.into())
            }
        };
        self.counts.list_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(id)
    }

    /// Stores a blob, if it isn't known.
    fn store(
        &self,
        compressor: &mut Compressor,
        kind: BlobKind,
        plain: &[u8],
        level: Option<i32>,
    ) -> Result<BlobId, RepoError> {
        let id = BlobId(sha256(plain));
        if self.known.claim(kind, id) {
            let plain_length = u32::try_from(plain.len());
            let (stored, is_compressed) = compressor.compress(plain, level)?;
            self.pack(&Blob {
                kind,
                id,
                stored,
                plain_length: plain_length.unwrap_or(u32::MAX),
                is_compressed,
            })?;
        }
        Ok(id)
    }

    fn pack(&self, blob: &Blob<'_>) -> Result<(), RepoError> {
        if let Some(waited) = self.packer.add(blob)? {
            self.levels.waited(waited);
        }
        Ok(())
    }
}

impl Large {
    fn new(entry: Unread, compression: Option<Compression>) -> Self {
        Self {
            compression,
            state: Mutex::new(LargeState {
                content: Vec::new(),
                unknown: 0,
                bytes: 0,
                reading: Reading::GoesOn,
                entry: Some(entry),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, LargeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
