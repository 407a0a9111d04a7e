//! `backlane key`: the keys of a repository, and what brings one back.
//!
//! What changes keys runs on the server's machine with the repository held alone, as forget and prune do. A key file is
//! written before its key is added, so that no key is without one.

mod escrow;
mod recover;
mod sheet;

pub(super) use escrow::Escrow;

use super::maintain::hold_with;
use crate::{
    Context,
    cli::{KeyAddArgs, KeyCommand, KeyEscrowArgs, KeyRemoveArgs, KeyedArgs},
    config,
    failure::Advise,
    output::{Outcome, table},
};
use anyhow::{Context as _, Result};
use backlane_repo::KeyInfo;
use backlane_server::Removal;
use serde::Serialize;
use std::{fs, path::PathBuf};
use zeroize::Zeroizing;

/// Runs one of the commands about keys.
///
/// # Errors
/// When it can't be done.
pub(crate) fn run(command: &KeyCommand, context: &Context) -> Result<Outcome> {
    match command {
        KeyCommand::List(args) => list(args, context),
        KeyCommand::Add(args) => add(args, context),
        KeyCommand::Remove(args) => remove(args, context),
        KeyCommand::Escrow(args) => escrow(args, context),
        KeyCommand::Sheet(args) => recover::sheet(args, context),
        KeyCommand::Recover(args) => recover::recover(args, context),
    }
}

#[derive(Serialize)]
struct ListDocument {
    host: String,
    /// Whether a copy of a key file is on the server.
    escrow: bool,
    keys: Vec<KeyInfo>,
}

/// A key that is removed must open nothing any more: it can't be had back.
const KEYS_GO: Removal = Removal::Final;

fn list(args: &KeyedArgs, context: &Context) -> Result<Outcome> {
    let held = hold_with(&args.host, args.key_file.as_deref(), KEYS_GO, context)?;
    let document = ListDocument {
        host: held.host.to_string(),
        escrow: held.escrow.exists(),
        keys: held.repository.keys()?,
    };
    context.output.result(&document, ListDocument::text)?;
    let damaged = document.keys.iter().filter(|key| key.damage.is_some());
    Ok(Outcome::from_warnings(damaged.count() as u64))
}

impl ListDocument {
    fn text(&self) -> String {
        let mut rows = vec![
            ["key", "host", "user", "made", ""]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(self.keys.iter().map(|key| {
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "–".to_owned());
            let what = match (&key.damage, key.is_open) {
                (Some(_), _) => "damaged",
                (None, true) => "open",
                (None, false) => "",
            };
            vec![
                key.id.to_string()[..8].to_owned(),
                or_none(&key.host),
                or_none(&key.user),
                or_none(&key.created),
                what.to_owned(),
            ]
        }));
        let escrow = match self.escrow {
            true => "a key is in escrow on this server",
            false => "no key is in escrow",
        };
        format!("{}{escrow}\n", table(&rows))
    }
}

#[derive(Serialize)]
struct AddDocument {
    host: String,
    key: String,
    key_file: PathBuf,
}

fn add(args: &KeyAddArgs, context: &Context) -> Result<Outcome> {
    let keyed = &args.repository;
    let held = hold_with(&keyed.host, keyed.key_file.as_deref(), KEYS_GO, context)?;
    let path = &args.new_key_file;
    let password = config::new_key()?;
    config::write_secret(path, &Zeroizing::new(format!("{}\n", *password)))?;
    let added = held.repository.add_key(&password, held.host.as_str());
    let id = match added {
        Ok(id) => id,
        Err(error) => {
            // It opens nothing.
            let _ = fs::remove_file(path);
            return Err(error).context(format!("cannot add a key for {}", held.host));
        }
    };
    let document = AddDocument {
        host: held.host.to_string(),
        key: id.to_string(),
        key_file: path.clone(),
    };
    context.output.result(&document, |document| {
        format!(
            "key {} opens the repository of {} with {}\n\
             move the file to where it is wanted; it is not needed here\n",
            &document.key[..8],
            document.host,
            document.key_file.display()
        )
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct RemoveDocument {
    host: String,
    key: String,
}

fn remove(args: &KeyRemoveArgs, context: &Context) -> Result<Outcome> {
    let keyed = &args.repository;
    let held = hold_with(&keyed.host, keyed.key_file.as_deref(), KEYS_GO, context)?;
    let id = held.repository.remove_key(&args.id)?;
    let document = RemoveDocument {
        host: held.host.to_string(),
        key: id.to_string(),
    };
    context.output.result(&document, |document| {
        format!(
            "key {} is removed: its key file no longer opens the repository of {}\n",
            &document.key[..8],
            document.host
        )
    })?;
    if held.escrow.exists() && !held.opens_with(&held.escrow.key()?)? {
        context.output.warning(
            "the key in escrow was that one: `backlane key escrow --remove`, and put another there if you want one",
        );
        return Ok(Outcome::Warnings);
    }
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct EscrowDocument {
    host: String,
    escrow: bool,
    path: PathBuf,
}

fn escrow(args: &KeyEscrowArgs, context: &Context) -> Result<Outcome> {
    let escrow = match &args.key_file {
        None => {
            let escrow = Escrow::open(&args.host, context)?;
            escrow.remove()?;
            escrow
        }
        Some(file) => {
            // Held, so that it was seen to open the repository.
            let held = hold_with(&args.host, Some(file), KEYS_GO, context)?;
            let key = config::read_key(file)?;
            held.escrow
                .keep(&key)
                .advise("`backlane key escrow --remove` removes the one that is there")?;
            held.escrow
        }
    };
    let document = EscrowDocument {
        host: escrow.host().to_string(),
        escrow: escrow.exists(),
        path: escrow.path().to_owned(),
    };
    context.output.result(&document, |document| match document.escrow {
        true => format!(
            "the key of {} is in escrow at {}: whoever has this server can read the host's backups\n",
            document.host,
            document.path.display()
        ),
        false => format!("no key of {} is in escrow any more\n", document.host),
    })?;
    Ok(Outcome::Done)
}
