//! Figures: what was measured, what its yardstick did beside it, and what is aimed at.

use super::units::Unit;
use crate::{cli::BenchPart, output::table};
use clap::ValueEnum as _;
use serde::Serialize;

/// One line of the result.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub(super) part: BenchPart,
    pub(super) what: String,
    pub(super) unit: Unit,
    /// The median.
    pub(super) value: f64,
    pub(super) yardstick: Option<Yardstick>,
    pub(super) ratio: Option<Spread>,
    pub(super) target: Option<Target>,
    pub(super) is_met: Option<bool>,
}

/// What a figure is compared with.
#[derive(Debug, Serialize)]
pub(super) struct Yardstick {
    pub(super) what: String,
    /// The median.
    pub(super) value: f64,
}

/// Ratios of neighbours; their median need not be the ratio of the medians.
#[derive(Debug, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) greatest: f64,
    pub(super) pairs: usize,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// Above the yardstick, in the figure's unit.
    ExcessAtMost(f64),
    ValueAtMost(f64),
}

/// A measurement and what its yardstick did beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) value: f64,
    pub(super) yardstick: f64,
}

impl Figure {
    /// A figure without a yardstick.
    pub(super) fn alone(part: BenchPart, what: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self {
            part,
            what: what.into(),
            unit,
            value,
            yardstick: None,
            ratio: None,
            target: None,
            is_met: None,
        }
    }

    /// A figure that took turns with its yardstick.
    pub(super) fn of_turns(
        part: BenchPart,
        what: impl Into<String>,
        unit: Unit,
        turns: &[Turn],
        yardstick: &str,
    ) -> Self {
        let ratios: Vec<_> = turns
            .iter()
            .map(|turn| turn.value / turn.yardstick)
            .collect();
        let value = median(turns.iter().map(|turn| turn.value).collect());
        Self {
            yardstick: Some(Yardstick {
                what: yardstick.to_owned(),
                value: median(turns.iter().map(|turn| turn.yardstick).collect()),
            }),
            ratio: Some(Spread {
                least: ratios.iter().copied().fold(f64::INFINITY, f64::min),
                greatest: ratios.iter().copied().fold(0.0, f64::max),
                pairs: ratios.len(),
                median: median(ratios),
            }),
            ..Self::alone(part, what, unit, value)
        }
    }

    /// The same with something to aim at.
    pub(super) fn aiming(mut self, target: Target) -> Self {
        let ratio = self.ratio.as_ref().map(|ratio| ratio.median);
        let excess = self.yardstick.as_ref().map(|yard| self.value - yard.value);
        self.is_met = match target {
            Target::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
            Target::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
            Target::ExcessAtMost(most) => excess.map(|excess| excess <= most),
            Target::ValueAtMost(most) => Some(self.value <= most),
        };
        self.target = Some(target);
        self
    }

    fn row(&self) -> Vec<String> {
        let ratio = self.ratio.as_ref().map(|ratio| {
            let Spread {
                median,
                least,
                greatest,
                ..
            } = ratio;
            format!("{median:.2} ({least:.2} to {greatest:.2})")
        });
        let target = self.target.map(|target| match target {
            Target::RatioAtLeast(least) => format!("at least {least:.2}"),
            Target::RatioAtMost(most) => format!("at most {most:.2}"),
            Target::ExcessAtMost(most) => format!("at most + {}", self.unit.text(most)),
            Target::ValueAtMost(most) => format!("at most {}", self.unit.text(most)),
        });
        let met = self
            .is_met
            .map(|is_met| if is_met { "met" } else { "missed" });
        let yardstick = self
            .yardstick
            .as_ref()
            .map(|yard| self.unit.text(yard.value));
        vec![
            format!("  {}", self.what),
            self.unit.text(self.value),
            yardstick.unwrap_or_default(),
            ratio.unwrap_or_default(),
            target.unwrap_or_default(),
            met.unwrap_or_default().to_owned(),
        ]
    }
}

/// All figures as a table, part by part.
pub(super) fn text(figures: &[Figure]) -> String {
    let mut rows = Vec::new();
    let mut heading: Option<(BenchPart, &str)> = None;
    for figure in figures {
        let yardstick = figure.yardstick.as_ref();
        let yardstick = yardstick.map_or("", |yard| yard.what.as_str());
        let is_under = heading.is_some_and(|(part, above)| {
            part == figure.part && (yardstick.is_empty() || yardstick == above)
        });
        if !is_under {
            heading = Some((figure.part, yardstick));
            let part = figure.part.to_possible_value();
            let part = part.as_ref().map_or("", |part| part.get_name());
            let ratio = if yardstick.is_empty() { "" } else { "ratio" };
            let cells = [part, "measured", yardstick, ratio, "target"];
            rows.push(cells.map(str::to_owned).to_vec());
        }
        rows.push(figure.row());
    }
    table(&rows)
}

/// The value in the middle, or the mean of the two there.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    let half = values.len() / 2;
    if values.len() % 2 == 1 {
        at(half)
    } else {
        f64::midpoint(at(half.saturating_sub(1)), at(half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(turns: &[(f64, f64)]) -> Figure {
        let turns: Vec<_> = turns
            .iter()
            .map(|(value, yardstick)| Turn {
                value: *value,
                yardstick: *yardstick,
            })
            .collect();
        Figure::of_turns(
            BenchPart::Latency,
            "message",
            Unit::Microseconds,
            &turns,
            "raw",
        )
    }

    #[test]
    fn ratio_is_the_median_of_neighbours_and_not_the_ratio_of_medians() {
        let figure = figure(&[(1.0, 1.0), (4.0, 2.0), (30.0, 10.0)]);
        let ratio = figure.ratio.as_ref().unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.greatest), (2.0, 1.0, 3.0));
        assert_eq!(figure.value / figure.yardstick.unwrap().value, 2.0);
    }

    #[test]
    fn target_is_met_by_what_it_speaks_of() {
        for (target, is_met) in [
            (Target::RatioAtLeast(1.5), true),
            (Target::RatioAtLeast(1.6), false),
            (Target::RatioAtMost(1.5), true),
            (Target::RatioAtMost(1.4), false),
            (Target::ExcessAtMost(5.0), true),
            (Target::ExcessAtMost(4.0), false),
            (Target::ValueAtMost(15.0), true),
            (Target::ValueAtMost(14.0), false),
        ] {
            let figure = figure(&[(15.0, 10.0)]).aiming(target);
            assert_eq!(figure.is_met, Some(is_met), "{target:?}");
        }
    }

    #[test]
    fn target_without_a_yardstick_is_neither_met_nor_missed() {
        let figure = Figure::alone(BenchPart::Latency, "message", Unit::Microseconds, 1.0);
        assert_eq!(figure.aiming(Target::RatioAtMost(1.0)).is_met, None);
    }
}
