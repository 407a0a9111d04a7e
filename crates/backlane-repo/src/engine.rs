//! Calls into rustic_core: opened afresh for each job, its panics caught, its errors told in our words.
//!
//! An engine is cheap to open (two small reads) and is used up by building an index, so none is kept.

use std::any::Any;
use std::error::Error;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustic_core::{
    Credentials, OpenStatus, RepositoryBackends, RepositoryOptions, RusticError, RusticResult,
    WriteBackend,
};

use crate::backend::Backend;
use crate::error::RepoError;
use crate::progress::ProgressSlot;
use crate::store::StoreError;

/// An engine that has the key.
pub(crate) type Engine = rustic_core::Repository<OpenStatus>;

/// An engine before it has the key. It keeps no cache on disk.
pub(crate) fn unopened(
    backend: &Arc<Backend>,
    progress: &ProgressSlot,
) -> RusticResult<rustic_core::Repository<()>> {
    let options = RepositoryOptions::default().no_cache(true);
    let backend: Arc<dyn WriteBackend> = Arc::clone(backend) as _;
    let backends = RepositoryBackends::new(backend, None);
    rustic_core::Repository::new_with_progress(&options, &backends, progress.clone())
}

/// An engine with the key.
pub(crate) fn opened(
    backend: &Arc<Backend>,
    progress: &ProgressSlot,
    credentials: &Credentials,
) -> RusticResult<Engine> {
    unopened(backend, progress)?.open(credentials)
}

/// Runs a call of the engine. After a failed write, that is what is reported, whatever the engine made of it.
pub(crate) fn guarded<T>(
    backend: &Backend,
    doing: &'static str,
    call: impl FnOnce() -> RusticResult<T>,
) -> Result<T, RepoError> {
    let result = caught(doing, call);
    if let Some(cause) = backend.window().first_error() {
        return Err(RepoError::WriteFailed { cause });
    }
    result
}

/// Runs a call of the engine that writes nothing.
pub(crate) fn caught<T>(
    doing: &'static str,
    call: impl FnOnce() -> RusticResult<T>,
) -> Result<T, RepoError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| engine_error(doing, &error)),
        Err(panic) => Err(RepoError::EnginePanicked {
            doing,
            what: panic_text(panic.as_ref()),
        }),
    }
}

/// The engine's error in our type: a damaged object below it is what matters, whatever the engine was doing.
pub(crate) fn engine_error(doing: &'static str, error: &RusticError) -> RepoError {
    let chain = iter::successors(error.source(), |&cause| cause.source());
    let mut causes = chain.filter_map(|cause| cause.downcast_ref::<Arc<StoreError>>());
    if let Some(damage) = causes.find_map(|cause| damage_of(cause)) {
        return damage.into();
    }
    RepoError::Engine {
        doing,
        what: error.display_log(),
    }
}

fn damage_of(error: &StoreError) -> Option<StoreError> {
    match error {
        StoreError::NotFound { name } => Some(StoreError::NotFound { name: *name }),
        StoreError::Damaged { name, what } => {
            let what = what.clone();
            Some(StoreError::Damaged { name: *name, what })
        }
        _ => None,
    }
}

/// The words of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
