//! The server's state as a whole: configuration, authority, database, repositories.

use crate::{
    ExclusiveRepository, HostName, ServerConfig, ServerError,
    audit::{AuditEvent, VerifiedAudit, verify_audit},
    authority::{Authority, AuthorityPaths, HostCertificate, HostRequest},
    config::DESIGNATED_PORT,
    db::{
        Database, Enrolment, Event, Leave, Missing, PoolSlots, Redemption, SlotRequest, Timestamp,
        milliseconds,
    },
    error::{TokenRefusal, io_error},
    repository::{Held, Removal, Repository, blocking},
    store::{Hold, sync_directory},
    under_way::UnderWay,
};
use backlane_net::{
    service::{EnrollGrant, EnrollRequest, VerifiedHost},
    token::{JoinSecret, JoinToken},
};
use backlane_proto::SessionFor;
use serde_json::{Value, json};
use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How many slots a host gets when it enrols.
pub const SLOTS_PER_HOST: u32 = 4;
/// Longest time for which a join token may be good.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Longest time for which a permission to restore may be good.
pub const PERMISSION_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How often a session looks whether its host's certificate was revoked.
pub const REVOCATION_LOOK: Duration = Duration::from_secs(1);

const DATABASE_FILE: &str = "server.db";
const STATE_MODE: u32 = 0o700;

/// An open server: what its sessions and its administrator's commands act on.
///
/// Several processes may have it open at a time, as `server enroll` does while `server run` runs.
#[derive(Debug)]
pub struct ServerState {
    config: ServerConfig,
    authority: Authority,
    database: Database,
    under_way: Arc<UnderWay>,
}

/// A host, as an administrator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// The name that it enrolled under.
    pub name: String,
    /// When it first did.
    pub enrolled_at: SystemTime,
    /// When the newest of its certificates expires; none if all are revoked.
    pub certificate_expires_at: Option<SystemTime>,
    /// Until when it may read file contents, if it may.
    pub restore_until: Option<SystemTime>,
    /// Until when it may remove what isn't needed any more, if it may.
    pub maintain_until: Option<SystemTime>,
    /// Its slots in the server's pool.
    pub slots: Vec<u32>,
    /// How many objects of it arrived and were not removed.
    pub objects: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// When the last of them arrived.
    pub last_arrival_at: Option<SystemTime>,
}

impl ServerState {
    /// Makes the state of a new server: directories, authority, the server's certificate for `names` (DNS names or
    /// IP addresses), database.
    ///
    /// # Errors
    /// [`ServerError::AlreadyInitialised`] when any of it exists; nothing is overwritten.
    pub async fn init(config: ServerConfig, names: &[String]) -> Result<Self, ServerError> {
        let database = config.state.join(DATABASE_FILE);
        if database.exists() {
            return Err(ServerError::AlreadyInitialised { path: database });
        }
        for directory in [&config.state, &config.repositories()] {
            make_private(directory)?;
        }
        sync_directory(&config.data)?;
        Authority::create(&config.state, names)?;
        let database = Database::open(&database, Missing::Create).await?;
        sync_directory(&config.state)?;
        let event = Event::new(AuditEvent::Initialised, None, Value::Null);
        database.audit(event).await?;
        Self::open(config).await
    }

    /// Opens what [`ServerState::init`] made.
    ///
    /// # Errors
    /// [`ServerError::NotInitialised`] when part of it is missing.
    pub async fn open(config: ServerConfig) -> Result<Self, ServerError> {
        // Missing when its disk is not mounted, say; to make it would hide that.
        let repositories = config.repositories();
        if !repositories.is_dir() {
            return Err(ServerError::NotInitialised { path: repositories });
        }
        let authority = Authority::open(&config.state)?;
        let database = Database::open(&config.state.join(DATABASE_FILE), Missing::Refuse).await?;
        Ok(Self {
            config,
            authority,
            database,
            under_way: Arc::default(),
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.config
    }

    /// The authority.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where the keys and certificates are that a listener needs.
    #[must_use]
    pub fn authority_paths(&self) -> AuthorityPaths {
        AuthorityPaths::new(&self.config.state)
    }

    /// Issues a join token with which `host` can enrol once, within `ttl`.
    ///
    /// A host that is enrolled already may enrol again, with a new key; it keeps its slots and its repository.
    ///
    /// # Errors
    /// When the time to live is zero or over [`TOKEN_TTL_MAX`], or the state can't be written.
    pub async fn enroll(&self, host: &HostName, ttl: Duration) -> Result<JoinToken, ServerError> {
        Ok(self.issue(host, ttl, None).await?.0)
    }

    /// The same for a host that has no network to this server; with the slot of the pool that it enrols by.
    ///
    /// # Errors
    /// As [`ServerState::enroll`], and when there is no pool, or no free slot in it.
    pub async fn enroll_through_pool(
        &self,
        host: &HostName,
        ttl: Duration,
    ) -> Result<(JoinToken, u32), ServerError> {
        let pool = self.pool().ok_or(ServerError::NoPool)?;
        let (token, slot) = self.issue(host, ttl, Some(pool)).await?;
        Ok((token, slot.ok_or(ServerError::NoPool)?))
    }

    async fn issue(
        &self,
        host: &HostName,
        ttl: Duration,
        through: Option<PoolSlots>,
    ) -> Result<(JoinToken, Option<u32>), ServerError> {
        if ttl.is_zero() || ttl > TOKEN_TTL_MAX {
            return Err(ServerError::TokenLifetime {
                asked: ttl,
                most: TOKEN_TTL_MAX,
            });
        }
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| ServerError::Randomness {
            why: error.to_string(),
        })?;
        let secret = JoinSecret::new(random);
        let now = Timestamp::now();
        let expires = Timestamp(now.0.saturating_add(milliseconds(ttl)));
        let times = (now, expires);
        let kept = self
            .database
            .insert_token(secret.hash(), host, times, through);
        let slot = kept.await?;
        let token = JoinToken {
            server: self.address(),
            authority: self.authority.fingerprint(),
            secret,
            host: host.to_string(),
        };
        Ok((token, slot))
    }

    /// Every host that is enrolled, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hosts(&self) -> Result<Vec<HostInfo>, ServerError> {
        let pool = self.pool().map(|pool| pool.uuid);
        let rows = self.database.hosts(pool, Timestamp::now());
        let info = rows.await?.into_iter().map(|row| HostInfo {
            name: row.name,
            enrolled_at: row.enrolled_at.system_time(),
            certificate_expires_at: row.certificate_expires_at.map(Timestamp::system_time),
            restore_until: row.restore_until.map(Timestamp::system_time),
            maintain_until: row.maintain_until.map(Timestamp::system_time),
            slots: row.slots,
            objects: row.objects,
            bytes: row.bytes,
            last_arrival_at: row.last_arrival_at.map(Timestamp::system_time),
        });
        Ok(info.collect())
    }

    /// Allots `slots` more slots of the pool to a host, and returns the new ones.
    ///
    /// # Errors
    /// When there is no pool, no such host, or fewer slots are free.
    pub async fn add_slots(&self, host: &HostName, slots: u32) -> Result<Vec<u32>, ServerError> {
        let pool = self.pool().ok_or(ServerError::NoPool)?;
        let request = SlotRequest { pool, slots };
        self.database
            .add_slots(host, request, Timestamp::now())
            .await
    }

    /// Follows the audit log's chain from its beginning; `keep` is told of every line.
    ///
    /// # Errors
    /// [`ServerError::Audit`] names the first line at which it breaks.
    pub fn verify_audit(&self, keep: impl FnMut(&str)) -> Result<VerifiedAudit, ServerError> {
        verify_audit(&self.config.state, keep)
    }

    /// Lets a host read file contents for a time: of packs that arrived no later than the newest of `snapshots`
    /// (beginnings of their ids), or of all if none is named. Returns until when.
    ///
    /// # Errors
    /// When there is no such host or snapshot, or the time is zero or over [`PERMISSION_TTL_MAX`].
    pub async fn allow_restore(
        &self,
        host: &HostName,
        snapshots: &[String],
        ttl: Duration,
    ) -> Result<SystemTime, ServerError> {
        let times = permission_times(ttl)?;
        let permission = self.database.allow_restore(host, snapshots, times).await?;
        Ok(permission.expires_at.system_time())
    }

    /// Gives a host a permission that has no bound but time: for a while, or until it is revoked. Returns until when.
    ///
    /// # Errors
    /// When there is no such host, or the time is zero or over [`PERMISSION_TTL_MAX`].
    pub async fn allow(
        &self,
        host: &HostName,
        leave: Leave,
        ttl: Option<Duration>,
    ) -> Result<Option<SystemTime>, ServerError> {
        let times = ttl.map(permission_times).transpose()?;
        let (now, until) = match times {
            Some((now, until)) => (now, Some(until)),
            None => (Timestamp::now(), None),
        };
        self.database.allow(host, leave, (now, until)).await?;
        Ok(until.map(Timestamp::system_time))
    }

    /// Ends every permission of a host of one kind, in running sessions too. Returns how many there were.
    ///
    /// # Errors
    /// When there is no such host.
    pub async fn revoke_leave(&self, host: &HostName, leave: Leave) -> Result<u64, ServerError> {
        self.database
            .revoke_leave(host, leave, Timestamp::now())
            .await
    }

    /// Ends all trust in a host: its certificates, permissions and unused join tokens. Its sessions end within
    /// [`REVOCATION_LOOK`]; its repository stays. Returns how many certificates were good until now.
    ///
    /// # Errors
    /// When there is neither such a host nor a token for one.
    pub async fn revoke(&self, host: &HostName) -> Result<u64, ServerError> {
        let revoked = self.database.revoke(host, Timestamp::now()).await?;
        Ok(revoked.certificates)
    }

    /// Limits how many bytes a host may store, or with `None` doesn't; what it has stored stays.
    ///
    /// # Errors
    /// When there is no such host.
    pub async fn set_quota(&self, host: &HostName, quota: Option<u64>) -> Result<(), ServerError> {
        self.database.set_quota(host, quota).await
    }

    /// Holds a host's repository alone, for maintenance. Sessions of that host are refused meanwhile.
    ///
    /// # Errors
    /// [`ServerError::Busy`] when a session is open; [`ServerError::Foreign`] when a stock tool holds a lock.
    pub async fn exclusive(
        &self,
        host: &HostName,
        removal: Removal,
    ) -> Result<ExclusiveRepository, ServerError> {
        self.maintain(host, removal, "administrator").await
    }

    async fn maintain(
        &self,
        host: &HostName,
        removal: Removal,
        by: &str,
    ) -> Result<ExclusiveRepository, ServerError> {
        let repository = self.repository(host, Hold::Exclusive).await?;
        let event = Event::new(AuditEvent::MaintenanceBegun, Some(host), json!({"by": by}));
        self.database.audit(event).await?;
        let keep = self.config.keep_removed;
        let host = host.clone();
        Ok(ExclusiveRepository::new(repository, host, keep, removal))
    }

    /// Opens a session's repository, for whoever has this certificate.
    pub(crate) async fn session(
        &self,
        host: &HostName,
        serial: &[u8],
        session_for: SessionFor,
    ) -> Result<Held, ServerError> {
        if let Err(error) = self.check_session(host, serial, session_for).await {
            let detail = json!({"serial": hex::encode(serial), "why": error.to_string()});
            let event = Event::new(AuditEvent::SessionRefused, Some(host), detail);
            self.database.audit(event).await?;
            return Err(error);
        }
        match session_for {
            SessionFor::Jobs => Ok(Held::Shared(self.repository(host, Hold::Shared).await?)),
            SessionFor::Wal => Ok(Held::Wal(self.repository(host, Hold::Beside).await?)),
            SessionFor::Maintenance => {
                let alone = self.maintain(host, Removal::Recoverable, "host").await?;
                let alone = Arc::new(alone);
                let expiring = Arc::clone(&alone);
                // What was removed longer ago than it stays recoverable: it may be much.
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = expiring.expire() {
                        tracing::warn!(%error, "what was removed before can't be deleted");
                    }
                });
                Ok(Held::Alone(alone))
            }
        }
    }

    async fn check_session(
        &self,
        host: &HostName,
        serial: &[u8],
        session_for: SessionFor,
    ) -> Result<(), ServerError> {
        self.database.check_certificate(host, serial).await?;
        match session_for {
            SessionFor::Jobs | SessionFor::Wal => Ok(()),
            SessionFor::Maintenance => self.database.check_maintenance(host).await,
        }
    }

    /// Signs another certificate for the key of `request`, for a host whose own is good still.
    pub(crate) async fn renew(
        &self,
        host: &HostName,
        certificate: &VerifiedHost,
        request: String,
    ) -> Result<String, ServerError> {
        let signing = blocking(move || HostRequest::parse(&request)).await?;
        if !signing.is_of(&certificate.key) {
            // Whoever could use a key for a moment must not walk off with a certificate for another.
            let why = "it is for another key than the certificate's".to_owned();
            return Err(ServerError::Request { why });
        }
        let serial = &certificate.serial;
        let renewed = self.database.renew(host, serial, Timestamp::now(), || {
            self.authority
                .sign(&signing, host, self.config.certificate_validity)
        });
        Ok(renewed.await?.pem)
    }

    pub(crate) async fn slots_of(&self, host: &HostName) -> Result<Vec<u32>, ServerError> {
        let id = self.database.host(host).await?;
        match self.pool() {
            Some(pool) => self.database.slots(id, pool.uuid).await,
            None => Ok(Vec::new()),
        }
    }

    pub(crate) async fn all_slots(&self) -> Result<Vec<u32>, ServerError> {
        match self.pool() {
            Some(pool) => {
                let slots = self.database.all_slots(pool.uuid, Timestamp::now());
                Ok(slots.await?.into_iter().collect())
            }
            None => Ok(Vec::new()),
        }
    }

    pub(crate) async fn redeem(&self, request: &EnrollRequest) -> Result<EnrollGrant, ServerError> {
        // The request first: a host that sent a bad one may try again with the same token.
        let pem = request.csr_pem.clone();
        let signing = blocking(move || HostRequest::parse(&pem)).await?;
        let pool = self.pool();
        let enrolment = match JoinSecret::from_text(&request.secret) {
            Some(secret) => self.redeem_secret(&secret, &signing, pool).await,
            None => Err(TokenRefusal::Unknown.into()),
        };
        if let Err(ServerError::Token(refusal)) = &enrolment {
            let event = Event::new(
                AuditEvent::EnrolmentRefused,
                None,
                json!(refusal.to_string()),
            );
            self.database.audit(event).await?;
        }
        let enrolment = enrolment?;
        tracing::info!(host = %enrolment.host, slots = ?enrolment.slots, "host enrolled");
        Ok(EnrollGrant {
            host: enrolment.host.to_string(),
            certificate_pem: enrolment.certificate.pem,
            pool: pool.map(|pool| pool.uuid),
            slots: enrolment.slots,
        })
    }

    async fn redeem_secret(
        &self,
        secret: &JoinSecret,
        signing: &HostRequest,
        pool: Option<PoolSlots>,
    ) -> Result<Enrolment<HostCertificate>, ServerError> {
        let redemption = Redemption {
            hash: secret.hash(),
            slots: pool.map(|pool| SlotRequest {
                pool,
                slots: SLOTS_PER_HOST,
            }),
            now: Timestamp::now(),
        };
        let validity = self.config.certificate_validity;
        let sign = |host: &HostName| self.authority.sign(signing, host, validity);
        self.database.redeem(redemption, sign).await
    }

    pub(crate) fn under_way(&self) -> &Arc<UnderWay> {
        &self.under_way
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    pub(crate) async fn repository(
        &self,
        host: &HostName,
        hold: Hold,
    ) -> Result<Arc<Repository>, ServerError> {
        Repository::open(&self.database, &self.config.repositories(), host, hold).await
    }

    fn pool(&self) -> Option<PoolSlots> {
        self.config.pool.as_ref().map(|pool| PoolSlots {
            uuid: pool.uuid,
            slots: pool.slots,
        })
    }

    fn address(&self) -> String {
        self.config.address.clone().unwrap_or_else(|| {
            let port = match self.config.listen.port() {
                0 => DESIGNATED_PORT,
                port => port,
            };
            let machine = rustix::system::uname();
            format!("{}:{port}", machine.nodename().to_string_lossy())
        })
    }
}

/// From now until when a permission is good.
fn permission_times(ttl: Duration) -> Result<(Timestamp, Timestamp), ServerError> {
    if ttl.is_zero() || ttl > PERMISSION_TTL_MAX {
        return Err(ServerError::PermissionLifetime {
            asked: ttl,
            most: PERMISSION_TTL_MAX,
        });
    }
    let now = Timestamp::now();
    Ok((now, Timestamp(now.0.saturating_add(milliseconds(ttl)))))
}

fn make_private(directory: &Path) -> Result<(), ServerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(STATE_MODE)
        .create(directory)
        .map_err(io_error("create the directory", directory))
}
