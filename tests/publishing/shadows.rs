//! Names and triggers of the application's that stand in the way of the library's tables.

use postbox::{
    Context, EntityRef, Error, Event, HandlerError, LinkType, NewLink, OutboxStatus, Subscription,
};

use crate::support::{
    Calls, SECOND, TestBox, boxes, effects, ends, event, file_box, inbox_rows, noting, outbox_row, sql,
    status, writing,
};

const SHADOWS: &str = "CREATE TEMP TABLE outbox_event (id BLOB PRIMARY KEY, available_at, created_at, updated_at,
        payload_version, event_name, source_module, aggregate_type, aggregate_id, causation_id, correlation_id, traceparent,
        payload, metadata, seq, status, attempt_count, last_error, lease_id, processed_at, deliver_to);
    CREATE TEMP TABLE inbox_event (id, event, consumer_name, status);
    CREATE TEMP TABLE integration_link (id, source_module);
    CREATE TEMP TABLE postbox_setting (key, value, updated_at);
    CREATE TEMP TABLE postbox_schema (version);";

fn link() -> NewLink {
    let end = |id: &str| EntityRef::new("finance", "Invoice", id);
    NewLink::new(end("1"), end("2"), LinkType::Reference)
}

#[test]
fn temporary_tables_of_the_same_names_take_nothing() {
    for TestBox { kind, bus, .. } in &boxes() {
        sql(bus, |tx| tx.execute_batch("CREATE TABLE effect (seq INTEGER PRIMARY KEY, who TEXT)"));
        sql(bus, |tx| tx.execute_batch(SHADOWS));
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "plain", noting(&calls, "ran"))).unwrap();
        bus.subscribe(Subscription::transactional("a", "tx", writing("ran"))).unwrap();
        let published = bus.publish(event("a")).unwrap();
        let in_transaction = bus.transaction(|tx| tx.publish(event("a"))).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["ran", "ran"]);
        for id in [published, in_transaction] {
            assert_eq!(status(bus, id), OutboxStatus::Processed);
            assert!(
                bus.inbox().is_processed(id, "plain").unwrap() && bus.inbox().is_processed(id, "tx").unwrap()
            );
        }
        let row = bus.inbox().get_or_create(published, "another").unwrap();
        bus.inbox().mark_failed(row.id, "no").unwrap();
        assert_eq!(bus.inbox().count_unprocessed("another").unwrap(), 1);
        let made = bus.links().create(link()).unwrap();
        assert_eq!(bus.links().delete(made.id).unwrap().id, made.id);
        bus.update_settings(|settings| settings.batch_size = 3).unwrap();
        assert_eq!(bus.settings().batch_size, 3);
        assert_eq!(bus.stats().unwrap().processed, 2);
        let taken: i64 = sql(bus, |tx| {
            tx.query_row(
                "SELECT (SELECT count(*) FROM temp.outbox_event) + (SELECT count(*) FROM temp.inbox_event)
                      + (SELECT count(*) FROM temp.integration_link) + (SELECT count(*) FROM temp.postbox_setting)",
                [],
                |row| row.get(0),
            )
        });
        assert_eq!(taken, 0, "{kind}");
    }
}

#[test]
fn a_temporary_table_on_the_applications_connection_takes_nothing() {
    let test = file_box();
    let conn = test.app_connection();
    conn.execute_batch(SHADOWS).unwrap();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let id = test.bus.publish_in(&conn, event("a").idempotency_key("k")).unwrap();
    conn.execute_batch("COMMIT").unwrap();
    assert_eq!(test.bus.drain().unwrap(), 1);
    assert_eq!(status(&test.bus, id), OutboxStatus::Processed);
}

/// A trigger in the file, and one that only this connection has.
const SWALLOWING: [&str; 2] = [
    "CREATE TRIGGER swallow BEFORE INSERT ON main.{table} BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TEMP TRIGGER swallow BEFORE INSERT ON main.{table} BEGIN SELECT RAISE(IGNORE); END",
];

#[track_caller]
fn assert_not_stored<T: std::fmt::Debug>(result: postbox::Result<T>) {
    match result {
        Err(Error::NotStored { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_event_that_a_trigger_swallows_is_not_said_to_be_published() {
    for trigger in SWALLOWING {
        for TestBox { bus, .. } in &boxes() {
            let before = bus.publish(event("a").idempotency_key("before")).unwrap();
            sql(bus, |tx| tx.execute_batch(&trigger.replace("{table}", "outbox_event")));
            assert_not_stored(bus.publish(event("a")));
            assert_not_stored(bus.publish(event("a").idempotency_key("k")));
            assert_not_stored(bus.publish_all([event("a"), event("a")]));
            assert_not_stored(bus.transaction(|tx| tx.publish(event("a"))));
            assert_not_stored(bus.transaction(|tx| bus.publish_in(tx, event("a"))));
            assert_eq!(bus.publish(event("a").idempotency_key("before")).unwrap(), before);
            assert_eq!(bus.stats().unwrap().total, 1);
        }
    }
}

#[test]
fn links_and_inbox_rows_that_a_trigger_swallows_are_errors() {
    for trigger in SWALLOWING {
        for TestBox { bus, .. } in &boxes() {
            let id = bus.publish(event("a")).unwrap();
            for table in ["integration_link", "inbox_event"] {
                let trigger = trigger.replace("{table}", table).replace("swallow", table);
                sql(bus, |tx| {
                    tx.execute_batch(&trigger.replace("TRIGGER integration", "TRIGGER of_integration"))
                });
            }
            assert_not_stored(bus.links().create(link()));
            assert_not_stored(bus.transaction(|tx| tx.create_link(link())));
            assert_not_stored(bus.inbox().get_or_create(id, "c"));
        }
    }
}

/// Without its mark the consumer would run again and again: the event is set aside for a person to look at.
#[test]
fn a_delivery_whose_mark_a_trigger_swallows_is_a_dead_letter_that_says_so() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("plain", "c", noting(&calls, "ran"))).unwrap();
        bus.subscribe(Subscription::transactional("tx", "c", writing("never"))).unwrap();
        sql(bus, |tx| tx.execute_batch("CREATE TABLE effect (seq INTEGER PRIMARY KEY, who TEXT)"));
        let ids = bus.publish_all([event("plain"), event("tx")]).unwrap();
        let good = bus.publish(event("nobody")).unwrap();
        sql(bus, |tx| tx.execute_batch(&SWALLOWING[0].replace("{table}", "inbox_event")));
        assert_eq!(bus.process_batch().unwrap(), 1, "{kind}");
        assert_eq!(status(bus, good), OutboxStatus::Processed);
        for id in ids {
            let row = outbox_row(bus, id);
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::DeadLetter, 1), "{kind}");
            assert!(row.last_error.unwrap().contains("cannot be recorded"));
            assert_eq!(inbox_rows(bus, id), []);
        }
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all(), ["ran"]);
        assert_eq!(effects(bus), [""; 0], "{kind}");
    }
}

/// Failures are counted in the inbox: a consumer whose failures cannot be written there must not be tried for ever.
#[test]
fn an_event_with_a_consumer_whose_failures_a_trigger_swallows_comes_to_an_end() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "one", move |_: &Event, _: &Context<'_>| {
            note.add("ran");
            Err(HandlerError::retry("no"))
        }))
        .unwrap();
        bus.subscribe(Subscription::new("a", "two", noting(&calls, "two"))).unwrap();
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER swallow BEFORE INSERT ON inbox_event WHEN NEW.consumer_name = 'one'
                 BEGIN SELECT RAISE(IGNORE); END",
            )
        });
        let id = bus.publish(event("a")).unwrap();
        for _ in 0..12 {
            bus.drain().unwrap();
            clock.advance(3_600 * SECOND);
        }
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter, "{kind}: {:?}", calls.all());
    }
}

#[test]
fn an_event_whose_claim_a_trigger_swallows_is_not_run() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let id = bus.publish(event("a")).unwrap();
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER swallow BEFORE UPDATE ON outbox_event BEGIN SELECT RAISE(IGNORE); END",
            )
        });
        let of_box = bus.clone();
        assert_not_stored(ends(move || of_box.drain()));
        assert_eq!(calls.all(), [""; 0], "{kind}");
        assert_eq!(status(bus, id), OutboxStatus::Pending);
        sql(bus, |tx| tx.execute_batch("DROP TRIGGER swallow"));
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
    }
}
