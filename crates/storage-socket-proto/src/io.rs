//! What the machines ask of the driver: requests for I/O, and how their ends are told.
//!
//! The driver gives each I/O a deadline (`Timeouts::io_deadline`); past it, it reports [`IoFailure::TimedOut`] and never
//! reports that request again, whatever becomes of it. Every request is answered exactly once. Ids are unique within
//! the machine that made them.

use crate::types::{Block, BlockCount, DeviceIndex, Lba, Sequence};

/// Names a request of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// One I/O that a machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoRequest {
    /// Comes back with the outcome.
    pub id: IoId,
    /// The device.
    pub device: DeviceIndex,
    /// The first block.
    pub lba: Lba,
    /// How many blocks.
    pub blocks: BlockCount,
    /// What to do with them.
    pub op: IoOp,
}

impl IoRequest {
    /// A read of `blocks` blocks.
    pub(crate) fn read(id: IoId, device: DeviceIndex, lba: Lba, blocks: BlockCount) -> Self {
        Self {
            id,
            device,
            lba,
            blocks,
            op: IoOp::Read,
        }
    }
}

/// The kind of an I/O and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoOp {
    /// Read the blocks and hand the bytes to `handle_io`.
    Read,
    /// Write this one block; the outcome goes to `handle_io`.
    Write(Box<Block>),
    /// Read the blocks into a frame buffer, open the frame with [`crate::FrameOpener`] and hand the verdict to
    /// `Connection::handle_frame_read`; a failed read goes there too.
    ReadFrame(Sequence),
    /// Write the sealed frame that the driver keeps under this sequence; the outcome goes to `handle_io`.
    WriteFrame(Sequence),
}

/// How an I/O ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOutcome<'a> {
    /// The bytes that were read: exactly the blocks that were asked for.
    Read(&'a [u8]),
    /// The blocks were written.
    Written,
    /// It failed; whether a write reached the medium is unknown.
    Failed(IoFailure),
}

/// Why an I/O failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoFailure {
    /// The device reported an error.
    #[error("I/O error")]
    Error,
    /// No answer within the deadline; it may still land.
    #[error("no answer within the deadline")]
    TimedOut,
    /// The device has gone: a short read, no space on a write, no such device.
    #[error("the device is gone")]
    DeviceGone,
}

/// Gives out request ids.
#[derive(Debug, Default)]
pub(crate) struct IoIds(u64);

impl IoIds {
    pub(crate) fn fresh(&mut self) -> IoId {
        self.0 += 1;
        IoId(self.0)
    }
}
