//! The progress bar of a job: items, bytes, and what each route carries at the moment.
//!
//! It is drawn on standard error, and only where that is a terminal. Warnings are printed above it as they happen, so
//! that a long job's troubles are seen before its end.

use crate::{output::Output, output::bytes};
use backlane_client::{Progress, Warning};
use backlane_repo::{Progress as RepositoryProgress, Repository, Unit};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How often routes are looked at; a shorter time makes the rates flicker.
const RATE_INTERVAL: Duration = Duration::from_millis(500);
const DRAWS_PER_SECOND: u8 = 8;

/// Bytes carried by each route so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Carried {
    pub(crate) storage: u64,
    pub(crate) network: u64,
}

/// Watches one job.
pub(crate) struct Bar {
    bar: ProgressBar,
    items: AtomicU64,
    items_total: AtomicU64,
    output: Output,
    carried: Box<dyn Fn() -> Carried + Send + Sync>,
    rates: Mutex<Rates>,
}

/// Watches what goes through a whole repository: a check, a prune.
pub(crate) struct Phases {
    output: Output,
    phase: Mutex<Phase>,
}

/// A phase has a bar of its own: how often a bar may be drawn is then no matter of how short the phases before were.
struct Phase {
    bar: ProgressBar,
    unit: Unit,
}

struct Rates {
    at: Instant,
    carried: Carried,
    text: String,
}

impl Bar {
    /// A bar for a job whose routes `carried` tells about.
    pub(crate) fn new(
        output: Output,
        carried: impl Fn() -> Carried + Send + Sync + 'static,
    ) -> Arc<Self> {
        let bar = bar(output);
        bar.set_style(style(false));
        Arc::new(Self {
            bar,
            items: AtomicU64::new(0),
            items_total: AtomicU64::new(0),
            output,
            carried: Box::new(carried),
            rates: Mutex::new(Rates {
                at: Instant::now(),
                carried: Carried::default(),
                text: String::new(),
            }),
        })
    }

    /// Takes the bar off the terminal.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn message(&self) -> String {
        let items = self.items.load(Ordering::Relaxed);
        let total = self.items_total.load(Ordering::Relaxed);
        let items = if total > 0 {
            format!("{items}/{total}")
        } else {
            items.to_string()
        };
        format!("{items} files  {}", self.rates())
    }

    /// The routes' rates of the last interval.
    fn rates(&self) -> String {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let past = rates.at.elapsed();
        if past >= RATE_INTERVAL {
            let carried = (self.carried)();
            let rate = |now: u64, then: u64| {
                let millis = u64::try_from(past.as_millis()).unwrap_or(u64::MAX).max(1);
                bytes(now.saturating_sub(then).saturating_mul(1000) / millis)
            };
            rates.text = format!(
                "storage {}/s  network {}/s",
                rate(carried.storage, rates.carried.storage),
                rate(carried.network, rates.carried.network)
            );
            rates.carried = carried;
            rates.at = Instant::now();
        }
        rates.text.clone()
    }
}

impl Progress for Bar {
    fn total(&self, items: u64, bytes: u64) {
        self.items_total.store(items, Ordering::Relaxed);
        self.bar.set_length(bytes);
        self.bar.set_style(style(true));
    }

    fn advanced(&self, items: u64, bytes: u64) {
        self.items.fetch_add(items, Ordering::Relaxed);
        self.bar.inc(bytes);
        if !self.bar.is_hidden() {
            self.bar.set_message(self.message());
        }
    }

    fn current(&self, path: &Path) {
        if !self.bar.is_hidden() {
            self.bar
                .set_prefix(path.to_string_lossy().replace(char::is_control, "?"));
        }
    }

    fn warning(&self, warning: &Warning) {
        // `{:?}` of a path escapes what could play tricks on a terminal.
        let text = format!("{:?}: {}", warning.path, warning.what);
        self.bar.suspend(|| self.output.warning(text));
    }
}

impl Phases {
    /// Shows the phases of what this repository is asked for from now on.
    pub(crate) fn show(output: Output, repository: &Repository) {
        let phases = Self {
            output,
            phase: Mutex::new(Phase {
                bar: ProgressBar::hidden(),
                unit: Unit::Nothing,
            }),
        };
        repository.set_progress(Some(Arc::new(phases)));
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    fn set_style(&self, total_known: bool) {
        let counted = match (self.unit, total_known) {
            (Unit::Nothing, _) => "",
            (Unit::Items, false) => "{pos}",
            (Unit::Items, true) => "[{bar:24}] {pos}/{len}",
            (Unit::Bytes, false) => "{bytes}",
            (Unit::Bytes, true) => "[{bar:24}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
        };
        let style = ProgressStyle::with_template(&format!("{{elapsed}} {{prefix}} {counted}"));
        self.bar
            .set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    }
}

impl RepositoryProgress for Phases {
    fn phase(&self, what: &str, unit: Unit) {
        let mut phase = self.phase();
        phase.bar.finish_and_clear();
        let bar = bar(self.output);
        *phase = Phase { bar, unit };
        phase.set_style(false);
        phase.bar.set_prefix(what.to_owned());
        phase.bar.tick();
    }

    fn total(&self, amount: u64) {
        let phase = self.phase();
        phase.set_style(true);
        phase.bar.set_length(amount);
    }

    fn advance(&self, amount: u64) {
        self.phase().bar.inc(amount);
    }

    fn done(&self) {
        self.phase().bar.finish_and_clear();
    }
}

/// A bar on standard error, where that shows one.
fn bar(output: Output) -> ProgressBar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
    ProgressBar::with_draw_target(None, target)
}

fn style(total_known: bool) -> ProgressStyle {
    let template = if total_known {
        "{elapsed} [{bar:24}] {bytes}/{total_bytes}  {msg}\n{prefix:.dim}"
    } else {
        "{elapsed} {spinner} {bytes}  {msg}\n{prefix:.dim}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
