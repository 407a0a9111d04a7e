//! What can go wrong at the server, and what of it a client is told.

use backlane_net::service::ServiceError;
use backlane_proto::{ByteRange, ObjectId, ObjectName};
use std::{io, path::PathBuf, time::Duration};

/// Why the server refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A name can't be the name of a host.
    #[error("{name:?} is not the name of a host: {why}")]
    HostName {
        /// The text that was given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No such host is enrolled.
    #[error("host {host} is not enrolled here")]
    UnknownHost {
        /// The name that was asked for.
        host: String,
    },
    /// The configuration can't be used.
    #[error("configuration {}: {why}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        why: String,
    },
    /// The server was initialised before.
    #[error("{} exists: a server was initialised here before", path.display())]
    AlreadyInitialised {
        /// What stands in the way.
        path: PathBuf,
    },
    /// The server was not initialised.
    #[error("{} does not exist: no server was initialised here", path.display())]
    NotInitialised {
        /// What is missing.
        path: PathBuf,
    },
    /// The authority's key or certificate can't be read or used.
    #[error("authority: {}: {why}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate request can't be signed.
    #[error("certificate request refused: {why}")]
    Request {
        /// What is wrong with it.
        why: String,
    },
    /// The join token is refused.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// A join token can't be good for so long, or so short, a time.
    #[error("a join token is good for more than nothing and at most {} hours, not {asked:?}", most.as_secs() / 3600)]
    TokenLifetime {
        /// What was asked for.
        asked: Duration,
        /// The most.
        most: Duration,
    },
    /// The system gives no random numbers.
    #[error("no random numbers: {why}")]
    Randomness {
        /// What the system says.
        why: String,
    },
    /// The pool has too few free slots.
    #[error("host {host} needs {wanted} slots, the pool has {free} of {all} free")]
    NoSlots {
        /// Who asked.
        host: String,
        /// How many it wants.
        wanted: u32,
        /// How many are free.
        free: u32,
        /// How many the pool has.
        all: u32,
    },
    /// The server has no pool, and the command needs one.
    #[error("this server has no pool: its configuration has no section [pool]")]
    NoPool,
    /// The state database is held by another program for too long.
    #[error("database {} is locked by another program", path.display())]
    DatabaseLocked {
        /// The database.
        path: PathBuf,
    },
    /// The state database was written by a later version.
    #[error("database {} has schema {found}, this program knows {known}: it was written by a later version", path.display())]
    DatabaseNewer {
        /// The database.
        path: PathBuf,
        /// The version found.
        found: i64,
        /// The newest version known.
        known: i64,
    },
    /// The file is a database, but not one of ours.
    #[error("database {} belongs to another program (application id {found:#x})", path.display())]
    DatabaseForeign {
        /// The database.
        path: PathBuf,
        /// What its application id is.
        found: i64,
    },
    /// The state database failed.
    #[error("database {}: {source}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What the engine says.
        source: sqlx::Error,
    },
    /// There is no such object.
    #[error("{name} does not exist")]
    NotFound {
        /// The object asked for.
        name: ObjectName,
    },
    /// A part was asked for that the object doesn't have.
    #[error("{name} has {bytes} bytes, asked for were {} from {}", range.length, range.offset)]
    OutOfRange {
        /// The object.
        name: ObjectName,
        /// Its size.
        bytes: u64,
        /// The part.
        range: ByteRange,
    },
    /// A body doesn't match its name or length.
    #[error("{name} was refused: {found}")]
    BadBody {
        /// The object that was put.
        name: ObjectName,
        /// What was found instead.
        found: String,
    },
    /// The config exists with other content.
    #[error(
        "the repository has a config already, with other content; only an administrator may replace it"
    )]
    ConfigExists,
    /// A stored object is not what its name says.
    #[error("the stored {name} is damaged: its content has the SHA-256 {found}")]
    Damaged {
        /// The object.
        name: ObjectName,
        /// What its content hashes to.
        found: ObjectId,
    },
    /// Something in the repository is not the repository's.
    #[error("repository has a foreign entry: {}: {why}", path.display())]
    Foreign {
        /// The entry.
        path: PathBuf,
        /// Why it is foreign.
        why: &'static str,
    },
    /// The file system is full, or a quota is.
    #[error("no space left in {}", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
    },
    /// The repository is held by something that excludes this.
    #[error("repository of {host} is busy: {why}")]
    Busy {
        /// Whose repository.
        host: String,
        /// What holds it.
        why: &'static str,
    },
    /// The body's way in is closed since an earlier piece failed.
    #[error("{name}: an earlier piece of this body failed or was abandoned")]
    Abandoned {
        /// The object.
        name: ObjectName,
    },
    /// A client may not do that.
    #[error("{0}")]
    Denied(&'static str),
    /// The file system failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The process is being torn down.
    #[error("the server is stopping")]
    Stopping,
}

/// Why a join token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenRefusal {
    /// The server has never issued it.
    #[error("this server did not issue it")]
    Unknown,
    /// It was redeemed before.
    #[error("it was used before, for host {host}")]
    Used {
        /// The name that it was bound to.
        host: String,
    },
    /// Its time is over.
    #[error("it has expired; it was for host {host}")]
    Expired {
        /// The name that it was bound to.
        host: String,
    },
}

impl From<ServerError> for ServiceError {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::NotFound { name } => Self::NotFound(name),
            ServerError::BadBody { name, found } => Self::BadBody { name, found },
            ServerError::OutOfRange { .. } | ServerError::Damaged { .. } => {
                Self::Damaged(error.to_string())
            }
            // A bad place of the disk: the file system works.
            ServerError::Io { ref source, .. }
                if source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
            {
                Self::Damaged(error.to_string())
            }
            ServerError::Full { path } => Self::Full(path.display().to_string()),
            ServerError::Token(refusal) => Self::Token(refusal.to_string()),
            ServerError::Busy { .. } => Self::Busy(error.to_string()),
            ServerError::Denied(_)
            | ServerError::ConfigExists
            | ServerError::UnknownHost { .. }
            | ServerError::HostName { .. }
            | ServerError::Request { .. } => Self::Denied(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Makes an [`ServerError`] of what the system says about `path`; a full file system is told apart.
pub(crate) fn io_error(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> ServerError {
    let path = path.into();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ServerError::Full {
            path: path.parent().map_or_else(|| path.clone(), Into::into),
        },
        _ => ServerError::Io {
            action,
            path,
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlane_proto::ObjectKind;

    #[test]
    fn an_object_that_is_damaged_or_cannot_be_read_is_told_from_a_server_that_fails() {
        let told = |error: ServerError| ServiceError::from(error);
        let name = ObjectName {
            kind: ObjectKind::Pack,
            id: ObjectId([7; 32]),
        };
        let short = ServerError::OutOfRange {
            name,
            bytes: 10,
            range: ByteRange {
                offset: 5,
                length: 10,
            },
        };
        let found = ObjectId([8; 32]);
        let io = |errno: rustix::io::Errno| io_error("read", "/objects/07")(errno.into());
        for damage in [
            short,
            ServerError::Damaged { name, found },
            io(rustix::io::Errno::IO),
        ] {
            let text = damage.to_string();
            let error = told(damage);
            assert!(
                matches!(&error, ServiceError::Damaged(what) if *what == text),
                "{error:?}"
            );
        }
        let failed = told(io(rustix::io::Errno::STALE));
        assert!(matches!(failed, ServiceError::Failed(_)), "{failed:?}");
    }
}
