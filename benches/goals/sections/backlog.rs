//! Delivering a backlog.

use postbox::{Event, Postbox, Result, Subscription, Tx};

use crate::Bench;
use crate::floor::Floor;
use crate::measure::{Sample, rate_of};
use crate::report::{Goal, Report, Row};
use crate::table::count;
use crate::work::{CONSUMER, NAME, drain_by_worker, fill, open, subscribe};

/// The floor's, and the box's by its settings.
const BATCH: usize = 500;

type Way = fn(&Bench) -> f64;

const FLOOR: usize = 0;
const FLOOR_WITH_TASK: usize = 1;
const PLAIN: usize = 2;
const TRANSACTIONAL: usize = 3;
const BY_HAND: usize = 4;
const WAYS: [Way; 5] = [
    |bench| floor(bench, false),
    |bench| floor(bench, true),
    |bench| of_box(bench, subscribe, drain_by_worker),
    |bench| of_box(bench, subscribe_with_task, drain_by_worker),
    |bench| of_box(bench, subscribe, |postbox| assert!(postbox.drain().expect("drained") > 0)),
];

pub(crate) fn backlog(bench: &Bench, report: &mut Report) {
    let mut rates = WAYS.map(|_| Sample::default());
    for round in 0..bench.scale.rounds {
        // Each round begins with another.
        for way in (0..WAYS.len()).map(|turn| (round + turn) % WAYS.len()) {
            rates[way].push(WAYS[way](&bench.in_new_folder()));
        }
    }
    let total = count(bench.scale.backlog);
    let row = |what: &str, ours: usize, floor: usize| {
        Row::against(format!("backlog of {total}, {what}"), "events/s", &rates[ours], &rates[floor])
    };
    report.add(row("worker, plain", PLAIN, FLOOR).goal(Goal::RatioAtLeast(0.85)));
    report.add(row("worker, transactional", TRANSACTIONAL, FLOOR).goal(Goal::RatioAtLeast(0.65)));
    report.add(row("the same (floor: with its INSERT)", TRANSACTIONAL, FLOOR_WITH_TASK));
    report.add(row("that floor (floor: without)", FLOOR_WITH_TASK, FLOOR));
    report.add(row("drain(), plain", BY_HAND, FLOOR));
}

fn floor(bench: &Bench, with_task: bool) -> f64 {
    let total = bench.scale.backlog;
    let mut floor = Floor::open(&bench.path("floor.db"));
    (0..total).step_by(1_000).for_each(|first| floor.publish(first, 1_000));
    floor.unsynced();
    rate_of(total, || floor.drain(BATCH, with_task))
}

fn of_box(bench: &Bench, subscribe: fn(&Postbox), drain: fn(&Postbox)) -> f64 {
    let total = bench.scale.backlog;
    let postbox = open(&bench.path("box.db"));
    fill(&postbox, total);
    subscribe(&postbox);
    let rate = rate_of(total, || drain(&postbox));
    assert_eq!(usize::try_from(postbox.stats().expect("stats").processed), Ok(total));
    postbox.close().expect("closed");
    rate
}

fn subscribe_with_task(postbox: &Postbox) {
    postbox
        .transaction(|tx| -> Result<()> { Ok(tx.execute_batch("CREATE TABLE task (title TEXT)")?) })
        .expect("a table");
    let insert = |event: &Event, tx: &Tx<'_>| {
        tx.prepare_cached("INSERT INTO task VALUES (?1)")?.execute([event.aggregate_id()])?;
        Ok(())
    };
    postbox.subscribe(Subscription::transactional(NAME, CONSUMER, insert)).expect("subscribed");
}
