//! Publishing, synced: one by one, from many threads, in batches.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use postbox::Postbox;

use crate::floor::Floor;
use crate::table::{self, Sample, as_f64, rate_of};
use crate::{Bench, event, open};

pub(crate) fn one_and_many_threads(bench: &Bench) {
    let mut floor = Floor::open(&bench.path("publish-floor.db"));
    let postbox = open(&bench.path("publish.db"));
    let count = bench.scale.singles;
    let (mut floors, mut ones) = (Sample::new(), Sample::new());
    let mut many = [16, 64].map(|threads| (threads, Sample::new(), Sample::new()));
    for _ in 0..bench.scale.rounds {
        floors.push(rate_of(count, || (0..count).for_each(|number| floor.publish(number, 1))));
        ones.push(rate_of(count, || {
            (0..count).for_each(|number| {
                postbox.publish(event(number)).expect("published");
            });
        }));
        let commit = 1.0 / floors.median();
        for (threads, rates, waits) in &mut many {
            let (rate, wait_p99) = from_threads(&postbox, *threads, count * 4);
            rates.push(rate);
            waits.push(wait_p99 / commit);
        }
    }
    table::rate("publish, 1 thread", &ones, &floors, "0.90");
    for (threads, rates, waits) in &many {
        let goal = if *threads == 16 { "4.50" } else { "8.00" };
        table::rate(&format!("publish, {threads} threads (floor: 1 thread)"), rates, &floors, goal);
        let waited = format!("{:.1} commits", waits.median());
        table::figure(&format!("publish, {threads} threads, p99 of one call"), &waited, "20");
    }
}

/// Events a second, and the 99th percentile of one call in seconds.
fn from_threads(postbox: &Postbox, threads: usize, count: usize) -> (f64, f64) {
    let each = count / threads;
    let barrier = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let mut waits = Vec::with_capacity(each);
                    for number in 0..each {
                        let event = event(thread * each + number);
                        let begun = Instant::now();
                        postbox.publish(event).expect("published");
                        waits.push(begun.elapsed().as_secs_f64());
                    }
                    waits
                })
            })
            .collect();
        barrier.wait();
        let begun = Instant::now();
        let mut waits: Vec<f64> =
            publishers.into_iter().flat_map(|publisher| publisher.join().expect("a publisher")).collect();
        let rate = as_f64(waits.len()) / begun.elapsed().as_secs_f64();
        waits.sort_by(f64::total_cmp);
        (rate, waits[waits.len() * 99 / 100])
    })
}

pub(crate) fn batches(bench: &Bench) {
    let mut floor = Floor::open(&bench.path("batches-floor.db"));
    let postbox = open(&bench.path("batches.db"));
    let total = bench.scale.backlog / 2;
    for batch in [100, 1_000] {
        let (mut floors, mut ours) = (Sample::new(), Sample::new());
        for _ in 0..bench.scale.rounds {
            floors.push(rate_of(total, || {
                (0..total).step_by(batch).for_each(|first| floor.publish(first, batch));
            }));
            ours.push(rate_of(total, || {
                for first in (0..total).step_by(batch) {
                    postbox.publish_all((first..first + batch).map(event)).expect("published");
                }
            }));
        }
        table::rate(&format!("publish_all, {batch} at a time"), &ours, &floors, "0.85");
    }
}
