//! Backup of what a command writes, and a command that is given what was backed up.
//!
//! Invariants: no truncated stream ever passes for a whole one. What a command wrote becomes a snapshot only if the command
//! has ended with success; and a command that is given a stream sees its end only after the last byte: where the stream
//! breaks off, the command is killed first.

use crate::{
    backup::{BackupOptions, BackupSummary, summary, warn},
    error::Error,
    progress::{Progress, Reporter},
};
use backlane_repo::{
    Cancel, Closing, Entries, Entry, FileKind, Metadata, Repository, Time, Warning, name_is_plain,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, Signal, kill_process_group},
};
use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

/// Permissions of the file that a command's output becomes: as of what may hold a database.
const MODE: u32 = 0o600;
/// How often it is looked whether the backup of a command that says nothing goes on.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A command, with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine(Vec<OsString>);

impl CommandLine {
    /// A program and its arguments; `None` of nothing.
    #[must_use]
    pub fn new(words: Vec<OsString>) -> Option<Self> {
        (!words.is_empty()).then_some(Self(words))
    }

    /// The program alone: arguments may hold what is nobody's business.
    #[must_use]
    pub fn program(&self) -> &OsStr {
        &self.0[0]
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program());
        command.args(&self.0[1..]);
        command
    }

    fn cannot_start(&self, source: io::Error) -> Error {
        Error::CommandStart {
            program: self.program().to_owned(),
            source,
        }
    }

    fn ended(&self, status: ExitStatus) -> Result<(), Error> {
        match status.success() {
            true => Ok(()),
            false => Err(Error::CommandFailed {
                program: self.program().to_owned(),
                status,
            }),
        }
    }
}

/// Backs up what a command writes to its standard output, as one file `name`. Blocks until the snapshot is durable.
///
/// # Errors
/// As [`backup`](crate::backup), and when the command can't be started or doesn't end with success; there is no snapshot
/// then.
pub fn backup_output(
    repository: &Repository,
    (name, command): (&OsStr, &CommandLine),
    options: &BackupOptions,
    progress: Arc<dyn Progress>,
    cancel: &Cancel,
) -> Result<BackupSummary, Error> {
    if !name_is_plain(name.as_bytes()) {
        return Err(Error::Name { name: name.into() });
    }
    let mut start = command.command();
    start.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = start.spawn().map_err(|error| command.cannot_start(error))?;
    let path = Path::new("/").join(name);
    let (status, archived) = archive_output(
        repository,
        (&path, child, Box::new(())),
        options,
        progress,
        cancel,
    );
    if let Some(status) = status {
        command.ended(status)?;
    }
    archived
}

/// Watches what a command writes, while it is stored.
pub(crate) trait Watch: Send {
    /// The command has written this.
    fn saw(&mut self, bytes: &[u8]) -> Result<(), Error>;

    /// The command has ended with success, and this was all. What is to be said of it is told the reporter.
    fn end(&mut self, reporter: &Reporter) -> Result<Closing, Error>;
}

/// Anything will do.
impl Watch for () {
    fn saw(&mut self, _bytes: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    fn end(&mut self, _reporter: &Reporter) -> Result<Closing, Error> {
        Ok(Closing::default())
    }
}

/// Stores what a command writes as the file `path`: there is a snapshot only if the command ends with success and nothing
/// is wrong with what it wrote. Also returns how it ended, if it did so by itself.
pub(crate) fn archive_output(
    repository: &Repository,
    (path, mut child, watch): (&Path, Child, Box<dyn Watch>),
    options: &BackupOptions,
    progress: Arc<dyn Progress>,
    cancel: &Cancel,
) -> (Option<ExitStatus>, Result<BackupSummary, Error>) {
    // A command that fails ends its own backup.
    let cancel = cancel.part();
    let reporter = Arc::new(Reporter::new(progress, cancel.clone()));
    let bytes = path.as_os_str().as_bytes().to_vec();
    let output = Output {
        path: bytes.clone(),
        stdout: Mutex::new(child.stdout.take()),
        run: Arc::new(Run {
            child: Mutex::new(child),
            ended: Mutex::new(None),
            watch: Mutex::new(Watched {
                watch,
                end: Ok(Closing::default()),
            }),
            repository: repository.clone(),
            reporter: Arc::clone(&reporter),
        }),
    };
    let run = Arc::clone(&output.run);
    let archive = options.archive(vec![bytes], cancel);
    let archived = repository.archive(&archive, Arc::new(output));
    let status = run.end();
    let archived = match std::mem::replace(&mut run.watched().end, Ok(Closing::default())) {
        Err(error) => Err(error),
        Ok(_) => summary(archived, options, &[path.to_owned()], &reporter),
    };
    (status, archived)
}

/// What a command writes, as what a backup reads.
struct Output {
    path: Vec<u8>,
    stdout: Mutex<Option<ChildStdout>>,
    run: Arc<Run>,
}

/// A command that runs.
struct Run {
    child: Mutex<Child>,
    /// How it ended, once all that it wrote was read.
    ended: Mutex<Option<ExitStatus>>,
    watch: Mutex<Watched>,
    repository: Repository,
    reporter: Arc<Reporter>,
}

/// Who watches, and what came of it.
struct Watched {
    watch: Box<dyn Watch>,
    end: Result<Closing, Error>,
}

impl Run {
    /// How the command ended, if all that it wrote was read. If not, it is of no use any more.
    fn end(&self) -> Option<ExitStatus> {
        let ended = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_none() {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = child.kill();
            let _ = child.wait();
        }
        ended
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the watcher look; what it doesn't like ends the backup.
    fn watch(&self, look: impl FnOnce(&mut dyn Watch) -> Result<Closing, Error>) -> io::Result<()> {
        let watched = &mut *self.watched();
        watched.end = look(&mut *watched.watch);
        watched.end.as_ref().map(drop).map_err(|error| {
            // Before the backup learns that this was all.
            self.reporter.cancel.cancel();
            io::Error::other(error.to_string())
        })
    }

    /// Whether what it writes is of use still: the backup was not cancelled, and no write has failed.
    fn check(&self) -> io::Result<()> {
        match self.reporter.cancel.is_cancelled() || self.repository.failed() {
            true => Err(io::Error::other("the backup has ended")),
            false => Ok(()),
        }
    }

    /// Waits for a command that writes no more.
    fn finish(&self) -> io::Result<usize> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let status = loop {
            self.check()?;
            match child.try_wait()? {
                Some(status) => break status,
                None => thread::sleep(LOOK_EVERY),
            }
        };
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        if status.success() {
            return self.watch(|watch| watch.end(&self.reporter)).map(|()| 0);
        }
        // Before the backup learns that this was all.
        self.reporter.cancel.cancel();
        Err(io::Error::other(status.to_string()))
    }
}

impl backlane_repo::Source for Output {
    fn entries(&self) -> Entries {
        let stdout = self.stdout.lock();
        let stdout = stdout.unwrap_or_else(PoisonError::into_inner).take();
        let run = Arc::clone(&self.run);
        let now = Time::from(SystemTime::now());
        let entry = Entry {
            path: self.path.clone(),
            kind: FileKind::File,
            meta: Metadata {
                mode: Some(MODE),
                modified: Some(now),
                changed: Some(now),
                links: 1,
                ..Metadata::default()
            },
            open: Some(Box::new(move || {
                let stdout = stdout.ok_or_else(|| io::Error::other("it was read before"))?;
                Ok(Box::new(Reading { stdout, run }) as Box<dyn Read + Send>)
            })),
        };
        Box::new(std::iter::once(Ok(entry)))
    }

    fn warn(&self, warning: &Warning) {
        warn(&self.run.reporter, warning);
    }

    fn closing(&self) -> Closing {
        match &self.run.watched().end {
            Ok(closing) => closing.clone(),
            Err(_) => Closing::default(),
        }
    }
}

/// A command's output, at whose end it is known how the command ended.
struct Reading {
    stdout: ChildStdout,
    run: Arc<Run>,
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A command that says nothing for hours can be left all the same.
        loop {
            self.run.check()?;
            let mut ready = [PollFd::new(&self.stdout, PollFlags::IN)];
            if poll(
                &mut ready,
                Some(&LOOK_EVERY.try_into().map_err(io::Error::other)?),
            )? > 0
            {
                break;
            }
        }
        match self.stdout.read(buffer)? {
            0 if !buffer.is_empty() => self.run.finish(),
            bytes => {
                let look = |watch: &mut dyn Watch| {
                    watch.saw(&buffer[..bytes])?;
                    Ok(Closing::default())
                };
                self.run.watch(look)?;
                self.run.reporter.progress.advanced(0, bytes as u64);
                Ok(bytes)
            }
        }
    }
}

/// Starts a command and has `give` write to its standard input; returns when it has ended.
///
/// It has a process group of its own, which is killed as a whole if `give` fails.
///
/// # Errors
/// When it can't be started, ends without success, or before it has taken everything; when `give` fails.
pub fn feed(
    command: &CommandLine,
    give: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut start = command.command();
    start.stdin(Stdio::piped()).process_group(0);
    let mut child = start.spawn().map_err(|error| command.cannot_start(error))?;
    let mut feeding = Feeding {
        stdin: child.stdin.take(),
        is_closed: false,
    };
    let given = give(&mut feeding);
    if given.is_err() && !feeding.is_closed {
        // While its input is open still: it must not take this end for the stream's.
        let group = Pid::from_child(&child);
        let _ = kill_process_group(group, Signal::KILL);
    }
    drop(feeding.stdin.take());
    let status = child.wait().map_err(|error| command.cannot_start(error))?;
    match given {
        Err(error) if !feeding.is_closed => Err(error),
        Err(_) => {
            command.ended(status)?;
            Err(Error::CommandLeft {
                program: command.program().to_owned(),
            })
        }
        Ok(()) => command.ended(status),
    }
}

/// A command's input, which notes whether the command has closed it.
struct Feeding {
    stdin: Option<ChildStdin>,
    is_closed: bool,
}

impl Write for Feeding {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(stdin) = &mut self.stdin else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let written = stdin.write(bytes);
        if let Err(error) = &written {
            self.is_closed |= error.kind() == io::ErrorKind::BrokenPipe;
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> CommandLine {
        let words = ["sh", "-c", script].map(OsString::from);
        CommandLine::new(words.to_vec()).unwrap()
    }

    #[test]
    fn a_command_is_fed_to_the_end_and_has_to_take_it_all() {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("copy");
        let keep = format!("cat > {}; echo done >> {0}", copy.display());
        let all = |out: &mut dyn Write| {
            out.write_all(&[b'x'; 100_000])
                .map_err(|error| Error::Repository(backlane_repo::RepoError::Output(error)))
        };
        feed(&shell(&keep), all).unwrap();
        let taken = std::fs::read(&copy).unwrap();
        assert!(taken.len() == 100_005 && taken.ends_with(b"xdone\n"));
        for (script, word) in [
            ("cat > /dev/null; exit 7", "exit status: 7"),
            ("exit 0", "before"),
            ("head -c 10 > /dev/null; exit 3", "exit status: 3"),
            ("cat > /dev/null; kill -9 $$", "signal: 9"),
        ] {
            let error = feed(&shell(script), all).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("sh"),
                "{script}: {error}"
            );
        }
        let missing = CommandLine::new(vec!["/no/such/program".into()]).unwrap();
        let error = feed(&missing, all).unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }

    #[test]
    fn a_stream_that_breaks_off_never_ends_for_the_command() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("mark");
        // Not the command itself, but a part of it, sees its input.
        let script = format!("(cat > /dev/null; touch {}) ; true", mark.display());
        let broken = |out: &mut dyn Write| {
            out.write_all(b"half")
                .map_err(|error| Error::Repository(backlane_repo::RepoError::Output(error)))?;
            std::thread::sleep(std::time::Duration::from_millis(200));
            Err(Error::Cancelled)
        };
        let error = feed(&shell(&script), broken).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!mark.exists(), "it took half for all");
    }
}
