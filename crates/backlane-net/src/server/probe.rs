//! The two ends of a probe at the server: bytes for nobody, and nowhere for bytes to go.

use crate::service::{BodySink, BodySource, BoxFuture, ServiceError};
use bytes::Bytes;

/// Takes a body and keeps nothing of it.
pub(super) struct Nowhere;

impl BodySink for Nowhere {
    fn write(&mut self, _: Bytes) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(async { Ok(()) })
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A body of zeros, which are as good as any: both routes seal what they carry.
pub(super) struct Zeros {
    bytes: u64,
    left: u64,
}

impl Zeros {
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes, left: bytes }
    }
}

impl BodySource for Zeros {
    fn length(&self) -> u64 {
        self.bytes
    }

    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Option<Bytes>, ServiceError>> {
        let piece = usize::try_from(self.left).unwrap_or(most).min(most);
        self.left -= piece as u64;
        let piece = (piece > 0).then(|| Bytes::from(vec![0; piece]));
        Box::pin(async { Ok(piece) })
    }
}
