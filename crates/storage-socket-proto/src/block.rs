//! The fixed blocks (§3) and control blocks (§4.1): their typed form, their bytes, and the check that lies between.
//!
//! Bytes from the medium are [`Unchecked`] until magic, version, pool, device, slot and tag agree; what comes out is
//! a typed value and the [`Stamp`] of its writer. No input makes a parser panic.

mod answer;
mod control;
mod coordinator;
mod header;
mod member;
mod superblock;
mod wire;

pub use answer::{Answer, AnswerEntry, AnswerPage, Grant, SegmentGroup};
pub use control::{ControlBlock, LENGTHS_MAX, RESENDS_MAX, Resend};
pub use coordinator::{CoordinatorBlock, CoordinatorState};
pub use header::{FORMAT_VERSION, NO_SLOT, Place, Stamp, TagKey, Unchecked};
pub use member::{MemberEntry, MemberPage, MemberState, Request};
pub use superblock::Superblock;
