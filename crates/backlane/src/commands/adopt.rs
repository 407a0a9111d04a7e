//! `backlane server adopt`: repositories that are there and that the server doesn't know.

use super::{
    key::Escrow,
    maintain::Held,
    server::{host_name, open_state},
};
use crate::{
    Context,
    cli::AdoptArgs,
    config,
    output::{Outcome, bytes, table},
};
use anyhow::Result;
use backlane_server::{Adopted, HostName, ServerState};
use serde::Serialize;

#[derive(Serialize)]
struct AdoptDocument {
    hosts: Vec<AdoptedDocument>,
}

#[derive(Serialize)]
struct AdoptedDocument {
    host: String,
    /// Objects that the server didn't know.
    objects: u64,
    bytes: u64,
    /// Packs of which nothing says what they hold.
    packs_unknown: u64,
}

pub(super) fn adopt(args: &AdoptArgs, context: &Context) -> Result<Outcome> {
    let state = context.runtime.block_on(open_state(context))?;
    let hosts = match &args.host {
        Some(host) => vec![host_name(host)?],
        None => {
            let found = state.repositories()?;
            for other in &found.others {
                context
                    .output
                    .warning(format!("{} is no repository of a host", other.display()));
            }
            found.hosts
        }
    };
    let mut document = AdoptDocument { hosts: Vec::new() };
    let mut failed = false;
    for host in &hosts {
        context.check_cancelled()?;
        // One host's trouble is no reason to leave the others out.
        match adopt_one(&state, host, args, context) {
            Ok(adopted) => document.hosts.push(adopted),
            Err(error) if args.host.is_none() => {
                failed = true;
                context
                    .output
                    .warning(format!("{host} is not adopted: {error:#}"));
            }
            Err(error) => return Err(error),
        }
    }
    context.output.result(&document, AdoptDocument::text)?;
    if !context.output.is_json() && document.hosts.iter().any(|host| host.objects > 0) {
        context.output.note(
            "a host whose certificate is of an earlier authority joins again: `backlane server enroll HOST`",
        );
    }
    let is_unknown = document.hosts.iter().any(|host| host.packs_unknown > 0);
    Ok(match (failed, is_unknown) {
        (true, _) => Outcome::Failed,
        (false, true) => Outcome::Warnings,
        (false, false) => Outcome::Done,
    })
}

fn adopt_one(
    state: &ServerState,
    host: &HostName,
    args: &AdoptArgs,
    context: &Context,
) -> Result<AdoptedDocument> {
    let escrow = Escrow::of(state.config(), host);
    let key = match &args.key_file {
        Some(file) => Some(config::read_key(file)?),
        None if escrow.exists() => Some(escrow.key()?),
        None => None,
    };
    let Adopted {
        new,
        unlabelled,
        repository,
    } = context.runtime.block_on(state.adopt(host))?;
    let mut unknown = unlabelled.len();
    if let Some(key) = key.filter(|_| unknown > 0) {
        let held = Held::open(repository, escrow, &key, args.key_file.as_deref(), context)?;
        let damaged = held.label(&unlabelled)?;
        unknown = damaged.len();
        for error in damaged {
            context.output.warning(format!("{host}: {error}"));
        }
    } else if unknown > 0 {
        context.output.warning(format!(
            "{host}: nothing says which of {unknown} packs hold trees, and backups may not read those that do: \
             `backlane server adopt {host} --key-file FILE` with the host's key file tells"
        ));
    }
    Ok(AdoptedDocument {
        host: host.to_string(),
        objects: new.objects,
        bytes: new.bytes,
        packs_unknown: unknown as u64,
    })
}

impl AdoptDocument {
    fn text(&self) -> String {
        let head = ["host", "objects that are new", "bytes", "packs unknown"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.hosts.iter().map(|host| {
            vec![
                host.host.clone(),
                host.objects.to_string(),
                bytes(host.bytes),
                host.packs_unknown.to_string(),
            ]
        }));
        table(&rows)
    }
}
