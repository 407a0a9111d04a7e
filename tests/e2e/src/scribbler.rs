//! Another host on the shared disk, gone mad or bought: for as long as it lives it writes over the pool whatever would
//! do the most harm. What it does next follows from a seed, and from what it finds on the disk.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use fidelity::Random;

/// How far it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malice {
    /// Rubbish, old content and content of other places, anywhere but in the superblocks, so that the pool can be opened
    /// by whoever comes.
    Rubbish,
    /// The same, blocks with a valid checksum that nobody wrote, and in the superblocks as well, until no copy is left.
    Everything,
}

/// A kind of place on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Area {
    Superblock,
    Coordinator,
    Member,
    Answer,
    Control,
    Frame,
    Anywhere,
}

/// What is done to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    /// Random bytes, of any number of blocks.
    Noise,
    /// A few bits turned over.
    Flip,
    /// What stood there some time ago.
    Replay,
    /// What stands, or stood, in another place of the same kind; and the other way round.
    Exchange,
    /// Another content, or another time, under the checksum that everybody can make.
    Forge,
}

/// It writes until it is stopped, or dropped.
#[derive(Debug)]
pub struct Scribbler {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Deeds>>>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Deeds {
    /// How often each deed was done to each kind of place.
    done: BTreeMap<(Area, Deed), u64>,
    /// How many frames that had been spoiled stood there again as before, written by their sender once more.
    pub resent: u64,
}

const BLOCK: u64 = 4096;
/// Blocks of a unit, at whose beginning frames and control blocks stand.
const UNIT: u64 = 16;
/// Where member pages begin, and how many blocks they and the answer pages take: of a pool of 64 slots.
const MEMBERS_BEGIN: u64 = 16;
const MEMBER_BLOCKS: u64 = 2 * 64;
/// Where the data area begins; it ends a unit before the end.
const DATA_BEGIN: u64 = 512;

/// Slots of a host: whoever is there is in one of the first.
const SLOTS_USED: u64 = 8;

/// What noise covers at most.
const NOISE_BLOCKS_MAX: u64 = 64;
/// What is remembered of each kind of place.
const REMEMBERED_MAX: usize = 64;
/// Spoiled frames that are watched.
const WATCHED_MAX: usize = 32;
/// What is tried at least, so that everything comes to be done.
const DEEDS_MIN: u32 = 1500;
/// The longest time between two deeds.
const PAUSE_MAX_MICROS: u64 = 8000;

/// The key of checksums of fixed blocks, and where checksum and counter stand in one.
const PUBLIC_KEY: &[u8; 32] = b"storage socket public checksum 1";
const TAG: std::ops::Range<usize> = 48..64;
const COUNTER: std::ops::Range<usize> = 40..48;
/// How much of a block is forged: all of its own fields, and the first entries of a page.
const FORGED_BYTES: usize = 576;

impl Area {
    const ALL: [Self; 7] = [
        Self::Superblock,
        Self::Coordinator,
        Self::Member,
        Self::Answer,
        Self::Control,
        Self::Frame,
        Self::Anywhere,
    ];
}

impl Deed {
    const ALL: [Self; 5] = [
        Self::Noise,
        Self::Flip,
        Self::Replay,
        Self::Exchange,
        Self::Forge,
    ];
}

impl Scribbler {
    /// Lets it loose on the disk that is kept in `file`, and that others reach by chains: these share its cache.
    ///
    /// # Errors
    /// When that can't be opened.
    pub fn start(file: &Path, seed: u64, malice: Malice) -> Result<Self> {
        let mut hand = Hand::new(file, seed, malice)?;
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while count < DEEDS_MIN || !stop.load(Ordering::Relaxed) {
                hand.scribble()?;
                count += 1;
            }
            Ok(hand.done)
        });
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }

    /// Stops it; returns what it did.
    ///
    /// # Errors
    /// When it couldn't go on.
    pub fn stop(mut self) -> Result<Deeds> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it has been stopped")?;
        thread.join().map_err(|_| anyhow!("it panicked"))?
    }
}

impl Drop for Scribbler {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(Err(_) | Ok(Err(_))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("it had stopped before");
        }
    }
}

impl Deeds {
    /// Whether everything that belongs to a malice was done at least once.
    ///
    /// # Errors
    /// With what was left out.
    pub fn covers(&self, malice: Malice) -> Result<()> {
        for area in Area::ALL {
            for deed in Deed::ALL {
                let done = self.done.contains_key(&(area, deed));
                anyhow::ensure!(
                    done || !malice.does(area, deed),
                    "no {deed:?} of {area:?} in {self:?}"
                );
            }
        }
        Ok(())
    }
}

impl Malice {
    fn does(self, area: Area, deed: Deed) -> bool {
        let has_public_checksum = !matches!(area, Area::Control | Area::Frame | Area::Anywhere);
        match (area, deed) {
            // Its copies are written once: there is neither an older one nor another. To forge it is to make another
            // pool of it, which is as good as none.
            (Area::Superblock, Deed::Noise | Deed::Flip) => self == Self::Everything,
            (Area::Superblock, _) => false,
            (Area::Anywhere, deed) => deed == Deed::Noise,
            (_, Deed::Forge) => self == Self::Everything && has_public_checksum,
            (_, _) => true,
        }
    }
}

/// What writes.
struct Hand {
    disk: File,
    blocks: u64,
    malice: Malice,
    random: Random,
    remembered: BTreeMap<Area, VecDeque<(u64, Vec<u8>)>>,
    spoiled: VecDeque<Spoiled>,
    done: Deeds,
}

/// A frame that was spoiled: where, as it was, and the first of its blocks that became another.
struct Spoiled {
    at: u64,
    stood: Vec<u8>,
    changed: usize,
}

impl Hand {
    fn new(file: &Path, seed: u64, malice: Malice) -> Result<Self> {
        let disk = File::options().read(true).write(true).open(file);
        let disk = disk.with_context(|| file.display().to_string())?;
        let blocks = disk.metadata()?.len() / BLOCK;
        Ok(Self {
            disk,
            blocks,
            malice,
            random: Random::new(seed),
            remembered: BTreeMap::new(),
            spoiled: VecDeque::new(),
            done: Deeds::default(),
        })
    }

    /// One deed, and a pause.
    fn scribble(&mut self) -> Result<()> {
        // Most go where jobs live: there they are noticed.
        let area = match self.random.below(32) {
            0..2 => Area::Superblock,
            2..4 => Area::Coordinator,
            4..7 => Area::Member,
            7..11 => Area::Answer,
            11..15 => Area::Control,
            15..30 => Area::Frame,
            _ => Area::Anywhere,
        };
        let deed = Deed::ALL[self.draw(Deed::ALL.len())];
        self.look_for_resends()?;
        if self.malice.does(area, deed)
            && let Some(at) = self.place(area)?
        {
            self.commit(area, deed, at)?;
        }
        let pause = Duration::from_micros(self.random.below(PAUSE_MAX_MICROS));
        std::thread::sleep(pause);
        Ok(())
    }

    /// The block at which a place of this kind begins.
    fn place(&mut self, area: Area) -> Result<Option<u64>> {
        Ok(Some(match area {
            Area::Superblock => [0, self.blocks - 1][self.draw(2)],
            Area::Coordinator => 2 + self.random.below(2),
            Area::Member => MEMBERS_BEGIN + self.random.below(2 * SLOTS_USED),
            Area::Answer => MEMBERS_BEGIN + MEMBER_BLOCKS + self.random.below(2 * SLOTS_USED),
            Area::Control => return self.find(*b"BLct"),
            Area::Frame => return self.find(*b"BLfr"),
            Area::Anywhere => 1 + self.random.below(self.blocks - 1 - NOISE_BLOCKS_MAX),
        }))
    }

    /// The next block with this magic from a random unit on.
    fn find(&mut self, magic: [u8; 4]) -> Result<Option<u64>> {
        let units = (self.blocks - DATA_BEGIN) / UNIT - 1;
        let first = self.random.below(units);
        for unit in (first..units).chain(0..first) {
            let block = DATA_BEGIN + unit * UNIT;
            if self.read_blocks(block, 1)?.starts_with(&magic) {
                // The second copy of a control block is half a unit behind the first.
                let second = u64::from(magic == *b"BLct") * self.random.below(2) * UNIT / 2;
                return Ok(Some(block + second));
            }
        }
        Ok(None)
    }

    fn commit(&mut self, area: Area, deed: Deed, at: u64) -> Result<()> {
        let stands = self.read(area, at)?;
        let bytes = match deed {
            Deed::Noise => {
                let most = match area {
                    Area::Frame | Area::Anywhere => NOISE_BLOCKS_MAX,
                    _ => 1,
                };
                let blocks = 1 + self.random.below(most);
                Some(self.random.bytes(usize::try_from(blocks * BLOCK)?))
            }
            Deed::Flip => {
                let mut bytes = stands.clone();
                for _ in 0..=self.random.below(8) {
                    let bit = self.draw(bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                Some(bytes)
            }
            Deed::Replay => self.recall(area, |was| was == at).map(|it| it.1),
            Deed::Exchange => match self.recall(area, |was| was != at) {
                Some((other, bytes)) => {
                    self.write(other, &stands)?;
                    Some(bytes)
                }
                None => None,
            },
            Deed::Forge => Some(self.forge(stands.clone())),
        };
        self.remember(area, at, &stands);
        if let Some(bytes) = bytes {
            self.write(at, &bytes)?;
            if area == Area::Frame {
                self.watch(at, stands, &bytes);
            }
            *self.done.done.entry((area, deed)).or_default() += 1;
        }
        Ok(())
    }

    /// What is remembered of a place of this kind.
    fn recall(&mut self, area: Area, is_it: impl Fn(u64) -> bool) -> Option<(u64, Vec<u8>)> {
        let from = self.draw(REMEMBERED_MAX);
        let known = self.remembered.get(&area)?;
        let mut from_there = (0..known.len()).map(|index| &known[(from + index) % known.len()]);
        from_there.find(|(was, _)| is_it(*was)).cloned()
    }

    /// Counts the spoiled frames that stand there again as they were.
    fn look_for_resends(&mut self) -> Result<()> {
        for spoiled in std::mem::take(&mut self.spoiled) {
            let at = spoiled.at + spoiled.changed as u64;
            let block = usize::try_from(BLOCK)?;
            let changed = &spoiled.stood[spoiled.changed * block..][..block];
            let blocks = spoiled.stood.len() as u64 / BLOCK;
            if self.read_blocks(at, 1)? == changed
                && self.read_blocks(spoiled.at, blocks)? == spoiled.stood
            {
                self.done.resent += 1;
            } else {
                self.spoiled.push_back(spoiled);
            }
        }
        Ok(())
    }

    /// Watches for a resend of a frame in the place of which something else stands from now on.
    fn watch(&mut self, at: u64, stood: Vec<u8>, bytes: &[u8]) {
        let mut pairs = stood.chunks(4096).zip(bytes.chunks(4096));
        if let Some(changed) = pairs.position(|(old, new)| old != new) {
            if self.spoiled.len() == WATCHED_MAX {
                self.spoiled.pop_front();
            }
            self.spoiled.push_back(Spoiled { at, stood, changed });
        }
    }

    fn remember(&mut self, area: Area, at: u64, stands: &[u8]) {
        let known = self.remembered.entry(area).or_default();
        if known.len() == REMEMBERED_MAX {
            known.pop_front();
        }
        known.push_back((at, stands.to_vec()));
    }

    /// What a block says, with another bit perhaps, and a counter that is newer, or by far.
    fn forge(&mut self, mut block: Vec<u8>) -> Vec<u8> {
        if self.random.below(2) == 0 {
            let bit = self.draw(FORGED_BYTES * 8);
            block[bit / 8] ^= 1 << (bit % 8);
        }
        let mut counter = [0; 8];
        counter.copy_from_slice(&block[COUNTER]);
        let ahead = 1 << self.random.below(34);
        let counter = u64::from_le_bytes(counter).wrapping_add(ahead);
        block[COUNTER].copy_from_slice(&counter.to_le_bytes());
        block[TAG].fill(0);
        let tag = blake3::keyed_hash(PUBLIC_KEY, &block);
        block[TAG].copy_from_slice(&tag.as_bytes()[..TAG.len()]);
        block
    }

    /// What stands at a place: a frame as a whole, or one block.
    fn read(&self, area: Area, at: u64) -> Result<Vec<u8>> {
        const FRAME_HEADER: u64 = 128;
        const FRAME_BLOCKS_MAX: u64 = 256;
        let block = self.read_blocks(at, 1)?;
        if area != Area::Frame {
            return Ok(block);
        }
        let mut payload = [0; 4];
        payload.copy_from_slice(&block[60..64]);
        let bytes = FRAME_HEADER + u64::from(u32::from_le_bytes(payload));
        let blocks = bytes.div_ceil(BLOCK).min(FRAME_BLOCKS_MAX);
        self.read_blocks(at, blocks.min(self.blocks - at))
    }

    fn read_blocks(&self, at: u64, count: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(count * BLOCK)?];
        self.disk.read_exact_at(&mut bytes, at * BLOCK)?;
        Ok(bytes)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        // What stands there from now on may be a frame that was spoiled before, and nobody else's deed.
        self.spoiled.retain(|spoiled| spoiled.at != at);
        // Nothing grows, and nothing but the superblock's own deeds meets the superblock at the end.
        let end = (self.blocks - 1).max(at + 1) * BLOCK;
        let room = usize::try_from(end - at * BLOCK)?;
        let bytes = &bytes[..bytes.len().min(room)];
        self.disk.write_all_at(bytes, at * BLOCK)?;
        Ok(())
    }

    fn draw(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).unwrap_or(0)
    }
}
