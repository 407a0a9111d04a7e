//! The storage route of a client's session: the pool, the proof that both sides see it, and the data pair through it.
//!
//! The pool is opened, and its designated port asked for, beside the network, and kept over all lines to the server that
//! a session has; what needs the line follows. An attempt that fails leaves its reason in the routes and is made again
//! after a while, as long as the session lasts.

use super::{
    PoolChoice, PoolUse, RouteDown, call,
    line::{Keys, tell_when},
    link::run_pair,
    shared::Shared,
};
use crate::{
    Error,
    carrier::Carrier,
    pauses::Pauses,
    pool::{
        Challenges, STORAGE_STEP_WAIT, Turn, data_options, designated_options, designated_port,
        greet, is_time_to_vouch, leave, pool_failed, prove, proved, stream_failed,
    },
};
use backlane_proto::{
    Answer, Reason, Refusal, Request, Route, RoutePolicy,
    message::SessionId,
    proof::{Member, Side},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use storage_socket::{Doorbell, Identity, Pool, PoolOptions, Port, Role, SlotIndex, Stream};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep},
};
use uuid::Uuid;

/// Pause before challenges that were not seen are looked for again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Pause before storage is tried again on a pool that isn't left.
const BIND_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How long a client waits at most that can open the pool while the server can't, and how often.
const EARLY_PAUSE: Duration = Duration::from_secs(4);
const EARLY_MAX: u32 = 8;

/// How long a thread waits for a coordinator at a time.
const READY_STEP_WAIT: Duration = Duration::from_millis(250);

/// Keeps the pool joined for as long as a session lasts, and says how that stands.
pub(super) struct Keeper {
    choice: PoolChoice,
    host: String,
    hand: Arc<Hand>,
}

/// The pool while the session has it; whoever takes it out leaves it.
pub(super) struct Hand {
    held: Mutex<Held>,
    /// How joining it stands.
    membership: watch::Sender<Membership>,
    /// A stream on the designated port that nothing is said on yet: requests go there when the network is lost.
    standing: tokio::sync::Mutex<Option<Stream>>,
    /// Somebody would like to have the pool now.
    wanted: Notify,
    /// Rung when the pool has news for the server.
    pub(super) doorbell: Notify,
    /// Rung when the server shows no sign of life on storage.
    pub(super) suspicion: Notify,
}

#[derive(Default)]
struct Held {
    pool: Option<(Pool, SlotIndex)>,
    /// The server has proved itself behind this pool.
    bound: bool,
    /// A data pair was open since the pool was joined.
    used: bool,
    /// The events connection stands.
    attached: bool,
    /// When the driver was last told that the server lives.
    vouched: Option<Instant>,
    /// The session wants no pool any more; one that is still being opened is left at once.
    retired: bool,
}

/// Whether this host is a member of the pool.
#[derive(Clone)]
pub(super) enum Membership {
    /// It will be, or nothing is known yet.
    Pending,
    /// It is not, and is tried again.
    Absent(RouteDown),
    /// It is.
    Joined(Joined),
}

/// A pool that was joined.
#[derive(Clone)]
pub(super) struct Joined {
    pub(super) pool: Pool,
    slot: SlotIndex,
    incarnation: u64,
}

impl Keeper {
    pub(super) fn new(choice: PoolChoice, host: &str, hand: &Arc<Hand>) -> Self {
        Self {
            choice,
            host: host.to_owned(),
            hand: Arc::clone(hand),
        }
    }

    /// Joins the pool, and again whenever it was left.
    pub(super) async fn run(self) {
        let mut pauses = Pauses::new();
        // How often the devices were there, and the server wasn't ready.
        let mut early = 0;
        let mut membership = self.hand.membership.subscribe();
        while self.hand.is_there() {
            let joined = join(self.choice.clone(), self.host.clone(), &self.hand).await;
            match joined {
                Ok(joined) => {
                    self.hand.is_joined(joined.clone());
                    // The sender lives in the hand.
                    let left = |now: &Membership| !matches!(now, Membership::Joined(_));
                    let left = async { drop(membership.wait_for(left).await) };
                    // That none stands matters to whoever needs one, who asks again.
                    let (_, ()) = tokio::join!(self.hand.stand(&joined), left);
                    early = if self.hand.was_used() { 0 } else { early + 1 };
                }
                Err(down) => {
                    self.hand.leave(Membership::Absent(down));
                    early = 0;
                }
            }
            // Devices that were lost to both sides return to both, and whoever comes second needn't wait for long.
            let most = match early {
                1..=EARLY_MAX => EARLY_PAUSE,
                _ => Duration::MAX,
            };
            tokio::select! {
                () = pauses.pause_at_most(most) => {}
                () = self.hand.wanted.notified() => {}
            }
        }
    }
}

/// Does something by a stream on the designated port of a pool, as nobody's session.
pub(crate) async fn through_pool<T>(
    choice: PoolChoice,
    host: &str,
    work: impl AsyncFnOnce(Carrier) -> Result<T, Error>,
) -> Result<T, Error> {
    let hand = Hand::new(true);
    let joined = join(choice, host.to_owned(), &hand).await;
    let work = async {
        let stream = match joined {
            Ok(joined) => designated(&joined.pool).await,
            Err(down) => Err(down),
        };
        let stream = stream.map_err(|down| {
            let (policy, reason) = (RoutePolicy::StorageOnly, down.reason);
            Error::no_route(Refusal { policy, reason }, down.detail)
        })?;
        work(Box::new(stream)).await
    };
    let done = work.await;
    if let Some(pool) = hand.retire() {
        // Waits for the driver; a panic there is its own bug and was logged.
        let _ = tokio::task::spawn_blocking(move || pool.close()).await;
    }
    done
}

/// What a line to the server brings along for storage.
pub(super) struct Terms {
    pub(super) session: SessionId,
    pub(super) server_pool: Option<Uuid>,
    pub(super) keys: Keys,
    /// Requests take the pool as well.
    pub(super) carries_control: bool,
}

/// Brings the storage route up for one line to the server, and keeps it; tells `tried` when the first attempt has come
/// to an end.
pub(super) async fn keep(shared: Arc<Shared>, terms: Terms, tried: Option<oneshot::Sender<()>>) {
    let mut tried = tried;
    let hand = Arc::clone(&shared.pool);
    let never = if !shared.policy.allows(Route::Storage) {
        Some(RouteDown::new(Reason::Policy, shared.policy))
    } else if !hand.is_there() {
        Some(RouteDown::new(Reason::NoPool, ""))
    } else if terms.server_pool.is_none() {
        Some(RouteDown::new(Reason::ServerHasNoPool, &shared.server))
    } else {
        None
    };
    if let Some(down) = never {
        // Nothing has failed: this is how it was set up.
        let reason = down.reason.name();
        tracing::info!(server = %shared.server, route = %Route::Storage, reason, %down, "storage is not used");
        shared.route_down(Route::Storage, &down);
        if let Some(pool) = hand.retire() {
            leave(pool);
        }
        return;
    }
    loop {
        let joined = hand.joined().await;
        let down = match &joined {
            Ok(joined) => match terms.bind(&shared, joined, &mut tried).await {
                Ok(down) | Err(down) => down,
            },
            Err(down) => down.clone(),
        };
        if shared.is_ending() {
            // The end of the session, which is not the route's failure. Whoever closes it leaves the pool, and
            // waits for that: a process that ended meanwhile would leave the server waiting for its streams.
            return;
        }
        let reason = down.reason.name();
        tracing::warn!(server = %shared.server, route = %Route::Storage, reason, %down, "storage is not used");
        shared.route_down(Route::Storage, &down);
        // Whoever waited may have gone on without storage.
        if let Some(tried) = tried.take() {
            let _ = tried.send(());
        }
        match joined {
            // The keeper goes on trying.
            Err(_) => {}
            // What carries the requests is not let go of.
            Ok(_) if terms.carries_control && hand.is_usable().await => {
                sleep(BIND_AGAIN_AFTER).await;
            }
            Ok(_) => hand.leave(Membership::Pending),
        }
        hand.changed_from(&down).await;
    }
}

impl Terms {
    /// Proves the pool, connects the data pair, and carries bodies until it ends.
    async fn bind(
        &self,
        shared: &Arc<Shared>,
        joined: &Joined,
        tried: &mut Option<oneshot::Sender<()>>,
    ) -> Result<RouteDown, RouteDown> {
        let (here, there) = (joined.pool.uuid(), self.server_pool);
        if let Some(there) = there.filter(|there| *there != here) {
            let text = format!("here {here}, at the server {there}");
            return Err(RouteDown::new(Reason::OtherPool, text));
        }
        let (member, port) = self.meet(shared, joined).await?;
        // From here on the server waits for rings.
        shared.pool.bind();
        if !self.carries_control {
            shared.pool.stand(joined).await?;
        }
        let options = data_options(&self.keys.seal);
        let stream = Stream::connect_async(&joined.pool, port, options, STORAGE_STEP_WAIT);
        let stream = stream.await.map_err(|error| stream_failed(&error))?;
        shared.account.meter.watch(stream.gauge());
        let (mut from, mut to) = stream.into_split();
        let greeted = greet(Turn::First, self.session, &mut from, &mut to).await;
        greeted.map_err(|error| stream_failed(&error))?;
        shared.pool.lock().used = true;
        tracing::info!(
            server = %shared.server, route = %Route::Storage, slot = member.slot,
            devices = joined.pool.device_count(), "storage is used"
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
            match self.exchange(shared, member, &own, &theirs).await {
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
        member: Member,
        own: &Challenges,
        theirs: &Challenges,
    ) -> Result<Port, RouteDown> {
        let proofs = prove(&self.keys.proof, Side::Client, member, own, theirs);
        if proofs.is_empty() {
            return Err(RouteDown::new(Reason::ChallengeNotSeen, "the server's"));
        }
        let prove = Request::Prove { member, proofs };
        let Answer::Proved { proofs, port } = call::ask(shared, prove).await.map_err(refused)?
        else {
            return Err(RouteDown::new(Reason::Unsupported, &shared.server));
        };
        let devices = proved(
            &self.keys.proof,
            Side::Server,
            member,
            (own, theirs),
            &proofs,
        );
        if devices.is_empty() {
            return Err(RouteDown::new(Reason::ChallengeNotSeen, "by the server"));
        }
        Ok(Port(port))
    }
}

impl Hand {
    /// A hand for a pool; without one, for none.
    pub(super) fn new(is_there: bool) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::new(Held {
                retired: !is_there,
                ..Held::default()
            }),
            membership: watch::Sender::new(Membership::Pending),
            standing: tokio::sync::Mutex::new(None),
            wanted: Notify::new(),
            doorbell: Notify::new(),
            suspicion: Notify::new(),
        })
    }

    /// Whether there is, or may be, a pool.
    pub(super) fn is_there(&self) -> bool {
        !self.lock().retired
    }

    fn is_joined(&self, joined: Joined) {
        if self.lock().pool.is_some() {
            self.membership.send_replace(Membership::Joined(joined));
        }
    }

    /// The pool, once it is joined, or why it can't be.
    pub(super) async fn joined(&self) -> Result<Joined, RouteDown> {
        let mut membership = self.membership.subscribe();
        let told = membership.wait_for(|now| !matches!(now, Membership::Pending));
        // The sender lives in this hand.
        match told.await.as_deref() {
            Ok(Membership::Joined(joined)) => Ok(joined.clone()),
            Ok(Membership::Absent(down)) => Err(down.clone()),
            Ok(Membership::Pending) | Err(_) => Err(RouteDown::new(Reason::Pending, "")),
        }
    }

    /// Ready when the pool is another than the one that failed like this, or stands as it did.
    async fn changed_from(&self, failed: &RouteDown) {
        let mut membership = self.membership.subscribe();
        let is_news = |now: &Membership| match now {
            Membership::Pending => false,
            Membership::Absent(down) => down != failed,
            Membership::Joined(_) => true,
        };
        let _ = membership.wait_for(is_news).await;
    }

    /// The pool is wanted now: the pause before it is joined again is cut short.
    pub(super) fn want(&self) {
        if !matches!(*self.membership.borrow(), Membership::Joined(_)) {
            self.wanted.notify_one();
        }
    }

    /// Whether the driver of the pool runs.
    async fn is_usable(&self) -> bool {
        let held = self.lock().pool.clone();
        match held {
            Some((pool, slot)) => pool.is_peer_alive_async(slot).await.unwrap_or(false),
            None => false,
        }
    }

    /// Sees to it that a stream on the designated port stands.
    async fn stand(&self, joined: &Joined) -> Result<(), RouteDown> {
        let mut standing = self.standing.lock().await;
        if standing.is_none() {
            let stream = designated(&joined.pool).await?;
            // One through a pool that was left meanwhile stands for nothing.
            let is_joined = self.is_joined_as(joined.incarnation);
            *standing = Some(stream).filter(|_| is_joined);
        }
        Ok(())
    }

    fn is_joined_as(&self, incarnation: u64) -> bool {
        matches!(&*self.membership.borrow(), Membership::Joined(now) if now.incarnation == incarnation)
    }

    /// The stream that stands on the designated port, if one does.
    pub(super) async fn standing(&self) -> Option<Stream> {
        self.joined().await.ok()?;
        self.standing.lock().await.take()
    }

    /// Another stream on the designated port.
    pub(super) async fn designated(&self) -> Result<Stream, RouteDown> {
        let joined = self.joined().await?;
        let made = designated(&joined.pool).await;
        // With no line nobody else would notice that the pool has ended.
        if made.is_err() && !self.is_usable().await && self.is_joined_as(joined.incarnation) {
            self.leave(Membership::Pending);
        }
        made
    }

    fn hold(&self, pool: &Pool, slot: SlotIndex) {
        let mut held = self.lock();
        let unwanted = if held.retired {
            Some(pool.clone())
        } else {
            held.bound = false;
            held.used = false;
            held.pool
                .replace((pool.clone(), slot))
                .map(|(before, _)| before)
        };
        drop(held);
        if let Some(pool) = unwanted {
            leave(pool);
        }
    }

    /// Whether a data pair was open since the pool was joined.
    fn was_used(&self) -> bool {
        self.lock().used
    }

    /// The server has proved itself behind the pool.
    fn bind(&self) {
        let mut held = self.lock();
        held.bound = true;
        held.tell();
    }

    /// The line that the server has proved itself on is gone, and no ring comes any more.
    pub(super) fn unbind(&self) {
        let mut held = self.lock();
        held.bound = false;
        if let Some((pool, slot)) = &held.pool {
            pool.set_doorbell(*slot, Doorbell::Absent);
        }
    }

    /// The events connection came or went. Without it the pool must look by itself.
    pub(super) fn set_attached(&self, attached: bool) {
        let mut held = self.lock();
        held.attached = attached;
        held.tell();
    }

    /// Leaves the pool in the background; it stands like this from now on.
    fn leave(&self, now: Membership) {
        let pool = self.lock().take_pool();
        self.membership.send_replace(now);
        // Whoever holds it is connecting, and fails with the pool.
        if let Ok(mut standing) = self.standing.try_lock() {
            *standing = None;
        }
        if let Some(pool) = pool {
            leave(pool);
        }
    }

    /// Takes the pool out for good: one that is still being opened is left as soon as it is.
    pub(super) fn retire(&self) -> Option<Pool> {
        let pool = {
            let mut held = self.lock();
            held.retired = true;
            held.take_pool()
        };
        self.membership.send_replace(Membership::Pending);
        pool
    }

    /// The pool, while it is held.
    pub(super) fn in_use(&self) -> Option<PoolUse> {
        let held = self.lock();
        let (pool, slot) = held.pool.as_ref()?;
        Some(PoolUse {
            uuid: pool.uuid(),
            slot: slot.0,
            devices: pool.device_count(),
            engine: pool.engine().0,
            io: pool.io_stats(),
        })
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
    /// Takes the pool out. From here on it hears no ring, and must look by itself: the last of its streams end.
    fn take_pool(&mut self) -> Option<Pool> {
        let (pool, slot) = self.pool.take()?;
        pool.set_doorbell(slot, Doorbell::Absent);
        Some(pool)
    }

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
        self.leave(Membership::Pending);
    }
}

/// Opens the pool and waits for its coordinator.
async fn join(choice: PoolChoice, host: String, hand: &Arc<Hand>) -> Result<Joined, RouteDown> {
    let slots = choice.slots.iter().copied().map(SlotIndex).collect();
    let mut options = PoolOptions::new(Role::Member { slots }, &host, &choice.lock_dir);
    options.expected = choice.uuid;
    options.engine = choice.engine;
    // The driver outlives no hand that holds it, and must not keep one alive.
    let (to_ring, to_ask) = (Arc::downgrade(hand), Arc::downgrade(hand));
    options.doorbell = Some(Arc::new(move |_| {
        if let Some(hand) = to_ring.upgrade() {
            hand.doorbell.notify_one();
        }
    }));
    options.suspicion = Some(Arc::new(move |_| {
        if let Some(hand) = to_ask.upgrade() {
            hand.suspicion.notify_one();
        }
    }));
    let hand = Arc::clone(hand);
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
    Ok(Joined {
        pool,
        slot,
        incarnation,
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
