//! Events that follow each other are settled together: what has happened to one of them is that one's alone.

use postbox::{Context, Event, EventId, InboxStatus, OutboxStatus, Subscription, Tx};
use rusqlite::params;

use crate::support::{Calls, TestBox, boxes, event, inbox_rows, sql, status};

const LOST: &str =
    "UPDATE outbox_event SET lease_id = ?2, available_at = available_at + 1000000 WHERE id = ?1";

/// As if another process had taken the event over.
fn lose(bus: &postbox::Postbox, id: EventId) {
    assert_eq!(sql(bus, |tx| tx.execute(LOST, params![id.as_uuid(), 77_i64 << 24 | 9])), 1);
}

fn states(bus: &postbox::Postbox, ids: &[EventId]) -> Vec<(OutboxStatus, usize)> {
    ids.iter().map(|id| (status(bus, *id), inbox_rows(bus, *id).len())).collect()
}

const DONE: (OutboxStatus, usize) = (OutboxStatus::Processed, 1);
const SOMEBODY_ELSES: (OutboxStatus, usize) = (OutboxStatus::Processing, 0);

#[test]
fn one_that_lost_its_lease_is_refused_and_its_neighbours_are_settled() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.subscribe(Subscription::new("*", "c", |event: &Event, cx: &Context<'_>| {
            if event.name() == "lost" {
                lose(cx.postbox(), event.id());
            }
            Ok(())
        }))
        .unwrap();
        let ids = bus.publish_all(["a", "a", "lost", "a", "a"].map(event)).unwrap();
        assert_eq!(bus.process_batch().unwrap(), 4, "{kind}");
        assert_eq!(states(bus, &ids), [DONE, DONE, SOMEBODY_ELSES, DONE, DONE], "{kind}");
        assert_eq!(bus.stats().unwrap().processed, 4);
    }
}

#[test]
fn one_whose_row_a_neighbours_transaction_changes_is_refused_with_its_effect() {
    for TestBox { kind, bus, .. } in &boxes() {
        sql(bus, |tx| tx.execute_batch("CREATE TABLE effect (id BLOB)"));
        let ids = bus.publish_all(["a", "takes", "a", "a"].map(event)).unwrap();
        let victim = ids[2];
        bus.subscribe(Subscription::transactional("*", "c", move |event: &Event, tx: &Tx<'_>| {
            tx.execute("INSERT INTO effect VALUES (?1)", [event.id().as_uuid()])?;
            if event.name() == "takes" {
                tx.execute(LOST, params![victim.as_uuid(), 77_i64 << 24 | 9])?;
            }
            Ok(())
        }))
        .unwrap();
        assert_eq!(bus.process_batch().unwrap(), 3, "{kind}");
        assert_eq!(states(bus, &ids), [DONE, DONE, SOMEBODY_ELSES, DONE], "{kind}");
        let of_victim: u64 = sql(bus, |tx| {
            tx.query_row("SELECT count(*) FROM effect WHERE id = ?1", [victim.as_uuid()], |row| row.get(0))
        });
        let all: u64 = sql(bus, |tx| tx.query_row("SELECT count(*) FROM effect", [], |row| row.get(0)));
        assert_eq!((of_victim, all), (0, 3), "{kind}");
    }
}

#[test]
fn a_transactional_handler_does_not_run_for_an_event_whose_lease_is_gone() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(
            Subscription::new("lost", "first", |event: &Event, cx: &Context<'_>| {
                lose(cx.postbox(), event.id());
                Ok(())
            })
            .priority(1),
        )
        .unwrap();
        let note = calls.clone();
        bus.subscribe(Subscription::transactional("*", "second", move |event: &Event, _: &Tx<'_>| {
            note.add(event.name());
            Ok(())
        }))
        .unwrap();
        bus.publish_all(["a", "lost", "a"].map(event)).unwrap();
        assert_eq!(bus.process_batch().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["a", "a"], "{kind}");
    }
}

/// An inbox row that the application makes while its neighbours are delivered is updated; nobody else's is left out.
#[test]
fn one_that_has_an_inbox_row_already_keeps_none_of_its_neighbours_from_theirs() {
    for TestBox { kind, bus, .. } in &boxes() {
        let ids = bus.publish_all(["a", "a", "a", "a"].map(event)).unwrap();
        let (first, second) = (ids[0], ids[1]);
        bus.subscribe(Subscription::new("*", "c", move |event: &Event, cx: &Context<'_>| {
            if event.id() == first {
                cx.postbox().inbox().get_or_create(second, "c")?;
            }
            Ok(())
        }))
        .unwrap();
        assert_eq!(bus.process_batch().unwrap(), 4, "{kind}");
        assert_eq!(states(bus, &ids), [DONE; 4], "{kind}");
        for id in ids {
            assert_eq!(inbox_rows(bus, id), [("c".to_owned(), InboxStatus::Processed, 0, None)], "{kind}");
        }
    }
}
