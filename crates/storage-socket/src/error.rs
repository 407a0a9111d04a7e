//! What can go wrong with pools and sockets, with the facts: whose fault it is shows in the variant.

use std::{io, path::PathBuf};
use storage_socket_proto::{
    DeviceIndex, FormatError, GeometryError, PoolId, Port, RefusalReason, ResetReason, SlotIndex,
    UsageError,
};

/// An error of this crate. Those about devices name the device and say what was found where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device failed or can't be opened.
    #[error(transparent)]
    Device(#[from] direct_io::Error),
    /// A system call that is not about a device failed.
    #[error("{}: can't {action}: {source}", path.display())]
    Os {
        /// The file or program.
        path: PathBuf,
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },

    /// The device is mounted, used as swap, or held by something else on this host.
    #[error("{}: is in use: {by}", path.display())]
    InUse {
        /// The device.
        path: PathBuf,
        /// Who uses it.
        by: String,
    },
    /// The device carries data that a known signature tells of.
    #[error("{}: carries {found} at byte {offset}", path.display())]
    Signature {
        /// The device.
        path: PathBuf,
        /// What the signature is of.
        found: String,
        /// Where it stands.
        offset: u64,
    },
    /// The device carries data without a known signature.
    #[error("{}: is not blank: byte {offset} is {byte:#04x}", path.display())]
    NotBlank {
        /// The device.
        path: PathBuf,
        /// The first byte that isn't zero.
        offset: u64,
        /// Its value.
        byte: u8,
    },
    /// The same device was given twice.
    #[error("{}: is the same device as {}", path.display(), other.display())]
    SameDevice {
        /// The second path.
        path: PathBuf,
        /// The first path.
        other: PathBuf,
    },
    /// Devices of one pool must have logical blocks of the same size.
    #[error("{}: has logical blocks of {found} bytes, {} has {expected}", path.display(), other.display())]
    MixedBlocks {
        /// The device that differs.
        path: PathBuf,
        /// Its logical block.
        found: u32,
        /// The device that it was compared with.
        other: PathBuf,
        /// The logical block of that one.
        expected: u32,
    },
    /// A file is to become a device, and nobody said how large.
    #[error("{}: is a new or empty file: a size is needed", path.display())]
    SizeMissing {
        /// The file.
        path: PathBuf,
    },
    /// A file that exists has another size than was asked for.
    #[error("{}: is {found} bytes long, not {wanted}", path.display())]
    OtherSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The size asked for.
        wanted: u64,
    },

    /// The device carries no superblock.
    #[error("{}: is not a device of a pool: {found}", path.display())]
    NotAPool {
        /// The device.
        path: PathBuf,
        /// What is there instead of a superblock.
        found: FormatError,
    },
    /// The device was formatted by a newer version.
    #[error("{}: {found}", path.display())]
    NewerFormat {
        /// The device.
        path: PathBuf,
        /// The versions.
        found: FormatError,
    },
    /// The device belongs to another pool.
    #[error("{}: belongs to pool {found}, not {expected}", path.display())]
    Foreign {
        /// The device.
        path: PathBuf,
        /// The pool that it belongs to.
        found: PoolId,
        /// The pool that was wanted.
        expected: PoolId,
    },
    /// The device is another one of the pool than stood at this path before.
    #[error("{}: is device {found} of the pool, not device {expected}", path.display())]
    OtherDevice {
        /// The device.
        path: PathBuf,
        /// Which it is.
        found: DeviceIndex,
        /// Which it was.
        expected: DeviceIndex,
    },
    /// The device is smaller than when the pool was made.
    #[error("{}: is truncated: {found} bytes, the pool was made with {expected}", path.display())]
    Truncated {
        /// The device.
        path: PathBuf,
        /// Its bytes now.
        found: u64,
        /// Its bytes when the pool was made.
        expected: u64,
    },
    /// The device's logical block is another than when the pool was made.
    #[error("{}: has logical blocks of {found} bytes, the pool was made with {expected}", path.display())]
    OtherBlocks {
        /// The device.
        path: PathBuf,
        /// Its logical block now.
        found: u32,
        /// The recorded one.
        expected: u32,
    },
    /// Two of the given devices say that they are the same one of the pool: one is a copy.
    #[error("{}: says that it is device {device} of the pool, and so does {}: one is a copy", path.display(), other.display())]
    Copied {
        /// The second path.
        path: PathBuf,
        /// The first path.
        other: PathBuf,
        /// What both say they are.
        device: DeviceIndex,
    },
    /// A device of the pool was not given.
    #[error("device {device} of {count} of pool {pool} is missing")]
    Missing {
        /// The pool.
        pool: PoolId,
        /// Which device.
        device: DeviceIndex,
        /// How many the pool has.
        count: u16,
    },
    /// One of the two superblocks of a device is damaged or differs.
    #[error("{}: the superblock at block {lba} is damaged ({found}); its other copy is good", path.display())]
    DamagedSuperblock {
        /// The device.
        path: PathBuf,
        /// Which block.
        lba: u64,
        /// What was found.
        found: FormatError,
    },
    /// The two superblocks of a device are both valid and differ.
    #[error("{}: its two superblocks differ", path.display())]
    SuperblocksDiffer {
        /// The device.
        path: PathBuf,
    },
    /// A fixed block is neither blank nor valid.
    #[error("{}: {what} at block {lba} is damaged: {found}", path.display())]
    DamagedBlock {
        /// The device.
        path: PathBuf,
        /// What the block belongs to.
        what: String,
        /// Which block.
        lba: u64,
        /// What was found.
        found: FormatError,
    },
    /// The device has not the size or the blocks that a pool needs.
    #[error("{}: {found}", path.display())]
    Unfit {
        /// The device.
        path: PathBuf,
        /// What is wrong with it.
        found: GeometryError,
    },
    /// The figures don't make a pool.
    #[error(transparent)]
    Geometry(#[from] GeometryError),

    /// Another process on this host is the pool's coordinator.
    #[error("pool {pool} already has its coordinator on this host ({} is locked)", lock.display())]
    CoordinatorRunning {
        /// The pool.
        pool: PoolId,
        /// The lock file.
        lock: PathBuf,
    },
    /// Every slot that this host may use is taken by another process.
    #[error(
        "every slot of pool {pool} that this host may use is taken: {}",
        list(slots)
    )]
    SlotsTaken {
        /// The pool.
        pool: PoolId,
        /// The slots that were tried.
        slots: Vec<SlotIndex>,
    },
    /// The pool has no such slot.
    #[error("pool {pool} has no slot {slot}: it has {count}")]
    NoSuchSlot {
        /// The pool.
        pool: PoolId,
        /// The slot.
        slot: SlotIndex,
        /// How many it has.
        count: u32,
    },
    /// A host of the same identity runs elsewhere, or the pool was taken over.
    #[error("pool {pool}: {why}")]
    Stopped {
        /// The pool.
        pool: PoolId,
        /// Why its driver ended.
        why: StopReason,
    },

    /// The coordinator refused the connection.
    #[error("connection to port {port} refused: {reason}")]
    Refused {
        /// The storage port.
        port: Port,
        /// The reason that it gave.
        reason: RefusalReason,
    },
    /// The stream was reset.
    #[error("stream reset: {reason}{}", named(device.as_ref()))]
    Reset {
        /// Why.
        reason: ResetReason,
        /// The device that was lost, if it was this side that lost one.
        device: Option<PathBuf>,
    },
    /// There was no answer, or no progress, in time.
    #[error("{what} took too long")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
    },
    /// This end was shut down before.
    #[error("this direction of the stream is shut down")]
    ShutDown,
    /// Only a member can connect, and only the coordinator can listen.
    #[error("a {role} of a pool can't {what}")]
    WrongRole {
        /// What this process is.
        role: &'static str,
        /// What it tried.
        what: &'static str,
    },
    /// The machines refused what they were asked.
    #[error(transparent)]
    Usage(#[from] UsageError),
}

/// Why a pool's driver ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// Its user closed it.
    #[error("closed")]
    Closed,
    /// Another coordinator owns or claimed the pool.
    #[error("{0}")]
    Displaced(String),
    /// Another host writes under this one's identity; both stop.
    #[error("{0}")]
    Cloned(String),
    /// No device can be used any more.
    #[error("no device of the pool can be used: {0}")]
    Devices(String),
    /// The engine failed.
    #[error("the driver failed: {0}")]
    Driver(String),
}

impl Error {
    /// The kind that a user of files and TCP streams expects; the README has the table.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Device(error) => error.kind(),
            Self::Os { source, .. } => source.kind(),
            Self::InUse { .. } | Self::CoordinatorRunning { .. } | Self::SlotsTaken { .. } => {
                io::ErrorKind::ResourceBusy
            }
            Self::Signature { .. } | Self::NotBlank { .. } => io::ErrorKind::AlreadyExists,
            Self::NotAPool { .. }
            | Self::Truncated { .. }
            | Self::DamagedSuperblock { .. }
            | Self::SuperblocksDiffer { .. }
            | Self::DamagedBlock { .. } => io::ErrorKind::InvalidData,
            Self::NewerFormat { .. } | Self::OtherBlocks { .. } | Self::WrongRole { .. } => {
                io::ErrorKind::Unsupported
            }
            Self::Missing { .. } => io::ErrorKind::NotFound,
            Self::SameDevice { .. }
            | Self::MixedBlocks { .. }
            | Self::SizeMissing { .. }
            | Self::OtherSize { .. }
            | Self::Foreign { .. }
            | Self::OtherDevice { .. }
            | Self::Copied { .. }
            | Self::Unfit { .. }
            | Self::Geometry(_)
            | Self::NoSuchSlot { .. } => io::ErrorKind::InvalidInput,
            Self::Stopped { .. } => io::ErrorKind::NotConnected,
            Self::Refused { .. } => io::ErrorKind::ConnectionRefused,
            Self::Reset {
                reason: ResetReason::Aborted | ResetReason::Linger,
                ..
            } => io::ErrorKind::ConnectionAborted,
            Self::Reset { .. } => io::ErrorKind::ConnectionReset,
            Self::TimedOut { .. } => io::ErrorKind::TimedOut,
            Self::ShutDown => io::ErrorKind::BrokenPipe,
            Self::Usage(error) => match error {
                UsageError::PortTaken(_) => io::ErrorKind::AddrInUse,
                UsageError::NoPort => io::ErrorKind::AddrNotAvailable,
                UsageError::TooManyConnections => io::ErrorKind::QuotaExceeded,
                UsageError::Stopped => io::ErrorKind::NotConnected,
                UsageError::Finished => io::ErrorKind::BrokenPipe,
                _ => io::ErrorKind::InvalidInput,
            },
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

fn named(device: Option<&PathBuf>) -> String {
    device.map_or_else(String::new, |path| format!(" ({})", path.display()))
}

fn list(slots: &[SlotIndex]) -> String {
    let names: Vec<String> = slots.iter().map(ToString::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_fail_as_a_user_of_tcp_streams_expects() {
        let reset = |reason| Error::Reset {
            reason,
            device: None,
        };
        let stopped = Error::Stopped {
            pool: PoolId::default(),
            why: StopReason::Closed,
        };
        let refused = Error::Refused {
            port: Port(7),
            reason: RefusalReason::NoListener,
        };
        let kinds = [
            (refused, io::ErrorKind::ConnectionRefused),
            (Error::TimedOut { what: "reading" }, io::ErrorKind::TimedOut),
            (Error::ShutDown, io::ErrorKind::BrokenPipe),
            (reset(ResetReason::PeerDead), io::ErrorKind::ConnectionReset),
            (
                reset(ResetReason::DeviceLost),
                io::ErrorKind::ConnectionReset,
            ),
            (reset(ResetReason::Medium), io::ErrorKind::ConnectionReset),
            (
                reset(ResetReason::Aborted),
                io::ErrorKind::ConnectionAborted,
            ),
            (stopped, io::ErrorKind::NotConnected),
            (
                UsageError::PortTaken(Port(7)).into(),
                io::ErrorKind::AddrInUse,
            ),
            (UsageError::NoPort.into(), io::ErrorKind::AddrNotAvailable),
            (
                UsageError::TooManyConnections.into(),
                io::ErrorKind::QuotaExceeded,
            ),
            (
                UsageError::OutOfRange { what: "frames" }.into(),
                io::ErrorKind::InvalidInput,
            ),
        ];
        for (error, kind) in kinds {
            let said = error.to_string();
            let error = io::Error::from(error);
            assert_eq!(error.kind(), kind, "{said}");
            // The facts are there still.
            let inner = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<Error>());
            assert_eq!(inner.map(ToString::to_string), Some(said));
        }
    }

    #[test]
    fn pools_fail_as_a_user_of_files_expects() {
        let path = || PathBuf::from("device");
        let kinds = [
            (
                Error::SlotsTaken {
                    pool: PoolId::default(),
                    slots: vec![SlotIndex(1)],
                },
                io::ErrorKind::ResourceBusy,
            ),
            (
                Error::NotBlank {
                    path: path(),
                    offset: 0,
                    byte: 1,
                },
                io::ErrorKind::AlreadyExists,
            ),
            (
                Error::SizeMissing { path: path() },
                io::ErrorKind::InvalidInput,
            ),
            (
                Error::SuperblocksDiffer { path: path() },
                io::ErrorKind::InvalidData,
            ),
            (
                Error::WrongRole {
                    role: "member",
                    what: "listen",
                },
                io::ErrorKind::Unsupported,
            ),
        ];
        for (error, kind) in kinds {
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}
