//! Pauses between attempts at something that fails: each longer than the one before, so that what comes and goes isn't
//! taken back all the time.

use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The first pause.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// What lasted for so long had not failed: the next pause is the first again.
const LASTED: Duration = Duration::from_secs(60);

/// The pauses of one thing that is attempted again and again.
pub(crate) struct Pauses {
    next: Duration,
    begun: Instant,
}

impl Pauses {
    /// An attempt begins.
    pub(crate) fn new() -> Self {
        Self {
            next: PAUSE_MIN,
            begun: Instant::now(),
        }
    }

    /// What was attempted has ended; when this returns, the next attempt begins.
    pub(crate) async fn pause(&mut self) {
        self.pause_at_most(PAUSE_MAX).await;
    }

    /// The same, but soon: there is more hope than the attempts before gave.
    pub(crate) async fn pause_at_most(&mut self, most: Duration) {
        if self.begun.elapsed() >= LASTED {
            self.next = PAUSE_MIN;
        }
        sleep(self.next.min(most)).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
        self.begun = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_until_what_was_attempted_has_lasted() {
        let mut pauses = Pauses::new();
        let mut paused = async |lasted| {
            sleep(Duration::from_secs(lasted)).await;
            let begun = Instant::now();
            pauses.pause().await;
            begun.elapsed().as_secs()
        };
        let mut seen = Vec::new();
        for lasted in [0, 0, 5, 59, 0, 0, 0, 0, 60, 0] {
            seen.push(paused(lasted).await);
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 60, 60, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_pause_makes_the_next_ones_no_shorter() {
        let mut pauses = Pauses::new();
        let mut seen = Vec::new();
        for most in [60, 60, 60, 4, 4, 60] {
            let begun = Instant::now();
            pauses.pause_at_most(Duration::from_secs(most)).await;
            seen.push(begun.elapsed().as_secs());
        }
        assert_eq!(seen, [1, 2, 4, 4, 4, 32]);
    }
}
