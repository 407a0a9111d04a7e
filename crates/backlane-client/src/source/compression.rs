//! Which files are compressed in another way than all others.

use super::exclude::patterns;
use crate::error::Error;
use backlane_repo::Compression;
use ignore::gitignore::Gitignore;
use serde::{Deserialize, Serialize};
use std::{path::Path, str::FromStr};

/// How files that match one of some patterns are compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CompressionRule {
    /// Of the form of [`super::exclude::Excludes::patterns`].
    pub patterns: Vec<String>,
    /// How.
    pub compression: Compression,
}

/// `LEVEL:PATTERN`.
impl FromStr for CompressionRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (compression, pattern) = text
            .split_once(':')
            .ok_or("it is not of the form `LEVEL:PATTERN`")?;
        let compression = compression
            .parse()
            .map_err(|what| format!("`{compression}` is {what}"))?;
        Ok(Self {
            patterns: vec![pattern.to_owned()],
            compression,
        })
    }
}

/// [`CompressionRule`]s, compiled.
pub(crate) struct Rules(Vec<(Gitignore, Compression)>);

impl Rules {
    pub(crate) fn new(rules: &[CompressionRule]) -> Result<Self, Error> {
        let compile = |rule: &CompressionRule| {
            let builder = patterns(&rule.patterns, "compression rule")?;
            let patterns = builder.build().map_err(|error| Error::Pattern {
                of: "compression rule",
                what: rule.patterns.join(" "),
                reason: error.to_string(),
            })?;
            Ok((patterns, rule.compression))
        };
        rules
            .iter()
            .map(compile)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What the last rule says that matches a file, or a directory that it is in. `path` is absolute.
    pub(crate) fn of(&self, path: &Path) -> Option<Compression> {
        let matches = |patterns: &Gitignore| {
            let matched = patterns.matched_path_or_any_parents(path, false);
            matched.is_ignore()
        };
        let rule = self.0.iter().rfind(|(patterns, _)| matches(patterns));
        rule.map(|(_, compression)| *compression)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_matches_counts() {
        let rules =
            ["off:*.jpg", "19:/var/log/", "auto:keep.jpg"].map(|rule| rule.parse().unwrap());
        let rules = Rules::new(&rules).unwrap();
        let of = |path: &str| rules.of(Path::new(path));
        assert_eq!(of("/home/a.jpg"), Some(Compression::Off));
        assert_eq!(of("/home/keep.jpg"), Some(Compression::Auto));
        assert_eq!(of("/var/log/deep/messages"), Some(Compression::Level(19)));
        assert_eq!(of("/var/log/a.jpg"), Some(Compression::Level(19)));
        assert_eq!(of("/var/logs"), None);
        assert_eq!(of("/srv/x"), None);
    }

    #[test]
    fn a_rule_that_says_nothing_is_refused() {
        for (text, why) in [
            ("*.jpg", "LEVEL:PATTERN"),
            ("20:*.jpg", "a level from 1 to 19"),
            ("fast:*.jpg", "`fast`"),
        ] {
            let error = text.parse::<CompressionRule>().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let rule = "off:[z-a]".parse().unwrap();
        let error = Rules::new(&[rule]).err().unwrap().to_string();
        assert!(error.contains("compression rule [z-a]"), "{error}");
    }
}
