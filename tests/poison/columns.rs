//! Rows that no box wrote so: each is a dead letter by itself, and what is around it is delivered.

use postbox::{EventId, OutboxStatus, Settings, Subscription};
use rusqlite::params;

use crate::support::{Calls, TestBox, boxes, boxes_with, event, inbox_rows, noting, sql, writing};

/// What another program wrote into a row, and the column that the error names.
const POISONS: [(&str, &str); 14] = [
    ("payload = 'not JSON'", "payload"),
    ("payload = ''", "payload"),
    ("payload = '{\"a\":1} trailing'", "payload"),
    ("payload = CAST(x'22ff22' AS TEXT)", "payload"),
    ("payload = replace(hex(zeroblob(64)), '0', '[')", "payload"),
    ("metadata = '{'", "metadata"),
    ("event_name = CAST(x'61ff' AS TEXT)", "event_name"),
    ("source_module = CAST(x'ff' AS TEXT)", "source_module"),
    ("aggregate_type = CAST(x'ff' AS TEXT)", "aggregate_type"),
    ("aggregate_id = CAST(x'ff' AS TEXT)", "aggregate_id"),
    ("correlation_id = CAST(x'ff' AS TEXT)", "correlation_id"),
    ("deliver_to = 'not JSON'", "deliver_to"),
    ("deliver_to = CAST(x'5b22ff225d' AS TEXT)", "deliver_to"),
    ("attempt_count = 4294967295", "attempt_count"),
];

fn poison(test: &TestBox, id: EventId, set: &str) {
    let changed = sql(&test.bus, |tx| {
        tx.execute(&format!("UPDATE outbox_event SET {set} WHERE id = ?1"), [id.as_uuid()])
    });
    assert_eq!(changed, 1);
}

/// By SQL: the row may not be readable through the library.
fn status_and_error(test: &TestBox, id: EventId) -> (String, Option<String>) {
    sql(&test.bus, |tx| {
        tx.query_row("SELECT status, last_error FROM outbox_event WHERE id = ?1", [id.as_uuid()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
    })
}

#[test]
fn a_row_that_cannot_be_read_is_a_dead_letter_that_names_the_column_and_its_neighbours_go_on() {
    for (set, column) in POISONS {
        for test in &boxes() {
            let TestBox { kind, bus, .. } = test;
            let calls = Calls::default();
            bus.subscribe(Subscription::new("*", "plain", noting(&calls, "ran"))).unwrap();
            sql(bus, |tx| tx.execute_batch("CREATE TABLE effect (seq INTEGER PRIMARY KEY, who TEXT)"));
            bus.subscribe(Subscription::transactional("*", "tx", writing("ran"))).unwrap();
            let ids = bus.publish_all((0..5).map(|_| event("a"))).unwrap();
            poison(test, ids[2], set);
            assert_eq!(bus.drain().unwrap(), 4, "{kind}: {set}");
            assert_eq!(calls.all().len(), 4, "{kind}: {set}");
            let (status, error) = status_and_error(test, ids[2]);
            assert_eq!(status, "dead_letter", "{kind}: {set}");
            assert!(error.as_ref().unwrap().contains(column), "{kind}: {set}: {error:?}");
            assert_eq!(inbox_rows(bus, ids[2]), []);
            assert_eq!(bus.stats().unwrap().processed, 4);
            assert_eq!(bus.outbox().count_by_status(OutboxStatus::DeadLetter).unwrap(), 1);
        }
    }
}

#[test]
fn a_row_that_cannot_be_read_fails_where_dead_letters_are_off() {
    let settings = Settings { dead_letter_enabled: false, ..Settings::default() };
    for test in &boxes_with(|builder| builder.settings(settings.clone())) {
        test.bus.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
        let ids = test.bus.publish_all([event("a"), event("a")]).unwrap();
        poison(test, ids[0], "payload = 'not JSON'");
        assert_eq!(test.bus.drain().unwrap(), 1);
        assert_eq!(status_and_error(test, ids[0]).0, "failed", "{}", test.kind);
    }
}

#[test]
fn an_attempt_count_that_cannot_be_counted_on_does_not_stop_the_others() {
    for test in &boxes() {
        test.bus.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
        let ids = test.bus.publish_all([event("a"), event("a"), event("a")]).unwrap();
        poison(test, ids[0], "attempt_count = 9223372036854775807");
        assert_eq!(test.bus.drain().unwrap(), 2, "{}", test.kind);
        assert_eq!(status_and_error(test, ids[0]).0, "dead_letter");
    }
}

#[test]
fn an_inbox_row_that_cannot_be_read_makes_its_event_a_dead_letter_and_no_other() {
    for (what, column) in [
        ("'unknown'", "status"),
        ("''", "status"),
        ("CAST(x'ff' AS TEXT)", "status"),
        ("-1", "attempt_count"),
        ("4294967296", "attempt_count"),
        ("CAST(x'63ff' AS TEXT)", "consumer_name"),
    ] {
        for test in &boxes() {
            let TestBox { kind, bus, .. } = test;
            let calls = Calls::default();
            bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
            let ids = bus.publish_all([event("a"), event("a"), event("a")]).unwrap();
            let row = bus.inbox().get_or_create(ids[1], "c").unwrap();
            sql(bus, |tx| tx.pragma_update(None, "ignore_check_constraints", true));
            sql(bus, |tx| {
                tx.execute(
                    &format!("UPDATE inbox_event SET {column} = {what} WHERE id = ?1"),
                    params![row.id.to_string().parse::<i64>().unwrap()],
                )
            });
            sql(bus, |tx| tx.pragma_update(None, "ignore_check_constraints", false));
            assert_eq!(bus.drain().unwrap(), 2, "{kind}: {column} {what}");
            assert_eq!(calls.all().len(), 2);
            let (status, error) = status_and_error(test, ids[1]);
            assert_eq!(status, "dead_letter");
            assert!(error.unwrap().contains("inbox"));
            assert!(bus.inbox().get(row.id).is_err());
        }
    }
}

#[test]
fn a_dead_letter_by_poison_can_be_looked_at_and_its_error_is_there() {
    for test in &boxes() {
        test.bus.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
        let id = test.bus.publish(event("a")).unwrap();
        poison(test, id, "payload = 'not JSON'");
        test.bus.drain().unwrap();
        // The row's payload cannot be shown, which is said; nothing panics.
        assert!(matches!(test.bus.outbox().get(id), Err(postbox::Error::Json(_))));
        poison(test, id, "payload = '{}'");
        let row = test.bus.outbox().get(id).unwrap().unwrap();
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::DeadLetter, 1));
        assert!(row.last_error.unwrap().contains("no JSON"));
    }
}
