//! One side's way to the shared disk, made of parts that fail on command and outside of the program under test.
//!
//! nbdkit serves the disk's file through its filters for errors, pauses and rates; nbdfuse shows that as a file; over the
//! file lies a loop device without a cache, and a symbolic link leads to it, as links lead to disks by their identities.
//! Each side has a chain of its own over one file, so that one side alone can lose the disk.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::device::{Loop, Sector};
use crate::output;
use crate::process::{Process, until};

/// The programs that a chain needs.
pub const CHAIN: [&str; 3] = ["nbdkit", "nbdfuse", "setpriv"];

/// How much of a rate may be used at once, in seconds; nbdkit's own two would let half of a job through.
const BURST_SECONDS: &str = "0.2";

const REMOVED: &str = "the disk is removed";

/// A chain, and what a program opens at its end.
#[derive(Debug)]
pub struct Chain {
    /// The symbolic link to the device; it is missing while the device is.
    pub link: PathBuf,
    dir: PathBuf,
    disk: PathBuf,
    sector: Sector,
    parts: Option<Parts>,
}

/// What a chain is made of, dropped in this order: a device whose disk hangs can't be let go of before the disk has
/// failed.
#[derive(Debug)]
struct Parts {
    _export: Export,
    device: Loop,
    _nbdkit: Process,
}

/// The disk as a file.
#[derive(Debug)]
struct Export {
    file: PathBuf,
    _daemon: Process,
}

impl Chain {
    /// So many megabits a second that something else is the limit: the rate of a new chain.
    pub const FAST: u32 = 100_000;

    /// Makes a chain over the file `disk`, with its own files in `dir`, which is made.
    ///
    /// # Errors
    /// When a part of it can't be made.
    pub(crate) fn new(dir: PathBuf, disk: &Path, sector: Sector) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let mut chain = Self {
            link: dir.join("device"),
            dir,
            disk: disk.to_owned(),
            sector,
            parts: None,
        };
        chain.insert()?;
        Ok(chain)
    }

    /// The loop device.
    pub(crate) fn device(&self) -> Result<&Loop> {
        Ok(&self.parts.as_ref().context(REMOVED)?.device)
    }

    /// Pulls the disk out: whoever has it open gets errors for ever, and nobody can open it.
    ///
    /// # Errors
    /// When it is out already.
    pub fn remove(&mut self) -> Result<()> {
        fs::remove_file(&self.link).context(REMOVED)?;
        self.parts = None;
        Ok(())
    }

    /// Puts the disk in again, as another device under the same link.
    ///
    /// # Errors
    /// When a part of the chain can't be made.
    pub fn insert(&mut self) -> Result<()> {
        let nbdkit = self.nbdkit()?;
        let export = Export::new(&self.dir, &self.socket())?;
        let device = Loop::new(&export.file, self.sector)?;
        std::os::unix::fs::symlink(device.path(), &self.link)?;
        self.parts = Some(Parts {
            _export: export,
            device,
            _nbdkit: nbdkit,
        });
        Ok(())
    }

    /// From now on every read and write fails (EIO), until [`Chain::heal`].
    ///
    /// # Errors
    /// When nbdkit can't be told.
    pub fn fail(&self) -> Result<()> {
        fs::write(self.trigger(), "").context("telling nbdkit to fail")
    }

    /// Ends [`Chain::fail`].
    ///
    /// # Errors
    /// When nbdkit can't be told.
    pub fn heal(&self) -> Result<()> {
        fs::remove_file(self.trigger()).context("telling nbdkit to work again")
    }

    /// From now on reads and writes stand still, until [`Chain::resume`].
    ///
    /// # Errors
    /// When nbdkit can't be told.
    pub fn hang(&self) -> Result<()> {
        self.control(b'p')
    }

    /// Ends [`Chain::hang`].
    ///
    /// # Errors
    /// When nbdkit can't be told.
    pub fn resume(&self) -> Result<()> {
        self.control(b'r')
    }

    /// From now on so many megabits a second are read, and as many written.
    ///
    /// # Errors
    /// When nbdkit can't be told.
    pub fn set_rate(&self, mbit: u32) -> Result<()> {
        let (new, rate) = (self.dir.join("rate.new"), self.rate());
        // At once, for nbdkit reads it whenever it likes.
        fs::write(&new, format!("{mbit}M"))
            .and_then(|()| fs::rename(&new, &rate))
            .context("telling nbdkit a rate")
    }

    fn nbdkit(&self) -> Result<Process> {
        // They would be taken for those of the new one.
        for stale in [self.socket(), self.pause(), self.trigger()] {
            let _ = fs::remove_file(stale);
        }
        let mut command = Command::new("nbdkit");
        command
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(self.socket())
            .args(["error", "pause", "rate"].map(|name| format!("--filter={name}")))
            .arg("file")
            .arg(&self.disk)
            .arg("error-rate=100%")
            .arg(format!("error-file={}", self.trigger().display()))
            .arg(format!("pause-control={}", self.pause().display()))
            .arg(format!("rate-file={}", self.rate().display()))
            .arg(format!("rate={}M", Self::FAST))
            .arg(format!("burstiness={BURST_SECONDS}"));
        let mut nbdkit = Process::start_with(&mut command, &self.dir, Stdio::null())?;
        until("nbdkit serves", || {
            ensure!(nbdkit.is_running()?, "nbdkit ended: {}", nbdkit.said());
            Ok(UnixStream::connect(self.socket()).is_ok())
        })?;
        Ok(nbdkit)
    }

    /// Says a letter to the pause filter; it confirms with the same letter, as a capital.
    fn control(&self, letter: u8) -> Result<()> {
        let shown = || format!("telling nbdkit to {:?}", letter as char);
        let mut nbdkit = UnixStream::connect(self.pause()).with_context(shown)?;
        nbdkit.write_all(&[letter]).with_context(shown)?;
        let mut answer = [0];
        nbdkit.read_exact(&mut answer).with_context(shown)?;
        ensure!(
            answer == [letter.to_ascii_uppercase()],
            "nbdkit says {answer:?}"
        );
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("nbd.socket")
    }

    fn pause(&self) -> PathBuf {
        self.dir.join("pause.socket")
    }

    fn rate(&self) -> PathBuf {
        self.dir.join("rate")
    }

    fn trigger(&self) -> PathBuf {
        self.dir.join("fail")
    }
}

impl Export {
    fn new(dir: &Path, socket: &Path) -> Result<Self> {
        let file = dir.join(crate::sweep::unique("disk"));
        fs::write(&file, "").with_context(|| format!("creating {}", file.display()))?;
        // It has no switch of its own that ends it with its parent.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nbdfuse"])
            .arg(&file)
            .arg("--unix")
            .arg(socket);
        let daemon = Process::start_with(&mut command, dir, Stdio::null())?;
        let mut export = Self {
            file,
            _daemon: daemon,
        };
        until("the disk is shown as a file", || {
            let daemon = &mut export._daemon;
            ensure!(daemon.is_running()?, "it ended: {}", daemon.said());
            Ok(fs::metadata(&export.file).is_ok_and(|file| file.len() > 0))
        })?;
        Ok(export)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // The daemon goes afterwards; a file that is in use is only hidden by this.
        if let Err(why) = output(Command::new("umount").arg("--lazy").arg(&self.file)) {
            eprintln!("left behind: {why:#}");
        }
    }
}
