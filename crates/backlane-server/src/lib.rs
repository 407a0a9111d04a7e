//! Object service, enrolment and state of the Backlane server.
//!
//! [`ServerState`] is the whole of it: it implements the [`Service`](backlane_net::service::Service) that sessions
//! call, and offers what an administrator's commands need. What it keeps, where, and what it promises is described
//! in `docs/design/server.md`; the code cites that page's sections (`§3`).
//!
//! Invariants:
//! - an object under its final name is whole, durable, and what its name says;
//! - nothing under a final name is ever replaced, and clients remove nothing;
//! - what maintenance removes stays recoverable for a time, unless an administrator says otherwise, which is recorded;
//! - a host reaches its own repository alone;
//! - what a client was told is done has reached the disk.

mod adopt;
mod audit;
pub mod authority;
pub mod config;
mod content;
mod db;
pub mod error;
pub mod host;
mod repository;
mod scrub;
mod service;
pub mod state;
mod store;
mod under_way;

pub use adopt::{Adopted, Repositories};
pub use audit::VerifiedAudit;
pub use config::{DataPorts, PoolConfig, ServerConfig};
pub use db::Leave;
pub use error::ServerError;
pub use host::HostName;
pub use repository::{ExclusiveRepository, ObjectCount, Removal, RemovedObject, Undeleted};
pub use scrub::Scrubbed;
pub use state::{HostInfo, ServerState};
