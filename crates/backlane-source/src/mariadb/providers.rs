//! The plugins that decompress pages: Debian's packages have a server load all of them.
//!
//! Invariant: which of them is loaded for a restore is a backup's word, out of a fixed list; its library is this machine's.

use super::{Error, KeyPlugin, keys::DIRECTORIES};
use std::path::{Path, PathBuf};

/// Their names, and those of their libraries.
const PROVIDERS: &[&str] = &[
    "provider_bzip2",
    "provider_lz4",
    "provider_lzma",
    "provider_lzo",
    "provider_snappy",
];

/// Of the plugins in a line `plugin_load=…` those that decompress pages, and how many others there are.
#[must_use]
pub fn loaded(line: &str) -> (Vec<&'static str>, usize) {
    let value = line.split_once('=').map_or("", |(_, value)| value);
    let plugins = value.trim().trim_matches(['"', '\'']).split(';');
    let mut providers = Vec::new();
    let mut others = 0;
    for plugin in plugins.map(str::trim).filter(|plugin| !plugin.is_empty()) {
        let (name, library) = plugin.split_once('=').unwrap_or((plugin, plugin));
        let is_it =
            |it: &&&str| [name, library].map(|name| name.trim_end_matches(".so")) == [**it; 2];
        match PROVIDERS.iter().find(is_it) {
            Some(provider) => providers.push(*provider),
            None => others += 1,
        }
    }
    (providers, others)
}

/// The directory of this machine that plugins are loaded from: with the one for keys, or with these.
///
/// # Errors
/// [`Error::NoProvider`] if one of these isn't there.
pub fn provider_directory(
    providers: &[&str],
    keys: Option<&KeyPlugin>,
) -> Result<Option<PathBuf>, Error> {
    let default = || {
        let is_there = |directory: &&&str| Path::new(directory).is_dir();
        let found = DIRECTORIES.iter().find(is_there).or(DIRECTORIES.first());
        found.filter(|_| !providers.is_empty()).map(PathBuf::from)
    };
    let directory = keys.map(|keys| keys.directory.clone()).or_else(default);
    let Some(directory) = directory else {
        return Ok(None);
    };
    let is_missing = |name: &&&str| !directory.join(format!("{name}.so")).exists();
    match providers.iter().find(is_missing) {
        Some(name) => Err(Error::NoProvider {
            name: (*name).to_owned(),
            directory,
        }),
        None => Ok(Some(directory)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decompresses_pages_is_told_from_other_plugins() {
        for (line, providers, others) in [
            (
                "plugin_load=provider_lz4=provider_lz4;provider_lzo=provider_lzo.so",
                &["provider_lz4", "provider_lzo"][..],
                0,
            ),
            ("plugin_load=\"provider_bzip2.so\"", &["provider_bzip2"], 0),
            (
                "plugin_load=provider_lz4=provider_lz4;file_key_management=file_key_management",
                &["provider_lz4"],
                1,
            ),
            ("plugin_load=provider_lz4=/tmp/provider_lz4.so", &[], 1),
            ("plugin_load=provider_lz4=other", &[], 1),
            ("plugin_load=provider_x", &[], 1),
            ("plugin_load=", &[], 0),
        ] {
            assert_eq!(loaded(line), (providers.to_vec(), others), "{line}");
        }
    }

    #[test]
    fn they_are_this_machines_own() {
        let directory = tempfile::tempdir().unwrap();
        let keys = KeyPlugin {
            name: "file_key_management".to_owned(),
            directory: directory.path().to_owned(),
            settings: Vec::new(),
        };
        assert_eq!(provider_directory(&[], None).unwrap(), None);
        let own = Some(directory.path().to_owned());
        assert_eq!(provider_directory(&[], Some(&keys)).unwrap(), own);
        let missing = provider_directory(&["provider_lz4"], Some(&keys)).unwrap_err();
        assert!(missing.to_string().contains("provider_lz4"), "{missing}");
        std::fs::write(directory.path().join("provider_lz4.so"), "").unwrap();
        assert_eq!(
            provider_directory(&["provider_lz4"], Some(&keys)).unwrap(),
            own
        );
    }
}
