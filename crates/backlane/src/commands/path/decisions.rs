//! What the router, which jobs ask too, decides about each kind of call.

use super::{Seen, document::CallDocument};
use crate::commands::reasons::ReasonDocument;
use backlane_proto::{
    Call, CallKind, Decision, ObjectKind, Reason, Refusal, Route, RoutePolicy, decide,
    router::{Carried, SMALL_BODY_BYTES_MAX},
};

/// Bodies of a job: what they are called, their size, and what storage has carried before them.
const BODIES: [(&str, u64, u64); 3] = [
    ("small, first in its job", SMALL_BODY_BYTES_MAX, 0),
    (
        "small, after 1 GiB by storage",
        SMALL_BODY_BYTES_MAX,
        1 << 30,
    ),
    LARGE,
];
const LARGE: (&str, u64, u64) = ("large", 16 << 20, 0);

const PUT: CallKind = CallKind::Put(ObjectKind::Pack);
const GET: CallKind = CallKind::Get(ObjectKind::Pack);

/// Every kind of call, and its route.
pub(super) fn calls(policy: RoutePolicy, seen: &Seen) -> Vec<CallDocument> {
    let control = &seen.survey.control;
    let requests = match (&control.network, &control.storage) {
        (Ok(()), _) => (Some(Route::Network), Reason::NoBody),
        (_, Ok(())) => (Some(Route::Storage), Reason::NoBody),
        (Err(down), _) => (None, down.reason),
    };
    let mut calls = vec![CallDocument {
        call: "list",
        body: "",
        bytes: 0,
        route: requests.0.map(|route| route.to_string()),
        reason: Some(ReasonDocument::from(requests.1)),
    }];
    for (call, kind) in [("put", PUT), ("get", GET)] {
        for body in BODIES {
            let (route, reason) = match decided(policy, seen, kind, body) {
                Ok(decision) => (Some(decision.route().to_string()), decision.reason()),
                Err(refusal) => (None, Some(refusal.reason)),
            };
            calls.push(CallDocument {
                call,
                body: body.0,
                bytes: body.1,
                route,
                reason: reason.map(ReasonDocument::from),
            });
        }
    }
    calls
}

/// The whole in one line.
pub(super) fn verdict(policy: RoutePolicy, seen: &Seen) -> String {
    let control = &seen.survey.control;
    if let (Err(network), Err(storage)) = (&control.network, &control.storage) {
        return format!(
            "there is no way to the server: {network}; nor through the pool: {storage}"
        );
    }
    let [put, get] = [PUT, GET].map(|kind| match decided(policy, seen, kind, LARGE) {
        Ok(Decision::Storage) => "storage".to_owned(),
        Ok(Decision::Network(reason)) => format!("the network, because {reason}"),
        Err(refusal) => format!("no route, because {}", refusal.reason),
    });
    match put == get {
        true => format!("bodies take {put}"),
        false => format!("bodies to the server take {put}; those from it take {get}"),
    }
}

/// Whether bodies have a route, in both directions.
pub(super) fn carries(policy: RoutePolicy, seen: &Seen) -> bool {
    let decided = [PUT, GET].map(|kind| decided(policy, seen, kind, LARGE));
    decided.iter().all(Result::is_ok)
}

fn decided(
    policy: RoutePolicy,
    seen: &Seen,
    kind: CallKind,
    (_, bytes, by_storage): (&str, u64, u64),
) -> Result<Decision, Refusal> {
    let health = match kind {
        CallKind::Get(_) => seen.there(),
        _ => seen.here(),
    };
    let carried = Carried {
        network: 0,
        storage: by_storage,
    };
    decide(Call { kind, bytes }, policy, health, carried)
}
