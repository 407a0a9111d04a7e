//! Hosts, and the slots that they may use.

use super::{Database, Event, Leave, PoolSlots, Timestamp};
use crate::{HostName, ServerError, audit::AuditEvent};
use serde_json::json;
use sqlx::{Row, Sqlite, Transaction};
use std::collections::BTreeSet;
use uuid::Uuid;

/// The database's own number of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostId(pub(super) i64);

/// A wish for more slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotRequest {
    pub(crate) pool: PoolSlots,
    /// How many more.
    pub(crate) slots: u32,
}

/// A host as the database knows it.
#[derive(Clone, Debug)]
pub(crate) struct HostRow {
    pub(crate) name: String,
    pub(crate) enrolled_at: Timestamp,
    /// None if all of them are revoked.
    pub(crate) certificate_expires_at: Option<Timestamp>,
    /// Until when it may read file contents.
    pub(crate) restore_until: Option<Timestamp>,
    /// Until when it may remove what isn't needed any more.
    pub(crate) maintain_until: Option<Timestamp>,
    pub(crate) slots: Vec<u32>,
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) last_arrival_at: Option<Timestamp>,
}

impl Database {
    /// The host of this name.
    pub(crate) async fn host(&self, name: &HostName) -> Result<HostId, ServerError> {
        sqlx::query_scalar("SELECT id FROM hosts WHERE name = $1")
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| self.error(error))?
            .map(HostId)
            .ok_or_else(|| ServerError::UnknownHost {
                host: name.to_string(),
            })
    }

    /// Enters a host whose repository is there, if it isn't known. It has no certificate, and gets one when it enrols.
    pub(crate) async fn enter_host(
        &self,
        name: &HostName,
        now: Timestamp,
    ) -> Result<HostId, ServerError> {
        let mut change = self.begin().await?;
        let id = self.ensure_host(&mut change, name, now).await?;
        self.commit(change).await?;
        Ok(id)
    }

    /// Every host, with its slots in `pool` and a summary of what it has stored.
    pub(crate) async fn hosts(
        &self,
        pool: Option<Uuid>,
        now: Timestamp,
    ) -> Result<Vec<HostRow>, ServerError> {
        let rows = sqlx::query(
            "SELECT id, name, enrolled_at,
                (SELECT max(expires_at) FROM certificates
                 WHERE host_id = hosts.id AND revoked_at IS NULL) AS expires_at,
                (SELECT max(expires_at) FROM permissions
                 WHERE host_id = hosts.id AND leave = $2 AND expires_at > $1) AS restore_until,
                (SELECT max(expires_at) FROM permissions
                 WHERE host_id = hosts.id AND leave = $3 AND expires_at > $1) AS maintain_until,
                (SELECT count(*) FROM arrivals WHERE host_id = hosts.id AND removed_at IS NULL) AS objects,
                (SELECT coalesce(sum(bytes), 0) FROM arrivals
                 WHERE host_id = hosts.id AND removed_at IS NULL) AS bytes,
                (SELECT max(arrived_at) FROM arrivals WHERE host_id = hosts.id) AS last_arrival_at
             FROM hosts ORDER BY name",
        )
        .bind(now.0)
        .bind(Leave::Restore as i64)
        .bind(Leave::Maintenance as i64)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let mut hosts = Vec::with_capacity(rows.len());
        for row in rows {
            let field = |error| self.error(error);
            let time = |name| {
                let time: Option<i64> = row.try_get(name).map_err(field)?;
                Ok::<_, ServerError>(time.map(Timestamp))
            };
            let id = HostId(row.try_get("id").map_err(field)?);
            hosts.push(HostRow {
                name: row.try_get("name").map_err(field)?,
                enrolled_at: Timestamp(row.try_get("enrolled_at").map_err(field)?),
                certificate_expires_at: time("expires_at")?,
                restore_until: time("restore_until")?,
                maintain_until: time("maintain_until")?,
                slots: match pool {
                    Some(pool) => self.slots(id, pool).await?,
                    None => Vec::new(),
                },
                objects: unsigned(row.try_get("objects").map_err(field)?),
                bytes: unsigned(row.try_get("bytes").map_err(field)?),
                last_arrival_at: time("last_arrival_at")?,
            });
        }
        Ok(hosts)
    }

    /// The slots of a host in a pool, in order.
    pub(crate) async fn slots(&self, host: HostId, pool: Uuid) -> Result<Vec<u32>, ServerError> {
        sqlx::query_scalar("SELECT slot FROM slots WHERE pool = $1 AND host_id = $2 ORDER BY slot")
            .bind(pool.as_bytes().as_slice())
            .bind(host.0)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| self.error(error))
    }

    /// The slots of a pool that any host may use, or may enrol with.
    pub(crate) async fn all_slots(
        &self,
        pool: Uuid,
        now: Timestamp,
    ) -> Result<BTreeSet<u32>, ServerError> {
        let trusted: Vec<u32> = sqlx::query_scalar(
            "SELECT slot FROM slots WHERE pool = $1 AND EXISTS (SELECT 1 FROM certificates
                WHERE certificates.host_id = slots.host_id AND revoked_at IS NULL AND expires_at > $2)
             UNION SELECT slot FROM tokens WHERE pool = $1 AND used_at IS NULL AND expires_at > $2",
        )
        .bind(pool.as_bytes().as_slice())
        .bind(now.0)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(trusted.into_iter().collect())
    }

    async fn taken_slots(
        &self,
        within: impl sqlx::SqliteExecutor<'_>,
        pool: Uuid,
        now: Timestamp,
    ) -> Result<BTreeSet<u32>, ServerError> {
        let taken: Vec<u32> = sqlx::query_scalar(
            "SELECT slot FROM slots WHERE pool = $1
             UNION SELECT slot FROM tokens WHERE pool = $1 AND used_at IS NULL AND expires_at > $2",
        )
        .bind(pool.as_bytes().as_slice())
        .bind(now.0)
        .fetch_all(within)
        .await
        .map_err(|error| self.error(error))?;
        Ok(taken.into_iter().collect())
    }

    /// The lowest free slots of the pool, as many as are wanted or none.
    pub(super) async fn free_slots(
        &self,
        change: &mut Transaction<'static, Sqlite>,
        name: &HostName,
        request: SlotRequest,
        now: Timestamp,
    ) -> Result<Vec<u32>, ServerError> {
        let pool = request.pool;
        let taken = self.taken_slots(&mut **change, pool.uuid, now).await?;
        let free = (0..pool.slots).filter(|slot| !taken.contains(slot));
        let wanted = usize::try_from(request.slots).unwrap_or(usize::MAX);
        let found: Vec<u32> = free.clone().take(wanted).collect();
        if found.len() < wanted {
            return Err(ServerError::NoSlots {
                host: name.to_string(),
                wanted: request.slots,
                free: u32::try_from(free.count()).unwrap_or(u32::MAX),
                all: pool.slots,
            });
        }
        Ok(found)
    }

    /// Limits what a host may store, or with `None` doesn't.
    pub(crate) async fn set_quota(
        &self,
        name: &HostName,
        quota: Option<u64>,
    ) -> Result<(), ServerError> {
        let host = self.host(name).await?;
        let mut change = self.begin().await?;
        sqlx::query("UPDATE hosts SET quota = $1 WHERE id = $2")
            .bind(quota.map(|quota| i64::try_from(quota).unwrap_or(i64::MAX)))
            .bind(host.0)
            .execute(&mut *change)
            .await
            .map_err(|error| self.error(error))?;
        let event = Event::new(AuditEvent::QuotaSet, Some(name), json!({"bytes": quota}));
        self.commit_audited(change, event).await
    }

    /// Allots more slots to a host that is enrolled.
    pub(crate) async fn add_slots(
        &self,
        name: &HostName,
        request: SlotRequest,
        now: Timestamp,
    ) -> Result<Vec<u32>, ServerError> {
        let host = self.host(name).await?;
        let mut change = self.begin().await?;
        let added = self.free_slots(&mut change, name, request, now).await?;
        self.allot(&mut change, host, request.pool.uuid, &added)
            .await?;
        let detail = json!({"pool": request.pool.uuid.to_string(), "slots": added});
        let event = Event::new(AuditEvent::SlotsAdded, Some(name), detail);
        self.commit_audited(change, event).await?;
        Ok(added)
    }

    /// Gives slots of a pool to a host.
    pub(super) async fn allot(
        &self,
        change: &mut Transaction<'static, Sqlite>,
        host: HostId,
        pool: Uuid,
        slots: &[u32],
    ) -> Result<(), ServerError> {
        for slot in slots {
            sqlx::query("INSERT INTO slots (pool, slot, host_id) VALUES ($1, $2, $3)")
                .bind(pool.as_bytes().as_slice())
                .bind(slot)
                .bind(host.0)
                .execute(&mut **change)
                .await
                .map_err(|error| self.error(error))?;
        }
        Ok(())
    }
}

/// Counts and sums of sizes are never negative.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
