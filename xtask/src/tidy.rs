//! What the compiler doesn't check: which crate may depend on which, module heads, file sizes, left-over markers.
//!
//! The table of arrows is the design's, as data: an arrow that is not in it is a finding, whatever the code says.

use anyhow::{Context, Result, bail};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Lines that a source file may have: more than that, nobody holds in mind.
const FILE_LINES_MAX: usize = 800;

/// Which crate of the workspace may depend on which. What isn't listed may depend on none.
const ARROWS: &[(&str, &[&str])] = &[
    ("direct-io", &[]),
    ("storage-socket-proto", &[]),
    ("storage-socket", &["direct-io", "storage-socket-proto"]),
    ("storage-socket-sim", &["storage-socket-proto"]),
    ("backlane-proto", &[]),
    ("backlane-net", &["storage-socket", "backlane-proto"]),
    ("backlane-repo", &["backlane-proto"]),
    ("backlane-source", &[]),
    (
        "backlane-client",
        &[
            "backlane-net",
            "backlane-repo",
            "backlane-source",
            "backlane-proto",
        ],
    ),
    (
        "backlane-server",
        &["backlane-net", "backlane-proto", "backlane-repo"],
    ),
    ("backlane-forward", &["backlane-net", "backlane-proto"]),
    ("backlane-web", &["backlane-server"]),
    (
        "backlane",
        &[
            "direct-io",
            "storage-socket",
            "storage-socket-proto",
            "backlane-proto",
            "backlane-net",
            "backlane-repo",
            "backlane-source",
            "backlane-client",
            "backlane-server",
            "backlane-forward",
            "backlane-web",
        ],
    ),
    ("fidelity", &[]),
    // A modified client is made of the real one's parts.
    (
        "backlane-e2e",
        &["fidelity", "backlane-net", "backlane-proto"],
    ),
    (
        "backlane-fuzz",
        &["storage-socket-proto", "backlane-proto", "backlane-repo"],
    ),
    ("xtask", &[]),
];

/// Crates for tests alone: any crate may have them among its dev-dependencies, none among its dependencies.
const TEST_CRATES: &[&str] = &["storage-socket-sim", "fidelity", "backlane-e2e"];

/// Crates without clock, randomness or I/O; each has a `clippy.toml` of its own that bans them.
const PURE_CRATES: &[&str] = &["storage-socket-proto", "backlane-proto"];

/// Outside crates that one crate alone may name.
const SOLE_USERS: &[(&str, &str)] = &[("rustic_core", "backlane-repo"), ("io-uring", "direct-io")];

/// What a finished change doesn't contain. Split, so that this file is not a finding itself.
const MARKERS: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("db", "g!("),
    concat!("#[ig", "nore"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("TO", "DO"),
    concat!("#[all", "ow("),
];

/// Paths that exist on one developer's machine only: a clone alone must build, test and run.
const FOREIGN_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("../sha", "red")];

/// The document that says which test shows what; each has to be there.
const NAMED_TESTS: &str = "docs/security-tests.md";

/// Something that tidy objects to, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    place: String,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Checks the whole workspace.
///
/// # Errors
/// When the workspace can't be read, which is no finding but a failure.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut sources = String::new();
    for file in files(root)? {
        let Ok(text) = fs::read_to_string(root.join(&file)) else {
            continue; // A file that is not text, or was deleted and not yet committed.
        };
        let place = file.display().to_string();
        check_text(&place, &text, &mut findings);
        if file.extension().is_some_and(|e| e == "rs") {
            check_source(&place, &text, &mut findings);
            sources.push_str(&text);
        }
        if file.file_name().is_some_and(|n| n == "Cargo.toml") && place != "Cargo.toml" {
            check_manifest(&place, &text, &mut findings)?;
        }
    }
    let named = fs::read_to_string(root.join(NAMED_TESTS)).context(NAMED_TESTS)?;
    check_named_tests(&named, &sources, &mut findings);
    for name in PURE_CRATES {
        let place = format!("crates/{name}/clippy.toml");
        let text = fs::read_to_string(root.join(&place)).unwrap_or_default();
        check_pure(&place, &text, &mut findings);
    }
    Ok(findings)
}

/// Tracked files, and new ones that nothing ignores.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    if !output.status.success() {
        bail!(
            "git ls-files failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(text
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .collect())
}

fn check_text(place: &str, text: &str, findings: &mut Vec<Finding>) {
    for (number, line) in text.lines().enumerate() {
        for path in FOREIGN_PATHS {
            if line.contains(path) {
                findings.push(Finding {
                    place: format!("{place}:{}", number + 1),
                    what: format!("names {path}, which no user's machine has"),
                });
            }
        }
    }
}

/// What stands between backticks and looks like a test's name is one.
fn check_named_tests(document: &str, sources: &str, findings: &mut Vec<Finding>) {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    for (number, line) in document.lines().enumerate() {
        let words = line.split('`').skip(1).step_by(2);
        for name in words.filter(|word| word.len() > 20 && word.chars().all(is_part)) {
            if !sources.contains(&format!("fn {name}(")) {
                findings.push(Finding {
                    place: format!("{NAMED_TESTS}:{}", number + 1),
                    what: format!("there is no test {name}"),
                });
            }
        }
    }
}

fn check_source(place: &str, text: &str, findings: &mut Vec<Finding>) {
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(Finding {
            place: place.to_owned(),
            what: format!("has {lines} lines, more than {FILE_LINES_MAX}"),
        });
    }
    let head = text
        .lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
    if !head.is_some_and(|line| line.starts_with("//!")) {
        findings.push(Finding {
            place: place.to_owned(),
            what: "has no module head (`//!`) that says what it is for".to_owned(),
        });
    }
    for (number, line) in text.lines().enumerate() {
        for marker in MARKERS {
            if contains_word(line, marker) {
                findings.push(Finding {
                    place: format!("{place}:{}", number + 1),
                    what: format!("left-over {marker}"),
                });
            }
        }
    }
}

/// Whether `line` contains `marker`, not as a part of a longer word.
fn contains_word(line: &str, marker: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(marker).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + marker.len()..].chars().next();
        let opens = !marker.starts_with(word) || !before.is_some_and(word);
        let closes = !marker.ends_with(word) || !after.is_some_and(word);
        opens && closes
    })
}

fn check_manifest(place: &str, text: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let manifest: toml::Table =
        toml::from_str(text).with_context(|| format!("cannot parse {place}"))?;
    let Some(package) = manifest
        .get("package")
        .and_then(|p| p.get("name"))
        .and_then(toml::Value::as_str)
    else {
        bail!("{place} has no package name");
    };
    let mut finding = |what: String| {
        findings.push(Finding {
            place: place.to_owned(),
            what,
        });
    };
    let arrows = ARROWS.iter().find(|(from, _)| *from == package);
    if arrows.is_none() {
        finding(format!("{package} is not in tidy's table of arrows"));
    }
    let allowed = arrows.map_or(&[][..], |(_, to)| to);
    if !manifest.contains_key("lints") {
        finding("has no [lints]".to_owned());
    }
    for (section, for_tests) in [
        ("dependencies", false),
        ("build-dependencies", false),
        ("dev-dependencies", true),
    ] {
        let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else {
            continue;
        };
        for name in table.keys() {
            let ours = ARROWS.iter().any(|(from, _)| from == name);
            let for_tests = for_tests && TEST_CRATES.contains(&name.as_str());
            if ours && !for_tests && !allowed.contains(&name.as_str()) {
                finding(format!("{package} may not depend on {name} ({section})"));
            }
            if let Some((_, user)) = SOLE_USERS.iter().find(|(outside, _)| outside == name)
                && *user != package
            {
                finding(format!("only {user} may name {name} ({section})"));
            }
        }
    }
    Ok(())
}

fn check_pure(place: &str, text: &str, findings: &mut Vec<Finding>) {
    for banned in [
        "std::time::Instant::now",
        "std::time::SystemTime::now",
        "std::thread::sleep",
        "std::fs::File",
    ] {
        if !text.contains(banned) {
            findings.push(Finding {
                place: place.to_owned(),
                what: format!("does not ban {banned}: this crate is pure code"),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_manifest("Cargo.toml", text, &mut findings).unwrap();
        findings.into_iter().map(|f| f.what).collect()
    }

    fn source(text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_source("a.rs", text, &mut findings);
        findings.into_iter().map(|f| f.what).collect()
    }

    #[test]
    fn an_arrow_outside_the_table_is_a_finding() {
        let head = "[package]\nname = \"backlane-repo\"\n[lints]\nworkspace = true\n";
        assert_eq!(
            manifest(&format!("{head}[dependencies]\nbacklane-proto = {{}}\n")),
            [""; 0]
        );
        let found = manifest(&format!("{head}[dependencies]\nbacklane-net = {{}}\n"));
        assert!(
            found[0].contains("may not depend on backlane-net"),
            "{found:?}"
        );
        let found = manifest(&format!("{head}[dev-dependencies]\nfidelity = {{}}\n"));
        assert_eq!(found, [""; 0]);
        let found = manifest(&format!("{head}[dependencies]\nfidelity = {{}}\n"));
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn rustic_core_has_one_user() {
        let text =
            "[package]\nname = \"backlane-client\"\n[lints]\n[dependencies]\nrustic_core = {}\n";
        assert_eq!(manifest(text).len(), 1);
    }

    #[test]
    fn a_source_file_has_a_head_and_no_markers_and_is_not_too_long() {
        assert_eq!(source("//! Job.\nfn main() {}\n"), [""; 0]);
        assert_eq!(source("#![cfg(unix)]\n\n//! Job.\n"), [""; 0]);
        assert_eq!(source("fn main() {}\n").len(), 1);
        for marker in MARKERS {
            assert_eq!(
                source(&format!("//! Job.\n// {marker}\n")).len(),
                1,
                "{marker}"
            );
        }
        assert_eq!(source(concat!("//! Job.\n// MAX", "XX\n")), [""; 0]);
        let long = format!("//! Job.\n{}", "\n".repeat(FILE_LINES_MAX));
        assert_eq!(source(&long).len(), 1);
    }

    #[test]
    fn a_test_that_a_document_names_has_to_be_there() {
        let document = "| x | `nothing_is_lost_in_the_middle` and `cargo xtask sim` |\n";
        let mut findings = Vec::new();
        let sources = "fn nothing_is_lost_in_the_middle() {}";
        check_named_tests(document, sources, &mut findings);
        assert_eq!(findings, []);
        check_named_tests(document, "fn nothing_is_lost() {}", &mut findings);
        assert_eq!(findings.len(), 1);
    }

    #[test]
    fn a_foreign_path_is_a_finding_in_any_file() {
        let mut findings = Vec::new();
        check_text("README.md", concat!("see ../sha", "red/x\n"), &mut findings);
        assert_eq!(findings.len(), 1);
    }
}
