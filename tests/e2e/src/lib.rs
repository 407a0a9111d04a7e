//! The whole system on one machine as if it were two: two network namespaces joined by a wire of a known rate, one
//! device that both sides open, the real binary on both.
//!
//! What counts as evidence comes from the kernel, not from the program under test: bytes on the wire are the counters
//! of the network interface, bytes on the device those of the block layer.
//!
//! Everything that is made here carries a name of its own and is gone when its value is dropped, also after a panic;
//! what a killed test left behind, the next one sweeps away.

mod chain;
mod data;
mod device;
mod fault;
mod group;
mod lane;
mod mariadb;
pub mod matrix;
mod median;
mod need;
mod postgres;
mod process;
mod recording;
mod scene;
mod scribbler;
mod seed;
pub mod soak;
mod sweep;
mod system;
mod terminal;
mod wal;

pub use chain::{CHAIN, Chain};
pub use data::{plant, same};
pub use device::{Medium, Sector, SharedDevice, Tmpfs};
pub use fault::Fault;
pub use group::Group;
pub use lane::{Lane, Side, Wire};
pub use mariadb::{MARIADB_TABLES, MariadbWorld, Server, Servers};
pub use median::median;
pub use need::{ready, ready_for_mariadb, ready_for_postgresql, ready_with};
pub use postgres::{Cluster, Clusters};
pub use process::{Ended, Process, binary, output, until};
pub use recording::Recording;
pub use scene::Scene;
pub use scribbler::{Deeds, Malice, Scribbler};
pub use seed::commit_seed;
pub use sweep::base;
pub use system::{Client, Engine, Job, Setup, System};
pub use terminal::Terminal;
pub use wal::{start_spooler, wal_host, wal_host_of};
