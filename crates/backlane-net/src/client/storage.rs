//! The storage route of a client's session: the pool, the proof that both sides see it, and the data pair through it.
//!
//! The pool is opened, and its designated port asked for, beside the network; what needs the session follows. An
//! attempt that fails leaves its reason in the routes and is made again after a while, as long as the session lasts.

use super::{
    PoolChoice, RouteDown, call,
    connect::{Keys, tell_when},
    link::run_pair,
    shared::Shared,
};
use crate::{
    Error,
    pauses::Pauses,
    pool::{
        Challenges, STORAGE_STEP_WAIT, Turn, data_options, designated_options, designated_port,
        greet, is_time_to_vouch, leave, pool_failed, prove, proved, stream_failed,
    },
};
use backlane_proto::{
    Answer, Reason, Request, Route,
    message::SessionId,
    proof::{Member, Side},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use storage_socket::{
    Doorbell, EngineKind, Identity, Pool, PoolOptions, Port, Role, SlotIndex, Stream,
};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::{Instant, sleep},
};
use uuid::Uuid;

/// Pause before challenges that were not seen are looked for again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How long a thread waits for a coordinator at a time.
const READY_STEP_WAIT: Duration = Duration::from_millis(250);

/// What brings the storage route up.
pub(super) struct Starter {
    choice: Option<PoolChoice>,
    host: String,
    doorbell: Arc<Notify>,
    suspicion: Arc<Notify>,
    hand: Arc<Hand>,
    first: Option<JoinHandle<Result<Joined, RouteDown>>>,
}

/// The pool while the session has it; whoever takes it out leaves it.
#[derive(Default)]
pub(super) struct Hand {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    pool: Option<(Pool, SlotIndex)>,
    /// The server has proved itself behind this pool.
    bound: bool,
    /// The events connection stands.
    attached: bool,
    /// When the driver was last told that the server lives.
    vouched: Option<Instant>,
    /// The session wants no pool any more; one that is still being opened is left at once.
    retired: bool,
}

/// A pool that was joined.
struct Joined {
    pool: Pool,
    slot: SlotIndex,
    incarnation: u64,
    /// Asks for the stream on the designated port, which stays for as long as the route is tried or used. Nobody answers
    /// a slot that the coordinator doesn't know, so the session doesn't wait for it before it has named the slot.
    designated: JoinHandle<Result<Stream, RouteDown>>,
}

impl Starter {
    /// Begins to open the pool, where there is one to open.
    pub(super) fn begin(choice: Option<PoolChoice>, host: &str) -> Self {
        let doorbell = Arc::new(Notify::new());
        let hand = Arc::new(Hand::default());
        let mut starter = Self {
            choice,
            host: host.to_owned(),
            doorbell,
            suspicion: Arc::new(Notify::new()),
            hand,
            first: None,
        };
        starter.first = starter.joining();
        starter
    }

    /// Rung when the pool has news for the server.
    pub(super) fn doorbell(&self) -> Arc<Notify> {
        Arc::clone(&self.doorbell)
    }

    /// Rung when the server shows no sign of life on storage.
    pub(super) fn suspicion(&self) -> Arc<Notify> {
        Arc::clone(&self.suspicion)
    }

    pub(super) fn hand(&self) -> Arc<Hand> {
        Arc::clone(&self.hand)
    }

    fn joining(&self) -> Option<JoinHandle<Result<Joined, RouteDown>>> {
        let choice = self.choice.clone()?;
        let work = join(
            choice,
            self.host.clone(),
            [Arc::clone(&self.doorbell), Arc::clone(&self.suspicion)],
            Arc::clone(&self.hand),
        );
        Some(tokio::spawn(work))
    }

    /// Brings the route up and keeps it; tells `tried` when the first attempt has come to an end.
    pub(super) async fn run(
        mut self,
        shared: Arc<Shared>,
        session: SessionId,
        server_pool: Option<Uuid>,
        keys: Keys,
        tried: oneshot::Sender<()>,
    ) {
        let mut tried = Some(tried);
        let mut pauses = Pauses::new();
        loop {
            let Some(joining) = self.first.take().or_else(|| self.joining()) else {
                shared.route_down(Route::Storage, &RouteDown::new(Reason::NoPool, ""));
                return;
            };
            let Some(server_pool) = server_pool else {
                let down = RouteDown::new(Reason::ServerHasNoPool, &shared.server);
                shared.route_down(Route::Storage, &down);
                joining.abort();
                if let Some(pool) = self.hand.retire() {
                    leave(pool);
                }
                return;
            };
            let attempt = async {
                let joined = joining
                    .await
                    .map_err(|error| RouteDown::new(Reason::PoolNotFound, error))??;
                self.bind(&shared, session, server_pool, &keys, joined, &mut tried)
                    .await
            };
            let down = match attempt.await {
                Ok(down) | Err(down) => down,
            };
            if shared.is_ending() {
                // The end of the session, which is not the route's failure. Whoever closes it leaves the pool, and
                // waits for that: a process that ended meanwhile would leave the server waiting for its streams.
                return;
            }
            tracing::warn!(server = %shared.server, reason = down.reason.name(), %down, "storage is not used");
            shared.route_down(Route::Storage, &down);
            // Whoever waited may have gone on without storage.
            if let Some(tried) = tried.take() {
                let _ = tried.send(());
            }
            self.hand.leave();
            pauses.pause().await;
        }
    }

    /// Proves the pool, connects the data pair, and carries bodies until it ends.
    async fn bind(
        &self,
        shared: &Arc<Shared>,
        session: SessionId,
        server_pool: Uuid,
        keys: &Keys,
        joined: Joined,
        tried: &mut Option<oneshot::Sender<()>>,
    ) -> Result<RouteDown, RouteDown> {
        if joined.pool.uuid() != server_pool {
            let text = format!("here {}, at the server {server_pool}", joined.pool.uuid());
            return Err(RouteDown::new(Reason::OtherPool, text));
        }
        let (member, port) = self.meet(shared, keys, &joined).await?;
        let asked = joined.designated.await;
        let asked = asked.map_err(|error| RouteDown::new(Reason::PoolNotFound, error))?;
        let _designated = match asked {
            // The server knew nothing of this slot before the session named its host.
            Err(down) if down.reason == Reason::SlotRefused => designated(&joined.pool).await?,
            asked => asked?,
        };
        let options = data_options(&keys.seal);
        let stream = Stream::connect_async(&joined.pool, port, options, STORAGE_STEP_WAIT);
        let stream = stream.await.map_err(|error| stream_failed(&error))?;
        let (mut from, mut to) = stream.into_split();
        let greeted = greet(Turn::First, session, &mut from, &mut to).await;
        greeted.map_err(|error| stream_failed(&error))?;
        self.hand.bind();
        tracing::info!(
            server = %shared.server, slot = member.slot, devices = joined.pool.device_count(), "storage is used"
        );
        let (ready, up) = oneshot::channel();
        let pair = run_pair(Arc::clone(shared), Route::Storage, from, to, ready);
        let (down, ()) = tokio::join!(pair, tell_when(up, tried));
        Ok(down)
    }

    /// Both sides prove to each other that they see the same devices.
    async fn meet(
        &self,
        shared: &Arc<Shared>,
        keys: &Keys,
        joined: &Joined,
    ) -> Result<(Member, Port), RouteDown> {
        let (pool, slot) = (&joined.pool, joined.slot);
        let own = pool.challenges_async(slot).await;
        let own = own.map_err(|error| pool_failed(&error))?;
        let meet = Request::Meet {
            pool: pool.uuid(),
            slot: slot.0,
            incarnation: joined.incarnation,
        };
        let Answer::Met { epoch } = call::ask(shared, meet).await.map_err(refused)? else {
            return Err(RouteDown::new(Reason::Unsupported, &shared.server));
        };
        let member = Member {
            pool: pool.uuid(),
            slot: slot.0,
            incarnation: joined.incarnation,
            epoch,
        };
        // What the other side wrote a moment ago may not be seen yet, here or there.
        let deadline = Instant::now() + STORAGE_STEP_WAIT;
        loop {
            let seen = pool.peer_challenges_async(slot).await;
            let seen = seen.map_err(|error| pool_failed(&error))?;
            let theirs = if seen.writer == Some(epoch) {
                seen.challenges
            } else {
                Vec::new()
            };
            match self.exchange(shared, keys, member, &own, &theirs).await {
                Err(down)
                    if down.reason == Reason::ChallengeNotSeen && Instant::now() < deadline =>
                {
                    sleep(LOOK_AGAIN_AFTER).await;
                }
                done => return done.map(|port| (member, port)),
            }
        }
    }

    async fn exchange(
        &self,
        shared: &Arc<Shared>,
        keys: &Keys,
        member: Member,
        own: &Challenges,
        theirs: &Challenges,
    ) -> Result<Port, RouteDown> {
        let proofs = prove(&keys.proof, Side::Client, member, own, theirs);
        if proofs.is_empty() {
            return Err(RouteDown::new(Reason::ChallengeNotSeen, "the server's"));
        }
        let prove = Request::Prove { member, proofs };
        let Answer::Proved { proofs, port } = call::ask(shared, prove).await.map_err(refused)?
        else {
            return Err(RouteDown::new(Reason::Unsupported, &shared.server));
        };
        let devices = proved(&keys.proof, Side::Server, member, (own, theirs), &proofs);
        if devices.is_empty() {
            return Err(RouteDown::new(Reason::ChallengeNotSeen, "by the server"));
        }
        Ok(Port(port))
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        if let Some(joining) = &self.first {
            joining.abort();
        }
    }
}

impl Hand {
    fn hold(&self, pool: &Pool, slot: SlotIndex) {
        let mut held = self.lock();
        let unwanted = if held.retired {
            Some(pool.clone())
        } else {
            held.bound = false;
            held.pool
                .replace((pool.clone(), slot))
                .map(|(before, _)| before)
        };
        drop(held);
        if let Some(pool) = unwanted {
            leave(pool);
        }
    }

    /// The data pair through the pool is open.
    fn bind(&self) {
        let mut held = self.lock();
        held.bound = true;
        held.tell();
    }

    /// The events connection came or went. Without it the pool must look by itself.
    pub(super) fn set_attached(&self, attached: bool) {
        let mut held = self.lock();
        held.attached = attached;
        held.tell();
    }

    /// Leaves the pool in the background.
    pub(super) fn leave(&self) {
        if let Some(pool) = self.take() {
            leave(pool);
        }
    }

    fn take(&self) -> Option<Pool> {
        self.lock().pool.take().map(|(pool, _)| pool)
    }

    /// Takes the pool out for good: one that is still being opened is left as soon as it is.
    pub(super) fn retire(&self) -> Option<Pool> {
        let mut held = self.lock();
        held.retired = true;
        held.pool.take().map(|(pool, _)| pool)
    }

    /// What does the pool's I/O.
    pub(super) fn engine(&self) -> Option<EngineKind> {
        self.lock().pool.as_ref().map(|(pool, _)| pool.engine().0)
    }

    /// The server was heard of over the network.
    pub(super) fn heard(&self, rang: bool) {
        let mut held = self.lock();
        let vouches = held.bound && is_time_to_vouch(&mut held.vouched);
        if let Some((pool, slot)) = &held.pool {
            if rang {
                pool.rang(*slot);
            }
            if vouches {
                pool.vouch(*slot);
            }
        }
    }

    /// Whether the server that proved itself behind the pool shows signs of life there.
    pub(super) async fn is_server_alive(&self) -> bool {
        let pool = {
            let held = self.lock();
            held.pool.clone().filter(|_| held.bound)
        };
        match pool {
            Some((pool, slot)) => pool.is_peer_alive_async(slot).await.unwrap_or(false),
            None => false,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn tell(&self) {
        if let Some((pool, slot)) = self.pool.as_ref().filter(|_| self.bound) {
            let doorbell = match self.attached {
                true => Doorbell::Present,
                false => Doorbell::Absent,
            };
            pool.set_doorbell(*slot, doorbell);
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Opens the pool and asks for its designated port.
async fn join(
    choice: PoolChoice,
    host: String,
    [doorbell, suspicion]: [Arc<Notify>; 2],
    hand: Arc<Hand>,
) -> Result<Joined, RouteDown> {
    let slots = choice.slots.iter().copied().map(SlotIndex).collect();
    let mut options = PoolOptions::new(Role::Member { slots }, &host, &choice.lock_dir);
    options.expected = choice.uuid;
    options.engine = choice.engine;
    options.doorbell = Some(Arc::new(move |_| doorbell.notify_one()));
    options.suspicion = Some(Arc::new(move |_| suspicion.notify_one()));
    let opening = tokio::task::spawn_blocking(move || {
        let pool = Pool::open(&choice.devices, options)?;
        let Identity::Member(slot, incarnation) = pool.identity() else {
            return Err(storage_socket::Error::WrongRole {
                role: "coordinator",
                what: "be a member",
            });
        };
        hand.hold(&pool, slot);
        Ok((pool, slot, incarnation.0))
    });
    let opened = opening
        .await
        .map_err(|error| RouteDown::new(Reason::PoolNotFound, error))?;
    let (pool, slot, incarnation) = opened.map_err(|error| pool_failed(&error))?;
    ready(&pool).await?;
    let asking = pool.clone();
    Ok(Joined {
        pool,
        slot,
        incarnation,
        designated: tokio::spawn(async move { designated(&asking).await }),
    })
}

/// Waits for a coordinator, in steps: a thread that waits must not hold up the end of the process for long.
async fn ready(pool: &Pool) -> Result<(), RouteDown> {
    let deadline = Instant::now() + STORAGE_STEP_WAIT;
    loop {
        let waiting = pool.clone();
        let step = tokio::task::spawn_blocking(move || waiting.wait_ready(READY_STEP_WAIT)).await;
        match step.map_err(|error| RouteDown::new(Reason::PoolNotFound, error))? {
            Ok(()) => return Ok(()),
            Err(error @ storage_socket::Error::TimedOut { .. }) => {
                if Instant::now() >= deadline {
                    return Err(RouteDown::new(Reason::CoordinatorBusy, error));
                }
            }
            Err(error) => return Err(pool_failed(&error)),
        }
    }
}

async fn designated(pool: &Pool) -> Result<Stream, RouteDown> {
    let port = designated_port();
    let stream = Stream::connect_async(pool, port, designated_options(), STORAGE_STEP_WAIT);
    stream.await.map_err(|error| stream_failed(&error))
}

/// What the server's refusal of a storage request means for the route.
fn refused(error: Error) -> RouteDown {
    match error {
        Error::NoRoute { reason, detail, .. } => RouteDown { reason, detail },
        error => RouteDown::new(Reason::NoAnswer, error),
    }
}
