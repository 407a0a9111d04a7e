//! What carries a TLS connection: TCP, or a stream on the designated storage port.

use tokio::io::{AsyncRead, AsyncWrite};

/// A two-way byte stream.
pub(crate) trait Carry: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Carry for T {}

/// Any of them.
pub(crate) type Carrier = Box<dyn Carry>;
