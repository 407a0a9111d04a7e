//! The pace of bodies by a route, where somebody limits it.

use backlane_proto::Route;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The least limit: at less, one chunk would take so long that its route would be held for dead.
pub const LIMIT_BYTES_MIN: u64 = 128 * 1024;

/// What bodies may take of each route, both ways together, in bytes a second; at least [`LIMIT_BYTES_MIN`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// By network; `None` is without a limit.
    pub network: Option<u64>,
    /// By storage.
    pub storage: Option<u64>,
}

/// One route's limit, and how far it has been used.
pub(crate) struct Pace {
    rate: Option<u64>,
    /// When what was let through is over at this rate. Time in which nothing came is not saved up.
    over: Mutex<Instant>,
}

impl Limits {
    pub(crate) fn pace(self, route: Route) -> Pace {
        let rate = match route {
            Route::Network => self.network,
            Route::Storage => self.storage,
        };
        Pace {
            rate: rate.map(|rate| rate.max(LIMIT_BYTES_MIN)),
            over: Mutex::new(Instant::now()),
        }
    }
}

impl Pace {
    /// For whom nobody limits.
    pub(crate) fn free() -> Self {
        Limits::default().pace(Route::Network)
    }

    /// How long these bytes have to wait for those before them. They count from now on.
    pub(crate) fn wait(&self, bytes: u64) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let now = Instant::now();
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (*over).max(now);
        *over = begin + Duration::from_secs_f64(bytes as f64 / rate as f64);
        begin - now
    }

    /// Waits until these bytes may go.
    pub(crate) async fn admit(&self, bytes: u64) {
        let wait = self.wait(bytes);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_go_at_the_rate_and_rest_is_not_saved_up() {
        let limits = Limits {
            network: Some(1 << 20),
            storage: None,
        };
        let pace = limits.pace(Route::Network);
        tokio::time::advance(Duration::from_secs(60)).await;
        let began = Instant::now();
        for _ in 0..11 {
            pace.admit(1 << 20).await;
        }
        assert_eq!(began.elapsed().as_secs(), 10);
        let free = limits.pace(Route::Storage);
        assert!((0..1000).all(|_| free.wait(1 << 40).is_zero()));
    }
}
