//! What sessions call: the network's traits, on top of the state and the repositories.

use crate::{
    HostName, ServerError, ServerState,
    audit::AuditEvent,
    db::{Arrival, Database, Event, Leave, Timestamp},
    repository::{Held, Intake, Outlet, PIECE_BYTES_MAX, blocking},
    state::REVOCATION_LOOK,
    under_way::{Announced, UnderWay},
};
use backlane_net::service::{
    BodySink, BodySource, BoxFuture, EnrollGrant, EnrollRequest, ObjectService, Service,
    ServiceError, VerifiedHost,
};
use backlane_proto::{
    Arrived, ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents, SessionFor,
    WalFile, WalName, wal::HEADER_BYTES,
};
use bytes::Bytes;
use serde_json::json;
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::Mutex;

impl Service for ServerState {
    fn open<'a>(
        &'a self,
        host: &'a VerifiedHost,
        session_for: SessionFor,
    ) -> BoxFuture<'a, Result<Arc<dyn ObjectService>, ServiceError>> {
        Box::pin(async move {
            let name: HostName = host.name.parse()?;
            Ok(Arc::new(Session {
                held: self.session(&name, &host.serial, session_for).await?,
                database: self.database().clone(),
                under_way: Arc::clone(self.under_way()),
                host: name,
                serial: host.serial.clone(),
                told: Arc::default(),
            }) as Arc<dyn ObjectService>)
        })
    }

    fn renew<'a>(
        &'a self,
        host: &'a VerifiedHost,
        csr_pem: String,
    ) -> BoxFuture<'a, Result<String, ServiceError>> {
        Box::pin(async move {
            let name = host.name.parse()?;
            Ok(ServerState::renew(self, &name, host, csr_pem).await?)
        })
    }

    fn enroll<'a>(
        &'a self,
        request: EnrollRequest,
    ) -> BoxFuture<'a, Result<EnrollGrant, ServiceError>> {
        Box::pin(async move { Ok(self.redeem(&request).await?) })
    }

    fn slots<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<u32>, ServiceError>> {
        Box::pin(async move { Ok(self.slots_of(&host.parse::<HostName>()?).await?) })
    }

    fn all_slots(&self) -> BoxFuture<'_, Result<Vec<u32>, ServiceError>> {
        Box::pin(async move { Ok(ServerState::all_slots(self).await?) })
    }
}

/// One session's hold on its host's repository, in the role of a backup: it adds objects, and reads what a backup needs.
/// File contents it reads by a permission alone, and it removes something in a session for maintenance alone, which takes
/// another.
struct Session {
    held: Held,
    database: Database,
    under_way: Arc<UnderWay>,
    host: HostName,
    serial: Vec<u8>,
    told: Arc<Told>,
}

/// How often in a row trust may be looked up in vain.
const UNREAD_MAX: u32 = 60;

/// What the audit log has been told of a session: each thing once. Whoever comes while it is told waits, and what it
/// couldn't be told it is told the next time.
#[derive(Default)]
struct Told {
    /// Permissions that were used, by number.
    permissions: Mutex<BTreeSet<i64>>,
    refused: Mutex<bool>,
}

impl Session {
    /// Whether the host is trusted with this session still.
    async fn check_standing(&self) -> Result<(), ServerError> {
        let certificate = self.database.check_certificate(&self.host, &self.serial);
        certificate.await?;
        match self.held {
            Held::Shared(_) | Held::Wal(_) => Ok(()),
            Held::Alone(_) => self.database.check_maintenance(&self.host).await,
        }
    }

    /// Refuses what isn't a session's for WAL, where this is one.
    async fn check_kind(&self, kind: ObjectKind) -> Result<(), ServerError> {
        match self.held {
            Held::Wal(_) if !is_foundation(kind) && kind != ObjectKind::Wal => {
                let denied = "a session for WAL has nothing to do with backups";
                self.refused(ServerError::Denied(denied)).await
            }
            _ => Ok(()),
        }
    }

    /// Refuses what the role doesn't cover.
    async fn check_read(
        &self,
        name: ObjectName,
        range: Option<ByteRange>,
    ) -> Result<(), ServerError> {
        if name.kind == ObjectKind::Wal {
            return self.check_read_wal(name, range).await;
        }
        self.check_kind(name.kind).await?;
        if name.kind != ObjectKind::Pack
            || self.held.repository().pack_contents(name).await? == PackContents::Trees
        {
            return Ok(());
        }
        let now = Timestamp::now();
        let permission = self
            .database
            .restore_permission(self.held.repository().host(), name, now);
        if let Some(permission) = permission.await? {
            return self.used(AuditEvent::RestoreUsed, permission.number).await;
        }
        let repository = Arc::clone(self.held.repository());
        if let Some(range) = range
            && blocking(move || repository.is_in_header(name, range)).await?
        {
            return Ok(());
        }
        let host = self.host.to_string();
        self.refused(ServerError::RestoreDenied { host, name })
            .await
    }

    /// What says where WAL is and holds none is any session's to read; the rest takes a permission.
    async fn check_read_wal(
        &self,
        name: ObjectName,
        range: Option<ByteRange>,
    ) -> Result<(), ServerError> {
        let of_header = |range: ByteRange| {
            let end = range.offset.checked_add(range.length);
            end.is_some_and(|end| end <= HEADER_BYTES as u64)
        };
        let is_history =
            WalName::from_id(name.id).is_some_and(|name| name.file == WalFile::History);
        if is_history || range.is_some_and(of_header) {
            return Ok(());
        }
        let permission = self.database.permission(&self.host, Leave::Wal);
        match permission.await? {
            Some(number) => self.used(AuditEvent::WalUsed, number).await,
            None => {
                let host = self.host.to_string();
                self.refused(ServerError::WalDenied { host, name }).await
            }
        }
    }

    /// Records that a permission is used, once a session.
    async fn used(&self, event: AuditEvent, permission: i64) -> Result<(), ServerError> {
        let mut told = self.told.permissions.lock().await;
        if !told.contains(&permission) {
            let event = Event::new(event, Some(&self.host), json!({"number": permission}));
            self.database.audit(event).await?;
            told.insert(permission);
        }
        Ok(())
    }

    /// Takes in account that so many bytes more are to come, if they are within the host's limits.
    async fn announce(&self, bytes: u64) -> Result<Announced, ServerError> {
        let announced = self.under_way.begin(&self.host, bytes)?;
        let before = announced.before;
        match self.database.quota(self.held.repository().host()).await? {
            Some((quota, used)) if used.saturating_add(before).saturating_add(bytes) > quota => {
                Err(ServerError::Quota {
                    host: self.host.to_string(),
                    quota,
                    used: used.saturating_add(before),
                    bytes,
                })
            }
            _ => Ok(announced),
        }
    }

    async fn refused(&self, error: ServerError) -> Result<(), ServerError> {
        let mut told = self.told.refused.lock().await;
        if !*told {
            let detail = json!(error.to_string());
            let event = Event::new(AuditEvent::CallRefused, Some(&self.host), detail);
            self.database.audit(event).await?;
            *told = true;
        }
        Err(error)
    }
}

impl ObjectService for Session {
    fn list(&self, kind: ObjectKind) -> BoxFuture<'_, Result<Vec<ObjectInfo>, ServiceError>> {
        let repository = Arc::clone(self.held.repository());
        Box::pin(async move {
            self.check_kind(kind).await?;
            Ok(blocking(move || repository.list(kind)).await?)
        })
    }

    fn get(
        &self,
        name: ObjectName,
        range: Option<ByteRange>,
    ) -> BoxFuture<'_, Result<Box<dyn BodySource>, ServiceError>> {
        let repository = Arc::clone(self.held.repository());
        Box::pin(async move {
            self.check_read(name, range).await?;
            let outlet = blocking(move || repository.read(name, range)).await?;
            Ok(Box::new(Source {
                length: outlet.remaining(),
                outlet: Some(outlet),
                name,
            }) as Box<dyn BodySource>)
        })
    }

    fn put(
        &self,
        name: ObjectName,
        contents: PackContents,
        bytes: u64,
    ) -> BoxFuture<'_, Result<Box<dyn BodySink>, ServiceError>> {
        let repository = Arc::clone(self.held.repository());
        let put = Arrival {
            name,
            contents,
            bytes,
        };
        Box::pin(async move {
            self.check_kind(name.kind).await?;
            if !matches!(self.held, Held::Shared(_)) && is_foundation(name.kind) {
                let denied = "a session for backups alone adds keys and the config";
                self.refused(ServerError::Denied(denied)).await?;
            }
            let announced = self.announce(put.bytes).await?;
            let intake = blocking(move || repository.begin(put)).await?;
            Ok(Box::new(Sink {
                intake: Some(intake),
                name,
                announced,
            }) as Box<dyn BodySink>)
        })
    }

    fn removals(&self) -> BoxFuture<'_, Result<u64, ServiceError>> {
        let repository = Arc::clone(self.held.repository());
        Box::pin(async move {
            match self.held {
                // What else is removed is nothing to it.
                Held::Wal(_) => Ok(0),
                _ => Ok(repository.removals().await?),
            }
        })
    }

    fn distrusted(&self) -> BoxFuture<'_, String> {
        Box::pin(async move {
            let mut unread = 0;
            loop {
                tokio::time::sleep(REVOCATION_LOOK).await;
                // Another process revokes, through the database alone. That it can't be read for a while says nothing of
                // trust; for long, and there is none.
                match self.check_standing().await {
                    Ok(()) => unread = 0,
                    Err(error) if error.is_distrust() => return error.to_string(),
                    Err(error) => {
                        tracing::warn!(host = %self.host, %error, "can't look for revocations");
                        unread += 1;
                        if unread == UNREAD_MAX {
                            return format!(
                                "whether {} is trusted can't be read: {error}",
                                self.host
                            );
                        }
                    }
                }
            }
        })
    }

    fn arrivals(
        &self,
        kind: ObjectKind,
        after: Option<ObjectId>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<Arrived>, ServiceError>> {
        let host = self.held.repository().host();
        Box::pin(async move {
            let arrived = |(id, at): (ObjectId, Timestamp)| Arrived { id, at_ms: at.0 };
            let page = self.database.arrivals_after(host, kind, after, most);
            Ok(page.await?.into_iter().map(arrived).collect())
        })
    }

    fn remove(&self, name: ObjectName) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(async move {
            let denied = match &self.held {
                _ if name.kind == ObjectKind::Wal => "only an administrator removes archived WAL",
                Held::Alone(alone) if !is_foundation(name.kind) => {
                    return Ok(alone.remove_counted(name).await?);
                }
                Held::Alone(_) => "only an administrator removes keys",
                Held::Shared(_) | Held::Wal(_) => {
                    "a client removes objects in a session for maintenance alone"
                }
            };
            Ok(self.refused(ServerError::Denied(denied)).await?)
        })
    }
}

/// Whether a kind of object is what a repository stands on: made once, by the session that makes the repository.
fn is_foundation(kind: ObjectKind) -> bool {
    matches!(kind, ObjectKind::Config | ObjectKind::Key)
}

/// A body on its way out. The outlet is away while a piece is read, and stays away after a failure.
struct Source {
    outlet: Option<Outlet>,
    length: u64,
    name: ObjectName,
}

impl BodySource for Source {
    fn length(&self) -> u64 {
        self.length
    }

    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Option<Bytes>, ServiceError>> {
        Box::pin(async move {
            let name = self.name;
            let mut outlet = self.outlet.take().ok_or(ServerError::Abandoned { name })?;
            let (outlet, piece) = blocking(move || {
                let piece = outlet.next(most.min(PIECE_BYTES_MAX))?;
                Ok((outlet, piece))
            })
            .await?;
            self.outlet = Some(outlet);
            Ok(piece)
        })
    }
}

/// A body on its way in. The intake is away while a piece is written, and stays away after a failure.
struct Sink {
    intake: Option<Intake>,
    name: ObjectName,
    announced: Announced,
}

impl BodySink for Sink {
    fn write(&mut self, piece: Bytes) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(async move {
            let name = self.name;
            let mut intake = self.intake.take().ok_or(ServerError::Abandoned { name })?;
            let intake = blocking(move || {
                intake.take(&piece)?;
                Ok(intake)
            })
            .await?;
            self.intake = Some(intake);
            Ok(())
        })
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let name = self.name;
            let intake = self.intake.take().ok_or(ServerError::Abandoned { name })?;
            let committed = intake.commit().await;
            drop(self.announced);
            Ok(committed?)
        })
    }
}
