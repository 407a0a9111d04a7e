//! Directories that are being put together, entry by entry, in whatever order their entries become known.
//!
//! An entry gets its place when the walk comes by it, and its JSON when its content is known. What comes before its turn
//! waits; how much may wait is bounded, and the walk stops there. The list of a large directory is hashed and compressed
//! as it grows, so that it takes a small part of its size in memory.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};

use super::node::Draft;
use crate::error::RepoError;
use crate::index::{BlobId, TREE_BYTES_MAX};
use crate::seal::SEAL_BYTES;

/// How much JSON may wait for its turn.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// A list of this size is a large one.
const LARGE_BYTES: usize = 1 << 20;

/// How a list begins.
pub(super) const BEGINNING: &[u8] = b"{\"nodes\":[";

/// How it ends.
const END: &[u8] = b"]}\n";

/// No list is longer: readers take no blob, sealed or plain, that is.
const LIST_BYTES_MAX: u64 = (TREE_BYTES_MAX - SEAL_BYTES) as u64;

/// How often a walk that waits for room looks whether the backup goes on.
const LOOK: Duration = Duration::from_millis(100);

/// The directories.
pub(crate) struct Trees {
    level: Option<i32>,
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Default)]
struct State {
    directories: HashMap<u64, Directory>,
    next: u64,
    waiting_bytes: usize,
}

/// Where an entry goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    directory: u64,
    entry: u64,
}

/// A directory's own entry.
pub(crate) struct Own {
    pub(crate) place: Place,
    pub(crate) draft: Draft,
}

/// What a directory was in the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    NotThere,
    /// There was something else, or something that can't be read.
    Different,
    Tree(BlobId),
}

struct Directory {
    own: Option<Own>,
    before: Before,
    list: List,
    /// The number of the entry that comes next in the list.
    first: u64,
    /// The entries from there on: what is `None` isn't known yet.
    entries: VecDeque<Option<Known>>,
    is_closed: bool,
}

/// What became of an entry: its JSON, or nothing if it was dropped.
type Known = Option<Vec<u8>>;

/// A directory that is whole.
pub(crate) struct Whole {
    pub(crate) own: Option<Own>,
    pub(crate) before: Before,
    pub(crate) list: List,
}

/// A directory's list.
pub(crate) struct List {
    /// What wasn't handed on.
    json: Vec<u8>,
    /// All that there is.
    bytes: u64,
    is_empty: bool,
    large: Option<Box<Large>>,
}

/// What came of the beginning of a large list.
struct Large {
    hash: Context,
    compressed: zstd::stream::write::Encoder<'static, Vec<u8>>,
}

/// A list that has come to its end.
pub(crate) enum Ended {
    /// Its JSON.
    Small(Vec<u8>),
    /// Its name, and the list compressed.
    Large {
        id: BlobId,
        compressed: Vec<u8>,
        plain_length: u32,
    },
}

impl Trees {
    /// `level` is that of zstd; nothing is compressed where it is `None`.
    pub(crate) fn new(level: Option<i32>) -> Self {
        Self {
            level,
            state: Mutex::default(),
            room: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a directory; `own` is `None` for the root. Its number.
    pub(crate) fn open(&self, own: Option<Own>, before: Before) -> u64 {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let directory = Directory {
            own,
            before,
            list: List::new(),
            first: 0,
            entries: VecDeque::new(),
            is_closed: false,
        };
        state.directories.insert(number, directory);
        number
    }

    /// The next place in a directory that is open.
    pub(crate) fn place(&self, directory: u64) -> Place {
        let mut state = self.state();
        let mut entry = 0;
        if let Some(open) = state.directories.get_mut(&directory) {
            entry = open.first + open.entries.len() as u64;
            open.entries.push_back(None);
        }
        Place { directory, entry }
    }

    /// Puts an entry where it belongs, or drops it. The directory that is whole with it.
    ///
    /// # Errors
    /// [`RepoError::DirectoryTooLarge`].
    pub(crate) fn fill(&self, place: Place, json: Known) -> Result<Option<Whole>, RepoError> {
        let mut state = self.state();
        let state = &mut *state;
        let Some(open) = state.directories.get_mut(&place.directory) else {
            return Ok(None);
        };
        let at = place.entry.checked_sub(open.first);
        let at = at
            .and_then(|at| usize::try_from(at).ok())
            .unwrap_or(usize::MAX);
        let Some(entry) = open.entries.get_mut(at) else {
            return Ok(None);
        };
        state.waiting_bytes += json.as_ref().map_or(0, Vec::len);
        *entry = Some(json);
        while let Some(Some(_)) = open.entries.front() {
            let json = open.entries.pop_front().flatten().flatten();
            open.first += 1;
            if let Some(json) = json {
                state.waiting_bytes -= json.len();
                if !open.list.has_room(&json) {
                    let path = state.path_of(place.directory);
                    return Err(RepoError::DirectoryTooLarge { path });
                }
                open.list.push(&json, self.level)?;
            }
        }
        self.room.notify_all();
        Ok(state.take_whole(place.directory))
    }

    /// No more entries come. The directory, if all of them are known.
    pub(crate) fn close(&self, directory: u64) -> Option<Whole> {
        let mut state = self.state();
        if let Some(open) = state.directories.get_mut(&directory) {
            open.is_closed = true;
        }
        state.take_whole(directory)
    }

    /// Waits until not too much waits for its turn, or `ended` says that there is no need.
    pub(crate) fn wait_for_room(&self, ended: impl Fn() -> bool) {
        let mut state = self.state();
        while state.waiting_bytes > WAITING_BYTES_MAX && !ended() {
            let waited = self.room.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    /// The path of a directory that is open, as those above it are then.
    fn path_of(&self, mut number: u64) -> Vec<u8> {
        let own = |number: u64| self.directories.get(&number)?.own.as_ref();
        let mut path = Vec::new();
        while let Some(own) = own(number) {
            path = [b"/".as_slice(), &own.draft.name, &path].concat();
            number = own.place.directory;
        }
        path
    }

    fn take_whole(&mut self, directory: u64) -> Option<Whole> {
        let open = self.directories.get(&directory)?;
        if !open.is_closed || !open.entries.is_empty() {
            return None;
        }
        let whole = self.directories.remove(&directory)?;
        Some(Whole {
            own: whole.own,
            before: whole.before,
            list: whole.list,
        })
    }
}

impl List {
    fn new() -> Self {
        Self {
            json: BEGINNING.to_vec(),
            bytes: BEGINNING.len() as u64,
            is_empty: true,
            large: None,
        }
    }

    /// Whether it can become longer by an entry.
    fn has_room(&self, json: &[u8]) -> bool {
        let more = json.len() + usize::from(!self.is_empty) + END.len();
        self.bytes + more as u64 <= LIST_BYTES_MAX
    }

    /// Adds an entry, for which there is room.
    fn push(&mut self, json: &[u8], level: Option<i32>) -> Result<(), RepoError> {
        if !mem::replace(&mut self.is_empty, false) {
            self.add(b",");
        }
        self.add(json);
        match level {
            Some(level) if self.json.len() >= LARGE_BYTES => self.hand_on(level),
            _ => Ok(()),
        }
    }

    fn add(&mut self, json: &[u8]) {
        self.json.extend_from_slice(json);
        self.bytes += json.len() as u64;
    }

    /// Hashes and compresses what there is.
    fn hand_on(&mut self, level: i32) -> Result<(), RepoError> {
        let large = match &mut self.large {
            Some(large) => large,
            none => none.insert(Box::new(Large {
                hash: Context::new(&SHA256),
                compressed: zstd::stream::write::Encoder::new(Vec::new(), level).map_err(failed)?,
            })),
        };
        large.hash.update(&self.json);
        large.compressed.write_all(&self.json).map_err(failed)?;
        self.json.clear();
        Ok(())
    }

    /// Ends the list.
    pub(crate) fn end(mut self) -> Result<Ended, RepoError> {
        self.add(END);
        if let Some(mut large) = self.large {
            large.hash.update(&self.json);
            large.compressed.write_all(&self.json).map_err(failed)?;
            let mut id = [0; 32];
            id.copy_from_slice(large.hash.finish().as_ref());
            return Ok(Ended::Large {
                id: BlobId(id),
                compressed: large.compressed.finish().map_err(failed)?,
                plain_length: u32::try_from(self.bytes).unwrap_or(u32::MAX),
            });
        }
        Ok(Ended::Small(self.json))
    }
}

fn failed(error: std::io::Error) -> RepoError {
    RepoError::Engine {
        doing: "compressing a directory's list",
        what: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{FileKind, Metadata};

    #[test]
    fn no_list_becomes_longer_than_a_reader_takes() {
        for level in [None, Some(1)] {
            let almost = |room: u64| List {
                bytes: LIST_BYTES_MAX - room,
                ..List::new()
            };
            let mut list = almost(7);
            for json in [&b"{}"[..], b"7"] {
                assert!(list.has_room(json));
                list.push(json, level).unwrap();
            }
            assert_eq!(list.bytes + END.len() as u64, LIST_BYTES_MAX);
            assert!(list.end().is_ok());
            assert!(almost(5).has_room(b"{}") && !almost(4).has_room(b"{}"));
        }
    }

    #[test]
    fn a_directory_whose_list_has_no_room_is_named() {
        let trees = Trees::new(None);
        let mut number = trees.open(None, Before::NotThere);
        for name in ["srv", "large"] {
            let draft = Draft {
                name: name.into(),
                kind: FileKind::Directory,
                meta: Metadata::default(),
            };
            let place = trees.place(number);
            number = trees.open(Some(Own { place, draft }), Before::NotThere);
        }
        let place = trees.place(number);
        let mut state = trees.state();
        state.directories.get_mut(&number).unwrap().list.bytes = LIST_BYTES_MAX;
        drop(state);
        let Err(error) = trees.fill(place, Some(b"{}".to_vec())) else {
            panic!("there was room");
        };
        assert!(error.to_string().contains("`/srv/large`"), "{error}");
    }
}
