//! Commands of the administrator's that a backup runs before it reads anything, and after it has ended.
//!
//! Invariant: the one after is run whenever the one before was started, however that one and the backup end, so that what
//! was made for the backup (a snapshot of a volume, a mount) is taken away again.

use crate::{
    cli::BackupArgs,
    commands::documents::{BackupDocument, WarningDocument},
    config::BackupSection,
};
use anyhow::{Context as _, Result, bail};
use std::{
    io,
    process::{Command, Stdio},
};

/// The commands, each for `sh -c`.
#[derive(Default)]
pub(crate) struct Hooks<'a> {
    before: Option<&'a str>,
    after: Option<&'a str>,
}

impl<'a> Hooks<'a> {
    /// Those of the command line, or else of the configuration. A dry run has none.
    pub(crate) fn new(args: &'a BackupArgs, configured: &'a BackupSection) -> Self {
        if args.dry_run {
            return Self::default();
        }
        Self {
            before: args.before.as_deref().or(configured.before.as_deref()),
            after: args.after.as_deref().or(configured.after.as_deref()),
        }
    }

    /// Runs a backup between the two.
    ///
    /// # Errors
    /// The backup's own, or when the command before it fails; there is no snapshot then. One after it that fails is a
    /// warning, for the snapshot is there.
    pub(crate) fn around(
        &self,
        backup: impl FnOnce() -> Result<BackupDocument>,
    ) -> Result<BackupDocument> {
        let before = self
            .before
            .map_or(Ok(()), |command| run(command, "before", &[]));
        let mut done = before
            .context("nothing was backed up")
            .and_then(|()| backup());
        let Some(after) = self.after else {
            return done;
        };
        let (result, snapshot) = match &done {
            Ok(done) if done.warnings.count > 0 => ("warnings", done.snapshot.as_deref()),
            Ok(done) => ("done", done.snapshot.as_deref()),
            Err(_) => ("failed", None),
        };
        let about = [
            ("BACKLANE_RESULT", result),
            ("BACKLANE_SNAPSHOT", snapshot.unwrap_or_default()),
        ];
        if let Err(error) = run(after, "after", &about) {
            tracing::warn!("{error:#}");
            if let Ok(done) = &mut done {
                done.warnings.add(WarningDocument {
                    kind: "hook".to_owned(),
                    path: String::new(),
                    what: format!("{error:#}"),
                });
            }
        }
        done
    }
}

/// Runs a command; what it writes goes to standard error, for standard output is the document's.
fn run(command: &str, when: &str, about: &[(&str, &str)]) -> Result<()> {
    let status = Command::new("sh")
        .args(["-c", command])
        .envs(about.iter().copied())
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("cannot start a shell for the command {when} the backup"))?;
    if !status.success() {
        bail!("the command {when} the backup failed ({status})");
    }
    Ok(())
}
