//! `postgres-bench`: base backups and restores of one PostgreSQL cluster by Backlane and by pgBackRest, in turns, over
//! one wire, with the ratios: the table of `docs/performance.md`.
//!
//! Needs root, PostgreSQL, `apt-get install pgbackrest openssl`, and a release build of `backlane` beside it:
//! `cargo build --release --workspace`, then `target/release/postgres-bench`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{
    Client, Cluster, Clusters, Group, Process, Setup, Side, System, Wire, median, output,
    ready_for_postgresql, until,
};
use clap::Parser;

/// Base backups and restores beside pgBackRest's, each with TLS and an encrypted repository on a host of its own.
#[derive(Debug, Parser)]
struct Arguments {
    /// How much there is in the cluster, as pgbench counts it: 25 MiB for each.
    #[arg(long, default_value_t = 60)]
    scale: u64,
    /// What the wire carries, in megabits a second each way; 0 for no limit.
    #[arg(long, default_value_t = 1000)]
    mbit: u32,
    /// How often everything is done; the table has medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

const PGBACKREST: &str = "/usr/bin/pgbackrest";
const PORT: u16 = 8432;
const TOOLS: [&str; 2] = ["backlane", "pgbackrest"];
const WORK: [&str; 4] = [
    "full",
    "1 % changed",
    "restore",
    "restore over the cluster, 1 % changed",
];

/// What there is in the cluster.
const SUM: &str =
    "SELECT (SELECT md5(string_agg(id || ':' || md5(content), ',' ORDER BY id)) FROM noise)
    || (SELECT sum(abalance::bigint * aid) FROM pgbench_accounts)";

/// What one command took.
#[derive(Clone, Copy)]
struct Spent {
    seconds: f64,
    /// On the database's host.
    here_cpu: f64,
    /// At the repository.
    there_cpu: f64,
    wire_mib: f64,
    stored_mib: f64,
}

/// One of the tools with an empty repository.
trait Tool {
    fn backup(&self) -> Result<Command>;
    fn restore(&self, target: &Path) -> Result<Command>;
    fn repository(&self) -> Result<PathBuf>;
    /// What the work on the database's host, and at the repository, is counted in.
    fn groups(&self) -> [&Group; 2];
    /// In which of the groups a backup's own process, and a restore's, is.
    fn own_group(&self, work: usize) -> &Group;
}

/// Two hosts, with a cluster on one of them.
struct World {
    system: System,
    clusters: Arc<Clusters>,
    cluster: Cluster,
    scale: u64,
}

impl World {
    fn new(arguments: &Arguments) -> Result<Self> {
        let mbit = (arguments.mbit > 0).then_some(arguments.mbit);
        let system = System::new(&Setup {
            wire: Wire { mbit },
            pool_bytes: 1 << 30,
            ..Setup::default()
        })?;
        // What archives WAL is started by PostgreSQL, and has to reach the repository.
        system.lane.enter(Side::Client)?;
        let clusters = Clusters::new()?;
        let mut cluster = clusters.cluster("main", &["--data-checksums"])?;
        let config = clusters.path("database.conf");
        cluster.configure(&format!(
            "shared_buffers = 256MB\nmax_wal_size = 4GB\narchive_mode = on\n\
             archive_command = '{PGBACKREST} --config={} --stanza=main archive-push %p'\n",
            config.display()
        ))?;
        cluster.start(&["archive_command=true"])?;
        let scale = arguments.scale.to_string();
        output(cluster.program("pgbench").args(["-i", "-q", "-s", &scale]))?;
        let rows = arguments.scale * 10_000;
        cluster.sql(&format!(
            "CREATE EXTENSION pgcrypto;
             CREATE TABLE noise (id int PRIMARY KEY, content bytea);
             ALTER TABLE noise ALTER content SET STORAGE EXTERNAL;
             INSERT INTO noise SELECT id, gen_random_bytes(1000) FROM generate_series(1, {rows}) id"
        ))?;
        cluster.sql("VACUUM FREEZE ANALYZE")?;
        cluster.sql("CHECKPOINT")?;
        cluster.stop()?;
        cluster.start(&[])?;
        Ok(Self {
            system,
            clusters,
            cluster,
            scale: arguments.scale,
        })
    }

    /// Changes a hundredth of the rows, in eight places.
    fn change(&self, cluster: &Cluster, run: usize) -> Result<()> {
        for (table, key, rows, set) in [
            (
                "pgbench_accounts",
                "aid",
                100_000,
                "abalance = abalance + 1",
            ),
            ("noise", "id", 10_000, "content = gen_random_bytes(1000)"),
        ] {
            let rows = rows * self.scale;
            for place in 0..8 {
                let from = rows / 8 * place + rows / 64 * (run as u64 % 7);
                let to = from + rows / 800;
                cluster.sql(&format!(
                    "UPDATE {table} SET {set} WHERE {key} > {from} AND {key} <= {to}"
                ))?;
            }
        }
        cluster.sql("CHECKPOINT").map(drop)
    }

    fn measure(&self, tool: &dyn Tool, work: usize, command: &mut Command) -> Result<Spent> {
        output(&mut Command::new("sync"))?;
        let counted = || -> Result<[f64; 4]> {
            let [here, there] = tool.groups();
            Ok([
                here.cpu_seconds()?,
                there.cpu_seconds()?,
                mib(self.system.lane.bytes()?),
                mib(bytes_below(&tool.repository()?)?),
            ])
        };
        let before = counted()?;
        let process = Process::start(command, &self.system.path(""), Some(""))?;
        tool.own_group(work).add(process.id())?;
        let ended = process.wait()?.success()?;
        let after = counted()?;
        let [here_cpu, there_cpu, wire_mib, stored_mib] =
            std::array::from_fn(|at| after[at] - before[at]);
        Ok(Spent {
            seconds: ended.elapsed.as_secs_f64(),
            here_cpu,
            there_cpu,
            wire_mib,
            stored_mib,
        })
    }

    /// Starts what was restored, and compares what is in it.
    fn verify(&self, restored: &mut Cluster, wanted: &str) -> Result<()> {
        restored.start(&["archive_mode=off"])?;
        restored.says("SELECT pg_is_in_recovery()", "f")?;
        ensure!(restored.sql(SUM)? == wanted, "something else was restored");
        Ok(())
    }

    fn run(&self, run: usize, rows: &mut Vec<(usize, usize, Spent)>) -> Result<()> {
        let tools: [Box<dyn Tool + '_>; 2] = [
            Box::new(Backlane::new(self, run)?),
            Box::new(PgBackRest::new(self)?),
        ];
        let order = [run % 2, (run + 1) % 2];
        let mut note = |work: usize, tool: usize, spent: Spent| {
            eprintln!("{}: {}: {:.1} s", TOOLS[tool], WORK[work], spent.seconds);
            rows.push((work, tool, spent));
        };
        for work in 0..2 {
            if work == 1 {
                self.change(&self.cluster, run)?;
            }
            for tool in order {
                let mut backup = tools[tool].backup()?;
                note(work, tool, self.measure(&*tools[tool], work, &mut backup)?);
            }
        }
        let wanted = self.cluster.sql(SUM)?;
        for tool in order {
            let mut restored = self.clusters.restored(TOOLS[tool]);
            for work in 2..4 {
                let mut restore = tools[tool].restore(&restored.data)?;
                note(work, tool, self.measure(&*tools[tool], work, &mut restore)?);
                self.verify(&mut restored, &wanted)?;
                if work == 2 {
                    self.change(&restored, run + 1)?;
                }
                restored.stop()?;
            }
            fs::remove_dir_all(&restored.data)?;
        }
        Ok(())
    }
}

struct Backlane<'a> {
    world: &'a World,
    client: Client,
    groups: [Group; 2],
}

impl<'a> Backlane<'a> {
    fn new(world: &'a World, run: usize) -> Result<Self> {
        let client = world.system.client(&format!("run{run}"))?;
        // There are no objects of a host before its first backup.
        let empty = world.system.path("empty");
        fs::create_dir_all(&empty)?;
        world.system.backup(&client, &empty, &[])?.success()?;
        let groups = [Group::new("here")?, Group::new("there")?];
        groups[1].add(world.system.server_id()?)?;
        Ok(Self {
            world,
            client,
            groups,
        })
    }

    fn command(&self) -> Command {
        self.world.system.client_command(&self.client)
    }
}

impl Tool for Backlane<'_> {
    fn backup(&self) -> Result<Command> {
        let mut backup = self.command();
        backup.args(["backup", "--wal", "include", "--checkpoint", "fast"]);
        backup.args(["--postgres", &self.world.cluster.connection()]);
        Ok(backup)
    }

    fn restore(&self, target: &Path) -> Result<Command> {
        let mut restore = self.command();
        restore.args(["restore", "latest", "--postgres", "--target"]);
        restore.arg(target);
        if target.exists() {
            restore.arg("--delta");
        }
        Ok(restore)
    }

    fn repository(&self) -> Result<PathBuf> {
        self.world.system.repository(&self.client)
    }

    fn groups(&self) -> [&Group; 2] {
        self.groups.each_ref()
    }

    fn own_group(&self, _: usize) -> &Group {
        &self.groups[0]
    }
}

struct PgBackRest<'a> {
    world: &'a World,
    groups: [Group; 2],
    /// One on each host.
    _servers: [Process; 2],
}

impl<'a> PgBackRest<'a> {
    fn new(world: &'a World) -> Result<Self> {
        let clusters = &world.clusters;
        let repository = clusters.path("repository");
        if repository.exists() {
            fs::remove_dir_all(&repository)?;
        }
        clusters.directory("repository")?;
        certificates(clusters)?;
        for (side, name) in [(Side::Client, "database"), (Side::Server, "repository")] {
            configure(world, side, name)?;
        }
        let groups = [Group::new("here")?, Group::new("there")?];
        let server = |side, name: &str, group: &Group| -> Result<Process> {
            let mut command = program(world, side, name, "server");
            let server = Process::start(&mut command, &world.system.path(""), None)?;
            group.add(server.id())?;
            Ok(server)
        };
        let servers = [
            server(Side::Client, "database", &groups[0])?,
            server(Side::Server, "repository", &groups[1])?,
        ];
        let mut why = None;
        let created = || {
            let mut create = program(world, Side::Server, "repository", "stanza-create");
            why = output(&mut create).err();
            Ok(why.is_none())
        };
        until("pgBackRest's servers answer", created).with_context(|| {
            format!("{why:?} {}", servers.each_ref().map(Process::said).concat())
        })?;
        Ok(Self {
            world,
            groups,
            _servers: servers,
        })
    }
}

impl Tool for PgBackRest<'_> {
    fn backup(&self) -> Result<Command> {
        // The first one of a repository is full, whatever is asked.
        let mut backup = program(self.world, Side::Server, "repository", "backup");
        backup.arg("--type=incr");
        Ok(backup)
    }

    fn restore(&self, target: &Path) -> Result<Command> {
        let mut restore = program(self.world, Side::Client, "database", "restore");
        if target.exists() {
            restore.arg("--delta");
        } else {
            let name = target.file_name().and_then(|name| name.to_str());
            self.world.clusters.directory(name.context("a name")?)?;
        }
        restore.arg(format!("--pg1-path={}", target.display()));
        Ok(restore)
    }

    fn repository(&self) -> Result<PathBuf> {
        Ok(self.world.clusters.path("repository/backup"))
    }

    fn groups(&self) -> [&Group; 2] {
        self.groups.each_ref()
    }

    fn own_group(&self, work: usize) -> &Group {
        // It makes backups from the repository's host.
        &self.groups[usize::from(work < 2)]
    }
}

/// pgBackRest on one of the hosts, as the cluster's user.
fn program(world: &World, side: Side, name: &str, what: &str) -> Command {
    let as_user = world.clusters.program(PGBACKREST);
    let mut command = world.system.lane.command(side, as_user.get_program());
    command.args(as_user.get_args());
    command
        .arg("--config")
        .arg(world.clusters.path(format!("{name}.conf")));
    command.arg(what);
    if what != "server" {
        command.arg("--stanza=main");
    }
    command
}

/// Certificates for both hosts, each in the name of its address, and what signs them.
fn certificates(clusters: &Clusters) -> Result<()> {
    if clusters.path("ca.crt").exists() {
        return Ok(());
    }
    let openssl = |arguments: String| -> Result<()> {
        let mut openssl = clusters.program("/usr/bin/openssl");
        output(openssl.args(arguments.split(' '))).map(drop)
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(format!(
        "req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=bench"
    ))?;
    for side in [Side::Client, Side::Server] {
        let address = side.address();
        openssl(format!(
            "req {key} -keyout {address}.key -out {address}.csr -subj /CN={address}"
        ))?;
        openssl(format!(
            "x509 -req -in {address}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {address}.crt -days 2"
        ))?;
    }
    Ok(())
}

/// Writes a host's configuration.
fn configure(world: &World, side: Side, name: &str) -> Result<()> {
    let clusters = &world.clusters;
    let directory = clusters.path("");
    let directory = directory.to_string_lossy();
    let directory = directory.trim_end_matches('/');
    let (own, other) = match side {
        Side::Client => (side.address(), Side::Server.address()),
        Side::Server => (side.address(), Side::Client.address()),
    };
    let peer = |what: &str, config: &str| {
        format!(
            "{what}-host={other}\n{what}-host-type=tls\n{what}-host-config={directory}/{config}.conf\n\
             {what}-host-ca-file={directory}/ca.crt\n{what}-host-cert-file={directory}/{own}.crt\n\
             {what}-host-key-file={directory}/{own}.key\n"
        )
    };
    // What a host can't have of the other's is in the other's configuration.
    let (global, stanza) = match side {
        Side::Client => (peer("repo1", "repository"), String::new()),
        Side::Server => (
            format!(
                "repo1-path={directory}/repository\nrepo1-bundle=y\nrepo1-cipher-type=aes-256-cbc\n\
                 repo1-cipher-pass=correct horse battery staple\n"
            ),
            peer("pg1", "database"),
        ),
    };
    let port = world.cluster.sql("SHOW port")?;
    let data = world.cluster.data.display();
    let text = format!(
        "[global]\ncompress-type=zst\nprocess-max=2\nstart-fast=y\nlog-level-file=off\n\
         log-level-console=warn\nlock-path={directory}/lock-{name}\nspool-path={directory}/spool\n\
         tls-server-address={own}\ntls-server-port={PORT}\ntls-server-auth={other}=main\n\
         tls-server-ca-file={directory}/ca.crt\ntls-server-cert-file={directory}/{own}.crt\n\
         tls-server-key-file={directory}/{own}.key\n{global}\n\
         [main]\n{stanza}pg1-path={data}\npg1-port={port}\npg1-socket-path={directory}\npg1-user=postgres\n"
    );
    fs::write(clusters.path(format!("{name}.conf")), text)?;
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// How long the files below a directory are together.
fn bytes_below(directory: &Path) -> Result<u64> {
    if !directory.exists() {
        return Ok(0);
    }
    let printed = output(Command::new("du").args(["-sb"]).arg(directory))?;
    let bytes = printed.split_whitespace().next().context("no size")?;
    bytes.parse().context("a size")
}

fn print(rows: &[(usize, usize, Spent)]) {
    println!(
        "| work | tool | seconds | CPU seconds | of which at the database | stored MiB | on the wire MiB | time × pgBackRest | CPU there × |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (work, what) in WORK.iter().enumerate() {
        for (tool, name) in TOOLS.iter().enumerate() {
            let middle = |tool: usize, of: fn(&Spent) -> f64| {
                let of_both = rows.iter().filter(|row| (row.0, row.1) == (work, tool));
                median(of_both.map(|row| of(&row.2)).collect())
            };
            let ratio = |of: fn(&Spent) -> f64| middle(tool, of) / middle(1, of);
            println!(
                "| {what} | {name} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.2} | {:.2} |",
                middle(tool, |spent| spent.seconds),
                middle(tool, |spent| spent.here_cpu + spent.there_cpu),
                middle(tool, |spent| spent.here_cpu),
                middle(tool, |spent| spent.stored_mib),
                middle(tool, |spent| spent.wire_mib),
                ratio(|spent| spent.seconds),
                ratio(|spent| spent.here_cpu),
            );
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if !ready_for_postgresql() {
        return Ok(ExitCode::FAILURE);
    }
    ensure!(
        Path::new(PGBACKREST).exists(),
        "no pgBackRest: `apt-get install pgbackrest` has it"
    );
    let world = World::new(&arguments)?;
    let mut rows = Vec::new();
    for run in 0..arguments.runs {
        world.run(run, &mut rows)?;
    }
    print(&rows);
    Ok(ExitCode::SUCCESS)
}
