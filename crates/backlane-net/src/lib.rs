//! Network and storage sockets behind one session: TLS, the router at work.
//!
//! [`Session`] is the client's side, [`Server`] the other; both keep the rules of `backlane-proto`, whose router decides
//! which bodies take which route. What is said in which order stands in `docs/design/session.md`.

mod carrier;
pub mod client;
mod dial;
pub mod enroll;
pub mod error;
mod framed;
pub mod identity;
mod pace;
mod pauses;
mod pool;
pub mod server;
pub mod service;
mod socket;
pub mod status;
mod tls;
pub mod token;

pub use client::{
    Blocking, ClientConfig, Events, PoolChoice, PoolUse, RouteDown, RouteStatus, Session, Survey,
};
pub use enroll::{EnrolledHost, enroll, enroll_through};
pub use error::Error;
pub use identity::{Authority, Identity, IdentityError};
pub use pace::{LIMIT_BYTES_MIN, Limits};
pub use pool::DESIGNATED_STORAGE_PORT;
pub use server::{DataPorts, Server, ServerOptions, ServerPool, ServerView};
pub use status::{RouteUse, ServerStatus, SessionStatus};
pub use storage_socket::{EngineChoice, EngineKind, IoStats, StreamStats};
