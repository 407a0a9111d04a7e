//! Keys that an owner lets the server keep: one file for each host, below the server's state directory.

use crate::{
    Context,
    commands::server,
    config,
    failure::{Advise, Usage},
};
use anyhow::{Context as _, Result};
use backlane_server::{HostName, ServerConfig};
use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

const DIRECTORY: &str = "escrow";
const DIRECTORY_MODE: u32 = 0o700;

/// The place for one host's key, whether there is one in it or not.
pub(crate) struct Escrow {
    host: HostName,
    path: PathBuf,
}

impl Escrow {
    /// The place for a host's key at a server.
    pub(crate) fn of(config: &ServerConfig, host: &HostName) -> Self {
        Self {
            path: config.state.join(DIRECTORY).join(host.as_str()),
            host: host.clone(),
        }
    }

    /// The same, at the server of this machine.
    pub(super) fn open(host: &str, context: &Context) -> Result<Self> {
        let host: HostName = host.parse().map_err(|error| Usage(format!("{error}")))?;
        let state = context.runtime.block_on(server::open_state(context))?;
        Ok(Self::of(state.config(), &host))
    }

    pub(crate) fn host(&self) -> &HostName {
        &self.host
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a key in it.
    pub(crate) fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// The key in it.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub(crate) fn key(&self) -> Result<Zeroizing<String>> {
        if !self.exists() {
            let host = &self.host;
            return Err(anyhow::anyhow!(
                "the server has no key of {host}: none is in escrow"
            ))
            .advise(format!(
                "name the host's key file with --key-file, or let the server keep it: \
                     `backlane key escrow --host {host} --key-file FILE`"
            ));
        }
        config::read_key(&self.path)
    }

    /// Keeps a key.
    pub(super) fn keep(&self, key: &str) -> Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        config::sync_directory_of(directory)?;
        config::write_secret(&self.path, &Zeroizing::new(format!("{key}\n")))
    }

    /// Removes the key.
    pub(super) fn remove(&self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| {
            format!(
                "cannot remove the key of {} in {}",
                self.host,
                self.path.display()
            )
        })?;
        config::sync_directory_of(&self.path)
    }
}
