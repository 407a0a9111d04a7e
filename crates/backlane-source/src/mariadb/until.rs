//! To which moment binary logs bring a server.

use super::BinlogName;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use std::{fmt, str::FromStr};

/// Where a replay of binary logs ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// With the last one that is archived.
    Latest,
    /// Before everything that was written from this second on.
    Time(Timestamp),
    /// At a position of a file.
    Position(BinlogName, u64),
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not like `latest`, `time=2026-01-31 12:00:00` or `position=binlog.000012:4711`"
            )
        };
        if text == "latest" {
            return Ok(Self::Latest);
        }
        match text.split_once('=').ok_or_else(wrong)? {
            ("time", time) => {
                let time = time_of(time).ok_or_else(wrong)?;
                match time.subsec_nanosecond() {
                    0 => Ok(Self::Time(time)),
                    _ => Err(format!("`{text}`: binary logs know whole seconds")),
                }
            }
            ("position", place) => {
                let (file, position) = place.rsplit_once(':').ok_or_else(wrong)?;
                let file = BinlogName::parse(file).ok_or_else(wrong)?;
                Ok(Self::Position(file, position.parse().map_err(|_| wrong())?))
            }
            _ => Err(wrong()),
        }
    }
}

/// A time with its offset, or of this machine's time zone.
fn time_of(text: &str) -> Option<Timestamp> {
    let here = || {
        let time: DateTime = text.parse().ok()?;
        let zoned = TimeZone::system().to_ambiguous_zoned(time).unambiguous();
        Some(zoned.ok()?.timestamp())
    };
    text.parse().ok().or_else(here)
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Time(time) => write!(f, "time={time}"),
            Self::Position(file, position) => write!(f, "position={file}:{position}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_and_positions() {
        let until = |text: &str| text.parse::<Until>();
        let noon = Until::Time("2026-01-31T12:00:00Z".parse().unwrap());
        for same in [
            "time=2026-01-31 12:00:00Z",
            "time=2026-01-31T14:00:00+02",
            "time=2026-01-31T12:00:00Z",
        ] {
            assert_eq!(until(same), Ok(noon.clone()), "{same}");
        }
        assert_eq!(until(&noon.to_string()), Ok(noon));
        // Of this machine's time zone, whatever that is.
        assert!(matches!(
            until("time=2026-01-31 12:00:00"),
            Ok(Until::Time(_))
        ));
        let place = Until::Position(BinlogName::parse("b.000012").unwrap(), 4711);
        assert_eq!(until("position=b.000012:4711"), Ok(place.clone()));
        assert_eq!(until(&place.to_string()), Ok(place));
        assert_eq!(until("latest"), Ok(Until::Latest));
        for wrong in [
            "",
            "now",
            "time=noon",
            "time=2026-01-31 12:00:00.5Z",
            "position=b:4",
            "position=b.000012",
            "2026-01-31 12:00:00",
        ] {
            assert!(until(wrong).is_err(), "{wrong}");
        }
    }
}
