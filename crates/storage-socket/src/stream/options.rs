//! How a stream is protected, and how much of it may be under way.

use storage_socket_proto::{Protection, UNIT_BYTES, UnitCount, UsageError};

/// What a stream is made with. Connector and acceptor must agree on the protection; sizes are the connector's.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// How frames are protected, with the secret that both users share.
    pub protection: Protection,
    /// Bytes of a frame slot, header included: a multiple of 64 KiB. Below 1 MiB the cost per byte rises quickly.
    pub frame_bytes: usize,
    /// Bytes of each direction's ring on each device: what may be under way before the reader acknowledges.
    pub window_bytes: u64,
    /// Frames that are being written, and read, at once; reading holds as many more for its user.
    pub depth: usize,
}

impl StreamOptions {
    /// The default sizes: frames of 1 MiB, rings of 64 MiB, a depth of 8.
    #[must_use]
    pub fn new(protection: Protection) -> Self {
        Self {
            protection,
            frame_bytes: 1 << 20,
            window_bytes: 64 << 20,
            depth: 8,
        }
    }

    pub(crate) fn frame_units(&self) -> Result<UnitCount, UsageError> {
        units(self.frame_bytes as u64, "frame_bytes")
    }

    /// Units of each direction's segment on each device, the control unit included.
    pub(crate) fn window_units(&self) -> Result<UnitCount, UsageError> {
        let window = units(self.window_bytes, "window_bytes")?;
        Ok(UnitCount(window.0 + 1))
    }
}

fn units(bytes: u64, what: &'static str) -> Result<UnitCount, UsageError> {
    let units = u32::try_from(bytes / UNIT_BYTES).ok();
    units
        .filter(|units| *units > 0)
        .map(UnitCount)
        .ok_or(UsageError::OutOfRange { what })
}
