//! Brings a restored server to a later moment, by its archived binary logs.
//!
//! Invariants: nothing is written to the server before all the binary logs up to the moment that was asked for are here,
//! without a gap. One mariadb-binlog reads all of them, as MariaDB's manual has it, so that the moment is one in the order
//! in which the server wrote, and one client is given the statements; where they break off it is killed, so that it takes
//! no part of a statement for a whole one.

use super::{
    chain::{Chain, End, Run},
    mark::{Mark, Replayed},
};
use crate::{error::Error, progress::Progress, scratch::Scratch};
use backlane_repo::{Cancel, Node, Reader, SnapshotInfo};
use backlane_source::mariadb::{self, Access, BinlogName, PhysicalBackup, Server, Tool, Until};
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use std::{
    ffi::OsString,
    fs::File,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

/// What a binary log begins with.
const MAGIC: [u8; 4] = [0xfe, b'b', b'i', b'n'];

/// How much of its beginning is looked at: the first two events are there.
const HEAD_BYTES: u64 = 4096;

/// The kind of the event behind which all is encrypted.
const START_ENCRYPTION: u8 = 164;

/// How the directories begin that binary logs are fetched into.
const PREFIX: &str = "binlogs-";

/// How large an event may be that the client takes; the server's `max_allowed_packet` has to be as large as it was.
const PACKET: &str = "--max-allowed-packet=1G";

/// How a process ends that writes to a client that is gone.
const SIGPIPE: i32 = 13;

/// How often it is looked whether a program has ended, and whether it shall.
const LOOK: Duration = Duration::from_millis(50);

/// A server that was restored, and that nothing was replayed into.
pub struct Restored {
    mark: Mark,
    backup: PhysicalBackup,
    data_directory: PathBuf,
}

impl Restored {
    /// Looks what a server that runs was restored from.
    ///
    /// # Errors
    /// When the server can't be asked, or the user may not do what a replay does; when it isn't restored from this snapshot,
    /// or a replay into it was begun before; when a program is missing.
    pub fn find(access: &Access, snapshot: &SnapshotInfo) -> Result<Self, Error> {
        let id = snapshot.id.to_string();
        let description = snapshot.description.as_deref();
        let Some(backup) = description.and_then(PhysicalBackup::from_description) else {
            return Err(Error::NoPhysicalBackup { snapshot: id });
        };
        Tool::Binlog.find()?;
        let data_directory = Server::ask(access)?.data_directory;
        let mark = Mark::read(&data_directory)?;
        if mark.snapshot != id {
            return Err(Error::RestoredFromAnother {
                path: data_directory,
                snapshot: mark.snapshot,
            });
        }
        if let Some(replay) = mark.replay {
            return Err(Error::Replayed {
                path: data_directory,
                until: replay.until,
                how: match replay.ended {
                    Some(at) => format!("ended at {at}"),
                    None => "did not end: a part of it may be done".to_owned(),
                },
            });
        }
        Server::check_replay(access)?;
        Ok(Self {
            mark,
            backup,
            data_directory,
        })
    }

    /// The backup.
    #[must_use]
    pub fn backup(&self) -> &PhysicalBackup {
        &self.backup
    }
}

/// What a replay did.
#[derive(Clone, Debug, Serialize)]
pub struct ReplaySummary {
    /// The files that were read, oldest first: the last may have nothing from before the moment.
    pub files: Vec<BinlogName>,
    /// Their bytes.
    pub bytes: u64,
}

/// Has a restored server do what binary logs say, up to a moment. All of them are fetched into `directory` first.
///
/// # Errors
/// [`Error::NoBinlogPosition`], [`Error::BeforeBackup`], [`Error::BinlogsEnd`] before anything is written to the server;
/// [`Error::Mariadb`] where a statement fails. What was done by then stays done.
pub fn replay(
    reader: &Reader,
    restored: &Restored,
    (runs, until): (&[Run], &Until),
    access: &Access,
    directory: &Path,
    progress: &Arc<dyn Progress>,
    cancel: &Cancel,
) -> Result<ReplaySummary, Error> {
    let backup = restored.backup();
    let chain = Chain::new(backup, runs).ok_or(Error::NoBinlogPosition)?;
    let ends = backup.binlog.as_ref().ok_or(Error::NoBinlogPosition)?;
    let files = chain.to(backup, until)?;
    let fetched_into = Scratch::new(directory, PREFIX).map_err(|source| Error::Path {
        path: directory.to_owned(),
        source,
    })?;
    let directory = fetched_into.path();
    let bytes = files.iter().map(|(_, node)| node.meta.size).sum();
    progress.total(files.len() as u64, bytes);
    let mut fetched = Vec::new();
    for (name, node) in files {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        progress.current(Path::new(&name.to_string()));
        fetched.push(Fetched::new(reader, name, node, directory)?);
        progress.advanced(1, node.meta.size);
    }
    // The file in which a backup ends was begun before it ended. Another of its name is of another history.
    if let Some(first) = fetched.first().filter(|first| first.began > backup.ended) {
        return Err(Error::BinlogsEnd {
            until: until.to_string(),
            reaches: backup.ended,
            why: End::Anew(first.began).to_string(),
        });
    }
    let mut binlog = Tool::Binlog.bound();
    // Settings of this machine's have no say. What it prints has times without a zone.
    binlog.arg("--no-defaults").env("TZ", "UTC");
    let mut local = OsString::from("--local-load=");
    local.push(directory);
    binlog.arg(local);
    // The first goes for the first file, and the second for the last.
    binlog.arg(format!("--start-position={}", ends.position));
    match until {
        Until::Time(time) => {
            let time = time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S");
            binlog.arg(format!("--stop-datetime={time}"));
        }
        Until::Position(_, position) => {
            binlog.arg(format!("--stop-position={position}"));
        }
        Until::Latest => {}
    }
    binlog.args(fetched.iter().map(|file| &file.path));
    restored.note(until, None)?;
    Client::start(access)?.take(&mut binlog, cancel)?;
    restored.note(until, Some(Timestamp::now()))?;
    Ok(ReplaySummary {
        files: files.iter().map(|(name, _)| name.clone()).collect(),
        bytes,
    })
}

impl Restored {
    /// Notes in the server's directory how far it has come.
    fn note(&self, until: &Until, ended: Option<Timestamp>) -> Result<(), Error> {
        let mut mark = self.mark.clone();
        mark.replay = Some(Replayed {
            until: until.to_string(),
            ended,
        });
        mark.write(&self.data_directory)
    }
}

/// A binary log on this machine's disk.
struct Fetched {
    path: PathBuf,
    /// When the server began it.
    began: Timestamp,
}

impl Fetched {
    fn new(
        reader: &Reader,
        name: &BinlogName,
        node: &Node,
        directory: &Path,
    ) -> Result<Self, Error> {
        let path = directory.join(name.to_string());
        let at = |source| Error::Path {
            path: path.clone(),
            source,
        };
        let mut file = File::create_new(&path).map_err(at)?;
        reader.dump(node, &mut file)?;
        let file = File::open(&path).map_err(at)?;
        let mut head = Vec::new();
        file.take(HEAD_BYTES).read_to_end(&mut head).map_err(at)?;
        let head = Head::understand(&head).ok_or_else(|| mariadb::Error::Answer {
            what: format!("{name} in the snapshot is no binary log"),
        })?;
        if head.is_encrypted {
            // mariadb-binlog may take it for one that merely ends early, and succeed.
            let name = name.clone();
            return Err(mariadb::Error::EncryptedBinlog { name }.into());
        }
        Ok(Self {
            path,
            began: head.began,
        })
    }
}

/// What the beginning of a binary log says.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    /// The time of its first event, which is when it was begun.
    began: Timestamp,
    is_encrypted: bool,
}

impl Head {
    fn understand(head: &[u8]) -> Option<Self> {
        let events = head.strip_prefix(&MAGIC)?;
        // Of each event: time, kind, server, and its length, by which the next one is found.
        let number = |at: usize| {
            let bytes = events.get(at..at + 4)?.try_into().ok();
            bytes.map(u32::from_le_bytes)
        };
        let second = usize::try_from(number(9)?).ok()?;
        Some(Self {
            began: Timestamp::from_second(number(0)?.into()).ok()?,
            is_encrypted: events.get(second.checked_add(4)?) == Some(&START_ENCRYPTION),
        })
    }
}

/// The client that the server is told statements by.
struct Client {
    child: Child,
    said: Option<JoinHandle<String>>,
}

impl Client {
    fn start(access: &Access) -> Result<Self, Error> {
        let mut command = access.bound(Tool::Client);
        // In this mode words of the client's own, which run programs, are none. Whatever option files say, it ends at a
        // statement that fails, and refuses none.
        command.args(["--batch", "--binary-mode", PACKET]);
        command.args(["--skip-force", "--skip-safe-updates"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let started = command.spawn();
        let mut child = started.map_err(|error| Tool::Client.cannot_start(error))?;
        let said = child
            .stderr
            .take()
            .map(|stderr| listen(Tool::Client, stderr));
        Ok(Self { child, said })
    }

    /// Has it do what a program writes, to its end.
    fn take(mut self, binlog: &mut Command, cancel: &Cancel) -> Result<(), Error> {
        let input = self.child.stdin.take();
        binlog.stdout(input.map_or_else(Stdio::null, Stdio::from));
        let started = binlog.spawn();
        // The program has the only other end of the client's input, and has it no longer than it runs.
        binlog.stdout(Stdio::null());
        let mut child = started.map_err(|error| Tool::Binlog.cannot_start(error))?;
        let said = child
            .stderr
            .take()
            .map(|stderr| listen(Tool::Binlog, stderr));
        let status = loop {
            if cancel.is_cancelled() {
                // The client first, to which the end of its input would be that of a statement.
                let _ = self.child.kill();
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Cancelled);
            }
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => thread::sleep(LOOK),
                Err(error) => return Err(Tool::Binlog.cannot_start(error).into()),
            }
        };
        if !status.success() && status.signal() != Some(SIGPIPE) {
            // The client may have been given a part of a statement.
            let _ = self.child.kill();
            return Err(Tool::Binlog.failed(status, heard(said)).into());
        }
        let ended = self.end(cancel)?;
        let said = heard(self.said.take());
        match ended.success() && status.success() {
            true => Ok(()),
            false => Err(Tool::Client.failed(ended, said).into()),
        }
    }

    /// Waits until it has done what it was given.
    fn end(&mut self, cancel: &Cancel) -> Result<ExitStatus, Error> {
        loop {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => thread::sleep(LOOK),
                Err(error) => return Err(Tool::Client.cannot_start(error).into()),
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Where it goes on no further, what it was given of a statement is none.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(tool: Tool, stderr: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || tool.listen(stderr))
}

fn heard(said: Option<JoinHandle<String>>) -> String {
    said.and_then(|said| said.join().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As MariaDB 10.11 begins one with `encrypt_binlog`, what is zero in the middle left out and the length changed to that.
    const ENCRYPTED: &str = "fe62696e\
        f0f1096b0f010000001800000000010000000004003130\
        00\
        f0f1096ba401000000280000002801000000000101000000";

    #[test]
    fn an_encrypted_binary_log_is_known_by_its_second_event() {
        let bytes = hex::decode(ENCRYPTED).unwrap();
        let head = Head::understand(&bytes).unwrap();
        let began = Timestamp::from_second(0x6b09_f1f0).unwrap();
        assert_eq!(
            head,
            Head {
                began,
                is_encrypted: true
            }
        );
        let mut plain = bytes.clone();
        plain[4 + 24 + 4] = 163;
        assert!(!Head::understand(&plain).unwrap().is_encrypted);
        // Only begun.
        assert!(!Head::understand(&bytes[..28]).unwrap().is_encrypted);
        assert_eq!(Head::understand(&bytes[..15]), None);
        assert_eq!(Head::understand(&bytes[1..]), None);
        assert_eq!(Head::understand(b""), None);
    }
}
