//! Everything that a file system can hold, through the whole system and back, before two witnesses; and the repository
//! before the stock tools of its format.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use backlane_e2e::{Client, Process, Setup, System, ready, ready_with, same};
use fidelity::{Difference, Kind, TreeOptions, make_tree};

/// All that a tree can have.
fn everything(scale: TreeOptions) -> TreeOptions {
    TreeOptions {
        xattr_names_not_utf8: true,
        written_zeros: true,
        ..scale
    }
}

fn grow(dir: &Path, options: &TreeOptions) -> Result<()> {
    std::fs::create_dir(dir)?;
    let left_out = make_tree(dir, options)?.left_out;
    ensure!(
        left_out.is_empty(),
        "this file system can't hold it all: {left_out:?}"
    );
    Ok(())
}

/// Backs `source` up, restores it to `target` and has both witnesses look.
fn round_trip(system: &System, client: &Client, source: &Path, target: &Path) -> Result<()> {
    system.backup(client, source, &[])?.success()?;
    system
        .restore(client, source, target, &["--verify"])?
        .success()?;
    same(source, target)
}

#[test]
fn everything_comes_back_before_a_witness_of_our_own() -> Result<()> {
    if !ready() {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let (source, target) = (system.path("source"), system.path("target"));
    grow(&source, &everything(TreeOptions::moderate()))?;
    round_trip(&system, &client, &source, &target)?;
    // Again over what is there, and over what was changed meanwhile.
    system.restore(&client, &source, &target, &[])?.success()?;
    same(&source, &target)?;
    std::fs::write(target.join("empty/file"), b"changed")?;
    std::fs::remove_file(target.join("links/0-sorts-first"))?;
    std::fs::write(target.join("links/extra"), b"extra")?;
    system
        .restore(&client, &source, &target, &["--delete"])?
        .success()?;
    same(&source, &target)
}

#[test]
fn everything_comes_back_before_rsync() -> Result<()> {
    if !ready_with(&["rsync"]) {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let (source, target) = (system.path("source"), system.path("target"));
    let options = TreeOptions {
        over_long_paths: false,
        small_files: 1_000,
        ..everything(TreeOptions::default())
    };
    grow(&source, &options)?;
    round_trip(&system, &client, &source, &target)?;
    let mut rsync = Command::new("rsync");
    rsync.args([
        "-aHAXn",
        "--checksum",
        "--modify-window=-1",
        "--delete",
        "--itemize-changes",
    ]);
    // With a slash at the end, rsync compares what is in the directories, and the directories themselves.
    rsync.arg(source.join("")).arg(target.join(""));
    let compared = Process::start(&mut rsync, &system.path(""), Some(""))?
        .wait()?
        .success()?;
    assert_eq!(compared.stdout, "");
    Ok(())
}

/// What restic 0.14 can't restore, whoever wrote the repository: holes, attributes of symbolic links, which it sets on
/// what the link leads to, and times after 2262.
fn beyond_restic(difference: &Difference) -> bool {
    matches!(
        (&difference.kind, difference.path.as_slice()),
        (Kind::HoleFilled { .. }, _)
            | (Kind::XattrMissing { .. }, b"xattrs/link")
            | (Kind::XattrExtra { .. }, b"xattrs/file")
            | (Kind::Time { .. }, b"times/in-2400")
    )
}

#[test]
fn stock_restic_reads_what_was_written() -> Result<()> {
    if !ready_with(&["restic"]) {
        return Ok(());
    }
    let system = System::new(&Setup::default())?;
    let client = system.client("alpha")?;
    let (source, target) = (system.path("source"), system.path("target"));
    // Without what Debian's restic (0.14) can't restore, whoever wrote the repository.
    let options = TreeOptions {
        small_files: 1_000,
        over_long_paths: false,
        link_targets_not_utf8: false,
        sockets: false,
        hard_links_of_special_files: false,
        ..TreeOptions::default()
    };
    grow(&source, &options)?;
    system.backup(&client, &source, &[])?.success()?;

    let checked = system
        .restic(&client, &["check", "--read-data"])?
        .success()?;
    assert!(checked.stdout.contains("no errors were found"), "{checked}");
    let at = target.display().to_string();
    let restored = system.restic(&client, &["restore", "latest", "--target", &at])?;
    println!("{restored}");
    let within = target.join(source.strip_prefix("/")?);
    let differences = fidelity::compare(&source, &within)?;
    let unexpected: Vec<_> = differences
        .iter()
        .filter(|difference| !beyond_restic(difference))
        .map(ToString::to_string)
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    Ok(())
}
