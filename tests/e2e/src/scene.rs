//! What most tests begin with: one enrolled host that has something to back up.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::data::{plant, same};
use crate::process::{Process, until};
use crate::system::{Client, Job, Setup, System};

/// A system, one of its clients, and a tree of that client's.
#[derive(Debug)]
pub struct Scene {
    /// The system.
    pub system: System,
    /// The client.
    pub client: Client,
    /// The tree.
    pub source: PathBuf,
    /// Where it is restored.
    pub target: PathBuf,
}

impl Scene {
    /// Makes a system, and a tree of `bytes` that can neither be compressed nor deduplicated. `None` where this machine
    /// can't run a system; that was said then.
    ///
    /// # Errors
    /// When any step fails.
    pub fn new(setup: &Setup, bytes: u64) -> Result<Option<Self>> {
        if !crate::ready() {
            return Ok(None);
        }
        let system = System::new(setup)?;
        let client = system.client("alpha")?;
        let [source, target] = ["source", "target"].map(|name| system.path(name));
        plant(&source, bytes, 7)?;
        Ok(Some(Self {
            system,
            client,
            source,
            target,
        }))
    }

    /// Backs the tree up under a route policy.
    ///
    /// # Errors
    /// When the job can't be started or doesn't end; a failure is in the job.
    pub fn backup(&self, route: &str) -> Result<Job> {
        let more = ["--route", route];
        self.system.backup(&self.client, &self.source, &more)
    }

    /// Restores the tree under a route policy.
    ///
    /// # Errors
    /// As [`Scene::backup`].
    pub fn restore(&self, route: &str) -> Result<Job> {
        let more = ["--route", route];
        let (client, source) = (&self.client, &self.source);
        self.system.restore(client, source, &self.target, &more)
    }

    /// Backs the tree up, restores it to an empty place, and has the witness compare the two; returns both jobs.
    ///
    /// # Errors
    /// When a job fails, or what came back is not what was there.
    pub fn round_trip(&self, route: &str) -> Result<[Job; 2]> {
        let backup = self.backup(route)?.success()?;
        if self.target.exists() {
            std::fs::remove_dir_all(&self.target)?;
        }
        let restore = self.restore(route)?.success()?;
        same(&self.source, &self.target)?;
        Ok([backup, restore])
    }

    /// Expects that the next job works as if nothing had been: a whole one, through the pool, and the repository is
    /// sound.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn next_one_works(&self) -> Result<()> {
        self.round_trip("require-storage")?;
        self.system.check(&self.client)
    }

    /// Starts a backup through the pool, and returns once some of it has gone through the disks: more than `bytes`.
    ///
    /// # Errors
    /// When it ends before.
    pub fn underway(&self, bytes: u64) -> Result<Process> {
        let before = self.system.device_bytes()?;
        let arguments = [
            "backup".as_ref(),
            self.source.as_os_str(),
            "--route".as_ref(),
            "require-storage".as_ref(),
        ];
        let mut backup = self.system.start(&self.client, arguments)?;
        until("the backup is under way", || {
            ensure!(
                backup.is_running()?,
                "the backup ended too soon: {}",
                backup.said()
            );
            // Each byte is written by one side and read by the other.
            Ok(self.system.device_bytes()? - before > 2 * bytes)
        })?;
        Ok(backup)
    }

    /// Interrupts a job and expects that it ends at once and in good order.
    ///
    /// # Errors
    /// When it doesn't end, or not as it should.
    pub fn interrupt(&self, job: Process, signal: Signal) -> Result<()> {
        job.signal(signal)?;
        let ended = job.wait()?;
        ensure!(
            ended.code() == 1 && ended.text().contains("interrupted"),
            "{ended}"
        );
        self.connections_are_gone()
    }

    /// Waits until no living process holds a connection through the pool.
    ///
    /// # Errors
    /// As [`System::connections_are_gone`].
    pub fn connections_are_gone(&self) -> Result<()> {
        self.system.connections_are_gone()
    }
}
