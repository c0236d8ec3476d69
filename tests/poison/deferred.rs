//! Rows whose writes break a constraint of the application's that is checked only at the commit: they end nobody else's.

use std::time::Duration;

use postbox::{Context, Event, OutboxStatus, Postbox, Settings, Subscription, Tx, UnhandledEvents};

use crate::support::{Calls, boxes, boxes_with, event, inbox_rows, noting, sql, status, wait_until};
use crate::{BOTH, By};

const LIMIT: Duration = Duration::from_mins(1);

/// A write to a row of the name `bad` asks for a parent that is not there, which only the commit finds out.
fn break_at_commit(bus: &Postbox, on: &str, when: &str) {
    sql(bus, |tx| {
        tx.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS parent (id INTEGER PRIMARY KEY);
             CREATE TABLE IF NOT EXISTS child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
             CREATE TRIGGER breaks {on} WHEN {when} BEGIN INSERT INTO child VALUES (1); END"
        ))
    });
}

fn deliver(bus: &Postbox, by: By, processed: u64) {
    match by {
        By::Drain => drop(bus.drain()), // what could not be claimed is said
        By::Worker => {
            let worker = bus.start().unwrap();
            wait_until(LIMIT, || {
                let stats = bus.stats().unwrap();
                stats.processed == processed && stats.processing == 0
            });
            assert!(worker.shutdown(LIMIT).unwrap().clean);
        }
    }
    assert_eq!(bus.stats().unwrap().processed, processed);
}

/// All processing of the box stopped.
#[test]
fn an_event_whose_settlement_fails_at_the_commit_is_set_aside_alone() {
    for transactional in [false, true] {
        for by in BOTH {
            for test in boxes() {
                let (bus, calls) = (&test.bus, Calls::default());
                if transactional {
                    let ran = calls.clone();
                    let handler = move |_: &Event, _: &Tx<'_>| {
                        ran.add("ran");
                        Ok(())
                    };
                    bus.subscribe(Subscription::transactional("*", "c", handler).max_attempts(1)).unwrap();
                } else {
                    bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
                }
                let bad = bus.publish(event("bad")).unwrap();
                bus.publish_all((0..20).map(|_| event("good"))).unwrap();
                break_at_commit(
                    bus,
                    "AFTER UPDATE ON outbox_event",
                    "NEW.event_name = 'bad' AND NEW.status = 'processed'",
                );
                deliver(bus, by, 20);
                assert_eq!(status(bus, bad), OutboxStatus::DeadLetter, "{}, {by:?}", test.kind);
                assert!(transactional || calls.all().len() == 21, "{}, {by:?}", test.kind);
            }
        }
    }
}

#[test]
fn an_event_whose_claim_fails_at_the_commit_waits_alone() {
    for by in BOTH {
        for test in boxes_with(|builder| builder.settings(Settings { batch_size: 5, ..Settings::default() }))
        {
            let (bus, calls) = (&test.bus, Calls::default());
            bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
            let bad = bus.publish_all((0..30).map(|_| event("bad"))).unwrap();
            bus.publish_all((0..20).map(|_| event("good"))).unwrap();
            break_at_commit(bus, "AFTER UPDATE ON outbox_event", "NEW.event_name = 'bad'");
            deliver(bus, by, 20);
            assert_eq!(calls.all(), ["ran"; 20], "{}, {by:?}", test.kind);
            assert!(bad.iter().all(|id| status(bus, *id) == OutboxStatus::Pending));
            sql(bus, |tx| tx.execute_batch("DROP TRIGGER breaks"));
            assert_eq!(bus.drain().unwrap(), 30, "{}", test.kind);
        }
    }
}

/// The counter is the library's own, and not worth an event.
#[test]
fn a_counter_that_cannot_be_written_stops_nobody() {
    for action in ["ROLLBACK", "ABORT"] {
        for by in BOTH {
            for test in boxes() {
                let (bus, calls) = (&test.bus, Calls::default());
                bus.subscribe(Subscription::new("good", "c", noting(&calls, "ran"))).unwrap();
                sql(bus, |tx| {
                    tx.execute_batch(&format!(
                        "CREATE TRIGGER forbids BEFORE UPDATE ON postbox_counter BEGIN SELECT RAISE({action}, 'no'); END"
                    ))
                });
                bus.publish(event("nobody's")).unwrap();
                bus.publish_all((0..5).map(|_| event("good"))).unwrap();
                deliver(bus, by, 6);
                assert_eq!(calls.all(), ["ran"; 5], "{}: {action}", test.kind);
                if test.kind == "file" {
                    let second = test.second();
                    assert_eq!(second.stats().unwrap().total, 6);
                }
            }
        }
    }
}

#[test]
fn a_held_event_that_cannot_be_let_go_keeps_no_other() {
    let hold = || Settings { unhandled_events: UnhandledEvents::Hold, ..Settings::default() };
    for action in ["ROLLBACK", "ABORT"] {
        for test in boxes_with(|builder| builder.settings(hold())) {
            let (bus, calls) = (&test.bus, Calls::default());
            bus.publish_all((0..10).map(|_| event("a"))).unwrap();
            bus.drain().unwrap();
            sql(bus, |tx| {
                tx.execute_batch(&format!(
                    "CREATE TRIGGER forbids BEFORE UPDATE ON outbox_event WHEN OLD.seq = 3 BEGIN SELECT RAISE({action}, 'no'); END"
                ))
            });
            bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
            let _said = bus.drain();
            assert_eq!(calls.all(), ["ran"; 9], "{}: {action}", test.kind);
        }
    }
}

/// It was dropped, and the event was processed without it.
#[test]
fn a_mark_that_cannot_be_recorded_is_not_forgotten() {
    for action in ["ROLLBACK", "ABORT"] {
        for test in boxes() {
            let bus = &test.bus;
            for (consumer, priority) in [("first", 1), ("second", 0)] {
                let handler = |_: &Event, _: &Context<'_>| Ok(());
                bus.subscribe(Subscription::new("*", consumer, handler).priority(priority)).unwrap();
            }
            sql(bus, |tx| {
                tx.execute_batch(&format!(
                    "CREATE TRIGGER forbids BEFORE INSERT ON inbox_event WHEN NEW.consumer_name = 'first'
                     BEGIN SELECT RAISE({action}, 'no'); END"
                ))
            });
            let id = bus.publish(event("a")).unwrap();
            bus.drain().unwrap();
            assert_eq!(status(bus, id), OutboxStatus::DeadLetter, "{}: {action}", test.kind);
            sql(bus, |tx| tx.execute_batch("DROP TRIGGER forbids"));
            bus.outbox().retry(id).unwrap();
            assert_eq!(bus.drain().unwrap(), 1, "{}: {action}", test.kind);
            assert_eq!(inbox_rows(bus, id).len(), 2);
        }
    }
}
