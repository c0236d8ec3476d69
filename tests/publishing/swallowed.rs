//! Triggers of the application's that swallow a write: each operation whose write does not happen says so, or it happens later.

use std::time::Duration;

use postbox::{
    Context, EntityRef, Error, Event, HandlerError, LinkType, NewLink, OutboxStatus, Postbox, Subscription,
};

use crate::support::{
    Calls, LEASE, TestBox, boxes, effects, event, file_box, lose_an_attempt, make_effects, noting,
    outbox_row, sql, wait_until, writing,
};

const LIMIT: Duration = Duration::from_mins(1);

/// `INSERT`, `UPDATE` or `DELETE` on the table does nothing, and SQLite says Ok.
#[track_caller]
fn swallow(bus: &Postbox, operation: &str, table: &str, when: &str) {
    sql(bus, |tx| {
        tx.execute_batch(&format!(
            "CREATE TRIGGER swallows BEFORE {operation} ON {table} {when} BEGIN SELECT RAISE(IGNORE); END"
        ))
    });
}

fn swallow_no_more(bus: &Postbox) {
    sql(bus, |tx| tx.execute_batch("DROP TRIGGER swallows"));
}

#[track_caller]
fn assert_said<T: std::fmt::Debug>(result: postbox::Result<T>, on: &str) {
    match result {
        Err(Error::NotStored { table, .. }) => assert_eq!(table, on),
        other => panic!("{other:?}"),
    }
}

fn link() -> NewLink {
    let end = |id: &str| EntityRef::new("finance", "Invoice", id);
    NewLink::new(end("1"), end("2"), LinkType::Reference)
}

#[test]
fn publishing_says_so_by_every_way() {
    for test in &boxes() {
        let TestBox { bus, .. } = test;
        swallow(bus, "INSERT", "outbox_event", "");
        assert_said(bus.publish(event("a")), "outbox_event");
        assert_said(bus.publish(event("a").idempotency_key("k")), "outbox_event");
        assert_said(bus.publish_all((0..30).map(|_| event("a"))), "outbox_event");
        assert_said(bus.transaction(|tx| tx.publish(event("a"))), "outbox_event");
        assert_said(bus.transaction(|tx| bus.publish_in(tx, event("a"))), "outbox_event");
        if test.kind == "file" {
            let mut app = test.app_connection();
            let tx = app.transaction().unwrap();
            assert_said(bus.publish_in(&tx, event("a")), "outbox_event");
            tx.commit().unwrap();
        }
        assert_eq!(bus.stats().unwrap().total, 0);
    }
}

/// Also one of many, and also where the worker is handed what is published.
#[test]
fn one_swallowed_event_of_a_list_refuses_the_list() {
    for TestBox { bus, .. } in &boxes() {
        bus.subscribe(Subscription::new("*", "c", noting(&Calls::default(), ""))).unwrap();
        let worker = bus.start().unwrap();
        swallow(bus, "INSERT", "outbox_event", "WHEN NEW.event_name = 'b'");
        for place in [0, 1, 8, 19] {
            let list = (0..20).map(|n| event(if n == place { "b" } else { "a" }));
            assert_said(bus.publish_all(list), "outbox_event");
        }
        assert_eq!(bus.stats().unwrap().total, 0);
        bus.publish(event("a")).unwrap();
        wait_until(LIMIT, || bus.stats().unwrap().processed == 1);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

#[test]
fn links_say_so() {
    for TestBox { bus, .. } in &boxes() {
        let kept = bus.links().create(link()).unwrap();
        swallow(bus, "DELETE", "integration_link", "");
        assert_said(bus.links().delete(kept.id), "integration_link");
        assert_said(bus.transaction(|tx| tx.links().delete(kept.id)), "integration_link");
        assert!(bus.links().get(kept.id).unwrap().is_some());
        swallow_no_more(bus);
        swallow(bus, "INSERT", "integration_link", "");
        assert_said(bus.links().create(link()), "integration_link");
        assert_said(bus.transaction(|tx| tx.create_link(link())), "integration_link");
        assert_eq!(bus.links().count_from_module("finance").unwrap(), 1);
    }
}

#[test]
fn marks_in_the_inbox_say_so() {
    for TestBox { bus, .. } in &boxes() {
        let id = bus.publish(event("a")).unwrap();
        let inbox = bus.inbox();
        let row = inbox.get_or_create(id, "c").unwrap();
        swallow(bus, "UPDATE", "inbox_event", "");
        assert_said(inbox.mark_processing(row.id), "inbox_event");
        assert_said(inbox.mark_processed(row.id), "inbox_event");
        assert_said(inbox.mark_failed(row.id, "no"), "inbox_event");
        assert_said(inbox.mark_skipped(row.id), "inbox_event");
        assert_said(inbox.increment_attempt(row.id), "inbox_event");
        assert_eq!(inbox.get(row.id).unwrap().unwrap(), row);
        assert!(matches!(inbox.mark_processed(7.into()), Err(Error::NotFound { .. })));
        swallow_no_more(bus);
        swallow(bus, "INSERT", "inbox_event", "");
        assert_said(inbox.get_or_create(id, "d"), "inbox_event");
        swallow_no_more(bus);
        swallow(bus, "INSERT", "postbox_consumer", "");
        assert_said(inbox.get_or_create(id, "e"), "postbox_consumer");
    }
}

#[test]
fn settings_say_so() {
    for TestBox { bus, .. } in &boxes() {
        bus.update_settings(|settings| settings.batch_size = 7).unwrap();
        for operation in ["INSERT", "UPDATE"] {
            swallow(bus, operation, "postbox_setting", "");
            let changed = bus.update_settings(|settings| settings.batch_size = 9);
            assert_said(changed, "postbox_setting");
            assert_eq!(bus.settings().batch_size, 7);
            swallow_no_more(bus);
        }
    }
}

/// Which write of a delivery does not happen, and what becomes of the event.
#[test]
fn what_becomes_of_an_event_is_never_swallowed_in_silence() {
    for (when, ends_as) in [
        ("WHEN NEW.status = 'processing' AND OLD.status = 'pending'", OutboxStatus::Pending),
        ("WHEN NEW.status = 'processed'", OutboxStatus::DeadLetter),
        ("WHEN OLD.status = 'processing'", OutboxStatus::Processing),
    ] {
        for by_worker in [false, true] {
            for TestBox { kind, bus, clock, .. } in &boxes() {
                make_effects(bus);
                let calls = Calls::default();
                bus.subscribe(Subscription::new("plain", "c", noting(&calls, "ran"))).unwrap();
                bus.subscribe(Subscription::transactional("tx", "c", writing("ran"))).unwrap();
                // A transactional consumer, whose work is undone, is tried as often as after a failure of its own.
                let time_passes = || {
                    if ends_as == OutboxStatus::DeadLetter {
                        clock.advance(Duration::from_secs(5));
                    }
                };
                let ids = bus.publish_all(["plain", "tx", "plain", "tx"].map(event)).unwrap();
                swallow(bus, "UPDATE", "outbox_event", when);
                if by_worker {
                    let worker = bus.start().unwrap();
                    wait_until(LIMIT, || {
                        time_passes();
                        ends_as == OutboxStatus::Pending
                            || (calls.all().len() == 2
                                && ids.iter().all(|id| outbox_row(bus, *id).status == ends_as))
                    });
                    worker.shutdown(LIMIT).unwrap();
                } else {
                    for _ in 0..5 {
                        let drained = bus.drain();
                        assert!(drained.is_err() || drained.unwrap() == 0, "{kind}: {when}");
                        time_passes();
                    }
                }
                for id in &ids {
                    let row = outbox_row(bus, *id);
                    assert_eq!(row.status, ends_as, "{kind}, worker: {by_worker}: {when}");
                    if ends_as == OutboxStatus::DeadLetter {
                        assert!(row.last_error.unwrap().contains("cannot be recorded"), "{kind}: {when}");
                    }
                }
                assert_eq!(effects(bus), [""; 0], "{kind}: an effect without its acknowledgement: {when}");
                assert!(calls.all().len() <= 2, "{kind}: {when}: {:?}", calls.all());
            }
        }
    }
}

/// A worker's lease that cannot be renewed is as good as lost: its handler is told, and the event is not.
#[test]
fn a_renewal_that_is_swallowed_cancels_the_handler_and_loses_no_event() {
    let settings = postbox::Settings { processing_lease_ms: 1_000, ..postbox::Settings::default() };
    for TestBox { kind, bus, clock, .. } in
        &crate::support::boxes_with(|builder| builder.settings(settings.clone()))
    {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |_: &Event, cx: &Context<'_>| {
            if note.all().is_empty() {
                note.add("first");
                wait_until(LIMIT, || cx.is_cancelled());
                note.add("cancelled");
            }
            Ok(())
        }))
        .unwrap();
        swallow(
            bus,
            "UPDATE",
            "outbox_event",
            "WHEN OLD.status = 'processing' AND NEW.status = 'processing'",
        );
        let id = bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        wait_until(LIMIT, || calls.count("cancelled") == 1);
        swallow_no_more(bus);
        clock.advance(LEASE);
        wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Processed);
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
    }
}

/// Claims of a box that died, and of the file that a backup was made of: what is due stays due.
#[test]
fn a_claim_that_cannot_be_taken_over_is_due_when_its_lease_runs_out() {
    let test = file_box();
    let bus = &test.bus;
    bus.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
    let id = bus.publish(event("a")).unwrap();
    lose_an_attempt(bus, id);
    swallow(bus, "UPDATE", "outbox_event", "WHEN OLD.status = 'processing'");
    drop(test.second()); // opens all the same
    assert!(bus.drain().is_err());
    let copy = test.path().with_file_name("copy.db");
    bus.backup(&copy).unwrap();
    assert_said(postbox::restore(&copy, test.path().with_file_name("restored.db")), "outbox_event");
    swallow_no_more(bus);
    assert_eq!(bus.drain().unwrap(), 1);
}

/// Held events that cannot be let go stay held, and are let go later.
#[test]
fn held_events_that_cannot_be_let_go_stay_held() {
    let settings = postbox::Settings {
        unhandled_events: postbox::UnhandledEvents::Hold,
        ..postbox::Settings::default()
    };
    for TestBox { kind, bus, .. } in &crate::support::boxes_with(|builder| builder.settings(settings.clone()))
    {
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        swallow(bus, "UPDATE", "outbox_event", "");
        bus.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
        bus.drain().unwrap();
        assert_eq!(outbox_row(bus, id).status, OutboxStatus::Pending, "{kind}");
        swallow_no_more(bus);
        bus.subscribe(Subscription::new("b", "c", noting(&Calls::default(), ""))).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
    }
}

/// What is counted there is counted anew when the box opens: nobody's event depends on it.
#[test]
fn a_counter_that_is_swallowed_stops_nothing_and_is_set_right_later() {
    let test = file_box();
    test.bus.subscribe(Subscription::new("*", "c", noting(&Calls::default(), ""))).unwrap();
    swallow(&test.bus, "UPDATE", "postbox_counter", "");
    test.bus.publish_all((0..20).map(|_| event("a"))).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 20);
    assert_eq!(test.bus.stats().unwrap().processed, 20);
    swallow_no_more(&test.bus);
    let counted = |bus: &Postbox| -> i64 {
        sql(bus, |tx| tx.query_row("SELECT processed FROM postbox_counter", [], |row| row.get(0)))
    };
    assert_eq!(counted(&test.bus), 0);
    assert_eq!(counted(&test.second()), 20);
}

/// A failure that cannot be written down must not make the consumer run for ever.
#[test]
fn failures_and_the_consumers_number_that_are_swallowed_end_as_dead_letters() {
    for (table, operation) in [("inbox_event", "INSERT"), ("postbox_consumer", "INSERT")] {
        for TestBox { kind, bus, .. } in &boxes() {
            make_effects(bus);
            bus.subscribe(Subscription::new("plain", "c", |_: &Event, _: &Context<'_>| {
                Err(HandlerError::retry("no"))
            }))
            .unwrap();
            bus.subscribe(Subscription::transactional("tx", "d", writing("never"))).unwrap();
            let ids = bus.publish_all(["plain", "tx"].map(event)).unwrap();
            swallow(bus, operation, table, "");
            bus.drain().unwrap();
            for id in ids {
                let row = outbox_row(bus, id);
                assert_eq!(row.status, OutboxStatus::DeadLetter, "{kind} {table}");
                assert!(row.last_error.unwrap().contains(table), "{kind} {table}");
            }
            assert_eq!(effects(bus), [""; 0]);
        }
    }
}

/// The API checks whatever it writes, and deleting an event takes its inbox rows by a trigger: neither CHECKs nor foreign keys
/// are needed for that.
#[test]
fn an_application_that_has_checks_and_foreign_keys_off_loses_nothing() {
    let test = file_box();
    let bus = &test.bus;
    bus.subscribe(Subscription::new("*", "c", noting(&Calls::default(), ""))).unwrap();
    let mut app = test.app_connection();
    app.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
    let tx = app.transaction().unwrap();
    for refused in [event(""), event("a").version(0), event(&"n".repeat(256)), event("a").correlation_id("")]
    {
        assert!(matches!(bus.publish_in(&tx, refused), Err(Error::Invalid { .. })));
    }
    let ids: Vec<_> = (0..3).map(|_| bus.publish_in(&tx, event("a")).unwrap()).collect();
    tx.commit().unwrap();
    assert_eq!(bus.drain().unwrap(), 3);
    app.execute("DELETE FROM outbox_event WHERE id = ?1", [ids[0].as_uuid()]).unwrap();
    let left: i64 = app.query_row("SELECT count(*) FROM inbox_event", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 2);
    assert_eq!(bus.stats().unwrap().total, 2);
}
