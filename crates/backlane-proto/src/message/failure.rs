//! Why a call or an opening failed, as a typed value and as it stands on the wire.

use super::codes::cut;
use crate::{Reason, wire};

/// Why a call or an opening failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure, which a program acts on.
    pub code: ErrorCode,
    /// The same for people, with the facts.
    pub text: String,
    /// The routing reason, where there is one.
    pub reason: Option<Reason>,
}

/// Kinds of failures, numbered for the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// Anything that has no number of its own here.
    Failed,
    /// There is no such object.
    NotFound,
    /// Not permitted.
    Denied,
    /// A body does not match its name or length.
    BadBody,
    /// No space left at the server.
    Full,
    /// The repository is in use by something that excludes this.
    Busy,
    /// The join token is unknown, used or expired.
    Token,
    /// No route may be used; the reason says why.
    Route,
    /// The other side broke the protocol.
    Protocol,
    /// No version in common.
    Version,
    /// The session is unknown or the secret is wrong.
    Session,
    /// The caller gave the call up.
    Cancelled,
    /// The server is shutting down.
    ShuttingDown,
    /// The object is there, and is damaged or can't be read.
    Damaged,
}

impl Failure {
    pub(super) fn to_wire(&self) -> wire::Failed {
        wire::Failed {
            code: self.code.code(),
            text: cut(&self.text),
            reason: self.reason.map(Reason::code),
        }
    }

    pub(super) fn from_wire(failed: wire::Failed) -> Self {
        Self {
            code: ErrorCode::from_code(failed.code),
            text: cut(&failed.text),
            reason: failed.reason.map(Reason::from_code),
        }
    }
}

impl ErrorCode {
    const TABLE: [(Self, u32); 14] = [
        (Self::Failed, 0),
        (Self::NotFound, 1),
        (Self::Denied, 2),
        (Self::BadBody, 3),
        (Self::Full, 4),
        (Self::Busy, 5),
        (Self::Token, 6),
        (Self::Route, 7),
        (Self::Protocol, 8),
        (Self::Version, 9),
        (Self::Session, 10),
        (Self::Cancelled, 11),
        (Self::ShuttingDown, 12),
        (Self::Damaged, 13),
    ];

    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        let row = Self::TABLE.iter().find(|row| row.0 == self);
        row.map_or(0, |row| row.1)
    }

    /// The kind with this number; [`ErrorCode::Failed`] for a number of a later version.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        let row = Self::TABLE.iter().find(|row| row.1 == code);
        row.map_or(Self::Failed, |row| row.0)
    }
}
