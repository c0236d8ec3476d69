//! Publishing many in one transaction, synced.

use crate::Bench;
use crate::floor::Floor;
use crate::measure::{Pair, in_turn, rate_of};
use crate::report::{Goal, Report, Row};
use crate::work::{event, open};

/// Events of each side, a slice.
const SLICE: usize = 4_000;

pub(crate) fn batches(bench: &Bench, report: &mut Report) {
    let mut floor = Floor::open(&bench.path("floor.db"));
    let postbox = open(&bench.path("box.db"));
    for batch in [100, 1_000] {
        let mut pair = Pair::default();
        in_turn(
            bench.scale.slices,
            || {
                pair.ours.push(rate_of(SLICE, || {
                    for first in (0..SLICE).step_by(batch) {
                        postbox.publish_all((first..first + batch).map(event)).expect("published");
                    }
                }));
            },
            || {
                pair.floor.push(rate_of(SLICE, || {
                    (0..SLICE).step_by(batch).for_each(|first| floor.publish(first, batch));
                }));
            },
        );
        let row =
            Row::against(format!("publish_all, {batch} at a time"), "events/s", &pair.ours, &pair.floor);
        report.add(row.goal(Goal::RatioAtLeast(0.85)));
    }
}
