//! In what figures are given.

use crate::output::bytes;
use serde::Serialize;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    BytesPerSecond,
    CpuSecondsPerGib,
    Microseconds,
    Milliseconds,
    PercentOfCore,
    PerSecond,
    Bytes,
    /// A part of one, or a count of bytes for each byte.
    Part,
}

impl Unit {
    pub(super) fn text(self, value: f64) -> String {
        match self {
            Self::BytesPerSecond => format!("{:.0} MiB/s", value / f64::from(1 << 20)),
            Self::CpuSecondsPerGib => format!("{value:.3} s/GiB"),
            Self::Microseconds => format!("{value:.0} µs"),
            Self::Milliseconds => format!("{value:.0} ms"),
            Self::PercentOfCore => format!("{value:.2} %"),
            Self::PerSecond => format!("{value:.1}/s"),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count of bytes, far below 2^53"
            )]
            Self::Bytes => bytes(value as u64),
            Self::Part => format!("{value:.2}"),
        }
    }
}
