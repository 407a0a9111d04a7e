//! Messages of a Backlane session, route policy and session machine: pure code, without clock, randomness or I/O.
//!
//! Invariants: every byte that enters becomes a typed value or an error here and is not checked again later; every
//! length has a named bound that is applied before memory is taken; what a newer peer says and this version doesn't
//! know is either skipped (a field) or answered as unsupported (a message), never waited for.
//!
//! The messages are described in `docs/design/session.md`; sockets, TLS and time belong to `backlane-net`.

pub mod calls;
pub mod codec;
pub mod message;
pub mod object;
pub mod proof;
pub mod report;
pub mod route;
pub mod router;
pub mod version;
pub mod wal;
mod wire;

pub use calls::{CallId, Calls, Fate, Violation};
pub use codec::{ChunkFlag, ChunkHeader, CodecError};
pub use message::{
    Answer, ErrorCode, Event, Failure, FromClient, FromServer, Opened, Opening, PoolStatus, Probe,
    ProbeDirection, Request, ServerRoutes, SessionFor,
};
pub use object::{Arrived, ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents};
pub use report::{ByRoute, RouteReport, Traffic};
pub use route::{Route, RoutePolicy};
pub use router::{Call, CallKind, Decision, Health, Reason, Refusal, decide, decide_probe};
pub use version::{Features, NoCommonVersion, Version, VersionRange};
pub use wal::{WalFile, WalHeader, WalName};
