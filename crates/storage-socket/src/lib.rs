//! Reliable, ordered, two-way byte streams through a block device that two hosts share.
//!
//! A pool is a set of devices that were formatted together (see [`format()`]). One process is its coordinator and listens; members
//! connect. What comes out are [`Stream`]s that read and write like TCP's. The protocol itself, and the layout of the
//! devices, are in `storage-socket-proto`; this crate gives it devices, a clock, randomness and threads.
//!
//! Invariants: one driver thread a pool owns the machines; users never wait for each other's devices; every transfer
//! has a deadline; nothing is believed but what the machines have checked.
//!
//! # Example
//!
//! Both ends in one process, over a file that stands in for a shared device:
//!
//! ```
//! use std::{io::{Read, Write}, net::Shutdown, thread, time::Duration};
//! use storage_socket::{
//!     FormatOptions, ListenProtection, Listener, Pool, PoolOptions, Port, Protection, Role,
//!     SlotIndex, Stream, StreamOptions, StreamSecret, Timeouts, format,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let directory = tempfile::tempdir()?;
//! let devices = vec![directory.path().join("device")];
//! let mut how = FormatOptions::new("example");
//! how.file_bytes = Some(64 << 20);
//! // Short, so that the example is quick; the default suits real devices.
//! how.timeouts = Timeouts {
//!     stale: Duration::from_millis(50),
//!     claim: Duration::from_millis(50),
//!     ..Timeouts::default()
//! };
//! format(&devices, &how)?;
//!
//! let patience = Duration::from_secs(10);
//! let slots = [SlotIndex(0)];
//! let role = Role::Coordinator { slots: slots.into() };
//! let server = Pool::open(&devices, PoolOptions::new(role, "server", directory.path()))?;
//! server.wait_ready(patience)?;
//! let listener = Listener::bind(&server, Port(0), ListenProtection::Sealed)?;
//! let port = listener.port();
//!
//! let options = StreamOptions::new(Protection::Aes256Gcm(StreamSecret::new([7; 32])));
//! let role = Role::Member { slots: slots.into() };
//! let client = Pool::open(&devices, PoolOptions::new(role, "client", directory.path()))?;
//! let member = options.clone();
//! let asking = thread::spawn(move || -> std::io::Result<String> {
//!     let mut stream = Stream::connect(&client, port, member, patience)?;
//!     stream.write_all(b"through the back lane")?;
//!     stream.shutdown(Shutdown::Write)?;
//!     let mut answer = String::new();
//!     stream.read_to_string(&mut answer)?;
//!     Ok(answer)
//! });
//! let mut stream = listener.accept_timeout(patience)?.accept(options)?;
//! let mut question = Vec::new();
//! stream.read_to_end(&mut question)?;
//! question.reverse();
//! stream.write_all(&question)?;
//! drop(stream);
//! assert_eq!(asking.join().unwrap()?, "enal kcab eht hguorht");
//! # Ok(())
//! # }
//! ```

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
pub use listener::{Incoming, Listener};
pub use pool::{HearSuspicion, Identity, Pool, PoolOptions, RingDoorbell, Role};
pub use storage_socket_proto::{
    Cipher, ConnectionId, Doorbell, Epoch, Incarnation, ListenProtection, MemberView, Polling,
    PoolId, Port, Protection, RefusalReason, ResetReason, SlotIndex, StreamSecret, Timeouts,
};
pub use stream::{Frame, ReadHalf, Stream, StreamOptions, StreamStats, WriteHalf};
