//! `backlane key sheet` and `backlane key recover`: a host's key goes onto paper, and comes back.
//!
//! A sheet is only written of a key that has just opened the host's repository.

use super::sheet;
use crate::{
    Context,
    cli::{KeyRecoverArgs, KeySheetArgs},
    commands::{server, session},
    config,
    failure::Advise,
    output::Outcome,
};
use anyhow::{Context as _, Result, anyhow};
use serde::Serialize;
use std::{
    fmt::Write as _,
    fs::File,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};
use zeroize::Zeroizing;

/// A sheet is a page; what is longer is something else.
const SHEET_BYTES_MAX: u64 = 64 << 10;

/// What a line of the key begins with on the sheet, before its number and a colon.
const LINE: &str = "key ";

#[derive(Serialize)]
struct SheetDocument {
    host: String,
    server: String,
    repository: String,
    date: String,
    output: Option<PathBuf>,
    sheet: Option<String>,
}

/// Writes a recovery sheet of this host's key.
///
/// # Errors
/// When the server can't be reached, the key doesn't open the repository, or the sheet can't be written.
pub(super) fn sheet(args: &KeySheetArgs, context: &Context) -> Result<Outcome> {
    let document = session::with("key sheet", context, &args.route, |client| {
        let repository = client.repository()?;
        let key = config::read_key(&client.config.repository_key())?;
        let mut document = SheetDocument {
            host: client.host().to_owned(),
            server: client.config.server.clone(),
            repository: repository.id().to_string(),
            date: server::time(SystemTime::now()),
            output: args.output.clone(),
            sheet: None,
        };
        let text = document.page(&key)?;
        match &args.output {
            Some(path) => config::write_secret(path, &text)?,
            None => document.sheet = Some(text.to_string()),
        }
        Ok(document)
    })?;
    context.output.result(&document, SheetDocument::text)?;
    Ok(Outcome::Done)
}

impl SheetDocument {
    fn text(&self) -> String {
        match (&self.sheet, &self.output) {
            (Some(sheet), _) => sheet.clone(),
            (None, Some(path)) => format!(
                "the recovery sheet of {} is in {}: print it, and remove the file\n",
                self.host,
                path.display()
            ),
            (None, None) => String::new(),
        }
    }

    fn page(&self, key: &str) -> Result<Zeroizing<String>> {
        let mut lines = Zeroizing::new(String::with_capacity(4096));
        for (line, number) in sheet::lines(key)?.iter().zip(1..) {
            writeln!(lines, "    {LINE}{number}: {}", **line)?;
        }
        let Self {
            host,
            server,
            repository,
            date,
            ..
        } = self;
        Ok(Zeroizing::new(format!(
            "\
BACKLANE RECOVERY SHEET                                               SECRET

    host        {host}
    server      {server}
    repository  {repository}
    date        {date}

With this sheet and the server everything that {host} has backed up comes
back, onto any machine, even if nothing is left of {host} itself. Without
the key nobody can read it. Keep the sheet where neither fire nor thieves
find it together with the host or the server.

{}
The letters I, L, O and U don't occur; capital and small letters are the
same. The end of each line checks it: a mistake is named by its line.

1.  On the server: let the host enrol again, under its name.

        backlane server enroll {host}

2.  On the new machine: make the key file; the command asks for the lines
    above. Then join with it; the command asks for the token of step 1.
    Name the shared devices, or leave --device out to take the network.

        backlane key recover --key-file repository.key
        backlane join --key-file repository.key --device DEVICE

3.  On the server: let it restore for as long as that will take.

        backlane server allow-restore {host} --for 1day

4.  On the new machine: look, and restore.

        backlane snapshots
        backlane restore latest --target /

5.  Remove the file repository.key; join has made its own copy.

Without Backlane: restic reads the directory repositories/{host} of the
server, with repository.key as its password file.
",
            *lines
        )))
    }
}

#[derive(Serialize)]
struct RecoverDocument {
    key_file: PathBuf,
}

/// Makes a key file from a sheet.
///
/// # Errors
/// When a line has a mistake, which is named, or the file can't be written.
pub(super) fn recover(args: &KeyRecoverArgs, context: &Context) -> Result<Outcome> {
    let key = match &args.sheet {
        Some(path) => read(path)?,
        None => ask(context)?,
    };
    config::write_secret(&args.key_file, &Zeroizing::new(format!("{}\n", *key)))?;
    let document = RecoverDocument {
        key_file: args.key_file.clone(),
    };
    context.output.result(&document, |document| {
        let path = document.key_file.display();
        format!("{path} is the key file again\nnext: `backlane join --key-file {path}`\n")
    })?;
    Ok(Outcome::Done)
}

/// Reads the key's lines among all others.
fn read(path: &Path) -> Result<Zeroizing<String>> {
    let from = match path == Path::new("-") {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    };
    let mut text = Zeroizing::new(String::with_capacity(4096));
    let read = match path == Path::new("-") {
        true => std::io::stdin()
            .take(SHEET_BYTES_MAX)
            .read_to_string(&mut text),
        false => {
            File::open(path).and_then(|file| file.take(SHEET_BYTES_MAX).read_to_string(&mut text))
        }
    };
    read.with_context(|| format!("cannot read the sheet from {from}"))?;
    parse(&text).with_context(|| format!("in the sheet from {from}"))
}

fn parse(text: &str) -> Result<Zeroizing<String>> {
    let mut reading = sheet::Reading::default();
    while let Some(number) = reading.next() {
        let begin = format!("{LINE}{number}:");
        let mut lines = text.lines().map(str::trim);
        let line = lines.find_map(|line| line.strip_prefix(&begin));
        reading.take(line.ok_or_else(|| {
            anyhow!("no line begins with `{begin}`, as line {number} of the key does")
        })?)?;
    }
    reading.key()
}

/// Asks for line after line, and again for one that has a mistake. What is typed is not shown: it would stay in the
/// terminal's memory.
fn ask(context: &Context) -> Result<Zeroizing<String>> {
    if !std::io::stdin().is_terminal() {
        return Err(anyhow!("there is no terminal to ask for the key's lines"))
            .advise("--sheet FILE reads them from a file, --sheet - from standard input");
    }
    context
        .output
        .note("Type the key's lines as they stand on the sheet. What you type is not shown.");
    let mut reading = sheet::Reading::default();
    while let Some(number) = reading.next() {
        let line = rpassword::prompt_password(format!("{LINE}{number}: "))
            .map(Zeroizing::new)
            .context("cannot read the key's lines")?;
        context.check_cancelled()?;
        let line = line.trim();
        let line = line
            .strip_prefix(&format!("{LINE}{number}:"))
            .unwrap_or(line);
        if let Err(mistake) = reading.take(line) {
            context.output.warning(format!("{mistake}; type it again"));
        }
    }
    reading.key()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00ff17c4a2e8d3b591f0465b7c8e9d2a3f6b1c0d5e4f7a8b9c0d1e2f3a4b5c6d";

    fn page() -> Zeroizing<String> {
        let document = SheetDocument {
            host: "web1".to_owned(),
            server: "store.example:4870".to_owned(),
            repository: "ab".repeat(32),
            date: "2026-01-31T12:00:00Z".to_owned(),
            output: None,
            sheet: None,
        };
        document.page(KEY).unwrap()
    }

    #[test]
    fn a_printed_sheet_is_read_back_and_fits_a_page() {
        let page = page();
        assert_eq!(*parse(&page).unwrap(), KEY);
        assert!(page.lines().count() < 60, "{}", *page);
        assert!(
            page.lines().all(|line| line.chars().count() <= 80),
            "{}",
            *page
        );
        for said in ["web1", "store.example:4870", &"ab".repeat(32), "2026-01-31"] {
            assert!(page.contains(said), "{said}");
        }
    }

    #[test]
    fn a_sheet_without_a_line_is_refused_by_that_line() {
        let page = page();
        let without: Vec<_> = page
            .lines()
            .filter(|line| !line.contains("key 3:"))
            .collect();
        let error = parse(&without.join("\n")).unwrap_err().to_string();
        assert!(error.contains("`key 3:`"), "{error}");
        let error = parse("").unwrap_err().to_string();
        assert!(error.contains("`key 1:`"), "{error}");
    }
}
