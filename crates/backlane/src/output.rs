//! What a command prints: one JSON document or text on standard output, everything else on standard error.
//!
//! Invariants: with `--json` standard output carries exactly one document, also when the command failed; a reader
//! that closes the pipe early is no failure, and hides none; bytes that are not UTF-8 never reach a JSON document unmarked.

use anyhow::Result;
use serde::Serialize;
use std::{
    fmt,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

/// Version of every JSON document. It changes when a field goes or changes its meaning, not when one is added.
pub(crate) const SCHEMA: u32 = 1;

/// How a command ended, when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything was done.
    Done,
    /// Done, but something was left out, and named.
    Warnings,
    /// The command ran, and its result, which was printed, is that something is wrong.
    Failed,
    /// The command ran, and its result, which was printed, is that the policy allows no route that is left.
    NoRoute,
}

/// Exit code where the policy allowed no route that was left.
pub(crate) const NO_ROUTE_CODE: u8 = 4;

impl Outcome {
    /// The outcome of a job that has given so many warnings.
    pub(crate) fn from_warnings(count: u64) -> Self {
        if count == 0 {
            Self::Done
        } else {
            Self::Warnings
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Warnings => Self::from(3),
            Outcome::Failed => Self::FAILURE,
            Outcome::NoRoute => Self::from(NO_ROUTE_CODE),
        }
    }
}

/// Where a command's results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    form: Form,
    chatter: Chatter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chatter {
    Normal,
    Quiet,
}

/// The reader of standard output has gone away, which ends a command in good order.
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for StdoutClosed {}

#[derive(Serialize)]
struct Document<'a, T> {
    schema: u32,
    #[serde(flatten)]
    body: &'a T,
}

impl Output {
    /// From the flags that every command takes.
    pub(crate) fn new(common: &crate::cli::Common) -> Self {
        Self {
            form: if common.json { Form::Json } else { Form::Text },
            chatter: if common.quiet {
                Chatter::Quiet
            } else {
                Chatter::Normal
            },
        }
    }

    /// Whether the result is one JSON document.
    pub(crate) fn is_json(self) -> bool {
        self.form == Form::Json
    }

    /// Whether a progress bar would be seen and is wanted.
    pub(crate) fn shows_progress(self) -> bool {
        self.chatter == Chatter::Normal && io::stderr().is_terminal()
    }

    /// Prints the result: `body` as JSON, or else the lines that `text` makes.
    ///
    /// `body` is an object whose fields stand beside `schema`. That nobody reads it changes nothing about how the
    /// command ended, which is for its exit code to say.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub(crate) fn result<T: Serialize>(
        self,
        body: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        let written = match self.form {
            Form::Json => write_stdout(&json_line(body)?),
            Form::Text => write_stdout(text(body).as_bytes()),
        };
        written.or_else(|error| match error.is::<StdoutClosed>() {
            true => Ok(()),
            false => Err(error),
        })
    }

    /// Tells a person at the terminal something that is not the result.
    pub(crate) fn note(self, text: impl fmt::Display) {
        if self.chatter == Chatter::Normal {
            // Standard error may be closed; there is nowhere left to say so.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Warns, whatever the flags say.
    pub(crate) fn warning(self, text: impl fmt::Display) {
        let _ = writeln!(io::stderr(), "warning: {text}");
    }
}

/// A document as one line.
///
/// # Errors
/// When it can't be JSON.
pub(crate) fn json_line<T: Serialize>(body: &T) -> Result<Vec<u8>> {
    let schema = SCHEMA;
    let mut line = serde_json::to_vec(&Document { schema, body })?;
    line.push(b'\n');
    Ok(line)
}

/// Writes to standard output.
///
/// # Errors
/// [`StdoutClosed`] when nobody reads it any more, otherwise what the system said.
pub(crate) fn write_stdout(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}

/// A number of bytes for people: `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count;
    let mut unit = 0;
    while value >= 1024 * 1024 && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    // Tenths of the unit, rounded to nearest.
    let tenths = (value * 10 + 512) / 1024;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Bytes per second for people.
pub(crate) fn rate(count: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "–".to_owned();
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate for people has three digits"
    )]
    let mib = count as f64 / seconds / (1024.0 * 1024.0);
    format!("{mib:.1} MiB/s")
}

/// A table whose first column stands left and whose others stand right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                line.push_str(&format!("{cell:<width$}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable_and_rounded_to_nearest() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn table_aligns_numbers_to_the_right() {
        let rows = [
            vec!["route".to_owned(), "bytes".to_owned()],
            vec!["storage".to_owned(), "7".to_owned()],
        ];
        assert_eq!(table(&rows), "route    bytes\nstorage      7\n");
    }
}
