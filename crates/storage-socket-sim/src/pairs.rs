//! The rule of double-buffered blocks (section 1.2 of the design), watched from outside: by what is written where, and
//! how it ended.

use crate::{
    broken::{Broken, Promise},
    coverage::{Coverage, Transition},
    device::Written,
    host::Owner,
};
use std::collections::BTreeMap;
use storage_socket_proto::BLOCK_BYTES;

/// Where a pair lies, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PairPlace {
    pub(crate) owner: Owner,
    pub(crate) device: usize,
    /// Copy A.
    pub(crate) first: u64,
}

/// One pair, as its writer treats it.
#[derive(Debug)]
struct Pair {
    /// Where the last write went, and what it was.
    copy: u64,
    block: Written,
    is_writing: bool,
    /// The last write failed, and the copy wasn't read back since as it should be.
    is_suspect: bool,
}

/// All pairs of one process.
#[derive(Debug, Default)]
pub(crate) struct Pairs(BTreeMap<PairPlace, Pair>);

impl Pairs {
    /// A copy is about to be written.
    pub(crate) fn begin(
        &mut self,
        place: PairPlace,
        copy: u64,
        block: Written,
        hit: &mut Coverage,
    ) -> Result<(), Broken> {
        let Some(pair) = self.0.get_mut(&place) else {
            let pair = Pair {
                copy,
                block,
                is_writing: true,
                is_suspect: false,
            };
            self.0.insert(place, pair);
            return Ok(());
        };
        if pair.is_writing {
            return Err(Promise::Pairs.broken(format!("two writes at once to {place:?}")));
        }
        if pair.is_suspect && pair.copy != copy {
            let what = format!(
                "{place:?}: {copy} is written while {} is suspect",
                pair.copy
            );
            return Err(Promise::Pairs.broken(what));
        }
        if !pair.is_suspect && pair.copy == copy {
            let what = format!("{place:?}: {copy} is written twice in a row without cause");
            return Err(Promise::Pairs.broken(what));
        }
        hit.transition(if pair.is_suspect {
            Transition::PairRewritten
        } else {
            Transition::PairTurned
        });
        pair.copy = copy;
        pair.block = block;
        pair.is_writing = true;
        Ok(())
    }

    /// A write of a copy ended.
    pub(crate) fn written(&mut self, place: PairPlace, is_done: bool, hit: &mut Coverage) {
        if let Some(pair) = self.0.get_mut(&place) {
            pair.is_writing = false;
            if !is_done {
                pair.is_suspect = true;
                hit.transition(Transition::PairFailed);
            }
        }
    }

    /// A single block of a pair was read.
    pub(crate) fn read_back(&mut self, place: PairPlace, bytes: &[u8], hit: &mut Coverage) {
        let Some(pair) = self.0.get_mut(&place) else {
            return;
        };
        hit.transition(Transition::PairReadBack);
        if bytes.get(..BLOCK_BYTES) == Some(&pair.block[..]) {
            pair.is_suspect = false;
            hit.transition(Transition::PairProved);
        } else {
            hit.transition(Transition::PairDisproved);
        }
    }

    /// The pairs of a connection that has ended are forgotten.
    pub(crate) fn forget(&mut self, owner: Owner) {
        self.0.retain(|place, _| place.owner != owner);
    }
}
