//! Sessions over real TLS and TCP on loopback, with an object service in memory.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "the whole crate is tests; their numbers are small"
)]

mod calls;
#[path = "../../../storage-socket/tests/suite/devices.rs"]
mod devices;
mod enroll;
mod hostile;
mod proof;
mod rogue;
mod routes;
mod service;
mod status;
mod storage;
mod survey;
mod world;
