//! How hard contents are compressed.
//!
//! While a backup's threads wait for the route they have time to compress harder, so that less has to go that way; where
//! they are what is waited for, they compress no harder than they would have to. A level follows from the time that
//! threads have waited for room on the way to the store, of all that they had.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The hardest level that can be asked for, for which zstd takes 90 MiB a thread.
const LEVEL_MAX: u8 = 19;

/// The levels that it adapts between, zstd's own first. The hardest takes 15 MiB a thread.
const STEPS: [i32; 3] = [3, 6, 9];

/// What is looked at before the level may change: so much time, and so many packs for each thread. A wait is known only
/// when it is over, and may be long.
const PERIOD: Duration = Duration::from_secs(1);
const PACKS: u32 = 2;

/// From this part of the threads' time on, in hundredths, that they wait, there is time for the next level, which takes
/// about twice as much; and below the other one for none but the level before.
const WAITS: u32 = 60;
const SELDOM_WAITS: u32 = 5;

/// How the contents of files are compressed, by zstd. In a configuration a level is a number, or text as all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub enum Compression {
    /// As the repository's config says; where that says nothing, by zstd's own level, and harder while the route is what
    /// the backup waits for.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// By this level, of 1 to 19.
    Level(u8),
}

impl FromStr for Compression {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            level => match level.parse() {
                Ok(level @ 1..=LEVEL_MAX) => Ok(Self::Level(level)),
                _ => Err("neither `auto`, nor `off`, nor a level from 1 to 19"),
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Level(u8),
    Text(String),
}

impl TryFrom<Written> for Compression {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let text = match written {
            Written::Level(level) => level.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(|what| format!("`{text}` is {what}"))
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> Self {
        compression.to_string()
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Level(level) => level.fmt(f),
        }
    }
}

/// What the repository's config says of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Configured {
    /// It can't hold what is compressed.
    Impossible,
    Off,
    Level(i32),
    Nothing,
}

/// The levels of one backup.
pub(crate) struct Levels {
    configured: Configured,
    asked: Compression,
    adapting: Adapting,
}

impl Levels {
    pub(crate) fn new(configured: Configured, asked: Compression, threads: usize) -> Self {
        Self {
            configured,
            asked,
            adapting: Adapting::new(threads),
        }
    }

    /// The level for a file, which may have a rule of its own; `None` for none at all.
    pub(crate) fn of(&self, rule: Option<Compression>) -> Option<i32> {
        match (self.configured, rule.unwrap_or(self.asked)) {
            (Configured::Impossible, _) | (_, Compression::Off) => None,
            (_, Compression::Level(level)) => Some(level.into()),
            (Configured::Off, Compression::Auto) => None,
            (Configured::Level(level), Compression::Auto) => Some(level),
            (Configured::Nothing, Compression::Auto) => Some(self.adapting.level()),
        }
    }

    /// The level for lists of directories, whatever was asked for files.
    pub(crate) fn of_lists(&self) -> Option<i32> {
        match self.configured {
            Configured::Impossible | Configured::Off => None,
            Configured::Level(level) => Some(level),
            Configured::Nothing => STEPS.first().copied(),
        }
    }

    /// A thread has waited so long for room for a pack on the way to the store.
    pub(crate) fn waited(&self, time: Duration) {
        self.adapting.waited(time, Instant::now());
    }
}

/// The level that follows from how much threads wait.
struct Adapting {
    threads: u32,
    step: AtomicUsize,
    period: Mutex<Period>,
}

struct Period {
    began: Instant,
    packs: u32,
    waited: Duration,
}

impl Period {
    fn new(began: Instant) -> Self {
        Self {
            began,
            packs: 0,
            waited: Duration::ZERO,
        }
    }
}

impl Adapting {
    fn new(threads: usize) -> Self {
        Self {
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
            step: AtomicUsize::new(0),
            period: Mutex::new(Period::new(Instant::now())),
        }
    }

    fn level(&self) -> i32 {
        STEPS[self.step.load(Ordering::Relaxed).min(STEPS.len() - 1)]
    }

    fn waited(&self, time: Duration, now: Instant) {
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        period.packs += 1;
        period.waited += time;
        let past = now.saturating_duration_since(period.began);
        if past < PERIOD || period.packs < self.threads.saturating_mul(PACKS) {
            return;
        }
        let waited = std::mem::replace(&mut *period, Period::new(now)).waited;
        let had = past.saturating_mul(self.threads);
        let before = self.step.load(Ordering::Relaxed);
        let step = match waited * 100 {
            much if much >= had * WAITS => (before + 1).min(STEPS.len() - 1),
            little if little < had * SELDOM_WAITS => before.saturating_sub(1),
            _ => before,
        };
        if step != before {
            self.step.store(step, Ordering::Relaxed);
            tracing::trace!(
                level = STEPS[step],
                ?waited,
                ?had,
                "compresses by another level from now on"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_rises_while_threads_wait_and_falls_when_they_do_not() {
        let adapting = Adapting::new(2);
        let began = Instant::now();
        // What two threads have waited of each second, for four packs.
        let mut seconds = 0;
        let mut after = |waited_ms: u64| {
            seconds += 1;
            let at = began + Duration::from_secs(1 + seconds);
            for _ in 0..4 {
                adapting.waited(Duration::from_millis(waited_ms / 4), at);
            }
            adapting.level()
        };
        assert_eq!(after(0), 3);
        assert_eq!(after(1000), 3, "half of the time is not enough");
        assert_eq!(after(1300), 6);
        assert_eq!(
            after(900),
            6,
            "no way back while there is something to wait for"
        );
        assert_eq!(after(1900), 9);
        assert_eq!(after(2000), 9);
        assert_eq!(after(90), 6);
        assert_eq!(after(0), 3);
        assert_eq!(after(0), 3);
    }

    #[test]
    fn nothing_follows_from_a_short_time_or_from_few_packs() {
        let now = Instant::now();
        let quick = Adapting::new(1);
        for _ in 0..10 {
            quick.waited(PERIOD, now + PERIOD / 2);
        }
        assert_eq!(quick.level(), STEPS[0]);
        let few = Adapting::new(4);
        for _ in 0..7 {
            few.waited(PERIOD * 9, now + PERIOD * 10);
        }
        assert_eq!(few.level(), STEPS[0]);
        few.waited(PERIOD * 9, now + PERIOD * 10);
        assert_eq!(few.level(), STEPS[1]);
    }

    #[test]
    fn a_rule_goes_before_what_was_asked_and_that_before_the_config() {
        use Compression::{Auto, Level, Off};
        let level = |configured, asked, rule| Levels::new(configured, asked, 1).of(rule);
        assert_eq!(level(Configured::Nothing, Auto, None), Some(3));
        assert_eq!(level(Configured::Level(7), Auto, None), Some(7));
        assert_eq!(level(Configured::Off, Auto, None), None);
        assert_eq!(level(Configured::Off, Level(5), None), Some(5));
        assert_eq!(level(Configured::Level(7), Level(5), None), Some(5));
        assert_eq!(level(Configured::Nothing, Level(5), Some(Off)), None);
        assert_eq!(level(Configured::Nothing, Off, Some(Level(9))), Some(9));
        assert_eq!(level(Configured::Level(7), Off, Some(Auto)), Some(7));
        assert_eq!(
            level(Configured::Impossible, Level(5), Some(Level(9))),
            None
        );
        let lists = |configured, asked| Levels::new(configured, asked, 1).of_lists();
        assert_eq!(lists(Configured::Nothing, Off), Some(3));
        assert_eq!(lists(Configured::Off, Level(5)), None);
        assert_eq!(lists(Configured::Impossible, Auto), None);
    }

    #[test]
    fn words_and_levels_are_read_and_nothing_else() {
        for text in ["auto", "off", "1", "19"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        for text in ["", "on", "0", "20", "-1", "3.5", "Auto"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
