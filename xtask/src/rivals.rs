//! Backups and restores of the same files by Backlane, restic, rustic and borg, in turns, on one machine: the table of
//! docs/performance.md.
//!
//! Every repository is on the disk that the files are on. Backlane runs as two processes, a server and a client, with TLS
//! and a pool that is a file; what both take counts, the client's part is told beside it. The others write to a directory.

mod data;
mod tools;

use anyhow::{Context, Result, ensure};
use clap::Args;
use data::Set;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tools::{Spent, Tool};

#[derive(Args)]
pub(crate) struct RivalsArgs {
    /// Where files and repositories are made, and taken away again: 30 GiB at full size.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Measure these alone [default: those of backlane, restic, borg and rustic that are installed].
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// On these sets of files alone [default: all of incompressible, compressible, small].
    #[arg(long, value_delimiter = ',')]
    on: Vec<String>,
    /// How often everything is measured; the table has medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The part of the full size that the sets have, in hundredths: 4 GiB twice, and 200,000 files.
    #[arg(long, default_value_t = 100)]
    percent: u64,
    /// Use this binary instead of building one.
    #[arg(long)]
    bin: Option<PathBuf>,
}

/// What is measured of each set, in this order.
const WORK: [&str; 4] = ["first backup", "unchanged", "1 % changed", "restore"];

/// Measures, and prints a table.
///
/// # Errors
/// When a tool fails, or restores something else than it backed up.
pub(crate) fn run(root: &Path, args: &RivalsArgs) -> Result<ExitCode> {
    let bin = match &args.bin {
        Some(bin) => bin.clone(),
        None => crate::bench::build(root)?,
    };
    let bin = fs::canonicalize(&bin).with_context(|| format!("no {}", bin.display()))?;
    let work = args
        .dir
        .join(format!("backlane-rivals-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let measured = measure(&work, &bin, args);
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    print(&measured?);
    Ok(ExitCode::SUCCESS)
}

/// By set, work and tool.
type Measured = BTreeMap<(usize, usize, String), Vec<Spent>>;

fn measure(work: &Path, bin: &Path, args: &RivalsArgs) -> Result<Measured> {
    let tools = tools::installed(&args.with)?;
    let mut measured = Measured::new();
    for (at, set) in Set::ALL.iter().enumerate() {
        if !args.on.is_empty() && !args.on.iter().any(|on| on == set.name()) {
            continue;
        }
        let files = work.join(set.name());
        for run in 0..args.runs {
            set.make(&files, args.percent)?;
            // Each tool comes first in turn.
            let mut order = tools.clone();
            let first = run % order.len();
            order.rotate_left(first);
            let mut ready = Vec::new();
            for tool in order {
                ready.push((tool, tool.prepare(&work.join(tool.name()), bin)?));
            }
            let target = work.join("restored");
            for (what, name) in WORK.iter().enumerate() {
                if what == 2 {
                    set.change(&files, args.percent)?;
                }
                for (tool, place) in &ready {
                    let spent = match what {
                        3 => place.restore(&files, &target),
                        _ => place.backup(&files),
                    };
                    let spent = spent
                        .with_context(|| format!("{} of {name} of {}", tool.name(), set.name()))?;
                    if what == 3 {
                        check(&files, &target, *tool)?;
                        fs::remove_dir_all(&target)?;
                    }
                    eprintln!("{} {}: {name}: {spent:?}", set.name(), tool.name());
                    let key = (at, what, tool.name().to_owned());
                    measured.entry(key).or_default().push(spent);
                }
            }
            for (_, place) in ready {
                place.remove()?;
            }
        }
        fs::remove_dir_all(&files)?;
    }
    Ok(measured)
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
    let diff = std::process::Command::new("diff")
        .arg("-rq")
        .arg(files)
        .arg(&restored)
        .status();
    let same = diff.context("cannot start diff")?.success();
    ensure!(same, "{} restored something else", tool.name());
    Ok(())
}

fn print(measured: &Measured) {
    println!(
        "| work | tool | seconds | CPU seconds | of which client | peak MiB | stored MiB | time × fastest rival | CPU × |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for ((set, what, tool), runs) in measured {
        let middle = |of: fn(&Spent) -> f64| median(runs.iter().map(of).collect());
        let rivals = |of: fn(&Spent) -> f64| {
            let rivals = measured
                .iter()
                .filter(|((s, w, t), _)| (s, w) == (set, what) && t != "backlane");
            let best = rivals
                .map(|(_, runs)| median(runs.iter().map(of).collect()))
                .reduce(f64::min);
            best.map_or(String::new(), |best| format!("{:.2}", middle(of) / best))
        };
        println!(
            "| {}: {} | {tool} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {} | {} |",
            Set::ALL[*set].name(),
            WORK[*what],
            middle(|spent| spent.seconds),
            middle(|spent| spent.cpu_seconds),
            middle(|spent| spent.client_cpu_seconds),
            middle(|spent| spent.peak_mib),
            middle(|spent| spent.stored_mib),
            rivals(|spent| spent.seconds),
            rivals(|spent| spent.client_cpu_seconds),
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
