//! The box in numbers: exact while little waits, whoever wrote the rows; and no slower for a long history.

#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use postbox::{Context, Event, OutboxStatus, Postbox, Stats, Subscription};

use crate::support::{TestBox, boxes, event, sql};

/// So many pending rows that they are no longer counted one by one.
const MANY: usize = 6_000;

fn counts(bus: &Postbox) -> [u64; 6] {
    let Stats { pending, processing, processed, failed, dead_letter, total, .. } = bus.stats().unwrap();
    for (status, count) in [(OutboxStatus::Pending, pending), (OutboxStatus::Processed, processed)] {
        assert_eq!(bus.outbox().count_by_status(status).unwrap(), count);
    }
    [pending, processing, processed, failed, dead_letter, total]
}

/// The same, by reading every row.
fn counted(bus: &Postbox) -> [u64; 6] {
    let count = |what: &str| -> u64 {
        let query = format!("SELECT count(*) FROM outbox_event WHERE {what}");
        sql(bus, |tx| tx.query_row(&query, [], |row| row.get(0)))
    };
    ["pending", "processing", "processed", "failed", "dead_letter"]
        .map(|status| count(&format!("status = '{status}'")))
        .into_iter()
        .chain([count("true")])
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

fn subscribe(bus: &Postbox) {
    bus.subscribe(Subscription::new("a", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
}

#[test]
fn counts_follow_what_the_box_does_also_with_many_pending() {
    for TestBox { kind, bus, .. } in &boxes() {
        subscribe(bus);
        for published in [10, MANY] {
            bus.publish_all((0..published).map(|_| event("a"))).unwrap();
            bus.publish(event("a").delay(Duration::from_mins(1))).unwrap();
            for _ in 0..3 {
                bus.process_batch().unwrap();
                assert_eq!(counts(bus), counted(bus), "{kind}, {published}");
            }
            sql(bus, |tx| {
                tx.execute("DELETE FROM outbox_event WHERE status = 'processed' AND seq % 2 = 0", [])
            });
            sql(bus, |tx| {
                tx.execute("DELETE FROM outbox_event WHERE status = 'pending' AND seq % 7 = 0", [])
            });
            assert_eq!(counts(bus), counted(bus), "{kind}, {published}, some deleted");
        }
        assert!(counts(bus)[0] > 5_000);
        bus.drain().unwrap();
        assert_eq!(counts(bus), counted(bus), "{kind}");
    }
}

#[test]
fn an_event_that_its_key_has_published_already_counts_once() {
    for TestBox { kind, bus, .. } in &boxes() {
        for _ in 0..3 {
            bus.publish(event("a").idempotency_key("once")).unwrap();
        }
        bus.publish(event("a")).unwrap();
        assert_eq!(counts(bus), [2, 0, 0, 0, 0, 2], "{kind}");
    }
}

#[test]
fn rows_whose_status_another_program_has_changed_are_counted_as_they_are() {
    for TestBox { kind, bus, .. } in &boxes() {
        subscribe(bus);
        bus.publish_all((0..4).map(|_| event("a"))).unwrap();
        bus.drain().unwrap();
        sql(bus, |tx| {
            tx.execute("UPDATE outbox_event SET status = 'pending', available_at = 0 WHERE seq < 3", [])
        });
        assert_eq!(counts(bus), [2, 0, 2, 0, 0, 4], "{kind}");
        sql(bus, |tx| tx.execute("UPDATE outbox_event SET status = 'dead_letter' WHERE seq = 4", []));
        assert_eq!(counts(bus), [2, 0, 1, 0, 1, 4], "{kind}");
        bus.drain().unwrap();
        assert_eq!(counts(bus), [0, 0, 3, 0, 1, 4], "{kind}");
    }
}

/// The counter of processed rows is what a change by another program puts wrong; it matters once many events wait.
#[test]
fn a_box_that_is_opened_sets_the_counter_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    subscribe(&bus);
    bus.publish_all((0..100).map(|_| event("a"))).unwrap();
    bus.drain().unwrap();
    sql(&bus, |tx| tx.execute("UPDATE outbox_event SET status = 'failed' WHERE seq <= 60", []));
    bus.close().unwrap();
    let bus = Postbox::open(&path).unwrap();
    bus.publish_all((0..MANY).map(|_| event("a"))).unwrap();
    assert_eq!(counts(&bus), [MANY as u64, 0, 40, 60, 0, MANY as u64 + 100]);
}

#[test]
fn with_many_pending_the_oldest_is_found_among_those_that_are_due_first() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        bus.publish_all((0..MANY).map(|_| event("a"))).unwrap();
        clock.advance(Duration::from_millis(1_500));
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.stats().unwrap().oldest_pending_age_ms, Some(1_500), "{kind}");
    }
}

/// Somebody who looks only for rows that are newer than the last one seen must not miss any.
#[test]
fn the_numbers_of_deleted_events_are_not_used_again() {
    for TestBox { kind, bus, .. } in &boxes() {
        let last = || {
            sql(bus, |tx| tx.query_row("SELECT max(seq) FROM outbox_event", [], |row| row.get::<_, i64>(0)))
        };
        bus.publish_all((0..3).map(|_| event("a"))).unwrap();
        assert_eq!(last(), 3);
        sql(bus, |tx| tx.execute("DELETE FROM outbox_event WHERE seq = 3", []));
        bus.publish(event("a")).unwrap();
        assert_eq!(last(), 4, "{kind}");
        sql(bus, |tx| tx.execute("DELETE FROM outbox_event", []));
        bus.publish_all((0..2).map(|_| event("a"))).unwrap();
        assert_eq!(last(), 6, "{kind}");
        assert_eq!(counts(bus), [2, 0, 0, 0, 0, 2], "{kind}");
    }
}

#[test]
fn a_trigger_that_publishes_as_well_is_in_nobodys_way() {
    for TestBox { kind, bus, .. } in &boxes() {
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER more AFTER INSERT ON outbox_event WHEN NEW.event_name = 'a' BEGIN
                 INSERT INTO outbox_event (id, available_at, created_at, event_name, source_module, aggregate_type, aggregate_id, payload)
                 VALUES (randomblob(16), NEW.available_at, NEW.created_at, 'b', 'm', 'T', '1', '{}'); END",
            )
        });
        bus.publish_all((0..20).map(|_| event("a"))).unwrap();
        bus.publish(event("a")).unwrap();
        assert_eq!(counts(bus), [42, 0, 0, 0, 0, 42], "{kind}");
        assert_eq!(counted(bus), [42, 0, 0, 0, 0, 42], "{kind}");
    }
}
