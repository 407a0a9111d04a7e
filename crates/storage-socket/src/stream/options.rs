//! How a stream is protected, and how much of it may be under way.

use direct_io::BufferPool;
use storage_socket_proto::{FRAME_HEADER_BYTES, Protection, UNIT_BYTES, UnitCount, UsageError};

/// Buffers beyond those that are needed, for transfers that hang while others go on.
const SPARE_BUFFERS: usize = 4;

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
    /// The default sizes: frames of 1 MiB, and what goes with them.
    #[must_use]
    pub fn new(protection: Protection) -> Self {
        Self {
            protection,
            frame_bytes: 0,
            window_bytes: 0,
            depth: 0,
        }
        .with_frame_bytes(1 << 20)
    }

    /// Other frames, with the ring and the depth that go with them: 8 MiB under way, but four frames at least and 32
    /// at most; a ring of sixteen frames, but 64 MiB at least and 256 MiB at most.
    #[must_use]
    pub fn with_frame_bytes(self, frame_bytes: usize) -> Self {
        const UNDER_WAY_BYTES: usize = 8 << 20;
        let window_bytes = (16 * frame_bytes as u64).clamp(64 << 20, 256 << 20);
        Self {
            frame_bytes,
            window_bytes,
            depth: (UNDER_WAY_BYTES / frame_bytes.max(1)).clamp(4, 32),
            ..self
        }
    }

    /// The most that one frame carries, where the coordinator grants frames of this size.
    #[must_use]
    pub const fn payload_bytes_max(&self) -> usize {
        self.frame_bytes.saturating_sub(FRAME_HEADER_BYTES)
    }

    /// The most memory that one end of a stream takes for frames, on a pool of so many devices: a buffer for each frame
    /// of its ring, and for those that are being read or held by its user. It is taken as it is needed, and kept until
    /// the stream is gone.
    #[must_use]
    pub fn buffer_bytes_max(&self, devices: usize) -> usize {
        let ring = self.window_bytes / (self.frame_bytes as u64).max(1) * devices as u64;
        let ring = usize::try_from(ring).unwrap_or(usize::MAX);
        let sends = send_buffers(self.frame_bytes, ring);
        let receives = self.receive_buffers(self.frame_bytes);
        sends.mapped_bytes_max() + receives.mapped_bytes_max()
    }

    /// The depth within its bounds.
    pub(crate) fn depth(&self) -> usize {
        self.depth.clamp(1, 64)
    }

    /// Frames that are read or held at most: as many again for users to hold while the next are read.
    pub(crate) fn held(&self) -> usize {
        2 * self.depth()
    }

    /// Buffers for what is read; `frame_bytes` were granted.
    pub(crate) fn receive_buffers(&self, frame_bytes: usize) -> BufferPool {
        BufferPool::new(frame_bytes, self.held() + SPARE_BUFFERS)
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

/// Buffers for what is sent through a ring of so many frames, each of which is kept until it was acknowledged.
pub(crate) fn send_buffers(frame_bytes: usize, ring: usize) -> BufferPool {
    BufferPool::new(frame_bytes, ring.saturating_add(SPARE_BUFFERS))
}

fn units(bytes: u64, what: &'static str) -> Result<UnitCount, UsageError> {
    let units = u32::try_from(bytes / UNIT_BYTES).ok();
    units
        .filter(|units| *units > 0)
        .map(UnitCount)
        .ok_or(UsageError::OutOfRange { what })
}
