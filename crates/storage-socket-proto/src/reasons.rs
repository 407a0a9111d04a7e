//! Why a request is refused and why a stream is reset: numbers that travel through the pool (§3.5, §4.1).

/// Why a coordinator refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalReason {
    /// Nobody listens on the port.
    #[error("nobody listens on the port")]
    NoListener,
    /// No range of units is free on the devices that both sides see.
    #[error("no free segments")]
    NoSegments,
    /// The slot isn't enrolled with this coordinator.
    #[error("the slot is not enrolled")]
    NotEnrolled,
    /// The coordinator can't speak the member's format version.
    #[error("the format version is not supported")]
    Version,
    /// The listener's backlog, or the coordinator's table, is full.
    #[error("the listener is busy")]
    Busy,
    /// The coordinator is shutting down.
    #[error("the coordinator is shutting down")]
    ShuttingDown,
    /// No device is seen by both sides.
    #[error("no device is seen by both sides")]
    NoCommonDevice,
    /// The listener wants another cipher.
    #[error("the listener wants another cipher")]
    Cipher,
    /// A field of the request makes no sense.
    #[error("the request is malformed")]
    Malformed,
    /// A reason that this version doesn't know.
    #[error("refused for reason number {0}")]
    Unknown(u16),
}

impl RefusalReason {
    /// The number that travels.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::NoListener => 1,
            Self::NoSegments => 2,
            Self::NotEnrolled => 3,
            Self::Version => 4,
            Self::Busy => 5,
            Self::ShuttingDown => 6,
            Self::NoCommonDevice => 7,
            Self::Cipher => 8,
            Self::Malformed => 9,
            Self::Unknown(code) => code,
        }
    }

    /// The reason with this number.
    #[must_use]
    pub fn from_code(code: u16) -> Self {
        match code {
            1 => Self::NoListener,
            2 => Self::NoSegments,
            3 => Self::NotEnrolled,
            4 => Self::Version,
            5 => Self::Busy,
            6 => Self::ShuttingDown,
            7 => Self::NoCommonDevice,
            8 => Self::Cipher,
            9 => Self::Malformed,
            other => Self::Unknown(other),
        }
    }
}

/// Why a stream was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ResetReason {
    /// A frame stayed damaged through every resend.
    #[error("the medium damages frames")]
    Medium,
    /// The peer showed no sign of life for the time-out.
    #[error("the peer is dead")]
    PeerDead,
    /// A device of the group was lost to one side.
    #[error("a device was lost")]
    DeviceLost,
    /// The coordinator ended, died or was replaced.
    #[error("the coordinator is gone")]
    CoordinatorGone,
    /// The user of the stream aborted it.
    #[error("aborted by its user")]
    Aborted,
    /// Another host runs under the same identity.
    #[error("the host was cloned")]
    ClonedHost,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol")]
    Protocol,
    /// Closing took longer than the linger time.
    #[error("closing took too long")]
    Linger,
    /// The peer's process closed the connection without finishing it.
    #[error("the peer closed the connection")]
    PeerClosed,
    /// A reason that this version doesn't know.
    #[error("reset for reason number {0}")]
    Unknown(u16),
}

impl ResetReason {
    /// The number that travels; never 0.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Medium => 1,
            Self::PeerDead => 2,
            Self::DeviceLost => 3,
            Self::CoordinatorGone => 4,
            Self::Aborted => 5,
            Self::ClonedHost => 6,
            Self::Protocol => 7,
            Self::Linger => 8,
            Self::PeerClosed => 9,
            Self::Unknown(code) => code,
        }
    }

    /// The reason with this number; `None` for 0, which means no reset.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::Medium,
            2 => Self::PeerDead,
            3 => Self::DeviceLost,
            4 => Self::CoordinatorGone,
            5 => Self::Aborted,
            6 => Self::ClonedHost,
            7 => Self::Protocol,
            8 => Self::Linger,
            9 => Self::PeerClosed,
            other => Self::Unknown(other),
        })
    }
}
