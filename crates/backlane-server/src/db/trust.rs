//! Whom the server trusts with what: certificates that are good, and permissions.

use super::{Database, Event, HostId, Issued, Timestamp};
use crate::{HostName, ServerError, audit::AuditEvent};
use backlane_proto::{ObjectKind, ObjectName};
use serde_json::json;
use sqlx::{Row, Sqlite, Transaction};

/// A host that asks for one certificate after the other must not fill database and audit log.
const CERTIFICATES_AN_HOUR: i64 = 20;
const HOUR_MS: i64 = 60 * 60 * 1000;

/// What a permission is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// To read file contents.
    Restore = 0,
    /// To remove what isn't needed any more.
    Maintenance = 1,
    /// To read archived WAL.
    Wal = 2,
}

impl Leave {
    const ALL: [Self; 3] = [Self::Restore, Self::Maintenance, Self::Wal];

    fn allowed(self) -> AuditEvent {
        match self {
            Self::Restore => AuditEvent::RestoreAllowed,
            Self::Maintenance => AuditEvent::MaintenanceAllowed,
            Self::Wal => AuditEvent::WalAllowed,
        }
    }

    fn revoked(self) -> AuditEvent {
        match self {
            Self::Restore => AuditEvent::RestoreRevoked,
            Self::Maintenance => AuditEvent::MaintenanceRevoked,
            Self::Wal => AuditEvent::WalRevoked,
        }
    }
}

/// A permission to read file contents, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RestorePermission {
    pub(crate) number: i64,
    pub(crate) expires_at: Timestamp,
    /// Only packs that arrived by then; any if there is no bound.
    pub(crate) arrived_by: Option<Timestamp>,
}

/// What a revocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revocation {
    pub(crate) certificates: u64,
    pub(crate) tokens: u64,
}

impl Database {
    /// Remembers a certificate that is issued.
    pub(super) async fn record_certificate(
        &self,
        change: &mut Transaction<'static, Sqlite>,
        host: HostId,
        issued: &impl Issued,
        now: Timestamp,
    ) -> Result<(), ServerError> {
        sqlx::query(
            "INSERT INTO certificates (serial, host_id, issued_at, expires_at) VALUES ($1, $2, $3, $4)",
        )
        .bind(issued.serial())
        .bind(host.0)
        .bind(now.0)
        .bind(issued.expires_at().0)
        .execute(&mut **change)
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    /// Whether a certificate of a host, by its serial number, was issued here and is neither revoked nor expired.
    pub(crate) async fn check_certificate(
        &self,
        host: &HostName,
        serial: &[u8],
    ) -> Result<HostId, ServerError> {
        self.check_certificate_in(&self.pool, host, serial).await
    }

    async fn check_certificate_in(
        &self,
        within: impl sqlx::SqliteExecutor<'_>,
        host: &HostName,
        serial: &[u8],
    ) -> Result<HostId, ServerError> {
        let row = sqlx::query(
            "SELECT host_id, revoked_at, expires_at FROM certificates
             JOIN hosts ON hosts.id = host_id WHERE serial = $1 AND name = $2",
        )
        .bind(serial)
        .bind(host.as_str())
        .fetch_optional(within)
        .await
        .map_err(|error| self.error(error))?;
        let host = host.to_string();
        let Some(row) = row else {
            return Err(ServerError::CertificateUnknown { host });
        };
        let field = |error| self.error(error);
        let revoked_at: Option<i64> = row.try_get("revoked_at").map_err(field)?;
        let expires_at: i64 = row.try_get("expires_at").map_err(field)?;
        match revoked_at {
            Some(_) => Err(ServerError::CertificateRevoked { host }),
            None if expires_at <= Timestamp::now().0 => {
                Err(ServerError::CertificateExpired { host })
            }
            None => Ok(HostId(row.try_get("host_id").map_err(field)?)),
        }
    }

    /// Records a certificate that takes the place of another, which stays good until it expires.
    pub(crate) async fn renew<C: Issued>(
        &self,
        host: &HostName,
        serial: &[u8],
        now: Timestamp,
        sign: impl FnOnce() -> Result<C, ServerError>,
    ) -> Result<C, ServerError> {
        let mut change = self.begin().await?;
        // Under the lock: it can't be revoked in between.
        let id = self
            .check_certificate_in(&mut *change, host, serial)
            .await?;
        let lately: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM certificates WHERE host_id = $1 AND issued_at > $2",
        )
        .bind(id.0)
        .bind(now.0 - HOUR_MS)
        .fetch_one(&mut *change)
        .await
        .map_err(|error| self.error(error))?;
        if lately >= CERTIFICATES_AN_HOUR {
            return Err(ServerError::Denied(
                "this host was issued as many certificates in the last hour as any may be",
            ));
        }
        let certificate = sign()?;
        self.record_certificate(&mut change, id, &certificate, now)
            .await?;
        let detail = json!({"serial": hex::encode(certificate.serial())});
        let event = Event::new(AuditEvent::CertificateRenewed, Some(host), detail);
        self.commit_audited(change, event).await?;
        Ok(certificate)
    }

    /// Ends all that a host was trusted with: its certificates, its permissions, and join tokens for its name, which it may
    /// have before it is a host.
    pub(crate) async fn revoke(
        &self,
        host: &HostName,
        now: Timestamp,
    ) -> Result<Revocation, ServerError> {
        let mut change = self.begin().await?;
        let id: Option<i64> = sqlx::query_scalar("SELECT id FROM hosts WHERE name = $1")
            .bind(host.as_str())
            .fetch_optional(&mut *change)
            .await
            .map_err(|error| self.error(error))?;
        let certificates = sqlx::query(
            // Without a host none: nothing equals NULL.
            "UPDATE certificates SET revoked_at = $1 WHERE host_id = $2 AND revoked_at IS NULL",
        )
        .bind(now.0)
        .bind(id)
        .execute(&mut *change)
        .await
        .map_err(|error| self.error(error))?
        .rows_affected();
        let tokens = sqlx::query(
            // Not as of now: one whose redemption has begun must not pass either.
            "UPDATE tokens SET expires_at = 0
             WHERE host = $1 AND used_at IS NULL AND expires_at > $2",
        )
        .bind(host.as_str())
        .bind(now.0)
        .execute(&mut *change)
        .await
        .map_err(|error| self.error(error))?
        .rows_affected();
        match id {
            Some(id) => {
                for leave in Leave::ALL {
                    self.end_permissions(&mut change, HostId(id), leave, now)
                        .await?;
                }
            }
            None if tokens == 0 => {
                let host = host.to_string();
                return Err(ServerError::UnknownHost { host });
            }
            None => {}
        }
        let detail = json!({"certificates": certificates, "tokens": tokens});
        let event = Event::new(AuditEvent::HostRevoked, Some(host), detail);
        self.commit_audited(change, event).await?;
        Ok(Revocation {
            certificates,
            tokens,
        })
    }

    /// Lets a host read file contents until `expires_at`: of packs that arrived no later than the newest of `snapshots`
    /// (beginnings of their ids), or of all packs if none is named.
    pub(crate) async fn allow_restore(
        &self,
        host: &HostName,
        snapshots: &[String],
        (now, expires_at): (Timestamp, Timestamp),
    ) -> Result<RestorePermission, ServerError> {
        let id = self.host(host).await?;
        let mut change = self.begin().await?;
        let mut arrived_by = None;
        for snapshot in snapshots {
            let arrived = self.snapshot_arrival(&mut change, id, host, snapshot);
            arrived_by = arrived_by.max(Some(arrived.await?));
        }
        let permission = (Leave::Restore, arrived_by);
        let number = self.permit(&mut change, id, permission, (now, expires_at));
        let number = number.await?;
        let detail = json!({"number": number, "until": expires_at.text(), "snapshots": snapshots});
        let event = Event::new(AuditEvent::RestoreAllowed, Some(host), detail);
        self.commit_audited(change, event).await?;
        Ok(RestorePermission {
            number,
            expires_at,
            arrived_by,
        })
    }

    /// Gives a host a permission until `expires_at`, or until it is revoked.
    pub(crate) async fn allow(
        &self,
        host: &HostName,
        leave: Leave,
        (now, expires_at): (Timestamp, Option<Timestamp>),
    ) -> Result<(), ServerError> {
        let id = self.host(host).await?;
        let mut change = self.begin().await?;
        let until = expires_at.unwrap_or(Timestamp(i64::MAX));
        let number = self.permit(&mut change, id, (leave, None), (now, until));
        let until = expires_at.map(Timestamp::text);
        let detail = json!({"number": number.await?, "until": until});
        let event = Event::new(leave.allowed(), Some(host), detail);
        self.commit_audited(change, event).await
    }

    async fn permit(
        &self,
        change: &mut Transaction<'static, Sqlite>,
        host: HostId,
        (leave, arrived_by): (Leave, Option<Timestamp>),
        (now, expires_at): (Timestamp, Timestamp),
    ) -> Result<i64, ServerError> {
        sqlx::query_scalar(
            "INSERT INTO permissions (host_id, leave, granted_at, expires_at, arrived_by)
             VALUES ($1, $2, $3, $4, $5) RETURNING number",
        )
        .bind(host.0)
        .bind(leave as i64)
        .bind(now.0)
        .bind(expires_at.0)
        .bind(arrived_by.map(|at| at.0))
        .fetch_one(&mut **change)
        .await
        .map_err(|error| self.error(error))
    }

    /// Fails unless a host may remove what isn't needed any more.
    pub(crate) async fn check_maintenance(&self, host: &HostName) -> Result<(), ServerError> {
        match self.permission(host, Leave::Maintenance).await? {
            Some(_) => Ok(()),
            None => Err(ServerError::MaintenanceDenied {
                host: host.to_string(),
            }),
        }
    }

    /// The number of the permission of one kind that a host has now.
    pub(crate) async fn permission(
        &self,
        host: &HostName,
        leave: Leave,
    ) -> Result<Option<i64>, ServerError> {
        let id = self.host(host).await?;
        sqlx::query_scalar(
            "SELECT number FROM permissions WHERE host_id = $1 AND leave = $2 AND expires_at > $3
             ORDER BY expires_at DESC LIMIT 1",
        )
        .bind(id.0)
        .bind(leave as i64)
        .bind(Timestamp::now().0)
        .fetch_optional(&self.pool)
        .await
        .map_err(|error| self.error(error))
    }

    /// When a snapshot arrived.
    async fn snapshot_arrival(
        &self,
        change: &mut Transaction<'static, Sqlite>,
        id: HostId,
        host: &HostName,
        snapshot: &str,
    ) -> Result<Timestamp, ServerError> {
        let unknown = |why| ServerError::Snapshot {
            host: host.to_string(),
            snapshot: snapshot.to_owned(),
            why,
        };
        if snapshot.is_empty() || !snapshot.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(unknown(
                "an id is of hexadecimal digits, as `backlane snapshots` shows it",
            ));
        }
        let found: Vec<i64> = sqlx::query_scalar(
            "SELECT arrived_at FROM arrivals
             WHERE host_id = $1 AND kind = $2 AND hex(id) LIKE $3 AND removed_at IS NULL LIMIT 2",
        )
        .bind(id.0)
        .bind(ObjectKind::Snapshot.to_string())
        .bind(format!("{snapshot}%"))
        .fetch_all(&mut **change)
        .await
        .map_err(|error| self.error(error))?;
        match found[..] {
            [at] => Ok(Timestamp(at)),
            [] => Err(unknown("none of that id has arrived here")),
            _ => Err(unknown("several have ids that begin so")),
        }
    }

    /// Ends every permission of a host of one kind; returns how many there were.
    pub(crate) async fn revoke_leave(
        &self,
        host: &HostName,
        leave: Leave,
        now: Timestamp,
    ) -> Result<u64, ServerError> {
        let id = self.host(host).await?;
        let mut change = self.begin().await?;
        let ended = self.end_permissions(&mut change, id, leave, now).await?;
        let event = Event::new(leave.revoked(), Some(host), json!({"permissions": ended}));
        self.commit_audited(change, event).await?;
        Ok(ended)
    }

    async fn end_permissions(
        &self,
        change: &mut Transaction<'static, Sqlite>,
        host: HostId,
        leave: Leave,
        now: Timestamp,
    ) -> Result<u64, ServerError> {
        let ended = sqlx::query(
            "UPDATE permissions SET expires_at = $1 WHERE host_id = $2 AND leave = $3 AND expires_at > $1",
        )
        .bind(now.0)
        .bind(host.0)
        .bind(leave as i64)
        .execute(&mut **change)
        .await
        .map_err(|error| self.error(error))?;
        Ok(ended.rows_affected())
    }

    /// A permission by which a host may read a data pack now.
    pub(crate) async fn restore_permission(
        &self,
        host: HostId,
        pack: ObjectName,
        now: Timestamp,
    ) -> Result<Option<RestorePermission>, ServerError> {
        // A pack whose arrival isn't known came by another tool: only a permission without a bound covers it.
        let row = sqlx::query(
            "SELECT number, expires_at, arrived_by FROM permissions
             WHERE host_id = $1 AND leave = $5 AND expires_at > $2 AND (arrived_by IS NULL OR arrived_by >=
                (SELECT arrived_at FROM arrivals WHERE host_id = $1 AND kind = $3 AND id = $4))
             ORDER BY expires_at DESC LIMIT 1",
        )
        .bind(host.0)
        .bind(now.0)
        .bind(ObjectKind::Pack.to_string())
        .bind(pack.id.0.as_slice())
        .bind(Leave::Restore as i64)
        .fetch_optional(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let field = |error| self.error(error);
        row.map(|row| {
            let arrived_by: Option<i64> = row.try_get("arrived_by").map_err(field)?;
            Ok(RestorePermission {
                number: row.try_get("number").map_err(field)?,
                expires_at: Timestamp(row.try_get("expires_at").map_err(field)?),
                arrived_by: arrived_by.map(Timestamp),
            })
        })
        .transpose()
    }
}
