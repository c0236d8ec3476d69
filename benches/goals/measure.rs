//! Figures of the same thing, and how they are taken.

use std::time::Instant;

#[derive(Clone, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(crate) fn append(&mut self, other: Sample) {
        self.0.extend(other.0);
    }

    /// The mean of the middle two of an even number. Not a number, of none.
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            len if len.is_multiple_of(2) => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
            len => sorted[len / 2],
        }
    }

    /// The figure that `percent` of all do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let sorted = self.sorted();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// The median of the ratios of the figures that were taken one after the other.
    pub(crate) fn ratio_to(&self, floor: &Sample) -> f64 {
        assert_eq!(self.0.len(), floor.0.len(), "taken in turn");
        Sample(self.0.iter().zip(&floor.0).map(|(ours, floor)| ours / floor).collect()).median()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl Extend<f64> for Sample {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, figures: I) {
        self.0.extend(figures);
    }
}

/// The two sides of a comparison.
#[derive(Default)]
pub(crate) struct Pair {
    pub(crate) ours: Sample,
    pub(crate) floor: Sample,
}

/// Calls `ours` and `floor` so many times, one after the other. Each begins as often as the other: whoever comes second
/// finds the disk as the first one left it.
pub(crate) fn in_turn(times: usize, mut ours: impl FnMut(), mut floor: impl FnMut()) {
    for turn in 0..times {
        if turn.is_multiple_of(2) {
            floor();
            ours();
        } else {
            ours();
            floor();
        }
    }
}

/// How many a second.
pub(crate) fn rate_of(count: usize, work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    as_f64(count) / begun.elapsed().as_secs_f64()
}

pub(crate) fn micros_of(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1e6
}

#[allow(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn as_f64(count: usize) -> f64 {
    count as f64
}
