//! `backlane join`: enrols this host with a token, and makes the key of its repository.
//!
//! The token is asked for, or read from a file; it is never an argument, which every user of the machine could see.
//! Nothing that exists is overwritten, and a join that failed leaves nothing that a second try would stumble over.

use super::{
    pool,
    server::{absolute, new_file},
};
use crate::{
    Context,
    cli::JoinArgs,
    config::{
        self, BackupSection, ClientFile, PoolSection, Route, SECRET_MODE, StateFiles,
        sync_directory_of,
    },
    failure::Advise,
    output::Outcome,
};
use anyhow::{Context as _, Result, bail};
use backlane_net::{EnrolledHost, PoolChoice, token::JoinToken};
use serde::Serialize;
use std::{
    fs::{self, DirBuilder, File},
    io::{IsTerminal, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

const ENROLL_TIMEOUT: Duration = Duration::from_secs(30);
/// A token is much shorter; whatever is longer is something else.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
const STATE_MODE: u32 = 0o700;
const PUBLIC_MODE: u32 = 0o644;

#[derive(Serialize)]
struct JoinDocument {
    host: String,
    server: String,
    pool: Option<String>,
    slots: Vec<u32>,
    config: PathBuf,
    repository_key: PathBuf,
}

/// Enrols this host.
///
/// # Errors
/// When the token is refused, or something can't be written.
pub(crate) fn run(args: &JoinArgs, context: &Context) -> Result<Outcome> {
    let config_path = config::path(context.config.as_deref());
    let state = absolute(&args.state)?;
    let devices = args
        .devices
        .iter()
        .map(|d| absolute(d))
        .collect::<Result<Vec<_>>>()?;
    check_nothing_is_there(&config_path, &StateFiles::below(&state))?;
    let token = JoinToken::decode(&read_token(args.token_file.as_deref())?)
        .context("cannot use the join token")
        .advise("`backlane server enroll HOST` prints one; copy all of it")?;
    // Before the token is used up: a device that can't be used is better known now.
    let seen = match &devices[..] {
        [] => None,
        devices => Some(pool::inspect(devices)?.uuid),
    };
    let key = repository_key(args.key_file.as_deref())?;
    let mut made = Made::default();
    make_directory(&state)?;
    // Before the token is used up, too: what can't be written is better known now.
    let files = StateFiles::below(&state);
    made.write(
        &files.repository_key,
        Zeroizing::new(format!("{}\n", *key)).as_bytes(),
        SECRET_MODE,
    )?;
    let mut config_file = new_file(&config_path)?;
    made.paths.push(config_path.clone());
    let host = context.runtime.block_on(async {
        tokio::select! {
            host = enroll(&token, args.slot, &devices, &state, context) => {
                host.with_context(|| format!("cannot enrol at server {} with this token", token.server))
            }
            () = context.cancel.wait() => bail!("interrupted"),
        }
    })?;
    let pool = pool_section(&host, seen, devices, context);
    let file = ClientFile {
        server: token.server.clone(),
        state: state.clone(),
        repository_key: None,
        route_wait: None,
        limit_network: None,
        limit_storage: None,
        route: match args.slot {
            Some(_) => Route::StorageOnly,
            None => Route::default(),
        },
        pool,
        backup: BackupSection::default(),
    };
    made.write(&files.key, host.key_pem.as_bytes(), SECRET_MODE)?;
    made.write(
        &files.certificate,
        host.certificate_pem.as_bytes(),
        PUBLIC_MODE,
    )?;
    made.write(&files.authority, host.authority_pem.as_bytes(), PUBLIC_MODE)?;
    config_file
        .write_all(file.text()?.as_bytes())
        .and_then(|()| config_file.sync_all())
        .with_context(|| format!("cannot write {}", config_path.display()))?;
    // The names as well as the bytes: nothing brings a lost key back.
    sync_directory_of(&files.repository_key)?;
    sync_directory_of(&config_path)?;
    made.keep();
    let document = JoinDocument {
        host: host.host,
        server: token.server.clone(),
        pool: file.pool.as_ref().map(|pool| pool.uuid.clone()),
        slots: host.slots,
        config: config_path,
        repository_key: files.repository_key,
    };
    context.output.result(&document, JoinDocument::text)?;
    Ok(Outcome::Done)
}

/// By network, or through the pool where a slot was given.
async fn enroll(
    token: &JoinToken,
    slot: Option<u32>,
    devices: &[PathBuf],
    state: &Path,
    context: &Context,
) -> Result<EnrolledHost, backlane_net::Error> {
    let Some(slot) = slot else {
        return backlane_net::enroll(token, ENROLL_TIMEOUT).await;
    };
    let pool = PoolChoice {
        uuid: None,
        devices: devices.to_vec(),
        slots: vec![slot],
        lock_dir: StateFiles::below(state).locks,
        engine: context.pool_engine,
    };
    backlane_net::enroll_through(token, pool, ENROLL_TIMEOUT).await
}

impl JoinDocument {
    fn text(&self) -> String {
        let pool = match &self.pool {
            Some(pool) => pool.as_str(),
            None => "none: jobs will take the network",
        };
        format!(
            "{} is enrolled at {}\n  configuration   {}\n  pool            {pool}\n  repository key  {key}\n\n\
             Without {key} no backup of this host can ever be read; the server does not have it.\n\
             After the first backup, print it and keep it elsewhere: `backlane key sheet --print`.\n",
            self.host,
            self.server,
            self.config.display(),
            key = self.repository_key.display(),
        )
    }
}

fn check_nothing_is_there(config: &Path, files: &StateFiles) -> Result<()> {
    let paths = [
        config,
        &files.key,
        &files.certificate,
        &files.authority,
        &files.repository_key,
    ];
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(path) => Err(anyhow::anyhow!(
            "{} exists: this host has joined before",
            path.display()
        ))
        .advise("move it away to join again, and keep repository.key: --key-file takes it"),
    }
}

fn read_token(file: Option<&Path>) -> Result<Zeroizing<String>> {
    let mut token = Zeroizing::new(String::new());
    match file {
        None if std::io::stdin().is_terminal() => {
            token = rpassword::prompt_password("Join token: ")
                .map(Zeroizing::new)
                .context("cannot read the join token")?;
        }
        None => {
            return Err(anyhow::anyhow!(
                "there is no terminal to ask for the join token"
            ))
            .advise("--token-file FILE reads it from a file, --token-file - from standard input");
        }
        Some(path) if path == Path::new("-") => {
            std::io::stdin()
                .take(TOKEN_BYTES_MAX)
                .read_to_string(&mut token)
                .context("cannot read the join token from standard input")?;
        }
        Some(path) => {
            File::open(path)
                .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut token))
                .with_context(|| format!("cannot read the join token from {}", path.display()))?;
        }
    }
    Ok(token)
}

/// A key from an earlier life of this host, or a new one.
fn repository_key(file: Option<&Path>) -> Result<Zeroizing<String>> {
    match file {
        Some(path) => config::read_key(path),
        None => config::new_key(),
    }
}

/// The configuration's section about the pool, where both sides have one and the same.
fn pool_section(
    host: &EnrolledHost,
    seen: Option<uuid::Uuid>,
    devices: Vec<PathBuf>,
    context: &Context,
) -> Option<PoolSection> {
    match (seen, host.pool) {
        (None, Some(_)) => {
            context.output.warning(
                "no --device was named: jobs will take the network until the configuration has a section [pool]",
            );
            None
        }
        (None, None) => None,
        (Some(seen), served) => {
            if served != Some(seen) {
                let served = served.map_or_else(|| "none".to_owned(), |pool| pool.to_string());
                context.output.warning(format!(
                    "these are devices of pool {seen}; the server coordinates {served}: jobs will take the network"
                ));
            }
            Some(PoolSection {
                uuid: seen.to_string(),
                devices,
                slots: host.slots.clone(),
            })
        }
    }
}

fn make_directory(state: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(STATE_MODE)
        .create(state)
        .with_context(|| format!("cannot make {}", state.display()))
}

/// Files that were made, and go again unless all of them were.
#[derive(Default)]
struct Made {
    paths: Vec<PathBuf>,
}

impl Made {
    fn write(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        self.paths.push(path.to_owned());
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.paths {
            // The failure that led here is what is told.
            let _ = fs::remove_file(path);
        }
    }
}
