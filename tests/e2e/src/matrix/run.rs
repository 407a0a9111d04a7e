//! Runs a cell and holds what comes of it against what has to.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::rule::passes_after;
use super::{Bounds, Cell, Expected, Span, Work, expected};
use crate::data::{plant, same};
use crate::device::Medium;
use crate::fault::PACE_MBIT;
use crate::lane::{Side, Wire};
use crate::process::{Ended, Process};
use crate::system::{Client, Setup, System};

/// What a job moves: at the pace of wire and disk it takes about six seconds.
const TREE_BYTES: u64 = 192 << 20;

/// How long a job may take, with its fault.
const JOB_DEADLINE: Duration = Duration::from_secs(120);

/// How long a job waits for a route where none will come.
const SHORT_ROUTE_WAIT: &str = "6s";

const POLL: Duration = Duration::from_millis(20);

/// What all cells share: the tree that jobs move.
#[derive(Debug)]
pub struct Ground {
    source: PathBuf,
    _dir: tempfile::TempDir,
}

/// What came of a cell.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Whether the job was done; it failed otherwise, as it had to.
    pub done: bool,
    /// The longest time, from the fault on, in which nothing arrived.
    pub stall: Duration,
    /// Bytes of bodies that were begun once more.
    pub repeated_bytes: u64,
}

impl Ground {
    /// Plants the tree.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("{}-", crate::sweep::unique("ground")))
            .tempdir_in(crate::sweep::base())
            .context("making a directory for the tree")?;
        let source = dir.path().join("source");
        plant(&source, TREE_BYTES, 7)?;
        Ok(Self { source, _dir: dir })
    }
}

/// Runs a cell.
///
/// # Errors
/// When what came of it isn't what has to; the error has what the programs said.
pub fn run(cell: Cell, ground: &Ground) -> Result<Seen> {
    let setup = Setup {
        wire: Wire {
            mbit: Some(PACE_MBIT),
        },
        medium: Medium::Breakable,
        ..Setup::default()
    };
    let mut stage = Stage::new(cell, ground, &setup)?;
    let seen = stage.play();
    seen.with_context(|| {
        let server = stage.system.server().map(|server| server.said());
        format!("{cell}\nthe server:\n{}", server.unwrap_or_default())
    })
}

/// A cell in its system.
struct Stage<'a> {
    cell: Cell,
    source: &'a Path,
    system: System,
    client: Client,
    /// The fault is there.
    broken: bool,
}

impl<'a> Stage<'a> {
    fn new(cell: Cell, ground: &'a Ground, setup: &Setup) -> Result<Self> {
        let mut system = System::new(setup)?;
        let client = system.client("alpha")?;
        if cell.work == Work::Restore {
            let quickly = ["--route", "require-storage"];
            system
                .backup(&client, &ground.source, &quickly)?
                .success()?;
        }
        for side in [Side::Server, Side::Client] {
            system.devices[0].chain(side)?.set_rate(PACE_MBIT)?;
        }
        Ok(Self {
            cell,
            source: &ground.source,
            system,
            client,
            broken: false,
        })
    }

    fn play(&mut self) -> Result<Seen> {
        let expected = expected(self.cell);
        let mut more = vec!["--route".to_owned(), self.cell.policy.to_string()];
        if matches!(expected, Expected::Fails(_)) {
            more.extend(["--route-wait", SHORT_ROUTE_WAIT].map(str::to_owned));
        }
        let (ended, stall) = self.job_with_fault(&more)?;
        let seen = match expected {
            Expected::Done(bounds) => done(ended, stall, bounds)?,
            Expected::Fails(word) => {
                ended.without_a_route(&[word])?;
                let kept = self.packs()?;
                self.goes_on()?;
                ensure!(kept.is_subset(&self.packs()?), "packs are gone: {ended}");
                Seen {
                    done: false,
                    stall,
                    repeated_bytes: 0,
                }
            }
        };
        self.verify()?;
        Ok(seen)
    }

    /// Runs the job, makes the fault in its middle and takes it back, after the job at the latest; returns the longest time without progress after that.
    fn job_with_fault(&mut self, more: &[String]) -> Result<(Ended, Duration)> {
        let Cell {
            fault,
            span,
            moment,
            ..
        } = self.cell;
        let mut job = self.start(more)?;
        let started = Instant::now();
        let mut watch = Watch::new();
        let mut begun: Option<Instant> = None;
        while !job.has_exited()? {
            watch.look(self.arrived());
            match begun {
                None if watch.bytes >= moment.bytes(TREE_BYTES) => {
                    fault.begin(&mut self.system)?;
                    self.broken = true;
                    begun = Some(Instant::now());
                    watch.longest = Duration::ZERO;
                }
                Some(at) if span == Span::Passing && at.elapsed() >= passes_after(fault) => {
                    self.mend()?;
                }
                _ => {}
            }
            if started.elapsed() > JOB_DEADLINE {
                // A process that has I/O on a device that hangs can't be killed.
                self.mend()?;
                bail!("the job still runs after {JOB_DEADLINE:?}: {}", job.said());
            }
            std::thread::sleep(POLL);
        }
        watch.end();
        self.mend()?;
        let ended = job.wait()?;
        ensure!(begun.is_some(), "the job ended before its fault: {ended}");
        Ok((ended, watch.longest))
    }

    fn start(&self, more: &[String]) -> Result<Process> {
        let source = self.source.display();
        let mut arguments = match self.cell.work {
            Work::Backup => vec!["backup".to_owned(), source.to_string()],
            Work::Restore => vec![
                "restore".to_owned(),
                format!("latest:{source}"),
                "--target".to_owned(),
                self.target().display().to_string(),
            ],
        };
        arguments.push("--verbose".to_owned());
        arguments.extend_from_slice(more);
        self.system.start(&self.client, arguments)
    }

    fn mend(&mut self) -> Result<()> {
        if std::mem::take(&mut self.broken) {
            self.cell.fault.end(&mut self.system)?;
        }
        Ok(())
    }

    fn target(&self) -> PathBuf {
        self.system.path("target")
    }

    /// Bytes of the job's objects, or files, that have arrived.
    fn arrived(&self) -> u64 {
        match self.cell.work {
            Work::Backup => sum(&self.system.path("objects"), &|file| file.len()),
            // Files have their whole length from the beginning.
            Work::Restore => sum(&self.target(), &|file| file.blocks() * 512),
        }
    }

    /// The packs that the server has.
    fn packs(&self) -> Result<BTreeSet<PathBuf>> {
        let data = self.system.repository(&self.client)?.join("data");
        let mut packs = BTreeSet::new();
        for prefix in std::fs::read_dir(&data)? {
            for pack in std::fs::read_dir(prefix?.path())? {
                packs.insert(pack?.path());
            }
        }
        Ok(packs)
    }

    /// The same job without the fault is done.
    fn goes_on(&self) -> Result<()> {
        self.start(&["--route".to_owned(), "prefer-storage".to_owned()])?
            .wait()?
            .success()?;
        Ok(())
    }

    /// The repository is whole before restic, and the tree is what it was before the witness.
    fn verify(&self) -> Result<()> {
        let restic = |arguments: &[&str]| self.system.restic(&self.client, arguments)?.success();
        restic(&["check", "--read-data"])?;
        let target = match self.cell.work {
            Work::Backup => {
                let target = self.system.path("by-restic");
                let at = target.display().to_string();
                restic(&["restore", "latest", "--target", &at])?;
                target.join(self.source.strip_prefix("/")?)
            }
            Work::Restore => self.target(),
        };
        same(self.source, &target)
    }
}

/// How long nothing arrives.
struct Watch {
    bytes: u64,
    grown: Instant,
    longest: Duration,
}

impl Watch {
    fn new() -> Self {
        Self {
            bytes: 0,
            grown: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    fn look(&mut self, bytes: u64) {
        if bytes > self.bytes {
            self.bytes = bytes;
            self.end();
            self.grown = Instant::now();
        }
    }

    fn end(&mut self) {
        self.longest = self.longest.max(self.grown.elapsed());
    }
}

/// Holds a job that has to be done against its bounds.
fn done(ended: Ended, stall: Duration, bounds: Bounds) -> Result<Seen> {
    let ended = ended.success()?;
    let document = ended.json()?;
    let number = |name: &str| {
        let number = document[name].as_u64();
        number.with_context(|| format!("no number {name} in {document}"))
    };
    let [network, repeated] = [number("bytes_network")?, number("bytes_repeated")?];
    ensure!(
        stall <= bounds.stall_max,
        "nothing arrived for {stall:?}, more than {:?}: {ended}",
        bounds.stall_max
    );
    ensure!(
        network <= bounds.network_bytes_max,
        "{network} bytes by network: {ended}"
    );
    ensure!(
        repeated <= bounds.repeated_bytes_max,
        "{repeated} bytes once more: {ended}"
    );
    Ok(Seen {
        done: true,
        stall,
        repeated_bytes: repeated,
    })
}

/// The sum over all files below `dir`; what vanishes meanwhile doesn't count.
fn sum(dir: &Path, of: &dyn Fn(&std::fs::Metadata) -> u64) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, found)| match found.is_dir() {
            true => sum(&path, of),
            false => of(&found),
        })
        .sum()
}
