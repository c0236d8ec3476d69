//! Order under workers with several threads, and in several boxes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use postbox::{Backoff, Context, Event, HandlerError, HandlerResult, OutboxStatus, Subscription};

use crate::support::{Calls, TestBox, boxes_with, file_box, status, wait_until};
use crate::{of, publish, waiting};

const LIMIT: Duration = Duration::from_mins(1);

/// What an ordered handler has seen of each aggregate: the number of the last, and whether one is inside.
#[derive(Default)]
struct Seen {
    aggregates: Mutex<HashMap<String, (usize, bool)>>,
    calls: AtomicUsize,
}

impl Seen {
    /// Fails every third call. Panics, and so fails the test by its count, where the order is broken.
    fn handle(&self, event: &Event) -> HandlerResult {
        let number: usize = event.name().parse().unwrap();
        {
            let mut aggregates = self.aggregates.lock().unwrap();
            let (last, is_inside) = aggregates.entry(event.aggregate_id().to_owned()).or_default();
            assert!(!*is_inside, "two at a time");
            assert_eq!(number, *last + 1, "out of order");
            *is_inside = true;
        }
        std::thread::yield_now();
        let fails = self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
        let mut aggregates = self.aggregates.lock().unwrap();
        let state = aggregates.get_mut(event.aggregate_id()).unwrap();
        state.1 = false;
        if fails {
            return Err(HandlerError::retry_after("again", Duration::ZERO));
        }
        state.0 = number;
        Ok(())
    }
}

#[test]
fn workers_with_several_threads_keep_the_order_under_failures() {
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.handler_threads(4)) {
        let seen = Arc::new(Seen::default());
        let handler = {
            let seen = Arc::clone(&seen);
            move |event: &Event, _: &Context<'_>| seen.handle(event)
        };
        bus.subscribe(
            Subscription::new("*", "c", handler)
                .ordered()
                .max_attempts(1_000)
                .backoff(Backoff::fixed(Duration::ZERO)),
        )
        .unwrap();
        let worker = bus.start().unwrap();
        for number in 1..=20 {
            let name = number.to_string();
            bus.publish_all((0..15).map(|aggregate| of(&aggregate.to_string(), &name))).unwrap();
        }
        wait_until(LIMIT, || bus.stats().unwrap().processed == 300);
        worker.shutdown(LIMIT).unwrap();
        let aggregates = seen.aggregates.lock().unwrap();
        assert!(aggregates.len() == 15 && aggregates.values().all(|state| *state == (20, false)), "{kind}");
        assert_eq!(waiting(bus), 0);
    }
}

/// Notes each call; the first one for `younger` says that it has begun, and waits to be told whether to succeed.
fn gate(calls: &Calls) -> (impl postbox::Handler, Receiver<()>, Sender<bool>) {
    let (begun, begins) = bounded(1);
    let (end, ends) = bounded::<bool>(1);
    let calls = calls.clone();
    let handler = move |event: &Event, _: &Context<'_>| {
        calls.add(event.name());
        if event.name() == "younger" && calls.count("younger") == 1 {
            begun.send(()).unwrap();
            if !ends.recv_timeout(LIMIT).unwrap() {
                return Err(HandlerError::retry_after("again", Duration::ZERO));
            }
        }
        Ok(())
    };
    (handler, begins, end)
}

/// A delayed event is older than what runs when its time comes.
#[test]
fn an_older_event_waits_for_a_younger_one_that_is_being_handled_and_comes_before_it_is_tried_again() {
    for succeeds in [true, false] {
        for TestBox { kind, bus, clock, .. } in &boxes_with(|builder| builder.handler_threads(4)) {
            let calls = Calls::default();
            let (handler, begins, end) = gate(&calls);
            bus.subscribe(Subscription::new("*", "c", handler).ordered()).unwrap();
            let worker = bus.start().unwrap();
            let older = bus.publish(of("x", "older").delay(Duration::from_secs(5))).unwrap();
            bus.publish(of("x", "younger")).unwrap();
            begins.recv_timeout(LIMIT).unwrap();
            clock.advance(Duration::from_secs(5));
            bus.publish(of("y", "other")).unwrap();
            wait_until(LIMIT, || waiting(bus) == 1 && calls.count("other") == 1);
            assert_eq!(status(bus, older), OutboxStatus::Pending);
            end.send(succeeds).unwrap();
            wait_until(LIMIT, || bus.stats().unwrap().processed == 3);
            worker.shutdown(LIMIT).unwrap();
            let of_x: Vec<_> = calls.all().into_iter().filter(|name| name != "other").collect();
            let expected =
                if succeeds { vec!["younger", "older"] } else { vec!["younger", "older", "younger"] };
            assert_eq!(of_x, expected, "{kind}");
        }
    }
}

/// While another consumer has the event in its hands, the one before it ends.
#[test]
fn an_event_whose_turn_came_while_its_other_consumer_ran_goes_on_at_once() {
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.handler_threads(4)) {
        let [(c_begun, c_begins), (slow_begun, slow_begins)] = [bounded::<()>(1), bounded(1)];
        let [(c_end, c_ends), (slow_end, slow_ends)] = [bounded::<()>(1), bounded(1)];
        let calls = Calls::default();
        let ordered = {
            let calls = calls.clone();
            move |event: &Event, _: &Context<'_>| {
                calls.add(event.name());
                if event.name() == "first" {
                    c_begun.send(()).unwrap();
                    c_ends.recv_timeout(LIMIT).unwrap();
                }
                Ok(())
            }
        };
        let slow = move |_: &Event, _: &Context<'_>| {
            slow_begun.send(()).unwrap();
            slow_ends.recv_timeout(LIMIT).unwrap();
            Ok(())
        };
        bus.subscribe_many([
            Subscription::new("*", "c", ordered).ordered(),
            Subscription::new("second", "slow", slow),
        ])
        .unwrap();
        let worker = bus.start().unwrap();
        let ids = publish(bus, &[("x", "first"), ("x", "second")]);
        c_begins.recv_timeout(LIMIT).unwrap();
        slow_begins.recv_timeout(LIMIT).unwrap();
        c_end.send(()).unwrap();
        wait_until(LIMIT, || status(bus, ids[0]) == OutboxStatus::Processed);
        slow_end.send(()).unwrap();
        wait_until(LIMIT, || status(bus, ids[1]) == OutboxStatus::Processed);
        worker.shutdown(LIMIT).unwrap();
        assert_eq!(calls.all(), ["first", "second"], "{kind}");
    }
}

#[test]
fn another_box_waits_for_the_event_before() {
    let test = file_box();
    let (handler, begins, end) = gate(&Calls::default());
    test.bus.subscribe(Subscription::new("*", "c", handler).ordered()).unwrap();
    let other = test.second();
    let calls = Calls::default();
    other.subscribe(Subscription::new("*", "c", crate::fine(&calls)).ordered()).unwrap();
    let worker = test.bus.start().unwrap();
    let first = publish(&test.bus, &[("x", "younger")])[0];
    begins.recv_timeout(LIMIT).unwrap();
    // The first box stops claiming, so that the other one takes what comes.
    test.bus.update_settings(|settings| settings.processor_enabled = false).unwrap();
    let second = publish(&other, &[("x", "b")])[0];
    assert_eq!(other.drain().unwrap(), 0);
    assert_eq!(calls.all(), Vec::<String>::new());
    end.send(true).unwrap();
    wait_until(LIMIT, || status(&other, first) == OutboxStatus::Processed);
    assert_eq!(other.drain().unwrap(), 1);
    assert_eq!((calls.all(), status(&other, second)), (vec!["x b".to_owned()], OutboxStatus::Processed));
    worker.shutdown(LIMIT).unwrap();
}
