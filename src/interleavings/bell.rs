//! The bell and the worker's sleep alone, around a database that is a counter.

use std::sync::Arc;
use std::time::Duration;

use shuttle::sync::Mutex;
use shuttle::thread;

use super::{in_many_orders, join_all};
use crate::bell::{Bell, Woken};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel::{bounded, unbounded};

const EVENTS: usize = 3;
const LONG: Duration = Duration::from_secs(1);

/// In which order a thread does its two things.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Right,
    Wrong,
}

/// Publishers commit and ring, a worker looks and sleeps, until everything is seen.
fn publish_and_look(publisher: Order, worker: Order) {
    let (bell, committed) = (Arc::new(Bell::new()), Arc::new(Mutex::new(0)));
    let publishers: Vec<_> = (0..EVENTS)
        .map(|_| {
            let (bell, committed) = (Arc::clone(&bell), Arc::clone(&committed));
            thread::spawn(move || {
                let commit = || *committed.lock().unwrap() += 1;
                match publisher {
                    Order::Right => {
                        commit();
                        bell.ring();
                    }
                    Order::Wrong => {
                        bell.ring();
                        commit();
                    }
                }
            })
        })
        .collect();
    let (_stop, stopped) = bounded(0);
    let (_report, reports) = unbounded::<()>();
    let seen = || *committed.lock().unwrap() == EVENTS;
    let sleep = || {
        bell.sleep(&stopped, &reports, LONG);
    };
    while !seen() {
        if worker == Order::Wrong {
            // It looks, and what has rung since is taken from it before it sleeps.
            while let Woken::Rung = poll(&bell) {}
        }
        sleep();
    }
    join_all(publishers);
}

/// Takes a ring without a wait.
fn poll(bell: &Bell) -> Woken<()> {
    let (stop, stopped) = bounded(0);
    drop(stop);
    let (_report, reports) = unbounded();
    bell.sleep(&stopped, &reports, LONG)
}

#[test]
fn no_ring_is_lost() {
    in_many_orders(10_000, || publish_and_look(Order::Right, Order::Right));
}

#[test]
#[should_panic(expected = "deadlock")]
fn control_who_rings_before_the_commit_is_not_heard() {
    in_many_orders(10_000, || publish_and_look(Order::Wrong, Order::Right));
}

#[test]
#[should_panic(expected = "deadlock")]
fn control_who_looks_and_then_takes_the_ring_away_sleeps_for_ever() {
    in_many_orders(10_000, || publish_and_look(Order::Right, Order::Wrong));
}

/// The worker's loop: work while it is not told to stop, sleep in between.
fn stop_at_any_time(flag_first: bool) {
    let bell = Arc::new(Bell::new());
    let stopping = Arc::new(AtomicBool::new(false));
    let (stop, stopped) = bounded::<()>(0);
    let worker = {
        let (bell, stopping) = (Arc::clone(&bell), Arc::clone(&stopping));
        thread::spawn(move || {
            let (_report, reports) = unbounded::<()>();
            let mut turns = 0;
            while !stopping.load(Ordering::Acquire) {
                turns += 1;
                assert!(turns < 1_000, "it spins");
                bell.sleep(&stopped, &reports, LONG);
            }
        })
    };
    let publisher = {
        let bell = Arc::clone(&bell);
        thread::spawn(move || (0..2).for_each(|_| bell.ring()))
    };
    if flag_first {
        stopping.store(true, Ordering::Release);
    }
    drop(stop);
    worker.join().unwrap();
    publisher.join().unwrap();
}

#[test]
fn a_stop_ends_the_loop_whenever_it_comes() {
    in_many_orders(10_000, || stop_at_any_time(true));
}

#[test]
#[should_panic(expected = "it spins")]
fn control_a_stop_that_is_told_and_not_set_does_not_end_the_loop() {
    in_many_orders(100, || stop_at_any_time(false));
}
