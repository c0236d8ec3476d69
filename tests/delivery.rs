//! Delivery: who is given an event, in which order, and what becomes of it.

mod support;

#[path = "delivery/clock.rs"]
mod clock;
#[path = "delivery/consumers.rs"]
mod consumers;
#[path = "delivery/leases.rs"]
mod leases;
#[path = "delivery/neighbours.rs"]
mod neighbours;
#[path = "delivery/retries.rs"]
mod retries;
#[path = "delivery/several_boxes.rs"]
mod several_boxes;
#[path = "delivery/unhandled.rs"]
mod unhandled;

use std::thread;

use postbox::{Context, Event, HandlerError, NewEvent, OutboxStatus, Settings, Subscription, Tx};
use serde_json::json;

use crate::support::{Calls, SECOND, TestBox, boxes, boxes_with, event, inbox_rows, noting, outbox_row};

#[test]
fn consumers_run_by_priority_and_those_of_one_priority_in_order_of_registration() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let plain = |name: &str| Subscription::new("a", name, noting(&calls, name));
        let transactional = |name: &str| {
            let (calls, name) = (calls.clone(), name.to_owned());
            Subscription::transactional("*", name.clone(), move |_: &Event, _: &Tx<'_>| {
                calls.add(&name);
                Ok(())
            })
        };
        bus.subscribe_many([
            plain("zero, first"),
            transactional("zero, second"),
            plain("lowest").priority(i32::MIN),
            plain("five, first").priority(5),
            transactional("highest").priority(i32::MAX),
            transactional("five, second").priority(5),
            plain("zero, third").priority(0),
        ])
        .unwrap();
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        let order = [
            "highest",
            "five, first",
            "five, second",
            "zero, first",
            "zero, second",
            "zero, third",
            "lowest",
        ];
        assert_eq!(calls.all(), order, "{kind}");
        assert_eq!(bus.registry().consumers("a"), order);
    }
}

#[test]
fn a_wildcard_receives_everything_below_it_at_every_depth() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        for pattern in ["*", "invoice.*", "invoice.line.*", "invoice.created"] {
            let calls = calls.clone();
            bus.subscribe(Subscription::new(pattern, pattern, move |event: &Event, _: &Context<'_>| {
                calls.add(format!("{} to {pattern}", event.name()));
                Ok(())
            }))
            .unwrap();
        }
        for (name, receivers) in [
            ("invoice", vec!["*"]),
            ("invoice.", vec!["*"]),
            ("invoice.created", vec!["*", "invoice.*", "invoice.created"]),
            ("invoice.line.added", vec!["*", "invoice.*", "invoice.line.*"]),
            ("invoice.line", vec!["*", "invoice.*"]),
            ("invoice..", vec!["*", "invoice.*"]),
            ("invoices.created", vec!["*"]),
            ("Invoice.created", vec!["*"]),
            ("x.invoice.created", vec!["*"]),
        ] {
            bus.publish(event(name)).unwrap();
            assert_eq!(bus.drain().unwrap(), 1);
            let expected: Vec<_> = receivers.iter().map(|receiver| format!("{name} to {receiver}")).collect();
            assert_eq!(calls.take(), expected, "{kind}");
        }
    }
}

#[test]
fn a_consumer_that_matches_twice_runs_once_by_its_exact_name() {
    for TestBox { bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", noting(&calls, "any"))).unwrap();
        bus.subscribe(Subscription::new("invoice.*", "c", noting(&calls, "pattern"))).unwrap();
        bus.subscribe(Subscription::new("invoice.created", "c", noting(&calls, "exact"))).unwrap();
        let id = bus.publish(event("invoice.created")).unwrap();
        bus.drain().unwrap();
        assert_eq!(calls.take(), ["exact"]);
        assert_eq!(inbox_rows(bus, id).len(), 1);
        bus.publish(event("invoice.paid")).unwrap();
        bus.drain().unwrap();
        assert_eq!(calls.take(), ["pattern"]);
    }
}

#[test]
fn events_are_delivered_in_the_order_of_publishing() {
    for TestBox { kind, bus, .. } in
        &boxes_with(|builder| builder.settings(Settings { batch_size: 3, ..Settings::default() }))
    {
        let calls = Calls::default();
        for name in ["plain", "tx"] {
            let calls = calls.clone();
            let note = move |event: &Event| calls.add(event.payload().to_string());
            bus.subscribe(if name == "tx" {
                Subscription::transactional(name, "c", move |event: &Event, _: &Tx<'_>| {
                    note(event);
                    Ok(())
                })
            } else {
                Subscription::new(name, "c", move |event: &Event, _: &Context<'_>| {
                    note(event);
                    Ok(())
                })
            })
            .unwrap();
        }
        for n in 0..20 {
            let name = if n % 3 == 1 { "tx" } else { "plain" };
            bus.publish(event(name).payload(json!(n))).unwrap();
        }
        assert_eq!(bus.drain().unwrap(), 20);
        assert_eq!(calls.all(), (0..20).map(|n: u32| n.to_string()).collect::<Vec<_>>(), "{kind}");
    }
}

#[test]
fn follow_ups_of_follow_ups_are_delivered_in_the_same_drain() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let plain = calls.clone();
        bus.subscribe(Subscription::new("even", "c", move |event: &Event, cx: &Context<'_>| {
            let depth = event.payload().as_u64().unwrap();
            plain.add(depth.to_string());
            cx.publish(NewEvent::new("odd", "m", "T", "1").payload(json!(depth + 1)))?;
            Ok(())
        }))
        .unwrap();
        let transactional = calls.clone();
        bus.subscribe(Subscription::transactional("odd", "c", move |event: &Event, tx: &Tx<'_>| {
            let depth = event.payload().as_u64().unwrap();
            transactional.add(depth.to_string());
            if depth < 9 {
                tx.publish(NewEvent::new("even", "m", "T", "1").payload(json!(depth + 1)))?;
            }
            Ok(())
        }))
        .unwrap();
        bus.publish(event("even").payload(json!(0))).unwrap();
        assert_eq!(bus.drain().unwrap(), 10, "{kind}");
        assert_eq!(calls.all(), (0..10).map(|depth: u32| depth.to_string()).collect::<Vec<_>>());
    }
}

#[test]
fn process_batch_takes_one_batch_and_counts_what_reached_processed() {
    for TestBox { kind, bus, .. } in
        &boxes_with(|builder| builder.settings(Settings { batch_size: 4, ..Settings::default() }))
    {
        bus.subscribe(Subscription::new("bad", "c", |_: &Event, _: &Context<'_>| {
            Err(HandlerError::dead_letter("no"))
        }))
        .unwrap();
        bus.publish_all(["good", "bad", "good", "bad", "good", "good"].map(event)).unwrap();
        assert_eq!(bus.process_batch().unwrap(), 2, "{kind}");
        assert_eq!(bus.stats().unwrap().pending, 2);
        assert_eq!(bus.process_batch().unwrap(), 2, "{kind}");
        assert_eq!(bus.process_batch().unwrap(), 0, "{kind}");
        assert_eq!(bus.outbox().count_by_status(OutboxStatus::DeadLetter).unwrap(), 2);
    }
}

#[test]
fn nothing_is_delivered_while_processing_is_off_and_nothing_is_lost() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        bus.update_settings(|settings| settings.enabled = false).unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap() + bus.process_batch().unwrap(), 0, "{kind}");
        assert_eq!(outbox_row(bus, id).attempt_count, 0);
        bus.update_settings(|settings| {
            settings.enabled = true;
            settings.processor_enabled = false; // the worker's alone
        })
        .unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.all(), ["ran"]);
    }
}

#[test]
fn threads_that_drain_at_once_deliver_every_event_once() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |event: &Event, _: &Context<'_>| {
            note.add(event.id().to_string());
            Ok(())
        }))
        .unwrap();
        let ids = bus.publish_all((0..200).map(|_| event("a"))).unwrap();
        let processed: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| bus.drain().unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(processed, 200, "{kind}");
        let (mut ran, mut published) = (calls.all(), ids.iter().map(ToString::to_string).collect::<Vec<_>>());
        ran.sort();
        published.sort();
        assert!(ran == published, "{kind}: {} runs", ran.len());
        assert_eq!(bus.stats().unwrap().processed, 200);
    }
}

#[test]
fn stats_tell_the_age_of_the_oldest_pending_event() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let age = || bus.stats().unwrap().oldest_pending_age_ms;
        assert_eq!(age(), None, "{kind}");
        bus.publish(event("a").delay(60 * SECOND)).unwrap();
        clock.advance(2 * SECOND);
        assert_eq!(age(), Some(2_000), "{kind}");
        bus.publish(event("b")).unwrap();
        clock.advance(SECOND);
        assert_eq!(age(), Some(3_000), "{kind}: the delayed one is older");
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(age(), Some(3_000), "{kind}");
        clock.advance(60 * SECOND);
        bus.drain().unwrap();
        assert_eq!(age(), None, "{kind}");
    }
}

#[test]
fn synced_acknowledgements_deliver_the_same() {
    for test in &boxes_with(|builder| builder.synced_acks(true)) {
        let TestBox { kind, bus, .. } = test;
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "plain", noting(&calls, "plain"))).unwrap();
        bus.subscribe(Subscription::transactional("a", "tx", |event: &Event, tx: &Tx<'_>| {
            if event.name() == "a" {
                tx.publish(support::event("b"))?;
            }
            Ok(())
        }))
        .unwrap();
        bus.publish_all([event("a"), event("a")]).unwrap();
        assert_eq!(bus.drain().unwrap(), 4, "{kind}");
        assert_eq!(calls.all(), ["plain", "plain"], "{kind}");
    }
}
