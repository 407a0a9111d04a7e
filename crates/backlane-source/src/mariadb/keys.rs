//! The plugin that gives a server the keys of its encrypted tables, as an option file of this machine says it.
//!
//! Invariant: which plugin is loaded, from where and with which settings is never a backup's word.

use super::{Error, Tool};
use std::path::{Path, PathBuf};

/// What the names of such plugins end with.
const KIND: &str = "key_management";

/// Where plugins are, if the option file doesn't say.
pub(super) const DIRECTORIES: &[&str] = &["/usr/lib/mysql/plugin", "/usr/lib64/mysql/plugin"];

/// A plugin for keys, with its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlugin {
    /// Its name, which that of its library is.
    pub name: String,
    /// Where its library is.
    pub directory: PathBuf,
    /// Its settings, as lines of an option file.
    pub settings: Vec<String>,
}

impl KeyPlugin {
    /// Reads which one an option file names for servers.
    ///
    /// # Errors
    /// [`Error::NoProgram`] or [`Error::Failed`] of `my_print_defaults`, which reads such files; [`Error::NoKeyPlugin`].
    pub fn read(file: &Path) -> Result<Self, Error> {
        let mut option = std::ffi::OsString::from("--defaults-file=");
        option.push(file);
        let mut command = std::process::Command::new(Tool::Options.name());
        let output = command
            .args([option.as_os_str(), "--mysqld".as_ref()])
            .output();
        let output = output.map_err(|error| Tool::Options.cannot_start(error))?;
        if !output.status.success() {
            let said = Tool::Options.listen(&output.stderr[..]);
            return Err(Tool::Options.failed(output.status, said));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Self::understand(&text).ok_or_else(|| Error::NoKeyPlugin {
            path: file.to_owned(),
        })
    }

    /// Understands options, one a line.
    fn understand(text: &str) -> Option<Self> {
        let mut name = None;
        let mut directory = None;
        let mut settings = Vec::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("--")) {
            let (option, value) = line.split_once('=').unwrap_or((line, ""));
            let option = option.replace('-', "_");
            match option.as_str() {
                "plugin_load" | "plugin_load_add" => name = library(value).or(name),
                "plugin_dir" => directory = Some(PathBuf::from(value)),
                _ if is_setting(&option) => settings.push(match value {
                    "" => option,
                    value => format!("{option}={}", quoted(value)),
                }),
                _ => {}
            }
        }
        let name = name?;
        let file = format!("{name}.so");
        let default = || {
            let is_there = |directory: &&&str| Path::new(directory).join(&file).exists();
            DIRECTORIES.iter().find(is_there).map(PathBuf::from)
        };
        Some(Self {
            directory: directory.or_else(default)?,
            name,
            settings,
        })
    }
}

/// A value as it stands in an option file: there backslashes begin words of their own, and `#` a comment, but in quotes.
fn quoted(value: &str) -> String {
    let quote = match value.contains('"') {
        true => '\'',
        false => '"',
    };
    format!("{quote}{}{quote}", value.replace('\\', r"\\"))
}

/// The first library among those to load that gives keys.
fn library(value: &str) -> Option<String> {
    let plugins = value.trim_matches(['"', '\'']).split(';');
    let libraries = plugins.map(|plugin| plugin.rsplit_once('=').map_or(plugin, |(_, file)| file));
    let mut names = libraries.map(|file| file.trim().trim_end_matches(".so"));
    let is_plain = |name: &&str| name.ends_with(KIND) && !name.contains('/');
    names.find(is_plain).map(str::to_owned)
}

/// Whether an option, written with underscores, is one of such a plugin.
#[must_use]
pub fn is_setting(option: &str) -> bool {
    option.contains("key_management_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_the_same_when_they_are_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.cnf");
        for key in ["pa #ss", r"C:\\temp\\new", "it's", r#"a \"b"#] {
            let text = format!(
                "[mysqld]\nplugin_dir=/p\nplugin_load_add=file_key_management\nfile_key_management_filekey={}\n",
                quoted(key)
            );
            std::fs::write(&path, text).unwrap();
            let once = KeyPlugin::read(&path).unwrap();
            let again = format!(
                "[mysqld]\nplugin_dir=/p\nplugin_load={}\n{}\n",
                once.name,
                once.settings.join("\n")
            );
            std::fs::write(&path, again).unwrap();
            assert_eq!(KeyPlugin::read(&path).unwrap(), once, "{key}");
            assert_eq!(
                once.settings,
                [format!("file_key_management_filekey={}", quoted(key))]
            );
        }
    }

    #[test]
    fn a_plugin_for_keys_is_found_among_the_settings_of_a_server() {
        let text = "--port=3306\n--plugin_load_add=server_audit\n--plugin-load-add=file_key_management.so\n\
            --loose-file-key-management-filename=/etc/mysql/keys\n--file_key_management_use_pbkdf2\n\
            --plugin-dir=/opt/plugins\n--innodb_encrypt_tables=ON\n";
        let found = KeyPlugin::understand(text).unwrap();
        assert_eq!(found.name, "file_key_management");
        assert_eq!(found.directory, Path::new("/opt/plugins"));
        let settings = [
            "loose_file_key_management_filename=\"/etc/mysql/keys\"",
            "file_key_management_use_pbkdf2",
        ];
        assert_eq!(found.settings, settings);
        let one = "--plugin_dir=/p\n--plugin_load=a=b.so;keys=hashicorp_key_management.so\n";
        let one = KeyPlugin::understand(one).unwrap();
        assert_eq!(one.name, "hashicorp_key_management");
        for none in [
            "--port=3306\n",
            "--plugin_dir=/p\n--plugin_load_add=server_audit\n",
            "--plugin_dir=/p\n--plugin_load_add=/tmp/key_management.so\n",
        ] {
            assert_eq!(KeyPlugin::understand(none), None, "{none}");
        }
    }
}
