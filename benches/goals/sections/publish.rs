//! Publishing one by one, synced: from one thread, and from many.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use postbox::Postbox;

use crate::Bench;
use crate::floor::Floor;
use crate::measure::{Pair, Sample, as_f64, in_turn, micros_of, rate_of};
use crate::report::{Goal, Report, Row};
use crate::work::{event, open, publish_one_by_one};

struct Many {
    threads: usize,
    goal: f64,
    rates: Sample,
    waits_p99: Sample,
    waits_most: Sample,
}

impl Many {
    fn new(threads: usize, goal: f64) -> Self {
        let [rates, waits_p99, waits_most] = [(); 3].map(|()| Sample::default());
        Many { threads, goal, rates, waits_p99, waits_most }
    }
}

pub(crate) fn one_and_many_threads(bench: &Bench, report: &mut Report) {
    let mut floor = Floor::open(&bench.path("floor.db"));
    let postbox = open(&bench.path("box.db"));
    let count = bench.scale.singles;
    let (mut one, mut floors, mut commits) = (Pair::default(), Sample::default(), Sample::default());
    let mut many = [Many::new(16, 4.5), Many::new(64, 8.0)];
    for _ in 0..bench.scale.rounds {
        let (mut rates, mut of_round) = (Sample::default(), Sample::default());
        in_turn(
            bench.scale.slices / bench.scale.rounds,
            || one.ours.push(rate_of(count, || publish_one_by_one(&postbox, count))),
            || {
                rates.push(rate_of(count, || {
                    of_round.extend((0..count).map(|number| micros_of(|| floor.publish(number, 1))));
                }));
            },
        );
        floors.push(rates.median());
        commits.push(of_round.median());
        one.floor.append(rates);
        for many in &mut many {
            let (rate, waits) = from_threads(&postbox, many.threads, bench.scale.calls);
            many.rates.push(rate);
            many.waits_p99.push(waits.percentile(99));
            many.waits_most.push(waits.most());
        }
    }
    let row = Row::against("publish, 1 thread", "events/s", &one.ours, &one.floor);
    report.add(row.goal(Goal::RatioAtLeast(0.9)));
    for Many { threads, goal, rates, waits_p99, waits_most } in many {
        let what = format!("publish, {threads} threads");
        let row = Row::against(format!("{what} (floor: 1 thread)"), "events/s", &rates, &floors);
        report.add(row.goal(Goal::RatioAtLeast(goal)));
        let row =
            Row::against(format!("{what}, p99 of a call (floor: a commit)"), "us", &waits_p99, &commits);
        report.add(row.goal(Goal::RatioAtMost(20.0)));
        report.add(Row::against(format!("{what}, the longest call"), "us", &waits_most, &commits));
    }
}

/// Events a second, and how long each call took in microseconds.
fn from_threads(postbox: &Postbox, threads: usize, calls: usize) -> (f64, Sample) {
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let begun = Instant::now();
                    let mut waits = Vec::with_capacity(calls);
                    for number in 0..calls {
                        let event = event(thread * calls + number);
                        waits.push(micros_of(|| {
                            postbox.publish(event).expect("published");
                        }));
                    }
                    (begun, waits)
                })
            })
            .collect();
        let (mut first, mut waits) = (Instant::now(), Sample::default());
        for publisher in publishers {
            let (begun, of_thread) = publisher.join().expect("a publisher");
            first = first.min(begun); // from the first to run: this thread may see it late
            waits.extend(of_thread);
        }
        (as_f64(threads * calls) / first.elapsed().as_secs_f64(), waits)
    })
}
