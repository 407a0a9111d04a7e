//! The spooler: serves pushes and fetches of this host's databases over a session that somebody else keeps open.
//!
//! Invariants: a push is answered with success only after the server has confirmed that very file in the session that
//! is open now, and not on that word alone later; files in memory are bounded by [`ROOM_BYTES`], connections by [`CONNECTIONS_MAX`], and silence on either
//! by a time.

use super::{
    pieces::Around,
    protocol::{self, Answer, Request},
    read_ahead::ReadAhead,
};
use aws_lc_rs::digest::{SHA256, digest};
use backlane_proto::{
    ByteRange, ObjectId, ObjectKind, ObjectName, PackContents, WalName, wal::HEADER_BYTES,
};
use backlane_repo::{ObjectStore, StoreError, WalKey};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Files that are held at a time, in bytes.
const ROOM_BYTES: usize = 256 << 20;
const CONNECTIONS_MAX: usize = 64;
/// How long a program may be silent in the middle of a request.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a request waits for a session.
const SESSION_WAIT: Duration = Duration::from_secs(30);
/// How many files are remembered as confirmed.
const CONFIRMED_MAX: usize = 1024;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where files go and come from, while there is a session.
#[derive(Clone)]
pub struct Archive {
    /// The objects.
    pub store: Arc<dyn ObjectStore>,
    /// What seals and opens them.
    pub key: WalKey,
}

/// Serves pushes and fetches.
pub struct Spooler {
    state: Mutex<State>,
    changed: Condvar,
    ahead: ReadAhead,
    session_wait: Duration,
}

struct State {
    /// The archive, or why there is none.
    archive: Result<Archive, String>,
    /// By name, the SHA-256 of files that the server has confirmed in this session, and how what was stored begins.
    confirmed: BTreeMap<ObjectId, ([u8; 32], Bytes)>,
    room: usize,
    connections: usize,
}

impl Spooler {
    /// A spooler without a session.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_session_wait(SESSION_WAIT)
    }

    fn with_session_wait(session_wait: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                archive: Err("there was no session with the server yet".to_owned()),
                confirmed: BTreeMap::new(),
                room: ROOM_BYTES,
                connections: 0,
            }),
            changed: Condvar::new(),
            ahead: ReadAhead::default(),
            session_wait,
        })
    }

    /// A session is there, or was lost, and why. What was confirmed in another session counts no more: the server may have
    /// been put back to an older state since.
    pub fn set_archive(&self, archive: Result<Archive, String>) {
        let mut state = self.lock();
        state.archive = archive;
        state.confirmed.clear();
        self.changed.notify_all();
    }

    /// Serves whoever connects, each on a thread of its own. Never returns.
    pub fn serve(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            drop(self.wait_while(|state| state.connections >= CONNECTIONS_MAX));
            match listener.accept() {
                Ok((stream, _)) => {
                    self.lock().connections += 1;
                    let this = Arc::clone(self);
                    thread::spawn(move || {
                        let connection = Connection(&this);
                        if let Err(error) = connection.serve(stream) {
                            tracing::debug!(%error, "a program went away");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, condition: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waited = self
            .changed
            .wait_while(self.lock(), |state| condition(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// The archive; waits for a session for a while.
    fn archive(&self) -> Result<Archive, String> {
        let state = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(state, self.session_wait, |state| state.archive.is_err());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.archive.clone()
    }

    /// Whether this very file was stored in this session and is there still: a server may have been put back to an older
    /// state while the session went on.
    fn is_confirmed(&self, name: WalName, hash: [u8; 32]) -> bool {
        let confirmed = match self.lock().confirmed.get(&name.id()) {
            Some((of, header)) if *of == hash => header.clone(),
            _ => return false,
        };
        let range = ByteRange {
            offset: 0,
            length: confirmed.len() as u64,
        };
        let header = self
            .archive()
            .map(|it| it.store.read(object(name), Some(range)));
        matches!(header, Ok(Ok(header)) if header == confirmed)
    }

    /// Archives a file; returns when it is durable.
    fn put(&self, name: WalName, hash: [u8; 32], file: Vec<u8>) -> Result<(), String> {
        if digest(&SHA256, &file).as_ref() != hash {
            return Err("the file is not the one that was announced".to_owned());
        }
        let archive = self.archive()?;
        let began = Instant::now();
        let bytes = file.len();
        let body = archive.key.seal(name, &file);
        drop(file);
        let body = body.ok_or("it can't be sealed: out of memory or randomness")?;
        let stored_bytes = body.len();
        // On its own: a slice would keep all of it.
        let header = Bytes::copy_from_slice(&body[..HEADER_BYTES.min(stored_bytes)]);
        let object = object(name);
        archive
            .store
            .write(object, PackContents::Data, body)
            .map_err(|error| error.to_string())?;
        let ms = began.elapsed().as_millis();
        tracing::info!(%object, bytes, stored_bytes, ms, "archived");
        let mut state = self.lock();
        // Not by a session that is over: the next one may find the server in another state.
        if matches!(&state.archive, Ok(now) if Arc::ptr_eq(&now.store, &archive.store)) {
            state.confirmed.insert(name.id(), (hash, header));
            if state.confirmed.len() > CONFIRMED_MAX {
                state.confirmed.pop_first();
            }
        }
        Ok(())
    }

    /// Reads a file; `None` where the server says that there is none.
    fn get(&self, name: WalName) -> Result<Option<Vec<u8>>, String> {
        let archive = self.archive()?;
        let object = object(name);
        match archive.store.read(object, None) {
            Ok(body) => open(&archive, name, &body).map(Some),
            Err(StoreError::NotFound { name }) if name == object => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn fetch(self: &Arc<Self>, name: WalName) -> Answer {
        let found = match self.ahead.take(name) {
            Some(file) => Ok(Some(file)),
            None => self.get(name),
        };
        let file = match found {
            Ok(Some(file)) => file,
            Ok(None) => return Answer::Absent,
            Err(why) => return Answer::Failed(why),
        };
        for next in self.ahead.fetched(name, file.len()) {
            let this = Arc::clone(self);
            thread::spawn(move || {
                let file = this.get(next).ok().flatten();
                this.ahead.came(next, file);
            });
        }
        tracing::info!(object = %object(name), bytes = file.len(), "fetched");
        Answer::File(file)
    }

    /// A segment, of its pieces where it isn't there whole.
    fn fetch_pieces(self: &Arc<Self>, name: WalName) -> Answer {
        let whole = self.fetch(name);
        if whole != Answer::Absent {
            return whole;
        }
        let archive = match self.archive() {
            Ok(archive) => archive,
            Err(why) => return Answer::Failed(why),
        };
        let around = match Around::read(&*archive.store, name) {
            // It has come since it was asked for, and its pieces may go any time.
            Ok(around) if around.is_whole => return self.fetch(name),
            around => around,
        };
        match around.and_then(|around| around.segment(&archive, name)) {
            Ok(Some(file)) => {
                tracing::info!(object = %object(name), bytes = file.len(), "put together of pieces");
                Answer::Together(file)
            }
            Ok(None) => Answer::Absent,
            Err(why) => Answer::Failed(why),
        }
    }

    /// Up to where there are pieces of a segment.
    fn end(&self, name: WalName) -> Answer {
        let end = self.archive().and_then(|archive| {
            let store = &*archive.store;
            Around::read(store, name)?.end(store, name)
        });
        end.map_or_else(Answer::Failed, Answer::End)
    }
}

/// One program's connection; counted as long as it lives.
struct Connection<'a>(&'a Arc<Spooler>);

impl Connection<'_> {
    fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let answer = match Request::read(&mut stream)? {
            Request::Fetch(name) => self.0.fetch(name),
            Request::FetchPieces(name) => self.0.fetch_pieces(name),
            Request::End(name) => self.0.end(name),
            Request::Push { name, hash, .. } if self.0.is_confirmed(name, hash) => Answer::Done,
            Request::Push { name, bytes, hash } => {
                let _room = Room::take(self.0, bytes);
                Answer::Send.write(&mut stream)?;
                let file = protocol::bytes(&mut stream, bytes)?;
                match self.0.put(name, hash, file) {
                    Ok(()) => Answer::Done,
                    Err(why) => {
                        tracing::warn!(object = %object(name), why, "not archived");
                        Answer::Failed(why)
                    }
                }
            }
        };
        if let Answer::Failed(why) = &answer {
            tracing::debug!(why, "a request failed");
        }
        answer.write(&mut stream)?;
        stream.flush()
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.0.lock().connections -= 1;
        self.0.changed.notify_all();
    }
}

/// Memory for a file.
struct Room<'a> {
    spooler: &'a Spooler,
    bytes: usize,
}

impl<'a> Room<'a> {
    /// Waits for room. A file that is larger than all of it goes alone.
    fn take(spooler: &'a Spooler, bytes: usize) -> Self {
        let bytes = bytes.min(ROOM_BYTES);
        spooler.wait_while(|state| state.room < bytes).room -= bytes;
        Self { spooler, bytes }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.spooler.lock().room += self.bytes;
        self.spooler.changed.notify_all();
    }
}

pub(super) fn open(archive: &Archive, name: WalName, body: &[u8]) -> Result<Vec<u8>, String> {
    let opened = archive.key.open(name, body);
    opened.map_err(|error| error.to_string())
}

pub(super) fn object(name: WalName) -> ObjectName {
    ObjectName {
        kind: ObjectKind::Wal,
        id: name.id(),
    }
}

#[cfg(test)]
mod tests;
