//! A session with the server: psql as a process beside us.
//!
//! It is PostgreSQL's own client, so that whatever lets an administrator in lets a backup in: .pgpass, PG* variables,
//! service files, certificates, peer authentication. Each query's answer is one JSON value in one line. When this
//! process ends, in whatever way, psql's input ends, and with it the session.

use super::Error;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How often somebody who waits for an answer looks whether the job was cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// How long a psql may take to end once it is interrupted, and how often it is looked whether it has.
const INTERRUPT_WAIT: Duration = Duration::from_secs(2);
const INTERRUPT_LOOK: Duration = Duration::from_millis(10);

/// So that nothing but the end of the backup ends the session, and names mean what they mean everywhere.
const SETTINGS: &str = "\
SELECT json_agg(set_config(name, '0', false)) FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout',
 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')";

/// A session. Dropped, it ends, and a backup that it began and did not stop is over.
pub struct Session {
    psql: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Session {
    /// Connects by a connection string: `postgresql://…`, `service=…`, or other keywords.
    ///
    /// # Errors
    /// [`Error::Password`], [`Error::NoClient`], or [`Error::Refused`] with what the client or the server said.
    pub fn open(connection: &str, is_cancelled: &dyn Fn() -> bool) -> Result<Self, Error> {
        refuse_password(connection)?;
        let mut command = Command::new("psql");
        command
            .args(["--no-psqlrc", "--no-password", "--quiet"])
            .args(["--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
            .args(["--dbname", connection])
            .env("PGOPTIONS", options())
            .env("PGCLIENTENCODING", "UTF8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // An interrupt at the terminal is for us, and we end it in good order.
            .process_group(0);
        if std::env::var_os("PGAPPNAME").is_none() {
            command.env("PGAPPNAME", "backlane");
        }
        let mut psql = command
            .spawn()
            .map_err(|source| Error::NoClient { source })?;
        let (sender, answers) = channel();
        if let Some(output) = psql.stdout.take() {
            std::thread::spawn(move || {
                let lines = BufReader::new(output).lines().map_while(Result::ok);
                for line in lines.filter(|line| !line.is_empty()) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let errors = psql
            .stderr
            .take()
            .map(|stderr| std::thread::spawn(|| listen(stderr)));
        let mut session = Self {
            input: psql.stdin.take(),
            psql,
            answers,
            errors,
        };
        let _: serde_json::Value = session.ask("connecting", SETTINGS, is_cancelled)?;
        Ok(session)
    }

    /// The number that the server's directories are named by.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn major(&mut self, is_cancelled: &dyn Fn() -> bool) -> Result<u32, Error> {
        let query = "SELECT current_setting('server_version_num')::int / 10000";
        self.ask("asking the server for its version", query, is_cancelled)
    }

    /// Asks for one JSON value.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Answer`] or [`Error::Cancelled`]; the session is of no use then.
    pub(crate) fn ask<T: DeserializeOwned>(
        &mut self,
        doing: &'static str,
        query: &str,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<T, Error> {
        let input = self.input.as_mut();
        // That it can't be written is told by the answer that doesn't come.
        let _ = input.map(|input| writeln!(input, "{query};"));
        loop {
            match self.answers.recv_timeout(LOOK) {
                Ok(line) => {
                    let answer = serde_json::from_str(&line);
                    return answer.map_err(|error| Error::Answer {
                        doing,
                        what: error.to_string(),
                    });
                }
                Err(RecvTimeoutError::Timeout) if is_cancelled() => return Err(Error::Cancelled),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let said = self.errors.take().and_then(|errors| errors.join().ok());
                    let said = said.filter(|said| !said.is_empty());
                    let said = said.unwrap_or_else(|| "psql has ended".to_owned());
                    return Err(Error::Refused { doing, said });
                }
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.input.take());
        // It may wait for the server, until WAL is archived say. Interrupted it has the server end that, which would notice
        // only much later by itself that nobody waits any more.
        let _ = kill_process(Pid::from_child(&self.psql), Signal::INT);
        let end = Instant::now() + INTERRUPT_WAIT;
        while matches!(self.psql.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(INTERRUPT_LOOK);
        }
        // Nothing it could say is of interest any more.
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

/// What the user has the client ask for, and a search path on which nobody else's functions are.
fn options() -> String {
    let own = std::env::var("PGOPTIONS").unwrap_or_default();
    format!("{own} -c search_path=pg_catalog -c client_min_messages=warning -c DateStyle=ISO")
}

/// Passes on what psql says meanwhile, and returns the errors.
fn listen(stderr: impl Read) -> String {
    let mut errors = Vec::new();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if line.contains("WARNING:") {
            tracing::warn!("{line}");
        } else {
            errors.push(line);
        }
    }
    errors.join("; ")
}

/// Refuses a connection string that has a password in it: whoever lists processes would read it.
///
/// # Errors
/// [`Error::Password`]
pub fn refuse_password(connection: &str) -> Result<(), Error> {
    let lower = connection.to_ascii_lowercase();
    let in_address = ["postgresql://", "postgres://"]
        .iter()
        .find_map(|scheme| lower.strip_prefix(scheme))
        .is_some_and(|rest| {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            let user = authority.rsplit_once('@');
            user.is_some_and(|(user, _)| user.contains(':'))
        });
    // `password`, and `sslpassword`; a keyword may stand before blanks.
    let has_keyword = lower.match_indices("password").any(|(at, word)| {
        let rest = &lower[at + word.len()..];
        rest.trim_start().starts_with('=')
    });
    match in_address || has_keyword {
        true => Err(Error::Password),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_on_the_command_line_is_refused() {
        for good in [
            "postgresql:///app",
            "postgresql://backup@db:5433/app?host=/run/postgresql",
            "postgres://[::1]:5432/app",
            "service=main",
            "host=/run user=backup passfile=/etc/backlane/pgpass",
            "app",
        ] {
            refuse_password(good).unwrap();
        }
        for bad in [
            "postgresql://backup:secret@db/app",
            "POSTGRES://backup:secret@db",
            "postgresql://db/app?user=x&password=secret",
            "host=db password=secret",
            "host=db password = 'secret'",
            "sslpassword=secret",
        ] {
            assert!(refuse_password(bad).is_err(), "{bad}");
        }
    }
}
