//! Reliable, ordered, two-way byte streams through a block device that two hosts share.
//!
//! The protocol itself, and the layout of the devices, are in `storage-socket-proto`; this crate gives it devices, a
//! clock, randomness and threads.
//!
//! Invariants: one thread at a time owns the machines of a pool; users never wait for each other's devices; every
//! transfer has a deadline; nothing is believed but what the machines have checked.
//!
#![doc = include_str!("../README.md")]

#[cfg(feature = "bench")]
pub mod bench;
mod driver;
mod error;
mod flow;
mod format;
mod inbox;
mod listener;
mod lock;
mod patience;
mod pool;
mod promise;
mod stream;

pub use direct_io::{EngineChoice, EngineKind};
pub use error::{Error, StopReason};
pub use flow::StreamAddr;
pub use format::{
    CoordinatorInfo, DeviceInfo, FormatOptions, MemberInfo, Members, PoolInfo, SLOTS_DEFAULT,
    check, destroy, format, inspect, members,
};
pub use inbox::{IoStats, PeerChallenges};
pub use listener::{Incoming, ListenAddr, Listener};
pub use pool::{HearSuspicion, Identity, Pool, PoolOptions, RingDoorbell, Role};
pub use storage_socket_proto::{
    Cipher, ConnectionId, Doorbell, Epoch, Incarnation, ListenProtection, MemberView, Polling,
    PoolId, Port, Protection, RefusalReason, ResetReason, SlotIndex, StreamSecret, Timeouts,
};
pub use stream::{Frame, ReadHalf, Stream, StreamGauge, StreamOptions, StreamStats, WriteHalf};
