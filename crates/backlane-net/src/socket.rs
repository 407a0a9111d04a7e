//! What every TCP connection of a session is set to.
//!
//! A peer whose machine or way has gone says nothing at all: the kernel gives such a connection up within
//! [`GONE_AFTER`], whether it is idle or has bytes under way, so that nobody waits for ever on a data pair.

use crate::framed::{DEAD_AFTER, PING_AFTER};
use socket2::{SockRef, TcpKeepalive};
use std::{io, time::Duration};
use tokio::net::TcpStream;

/// How long bytes may go unacknowledged.
const GONE_AFTER: Duration = DEAD_AFTER;

/// Sends without delay, and notices when the other side is gone.
pub(crate) fn set_up(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(PING_AFTER)
        .with_interval(PING_AFTER);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(GONE_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_connection_asks_the_kernel_whether_its_peer_lives() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        set_up(&tcp).unwrap();
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().unwrap() && tcp.nodelay().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(GONE_AFTER));
    }
}
