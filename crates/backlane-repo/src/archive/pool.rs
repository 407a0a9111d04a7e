//! What there is to do, and who takes it.
//!
//! Pieces of files that are being read come first, then directories, then the next file. A thread that reads a large file
//! and finds no room for another piece works on it itself: no thread is set apart for anything, and none waits for one
//! that waits for it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Files that were found and not yet begun. A source may hold each of them open.
const FILES_MAX: usize = 64;
/// Directories that are whole and not yet stored.
const TREES_MAX: usize = 64;

/// Work for all threads of a backup.
pub(crate) struct Pool<F, P, T> {
    state: Mutex<State<F, P, T>>,
    /// There is work, or no more will come.
    work: Condvar,
    /// There is room for files and directories.
    room: Condvar,
    pieces_max: usize,
}

struct State<F, P, T> {
    files: VecDeque<F>,
    pieces: VecDeque<P>,
    trees: VecDeque<T>,
    has_ended: bool,
}

/// A piece of work.
pub(crate) enum Job<F, P, T> {
    File(F),
    Piece(P),
    Tree(T),
}

impl<F, P, T> Pool<F, P, T> {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            state: Mutex::new(State {
                files: VecDeque::new(),
                pieces: VecDeque::new(),
                trees: VecDeque::new(),
                has_ended: false,
            }),
            work: Condvar::new(),
            room: Condvar::new(),
            pieces_max: threads,
        }
    }

    fn state(&self) -> MutexGuard<'_, State<F, P, T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in a file, when there is room.
    pub(crate) fn push_file(&self, file: F) {
        let full = |state: &mut State<F, P, T>| state.files.len() >= FILES_MAX;
        self.push_when(full, |state| state.files.push_back(file));
    }

    /// Hands in a directory, when there is room.
    pub(crate) fn push_tree(&self, tree: T) {
        let full = |state: &mut State<F, P, T>| state.trees.len() >= TREES_MAX;
        self.push_when(full, |state| state.trees.push_back(tree));
    }

    fn push_when(
        &self,
        full: impl Fn(&mut State<F, P, T>) -> bool,
        push: impl FnOnce(&mut State<F, P, T>),
    ) {
        let blocked = |state: &mut State<F, P, T>| !state.has_ended && full(state);
        let state = self.room.wait_while(self.state(), blocked);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        // What comes after the end is dropped, as what was there before it.
        if !state.has_ended {
            push(&mut state);
        }
        drop(state);
        self.work.notify_one();
    }

    /// Hands in a piece, or gives it back where there is no room.
    pub(crate) fn offer(&self, piece: P) -> Result<(), P> {
        let mut state = self.state();
        if state.has_ended {
            return Ok(());
        }
        if state.pieces.len() >= self.pieces_max {
            return Err(piece);
        }
        state.pieces.push_back(piece);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// The next thing to do; `None` when the backup has ended.
    pub(crate) fn take(&self) -> Option<Job<F, P, T>> {
        let idle = |state: &mut State<F, P, T>| {
            let nothing =
                state.files.is_empty() && state.pieces.is_empty() && state.trees.is_empty();
            nothing && !state.has_ended
        };
        let state = self.work.wait_while(self.state(), idle);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.has_ended {
            return None;
        }
        let piece = state.pieces.pop_front().map(Job::Piece);
        let job = piece.or_else(|| {
            let job = state.trees.pop_front().map(Job::Tree);
            job.or_else(|| state.files.pop_front().map(Job::File))
        });
        drop(state);
        if matches!(job, Some(Job::File(_) | Job::Tree(_))) {
            self.room.notify_one();
        }
        job
    }

    /// Ends everything: what wasn't begun is dropped.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.has_ended = true;
        let dropped = (
            std::mem::take(&mut state.files),
            std::mem::take(&mut state.pieces),
            std::mem::take(&mut state.trees),
        );
        drop(state);
        // Outside of the lock: what is dropped may have something to say.
        drop(dropped);
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().has_ended
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn nothing_stays_after_the_end() {
        let file = Arc::new(());
        let pool = Pool::<_, _, ()>::new(1);
        pool.push_file(Arc::clone(&file));
        pool.end();
        pool.push_file(Arc::clone(&file));
        assert!(pool.offer(Arc::clone(&file)).is_ok());
        assert_eq!(Arc::strong_count(&file), 1);
        assert!(pool.take().is_none());
    }
}
