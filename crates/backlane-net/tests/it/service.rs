//! An object service in memory, with gates where a test wants to stand in the way.

use aws_lc_rs::digest::{SHA256, digest};
use backlane_net::service::{
    BodySink, BodySource, BoxFuture, EnrollGrant, EnrollRequest, ObjectService, Service,
    ServiceError, VerifiedHost,
};
use backlane_proto::{
    Arrived, ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents, SessionFor,
};
use bytes::{Bytes, BytesMut};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};
use tokio::sync::{Notify, Semaphore};

/// Name of an object with this body.
pub(crate) fn name_of(kind: ObjectKind, body: &[u8]) -> ObjectName {
    let mut id = ObjectId::NONE;
    if kind != ObjectKind::Config {
        id.0.copy_from_slice(digest(&SHA256, body).as_ref());
    }
    ObjectName { kind, id }
}

/// Signs a host's certificate request.
pub(crate) type Sign = Box<dyn Fn(&str, &str) -> Result<String, String> + Send + Sync>;

/// Many hosts' repositories, and tokens.
pub(crate) struct Memory {
    pub(crate) stores: Mutex<BTreeMap<String, Arc<Store>>>,
    pub(crate) tokens: Mutex<BTreeMap<String, (String, bool)>>,
    pub(crate) sign: Sign,
    pub(crate) revoked: Mutex<HashSet<String>>,
    pub(crate) slots: Vec<u32>,
    /// Permits for enrolments.
    pub(crate) desk: Semaphore,
    /// Enrolments that have come to the desk and not left it.
    pub(crate) at_desk: AtomicUsize,
}

/// One host's objects.
pub(crate) struct Store {
    pub(crate) objects: Mutex<BTreeMap<ObjectName, (PackContents, Bytes)>>,
    /// Permits for pieces: closed gates hold bodies back.
    pub(crate) gate: Semaphore,
    /// Sinks that were dropped without commit.
    pub(crate) abandoned: AtomicUsize,
    /// Sinks that exist now.
    pub(crate) open_sinks: AtomicUsize,
    /// Sessions that hold the repository.
    pub(crate) held: AtomicUsize,
    pub(crate) full: std::sync::atomic::AtomicBool,
    /// How many objects were removed, ever.
    pub(crate) removals: AtomicU64,
    /// How many lists were made.
    pub(crate) listed: AtomicU64,
    /// Rung when the host is trusted no more.
    pub(crate) distrust: Notify,
    /// How many removals were asked for.
    pub(crate) refused: AtomicU64,
}

impl Memory {
    pub(crate) fn store(&self, host: &str) -> Arc<Store> {
        let mut stores = self.stores.lock().unwrap();
        let new = || {
            Arc::new(Store {
                objects: Mutex::default(),
                gate: Semaphore::new(Semaphore::MAX_PERMITS / 2),
                abandoned: AtomicUsize::new(0),
                open_sinks: AtomicUsize::new(0),
                held: AtomicUsize::new(0),
                full: false.into(),
                removals: AtomicU64::new(0),
                listed: AtomicU64::new(0),
                distrust: Notify::new(),
                refused: AtomicU64::new(0),
            })
        };
        Arc::clone(stores.entry(host.to_owned()).or_insert_with(new))
    }
}

impl Service for Memory {
    fn open<'a>(
        &'a self,
        host: &'a VerifiedHost,
        session_for: SessionFor,
    ) -> BoxFuture<'a, Result<Arc<dyn ObjectService>, ServiceError>> {
        let host = &host.name;
        Box::pin(async move {
            if self.revoked.lock().unwrap().contains(host) {
                return Err(ServiceError::Denied(format!("host {host} is not enrolled")));
            }
            let store = self.store(host);
            store.held.fetch_add(1, Ordering::SeqCst);
            Ok(Arc::new(Held { store, session_for }) as Arc<dyn ObjectService>)
        })
    }

    fn renew<'a>(
        &'a self,
        host: &'a VerifiedHost,
        csr_pem: String,
    ) -> BoxFuture<'a, Result<String, ServiceError>> {
        Box::pin(async move { (self.sign)(&host.name, &csr_pem).map_err(ServiceError::Failed) })
    }

    fn enroll<'a>(
        &'a self,
        request: EnrollRequest,
    ) -> BoxFuture<'a, Result<EnrollGrant, ServiceError>> {
        Box::pin(async move {
            self.at_desk.fetch_add(1, Ordering::SeqCst);
            self.desk.acquire().await.unwrap().forget();
            self.at_desk.fetch_sub(1, Ordering::SeqCst);
            let mut tokens = self.tokens.lock().unwrap();
            let token = tokens.get_mut(&request.secret);
            let (host, used) =
                token.ok_or_else(|| ServiceError::Token("it is not known".to_owned()))?;
            if std::mem::replace(used, true) {
                return Err(ServiceError::Token(format!("it was used for {host}")));
            }
            let certificate_pem =
                (self.sign)(host, &request.csr_pem).map_err(ServiceError::Failed)?;
            Ok(EnrollGrant {
                host: host.clone(),
                certificate_pem,
                pool: None,
                slots: vec![],
            })
        })
    }

    fn slots<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Result<Vec<u32>, ServiceError>> {
        Box::pin(async move { Ok(self.slots.clone()) })
    }

    fn all_slots(&self) -> BoxFuture<'_, Result<Vec<u32>, ServiceError>> {
        Box::pin(async move { Ok(self.slots.clone()) })
    }
}

struct Held {
    store: Arc<Store>,
    session_for: SessionFor,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.held.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ObjectService for Held {
    fn list(&self, kind: ObjectKind) -> BoxFuture<'_, Result<Vec<ObjectInfo>, ServiceError>> {
        Box::pin(async move {
            self.store.listed.fetch_add(1, Ordering::SeqCst);
            let objects = self.store.objects.lock().unwrap();
            let of_kind = objects.iter().filter(|(name, _)| name.kind == kind);
            let info = |(name, (_, body)): (&ObjectName, &(PackContents, Bytes))| ObjectInfo {
                id: name.id,
                bytes: body.len() as u64,
            };
            Ok(of_kind.map(info).collect())
        })
    }

    fn get(
        &self,
        name: ObjectName,
        range: Option<ByteRange>,
    ) -> BoxFuture<'_, Result<Box<dyn BodySource>, ServiceError>> {
        Box::pin(async move {
            let objects = self.store.objects.lock().unwrap();
            let found = objects.get(&name).ok_or(ServiceError::NotFound(name))?;
            let mut body = found.1.clone();
            if let Some(range) = range {
                let (from, to) = (
                    range.offset as usize,
                    (range.offset + range.length) as usize,
                );
                if to > body.len() {
                    let what = format!("{name} ends at {} and {to} was asked for", body.len());
                    return Err(ServiceError::Failed(what));
                }
                body = body.slice(from..to);
            }
            let length = body.len() as u64;
            let store = Arc::clone(&self.store);
            Ok(Box::new(Source {
                body,
                length,
                store,
            }) as Box<dyn BodySource>)
        })
    }

    fn put(
        &self,
        name: ObjectName,
        contents: PackContents,
        bytes: u64,
    ) -> BoxFuture<'_, Result<Box<dyn BodySink>, ServiceError>> {
        Box::pin(async move {
            self.store.open_sinks.fetch_add(1, Ordering::SeqCst);
            let store = Arc::clone(&self.store);
            let body = BytesMut::new();
            let done = false;
            Ok(Box::new(Sink {
                name,
                contents,
                bytes,
                body,
                store,
                done,
            }) as Box<dyn BodySink>)
        })
    }

    fn removals(&self) -> BoxFuture<'_, Result<u64, ServiceError>> {
        Box::pin(async move { Ok(self.store.removals.load(Ordering::SeqCst)) })
    }

    fn distrusted(&self) -> BoxFuture<'_, String> {
        Box::pin(async move {
            self.store.distrust.notified().await;
            "the certificate was revoked".to_owned()
        })
    }

    fn arrivals(
        &self,
        kind: ObjectKind,
        after: Option<ObjectId>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<Arrived>, ServiceError>> {
        Box::pin(async move {
            let objects = self.store.objects.lock().unwrap();
            let ids = objects.keys().filter(|name| name.kind == kind);
            let ids = ids.map(|name| name.id);
            let arrived = |id: ObjectId| Arrived {
                at_ms: id.0[0].into(),
                id,
            };
            let later = ids.filter(|id| after.is_none_or(|after| *id > after));
            Ok(later.map(arrived).take(most).collect())
        })
    }

    fn remove(&self, name: ObjectName) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(async move {
            if self.session_for == SessionFor::Maintenance {
                self.store.objects.lock().unwrap().remove(&name);
                return Ok(());
            }
            self.store.refused.fetch_add(1, Ordering::SeqCst);
            Err(ServiceError::Denied(format!("removing {name}")))
        })
    }
}

struct Source {
    body: Bytes,
    length: u64,
    store: Arc<Store>,
}

impl BodySource for Source {
    fn length(&self) -> u64 {
        self.length
    }

    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Option<Bytes>, ServiceError>> {
        Box::pin(async move {
            self.store.gate.acquire().await.unwrap().forget();
            let piece = self.body.split_to(most.min(self.body.len()));
            Ok(Some(piece).filter(|piece| !piece.is_empty()))
        })
    }
}

struct Sink {
    name: ObjectName,
    contents: PackContents,
    bytes: u64,
    body: BytesMut,
    store: Arc<Store>,
    done: bool,
}

impl BodySink for Sink {
    fn write(&mut self, piece: Bytes) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(async move {
            self.store.gate.acquire().await.unwrap().forget();
            if self.store.full.load(Ordering::SeqCst) {
                return Err(ServiceError::Full("/srv/objects".to_owned()));
            }
            self.body.extend_from_slice(&piece);
            Ok(())
        })
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let name = self.name;
            if name.kind != ObjectKind::Config && name_of(name.kind, &self.body) != name {
                let found = "another hash".to_owned();
                return Err(ServiceError::BadBody { name, found });
            }
            assert_eq!(self.body.len() as u64, self.bytes);
            let body = std::mem::take(&mut self.body).freeze();
            self.store
                .objects
                .lock()
                .unwrap()
                .insert(name, (self.contents, body));
            self.done = true;
            Ok(())
        })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.store.open_sinks.fetch_sub(1, Ordering::SeqCst);
        if !self.done {
            self.store.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}
