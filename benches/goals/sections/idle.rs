//! Wake-ups and CPU of a worker that has nothing to do.

use std::thread::sleep;
use std::time::Duration;

use crate::Bench;
use crate::measure::as_f64;
use crate::proc::{Usage, usage_of_postbox_threads};
use crate::report::{Goal, Report, Row};
use crate::work::{open, subscribe};

pub(crate) fn idle(bench: &Bench, report: &mut Report) {
    let postbox = open(&bench.path("box.db"));
    subscribe(&postbox);
    let worker = postbox.start().expect("a worker");
    assert!(worker.wait_for_startup_drain(Duration::from_mins(1)), "an empty box is drained");
    sleep(Duration::from_millis(500)); // the threads have started, and are asleep
    let seconds = bench.scale.idle_seconds;
    let Some(before) = after_a_wake_up() else {
        eprintln!("idle: no /proc here");
        return;
    };
    sleep(Duration::from_secs(seconds.into()));
    let after = usage_of_postbox_threads().expect("the same /proc");
    drop(worker);

    let wakes = as_f64(after.wakes - before.wakes) / f64::from(seconds);
    report.add(Row::figure("idle: wake-ups of all threads", "/s", wakes).goal(Goal::AtMost(1.0)));
    let ticks = as_f64(after.cpu_ticks - before.cpu_ticks);
    report.add(Row::figure(format!("idle: CPU in {seconds} s"), "ticks", ticks).goal(Goal::AtMost(0.0)));
    let micros = as_f64(after.cpu_ns - before.cpu_ns) / 1e3 / f64::from(seconds);
    report.add(Row::figure("idle: CPU a second", "us/s", micros));
}

/// Begins right after one, or chance would decide whether one more falls into the time.
fn after_a_wake_up() -> Option<Usage> {
    let first = usage_of_postbox_threads()?;
    for _ in 0..400 {
        sleep(Duration::from_millis(5));
        let now = usage_of_postbox_threads()?;
        if now.wakes > first.wakes {
            return Some(now);
        }
    }
    Some(first) // it sleeps for longer than two seconds
}
