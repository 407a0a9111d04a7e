//! The stream that mariadb-backup writes and mbstream unpacks.
//!
//! It is a row of chunks, each of one file: a part of its content, its end, a new name, its removal, or another place to
//! write on. Files may be mixed: the redo log grows while others are copied. Numbers are little-endian:
//!
//! ```text
//! XBSTCK01  flags 1  type 1  path length 4  path
//!   P  payload length 8  offset 8  CRC-32 4  payload      E  (nothing)      D  (nothing)
//!   S  offset 8                                           R  length 4  new path
//! ```
//!
//! Invariants: a path that reaches a [`Sink`] is relative and plain, without `..`; content comes at the place where the file
//! ended before; memory does not depend on what lengths the stream claims. A chunk's sum is known after its content was
//! given out: whoever gets an error has to throw away what there is.

use crc_fast::{CrcAlgorithm, Digest};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

const MAGIC: &[u8] = b"XBSTCK01";
/// The magic, flags, type and the path's length.
const HEAD_BYTES: usize = 14;
/// MariaDB's own limit (`FN_REFLEN`).
const PATH_BYTES_MAX: usize = 512;
/// How many files may be open at once: each thread of mariadb-backup has one, and the redo log is one.
const OPEN_MAX: usize = 1024;

/// Why a stream is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// It is not of the form.
    #[error("at byte {at} of the stream: {what}")]
    Form {
        /// Where the chunk begins.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// Its files can't be written.
    #[error("{}: {source}", path.display())]
    Sink {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a stream's files go to.
pub trait Sink {
    /// A part of a file.
    ///
    /// # Errors
    /// Those of whoever writes it; they end the stream.
    fn data(&mut self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// A file is whole.
    ///
    /// # Errors
    /// As [`Sink::data`].
    fn closed(&mut self, path: &Path) -> io::Result<()>;

    /// A file that is whole gets another name.
    ///
    /// # Errors
    /// As [`Sink::data`].
    fn renamed(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// A file that is whole is gone.
    ///
    /// # Errors
    /// As [`Sink::data`].
    fn removed(&mut self, path: &Path) -> io::Result<()>;
}

/// Reads a stream, piece by piece.
#[derive(Default)]
pub struct Stream {
    /// Where the chunk begins that is being read, and how much of the stream was read.
    chunk_at: u64,
    at: u64,
    /// The chunk's head as far as it came.
    head: Vec<u8>,
    payload: Option<Payload>,
    /// Where each open file is to go on.
    open: BTreeMap<PathBuf, u64>,
    whole: BTreeSet<PathBuf>,
}

struct Payload {
    path: PathBuf,
    /// Where in the file it goes on.
    at: u64,
    left: u64,
    sum: u32,
    digest: Digest,
}

impl Stream {
    /// Reads more.
    ///
    /// # Errors
    /// [`StreamError`]; the stream is of no use then.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut dyn Sink) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let used = match &mut self.payload {
                Some(payload) => {
                    let left = usize::try_from(payload.left).unwrap_or(usize::MAX);
                    let part = &bytes[..left.min(bytes.len())];
                    payload.digest.update(part);
                    let given = sink.data(&payload.path, payload.at, part);
                    given.map_err(|source| failed(&payload.path, source))?;
                    payload.at += part.len() as u64;
                    payload.left -= part.len() as u64;
                    part.len()
                }
                None => {
                    let missing = self.head_bytes()? - self.head.len();
                    let used = missing.min(bytes.len());
                    self.head.extend_from_slice(&bytes[..used]);
                    used
                }
            };
            self.at += used as u64;
            bytes = &bytes[used..];
            if self.payload.is_none() && self.head.len() == self.head_bytes()? {
                self.chunk(sink)?;
            }
            self.end_payload()?;
        }
        Ok(())
    }

    /// Looks whether the stream may end here: every file is whole, and `last`, which is written last, is there.
    ///
    /// # Errors
    /// [`StreamError::Form`]
    pub fn end(&self, last: &[&str]) -> Result<(), StreamError> {
        if self.payload.is_some() || !self.head.is_empty() {
            return Err(self.wrong("it breaks off within a chunk"));
        }
        if let Some(path) = self.open.keys().next() {
            return Err(self.wrong(format!("it ends before {} does", path.display())));
        }
        if !last.iter().any(|name| self.whole.contains(Path::new(name))) {
            return Err(self.wrong(format!("it ends without {}", last.join(" or "))));
        }
        Ok(())
    }

    /// How long the chunk's head is, as far as that is known.
    fn head_bytes(&self) -> Result<usize, StreamError> {
        let head = &self.head;
        if head.len() < HEAD_BYTES {
            return Ok(HEAD_BYTES);
        }
        if !head.starts_with(MAGIC) {
            return Err(self.wrong("no chunk begins here"));
        }
        if head[8] != 0 {
            return Err(self.wrong(format!("flags {:#04x} are unknown", head[8])));
        }
        let path_end = HEAD_BYTES + self.path_bytes(10)?;
        match head[9] {
            b'P' => Ok(path_end + 20),
            b'S' => Ok(path_end + 8),
            b'E' | b'D' => Ok(path_end),
            b'R' if head.len() < path_end + 4 => Ok(path_end + 4),
            b'R' => Ok(path_end + 4 + self.path_bytes(path_end)?),
            other => Err(self.wrong(format!("chunks of type {other:#04x} are unknown"))),
        }
    }

    /// The length of a path, which stands at `at` in the head.
    fn path_bytes(&self, at: usize) -> Result<usize, StreamError> {
        let bytes = number(&self.head, at, 4);
        match usize::try_from(bytes) {
            Ok(bytes) if (1..=PATH_BYTES_MAX).contains(&bytes) => Ok(bytes),
            _ => Err(self.wrong(format!("a path of {bytes} bytes"))),
        }
    }

    /// Does what a whole head says.
    fn chunk(&mut self, sink: &mut dyn Sink) -> Result<(), StreamError> {
        let path_end = HEAD_BYTES + self.path_bytes(10)?;
        let path = self.path(&self.head[HEAD_BYTES..path_end])?;
        let kind = self.head[9];
        let is_open = self.open.contains_key(&path);
        match kind {
            b'P' | b'S' if !is_open => self.open_file(&path)?,
            b'R' | b'D' if is_open => {
                return Err(self.wrong(format!("{} is open still", path.display())));
            }
            _ => {}
        }
        match kind {
            b'P' => self.begin_payload(path, path_end, sink)?,
            b'S' => {
                let to = number(&self.head, path_end, 8);
                if i64::try_from(to).is_err() {
                    return Err(self.wrong(format!("{} has no place {to}", path.display())));
                }
                self.open.insert(path, to);
            }
            b'E' => {
                if !is_open {
                    // A file without content.
                    self.open_file(&path)?;
                    sink.data(&path, 0, &[])
                        .map_err(|source| failed(&path, source))?;
                }
                self.open.remove(&path);
                sink.closed(&path).map_err(|source| failed(&path, source))?;
                self.whole.insert(path);
            }
            b'R' => {
                let to = self.path(&self.head[path_end + 4..])?;
                if !self.whole.remove(&path) || self.open.contains_key(&to) {
                    let (from, to) = (path.display(), to.display());
                    return Err(self.wrong(format!("{from} can't become {to}")));
                }
                sink.renamed(&path, &to)
                    .map_err(|source| failed(&path, source))?;
                self.whole.insert(to);
            }
            // What was dropped before it was copied is not there.
            _ if self.whole.remove(&path) => {
                sink.removed(&path)
                    .map_err(|source| failed(&path, source))?;
            }
            _ => {}
        }
        self.head.clear();
        self.chunk_at = self.at;
        Ok(())
    }

    fn open_file(&mut self, path: &Path) -> Result<(), StreamError> {
        if self.whole.contains(path) {
            return Err(self.wrong(format!("{} comes again", path.display())));
        }
        if self.open.len() == OPEN_MAX {
            return Err(self.wrong(format!("more than {OPEN_MAX} files are open")));
        }
        self.open.insert(path.to_owned(), 0);
        Ok(())
    }

    fn begin_payload(
        &mut self,
        path: PathBuf,
        path_end: usize,
        sink: &mut dyn Sink,
    ) -> Result<(), StreamError> {
        let [left, at] = [0, 8].map(|field| number(&self.head, path_end + field, 8));
        let expected = self.open.get(&path).copied().unwrap_or_default();
        let end = at
            .checked_add(left)
            .filter(|end| i64::try_from(*end).is_ok());
        let (true, Some(end)) = (at == expected, end) else {
            let path = path.display();
            return Err(self.wrong(format!(
                "{left} bytes for {path} at {at}, which goes on at {expected}"
            )));
        };
        self.open.insert(path.clone(), end);
        if left == 0 {
            let given = sink.data(&path, at, &[]);
            given.map_err(|source| failed(&path, source))?;
        }
        let sum = u32::try_from(number(&self.head, path_end + 16, 4)).unwrap_or_default();
        self.payload = Some(Payload {
            path,
            at,
            left,
            sum,
            digest: Digest::new(CrcAlgorithm::Crc32IsoHdlc),
        });
        Ok(())
    }

    /// Checks a payload's sum, where it has come to its end.
    fn end_payload(&mut self) -> Result<(), StreamError> {
        let ended = self.payload.take_if(|payload| payload.left == 0);
        let Some(payload) = ended else {
            return Ok(());
        };
        if payload.digest.finalize() != u64::from(payload.sum) {
            let path = payload.path.display();
            return Err(self.wrong(format!("a part of {path} is damaged: its sum is wrong")));
        }
        self.chunk_at = self.at;
        Ok(())
    }

    fn path(&self, bytes: &[u8]) -> Result<PathBuf, StreamError> {
        // mariadb-backup writes some as `./name`.
        let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
        let is_plain =
            |name: &[u8]| !name.is_empty() && name != b"." && name != b".." && !name.contains(&0);
        match bytes.split(|byte| *byte == b'/').all(is_plain) {
            true => Ok(Path::new(OsStr::from_bytes(bytes)).to_owned()),
            false => Err(self.wrong(format!("{:?} is no plain path", OsStr::from_bytes(bytes)))),
        }
    }

    fn wrong(&self, what: impl Into<String>) -> StreamError {
        StreamError::Form {
            at: self.chunk_at,
            what: what.into(),
        }
    }
}

fn failed(path: &Path, source: io::Error) -> StreamError {
    StreamError::Sink {
        path: path.to_owned(),
        source,
    }
}

/// A number of up to eight bytes.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let bytes = bytes[at..at + width].iter().rev();
    bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files in memory.
    #[derive(Debug, Default, PartialEq)]
    struct Files(BTreeMap<String, Vec<u8>>);

    impl Sink for Files {
        fn data(&mut self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
            let file = self.0.entry(path.display().to_string()).or_default();
            let at = usize::try_from(at).unwrap();
            file.resize(file.len().max(at + bytes.len()), 0);
            file[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn closed(&mut self, _path: &Path) -> io::Result<()> {
            Ok(())
        }

        fn renamed(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            let content = self.0.remove(from.to_str().unwrap()).unwrap();
            self.0.insert(to.display().to_string(), content);
            Ok(())
        }

        fn removed(&mut self, path: &Path) -> io::Result<()> {
            self.0.remove(path.to_str().unwrap()).unwrap();
            Ok(())
        }
    }

    fn chunk(kind: u8, path: &str, rest: &[u8]) -> Vec<u8> {
        let bytes = u32::try_from(path.len()).unwrap().to_le_bytes();
        [MAGIC, &[0, kind], &bytes, path.as_bytes(), rest].concat()
    }

    fn part(path: &str, at: u64, content: &[u8]) -> Vec<u8> {
        let mut digest = Digest::new(CrcAlgorithm::Crc32IsoHdlc);
        digest.update(content);
        let sum = u32::try_from(digest.finalize()).unwrap();
        let bytes = (content.len() as u64).to_le_bytes();
        let rest = [&bytes[..], &at.to_le_bytes(), &sum.to_le_bytes(), content];
        chunk(b'P', path, &rest.concat())
    }

    fn rename(path: &str, to: &str) -> Vec<u8> {
        let bytes = u32::try_from(to.len()).unwrap().to_le_bytes();
        chunk(b'R', path, &[&bytes[..], to.as_bytes()].concat())
    }

    fn read(stream: &[u8], step: usize) -> Result<Files, StreamError> {
        let (mut files, mut reader) = (Files::default(), Stream::default());
        for bytes in stream.chunks(step) {
            reader.feed(bytes, &mut files)?;
        }
        reader.end(&["info"])?;
        Ok(files)
    }

    fn whole() -> Vec<u8> {
        [
            part("app/a.ibd", 0, b"page"),
            part("ib_logfile0", 0, b"redo"),
            part("app/a.ibd", 4, b"more"),
            chunk(b'E', "app/a.ibd", b""),
            part("gone", 0, b"x"),
            chunk(b'E', "gone", b""),
            chunk(b'D', "gone", b""),
            chunk(b'D', "never", b""),
            rename("app/a.ibd", "app/b.ibd"),
            part("./empty", 0, b""),
            chunk(b'E', "empty", b""),
            chunk(b'E', "none", b""),
            chunk(b'S', "ib_logfile0", &1_u64.to_le_bytes()),
            part("ib_logfile0", 1, b"EDO"),
            chunk(b'E', "ib_logfile0", b""),
            part("info", 0, b"i"),
            chunk(b'E', "info", b""),
        ]
        .concat()
    }

    #[test]
    fn files_come_out_however_the_stream_is_cut() {
        let expected = [
            ("app/b.ibd", "pagemore"),
            ("empty", ""),
            ("ib_logfile0", "rEDO"),
            ("info", "i"),
            ("none", ""),
        ];
        let own = |(path, content): (&str, &str)| (path.to_owned(), content.as_bytes().to_vec());
        let expected = Files(expected.map(own).into());
        for step in [1, 2, 3, 7, 64, 100_000] {
            assert_eq!(read(&whole(), step).unwrap(), expected, "{step}");
        }
    }

    #[test]
    fn a_stream_that_breaks_off_or_is_damaged_is_noticed() {
        let whole = whole();
        for end in 0..whole.len() {
            assert!(read(&whole[..end], 64).is_err(), "cut at {end}");
        }
        // Whatever changes in it: an error, or files of other names. But who was never there may have any name.
        let right = read(&whole, 64).unwrap();
        let never = chunk(b'D', "never", b"");
        let at = whole.windows(never.len()).position(|part| part == never);
        let at = at.unwrap();
        let whole = [&whole[..at], &whole[at + never.len()..]].concat();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let found = read(&damaged, 64);
            assert!(found.is_err() || found.unwrap() != right, "{at}");
        }
    }

    #[test]
    fn what_no_backup_holds_is_refused() {
        let huge = [&u64::MAX.to_le_bytes()[..], &0_u64.to_le_bytes(), &[0; 4]];
        let opened: Vec<u8> = (0..=OPEN_MAX)
            .flat_map(|number| part(&number.to_string(), 0, b""))
            .collect();
        let closed = [part("a", 0, b"x"), chunk(b'E', "a", b"")].concat();
        for (what, stream) in [
            ("no plain path", part("../a", 0, b"x")),
            ("no plain path", part("/etc/passwd", 0, b"x")),
            ("no plain path", part("a/../../b", 0, b"x")),
            ("no plain path", part("a//b", 0, b"x")),
            ("no plain path", part("a\0b", 0, b"x")),
            (
                "no plain path",
                [closed.clone(), rename("a", "../b")].concat(),
            ),
            ("a path of 0 bytes", part("", 0, b"x")),
            ("a path of 513 bytes", part(&"x".repeat(513), 0, b"x")),
            ("goes on at 0", part("a", 1, b"x")),
            ("goes on at 0", chunk(b'P', "a", &huge.concat())),
            ("comes again", [closed.clone(), part("a", 0, b"x")].concat()),
            (
                "is open still",
                [part("a", 0, b"x"), rename("a", "b")].concat(),
            ),
            (
                "is open still",
                [part("a", 0, b"x"), chunk(b'D', "a", b"")].concat(),
            ),
            ("can't become", rename("a", "b")),
            ("has no place", chunk(b'S', "a", &u64::MAX.to_le_bytes())),
            ("type 0x58", chunk(b'X', "a", b"")),
            ("no chunk", b"something else altogether".to_vec()),
            ("files are open", opened),
            ("without info", closed),
        ] {
            let error = read(&stream, 64).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }
}
