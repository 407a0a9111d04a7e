//! What can go wrong at the server, and what of it a client is told.

use backlane_net::service::ServiceError;
use backlane_proto::{ByteRange, ObjectName};
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
    #[error("host {host} is not enrolled here: `backlane server hosts` lists those that are")]
    UnknownHost {
        /// The name that was asked for.
        host: String,
    },
    /// A certificate of this authority that is not in the state database.
    #[error(
        "the certificate of host {host} is not one that this server knows of; it has to be enrolled again"
    )]
    CertificateUnknown {
        /// Whom it names.
        host: String,
    },
    /// A certificate was revoked.
    #[error(
        "the certificate of host {host} was revoked; an administrator may enrol the host again"
    )]
    CertificateRevoked {
        /// Whose it was.
        host: String,
    },
    /// A certificate's time is over.
    #[error("the certificate of host {host} has expired; it has to be enrolled again")]
    CertificateExpired {
        /// Whose it was.
        host: String,
    },
    /// A host may not read file contents now.
    #[error(
        "host {host} may not read file contents ({name}) now: the server's administrator permits it for a time, by `backlane server allow-restore {host}`"
    )]
    RestoreDenied {
        /// Who asked.
        host: String,
        /// The pack that holds them.
        name: ObjectName,
    },
    /// A host may not read archived WAL now.
    #[error(
        "host {host} may not read archived WAL ({name}) now: the server's administrator permits it, by `backlane server allow-wal {host}`"
    )]
    WalDenied {
        /// Who asked.
        host: String,
        /// What for.
        name: ObjectName,
    },
    /// A host may not remove anything now.
    #[error(
        "host {host} may not remove anything from its repository now: the server's administrator permits it for a time, by `backlane server allow-maintenance {host}`"
    )]
    MaintenanceDenied {
        /// Who asked.
        host: String,
    },
    /// A snapshot that an administrator named is not there.
    #[error("snapshot {snapshot:?} of host {host}: {why}")]
    Snapshot {
        /// Whose.
        host: String,
        /// As it was named.
        snapshot: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A permission can't be good for so long, or so short, a time.
    #[error("a permission is good for more than nothing and at most {} days, not {asked:?}", most.as_secs() / 86_400)]
    PermissionLifetime {
        /// What was asked for.
        asked: Duration,
        /// The most.
        most: Duration,
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
    /// There is no repository to adopt.
    #[error("{} has no config: there is no repository there", path.display())]
    NoRepository {
        /// Where it would be.
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
    #[error(
        "host {host} needs {wanted} slots, the pool has {free} of {all} free; how many there are is said when a pool is made (`backlane pool create --max-members`)"
    )]
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
    #[error("database {} was locked by another program for too long: `fuser {}` says by which", path.display(), path.display())]
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
    #[error("the stored {name} is damaged: {found}")]
    Damaged {
        /// The object.
        name: ObjectName,
        /// What is wrong with its content.
        found: String,
    },
    /// Another file is archived under a name of WAL.
    #[error(
        "another segment is archived under this name, {name} of host {host}: two database servers archive into one place, or one goes on where another went on before; give one of them a host of its own, or a new timeline"
    )]
    WalConflict {
        /// Whose repository.
        host: String,
        /// The name.
        name: ObjectName,
    },
    /// Something in the repository is not the repository's.
    #[error("repository has a foreign entry: {}: {why}", path.display())]
    Foreign {
        /// The entry.
        path: PathBuf,
        /// Why it is foreign.
        why: &'static str,
    },
    /// The file system is full, or its own quota is.
    #[error("no space left in {}", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
    },
    /// A host has announced more than it may before it has come.
    #[error(
        "host {host} has announced {count} {what} that haven't come yet, of {most} that it may; what it began has to end first"
    )]
    UnderWay {
        /// Whose they are.
        host: String,
        /// How many.
        count: u64,
        /// Of what.
        what: &'static str,
        /// How many may be.
        most: u64,
    },
    /// A host has stored what it may.
    #[error(
        "host {host} has stored {used} of the {quota} bytes that it may, and {bytes} more don't fit; `backlane server quota {host} SIZE` on the server gives it more"
    )]
    Quota {
        /// Who.
        host: String,
        /// How much it may store.
        quota: u64,
        /// How much it has stored.
        used: u64,
        /// How large the object is.
        bytes: u64,
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
    /// The audit log was tampered with, or damaged.
    #[error("audit log {}: line {line} breaks the chain: {why}; keep the file as it is, and hold it against a copy of the state directory", path.display())]
    Audit {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        why: &'static str,
    },
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

impl ServerError {
    /// Whether it says that a certificate is good no more.
    pub(crate) fn is_distrust(&self) -> bool {
        matches!(
            self,
            Self::CertificateUnknown { .. }
                | Self::CertificateRevoked { .. }
                | Self::CertificateExpired { .. }
                | Self::MaintenanceDenied { .. }
        )
    }

    /// Whether it says of an object that it is damaged or can't be read, while others may be well.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::OutOfRange { .. } | Self::Damaged { .. } => true,
            // A bad place of the disk: the file system works.
            Self::Io { source, .. } => {
                source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
            }
            _ => false,
        }
    }
}

impl From<ServerError> for ServiceError {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::NotFound { name } => Self::NotFound(name),
            ServerError::BadBody { name, found } => Self::BadBody { name, found },
            ref damage if damage.is_damage() => Self::Damaged(error.to_string()),
            ServerError::Full { path } => Self::Full(path.display().to_string()),
            ServerError::Quota { .. } | ServerError::UnderWay { .. } => {
                Self::Quota(error.to_string())
            }
            ServerError::Token(refusal) => Self::Token(refusal.to_string()),
            ServerError::Busy { .. } => Self::Busy(error.to_string()),
            ServerError::Denied(_)
            | ServerError::ConfigExists
            | ServerError::UnknownHost { .. }
            | ServerError::CertificateUnknown { .. }
            | ServerError::CertificateRevoked { .. }
            | ServerError::CertificateExpired { .. }
            | ServerError::RestoreDenied { .. }
            | ServerError::MaintenanceDenied { .. }
            | ServerError::WalDenied { .. }
            | ServerError::WalConflict { .. }
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
    use backlane_proto::{ObjectId, ObjectKind};

    const HOST: &str = "web1";
    const WHY: &str = "the reason why";

    fn name() -> ObjectName {
        ObjectName {
            kind: ObjectKind::Pack,
            id: ObjectId([7; 32]),
        }
    }

    fn io(errno: rustix::io::Errno) -> ServerError {
        io_error("read", "/srv/objects/07")(errno.into())
    }

    /// How an error travels; the codes have no order, and no other names.
    fn code(error: &ServiceError) -> &'static str {
        match error {
            ServiceError::NotFound(_) => "not-found",
            ServiceError::Denied(_) => "denied",
            ServiceError::BadBody { .. } => "bad-body",
            ServiceError::Damaged(_) => "damaged",
            ServiceError::Full(_) => "full",
            ServiceError::Quota(_) => "quota",
            ServiceError::Busy(_) => "busy",
            ServiceError::Token(_) => "token",
            ServiceError::Failed(_) => "failed",
            other => panic!("{other:?} has no code here"),
        }
    }

    /// The code that an error must have, and what its text must name. A variant that is missing here doesn't compile.
    fn wanted(error: &ServerError) -> (&'static str, Vec<String>) {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let object = || vec![name().to_string()];
        match error {
            ServerError::HostName { .. } => ("denied", own(&["we b", WHY])),
            ServerError::UnknownHost { .. }
            | ServerError::CertificateUnknown { .. }
            | ServerError::CertificateRevoked { .. }
            | ServerError::CertificateExpired { .. } => ("denied", own(&[HOST])),
            ServerError::RestoreDenied { .. } => {
                ("denied", [object(), own(&[HOST, "allow-restore"])].concat())
            }
            ServerError::MaintenanceDenied { .. } => ("denied", own(&[HOST, "allow-maintenance"])),
            ServerError::WalDenied { .. } => {
                ("denied", [object(), own(&[HOST, "allow-wal"])].concat())
            }
            ServerError::WalConflict { .. } => ("denied", [object(), own(&[HOST])].concat()),
            ServerError::Snapshot { .. } => ("failed", own(&[HOST, "abc", WHY])),
            ServerError::PermissionLifetime { .. } => ("failed", own(&["2 days", "90"])),
            ServerError::Request { .. } => ("denied", own(&[WHY])),
            ServerError::ConfigExists => ("denied", own(&["config"])),
            ServerError::Denied(_) => ("denied", own(&[WHY])),
            ServerError::Token(TokenRefusal::Unknown) => ("token", own(&["issue"])),
            ServerError::Token(_) => ("token", own(&[HOST])),
            ServerError::NotFound { .. } => ("not-found", object()),
            ServerError::BadBody { .. } => ("bad-body", [object(), own(&[WHY])].concat()),
            ServerError::OutOfRange { .. } => ("damaged", [object(), own(&["10 bytes"])].concat()),
            ServerError::Damaged { .. } => ("damaged", [object(), own(&[WHY])].concat()),
            ServerError::Io { source, .. } => {
                let bad_place = source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
                let code = if bad_place { "damaged" } else { "failed" };
                (code, own(&["/srv/objects/07", "read"]))
            }
            ServerError::Full { .. } => ("full", own(&["/srv"])),
            ServerError::Quota { .. } => ("quota", own(&[HOST, "90", "100", "20"])),
            ServerError::UnderWay { .. } => ("quota", own(&[HOST, "90 bytes", "100"])),
            ServerError::Busy { .. } => ("busy", own(&[HOST, WHY])),
            ServerError::Config { .. } | ServerError::Authority { .. } => {
                ("failed", own(&["/srv/file", WHY]))
            }
            ServerError::Audit { .. } => ("failed", own(&["/srv/file", "line 7", WHY])),
            ServerError::AlreadyInitialised { .. }
            | ServerError::NotInitialised { .. }
            | ServerError::NoRepository { .. }
            | ServerError::DatabaseLocked { .. }
            | ServerError::Database { .. } => ("failed", own(&["/srv/file"])),
            ServerError::DatabaseNewer { .. } => ("failed", own(&["/srv/file", "9", "3"])),
            ServerError::DatabaseForeign { .. } => ("failed", own(&["/srv/file", "0xff"])),
            ServerError::TokenLifetime { .. } => ("failed", own(&["24 hours", "90"])),
            ServerError::Randomness { .. } => ("failed", own(&[WHY])),
            ServerError::NoSlots { .. } => ("failed", own(&[HOST, "4", "2", "64"])),
            ServerError::NoPool => ("failed", own(&["[pool]"])),
            ServerError::Foreign { .. } => ("failed", own(&["/srv/file", WHY])),
            ServerError::Abandoned { .. } => ("failed", object()),
            ServerError::Stopping => ("failed", own(&["stopping"])),
        }
    }

    fn of_trust() -> Vec<ServerError> {
        let host = || HOST.to_owned();
        vec![
            ServerError::CertificateUnknown { host: host() },
            ServerError::CertificateRevoked { host: host() },
            ServerError::CertificateExpired { host: host() },
            ServerError::RestoreDenied {
                host: host(),
                name: name(),
            },
            ServerError::MaintenanceDenied { host: host() },
            ServerError::WalDenied {
                host: host(),
                name: name(),
            },
            ServerError::WalConflict {
                host: host(),
                name: name(),
            },
            ServerError::Snapshot {
                host: host(),
                snapshot: "abc".to_owned(),
                why: WHY,
            },
            ServerError::PermissionLifetime {
                asked: Duration::from_secs(90),
                most: Duration::from_secs(2 * 86_400),
            },
            ServerError::UnderWay {
                host: host(),
                count: 90,
                what: "bytes",
                most: 100,
            },
            ServerError::Quota {
                host: host(),
                quota: 100,
                used: 90,
                bytes: 20,
            },
            ServerError::Audit {
                path: "/srv/file".into(),
                line: 7,
                why: WHY,
            },
        ]
    }

    fn all() -> Vec<ServerError> {
        let host = || HOST.to_owned();
        let why = || WHY.to_owned();
        let path = || PathBuf::from("/srv/file");
        let range = ByteRange {
            offset: 5,
            length: 10,
        };
        vec![
            ServerError::HostName {
                name: "we b".to_owned(),
                why: WHY,
            },
            ServerError::UnknownHost { host: host() },
            ServerError::Config {
                path: path(),
                why: why(),
            },
            ServerError::AlreadyInitialised { path: path() },
            ServerError::NotInitialised { path: path() },
            ServerError::NoRepository { path: path() },
            ServerError::Authority {
                path: path(),
                why: why(),
            },
            ServerError::Request { why: why() },
            TokenRefusal::Unknown.into(),
            TokenRefusal::Used { host: host() }.into(),
            TokenRefusal::Expired { host: host() }.into(),
            ServerError::TokenLifetime {
                asked: Duration::from_secs(90),
                most: Duration::from_secs(86_400),
            },
            ServerError::Randomness { why: why() },
            ServerError::NoSlots {
                host: host(),
                wanted: 4,
                free: 2,
                all: 64,
            },
            ServerError::NoPool,
            ServerError::DatabaseLocked { path: path() },
            ServerError::DatabaseNewer {
                path: path(),
                found: 9,
                known: 3,
            },
            ServerError::DatabaseForeign {
                path: path(),
                found: 255,
            },
            ServerError::Database {
                path: path(),
                source: sqlx::Error::PoolClosed,
            },
            ServerError::NotFound { name: name() },
            ServerError::OutOfRange {
                name: name(),
                bytes: 10,
                range,
            },
            ServerError::BadBody {
                name: name(),
                found: why(),
            },
            ServerError::ConfigExists,
            ServerError::Damaged {
                name: name(),
                found: why(),
            },
            ServerError::Foreign {
                path: path(),
                why: WHY,
            },
            io(rustix::io::Errno::NOSPC),
            io(rustix::io::Errno::DQUOT),
            ServerError::Busy {
                host: host(),
                why: WHY,
            },
            ServerError::Abandoned { name: name() },
            ServerError::Denied(WHY),
            io(rustix::io::Errno::IO),
            io(rustix::io::Errno::STALE),
            ServerError::Stopping,
        ]
    }

    #[test]
    fn every_error_names_what_it_is_about_and_travels_with_its_code() {
        for error in all().into_iter().chain(of_trust()) {
            let (wanted_code, names) = wanted(&error);
            let text = error.to_string();
            for name in names {
                assert!(text.contains(&name), "{name} is not in {text:?}");
            }
            let shown = format!("{error:?}");
            let told = ServiceError::from(error);
            assert_eq!(code(&told), wanted_code, "{shown}");
            // What the client is told names it no less.
            let told = told.to_string();
            let facts = [HOST, &name().to_string(), "/srv"];
            for fact in facts.into_iter().filter(|fact| text.contains(*fact)) {
                assert!(told.contains(fact), "{fact} is not in {told:?}");
            }
        }
    }
}
