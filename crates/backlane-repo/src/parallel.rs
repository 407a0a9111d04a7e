//! Work on many objects at once, which hides a remote store's latency.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::RepoError;
use crate::store::StoreError;

/// How many threads work.
const THREADS: usize = 4;

/// Calls `work` with each item, in no order, until one fails.
pub(crate) fn for_each<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), RepoError> + Sync,
) -> Result<(), RepoError> {
    let next = AtomicUsize::new(0);
    let run = || -> Result<(), RepoError> {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item).inspect_err(|_| next.store(items.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let count = THREADS.min(items.len());
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(run)).collect();
        let what = "the store panicked";
        let panicked = |_| Err(StoreError::Failed(what.into()).into());
        let ends = threads.into_iter().map(|one| one.join());
        let ends: Vec<_> = ends.map(|end| end.unwrap_or_else(panicked)).collect();
        ends.into_iter().collect()
    })
}
