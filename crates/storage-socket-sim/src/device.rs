//! A device that misbehaves as real ones do, in virtual time.
//!
//! What was written, and when, is kept apart from what goes wrong with it: pristine blocks, older versions for stale
//! reads, and an overlay of rot that a rewrite of the block clears. Atomic is one sector; anything larger may tear.

use crate::rng::Rng;
use std::{collections::BTreeMap, time::Duration};
use storage_socket_proto::{BLOCK_BYTES, IoFailure, Tick};

/// How often what goes wrong, in millionths of an I/O, and how long things take.
#[derive(Clone, Debug)]
pub struct Faults {
    /// The smallest thing that is atomic: 512 or 4096.
    pub sector_bytes: usize,
    /// The usual time of an I/O.
    pub latency: (Duration, Duration),
    /// I/Os that take up to `delay_max` instead.
    pub delayed: u32,
    /// See `delayed`.
    pub delay_max: Duration,
    /// Writes that are acknowledged and never land.
    pub lost_writes: u32,
    /// Writes whose sectors land in two parts at different times.
    pub torn_writes: u32,
    /// Reads whose sectors are read at two different times.
    pub torn_reads: u32,
    /// I/Os that fail; a write may land all the same, wholly or in part.
    pub errors: u32,
    /// I/Os that never answer. Half of the writes among them land later, as ghosts.
    pub hangs: u32,
    /// How long a ghost may take.
    pub ghost_max: Duration,
    /// Reads that return blocks as they were up to `stale_max` ago.
    pub stale_reads: u32,
    /// See `stale_reads`.
    pub stale_max: Duration,
    /// Writes after which one of the written blocks rots.
    pub rot: u32,
}

impl Faults {
    /// A device without faults.
    #[must_use]
    pub fn none() -> Self {
        Self {
            sector_bytes: 4096,
            latency: (Duration::from_micros(50), Duration::from_micros(400)),
            delayed: 0,
            delay_max: Duration::ZERO,
            lost_writes: 0,
            torn_writes: 0,
            torn_reads: 0,
            errors: 0,
            hangs: 0,
            ghost_max: Duration::ZERO,
            stale_reads: 0,
            stale_max: Duration::ZERO,
            rot: 0,
        }
    }
}

/// A write, or a part of one, that lands at some time.
#[derive(Clone, Debug)]
pub struct Landing {
    /// The first byte on the device.
    pub at: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Whether one of the blocks rots at once.
    pub rots: bool,
}

/// What becomes of a write: when it is answered and how, and what lands when.
#[derive(Clone, Debug)]
pub struct WriteFate {
    /// After how long it is answered; `None` is never.
    pub answer: Option<(Duration, Result<(), IoFailure>)>,
    /// What lands, and after how long.
    pub landings: Vec<(Duration, Landing)>,
}

/// What becomes of a read.
#[derive(Clone, Debug)]
pub struct ReadFate {
    /// After how long it is answered; `None` is never.
    pub answer: Option<(Duration, Result<(), IoFailure>)>,
    /// What stood there when the read began, if it tears.
    pub torn_with: Option<Vec<u8>>,
    /// How far back it may look.
    pub stale: Option<Duration>,
}

/// One simulated device.
#[derive(Debug)]
pub struct SimDevice {
    blocks: BTreeMap<u64, Vec<u8>>,
    /// What stood in a block before, and until when.
    older: BTreeMap<u64, Vec<(Tick, Vec<u8>)>>,
    /// Bytes to flip: block, offset.
    rot: BTreeMap<u64, Vec<usize>>,
    /// Every command hangs, as if the device were unplugged from its switch.
    pub frozen: bool,
    /// Every command fails: the device is gone.
    pub gone: bool,
}

impl Default for SimDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDevice {
    /// A device of zeros.
    #[must_use]
    pub fn new() -> Self {
        Self {
            blocks: BTreeMap::new(),
            older: BTreeMap::new(),
            rot: BTreeMap::new(),
            frozen: false,
            gone: false,
        }
    }

    /// Decides what becomes of a write.
    pub fn write(&self, rng: &mut Rng, faults: &Faults, lba: u64, bytes: &[u8]) -> WriteFate {
        if self.gone {
            let answer = Some((Duration::from_micros(50), Err(IoFailure::DeviceGone)));
            return WriteFate {
                answer,
                landings: Vec::new(),
            };
        }
        let time = latency(rng, faults);
        let at = lba * BLOCK_BYTES as u64;
        let rots = rng.chance(faults.rot);
        let whole = |bytes: &[u8]| Landing {
            at,
            bytes: bytes.to_vec(),
            rots,
        };
        if self.frozen || rng.chance(faults.hangs) {
            let mut landings = Vec::new();
            if rng.chance(500_000) {
                let late = rng.span(Duration::from_millis(1), faults.ghost_max);
                landings.push((late, whole(&bytes[..part(rng, faults, bytes.len())])));
            }
            return WriteFate {
                answer: None,
                landings,
            };
        }
        if rng.chance(faults.errors) {
            let mut landings = Vec::new();
            if rng.chance(500_000) {
                landings.push((time, whole(&bytes[..part(rng, faults, bytes.len())])));
            }
            return WriteFate {
                answer: Some((time, Err(IoFailure::Error))),
                landings,
            };
        }
        let answer = Some((time, Ok(())));
        if rng.chance(faults.lost_writes) {
            return WriteFate {
                answer,
                landings: Vec::new(),
            };
        }
        if rng.chance(faults.torn_writes) {
            let cut = part(rng, faults, bytes.len());
            let first = Landing {
                at,
                bytes: bytes[..cut].to_vec(),
                rots: false,
            };
            let second = Landing {
                at: at + cut as u64,
                bytes: bytes[cut..].to_vec(),
                rots: false,
            };
            let early = rng.span(Duration::ZERO, time);
            let landings = if rng.chance(500_000) {
                vec![(early, first), (time, second)]
            } else {
                vec![(early, second), (time, first)]
            };
            return WriteFate { answer, landings };
        }
        WriteFate {
            answer,
            landings: vec![(time, whole(bytes))],
        }
    }

    /// Decides what becomes of a read.
    pub fn read(&self, rng: &mut Rng, faults: &Faults, lba: u64, blocks: u32) -> ReadFate {
        let answer = if self.gone {
            Some((Duration::from_micros(50), Err(IoFailure::DeviceGone)))
        } else if self.frozen || rng.chance(faults.hangs) {
            None
        } else if rng.chance(faults.errors) {
            Some((latency(rng, faults), Err(IoFailure::Error)))
        } else {
            Some((latency(rng, faults), Ok(())))
        };
        let torn_with = rng
            .chance(faults.torn_reads)
            .then(|| self.bytes(lba, blocks));
        let stale = rng.chance(faults.stale_reads).then_some(faults.stale_max);
        ReadFate {
            answer,
            torn_with,
            stale,
        }
    }

    /// Makes a landing part of the device's content.
    pub fn land(&mut self, rng: &mut Rng, now: Tick, landing: &Landing) {
        let mut at = landing.at;
        let mut rest = &landing.bytes[..];
        while !rest.is_empty() {
            let block = at / BLOCK_BYTES as u64;
            let offset = usize::try_from(at % BLOCK_BYTES as u64).unwrap_or(0);
            let count = rest.len().min(BLOCK_BYTES - offset);
            let content = self.blocks.entry(block).or_insert_with(zeros);
            let versions = self.older.entry(block).or_default();
            versions.push((now, content.clone()));
            if versions.len() > VERSIONS_MAX {
                versions.remove(0);
            }
            content[offset..offset + count].copy_from_slice(&rest[..count]);
            if count == BLOCK_BYTES {
                self.rot.remove(&block);
            }
            at += count as u64;
            rest = &rest[count..];
        }
        if landing.rots {
            let blocks = (landing.bytes.len() as u64).div_ceil(BLOCK_BYTES as u64);
            let block = landing.at / BLOCK_BYTES as u64 + rng.below(blocks);
            let offset = usize::try_from(rng.below(BLOCK_BYTES as u64)).unwrap_or(0);
            self.rot.entry(block).or_default().push(offset);
        }
    }

    /// What a read that ends now returns.
    pub fn finish_read(
        &self,
        rng: &mut Rng,
        now: Tick,
        faults: &Faults,
        fate: &ReadFate,
        range: (u64, u32),
    ) -> Vec<u8> {
        let (lba, blocks) = range;
        let mut bytes = self.bytes(lba, blocks);
        if let Some(before) = &fate.torn_with {
            for (new, old) in bytes
                .chunks_mut(faults.sector_bytes)
                .zip(before.chunks(faults.sector_bytes))
            {
                if rng.chance(500_000) {
                    new.copy_from_slice(old);
                }
            }
        }
        if let Some(bound) = fate.stale {
            for (content, block) in bytes.chunks_mut(BLOCK_BYTES).zip(lba..) {
                let version = self.older.get(&block).and_then(|versions| {
                    versions
                        .iter()
                        .find(|(until, _)| now.since(*until) <= bound)
                });
                if let Some((_, old)) = version {
                    content.copy_from_slice(old);
                }
            }
        }
        bytes
    }

    /// The content now, rot included.
    #[must_use]
    pub fn bytes(&self, lba: u64, blocks: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(blocks as usize * BLOCK_BYTES);
        for block in lba..lba + u64::from(blocks) {
            let start = bytes.len();
            match self.blocks.get(&block) {
                Some(content) => bytes.extend_from_slice(content),
                None => bytes.resize(start + BLOCK_BYTES, 0),
            }
            for offset in self.rot.get(&block).into_iter().flatten() {
                bytes[start + offset] ^= 0x40;
            }
        }
        bytes
    }

    /// Writes at once and without fault: what `pool create` does, or a test.
    pub fn put(&mut self, lba: u64, bytes: &[u8]) {
        for (content, block) in bytes.chunks(BLOCK_BYTES).zip(lba..) {
            self.blocks.insert(block, content.to_vec());
            self.rot.remove(&block);
        }
    }

    /// Flips a bit of a block until it is written again.
    pub fn decay(&mut self, lba: u64, offset: usize) {
        self.rot.entry(lba).or_default().push(offset);
    }
}

fn latency(rng: &mut Rng, faults: &Faults) -> Duration {
    if rng.chance(faults.delayed) {
        rng.span(faults.latency.1, faults.delay_max)
    } else {
        rng.span(faults.latency.0, faults.latency.1)
    }
}

/// A number of bytes at a sector's boundary, neither none nor all if there are two sectors at least.
fn part(rng: &mut Rng, faults: &Faults, bytes: usize) -> usize {
    let sectors = (bytes / faults.sector_bytes) as u64;
    let whole = if sectors > 1 {
        rng.between(1, sectors - 1)
    } else {
        sectors
    };
    usize::try_from(whole).unwrap_or(0) * faults.sector_bytes
}

fn zeros() -> Vec<u8> {
    vec![0; BLOCK_BYTES]
}

/// Older versions of a block that are kept.
const VERSIONS_MAX: usize = 4;
