//! The messages as they stand on the wire, for prost; the typed forms are in [`crate::message`].
//!
//! A field number is never used twice, also after its field is gone. Fields that a reader doesn't know are skipped; a
//! `oneof` of which a reader knows no member arrives as `None` and is answered as unsupported.

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Opening {
    #[prost(oneof = "opening::Kind", tags = "1, 2, 3")]
    pub(crate) kind: Option<opening::Kind>,
}

pub(crate) mod opening {
    #[derive(Clone, PartialEq, super::Oneof)]
    pub(crate) enum Kind {
        #[prost(message, tag = "1")]
        Hello(super::Hello),
        #[prost(message, tag = "2")]
        Attach(super::Attach),
        #[prost(message, tag = "3")]
        Enroll(super::Enroll),
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) version_oldest: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) version_newest: u32,
    #[prost(uint64, tag = "3")]
    pub(crate) features: u64,
    #[prost(uint32, tag = "4")]
    pub(crate) policy: u32,
    #[prost(string, tag = "5")]
    pub(crate) software: String,
    #[prost(message, optional, tag = "6")]
    pub(crate) continues: Option<Continues>,
    #[prost(bool, tag = "7")]
    pub(crate) maintenance: bool,
    #[prost(bool, tag = "8")]
    pub(crate) wal: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Continues {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) session: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) secret: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Attach {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) session: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) secret: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub(crate) purpose: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Enroll {
    #[prost(string, tag = "1")]
    pub(crate) secret: String,
    #[prost(string, tag = "2")]
    pub(crate) csr_pem: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Opened {
    #[prost(oneof = "opened::Kind", tags = "1, 2, 3, 4, 5")]
    pub(crate) kind: Option<opened::Kind>,
}

pub(crate) mod opened {
    #[derive(Clone, PartialEq, super::Oneof)]
    pub(crate) enum Kind {
        #[prost(message, tag = "1")]
        Welcome(super::Welcome),
        #[prost(message, tag = "2")]
        Attached(super::Empty),
        #[prost(message, tag = "3")]
        Enrolled(super::Enrolled),
        #[prost(message, tag = "4")]
        Refused(super::Failed),
        #[prost(message, tag = "5")]
        Unsupported(super::Unsupported),
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Welcome {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) features: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) session: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) secret: Vec<u8>,
    #[prost(uint32, tag = "5")]
    pub(crate) data_port: u32,
    #[prost(uint32, tag = "6")]
    pub(crate) calls_max: u32,
    #[prost(bytes = "vec", tag = "7")]
    pub(crate) pool: Vec<u8>,
    #[prost(string, tag = "8")]
    pub(crate) software: String,
    #[prost(string, tag = "9")]
    pub(crate) host: String,
    #[prost(uint64, tag = "10")]
    pub(crate) removals: u64,
    #[prost(uint32, tag = "11")]
    pub(crate) policy: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Enrolled {
    #[prost(string, tag = "1")]
    pub(crate) host: String,
    #[prost(string, tag = "2")]
    pub(crate) certificate_pem: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) pool: Vec<u8>,
    #[prost(uint32, repeated, tag = "4")]
    pub(crate) slots: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Failed {
    #[prost(uint32, tag = "1")]
    pub(crate) code: u32,
    #[prost(string, tag = "2")]
    pub(crate) text: String,
    #[prost(uint32, optional, tag = "3")]
    pub(crate) reason: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Unsupported {
    #[prost(string, tag = "1")]
    pub(crate) what: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct FromClient {
    #[prost(uint64, tag = "1")]
    pub(crate) call: u64,
    #[prost(
        oneof = "from_client::Kind",
        tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14"
    )]
    pub(crate) kind: Option<from_client::Kind>,
}

pub(crate) mod from_client {
    #[derive(Clone, PartialEq, super::Oneof)]
    pub(crate) enum Kind {
        #[prost(message, tag = "2")]
        List(super::List),
        #[prost(message, tag = "3")]
        Get(super::Get),
        #[prost(message, tag = "4")]
        Put(super::Put),
        #[prost(message, tag = "5")]
        Remove(super::Name),
        #[prost(message, tag = "6")]
        Cancel(super::Empty),
        #[prost(message, tag = "7")]
        Prove(super::Prove),
        #[prost(message, tag = "8")]
        Ping(super::Empty),
        #[prost(message, tag = "9")]
        Close(super::Empty),
        #[prost(message, tag = "10")]
        Meet(super::Meet),
        #[prost(message, tag = "11")]
        Probe(super::Probe),
        #[prost(message, tag = "12")]
        Routes(super::Empty),
        #[prost(message, tag = "13")]
        Renew(super::Pem),
        #[prost(message, tag = "14")]
        Arrivals(super::Arrivals),
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Name {
    #[prost(uint32, tag = "1")]
    pub(crate) kind: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct List {
    #[prost(uint32, tag = "1")]
    pub(crate) kind: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Get {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<Name>,
    #[prost(message, optional, tag = "2")]
    pub(crate) range: Option<Range>,
    #[prost(uint32, optional, tag = "3")]
    pub(crate) network_down: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub(crate) storage_down: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Range {
    #[prost(uint64, tag = "1")]
    pub(crate) offset: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) length: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Put {
    #[prost(message, optional, tag = "1")]
    pub(crate) name: Option<Name>,
    #[prost(uint32, tag = "2")]
    pub(crate) contents: u32,
    #[prost(uint64, tag = "3")]
    pub(crate) bytes: u64,
    #[prost(uint32, tag = "4")]
    pub(crate) route: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Meet {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) pool: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(crate) slot: u32,
    #[prost(fixed64, tag = "3")]
    pub(crate) incarnation: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Met {
    #[prost(fixed64, tag = "1")]
    pub(crate) epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Probe {
    #[prost(uint32, tag = "1")]
    pub(crate) direction: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) bytes: u64,
    #[prost(uint32, tag = "3")]
    pub(crate) route: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Routes {
    #[prost(uint32, optional, tag = "1")]
    pub(crate) network_down: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub(crate) storage_down: Option<u32>,
    #[prost(message, optional, tag = "3")]
    pub(crate) pool: Option<PoolStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PoolStatus {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) uuid: Vec<u8>,
    #[prost(uint32, optional, tag = "2")]
    pub(crate) down: Option<u32>,
    #[prost(string, tag = "3")]
    pub(crate) detail: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Prove {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) pool: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(crate) slot: u32,
    #[prost(fixed64, tag = "3")]
    pub(crate) incarnation: u64,
    #[prost(fixed64, tag = "4")]
    pub(crate) epoch: u64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) proofs: Vec<Proof>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Proof {
    #[prost(uint32, tag = "1")]
    pub(crate) device: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) mac: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct FromServer {
    #[prost(uint64, tag = "1")]
    pub(crate) call: u64,
    #[prost(
        oneof = "from_server::Kind",
        tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13"
    )]
    pub(crate) kind: Option<from_server::Kind>,
}

pub(crate) mod from_server {
    #[derive(Clone, PartialEq, super::Oneof)]
    pub(crate) enum Kind {
        #[prost(message, tag = "2")]
        Listing(super::Listing),
        #[prost(message, tag = "3")]
        Body(super::Body),
        #[prost(message, tag = "4")]
        Ready(super::Empty),
        #[prost(message, tag = "5")]
        Done(super::Empty),
        #[prost(message, tag = "6")]
        Failed(super::Failed),
        #[prost(message, tag = "7")]
        Unsupported(super::Unsupported),
        #[prost(message, tag = "8")]
        Proved(super::Proved),
        #[prost(message, tag = "9")]
        Ping(super::Empty),
        #[prost(message, tag = "10")]
        Met(super::Met),
        #[prost(message, tag = "11")]
        Routes(super::Routes),
        #[prost(message, tag = "12")]
        Renewed(super::Pem),
        #[prost(message, tag = "13")]
        Arrived(super::Arrived),
    }
}

/// A certificate, or the request for one.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Pem {
    #[prost(string, tag = "1")]
    pub(crate) pem: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Listing {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Entry>,
    #[prost(bool, tag = "2")]
    pub(crate) more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Entry {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub(crate) bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Arrivals {
    #[prost(uint32, tag = "1")]
    pub(crate) kind: u32,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) after: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Arrived {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Arrival>,
    #[prost(bool, tag = "2")]
    pub(crate) more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Arrival {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) id: Vec<u8>,
    #[prost(sint64, tag = "2")]
    pub(crate) at_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Body {
    #[prost(uint64, tag = "1")]
    pub(crate) bytes: u64,
    #[prost(uint32, tag = "2")]
    pub(crate) route: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) reason: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Proved {
    #[prost(message, repeated, tag = "1")]
    pub(crate) proofs: Vec<Proof>,
    #[prost(uint32, tag = "2")]
    pub(crate) port: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Event {
    #[prost(oneof = "event::Kind", tags = "1, 2, 3, 4")]
    pub(crate) kind: Option<event::Kind>,
}

pub(crate) mod event {
    #[derive(Clone, PartialEq, super::Oneof)]
    pub(crate) enum Kind {
        #[prost(message, tag = "1")]
        Ping(super::Empty),
        #[prost(message, tag = "2")]
        Doorbell(super::Empty),
        #[prost(message, tag = "3")]
        Log(super::Log),
        #[prost(message, tag = "4")]
        Progress(super::Progress),
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Log {
    #[prost(uint32, tag = "1")]
    pub(crate) level: u32,
    #[prost(string, tag = "2")]
    pub(crate) text: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Progress {
    #[prost(string, tag = "1")]
    pub(crate) what: String,
    #[prost(uint64, tag = "2")]
    pub(crate) done: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) of: u64,
}
