//! Ctrl-C and SIGTERM: the first asks the command to end in good order, the second ends the process at once.

use anyhow::{Context, Result};
use std::sync::Arc;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

/// Exit code of a process that was interrupted twice, as shells know it (128 + SIGINT).
const INTERRUPTED_TWICE: i32 = 130;

/// Set by the first signal, for good.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Shared with jobs, which look at it between files and objects.
    token: backlane_client::Cancel,
    notify: Notify,
}

impl Cancel {
    /// Starts to listen for signals.
    ///
    /// # Errors
    /// When the handlers can't be installed.
    pub(crate) fn install(runtime: &Handle) -> Result<Self> {
        let cancel = Self::default();
        let _guard = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        let seen = cancel.clone();
        runtime.spawn(async move {
            let mut signal = async || {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            signal().await;
            tracing::info!("interrupted, ending in good order; once more ends at once");
            seen.set();
            signal().await;
            std::process::exit(INTERRUPTED_TWICE);
        });
        Ok(cancel)
    }

    /// Asks the command to end.
    pub(crate) fn set(&self) {
        self.state.token.cancel();
        self.state.notify.notify_waiters();
    }

    /// Whether the command is to end.
    pub(crate) fn is_set(&self) -> bool {
        self.state.token.is_cancelled()
    }

    /// What a job looks at.
    pub(crate) fn token(&self) -> backlane_client::Cancel {
        self.state.token.clone()
    }

    /// Returns when the command is to end.
    pub(crate) async fn wait(&self) {
        let notified = self.state.notify.notified();
        tokio::pin!(notified);
        // Registered before the flag is read, so that a signal between the two is not missed.
        notified.as_mut().enable();
        if !self.is_set() {
            notified.await;
        }
    }
}
