//! Doorbells between the two processes: datagrams over the loopback network.
//!
//! A datagram names the slot. An empty one ends the thread that listens: whoever leaves sends it to the other.

use crate::{Pool, pool::RingDoorbell};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    thread,
};
use storage_socket_proto::{Doorbell, SlotIndex};

/// One end.
pub(super) struct Bell {
    socket: Arc<UdpSocket>,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
        Ok(Self { socket })
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// What a driver is given to ring with. A datagram on the loopback network is delivered or dropped, at once.
    pub(super) fn ring(&self) -> RingDoorbell {
        let socket = self.socket.clone();
        Arc::new(move |slot| {
            // One that is lost costs a heartbeat.
            let _lost = socket.send(&slot.0.to_le_bytes());
        })
    }

    /// Joins this end to the other, and the doorbell to the pool: from now on the peer of `slot` is rung.
    pub(super) fn hang(&self, other: SocketAddr, pool: &Pool, slot: SlotIndex) -> io::Result<()> {
        self.socket.connect(other)?;
        pool.set_doorbell(slot, Doorbell::Present);
        let (socket, pool) = (self.socket.clone(), pool.clone());
        thread::Builder::new().spawn(move || {
            let mut rung = [0; 4];
            while let Ok(4) = socket.recv(&mut rung) {
                pool.rang(SlotIndex(u32::from_le_bytes(rung)));
            }
        })?;
        Ok(())
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let _gone = self.socket.send(&[]);
    }
}
