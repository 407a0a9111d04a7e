//! The whole system on one machine, without configuration and without root, verified against the source.
//!
//! Server and client are processes of their own, started from this program's own file with the same commands that a
//! user types; between them are real TLS and a pool in a file. Nothing of the user's is changed: the demo writes into
//! a directory of its own, which it removes at the end, whatever the end is.

mod compare;
mod process;
mod summary;
mod tree;

use crate::{
    Context,
    cli::DemoArgs,
    commands::documents::{BackupDocument, EnrollDocument, RestoreDocument},
    failure::Advise,
    output::Outcome,
};
use anyhow::{Context as _, Result, bail};
use process::{Program, Server};
use serde::de::IgnoredAny;
use std::{
    ffi::{OsStr, OsString},
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Instant,
};
use summary::DemoDocument;
use tempfile::TempDir;

/// The name under which the demo's client is enrolled.
const HOST: &str = "demo-host";

/// Runs the demo.
///
/// # Errors
/// When any of its steps fails. That something restored differs is no error but the result, which is printed.
pub(crate) fn run(args: &DemoArgs, context: &Context) -> Result<Outcome> {
    let workshop = Workshop::new(args)?;
    let done = context.runtime.block_on(play(args, context, &workshop));
    let kept = workshop.close(args.keep, context);
    let document = done?;
    kept?;
    context.output.result(&document, DemoDocument::text)?;
    if document.verified {
        Ok(Outcome::from_warnings(document.warnings))
    } else {
        Ok(Outcome::Failed)
    }
}

/// Where the demo works.
struct Workshop {
    directory: TempDir,
    source: Source,
}

/// What is backed up.
enum Source {
    /// A tree of the demo's own, which it may change between the backups.
    Made,
    /// The user's, which it may not; a small directory beside it changes instead.
    Named(PathBuf),
}

impl Workshop {
    fn new(args: &DemoArgs) -> Result<Self> {
        let source = match &args.path {
            None => Source::Made,
            Some(path) => Source::Named(
                path.canonicalize()
                    .with_context(|| format!("cannot find {}", path.display()))?,
            ),
        };
        let directory = match &args.dir {
            Some(parent) => temporary(parent)?,
            None => first_with_direct_io()?,
        };
        Ok(Self { directory, source })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The tree that the demo makes: all that is backed up, or the part of it that changes.
    fn own_tree(&self) -> PathBuf {
        self.at("source")
    }

    /// What is backed up.
    fn sources(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::Made => vec![self.own_tree()],
            Source::Named(path) => vec![path.clone(), self.own_tree()],
        }
    }

    /// Removes everything, or says how to look around in it.
    fn close(self, keep: bool, context: &Context) -> Result<()> {
        let path = self.directory.path().to_owned();
        if keep {
            let path = self.directory.keep();
            context.output.note(summary::look_around(&path));
            return Ok(());
        }
        self.directory
            .close()
            .with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// A tree that is small enough to be beside what the user named.
const CHANGING_TREE_BYTES: u64 = 4 << 20;

async fn play(args: &DemoArgs, context: &Context, workshop: &Workshop) -> Result<DemoDocument> {
    let note = |text: &str| context.output.note(text);
    let program = Program::itself(context.cancel.clone())?;
    let bytes = match workshop.source {
        Source::Made => args.size,
        Source::Named(_) => CHANGING_TREE_BYTES,
    };
    note("making the tree to back up");
    let missing = tree::make(&workshop.own_tree(), bytes)?;
    if !missing.0.is_empty() {
        note(&format!(
            "this file system has no {}: the tree goes without",
            missing.0.join(", ")
        ));
    }
    note("making a pool in a file, a server, and enrolling a client");
    let mut server = set_up(args, &program, workshop).await?;
    let job = jobs(context, &program, workshop).await;
    match job {
        Ok(document) => {
            server.stop().await?;
            Ok(document)
        }
        Err(error) if context.cancel.is_set() => {
            // The interruption is what is told; the server was only asked to go.
            let _ = server.stop().await;
            Err(error)
        }
        Err(error) => {
            let log = server.lost("the server's side of it").await;
            Err(error.context(log.to_string()))
        }
    }
}

/// Pool, server and enrolment; returns the server, which runs.
async fn set_up(args: &DemoArgs, program: &Program, workshop: &Workshop) -> Result<Server> {
    let pool = workshop.at("pool.img");
    let (server_config, client_config) = (workshop.at("server.toml"), workshop.at("client.toml"));
    let address = free_address()?;
    let run = async |config: &Path, arguments: Vec<OsString>| -> Result<()> {
        let _: IgnoredAny = program.run(config, &arguments).await?;
        Ok(())
    };
    let size = args.pool_size.to_string();
    run(
        &server_config,
        words(
            ["pool", "create", "--name", "demo", "--size", &size],
            [&pool],
        ),
    )
    .await
    .advise("another place for the demo's directory can be given with --dir")?;
    let state = workshop.at("server");
    let mut init = words(
        ["server", "init", "--address", &address, "--state"],
        [&state],
    );
    init.extend(words(["--listen", &address, "--pool"], [&pool]));
    run(&server_config, init).await?;
    let server = program
        .serve(&server_config, &workshop.at("server.log"))
        .await?;
    let enroll: EnrollDocument = program
        .run(
            &server_config,
            &["server", "enroll", HOST].map(OsString::from),
        )
        .await?;
    let token = workshop.at("token");
    fs::write(&token, enroll.token).with_context(|| format!("cannot write {}", token.display()))?;
    let mut join = words(["join", "--token-file"], [&token]);
    join.extend(words(["--state"], [&workshop.at("client")]));
    join.extend(words(["--device"], [&pool]));
    run(&client_config, join).await?;
    let allow = ["server", "allow-restore", HOST].map(OsString::from);
    run(&server_config, allow.to_vec()).await?;
    Ok(server)
}

/// Backup, changes, backup, restore, comparison.
async fn jobs(context: &Context, program: &Program, workshop: &Workshop) -> Result<DemoDocument> {
    let note = |text: &str| context.output.note(text);
    let config = workshop.at("client.toml");
    let sources = workshop.sources();
    let backup = words(["backup"], &sources);
    note("first backup");
    let first: BackupDocument = program.run(&config, &backup).await?;
    let changed = tree::change(&workshop.own_tree())?;
    note("second backup, after small changes");
    let second: BackupDocument = program.run(&config, &backup).await?;
    let snapshot = second
        .snapshot
        .clone()
        .context("the backup did not say which snapshot it made")?;
    let mut restores = Vec::new();
    let mut targets = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        note(&format!("restore of {}", source.display()));
        let target = workshop.at("restored").join(number.to_string());
        let mut what = OsString::from(format!("{snapshot}:"));
        what.push(source);
        let restored: RestoreDocument = program
            .run(
                &config,
                &words(
                    ["restore"],
                    [Path::new(&what), "--target".as_ref(), &target],
                ),
            )
            .await?;
        restores.push(restored);
        targets.push(target);
    }
    note("comparing what was restored with its source");
    let start = Instant::now();
    let compared = tokio::task::spawn_blocking(move || {
        sources
            .iter()
            .zip(&targets)
            .map(|(source, target)| compare::compare(source, &restored_at(source, target)))
            .collect::<Vec<_>>()
    });
    let found = tokio::select! {
        found = compared => found.context("the comparison ended early")?,
        () = context.cancel.wait() => bail!("interrupted during the comparison"),
    };
    Ok(DemoDocument::new(
        &first,
        &second,
        &restores,
        changed,
        &found,
        start.elapsed(),
    ))
}

/// Where `restore SNAPSHOT:SOURCE --target TARGET` puts SOURCE: a directory becomes the target, a file stands in it.
fn restored_at(source: &Path, target: &Path) -> PathBuf {
    match source.file_name() {
        Some(name) if !source.is_dir() => target.join(name),
        _ => target.to_owned(),
    }
}

fn words<const N: usize, P: AsRef<OsStr>>(
    words: [&str; N],
    paths: impl IntoIterator<Item = P>,
) -> Vec<OsString> {
    words
        .iter()
        .map(OsString::from)
        .chain(paths.into_iter().map(|path| path.as_ref().to_owned()))
        .collect()
}

/// An address on this machine that nothing listens on.
fn free_address() -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .context("cannot find a free port on this machine")?;
    Ok(listener.to_string())
}

fn temporary(parent: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("backlane-demo-")
        .tempdir_in(parent)
        .with_context(|| format!("cannot make a directory in {}", parent.display()))
}

/// The first of the usual places whose file system takes direct I/O, which some do not.
fn first_with_direct_io() -> Result<TempDir> {
    let mut refused = Vec::new();
    let places = [std::env::var_os("TMPDIR").map(PathBuf::from)]
        .into_iter()
        .flatten()
        .chain(["/var/tmp", "/tmp", "."].map(PathBuf::from));
    for place in places {
        match temporary(&place).and_then(|directory| {
            takes_direct_io(directory.path())?;
            Ok(directory)
        }) {
            Ok(directory) => return Ok(directory),
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    Err(anyhow::anyhow!(
        "no place to work in: {}",
        refused.join("; ")
    ))
    .advise("name a directory on a disk with --dir")
}

fn takes_direct_io(directory: &Path) -> Result<()> {
    use rustix::fs::{Mode, OFlags};
    let file = directory.join("probe");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(&file, flags, Mode::from(0o600))
        .with_context(|| format!("{} does not take direct I/O", directory.display()))?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
}
