//! What may be typed after `backlane wal`.

use super::{KeyedArgs, RouteArgs};
use clap::{Args, Subcommand, ValueHint};
use std::{path::PathBuf, time::Duration};

#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// Hold a session with the server, and serve `wal push` and `wal fetch` on a socket.
    Run(WalRunArgs),
    /// Receive the WAL of a PostgreSQL server as it is written, by its own pg_receivewal and a replication slot, and archive it:
    /// segments, and every few seconds what has grown of the last one. Needs a running `wal run`.
    Receive(WalReceiveArgs),
    /// Archive a file, for archive_command = 'backlane wal push %p'; ends when it is durable at the server.
    #[command(
        after_help = "Exit codes: 0 archived, 1 not archived: PostgreSQL keeps the file and tries again."
    )]
    Push(WalPushArgs),
    /// Fetch a file, for restore_command = 'backlane wal fetch %f %p'. It takes a permission of the server (`backlane server
    /// allow-wal`).
    #[command(
        after_help = "Exit codes: 0 fetched, 1 the archive has no such file, 200 anything else: recovery stops."
    )]
    Fetch(WalFetchArgs),
    /// List what is archived: clusters, timelines, and ranges of segments without a gap.
    List(WalReadArgs),
    /// Look for segments that are missing between others, across timelines.
    #[command(
        after_help = "Exit codes: 0 nothing is missing, 1 something is, and was named, or it can't be told."
    )]
    Check(WalReadArgs),
    /// Remove what comes before the oldest base backup that is kept: it stays recoverable for a while. Runs on the server's machine.
    Expire(WalExpireArgs),
}

/// Where the spooler listens.
#[derive(Debug, Args)]
pub(crate) struct SocketArgs {
    /// Socket of `backlane wal run`.
    #[arg(long, env = "BACKLANE_WAL_SOCKET", default_value = "/run/backlane-wal/wal.sock", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) socket: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct WalRunArgs {
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    /// Group whose members may use the socket, by name or number: PostgreSQL's [default: this process's].
    #[arg(long)]
    pub(crate) group: Option<String>,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WalReceiveArgs {
    /// The server, whose user may replicate: give `postgresql://…`, `service=…` or keywords, and keep the password in .pgpass or
    /// a service file.
    #[arg(long, value_name = "CONNECTION")]
    pub(crate) postgres: String,
    /// The replication slot; made where it is missing. It keeps the server's WAL until that is received.
    #[arg(long, default_value = "backlane", value_name = "NAME")]
    pub(crate) slot: String,
    /// Directory for what is received and not archived yet, of this slot alone [default: `wal-spool/SLOT` in the state directory].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) spool: Option<PathBuf>,
    /// How often what is new is archived.
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) every: Duration,
    /// Write to disk and acknowledge at once, as a server wants it that has pg_receivewal in synchronous_standby_names.
    #[arg(long)]
    pub(crate) synchronous: bool,
    /// The pg_receivewal to run [default: that of the server's version, or else the one in PATH].
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) program: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WalPushArgs {
    /// The file, as PostgreSQL gives it for %p.
    #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WalFetchArgs {
    /// The file's name, as PostgreSQL gives it for %f.
    pub(crate) name: String,
    /// Where to write it, as PostgreSQL gives it for %p.
    #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) target: PathBuf,
    /// The cluster's system identifier, as pg_controldata shows it [default: what global/pg_control says in the working
    /// directory, which is the data directory where PostgreSQL runs a restore_command].
    #[arg(long, value_name = "NUMBER")]
    pub(crate) system: Option<u64>,
    /// Put a segment that isn't archived whole together of the pieces that `wal receive` archived, with zeros behind them:
    /// recovery ends there. Not for a standby, to which the whole segment may still come.
    #[arg(long)]
    pub(crate) pieces: bool,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WalReadArgs {
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WalExpireArgs {
    #[command(flatten)]
    pub(crate) repository: KeyedArgs,
    /// Remove what comes before this segment, of its cluster alone.
    #[arg(long, value_name = "SYSTEM/SEGMENT")]
    pub(crate) before: Option<String>,
    /// Say what would be removed and remove nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
