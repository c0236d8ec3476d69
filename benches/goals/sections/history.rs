//! What a long history, or a long backlog, costs those who come after it.

use std::time::Duration;

use postbox::Postbox;

use crate::Bench;
use crate::measure::{Pair, Sample, in_turn, micros_of, rate_of};
use crate::report::{Goal, Report, Row};
use crate::table::count;
use crate::work::{drain_by_worker, event, fill, open, publish_one_by_one, subscribe};

/// Published in one transaction or two, and delivered, a slice.
const SLICE: usize = 1_000;

/// As many as the box claims at once.
const BATCH: usize = 500;

pub(crate) fn history(bench: &Bench, report: &mut Report) {
    let rows = bench.scale.history;
    let [empty, full] = ["empty.db", "full.db"].map(|name| open(&bench.path(name)));
    subscribe(&empty);
    subscribe(&full);
    // Nothing here may know the tables: the box makes its history itself.
    fill(&full, rows);
    drain_by_worker(&full);
    after_history(bench, report, &empty, &full);
    stats(report, &full, &format!("{} processed", count(rows)));

    fill(&full, rows);
    let delayed = |number| event(number).delay(Duration::from_hours(1));
    for first in (0..rows / 10).step_by(1_000) {
        full.publish_all((first..first + 1_000).map(delayed)).expect("published");
    }
    stats(report, &full, &format!("{} pending", count(rows)));
    out_of_backlog(bench, report, &empty, &full);
}

fn after_history(bench: &Bench, report: &mut Report, empty: &Postbox, full: &Postbox) {
    let singles = bench.scale.singles;
    let (mut published, mut delivered) = (Pair::default(), Pair::default());
    let measure = |postbox: &Postbox, published: &mut Sample, delivered: &mut Sample| {
        published.push(rate_of(singles, || publish_one_by_one(postbox, singles)));
        fill(postbox, SLICE - singles);
        delivered.push(rate_of(SLICE, || assert_eq!(postbox.drain().expect("drained"), SLICE)));
    };
    in_turn(
        bench.scale.slices,
        || measure(full, &mut published.ours, &mut delivered.ours),
        || measure(empty, &mut published.floor, &mut delivered.floor),
    );
    let rows = count(bench.scale.history);
    for (what, pair) in [("publish", published), ("claim and settle", delivered)] {
        let what = format!("{what} with {rows} processed (floor: an empty file)");
        let row = Row::against(what, "events/s", &pair.ours, &pair.floor);
        report.add(row.goal(Goal::RatioAtLeast(0.95)));
    }
}

fn out_of_backlog(bench: &Bench, report: &mut Report, small: &Postbox, large: &Postbox) {
    let mut claimed = Pair::default();
    let measure = |postbox: &Postbox, sample: &mut Sample| {
        sample.push(rate_of(BATCH, || assert_eq!(postbox.process_batch().expect("a batch"), BATCH)));
    };
    // All at once: rows that were written a moment before a claim are in the cache, those of a backlog are not.
    let few = BATCH * bench.scale.slices;
    fill(small, few);
    in_turn(bench.scale.slices, || measure(large, &mut claimed.ours), || measure(small, &mut claimed.floor));
    let many = bench.scale.history;
    let [few, many, delayed] = [few, many, many / 10].map(count);
    let what = format!("a batch of {BATCH} of {many} pending, {delayed} delayed (floor: of {few})");
    let row = Row::against(what, "events/s", &claimed.ours, &claimed.floor);
    report.add(row.goal(Goal::RatioAtLeast(0.95)));
}

fn stats(report: &mut Report, postbox: &Postbox, with: &str) {
    let mut millis = Sample::default();
    for _ in 0..50 {
        let micros = micros_of(|| {
            postbox.stats().expect("stats");
        });
        millis.push(micros / 1e3);
    }
    report.add(Row::of(format!("stats() with {with}, median of 50"), "ms", &millis).goal(Goal::AtMost(1.0)));
    report.add(Row::figure(format!("stats() with {with}, the longest"), "ms", millis.most()));
}
