//! How MariaDB's programs reach a server, and what the client learns of it.

use super::{BinlogName, Error};
use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// How many of a program's last lines an error has.
const LINES_MAX: usize = 5;

/// One of MariaDB's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Asks a server.
    Client,
    /// Copies its files, and prepares the copy.
    Backup,
    /// Makes statements of binary logs.
    Binlog,
    /// Says what option files say.
    Options,
}

impl Tool {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "mariadb",
            Self::Backup => "mariadb-backup",
            Self::Binlog => "mariadb-binlog",
            Self::Options => "my_print_defaults",
        }
    }

    /// Looks whether it is there.
    ///
    /// # Errors
    /// [`Error::NoProgram`].
    pub fn find(self) -> Result<(), Error> {
        let mut command = Command::new(self.name());
        let found = command.arg("--version").output();
        found.map(drop).map_err(|error| self.cannot_start(error))
    }

    /// A command for it, by which it ends with the thread that starts it, whatever ends that.
    #[must_use]
    pub fn bound(self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", self.name()]);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// What to say where it can't be started.
    #[must_use]
    pub fn cannot_start(self, source: std::io::Error) -> Error {
        let program = self.name();
        Error::NoProgram { program, source }
    }

    /// What to say where it failed.
    #[must_use]
    pub fn failed(self, status: std::process::ExitStatus, said: String) -> Error {
        Error::Failed {
            program: self.name(),
            status: status.to_string(),
            said,
        }
    }

    /// Reads what it says, to the end; returns the last lines that tell of errors, or else the last ones.
    #[must_use]
    pub fn listen(self, stderr: impl Read) -> String {
        let mut errors = Vec::new();
        let mut last = Vec::new();
        let lines = BufReader::new(stderr).split(b'\n').map_while(Result::ok);
        for line in lines {
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            tracing::debug!(program = self.name(), "{line}");
            let lines = match line.to_ascii_lowercase().contains("error") {
                true => &mut errors,
                false => &mut last,
            };
            if lines.len() == LINES_MAX {
                lines.remove(0);
            }
            if !line.is_empty() {
                lines.push(line);
            }
        }
        match errors.is_empty() {
            true => last.join("; "),
            false => errors.join("; "),
        }
    }
}

/// How MariaDB's programs find a server and what lets them in: by their default option files, if nothing is said.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The option file to read in place of those.
    pub defaults_file: Option<PathBuf>,
    /// The server's socket.
    pub socket: Option<PathBuf>,
}

impl Access {
    /// A program, told how to reach the server.
    #[must_use]
    pub fn command(&self, tool: Tool) -> Command {
        self.tell(Command::new(tool.name()))
    }

    /// The same, bound to the thread that starts it: see [`Tool::bound`].
    #[must_use]
    pub fn bound(&self, tool: Tool) -> Command {
        self.tell(tool.bound())
    }

    fn tell(&self, mut command: Command) -> Command {
        let option = |name: &str, path: &Path| {
            let mut option = std::ffi::OsString::from(name);
            option.push(path);
            option
        };
        // It has to be the first.
        let file = self.defaults_file.as_deref();
        command.args(file.map(|file| option("--defaults-file=", file)));
        let socket = self.socket.as_deref();
        command.args(socket.map(|socket| option("--socket=", socket)));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Asks the server; rows are lines, and columns parted by tabs.
    fn ask(&self, statements: &str) -> Result<Vec<String>, Error> {
        let mut command = self.command(Tool::Client);
        command.args(["--batch", "--raw", "--skip-column-names"]);
        command.arg(format!("--execute={statements}"));
        let output = command
            .output()
            .map_err(|error| Tool::Client.cannot_start(error))?;
        if !output.status.success() {
            let said = Tool::Client.listen(&output.stderr[..]);
            return Err(Tool::Client.failed(output.status, said));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// A server, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where its files are.
    pub data_directory: PathBuf,
    /// Its version.
    pub version: String,
}

/// A server's binary logs that are written to no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binlogs {
    /// The directory that they are in.
    pub directory: PathBuf,
    /// Their names, oldest first.
    pub names: Vec<String>,
    /// Whether the server encrypts those that it writes now.
    pub are_encrypted: bool,
}

/// The binary logs that a server has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where its files are.
    pub data_directory: PathBuf,
    /// Each of them, oldest first, with its bytes; the last one is written to. None if it keeps none.
    pub files: Vec<(BinlogName, u64)>,
}

impl Written {
    /// Asks a server, which goes on as it was.
    ///
    /// # Errors
    /// As [`Server::ask`].
    pub fn ask(access: &Access) -> Result<Self, Error> {
        let data_directory = Server::ask(access)?.data_directory;
        let lines = match access.ask("SELECT @@log_bin")?[..] {
            [ref on] if on == "1" => access.ask("SHOW BINARY LOGS")?,
            _ => Vec::new(),
        };
        let file = |line: &String| {
            let mut fields = line.split('\t');
            let name = BinlogName::parse(fields.next()?)?;
            Some((name, fields.next()?.parse().ok()?))
        };
        let files = lines.iter().map(file).collect::<Option<_>>();
        Ok(Self {
            data_directory,
            files: files.ok_or_else(|| nonsense(&lines))?,
        })
    }
}

impl Server {
    /// Asks a server what it is.
    ///
    /// # Errors
    /// [`Error::NoProgram`], [`Error::Failed`] with what the client said, or [`Error::Answer`].
    pub fn ask(access: &Access) -> Result<Self, Error> {
        let lines = access.ask("SELECT @@datadir; SELECT @@version")?;
        match &lines[..] {
            [directory, version] if Path::new(directory).is_absolute() => Ok(Self {
                // Without the slash at its end.
                data_directory: Path::new(directory).components().collect(),
                version: version.clone(),
            }),
            _ => Err(nonsense(&lines)),
        }
    }

    /// Fails unless the user that the programs are may do what binary logs say, as far as that can be asked.
    ///
    /// # Errors
    /// As [`Server::ask`].
    pub fn check_replay(access: &Access) -> Result<(), Error> {
        // It takes the right `BINLOG REPLAY`.
        access.ask("SET SESSION server_id = @@server_id").map(drop)
    }

    /// The path in snapshots that all of it is below.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        Self::root_of(&self.data_directory)
    }

    /// The same, by the directory of a server's files.
    #[must_use]
    pub fn root_of(data_directory: &Path) -> PathBuf {
        let below = data_directory.strip_prefix("/").unwrap_or(Path::new(""));
        Path::new("/mariadb").join(below)
    }
}

impl Binlogs {
    /// Has the server begin another binary log, and asks for those before it.
    ///
    /// # Errors
    /// As [`Server::ask`], and [`Error::NoBinlog`].
    pub fn close(access: &Access) -> Result<Self, Error> {
        if access.ask("SELECT @@log_bin")? != ["1"] {
            return Err(Error::NoBinlog);
        }
        let lines = access.ask(
            "FLUSH BINARY LOGS; SELECT @@encrypt_binlog; SELECT @@log_bin_basename; SHOW BINARY LOGS",
        )?;
        Self::understand(&lines).ok_or_else(|| nonsense(&lines))
    }

    fn understand(lines: &[String]) -> Option<Self> {
        let (encrypted, lines) = lines.split_first()?;
        let (base, rows) = lines.split_first()?;
        // The last one is written to.
        let (_, closed) = rows.split_last()?;
        let names = closed.iter().map(|row| {
            let name = row.split('\t').next()?;
            let is_plain = !name.is_empty() && !name.contains('/');
            is_plain.then(|| name.to_owned())
        });
        Some(Self {
            directory: Path::new(base).parent()?.to_owned(),
            names: names.collect::<Option<_>>()?,
            are_encrypted: encrypted == "1",
        })
    }
}

fn nonsense(lines: &[String]) -> Error {
    let what = format!("{lines:?}");
    Error::Answer { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_log_that_is_written_to_is_left() {
        let own = |lines: &[&str]| {
            lines
                .iter()
                .map(|line| (*line).to_owned())
                .collect::<Vec<_>>()
        };
        let lines = own(&[
            "0",
            "/var/lib/mysql/binlog",
            "binlog.000001\t1234",
            "binlog.000002\t5",
        ]);
        let expected = Binlogs {
            directory: "/var/lib/mysql".into(),
            names: own(&["binlog.000001"]),
            are_encrypted: false,
        };
        assert_eq!(Binlogs::understand(&lines), Some(expected));
        assert_eq!(
            Binlogs::understand(&own(&["1", "/var/lib/mysql/binlog"])),
            None
        );
        let elsewhere = own(&["1", "/b", "../x\t1", "b.2\t5"]);
        assert_eq!(Binlogs::understand(&elsewhere), None);
    }

    #[test]
    fn an_option_file_comes_first_and_servers_are_told_apart_by_their_directories() {
        let access = Access {
            defaults_file: Some("/etc/backup.cnf".into()),
            socket: Some("/run/s".into()),
        };
        let command = access.command(Tool::Backup);
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(
            arguments,
            ["--defaults-file=/etc/backup.cnf", "--socket=/run/s"]
        );
        let server = Server {
            data_directory: "/var/lib/mysql".into(),
            version: String::new(),
        };
        assert_eq!(server.root(), Path::new("/mariadb/var/lib/mysql"));
    }

    #[test]
    fn what_tells_of_errors_is_kept_of_many_lines() {
        let many = "copied\n".repeat(100) + "[00] FATAL ERROR: no\n" + &"bye\n".repeat(9);
        assert_eq!(Tool::Backup.listen(many.as_bytes()), "[00] FATAL ERROR: no");
        assert_eq!(Tool::Backup.listen(&b"a\nb\n"[..]), "a; b");
    }
}
