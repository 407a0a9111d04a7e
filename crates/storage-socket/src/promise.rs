//! A value that another thread will provide: waited for by a thread with a deadline, or by a task.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

/// Locks a mutex whose holders leave it whole even if they panic: each changes one thing at a time.
pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The waiting end.
#[derive(Debug)]
pub(crate) struct Promise<T>(Arc<Shared<T>>);

/// The end that provides the value; dropping it unfulfilled ends the wait as well.
#[derive(Debug)]
pub(crate) struct Fulfil<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    is_over: bool,
    waker: Option<Waker>,
}

/// Makes both ends.
pub(crate) fn promise<T>() -> (Fulfil<T>, Promise<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            value: None,
            is_over: false,
            waker: None,
        }),
        changed: Condvar::new(),
    });
    (Fulfil(shared.clone()), Promise(shared))
}

impl<T> Fulfil<T> {
    pub(crate) fn fulfil(self, value: T) {
        locked(&self.0.state).value = Some(value);
    }
}

impl<T> Drop for Fulfil<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = locked(&self.0.state);
            state.is_over = true;
            state.waker.take()
        };
        self.0.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Promise<T> {
    /// Waits at most `patience`; `None` when the other end gave up or time is over.
    pub(crate) fn wait(self, patience: Duration) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut state = locked(&self.0.state);
        loop {
            if state.value.is_some() || state.is_over {
                return state.value.take();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self
                .0
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Ready with `None` when the other end gave up.
impl<T> Future for Promise<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let waker = context.waker().clone();
        let mut state = locked(&self.0.state);
        if state.value.is_some() || state.is_over {
            return Poll::Ready(state.value.take());
        }
        // A waker is anybody's code, and its end is too: the one before goes without the lock.
        let before = state.waker.replace(waker);
        drop(state);
        drop(before);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_arrives_and_a_dropped_end_is_noticed() {
        let (fulfil, waiting) = promise();
        let thread = std::thread::spawn(move || waiting.wait(Duration::from_secs(60)));
        fulfil.fulfil(7);
        assert_eq!(thread.join().unwrap(), Some(7));
        let (fulfil, waiting) = promise::<u8>();
        drop(fulfil);
        assert_eq!(waiting.wait(Duration::from_secs(60)), None);
    }
}
