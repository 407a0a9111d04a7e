//! What a server does for its sessions: the seam between the session (this crate) and the object service.

use backlane_proto::{
    Arrived, ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents, SessionFor,
};
use bytes::Bytes;
use std::{future::Future, pin::Pin, sync::Arc};

/// A boxed future, so that the traits of this module can be objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A host whose certificate TLS has verified: signed by the authority, and not expired. Whether it was revoked is the
/// service's to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedHost {
    /// The name in the certificate.
    pub name: String,
    /// The certificate's serial number.
    pub serial: Vec<u8>,
    /// Its public key, as SubjectPublicKeyInfo in DER.
    pub key: Vec<u8>,
}

/// Admits hosts and enrols new ones.
pub trait Service: Send + Sync + 'static {
    /// Opens the repository of a host for one session.
    fn open<'a>(
        &'a self,
        host: &'a VerifiedHost,
        session_for: SessionFor,
    ) -> BoxFuture<'a, Result<Arc<dyn ObjectService>, ServiceError>>;

    /// Signs another certificate, PEM, for the key of a request, before the host's own expires.
    fn renew<'a>(
        &'a self,
        host: &'a VerifiedHost,
        csr_pem: String,
    ) -> BoxFuture<'a, Result<String, ServiceError>>;

    /// Redeems a join token: checks it, signs the request, allots slots.
    fn enroll<'a>(
        &'a self,
        request: EnrollRequest,
    ) -> BoxFuture<'a, Result<EnrollGrant, ServiceError>>;

    /// Slots of the pool that `host` may use; the coordinator refuses any other.
    fn slots<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<u32>, ServiceError>>;

    /// Slots of the pool that any host may use, or may enrol with.
    fn all_slots(&self) -> BoxFuture<'_, Result<Vec<u32>, ServiceError>>;
}

/// The objects of one host's repository, within one session. Dropping it ends the session's hold on the repository.
pub trait ObjectService: Send + Sync + 'static {
    /// Lists every object of a kind; an incomplete list is an error.
    fn list(&self, kind: ObjectKind) -> BoxFuture<'_, Result<Vec<ObjectInfo>, ServiceError>>;
    /// Reads an object or exactly a part of it, in pieces as they are read.
    fn get(
        &self,
        name: ObjectName,
        range: Option<ByteRange>,
    ) -> BoxFuture<'_, Result<Box<dyn BodySource>, ServiceError>>;
    /// Begins to store an object of `bytes` bytes. Nothing is visible before [`BodySink::commit`].
    fn put(
        &self,
        name: ObjectName,
        contents: PackContents,
        bytes: u64,
    ) -> BoxFuture<'_, Result<Box<dyn BodySink>, ServiceError>>;
    /// How many times objects were removed from the repository, ever. None is while this is held.
    fn removals(&self) -> BoxFuture<'_, Result<u64, ServiceError>>;
    /// Ready when the host is trusted no more, with the reason: the session ends then.
    fn distrusted(&self) -> BoxFuture<'_, String>;
    /// When objects of a kind arrived: at most `most`, those behind `after` in the order of their ids.
    fn arrivals(
        &self,
        kind: ObjectKind,
        after: Option<ObjectId>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<Arrived>, ServiceError>>;
    /// Removes an object; refused for clients, but in a session for maintenance.
    fn remove(&self, name: ObjectName) -> BoxFuture<'_, Result<(), ServiceError>>;
}

/// The bytes of an object on their way out.
pub trait BodySource: Send {
    /// How many bytes come in all.
    fn length(&self) -> u64;
    /// The next piece of at most `most` bytes; `None` after the last.
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Option<Bytes>, ServiceError>>;
}

/// The bytes of an object on their way in. Dropped without commit, it leaves nothing.
pub trait BodySink: Send {
    /// Takes the next piece.
    fn write(&mut self, piece: Bytes) -> BoxFuture<'_, Result<(), ServiceError>>;
    /// Checks length and SHA-256 against the name and makes the object durable.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), ServiceError>>;
}

/// What a host sends to be enrolled.
#[derive(Clone, Debug)]
pub struct EnrollRequest {
    /// The secret part of the join token.
    pub secret: String,
    /// The certificate request, PEM.
    pub csr_pem: String,
}

/// What a host gets when it is enrolled.
#[derive(Clone, Debug)]
pub struct EnrollGrant {
    /// The name the token was bound to.
    pub host: String,
    /// The host's certificate, PEM.
    pub certificate_pem: String,
    /// UUID of the server's pool, if it has one.
    pub pool: Option<uuid::Uuid>,
    /// The host's slots in the pool.
    pub slots: Vec<u32>,
}

/// Why the service refused or failed; the variant travels to the client as a code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// There is no such object.
    #[error("{0} does not exist")]
    NotFound(ObjectName),
    /// The client may not do that.
    #[error("not permitted: {0}")]
    Denied(String),
    /// The body does not match its name or length.
    #[error("{name} was refused: {found}")]
    BadBody {
        /// The object that was put.
        name: ObjectName,
        /// What was found instead.
        found: String,
    },
    /// The object is there, and is damaged or can't be read; others may be well.
    #[error("{0}")]
    Damaged(String),
    /// The server's disk is full.
    #[error("no space left at the server in {0}")]
    Full(String),
    /// The host has stored what it may.
    #[error("{0}")]
    Quota(String),
    /// The repository is in use by something that excludes this.
    #[error("repository is busy: {0}")]
    Busy(String),
    /// The join token is unknown, used or expired.
    #[error("join token refused: {0}")]
    Token(String),
    /// Anything else at the server.
    #[error("{0}")]
    Failed(String),
}
