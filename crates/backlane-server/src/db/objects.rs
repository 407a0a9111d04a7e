//! What is remembered of objects: what a pack holds, and when each object arrived.

use super::{Database, HostId, Timestamp};
use crate::{ObjectCount, ServerError, store::Origin};
use backlane_proto::{ObjectId, ObjectKind, ObjectName, PackContents};
use sqlx::{Sqlite, Transaction};
use std::collections::BTreeSet;

/// So many rows are written at once: others wait for the database no longer than that takes.
const ROWS_A_CHANGE: usize = 10_000;

const DATA: i64 = 0;
const TREES: i64 = 1;

impl Database {
    /// Records that a verified body arrived, and what a pack holds. The first record of a name stays, until it is removed.
    pub(crate) async fn record_arrival(
        &self,
        host: HostId,
        arrival: Arrival,
        now: Timestamp,
    ) -> Result<(), ServerError> {
        let name = arrival.name;
        let id = name.id.0.as_slice();
        let mut change = self.begin().await?;
        if name.kind == ObjectKind::Pack {
            self.label_pack(&mut change, host, name.id, arrival.contents)
                .await?;
        }
        sqlx::query(
            "INSERT INTO arrivals (host_id, kind, id, bytes, arrived_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (host_id, kind, id) DO UPDATE SET removed_at = NULL, bytes = excluded.bytes,
                arrived_at = iif(arrivals.removed_at IS NULL, arrivals.arrived_at, excluded.arrived_at)",
        )
        .bind(host.0)
        .bind(name.kind.to_string())
        .bind(id)
        .bind(i64::try_from(arrival.bytes).unwrap_or(i64::MAX))
        .bind(now.0)
        .execute(&mut *change)
        .await
        .map_err(|error| self.error(error))?;
        self.commit(change).await
    }

    async fn label_pack(
        &self,
        change: &mut Transaction<'static, Sqlite>,
        host: HostId,
        pack: ObjectId,
        contents: PackContents,
    ) -> Result<(), ServerError> {
        sqlx::query(
            "INSERT INTO packs (host_id, id, contents) VALUES ($1, $2, $3)
             ON CONFLICT (host_id, id) DO NOTHING",
        )
        .bind(host.0)
        .bind(pack.0.as_slice())
        .bind(match contents {
            PackContents::Data => DATA,
            PackContents::Trees => TREES,
        })
        .execute(&mut **change)
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    /// Records what packs hold; what is known already stays.
    pub(crate) async fn label_packs(
        &self,
        host: HostId,
        packs: &[ObjectId],
        contents: PackContents,
    ) -> Result<(), ServerError> {
        for part in packs.chunks(ROWS_A_CHANGE) {
            let mut change = self.begin().await?;
            for pack in part {
                self.label_pack(&mut change, host, *pack, contents).await?;
            }
            self.commit(change).await?;
        }
        Ok(())
    }

    /// Enters objects that are there and aren't known. Returns how many those were.
    pub(crate) async fn enter_objects(
        &self,
        host: HostId,
        found: &[Found],
    ) -> Result<ObjectCount, ServerError> {
        let mut count = ObjectCount::default();
        for part in found.chunks(ROWS_A_CHANGE) {
            let mut change = self.begin().await?;
            for object in part {
                let name = object.name;
                if let (ObjectKind::Pack, Some(contents)) = (name.kind, object.origin.contents) {
                    self.label_pack(&mut change, host, name.id, contents)
                        .await?;
                }
                let entered = sqlx::query(
                    "INSERT INTO arrivals (host_id, kind, id, bytes, arrived_at, removed_at)
                     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (host_id, kind, id) DO NOTHING",
                )
                .bind(host.0)
                .bind(name.kind.to_string())
                .bind(name.id.0.as_slice())
                .bind(i64::try_from(object.bytes).unwrap_or(i64::MAX))
                .bind(object.origin.written_at.0)
                .bind(object.removed_at.map(|at| at.0))
                .execute(&mut *change)
                .await
                .map_err(|error| self.error(error))?;
                if entered.rows_affected() > 0 {
                    count.add(object.bytes);
                }
            }
            self.commit(change).await?;
        }
        Ok(count)
    }

    /// The packs of which it is known what they hold.
    pub(crate) async fn labelled_packs(
        &self,
        host: HostId,
    ) -> Result<BTreeSet<ObjectId>, ServerError> {
        let ids: Vec<Vec<u8>> = sqlx::query_scalar("SELECT id FROM packs WHERE host_id = $1")
            .bind(host.0)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| self.error(error))?;
        let id = |id: Vec<u8>| Some(ObjectId(id.try_into().ok()?));
        Ok(ids.into_iter().filter_map(id).collect())
    }

    /// What a pack holds; what isn't known to be trees counts as data.
    pub(crate) async fn pack_contents(
        &self,
        host: HostId,
        name: ObjectName,
    ) -> Result<PackContents, ServerError> {
        let contents: Option<i64> =
            sqlx::query_scalar("SELECT contents FROM packs WHERE host_id = $1 AND id = $2")
                .bind(host.0)
                .bind(name.id.0.as_slice())
                .fetch_optional(&self.pool)
                .await
                .map_err(|error| self.error(error))?;
        Ok(match contents {
            Some(TREES) => PackContents::Trees,
            _ => PackContents::Data,
        })
    }

    /// Counts that objects are removed from a host's repository, before the first is.
    pub(crate) async fn count_removals(&self, host: HostId) -> Result<(), ServerError> {
        let mut change = self.begin().await?;
        sqlx::query("UPDATE hosts SET removals = removals + 1 WHERE id = $1")
            .bind(host.0)
            .execute(&mut *change)
            .await
            .map_err(|error| self.error(error))?;
        self.commit(change).await
    }

    /// How many times objects were removed from a host's repository, ever.
    pub(crate) async fn removals(&self, host: HostId) -> Result<u64, ServerError> {
        let removals: i64 = sqlx::query_scalar("SELECT removals FROM hosts WHERE id = $1")
            .bind(host.0)
            .fetch_one(&self.pool)
            .await
            .map_err(|error| self.error(error))?;
        Ok(u64::try_from(removals).unwrap_or(0))
    }

    /// How much a host may store in bytes, if that is limited, and how much it has stored.
    pub(crate) async fn quota(&self, host: HostId) -> Result<Option<(u64, u64)>, ServerError> {
        let (quota, used): (Option<i64>, i64) =
            sqlx::query_as("SELECT quota, used FROM hosts WHERE id = $1")
                .bind(host.0)
                .fetch_one(&self.pool)
                .await
                .map_err(|error| self.error(error))?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(quota.map(|quota| (number(quota), number(used))))
    }

    /// The same of at most `most` objects, those behind `after` in the order of their ids.
    pub(crate) async fn arrivals_after(
        &self,
        host: HostId,
        kind: ObjectKind,
        after: Option<ObjectId>,
        most: usize,
    ) -> Result<Vec<(ObjectId, Timestamp)>, ServerError> {
        let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(
            "SELECT id, arrived_at FROM arrivals
             WHERE host_id = $1 AND kind = $2 AND removed_at IS NULL AND id > $3 ORDER BY id LIMIT $4",
        )
        .bind(host.0)
        .bind(kind.to_string())
        // Every id is behind the empty one.
        .bind(after.as_ref().map_or(&[][..], |id| &id.0))
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(rows.into_iter().filter_map(arrival).collect())
    }

    /// When the objects of a kind arrived.
    pub(crate) async fn arrivals(
        &self,
        host: HostId,
        kind: ObjectKind,
    ) -> Result<Vec<(ObjectId, Timestamp)>, ServerError> {
        let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(
            "SELECT id, arrived_at FROM arrivals
             WHERE host_id = $1 AND kind = $2 AND removed_at IS NULL",
        )
        .bind(host.0)
        .bind(kind.to_string())
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(rows.into_iter().filter_map(arrival).collect())
    }

    /// Records that an object was removed, or with `None` that it was put back.
    pub(crate) async fn set_removed(
        &self,
        host: HostId,
        name: ObjectName,
        at: Option<Timestamp>,
    ) -> Result<(), ServerError> {
        sqlx::query(
            "UPDATE arrivals SET removed_at = $1 WHERE host_id = $2 AND kind = $3 AND id = $4",
        )
        .bind(at.map(|at| at.0))
        .bind(host.0)
        .bind(name.kind.to_string())
        .bind(name.id.0.as_slice())
        .execute(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    /// Forgets an object that was removed, unless it has arrived again.
    pub(crate) async fn forget_object(
        &self,
        host: HostId,
        name: ObjectName,
    ) -> Result<(), ServerError> {
        let mut change = self.begin().await?;
        sqlx::query(
            "DELETE FROM arrivals
             WHERE host_id = $1 AND kind = $2 AND id = $3 AND removed_at IS NOT NULL",
        )
        .bind(host.0)
        .bind(name.kind.to_string())
        .bind(name.id.0.as_slice())
        .execute(&mut *change)
        .await
        .map_err(|error| self.error(error))?;
        if name.kind == ObjectKind::Pack {
            sqlx::query(
                "DELETE FROM packs WHERE host_id = $1 AND id = $2 AND NOT EXISTS
                    (SELECT 1 FROM arrivals WHERE host_id = $1 AND kind = $3 AND id = $2)",
            )
            .bind(host.0)
            .bind(name.id.0.as_slice())
            .bind(name.kind.to_string())
            .execute(&mut *change)
            .await
            .map_err(|error| self.error(error))?;
        }
        self.commit(change).await
    }
}

fn arrival((id, at): (Vec<u8>, i64)) -> Option<(ObjectId, Timestamp)> {
    Some((ObjectId(id.try_into().ok()?), Timestamp(at)))
}

/// An object that is there, whoever put it there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) name: ObjectName,
    pub(crate) bytes: u64,
    pub(crate) origin: Origin,
    /// When it was laid on the shelf of what is removed, if it is there.
    pub(crate) removed_at: Option<Timestamp>,
}

/// A body that was verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) name: ObjectName,
    pub(crate) contents: PackContents,
    pub(crate) bytes: u64,
}
