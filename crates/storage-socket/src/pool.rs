//! Joining a pool: as its coordinator, or as a member that takes one of the slots that its host was given.

use crate::{
    Error,
    driver::{self, Driver},
    error::StopReason,
    format::{OpenPool, newest_coordinator},
    inbox::{Command, Inbox, IoStats, PeerChallenges},
    lock::{Lock, Purpose, lock_path, try_lock},
    promise::{Promise, locked, promise},
};
use direct_io::{Access, Engine, EngineChoice, EngineKind, EngineOptions, EngineUsers};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};
use storage_socket_proto::{
    Challenge, Doorbell, Epoch, Geometry, Incarnation, MemberView, Polling, PoolId, SlotIndex,
    Timeouts, block::Stamp,
};
use uuid::Uuid;

/// How long the driver may take for a question that needs no device.
const DRIVER_GRACE: Duration = Duration::from_secs(10);

/// Rings the peer of a slot over whatever network there is: the coordinator is given the member's slot, a member its
/// own. Called from the driver thread: it must not block.
pub type RingDoorbell = Arc<dyn Fn(SlotIndex) + Send + Sync>;

/// Hears that a slot's peer has shown no sign of life on storage for half the time after which it counts as dead (the
/// coordinator is given the member's slot, a member its own): whoever can ask it over the network does, and calls
/// [`Pool::vouch`] when it answers. Comes once in each half. Called from the driver thread: it must not block.
pub type HearSuspicion = Arc<dyn Fn(SlotIndex) + Send + Sync>;

/// What this process is in the pool.
#[derive(Clone, Debug)]
pub enum Role {
    /// The owner: grants segments, listens, accepts.
    Coordinator {
        /// The slots that are served; others are refused. See [`Pool::allow`].
        slots: BTreeSet<SlotIndex>,
    },
    /// One that connects.
    Member {
        /// The slots that this host may use, in order of preference.
        slots: Vec<SlotIndex>,
    },
}

/// How a pool is opened.
#[derive(Clone)]
pub struct PoolOptions {
    /// The pool that the devices must belong to.
    pub expected: Option<Uuid>,
    /// What this process is in it.
    pub role: Role,
    /// This host's name, for people.
    pub host_name: String,
    /// Where the processes of this host keep their locks.
    pub lock_dir: PathBuf,
    /// Which engine does the I/O.
    pub engine: EngineChoice,
    /// How streams look for news. Under [`Polling::Hot`] a thread that waits to read drives the pool meanwhile, where it
    /// is the only one that waits; should a device hang then, that thread may take until the device answers to end.
    pub polling: Polling,
    /// Rings peers, if there is a way. Used for a slot once [`Pool::set_doorbell`] says so, or its peer has rung.
    pub doorbell: Option<RingDoorbell>,
    /// Hears of peers that may be dead, if there is a way to ask them.
    pub suspicion: Option<HearSuspicion>,
}

impl PoolOptions {
    /// Options with everything that has a default.
    #[must_use]
    pub fn new(role: Role, host_name: &str, lock_dir: &Path) -> Self {
        Self {
            expected: None,
            role,
            host_name: host_name.to_owned(),
            lock_dir: lock_dir.to_owned(),
            engine: EngineChoice::Auto,
            polling: Polling::Adaptive,
            doorbell: None,
            suspicion: None,
        }
    }
}

/// Who this process is in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The coordinator, by its epoch.
    Coordinator(Epoch),
    /// A member, by its slot and incarnation.
    Member(SlotIndex, Incarnation),
}

/// A pool that was joined. Clones share it; it is left when the last clone and the last stream are dropped.
#[derive(Clone)]
pub struct Pool {
    pub(crate) handle: Arc<PoolHandle>,
}

/// Stops the driver when the last user is gone.
pub(crate) struct PoolHandle {
    pub(crate) inbox: Arc<Inbox>,
    facts: Facts,
    ended: Mutex<Option<Promise<()>>>,
}

/// What doesn't change while the pool is open.
#[derive(Clone, Debug)]
struct Facts {
    uuid: Uuid,
    name: String,
    identity: Identity,
    devices: usize,
    timeouts: Timeouts,
    engine: EngineKind,
    refusal: Option<String>,
}

impl Pool {
    /// Opens the devices, takes the local lock, and starts the driver. See [`Pool::wait_ready`] for what comes next.
    ///
    /// # Errors
    /// A device is wrong, missing, a copy, truncated, foreign or of a newer format; every slot is taken; the engine
    /// that was asked for is not to be had.
    pub fn open(devices: &[PathBuf], options: PoolOptions) -> Result<Self, Error> {
        let opened = OpenPool::open(devices, Access::ReadWrite, options.expected.map(PoolId))?;
        let geometry = opened.geometry.clone();
        let (identity, lock, predecessor) = take_place(&opened, &options)?;
        let engine = Engine::new(
            opened.devices.clone(),
            EngineOptions {
                choice: options.engine,
                users: match options.polling {
                    Polling::Adaptive => EngineUsers::One,
                    // Whoever waits drives.
                    Polling::Hot => EngineUsers::Several,
                },
                depth: engine_depth(opened.devices.len()),
                ..Default::default()
            },
        )?;
        let facts = Facts {
            uuid: geometry.pool().0,
            name: opened.name.to_string(),
            identity,
            devices: opened.devices.len(),
            timeouts: geometry.timeouts(),
            engine: engine.kind(),
            refusal: engine.refusal().map(ToString::to_string),
        };
        tracing::info!(
            pool = %facts.uuid, engine = %facts.engine, refusal = facts.refusal, "pool opened"
        );
        let inbox = Arc::new(Inbox::new(geometry.pool(), facts.devices, engine.waker()));
        let (fulfil, ended) = promise();
        let driver = Driver::new(
            driver::Parts {
                geometry: Arc::new(geometry),
                identity,
                predecessor,
                host_name: options.host_name,
                role: options.role,
                polling: options.polling,
                doorbell: options.doorbell,
                suspicion: options.suspicion,
                devices: opened.devices,
            },
            engine,
            inbox.clone(),
        );
        thread::Builder::new()
            .name("storage-socket".to_owned())
            .spawn(move || {
                driver.run();
                drop(lock);
                fulfil.fulfil(());
            })
            .map_err(|source| Error::Os {
                path: "storage-socket".into(),
                action: "start the driver thread",
                source,
            })?;
        Ok(Self {
            handle: Arc::new(PoolHandle {
                inbox,
                facts,
                ended: Mutex::new(Some(ended)),
            }),
        })
    }

    /// Waits until the coordinator serves, or the member sees a coordinator that serves.
    ///
    /// # Errors
    /// [`Error::TimedOut`], or the reason why the pool can't be joined: another coordinator owns it, say.
    pub fn wait_ready(&self, patience: Duration) -> Result<(), Error> {
        let ready = self.ask(Command::Ready).wait(patience);
        ready.unwrap_or_else(|| Err(self.handle.inbox.unanswered("joining the pool")))
    }

    /// The pool's identity.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.handle.facts.uuid
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.handle.facts.name
    }

    /// Who this process is in the pool.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.handle.facts.identity
    }

    /// This member's slot; the coordinator has none.
    #[must_use]
    pub fn slot(&self) -> Option<SlotIndex> {
        match self.handle.facts.identity {
            Identity::Member(slot, _) => Some(slot),
            Identity::Coordinator(_) => None,
        }
    }

    /// The random number of this process: a member's incarnation or the coordinator's epoch.
    #[must_use]
    pub fn writer(&self) -> u64 {
        match self.handle.facts.identity {
            Identity::Member(_, incarnation) => incarnation.0,
            Identity::Coordinator(epoch) => epoch.0,
        }
    }

    /// How many devices the pool has.
    #[must_use]
    pub fn device_count(&self) -> usize {
        self.handle.facts.devices
    }

    /// The time-outs in force.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        self.handle.facts.timeouts
    }

    /// The engine that runs, and why it isn't io_uring if that was refused.
    #[must_use]
    pub fn engine(&self) -> (EngineKind, Option<&str>) {
        (
            self.handle.facts.engine,
            self.handle.facts.refusal.as_deref(),
        )
    }

    /// What was asked of the devices so far, for streams and for everything else.
    #[must_use]
    pub fn io_stats(&self) -> IoStats {
        self.io_stats_by_device().into_iter().sum()
    }

    /// The same for each device, by its index.
    #[must_use]
    pub fn io_stats_by_device(&self) -> Vec<IoStats> {
        self.handle.inbox.io.stats()
    }

    /// Tells the driver that a doorbell of a slot's peer was heard.
    pub fn rang(&self, slot: SlotIndex) {
        self.handle.inbox.send(Command::Rang(slot));
    }

    /// Says whether the doorbell of a slot's peer works at present. A ring that is heard says `Present` by itself.
    pub fn set_doorbell(&self, slot: SlotIndex, doorbell: Doorbell) {
        self.handle.inbox.send(Command::Doorbell(slot, doorbell));
    }

    /// Says that a slot's peer was heard of over the network: its silence on storage counts from now.
    pub fn vouch(&self, slot: SlotIndex) {
        self.handle.inbox.send(Command::Vouch(slot));
    }

    /// Whether a slot's peer (a member gives its own slot) is alive by what it writes to the devices, or not yet known
    /// to be dead.
    ///
    /// # Errors
    /// The pool was closed or lost.
    pub async fn is_peer_alive_async(&self, slot: SlotIndex) -> Result<bool, Error> {
        self.answered(self.ask(|reply| Command::IsPeerAlive { slot, reply }).await)
    }

    /// For a coordinator: replaces the set of slots that are served.
    pub fn allow(&self, slots: BTreeSet<SlotIndex>) {
        self.handle.inbox.send(Command::Allow(slots));
    }

    /// Writes fresh challenges for the peer of a slot (a member gives its own slot): one for each device, by index;
    /// `None` where the device didn't take it in time.
    ///
    /// # Errors
    /// The pool was closed or lost, or the system has no randomness.
    pub fn challenges(&self, slot: SlotIndex) -> Result<Vec<Option<[u8; 32]>>, Error> {
        let (challenges, reply) = self.write_challenges(slot)?;
        self.written(&challenges, reply.wait(DRIVER_GRACE))
    }

    /// Like [`Pool::challenges`], for tasks.
    ///
    /// # Errors
    /// As [`Pool::challenges`].
    pub async fn challenges_async(&self, slot: SlotIndex) -> Result<Vec<Option<[u8; 32]>>, Error> {
        let (challenges, reply) = self.write_challenges(slot)?;
        self.written(&challenges, reply.await)
    }

    /// Reads the challenges of a slot's peer (a member gives its own slot) from each device, now.
    ///
    /// The peer's write may still be on its way: when an answer doesn't fit, ask again.
    ///
    /// # Errors
    /// The pool was closed or lost.
    pub fn peer_challenges(&self, slot: SlotIndex) -> Result<PeerChallenges, Error> {
        let reply = self.ask(|reply| Command::PeerChallenges { slot, reply });
        self.answered(reply.wait(DRIVER_GRACE))
    }

    /// Like [`Pool::peer_challenges`], for tasks.
    ///
    /// # Errors
    /// As [`Pool::peer_challenges`].
    pub async fn peer_challenges_async(&self, slot: SlotIndex) -> Result<PeerChallenges, Error> {
        let reply = self.ask(|reply| Command::PeerChallenges { slot, reply });
        self.answered(reply.await)
    }

    /// For a coordinator: the members that it has seen.
    ///
    /// # Errors
    /// The pool was closed or lost.
    pub fn members(&self) -> Result<Vec<MemberView>, Error> {
        self.answered(self.ask(Command::Members).wait(DRIVER_GRACE))
    }

    /// Leaves the pool in order and waits for it: streams end as if they were dropped, at most for the linger time.
    pub fn close(&self) {
        self.handle.stop();
    }

    fn ask<T>(&self, command: impl FnOnce(crate::promise::Fulfil<T>) -> Command) -> Promise<T> {
        let (fulfil, reply) = promise();
        self.handle.inbox.send(command(fulfil));
        reply
    }

    fn answered<T>(&self, answer: Option<T>) -> Result<T, Error> {
        answer.ok_or_else(|| self.handle.inbox.unanswered("asking the driver"))
    }

    fn write_challenges(
        &self,
        slot: SlotIndex,
    ) -> Result<(Vec<Challenge>, Promise<Vec<bool>>), Error> {
        let challenges = (0..self.device_count())
            .map(|_| Ok(Challenge(random_bytes()?)))
            .collect::<Result<Vec<_>, Error>>()?;
        let reply = self.ask(|reply| Command::SetChallenges {
            slot,
            challenges: challenges.clone(),
            reply,
        });
        Ok((challenges, reply))
    }

    fn written(
        &self,
        challenges: &[Challenge],
        written: Option<Vec<bool>>,
    ) -> Result<Vec<Option<[u8; 32]>>, Error> {
        let written = self.answered(written)?;
        let pairs = challenges.iter().zip(written);
        Ok(pairs
            .map(|(challenge, is_written)| is_written.then_some(challenge.0))
            .collect())
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({:?})", self.handle.facts)
    }
}

impl std::fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PoolHandle({})", self.facts.uuid)
    }
}

impl PoolHandle {
    fn stop(&self) {
        self.inbox.send(Command::Stop);
        let ended = locked(&self.ended).take();
        if let Some(ended) = ended {
            // The driver itself ends by then, whatever its devices do.
            let most = driver::stop_patience(&self.facts.timeouts) + DRIVER_GRACE;
            ended.wait(most);
            self.inbox.close(StopReason::Closed);
        }
    }
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Random bytes from the system.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::Os {
        path: "getrandom".into(),
        action: "get random bytes",
        source: std::io::Error::other(error),
    })?;
    Ok(bytes)
}

fn random_number() -> Result<u64, Error> {
    Ok(u64::from_le_bytes(random_bytes()?).max(1))
}

/// Takes the local lock, and with it the identity for this run; and a coordinator's own predecessor, if that was the last.
fn take_place(
    opened: &OpenPool,
    options: &PoolOptions,
) -> Result<(Identity, Lock, Option<Stamp>), Error> {
    let pool = opened.geometry.pool();
    match &options.role {
        Role::Coordinator { slots } => {
            check_slots(&opened.geometry, slots.iter())?;
            let Some(mut lock) = try_lock(&options.lock_dir, pool, Purpose::Coordinator)? else {
                return Err(Error::CoordinatorRunning {
                    pool,
                    lock: lock_path(&options.lock_dir, pool, Purpose::Coordinator),
                });
            };
            // The lock tells which epoch its last holder had. If that is the pool's, the predecessor ran on this host
            // under this lock, and so is gone.
            let known = lock.note()?;
            let predecessor =
                newest_coordinator(opened).filter(|stamp| known == Some(stamp.writer));
            let epoch = Epoch(random_number()?);
            lock.set_note(epoch.0)?;
            Ok((Identity::Coordinator(epoch), lock, predecessor))
        }
        Role::Member { slots } => {
            check_slots(&opened.geometry, slots.iter())?;
            for slot in slots {
                if let Some(lock) = try_lock(&options.lock_dir, pool, Purpose::Slot(*slot))? {
                    let incarnation = Incarnation(random_number()?);
                    return Ok((Identity::Member(*slot, incarnation), lock, None));
                }
            }
            Err(Error::SlotsTaken {
                pool,
                slots: slots.clone(),
            })
        }
    }
}

/// Transfers in flight over all devices. Each device may use its share alone, so many devices need more.
fn engine_depth(devices: usize) -> u32 {
    const DEPTH_MIN: u32 = 256;
    const DEVICE_DEPTH_MIN: u32 = 64;
    let devices = u32::try_from(devices).unwrap_or(u32::MAX);
    devices.saturating_mul(DEVICE_DEPTH_MIN).max(DEPTH_MIN)
}

fn check_slots<'a>(
    geometry: &Geometry,
    slots: impl Iterator<Item = &'a SlotIndex>,
) -> Result<(), Error> {
    for slot in slots {
        if !geometry.has_slot(*slot) {
            return Err(Error::NoSuchSlot {
                pool: geometry.pool(),
                slot: *slot,
                count: geometry.slots(),
            });
        }
    }
    Ok(())
}
