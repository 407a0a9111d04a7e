//! Network and storage sockets behind one session: TLS, the router at work.

pub mod service;
pub mod token;
