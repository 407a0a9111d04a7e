//! What a seed stands for: how many of what, and which faults.

use crate::{device::Faults, host::Traffic, rng::Rng};
use std::time::Duration;
use storage_socket_proto::{Cipher, Doorbell, Timeouts};

/// Everything that a run needs besides the seed of its own choices.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Devices of the pool.
    pub devices: u16,
    /// Hosts that hold a slot.
    pub members: u32,
    /// Streams that each of them has to bring to a good end.
    pub streams: u32,
    /// Streams that it has at the same time at most.
    pub streams_at_once: u32,
    /// Bytes of each stream.
    pub traffic: Traffic,
    /// Units of a window and device, the control unit included.
    pub window: u32,
    /// How frames are protected.
    pub cipher: Cipher,
    /// Whether doorbells ring, and how many are lost, in millionths.
    pub doorbell: Doorbell,
    /// See `doorbell`.
    pub bells_lost: u32,
    /// What goes wrong until `faults_end`.
    pub faults: Faults,
    /// When faults stop; everything has to finish within `patience` after that.
    pub faults_end: Duration,
    /// See `faults_end`.
    pub patience: Duration,
    /// Crashes of members until then.
    pub member_crashes: u32,
    /// Crashes of the coordinator until then.
    pub coordinator_crashes: u32,
    /// Times that a device hangs altogether for a while until then.
    pub freezes: u32,
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

impl Scenario {
    /// One member, one stream, no fault.
    #[must_use]
    pub fn calm() -> Self {
        Self {
            devices: 1,
            members: 1,
            streams: 1,
            streams_at_once: 1,
            traffic: Traffic {
                to_coordinator: 90_000,
                to_member: 60_000,
                payload_max: 6000,
            },
            window: 9,
            cipher: Cipher::Aes256Gcm,
            doorbell: Doorbell::Absent,
            bells_lost: 0,
            faults: Faults::none(),
            faults_end: Duration::from_millis(500),
            patience: Duration::from_secs(30),
            member_crashes: 0,
            coordinator_crashes: 0,
            freezes: 0,
        }
    }

    /// The scenario of a seed: each kind of fault is there in about half of them.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5ce_4a12);
        let mut some = |most: u64| {
            let on = rng.chance(500_000);
            let rate = rng.below(most);
            u32::try_from(if on { rate } else { 0 }).unwrap_or(0)
        };
        let faults = Faults {
            delayed: some(100_000),
            delay_max: Duration::from_millis(20),
            lost_writes: some(30_000),
            torn_writes: some(200_000),
            torn_reads: some(200_000),
            errors: some(10_000),
            hangs: some(5_000),
            ghost_max: Duration::from_millis(1500),
            stale_reads: some(150_000),
            stale_max: timeouts().stale,
            rot: some(30_000),
            ..Faults::none()
        };
        let (member_crashes, coordinator_crashes) = (some(4), some(4));
        let (freezes, bells_lost) = (some(4), some(500_000));
        let devices = u16::try_from(rng.between(1, 3)).unwrap_or(1);
        let slots = rng.between(3, 8);
        // Three and a half times round each ring at the least, with frames of two blocks as a rule.
        let frames = slots * u64::from(devices) * 7 / 2;
        Self {
            devices,
            members: u32::try_from(rng.between(1, 2)).unwrap_or(1),
            streams: u32::try_from(rng.between(1, 3)).unwrap_or(1),
            streams_at_once: u32::try_from(rng.between(1, 2)).unwrap_or(1),
            traffic: Traffic {
                to_coordinator: frames * 3000,
                to_member: if rng.chance(700_000) {
                    frames * 3000
                } else {
                    0
                },
                payload_max: 6000,
            },
            window: u32::try_from(slots).unwrap_or(3) + 1,
            cipher: match rng.below(3) {
                0 => Cipher::Checksum,
                1 => Cipher::ChaCha20Poly1305,
                _ => Cipher::Aes256Gcm,
            },
            doorbell: if rng.chance(500_000) {
                Doorbell::Present
            } else {
                Doorbell::Absent
            },
            bells_lost,
            faults: Faults {
                sector_bytes: if rng.chance(500_000) { 512 } else { 4096 },
                ..faults
            },
            faults_end: Duration::from_millis(rng.between(500, 2500)),
            patience: Duration::from_secs(60),
            member_crashes,
            coordinator_crashes,
            freezes,
        }
    }
}
