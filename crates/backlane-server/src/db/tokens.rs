//! Join tokens: issued once, redeemed once, in one transaction with everything that the redemption brings about.

use super::{Database, Event, HostId, SlotRequest, Timestamp};
use crate::{HostName, ServerError, audit::AuditEvent, error::TokenRefusal};
use serde_json::json;
use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};
use uuid::Uuid;

/// The pool whose slots are allotted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolSlots {
    pub(crate) uuid: Uuid,
    /// How many slots it has.
    pub(crate) slots: u32,
}

/// What a redemption needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Redemption {
    /// SHA-256 of the token's secret.
    pub(crate) hash: [u8; 32],
    /// Slots for a host that is new, if there is a pool.
    pub(crate) slots: Option<SlotRequest>,
    pub(crate) now: Timestamp,
}

/// What a redemption brought about.
#[derive(Clone, Debug)]
pub(crate) struct Enrolment<C> {
    pub(crate) host: HostName,
    pub(crate) slots: Vec<u32>,
    pub(crate) certificate: C,
}

/// What has to be remembered of a certificate.
pub(crate) trait Issued {
    fn serial(&self) -> &[u8];
    fn expires_at(&self) -> Timestamp;
}

impl Database {
    /// Remembers a token that was issued, by the hash of its secret alone. With a pool, a slot is kept for the host, so
    /// that it can enrol through the pool; it is returned.
    pub(crate) async fn insert_token(
        &self,
        hash: [u8; 32],
        host: &HostName,
        (issued_at, expires_at): (Timestamp, Timestamp),
        through: Option<PoolSlots>,
    ) -> Result<Option<u32>, ServerError> {
        let mut change = self.begin().await?;
        let slot = match through {
            Some(pool) => {
                // One of its own, if it has any.
                let own: Option<u32> = sqlx::query_scalar(
                    "SELECT min(slot) FROM slots JOIN hosts ON hosts.id = slots.host_id
                     WHERE pool = $1 AND name = $2",
                )
                .bind(pool.uuid.as_bytes().as_slice())
                .bind(host.as_str())
                .fetch_one(&mut *change)
                .await
                .map_err(|error| self.error(error))?;
                let request = SlotRequest { pool, slots: 1 };
                match own {
                    Some(own) => Some(own),
                    None => {
                        let free = self.free_slots(&mut change, host, request, issued_at);
                        free.await?.first().copied()
                    }
                }
            }
            None => None,
        };
        sqlx::query(
            "INSERT INTO tokens (hash, host, issued_at, expires_at, pool, slot)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(hash.as_slice())
        .bind(host.as_str())
        .bind(issued_at.0)
        .bind(expires_at.0)
        .bind(through.map(|pool| pool.uuid.as_bytes().to_vec()))
        .bind(slot)
        .execute(&mut *change)
        .await
        .map_err(|error| self.error(error))?;
        let detail = json!({"until": expires_at.text(), "slot": slot});
        let event = Event::new(AuditEvent::TokenIssued, Some(host), detail);
        self.commit_audited(change, event).await?;
        Ok(slot)
    }

    /// Redeems a token: checks it, has the certificate signed, allots slots. If anything fails, the token is as good
    /// as before.
    pub(crate) async fn redeem<C: Issued>(
        &self,
        redemption: Redemption,
        sign: impl FnOnce(&HostName) -> Result<C, ServerError>,
    ) -> Result<Enrolment<C>, ServerError> {
        let now = redemption.now;
        // Anybody may come with a token: one that is not good must not get as far as the write lock.
        let found = self.find_token(&self.pool, redemption.hash).await?;
        self.check_token(found, now)?;
        let mut change = self.begin().await?;
        let (name, kept) = self.use_token(&mut change, redemption.hash, now).await?;
        let host = self.ensure_host(&mut change, &name, now).await?;
        let slots = match redemption.slots {
            None => Vec::new(),
            Some(request) => {
                let pool = request.pool.uuid;
                let had: Vec<u32> = sqlx::query_scalar(
                    "SELECT slot FROM slots WHERE pool = $1 AND host_id = $2 ORDER BY slot",
                )
                .bind(pool.as_bytes().as_slice())
                .bind(host.0)
                .fetch_all(&mut *change)
                .await
                .map_err(|error| self.error(error))?;
                // A host that enrols again, with a new key, keeps its slots.
                if had.is_empty() {
                    // What the host came through the pool with is its own now.
                    let kept = kept.filter(|(of, _)| *of == pool).map(|(_, slot)| slot);
                    let more = SlotRequest {
                        slots: request.slots - u32::from(kept.is_some()),
                        ..request
                    };
                    let mut slots = Vec::from_iter(kept);
                    self.allot(&mut change, host, pool, &slots).await?;
                    let more = self.free_slots(&mut change, &name, more, now).await?;
                    self.allot(&mut change, host, pool, &more).await?;
                    slots.extend(more);
                    slots.sort_unstable();
                    slots
                } else {
                    had
                }
            }
        };
        let certificate = sign(&name)?;
        self.record_certificate(&mut change, host, &certificate, now)
            .await?;
        let detail = json!({"serial": hex::encode(certificate.serial()), "slots": slots});
        let event = Event::new(AuditEvent::Enrolled, Some(&name), detail);
        self.commit_audited(change, event).await?;
        Ok(Enrolment {
            host: name,
            slots,
            certificate,
        })
    }

    async fn use_token(
        &self,
        change: &mut Transaction<'static, Sqlite>,
        hash: [u8; 32],
        now: Timestamp,
    ) -> Result<(HostName, Option<(Uuid, u32)>), ServerError> {
        let found = self.find_token(&mut **change, hash).await?;
        let kept = self.kept_slot(&found)?;
        let name = self.check_token(found, now)?;
        sqlx::query("UPDATE tokens SET used_at = $1 WHERE hash = $2")
            .bind(now.0)
            .bind(hash.as_slice())
            .execute(&mut **change)
            .await
            .map_err(|error| self.error(error))?;
        Ok((name, kept))
    }

    /// The slot that was kept for the host of a token.
    fn kept_slot(&self, token: &SqliteRow) -> Result<Option<(Uuid, u32)>, ServerError> {
        let field = |error| self.error(error);
        let pool: Option<Vec<u8>> = token.try_get("pool").map_err(field)?;
        let slot: Option<u32> = token.try_get("slot").map_err(field)?;
        Ok(pool.and_then(|pool| Uuid::from_slice(&pool).ok()).zip(slot))
    }

    async fn find_token(
        &self,
        within: impl sqlx::SqliteExecutor<'_>,
        hash: [u8; 32],
    ) -> Result<SqliteRow, ServerError> {
        let row =
            sqlx::query("SELECT host, expires_at, used_at, pool, slot FROM tokens WHERE hash = $1")
                .bind(hash.as_slice())
                .fetch_optional(within)
                .await
                .map_err(|error| self.error(error))?;
        row.ok_or_else(|| TokenRefusal::Unknown.into())
    }

    /// The host that a token was issued for, if it is good.
    fn check_token(&self, row: SqliteRow, now: Timestamp) -> Result<HostName, ServerError> {
        let field = |error| self.error(error);
        let host: String = row.try_get("host").map_err(field)?;
        if row
            .try_get::<Option<i64>, _>("used_at")
            .map_err(field)?
            .is_some()
        {
            return Err(TokenRefusal::Used { host }.into());
        }
        if Timestamp(row.try_get("expires_at").map_err(field)?) <= now {
            return Err(TokenRefusal::Expired { host }.into());
        }
        host.parse()
    }

    pub(super) async fn ensure_host(
        &self,
        change: &mut Transaction<'static, Sqlite>,
        name: &HostName,
        now: Timestamp,
    ) -> Result<HostId, ServerError> {
        sqlx::query(
            "INSERT INTO hosts (name, enrolled_at) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name.as_str())
        .bind(now.0)
        .execute(&mut **change)
        .await
        .map_err(|error| self.error(error))?;
        sqlx::query_scalar("SELECT id FROM hosts WHERE name = $1")
            .bind(name.as_str())
            .fetch_one(&mut **change)
            .await
            .map(HostId)
            .map_err(|error| self.error(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Missing;

    struct Certificate(Vec<u8>);

    impl Issued for Certificate {
        fn serial(&self) -> &[u8] {
            &self.0
        }
        fn expires_at(&self) -> Timestamp {
            Timestamp(i64::MAX)
        }
    }

    const POOL: PoolSlots = PoolSlots {
        uuid: Uuid::from_bytes([5; 16]),
        slots: 9,
    };

    struct Fixture {
        _directory: tempfile::TempDir,
        database: Database,
    }

    impl Fixture {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("server.db");
            Self {
                database: Database::open(&path, Missing::Create).await.unwrap(),
                _directory: directory,
            }
        }

        /// Issues token number `token`, good from 100 to 200.
        async fn issue(&self, token: u8, host: &str) {
            let times = (Timestamp(100), Timestamp(200));
            let host = host.parse().unwrap();
            self.database
                .insert_token([token; 32], &host, times, None)
                .await
                .unwrap();
        }

        async fn redeem(&self, token: u8, now: i64) -> Result<(String, Vec<u32>), String> {
            let redemption = Redemption {
                hash: [token; 32],
                slots: Some(SlotRequest {
                    pool: POOL,
                    slots: 4,
                }),
                now: Timestamp(now),
            };
            let serial = Uuid::new_v4().as_bytes().to_vec();
            self.database
                .redeem(redemption, |_| Ok(Certificate(serial)))
                .await
                .map(|enrolment| (enrolment.host.to_string(), enrolment.slots))
                .map_err(|error| error.to_string())
        }
    }

    #[tokio::test]
    async fn token_is_good_once_and_until_it_expires() {
        let fixture = Fixture::new().await;
        fixture.issue(1, "web1").await;
        fixture.issue(2, "web2").await;
        let unknown = fixture.redeem(9, 150).await.unwrap_err();
        assert!(unknown.contains("did not issue"), "{unknown}");
        assert_eq!(
            fixture.redeem(1, 199).await,
            Ok(("web1".into(), vec![0, 1, 2, 3]))
        );
        let used = fixture.redeem(1, 199).await.unwrap_err();
        assert!(used.contains("used before, for host web1"), "{used}");
        let expired = fixture.redeem(2, 200).await.unwrap_err();
        assert!(expired.contains("expired"), "{expired}");
    }

    #[tokio::test]
    async fn slots_never_overlap_and_a_full_pool_leaves_the_token_good() {
        let fixture = Fixture::new().await;
        for token in [1, 2, 3] {
            fixture.issue(token, &format!("web{token}")).await;
        }
        assert_eq!(fixture.redeem(1, 150).await.unwrap().1, [0, 1, 2, 3]);
        assert_eq!(fixture.redeem(2, 150).await.unwrap().1, [4, 5, 6, 7]);
        for _ in 0..2 {
            let full = fixture.redeem(3, 150).await.unwrap_err();
            assert!(
                full.contains("web3 needs 4 slots, the pool has 1 of 9 free"),
                "{full}"
            );
        }
        let request = SlotRequest {
            pool: POOL,
            slots: 1,
        };
        let name = "web1".parse().unwrap();
        let now = Timestamp(150);
        let added = fixture.database.add_slots(&name, request, now).await;
        assert_eq!(added.unwrap(), [8]);
        assert!(
            fixture
                .database
                .add_slots(&name, request, now)
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn host_that_enrols_again_keeps_its_slots() {
        let fixture = Fixture::new().await;
        fixture.issue(1, "web1").await;
        fixture.issue(2, "web1").await;
        let first = fixture.redeem(1, 150).await.unwrap();
        assert_eq!(fixture.redeem(2, 150).await.unwrap(), first);
    }

    #[tokio::test]
    async fn failed_signing_leaves_the_token_good() {
        let fixture = Fixture::new().await;
        fixture.issue(1, "web1").await;
        let redemption = Redemption {
            hash: [1; 32],
            slots: None,
            now: Timestamp(150),
        };
        let failed = fixture
            .database
            .redeem(redemption, |_| Err::<Certificate, _>(ServerError::Stopping))
            .await;
        assert!(failed.is_err());
        assert!(fixture.redeem(1, 150).await.is_ok());
    }

    #[tokio::test]
    async fn strangers_do_not_wait_for_the_write_lock() {
        let fixture = Fixture::new().await;
        fixture.issue(1, "web1").await;
        fixture.redeem(1, 150).await.unwrap();
        let writing = fixture.database.begin().await.unwrap();
        let unknown = fixture.redeem(9, 150).await.unwrap_err();
        assert!(unknown.contains("did not issue"), "{unknown}");
        let used = fixture.redeem(1, 150).await.unwrap_err();
        assert!(used.contains("used before"), "{used}");
        drop(writing);
    }

    #[tokio::test]
    async fn one_of_many_simultaneous_redemptions_wins() {
        let fixture = Fixture::new().await;
        fixture.issue(1, "web1").await;
        let (a, b, c) = tokio::join!(
            fixture.redeem(1, 150),
            fixture.redeem(1, 150),
            fixture.redeem(1, 150)
        );
        let won = [a, b, c].iter().filter(|found| found.is_ok()).count();
        assert_eq!(won, 1);
    }
}
