//! The audit log: what bears on trust, one JSON line an event, each naming the SHA-256 of the line before it (§6).
//!
//! Invariants: a line is only ever added, and is durable when its call returns; several processes may add lines at a
//! time. Whoever changes, removes or inserts a line breaks the chain there; whoever cuts lines off the end changes the
//! last line's hash, which is why that belongs into a place of its own from time to time.

use crate::{HostName, ServerError, db::Timestamp, error::io_error};
use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// The file, in the state directory.
const AUDIT_FILE: &str = "audit.jsonl";

/// Longest line, without its end.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Longest text in a detail; what a stranger sent is cut there.
const TEXT_CHARS_MAX: usize = 200;
/// Refusals that are recorded within [`BURST_MS`]; the rest is counted, or strangers could fill the disk.
const BURST: u32 = 20;
const BURST_MS: i64 = 60_000;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AuditEvent {
    Initialised,
    TokenIssued,
    Enrolled,
    EnrolmentRefused,
    CertificateRenewed,
    SlotsAdded,
    HostRevoked,
    SessionRefused,
    RestoreAllowed,
    RestoreRevoked,
    RestoreUsed,
    CallRefused,
    WalAllowed,
    WalRevoked,
    WalUsed,
    MaintenanceAllowed,
    MaintenanceRevoked,
    MaintenanceBegun,
    ObjectsRemoved,
    RemovedExpired,
    Undeleted,
    ObjectDamaged,
    QuotaSet,
    Adopted,
}

impl AuditEvent {
    /// Whether strangers can bring it about as often as they like.
    fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::EnrolmentRefused | Self::SessionRefused | Self::CallRefused
        )
    }
}

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    at: String,
    event: AuditEvent,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Value::is_null")]
    detail: Value,
    /// Refusals before it that were too many to be recorded.
    #[serde(skip_serializing_if = "is_zero")]
    unrecorded: u32,
    previous: String,
}

/// What is checked of a line.
#[derive(Deserialize)]
struct Chained {
    previous: String,
}

/// The open log.
#[derive(Clone, Debug)]
pub(crate) struct AuditLog {
    path: Arc<Path>,
    refusals: Arc<Mutex<HashMap<Option<HostName>, Refusals>>>,
}

/// How many refusals of one host, or of strangers, came lately.
#[derive(Debug, Default)]
struct Refusals {
    since: i64,
    recorded: u32,
    unrecorded: u32,
}

/// A log whose chain holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedAudit {
    /// The file.
    pub path: PathBuf,
    /// How many lines it has.
    pub lines: u64,
    /// The SHA-256 of its last line, in hexadecimal digits; zeros where there is none.
    pub head: String,
    /// Lines that a crash cut off before they were whole, by number from 1; what they were about wasn't done.
    pub cut: Vec<u64>,
}

impl AuditLog {
    pub(crate) fn new(state: &Path) -> Self {
        Self {
            path: state.join(AUDIT_FILE).into(),
            refusals: Arc::default(),
        }
    }

    /// Adds a line. Blocks.
    pub(crate) fn add(
        &self,
        event: AuditEvent,
        host: Option<&HostName>,
        detail: Value,
    ) -> Result<(), ServerError> {
        let now = Timestamp::now();
        let mut unrecorded = 0;
        if event.is_refusal() {
            let refusals = self.refusals.lock();
            let mut refusals = refusals.unwrap_or_else(PoisonError::into_inner);
            let refusals = refusals.entry(host.cloned()).or_default();
            if now.0.abs_diff(refusals.since) > BURST_MS.unsigned_abs() {
                (refusals.since, refusals.recorded) = (now.0, 0);
            }
            if refusals.recorded == BURST {
                refusals.unrecorded = refusals.unrecorded.saturating_add(1);
                return Ok(());
            }
            refusals.recorded += 1;
            unrecorded = std::mem::take(&mut refusals.unrecorded);
        }
        let failed = |action| io_error(action, &*self.path);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(failed("open"))?;
        file.lock().map_err(failed("lock"))?;
        let last = last_line(&mut file).map_err(failed("read"))?;
        let line = Line {
            at: now.text(),
            event,
            host: host.map(HostName::as_str),
            detail: cut_texts(detail),
            unrecorded,
            previous: hash(&last.bytes),
        };
        let mut text = serde_json::to_string(&line).expect("a line has string keys");
        text.push('\n');
        if !last.is_ended {
            // A crash cut it off. It stays: what is in the log is never taken out of it.
            text.insert(0, '\n');
        }
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed("write"))
    }
}

/// Follows the chain from the first line to the last. `keep` is told of each line that is whole.
///
/// # Errors
/// [`ServerError::Audit`] names the first line at which it breaks.
pub(crate) fn verify_audit(
    state: &Path,
    mut keep: impl FnMut(&str),
) -> Result<VerifiedAudit, ServerError> {
    let path = state.join(AUDIT_FILE);
    let file = File::open(&path).map_err(io_error("open", &path))?;
    // Whole lines up to here; whoever adds to it meanwhile isn't held up.
    file.lock_shared().map_err(io_error("lock", &path))?;
    let length = file.metadata().map_err(io_error("look at", &path))?.len();
    file.unlock().map_err(io_error("unlock", &path))?;
    let mut reader = BufReader::new(file.take(length));
    let mut verified = VerifiedAudit {
        path: path.clone(),
        lines: 0,
        head: hash(b""),
        cut: Vec::new(),
    };
    loop {
        let mut line = Vec::new();
        let most = LINE_BYTES_MAX as u64 + 2;
        let mut part = reader.by_ref().take(most);
        part.read_until(b'\n', &mut line)
            .map_err(io_error("read", &path))?;
        if line.is_empty() {
            return Ok(verified);
        }
        verified.lines += 1;
        let number = verified.lines;
        let broken = |why| ServerError::Audit {
            path: path.clone(),
            line: number,
            why,
        };
        let is_ended = line.last() == Some(&b'\n');
        if is_ended {
            line.pop();
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(broken("it is longer than any that was ever written"));
        }
        match serde_json::from_slice::<Chained>(&line) {
            Ok(chained) if chained.previous != verified.head => {
                return Err(broken(
                    "it doesn't follow the line before it: one of them was changed, or lines between them were removed",
                ));
            }
            Ok(_) => keep(&String::from_utf8_lossy(&line)),
            // What a crash left is the beginning of a line; the next one has its hash.
            Err(_) if is_cut(&line) => verified.cut.push(number),
            Err(_) => return Err(broken("it is no line of this log")),
        }
        verified.head = hash(&line);
    }
}

/// Whether this is the beginning of a line, with zeros where a file system had no time to put what was written.
fn is_cut(line: &[u8]) -> bool {
    let zeros = line.iter().rev().take_while(|byte| **byte == 0).count();
    let written = &line[..line.len() - zeros];
    serde_json::from_slice::<Chained>(written).is_err_and(|error| error.is_eof())
}

struct LastLine {
    bytes: Vec<u8>,
    is_ended: bool,
}

fn last_line(file: &mut File) -> std::io::Result<LastLine> {
    let length = file.seek(SeekFrom::End(0))?;
    let most = (LINE_BYTES_MAX as u64 + 2).min(length);
    file.seek(SeekFrom::Start(length - most))?;
    let mut tail = Vec::new();
    file.take(most).read_to_end(&mut tail)?;
    let is_ended = tail.pop_if(|byte| *byte == b'\n').is_some() || length == 0;
    let start = tail.iter().rposition(|byte| *byte == b'\n');
    Ok(LastLine {
        bytes: tail.split_off(start.map_or(0, |at| at + 1)),
        is_ended,
    })
}

/// SHA-256 in hexadecimal digits; zeros of nothing.
fn hash(line: &[u8]) -> String {
    match line {
        b"" => "0".repeat(64),
        line => hex::encode(digest(&SHA256, line)),
    }
}

fn cut_texts(detail: Value) -> Value {
    match detail {
        Value::String(text) => text.chars().take(TEXT_CHARS_MAX).collect::<String>().into(),
        Value::Array(all) => all.into_iter().take(32).map(cut_texts).collect(),
        Value::Object(all) => {
            let cut = |(key, value)| (key, cut_texts(value));
            Value::Object(all.into_iter().map(cut).collect())
        }
        other => other,
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "what serde calls it with"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::{fs, os::unix::fs::MetadataExt};

    fn filled(directory: &Path, lines: u64) -> AuditLog {
        let log = AuditLog::new(directory);
        let host = "web1".parse().unwrap();
        for number in 0..lines {
            log.add(AuditEvent::Enrolled, Some(&host), json!({"number": number}))
                .unwrap();
        }
        log
    }

    fn verified(directory: &Path) -> Result<VerifiedAudit, ServerError> {
        verify_audit(directory, |_| {})
    }

    #[test]
    fn every_change_of_a_line_but_the_last_breaks_the_chain_at_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(AUDIT_FILE);
        filled(directory.path(), 4);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let whole = fs::read_to_string(&path).unwrap();
        assert_eq!(verified(directory.path()).unwrap().lines, 4);
        let lines: Vec<&str> = whole.lines().collect();
        let changed = lines[1].replace("web1", "web2");
        let tampered = [
            ([lines[0], &changed, lines[2], lines[3]].join("\n"), 3),
            ([lines[0], lines[2], lines[3]].join("\n"), 2),
            ([lines[0], lines[1], lines[1], lines[2]].join("\n"), 3),
            ([lines[1], lines[2]].join("\n"), 1),
            ([lines[0], "", lines[1]].join("\n"), 3),
        ];
        for (text, at) in tampered {
            fs::write(&path, text + "\n").unwrap();
            let error = verified(directory.path()).unwrap_err();
            assert!(
                matches!(error, ServerError::Audit { line, .. } if line == at),
                "{error}"
            );
        }
        // The end can be cut off without a break; it shows in the last line's hash.
        fs::write(&path, whole.trim_end()).unwrap();
        let head = verified(directory.path()).unwrap().head;
        fs::write(&path, format!("{}\n", lines[..3].join("\n"))).unwrap();
        assert_ne!(verified(directory.path()).unwrap().head, head);
    }

    #[test]
    fn a_line_that_a_crash_cut_off_stays_and_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(AUDIT_FILE);
        let log = filled(directory.path(), 3);
        let whole = fs::read(&path).unwrap();
        for cut in 1..80 {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            log.add(AuditEvent::Initialised, None, Value::Null).unwrap();
            let found = verified(directory.path()).unwrap();
            // Without its end alone it is whole.
            assert_eq!(found.cut, if cut == 1 { vec![] } else { vec![3] });
            assert_eq!(found.lines, 4);
            // The file had its length already, and not yet what was written.
            if cut > 1 {
                let mut torn = whole.clone();
                let kept = torn.len() - cut;
                torn[kept..].fill(0);
                fs::write(&path, &torn).unwrap();
                log.add(AuditEvent::Initialised, None, Value::Null).unwrap();
                assert_eq!(verified(directory.path()).unwrap().cut, [3]);
            }
        }
    }

    #[test]
    fn processes_that_write_at_a_time_make_one_chain() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| filled(directory.path(), 25));
            }
        });
        assert_eq!(verified(directory.path()).unwrap().lines, 100);
    }

    #[test]
    fn refusals_without_end_fill_no_disk_and_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let log = AuditLog::new(directory.path());
        let refuse = || {
            let detail = json!("x".repeat(1_000_000));
            log.add(AuditEvent::EnrolmentRefused, None, detail).unwrap();
        };
        (0..1000).for_each(|_| refuse());
        assert_eq!(verified(directory.path()).unwrap().lines, u64::from(BURST));
        assert!(
            fs::metadata(directory.path().join(AUDIT_FILE))
                .unwrap()
                .len()
                < 20_000
        );
        // Strangers keep no refusal of a host out of the log.
        let host = "web1".parse().unwrap();
        log.add(AuditEvent::CallRefused, Some(&host), json!("x"))
            .unwrap();
        assert_eq!(
            verified(directory.path()).unwrap().lines,
            u64::from(BURST) + 1
        );
        for refusals in log.refusals.lock().unwrap().values_mut() {
            refusals.since -= BURST_MS + 1;
        }
        refuse();
        let mut last = String::new();
        verify_audit(directory.path(), |line| line.clone_into(&mut last)).unwrap();
        assert!(last.contains("\"unrecorded\":980"), "{last}");
    }
}
