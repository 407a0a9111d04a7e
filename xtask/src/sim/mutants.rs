//! Deliberate faults in the protocol, each of which the simulator has to find.
//!
//! A fault is a piece of text that stands once in the protocol's sources, and what it is replaced by: that survives what
//! moves lines. The copy that is changed lies in the target directory; all faults share one target directory of theirs.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

/// One deliberate fault: pieces of text, and what each is replaced by.
struct Mutant {
    name: &'static str,
    edits: &'static [(&'static str, &'static str)],
    /// How many times as many seeds it is given as others.
    patience: u64,
}

const fn mutant(name: &'static str, edits: &'static [(&'static str, &'static str)]) -> Mutant {
    Mutant {
        name,
        edits,
        patience: 1,
    }
}

/// The faults. `docs/simulation.md` says what each breaks and how it was found.
const MUTANTS: &[Mutant] = &[
    mutant(
        "credit off by one",
        &[(
            "self.ring.frames().saturating_sub(self.frames.len() as u64)",
            "(self.ring.frames() + 1).saturating_sub(self.frames.len() as u64)",
        )],
    ),
    mutant(
        "connection and generation of a frame not checked",
        &[(
            "        self.check_identity(header)?;\n",
            "        let _ = self.check_identity(header);\n",
        )],
    ),
    mutant(
        "sequence of a frame not checked",
        &[(
            "        if got != sequence {\n            return Err(FormatError::OtherSequence {",
            "        if false && got != sequence {\n            return Err(FormatError::OtherSequence {",
        )],
    ),
    mutant(
        "tag of a frame without its sequence",
        &[
            (
                "        if got != sequence {\n            return Err(FormatError::OtherSequence {",
                "        if false && got != sequence {\n            return Err(FormatError::OtherSequence {",
            ),
            (
                "    nonce[4..].copy_from_slice(&sequence.0.to_le_bytes());",
                "    nonce[4..].copy_from_slice(&(sequence.0 & 0).to_le_bytes());",
            ),
        ],
    ),
    mutant(
        "key of a frame without its direction",
        &[(
            "        info.push(direction as u8);\n",
            "        info.push(direction as u8 & 0);\n",
        )],
    ),
    mutant(
        "checksum of a frame not checked",
        &[(
            "None => checksum(header, payload) == header[TAG_AT..],",
            "None => !checksum(header, payload).is_empty(),",
        )],
    ),
    mutant(
        "pool of a fixed block not checked",
        &[(
            "        if got.pool != want.pool {\n            return Err(FormatError::OtherPool {",
            "        if false && got.pool != want.pool {\n            return Err(FormatError::OtherPool {",
        )],
    ),
    mutant(
        "slot of a fixed block not checked",
        &[(
            "        if got.slot != want.slot {\n",
            "        if false && got.slot != want.slot {\n",
        )],
    ),
    mutant(
        "copies A and B in the wrong order",
        &[(
            "                } else {\n                    self.turn = 1 - self.turn;\n                }\n                PairOutcome::Written",
            "                }\n                PairOutcome::Written",
        )],
    ),
    mutant(
        "other copy written before the failed one was read back",
        &[(
            "                if self.suspect {\n                    self.state = State::Unproved;",
            "                if std::mem::take(&mut self.suspect) {\n                    self.turn = 1 - self.turn;",
        )],
    ),
    mutant(
        "segment reused before both sides let go",
        &[("self.drained && self.let_go", "self.drained || self.let_go")],
    ),
    mutant(
        "acknowledged before delivered",
        &[(
            "own.consumed = self.recv.consumed();",
            "own.consumed = Sequence(self.recv.consumed().0 + u64::from(self.recv.is_behind()));",
        )],
    ),
    mutant(
        "buffer given up before the frame was acknowledged",
        &[(
            ".push_back(ConnectionEvent::Acknowledged { below });",
            ".push_back(ConnectionEvent::Acknowledged { below: below.next() });",
        )],
    ),
    mutant(
        "fence ignored",
        &[(
            "        if self.fence == Fence::Open {\n            if self.control.can_write(now)",
            "        if self.fence == Fence::Open || now >= Tick::default() {\n            if self.control.can_write(now)",
        )],
    ),
    mutant(
        "claim not waited for",
        &[(
            "ClaimState::Waiting(now + self.claiming.timeouts.claim)",
            "ClaimState::Waiting(now)",
        )],
    ),
    mutant(
        "foreign epoch not noticed",
        &[(
            "            if self.areas.is_overtaken_by(stamp) {\n                self.end(EndReason::ForeignEpoch {",
            "            if false && self.areas.is_overtaken_by(stamp) {\n                self.end(EndReason::ForeignEpoch {",
        )],
    ),
    mutant(
        "grants of an earlier epoch don't rest",
        &[(
            "self.rests.retain(|_, rest| rest.hold(allocator));",
            "self.rests.retain(|_, rest| rest.hold(allocator) && false);",
        )],
    ),
    mutant(
        "epoch confirmed while another's grants are in use",
        &[(
            "if self.confirmed == epoch || self.entries.iter().any(|entry| entry.is_foreign(epoch)) {",
            "if self.confirmed == epoch || self.entries.iter().all(|entry| entry.is_foreign(epoch)) {",
        )],
    ),
    mutant(
        "stale counter of a control block believed",
        &[(
            "counter <= self.peer_counter",
            "counter == self.peer_counter",
        )],
    ),
    mutant(
        "incarnation of a grant not compared",
        &[(
            "held.grant.slot == index && held.grant.incarnation == incarnation",
            "held.grant.slot == index && held.grant.incarnation != incarnation",
        )],
    ),
    mutant(
        "silence counted while suspended",
        &[(
            "self.silent += now.since(before).min(self.gap_max);",
            "self.silent += now.since(before).max(self.gap_max);",
        )],
    ),
    mutant(
        "end told before the frames before it",
        &[(
            "self.fin.filter(|fin| *fin == self.announced)",
            "self.fin.filter(|fin| *fin >= self.announced)",
        )],
    ),
    mutant(
        "what wasn't heard is not said again",
        &[(
            "let unheard = !self.control.is_heard() && now >= self.refresh_at();",
            "let unheard = !self.control.is_heard() && now < Tick::default();",
        )],
    ),
    // Two coordinators have to grant one request, and a frame of the first to lie where the second's is due.
    Mutant {
        name: "generation of a frame not checked",
        edits: &[(
            "        if generation != self.identity.generation {\n            return Err(FormatError::OtherGeneration {\n                want: self.identity.generation,",
            "        if false && generation != self.identity.generation {\n            return Err(FormatError::OtherGeneration {\n                want: self.identity.generation,",
        )],
        patience: 10,
    },
];

/// Tries every fault.
///
/// # Errors
/// When a fault can't be applied, or the simulator with it can't be built.
pub(super) fn run(root: &Path, seed: u64, seeds: u64, only: Option<&str>) -> Result<ExitCode> {
    let base = target(root).join("mutants");
    let copy = base.join("workspace");
    copy_workspace(root, &copy)?;
    let mut survivors = Vec::new();
    for mutant in MUTANTS {
        if only.is_some_and(|only| !mutant.name.contains(only)) {
            continue;
        }
        let begin = Instant::now();
        let sound = apply(&copy, mutant)?;
        let found =
            build(&copy, &base, mutant).and_then(|()| find(&base, seed, seeds * mutant.patience));
        // The last edit is taken back first: two may be in one file.
        for (file, sound) in sound.iter().rev() {
            fs::write(file, sound).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let seconds = begin.elapsed().as_secs();
        match found? {
            Some((count, how)) => {
                println!(
                    "found after {count:>5} seeds ({seconds} s)  {}: {how}",
                    mutant.name
                );
            }
            None => {
                let seeds = seeds * mutant.patience;
                println!("not found in {seeds} seeds ({seconds} s)  {}", mutant.name);
                survivors.push(mutant.name);
            }
        }
    }
    if survivors.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} survived: {}", survivors.len(), survivors.join("; "));
    Ok(ExitCode::FAILURE)
}

fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// Copies the protocol and the simulator, as a workspace of their own.
fn copy_workspace(root: &Path, copy: &Path) -> Result<()> {
    if copy.exists() {
        fs::remove_dir_all(copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    }
    for name in ["storage-socket-proto", "storage-socket-sim"] {
        copy_tree(
            &root.join("crates").join(name),
            &copy.join("crates").join(name),
        )?;
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let mut lines: Vec<&str> = manifest.lines().collect();
    let members = lines.iter().position(|line| line.starts_with("members = "));
    lines[members.context("Cargo.toml names no members in a line of its own")?] =
        "members = [\"crates/*\"]";
    fs::write(copy.join("Cargo.toml"), lines.join("\n")).context("cannot write Cargo.toml")?;
    fs::copy(root.join("Cargo.lock"), copy.join("Cargo.lock")).context("cannot copy Cargo.lock")?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The sources of the protocol.
fn sources(at: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(at).with_context(|| format!("cannot read {}", at.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Puts a fault in. Returns the files and what each was before an edit, in order.
fn apply(workspace: &Path, mutant: &Mutant) -> Result<Vec<(PathBuf, String)>> {
    let mut before = Vec::new();
    for edit in mutant.edits {
        before.push(put(workspace, mutant.name, *edit)?);
    }
    Ok(before)
}

fn put(workspace: &Path, name: &str, (find, replace): (&str, &str)) -> Result<(PathBuf, String)> {
    let mut files = Vec::new();
    sources(
        &workspace.join("crates/storage-socket-proto/src"),
        &mut files,
    )?;
    let mut places = Vec::new();
    for file in files {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for _ in text.matches(find) {
            places.push((file.clone(), text.clone()));
        }
    }
    let [(file, sound)] = &places[..] else {
        let count = places.len();
        bail!("the fault {name:?} fits {count} places: its text has to be brought up to date");
    };
    let text = sound.replacen(find, replace, 1);
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok((file.clone(), sound.clone()))
}

fn build(workspace: &Path, base: &Path, mutant: &Mutant) -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--profile", "sim"])
        .args(["-p", "storage-socket-sim", "--target-dir"])
        .arg(base.join("target"))
        .env("RUSTFLAGS", "-Awarnings")
        .current_dir(workspace)
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("the fault {:?} doesn't compile:\n{said}", mutant.name);
    }
    Ok(())
}

/// Runs seeds until one fails. Returns how many that took, and the broken promise.
fn find(base: &Path, seed: u64, seeds: u64) -> Result<Option<(u64, String)>> {
    let output = Command::new(base.join("target/sim/storage-socket-sim"))
        .args(["--quiet", "--seed", &seed.to_string()])
        .args(["--seeds", &seeds.to_string()])
        .output()
        .context("cannot start the simulator")?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let named = said.lines().find_map(|line| {
        let (failed, how) = line.strip_prefix("seed ")?.split_once(": ")?;
        Some((failed.parse::<u64>().ok()?, how))
    });
    let (failed, how) = named.context("the simulator failed and named no seed")?;
    let how: String = how.chars().take(110).collect();
    Ok(Some((failed.wrapping_sub(seed) + 1, how)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_deliberate_fault_fits_one_place() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = Vec::new();
        sources(&root.join("crates/storage-socket-proto/src"), &mut files).unwrap();
        let texts: Vec<String> = files
            .iter()
            .map(|file| fs::read_to_string(file).unwrap())
            .collect();
        for mutant in MUTANTS {
            for (find, replace) in mutant.edits {
                let places = texts.iter().map(|text| text.matches(find).count());
                assert_eq!(places.sum::<usize>(), 1, "{}", mutant.name);
                assert!(find != replace, "{}", mutant.name);
            }
        }
    }
}
