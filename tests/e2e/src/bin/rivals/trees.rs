//! What the tools store of real trees, and of the same trees once their large files have been edited: as it lies in the
//! repository, and before compression, which says how well chunks are found again.

use super::{
    median,
    tools::{Program, Site, Tool, mib_below},
};
use anyhow::{Context, Result, ensure};
use backlane_e2e::output;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Files from this size on have several chunks, or could have.
const LARGE: u64 = 1 << 20;
/// How many bytes get into a large file at a quarter, at half and at three quarters of it.
const INSERTED: [usize; 3] = [1, 100, 4099];

/// What is stored after each, in this order.
const BACKUPS: [&str; 2] = ["first", "edited"];

/// How large a repository is.
#[derive(Debug)]
struct Size {
    stored_mib: f64,
    unique_mib: Option<f64>,
}

/// By backup and tool.
type Sizes = BTreeMap<(usize, usize), Vec<Size>>;

/// Trees that every machine has on which this is built.
pub(super) fn usual() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
    let sources = cargo.map(|cargo| cargo.join("registry/src"));
    let system = ["/usr/bin", "/usr/lib", "/usr/share"].map(PathBuf::from);
    let trees = sources.into_iter().chain(system);
    trees.filter(|tree| tree.is_dir()).collect()
}

/// Measures, and prints a table.
pub(super) fn run(
    work: &Path,
    site: &Site,
    tools: &[Tool],
    trees: &[PathBuf],
    runs: usize,
) -> Result<()> {
    for tree in trees {
        ensure!(tree.is_dir(), "{} is no directory", tree.display());
    }
    if !Program::Rustic.is_installed() {
        eprintln!("unique MiB are left out: rustic, which counts them, is not installed");
    }
    let mut rows = Vec::new();
    for tree in trees {
        let name = format!("{} ({:.0} MiB)", tree.display(), mib_below(tree)?);
        let sizes = measure(work, site, tools, tree, runs);
        let sizes = sizes.with_context(|| format!("on {}", tree.display()))?;
        rows.extend(table(&name, tools, &sizes));
    }
    println!("| tree | backup | tool | stored MiB | × restic | unique MiB | × restic |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for row in rows {
        println!("{row}");
    }
    Ok(())
}

fn measure(work: &Path, site: &Site, tools: &[Tool], tree: &Path, runs: usize) -> Result<Sizes> {
    let files = work.join("tree");
    let mut sizes = Sizes::new();
    for _ in 0..runs {
        output(Command::new("cp").arg("-a").arg(tree.join(".")).arg(&files))?;
        let prepare = |tool: &Tool| tool.prepare(&work.join(tool.name), site);
        let ready: Vec<_> = tools.iter().map(prepare).collect::<Result<_>>()?;
        for (backup, name) in BACKUPS.iter().enumerate() {
            if backup == 1 {
                edit(&files)?;
            }
            for (tool, place) in ready.iter().enumerate() {
                let spent = place.backup(&files).context(place.tool.name)?;
                let size = Size {
                    stored_mib: spent.stored_mib,
                    unique_mib: place.unique_mib()?,
                };
                eprintln!("{} {}: {name}: {size:?}", tree.display(), place.tool.name);
                sizes.entry((backup, tool)).or_default().push(size);
            }
        }
        for place in ready {
            place.remove()?;
        }
        fs::remove_dir_all(&files)?;
    }
    Ok(sizes)
}

/// Inserts bytes into each large file, so that what follows moves.
fn edit(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            edit(&path)?;
        } else if kind.is_file() && entry.metadata()?.len() >= LARGE {
            let mut content = fs::read(&path)?;
            let quarter = content.len() / 4;
            // From the end on, so that the places stay where they are.
            for (at, bytes) in INSERTED.into_iter().enumerate().rev() {
                let place = (at + 1) * quarter;
                content.splice(place..place, std::iter::repeat_n(b'+', bytes));
            }
            fs::write(&path, content).with_context(|| format!("cannot edit {}", path.display()))?;
        }
    }
    Ok(())
}

fn table(tree: &str, tools: &[Tool], sizes: &Sizes) -> Vec<String> {
    let restic = tools
        .iter()
        .position(|tool| tool.program == Program::Restic);
    let middle = |backup: usize, tool: usize, of: fn(&Size) -> Option<f64>| {
        let runs = sizes.get(&(backup, tool))?.iter();
        runs.map(of).collect::<Option<Vec<_>>>().map(median)
    };
    let row = |&(backup, tool): &(usize, usize)| {
        let mut row = format!("| {tree} | {} | {} |", BACKUPS[backup], tools[tool].name);
        for of in [
            |size: &Size| Some(size.stored_mib),
            |size: &Size| size.unique_mib,
        ] {
            let own = middle(backup, tool, of);
            let restic = restic.and_then(|restic| middle(backup, restic, of));
            let ratio = own.zip(restic).map(|(own, restic)| own / restic);
            let own = own.map_or(String::new(), |mib| format!("{mib:.1}"));
            let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.3}"));
            row += &format!(" {own} | {ratio} |");
        }
        row
    };
    sizes.keys().map(row).collect()
}
