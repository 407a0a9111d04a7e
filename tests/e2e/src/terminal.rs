//! A terminal with somebody at it: for a program that asks, and must not show what it is told.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::process::{Ended, Process, until};

/// A program whose standard input, and controlling terminal, is a pseudo-terminal. Its outputs go to files.
#[derive(Debug)]
pub struct Terminal {
    process: Process,
    controller: File,
    screen: Vec<u8>,
}

impl Terminal {
    /// Starts a program at a terminal of its own.
    ///
    /// # Errors
    /// When there is no terminal, or the program can't be started.
    pub fn start(command: &Command, dir: &Path) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).context("opening a pseudo-terminal")?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        let name = ptsname(&controller, Vec::new())?;
        let user = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(std::ffi::OsStr::from_bytes(name.to_bytes()))
            .with_context(|| format!("opening {}", name.to_string_lossy()))?;
        rustix::io::ioctl_fionbio(&controller, true)?;
        // A session of its own, with the standard input as its controlling terminal.
        let mut at_terminal = Command::new("setsid");
        at_terminal
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => at_terminal.env(name, value),
                None => at_terminal.env_remove(name),
            };
        }
        Ok(Self {
            process: Process::start_with(&mut at_terminal, dir, Stdio::from(user))?,
            controller: controller.into(),
            screen: Vec::new(),
        })
    }

    /// All that has been on the screen.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn screen(&mut self) -> Result<String> {
        let mut read = [0; 4096];
        loop {
            match self.controller.read(&mut read) {
                Ok(0) => break,
                Ok(count) => self.screen.extend_from_slice(&read[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody has the terminal open any more, and everything was read.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
                {
                    break;
                }
                Err(error) => bail!("reading the screen: {error}"),
            }
        }
        Ok(String::from_utf8_lossy(&self.screen).into_owned())
    }

    /// Whether what is typed appears on the screen.
    ///
    /// # Errors
    /// When the terminal doesn't say.
    pub fn echoes(&self) -> Result<bool> {
        let modes = tcgetattr(&self.controller).context("the terminal's modes")?;
        Ok(modes.local_modes.contains(LocalModes::ECHO))
    }

    /// Waits until the program has asked for a secret: with these words, and with what is typed hidden.
    ///
    /// # Errors
    /// When it ends before, or doesn't ask.
    pub fn asked_in_secret(&mut self, words: &str) -> Result<()> {
        until("the program asks for a secret", || {
            let asked = self.screen()?.contains(words) && !self.echoes()?;
            ensure!(
                asked || self.process.is_running()?,
                "it ended: {}",
                self.process.said()
            );
            Ok(asked)
        })
    }

    /// Types.
    ///
    /// # Errors
    /// When nobody has the terminal open.
    pub fn type_in(&mut self, keys: &str) -> Result<()> {
        self.controller.write_all(keys.as_bytes()).context("typing")
    }

    /// Waits for the end; returns it with all that was on the screen.
    ///
    /// # Errors
    /// When the end doesn't come, or the terminal doesn't echo any more afterwards.
    pub fn wait(mut self) -> Result<(Ended, String)> {
        until("the program at the terminal ends", || {
            // A program waits for a screen that nobody reads.
            self.screen()?;
            Ok(!self.process.is_running()?)
        })?;
        let screen = self.screen()?;
        ensure!(self.echoes()?, "the terminal was left without an echo");
        Ok((self.process.wait()?, screen))
    }
}
