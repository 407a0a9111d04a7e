//! The server's pool: its coordinator, the proofs of members, and the data pairs through it.
//!
//! A member is bound to a session when it has proved, device by device, that it reads what the server wrote for it and
//! wrote what the server reads, and the server allows its slot to the session's host. Each session has a dynamic port
//! of its own for its data pair, sealed with a secret that only the two ends of the session's TLS know. A pool that is
//! lost is claimed again, under another epoch, for as long as the server runs.

use super::{Core, ServerPool, connection, link::run_pair, session::Session};
use crate::{
    Error, RouteDown,
    carrier::Carrier,
    framed::CHUNKS_QUEUED_MAX,
    pool::{
        Challenges, STORAGE_STEP_WAIT, Turn, data_options, designated_options, designated_port,
        greet, leave, pool_failed, prove, proved, stream_failed,
    },
    service::Service,
};
use backlane_proto::{
    Answer, CallId, Event, PoolStatus, Reason, Route, ServerRoutes,
    message::LogLevel,
    proof::{Member, Proof, Side},
};
use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use storage_socket::{
    Doorbell, EngineKind, Incoming, ListenProtection, Listener, Pool, PoolOptions, Port, Role,
    SlotIndex, Timeouts,
};
use tokio::{
    io::AsyncReadExt,
    sync::{Notify, Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use uuid::Uuid;

/// The pool, while the server runs.
pub(super) struct Storage {
    choice: ServerPool,
    pool: Mutex<Result<Pool, RouteDown>>,
    uuid: Uuid,
    allowed: Mutex<BTreeSet<SlotIndex>>,
    bells: Arc<Bells>,
    /// How many pairs there have been.
    pairs: AtomicU64,
}

/// Which session rings for which slot.
type Bells = Mutex<HashMap<SlotIndex, Bell>>;

/// What rings for a slot, until a later proof of the same slot brings another.
struct Bell {
    doorbell: Weak<Notify>,
    /// Where the member is asked for a sign of life.
    asker: mpsc::WeakSender<Event>,
    pair: u64,
}

/// A member that a session names as its own, and what the server wrote for it.
pub(super) struct Met {
    slot: SlotIndex,
    incarnation: u64,
    challenges: Challenges,
    /// That the client has not proved it is in the log.
    noted: bool,
}

/// How often the slots of enrolled hosts are read.
const ALLOW_EVERY: Duration = Duration::from_secs(5);
/// Streams on the designated port that a slot may have at once; each is small.
const DESIGNATED_STREAMS_MAX: usize = 4;
/// Streams there that may be between their first byte and the end of their first exchange.
const HANDSHAKES_MAX: usize = 32;

impl Storage {
    /// Opens and claims the pool.
    pub(super) async fn open(
        mut choice: ServerPool,
        service: &dyn Service,
    ) -> Result<Arc<Self>, Error> {
        let bells = Arc::new(Bells::default());
        let slots = service.all_slots().await;
        let slots = slots.map_err(|error| Error::Pool {
            why: error.to_string(),
        })?;
        let allowed: BTreeSet<_> = slots.into_iter().map(SlotIndex).collect();
        let pool = claim(choice.clone(), allowed.clone(), &bells).await;
        let pool = pool.map_err(|why| Error::Pool { why })?;
        let uuid = pool.uuid();
        choice.uuid = Some(uuid);
        Ok(Arc::new(Self {
            choice,
            uuid,
            pool: Mutex::new(Ok(pool)),
            allowed: Mutex::new(allowed),
            bells,
            pairs: AtomicU64::new(0),
        }))
    }

    pub(super) fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// What does the I/O, until the server leaves the pool.
    pub(super) fn engine(&self) -> Option<EngineKind> {
        lock(&self.pool).as_ref().ok().map(|pool| pool.engine().0)
    }

    /// The pool, and whether it can be used now.
    pub(super) fn status(&self) -> PoolStatus {
        PoolStatus {
            uuid: self.uuid,
            down: self.pool().err().map(|down| (down.reason, down.detail)),
        }
    }

    fn pool(&self) -> Result<Pool, RouteDown> {
        lock(&self.pool).clone()
    }

    /// Serves the designated storage port for as long as the server runs, and claims the pool again when it is lost.
    pub(super) async fn keep(self: Arc<Self>, core: Weak<Core>) {
        while let Ok(pool) = self.pool() {
            let timeouts = pool.timeouts();
            let down = tokio::select! {
                down = serve_designated(&pool, &core) => match down {
                    Some(down) => down,
                    None => return,
                },
                () = self.keep_allowing(&core) => return,
            };
            let reason = down.reason.name();
            tracing::error!(pool = %self.uuid, reason, %down, "the pool is lost: it is claimed again as soon as it can be");
            *lock(&self.pool) = Err(down);
            // Its driver has ended, or does now: the lock of this host is free after that.
            close(pool).await;
            let mut pause = timeouts.route_leave;
            loop {
                sleep(pause).await;
                pause = (pause * 2).min(timeouts.dead);
                let allowed = lock(&self.allowed).clone();
                match claim(self.choice.clone(), allowed, &self.bells).await {
                    Ok(pool) => {
                        self.taken_back(pool);
                        break;
                    }
                    Err(why) => tracing::warn!(pool = %self.uuid, why, "the pool can't be claimed"),
                }
            }
        }
    }

    fn taken_back(&self, pool: Pool) {
        tracing::info!(pool = %self.uuid, "the pool is taken back");
        // Sessions may have brought other slots while it was claimed.
        let allowed = lock(&self.allowed);
        pool.allow(allowed.clone());
        *lock(&self.pool) = Ok(pool);
    }

    /// Serves the slots of hosts that are enrolled by another process.
    async fn keep_allowing(&self, core: &Weak<Core>) {
        loop {
            sleep(ALLOW_EVERY).await;
            let Some(core) = core.upgrade() else {
                return;
            };
            match core.service.all_slots().await {
                Ok(slots) => self.allow_only(&slots),
                Err(error) => tracing::warn!(%error, "the slots of enrolled hosts can't be read"),
            }
        }
    }

    /// From now on the coordinator serves these slots, and no other.
    fn allow_only(&self, slots: &[u32]) {
        let mut allowed = lock(&self.allowed);
        let now = slots.iter().copied().map(SlotIndex).collect();
        if *allowed != now
            && let Ok(pool) = self.pool()
        {
            allowed.clone_from(&now);
            pool.allow(now);
        }
    }

    /// From now on the coordinator serves a host's slots.
    pub(super) fn allow(&self, slots: &[u32]) {
        let mut allowed = lock(&self.allowed);
        let before = allowed.len();
        allowed.extend(slots.iter().copied().map(SlotIndex));
        if allowed.len() > before
            && let Ok(pool) = self.pool()
        {
            pool.allow(allowed.clone());
        }
    }

    /// Notes which member a session says it is, and writes challenges for it.
    pub(super) async fn meet(
        &self,
        core: &Core,
        session: &Session,
        member: (Uuid, u32, u64),
    ) -> Result<Answer, RouteDown> {
        let (pool, slot, incarnation) = member;
        if pool != self.uuid {
            return Err(RouteDown::new(Reason::OtherPool, self.uuid));
        }
        let slots = core.service.slots(&session.host).await;
        let slots = slots.map_err(|error| RouteDown::new(Reason::SlotRefused, error))?;
        if !slots.contains(&slot) {
            let text = format!("slot {slot}, host {}", session.host);
            return Err(RouteDown::new(Reason::SlotRefused, text));
        }
        let slot = SlotIndex(slot);
        let pool = self.pool()?;
        let challenges = pool.challenges_async(slot).await;
        let challenges = challenges.map_err(|error| pool_failed(&error))?;
        *lock(&session.met) = Some(Met {
            slot,
            incarnation,
            challenges,
            noted: false,
        });
        Ok(Answer::Met {
            epoch: pool.writer(),
        })
    }

    /// Binds a member of the pool to a session, once both sides have proved that they see the same devices.
    pub(super) async fn prove(
        self: &Arc<Self>,
        session: &Arc<Session>,
        member: Member,
        proofs: Vec<Proof>,
    ) -> Result<Answer, RouteDown> {
        let pool = self.pool()?;
        let own = {
            let met = lock(&session.met);
            let met = met.as_ref().filter(|met| {
                met.slot.0 == member.slot
                    && met.incarnation == member.incarnation
                    && member.pool == self.uuid
                    && member.epoch == pool.writer()
            });
            let met = met.ok_or_else(|| RouteDown::new(Reason::SlotRefused, "another member"))?;
            met.challenges.clone()
        };
        let slot = SlotIndex(member.slot);
        let seen = pool.peer_challenges_async(slot).await;
        let seen = seen.map_err(|error| pool_failed(&error))?;
        let theirs = if seen.writer == Some(member.incarnation) {
            seen.challenges
        } else {
            Vec::new()
        };
        let key = &session.proof_key;
        let devices = proved(key, Side::Client, member, (&theirs, &own), &proofs);
        if devices.is_empty() {
            let down = RouteDown::new(Reason::ChallengeNotSeen, "");
            // The client may look again, fifty times a second.
            if let Some(met) = lock(&session.met).as_mut()
                && !std::mem::replace(&mut met.noted, true)
            {
                let (host, reason) = (&session.host, down.reason.name());
                tracing::info!(%host, %slot, route = %Route::Storage, reason, "not proved yet");
            }
            return Err(down);
        }
        let mut answer = prove(key, Side::Server, member, &theirs, &own);
        answer.retain(|proof| devices.contains(&proof.device));
        // A member proves itself once; its next session has other challenges.
        *lock(&session.met) = None;
        let listener = Listener::bind_async(&pool, Port(0), ListenProtection::Sealed).await;
        let listener = listener.map_err(|error| stream_failed(&error))?;
        let port = listener.port().0;
        let pair = self.pairs.fetch_add(1, Ordering::Relaxed);
        let bell = Bell {
            doorbell: Arc::downgrade(&session.doorbell),
            asker: session.asker(),
            pair,
        };
        lock(&self.bells).insert(slot, bell);
        session.ring_for(&pool, slot);
        tokio::spawn(data_pair(
            Arc::clone(self),
            Arc::clone(session),
            listener,
            (member, pair),
        ));
        let proofs = answer;
        Ok(Answer::Proved { proofs, port })
    }

    /// Leaves the pool, and waits for it.
    pub(super) async fn close(&self) {
        if let Some(pool) = self.take() {
            close(pool).await;
        }
    }

    fn take(&self) -> Option<Pool> {
        let down = RouteDown::new(Reason::CoordinatorBusy, "the server is shutting down");
        std::mem::replace(&mut *lock(&self.pool), Err(down)).ok()
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(pool) = self.take() {
            leave(pool);
        }
    }
}

/// Opens and claims a pool; says why it can't be had.
async fn claim(
    choice: ServerPool,
    slots: BTreeSet<SlotIndex>,
    bells: &Arc<Bells>,
) -> Result<Pool, String> {
    let host = crate::identity::SERVER_NAME;
    let mut options = PoolOptions::new(Role::Coordinator { slots }, host, &choice.lock_dir);
    options.expected = choice.uuid;
    options.engine = choice.engine;
    let to_ring = Arc::clone(bells);
    options.doorbell = Some(Arc::new(move |slot| {
        let bell = lock(&to_ring)
            .get(&slot)
            .and_then(|bell| bell.doorbell.upgrade());
        if let Some(bell) = bell {
            bell.notify_one();
        }
    }));
    let to_ask = Arc::clone(bells);
    options.suspicion = Some(Arc::new(move |slot| {
        let asker = lock(&to_ask)
            .get(&slot)
            .and_then(|bell| bell.asker.upgrade());
        // One that has no room for a question is being told other things, and answers none of them: its words are
        // waited for.
        if let Some(asker) = asker {
            drop(asker.try_send(Event::Ping));
        }
    }));
    let opening = tokio::task::spawn_blocking(move || {
        let pool = Pool::open(&choice.devices, options)?;
        // An owner on another host that is silent has to be dead first; where it may serve on devices that aren't seen
        // here, its members are listened to for half as long again. Then a claim waits for its time-out; twice that is a
        // pool that can't be had.
        let Timeouts { dead, claim, .. } = pool.timeouts();
        pool.wait_ready(dead * 3 / 2 + claim * 2 + STORAGE_STEP_WAIT)?;
        Ok(pool)
    });
    let opened: Result<Pool, storage_socket::Error> =
        opening.await.map_err(|error| error.to_string())?;
    opened.map_err(|error| error.to_string())
}

/// Answers on the designated storage port until the pool is lost, and says why it is; or until the server stops, and
/// what was said on that port has come to its end.
async fn serve_designated(pool: &Pool, core: &Weak<Core>) -> Option<RouteDown> {
    let protection = ListenProtection::Checksum;
    let listener = match Listener::bind_async(pool, designated_port(), protection).await {
        Ok(listener) => listener,
        Err(error) => return Some(stream_failed(&error)),
    };
    let mut stopping = core.upgrade()?.stopping.subscribe();
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut streams: HashMap<SlotIndex, usize> = HashMap::new();
    let mut kept = JoinSet::new();
    loop {
        tokio::select! {
            incoming = listener.accept_async() => match incoming {
                Ok(incoming) => {
                    let slot = incoming.slot();
                    let open = streams.entry(slot).or_default();
                    if *open < DESIGNATED_STREAMS_MAX {
                        *open += 1;
                        let work = designated(incoming, core.clone(), Arc::clone(&handshakes));
                        kept.spawn(async move {
                            work.await;
                            slot
                        });
                    } else {
                        incoming.refuse();
                    }
                }
                Err(error) => return Some(stream_failed(&error)),
            },
            Some(ended) = kept.join_next(), if !kept.is_empty() => {
                // One that panicked is counted for good, which is its own bug.
                if let Ok(slot) = ended
                    && let Some(open) = streams.get_mut(&slot)
                {
                    *open -= 1;
                }
            }
            _ = stopping.wait_for(|stopping| *stopping) => break,
        }
    }
    while kept.join_next().await.is_some() {}
    None
}

/// Leaves a pool, and waits for it.
async fn close(pool: Pool) {
    // A panic in there was the driver's, and is in the log.
    let _ = tokio::task::spawn_blocking(move || pool.close()).await;
}

/// Keeps a member's stream on the designated port until something is said there, and serves it as the designated port
/// of the network is served.
async fn designated(incoming: Incoming, core: Weak<Core>, handshakes: Arc<Semaphore>) {
    let slot = incoming.slot();
    let mut stream = match incoming.accept_async(designated_options()).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%slot, %error, "a connection to the designated storage port ended");
            return;
        }
    };
    let Some(mut stopping) = core.upgrade().map(|core| core.stopping.subscribe()) else {
        return;
    };
    let mut first = [0];
    let said = tokio::select! {
        said = stream.read(&mut first) => said,
        _ = stopping.wait_for(|stopping| *stopping) => return,
    };
    if !matches!(said, Ok(1..)) {
        // The member has let go of it.
        return;
    }
    let (from, to) = stream.into_split();
    let whole = tokio::io::join(io::Cursor::new(first).chain(from), to);
    // The semaphore is never closed.
    if let (Some(core), Ok(permit)) = (core.upgrade(), handshakes.acquire_owned().await) {
        let peer = format!("slot {slot} of the pool").into();
        let carrier = (Box::new(whole) as Carrier, Route::Storage);
        connection::serve(core, carrier, peer, super::Port::Designated, permit).await;
    }
}

/// Accepts the data pair of a session and carries bodies until it ends.
async fn data_pair(
    storage: Arc<Storage>,
    session: Arc<Session>,
    listener: Listener,
    (member, pair): (Member, u64),
) {
    let down = tokio::select! {
        down = carry(&session, listener, member) => down,
        () = session.ended() => RouteDown::new(Reason::StreamReset, "the session ended"),
    };
    session.log(LogLevel::Info, format!("storage: {down}"));
    let slot = SlotIndex(member.slot);
    {
        // A later pair of the same slot may have the bell by now.
        let mut bells = lock(&storage.bells);
        if bells.get(&slot).is_some_and(|bell| bell.pair == pair) {
            bells.remove(&slot);
            session.ring_no_more(slot);
            if let Ok(pool) = storage.pool() {
                pool.set_doorbell(slot, Doorbell::Absent);
            }
        }
    }
    let (host, route, reason) = (&session.host, Route::Storage, down.reason.name());
    tracing::info!(%host, %slot, %route, reason, %down, "storage pair ended");
    let (health, pool) = (session.health(), Some(storage.status()));
    if !session.is_over() && health.storage.is_err() {
        // Where this side alone has lost the device, the client would wait for bodies that are on their way for ever.
        let routes = Answer::Routes(ServerRoutes { health, pool });
        session.answer(CallId::SESSION, routes).await;
    }
}

async fn carry(session: &Session, listener: Listener, member: Member) -> RouteDown {
    match accept(session, &listener, member).await {
        Ok(down) => {
            session.route_down(Route::Storage, &down);
            down
        }
        Err(down) => {
            session.route_failed(Route::Storage, &down);
            down
        }
    }
}

/// Accepts the pair and carries bodies; fails where the route did not come up.
async fn accept(
    session: &Session,
    listener: &Listener,
    member: Member,
) -> Result<RouteDown, RouteDown> {
    let accepting = async {
        loop {
            let incoming = listener.accept_async().await?;
            if incoming.slot().0 == member.slot && incoming.incarnation().0 == member.incarnation {
                return incoming.accept_async(data_options(&session.seal_key)).await;
            }
            tracing::warn!(slot = %incoming.slot(), "a member asked for another's storage port");
            incoming.refuse();
        }
    };
    let accepted = timeout(STORAGE_STEP_WAIT, accepting).await;
    let late = |_| RouteDown::new(Reason::NoAnswer, "the data pair was not asked for");
    let stream = accepted.map_err(late)?;
    let stream = stream.map_err(|error| stream_failed(&error))?;
    let gauge = stream.gauge();
    let (mut from, mut to) = stream.into_split();
    let (sender, chunks) = mpsc::channel(CHUNKS_QUEUED_MAX);
    // Up before the client learns of it from the greeting.
    if !session.route_up(Route::Storage, sender) {
        return Err(RouteDown::new(
            Reason::StreamReset,
            "the session has one already",
        ));
    }
    session.meter.watch(gauge);
    let greeted = greet(Turn::Second, session.id, &mut from, &mut to).await;
    if let Err(error) = greeted {
        return Ok(stream_failed(&error));
    }
    let (host, route) = (&session.host, Route::Storage);
    tracing::info!(%host, slot = member.slot, %route, "storage pair begins");
    Ok(run_pair(session, Route::Storage, from, to, chunks).await)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can be left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
