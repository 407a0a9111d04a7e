//! How a client opens its connections: TCP or a stream through the pool, TLS, and the first exchange of messages.

use crate::{
    Error,
    carrier::Carrier,
    framed::{ReadError, read_message, write_message},
    socket, tls,
};
use backlane_proto::{Failure, Opened, Opening};
use std::{future::Future, io, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A TLS connection to a server, and what to call it in errors.
pub(crate) struct Dialed {
    pub(crate) stream: TlsStream<Carrier>,
    pub(crate) peer: String,
}

/// Where and how to connect.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) config: Arc<rustls::ClientConfig>,
    pub(crate) patience: Duration,
}

impl Dialer {
    /// Connects to `host:port` and shakes hands.
    pub(crate) async fn dial(&self, server: &str) -> Result<Dialed, Error> {
        let connecting = self.in_time(server, "connecting", TcpStream::connect(server));
        let tcp = connecting.await?.map_err(|error| Error::Connect {
            server: server.to_owned(),
            why: error.to_string(),
        })?;
        socket::set_up(&tcp).map_err(|error| Error::Connect {
            server: server.to_owned(),
            why: error.to_string(),
        })?;
        self.shake(server, Box::new(tcp)).await
    }

    /// Shakes hands over a connection.
    pub(crate) async fn shake(&self, peer: &str, carrier: Carrier) -> Result<Dialed, Error> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let name = tls::server_name()?;
        let stream = self
            .in_time(peer, "negotiating TLS", connector.connect(name, carrier))
            .await?
            .map_err(|error| read_failed(peer, "negotiating TLS", ReadError::Io(error)))?;
        if stream.get_ref().1.alpn_protocol().is_none() {
            return Err(Error::protocol(peer, "it negotiated no protocol in TLS"));
        }
        Ok(Dialed {
            stream,
            peer: peer.to_owned(),
        })
    }

    /// Sends the first message and reads its answer.
    pub(crate) async fn open(&self, to: &mut Dialed, opening: &Opening) -> Result<Opened, Error> {
        let Dialed { stream, peer } = to;
        let exchange = async {
            // A server that refuses our certificate says so instead of an answer; that counts, not the broken pipe.
            let sent = write_message(stream, &opening.encode()).await;
            let answer = read_message(stream, self.patience).await;
            match (sent, answer) {
                (_, Ok(answer)) => Ok(answer),
                (Err(error), Err(ReadError::Ended)) => Err(ReadError::Io(error)),
                (_, Err(error)) => Err(error),
            }
        };
        let raw = self
            .in_time(peer, "waiting for its first answer", exchange)
            .await?
            .map_err(|error| read_failed(peer, "waiting for its first answer", error))?;
        let opened = Opened::decode(&raw).map_err(|error| Error::protocol(peer.as_str(), error))?;
        match opened {
            Opened::Refused(Failure { code, text, .. }) => Err(Error::Refused {
                server: peer.clone(),
                code,
                text,
            }),
            Opened::Unsupported(what) => Err(Error::Unsupported {
                peer: peer.clone(),
                what,
            }),
            opened => Ok(opened),
        }
    }

    async fn in_time<T>(
        &self,
        peer: &str,
        doing: &'static str,
        what: impl Future<Output = T>,
    ) -> Result<T, Error> {
        timeout(self.patience, what)
            .await
            .map_err(|_| Error::Silent {
                peer: peer.to_owned(),
                doing,
                waited: self.patience,
            })
    }
}

/// What a failed read means: TLS refused us, the peer broke the protocol, or it went away.
pub(crate) fn read_failed(peer: &str, doing: &'static str, error: ReadError) -> Error {
    match error {
        ReadError::Silent(waited) => Error::Silent {
            peer: peer.to_owned(),
            doing,
            waited,
        },
        ReadError::Codec(error) => Error::protocol(peer, error),
        ReadError::Io(error) if is_tls(&error) => Error::tls(peer, &error),
        ReadError::Io(error) => Error::Lost {
            server: peer.to_owned(),
            why: error.to_string(),
        },
        ReadError::Ended => Error::Lost {
            server: peer.to_owned(),
            why: format!("it closed the connection while {doing}"),
        },
    }
}

fn is_tls(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.downcast_ref::<rustls::Error>().is_some())
}
