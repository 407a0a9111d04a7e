//! The device that both sides share, and a file system that is full when it shall be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

use crate::chain::Chain;
use crate::lane::Side;
use crate::output;

/// The logical block size of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sector {
    /// 512 bytes.
    B512,
    /// 4,096 bytes.
    B4096,
}

/// How the two sides reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// By loop devices over its file.
    Plain,
    /// By chains that can be made to fail.
    Breakable,
}

/// One disk, seen by either side through a block device of its own.
///
/// The two share no cache: a program that forgets direct I/O reads what it read before, as it would on two machines.
#[derive(Debug)]
pub struct SharedDevice {
    /// The disk as the server sees it.
    pub at_server: PathBuf,
    /// The disk as the clients see it.
    pub at_client: PathBuf,
    file: PathBuf,
    ways: [Way; 2],
}

/// One side's way to the disk.
#[derive(Debug)]
enum Way {
    Plain(Loop),
    Breakable(Box<Chain>),
}

impl SharedDevice {
    /// Makes a disk of `bytes`, whose blocks are written when they are first needed, below `dir`.
    ///
    /// # Errors
    /// When the kernel refuses: `dir` lies on a file system without direct I/O, say.
    pub fn new(dir: &Path, bytes: u64, sector: Sector, medium: Medium) -> Result<Self> {
        let file = dir.join(format!("{}.disk", crate::sweep::unique("shared")));
        let made = fs::File::create(&file).and_then(|disk| disk.set_len(bytes));
        made.with_context(|| format!("creating {}", file.display()))?;
        let way = |side: &str| match medium {
            Medium::Plain => Loop::new(&file, sector).map(Way::Plain),
            Medium::Breakable => {
                let chain = Chain::new(file.with_extension(side), &file, sector)?;
                Ok(Way::Breakable(Box::new(chain)))
            }
        };
        let ways = [way("server")?, way("client")?];
        Ok(Self {
            at_server: ways[0].path().to_owned(),
            at_client: ways[1].path().to_owned(),
            file,
            ways,
        })
    }

    /// One side's chain.
    ///
    /// # Errors
    /// Where the medium is plain.
    pub fn chain(&mut self, side: Side) -> Result<&mut Chain> {
        match &mut self.ways[side as usize] {
            Way::Plain(_) => bail!("the way to the disk can't be broken"),
            Way::Breakable(chain) => Ok(chain),
        }
    }

    /// What the disk is kept in: written to here, it is as if another host wrote to it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Bytes read from and written to the disk from both sides, by the counters of the block layer.
    ///
    /// # Errors
    /// When the counters can't be read.
    pub fn bytes(&self) -> Result<u64> {
        let [server, client] = &self.ways;
        Ok(server.device()?.bytes()? + client.device()?.bytes()?)
    }

    /// Takes the disk away from the clients: their device is empty from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach_client(&self) -> Result<()> {
        let device = self.ways[1].device()?;
        let name = device.path();
        let backing = Path::new("/sys/block")
            .join(name.file_name().context("a loop device has a name")?)
            .join("loop/backing_file");
        let before = fs::read_to_string(&backing).ok();
        device.detach()?;
        // The kernel lets go only when whoever looks at the device just then, a prober say, has closed it.
        crate::process::until("the loop device is let go", || {
            Ok(fs::read_to_string(&backing).ok() != before)
        })
    }
}

impl Way {
    /// What a program opens.
    fn path(&self) -> &Path {
        match self {
            Self::Plain(device) => device.path(),
            Self::Breakable(chain) => &chain.link,
        }
    }

    fn device(&self) -> Result<&Loop> {
        match self {
            Self::Plain(device) => Ok(device),
            Self::Breakable(chain) => chain.device(),
        }
    }
}

/// A loop device, detached once: from then on it may be another test's.
#[derive(Debug)]
pub(crate) struct Loop {
    path: PathBuf,
    is_detached: AtomicBool,
}

impl Loop {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn detach(&self) -> Result<()> {
        if !self.is_detached.swap(true, Ordering::SeqCst) {
            output(Command::new("losetup").arg("-d").arg(&self.path))?;
        }
        Ok(())
    }

    pub(crate) fn new(file: &Path, sector: Sector) -> Result<Self> {
        let size = match sector {
            Sector::B512 => "512",
            Sector::B4096 => "4096",
        };
        let mut command = Command::new("losetup");
        command
            .args(["--find", "--show", "--direct-io=on", "--sector-size", size])
            .arg(file);
        // Another test may take the device that was found, before it is taken here.
        let mut last = output(&mut command);
        for _ in 0..20 {
            if last.is_ok() {
                break;
            }
            last = output(&mut command);
        }
        Ok(Self {
            path: PathBuf::from(last?.trim()),
            is_detached: AtomicBool::new(false),
        })
    }

    fn bytes(&self) -> Result<u64> {
        const BYTES_PER_COUNT: u64 = 512; // whatever the device's block size
        let name = self.path.file_name().context("a device has a name")?;
        let path = Path::new("/sys/block").join(name).join("stat");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        // Third and seventh: sectors read and sectors written.
        let counts: Vec<u64> = text
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        let [read, written] = [2, 6].map(|at| counts.get(at).copied().unwrap_or(0));
        Ok((read + written) * BYTES_PER_COUNT)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = self.detach();
    }
}

/// A file system in memory of a bounded size, unmounted on drop.
#[derive(Debug)]
pub struct Tmpfs {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl Tmpfs {
    /// Mounts one of `bytes` at `path`, which is made.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(path: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
        let size = format!("size={bytes}");
        output(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "backlane-e2e"])
                .arg(path),
        )?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        let size = format!("remount,size={bytes}");
        output(Command::new("mount").args(["-o", &size]).arg(&self.path)).map(drop)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(why) = output(Command::new("umount").arg("-l").arg(&self.path)) {
            eprintln!("left behind: {why:#}");
        }
    }
}
