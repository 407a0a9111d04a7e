//! What plots are drawn of.

use serde::Serialize;

/// Throughput with frames of one size, medians.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct FramePoint {
    pub(super) frame_bytes: usize,
    /// Bytes a second, sealed with AES-256-GCM.
    pub(super) stream: f64,
    pub(super) raw: f64,
}

/// How long messages took.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Distribution {
    pub(super) name: String,
    pub(super) points: Vec<Quantile>,
}

/// So large a share of the messages took at most so long.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Quantile {
    pub(super) share: f64,
    pub(super) us: f64,
}

impl Distribution {
    /// Every half per cent, and the tail to one in a thousand.
    pub(super) fn new(name: &str, mut micros: Vec<f64>) -> Self {
        micros.sort_by(f64::total_cmp);
        let body = (0_u32..198).map(|half| f64::from(half) / 200.0);
        let tail = (0_u32..10).map(|tenth| 0.99 + f64::from(tenth) / 1000.0);
        let points = body.chain(tail).map(|share| Quantile {
            share,
            us: at(&micros, share),
        });
        Self {
            name: name.to_owned(),
            points: points.collect(),
        }
    }

    /// What a share of the messages took at most.
    pub(super) fn at(&self, share: f64) -> f64 {
        let point = self
            .points
            .iter()
            .rev()
            .find(|point| point.share <= share + 1e-9);
        point.map_or(f64::NAN, |point| point.us)
    }
}

/// Of sorted values.
fn at(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a list of a few thousand"
    )]
    let index = (sorted.len() as f64 * share) as usize;
    sorted
        .get(index.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_all_values_in_whatever_order_they_came() {
        let micros: Vec<f64> = (0..1000_u32).rev().map(f64::from).collect();
        let distribution = Distribution::new("messages", micros);
        for (share, us) in [(0.0, 0.0), (0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            assert_eq!(distribution.at(share), us, "{share}");
        }
    }
}
