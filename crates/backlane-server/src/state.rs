//! The server's state as a whole: configuration, authority, database, repositories.

use crate::{
    ExclusiveRepository, HostName, ServerConfig, ServerError,
    authority::{Authority, AuthorityPaths, HostRequest},
    config::DESIGNATED_PORT,
    db::{Database, Missing, PoolSlots, Redemption, SlotRequest, Timestamp, milliseconds},
    error::{TokenRefusal, io_error},
    repository::{Repository, blocking},
    store::{Hold, sync_directory},
};
use backlane_net::{
    service::{EnrollGrant, EnrollRequest},
    token::{JoinSecret, JoinToken},
};
use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::runtime::Handle;

/// How many slots a host gets when it enrols.
pub const SLOTS_PER_HOST: u32 = 4;
/// Longest time for which a join token may be good.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

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
}

/// A host, as an administrator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// The name that it enrolled under.
    pub name: String,
    /// When it first did.
    pub enrolled_at: SystemTime,
    /// When the newest of its certificates expires.
    pub certificate_expires_at: SystemTime,
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
        database.note("initialised", None, Timestamp::now()).await?;
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
        let rows = self.database.hosts(self.pool().map(|pool| pool.uuid));
        let info = rows.await?.into_iter().map(|row| HostInfo {
            name: row.name,
            enrolled_at: row.enrolled_at.system_time(),
            certificate_expires_at: row.certificate_expires_at.system_time(),
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

    /// Holds a host's repository alone, for maintenance. Sessions of that host are refused meanwhile.
    ///
    /// # Errors
    /// [`ServerError::Busy`] when a session is open; [`ServerError::Foreign`] when a stock tool holds a lock.
    pub async fn exclusive(&self, host: &HostName) -> Result<ExclusiveRepository, ServerError> {
        let repository = self.repository(host, Hold::Exclusive).await?;
        self.database
            .note("maintenance", Some(host), Timestamp::now())
            .await?;
        Ok(ExclusiveRepository::new(repository, Handle::current()))
    }

    pub(crate) async fn session(&self, host: &HostName) -> Result<Arc<Repository>, ServerError> {
        self.repository(host, Hold::Shared).await
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
        let secret = JoinSecret::from_text(&request.secret).ok_or(TokenRefusal::Unknown)?;
        let pool = self.pool();
        let redemption = Redemption {
            hash: secret.hash(),
            slots: pool.map(|pool| SlotRequest {
                pool,
                slots: SLOTS_PER_HOST,
            }),
            now: Timestamp::now(),
        };
        let enrolment = self
            .database
            .redeem(redemption, |host| self.authority.sign(&signing, host))
            .await?;
        tracing::info!(host = %enrolment.host, slots = ?enrolment.slots, "host enrolled");
        Ok(EnrollGrant {
            host: enrolment.host.to_string(),
            certificate_pem: enrolment.certificate.pem,
            pool: pool.map(|pool| pool.uuid),
            slots: enrolment.slots,
        })
    }

    async fn repository(
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

fn make_private(directory: &Path) -> Result<(), ServerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(STATE_MODE)
        .create(directory)
        .map_err(io_error("create the directory", directory))
}
