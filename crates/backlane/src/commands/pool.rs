//! `backlane pool`: make, inspect and destroy pools.

use super::server;
use crate::{
    Context,
    cli::{AddSlotsArgs, DevicesArgs, PoolCommand, PoolCreateArgs, PoolDestroyArgs},
    failure::Advise,
    output::{Outcome, bytes, table},
};
use anyhow::{Context as _, Result, bail};
use backlane_server::HostName;
use serde::Serialize;
use std::{
    io::{BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
};
use storage_socket::{Error, FormatOptions, MemberInfo, PoolInfo};

/// Runs one of the commands about pools.
///
/// # Errors
/// When it can't be done.
pub(crate) fn run(command: &PoolCommand, context: &Context) -> Result<Outcome> {
    match command {
        PoolCommand::Create(args) => create(args, context),
        PoolCommand::Info(args) => info(args, context),
        PoolCommand::Check(args) => check(args, context),
        PoolCommand::Members(args) => members(args, context),
        PoolCommand::AddSlots(args) => add_slots(args, context),
        PoolCommand::Destroy(args) => destroy(args, context),
    }
}

/// What the devices say of their pool.
///
/// # Errors
/// When they are not all the devices of one pool.
pub(super) fn inspect(devices: &[PathBuf]) -> Result<PoolInfo> {
    advised(storage_socket::inspect(devices)).context("cannot read the pool")
}

#[derive(Serialize)]
struct PoolDocument {
    uuid: String,
    name: String,
    slots: u32,
    data_bytes: u64,
    devices: Vec<DeviceDocument>,
}

#[derive(Serialize)]
struct DeviceDocument {
    path: PathBuf,
    index: u16,
    bytes: u64,
    logical_block_bytes: u32,
    block_device: bool,
}

impl From<PoolInfo> for PoolDocument {
    fn from(pool: PoolInfo) -> Self {
        Self {
            uuid: pool.uuid.to_string(),
            name: pool.name,
            slots: pool.slots,
            data_bytes: pool.data_bytes,
            devices: pool
                .devices
                .into_iter()
                .map(|device| DeviceDocument {
                    path: device.path,
                    index: device.index,
                    bytes: device.bytes,
                    logical_block_bytes: device.logical_block_bytes,
                    block_device: device.is_block,
                })
                .collect(),
        }
    }
}

impl PoolDocument {
    fn text(&self) -> String {
        let mut text = format!(
            "pool {} ({})\n  slots     {}\n  for data  {}\n",
            self.name,
            self.uuid,
            self.slots,
            bytes(self.data_bytes)
        );
        let head = ["  device", "size", "logical block", "path"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.devices.iter().map(|device| {
            let kind = if device.block_device { "" } else { " (a file)" };
            vec![
                format!("  {}", device.index),
                bytes(device.bytes),
                device.logical_block_bytes.to_string(),
                format!("{}{kind}", device.path.display()),
            ]
        }));
        text.push_str(&table(&rows));
        text
    }
}

fn create(args: &PoolCreateArgs, context: &Context) -> Result<Outcome> {
    let mut options = FormatOptions::new(&args.name);
    options.slots = args.max_members;
    options.file_bytes = args.size;
    options.force = args.force;
    let pool = advised(storage_socket::format(&args.devices.devices, &options))
        .context("cannot make the pool")?;
    let document = PoolDocument::from(pool);
    context.output.result(&document, PoolDocument::text)?;
    Ok(Outcome::Done)
}

fn info(args: &DevicesArgs, context: &Context) -> Result<Outcome> {
    let document = PoolDocument::from(inspect(&args.devices)?);
    context.output.result(&document, PoolDocument::text)?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct CheckDocument {
    #[serde(flatten)]
    pool: PoolDocument,
    damage: Vec<String>,
}

fn check(args: &DevicesArgs, context: &Context) -> Result<Outcome> {
    let (pool, damage) =
        advised(storage_socket::check(&args.devices)).context("cannot check the pool")?;
    let document = CheckDocument {
        pool: pool.into(),
        damage: damage.iter().map(ToString::to_string).collect(),
    };
    context.output.result(&document, |document| {
        let mut text = document.pool.text();
        for damage in &document.damage {
            text.push_str(&format!("damaged: {damage}\n"));
        }
        if document.damage.is_empty() {
            text.push_str("every superblock and every page is whole\n");
        }
        text
    })?;
    Ok(if document.damage.is_empty() {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}

#[derive(Serialize)]
struct MembersDocument {
    uuid: String,
    coordinator: Option<MemberDocument>,
    members: Vec<MemberDocument>,
}

#[derive(Serialize)]
struct MemberDocument {
    slot: Option<u32>,
    host: String,
    state: &'static str,
    connections: Option<usize>,
}

/// Alive, ended in order, or silent: the counter stood still while it was watched.
fn state(alive: bool, stopped: bool) -> &'static str {
    match (alive, stopped) {
        (true, _) => "alive",
        (false, true) => "stopped",
        (false, false) => "silent",
    }
}

impl From<MemberInfo> for MemberDocument {
    fn from(member: MemberInfo) -> Self {
        Self {
            slot: Some(member.slot),
            host: member.host,
            state: state(member.alive, member.stopped),
            connections: Some(member.connections),
        }
    }
}

fn members(args: &DevicesArgs, context: &Context) -> Result<Outcome> {
    let found =
        advised(storage_socket::members(&args.devices)).context("cannot list the members")?;
    let document = MembersDocument {
        uuid: found.uuid.to_string(),
        coordinator: found.coordinator.map(|coordinator| MemberDocument {
            slot: None,
            host: coordinator.host,
            state: state(coordinator.alive, coordinator.stopped),
            connections: None,
        }),
        members: found.members.into_iter().map(Into::into).collect(),
    };
    context.output.result(&document, |document| {
        let number = |n: Option<String>| n.unwrap_or_else(|| "–".to_owned());
        let row = |role: String, member: &MemberDocument| {
            vec![
                role,
                member.host.clone(),
                member.state.to_owned(),
                number(member.connections.map(|n| n.to_string())),
            ]
        };
        let mut rows = vec![
            ["slot", "host", "state", "connections"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(
            document
                .coordinator
                .iter()
                .map(|c| row("coordinator".to_owned(), c)),
        );
        rows.extend(
            document
                .members
                .iter()
                .map(|m| row(number(m.slot.map(|n| n.to_string())), m)),
        );
        format!("pool {}\n{}", document.uuid, table(&rows))
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct AddSlotsDocument {
    host: String,
    slots_added: Vec<u32>,
}

fn add_slots(args: &AddSlotsArgs, context: &Context) -> Result<Outcome> {
    let host: HostName = args.host.parse()?;
    let pool = inspect(&args.devices.devices)?;
    let slots = context.runtime.block_on(async {
        let state = server::open_state(context).await?;
        match &state.config().pool {
            Some(ours) if ours.uuid == pool.uuid => {}
            Some(ours) => bail!(
                "these are devices of pool {}, the server on this machine coordinates {}",
                pool.uuid,
                ours.uuid
            ),
            None => bail!("the server on this machine has no pool"),
        }
        Ok(state.add_slots(&host, args.count).await?)
    })?;
    let document = AddSlotsDocument {
        host: host.to_string(),
        slots_added: slots,
    };
    context.output.result(&document, |document| {
        let slots: Vec<String> = document.slots_added.iter().map(u32::to_string).collect();
        format!(
            "{} may use slots {} too; it learns of them when it joins again\n",
            document.host,
            slots.join(", ")
        )
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct DestroyDocument {
    uuid: String,
    destroyed: bool,
}

fn destroy(args: &PoolDestroyArgs, context: &Context) -> Result<Outcome> {
    let devices = &args.devices.devices;
    let pool = inspect(devices)?;
    if !args.yes && !confirmed(&pool, devices)? {
        bail!("nothing was destroyed");
    }
    let uuid =
        advised(storage_socket::destroy(devices, args.force)).context("cannot destroy the pool")?;
    let document = DestroyDocument {
        uuid: uuid.to_string(),
        destroyed: true,
    };
    context.output.result(&document, |document| {
        format!("pool {} is no more\n", document.uuid)
    })?;
    Ok(Outcome::Done)
}

/// Asks at the terminal.
fn confirmed(pool: &PoolInfo, devices: &[PathBuf]) -> Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(anyhow::anyhow!(
            "there is no terminal to ask whether pool {} may go",
            pool.name
        ))
        .advise("--yes destroys without asking");
    }
    let names: Vec<_> = devices
        .iter()
        .map(|d| Path::display(d).to_string())
        .collect();
    eprint!(
        "Destroy pool {} ({}) on {}? Type its name: ",
        pool.name,
        pool.uuid,
        names.join(", ")
    );
    std::io::stderr().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(answer.trim() == pool.name)
}

/// Adds what a user can do about a device that was refused.
fn advised<T>(result: Result<T, Error>) -> Result<T> {
    let hint = match &result {
        Err(Error::InUse { .. }) => {
            "unmount it or stop what holds it; --force formats it all the same"
        }
        Err(Error::Signature { .. } | Error::NotBlank { .. }) => {
            "if nothing on it is needed any more, --force formats it; that can't be undone"
        }
        Err(Error::SizeMissing { .. }) => "--size 1G makes a file of that size",
        Err(Error::NotAPool { .. }) => {
            "`backlane pool create` makes a pool of it, if it is meant to be one"
        }
        Err(Error::Missing { .. }) => "name every device of the pool, in any order",
        Err(Error::NewerFormat { .. }) => {
            "use the version of backlane that formatted it, or a newer one"
        }
        Err(Error::Truncated { .. }) => {
            "give the device its size back; what was cut off can't be used"
        }
        Err(Error::Copied { .. }) => "name the original alone, and destroy the copy's superblocks",
        _ => return result.map_err(Into::into),
    };
    result.advise(hint)
}
