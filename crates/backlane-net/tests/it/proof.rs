//! The proofs over the pool, given by a member that a test plays by hand.

use crate::{
    hostile::Peer,
    service::name_of,
    storage::{Files, world},
    world::in_time,
};
use aws_lc_rs::hmac;
use backlane_proto::{
    Answer, CallId, Decision, Health, ObjectKind, PackContents, Reason, Request, RoutePolicy,
    message::SessionId,
    proof::{Member, Proof, Seen, Side, transcript},
};
use bytes::Bytes;
use std::time::Duration;
use storage_socket::{
    Identity, Pool, PoolOptions, Port, Protection, Role, SlotIndex, Stream, StreamOptions,
    StreamSecret,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

const SLOT: SlotIndex = SlotIndex(1);

/// A member with all that it takes to prove itself on device 0.
struct Prover {
    peer: Peer,
    pool: Pool,
    key: [u8; 32],
    seal: [u8; 32],
    session: SessionId,
    member: Member,
    own: [u8; 32],
    theirs: Vec<[u8; 32]>,
    calls: u64,
}

impl Prover {
    /// Joins the pool, begins a session, and meets the server.
    async fn new(files: &Files, mut peer: Peer) -> Self {
        let welcome = peer.welcomed(RoutePolicy::RequireStorage).await;
        let mut key = [0; 32];
        let tls = peer.0.get_ref().1;
        let label = b"EXPORTER-backlane-pool-proof";
        tls.export_keying_material(&mut key, label, Some(&welcome.session.0))
            .unwrap();
        let mut seal = [0; 32];
        let label = b"EXPORTER-backlane-storage-seal";
        tls.export_keying_material(&mut seal, label, Some(&welcome.session.0))
            .unwrap();
        let slots = vec![SLOT];
        let options = PoolOptions::new(Role::Member { slots }, "db1", files.dir.path());
        let pool = Pool::open(&files.devices, options).unwrap();
        let Identity::Member(_, incarnation) = pool.identity() else {
            panic!("no member");
        };
        let member = Member {
            pool: files.uuid,
            slot: SLOT.0,
            incarnation: incarnation.0,
            epoch: 0,
        };
        let mut prover = Self {
            peer,
            pool,
            key,
            seal,
            session: welcome.session,
            member,
            own: [0; 32],
            theirs: Vec::new(),
            calls: 0,
        };
        let other_pool = prover.meet(Uuid::from_u128(1), SLOT.0).await;
        assert_eq!(reason(&other_pool), Some(Reason::OtherPool));
        let other_slot = prover.meet(files.uuid, 9).await;
        assert_eq!(reason(&other_slot), Some(Reason::SlotRefused));
        let Answer::Met { epoch } = prover.meet(files.uuid, SLOT.0).await else {
            panic!("not met");
        };
        prover.member.epoch = epoch;
        prover.own = prover.pool.challenges_async(SLOT).await.unwrap()[0].unwrap();
        prover.theirs = in_time("the server's challenges", prover.read_theirs()).await;
        prover
    }

    async fn read_theirs(&self) -> Vec<[u8; 32]> {
        loop {
            let seen = self.pool.peer_challenges_async(SLOT).await.unwrap();
            let all: Option<Vec<_>> = seen.challenges.into_iter().collect();
            if let Some(all) = all.filter(|_| seen.writer == Some(self.member.epoch)) {
                return all;
            }
        }
    }

    async fn ask(&mut self, request: Request) -> Answer {
        self.calls += 1;
        self.peer.ask(self.calls, request).await;
        self.peer.answer().await.1
    }

    async fn meet(&mut self, pool: Uuid, slot: u32) -> Answer {
        let incarnation = self.member.incarnation;
        let meet = Request::Meet {
            pool,
            slot,
            incarnation,
        };
        self.ask(meet).await
    }

    /// Proofs for both devices; with the challenge of device 0 for both, only the first can hold.
    fn proofs(&self, key: [u8; 32], side: Side, own: [u8; 32]) -> Vec<Proof> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let seen = self.theirs.iter().zip(0..).map(|(server, device)| Seen {
            device,
            client: own,
            server: *server,
        });
        seen.map(|seen| {
            let tag = hmac::sign(&key, &transcript(side, self.member, seen));
            Proof {
                device: seen.device,
                mac: tag.as_ref().try_into().unwrap(),
            }
        })
        .collect()
    }

    async fn prove(&mut self, member: Member, proofs: Vec<Proof>) -> Answer {
        self.ask(Request::Prove { member, proofs }).await
    }

    /// Meets again and proves again, for another pair.
    async fn prove_again(&mut self) -> u16 {
        let met = self.meet(self.member.pool, SLOT.0).await;
        assert!(matches!(met, Answer::Met { .. }), "{met:?}");
        self.own = self.pool.challenges_async(SLOT).await.unwrap()[0].unwrap();
        loop {
            self.theirs = self.read_theirs().await;
            let proofs = self.proofs(self.key, Side::Client, self.own);
            if let Answer::Proved { port, .. } = self.prove(self.member, proofs).await {
                return port;
            }
        }
    }

    /// Opens a data pair and greets.
    async fn pair(&self, port: u16) -> Stream {
        let secret = StreamSecret::new(self.seal);
        let options = StreamOptions::new(Protection::Aes256Gcm(secret));
        let patience = Duration::from_secs(20);
        let pair = Stream::connect_async(&self.pool, Port(port), options, patience).await;
        let mut pair = pair.unwrap();
        pair.write_all(&self.session.0).await.unwrap();
        pair.flush().await.unwrap();
        pair
    }

    async fn prove_until_seen(&mut self) -> (Vec<Proof>, u16) {
        loop {
            let proofs = self.proofs(self.key, Side::Client, self.own);
            if let Answer::Proved { proofs, port } = self.prove(self.member, proofs).await {
                return (proofs, port);
            }
        }
    }
}

fn reason(answer: &Answer) -> Option<Reason> {
    match answer {
        Answer::Failed(failure) => failure.reason,
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_pair_is_refused_and_the_first_stays() {
    let files = Files::new(2);
    let world = world(&files).await;
    let body = Bytes::from_static(b"body");
    let name = name_of(ObjectKind::Pack, &body);
    let store = world.service.store("db1");
    let object = (PackContents::Data, body);
    store.objects.lock().unwrap().insert(name, object);
    let mut prover = Prover::new(&files, Peer::host(&world, "db1").await).await;
    let (_, port) = in_time("the proof", prover.prove_until_seen()).await;
    let mut first = prover.pair(port).await;
    let mut greeting = [0; 16];
    in_time("the greeting", first.read_exact(&mut greeting))
        .await
        .unwrap();
    assert_eq!(greeting, prover.session.0);

    let port = in_time("the second proof", prover.prove_again()).await;
    let mut second = prover.pair(port).await;
    let refused = in_time("the refusal", second.read(&mut greeting)).await;
    assert!(!matches!(refused, Ok(1..)), "{refused:?}");
    let get = Request::Get {
        name,
        range: None,
        routes: Health::WELL,
    };
    let body = prover.ask(get).await;
    let decision = Decision::Storage;
    assert_eq!(body, Answer::Body { bytes: 4, decision });
    // Header and payload of its one chunk.
    let mut chunk = [0; 20];
    in_time("the body", first.read_exact(&mut chunk))
        .await
        .unwrap();
    assert_eq!(&chunk[16..], b"body");
    drop((first, second));
    let pool = prover.pool.clone();
    tokio::task::spawn_blocking(move || pool.close())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_says_unasked_that_its_end_of_the_pair_is_gone() {
    let files = Files::new(2);
    let world = world(&files).await;
    let mut prover = Prover::new(&files, Peer::host(&world, "db1").await).await;
    let (_, port) = in_time("the proof", prover.prove_until_seen()).await;
    let mut pair = prover.pair(port).await;
    in_time("the greeting", pair.read_exact(&mut [0; 16]))
        .await
        .unwrap();
    drop(pair);
    let (call, answer) = prover.peer.answer().await;
    assert_eq!(call, CallId::SESSION);
    assert!(
        matches!(&answer, Answer::Routes(routes) if routes.health.storage == Err(Reason::StreamReset)),
        "{answer:?}"
    );
    let pool = prover.pool.clone();
    tokio::task::spawn_blocking(move || pool.close())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_member_that_proves_itself_gets_a_port() {
    let files = Files::new(2);
    let world = world(&files).await;
    let mut prover = Prover::new(&files, Peer::host(&world, "db1").await).await;
    let (member, key, own) = (prover.member, prover.key, prover.own);
    let good = prover.proofs(key, Side::Client, own);
    let attempts = [
        (
            member,
            prover.proofs([0; 32], Side::Client, own),
            Reason::ChallengeNotSeen,
        ),
        (
            member,
            prover.proofs(key, Side::Server, own),
            Reason::ChallengeNotSeen,
        ),
        (
            member,
            prover.proofs(key, Side::Client, [0; 32]),
            Reason::ChallengeNotSeen,
        ),
        (member, vec![], Reason::ChallengeNotSeen),
        (
            Member { slot: 2, ..member },
            good.clone(),
            Reason::SlotRefused,
        ),
        (
            Member {
                epoch: member.epoch ^ 1,
                ..member
            },
            good,
            Reason::SlotRefused,
        ),
    ];
    for (member, proofs, want) in attempts {
        let answer = prover.prove(member, proofs).await;
        assert_eq!(reason(&answer), Some(want));
    }
    // What was written a moment ago may not be seen at once.
    let (proofs, port) = in_time("the proof", prover.prove_until_seen()).await;
    assert_eq!(
        proofs.iter().map(|proof| proof.device).collect::<Vec<_>>(),
        [0]
    );
    assert!(port >= 1024);
    // Once is enough.
    let again = prover.proofs(key, Side::Client, own);
    let again = prover.prove(member, again).await;
    assert_eq!(reason(&again), Some(Reason::SlotRefused));
    let pool = prover.pool.clone();
    tokio::task::spawn_blocking(move || pool.close())
        .await
        .unwrap();
}
