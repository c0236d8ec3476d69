//! Handlers are told that their time is over; who may set a limit to what.

use std::time::Duration;

use postbox::{Context, Event, HandlerError, OutboxStatus, Subscription, Tx};

use crate::support::{Calls, LEASE, SECOND, boxes, event, outbox_row, refused_field, wait_until};
use crate::{LIMIT, MILLISECOND};

#[test]
fn a_plain_handler_is_cancelled_once_its_limit_has_passed_and_what_it_says_counts() {
    for test in boxes() {
        let (bus, kind) = (&test.bus, test.kind);
        let clock = test.clock.clone();
        let told = |calls: &Calls, limit: Duration| {
            let (calls, clock) = (calls.clone(), clock.clone());
            let handler = move |event: &Event, cx: &Context<'_>| {
                if limit > SECOND || event.name() == "none" {
                    clock.advance(2 * LEASE);
                    calls.add(if cx.is_cancelled() { "cancelled" } else { "not cancelled" });
                } else {
                    wait_until(LIMIT, || cx.is_cancelled());
                    calls.add("cancelled");
                }
                Ok(())
            };
            Subscription::new(if limit > SECOND { "long" } else { "short" }, "c", handler).time_limit(limit)
        };
        let calls = Calls::default();
        bus.subscribe_many([told(&calls, 3_600 * SECOND), told(&calls, MILLISECOND)]).unwrap();
        // By hand nobody else ends its attempt.
        for (name, expected) in [("long", "not cancelled"), ("short", "cancelled")] {
            let id = bus.publish(event(name)).unwrap();
            assert_eq!(bus.drain().unwrap(), 1, "{kind}, {name}");
            assert_eq!(calls.take(), [expected], "{kind}, {name}");
            let row = outbox_row(bus, id);
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processed, 1), "{kind}, {name}");
        }
    }
}

#[test]
fn a_transactional_handler_is_told_by_its_transaction_and_that_is_all() {
    for by_worker in [false, true] {
        for test in boxes() {
            let (bus, kind, calls) = (&test.bus, test.kind, Calls::default());
            let (short, long, clock) = (calls.clone(), calls.clone(), test.clock.clone());
            let short = move |_: &Event, tx: &Tx<'_>| {
                wait_until(LIMIT, || tx.is_cancelled());
                clock.advance(2 * LEASE);
                short.add("cancelled");
                Ok(())
            };
            let long = move |_: &Event, tx: &Tx<'_>| {
                long.add(if tx.is_cancelled() { "cancelled" } else { "not cancelled" });
                if tx.is_cancelled() { Err(HandlerError::retry("too late")) } else { Ok(()) }
            };
            bus.subscribe(Subscription::transactional("a", "short", short).time_limit(MILLISECOND)).unwrap();
            bus.subscribe(Subscription::transactional("a", "long", long).time_limit(3_600 * SECOND)).unwrap();
            let id = bus.publish(event("a")).unwrap();
            if by_worker {
                let worker = bus.start().unwrap();
                wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Processed);
                drop(worker);
            } else {
                bus.drain().unwrap();
            }
            assert_eq!(calls.all(), ["cancelled", "not cancelled"], "{kind}");
            assert_eq!(outbox_row(bus, id).attempt_count, 1, "{kind}");
        }
    }
}

#[test]
fn a_transaction_of_the_application_is_never_cancelled() {
    for test in boxes() {
        assert!(!test.bus.transaction(|tx| Ok::<_, postbox::Error>(tx.is_cancelled())).unwrap());
    }
}

#[test]
fn a_transactional_handler_knows_that_its_worker_stops() {
    for test in boxes() {
        let (bus, entered) = (&test.bus, crate::files::Tally::default());
        let inside = entered.clone();
        bus.subscribe(Subscription::transactional("a", "c", move |_: &Event, tx: &Tx<'_>| {
            inside.add();
            wait_until(LIMIT, || tx.is_cancelled());
            Ok(())
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        entered.wait_for(1);
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{}", test.kind);
    }
}

#[test]
fn a_limit_below_a_millisecond_is_refused_and_nobody_is_subscribed() {
    for test in boxes() {
        let to = |name: &str| Subscription::new(name, "c", |_: &Event, _: &Context<'_>| Ok(()));
        for limit in [Duration::ZERO, Duration::from_micros(999)] {
            assert_eq!(refused_field(test.bus.subscribe(to("a").time_limit(limit))), "time_limit");
            let many = [to("b"), to("a").time_limit(limit)];
            assert_eq!(refused_field(test.bus.subscribe_many(many)), "time_limit");
        }
        assert_eq!(test.bus.registry().handler_count(), 0, "{}", test.kind);
        test.bus.subscribe(to("a").time_limit(MILLISECOND)).unwrap();
        test.bus.subscribe(to("b").time_limit(Duration::MAX)).unwrap();
        test.bus.publish_all([event("a"), event("b")]).unwrap();
        assert_eq!(test.bus.drain().unwrap(), 2, "{}", test.kind);
    }
}

#[test]
fn a_subscription_shows_its_limit() {
    let subscription = Subscription::new("a", "c", |_: &Event, _: &Context<'_>| Ok(()));
    assert!(format!("{:?}", subscription.time_limit(5 * SECOND)).contains("time_limit: Some(5s)"));
}
