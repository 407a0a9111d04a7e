//! Writes that were acknowledged early: a bounded window of packs on their way to the store.
//!
//! Invariants:
//! - At most [`WindowLimits::packs`] packs and [`WindowLimits::bytes`] bytes wait or travel; a pack larger than the whole
//!   window travels alone.
//! - [`Window::drain`] returns only after every write pushed before it is durable, or with the first failure.
//! - The first failure is kept for ever: nothing is written after it.
//! - Nothing here panics, and a panicking store counts as a failed one.
//!
//! There are no idle threads: a worker lives while there is something to write.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use backlane_proto::{ObjectId, ObjectKind, ObjectName, PackContents};
use bytes::Bytes;

use crate::store::{ObjectStore, StoreError};

/// How much may be under way at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowLimits {
    /// Packs, which is also the number of writes that the store sees at once.
    pub(crate) packs: usize,
    /// Bytes of their bodies.
    pub(crate) bytes: usize,
}

/// The window. Clones share it.
#[derive(Clone)]
pub(crate) struct Window {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn ObjectStore>,
    limits: WindowLimits,
    state: Mutex<State>,
    changed: Condvar,
    failed: AtomicBool,
}

#[derive(Default)]
struct State {
    next: u64,
    queued: VecDeque<u64>,
    pending: BTreeMap<u64, Pending>,
    by_id: HashMap<ObjectId, u64>,
    bytes: usize,
    workers: usize,
    error: Option<Arc<StoreError>>,
}

#[derive(Clone)]
struct Pending {
    id: ObjectId,
    contents: PackContents,
    body: Bytes,
}

type Sticky<T> = Result<T, Arc<StoreError>>;

impl Window {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, limits: WindowLimits) -> Self {
        Self {
            shared: Arc::new(Shared {
                store,
                limits,
                state: Mutex::default(),
                changed: Condvar::new(),
                failed: AtomicBool::new(false),
            }),
        }
    }

    /// Takes a pack in, waiting for room.
    pub(crate) fn push(&self, id: ObjectId, contents: PackContents, body: Bytes) -> Sticky<()> {
        let limits = self.shared.limits;
        let mut state = self.shared.wait_while(|state| {
            let full = state.pending.len() >= limits.packs
                || state.bytes.saturating_add(body.len()) > limits.bytes;
            full && !state.pending.is_empty()
        })?;
        if state.by_id.contains_key(&id) {
            return Ok(());
        }
        let sequence = state.next;
        state.next += 1;
        state.bytes += body.len();
        state.by_id.insert(id, sequence);
        state.queued.push_back(sequence);
        let pending = Pending { id, contents, body };
        state.pending.insert(sequence, pending);
        if state.workers < limits.packs {
            state.workers += 1;
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new()
                .name("pack-writer".to_owned())
                .spawn(move || shared.work());
            if let Err(error) = spawned {
                state.workers -= 1;
                let failed = StoreError::Failed(Box::new(error));
                return Err(self.shared.fail(&mut state, failed));
            }
        }
        Ok(())
    }

    /// Waits for every write that was pushed before.
    pub(crate) fn drain(&self) -> Sticky<()> {
        let end = self.shared.lock().next;
        self.shared
            .wait_while(|state| {
                let first = state.pending.first_key_value();
                first.is_some_and(|(sequence, _)| *sequence < end)
            })
            .map(drop)
    }

    /// The body of a pack that is still on its way.
    pub(crate) fn find(&self, id: ObjectId) -> Sticky<Option<Bytes>> {
        let state = self.shared.lock();
        state.check()?;
        let pending = state.by_id.get(&id).and_then(|at| state.pending.get(at));
        Ok(pending.map(|pending| pending.body.clone()))
    }

    /// Names and sizes of the packs that are still on their way.
    pub(crate) fn pending(&self) -> Sticky<Vec<(ObjectId, usize)>> {
        let state = self.shared.lock();
        state.check()?;
        let row = |pending: &Pending| (pending.id, pending.body.len());
        Ok(state.pending.values().map(row).collect())
    }

    /// Marks the handle failed; returns the first failure, which may be an earlier one.
    pub(crate) fn fail(&self, error: StoreError) -> Arc<StoreError> {
        self.shared.fail(&mut self.shared.lock(), error)
    }

    /// Whether a write has failed. Cheap.
    pub(crate) fn failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// The first failure.
    pub(crate) fn first_error(&self) -> Option<Arc<StoreError>> {
        self.shared.lock().error.clone()
    }
}

impl State {
    fn check(&self) -> Sticky<()> {
        self.error.clone().map_or(Ok(()), Err)
    }

    fn finish(&mut self, sequence: u64) {
        if let Some(pending) = self.pending.remove(&sequence) {
            self.by_id.remove(&pending.id);
            self.bytes -= pending.body.len();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the condition is false, or a write has failed.
    fn wait_while(&self, condition: impl Fn(&State) -> bool) -> Sticky<MutexGuard<'_, State>> {
        let blocked = |state: &mut State| state.error.is_none() && condition(state);
        let state = self
            .changed
            .wait_while(self.lock(), blocked)
            .unwrap_or_else(PoisonError::into_inner);
        state.check()?;
        Ok(state)
    }

    fn fail(&self, state: &mut State, error: StoreError) -> Arc<StoreError> {
        let first = Arc::clone(state.error.get_or_insert_with(|| Arc::new(error)));
        state.queued.clear();
        state.pending.clear();
        state.by_id.clear();
        state.bytes = 0;
        self.failed.store(true, Ordering::Release);
        self.changed.notify_all();
        first
    }

    /// A worker: writes what is queued, and ends when nothing is.
    fn work(&self) {
        let mut state = self.lock();
        while let Some(sequence) = state.queued.pop_front() {
            let Some(pending) = state.pending.get(&sequence).cloned() else {
                continue;
            };
            drop(state);
            let result = self.write(pending);
            state = self.lock();
            match result {
                Ok(()) => state.finish(sequence),
                Err(error) => drop(self.fail(&mut state, error)),
            }
            self.changed.notify_all();
        }
        state.workers -= 1;
    }

    fn write(&self, pending: Pending) -> Result<(), StoreError> {
        let name = ObjectName {
            kind: ObjectKind::Pack,
            id: pending.id,
        };
        let write = || self.store.write(name, pending.contents, pending.body);
        catch_unwind(AssertUnwindSafe(write))
            .unwrap_or_else(|_| Err(StoreError::Failed("the store panicked".into())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::testing::{Gate, MemoryStore, pack_name};

    fn window(store: &Arc<MemoryStore>, packs: usize, bytes: usize) -> Window {
        let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
        Window::new(store, WindowLimits { packs, bytes })
    }

    fn push(window: &Window, number: u8, bytes: usize) -> Sticky<()> {
        let body = Bytes::from(vec![number; bytes]);
        window.push(pack_name(number).id, PackContents::Data, body)
    }

    #[test]
    fn drain_returns_only_after_every_earlier_write() {
        let store = Arc::new(MemoryStore::default());
        let gate = store.hold_writes();
        let window = window(&store, 4, 1 << 20);
        for number in 0..4 {
            push(&window, number, 10).unwrap();
        }
        let (sender, drained) = mpsc::channel();
        let waiting = window.clone();
        let waiter = thread::spawn(move || sender.send(waiting.drain().is_ok()).unwrap());
        gate.wait_for_waiting(4);
        assert!(drained.try_recv().is_err(), "drained while held");
        gate.open();
        assert!(drained.recv().unwrap());
        waiter.join().unwrap();
        assert_eq!(store.count(ObjectKind::Pack), 4);
    }

    #[test]
    fn drain_does_not_wait_for_writes_pushed_after_it() {
        let store = Arc::new(MemoryStore::default());
        let window = window(&store, 4, 1 << 20);
        push(&window, 0, 10).unwrap();
        window.drain().unwrap();
        let gate = store.hold_writes();
        push(&window, 1, 10).unwrap();
        gate.wait_for_waiting(1);
        // What was drained already is durable; the later write still hangs.
        assert_eq!(window.pending().unwrap().len(), 1);
        gate.open();
        window.drain().unwrap();
    }

    #[test]
    fn what_is_on_its_way_can_be_found_and_listed() {
        let store = Arc::new(MemoryStore::default());
        let gate = store.hold_writes();
        let window = window(&store, 4, 1 << 20);
        push(&window, 7, 10).unwrap();
        assert_eq!(window.pending().unwrap(), [(pack_name(7).id, 10)]);
        assert_eq!(window.find(pack_name(7).id).unwrap().unwrap(), [7; 10][..]);
        gate.open();
        window.drain().unwrap();
        assert_eq!(window.pending().unwrap(), []);
        assert_eq!(window.find(pack_name(7).id).unwrap(), None);
    }

    #[test]
    fn one_failure_fails_everything_after_it_with_the_first_reason() {
        let store = Arc::new(MemoryStore::default());
        let window = window(&store, 1, 1 << 20);
        push(&window, 0, 10).unwrap();
        window.drain().unwrap();
        store.fail_writes_from_now("disk is full");
        // Acknowledged early, or already seen to have failed: both are right.
        drop(push(&window, 1, 10));
        let first = window.drain().unwrap_err().to_string();
        assert!(first.contains("disk is full"), "{first}");
        assert!(window.failed());
        store.heal();
        let writes = store.writes_tried();
        assert!(push(&window, 2, 10).is_err());
        assert!(window.find(pack_name(0).id).is_err());
        assert!(window.pending().is_err());
        let later = window.fail(StoreError::Failed("another".into()));
        assert_eq!(later.to_string(), first);
        assert_eq!(store.writes_tried(), writes, "wrote after a failure");
    }

    #[test]
    fn a_panicking_store_is_a_failed_one() {
        let store = Arc::new(MemoryStore::default());
        store.panic_on_write();
        let window = window(&store, 2, 1 << 20);
        drop(push(&window, 0, 10));
        assert!(window.drain().unwrap_err().to_string().contains("panicked"));
    }

    fn second_push_waits(packs: usize, bytes: usize) {
        let store = Arc::new(MemoryStore::default());
        let gate: Gate = store.hold_writes();
        let window = window(&store, packs, bytes);
        push(&window, 0, 10).unwrap();
        let (sender, pushed) = mpsc::channel();
        let waiting = window.clone();
        let waiter = thread::spawn(move || sender.send(push(&waiting, 1, 10).is_ok()).unwrap());
        gate.wait_for_waiting(1);
        thread::yield_now();
        assert!(pushed.try_recv().is_err(), "no bound");
        assert!(window.pending().unwrap().len() <= 1);
        gate.open();
        assert!(pushed.recv().unwrap());
        waiter.join().unwrap();
        window.drain().unwrap();
        assert_eq!(store.count(ObjectKind::Pack), 2);
    }

    #[test]
    fn the_window_is_bounded_by_count_and_by_bytes() {
        second_push_waits(1, 1 << 20);
        second_push_waits(4, 15);
    }

    #[test]
    fn a_pack_larger_than_the_window_travels_alone() {
        let store = Arc::new(MemoryStore::default());
        let window = window(&store, 4, 15);
        push(&window, 0, 100).unwrap();
        push(&window, 1, 100).unwrap();
        window.drain().unwrap();
        assert_eq!(store.count(ObjectKind::Pack), 2);
        assert_eq!(store.most_writes_at_once(), 1);
    }
}
