//! What may be typed after `backlane server`.

use super::parse_size;
use clap::{Args, Subcommand, ValueHint};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Make the server's configuration, its certificate authority and its store.
    Init(ServerInitArgs),
    /// Serve, until it is told to stop.
    Run(ServerRunArgs),
    /// Print a join token for a host: it works once, and expires.
    Enroll(EnrollArgs),
    /// List the enrolled hosts.
    Hosts,
    /// Let a host read file contents, which restoring needs, for a time.
    AllowRestore(AllowRestoreArgs),
    /// End every permission of a host to read file contents, in running jobs too.
    RevokeRestore(HostArgs),
    /// Let a host remove what isn't needed any more, as forget and prune on it do, for a time.
    AllowMaintenance(AllowMaintenanceArgs),
    /// End every permission of a host to remove anything, in running sessions too.
    RevokeMaintenance(HostArgs),
    /// Let a host read archived WAL, as `wal fetch` on it does: until that is revoked, or for a time.
    AllowWal(AllowWalArgs),
    /// End every permission of a host to read archived WAL, in running sessions too. It may archive still.
    RevokeWal(HostArgs),
    /// End all trust in a host: certificates, permissions, join tokens, running sessions. Its repository stays.
    Revoke(HostArgs),
    /// Limit how many bytes a host may store.
    Quota(QuotaArgs),
    /// Read every object that hosts have stored, at a pace, and lay aside what is damaged. Jobs may run meanwhile.
    Scrub(ScrubArgs),
    /// Put back what forget and prune removed, as long as it is recoverable.
    Undelete(UndeleteArgs),
    /// Enter repositories that are there and that the server doesn't know: after its state was lost, or when other tools
    /// brought something.
    Adopt(AdoptArgs),
    /// The audit log: what happened that bears on trust.
    #[command(subcommand)]
    Audit(AuditCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Follow the log's chain of hashes from its first line to its last.
    Verify,
}

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// Name of the host.
    pub(crate) host: String,
}

#[derive(Debug, Args)]
pub(crate) struct QuotaArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// The limit, as 500G; `none` takes it away.
    #[arg(value_name = "SIZE", value_parser = parse_quota)]
    pub(crate) quota: Quota,
}

/// How much a host may store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota(pub(crate) Option<u64>);

#[derive(Debug, Args)]
pub(crate) struct ScrubArgs {
    /// Only this host's repository [default: every host's].
    pub(crate) host: Option<String>,
    /// Read no more than this a second.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) rate: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    /// Only the repository of this host [default: every one that is there].
    pub(crate) host: Option<String>,
    /// The key file of that host: tells what packs hold where nothing else does [default: the key in escrow, if there is
    /// one].
    #[arg(long, value_name = "FILE", requires = "host", value_hint = ValueHint::FilePath)]
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UndeleteArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Only what was removed at this time or later, as 2026-01-31T12:00:00Z [default: all that is recoverable].
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<jiff::Timestamp>,
    /// Take out the snapshots and indexes that arrived after this time, as from a host that was no longer one's own; they
    /// stay recoverable themselves.
    #[arg(long, value_name = "TIME")]
    pub(crate) leave_out_after: Option<jiff::Timestamp>,
    /// Say what is recoverable, and put nothing back.
    #[arg(long, conflicts_with = "leave_out_after")]
    pub(crate) list: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AllowRestoreArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Only what had arrived by the time of this snapshot (its id, or the beginning of it); may be repeated.
    #[arg(long = "snapshot", value_name = "ID")]
    pub(crate) snapshots: Vec<String>,
    /// For how long.
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) length: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct AllowMaintenanceArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// For how long.
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) length: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct AllowWalArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// For how long [default: until it is revoked].
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) length: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct ServerInitArgs {
    /// Address that clients reach this server at, and that it listens on.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: String,
    /// Address to listen on [default: every address of this machine, with the port of --address].
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// A further name or address for the server's certificate.
    #[arg(long = "name", value_name = "SAN")]
    pub(crate) names: Vec<String>,
    /// A device of the pool; once for each.
    #[arg(long = "pool", value_name = "DEVICE", value_hint = ValueHint::AnyPath)]
    pub(crate) pool: Vec<PathBuf>,
    /// Directory for the server's state: keys, database.
    #[arg(long, default_value = "/var/lib/backlane", value_hint = ValueHint::DirPath)]
    pub(crate) state: PathBuf,
    /// Directory below which `repositories` is [default: the state directory].
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub(crate) objects: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ServerRunArgs {
    /// Stop as soon as standard input is closed, which it is when the process at its other end dies.
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EnrollArgs {
    /// Name of the host.
    pub(crate) host: String,
    /// How long the token works.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) expires: Duration,
    /// The host has no network to this server: it enrols through the pool, by a slot that is kept for it.
    #[arg(long)]
    pub(crate) through_pool: bool,
}

fn parse_quota(text: &str) -> Result<Quota, String> {
    match text {
        "none" => Ok(Quota(None)),
        size => Ok(Quota(Some(parse_size(size)?))),
    }
}
