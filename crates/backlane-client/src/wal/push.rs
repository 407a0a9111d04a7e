//! What `archive_command` does: hands a file to the spooler, and with it some of those that are ready behind it.

use super::{
    ahead,
    file::{self, ReadyFile},
    protocol::{Answer, Request, connect},
    together,
};
use crate::Error;
use aws_lc_rs::digest::{SHA256, digest};
use backlane_proto::WalName;
use std::{
    fs,
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// How long the spooler may be silent. It waits for a session itself, and for the disk of the server.
const WAIT: Duration = Duration::from_secs(300);

/// Archives the file at `path`; returns when it is durable at the server, or is known to be put together of what is. Of the
/// files that are ready behind it up to eight are sent at the same time; what comes of those is for their own pushes to say.
///
/// # Errors
/// When the file isn't known to be durable.
pub fn push(path: &Path, socket: &Path) -> Result<(), Error> {
    let file = file::read(path)?;
    if together::is_it(path, &file) {
        tracing::warn!(
            path = %path.display(),
            "not archived: a recovery has put it together of pieces, which are archived; the whole segment may still come from the server that wrote it"
        );
        return Ok(());
    }
    let failed = |why: String| Error::WalFile {
        path: path.to_owned(),
        why,
    };
    let unreachable = |source| Error::Spooler {
        socket: socket.to_owned(),
        source,
    };
    let mut stream = offer(&file, socket).map_err(unreachable)?;
    let answer = match Answer::read(&mut stream).map_err(unreachable)? {
        Answer::Send => thread::scope(|scope| {
            for next in ready_behind(path, &file) {
                scope.spawn(move || {
                    if let Err(error) = push_one(&next, socket) {
                        tracing::debug!(path = %next.display(), %error, "not archived ahead");
                    }
                });
            }
            send(stream, &file).map_err(unreachable)
        })?,
        answer => answer,
    };
    match answer {
        Answer::Done => Ok(()),
        Answer::Failed(why) => Err(failed(why)),
        other => Err(failed(format!("the spooler answers {other:?}"))),
    }
}

fn push_one(path: &Path, socket: &Path) -> Result<(), Error> {
    let file = file::read(path)?;
    match together::is_it(path, &file) {
        true => Ok(()),
        false => push_file(&file, path, socket),
    }
}

/// Archives a file that was read at `path`; returns when it is durable at the server.
pub(super) fn push_file(file: &ReadyFile, path: &Path, socket: &Path) -> Result<(), Error> {
    let pushed = offer(file, socket).and_then(|mut stream| match Answer::read(&mut stream)? {
        Answer::Send => send(stream, file),
        answer => Ok(answer),
    });
    match pushed {
        Ok(Answer::Done) => Ok(()),
        Ok(Answer::Failed(why)) => Err(Error::WalFile {
            path: path.to_owned(),
            why,
        }),
        Ok(other) => Err(Error::WalFile {
            path: path.to_owned(),
            why: format!("the spooler answers {other:?}"),
        }),
        Err(source) => Err(Error::Spooler {
            socket: socket.to_owned(),
            source,
        }),
    }
}

/// Asks for a file to be archived.
fn offer(file: &ReadyFile, socket: &Path) -> io::Result<UnixStream> {
    let mut stream = connect(socket, WAIT)?;
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &file.bytes).as_ref());
    let request = Request::Push {
        name: file.name,
        bytes: file.bytes.len(),
        hash,
    };
    request.write(&mut stream)?;
    Ok(stream)
}

fn send(mut stream: UnixStream, file: &ReadyFile) -> io::Result<Answer> {
    stream.write_all(&file.bytes)?;
    Answer::read(&mut stream)
}

/// The files that PostgreSQL will ask for next, by the marks in `archive_status` beside a file.
fn ready_behind(path: &Path, file: &ReadyFile) -> Vec<PathBuf> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let Ok(entries) = fs::read_dir(directory.join("archive_status")) else {
        return Vec::new();
    };
    let mut names: Vec<WalName> = entries
        .filter_map(|entry| {
            let mark = entry.ok()?.file_name();
            let name = mark.to_str()?.strip_suffix(".ready")?;
            WalName::from_file_name(file.name.system, name)
        })
        .filter(|name| name.id() > file.name.id())
        .collect();
    names.sort_unstable_by_key(|name| name.id());
    names.truncate(ahead(file.bytes.len()));
    let path = |name: &WalName| directory.join(name.file_name());
    names.iter().map(path).collect()
}
