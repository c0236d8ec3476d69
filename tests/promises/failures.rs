//! Promises 6 to 9: states, attempts, leases, and the application's own file.

use postbox::{
    Context, Event, EventId, HandlerError, InboxStatus, OutboxStatus, Postbox, Settings, Subscription, Tx,
};
use rusqlite::{Connection, params};

use crate::support::{
    Calls, LEASE, LIMIT, MICROSECOND, SECOND, TestBox, boxes, boxes_with, event, file_box, inbox_rows,
    just_before, noting, outbox_row, sql, start_time, status, wait_until,
};

const STATES: [OutboxStatus; 5] = [
    OutboxStatus::Pending,
    OutboxStatus::Processing,
    OutboxStatus::Processed,
    OutboxStatus::Failed,
    OutboxStatus::DeadLetter,
];

/// Every event that is there, by its state. The states add up: none is in no state.
fn by_status(bus: &Postbox, ids: &[EventId]) -> [Vec<EventId>; 5] {
    let lists = STATES.map(|wanted| {
        let list: Vec<_> = ids.iter().copied().filter(|id| status(bus, *id) == wanted).collect();
        assert_eq!(bus.outbox().count_by_status(wanted).unwrap(), list.len() as u64);
        list
    });
    let stats = bus.stats().unwrap();
    let counted = [stats.pending, stats.processing, stats.processed, stats.failed, stats.dead_letter];
    assert_eq!(counted, lists.each_ref().map(|list| list.len() as u64));
    assert_eq!((stats.total, ids.len() as u64), (counted.iter().sum(), stats.total));
    lists
}

#[test]
fn promise_6_every_event_is_in_one_of_the_states_with_its_last_error() {
    for TestBox { kind, bus, .. } in &boxes() {
        for (name, error) in [
            ("retry", HandlerError::retry as fn(&'static str) -> HandlerError),
            ("dead", HandlerError::dead_letter),
            ("fails", HandlerError::dead_letter),
        ] {
            let handler = move |_: &Event, _: &Context<'_>| Err(error("why"));
            bus.subscribe(Subscription::new(name, "c", handler)).unwrap();
        }
        bus.subscribe(Subscription::new("panics", "c", |_: &Event, _: &Context<'_>| panic!("why"))).unwrap();
        bus.subscribe(Subscription::new("good", "c", noting(&Calls::default(), ""))).unwrap();
        let mut ids = bus.publish_all(["good", "retry", "dead", "panics", "nobody"].map(event)).unwrap();
        bus.drain().unwrap();
        bus.update_settings(|settings| settings.dead_letter_enabled = false).unwrap();
        ids.push(bus.publish(event("fails")).unwrap());
        bus.drain().unwrap();
        ids.push(bus.publish(event("good").delay(SECOND)).unwrap());
        ids.push(bus.publish(event("good")).unwrap());
        sql(bus, |tx| {
            tx.execute(
                "UPDATE outbox_event SET status = 'processing', lease_id = 5, available_at = available_at + 1000000 WHERE id = ?1",
                [ids[7].as_uuid()],
            )
        });

        let [pending, processing, processed, failed, dead] = by_status(bus, &ids);
        assert_eq!(pending, [ids[1], ids[3], ids[6]], "{kind}");
        assert_eq!(processing, [ids[7]], "{kind}");
        assert_eq!(processed, [ids[0], ids[4]], "{kind}");
        assert_eq!(failed, [ids[5]], "{kind}");
        assert_eq!(dead, [ids[2]], "{kind}");
        let error = |id: EventId| outbox_row(bus, id).last_error;
        for id in [ids[1], ids[2], ids[5]] {
            assert_eq!(error(id).as_deref(), Some("why"), "{kind}");
        }
        assert_eq!(error(ids[3]).as_deref(), Some("panicked: why"));
        for id in [ids[0], ids[4], ids[6], ids[7]] {
            assert_eq!(error(id), None, "{kind}");
        }
    }
}

#[test]
fn promise_7_a_failed_attempt_waits_to_the_microsecond_and_attempts_are_counted_when_claimed() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |event: &Event, cx: &Context<'_>| {
            let counted = outbox_row(cx.postbox(), event.id()).attempt_count;
            note.add(format!("attempt {}, counted {counted}", event.attempt()));
            Err(HandlerError::retry("no"))
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        for (attempts, seconds) in [(1, 1), (2, 2)] {
            assert_eq!(calls.all().len(), attempts);
            clock.advance(just_before(seconds * SECOND));
            bus.drain().unwrap();
            assert_eq!(calls.all().len(), attempts, "{kind}: a microsecond early");
            clock.advance(MICROSECOND);
            bus.drain().unwrap();
        }
        assert_eq!(calls.all(), [1, 2, 3].map(|n| format!("attempt {n}, counted {n}")), "{kind}");
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter);
    }
}

#[test]
fn promise_7_an_event_whose_process_dies_at_every_attempt_ends_as_a_dead_letter() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        // It leaves behind what a killed process does: a claim of somebody's whose lease has run out.
        bus.subscribe(Subscription::new("a", "c", move |event: &Event, cx: &Context<'_>| {
            note.add("ran");
            sql(cx.postbox(), |tx| {
                tx.execute(
                    "UPDATE outbox_event SET lease_id = 5, available_at = created_at WHERE id = ?1",
                    params![event.id().as_uuid()],
                )
            });
            Ok(())
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        for _ in 0..9 {
            assert_eq!(bus.process_batch().unwrap(), 0);
        }
        assert_eq!(calls.all(), ["ran"; 3], "{kind}");
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter, "{kind}");
    }
}

#[test]
fn promise_7_a_claim_that_is_given_back_unstarted_costs_no_attempt() {
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.handler_threads(1)) {
        bus.subscribe(Subscription::new("a", "c", |_: &Event, cx: &Context<'_>| {
            wait_until(LIMIT, || cx.is_cancelled());
            Ok(())
        }))
        .unwrap();
        let ids = bus.publish_all([event("a"), event("a"), event("a")]).unwrap();
        let worker = bus.start().unwrap();
        wait_until(LIMIT, || bus.stats().unwrap().processing == 3);
        let report = worker.shutdown(LIMIT).unwrap();
        assert!(report.clean, "{kind}: {report:?}");
        let rows: Vec<_> = ids.iter().map(|id| outbox_row(bus, *id)).collect();
        let states: Vec<_> = rows.iter().map(|row| (row.status, row.attempt_count)).collect();
        // The one handler may have been taken back as well, when the end came before its thread had begun.
        assert!(
            states[0] == (OutboxStatus::Processed, 1) || states[0] == (OutboxStatus::Pending, 0),
            "{kind}: {states:?}"
        );
        assert_eq!(states[1..], [(OutboxStatus::Pending, 0); 2], "{kind}");
        assert!(rows[1..].iter().all(|row| row.available_at == start_time()), "{kind}: due at once");
    }
}

#[test]
fn promise_8_what_an_owner_says_after_its_lease_was_lost_is_refused() {
    let test = file_box();
    let taker = test.second();
    taker.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
    let (takes_over, clock) = (taker.clone(), test.clock.clone());
    test.bus
        .subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
            clock.advance(LEASE);
            assert_eq!(takes_over.drain().unwrap(), 1);
            Err(HandlerError::dead_letter("too late"))
        }))
        .unwrap();
    let id = test.bus.publish(event("a")).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 0);
    let row = outbox_row(&test.bus, id);
    assert_eq!((row.status, row.attempt_count, row.last_error), (OutboxStatus::Processed, 2, None));
    assert_eq!(inbox_rows(&test.bus, id)[0].1, InboxStatus::Processed);
}

#[test]
fn promise_8_holds_in_memory() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.subscribe(Subscription::new("a", "c", |event: &Event, cx: &Context<'_>| {
            sql(cx.postbox(), |tx| {
                tx.execute(
                    "UPDATE outbox_event SET lease_id = 5 WHERE id = ?1",
                    params![event.id().as_uuid()],
                )
            });
            Ok(())
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(status(bus, id), OutboxStatus::Processing, "{kind}: somebody else's");
        assert_eq!(inbox_rows(bus, id), [], "{kind}");
    }
}

#[test]
fn promise_9_the_applications_own_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let app = Connection::open(&path).unwrap();
    app.execute_batch(
        "PRAGMA user_version = 42; PRAGMA application_id = 1234567;
         CREATE TABLE invoice (id TEXT PRIMARY KEY, total REAL); INSERT INTO invoice VALUES ('inv-1', 12.5), ('inv-2', NULL);
         CREATE VIEW totals AS SELECT sum(total) FROM invoice;
         CREATE TRIGGER watch AFTER INSERT ON invoice BEGIN SELECT 1; END;
         CREATE TABLE counted (n INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO counted VALUES (77)",
    )
    .unwrap();
    let look = |conn: &Connection| {
        let numbers = ["user_version", "application_id"]
            .map(|pragma| conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).unwrap());
        let text = |sql: &str| -> Vec<String> {
            conn.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        let schema = text(
            "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema
             WHERE name IN ('invoice', 'totals', 'watch', 'counted') ORDER BY name",
        );
        let rows = text("SELECT quote(id) || quote(total) FROM invoice ORDER BY id");
        let counted = text("SELECT CAST(seq AS TEXT) FROM sqlite_sequence WHERE name = 'counted'");
        (numbers, schema, rows, counted)
    };
    let before = look(&app);
    assert_eq!(before.1.len(), 4);
    drop(app);

    for _ in 0..2 {
        let bus = Postbox::open(&path).unwrap();
        bus.subscribe(Subscription::transactional("a", "c", |_: &Event, _: &Tx<'_>| Ok(()))).unwrap();
        bus.publish_all((0..20).map(|_| event("a"))).unwrap();
        assert_eq!(bus.drain().unwrap(), 20);
        bus.update_settings(|settings| settings.batch_size = 7).unwrap();
        let app = Connection::open(&path).unwrap();
        assert_eq!(look(&app), before);
        drop(app);
        bus.close().unwrap();
        assert_eq!(look(&Connection::open(&path).unwrap()), before);
    }
}

#[test]
fn promise_9_holds_in_memory() {
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.settings(Settings::default())) {
        sql(bus, |tx| {
            tx.execute_batch(
                "PRAGMA user_version = 42; CREATE TABLE invoice (id TEXT); INSERT INTO invoice VALUES ('1')",
            )
        });
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        let version: i64 = sql(bus, |tx| tx.pragma_query_value(None, "user_version", |row| row.get(0)));
        let rows: i64 = sql(bus, |tx| tx.query_row("SELECT count(*) FROM invoice", [], |row| row.get(0)));
        assert_eq!((version, rows), (42, 1), "{kind}");
    }
}
