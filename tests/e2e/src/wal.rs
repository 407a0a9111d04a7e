//! What tests of the write-ahead log begin with.

use std::fs;
use std::sync::Arc;

use anyhow::Result;

use crate::postgres::Clusters;
use crate::process::{Process, until};
use crate::system::{Client, Setup, System};

/// A host that has a repository and may read its WAL, and a place for its clusters. `None` where this machine can't run
/// them; that was said then.
///
/// # Errors
/// When any step fails.
pub fn wal_host() -> Result<Option<(System, Client, Arc<Clusters>)>> {
    wal_host_of(&Setup::default())
}

/// The same with a system of one's own choice.
///
/// # Errors
/// As [`wal_host`].
pub fn wal_host_of(setup: &Setup) -> Result<Option<(System, Client, Arc<Clusters>)>> {
    if !crate::ready_for_postgresql() {
        return Ok(None);
    }
    let system = System::new(setup)?;
    let client = system.client("alpha")?;
    // The first backup makes the repository.
    let source = system.path("source");
    fs::create_dir(&source)?;
    system.backup(&client, &source, &[])?.success()?;
    system.administer(&["allow-wal", "alpha"])?;
    Ok(Some((system, client, Clusters::new()?)))
}

/// Starts `wal run` at `wal.sock` beside the clusters, and waits until it listens.
///
/// # Errors
/// When it doesn't.
pub fn start_spooler(system: &System, client: &Client, clusters: &Clusters) -> Result<Process> {
    let mut run = system.client_command(client);
    run.args(["--verbose", "wal", "run", "--group", "postgres", "--socket"]);
    run.arg(clusters.path("wal.sock"));
    let spooler = Process::start(&mut run, &system.path(""), Some(""))?;
    until("the spooler listens", || {
        Ok(spooler.said().contains("serving"))
    })?;
    Ok(spooler)
}
