//! What DESIGN.md promises, one test for each of the nine, in a file and in memory. What a killed process or a power cut
//! adds is in tests/processes.rs.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use postbox::{
    Context, EntityRef, Error, Event, EventId, HandlerError, InboxStatus, LinkType, NewLink, OutboxStatus,
    Postbox, Settings, Subscription, Tx,
};
use rusqlite::{Connection, params};

use crate::support::{
    Calls, LEASE, MICROSECOND, SECOND, TestBox, add_effect, boxes, boxes_with, effects, event, file_box,
    inbox_rows, just_before, lose_an_attempt, make_effects, noting, outbox_row, sql, start_time, status,
    wait_until, writing,
};

#[test]
fn promise_1_what_was_published_is_there_after_a_restart_and_reaches_every_consumer() {
    for (restarts, test) in [true, false].into_iter().zip(boxes()) {
        let ids = [
            test.bus.publish(event("a")).unwrap(),
            test.bus.publish_all([event("a"), event("a")]).unwrap()[1],
            test.bus.transaction(|tx| tx.publish(event("a"))).unwrap(),
        ];
        let test = if restarts { test.reopen() } else { test };
        let calls = Calls::default();
        for consumer in ["one", "two"] {
            let calls = calls.clone();
            test.bus
                .subscribe(Subscription::new("a", consumer, move |event: &Event, cx: &Context<'_>| {
                    calls.add(format!("{} to {}", event.id(), cx.consumer_name()));
                    Ok(())
                }))
                .unwrap();
        }
        assert_eq!(test.bus.drain().unwrap(), 4);
        for (id, consumer) in ids.iter().flat_map(|id| [(id, "one"), (id, "two")]) {
            assert_eq!(calls.count(&format!("{id} to {consumer}")), 1, "{}", test.kind);
        }
        let test = if restarts { test.reopen() } else { test };
        assert!(ids.iter().all(|id| status(&test.bus, *id) == OutboxStatus::Processed));
    }
}

#[test]
fn promise_2_an_event_is_delivered_if_and_only_if_its_transaction_commits_and_never_seen_before() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let publish = |tx: &Tx<'_>| {
            add_effect(tx, "application's").unwrap();
            (tx.publish(event("a")).unwrap(), bus.publish_in(tx, event("a")).unwrap())
        };
        let failed = bus.transaction::<(), Error>(|tx| {
            publish(tx);
            Err(Error::Closed { operation: "any error" })
        });
        assert!(failed.is_err());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            bus.transaction::<(), Error>(|tx| {
                publish(tx);
                panic!("in the middle");
            })
        }));
        assert!(panicked.is_err());
        assert_eq!((bus.drain().unwrap(), bus.stats().unwrap().total), (0, 0), "{kind}");

        // Whoever looks while it is open waits for it, or sees nothing.
        let (looker, open) = thread::scope(|scope| {
            bus.transaction::<_, Error>(|tx| {
                let ids = publish(tx);
                let looker = scope.spawn(|| bus.process_batch().map(|_| calls.all().len()));
                if *kind == "file" {
                    // In a file a look does not wait for writers: it is over before the commit.
                    wait_until(Duration::from_secs(10), || looker.is_finished());
                }
                assert_eq!(calls.all(), [""; 0], "{kind}: before the commit");
                Ok((looker, ids))
            })
            .map(|(looker, ids)| (looker.join().unwrap().unwrap(), ids))
            .unwrap()
        });
        assert_eq!(looker, if *kind == "file" { 0 } else { 2 }, "{kind}");
        bus.drain().unwrap();
        assert_eq!(calls.all(), ["ran", "ran"], "{kind}");
        assert_eq!(effects(bus), ["application's"]);
        assert_eq!([open.0, open.1].map(|id| status(bus, id)), [OutboxStatus::Processed; 2]);
    }
}

#[test]
fn promise_2_holds_for_the_applications_own_connection_and_a_second_box() {
    let test = file_box();
    let other = test.second();
    let mut conn = test.app_connection();
    for (commits, total) in [(false, 0), (true, 1)] {
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        test.bus.publish_in(&tx, event("a")).unwrap();
        for bus in [&test.bus, &other] {
            assert_eq!((bus.drain().unwrap(), bus.stats().unwrap().total), (0, 0));
        }
        if commits { tx.commit() } else { tx.rollback() }.unwrap();
        assert_eq!(other.stats().unwrap().total, total);
    }
    assert_eq!(other.drain().unwrap(), 1);
}

#[test]
fn promise_3_a_plain_handler_runs_at_least_once_and_the_id_is_the_same_at_every_delivery() {
    for (restarts, test) in [true, false].into_iter().zip(boxes()) {
        let outside = Calls::default();
        let subscribe = |bus: &Postbox| {
            let outside = outside.clone();
            let handler = move |event: &Event, _: &Context<'_>| {
                outside.add(event.id().to_string());
                if event.attempt() < 4 { Err(HandlerError::retry("the answer was lost")) } else { Ok(()) }
            };
            bus.subscribe(Subscription::new("a", "c", handler).max_attempts(9)).unwrap();
        };
        subscribe(&test.bus);
        let id = test.bus.publish(event("a")).unwrap();
        test.bus.drain().unwrap();
        let test = if restarts {
            let test = test.reopen();
            subscribe(&test.bus);
            test
        } else {
            test
        };
        lose_an_attempt(&test.bus, id);
        for _ in 0..3 {
            test.bus.drain().unwrap();
            test.clock.advance(60 * SECOND);
        }
        assert_eq!(outside.all(), [id.to_string(), id.to_string(), id.to_string()], "{}", test.kind);
        assert_eq!(status(&test.bus, id), OutboxStatus::Processed);
    }
}

#[test]
fn promise_4_a_transactional_handlers_sql_links_follow_ups_and_mark_commit_together_or_not_at_all() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        make_effects(bus);
        let everything = |event: &Event, tx: &Tx<'_>| {
            add_effect(tx, event.name())?;
            let end = |module: &str| EntityRef::new(module, "T", "1");
            tx.create_link(NewLink::new(end("finance"), end("operations"), LinkType::Reference))?;
            tx.publish(support::event("follow.up"))?;
            match event.attempt() {
                1 => Err(HandlerError::retry("after all of it")),
                2 => panic!("after all of it"),
                _ => Ok(()),
            }
        };
        bus.subscribe(Subscription::transactional("a", "c", everything)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        for attempt in 1..=3 {
            let done = attempt == 3;
            let processed = bus.drain().unwrap();
            assert_eq!(processed, if done { 2 } else { 0 }, "{kind}, attempt {attempt}");
            assert_eq!(effects(bus).len(), usize::from(done));
            assert_eq!(bus.links().count_from_module("finance").unwrap(), u64::from(done));
            assert_eq!(bus.stats().unwrap().total, 1 + u64::from(done));
            assert_eq!(bus.inbox().is_processed(id, "c").unwrap(), done);
            clock.advance(60 * SECOND);
        }
        // Delivered again, as after a crash before anybody heard of it: it has been done.
        sql(bus, |tx| tx.execute("UPDATE outbox_event SET status = 'pending', available_at = 0", []));
        bus.drain().unwrap();
        assert_eq!(effects(bus), ["a"], "{kind}: exactly once");
    }
}

#[test]
fn promise_5_a_consumer_that_processed_or_skipped_never_runs_again_and_a_retry_runs_only_the_others() {
    for (restarts, mut test) in [true, false].into_iter().zip(boxes()) {
        let calls = Calls::default();
        let subscribe = |bus: &Postbox| {
            let skips = calls.clone();
            let retries = calls.clone();
            bus.subscribe_many([
                Subscription::new("a", "plain", noting(&calls, "plain")),
                Subscription::transactional("a", "tx", writing("tx")),
                Subscription::new("a", "skips", move |_: &Event, _: &Context<'_>| {
                    skips.add("skips");
                    Err(HandlerError::skip("not mine"))
                }),
                Subscription::new("a", "retries", move |_: &Event, _: &Context<'_>| {
                    retries.add("retries");
                    Err(HandlerError::retry("no"))
                })
                .max_attempts(4),
            ])
            .unwrap();
        };
        make_effects(&test.bus);
        subscribe(&test.bus);
        let id = test.bus.publish(event("a")).unwrap();
        test.bus.drain().unwrap();
        assert_eq!(calls.take(), ["plain", "skips", "retries"], "{}", test.kind);
        test.clock.advance(60 * SECOND);
        test.bus.drain().unwrap();
        if restarts {
            test = test.reopen();
            subscribe(&test.bus);
        }
        lose_an_attempt(&test.bus, id);
        for _ in 0..4 {
            test.bus.drain().unwrap();
            test.clock.advance(60 * SECOND);
        }
        assert_eq!(calls.all(), ["retries", "retries"], "{}", test.kind);
        assert_eq!(effects(&test.bus), ["tx"], "{}", test.kind);
        assert_eq!(status(&test.bus, id), OutboxStatus::DeadLetter);
        let statuses: Vec<_> = inbox_rows(&test.bus, id).into_iter().map(|row| row.1).collect();
        let expected =
            [InboxStatus::Processed, InboxStatus::Failed, InboxStatus::Skipped, InboxStatus::Processed];
        assert_eq!(statuses, expected);
    }
}

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
            wait_until(Duration::from_secs(10), || cx.is_cancelled());
            Ok(())
        }))
        .unwrap();
        let ids = bus.publish_all([event("a"), event("a"), event("a")]).unwrap();
        let worker = bus.start().unwrap();
        wait_until(Duration::from_secs(10), || bus.stats().unwrap().processing == 3);
        let report = worker.shutdown(Duration::from_secs(10)).unwrap();
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
