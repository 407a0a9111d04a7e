//! What `restore_command` does: has a file from the spooler and puts it where PostgreSQL wants it.

use super::{
    protocol::{Answer, Request, connect},
    together,
};
use crate::Error;
use backlane_proto::{WalFile, WalName};
use std::{io::Write, path::Path, time::Duration};
use tempfile::NamedTempFile;

/// How long the spooler may be silent. It waits for a session itself.
const WAIT: Duration = Duration::from_secs(300);

/// What came of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The file is in its place, whole.
    Written,
    /// The server says that it has none of this name.
    Absent,
}

/// What does for a segment that isn't in the archive whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partly {
    /// Nothing: the whole one may still come.
    Absent,
    /// Its pieces put together, with zeros behind them: recovery ends there.
    Pieces,
}

/// Fetches the file `name` of the cluster `system` to `target`.
///
/// # Errors
/// When it isn't known whether there is one, or it can't be had whole or written.
pub fn fetch(
    name: &str,
    target: &Path,
    system: u64,
    partly: Partly,
    socket: &Path,
) -> Result<Fetched, Error> {
    let refused = |why: String| Error::WalFile {
        path: name.into(),
        why,
    };
    let name = WalName::from_file_name(system, name).ok_or_else(|| {
        refused(format!(
            "that is no name in the write-ahead log of a cluster with the system identifier {system}"
        ))
    })?;
    let request = match (partly, name.file) {
        (Partly::Pieces, WalFile::Segment(_)) => Request::FetchPieces(name),
        _ => Request::Fetch(name),
    };
    let asked = connect(socket, WAIT).and_then(|mut stream| {
        request.write(&mut stream)?;
        Answer::read(&mut stream)
    });
    let answer = asked.map_err(|source| Error::Spooler {
        socket: socket.to_owned(),
        source,
    })?;
    match answer {
        Answer::File(file) => write(&file, target).map(|()| Fetched::Written),
        Answer::Together(file) => {
            // Before the file is there, and PostgreSQL may have it archived.
            write(&together::mark(&file), &together::path(target, name))?;
            write(&file, target).map(|()| Fetched::Written)
        }
        Answer::Absent => Ok(Fetched::Absent),
        Answer::Failed(why) => Err(refused(why)),
        other => Err(refused(format!("the spooler answers {other:?}"))),
    }
}

/// Writes a file so that it is there whole or not at all.
fn write(file: &[u8], target: &Path) -> Result<(), Error> {
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let written = NamedTempFile::new_in(directory).and_then(|mut temporary| {
        temporary.write_all(file)?;
        temporary.as_file().sync_all()?;
        temporary.persist(target).map_err(|error| error.error)
    });
    written.map(drop).map_err(|source| Error::Target {
        path: target.to_owned(),
        source,
    })
}
