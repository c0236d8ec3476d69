//! Delivering: a backlog, and how soon a handler starts.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use postbox::{Context, Event, Postbox, Result, Subscription, Tx};

use crate::floor::Floor;
use crate::table::{self, Sample, rate_of};
use crate::{Bench, event, fill, open};

pub(crate) fn backlog(bench: &Bench) {
    let total = bench.scale.backlog;
    let mut floors = Sample::new();
    let mut ways = [
        ("worker, plain", "0.85", Sample::new()),
        ("worker, transactional", "0.65", Sample::new()),
        ("drain(), plain", "", Sample::new()),
    ];
    for round in 0..bench.scale.rounds {
        let mut floor = Floor::open(&bench.path(&format!("backlog-floor-{round}.db")));
        (0..total).step_by(1_000).for_each(|first| floor.publish(first, 1_000));
        floor.unsynced();
        floors.push(rate_of(total, || floor.drain(500, usize::MAX)));
        for (number, (_, _, rates)) in ways.iter_mut().enumerate() {
            let path = bench.path(&format!("backlog-{round}-{number}.db"));
            let postbox = open(&path);
            fill(&postbox, total);
            subscribe(&postbox, number == 1);
            rates.push(rate_of(total, || {
                if number == 2 {
                    postbox.drain().expect("drained");
                } else {
                    let worker = postbox.start().expect("a worker");
                    assert!(worker.wait_for_startup_drain(Duration::from_mins(10)));
                }
            }));
            assert_eq!(postbox.stats().expect("stats").processed, u64::try_from(total).expect("a count"));
            postbox.close().expect("closed");
            std::fs::remove_file(path).expect("removed");
        }
    }
    for (way, goal, rates) in &ways {
        table::rate(&format!("backlog of {total}, {way}"), rates, &floors, goal);
    }
}

fn subscribe(postbox: &Postbox, transactional: bool) {
    let subscription = if transactional {
        postbox
            .transaction(|tx| -> Result<()> { Ok(tx.execute_batch("CREATE TABLE task (title TEXT)")?) })
            .expect("a table");
        Subscription::transactional("invoice.created", "operations", |event: &Event, tx: &Tx<'_>| {
            tx.prepare_cached("INSERT INTO task VALUES (?1)")?.execute([event.aggregate_id()])?;
            Ok(())
        })
    } else {
        Subscription::new("invoice.created", "operations", |_: &Event, _: &Context<'_>| Ok(()))
    };
    postbox.subscribe(subscription).expect("subscribed");
}

pub(crate) fn latency(bench: &Bench) {
    let postbox = open(&bench.path("latency.db"));
    let (started, starts) = mpsc::channel();
    postbox
        .subscribe(Subscription::new("*", "c", move |_: &Event, _: &Context<'_>| {
            started.send(Instant::now())?;
            Ok(())
        }))
        .expect("subscribed");
    let worker = postbox.start().expect("a worker");
    assert!(worker.wait_for_startup_drain(Duration::from_mins(1)));

    let (bell, rings) = mpsc::channel::<()>();
    let (woken, wakes) = mpsc::channel();
    let sleeper = std::thread::spawn(move || {
        for () in rings {
            woken.send(Instant::now()).expect("a listener");
        }
    });

    let samples = bench.scale.singles / 2;
    let (mut returns, mut calls, mut channel) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..samples {
        std::thread::sleep(Duration::from_millis(1)); // all asleep
        let called = Instant::now();
        postbox.publish(event(number)).expect("published");
        let returned = Instant::now();
        let started: Instant = starts.recv().expect("a start");
        returns.push(signed(returned, started));
        calls.push(signed(called, started));
        std::thread::sleep(Duration::from_millis(1));
        let rung = Instant::now();
        bell.send(()).expect("a sleeper");
        channel.push(signed(rung, wakes.recv().expect("a wake-up")));
    }
    drop(bell);
    sleeper.join().expect("the sleeper");
    drop(worker);

    for (percent, goal) in [(50, "2.00"), (99, "5.00")] {
        let (ours, floor) = (percentile(&mut returns, percent), percentile(&mut channel, percent));
        table::micros(
            &format!("publish returned to handler, p{percent} (floor: channel)"),
            &ours,
            &floor,
            goal,
        );
    }
    let from_call = percentile(&mut calls, 50);
    table::figure("publish called to handler, p50", &format!("{:.0} us", from_call.median() * 1e6), "");
}

fn percentile(sorted: &mut [f64], percent: usize) -> Sample {
    sorted.sort_by(f64::total_cmp);
    let mut sample = Sample::new();
    sample.push(sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]);
    sample
}

/// Seconds; below zero when the handler started before `publish` returned.
fn signed(from: Instant, to: Instant) -> f64 {
    match to.checked_duration_since(from) {
        Some(later) => later.as_secs_f64(),
        None => -from.duration_since(to).as_secs_f64(),
    }
}
