//! Progress of long calls, through a small trait of our own.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustic_core::{ProgressBars, ProgressType, RusticProgress};

/// What a phase counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Nothing; it only lasts.
    Nothing,
    /// Objects, snapshots or trees.
    Items,
    /// Bytes.
    Bytes,
}

/// Is told how a call gets on. Calls come from many threads and must return at once; phases may overlap.
pub trait Progress: Send + Sync + 'static {
    /// A phase begins, in words of the engine.
    fn phase(&self, what: &str, unit: Unit);

    /// The current phase will count up to this.
    fn total(&self, amount: u64);

    /// The current phase has got on by this much.
    fn advance(&self, amount: u64);

    /// The current phase has ended.
    fn done(&self);
}

/// The place where a repository keeps its observer; empty until one is set.
#[derive(Clone, Default)]
pub(crate) struct ProgressSlot(Arc<Mutex<Option<Arc<dyn Progress>>>>);

impl ProgressSlot {
    pub(crate) fn set(&self, progress: Option<Arc<dyn Progress>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    fn current(&self) -> Option<Arc<dyn Progress>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl fmt::Debug for ProgressSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressSlot")
    }
}

impl ProgressBars for ProgressSlot {
    fn progress(&self, kind: ProgressType, prefix: &str) -> rustic_core::Progress {
        let Some(progress) = self.current() else {
            return rustic_core::Progress::hidden();
        };
        let unit = match kind {
            ProgressType::Spinner => Unit::Nothing,
            ProgressType::Counter => Unit::Items,
            ProgressType::Bytes => Unit::Bytes,
        };
        progress.phase(prefix.trim_end_matches("..."), unit);
        rustic_core::Progress::new(Phase(progress))
    }
}

struct Phase(Arc<dyn Progress>);

impl fmt::Debug for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Phase")
    }
}

impl RusticProgress for Phase {
    fn is_hidden(&self) -> bool {
        false
    }

    fn set_length(&self, length: u64) {
        self.0.total(length);
    }

    fn set_title(&self, _title: &str) {}

    fn inc(&self, amount: u64) {
        self.0.advance(amount);
    }

    fn finish(&self) {
        self.0.done();
    }
}
