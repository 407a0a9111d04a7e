//! Every message survives its bytes; what is no message is told from what is a later one.

use super::*;
use crate::WalName;
use proptest::prelude::*;

fn any_name() -> impl Strategy<Value = ObjectName> {
    let kind = proptest::sample::select(ObjectKind::ALL.to_vec());
    (kind, any::<[u8; 32]>()).prop_map(|(kind, id)| ObjectName {
        kind,
        id: match kind {
            ObjectKind::Config => ObjectId::NONE,
            ObjectKind::Wal => {
                let name = format!("{:02X}000001.history", id[0]);
                WalName::from_file_name(1, &name).unwrap().id()
            }
            _ => ObjectId(id),
        },
    })
}

fn any_route() -> impl Strategy<Value = Route> {
    prop_oneof![Just(Route::Network), Just(Route::Storage)]
}

fn any_proofs() -> impl Strategy<Value = Vec<Proof>> {
    let proof = (any::<u32>(), any::<[u8; 32]>()).prop_map(|(device, mac)| Proof { device, mac });
    proptest::collection::vec(proof, 0..4)
}

fn any_health() -> impl Strategy<Value = Health> {
    let reason = || proptest::sample::select(Reason::all().collect::<Vec<_>>());
    let route = move || prop_oneof![Just(Ok(())), reason().prop_map(Err)];
    (route(), route()).prop_map(|(network, storage)| Health { network, storage })
}

fn any_request() -> impl Strategy<Value = Request> {
    let range =
        (any::<u64>(), any::<u64>()).prop_map(|(offset, length)| ByteRange { offset, length });
    let contents = prop_oneof![Just(PackContents::Data), Just(PackContents::Trees)];
    let member =
        any::<(u128, u32, u64, u64)>().prop_map(|(pool, slot, incarnation, epoch)| Member {
            pool: Uuid::from_u128(pool),
            slot,
            incarnation,
            epoch,
        });
    prop_oneof![
        proptest::sample::select(ObjectKind::ALL.to_vec()).prop_map(Request::List),
        (any_name(), proptest::option::of(range), any_health()).prop_map(
            |(name, range, routes)| Request::Get {
                name,
                range,
                routes
            }
        ),
        (any_name(), contents, any::<u64>(), any_route()).prop_map(
            |(name, contents, bytes, route)| Request::Put {
                name,
                contents,
                bytes,
                route
            }
        ),
        any_name().prop_map(Request::Remove),
        (any_name(), any::<bool>()).prop_map(|(name, is_first)| Request::Arrivals {
            kind: name.kind,
            after: (!is_first).then_some(name.id),
        }),
        ".{0,20}".prop_map(|csr_pem| Request::Renew { csr_pem }),
        any::<(u128, u32, u64)>().prop_map(|(pool, slot, incarnation)| Request::Meet {
            pool: Uuid::from_u128(pool),
            slot,
            incarnation,
        }),
        (member, any_proofs()).prop_map(|(member, proofs)| Request::Prove { member, proofs }),
        (any::<bool>(), any::<u64>(), any_route()).prop_map(|(up, bytes, route)| {
            let direction = match up {
                true => ProbeDirection::ToServer,
                false => ProbeDirection::ToClient,
            };
            Request::Probe(Probe {
                direction,
                bytes,
                route,
            })
        }),
        proptest::sample::select(vec![
            Request::Cancel,
            Request::Routes,
            Request::Ping,
            Request::Close,
            Request::Unsupported
        ]),
    ]
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let entry = (any::<[u8; 32]>(), any::<u64>()).prop_map(|(id, bytes)| ObjectInfo {
        id: ObjectId(id),
        bytes,
    });
    let arrived = (any::<[u8; 32]>(), any::<i64>()).prop_map(|(id, at_ms)| Arrived {
        id: ObjectId(id),
        at_ms,
    });
    let reason = proptest::sample::select(Reason::all().collect::<Vec<_>>());
    let decision = prop_oneof![
        Just(Decision::Storage),
        reason.clone().prop_map(Decision::Network)
    ];
    let failure =
        (0..14_u32, ".{0,20}", proptest::option::of(reason)).prop_map(|(code, text, reason)| {
            Failure {
                code: ErrorCode::from_code(code),
                text,
                reason,
            }
        });
    prop_oneof![
        (proptest::collection::vec(entry, 0..5), any::<bool>())
            .prop_map(|(entries, more)| Answer::Listing { entries, more }),
        (any::<u64>(), decision).prop_map(|(bytes, decision)| Answer::Body { bytes, decision }),
        failure.prop_map(Answer::Failed),
        ".{0,20}".prop_map(Answer::Unsupported),
        any::<u64>().prop_map(|epoch| Answer::Met { epoch }),
        (any_proofs(), any::<u16>()).prop_map(|(proofs, port)| Answer::Proved { proofs, port }),
        any_server_routes().prop_map(Answer::Routes),
        ".{0,20}".prop_map(|certificate_pem| Answer::Renewed { certificate_pem }),
        (proptest::collection::vec(arrived, 0..5), any::<bool>())
            .prop_map(|(entries, more)| Answer::Arrivals { entries, more }),
        proptest::sample::select(vec![
            Answer::Ready,
            Answer::Done,
            Answer::Ping,
            Answer::Unknown
        ]),
    ]
}

fn any_server_routes() -> impl Strategy<Value = ServerRoutes> {
    let reason = proptest::sample::select(Reason::all().collect::<Vec<_>>());
    let pool = (
        any::<u128>(),
        proptest::option::of((reason, ".{0,20}".prop_map(String::from))),
    );
    let pool = pool.prop_map(|(uuid, down)| PoolStatus {
        uuid: Uuid::from_u128(uuid),
        down,
    });
    (any_health(), proptest::option::of(pool))
        .prop_map(|(health, pool)| ServerRoutes { health, pool })
}

fn hello(session_for: SessionFor) -> Opening {
    Opening::Hello(Hello {
        versions: VersionRange::SPOKEN,
        features: Features(5),
        policy: RoutePolicy::RequireStorage,
        software: "backlane 0.1".into(),
        continues: Some(Continues {
            session: SessionId([7; SESSION_ID_BYTES]),
            secret: SessionSecret([8; SESSION_SECRET_BYTES]),
        }),
        session_for,
    })
}

/// Appends a field that no version knows: number 1000, length-delimited.
fn with_unknown_field(mut raw: Vec<u8>) -> Vec<u8> {
    raw.extend([0xc2, 0x3e, 3, 1, 2, 3]);
    raw
}

proptest! {
    #[test]
    fn requests_survive_the_wire_and_tolerate_unknown_fields(call in any::<u64>(), request in any_request()) {
        let message = FromClient { call: CallId(call), request };
        prop_assert_eq!(FromClient::decode(&message.encode()), Ok(message.clone()));
        prop_assert_eq!(FromClient::decode(&with_unknown_field(message.encode())), Ok(message));
    }

    #[test]
    fn answers_survive_the_wire_and_tolerate_unknown_fields(call in any::<u64>(), answer in any_answer()) {
        let message = FromServer { call: CallId(call), answer };
        prop_assert_eq!(FromServer::decode(&message.encode()), Ok(message.clone()));
        prop_assert_eq!(FromServer::decode(&with_unknown_field(message.encode())), Ok(message));
    }

    #[test]
    fn damaged_messages_are_messages_or_errors(
        request in any_request(), answer in any_answer(), cut in any::<prop::sample::Index>(),
        flip in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let raws = [
            FromClient { call: CallId(9), request }.encode(),
            FromServer { call: CallId(9), answer }.encode(),
            hello(SessionFor::Maintenance).encode(),
        ];
        for mut raw in raws {
            let _ = FromClient::decode(&raw[..cut.index(raw.len())]);
            let _ = FromServer::decode(&raw[..cut.index(raw.len())]);
            let at = flip.index(raw.len());
            raw[at] ^= 1 << bit;
            let _ = (FromClient::decode(&raw), FromServer::decode(&raw), Opening::decode(&raw));
            let _ = (Opened::decode(&raw), Event::decode(&raw));
        }
    }

    #[test]
    fn garbage_is_a_message_or_an_error(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = (FromClient::decode(&raw), FromServer::decode(&raw), Opening::decode(&raw));
        let _ = (Opened::decode(&raw), Event::decode(&raw));
    }
}

#[test]
fn openings_survive_the_wire() {
    let openings = [
        hello(SessionFor::Jobs),
        hello(SessionFor::Maintenance),
        hello(SessionFor::Wal),
        Opening::Attach(Attach {
            session: SessionId([1; 16]),
            secret: SessionSecret([2; 32]),
            purpose: Purpose::Data,
        }),
        Opening::Enroll(Enroll {
            secret: "s".into(),
            csr_pem: "c".into(),
        }),
    ];
    for opening in openings {
        assert_eq!(Opening::decode(&opening.encode()), Ok(Some(opening)));
    }
    assert_eq!(Opening::decode(&with_unknown_field(Vec::new())), Ok(None));
}

#[test]
fn wal_under_no_name_of_wal_is_no_message() {
    let get = |id| FromClient {
        call: CallId(1),
        request: Request::Remove(ObjectName {
            kind: ObjectKind::Wal,
            id,
        }),
    };
    let name = WalName::from_file_name(7, "00000002.history").unwrap();
    assert!(FromClient::decode(&get(name.id()).encode()).is_ok());
    let bad = Err(CodecError::BadField { field: "id" });
    assert_eq!(FromClient::decode(&get(ObjectId([1; 32])).encode()), bad);
}

#[test]
fn openings_are_answered() {
    let answers = [
        Opened::Welcome(Welcome {
            version: Version(1),
            features: Features(0),
            session: SessionId([1; 16]),
            secret: SessionSecret([2; 32]),
            data_port: 4000,
            calls_max: 3,
            pool: Some(Uuid::from_u128(77)),
            software: "backlane".into(),
            host: "db1".into(),
            removals: 12,
            policy: RoutePolicy::RequireStorage,
        }),
        Opened::Attached,
        Opened::Enrolled(Enrolled {
            host: "db1".into(),
            certificate_pem: "pem".into(),
            pool: None,
            slots: vec![4, 5],
        }),
        Opened::Unsupported("x".into()),
    ];
    for answer in answers {
        assert_eq!(Opened::decode(&answer.encode()), Ok(answer));
    }
}

#[test]
fn a_full_page_fits_a_message() {
    let id = ObjectId([255; 32]);
    let (bytes, at_ms, more) = (u64::MAX, i64::MIN, true);
    let listing = Answer::Listing {
        entries: vec![ObjectInfo { id, bytes }; LISTING_PAGE_ENTRIES],
        more,
    };
    let arrivals = Answer::Arrivals {
        entries: vec![Arrived { id, at_ms }; LISTING_PAGE_ENTRIES],
        more,
    };
    for answer in [listing, arrivals] {
        let call = CallId(u64::MAX);
        let raw = FromServer { call, answer }.encode();
        assert!(
            raw.len() <= crate::codec::MESSAGE_BYTES_MAX,
            "{}",
            raw.len()
        );
    }
}

#[test]
fn events_survive_the_wire() {
    let events = [
        Event::Ping,
        Event::Doorbell,
        Event::Log {
            level: LogLevel::Warning,
            text: "ü".repeat(5),
        },
        Event::Progress {
            what: "check".into(),
            done: 3,
            of: 9,
        },
        Event::Unknown,
    ];
    for event in events {
        assert_eq!(Event::decode(&event.encode()), Ok(event));
    }
}
