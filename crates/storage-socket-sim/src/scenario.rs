//! What a seed stands for: how many of what, and which faults.

use crate::{coverage::Fault, rng::Rng};
use std::time::Duration;
use storage_socket_proto::{Cipher, Doorbell, Polling, Timeouts};

/// How often each kind of fault happens: millionths of an I/O or a ring; for what happens to devices, hosts and users,
/// how many times in a run; for clocks, millionths by which they differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates([u32; Fault::COUNT]);

impl Rates {
    /// No fault.
    #[must_use]
    pub fn none() -> Self {
        Self([0; Fault::COUNT])
    }

    /// The rate of a kind.
    #[must_use]
    pub fn of(&self, fault: Fault) -> u32 {
        self.0[fault.index()]
    }

    /// Sets the rate of a kind.
    pub fn set(&mut self, fault: Fault, rate: u32) {
        self.0[fault.index()] = rate;
    }

    /// The kinds that are on, with their rates.
    pub fn on(&self) -> impl Iterator<Item = (Fault, u32)> {
        let all = Fault::ALL.iter().map(|&fault| (fault, self.of(fault)));
        all.filter(|(_, rate)| *rate > 0)
    }
}

/// Everything that a run needs besides the seed of its own choices.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Devices of the pool.
    pub devices: u16,
    /// Hosts that hold a slot.
    pub members: u32,
    /// Streams that each of them has to bring to a good end, besides those that the rates call for.
    pub streams: u32,
    /// Streams that it has at the same time at most.
    pub streams_at_once: u32,
    /// Payload bytes of a frame at most.
    pub payload_max: u64,
    /// Units of a window and device that are asked for, the control unit included.
    pub window: u32,
    /// Units that a slot may have.
    pub slot_units: u32,
    /// Connections that wait to be accepted, at most.
    pub backlog: usize,
    /// How frames are protected.
    pub cipher: Cipher,
    /// Whether doorbells ring.
    pub doorbell: Doorbell,
    /// How streams look for news.
    pub polling: Polling,
    /// Whether members' pages are tagged under keys of their own.
    pub keys: Keys,
    /// Whether hosts that are suspected are asked over the network.
    pub network: Network,
    /// What becomes of damage on the devices when faults end.
    pub damage: Damage,
    /// The longest time of a slow I/O.
    pub slow_max: Duration,
    /// What goes wrong until `faults_end`.
    pub rates: Rates,
    /// When faults stop; everything has to finish within `patience` after that.
    pub faults_end: Duration,
    /// See `faults_end`.
    pub patience: Duration,
}

/// Which keys tag the fixed blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// The public constant: tags are checksums.
    Public,
    /// A key for each slot, and one for the coordinator.
    Own,
}

/// Whether there is a network besides the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Whoever is suspected and runs is vouched for.
    There,
    /// Nobody is asked.
    Absent,
}

/// What becomes of rotten, lost and stray blocks when faults end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Reads return what was written last.
    Heals,
    /// It is there until it is written over.
    Stays,
}

/// Time-outs of a simulated pool: those of a real one, twenty to a hundred times as fast.
#[must_use]
pub fn timeouts() -> Timeouts {
    Timeouts {
        heartbeat: Duration::from_millis(50),
        route_leave: Duration::from_millis(200),
        dead: Duration::from_millis(1000),
        fence: Duration::from_millis(400),
        io_deadline: Duration::from_millis(300),
        stale: Duration::from_millis(100),
        claim: Duration::from_millis(150),
        linger: Duration::from_millis(500),
    }
}

/// How high the rate of a kind goes: millionths, times or the like.
fn rate_max(fault: Fault) -> u32 {
    match fault {
        Fault::Slow => 100_000,
        Fault::Lost | Fault::Rot | Fault::Twice => 200_000,
        Fault::Ghost => 20_000,
        Fault::WriteHangs | Fault::ReadHangs => 10_000,
        Fault::WriteError | Fault::ReadError => 30_000,
        Fault::TornEnd512 | Fault::TornMiddle512 | Fault::TornRead512 => 200_000,
        Fault::TornEnd4096 | Fault::TornMiddle4096 | Fault::TornRead4096 => 300_000,
        Fault::Stale => 300_000,
        Fault::MisdirectedWrite | Fault::MisdirectedRead => 60_000,
        Fault::BellLost | Fault::BellLate | Fault::BellTwice => 500_000,
        Fault::ClockFast | Fault::ClockSlow => 40_000,
        Fault::CoordinatorCrash | Fault::MemberCrash => 3,
        Fault::DeviceHangs
        | Fault::OnlyDeviceGone
        | Fault::StripedDeviceGone
        | Fault::PathHangs
        | Fault::PathGone
        | Fault::Revoked
        | Fault::MemberPause
        | Fault::MemberStop => 2,
        // What follows from others has no rate of its own.
        Fault::AnyOrder | Fault::GhostOfDead | Fault::HeldWrite => 0,
        _ => 1,
    }
}

/// The chance that a kind is on in a run, in millionths: what takes long in a run is rarer.
fn share(fault: Fault) -> u32 {
    match fault {
        Fault::Rivals
        | Fault::RivalClone
        | Fault::CoordinatorPause
        | Fault::MemberPause
        | Fault::Clone
        | Fault::CloneRunning => 60_000,
        Fault::OnlyDeviceGone
        | Fault::StripedDeviceGone
        | Fault::PathGone
        | Fault::PathHangs
        | Fault::DeviceHangs => 120_000,
        Fault::CoordinatorStop | Fault::MemberStop | Fault::Revoked | Fault::Linger => 120_000,
        Fault::Residue | Fault::OneWay | Fault::SlowReader | Fault::BadRequest => 200_000,
        Fault::Impatient | Fault::Abort => 200_000,
        Fault::CoordinatorCrash | Fault::MemberCrash => 250_000,
        _ => 350_000,
    }
}

impl Scenario {
    /// One member, one stream, no fault.
    #[must_use]
    pub fn calm() -> Self {
        Self {
            devices: 1,
            members: 1,
            streams: 1,
            streams_at_once: 1,
            payload_max: 6000,
            window: 9,
            slot_units: 1024,
            backlog: 16,
            cipher: Cipher::Aes256Gcm,
            doorbell: Doorbell::Absent,
            polling: Polling::Adaptive,
            keys: Keys::Public,
            network: Network::Absent,
            damage: Damage::Stays,
            slow_max: Duration::from_millis(20),
            rates: Rates::none(),
            faults_end: Duration::from_millis(50),
            patience: Duration::from_secs(30),
        }
    }

    /// Many members with one stream each, all at once, no fault.
    #[must_use]
    pub fn crowd(members: u32) -> Self {
        Self {
            members,
            window: 3,
            devices: 2,
            backlog: 512,
            cipher: Cipher::Checksum,
            doorbell: Doorbell::Present,
            ..Self::calm()
        }
    }

    /// The scenario of a seed: each kind of fault is on in some of them, with a rate of its own.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5ce_4a12);
        let mut rates = Rates::none();
        // Swarm: a run in which everything goes wrong a little finds less than many in which a few things do.
        for &fault in Fault::ALL {
            let most = u64::from(rate_max(fault));
            if most > 0 && rng.chance(share(fault)) {
                // Small rates are as likely as large ones.
                let rate = rng.between(1, most) >> rng.below(5);
                rates.set(fault, u32::try_from(rate).unwrap_or(0).max(1));
            }
        }
        let mut pick = |chance: u32| rng.chance(chance);
        let cipher = match (pick(400_000), pick(500_000)) {
            (true, _) => Cipher::Checksum,
            (_, true) => Cipher::ChaCha20Poly1305,
            _ => Cipher::Aes256Gcm,
        };
        let doorbell = if pick(500_000) {
            Doorbell::Present
        } else {
            Doorbell::Absent
        };
        let keys = if pick(500_000) {
            Keys::Own
        } else {
            Keys::Public
        };
        let network = if pick(300_000) {
            Network::There
        } else {
            Network::Absent
        };
        let damage = if pick(500_000) {
            Damage::Heals
        } else {
            Damage::Stays
        };
        let (is_tight, is_busy) = (pick(150_000), pick(150_000));
        // Most runs have frames of one block: what is found depends on the order of things, seldom on how long they are.
        let payload_max = match (pick(150_000), pick(400_000)) {
            (true, _) => 14_000,
            (_, true) => 5000,
            _ => 2000,
        };
        let slots = rng.between(2, 5);
        let mut scenario = Self {
            devices: u16::try_from(rng.between(1, 5) / 2 + 1).unwrap_or(1).min(3),
            members: u32::try_from(rng.between(1, 2)).unwrap_or(1),
            streams: u32::try_from(rng.between(1, 2)).unwrap_or(1),
            streams_at_once: u32::try_from(rng.between(1, 2)).unwrap_or(1),
            payload_max,
            window: u32::try_from(slots).unwrap_or(3) + 1,
            slot_units: if is_tight { 7 } else { 1024 },
            backlog: if is_busy { 1 } else { 16 },
            cipher,
            doorbell,
            polling: Polling::Adaptive,
            keys,
            network,
            damage,
            slow_max: Duration::from_millis(5 << (2 * rng.below(4))),
            rates,
            faults_end: Duration::from_millis(rng.between(100, 1200)),
            patience: Duration::from_secs(30),
        };
        if rng.chance(100_000) {
            scenario.polling = Polling::Hot;
        }
        scenario
    }
}
