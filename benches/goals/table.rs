//! What is printed.

use std::time::Instant;

/// Figures of the same thing, one a round.
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn new() -> Self {
        Sample(Vec::new())
    }

    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn spread(&self) -> (f64, f64) {
        self.0.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), figure| {
            (least.min(*figure), most.max(*figure))
        })
    }
}

pub(crate) fn head() {
    println!("{:<46} {:>12} {:>12} {:>7} {:>7}  spread of ours", "what", "ours", "floor", "ratio", "goal");
}

/// Events a second: more is better. `goal` is of the ratio.
pub(crate) fn rate(what: &str, ours: &Sample, floor: &Sample, goal: &str) {
    let ratio = ours.median() / floor.median();
    row(
        what,
        &format!("{:.0}/s", ours.median()),
        &format!("{:.0}/s", floor.median()),
        &format!("{ratio:.2}"),
        goal,
        &spread(ours, 1.0, "/s"),
    );
}

pub(crate) fn micros(what: &str, ours: &Sample, floor: &Sample, goal: &str) {
    let ratio = ours.median() / floor.median();
    row(
        what,
        &format!("{:.1} us", ours.median() * 1e6),
        &format!("{:.1} us", floor.median() * 1e6),
        &format!("{ratio:.2}"),
        goal,
        &spread(ours, 1e6, " us"),
    );
}

pub(crate) fn figure(what: &str, ours: &str, goal: &str) {
    row(what, ours, "", "", goal, "");
}

fn row(what: &str, ours: &str, floor: &str, ratio: &str, goal: &str, spread: &str) {
    println!("{what:<46} {ours:>12} {floor:>12} {ratio:>7} {goal:>7}  {spread}");
}

fn spread(sample: &Sample, factor: f64, unit: &str) -> String {
    let (least, most) = sample.spread();
    format!("{:.0} to {:.0}{unit}", least * factor, most * factor)
}

/// How many a second.
pub(crate) fn rate_of(count: usize, work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    as_f64(count) / begun.elapsed().as_secs_f64()
}

#[allow(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn as_f64(count: usize) -> f64 {
    count as f64
}
