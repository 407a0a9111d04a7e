//! `rivals`: backups and restores of the same files by Backlane, restic, rustic and borg, in turns, on one machine: the
//! tables of docs/performance.md.
//!
//! Needs a release build of `backlane` beside it, and root for `--wire`; `cargo xtask rivals` builds both.
//!
//! Every repository is on the disk that the files are on. Backlane runs as two processes, a server and a client, with TLS
//! and a pool that is a file; what both take counts, the client's part is told beside it. The others write to a directory,
//! or, over a wire, to a server of theirs. A wire joins two network namespaces, of servers and of clients.

mod data;
mod plot;
mod server;
mod tools;
mod trees;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Lane, Wire, binary, median, output};
use clap::Parser;
use data::Set;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};
use tools::{Site, Spent, Tool};

/// Backups and restores of the same files by Backlane and by what else there is.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where files and repositories are made, and taken away again: 30 GiB at full size.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Measure these alone [default: those of backlane, restic, borg and rustic that are installed].
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// On these sets of files alone [default: all of incompressible, compressible, small]; `trees` is what is stored of
    /// real trees.
    #[arg(long, value_delimiter = ',')]
    on: Vec<String>,
    /// Directories whose copies `trees` backs up [default: sources of cargo's registry, /usr/bin, /usr/lib, /usr/share].
    #[arg(long, value_delimiter = ',')]
    trees: Vec<PathBuf>,
    /// How often everything is measured; tables have medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The part of the full size that the sets have, in hundredths: 4 GiB twice, and 200,000 files.
    #[arg(long, default_value_t = 100)]
    percent: u64,
    /// Put repositories behind a network that carries so many Mbit/s each way, as root: restic by SFTP and REST, rustic by
    /// REST, borg by SSH, Backlane by storage.
    #[arg(long, value_name = "MBIT")]
    wire: Option<u32>,
    /// Have nothing in the system's cache before each job, as root: a restore comes long after its backup. Otherwise what is
    /// backed up is read before, and of repositories stays what their programs leave there.
    #[arg(long)]
    cold: bool,
    /// Make Backlane's pool here, as a device of its own would be, and take it away again [default: beside its repository].
    #[arg(long, value_name = "FILE")]
    pool: Option<PathBuf>,
    /// Draw the times that the sets take beside those of the fastest rival.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl Arguments {
    /// Whether a set is asked for by its name.
    fn names(&self, set: &str) -> bool {
        self.on.iter().any(|on| on == set)
    }
}

/// What is measured of each set, in this order.
const WORK: [&str; 5] = [
    "first backup",
    "unchanged",
    "1 % changed",
    "restore",
    "restore, on the disk",
];
const RESTORE: usize = 3;

/// A restore, and what the system has still to write of it: Backlane waits for that itself.
const RESTORE_ON_DISK: usize = 4;

/// The name by which real trees are asked for.
const TREES: &str = "trees";

fn main() -> Result<()> {
    let args = &Arguments::parse();
    for on in &args.on {
        ensure!(
            on == TREES || Set::ALL.iter().any(|set| set.name() == on),
            "there is no set of files {on}; give some of incompressible, compressible, small, {TREES}"
        );
    }
    ensure!(
        args.trees.is_empty() || args.names(TREES),
        "--trees says which trees, --on {TREES} that they are measured: give both"
    );
    let bin = fs::canonicalize(binary()?).context("no backlane")?;
    let lay = |mbit| {
        Lane::new(Wire { mbit: Some(mbit) }).context(
            "cannot lay the wire: run as root, with ip and tc (Debian: iproute2), where the kernel has network namespaces",
        )
    };
    let lane = args.wire.map(lay).transpose()?;
    if let Some(pool) = &args.pool {
        ensure!(!pool.exists(), "{} is there already", pool.display());
    }
    let site = Site {
        bin,
        lane,
        pool: args.pool.clone(),
    };
    let tools = site.tools(&args.with)?;
    let work = args
        .dir
        .join(format!("backlane-rivals-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let reported = report(&work, &site, &tools, args);
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    reported
}

/// Measures what is asked for.
fn report(work: &Path, site: &Site, tools: &[Tool], args: &Arguments) -> Result<()> {
    let measured = measure(work, site, tools, args)?;
    if !measured.is_empty() {
        print(&measured, args.wire);
        if let Some(path) = &args.plot {
            draw(path, &measured, args.wire)?;
        }
    }
    if args.names(TREES) {
        let trees = match args.trees.is_empty() {
            true => trees::usual(),
            false => args.trees.clone(),
        };
        trees::run(work, site, tools, &trees, args.runs)?;
    }
    Ok(())
}

/// By set, work and tool.
type Measured = BTreeMap<(usize, usize, &'static str), Vec<Spent>>;

fn measure(work: &Path, site: &Site, tools: &[Tool], args: &Arguments) -> Result<Measured> {
    let mut measured = Measured::new();
    for (at, set) in Set::ALL.iter().enumerate() {
        if !args.on.is_empty() && !args.names(set.name()) {
            continue;
        }
        for run in 0..args.runs {
            let work = work.join(format!("{}-{run}", set.name()));
            let files = work.join("files");
            set.make(&files, args.percent)?;
            // Each tool comes first in turn.
            let mut order = tools.to_vec();
            order.rotate_left(run % tools.len());
            let mut ready = Vec::new();
            for tool in order {
                let place = tool.prepare(&work.join(tool.name), site);
                ready.push(place.with_context(|| format!("{}: no repository", tool.name))?);
            }
            for (what, name) in WORK.iter().enumerate().take(RESTORE_ON_DISK) {
                if what == 2 {
                    set.change(&files, args.percent)?;
                }
                for place in &ready {
                    let tool = place.tool;
                    let target = place.path("restored");
                    // Nobody waits for what another has written.
                    sync(&work)?;
                    // Some drop from the cache what they have read, and the next would have to read it from the disk.
                    match (args.cold, what) {
                        (true, _) => drop_caches()?,
                        (false, RESTORE) => {}
                        (false, _) => read_all(&files)?,
                    }
                    let spent = match what {
                        RESTORE => place.restore(&files, &target),
                        _ => place.backup(&files),
                    };
                    let spent = spent
                        .with_context(|| format!("{} of {name} of {}", tool.name, set.name()))?;
                    let mut note = |what, spent| {
                        let key = (at, what, tool.name);
                        measured.entry(key).or_default().push(spent);
                    };
                    note(what, spent);
                    eprintln!("{} {}: {name}: {spent:?}", set.name(), tool.name);
                    if what == RESTORE {
                        let seconds = spent.seconds + sync(&work)?;
                        note(RESTORE_ON_DISK, Spent { seconds, ..spent });
                        check(&files, &target, tool)?;
                    }
                }
            }
            for mut place in ready {
                place.end()?;
            }
            // ext4 goes around inodes that were deleted minutes ago, one by one: what has many files stays to the end.
            if *set != Set::Small {
                fs::remove_dir_all(&work)?;
            }
        }
    }
    Ok(measured)
}

/// Has all that was written to a file system put on its disk; how many seconds that took.
fn sync(directory: &Path) -> Result<f64> {
    let began = Instant::now();
    output(Command::new("sync").arg("-f").arg(directory))?;
    Ok(began.elapsed().as_secs_f64())
}

/// Empties the system's cache of what is on the disk.
fn drop_caches() -> Result<()> {
    let file = "/proc/sys/vm/drop_caches";
    fs::write(file, "3").with_context(|| format!("cannot write {file}: run as root"))
}

fn read_all(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            read_all(&entry.path())?;
        } else {
            io::copy(&mut File::open(entry.path())?, &mut io::sink())?;
        }
    }
    Ok(())
}

/// Whether what was restored is what was backed up.
fn check(files: &Path, target: &Path, tool: Tool) -> Result<()> {
    let below = files.strip_prefix("/").unwrap_or(files);
    let whole = target.join(below);
    let restored = if whole.exists() {
        whole
    } else {
        target.to_owned()
    };
    let diff = Command::new("diff")
        .arg("-rq")
        .arg(files)
        .arg(&restored)
        .status();
    let same = diff.context("cannot start diff")?.success();
    ensure!(same, "{} restored something else", tool.name);
    Ok(())
}

/// A figure of a run, as a table has it: with so many decimals.
type Column = (&'static str, fn(&Spent) -> f64, usize);

const COLUMNS: [Column; 5] = [
    ("seconds", |spent| spent.seconds, 1),
    ("CPU seconds", |spent| spent.cpu_seconds, 1),
    ("of which client", |spent| spent.client_cpu_seconds, 1),
    ("peak MiB", |spent| spent.peak_mib, 0),
    ("stored MiB", |spent| spent.stored_mib, 0),
];

fn print(measured: &Measured, wire: Option<u32>) {
    let on_the_wire: Column = ("on the wire MiB", |spent| spent.wire_mib, 0);
    let columns: Vec<Column> = COLUMNS
        .into_iter()
        .chain(wire.map(|_| on_the_wire))
        .collect();
    let names: Vec<_> = columns.iter().map(|column| column.0).collect();
    println!(
        "| work | tool | {} | time × fastest rival | CPU × |",
        names.join(" | ")
    );
    println!("|{}", " --- |".repeat(columns.len() + 4));
    for (key, runs) in measured {
        let (set, what, tool) = *key;
        print!("| {}: {} | {tool} |", Set::ALL[set].name(), WORK[what]);
        for (_, of, decimals) in &columns {
            print!(" {:.*} |", decimals, middle(runs, *of));
        }
        for of in [
            |spent: &Spent| spent.seconds,
            |spent: &Spent| spent.client_cpu_seconds,
        ] {
            let ratio = beside_rivals(measured, *key, of);
            print!(
                " {} |",
                ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
            );
        }
        println!();
    }
}

/// Draws the column "time × fastest rival".
fn draw(path: &Path, measured: &Measured, wire: Option<u32>) -> Result<()> {
    let mut groups: Vec<plot::Group> = Vec::new();
    for key in measured.keys() {
        let (set, what, tool) = *key;
        let Some(ratio) = beside_rivals(measured, *key, |spent| spent.seconds) else {
            continue;
        };
        let name = format!("{}: {}", Set::ALL[set].name(), WORK[what]);
        match groups.last_mut().filter(|group| group.name == name) {
            Some(group) => group.bars.push((tool, ratio)),
            None => groups.push(plot::Group {
                name,
                bars: vec![(tool, ratio)],
            }),
        }
    }
    let title = match wire {
        Some(mbit) => format!("Backups and restores over {mbit} Mbit/s"),
        None => "Backups and restores, repository on the same disk".to_owned(),
    };
    plot::draw(
        path,
        &title,
        "time × fastest rival (shorter is faster)",
        &groups,
    )
}

fn middle(runs: &[Spent], of: fn(&Spent) -> f64) -> f64 {
    median(runs.iter().map(of).collect())
}

/// A figure of a tool beside that of the rival that takes least for the same work.
fn beside_rivals(
    measured: &Measured,
    key: (usize, usize, &str),
    of: fn(&Spent) -> f64,
) -> Option<f64> {
    let rivals = measured
        .iter()
        .filter(|((set, what, tool), _)| (*set, *what) == (key.0, key.1) && *tool != "backlane");
    let least = rivals.map(|(_, runs)| middle(runs, of)).reduce(f64::min)?;
    Some(middle(measured.get(&key)?, of) / least)
}
