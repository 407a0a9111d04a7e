//! `backlane server allow-restore`, `revoke-restore`, the like for maintenance and WAL, `revoke`, `quota`,
//! `audit verify`, `scrub`: whom the server trusts with what, and whether what it keeps is what it was given.
//!
//! All act on the server's state alone; a server that runs goes by what they did within a second.

use super::server::{host_name, open_state, time};
use crate::{
    Context,
    cli::{AllowRestoreArgs, HostArgs, QuotaArgs, ScrubArgs},
    output::{Outcome, bytes, table},
};
use anyhow::Result;
use backlane_server::{HostName, Leave, Scrubbed};
use serde::Serialize;
use std::{ops::ControlFlow, time::Duration};

#[derive(Serialize)]
struct AllowedDocument {
    host: String,
    until: String,
    snapshots: Vec<String>,
}

pub(super) fn allow_restore(args: &AllowRestoreArgs, context: &Context) -> Result<Outcome> {
    let host = host_name(&args.host.host)?;
    let until = context.runtime.block_on(async {
        let state = open_state(context).await?;
        let allowed = state.allow_restore(&host, &args.snapshots, args.length);
        Ok::<_, anyhow::Error>(allowed.await?)
    })?;
    let document = AllowedDocument {
        host: host.to_string(),
        until: time(until),
        snapshots: args.snapshots.clone(),
    };
    context.output.result(&document, |d| {
        let what = match &d.snapshots[..] {
            [] => "everything in its repository".to_owned(),
            snapshots => format!("what had arrived with snapshot {}", snapshots.join(", ")),
        };
        format!("{} may read {what} until {}\n", d.host, d.until)
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct PermissionsRevokedDocument {
    host: String,
    permissions: u64,
}

#[derive(Serialize)]
struct LeaveDocument {
    host: String,
    /// Absent where it stands until it is revoked.
    until: Option<String>,
}

/// Gives a host a permission that has no bound but time.
pub(super) fn allow(
    host: &HostArgs,
    leave: Leave,
    length: Option<Duration>,
    context: &Context,
) -> Result<Outcome> {
    let host = host_name(&host.host)?;
    let until = context.runtime.block_on(async {
        let state = open_state(context).await?;
        Ok::<_, anyhow::Error>(state.allow(&host, leave, length).await?)
    })?;
    let document = LeaveDocument {
        host: host.to_string(),
        until: until.map(time),
    };
    context.output.result(&document, |d| {
        let what = match leave {
            Leave::Restore => "read file contents",
            Leave::Maintenance => "forget and prune (what it removes stays recoverable)",
            Leave::Wal => "read archived WAL",
        };
        match &d.until {
            Some(until) => format!("{} may {what} until {until}\n", d.host),
            None => format!("{} may {what} until that is revoked\n", d.host),
        }
    })?;
    Ok(Outcome::Done)
}

/// Ends every permission of a host of one kind.
pub(super) fn revoke_leave(args: &HostArgs, leave: Leave, context: &Context) -> Result<Outcome> {
    let host = host_name(&args.host)?;
    let permissions = context.runtime.block_on(async {
        let state = open_state(context).await?;
        Ok::<_, anyhow::Error>(state.revoke_leave(&host, leave).await?)
    })?;
    let document = PermissionsRevokedDocument {
        host: host.to_string(),
        permissions,
    };
    context.output.result(&document, |d| {
        let (had, may) = match leave {
            Leave::Restore => ("to restore", "read no file contents"),
            Leave::Maintenance => ("to remove anything", "remove nothing"),
            Leave::Wal => ("to read archived WAL", "read no archived WAL"),
        };
        match d.permissions {
            0 => format!("{} had no permission {had}\n", d.host),
            _ => format!("{} may {may} any more\n", d.host),
        }
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct RevokedDocument {
    host: String,
    certificates: u64,
}

pub(super) fn revoke(args: &HostArgs, context: &Context) -> Result<Outcome> {
    let host = host_name(&args.host)?;
    let certificates = context.runtime.block_on(async {
        let state = open_state(context).await?;
        Ok::<_, anyhow::Error>(state.revoke(&host).await?)
    })?;
    let document = RevokedDocument {
        host: host.to_string(),
        certificates,
    };
    context.output.result(&document, |d| {
        format!(
            "{} is trusted no more: {} certificates revoked; its sessions end within a second, its repository stays\n",
            d.host, d.certificates
        )
    })?;
    if !context.output.is_json() {
        context.output.note(format!(
            "`backlane server enroll {host}` lets it, or another machine under its name, join again"
        ));
    }
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct QuotaDocument {
    host: String,
    bytes: Option<u64>,
}

pub(super) fn quota(args: &QuotaArgs, context: &Context) -> Result<Outcome> {
    let host = host_name(&args.host.host)?;
    context.runtime.block_on(async {
        let state = open_state(context).await?;
        Ok::<_, anyhow::Error>(state.set_quota(&host, args.quota.0).await?)
    })?;
    let document = QuotaDocument {
        host: host.to_string(),
        bytes: args.quota.0,
    };
    context.output.result(&document, |d| match d.bytes {
        Some(quota) => format!("{} may store {}\n", d.host, bytes(quota)),
        None => format!("{} may store what it likes\n", d.host),
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct ScrubDocument {
    hosts: Vec<ScrubbedDocument>,
}

#[derive(Serialize)]
struct ScrubbedDocument {
    host: String,
    objects: u64,
    bytes: u64,
    damaged: Vec<DamagedDocument>,
}

#[derive(Serialize)]
struct DamagedDocument {
    object: String,
    why: String,
}

pub(super) fn scrub(args: &ScrubArgs, context: &Context) -> Result<Outcome> {
    let one = args.host.as_deref().map(host_name).transpose()?;
    let (scrubbed, failed) = context.runtime.block_on(async {
        let state = open_state(context).await?;
        let hosts = match one {
            Some(host) => vec![host],
            None => {
                let all = state.hosts().await?;
                let names = all.iter().map(|host| host_name(&host.name));
                names.collect::<Result<_>>()?
            }
        };
        let (mut scrubbed, mut failed) = (Vec::new(), Vec::new());
        for host in hosts {
            let cancel = context.cancel.clone();
            let go_on = move |_: &Scrubbed| match cancel.is_set() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            // One host's trouble is no reason to leave the others out.
            match state.scrub(&host, args.rate, go_on).await {
                Ok(done) => scrubbed.push((host, done)),
                Err(error) => failed.push(format!("{host}: {error}")),
            }
        }
        Ok::<_, anyhow::Error>((scrubbed, failed))
    })?;
    let of_host = |(host, scrubbed): (HostName, Scrubbed)| ScrubbedDocument {
        host: host.to_string(),
        objects: scrubbed.objects,
        bytes: scrubbed.bytes,
        damaged: scrubbed
            .damaged
            .into_iter()
            .map(|(object, why)| DamagedDocument {
                object: object.to_string(),
                why,
            })
            .collect(),
    };
    let document = ScrubDocument {
        hosts: scrubbed.into_iter().map(of_host).collect(),
    };
    let mut is_damaged = !failed.is_empty();
    for failed in &failed {
        context.output.warning(format!("not scrubbed: {failed}"));
    }
    for host in &document.hosts {
        for damaged in &host.damaged {
            is_damaged = true;
            context.output.warning(format!(
                "{}: {} is laid aside: {}; the next backup stores again what the host still has of it",
                host.host, damaged.object, damaged.why
            ));
        }
    }
    context.output.result(&document, |document| {
        let head = ["host", "objects", "bytes", "damaged"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(document.hosts.iter().map(|host| {
            vec![
                host.host.clone(),
                host.objects.to_string(),
                bytes(host.bytes),
                host.damaged.len().to_string(),
            ]
        }));
        table(&rows)
    })?;
    context.check_cancelled()?;
    Ok(match is_damaged {
        true => Outcome::Failed,
        false => Outcome::Done,
    })
}

#[derive(Serialize)]
struct AuditDocument {
    path: String,
    lines: u64,
    head: String,
    cut: Vec<u64>,
}

pub(super) fn verify_audit(context: &Context) -> Result<Outcome> {
    let state = context.runtime.block_on(open_state(context))?;
    let verified = state.verify_audit(|_| {})?;
    let document = AuditDocument {
        path: verified.path.display().to_string(),
        lines: verified.lines,
        head: verified.head,
        cut: verified.cut,
    };
    for line in &document.cut {
        context.output.warning(format!(
            "line {line} was cut off by a crash; what it was about did not happen"
        ));
    }
    context.output.result(&document, |d| {
        format!(
            "{}: the chain of {} lines holds\nhead {}\n",
            d.path, d.lines, d.head
        )
    })?;
    if !context.output.is_json() {
        context
            .output
            .note("keep the head elsewhere: a log that was cut off at its end shows by that alone");
    }
    Ok(Outcome::Done)
}
