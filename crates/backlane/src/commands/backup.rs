//! `backlane backup`.

use super::{
    documents::{BackupDocument, WarningsDocument},
    session::{self, Client},
};
use crate::{
    Context,
    cli::BackupArgs,
    hooks::Hooks,
    output::{Outcome, bytes, rate},
    progress::Bar,
};
use anyhow::Result;
use backlane_client::{BackupOptions, BackupSummary, CommandLine, FileSystems, SourceOptions};
use std::ffi::OsString;

/// Backs up files and directories.
///
/// # Errors
/// When there is no snapshot. What could not be read is a warning.
pub(crate) fn run(args: &BackupArgs, context: &Context) -> Result<Outcome> {
    let output = args.output_name.clone();
    let output = output.zip(CommandLine::new(args.command.clone()));
    let document = session::job("backup", context, &args.route, |client| {
        let hooks = Hooks::new(args, &client.config.backup);
        hooks.around(|| back_up(args, output.as_ref(), context, client))
    })?;
    context.output.result(&document, text)?;
    Ok(Outcome::from_warnings(document.warnings.count))
}

fn back_up(
    args: &BackupArgs,
    output: Option<&(OsString, CommandLine)>,
    context: &Context,
    client: &Client,
) -> Result<BackupDocument> {
    let options = options(args, client);
    let repository = client.repository_or_new(args.dry_run)?;
    let bar = Bar::new(context.output, client.carried());
    let cancel = context.cancel.token();
    let done = match output {
        Some((name, command)) => {
            let output = (name.as_os_str(), command);
            backlane_client::backup_output(&repository, output, &options, bar.clone(), &cancel)
        }
        None => backlane_client::backup(&repository, &options, bar.clone(), cancel),
    };
    bar.finish();
    Ok(document(done?, client))
}

fn options(args: &BackupArgs, client: &Client) -> BackupOptions {
    let mut excludes = client.config.backup.excludes.clone();
    excludes.patterns.extend(args.excludes.iter().cloned());
    excludes.files.extend(args.exclude_files.iter().cloned());
    BackupOptions {
        paths: args.paths.clone(),
        sqlite: args.sqlite.clone(),
        copies_in: Some(client.config.state.clone()),
        source: SourceOptions {
            excludes,
            file_systems: if args.one_file_system {
                FileSystems::One
            } else {
                client.config.backup.file_systems
            },
            access_times: client.config.backup.access_times,
        },
        host: args
            .host
            .clone()
            .unwrap_or_else(|| client.host().to_owned()),
        time: args.time.map(Into::into),
        tags: args.tags.clone(),
        command: command(args),
        dry_run: args.dry_run,
        ..BackupOptions::default()
    }
}

/// The command for the record. No option of it holds a secret.
fn command(args: &BackupArgs) -> String {
    let mut words = vec!["backlane backup".to_owned()];
    words.extend(args.paths.iter().map(|path| path.display().to_string()));
    for database in &args.sqlite {
        words.extend(["--sqlite".to_owned(), database.display().to_string()]);
    }
    if let Some(name) = &args.output_name {
        words.extend([
            "--command".to_owned(),
            name.display().to_string(),
            "--".to_owned(),
        ]);
        // What follows it may hold secrets.
        words.extend(
            args.command
                .first()
                .map(|program| program.display().to_string()),
        );
    }
    words.join(" ")
}

fn document(summary: BackupSummary, client: &Client) -> BackupDocument {
    let archive = &summary.archive;
    BackupDocument {
        snapshot: archive.snapshot.map(|id| id.to_string()),
        parent: archive.parent.map(|id| id.to_string()),
        dry_run: summary.dry_run,
        files: archive.files_new + archive.files_changed + archive.files_unmodified,
        files_new: archive.files_new,
        files_changed: archive.files_changed,
        directories: archive.dirs_new + archive.dirs_changed + archive.dirs_unmodified,
        bytes: archive.bytes_processed,
        bytes_added: archive.bytes_added,
        bytes_packed: archive.bytes_packed,
        packs_continued: archive.packs_continued,
        bytes_continued: archive.bytes_continued,
        packs_missing: archive.packs_missing,
        blobs_missing: archive.blobs_missing,
        blobs_stored_again: archive.blobs_stored_again,
        seconds: archive.seconds,
        routes: client.routes(),
        warnings: WarningsDocument::from(&summary.warnings),
    }
}

fn text(document: &BackupDocument) -> String {
    let mut text = match &document.snapshot {
        Some(snapshot) => format!("snapshot {}", &snapshot[..8.min(snapshot.len())]),
        None => "dry run, nothing was stored".to_owned(),
    };
    text.push_str(&format!(
        ": {} files ({} new, {} changed) in {} directories, {}\n\
         added {}, {} after compression, in {:.1} s ({})\n",
        document.files,
        document.files_new,
        document.files_changed,
        document.directories,
        bytes(document.bytes),
        bytes(document.bytes_added),
        bytes(document.bytes_packed),
        document.seconds,
        rate(document.bytes, document.seconds),
    ));
    if document.packs_continued > 0 {
        text.push_str(&format!(
            "continued: {} packs, {} of an interrupted backup are used\n",
            document.packs_continued,
            bytes(document.bytes_continued),
        ));
    }
    if document.packs_missing > 0 {
        text.push_str(&format!(
            "lost at the server: {} packs; {} of {} blobs that only they had are stored again\n",
            document.packs_missing, document.blobs_stored_again, document.blobs_missing,
        ));
    }
    text.push_str(&document.routes.text(document.seconds));
    text.push_str(&document.warnings.text());
    text
}
