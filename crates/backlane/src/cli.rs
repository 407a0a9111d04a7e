//! The command line: one definition, which parsing, help, man pages and completions are made from.
//!
//! It says what may be typed and nothing of what is done about it.

mod mariadb;
mod postgres;
mod server;
mod wal;

pub(crate) use mariadb::{
    MariadbBackupArgs, MariadbCommand, MariadbReplayArgs, MariadbRestoreArgs, MariadbStatusArgs,
};
pub(crate) use postgres::{
    PostgresBackupArgs, PostgresCommand, PostgresRestoreArgs, PostgresStatusArgs,
};
pub(crate) use server::{
    AdoptArgs, AllowRestoreArgs, AuditCommand, EnrollArgs, HostArgs, QuotaArgs, ScrubArgs,
    ServerCommand, ServerInitArgs, ServerRunArgs, UndeleteArgs,
};

pub(crate) use wal::{
    WalCommand, WalExpireArgs, WalFetchArgs, WalPushArgs, WalReadArgs, WalReceiveArgs, WalRunArgs,
};

use crate::sizes::{parse_limit, parse_memory, parse_size};
use backlane_client::{Compression, CompressionRule};
use backlane_net::EngineChoice;
use backlane_proto::RoutePolicy;
use clap::{
    Args, Parser, Subcommand, ValueEnum, ValueHint,
    builder::{OsStringValueParser, TypedValueParser},
};
use std::{ffi::OsString, num::NonZero, os::unix::ffi::OsStrExt, path::PathBuf, time::Duration};

/// Backup and restore through the storage that two hosts share, instead of the network between them.
#[derive(Debug, Parser)]
#[command(
    name = "backlane",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done with warnings, \
                  4 the policy allowed no route that was left."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Print one JSON document on standard output instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Configuration file [default: /etc/backlane/client.toml, for a server /etc/backlane/server.toml].
    #[arg(long, global = true, env = "BACKLANE_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// No progress bar and no notes: the result, warnings and errors only.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Log more to standard error; twice for everything. BACKLANE_LOG takes filters of the usual form.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// What does the I/O on pools.
    #[arg(long, global = true, hide = true, env = "BACKLANE_POOL_ENGINE", value_enum, default_value_t = EngineArg::Auto)]
    pub(crate) pool_engine: EngineArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole system on this machine, back up and restore a tree, and verify what came back.
    Demo(DemoArgs),
    /// Make, inspect and destroy pools: the devices that hosts share for storage sockets.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Set up and run the server.
    #[command(subcommand)]
    Server(ServerCommand),
    /// Enrol this host at a server, with a token from `backlane server enroll`.
    Join(JoinArgs),
    /// Back up files and directories.
    Backup(Box<BackupArgs>),
    /// Restore a snapshot, or a part of one, below a directory.
    Restore(RestoreArgs),
    /// List the snapshots of this host's repository.
    Snapshots(SnapshotsArgs),
    /// List what a snapshot contains.
    Ls(LsArgs),
    /// Find paths in snapshots.
    Find(FindArgs),
    /// Show what differs between two snapshots.
    Diff(DiffArgs),
    /// Write one file of a snapshot to standard output.
    Dump(DumpArgs),
    /// Check that the repository is whole.
    Check(CheckArgs),
    /// Remove snapshots from a host's repository. Runs on the server's machine.
    Forget(ForgetArgs),
    /// Remove what no snapshot of a host's repository needs. Runs on the server's machine.
    Prune(PruneArgs),
    /// Look after the keys that open a repository, and the sheet of paper that brings one back.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Look after backups of PostgreSQL.
    #[command(subcommand)]
    Postgres(PostgresCommand),
    /// Look after backups of MariaDB, and bring restored servers to a later moment.
    #[command(subcommand)]
    Mariadb(MariadbCommand),
    /// Archive the write-ahead log of PostgreSQL, and fetch it for recovery.
    #[command(subcommand)]
    Wal(WalCommand),
    /// Show which route each kind of call would take now, and why, and how fast both routes are. Runs on a client.
    Path(PathArgs),
    /// Watch the server and the jobs of this machine: sessions, routes, rates, queues, resends, and what moved and why.
    Top(TopArgs),
    /// Measure.
    #[command(subcommand)]
    Bench(BenchCommand),
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// What to back up; nothing in it is changed [default: a tree that the demo makes].
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) path: Option<PathBuf>,
    /// Leave everything in place afterwards, and print how to look around.
    #[arg(long)]
    pub(crate) keep: bool,
    /// About how large the tree is that the demo makes.
    #[arg(long, value_parser = parse_size, default_value = "256M", conflicts_with = "path")]
    pub(crate) size: u64,
    /// Size of the pool.
    #[arg(long, value_parser = parse_size, default_value = "256M")]
    pub(crate) pool_size: u64,
    /// Directory to work in; it must be on a file system that takes direct I/O [default: the first of TMPDIR, /var/tmp, /tmp that does].
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Format devices, or files that stand in for devices, as one pool.
    Create(PoolCreateArgs),
    /// Show what the superblocks of a pool's devices say.
    Info(DevicesArgs),
    /// Read every fixed block of a pool and report what is damaged.
    Check(DevicesArgs),
    /// List the members of a pool: which slot, which host, alive or not.
    Members(DevicesArgs),
    /// Grant a host further slots of the pool, in the state of the server on this machine.
    AddSlots(AddSlotsArgs),
    /// Erase the superblocks of a pool, which ends it.
    Destroy(PoolDestroyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Every device of the pool.
    #[arg(required = true, value_name = "DEVICE", value_hint = ValueHint::AnyPath)]
    pub(crate) devices: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PoolCreateArgs {
    #[command(flatten)]
    pub(crate) devices: DevicesArgs,
    /// Name of the pool, for people; programs know it by its UUID.
    #[arg(long)]
    pub(crate) name: String,
    /// Make regular files of this size where there is no device yet.
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// How many slots the pool has; each process that uses it takes one.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=4096))]
    pub(crate) max_members: u32,
    /// Format devices that carry data. What was on them is lost.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AddSlotsArgs {
    #[command(flatten)]
    pub(crate) devices: DevicesArgs,
    /// The enrolled host that gets the slots.
    #[arg(long)]
    pub(crate) host: String,
    /// How many more slots.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) count: u32,
}

#[derive(Debug, Args)]
pub(crate) struct PoolDestroyArgs {
    #[command(flatten)]
    pub(crate) devices: DevicesArgs,
    /// Don't ask.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Destroy it even while a server or a client uses it.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Read the token from a file, `-` for standard input [default: ask for it].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,
    /// A device of the pool as this host sees it; once for each. Without any, jobs take the network.
    #[arg(long = "device", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) devices: Vec<PathBuf>,
    /// Enrol through the pool, by the slot that came with the token; jobs will take storage alone.
    #[arg(long, value_name = "NUMBER", requires = "devices")]
    pub(crate) slot: Option<u32>,
    /// Directory for this host's keys and certificates.
    #[arg(long, default_value = "/var/lib/backlane/client", value_hint = ValueHint::DirPath)]
    pub(crate) state: PathBuf,
    /// Use this repository key file, from an earlier life of this host, instead of making one.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key_file: Option<PathBuf>,
}

/// Which of the two routes the bodies of objects may take.
#[derive(Debug, Clone, Args)]
pub(crate) struct RouteArgs {
    /// Which route the bulk takes [default: what the configuration says, or else prefer-storage].
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) route: Option<RouteChoice>,
    /// How long a job waits, in its middle, for a route that it may take [default: what the configuration says, or else
    /// 10m].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) route_wait: Option<Duration>,
    /// What bodies may take of the network in a second, both ways together: 20M, say [default: what the configuration
    /// says, or else all of it].
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    pub(crate) limit_network: Option<u64>,
    /// The same of the shared storage.
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    pub(crate) limit_storage: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RouteChoice {
    /// Storage where it can be used; otherwise network, with the reason counted.
    PreferStorage,
    /// Storage for every object; without it the job fails.
    RequireStorage,
    /// The network alone.
    Network,
    /// Storage for everything, requests and answers included: no network socket is opened.
    StorageOnly,
}

impl From<RouteChoice> for RoutePolicy {
    fn from(choice: RouteChoice) -> Self {
        match choice {
            RouteChoice::PreferStorage => Self::PreferStorage,
            RouteChoice::RequireStorage => Self::RequireStorage,
            RouteChoice::Network => Self::Network,
            RouteChoice::StorageOnly => Self::StorageOnly,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Files and directories to back up.
    #[arg(required_unless_present_any = ["output_name", "sqlite", "postgres", "mariadb", "mariadb_binlogs"], value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) paths: Vec<PathBuf>,
    /// A SQLite database that may be in use: backed up as it stands at one moment; may be repeated.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) sqlite: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) cluster: PostgresBackupArgs,
    #[command(flatten)]
    pub(crate) mariadb: MariadbBackupArgs,
    /// Back up what a command writes to its standard output, as a file of this name: `--command app.sql -- pg_dump app`.
    /// There is a snapshot only if the command succeeds.
    #[arg(
        long = "command",
        id = "output_name",
        value_name = "NAME",
        requires = "command",
        conflicts_with_all = ["paths", "sqlite", "of_files"]
    )]
    pub(crate) output_name: Option<OsString>,
    /// The command, with its arguments; it is not recorded, its program's name apart.
    #[arg(last = true, requires = "output_name", value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
    /// A tag for the snapshot; may be repeated.
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    #[command(flatten)]
    pub(crate) files: FilesBackupArgs,
    /// Compress so: `auto` adapts to what the backup waits for, `off` doesn't, or a level of zstd from 1 to 19 [default:
    /// what the configuration says, or else auto].
    #[arg(long, value_name = "LEVEL")]
    pub(crate) compression: Option<Compression>,
    /// Run this by a shell before anything is read, in place of the configuration's `before`: it makes a snapshot of a
    /// volume, say. If it fails, nothing is backed up.
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub(crate) before: Option<String>,
    /// Run this by a shell afterwards, whatever came of it, in place of the configuration's `after`. It finds `done`,
    /// `warnings` or `failed` in BACKLANE_RESULT and the snapshot's id in BACKLANE_SNAPSHOT; if it fails, that is a warning.
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub(crate) after: Option<String>,
    /// Work on so many threads [default: as many as there are cores].
    #[arg(long, value_name = "NUMBER")]
    pub(crate) threads: Option<NonZero<usize>>,
    /// Take no more memory than this, beside 48 bytes for each blob in the repository: on fewer threads, where it doesn't
    /// suffice for all; 224M at least [default: what the configuration says, or else no limit].
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// Say what would be done and store nothing; runs neither of those.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Host name that the snapshot carries [default: the name this host is enrolled by].
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Time that the snapshot carries, as 2026-01-31T12:00:00Z [default: now].
    #[arg(long)]
    pub(crate) time: Option<jiff::Timestamp>,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

/// What is said of files alone, not of databases or a command's output.
#[derive(Debug, Args)]
#[group(id = "of_files", multiple = true)]
pub(crate) struct FilesBackupArgs {
    /// Leave out what matches this pattern, which has the form of a line of a .gitignore; may be repeated.
    #[arg(long = "exclude", value_name = "PATTERN")]
    pub(crate) excludes: Vec<String>,
    /// Read such patterns from a file; may be repeated.
    #[arg(long = "exclude-file", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) exclude_files: Vec<PathBuf>,
    /// Don't enter other file systems.
    #[arg(long)]
    pub(crate) one_file_system: bool,
    /// Compress files that match a pattern so: `off:*.jpg`, `19:/var/log/`; may be repeated, the last one that matches
    /// counts.
    #[arg(long = "compression-rule", value_name = "LEVEL:PATTERN")]
    pub(crate) compression_rules: Vec<CompressionRule>,
    /// Find what has changed by this snapshot [default: the newest of this host and these paths].
    #[arg(long, value_name = "SNAPSHOT")]
    pub(crate) parent: Option<String>,
    /// Read every file, though its size, times and inode are those that the snapshot before has.
    #[arg(long, conflicts_with = "parent")]
    pub(crate) force: bool,
    /// Don't take a file for changed because its time of change (ctime) is another.
    #[arg(long)]
    pub(crate) ignore_ctime: bool,
    /// Don't take a file for changed because its inode is another, as on network file systems that number them anew.
    #[arg(long)]
    pub(crate) ignore_inode: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Snapshot (its id, the beginning of it, or `latest`), and a path in it.
    #[arg(value_name = "SNAPSHOT[:PATH]", value_parser = snapshot_path())]
    pub(crate) snapshot: SnapshotPath,
    /// Directory to restore into; nothing outside it is touched, but the places that --tablespace names.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) target: PathBuf,
    /// Remove what is in the target and not in the snapshot.
    #[arg(long)]
    pub(crate) delete: bool,
    /// Remove it even if the backup had warnings: what the snapshot lacks may only have been unreadable then.
    #[arg(long, requires = "delete")]
    pub(crate) delete_despite_warnings: bool,
    /// Say what would be done and write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Read the restored files again and compare them with the snapshot.
    #[arg(long)]
    pub(crate) verify: bool,
    #[command(flatten)]
    pub(crate) cluster: PostgresRestoreArgs,
    #[command(flatten)]
    pub(crate) mariadb: MariadbRestoreArgs,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotsArgs {
    /// Only snapshots with this tag.
    #[arg(long)]
    pub(crate) tag: Option<String>,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Snapshot, and a path in it.
    #[arg(value_name = "SNAPSHOT[:PATH]", value_parser = snapshot_path())]
    pub(crate) snapshot: SnapshotPath,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct FindArgs {
    /// Pattern of the form of a shell's: `*.conf`, or `/etc/**/*.conf` for a whole path.
    pub(crate) pattern: String,
    /// Look in this snapshot only [default: all].
    #[arg(long)]
    pub(crate) snapshot: Option<String>,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The older snapshot, and a path in it.
    #[arg(value_name = "SNAPSHOT[:PATH]", value_parser = snapshot_path())]
    pub(crate) old: SnapshotPath,
    /// The newer snapshot, and a path in it.
    #[arg(value_name = "SNAPSHOT[:PATH]", value_parser = snapshot_path())]
    pub(crate) new: SnapshotPath,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// Snapshot and the file's path in it.
    #[arg(value_name = "SNAPSHOT:PATH", value_parser = snapshot_path())]
    pub(crate) file: SnapshotPath,
    /// Write to this file instead of standard output.
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Write to the standard input of this command, which has to succeed; it is killed if the file can't be had whole.
    #[arg(last = true, conflicts_with = "output", value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Read every pack too, and check every byte.
    #[arg(long)]
    pub(crate) read_data: bool,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

/// Which repository is to be cleared up, and how.
#[derive(Debug, Args)]
pub(crate) struct MaintainArgs {
    /// On the server's machine: the host whose repository it is [default: this host's own, which takes a permission of the
    /// server].
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// The repository's key file, which the host keeps [default: the key that is in escrow].
    #[arg(long, value_name = "FILE", requires = "host", value_hint = ValueHint::FilePath)]
    pub(crate) key_file: Option<PathBuf>,
    /// Say what would be done and remove nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Remove for good, and what was removed before as well: nothing of it is recoverable. Recorded in the audit log.
    #[arg(long, requires = "host")]
    pub(crate) break_retention: bool,
    /// Where this host prunes: free also what packs of file contents hold beside what is needed. These are read, which
    /// takes a permission to restore.
    #[arg(long, conflicts_with = "host")]
    pub(crate) repack_data: bool,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    #[command(flatten)]
    pub(crate) repository: MaintainArgs,
    /// Snapshots to forget, by id.
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) snapshots: Vec<String>,
    /// Keep the last N snapshots of each host and set of paths.
    #[arg(long, value_name = "N")]
    pub(crate) keep_last: Option<u32>,
    /// Keep one snapshot an hour for the last N hours that have any.
    #[arg(long, value_name = "N")]
    pub(crate) keep_hourly: Option<u32>,
    /// Keep one snapshot a day for the last N days that have any.
    #[arg(long, value_name = "N")]
    pub(crate) keep_daily: Option<u32>,
    /// Keep one snapshot a week for the last N weeks that have any.
    #[arg(long, value_name = "N")]
    pub(crate) keep_weekly: Option<u32>,
    /// Keep one snapshot a month for the last N months that have any.
    #[arg(long, value_name = "N")]
    pub(crate) keep_monthly: Option<u32>,
    /// Keep one snapshot a year for the last N years that have any.
    #[arg(long, value_name = "N")]
    pub(crate) keep_yearly: Option<u32>,
    /// Keep all that are no older than this, counted back from the newest.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) keep_within: Option<Duration>,
    /// Keep all that have this tag; may be repeated.
    #[arg(long = "keep-tag", value_name = "TAG")]
    pub(crate) keep_tags: Vec<String>,
    /// Forget snapshots by the policy although a flood of them came, far more in a day than ever before.
    #[arg(long)]
    pub(crate) count_flood: bool,
    /// Prune afterwards.
    #[arg(long)]
    pub(crate) prune: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    pub(crate) repository: MaintainArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// List the keys of a host's repository. Runs on the server's machine.
    List(KeyedArgs),
    /// Add a key, with a password of its own that is written to a new key file. Runs on the server's machine.
    Add(KeyAddArgs),
    /// Remove a key, so that its key file opens nothing any more. Runs on the server's machine.
    Remove(KeyRemoveArgs),
    /// Keep a host's key on the server, for forget and prune. Whoever has the server can read the host's backups then.
    /// Runs on the server's machine.
    Escrow(KeyEscrowArgs),
    /// Write this host's key on a sheet to be printed and kept: with it alone everything comes back. Runs on a client.
    Sheet(KeySheetArgs),
    /// Make a key file from a sheet.
    Recover(KeyRecoverArgs),
}

/// A host's repository, and the key that opens it.
#[derive(Debug, Args)]
pub(crate) struct KeyedArgs {
    /// The host whose repository it is.
    #[arg(long)]
    pub(crate) host: String,
    /// The repository's key file, which the host keeps [default: the key that is in escrow].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct KeyAddArgs {
    #[command(flatten)]
    pub(crate) repository: KeyedArgs,
    /// Where to write the new key file; nothing is overwritten.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) new_key_file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct KeyRemoveArgs {
    #[command(flatten)]
    pub(crate) repository: KeyedArgs,
    /// The key, by its id or the beginning of it.
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct KeyEscrowArgs {
    /// The host whose key it is.
    #[arg(long)]
    pub(crate) host: String,
    /// The key file to keep a copy of.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "remove")]
    pub(crate) key_file: Option<PathBuf>,
    /// Remove the copy that is kept.
    #[arg(long, conflicts_with = "key_file")]
    pub(crate) remove: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KeySheetArgs {
    /// Write the sheet to a new file, which is this user's alone.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "print")]
    pub(crate) output: Option<PathBuf>,
    /// Write the sheet to standard output, for a printer, say.
    #[arg(long, conflicts_with = "output")]
    pub(crate) print: bool,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct KeyRecoverArgs {
    /// Where to write the key file; nothing is overwritten.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key_file: PathBuf,
    /// Read the sheet from a file, `-` for standard input [default: ask for its lines].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) sheet: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PathArgs {
    /// The server to try [default: what the configuration says; without a port, at the port of that one].
    #[arg(value_name = "HOST[:PORT]", value_hint = ValueHint::Hostname)]
    pub(crate) host: Option<String>,
    /// The policy to try [default: what the configuration says, or else prefer-storage].
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) route: Option<RouteChoice>,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// State directory to look for processes in; may be repeated [default: those of the configurations of client and
    /// server, or of the one that --config names].
    #[arg(long = "state", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) states: Vec<PathBuf>,
    /// Print one view, and end; as it is where standard output is no terminal and --interval isn't given.
    #[arg(long)]
    pub(crate) once: bool,
    /// Time from one view to the next, over which rates are measured [default: 1s].
    #[arg(long, value_name = "DURATION", value_parser = parse_interval)]
    pub(crate) interval: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure storage sockets beside what their devices, and the network, do in the same run.
    Socket(BenchSocketArgs),
    /// The other process of a bench of storage sockets.
    #[command(hide = true)]
    SocketChild,
    /// A process of many members, for a bench of storage sockets.
    #[command(hide = true)]
    FleetChild,
    /// The other process of a bench of TLS.
    #[command(hide = true)]
    TlsChild,
}

#[derive(Debug, Args)]
pub(crate) struct BenchSocketArgs {
    /// Devices to format for it. What is on them is lost; afterwards they carry no pool.
    #[command(flatten)]
    pub(crate) devices: DevicesArgs,
    /// Make regular files of this size where there is no device yet, and remove them again.
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Measure these parts alone [default: all of them].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    pub(crate) only: Vec<BenchPart>,
    /// How long each measurement and each yardstick runs, once in a round.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "500ms")]
    pub(crate) slice: Duration,
    /// Rounds; measurements and yardsticks take turns in them, and the results are medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) rounds: u8,
    /// Write plots into this directory: throughput by frame size, and the distribution of latencies; and what they
    /// were drawn of, as JSON.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) plot: Option<PathBuf>,
    /// What does the I/O.
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    pub(crate) engine: EngineArg,
    /// Use devices that carry data. What was on them is lost.
    #[arg(long)]
    pub(crate) force: bool,
}

/// What a bench of storage sockets can measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BenchPart {
    /// Bytes a second, either way and both, beside the devices' raw limit.
    Throughput,
    /// CPU seconds per GiB beside TCP with TLS.
    Cpu,
    /// How long a small message takes, beside a raw write and read.
    Latency,
    /// What a listener costs whose members are silent and have no network, and how soon it hears one.
    Idle,
    /// Equal shares of clients that send at once.
    Share,
    /// Memory for frames beside its bound.
    Memory,
    /// Shares of two or more devices, and what the slowest of them costs.
    Stripe,
    /// Throughput by frame size, for the plot.
    Frames,
}

/// What does the I/O.
#[derive(Clone, Copy, Debug, ValueEnum, serde::Serialize, serde::Deserialize)]
pub(crate) enum EngineArg {
    /// io_uring, or threads where it is refused.
    Auto,
    /// io_uring.
    IoUring,
    /// A pool of threads.
    Threads,
}

impl From<EngineArg> for EngineChoice {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Auto => Self::Auto,
            EngineArg::IoUring => Self::IoUring,
            EngineArg::Threads => Self::ThreadPool,
        }
    }
}

/// A snapshot, as the user names it, and a path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotPath {
    /// The snapshot's id, the beginning of it, or `latest`.
    pub(crate) snapshot: String,
    /// The path; empty for the whole snapshot. Any bytes, as file names are.
    pub(crate) path: Vec<u8>,
}

fn snapshot_path() -> impl TypedValueParser<Value = SnapshotPath> {
    OsStringValueParser::new().try_map(|text| parse_snapshot_path(text.as_bytes()))
}

fn parse_snapshot_path(text: &[u8]) -> Result<SnapshotPath, String> {
    let (snapshot, path) = match text.iter().position(|byte| *byte == b':') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[][..]),
    };
    match std::str::from_utf8(snapshot) {
        Ok(snapshot) if !snapshot.is_empty() => Ok(SnapshotPath {
            snapshot: snapshot.to_owned(),
            path: path.to_owned(),
        }),
        _ => Err("a snapshot is named by its id, the beginning of it, or `latest`".to_owned()),
    }
}

/// Parses the time from one view to the next, which must leave the processes that are asked time for their work.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match interval >= Duration::from_millis(100) {
        true => Ok(interval),
        false => Err("100ms is the least".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn path_in_a_snapshot_may_be_any_bytes() {
        let parsed = parse_snapshot_path(b"latest:/a:b/\xff").unwrap();
        assert_eq!(parsed.snapshot, "latest");
        assert_eq!(parsed.path, b"/a:b/\xff");
        assert_eq!(parse_snapshot_path(b"3fa9").unwrap().path, b"");
        assert!(parse_snapshot_path(b":/etc").is_err());
        assert!(parse_snapshot_path(b"").is_err());
    }
}
