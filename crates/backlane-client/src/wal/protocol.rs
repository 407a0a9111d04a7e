//! What is said on the spooler's socket (`docs/design/wal.md` §4), from both of its ends.
//!
//! Invariant: no length is believed beyond [`WAL_FILE_BYTES_MAX`] and [`TEXT_BYTES_MAX`].

use backlane_proto::{ObjectId, WalName};
use backlane_repo::wal::WAL_FILE_BYTES_MAX;
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// Longest text of a failure.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// What the spooler is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Push {
        name: WalName,
        bytes: usize,
        hash: [u8; 32],
    },
    Fetch(WalName),
    /// A segment, of its pieces where it isn't there whole.
    FetchPieces(WalName),
    /// Up to where there are pieces of a segment.
    End(WalName),
}

/// What it answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Send,
    Done,
    File(Vec<u8>),
    /// A segment that is archived in pieces alone, with zeros behind them.
    Together(Vec<u8>),
    Absent,
    /// There are pieces up to this offset.
    End(u32),
    Failed(String),
}

/// How a program reaches the spooler.
pub(super) fn connect(socket: &Path, wait: Duration) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    Ok(stream)
}

impl Request {
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        let named = |kind: u8, name: WalName, bytes: &mut Vec<u8>| {
            bytes.push(kind);
            bytes.extend(name.id().0);
        };
        match self {
            Self::Push {
                name,
                bytes: length,
                hash,
            } => {
                bytes.push(b'P');
                bytes.extend(name.id().0);
                bytes.extend((*length as u64).to_le_bytes());
                bytes.extend(hash);
            }
            Self::Fetch(name) => named(b'F', *name, &mut bytes),
            Self::FetchPieces(name) => named(b'G', *name, &mut bytes),
            Self::End(name) => named(b'Q', *name, &mut bytes),
        }
        to.write_all(&bytes)
    }

    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let kind = one(from)?;
        let name = WalName::from_id(ObjectId(exactly(from)?)).ok_or_else(garbled)?;
        match kind {
            b'P' => Ok(Self::Push {
                name,
                bytes: length(from, WAL_FILE_BYTES_MAX)?,
                hash: exactly(from)?,
            }),
            b'F' => Ok(Self::Fetch(name)),
            b'G' => Ok(Self::FetchPieces(name)),
            b'Q' => Ok(Self::End(name)),
            _ => Err(garbled()),
        }
    }
}

impl Answer {
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut body = |kind: u8, body: &[u8]| {
            to.write_all(&[kind])?;
            to.write_all(&(body.len() as u64).to_le_bytes())?;
            to.write_all(body)
        };
        match self {
            Self::File(file) => body(b'B', file),
            Self::Together(file) => body(b'T', file),
            Self::Failed(text) => body(b'E', &text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)]),
            Self::Send => to.write_all(b"S"),
            Self::Done => to.write_all(b"D"),
            Self::Absent => to.write_all(b"A"),
            Self::End(offset) => {
                to.write_all(b"N")?;
                to.write_all(&offset.to_le_bytes())
            }
        }
    }

    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        match one(from)? {
            b'S' => Ok(Self::Send),
            b'D' => Ok(Self::Done),
            b'A' => Ok(Self::Absent),
            b'N' => exactly(from).map(|bytes| Self::End(u32::from_le_bytes(bytes))),
            kind @ (b'B' | b'T') => {
                let length = length(from, WAL_FILE_BYTES_MAX)?;
                let file = bytes(from, length)?;
                Ok(match kind {
                    b'T' => Self::Together(file),
                    _ => Self::File(file),
                })
            }
            b'E' => {
                let length = length(from, TEXT_BYTES_MAX)?;
                let text = bytes(from, length)?;
                Ok(Self::Failed(String::from_utf8_lossy(&text).into_owned()))
            }
            _ => Err(garbled()),
        }
    }
}

/// Reads so many bytes.
pub(super) fn bytes(from: &mut impl Read, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn one(from: &mut impl Read) -> io::Result<u8> {
    exactly::<1>(from).map(|[byte]| byte)
}

fn exactly<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn length(from: &mut impl Read, most: usize) -> io::Result<usize> {
    let length = usize::try_from(u64::from_le_bytes(exactly(from)?)).ok();
    length.filter(|length| *length <= most).ok_or_else(garbled)
}

fn garbled() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the other side of the socket is no part of this version of backlane",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> WalName {
        WalName::from_file_name(7, "00000001000000000000000A").unwrap()
    }

    #[test]
    fn requests_and_answers_survive_the_socket() {
        let push = Request::Push {
            name: name(),
            bytes: 1 << 30,
            hash: [7; 32],
        };
        for request in [
            push,
            Request::Fetch(name()),
            Request::FetchPieces(name()),
            Request::End(name()),
        ] {
            let mut raw = Vec::new();
            request.write(&mut raw).unwrap();
            assert_eq!(Request::read(&mut &raw[..]).unwrap(), request);
            Request::read(&mut &raw[..raw.len() - 1]).unwrap_err();
        }
        for answer in [
            Answer::Send,
            Answer::Done,
            Answer::Absent,
            Answer::End(5),
            Answer::File(vec![1, 2, 3]),
            Answer::Together(vec![1, 2, 3]),
            Answer::Failed("why".to_owned()),
        ] {
            let mut raw = Vec::new();
            answer.write(&mut raw).unwrap();
            assert_eq!(Answer::read(&mut &raw[..]).unwrap(), answer);
            Answer::read(&mut &raw[..raw.len() - 1]).unwrap_err();
        }
    }

    #[test]
    fn no_length_is_believed_beyond_its_bound() {
        for (kind, most) in [
            (b'B', WAL_FILE_BYTES_MAX),
            (b'T', WAL_FILE_BYTES_MAX),
            (b'E', TEXT_BYTES_MAX),
        ] {
            let mut raw = vec![kind];
            raw.extend((most as u64 + 1).to_le_bytes());
            let error = Answer::read(&mut &raw[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let text = Answer::Failed("é".repeat(TEXT_BYTES_MAX));
        let mut raw = Vec::new();
        text.write(&mut raw).unwrap();
        assert!(matches!(Answer::read(&mut &raw[..]), Ok(Answer::Failed(_))));
    }
}
