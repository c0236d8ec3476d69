//! Triggers of the application's, and rows that no box wrote.

use std::time::Duration;

use postbox::{Context, Error, Event, HandlerError, OutboxStatus, Postbox, Subscription, Tx};

use crate::support::{Calls, SECOND, TestBox, boxes, event, file_box, noting, outbox_row, sql, status};
use crate::{consumer, is_parked, parked, rows};

const HOW: [&str; 4] = ["ABORT, 'no'", "ROLLBACK, 'no'", "FAIL, 'no'", "IGNORE"];

fn forbid(bus: &Postbox, on: &str, when: &str, how: &str) {
    sql(bus, |tx| {
        tx.execute_batch(&format!("CREATE TRIGGER forbids {on} WHEN {when} BEGIN SELECT RAISE({how}); END"))
    });
}

#[test]
fn a_pause_that_cannot_be_stored_is_an_error() {
    for how in HOW {
        for TestBox { kind, bus, .. } in &boxes() {
            forbid(bus, "BEFORE INSERT ON postbox_pause", "true", how);
            let error = bus.pause(&consumer("c"), None, None).unwrap_err();
            assert!(matches!(error, Error::NotStored { .. } | Error::Sqlite(_)), "{kind}, {how}: {error:?}");
            assert_eq!(bus.pauses().unwrap(), []);
            sql(bus, |tx| tx.execute_batch("DROP TRIGGER forbids"));
            bus.pause(&consumer("c"), None, None).unwrap();
            forbid(bus, "BEFORE UPDATE ON postbox_pause", "true", how);
            bus.resume(&consumer("c")).unwrap_err();
            assert_eq!(bus.pauses().unwrap().len(), 1, "{kind}, {how}");
        }
    }
}

/// The consumer is paused all the same, as far as this box goes, and its events are due at the end of that.
#[test]
fn a_plain_handlers_pause_that_cannot_be_stored_is_kept_in_memory() {
    for how in HOW {
        for TestBox { kind, bus, clock, .. } in &boxes() {
            let calls = Calls::default();
            let seen = calls.clone();
            bus.subscribe_many([
                Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
                    seen.add("c");
                    match seen.count("c") {
                        1 => Err(HandlerError::pause_consumer("offline", SECOND)),
                        _ => Ok(()),
                    }
                })
                .max_attempts(1),
                Subscription::new("b", "d", noting(&calls, "d")),
            ])
            .unwrap();
            forbid(bus, "BEFORE INSERT ON postbox_pause", "true", how);
            bus.publish_all(["a", "b", "a", "a"].map(event)).unwrap();
            assert_eq!(bus.drain().unwrap(), 1, "{kind}, {how}");
            assert_eq!((calls.count("c"), calls.count("d")), (1, 1), "{kind}, {how}");
            let id = bus.publish(event("a")).unwrap();
            assert_eq!(bus.drain().unwrap(), 0);
            assert_eq!((status(bus, id), outbox_row(bus, id).attempt_count), (OutboxStatus::Pending, 0));
            clock.advance(SECOND);
            assert_eq!(bus.drain().unwrap(), 4, "{kind}, {how}");
        }
    }
}

/// Its own work is undone, and the refusal is its failure.
#[test]
fn a_transactional_handlers_pause_that_cannot_be_stored_is_a_failed_attempt_and_its_neighbours_go_on() {
    for how in HOW {
        for TestBox { kind, bus, .. } in &boxes() {
            let calls = Calls::default();
            bus.subscribe_many([
                Subscription::transactional("a", "c", |_: &Event, _: &Tx<'_>| {
                    Err(HandlerError::pause_consumer("offline", SECOND))
                })
                .max_attempts(1),
                Subscription::transactional("b", "d", |_: &Event, _: &Tx<'_>| Ok(())),
            ])
            .unwrap();
            drop(calls);
            forbid(bus, "BEFORE INSERT ON postbox_pause", "true", how);
            let ids = bus.publish_all(["b", "a", "b"].map(event)).unwrap();
            assert_eq!(bus.drain().unwrap(), 2, "{kind}, {how}");
            assert_eq!(status(bus, ids[1]), OutboxStatus::DeadLetter, "{kind}, {how}");
            assert!(
                outbox_row(bus, ids[1]).last_error.unwrap().contains("its pause cannot be stored"),
                "{how}"
            );
        }
    }
}

/// One row that cannot be let go keeps no other, and is let go when it can be.
#[test]
fn a_row_that_cannot_be_let_go_waits_alone() {
    for how in HOW {
        for TestBox { kind, bus, .. } in &boxes() {
            let calls = Calls::default();
            bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
            bus.pause(&consumer("c"), None, None).unwrap();
            let ids = bus.publish_all((0..5).map(|_| event("a"))).unwrap();
            bus.drain().unwrap();
            forbid(bus, "BEFORE UPDATE ON outbox_event", "OLD.seq = 3 AND NEW.status = 'pending'", how);
            bus.resume(&consumer("c")).unwrap();
            assert_eq!(bus.drain().unwrap(), 4, "{kind}, {how}");
            assert!(is_parked(bus, ids[2]));
            assert_eq!(bus.drain().unwrap(), 0, "{kind}, {how}");
            sql(bus, |tx| tx.execute_batch("DROP TRIGGER forbids"));
            assert_eq!(bus.drain().unwrap(), 1, "{kind}, {how}");
            assert_eq!((rows(bus), parked(bus)), (0, 0));
        }
    }
}

/// What waits is let go, though the pause's row cannot be deleted; nothing spins.
#[test]
fn a_pause_that_cannot_be_forgotten_lets_go_all_the_same() {
    for how in HOW {
        for on in ["BEFORE DELETE ON postbox_pause", "BEFORE UPDATE ON postbox_pause"] {
            for TestBox { kind, bus, clock, .. } in &boxes() {
                let calls = Calls::default();
                bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
                bus.pause(&consumer("c"), None, Some(SECOND)).unwrap();
                bus.publish(event("a")).unwrap();
                bus.drain().unwrap();
                forbid(bus, on, "true", how);
                clock.advance(SECOND);
                bus.drain().unwrap();
                bus.publish(event("a")).unwrap();
                bus.drain().unwrap();
                assert!(!calls.all().is_empty(), "{kind}, {on}, {how}");
                sql(bus, |tx| tx.execute_batch("DROP TRIGGER forbids"));
                bus.drain().unwrap();
                assert_eq!((calls.all().len(), rows(bus), parked(bus)), (2, 0, 0), "{kind}, {on}, {how}");
            }
        }
    }
}

/// Rows that a program wrote past the limits of the table.
#[test]
fn rows_that_no_box_wrote_pause_nothing_and_break_nothing() {
    let test = file_box();
    let bus = &test.bus;
    let calls = Calls::default();
    bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
    test.app_connection()
        .execute_batch(
            "PRAGMA ignore_check_constraints = ON;
                 INSERT INTO postbox_pause VALUES ('unknown', 'c', NULL, 1, NULL);
                 INSERT INTO postbox_pause VALUES ('consumer', CAST(x'ff00' AS TEXT), NULL, 1, NULL);
                 INSERT INTO postbox_pause VALUES ('consumer', 'e', NULL, -5, -9223372036854775808);
                 INSERT INTO postbox_pause VALUES ('event_name', 'e', NULL, 9223372036854775807, 9223372036854775807);",
        )
        .unwrap();
    bus.publish(event("a")).unwrap();
    assert_eq!(bus.drain().unwrap(), 1);
    let pauses = bus.pauses().unwrap();
    assert_eq!(pauses.len(), 1, "{pauses:?}");
    assert!(bus.resume(&pauses[0].target).unwrap());
    assert_eq!(bus.drain().unwrap(), 0);
    assert_eq!(bus.pauses().unwrap(), []);
}

/// An application's handler may be slow to say so: the pause begins when it has said it.
#[test]
fn a_pause_begins_when_it_is_asked_for() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let slow = clock.clone();
        bus.subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
            slow.advance(Duration::from_secs(5));
            Err(HandlerError::pause_consumer("offline", SECOND))
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert!(is_parked(bus, id), "{kind}");
        assert_eq!(bus.pauses().unwrap().len(), 1);
    }
}
