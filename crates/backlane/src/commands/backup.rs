//! `backlane backup`.

use super::{
    documents::{BackupDocument, WarningsDocument},
    mariadb::MariadbDocument,
    postgres::{self, PostgresDocument},
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
use backlane_client::{
    BackupOptions, BackupSummary, CommandLine, FileSystems, Parent, Signs, SourceOptions,
};

/// Backs up files and directories.
///
/// # Errors
/// When there is no snapshot. What could not be read is a warning.
pub(crate) fn run(args: &BackupArgs, context: &Context) -> Result<Outcome> {
    if let Some(cluster) = postgres::cluster(&args.cluster) {
        backlane_source::postgres::refuse_password(&cluster.connection)?;
    }
    let document = session::job("backup", context, &args.route, |client| {
        let hooks = Hooks::new(args, &client.config.backup);
        hooks.around(|| back_up(args, context, client))
    })?;
    context.output.result(&document, text)?;
    Ok(Outcome::from_warnings(document.warnings.count))
}

fn back_up(args: &BackupArgs, context: &Context, client: &Client) -> Result<BackupDocument> {
    let output = args.output_name.as_deref();
    let output = output.zip(CommandLine::new(args.command.clone()));
    let cluster = postgres::cluster(&args.cluster);
    let repository = client.repository_or_new(args.dry_run)?;
    let parent = match &args.files.parent {
        Some(wanted) => Parent::Snapshot(repository.resolve_readable(wanted)?.0.id),
        None if args.files.force => Parent::None,
        None => Parent::Newest,
    };
    let options = options(args, client, parent);
    let bar = Bar::new(context.output, client.carried());
    let cancel = context.cancel.token();
    let access = args.mariadb.access();
    let progress = bar.clone();
    let done = if let Some((name, command)) = &output {
        let output = (*name, command);
        backlane_client::backup_output(&repository, output, &options, progress, &cancel)
            .map(|summary| document(summary, client))
    } else if let Some(cluster) = &cluster {
        backlane_client::backup_postgres(&repository, cluster, &options, progress, &cancel).map(
            |(summary, backup)| BackupDocument {
                postgres: Some(PostgresDocument::new(backup)),
                ..document(summary, client)
            },
        )
    } else if args.mariadb.mariadb {
        backlane_client::backup_mariadb(&repository, &access, &options, progress, &cancel).map(
            |(summary, backup)| BackupDocument {
                mariadb: Some(MariadbDocument::Server(backup)),
                ..document(summary, client)
            },
        )
    } else if args.mariadb.mariadb_binlogs {
        backlane_client::backup_binlogs(&repository, &access, &options, progress, &cancel).map(
            |(summary, backup)| BackupDocument {
                mariadb: Some(MariadbDocument::Binlogs(backup)),
                ..document(summary, client)
            },
        )
    } else {
        backlane_client::backup(&repository, &options, progress, cancel)
            .map(|summary| document(summary, client))
    };
    bar.finish();
    Ok(done?)
}

fn options(args: &BackupArgs, client: &Client, parent: Parent) -> BackupOptions {
    let (files, config) = (&args.files, &client.config.backup);
    let mut excludes = config.excludes.clone();
    excludes.patterns.extend(files.excludes.iter().cloned());
    excludes.files.extend(files.exclude_files.iter().cloned());
    let rules = config.compression_rules.iter();
    let rules = rules.chain(&files.compression_rules).cloned();
    BackupOptions {
        paths: args.paths.clone(),
        sqlite: args.sqlite.clone(),
        copies_in: Some(client.config.state.clone()),
        source: SourceOptions {
            excludes,
            file_systems: if files.one_file_system {
                FileSystems::One
            } else {
                config.file_systems
            },
            access_times: config.access_times,
            compression: rules.collect(),
        },
        host: args
            .host
            .clone()
            .unwrap_or_else(|| client.host().to_owned()),
        time: args.time.map(Into::into),
        tags: args.tags.clone(),
        command: command(args),
        parent,
        signs: Signs {
            ctime: !(files.ignore_ctime || config.ignore_ctime),
            inode: !(files.ignore_inode || config.ignore_inode),
        },
        compression: args.compression.unwrap_or(config.compression),
        threads: args.threads,
        memory_bytes: args.memory.or(config.memory),
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
    if let Some(connection) = &args.cluster.postgres {
        words.extend(["--postgres".to_owned(), connection.clone()]);
    }
    for (flag, is_given) in [
        ("--mariadb", args.mariadb.mariadb),
        ("--mariadb-binlogs", args.mariadb.mariadb_binlogs),
    ] {
        words.extend(is_given.then(|| flag.to_owned()));
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
        postgres: None,
        mariadb: None,
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
    if let Some(postgres) = &document.postgres {
        text.push_str(&postgres.text());
    }
    if let Some(mariadb) = &document.mariadb {
        text.push_str(&mariadb.text());
    }
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
