//! The server's service as sessions see it, on real directories: objects, enrolment, and what survives a crash.

#![expect(
    clippy::unwrap_used,
    reason = "the whole crate is tests, its helpers included"
)]

mod adopt;
mod common;
mod crash;
mod enrolment;
mod objects;
mod trust;
mod wal;
