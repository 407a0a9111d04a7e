//! A device that misbehaves as real ones do, in virtual time.
//!
//! For every block two things are kept apart: the pristine bytes, which are what was written to it last, and an overlay
//! of what faults made of them, which is what reads return. So faults can end: without the overlay the device is what
//! it should have been. Older versions are kept for reads that answer stale. Atomic is one sector; what is larger tears.

mod fate;

pub use fate::{Answered, Faults, ReadFate, Tear, WriteFate};

use std::rc::Rc;
use storage_socket_proto::{BLOCK_BYTES, Tick};

/// What is written: whole blocks, shared by all that keep it.
pub type Written = Rc<[u8]>;

/// The bytes of one block, as a part of what was written; nobody copies them until they are changed.
#[derive(Clone, Debug)]
struct Bytes {
    whole: Written,
    at: usize,
}

impl Bytes {
    fn new(bytes: &[u8; BLOCK_BYTES]) -> Self {
        Self {
            whole: Rc::from(&bytes[..]),
            at: 0,
        }
    }

    fn get(&self) -> &[u8] {
        &self.whole[self.at..self.at + BLOCK_BYTES]
    }

    /// A copy that can be changed.
    fn copy(content: Option<&Self>) -> [u8; BLOCK_BYTES] {
        let mut bytes = ZEROS;
        if let Some(content) = content {
            bytes.copy_from_slice(content.get());
        }
        bytes
    }
}

/// One block.
#[derive(Debug, Default)]
struct Cell {
    /// What was written last; `None` is zeros.
    pristine: Option<Bytes>,
    /// What reads return instead, as long as a fault lasts.
    overlay: Option<Bytes>,
    /// What reads returned before, and until when.
    older: Vec<(Tick, Option<Bytes>)>,
}

/// Bytes that reach the medium, or seem to.
#[derive(Clone, Debug)]
pub struct Landing {
    /// The first block.
    pub lba: u64,
    /// Whole blocks.
    pub bytes: Written,
    /// The part of it that comes; the rest keeps its content.
    pub part: Part,
    /// What the medium makes of it.
    pub effect: Effect,
}

/// Some of a write's sectors: from the first byte to the last, both multiples of a sector, or all but these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All.
    Whole,
    /// The bytes from the first up to the second.
    Only(usize, usize),
    /// The others.
    Except(usize, usize),
}

/// What the medium makes of what lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is written.
    Written,
    /// It should be there, and reads go on to return what was there before.
    Lost,
    /// It is there though it should not: over what is pristine.
    Stray,
    /// It is written, and a bit of it rots: this byte of it.
    Rots(usize),
}

/// One simulated device.
#[derive(Debug, Default)]
pub struct SimDevice {
    cells: Vec<Option<Box<Cell>>>,
    /// Blocks written of late, where misdirected I/O goes.
    hot: Vec<u64>,
    hot_next: usize,
}

impl SimDevice {
    /// A device of zeros.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a landing part of what the device holds. Returns whether it rotted something.
    pub fn land(&mut self, now: Tick, landing: &Landing) {
        self.heat(landing.lba);
        for (index, block) in (0..landing.bytes.len() / BLOCK_BYTES).zip(landing.lba..) {
            let at = index * BLOCK_BYTES;
            let new = Bytes {
                whole: Rc::clone(&landing.bytes),
                at,
            };
            let part = within(landing.part, at);
            if part == Part::Only(0, 0) {
                continue;
            }
            let cell = self.cell(block);
            let before = cell.shown();
            let mixed = |old: &Option<Bytes>| -> Bytes {
                if part == Part::Whole {
                    return new.clone();
                }
                let mut bytes = Bytes::copy(old.as_ref());
                merge(&mut bytes, new.get(), part);
                Bytes::new(&bytes)
            };
            match landing.effect {
                Effect::Written | Effect::Rots(_) => {
                    let shown = cell.overlay.is_some().then(|| mixed(&cell.overlay));
                    cell.pristine = Some(mixed(&cell.pristine));
                    cell.overlay = if part == Part::Whole { None } else { shown };
                    if let Effect::Rots(byte) = landing.effect
                        && let Some(byte) = byte.checked_sub(at).filter(|byte| *byte < BLOCK_BYTES)
                    {
                        cell.flip(byte);
                    }
                }
                Effect::Lost => {
                    let shown = cell.shown().unwrap_or_else(|| Bytes::new(&ZEROS));
                    cell.pristine = Some(mixed(&cell.pristine));
                    cell.overlay = Some(shown);
                }
                Effect::Stray => cell.overlay = Some(mixed(&before)),
            }
            cell.outdate(now, before);
        }
    }

    /// What a read that ends now returns. A torn one has the older half of its sectors from `before`; a stale one has
    /// each block as it was within `bound`, if it was another then.
    pub fn read_stale(&self, now: Tick, bound: std::time::Duration, lba: u64, bytes: &mut [u8]) {
        for (content, block) in bytes.chunks_mut(BLOCK_BYTES).zip(lba..) {
            let Some(cell) = self.look(block) else {
                continue;
            };
            let is_recent = |(until, _): &&(Tick, Option<Bytes>)| now.since(*until) <= bound;
            if let Some((_, old)) = cell.older.iter().find(is_recent) {
                match old {
                    Some(old) => content.copy_from_slice(old.get()),
                    None => content.fill(0),
                }
            }
        }
    }

    /// Appends the content that reads see now.
    pub fn read_into(&self, lba: u64, blocks: u32, bytes: &mut Vec<u8>) {
        bytes.reserve(blocks as usize * BLOCK_BYTES);
        for block in lba..lba + u64::from(blocks) {
            bytes.extend_from_slice(self.shown(block));
        }
    }

    /// Puts the content of one block down that reads see now.
    pub fn read_block(&self, lba: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(self.shown(lba));
    }

    /// The content that reads see now.
    #[must_use]
    pub fn bytes(&self, lba: u64, blocks: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(blocks as usize * BLOCK_BYTES);
        self.read_into(lba, blocks, &mut bytes);
        bytes
    }

    /// Writes at once and without fault: what `pool create` does, or a test.
    pub fn put(&mut self, lba: u64, bytes: &[u8]) {
        for (content, block) in bytes.chunks(BLOCK_BYTES).zip(lba..) {
            let mut whole = [0; BLOCK_BYTES];
            whole[..content.len()].copy_from_slice(content);
            let cell = self.cell(block);
            cell.pristine = Some(Bytes::new(&whole));
            cell.overlay = None;
        }
    }

    /// Flips a bit of a block until it is written again.
    pub fn decay(&mut self, lba: u64, offset: usize) {
        self.cell(lba).flip(offset);
    }

    /// Faults end: reads return what was written last.
    pub fn heal(&mut self) {
        for cell in self.cells.iter_mut().flatten() {
            cell.overlay = None;
        }
    }

    /// A block that was written of late, by a number that the caller draws.
    #[must_use]
    pub fn hot(&self, draw: u64) -> u64 {
        let index = draw.checked_rem(self.hot.len() as u64).unwrap_or(0);
        let index = usize::try_from(index).unwrap_or(0);
        self.hot.get(index).copied().unwrap_or(16)
    }

    fn heat(&mut self, lba: u64) {
        if self.hot.contains(&lba) {
            return;
        }
        if self.hot.len() < HOT_MAX {
            self.hot.push(lba);
        } else {
            self.hot[self.hot_next] = lba;
            self.hot_next = (self.hot_next + 1) % HOT_MAX;
        }
    }

    fn shown(&self, block: u64) -> &[u8] {
        let shown = self.look(block).and_then(Cell::shown_ref);
        shown.map_or(&ZEROS[..], Bytes::get)
    }

    fn look(&self, block: u64) -> Option<&Cell> {
        let index = usize::try_from(block).ok()?;
        self.cells.get(index)?.as_deref()
    }

    fn cell(&mut self, block: u64) -> &mut Cell {
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        if index >= self.cells.len() {
            self.cells.resize_with(index + 1, || None);
        }
        self.cells[index].get_or_insert_default()
    }
}

impl Cell {
    fn shown_ref(&self) -> Option<&Bytes> {
        self.overlay.as_ref().or(self.pristine.as_ref())
    }

    fn shown(&self) -> Option<Bytes> {
        self.shown_ref().cloned()
    }

    fn outdate(&mut self, now: Tick, before: Option<Bytes>) {
        if self.older.len() >= VERSIONS_MAX {
            self.older.remove(0);
        }
        self.older.push((now, before));
    }

    fn flip(&mut self, byte: usize) {
        let mut bytes = Bytes::copy(self.shown_ref());
        bytes[byte] ^= 0x40;
        self.overlay = Some(Bytes::new(&bytes));
    }
}

/// The part of the block that begins at byte `at` of a write.
fn within(part: Part, at: usize) -> Part {
    let clip = |byte: usize| byte.saturating_sub(at).min(BLOCK_BYTES);
    match part {
        Part::Whole => Part::Whole,
        Part::Only(from, to) => match (clip(from), clip(to)) {
            (0, BLOCK_BYTES) => Part::Whole,
            (from, to) if from == to => Part::Only(0, 0),
            (from, to) => Part::Only(from, to),
        },
        Part::Except(from, to) => match (clip(from), clip(to)) {
            (0, BLOCK_BYTES) => Part::Only(0, 0),
            (from, to) if from == to => Part::Whole,
            (from, to) => Part::Except(from, to),
        },
    }
}

fn merge(bytes: &mut [u8; BLOCK_BYTES], new: &[u8], part: Part) {
    match part {
        Part::Whole => bytes.copy_from_slice(new),
        Part::Only(from, to) => bytes[from..to].copy_from_slice(&new[from..to]),
        Part::Except(from, to) => {
            bytes[..from].copy_from_slice(&new[..from]);
            bytes[to..].copy_from_slice(&new[to..]);
        }
    }
}

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// Older versions of a block that are kept.
const VERSIONS_MAX: usize = 4;
/// Blocks that misdirected I/O goes to.
const HOT_MAX: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn covers(part: Part, at: usize) -> bool {
        match part {
            Part::Whole => true,
            Part::Only(from, to) => (from..to).contains(&at),
            Part::Except(from, to) => !(from..to).contains(&at),
        }
    }

    fn landing(part: Part, effect: Effect) -> Landing {
        Landing {
            lba: 7,
            bytes: Rc::from([1; 2 * BLOCK_BYTES]),
            part,
            effect,
        }
    }

    #[test]
    fn what_a_fault_hid_or_changed_is_back_when_faults_end() {
        let now = Tick::from_millis(1);
        for (effect, after) in [
            (Effect::Lost, 1),
            (Effect::Stray, 9),
            (Effect::Rots(5000), 1),
        ] {
            let mut device = SimDevice::new();
            device.put(7, &[9; 2 * BLOCK_BYTES]);
            device.land(now, &landing(Part::Whole, effect));
            let seen = device.bytes(7, 2);
            device.heal();
            let healed = device.bytes(7, 2);
            assert!(seen != healed, "{effect:?}");
            assert!(healed.iter().all(|byte| *byte == after), "{effect:?}");
        }
    }

    #[test]
    fn a_part_lands_alone_and_the_rest_keeps_its_content() {
        let now = Tick::from_millis(1);
        for (part, count) in [
            (Part::Only(0, 512), 512),
            (Part::Only(3584, 4608), 1024),
            (Part::Except(3584, 4608), 2 * BLOCK_BYTES - 1024),
            (Part::Except(4096, 8192), 4096),
        ] {
            let mut device = SimDevice::new();
            device.land(now, &landing(part, Effect::Written));
            let bytes = device.bytes(7, 2);
            let written = bytes.iter().enumerate().filter(|(_, byte)| **byte == 1);
            let written: Vec<usize> = written.map(|(at, _)| at).collect();
            assert_eq!(written.len(), count, "{part:?}");
            assert!(written.iter().all(|at| covers(part, *at)), "{part:?}");
        }
    }

    #[test]
    fn a_stale_read_goes_back_no_further_than_its_bound() {
        let mut device = SimDevice::new();
        let write = |device: &mut SimDevice, millis: u64, byte: u8| {
            let mut landing = landing(Part::Whole, Effect::Written);
            landing.bytes = Rc::from([byte; 2 * BLOCK_BYTES]);
            device.land(Tick::from_millis(millis), &landing);
        };
        write(&mut device, 10, 1);
        write(&mut device, 20, 2);
        write(&mut device, 100, 3);
        let read = |bound: u64| {
            let mut bytes = device.bytes(7, 1);
            let bound = Duration::from_millis(bound);
            device.read_stale(Tick::from_millis(110), bound, 7, &mut bytes);
            bytes[0]
        };
        assert_eq!([read(5), read(50), read(95), read(100)], [3, 2, 1, 0]);
    }
}
