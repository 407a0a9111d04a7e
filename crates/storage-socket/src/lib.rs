//! Reliable, ordered, two-way byte streams through a block device that two hosts share.
//!
//! A pool is a set of devices that were [`format`]ted together. One process is its coordinator and listens; members
//! connect. What comes out are [`Stream`]s that read and write like TCP's. The protocol itself, and the layout of the
//! devices, are in `storage-socket-proto`; this crate gives it devices, a clock, randomness and threads.
//!
//! Invariants: one driver thread a pool owns the machines; users never wait for each other's devices; every transfer
//! has a deadline; nothing is believed but what the machines have checked.

pub mod bench;
mod driver;
mod error;
mod flow;
mod format;
mod inbox;
mod listener;
mod lock;
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
pub use inbox::PeerChallenges;
pub use listener::{Incoming, Listener};
pub use pool::{Identity, Pool, PoolOptions, RingDoorbell, Role};
pub use storage_socket_proto::{
    Cipher, ConnectionId, Doorbell, Epoch, Incarnation, ListenProtection, MemberView, PoolId, Port,
    Protection, RefusalReason, ResetReason, SlotIndex, StreamSecret, Timeouts,
};
pub use stream::{ReadHalf, Stream, StreamOptions, StreamStats, WriteHalf};
