//! A client's configuration file, and the files that it leads to: keys, certificates, the repository's key.
//!
//! Unknown fields are refused by name, so that a mistyped one is not a default. Files with secrets must belong to
//! their owner alone. What a server reads is in `backlane-server`.

use crate::failure::{Advise, Hint};
use anyhow::{Context as _, Result, bail};
use backlane_client::{AccessTimes, Compression, CompressionRule, Excludes, FileSystems};
use backlane_net::{
    Authority, ClientConfig, EngineChoice, Identity, IdentityError, Limits, PoolChoice,
    identity::read_secret,
};
use backlane_proto::RoutePolicy;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Where the configuration is unless somebody says otherwise.
const CONFIG_PATH: &str = "/etc/backlane/client.toml";
/// The repository's key file is one line; what is longer is something else.
const KEY_BYTES_MAX: usize = 4096;
/// Random bytes of a repository's key.
const KEY_BYTES: usize = 32;
/// Mode of a file with a secret.
pub(crate) const SECRET_MODE: u32 = 0o600;

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ClientFile {
    /// `HOST:PORT` of the server.
    pub(crate) server: String,
    /// Directory of this host's keys and certificates.
    pub(crate) state: PathBuf,
    /// The repository's key file; `repository.key` in the state directory if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repository_key: Option<PathBuf>,
    /// Which route bodies take, unless a command says otherwise.
    #[serde(default)]
    pub(crate) route: Route,
    /// How long a job waits, in its middle, for a route that it may take: `10m`, say.
    #[serde(default, with = "duration", skip_serializing_if = "Option::is_none")]
    pub(crate) route_wait: Option<Duration>,
    /// What bodies may take of the network in a second, both ways together: `20M`, say.
    #[serde(
        default,
        with = "crate::sizes::limit",
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) limit_network: Option<u64>,
    /// The same of the shared storage.
    #[serde(
        default,
        with = "crate::sizes::limit",
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) limit_storage: Option<u64>,
    /// The pool shared with the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pool: Option<PoolSection>,
    /// What backups leave out, and how they read.
    #[serde(default)]
    pub(crate) backup: BackupSection,
}

/// The route policy, as it stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Route {
    #[default]
    PreferStorage,
    RequireStorage,
    Network,
    StorageOnly,
}

impl From<Route> for RoutePolicy {
    fn from(route: Route) -> Self {
        match route {
            Route::PreferStorage => Self::PreferStorage,
            Route::RequireStorage => Self::RequireStorage,
            Route::Network => Self::Network,
            Route::StorageOnly => Self::StorageOnly,
        }
    }
}

/// The pool, as this host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct PoolSection {
    /// The pool's UUID: devices of any other are refused.
    pub(crate) uuid: String,
    /// Paths of its devices.
    pub(crate) devices: Vec<PathBuf>,
    /// The slots that the server gave to this host.
    pub(crate) slots: Vec<u32>,
}

/// Defaults for `backlane backup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct BackupSection {
    /// Whether other file systems are entered.
    pub(crate) file_systems: FileSystems,
    /// Whether access times are kept.
    pub(crate) access_times: AccessTimes,
    /// What is left out.
    pub(crate) excludes: Excludes,
    /// Don't take a file for changed because its time of change is another.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ignore_ctime: bool,
    /// Nor because its inode is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ignore_inode: bool,
    /// How files are compressed: `auto`, `off`, or a level from 1 to 19.
    pub(crate) compression: Compression,
    /// Which are compressed in another way; the last one that matches counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) compression_rules: Vec<CompressionRule>,
    /// What a backup may take of memory: `512M`, say.
    #[serde(with = "crate::sizes::memory", skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<u64>,
    /// A shell's command to run before anything is read; if it fails, nothing is backed up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<String>,
    /// One to run afterwards, whatever came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<String>,
}

/// Durations as people write them.
mod duration {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => to.collect_str(&humantime::format_duration(*duration)),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text)
            .map(Some)
            .map_err(|error| D::Error::custom(format!("`{text}` is no duration: {error}")))
    }
}

/// The files below a client's state directory.
pub(crate) struct StateFiles {
    /// This host's private key.
    pub(crate) key: PathBuf,
    /// Its certificate.
    pub(crate) certificate: PathBuf,
    /// The certificate of the server's authority.
    pub(crate) authority: PathBuf,
    /// The repository's key file.
    pub(crate) repository_key: PathBuf,
    /// Where processes of this host lock the slots that they take.
    pub(crate) locks: PathBuf,
}

impl StateFiles {
    /// The names of the files below `state`.
    pub(crate) fn below(state: &Path) -> Self {
        Self {
            key: state.join("host.key"),
            certificate: state.join("host.pem"),
            authority: state.join("ca.pem"),
            repository_key: state.join("repository.key"),
            locks: state.join("locks"),
        }
    }
}

/// The file that the user named, or else the usual one.
pub(crate) fn path(named: Option<&Path>) -> PathBuf {
    named.unwrap_or(Path::new(CONFIG_PATH)).to_owned()
}

impl ClientFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When there is none, or it has something that can't be used; the message names file and place.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))
            .advise("has this host joined a server? `backlane join` does that; --config names another file")?;
        Self::parse(&text).with_context(|| format!("in the configuration {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    /// The text of the file, for a person to edit.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub(crate) fn text(&self) -> Result<String> {
        let body = toml::to_string(self).context("a configuration must be UTF-8")?;
        Ok(format!(
            "# Backlane client. What is not said here has its default.\n{body}"
        ))
    }

    /// Where the repository's key file is.
    pub(crate) fn repository_key(&self) -> PathBuf {
        let default = || StateFiles::below(&self.state).repository_key;
        self.repository_key.clone().unwrap_or_else(default)
    }

    /// What a session is opened with; `engine` does the I/O on the pool.
    ///
    /// # Errors
    /// When keys or certificates can't be read or used.
    pub(crate) fn session(&self, engine: EngineChoice) -> Result<ClientConfig> {
        let files = StateFiles::below(&self.state);
        let identity = Identity::load(&files.certificate, &files.key)?;
        let authority = Authority::load(&files.authority)?;
        let mut session = ClientConfig::new(&self.server, identity, authority);
        session.policy = self.route.into();
        if let Some(wait) = self.route_wait {
            session.route_wait = wait;
        }
        session.limits = Limits {
            network: self.limit_network,
            storage: self.limit_storage,
        };
        session.pool = match &self.pool {
            None => None,
            Some(pool) => Some(PoolChoice {
                uuid: Some(
                    Uuid::parse_str(&pool.uuid).with_context(|| format!("pool `{}`", pool.uuid))?,
                ),
                devices: pool.devices.clone(),
                slots: pool.slots.clone(),
                lock_dir: files.locks,
                engine,
            }),
        };
        Ok(session)
    }
}

/// Reads a repository's key file, which must be its reader's alone.
///
/// # Errors
/// When it can't be read, others may read it too, or it holds no key.
pub(crate) fn read_key(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = read_secret(path).map_err(|error| {
        let hint = match error {
            IdentityError::KeyExposed { .. } => format!("chmod 600 {}", path.display()),
            IdentityError::KeyForeign { reader, .. } => {
                format!("chown {reader} {}", path.display())
            }
            _ => "it was made by `backlane join`; put the copy back that you kept elsewhere, or \
                  make it from the recovery sheet with `backlane key recover`"
                .to_owned(),
        };
        anyhow::Error::new(error)
            .context(format!(
                "cannot read the repository's key file {}",
                path.display()
            ))
            .context(Hint::new(hint))
    })?;
    // As restic reads a password file.
    let key = str::from_utf8(&bytes).unwrap_or_default().trim();
    if key.is_empty() || key.contains('\n') || key.len() > KEY_BYTES_MAX {
        bail!("{} holds no key: it must have one line", path.display());
    }
    Ok(Zeroizing::new(key.to_owned()))
}

/// A new repository's key: random, in letters and digits, as it stands in a key file.
///
/// # Errors
/// When the system has no randomness.
pub(crate) fn new_key() -> Result<Zeroizing<String>> {
    let mut random = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut *random).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(Zeroizing::new(hex::encode(*random)))
}

/// Writes a secret to a new file, its owner's alone, and returns when both the file and its name are durable. A file that
/// can't be written whole goes again.
///
/// # Errors
/// When the file exists, or can't be written.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(SECRET_MODE);
    let mut file = options
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
        .and_then(|()| sync_directory_of(path));
    if written.is_err() {
        // The failure that led here is what is told.
        let _ = fs::remove_file(path);
    }
    written
}

/// Makes the names in a file's directory durable.
///
/// # Errors
/// When that fails.
pub(crate) fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn example() -> ClientFile {
        ClientFile {
            server: "store.example:4870".to_owned(),
            state: "/state \"one\"".into(),
            repository_key: None,
            route: Route::RequireStorage,
            route_wait: Some(Duration::from_secs(90)),
            limit_network: Some(20 << 20),
            limit_storage: None,
            pool: Some(PoolSection {
                uuid: Uuid::from_u128(7).to_string(),
                devices: vec!["/dev/a".into(), "/dev/b".into()],
                slots: vec![4, 5],
            }),
            backup: BackupSection {
                ignore_ctime: true,
                compression: Compression::Level(9),
                memory: Some(1 << 30),
                compression_rules: vec!["off:*.jpg".parse().unwrap()],
                ..BackupSection::default()
            },
        }
    }

    #[test]
    fn written_configuration_is_read_back() {
        let text = example().text().unwrap();
        assert_eq!(ClientFile::parse(&text).unwrap(), example(), "{text}");
    }

    #[test]
    fn only_server_and_state_must_be_said_and_nothing_unknown_is_taken() {
        let text = "server = \"a:1\"\nstate = \"/s\"\n";
        let file = ClientFile::parse(text).unwrap();
        assert_eq!(file.route, Route::PreferStorage);
        assert_eq!(file.repository_key(), Path::new("/s/repository.key"));
        let error = ClientFile::parse(&format!("{text}rout = \"network\"\n")).unwrap_err();
        assert!(error.to_string().contains("rout"), "{error}");
    }

    #[test]
    fn compression_is_a_word_or_a_number() {
        let backup = |compression: &str| {
            let head = "server = \"a:1\"\nstate = \"/s\"\n[backup]\n";
            let file = ClientFile::parse(&format!("{head}compression = {compression}\n"));
            file.map(|file| file.backup.compression)
        };
        assert_eq!(backup("12").unwrap(), Compression::Level(12));
        assert_eq!(backup("\"off\"").unwrap(), Compression::Off);
        for bad in ["20", "\"fast\"", "1.5", "true"] {
            assert!(backup(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn key_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "secret\n").unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for bad in [0o640, 0o604, 0o700] {
            mode(bad);
            let error = read_key(&path).unwrap_err();
            assert!(
                format!("{error:#}").contains(&format!("mode {bad:o}")),
                "{error:#}"
            );
        }
        for good in [0o600, 0o400] {
            mode(good);
            assert_eq!(*read_key(&path).unwrap(), "secret");
        }
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(*read_key(&link).unwrap(), "secret");
        // Only root can give a file away.
        if std::os::unix::fs::chown(&path, Some(65534), None).is_ok() {
            for path in [&path, &link] {
                let error = read_key(path).unwrap_err();
                assert!(format!("{error:#}").contains("user 65534"), "{error:#}");
            }
        }
    }

    #[test]
    fn a_new_key_file_is_its_owners_alone_and_none_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = new_key().unwrap();
        assert_ne!(*key, *new_key().unwrap());
        write_secret(&path, &format!("{}\n", *key)).unwrap();
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(*read_key(&path).unwrap(), *key);
        let error = write_secret(&path, "other\n").unwrap_err();
        assert!(format!("{error:#}").contains("exists"), "{error:#}");
        assert_eq!(*read_key(&path).unwrap(), *key);
    }
}
