//! The rest of a walk, of which threads look at what comes next before the walk comes there.
//!
//! The rest is one list in the order of the walk: names that nobody has looked at, batches of them that a thread looks
//! at, what was found, and where directories end. A thread takes the first names of the list that it may, and puts what it
//! finds in their place, with the names of directories that it listed. The walk takes what is first, waits where a thread
//! has begun with that, and looks for itself where none has: without threads it does everything, and it never waits for
//! anything that waits for it.
//!
//! Invariants: nothing changes places in the list, so that the order is that of one thread; each name is in one place of
//! it, so that it is looked at once; what was found and not yet taken, and the directories that are open for it, cost
//! [`HELD_MAX`] and what the threads have begun with at most. A panic of a thread goes on in the walk.

use super::{
    Detail, Shared,
    examine::{Directory, Found, Listing, look},
};
use crate::fs::Identity;
use std::{
    any::Any,
    collections::VecDeque,
    ffi::OsString,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
    vec,
};

/// How many threads look ahead. They wait for the disk, so that it doesn't matter how many cores there are.
const THREADS_MAX: usize = 4;

/// How many names a thread takes at once.
const BATCH_NAMES: usize = 32;

/// At what cost of what it has found a thread gives the other names back: others may list directories meanwhile.
const BATCH_MAX: usize = 64;

/// After how long it gives them back too: the walk may wait for the first.
const BATCH_FOR: Duration = Duration::from_millis(100);

/// How much may be held at once: an entry of usual size is one, a directory that is open [`DIRECTORY_COST`] of them.
const HELD_MAX: usize = 4096;

/// How much may be held before names that a thread begins with: that is enough to do. What comes later would only grow
/// old, and leave no room for what will be found before it.
const NEAR_MAX: usize = 512;

/// What an open directory counts as, so that at most 256 are.
const DIRECTORY_COST: usize = 16;

/// Each so many names that were listed count as an entry.
const NAMES_COST: usize = 16;

/// How long what was found may wait to be taken: then the walk looks again, as a file that has changed since would be
/// read by the size that it had, and one that was replaced not at all.
pub(super) const FRESH_FOR: Duration = Duration::from_secs(5);

/// Directories with more names than this are left to the walk to list.
const LISTED_MAX: usize = 512;

/// The rest of a walk.
pub(super) struct Ahead {
    work: Arc<Work>,
    /// How many threads there shall be once there is something to do.
    wanted: usize,
    threads: Vec<JoinHandle<()>>,
}

/// What comes next in a walk.
pub(super) enum Next {
    /// A name in the current directory, to be looked at.
    Name(OsString),
    /// What was found in the current directory.
    Found(Found),
    /// A directory in the current one, which is listed and becomes the current one.
    Directory(Found, Arc<Directory>, Identity),
    /// The end of the current directory.
    Up,
    /// The end of all.
    End,
}

struct Work {
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// There may be something that a thread can begin with, or all is over.
    to_do: Condvar,
    /// What comes next was found, or a thread has panicked.
    found: Condvar,
    is_over: AtomicBool,
}

#[derive(Default)]
struct State {
    /// What comes next is last.
    rest: Vec<Item>,
    /// What all of `rest` costs.
    held: usize,
    batches: u64,
    /// How many threads wait for something to do.
    idle: usize,
    panic: Option<Box<dyn Any + Send>>,
}

enum Item {
    /// Names that nobody has begun with. Their directory is the current one or one further up, which are closed and
    /// opened again as the walk needs it, or one that was listed ahead.
    Names(Weak<Directory>, vec::IntoIter<OsString>),
    /// Where the result of a batch will be, which has so many names.
    Begun(u64, usize),
    /// What was found in one directory, and what it costs.
    Found(VecDeque<Found>, usize),
    /// One that was listed, and what it costs. What is in it follows, and its end.
    Directory(Box<Found>, Arc<Directory>, Identity, usize),
    Up,
}

/// Names that a thread has begun with.
struct Batch {
    number: u64,
    directory: Arc<Directory>,
    names: vec::IntoIter<OsString>,
}

impl Item {
    fn cost(&self) -> usize {
        match self {
            Self::Names(..) | Self::Up => 0,
            Self::Begun(_, cost) | Self::Found(_, cost) | Self::Directory(_, _, _, cost) => *cost,
        }
    }

    /// A directory that was listed, with what is to be looked at in it.
    fn directory(found: Found, listing: Listing) -> [Self; 3] {
        let Listing {
            directory,
            identity,
            names,
        } = listing;
        let cost = DIRECTORY_COST + found.cost() + names.len() / NAMES_COST;
        let weak = Arc::downgrade(&directory);
        [
            Self::Directory(Box::new(found), directory, identity, cost),
            Self::Names(weak, names.into_iter()),
            Self::Up,
        ]
    }
}

impl Ahead {
    /// Nothing yet. `threads` are those that the whole backup may use.
    pub(super) fn new(shared: Arc<Shared>, threads: Option<NonZero<usize>>) -> Self {
        let threads = threads.map_or(THREADS_MAX, NonZero::get);
        let wanted = match (shared.detail, threads) {
            // Counting must not compete with the backup that it goes beside.
            (Detail::Count, _) | (_, 1) => 0,
            _ => threads.min(THREADS_MAX),
        };
        let work = Work {
            shared,
            state: Mutex::default(),
            to_do: Condvar::new(),
            found: Condvar::new(),
            is_over: AtomicBool::new(false),
        };
        Self {
            work: Arc::new(work),
            wanted,
            threads: Vec::new(),
        }
    }

    /// Puts the names of a directory, which becomes the current one, before everything else.
    pub(super) fn enter(&mut self, directory: &Arc<Directory>, names: Vec<OsString>) {
        let names = Item::Names(Arc::downgrade(directory), names.into_iter());
        let mut state = self.work.state();
        state.rest.extend([Item::Up, names]);
        self.work.wake(state);
        while self.threads.len() < self.wanted {
            let work = Arc::clone(&self.work);
            let thread = thread::Builder::new().name("walk".to_owned());
            match thread.spawn(move || work.run()) {
                Ok(thread) => self.threads.push(thread),
                // The walk does what no thread does.
                Err(_) => self.wanted = self.threads.len(),
            }
        }
    }

    /// Takes what comes next. A name is looked at in the `current` directory.
    pub(super) fn next(&self, current: Option<&Arc<Directory>>) -> Next {
        let mut state = self.work.state();
        loop {
            if let Some(panic) = state.panic.take() {
                drop(state);
                resume_unwind(panic);
            }
            let items = state.rest.len();
            let mut is_reopened = false;
            let next = match state.rest.pop() {
                Some(begun @ Item::Begun(..)) => {
                    state.rest.push(begun);
                    let waited = self.work.found.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                Some(Item::Names(directory, mut names)) => {
                    let Some(name) = names.next() else {
                        continue;
                    };
                    is_reopened = directory.strong_count() == 0;
                    let directory = current.map_or_else(Weak::new, Arc::downgrade);
                    state.rest.push(Item::Names(directory, names));
                    Next::Name(name)
                }
                Some(Item::Found(mut run, cost)) => {
                    let Some(found) = run.pop_front() else {
                        continue;
                    };
                    state.held -= found.cost();
                    if !run.is_empty() {
                        state.rest.push(Item::Found(run, cost - found.cost()));
                    }
                    if self.work.is_fresh(&found) {
                        Next::Found(found)
                    } else {
                        Next::Name(found.name)
                    }
                }
                Some(Item::Directory(found, directory, identity, cost)) => {
                    state.held -= cost;
                    if self.work.is_fresh(&found) {
                        Next::Directory(*found, directory, identity)
                    } else {
                        state.drop_to_end();
                        state.rest.pop();
                        Next::Name(found.name)
                    }
                }
                Some(Item::Up) => Next::Up,
                None => Next::End,
            };
            if state.rest.len() < items || is_reopened {
                self.work.wake(state);
            }
            return next;
        }
    }

    /// Drops what is left of the current directory, whose end comes next then.
    pub(super) fn drop_current(&mut self) {
        self.work.state().drop_to_end();
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let state = self.work.state();
        self.work.is_over.store(true, Ordering::Release);
        drop(state);
        self.work.to_do.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was caught.
            let _ = thread.join();
        }
    }
}

impl Work {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn must_end(&self) -> bool {
        self.is_over.load(Ordering::Acquire) || self.shared.reporter.cancel.is_cancelled()
    }

    fn is_fresh(&self, found: &Found) -> bool {
        found.since.elapsed() <= self.shared.fresh_for
    }

    /// Wakes a thread if one may find something to do.
    fn wake(&self, state: MutexGuard<'_, State>) {
        if state.idle > 0 {
            drop(state);
            self.to_do.notify_one();
        }
    }

    /// What each thread does.
    fn run(&self) {
        while let Some(batch) = self.begin() {
            let number = batch.number;
            match catch_unwind(AssertUnwindSafe(|| self.examine(batch))) {
                Ok(found) => self.put(number, found),
                Err(panic) => {
                    self.state().panic = Some(panic);
                    self.found.notify_one();
                    return;
                }
            }
        }
    }

    /// The next names to look at; `None` when all is over.
    fn begin(&self) -> Option<Batch> {
        let mut state = self.state();
        loop {
            if self.must_end() {
                return None;
            }
            if let Some(batch) = state.begin() {
                // There may be more.
                self.wake(state);
                return Some(batch);
            }
            state.idle += 1;
            let waited = self.to_do.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// What comes in place of a batch: what was found, and the names that weren't looked at.
    fn examine(&self, mut batch: Batch) -> Vec<Item> {
        let (mut items, mut cost, begun) = (Vec::new(), 0, Instant::now());
        while !self.must_end()
            && cost < BATCH_MAX
            && begun.elapsed() < BATCH_FOR
            && let Some(name) = batch.names.next()
        {
            let Some(mut found) = look(&self.shared, &batch.directory, name) else {
                continue;
            };
            match found.list(&self.shared, &batch.directory, LISTED_MAX) {
                Some(listing) => {
                    items.extend(Item::directory(found, listing));
                    cost += DIRECTORY_COST;
                }
                None => match items.last_mut() {
                    Some(Item::Found(run, sum)) => {
                        *sum += found.cost();
                        run.push_back(found);
                    }
                    _ => {
                        let sum = found.cost();
                        items.push(Item::Found(VecDeque::from([found]), sum));
                    }
                },
            }
            cost += 1;
        }
        if batch.names.len() > 0 {
            let directory = Arc::downgrade(&batch.directory);
            items.push(Item::Names(directory, batch.names));
        }
        items
    }

    fn put(&self, batch: u64, found: Vec<Item>) {
        let mut state = self.state();
        let begun = |item: &Item| matches!(item, Item::Begun(number, _) if *number == batch);
        // Where there is none, it was dropped with the rest of its directory.
        let Some(at) = state.rest.iter().rposition(begun) else {
            return;
        };
        state.held += found.iter().map(Item::cost).sum::<usize>();
        state.held -= state.rest[at].cost();
        let is_next = at + 1 == state.rest.len();
        state.rest.splice(at..=at, found.into_iter().rev());
        drop(state);
        if is_next {
            self.found.notify_one();
        }
    }
}

impl State {
    fn pop(&mut self) -> Option<Item> {
        let item = self.rest.pop()?;
        self.held -= item.cost();
        Some(item)
    }

    /// Drops what comes before the end of the directory that comes next.
    fn drop_to_end(&mut self) {
        let mut below = 0;
        while let Some(item) = self.rest.last() {
            match item {
                Item::Up if below == 0 => return,
                Item::Up => below -= 1,
                Item::Directory(..) => below += 1,
                _ => {}
            }
            self.pop();
        }
    }

    /// Begins with the first names that a thread may look at now.
    fn begin(&mut self) -> Option<Batch> {
        let (at, directory) = self.first()?;
        let Item::Names(_, names) = &mut self.rest[at] else {
            return None;
        };
        let names: Vec<_> = names.by_ref().take(BATCH_NAMES).collect();
        self.batches += 1;
        self.held += names.len();
        let begun = Item::Begun(self.batches, names.len());
        self.rest.insert(at + 1, begun);
        Some(Batch {
            number: self.batches,
            directory,
            names: names.into_iter(),
        })
    }

    /// Where those names are, and their directory.
    fn first(&self) -> Option<(usize, Arc<Directory>)> {
        if self.held >= HELD_MAX {
            return None;
        }
        let mut before = 0;
        for (at, item) in self.rest.iter().enumerate().rev() {
            match item {
                _ if before >= NEAR_MAX => break,
                Item::Names(directory, names) if names.len() > 0 => {
                    // Those further up are closed as well.
                    return Some((at, directory.upgrade()?));
                }
                item => before += item.cost(),
            }
        }
        None
    }
}

#[cfg(test)]
impl Ahead {
    /// Waits until there is nothing that a thread could do.
    pub(super) fn settle(&self) {
        loop {
            let state = self.work.state();
            if state.idle == self.threads.len() {
                if state.first().is_none() {
                    return;
                }
                self.work.wake(state);
            }
            thread::yield_now();
        }
    }

    /// Waits until every thread waits, as far as can be told.
    pub(super) fn wait_for_idle(&self) {
        let mut quiet = 0;
        while quiet < 50 {
            let idle = self.work.state().idle;
            quiet = if idle == self.threads.len() {
                quiet + 1
            } else {
                0
            };
            thread::yield_now();
        }
    }

    pub(super) fn held(&self) -> usize {
        self.work.state().held
    }
}

#[cfg(test)]
pub(super) mod limits {
    pub(crate) const BATCH: usize = super::BATCH_NAMES;
    pub(crate) const NEAR: usize = super::NEAR_MAX;
    pub(crate) const HELD: usize = super::HELD_MAX;
    pub(crate) const DIRECTORY: usize = super::DIRECTORY_COST;
    pub(crate) const LISTED: usize = super::LISTED_MAX;
}
