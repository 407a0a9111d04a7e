//! Which entries a backup leaves out: patterns in the manner of gitignore, files of patterns, marker files.

use crate::error::Error;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// What to leave out of a backup. A pattern is what a line of a `.gitignore` in `/` would be: `*.o` and `cache/` match
/// at any depth, `/home/*/tmp` from the root, and a later `!keep.o` takes back an earlier match.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Excludes {
    /// Patterns.
    pub patterns: Vec<String>,
    /// Files with a pattern a line, which come after `patterns`.
    pub files: Vec<PathBuf>,
    /// A directory which contains one of these is kept with this file alone.
    pub if_present: Vec<OsString>,
}

const EXCLUDE: &str = "exclude";

/// Reads patterns; `of` says what they are for.
pub(crate) fn patterns(patterns: &[String], of: &'static str) -> Result<GitignoreBuilder, Error> {
    let mut builder = GitignoreBuilder::new("/");
    for pattern in patterns {
        builder
            .add_line(None, pattern)
            .map_err(|error| Error::Pattern {
                of,
                what: pattern.clone(),
                reason: error.to_string(),
            })?;
    }
    Ok(builder)
}

/// [`Excludes`], compiled.
pub(crate) struct Excluder {
    patterns: Gitignore,
    if_present: Vec<OsString>,
}

impl Excluder {
    pub(crate) fn new(excludes: &Excludes) -> Result<Self, Error> {
        let bad = |what: String, error: ignore::Error| Error::Pattern {
            of: EXCLUDE,
            what,
            reason: error.to_string(),
        };
        let mut builder = patterns(&excludes.patterns, EXCLUDE)?;
        for file in &excludes.files {
            if let Some(error) = builder.add(file) {
                return Err(bad(file.display().to_string(), error));
            }
        }
        let built = builder.build();
        Ok(Self {
            patterns: built.map_err(|error| bad("patterns".to_owned(), error))?,
            if_present: excludes.if_present.clone(),
        })
    }

    /// Whether an entry is left out, with all below it. `path` is absolute.
    pub(crate) fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        !self.patterns.is_empty() && self.patterns.matched(path, is_dir).is_ignore()
    }

    /// Leaves nothing but the marker in a directory that has one.
    pub(crate) fn keep_marker_alone(&self, names: &mut Vec<OsString>) {
        let marker = |name: &OsStr| self.if_present.iter().any(|marker| marker == name);
        if !self.if_present.is_empty() && names.iter().any(|name| marker(name)) {
            names.retain(|name| marker(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_gitignore_of_the_root() {
        let excluder = Excluder::new(&Excludes {
            patterns: ["*.o", "cache/", "/home/*/tmp", "!keep.o"]
                .map(str::to_owned)
                .to_vec(),
            ..Excludes::default()
        })
        .unwrap();
        let check = |path: &str, is_dir, out| {
            assert_eq!(excluder.excludes(Path::new(path), is_dir), out, "{path}");
        };
        check("/a/b.o", false, true);
        check("/a/keep.o", false, false);
        check("/a/cache", true, true);
        check("/a/cache", false, false);
        check("/home/x/tmp", true, true);
        check("/srv/home/x/tmp", true, false);
    }

    #[test]
    fn a_bad_pattern_is_refused_by_name() {
        let excludes = Excludes {
            patterns: vec!["[z-a]".to_owned()],
            ..Excludes::default()
        };
        let error = Excluder::new(&excludes).err().unwrap().to_string();
        assert!(error.contains("[z-a]"), "{error}");
    }
}
