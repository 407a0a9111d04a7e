//! The messages of a session as typed values, and their bytes.
//!
//! `decode` tells three cases apart: a message; one of a later version that this one doesn't know, which gets an answer
//! that says so; and bytes that are no message, which end the connection.

mod codes;
mod failure;
mod routes;
mod show;

use crate::{
    Arrived, ByteRange, CallId, CodecError, Decision, Features, Health, ObjectId, ObjectInfo,
    ObjectKind, ObjectName, PackContents, Reason, Route, RoutePolicy, Version, VersionRange,
    proof::{self, Member, Proof},
    wire,
};
use codes::{
    arrived_code, arrived_from, continues_code, continues_from, cut, fixed, health_from, kind_code,
    kind_from, name_code, name_from, policy_code, policy_from, pool_code, pool_from, port,
    purpose_code, purpose_from, route_code, route_from,
};
pub use failure::{ErrorCode, Failure};
use prost::Message as _;
pub use routes::{PROBE_BYTES_MAX, PoolStatus, Probe, ProbeDirection, ServerRoutes};
use uuid::Uuid;

/// Entries in one page of a listing; the page stays below the largest message.
pub const LISTING_PAGE_ENTRIES: usize = 4096;
/// Bytes of a session's id.
pub const SESSION_ID_BYTES: usize = 16;
/// Bytes of a session's secret.
pub const SESSION_SECRET_BYTES: usize = 32;
/// Bytes of free text in a message; longer text is cut.
pub const TEXT_BYTES_MAX: usize = 4096;

/// The first message of a connection, from the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Begins a session; the connection becomes its control connection.
    Hello(Hello),
    /// Adds a connection to a session.
    Attach(Attach),
    /// Redeems a join token, under the ALPN for it alone.
    Enroll(Enroll),
}

/// What a client says to begin a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The versions that it speaks.
    pub versions: VersionRange,
    /// The features that it has.
    pub features: Features,
    /// The policy under which both sides route.
    pub policy: RoutePolicy,
    /// Name and version of the program, for logs.
    pub software: String,
    /// The session that the new one takes the place of; the server ends it.
    pub continues: Option<Continues>,
    /// What the session is for.
    pub session_for: SessionFor,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionFor {
    /// Backups and restores, beside other sessions of the host.
    #[default]
    Jobs,
    /// Removing what isn't needed any more, with the repository to itself; it takes a permission.
    Maintenance,
    /// Archived WAL and nothing else, for as long as a database lives: it holds up no maintenance.
    Wal,
}

/// A session whose control connection was lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Continues {
    /// The session.
    pub session: SessionId,
    /// Its secret.
    pub secret: SessionSecret,
}

/// Binds a further connection to a session.
#[derive(Clone, PartialEq, Eq)]
pub struct Attach {
    /// The session.
    pub session: SessionId,
    /// Its secret.
    pub secret: SessionSecret,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// Identifies a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; SESSION_ID_BYTES]);

/// Known to a session's two sides alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionSecret(pub [u8; SESSION_SECRET_BYTES]);

/// What a further connection of a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Progress, log lines and doorbells.
    Events,
    /// Bodies that take the network.
    Data,
}

/// Asks for a certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Enroll {
    /// The secret part of the join token.
    pub secret: String,
    /// The certificate request, PEM.
    pub csr_pem: String,
}

/// The server's answer to an [`Opening`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The session exists.
    Welcome(Welcome),
    /// The connection belongs to the session now.
    Attached,
    /// The host is enrolled.
    Enrolled(Enrolled),
    /// Not so.
    Refused(Failure),
    /// The opening is of a later version.
    Unsupported(String),
}

/// What a session is made of.
#[derive(Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak from now on.
    pub version: Version,
    /// The features that both have.
    pub features: Features,
    /// The session.
    pub session: SessionId,
    /// Its secret, for further connections.
    pub secret: SessionSecret,
    /// TCP port for data connections.
    pub data_port: u16,
    /// Calls that may be under way at once.
    pub calls_max: u32,
    /// The server's pool.
    pub pool: Option<Uuid>,
    /// Name and version of the server's program.
    pub software: String,
    /// The client's name as its certificate has it.
    pub host: String,
    /// How many times objects were removed from the host's repository. While a session lasts nothing is removed; one
    /// that continues another may only rely on what that knew if the count is the same.
    pub removals: u64,
    /// What the server leaves of the client's policy; both sides route by it.
    pub policy: RoutePolicy,
}

/// What enrolment gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The host's name.
    pub host: String,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The server's pool.
    pub pool: Option<Uuid>,
    /// The host's slots there.
    pub slots: Vec<u32>,
}

/// A message on the control connection towards the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromClient {
    /// The call it belongs to.
    pub call: CallId,
    /// What is asked.
    pub request: Request,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Every object of a kind.
    List(ObjectKind),
    /// An object or a part of it.
    Get {
        /// The object.
        name: ObjectName,
        /// The part; `None` for all.
        range: Option<ByteRange>,
        /// The routes, as the client sees them.
        routes: Health,
    },
    /// Announces a body.
    Put {
        /// The object.
        name: ObjectName,
        /// What a pack holds.
        contents: PackContents,
        /// Length of the body.
        bytes: u64,
        /// The route that it will come by.
        route: Route,
    },
    /// Removes an object.
    Remove(ObjectName),
    /// Gives the call up.
    Cancel,
    /// Names the member that this client is in the pool, so that the server writes its challenges for it.
    Meet {
        /// The pool.
        pool: Uuid,
        /// The member's slot.
        slot: u32,
        /// Its incarnation.
        incarnation: u64,
    },
    /// Proves that this client sees the pool.
    Prove {
        /// The member that it is there.
        member: Member,
        /// A proof for each device.
        proofs: Vec<Proof>,
    },
    /// A body for nothing but the way that it takes.
    Probe(Probe),
    /// How the server sees the routes of this session.
    Routes,
    /// Asks for another certificate, for the key of a request, before the host's own expires.
    Renew {
        /// The request, PEM.
        csr_pem: String,
    },
    /// When the objects of a kind arrived: a page of them, in the order of their ids.
    Arrivals {
        /// The kind.
        kind: ObjectKind,
        /// The last one of the page before.
        after: Option<ObjectId>,
    },
    /// A sign of life.
    Ping,
    /// Ends the session.
    Close,
    /// Of a later version.
    Unsupported,
}

/// A message on the control connection towards the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromServer {
    /// The call it belongs to.
    pub call: CallId,
    /// What is answered.
    pub answer: Answer,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A page of a listing.
    Listing {
        /// Its rows.
        entries: Vec<ObjectInfo>,
        /// Whether another page follows.
        more: bool,
    },
    /// The body comes, or is here already.
    Body {
        /// Its length.
        bytes: u64,
        /// How it comes, and why.
        decision: Decision,
    },
    /// Send the body now.
    Ready,
    /// Done, and durable where that applies.
    Done,
    /// Not done.
    Failed(Failure),
    /// The request is of a later version.
    Unsupported(String),
    /// The server's challenges stand on the devices.
    Met {
        /// The epoch under which they were written.
        epoch: u64,
    },
    /// The server's proofs, for the devices that the client has proved, and the storage port to connect to.
    Proved {
        /// A proof for each device.
        proofs: Vec<Proof>,
        /// The dynamic storage port.
        port: u16,
    },
    /// The routes as the server sees them.
    Routes(ServerRoutes),
    /// Another certificate.
    Renewed {
        /// The certificate, PEM.
        certificate_pem: String,
    },
    /// A page of arrivals.
    Arrivals {
        /// Its rows.
        entries: Vec<Arrived>,
        /// Whether another page follows.
        more: bool,
    },
    /// A sign of life.
    Ping,
    /// Of a later version.
    Unknown,
}

/// A message on the events connection, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A sign of life.
    Ping,
    /// Something new stands in the pool.
    Doorbell,
    /// A line for the other side's log.
    Log {
        /// How much it matters.
        level: LogLevel,
        /// The line.
        text: String,
    },
    /// How far something has come.
    Progress {
        /// What.
        what: String,
        /// How much is done.
        done: u64,
        /// Of how much; zero where that isn't known.
        of: u64,
    },
    /// Of a later version.
    Unknown,
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// For the curious.
    Info,
    /// Something to look at.
    Warning,
    /// Something failed.
    Error,
}

impl Opening {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use wire::opening::Kind;
        let kind = match self {
            Self::Hello(hello) => {
                let (maintenance, wal) = purpose_code(hello.session_for);
                Kind::Hello(wire::Hello {
                    version_oldest: hello.versions.oldest.0,
                    version_newest: hello.versions.newest.0,
                    features: hello.features.0,
                    policy: policy_code(hello.policy),
                    software: cut(&hello.software),
                    continues: hello.continues.map(continues_code),
                    maintenance,
                    wal,
                })
            }
            Self::Attach(attach) => Kind::Attach(wire::Attach {
                session: attach.session.0.to_vec(),
                secret: attach.secret.0.to_vec(),
                purpose: match attach.purpose {
                    Purpose::Events => 1,
                    Purpose::Data => 2,
                },
            }),
            Self::Enroll(enroll) => Kind::Enroll(wire::Enroll {
                secret: enroll.secret.clone(),
                csr_pem: enroll.csr_pem.clone(),
            }),
        };
        wire::Opening { kind: Some(kind) }.encode_to_vec()
    }

    /// Reads a message; `None` for one of a later version.
    ///
    /// # Errors
    /// When the bytes are no such message.
    pub fn decode(raw: &[u8]) -> Result<Option<Self>, CodecError> {
        use wire::opening::Kind;
        let Some(kind) = wire::Opening::decode(raw)?.kind else {
            return Ok(None);
        };
        Ok(Some(match kind {
            Kind::Hello(hello) => Self::Hello(Hello {
                versions: VersionRange {
                    oldest: Version(hello.version_oldest),
                    newest: Version(hello.version_newest),
                },
                features: Features(hello.features),
                policy: policy_from(hello.policy)?,
                software: cut(&hello.software),
                continues: hello.continues.map(continues_from).transpose()?,
                session_for: purpose_from((hello.maintenance, hello.wal))?,
            }),
            Kind::Attach(attach) => Self::Attach(Attach {
                session: SessionId(fixed(attach.session, "session")?),
                secret: SessionSecret(fixed(attach.secret, "secret")?),
                purpose: match attach.purpose {
                    1 => Purpose::Events,
                    2 => Purpose::Data,
                    _ => return Ok(None),
                },
            }),
            Kind::Enroll(enroll) => Self::Enroll(Enroll {
                secret: enroll.secret,
                csr_pem: enroll.csr_pem,
            }),
        }))
    }
}

impl Opened {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use wire::opened::Kind;
        let kind = match self {
            Self::Welcome(welcome) => Kind::Welcome(wire::Welcome {
                version: welcome.version.0,
                features: welcome.features.0,
                session: welcome.session.0.to_vec(),
                secret: welcome.secret.0.to_vec(),
                data_port: welcome.data_port.into(),
                calls_max: welcome.calls_max,
                pool: pool_code(welcome.pool),
                software: cut(&welcome.software),
                host: welcome.host.clone(),
                removals: welcome.removals,
                policy: policy_code(welcome.policy),
            }),
            Self::Attached => Kind::Attached(wire::Empty {}),
            Self::Enrolled(enrolled) => Kind::Enrolled(wire::Enrolled {
                host: enrolled.host.clone(),
                certificate_pem: enrolled.certificate_pem.clone(),
                pool: pool_code(enrolled.pool),
                slots: enrolled.slots.clone(),
            }),
            Self::Refused(failure) => Kind::Refused(failure.to_wire()),
            Self::Unsupported(what) => Kind::Unsupported(wire::Unsupported { what: cut(what) }),
        };
        wire::Opened { kind: Some(kind) }.encode_to_vec()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// When the bytes are no such message, or one of a later version: a server never answers with one unasked.
    pub fn decode(raw: &[u8]) -> Result<Self, CodecError> {
        use wire::opened::Kind;
        let kind = wire::Opened::decode(raw)?.kind;
        Ok(
            match kind.ok_or(CodecError::BadField { field: "opened" })? {
                Kind::Welcome(welcome) => Self::Welcome(Welcome {
                    version: Version(welcome.version),
                    features: Features(welcome.features),
                    session: SessionId(fixed(welcome.session, "session")?),
                    secret: SessionSecret(fixed(welcome.secret, "secret")?),
                    data_port: port(welcome.data_port)?,
                    calls_max: welcome.calls_max,
                    pool: pool_from(welcome.pool)?,
                    software: cut(&welcome.software),
                    host: welcome.host,
                    removals: welcome.removals,
                    policy: policy_from(welcome.policy)?,
                }),
                Kind::Attached(wire::Empty {}) => Self::Attached,
                Kind::Enrolled(enrolled) => Self::Enrolled(Enrolled {
                    host: enrolled.host,
                    certificate_pem: enrolled.certificate_pem,
                    pool: pool_from(enrolled.pool)?,
                    slots: enrolled.slots,
                }),
                Kind::Refused(failed) => Self::Refused(Failure::from_wire(failed)),
                Kind::Unsupported(unsupported) => Self::Unsupported(cut(&unsupported.what)),
            },
        )
    }
}

impl FromClient {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use wire::from_client::Kind;
        let kind = match &self.request {
            Request::List(kind) => Some(Kind::List(wire::List {
                kind: kind_code(*kind),
            })),
            Request::Get {
                name,
                range,
                routes,
            } => Some(Kind::Get(wire::Get {
                name: Some(name_code(*name)),
                range: range.map(|range| wire::Range {
                    offset: range.offset,
                    length: range.length,
                }),
                network_down: routes.network.err().map(Reason::code),
                storage_down: routes.storage.err().map(Reason::code),
            })),
            Request::Put {
                name,
                contents,
                bytes,
                route,
            } => Some(Kind::Put(wire::Put {
                name: Some(name_code(*name)),
                contents: match contents {
                    PackContents::Data => 0,
                    PackContents::Trees => 1,
                },
                bytes: *bytes,
                route: route_code(*route),
            })),
            Request::Remove(name) => Some(Kind::Remove(name_code(*name))),
            Request::Cancel => Some(Kind::Cancel(wire::Empty {})),
            Request::Prove { member, proofs } => Some(Kind::Prove(wire::Prove {
                pool: member.pool.as_bytes().to_vec(),
                slot: member.slot,
                incarnation: member.incarnation,
                epoch: member.epoch,
                proofs: proof::to_wire(proofs),
            })),
            Request::Meet {
                pool,
                slot,
                incarnation,
            } => Some(Kind::Meet(wire::Meet {
                pool: pool.as_bytes().to_vec(),
                slot: *slot,
                incarnation: *incarnation,
            })),
            Request::Probe(probe) => Some(Kind::Probe(probe.to_wire())),
            Request::Routes => Some(Kind::Routes(wire::Empty {})),
            Request::Renew { csr_pem } => Some(Kind::Renew(wire::Pem {
                pem: csr_pem.clone(),
            })),
            Request::Arrivals { kind, after } => Some(Kind::Arrivals(wire::Arrivals {
                kind: kind_code(*kind),
                after: after.map(|id| id.0.to_vec()),
            })),
            Request::Ping => Some(Kind::Ping(wire::Empty {})),
            Request::Close => Some(Kind::Close(wire::Empty {})),
            Request::Unsupported => None,
        };
        let call = self.call.0;
        wire::FromClient { call, kind }.encode_to_vec()
    }

    /// Reads a message; one of a later version is [`Request::Unsupported`].
    ///
    /// # Errors
    /// When the bytes are no such message.
    pub fn decode(raw: &[u8]) -> Result<Self, CodecError> {
        use wire::from_client::Kind;
        let message = wire::FromClient::decode(raw)?;
        let request = match message.kind {
            None => Request::Unsupported,
            Some(Kind::List(list)) => {
                kind_from(list.kind).map_or(Request::Unsupported, Request::List)
            }
            Some(Kind::Get(get)) => Request::Get {
                name: name_from(get.name)?,
                range: get.range.map(|range| ByteRange {
                    offset: range.offset,
                    length: range.length,
                }),
                routes: Health {
                    network: health_from(get.network_down),
                    storage: health_from(get.storage_down),
                },
            },
            Some(Kind::Put(put)) => Request::Put {
                name: name_from(put.name)?,
                // What isn't said to be trees counts as data, also where a later version says something else.
                contents: match put.contents {
                    1 => PackContents::Trees,
                    _ => PackContents::Data,
                },
                bytes: put.bytes,
                route: route_from(put.route)?,
            },
            Some(Kind::Remove(name)) => Request::Remove(name_from(Some(name))?),
            Some(Kind::Cancel(wire::Empty {})) => Request::Cancel,
            Some(Kind::Prove(prove)) => Request::Prove {
                member: Member {
                    pool: Uuid::from_bytes(fixed(prove.pool, "pool")?),
                    slot: prove.slot,
                    incarnation: prove.incarnation,
                    epoch: prove.epoch,
                },
                proofs: proof::from_wire(prove.proofs)?,
            },
            Some(Kind::Meet(meet)) => Request::Meet {
                pool: Uuid::from_bytes(fixed(meet.pool, "pool")?),
                slot: meet.slot,
                incarnation: meet.incarnation,
            },
            Some(Kind::Probe(probe)) => {
                Probe::from_wire(&probe)?.map_or(Request::Unsupported, Request::Probe)
            }
            Some(Kind::Routes(wire::Empty {})) => Request::Routes,
            Some(Kind::Renew(request)) => Request::Renew {
                csr_pem: request.pem,
            },
            Some(Kind::Arrivals(asked)) => {
                let id = |after| fixed(after, "id").map(ObjectId);
                let after = asked.after.map(id).transpose()?;
                let of_kind = |kind| Request::Arrivals { kind, after };
                kind_from(asked.kind).map_or(Request::Unsupported, of_kind)
            }
            Some(Kind::Ping(wire::Empty {})) => Request::Ping,
            Some(Kind::Close(wire::Empty {})) => Request::Close,
        };
        let call = CallId(message.call);
        Ok(Self { call, request })
    }
}

impl FromServer {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use wire::from_server::Kind;
        let kind = match &self.answer {
            Answer::Listing { entries, more } => Some(Kind::Listing(wire::Listing {
                entries: entries
                    .iter()
                    .map(|entry| wire::Entry {
                        id: entry.id.0.to_vec(),
                        bytes: entry.bytes,
                    })
                    .collect(),
                more: *more,
            })),
            Answer::Body { bytes, decision } => Some(Kind::Body(wire::Body {
                bytes: *bytes,
                route: route_code(decision.route()),
                reason: decision.reason().map_or(0, Reason::code),
            })),
            Answer::Ready => Some(Kind::Ready(wire::Empty {})),
            Answer::Done => Some(Kind::Done(wire::Empty {})),
            Answer::Failed(failure) => Some(Kind::Failed(failure.to_wire())),
            Answer::Unsupported(what) => {
                Some(Kind::Unsupported(wire::Unsupported { what: cut(what) }))
            }
            Answer::Proved { proofs, port } => Some(Kind::Proved(wire::Proved {
                proofs: proof::to_wire(proofs),
                port: (*port).into(),
            })),
            Answer::Met { epoch } => Some(Kind::Met(wire::Met { epoch: *epoch })),
            Answer::Routes(routes) => Some(Kind::Routes(routes.to_wire())),
            Answer::Renewed { certificate_pem } => Some(Kind::Renewed(wire::Pem {
                pem: certificate_pem.clone(),
            })),
            Answer::Arrivals { entries, more } => Some(Kind::Arrived(arrived_code(entries, *more))),
            Answer::Ping => Some(Kind::Ping(wire::Empty {})),
            Answer::Unknown => None,
        };
        let call = self.call.0;
        wire::FromServer { call, kind }.encode_to_vec()
    }

    /// Reads a message; one of a later version is [`Answer::Unknown`].
    ///
    /// # Errors
    /// When the bytes are no such message.
    pub fn decode(raw: &[u8]) -> Result<Self, CodecError> {
        use wire::from_server::Kind;
        let message = wire::FromServer::decode(raw)?;
        let answer = match message.kind {
            None => Answer::Unknown,
            Some(Kind::Listing(listing)) => Answer::Listing {
                entries: listing
                    .entries
                    .into_iter()
                    .map(|entry| {
                        let id = ObjectId(fixed(entry.id, "id")?);
                        let bytes = entry.bytes;
                        Ok(ObjectInfo { id, bytes })
                    })
                    .collect::<Result<_, CodecError>>()?,
                more: listing.more,
            },
            Some(Kind::Body(body)) => Answer::Body {
                bytes: body.bytes,
                decision: match route_from(body.route)? {
                    Route::Storage => Decision::Storage,
                    Route::Network => Decision::Network(Reason::from_code(body.reason)),
                },
            },
            Some(Kind::Ready(wire::Empty {})) => Answer::Ready,
            Some(Kind::Done(wire::Empty {})) => Answer::Done,
            Some(Kind::Failed(failed)) => Answer::Failed(Failure::from_wire(failed)),
            Some(Kind::Unsupported(unsupported)) => Answer::Unsupported(cut(&unsupported.what)),
            Some(Kind::Proved(proved)) => Answer::Proved {
                proofs: proof::from_wire(proved.proofs)?,
                port: port(proved.port)?,
            },
            Some(Kind::Met(met)) => Answer::Met { epoch: met.epoch },
            Some(Kind::Routes(routes)) => Answer::Routes(ServerRoutes::from_wire(routes)?),
            Some(Kind::Renewed(renewed)) => Answer::Renewed {
                certificate_pem: renewed.pem,
            },
            Some(Kind::Arrived(arrived)) => Answer::Arrivals {
                more: arrived.more,
                entries: arrived_from(arrived)?,
            },
            Some(Kind::Ping(wire::Empty {})) => Answer::Ping,
        };
        let call = CallId(message.call);
        Ok(Self { call, answer })
    }
}

impl Event {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use wire::event::Kind;
        let kind = match self {
            Self::Ping => Some(Kind::Ping(wire::Empty {})),
            Self::Doorbell => Some(Kind::Doorbell(wire::Empty {})),
            Self::Log { level, text } => Some(Kind::Log(wire::Log {
                level: match level {
                    LogLevel::Info => 0,
                    LogLevel::Warning => 1,
                    LogLevel::Error => 2,
                },
                text: cut(text),
            })),
            Self::Progress { what, done, of } => Some(Kind::Progress(wire::Progress {
                what: cut(what),
                done: *done,
                of: *of,
            })),
            Self::Unknown => None,
        };
        wire::Event { kind }.encode_to_vec()
    }

    /// Reads a message; one of a later version is [`Event::Unknown`].
    ///
    /// # Errors
    /// When the bytes are no such message.
    pub fn decode(raw: &[u8]) -> Result<Self, CodecError> {
        use wire::event::Kind;
        Ok(match wire::Event::decode(raw)?.kind {
            None => Self::Unknown,
            Some(Kind::Ping(wire::Empty {})) => Self::Ping,
            Some(Kind::Doorbell(wire::Empty {})) => Self::Doorbell,
            Some(Kind::Log(log)) => Self::Log {
                level: match log.level {
                    0 => LogLevel::Info,
                    1 => LogLevel::Warning,
                    _ => LogLevel::Error,
                },
                text: cut(&log.text),
            },
            Some(Kind::Progress(progress)) => Self::Progress {
                what: cut(&progress.what),
                done: progress.done,
                of: progress.of,
            },
        })
    }
}

#[cfg(test)]
mod tests;
