//! Who drives: the driver's thread, or under [`Polling::Hot`](crate::Polling::Hot) the one user who waits for something.
//!
//! A message between two threads costs a wake-up on either side, which takes as long as a fast device. So the driver is
//! lent to a user's thread that waits to read: it makes the driver's turns itself until it has what it waits for, and
//! makes another one when it has written. The driver's own thread stands by, and takes the driver back when nobody made a
//! turn for [`LINGER`] or when anybody else wants something of it.
//!
//! Invariants: one thread at a time has the driver; no user's lock is held while a turn is made; a thread that panics
//! in a turn ends the driver.

use super::{Driver, io::tick};
use crate::promise::locked;
use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use storage_socket_proto::Tick;

/// How long a driver that was lent may stand still.
const LINGER: Duration = Duration::from_millis(1);

/// Where a driver is put down that is lent.
#[derive(Default)]
pub(crate) struct Wheel {
    state: Mutex<State>,
    changed: Condvar,
    /// Nobody drives, and whoever waits may.
    is_free: AtomicBool,
    /// When whoever drives has something to do besides what comes, in microseconds.
    due: AtomicU64,
}

#[derive(Default)]
struct State {
    driver: Option<Box<Driver>>,
    /// Advances with every use in which a turn was made: whoever finds at once what he reads serves nobody else.
    uses: u64,
    is_recalled: bool,
    /// Whoever had it panicked: it doesn't come back.
    is_broken: bool,
}

/// What a turn leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Another one is to be made.
    Goes,
    /// The driver has ended.
    Over,
}

impl Wheel {
    /// Lends the driver until it is recalled or nobody makes a turn; `None` if it broke.
    pub(super) fn lend(
        &self,
        mut driver: Box<Driver>,
        tell: impl FnOnce(),
        wake: impl Fn(),
    ) -> Option<Box<Driver>> {
        driver.is_lent = true;
        let mut state = locked(&self.state);
        state.is_recalled = false;
        state.driver = Some(driver);
        self.is_free.store(true, Ordering::SeqCst);
        drop(state);
        tell();
        let mut state = locked(&self.state);
        loop {
            let uses = state.uses;
            let (after, waited) = self
                .changed
                .wait_timeout(state, LINGER)
                .unwrap_or_else(PoisonError::into_inner);
            state = after;
            if state.is_broken {
                return None;
            }
            if state.driver.is_none() && self.due.load(Ordering::SeqCst) <= tick().as_micros() {
                wake();
            }
            let is_idle = waited.timed_out() && state.uses == uses;
            if (is_idle || state.is_recalled)
                && let Some(mut driver) = state.driver.take()
            {
                driver.is_lent = false;
                self.is_free.store(false, Ordering::SeqCst);
                return Some(driver);
            }
        }
    }

    /// The driver, if it is lent and nobody has it.
    pub(crate) fn take(&self) -> Option<AtWheel<'_>> {
        if !self.is_free.load(Ordering::SeqCst) {
            return None;
        }
        let mut state = locked(&self.state);
        if state.is_recalled {
            return None;
        }
        let driver = state.driver.take()?;
        self.is_free.store(false, Ordering::SeqCst);
        Some(AtWheel {
            wheel: self,
            driver: Some(driver),
            has_turned: false,
        })
    }

    /// Whoever drives waits until something comes, and is to be woken at this time: a timer of its own would cost as
    /// much as the rest of a turn.
    pub(super) fn wake_at(&self, due: Tick) {
        self.due.store(due.as_micros(), Ordering::SeqCst);
    }

    /// Whether the driver stands still for a moment.
    pub(crate) fn is_free(&self) -> bool {
        self.is_free.load(Ordering::SeqCst)
    }

    /// Somebody wants something of the driver: its own thread is to take it back.
    pub(crate) fn recall(&self) {
        if self.is_free() {
            locked(&self.state).is_recalled = true;
            self.changed.notify_one();
        }
    }
}

/// The driver in the hands of a user's thread.
pub(crate) struct AtWheel<'a> {
    wheel: &'a Wheel,
    driver: Option<Box<Driver>>,
    /// A turn was made.
    has_turned: bool,
}

impl AtWheel<'_> {
    /// Makes a turn, which waits for news for as long as `most`, and tells users of what has come: what is to be begun
    /// next can wait for what they do about it.
    pub(crate) fn turn(&mut self, most: Option<Duration>) -> Turn {
        let Some(driver) = &mut self.driver else {
            return Turn::Over;
        };
        self.has_turned = true;
        let turn = driver.turn(most);
        driver.tell();
        turn
    }

    /// What is said to the driver from here on is heard in the next turn: nobody needs to be woken for it.
    pub(crate) fn hush(&self) {
        if let Some(driver) = &self.driver {
            driver.inbox.hush();
        }
    }
}

impl Drop for AtWheel<'_> {
    fn drop(&mut self) {
        let driver = self.driver.take();
        let is_over = driver.as_ref().is_none_or(|driver| driver.why.is_some());
        // Others wait besides, and none of them drives.
        let is_wanted = driver
            .as_ref()
            .is_some_and(|driver| driver.inbox.waiting() > 0);
        if std::thread::panicking() {
            // What it was about to do is unknown: it ends, and tells everybody.
            drop(driver);
            locked(&self.wheel.state).is_broken = true;
            self.wheel.changed.notify_one();
            return;
        }
        let mut state = locked(&self.wheel.state);
        state.driver = driver;
        state.uses += u64::from(self.has_turned);
        state.is_recalled |= is_over || is_wanted;
        let is_recalled = state.is_recalled;
        self.wheel.is_free.store(!is_recalled, Ordering::SeqCst);
        drop(state);
        if is_recalled {
            self.wheel.changed.notify_one();
        }
    }
}
