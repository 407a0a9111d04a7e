//! What a group of processes costs, whatever they start: a control group of the kernel's second kind.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// A control group; it goes when it is dropped, if nothing runs in it any more.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// Makes one.
    ///
    /// # Errors
    /// When the kernel has no such groups, or refuses.
    pub fn new(what: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let at = fields.next()?;
            (fields.next()? == "cgroup2").then_some(at)
        });
        let mount = mount.context("no control groups of version 2 are mounted")?;
        let path = PathBuf::from(mount).join(crate::sweep::unique(what));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    /// Takes a process in, with what it starts from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, process: u32) -> Result<()> {
        let file = self.0.join("cgroup.procs");
        fs::write(&file, process.to_string()).with_context(|| format!("writing {}", file.display()))
    }

    /// What they have taken of all cores.
    ///
    /// # Errors
    /// When the kernel doesn't say.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(self.0.join("cpu.stat"))?;
        let usage = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        let micros: u64 = usage.context("no usage in cpu.stat")?.parse()?;
        Ok(micros as f64 / 1e6)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
