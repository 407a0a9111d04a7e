//! Messages of a Backlane session, route policy and session machine: pure code, without clock, randomness or I/O.

pub mod object;
pub mod route;

pub use object::{ByteRange, ObjectId, ObjectInfo, ObjectKind, ObjectName, PackContents};
pub use route::{Route, RoutePolicy};
