//! Archives what `pg_receivewal` writes into its directory: whole segments as they are, and what has grown of the one that
//! is being written as pieces (`docs/design/wal.md` §7).
//!
//! Invariants: a file is removed only right after the server has confirmed all of it, since a server may be put back to an
//! older state at any time; what stays is offered again every few minutes for the same reason; the newest file is never
//! removed, since it tells `pg_receivewal` where to go on; nothing of a segment is archived before the whole ones before
//! it.

use super::{
    file::{LONG_HEADER_BYTES, ReadyFile, first_page},
    pieces::{piece, written},
    protocol::{Answer, Request, connect},
    push,
};
use crate::Error;
use backlane_proto::{WalFile, WalName, wal::SegmentPlace};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long the spooler may be silent. It waits for a session itself.
const WAIT: Duration = Duration::from_secs(300);
/// How long what was archived of files that stay is believed to be there.
const BELIEVED: Duration = Duration::from_secs(120);
/// No piece is larger.
const PIECE_BYTES_MAX: u32 = 16 << 20;

/// What archives a directory of `pg_receivewal`.
pub struct Receiver {
    directory: PathBuf,
    socket: PathBuf,
    /// The cluster, once a segment has told.
    system: Option<u64>,
    /// What is archived of files that stay.
    archived: BTreeSet<WalName>,
    /// Up to where pieces of a segment are archived, as far as that is known.
    end: Option<(WalName, u32)>,
    /// Since when both are remembered.
    since: Instant,
}

impl Receiver {
    /// For a directory, and the socket of the spooler.
    #[must_use]
    pub fn new(directory: &Path, socket: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            socket: socket.to_owned(),
            system: None,
            archived: BTreeSet::new(),
            end: None,
            since: Instant::now(),
        }
    }

    /// Believes no more that anything is archived.
    pub(super) fn forget(&mut self) {
        self.archived.clear();
        self.end = None;
        self.since = Instant::now();
    }

    /// Archives everything that is there by now.
    ///
    /// # Errors
    /// When something can't be read or archived; it stays in the directory for the next time.
    pub fn pass(&mut self) -> Result<(), Error> {
        if self.since.elapsed() > BELIEVED {
            self.forget();
        }
        let files = self.list()?;
        let newest = files.iter().filter_map(|name| place(*name)).max();
        let is_whole = |name: &&WalName| matches!(name.file, WalFile::Segment(_));
        for name in files.iter().filter(is_whole) {
            self.whole(*name, newest)?;
        }
        for name in files.iter().filter(|name| !is_whole(name)) {
            match name.file {
                WalFile::Partial(_) => self.growing(*name, newest)?,
                WalFile::History => self.history(*name)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The files, in the order of WAL. Their cluster isn't known yet.
    fn list(&self) -> Result<Vec<WalName>, Error> {
        let cannot = |error| refused(&self.directory, error);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(cannot)? {
            let name = entry.map_err(cannot)?.file_name();
            files.extend(
                name.to_str()
                    .and_then(|name| WalName::from_file_name(1, name)),
            );
        }
        files.sort_unstable_by_key(|name| name.id());
        Ok(files)
    }

    fn path(&self, name: WalName) -> PathBuf {
        self.directory.join(name.file_name())
    }

    fn whole(&mut self, name: WalName, newest: Option<(SegmentPlace, u32)>) -> Result<(), Error> {
        let stays = place(name) == newest;
        if !(stays && self.archived.contains(&name)) {
            push::push(&self.path(name), &self.socket)?;
            self.archived.insert(name);
        }
        self.leave(name, newest)
    }

    /// Removes a file that is archived, unless it is the newest.
    fn leave(&mut self, name: WalName, newest: Option<(SegmentPlace, u32)>) -> Result<(), Error> {
        if place(name) == newest {
            return Ok(());
        }
        let path = self.path(name);
        fs::remove_file(&path).map_err(|error| refused(&path, error))?;
        self.archived.remove(&name);
        Ok(())
    }

    /// Histories stay: `pg_receivewal` would ask for them again.
    fn history(&mut self, name: WalName) -> Result<(), Error> {
        // A segment of its timeline comes next and tells the cluster.
        let Some(system) = self.system.filter(|_| !self.archived.contains(&name)) else {
            return Ok(());
        };
        let path = self.path(name);
        let bytes = fs::read(&path).map_err(|error| refused(&path, error))?;
        let file = ReadyFile {
            name: WalName { system, ..name },
            bytes,
        };
        push::push_file(&file, &path, &self.socket)?;
        self.archived.insert(name);
        Ok(())
    }

    /// Archives what a growing segment has more than its pieces.
    fn growing(&mut self, name: WalName, newest: Option<(SegmentPlace, u32)>) -> Result<(), Error> {
        let path = self.path(name);
        let cannot = |error| refused(&path, error);
        let file = match File::open(&path) {
            Ok(file) => file,
            // It is whole by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(cannot(error)),
        };
        let Some(segment) = self.segment(name, &file, &path)? else {
            return Ok(());
        };
        if place(name) != newest {
            self.end = None;
        }
        let mut end = self.end(segment)?;
        let written = written(&file, end).map_err(cannot)?;
        // Whatever fails on the way: the server knows how far it came.
        self.end = None;
        while end < written {
            let length = (written - end).min(PIECE_BYTES_MAX);
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, u64::from(end))
                .map_err(cannot)?;
            let name = piece(segment, end).map_err(|why| refused(&path, why))?;
            push::push_file(&ReadyFile { name, bytes }, &path, &self.socket)?;
            end += length;
        }
        self.end = Some((segment, end));
        // Its timeline ended in it.
        self.leave(name, newest)
    }

    /// The segment that a growing file is to become; `None` before its first page is there.
    fn segment(
        &mut self,
        name: WalName,
        file: &File,
        path: &Path,
    ) -> Result<Option<WalName>, Error> {
        let WalFile::Partial(place) = name.file else {
            return Ok(None);
        };
        let mut begin = [0; LONG_HEADER_BYTES];
        match file.read_exact_at(&mut begin, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(|error| refused(path, error))?,
        }
        let Some(page) = first_page(&begin) else {
            return Ok(None);
        };
        let check = page.check(name.timeline, place, page.segment_bytes as usize);
        check.map_err(|why| refused(path, why))?;
        self.system = Some(page.system);
        Ok(Some(WalName {
            system: page.system,
            file: WalFile::Segment(place),
            ..name
        }))
    }

    /// Up to where there are pieces of a segment.
    fn end(&self, segment: WalName) -> Result<u32, Error> {
        match self.end {
            Some((of, end)) if of == segment => return Ok(end),
            _ => {}
        }
        let asked = connect(&self.socket, WAIT).and_then(|mut stream| {
            Request::End(segment).write(&mut stream)?;
            Answer::read(&mut stream)
        });
        match asked {
            Ok(Answer::End(end)) => Ok(end),
            Ok(Answer::Failed(why)) => Err(refused(Path::new(&segment.file_name()), why)),
            Ok(other) => Err(refused(
                Path::new(&segment.file_name()),
                format!("the spooler answers {other:?}"),
            )),
            Err(source) => Err(Error::Spooler {
                socket: self.socket.clone(),
                source,
            }),
        }
    }
}

fn refused(path: &Path, why: impl ToString) -> Error {
    Error::WalFile {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

/// By what `pg_receivewal` knows the newest file: it goes on there.
fn place(name: WalName) -> Option<(SegmentPlace, u32)> {
    match name.file {
        WalFile::Segment(place) | WalFile::Partial(place) => Some((place, name.timeline)),
        _ => None,
    }
}
