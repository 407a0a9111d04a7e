//! Parts of messages and what stands for them on the wire: numbers for kinds, bytes of fixed length, text that fits.

use super::{Continues, SessionId, SessionSecret, TEXT_BYTES_MAX};
use crate::{
    Arrived, CodecError, ObjectId, ObjectKind, ObjectName, Reason, Route, RoutePolicy, SessionFor,
    WalName, wire,
};
use uuid::Uuid;

/// Cuts text to what a message may carry, at a character's end.
pub(super) fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

pub(super) fn fixed<const N: usize>(
    bytes: Vec<u8>,
    field: &'static str,
) -> Result<[u8; N], CodecError> {
    bytes.try_into().map_err(|_| CodecError::BadField { field })
}

pub(super) fn port(port: u32) -> Result<u16, CodecError> {
    u16::try_from(port).map_err(|_| CodecError::BadField { field: "port" })
}

pub(super) fn pool_code(pool: Option<Uuid>) -> Vec<u8> {
    pool.map_or_else(Vec::new, |pool| pool.as_bytes().to_vec())
}

pub(super) fn pool_from(raw: Vec<u8>) -> Result<Option<Uuid>, CodecError> {
    if raw.is_empty() {
        return Ok(None);
    }
    Ok(Some(Uuid::from_bytes(fixed(raw, "pool")?)))
}

pub(super) fn continues_code(before: Continues) -> wire::Continues {
    wire::Continues {
        session: before.session.0.to_vec(),
        secret: before.secret.0.to_vec(),
    }
}

pub(super) fn continues_from(raw: wire::Continues) -> Result<Continues, CodecError> {
    Ok(Continues {
        session: SessionId(fixed(raw.session, "session")?),
        secret: SessionSecret(fixed(raw.secret, "secret")?),
    })
}

pub(super) fn policy_code(policy: RoutePolicy) -> u32 {
    match policy {
        RoutePolicy::PreferStorage => 1,
        RoutePolicy::RequireStorage => 2,
        RoutePolicy::Network => 3,
        RoutePolicy::StorageOnly => 4,
    }
}

pub(super) fn policy_from(code: u32) -> Result<RoutePolicy, CodecError> {
    match code {
        1 => Ok(RoutePolicy::PreferStorage),
        2 => Ok(RoutePolicy::RequireStorage),
        3 => Ok(RoutePolicy::Network),
        4 => Ok(RoutePolicy::StorageOnly),
        _ => Err(CodecError::BadField { field: "policy" }),
    }
}

/// What a session is for, as the two flags that stand for it.
pub(super) fn purpose_code(session_for: SessionFor) -> (bool, bool) {
    match session_for {
        SessionFor::Jobs => (false, false),
        SessionFor::Maintenance => (true, false),
        SessionFor::Wal => (false, true),
    }
}

pub(super) fn purpose_from(flags: (bool, bool)) -> Result<SessionFor, CodecError> {
    match flags {
        (false, false) => Ok(SessionFor::Jobs),
        (true, false) => Ok(SessionFor::Maintenance),
        (false, true) => Ok(SessionFor::Wal),
        (true, true) => Err(CodecError::BadField { field: "wal" }),
    }
}

pub(super) fn route_code(route: Route) -> u32 {
    match route {
        Route::Network => 1,
        Route::Storage => 2,
    }
}

/// A route as it was told: down for a reason, or up.
pub(super) fn health_from(down: Option<u32>) -> Result<(), Reason> {
    down.map_or(Ok(()), |code| Err(Reason::from_code(code)))
}

pub(super) fn route_from(code: u32) -> Result<Route, CodecError> {
    match code {
        1 => Ok(Route::Network),
        2 => Ok(Route::Storage),
        _ => Err(CodecError::BadField { field: "route" }),
    }
}

pub(super) fn kind_code(kind: ObjectKind) -> u32 {
    match kind {
        ObjectKind::Config => 1,
        ObjectKind::Key => 2,
        ObjectKind::Index => 3,
        ObjectKind::Snapshot => 4,
        ObjectKind::Pack => 5,
        ObjectKind::Wal => 6,
    }
}

pub(super) fn kind_from(code: u32) -> Option<ObjectKind> {
    ObjectKind::ALL
        .into_iter()
        .find(|kind| kind_code(*kind) == code)
}

pub(super) fn name_code(name: ObjectName) -> wire::Name {
    wire::Name {
        kind: kind_code(name.kind),
        id: name.id.0.to_vec(),
    }
}

pub(super) fn name_from(name: Option<wire::Name>) -> Result<ObjectName, CodecError> {
    let name = name.ok_or(CodecError::BadField { field: "name" })?;
    let kind = kind_from(name.kind).ok_or(CodecError::BadField { field: "kind" })?;
    let id = ObjectId(fixed(name.id, "id")?);
    let is_name = match kind {
        ObjectKind::Config => id == ObjectId::NONE,
        ObjectKind::Wal => WalName::from_id(id).is_some(),
        _ => true,
    };
    match is_name {
        true => Ok(ObjectName { kind, id }),
        false => Err(CodecError::BadField { field: "id" }),
    }
}

pub(super) fn arrived_code(entries: &[Arrived], more: bool) -> wire::Arrived {
    let entry = |entry: &Arrived| wire::Arrival {
        id: entry.id.0.to_vec(),
        at_ms: entry.at_ms,
    };
    let entries = entries.iter().map(entry).collect();
    wire::Arrived { entries, more }
}

pub(super) fn arrived_from(arrived: wire::Arrived) -> Result<Vec<Arrived>, CodecError> {
    let entry = |entry: wire::Arrival| {
        let id = ObjectId(fixed(entry.id, "id")?);
        let at_ms = entry.at_ms;
        Ok(Arrived { id, at_ms })
    };
    arrived.entries.into_iter().map(entry).collect()
}
