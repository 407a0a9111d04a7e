//! Commands that only read a repository: snapshots, ls, find, diff, dump, check.
//!
//! A damaged object costs what it holds: it is named, everything else is shown, and the exit code is 3.
//!
//! Paths are bytes. In text they are printed as they are, so that another program can use them; in a document bytes
//! that are not UTF-8 are replaced, and the exact bytes stand beside in hexadecimal.

use super::{damage::Damage, session};
use crate::{
    Context,
    cli::{CheckArgs, DiffArgs, DumpArgs, FindArgs, LsArgs, SnapshotPath, SnapshotsArgs},
    failure::Usage,
    output::{Outcome, StdoutClosed, bytes, table, write_stdout},
    progress::Phases,
};
use anyhow::{Context as _, Result, bail};
use backlane_client::CommandLine;
use backlane_repo::{
    BlobId, ChangeKind, CheckOptions, CheckReport, FileKind, Node, Reader, Repository,
    SnapshotInfo, Visit,
};
use serde::Serialize;
use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
};

#[derive(Serialize)]
struct SnapshotsDocument {
    snapshots: Vec<SnapshotInfo>,
    damaged: Damage,
}

/// Lists snapshots.
///
/// # Errors
/// When the repository can't be read.
pub(crate) fn snapshots(args: &SnapshotsArgs, context: &Context) -> Result<Outcome> {
    let document = session::with("snapshots", context, &args.route, |client| {
        let mut damaged = Damage::none(context);
        let mut snapshots = damaged.snapshots(&client.repository()?)?;
        if let Some(tag) = &args.tag {
            snapshots.retain(|snapshot| snapshot.tags.contains(tag));
        }
        Ok(SnapshotsDocument { snapshots, damaged })
    })?;
    context.output.result(&document, |document| {
        let head = ["id", "time", "host", "size", "tags", "paths"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(document.snapshots.iter().map(|snapshot| {
            let size = snapshot.summary.as_ref().map(|s| bytes(s.bytes_processed));
            let time = snapshot
                .time
                .get(..19)
                .unwrap_or(&snapshot.time)
                .replace('T', " ");
            let warned = snapshot.warnings.is_some_and(|count| count > 0);
            vec![
                snapshot.id.to_string()[..8].to_owned(),
                if warned {
                    format!("{time} (warnings)")
                } else {
                    time
                },
                snapshot.host.clone(),
                size.unwrap_or_default(),
                snapshot.tags.join(","),
                snapshot.paths.join(" "),
            ]
        }));
        table(&rows)
    })?;
    Ok(document.damaged.outcome())
}

/// One entry of a snapshot, in a document.
#[derive(Serialize)]
struct EntryDocument {
    #[serde(flatten)]
    path: PathDocument,
    kind: &'static str,
    size: u64,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified_seconds: Option<i64>,
    modified_nanoseconds: Option<u32>,
}

/// A path in a document.
#[derive(Serialize)]
struct PathDocument {
    path: String,
    /// The exact bytes, where `path` can't hold them.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
}

impl PathDocument {
    fn new(path: &[u8]) -> Self {
        Self {
            path: String::from_utf8_lossy(path).into_owned(),
            path_hex: std::str::from_utf8(path).err().map(|_| hex::encode(path)),
        }
    }
}

impl EntryDocument {
    fn new(path: &[u8], node: &Node) -> Self {
        let modified = node.meta.modified;
        Self {
            path: PathDocument::new(path),
            kind: kind(&node.kind),
            size: node.meta.size,
            mode: node.meta.mode,
            uid: node.meta.uid,
            gid: node.meta.gid,
            modified_seconds: modified.map(|time| time.seconds),
            modified_nanoseconds: modified.map(|time| time.nanoseconds),
        }
    }
}

fn kind(kind: &FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink { .. } => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::BlockDevice { .. } => "block-device",
        FileKind::CharDevice { .. } => "char-device",
        FileKind::Unknown { .. } => "unknown",
    }
}

/// A line as `ls -l` has it, without what differs from host to host.
fn line(path: &[u8], node: &Node) -> Vec<u8> {
    let letter = match &node.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink { .. } => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::BlockDevice { .. } => 'b',
        FileKind::CharDevice { .. } => 'c',
        FileKind::Unknown { .. } => '?',
    };
    let modified = node
        .meta
        .modified
        .and_then(|time| jiff::Timestamp::from_second(time.seconds).ok())
        .map_or_else(String::new, |time| {
            time.strftime("%Y-%m-%d %H:%M:%S").to_string()
        });
    let owner = |id: Option<u32>| id.map_or_else(|| "?".to_owned(), |id| id.to_string());
    let mut line = format!(
        "{letter}{:04o} {:>6} {:>6} {:>12} {modified:>19} ",
        node.meta.mode.unwrap_or(0),
        owner(node.meta.uid),
        owner(node.meta.gid),
        node.meta.size
    )
    .into_bytes();
    line.extend_from_slice(&shown(path));
    if let FileKind::Symlink { target } = &node.kind {
        line.extend_from_slice(b" -> ");
        line.extend_from_slice(&shown(target));
    }
    line.push(b'\n');
    line
}

/// A name as it is printed: as it is for a program, without what could play tricks for a terminal.
fn shown(name: &[u8]) -> Cow<'_, [u8]> {
    if name.iter().any(u8::is_ascii_control) && io::stdout().is_terminal() {
        let plain = |byte: &u8| if byte.is_ascii_control() { b'?' } else { *byte };
        name.iter().map(plain).collect::<Vec<_>>().into()
    } else {
        name.into()
    }
}

/// Collects entries for a document, or prints them as they come.
struct Listing {
    json: bool,
    entries: Vec<EntryDocument>,
    pending: Vec<u8>,
    failed: Option<anyhow::Error>,
}

/// Text is written when so much has come together.
const PENDING_BYTES_MAX: usize = 64 << 10;

impl Listing {
    fn new(context: &Context) -> Self {
        Self {
            json: context.output.is_json(),
            entries: Vec::new(),
            pending: Vec::new(),
            failed: None,
        }
    }

    fn push(&mut self, path: &[u8], node: &Node) -> Visit {
        if self.json {
            self.entries.push(EntryDocument::new(path, node));
        } else {
            self.pending.extend_from_slice(&line(path, node));
            if self.pending.len() >= PENDING_BYTES_MAX {
                self.write();
            }
        }
        if self.failed.is_some() {
            Visit::Stop
        } else {
            Visit::Continue
        }
    }

    fn write(&mut self) {
        if self.failed.is_none()
            && let Err(error) = write_stdout(&std::mem::take(&mut self.pending))
        {
            self.failed = Some(error);
        }
    }

    fn finish(mut self) -> Result<Vec<EntryDocument>> {
        self.write();
        self.failed.map_or(Ok(self.entries), Err)
    }
}

/// A snapshot, and the node at a path in it.
fn locate(
    repository: &Repository,
    reader: &Reader,
    wanted: &SnapshotPath,
    damaged: &mut Damage,
) -> Result<(SnapshotInfo, Node)> {
    let snapshot = damaged.resolve(repository, &wanted.snapshot)?;
    let node = reader.node_at(snapshot.tree, &wanted.path)?;
    Ok((snapshot, node))
}

#[derive(Serialize)]
struct LsDocument {
    snapshot: String,
    entries: Vec<EntryDocument>,
    damaged: Damage,
}

/// Lists a snapshot, or what is below a path of it.
///
/// # Errors
/// When there is no such snapshot or path, or it can't be read.
pub(crate) fn ls(args: &LsArgs, context: &Context) -> Result<Outcome> {
    let document = session::with("ls", context, &args.route, |client| {
        let mut damaged = Damage::none(context);
        let repository = client.repository()?;
        let reader = damaged.reader(&repository)?;
        let (snapshot, node) = locate(&repository, &reader, &args.snapshot, &mut damaged)?;
        let mut listing = Listing::new(context);
        let prefix = trimmed(&args.snapshot.path);
        match node.subtree {
            Some(tree) => {
                let unread =
                    reader.walk(tree, prefix, &mut |path, node| listing.push(path, node))?;
                damaged.note_unread(&unread);
            }
            None => {
                listing.push(prefix, &node);
            }
        }
        Ok(LsDocument {
            snapshot: snapshot.id.to_string(),
            entries: listing.finish()?,
            damaged,
        })
    })?;
    if context.output.is_json() {
        context.output.result(&document, |_| String::new())?;
    }
    Ok(document.damaged.outcome())
}

/// A path without slashes at its end, so that what is below it can be joined.
fn trimmed(path: &[u8]) -> &[u8] {
    let end = path
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(0, |at| at + 1);
    &path[..end]
}

#[derive(Serialize)]
struct FindDocument {
    matches: Vec<FoundDocument>,
    damaged: Damage,
}

#[derive(Serialize)]
struct FoundDocument {
    snapshot: String,
    entries: Vec<EntryDocument>,
}

/// Finds paths in snapshots.
///
/// # Errors
/// When the pattern is none, or a snapshot can't be read.
pub(crate) fn find(args: &FindArgs, context: &Context) -> Result<Outcome> {
    let document = session::with("find", context, &args.route, |client| {
        let mut damaged = Damage::none(context);
        let repository = client.repository()?;
        let snapshots = match &args.snapshot {
            Some(wanted) => vec![damaged.resolve(&repository, wanted)?],
            None => damaged.snapshots(&repository)?,
        };
        let reader = damaged.reader(&repository)?;
        let mut matches = Vec::new();
        for snapshot in snapshots {
            context.check_cancelled()?;
            let mut listing = Listing::new(context);
            let mut head = Some(format!(
                "snapshot {} of {}\n",
                &snapshot.id.to_string()[..8],
                snapshot.time
            ));
            let searched = reader.find(snapshot.tree, &args.pattern, &mut |path, node| {
                if let Some(head) = head.take().filter(|_| !listing.json) {
                    listing.pending.extend_from_slice(head.as_bytes());
                }
                listing.push(path, node);
            });
            match searched {
                Ok(unread) => damaged.note_unread(&unread),
                Err(error) if error.is_damage() => {
                    let short = &snapshot.id.to_string()[..8];
                    damaged.note(&error, &format!("snapshot {short} can't be searched"));
                }
                Err(error) => return Err(error.into()),
            }
            let entries = listing.finish()?;
            if !entries.is_empty() {
                matches.push(FoundDocument {
                    snapshot: snapshot.id.to_string(),
                    entries,
                });
            }
        }
        Ok(FindDocument { matches, damaged })
    })?;
    if context.output.is_json() {
        context.output.result(&document, |_| String::new())?;
    }
    Ok(document.damaged.outcome())
}

#[derive(Serialize)]
struct DiffDocument {
    old: String,
    new: String,
    changes: Vec<ChangeDocument>,
    damaged: Damage,
}

#[derive(Serialize)]
struct ChangeDocument {
    #[serde(flatten)]
    path: PathDocument,
    change: &'static str,
}

/// Shows what differs between two snapshots.
///
/// # Errors
/// When there is no such snapshot or path, or it can't be read.
pub(crate) fn diff(args: &DiffArgs, context: &Context) -> Result<Outcome> {
    let document = session::with("diff", context, &args.route, |client| {
        let mut damaged = Damage::none(context);
        let repository = client.repository()?;
        let reader = damaged.reader(&repository)?;
        let mut tree = |wanted: &SnapshotPath| -> Result<(SnapshotInfo, BlobId)> {
            let (snapshot, node) = locate(&repository, &reader, wanted, &mut damaged)?;
            match node.subtree {
                Some(tree) => Ok((snapshot, tree)),
                None => bail!("{} is no directory", String::from_utf8_lossy(&wanted.path)),
            }
        };
        let ((old, old_tree), (new, new_tree)) = (tree(&args.old)?, tree(&args.new)?);
        let (mut changes, mut text) = (Vec::new(), Vec::new());
        let json = context.output.is_json();
        let unread = reader.diff(old_tree, new_tree, &mut |change| {
            let (letter, word) = match change.kind {
                ChangeKind::Added => (b'+', "added"),
                ChangeKind::Removed => (b'-', "removed"),
                ChangeKind::Type => (b'T', "type"),
                ChangeKind::Content => (b'M', "content"),
                ChangeKind::Metadata => (b'U', "metadata"),
            };
            if json {
                changes.push(ChangeDocument {
                    path: PathDocument::new(&change.path),
                    change: word,
                });
            } else {
                text.extend_from_slice(&[letter, b' ']);
                text.extend_from_slice(&shown(&change.path));
                text.push(b'\n');
            }
        })?;
        damaged.note_unread(&unread);
        write_stdout(&text)?;
        Ok(DiffDocument {
            old: old.id.to_string(),
            new: new.id.to_string(),
            changes,
            damaged,
        })
    })?;
    if context.output.is_json() {
        context.output.result(&document, |_| String::new())?;
    }
    Ok(document.damaged.outcome())
}

#[derive(Serialize)]
struct DumpDocument {
    snapshot: String,
    output: std::path::PathBuf,
    bytes: u64,
    damaged: Damage,
}

/// Writes one file of a snapshot to standard output, or to a file.
///
/// # Errors
/// When there is no such file, or it can't be read or written.
pub(crate) fn dump(args: &DumpArgs, context: &Context) -> Result<Outcome> {
    let command = CommandLine::new(args.command.clone());
    if context.output.is_json() && args.output.is_none() && command.is_none() {
        return Err(Usage(
            "--json and a file can't both go to standard output: add --output FILE".to_owned(),
        )
        .into());
    }
    let (outcome, document) = session::with("dump", context, &args.route, |client| {
        let mut damaged = Damage::none(context);
        let repository = client.repository()?;
        let reader = damaged.reader(&repository)?;
        let (snapshot, node) = locate(&repository, &reader, &args.file, &mut damaged)?;
        if let Some(command) = &command {
            // All of it or nothing: a command that took half would act on it.
            backlane_client::feed(command, |out| Ok(reader.dump(&node, out)?))?;
            return Ok((damaged.outcome(), None));
        }
        let Some(path) = &args.output else {
            let mut out = Stdout { closed: false };
            let dumped = reader.dump(&node, &mut out);
            if out.closed {
                return Err(StdoutClosed.into());
            }
            dumped?;
            return Ok((damaged.outcome(), None));
        };
        let failed = || format!("cannot write {}", path.display());
        let file = File::create(path).with_context(failed)?;
        let mut out = BufWriter::new(&file);
        reader.dump(&node, &mut out)?;
        out.flush()
            .and_then(|()| file.sync_all())
            .with_context(failed)?;
        let document = DumpDocument {
            snapshot: snapshot.id.to_string(),
            output: path.clone(),
            bytes: file.metadata()?.len(),
            damaged,
        };
        Ok((document.damaged.outcome(), Some(document)))
    })?;
    if let Some(document) = document {
        context.output.result(&document, |document| {
            format!(
                "{} in {}\n",
                bytes(document.bytes),
                document.output.display()
            )
        })?;
    }
    Ok(outcome)
}

/// Standard output that remembers whether its reader went away.
struct Stdout {
    closed: bool,
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().lock().write(bytes);
        if let Err(error) = &written {
            self.closed |= error.kind() == io::ErrorKind::BrokenPipe;
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}

#[derive(Serialize)]
struct CheckDocument {
    clean: bool,
    read_data: bool,
    #[serde(flatten)]
    report: CheckReport,
}

/// Checks that the repository is whole.
///
/// # Errors
/// When the check can't be done. What it finds is no error but its result.
pub(crate) fn check(args: &CheckArgs, context: &Context) -> Result<Outcome> {
    let options = if args.read_data {
        CheckOptions::ReadData
    } else {
        CheckOptions::Structure
    };
    let report = session::with("check", context, &args.route, |client| {
        let repository = client.repository()?;
        Phases::show(context.output, &repository);
        Ok(repository.check(options)?)
    })?;
    let document = CheckDocument {
        clean: report.is_clean(),
        read_data: args.read_data,
        report,
    };
    context.output.result(&document, |document| {
        let mut text = String::new();
        for error in &document.report.errors {
            text.push_str(&format!("error: {error}\n"));
        }
        for warning in &document.report.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        let depth = if document.read_data {
            "every byte read"
        } else {
            "structure only; --read-data reads every byte"
        };
        let verdict = if document.clean { "whole" } else { "DAMAGED" };
        text.push_str(&format!(
            "{verdict}: {} snapshots ({depth})\n",
            document.report.snapshots
        ));
        text
    })?;
    Ok(
        match (document.clean, document.report.warnings.is_empty()) {
            (false, _) => Outcome::Failed,
            (true, false) => Outcome::Warnings,
            (true, true) => Outcome::Done,
        },
    )
}
