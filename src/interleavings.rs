//! The library's own threads under shuttle: thousands of orders in which they can run, chosen at random or so that few
//! preemptions do the most harm (PCT). `just interleavings` runs it; `POSTBOX_INTERLEAVINGS` says how many of each kind.
//!
//! No timeout ever comes here, so that nothing is saved by the worker's look once a second: a wake-up that is lost is a worker
//! that sleeps for ever, which shuttle reports as a deadlock. Each promise has a control beside it that breaks it.

pub(crate) mod channel;

mod bell;
mod gate;
mod whole_box;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread::JoinHandle;
use shuttle::{Config, Runner};

/// Runs `scenario` in many orders.
fn in_many_orders(schedules: usize, scenario: fn()) {
    let schedules =
        std::env::var("POSTBOX_INTERLEAVINGS").map_or(schedules, |n| n.parse().expect("a number"));
    run(RandomScheduler::new(schedules), scenario);
    for preemptions in [2, 4] {
        run(PctScheduler::new(preemptions, schedules / 2), scenario);
    }
}

fn join_all(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

fn run(scheduler: impl Scheduler + 'static, scenario: fn()) {
    let mut config = Config::new();
    config.stack_size = 1 << 20; // SQLite's and serde's frames
    Runner::new(scheduler, config).run(scenario);
}
