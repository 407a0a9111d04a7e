//! What a client asks to learn about the routes of its session: bodies for nothing but their way, and what the server
//! sees.

use super::codes::{cut, fixed, health_from, route_code, route_from};
use crate::{CodecError, Health, Reason, Route, wire};
use uuid::Uuid;

/// Largest probe, in bytes: enough to tell how fast a route is, and too little to be in anyone's way for long.
pub const PROBE_BYTES_MAX: u64 = 64 << 20;

/// A body that is thrown away where it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Where it goes.
    pub direction: ProbeDirection,
    /// Its length.
    pub bytes: u64,
    /// The route that it takes; if it can't, the probe fails.
    pub route: Route,
}

/// Which side sends the body of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeDirection {
    /// The client sends it.
    ToServer,
    /// The server sends it.
    ToClient,
}

/// The routes of a session, as its server sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRoutes {
    /// Its ends of the data pairs.
    pub health: Health,
    /// Its pool, if it has one.
    pub pool: Option<PoolStatus>,
}

/// A server's pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// The pool.
    pub uuid: Uuid,
    /// Why the server can't use it, and the facts, while it can't.
    pub down: Option<(Reason, String)>,
}

impl Probe {
    pub(super) fn to_wire(self) -> wire::Probe {
        wire::Probe {
            direction: match self.direction {
                ProbeDirection::ToServer => 1,
                ProbeDirection::ToClient => 2,
            },
            bytes: self.bytes,
            route: route_code(self.route),
        }
    }

    /// `None` for a probe of a later version.
    pub(super) fn from_wire(raw: &wire::Probe) -> Result<Option<Self>, CodecError> {
        let direction = match raw.direction {
            1 => ProbeDirection::ToServer,
            2 => ProbeDirection::ToClient,
            _ => return Ok(None),
        };
        Ok(Some(Self {
            direction,
            bytes: raw.bytes,
            route: route_from(raw.route)?,
        }))
    }
}

impl ServerRoutes {
    pub(super) fn to_wire(&self) -> wire::Routes {
        let code = |route: Result<(), Reason>| route.err().map(Reason::code);
        wire::Routes {
            network_down: code(self.health.network),
            storage_down: code(self.health.storage),
            pool: self.pool.as_ref().map(|pool| {
                let down = pool.down.as_ref();
                wire::PoolStatus {
                    uuid: pool.uuid.as_bytes().to_vec(),
                    down: down.map(|(reason, _)| reason.code()),
                    detail: down.map_or_else(String::new, |(_, detail)| cut(detail)),
                }
            }),
        }
    }

    pub(super) fn from_wire(raw: wire::Routes) -> Result<Self, CodecError> {
        let pool = raw.pool.map(|pool| {
            let down = pool.down.map(Reason::from_code);
            Ok::<_, CodecError>(PoolStatus {
                uuid: Uuid::from_bytes(fixed(pool.uuid, "pool")?),
                down: down.map(|reason| (reason, cut(&pool.detail))),
            })
        });
        Ok(Self {
            health: Health {
                network: health_from(raw.network_down),
                storage: health_from(raw.storage_down),
            },
            pool: pool.transpose()?,
        })
    }
}
