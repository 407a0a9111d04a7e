//! The state database: everything that the server remembers besides the objects (§4).
//!
//! A change is durable when its call returns (write-ahead log, every commit synced). Changes that belong together
//! are one transaction which takes the write lock at its beginning, so that what it read still holds when it writes.
//! The SQL keeps to what PostgreSQL understands too, the schema's table options apart.

mod hosts;
mod objects;
mod schema;
mod tokens;
mod trust;

pub(crate) use hosts::{HostId, SlotRequest};
pub(crate) use objects::{Arrival, Found};
pub(crate) use tokens::{Enrolment, Issued, PoolSlots, Redemption};
pub use trust::Leave;

use crate::{
    HostName, ServerError,
    audit::{AuditEvent, AuditLog},
    error::io_error,
    repository::blocking,
};
use schema::{APPLICATION_ID, STEPS};
use serde_json::Value;
use sqlx::{
    Connection, Sqlite, SqlitePool, Transaction,
    error::DatabaseError,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long a call waits for another program's transaction. Ours take milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: u32 = 4;

const SQLITE_BUSY: u32 = 5;
const SQLITE_LOCKED: u32 = 6;
const SQLITE_FULL: u32 = 13;

/// A time as the database keeps it: milliseconds since 1970, by this server's clock alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp(pub(crate) i64);

impl Timestamp {
    pub(crate) fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self(milliseconds(since))
    }

    /// The time as RFC 3339 has it, to the millisecond.
    pub(crate) fn text(self) -> String {
        jiff::Timestamp::from_millisecond(self.0)
            .map_or_else(|_| self.0.to_string(), |time| format!("{time:.3}"))
    }

    pub(crate) fn system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0).unwrap_or(0))
    }
}

/// A length of time as the database keeps it.
pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The open state database.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pool: SqlitePool,
    path: Arc<Path>,
    audit: AuditLog,
}

/// Whether a database that doesn't exist is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Create,
    Refuse,
}

impl Database {
    /// Opens the database and brings its schema up to date.
    pub(crate) async fn open(path: &Path, missing: Missing) -> Result<Self, ServerError> {
        Self::open_within(path, missing, BUSY_TIMEOUT).await
    }

    async fn open_within(
        path: &Path,
        missing: Missing,
        busy_timeout: Duration,
    ) -> Result<Self, ServerError> {
        if missing == Missing::Refuse && !path.exists() {
            return Err(ServerError::NotInitialised { path: path.into() });
        }
        if missing == Missing::Create {
            // Made here, as the engine would let others read it. An empty file is an empty database.
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .map_err(io_error("create", path))?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(busy_timeout);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            // A full disk makes the engine roll back by itself, and the connection believes that its transaction is open
            // still: it is closed, and another one made.
            .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
            .connect_with(options)
            .await
            .map_err(|source| database_error(path, source))?;
        let database = Self {
            pool,
            path: path.into(),
            audit: AuditLog::new(path.parent().unwrap_or(path)),
        };
        database.migrate().await?;
        Ok(database)
    }

    /// Adds a line to the audit log.
    pub(crate) async fn audit(&self, event: Event) -> Result<(), ServerError> {
        let log = self.audit.clone();
        let Event {
            event,
            host,
            detail,
        } = event;
        blocking(move || log.add(event, host.as_ref(), detail)).await
    }

    async fn migrate(&self) -> Result<(), ServerError> {
        let mut change = self.begin().await?;
        let version: i64 = sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&mut *change)
            .await
            .map_err(|error| self.error(error))?;
        let application: i64 = sqlx::query_scalar("PRAGMA application_id")
            .fetch_one(&mut *change)
            .await
            .map_err(|error| self.error(error))?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
            .fetch_one(&mut *change)
            .await
            .map_err(|error| self.error(error))?;
        if application != APPLICATION_ID && (application != 0 || version != 0 || tables != 0) {
            return Err(ServerError::DatabaseForeign {
                path: self.path(),
                found: application,
            });
        }
        let known = i64::try_from(STEPS.len()).expect("a handful of steps");
        let Ok(done) = usize::try_from(version) else {
            return Err(ServerError::DatabaseForeign {
                path: self.path(),
                found: application,
            });
        };
        if done > STEPS.len() {
            return Err(ServerError::DatabaseNewer {
                path: self.path(),
                found: version,
                known,
            });
        }
        if done == STEPS.len() {
            return Ok(());
        }
        for step in &STEPS[done..] {
            sqlx::raw_sql(*step)
                .execute(&mut *change)
                .await
                .map_err(|error| self.error(error))?;
        }
        // Pragmas take no parameters; both values are numbers of ours.
        let marks =
            format!("PRAGMA user_version = {known}; PRAGMA application_id = {APPLICATION_ID}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(marks))
            .execute(&mut *change)
            .await
            .map_err(|error| self.error(error))?;
        self.commit(change).await
    }

    /// Commits a change of what is trusted. Its line is in the audit log before it holds.
    async fn commit_audited(
        &self,
        change: Transaction<'static, Sqlite>,
        event: Event,
    ) -> Result<(), ServerError> {
        self.audit(event).await?;
        self.commit(change).await
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, ServerError> {
        self.pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|error| self.error(error))
    }

    async fn commit(&self, change: Transaction<'static, Sqlite>) -> Result<(), ServerError> {
        change.commit().await.map_err(|error| self.error(error))
    }

    fn error(&self, source: sqlx::Error) -> ServerError {
        database_error(&self.path, source)
    }

    fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }
}

/// A line for the audit log.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    event: AuditEvent,
    host: Option<HostName>,
    detail: Value,
}

impl Event {
    pub(crate) fn new(event: AuditEvent, host: Option<&HostName>, detail: Value) -> Self {
        Self {
            event,
            host: host.cloned(),
            detail,
        }
    }
}

fn database_error(path: &Path, source: sqlx::Error) -> ServerError {
    // The low byte of an extended result code is the plain code.
    let code = source
        .as_database_error()
        .and_then(DatabaseError::code)
        .and_then(|code| code.parse::<u32>().ok())
        .map(|code| code & 0xff);
    match code {
        Some(SQLITE_BUSY | SQLITE_LOCKED) => ServerError::DatabaseLocked { path: path.into() },
        Some(SQLITE_FULL) => ServerError::Full {
            path: path.parent().unwrap_or(path).into(),
        },
        _ => ServerError::Database {
            path: path.into(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn script(path: &Path, sql: &'static str) -> SqlitePool {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await
            .unwrap();
        sqlx::raw_sql(sql).execute(&pool).await.unwrap();
        pool
    }

    #[tokio::test]
    async fn database_opens_again_and_a_missing_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.db");
        let error = Database::open(&path, Missing::Refuse).await.unwrap_err();
        assert!(
            matches!(error, ServerError::NotInitialised { .. }),
            "{error}"
        );
        drop(Database::open(&path, Missing::Create).await.unwrap());
        assert!(Database::open(&path, Missing::Refuse).await.is_ok());
    }

    /// What hosts have stored, as it is counted and as it is.
    async fn used(pool: &SqlitePool) -> Vec<(i64, i64)> {
        let ask = "SELECT used, (SELECT coalesce(sum(max(bytes, 4096)), 0) FROM arrivals
            WHERE host_id = hosts.id AND removed_at IS NULL) FROM hosts ORDER BY id";
        sqlx::query_as(ask).fetch_all(pool).await.unwrap()
    }

    #[tokio::test]
    async fn what_hosts_have_stored_is_counted_whatever_becomes_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.db");
        let (_, before) = schema::STEPS.split_last().unwrap();
        let old = format!(
            "{} PRAGMA application_id = {}; PRAGMA user_version = {};
             INSERT INTO hosts (id, name, enrolled_at) VALUES (1, 'web1', 0), (2, 'web2', 0);
             INSERT INTO arrivals (host_id, kind, id, bytes, arrived_at, removed_at) VALUES
                (1, 'pack', x'01', 10000, 0, NULL), (1, 'pack', x'02', 10000, 0, 5),
                (2, 'pack', x'01', 1, 0, NULL)",
            before.concat(),
            schema::APPLICATION_ID,
            before.len()
        );
        script(&path, old.leak()).await.close().await;
        drop(Database::open(&path, Missing::Refuse).await.unwrap());
        for (change, count) in [
            ("SELECT 1", 10_000),
            ("UPDATE arrivals SET removed_at = NULL WHERE id = x'02'", 20_000),
            ("UPDATE arrivals SET removed_at = 7 WHERE id = x'01' AND host_id = 1", 10_000),
            ("DELETE FROM arrivals WHERE id = x'01' AND host_id = 1", 10_000),
            (
                "INSERT INTO arrivals (host_id, kind, id, bytes, arrived_at) VALUES (1, 'wal', x'03', 7, 0)",
                14_096,
            ),
            (
                "INSERT INTO arrivals (host_id, kind, id, bytes, arrived_at) VALUES (1, 'wal', x'03', 7, 0)
                 ON CONFLICT (host_id, kind, id) DO UPDATE SET bytes = 5000",
                15_000,
            ),
            ("DELETE FROM arrivals WHERE kind = 'wal'", 10_000),
        ] {
            let pool = script(&path, change).await;
            assert_eq!(used(&pool).await, [(count, count), (4096, 4096)], "{change}");
            pool.close().await;
        }
    }

    #[tokio::test]
    async fn newer_schema_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.db");
        drop(Database::open(&path, Missing::Create).await.unwrap());
        script(&path, "PRAGMA user_version = 99")
            .await
            .close()
            .await;
        let error = Database::open(&path, Missing::Refuse).await.unwrap_err();
        assert!(
            matches!(error, ServerError::DatabaseNewer { found: 99, .. }),
            "{error}"
        );
    }

    #[tokio::test]
    async fn foreign_database_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.db");
        script(&path, "CREATE TABLE theirs (x)").await.close().await;
        let error = Database::open(&path, Missing::Create).await.unwrap_err();
        assert!(
            matches!(error, ServerError::DatabaseForeign { .. }),
            "{error}"
        );
        std::fs::write(
            &path,
            b"this is no database, and long enough to be seen as none",
        )
        .unwrap();
        let error = Database::open(&path, Missing::Create).await.unwrap_err();
        assert!(error.to_string().contains("server.db"), "{error}");
    }

    #[tokio::test]
    async fn lock_of_another_program_is_called_a_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.db");
        drop(Database::open(&path, Missing::Create).await.unwrap());
        let holder = script(&path, "BEGIN IMMEDIATE").await;
        let error = Database::open_within(&path, Missing::Refuse, Duration::from_millis(10))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ServerError::DatabaseLocked { .. }),
            "{error}"
        );
        drop(holder);
    }
}
