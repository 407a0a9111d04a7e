//! How a failure is told: what happened, where, and one line of advice.
//!
//! The libraries' errors carry facts; the advice is added here, where it is known what the user typed.

use crate::{advice, output::SCHEMA};
use anyhow::Error;
use backlane_proto::{ErrorCode, ObjectKind, Reason, RoutePolicy};
use backlane_repo::{RepoError, StoreError};
use serde::Serialize;
use std::{borrow::Cow, fmt, io};

/// One line of advice, put on an error's way up with [`Advise::advise`].
#[derive(Debug)]
pub(crate) struct Hint(String);

impl Hint {
    /// The line.
    pub(crate) fn new(hint: impl Into<String>) -> Self {
        Self(hint.into())
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Adds advice to a failure.
pub(crate) trait Advise<T> {
    /// Adds one line that says what the user can do about it.
    ///
    /// # Errors
    /// The failure itself, with the advice.
    fn advise(self, hint: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: Into<Error>> Advise<T> for Result<T, E> {
    fn advise(self, hint: impl Into<String>) -> Result<T, Error> {
        self.map_err(|error| {
            let error: Error = error.into();
            // The first advice was given nearest to the cause.
            if error.downcast_ref::<Hint>().is_some() {
                error
            } else {
                error.context(Hint(hint.into()))
            }
        })
    }
}

/// The user asked for something that makes no sense; exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A failure as a JSON document.
#[derive(Serialize)]
pub(crate) struct FailureDocument {
    schema: u32,
    /// What happened and why, in one sentence.
    error: String,
    hint: Option<String>,
    /// The name of the reason why the policy left no route, where that is what happened.
    reason: Option<&'static str>,
    /// Its number.
    code: Option<u32>,
}

impl FailureDocument {
    /// Takes a failure apart.
    pub(crate) fn new(error: &Error) -> Self {
        let reason = no_route(error);
        Self {
            schema: SCHEMA,
            error: sentences(error).join(": "),
            hint: hint(error),
            reason: reason.map(Reason::name),
            code: reason.map(Reason::code),
        }
    }
}

/// The failure in words: `error: what: because: because`, `reason: …` where there was no route, and `hint: …` where there
/// is advice.
pub(crate) fn explain(error: &Error) -> String {
    let mut text = format!("error: {}", sentences(error).join(": "));
    if let Some(reason) = no_route(error) {
        text.push_str(&format!("\nreason: {} ({})", reason.name(), reason.code()));
    }
    if let Some(hint) = hint(error) {
        text.push_str("\nhint: ");
        text.push_str(&hint);
    }
    text
}

/// What happened, from the outside in, without the advice and without a sentence that the one before contains.
fn sentences(error: &Error) -> Vec<String> {
    let hint = error.downcast_ref::<Hint>().map(ToString::to_string);
    let mut sentences: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let said = sentences.last().is_some_and(|last| last.contains(&text));
        if Some(&text) != hint.as_ref() && !said {
            sentences.push(text);
        }
    }
    sentences
}

/// Why no route was left that the policy allows, where that is what the failure is.
pub(crate) fn no_route(error: &Error) -> Option<Reason> {
    use backlane_net::Error as Net;
    match error.chain().find_map(of_session)? {
        Net::NoRoute { reason, .. } | Net::RouteFailed { reason, .. } => Some(*reason),
        Net::Refused {
            code: ErrorCode::Route,
            ..
        } => Some(Reason::Policy),
        _ => None,
    }
}

fn hint(error: &Error) -> Option<String> {
    if let Some(hint) = error.downcast_ref::<Hint>() {
        return Some(hint.to_string());
    }
    if let Some(hint) = error.chain().find_map(advice_about) {
        return Some(hint.into_owned());
    }
    let kind = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .map(io::Error::kind)
        .next()?;
    let hint = match kind {
        io::ErrorKind::PermissionDenied => {
            "run it as a user who may do that; block devices and /var/lib/backlane belong to root"
        }
        io::ErrorKind::ConnectionRefused => {
            "is `backlane server run` running there, and is that its port?"
        }
        io::ErrorKind::StorageFull => "make room on that file system and run it again",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// Advice about errors of the libraries that mean the same whatever was typed.
fn advice_about(cause: &(dyn std::error::Error + 'static)) -> Option<Cow<'static, str>> {
    if let Some(error) = of_session(cause) {
        return about_session(error);
    }
    let hint = match cause.downcast_ref() {
        Some(backlane_client::Error::Spooler { .. }) => {
            "it is started by `systemctl start backlane-wal`, or `backlane wal run`; --socket or BACKLANE_WAL_SOCKET \
             names its socket, which the group of `wal run --group` may use"
        }
        Some(backlane_client::Error::NotInSnapshot { .. }) => LOOK_INSIDE,
        Some(backlane_client::Error::DeleteIncomplete { .. }) => {
            "restore without --delete, or from another snapshot; --delete-despite-warnings deletes all the same"
        }
        Some(error) if about_cluster(error).is_some() => about_cluster(error)?,
        _ => match (cause.downcast_ref(), cause.downcast_ref()) {
            (Some(error), _) => about_postgres(error)?,
            (_, Some(error)) => about_mariadb(error)?,
            _ => about_repository(of_repository(cause)?)?,
        },
    };
    Some(hint.into())
}

/// What to do where a cluster can't be backed up or restored.
fn about_cluster(error: &backlane_client::Error) -> Option<&'static str> {
    use backlane_client::Error as Job;
    Some(match error {
        Job::Postgres(error) => return about_postgres(error),
        Job::Mariadb(error) => return about_mariadb(error),
        Job::NoPhysicalBackup { .. } => {
            "`backlane snapshots --tag mariadb` lists those; without --mariadb it is restored as files"
        }
        Job::NoBinlogPosition => "set log_bin in the server's configuration before the next backup",
        Job::BeforeBackup { .. } => "restore an older backup: `backlane mariadb status` lists them",
        Job::BinlogsEnd { .. } => {
            "name a moment that they come to; `backlane mariadb status` says which there are for each backup"
        }
        Job::NotRestored { .. } => {
            "name the restored server's socket with --socket; to a server that was restored otherwise binary logs come by mariadb-binlog (docs/guide.md)"
        }
        Job::RestoredFromAnother { .. } => "name that snapshot, or the right server by --socket",
        Job::Replayed { .. } => {
            "done twice it would be wrong: restore the snapshot into an empty directory again"
        }
        Job::Mark { .. } => {
            "run it as a user who may read and write the server's directory, as root"
        }
        Job::MariadbTargetNotEmpty { .. } => {
            "name an empty directory, or move away what is in this one"
        }
        Job::NoBaseBackup { .. } => {
            "`backlane snapshots --tag postgresql` lists those; without --postgres it is restored as files"
        }
        Job::TargetNotEmpty { .. } => {
            "name an empty directory, or go over what is left of this very cluster with --delta"
        }
        Job::PostgresRuns { .. } => "stop the server first",
        Job::TargetOfAnother { .. } => "name another directory, or empty this one",
        Job::TablespaceNotEmpty { .. } => {
            "a cluster may be using it: put the tablespace elsewhere with --tablespace NAME=DIR, or empty the directory"
        }
        Job::Tablespace { .. } => {
            "say where each tablespace goes, also if to where it was: --tablespace NAME=DIR"
        }
        Job::ClusterIncomplete { .. } => {
            "`backlane check` says what is damaged; restore another snapshot, or this one once more with --delta"
        }
        _ => return None,
    })
}

fn about_postgres(error: &backlane_source::postgres::Error) -> Option<&'static str> {
    use backlane_source::postgres::Error as Postgres;
    Some(match error {
        Postgres::Password => {
            "put it into ~/.pgpass (mode 600) or a service file: every user of this machine can read a command line"
        }
        Postgres::NoClient { .. } => "install PostgreSQL's client (Debian: postgresql-client)",
        Postgres::Refused { .. } => {
            "docs/guide.md says under \"PostgreSQL\" what the role needs; try the connection with psql"
        }
        Postgres::NoArchive { .. } => {
            "set up archiving, or put the WAL into the snapshot with --wal include"
        }
        Postgres::OtherCluster { .. } => {
            "back up on the machine that the server runs on; --pgdata says where its directory is here"
        }
        Postgres::Timeline { .. } => "run the backup again",
        _ => return None,
    })
}

fn about_mariadb(error: &backlane_source::mariadb::Error) -> Option<&'static str> {
    use backlane_source::mariadb::Error as Mariadb;
    Some(match error {
        Mariadb::NoProgram { .. } => {
            "install MariaDB's tools, of the server's version (Debian: mariadb-client, mariadb-backup)"
        }
        Mariadb::Failed { .. } => {
            "docs/guide.md says under \"MariaDB\" what the user needs, and where user and password come from; -vv shows all that the program says"
        }
        Mariadb::NoBinlog => "set log_bin in the server's configuration, and restart it",
        Mariadb::EncryptedBinlog { .. } => {
            "set encrypt_binlog=OFF, so that later ones can be replayed: in the repository they are encrypted all the same"
        }
        Mariadb::Keys { .. } => {
            "name by --key-settings an option file of this machine that has, under [mysqld], plugin_load_add and the plugin's settings (file_key_management_filename=…), and put the keys there"
        }
        Mariadb::NoKeyPlugin { .. } => {
            "it has, under [mysqld], plugin_load_add=file_key_management (or another …key_management), its settings, and plugin_dir if the plugins aren't in /usr/lib/mysql/plugin"
        }
        Mariadb::NoProvider { .. } => {
            "install it (Debian has a package mariadb-plugin-provider-… for each): pages may be compressed by it, and the server that is started on them needs it as well"
        }
        Mariadb::Setting { .. } => {
            "take the file out with `backlane dump … | mbstream -x`, look at it, and prepare the backup by hand"
        }
        _ => return None,
    })
}

fn of_repository<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a RepoError> {
    match cause.downcast_ref() {
        Some(backlane_client::Error::Repository(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}

/// A session's error. Those of repositories pass on the words of what is inside them, which thus stands in no chain.
fn of_session<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a backlane_net::Error> {
    if let Some(error) = cause.downcast_ref() {
        return Some(error);
    }
    let store = match of_repository(cause)? {
        RepoError::Store(error) => error,
        RepoError::WriteFailed { cause } => cause,
        _ => return None,
    };
    match store {
        StoreError::Failed(inner) => inner.downcast_ref(),
        _ => None,
    }
}

const LOOK_INSIDE: &str =
    "`backlane ls SNAPSHOT` lists what is in it; paths are absolute, as they were backed up";

fn about_repository(error: &RepoError) -> Option<&'static str> {
    if let Some(object) = error.object().filter(|_| error.is_damage()) {
        return Some(about_damage(object.kind));
    }
    match error {
        RepoError::SnapshotNotFound { .. } | RepoError::SnapshotAmbiguous { .. } => {
            Some("`backlane snapshots` lists what there is")
        }
        RepoError::KeyNotFound { .. } => Some("`backlane key list` on the server lists the keys"),
        RepoError::OnlyKey { .. } | RepoError::KeyInUse { .. } => {
            Some("`backlane key add` makes another; name its key file then")
        }
        RepoError::PathNotFound { .. } => Some(LOOK_INSIDE),
        RepoError::BlobNotIndexed { .. } => Some(LOOK_FOR_DAMAGE),
        _ => None,
    }
}

const LOOK_FOR_DAMAGE: &str = "`backlane check` names all that is damaged and what it costs; \
    docs/guide.md says under \"Damaged repositories\" what to do about it";

/// What to do about a damaged object of some kind. Everything else in the repository can still be used.
fn about_damage(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Snapshot => {
            "other snapshots are not concerned: `backlane snapshots` lists them; \
             `backlane forget` on the server removes the damaged one, named by its whole id"
        }
        ObjectKind::Config | ObjectKind::Key => {
            "put that file back from a copy of the repository's directory at the server; \
             nothing opens without the config and one key"
        }
        ObjectKind::Index | ObjectKind::Pack => LOOK_FOR_DAMAGE,
        ObjectKind::Wal => {
            "recovery goes as far as the segment before it: `backlane server scrub` lays it aside, \
             and a base backup that begins after it needs it no more"
        }
    }
}

fn about_session(error: &backlane_net::Error) -> Option<Cow<'static, str>> {
    use backlane_net::Error as Net;
    let hint = match error {
        Net::Connect { .. } => "is `backlane server run` running there, and is that its port?",
        Net::Tls { .. } => {
            "what answers there is not the server that this host joined, or one of the two was set up anew: \
             `backlane join` again, with a token of that server"
        }
        Net::Token { .. } => "`backlane server enroll HOST` on the server prints a new token",
        Net::Full { .. } => "make room on the server's disk and run it again",
        Net::Busy { .. } => "wait until the other job on this repository has ended",
        Net::Refused {
            code: ErrorCode::Route,
            ..
        } => advice::about(Reason::Policy)?,
        Net::NoRoute { policy, reason, .. } => return about_route(*policy, *reason),
        Net::RouteFailed { reason, .. } => advice::about(*reason)?,
        _ => return None,
    };
    Some(hint.into())
}

/// What to do about the reason, and what makes it matter.
fn about_route(policy: RoutePolicy, reason: Reason) -> Option<Cow<'static, str>> {
    let hint = advice::about(reason)?;
    Some(match policy {
        RoutePolicy::RequireStorage | RoutePolicy::StorageOnly => {
            format!("{hint}; or let the job go by network: --route prefer-storage").into()
        }
        _ => hint.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use backlane_proto::{ObjectId, ObjectName};
    use backlane_repo::{BlobId, BlobKind};

    #[test]
    fn failure_names_its_chain_and_ends_with_the_advice() {
        let error = Err::<(), _>(io::Error::other("disk on fire"))
            .context("cannot read /dev/x")
            .advise("call the fire brigade")
            .context("cannot open the pool")
            .unwrap_err();
        assert_eq!(
            explain(&error),
            "error: cannot open the pool: cannot read /dev/x: disk on fire\nhint: call the fire brigade"
        );
    }

    #[test]
    fn advice_reaches_through_errors_that_pass_others_on() {
        let net = backlane_net::Error::Full {
            what: "no space left".to_owned(),
        };
        let repo = RepoError::from(StoreError::Failed(Box::new(net)));
        let error = Error::new(backlane_client::Error::from(repo)).context("backup failed");
        assert_eq!(
            explain(&error),
            "error: backup failed: no space left\nhint: make room on the server's disk and run it again"
        );
    }

    #[test]
    fn job_without_a_route_names_the_reason_and_what_to_do_about_it() {
        let policy = RoutePolicy::RequireStorage;
        for reason in Reason::all() {
            let net = backlane_net::Error::NoRoute {
                policy,
                reason,
                detail: "/dev/lun7".to_owned(),
            };
            let failed = StoreError::Failed(Box::new(net));
            let repo = RepoError::WriteFailed {
                cause: failed.into(),
            };
            let error = Error::new(backlane_client::Error::from(repo)).context("backup failed");
            assert_eq!(no_route(&error), Some(reason));
            let (text, name) = (explain(&error), reason.name());
            let told = format!("/dev/lun7)\nreason: {name} ({})", reason.code());
            assert!(text.contains(&told), "{text}");
            if let Some(advice) = advice::about(reason) {
                assert!(text.contains(&format!("\nhint: {advice}; or ")), "{text}");
            }
            let document = serde_json::to_value(FailureDocument::new(&error)).expect("a document");
            assert_eq!(document["reason"], name);
            assert_eq!(document["code"], reason.code());
        }
    }

    #[test]
    fn what_is_no_matter_of_routes_has_no_reason() {
        let error = Error::new(backlane_net::Error::Closed);
        assert_eq!(no_route(&error), None);
        let document = serde_json::to_value(FailureDocument::new(&error)).expect("a document");
        assert_eq!(document["reason"], serde_json::Value::Null);
    }

    #[test]
    fn every_kind_of_damage_comes_with_what_to_do_next() {
        for (kind, advised) in [
            (ObjectKind::Snapshot, "backlane forget"),
            (ObjectKind::Index, "backlane check"),
            (ObjectKind::Pack, "backlane check"),
            (ObjectKind::Key, "put that file back"),
            (ObjectKind::Config, "put that file back"),
            (ObjectKind::Wal, "backlane server scrub"),
        ] {
            let name = ObjectName {
                kind,
                id: ObjectId([7; 32]),
            };
            let what = "5 bytes are left of 9".to_owned();
            let error = RepoError::from(StoreError::Damaged { name, what });
            let text = explain(&Error::new(error).context("restore failed"));
            assert!(text.contains(&name.to_string()), "{text}");
            let (_, hint) = text.split_once("\nhint: ").expect("advice");
            assert!(hint.contains(advised), "{kind}: {hint}");
        }
        let kind = BlobKind::Data;
        let id = BlobId([7; 32]);
        let text = explain(&RepoError::BlobNotIndexed { kind, id }.into());
        assert!(text.contains("hint: `backlane check`"), "{text}");
    }

    #[test]
    fn sentence_that_is_repeated_is_said_once() {
        let error = anyhow::anyhow!("no route").context("backup failed: no route");
        assert_eq!(explain(&error), "error: backup failed: no route");
    }

    #[test]
    fn advice_nearest_to_the_cause_wins() {
        let error = Err::<(), _>(io::Error::other("x"))
            .advise("first")
            .advise("second")
            .unwrap_err();
        assert!(explain(&error).ends_with("hint: first"));
    }
}
