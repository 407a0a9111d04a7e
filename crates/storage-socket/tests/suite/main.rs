//! Pools and streams on real files and loop devices, between threads and between processes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod devices;
mod ends;
mod faults;
mod hot;
mod liveness;
mod media;
mod memory;
mod pools;
mod processes;
mod returns;
mod stripes;
#[cfg(feature = "tokio")]
mod tasks;
mod traffic;
mod work;
