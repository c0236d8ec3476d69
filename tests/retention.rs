//! Processed events go after their retention, and nothing else does; the space that they had is given back.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postbox::rusqlite;
use postbox::{
    Context, Error, Event, EventId, HandlerError, NewEvent, OutboxStatus, Postbox, Settings, Subscription,
};

use crate::support::{
    Calls, TestBox, assert_reentrant, boxes, boxes_with, event, file_box, file_box_with, inbox_rows,
    memory_box_with, noting, refused_field, sql, status, wait_until,
};

const HOUR: Duration = Duration::from_hours(1);
const HOUR_MS: u64 = 3_600_000;
const LIMIT: Duration = Duration::from_mins(1);

fn keep_for(bus: &Postbox, retention_ms: u64) {
    bus.update_settings(|settings| settings.retention_ms = retention_ms).unwrap();
}

fn process(test: &TestBox, name: &str, count: usize) -> Vec<EventId> {
    let ids = test.bus.publish_all((0..count).map(|_| event(name))).unwrap();
    test.bus.drain().unwrap();
    ids
}

fn subscribe(bus: &Postbox) -> Calls {
    let calls = Calls::default();
    bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
    calls
}

fn count(bus: &Postbox, table: &str) -> i64 {
    sql(bus, |tx| tx.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)))
}

#[test]
fn what_would_go_can_be_counted_before() {
    for test in boxes() {
        let bus = &test.bus;
        subscribe(bus);
        process(&test, "a", 1_500);
        process(&test, "kept", 2);
        bus.publish(event("pending")).unwrap();
        assert_eq!(bus.prunable().unwrap(), 0, "{}: retention is off", test.kind);
        bus.update_settings(|settings| {
            settings.retention_ms = HOUR_MS;
            settings.retention_by_event = BTreeMap::from([("kept".to_owned(), 0)]);
        })
        .unwrap();
        test.clock.advance(crate::support::just_before(HOUR));
        assert_eq!(bus.prunable().unwrap(), 0, "{}", test.kind);
        test.clock.advance(Duration::from_micros(1));
        process(&test, "a", 1); // too young
        assert_eq!(bus.prunable().unwrap(), 1_500, "{}", test.kind);
        assert_eq!(bus.prune().unwrap(), 1_500, "{}", test.kind);
        assert_eq!(bus.prunable().unwrap(), 0, "{}", test.kind);
    }
}

#[test]
fn processed_events_go_a_retention_after_they_were_processed_with_all_that_was_theirs() {
    for test in boxes() {
        let bus = &test.bus;
        subscribe(bus);
        bus.subscribe(Subscription::new("b", "once", |event: &Event, _: &Context<'_>| {
            if event.attempt() == 1 { Err(HandlerError::retry("no")) } else { Ok(()) }
        }))
        .unwrap();
        let old = process(&test, "b", 3);
        test.clock.advance(HOUR / 2);
        bus.drain().unwrap(); // processed now, half an hour after they were published
        assert_eq!(bus.outbox().history(old[0]).unwrap().len(), 1);
        let young = process(&test, "a", 2);
        keep_for(bus, HOUR_MS);
        test.clock.advance(crate::support::just_before(HOUR));
        assert_eq!(bus.prune().unwrap(), 0, "{}", test.kind);
        test.clock.advance(Duration::from_micros(1));
        assert_eq!(bus.prune().unwrap(), 5, "{}", test.kind);
        for id in old.iter().chain(&young) {
            assert!(bus.outbox().get(*id).unwrap().is_none());
        }
        assert_eq!((count(bus, "inbox_event"), count(bus, "postbox_history")), (0, 0));
        let stats = bus.stats().unwrap();
        assert_eq!((stats.processed, stats.total), (0, 0));
        // Numbers go on.
        process(&test, "a", 1);
        assert_eq!(
            sql(bus, |tx| tx.query_row("SELECT max(seq) FROM outbox_event", [], |row| row.get::<_, i64>(0))),
            6
        );
    }
}

#[test]
fn nothing_else_is_ever_pruned() {
    for test in boxes_with(|builder| builder.settings(Settings { max_attempts: 1, ..Settings::default() })) {
        let bus = &test.bus;
        bus.subscribe(Subscription::new("bad", "c", |_: &Event, _: &Context<'_>| {
            Err(HandlerError::retry("no"))
        }))
        .unwrap();
        bus.subscribe(Subscription::new("good", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        let dead = process(&test, "bad", 1)[0];
        bus.update_settings(|settings| settings.dead_letter_enabled = false).unwrap();
        let failed = process(&test, "bad", 1)[0];
        process(&test, "good", 1);
        let later = bus.publish(event("good").delay(HOUR * 100)).unwrap();
        keep_for(bus, 1_000);
        test.clock.advance(HOUR * 50);
        assert_eq!(bus.prune().unwrap(), 1, "{}", test.kind);
        assert_eq!(
            [dead, failed, later].map(|id| status(bus, id)),
            [OutboxStatus::DeadLetter, OutboxStatus::Failed, OutboxStatus::Pending]
        );
        // One that was discarded is over.
        bus.outbox().discard(dead, "not needed").unwrap();
        test.clock.advance(HOUR);
        assert_eq!(bus.prune().unwrap(), 1);
    }
}

#[test]
fn names_have_times_of_their_own_and_nought_is_for_ever() {
    for test in boxes() {
        let bus = &test.bus;
        subscribe(bus);
        for name in ["audit", "noise", "other"] {
            process(&test, name, 2);
        }
        let left = |bus: &Postbox| -> Vec<String> {
            sql(bus, |tx| {
                tx.prepare("SELECT DISTINCT event_name FROM outbox_event ORDER BY 1")?
                    .query_map([], |row| row.get(0))?
                    .collect()
            })
        };
        let by_event = BTreeMap::from([("audit".to_owned(), 0), ("noise".to_owned(), 1_000)]);
        bus.update_settings(|settings| {
            settings.retention_ms = HOUR_MS;
            settings.retention_by_event = by_event;
        })
        .unwrap();
        test.clock.advance(Duration::from_secs(1));
        assert_eq!(
            (bus.prune().unwrap(), left(bus)),
            (2, vec!["audit".to_owned(), "other".to_owned()]),
            "{}",
            test.kind
        );
        test.clock.advance(HOUR * 1_000);
        assert_eq!((bus.prune().unwrap(), left(bus)), (2, vec!["audit".to_owned()]));
        // Only names have a time: the others stay.
        process(&test, "noise", 1);
        process(&test, "other", 1);
        keep_for(bus, 0);
        test.clock.advance(HOUR);
        assert_eq!((bus.prune().unwrap(), left(bus)), (1, vec!["audit".to_owned(), "other".to_owned()]));
    }
}

#[test]
fn retention_is_off_at_first_and_a_keys_event_is_published_again_once_it_is_gone() {
    for test in boxes() {
        let bus = &test.bus;
        subscribe(bus);
        let keyed = || bus.publish(event("a").idempotency_key("one")).unwrap();
        let id = keyed();
        bus.drain().unwrap();
        test.clock.advance(HOUR * 10_000);
        assert_eq!(bus.prune().unwrap(), 0);
        assert_eq!((keyed(), bus.drain().unwrap()), (id, 0));
        keep_for(bus, HOUR_MS);
        assert_eq!(bus.prune().unwrap(), 1);
        assert_eq!((keyed(), bus.drain().unwrap()), (id, 1), "{}", test.kind);
    }
}

#[test]
fn a_running_worker_prunes_by_itself_from_the_moment_that_it_is_told_to() {
    for test in boxes() {
        let bus = &test.bus;
        subscribe(bus);
        process(&test, "a", 2_500); // more than one step
        let dead = bus.publish(NewEvent::new("later", "m", "t", "1").delay(HOUR * 99)).unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        test.clock.advance(HOUR);
        assert_eq!(bus.stats().unwrap().processed, 2_500, "{}", test.kind);
        keep_for(bus, 1_000);
        wait_until(LIMIT, || bus.stats().unwrap().processed == 0);
        assert_eq!(status(bus, dead), OutboxStatus::Pending);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

/// Rows that stay must neither stop a pass nor be passed over by the next.
#[test]
fn rows_that_the_application_keeps_stay_and_the_others_go() {
    for (action, left) in [("ABORT, 'no'", 1), ("ROLLBACK, 'no'", 1), ("IGNORE", 1)] {
        for test in boxes() {
            let bus = &test.bus;
            subscribe(bus);
            process(&test, "a", 20);
            sql(bus, |tx| {
                tx.execute_batch(&format!(
                    "CREATE TRIGGER keeps BEFORE DELETE ON outbox_event WHEN OLD.seq = 7 BEGIN SELECT RAISE({action}); END"
                ))
            });
            keep_for(bus, 1_000);
            test.clock.advance(HOUR);
            assert_eq!(bus.prune().unwrap(), 19, "{}: {action}", test.kind);
            assert_eq!(count(bus, "outbox_event"), left, "{}: {action}", test.kind);
            assert_eq!(bus.prune().unwrap(), 0);
            sql(bus, |tx| tx.execute_batch("DROP TRIGGER keeps"));
            assert_eq!(bus.prune().unwrap(), 1);
        }
    }
}

#[test]
fn many_thousand_go_while_others_are_published_and_processed() {
    let test = file_box();
    let bus = &test.bus;
    let calls = subscribe(bus);
    process(&test, "a", 12_000);
    keep_for(bus, HOUR_MS);
    test.clock.advance(HOUR);
    let worker = bus.start().unwrap();
    std::thread::scope(|threads| {
        let pruned = threads.spawn(|| bus.prune().unwrap());
        for _ in 0..300 {
            bus.publish(event("b")).unwrap();
        }
        assert!(pruned.join().unwrap() <= 12_000);
    });
    wait_until(LIMIT, || bus.stats().unwrap().processed == 300);
    assert_eq!(calls.count("ran"), 12_300);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    let check: String = sql(bus, |tx| tx.query_row("PRAGMA integrity_check", [], |row| row.get(0)));
    assert_eq!((check.as_str(), count(bus, "inbox_event")), ("ok", 300));
}

#[test]
fn times_out_of_range_and_bad_names_are_refused() {
    for test in boxes() {
        let bus = &test.bus;
        let set = |retention_ms: u64| bus.update_settings(|settings| settings.retention_ms = retention_ms);
        for bad in [1, 999, 36_525 * 86_400_000 + 1, u64::MAX] {
            assert_eq!(refused_field(set(bad)), "retention_ms");
        }
        for good in [1_000, 36_525 * 86_400_000, 0] {
            assert_eq!(set(good).unwrap().retention_ms, good);
        }
        let by = |names: &[(&str, u64)]| {
            let names = names.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect();
            bus.update_settings(|settings| settings.retention_by_event = names)
        };
        for bad in [("", 0), ("a.*", 1_000), ("a", 999), ("a", u64::MAX)] {
            assert_eq!(refused_field(by(&[bad])), "retention_by_event", "{bad:?}");
        }
        let many: BTreeMap<_, _> = (0..1_001).map(|n| (format!("n{n}"), 0)).collect();
        assert_eq!(
            refused_field(bus.update_settings(|settings| settings.retention_by_event = many)),
            "retention_by_event"
        );
        assert!(bus.settings().retention_by_event.is_empty());
    }
}

#[test]
fn the_box_is_refused_to_itself_inside_its_own_transaction() {
    for test in boxes() {
        test.bus
            .transaction(|_| -> postbox::Result<()> {
                assert_reentrant(test.bus.prune());
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn compacting_gives_the_space_back_and_changes_nothing_else() {
    let test = file_box();
    let bus = &test.bus;
    subscribe(bus);
    let payload = serde_json::json!("x".repeat(2_000));
    bus.publish_all((0..2_000).map(|_| event("a").payload(payload.clone()))).unwrap();
    bus.drain().unwrap();
    sql(bus, |tx| {
        tx.execute_batch(
            "CREATE TABLE mine (id INTEGER PRIMARY KEY, x); INSERT INTO mine VALUES (7, 'seven')",
        )
    });
    let kept = process(&test, "b", 1)[0];
    bus.update_settings(|settings| {
        settings.retention_ms = 1_000;
        settings.retention_by_event = BTreeMap::from([("b".to_owned(), 0)]);
    })
    .unwrap();
    test.clock.advance(HOUR);
    assert_eq!(bus.prune().unwrap(), 2_000);
    let compaction = bus.compact().unwrap();
    assert!(compaction.bytes_before > 4_000_000 && compaction.bytes_after < 200_000, "{compaction:?}");
    assert_eq!(std::fs::metadata(test.path()).unwrap().len(), compaction.bytes_after);
    assert_eq!(inbox_rows(bus, kept).len(), 1);
    assert_eq!(
        sql(bus, |tx| tx.query_row("SELECT x FROM mine WHERE id = 7", [], |row| row.get::<_, String>(0))),
        "seven"
    );
    process(&test, "b", 1);
    assert_eq!(bus.stats().unwrap().processed, 2);
}

#[test]
fn a_file_whose_rows_could_be_renumbered_is_not_compacted() {
    for (table, refused) in [
        ("CREATE TABLE mine (x)", true),
        ("CREATE TABLE mine (id TEXT PRIMARY KEY)", true),
        ("CREATE TABLE mine (a INTEGER, b INTEGER, PRIMARY KEY (a, b))", true),
        ("CREATE TABLE mine (id INTEGER PRIMARY KEY, x)", false),
        ("CREATE TABLE mine (id INTEGER, x, PRIMARY KEY (id))", false),
        ("CREATE TABLE mine (id TEXT PRIMARY KEY) WITHOUT ROWID", false),
        // SQLite's own quirk: of these two the first is no name of the rowid.
        ("CREATE TABLE mine (id INTEGER PRIMARY KEY DESC, x)", true),
        ("CREATE TABLE mine (id INTEGER, x, PRIMARY KEY (id DESC))", false),
    ] {
        let test = file_box();
        sql(&test.bus, |tx| tx.execute_batch(table));
        match test.bus.compact() {
            Err(Error::CannotCompact { reason }) => {
                assert!(refused && reason.contains("`mine`"), "{table}: {reason}");
            }
            done => assert!(!refused && done.is_ok(), "{table}: {done:?}"),
        }
    }
    let test = memory_box_with(|builder| builder);
    assert!(matches!(test.bus.compact(), Err(Error::InMemory { operation: "compact" })));
}

/// A file of 4 MB, of which little is needed, and an application's connection to it.
fn emptied(busy_timeout: Duration) -> (TestBox, rusqlite::Connection) {
    let test = file_box_with(|builder| builder.busy_timeout(busy_timeout));
    let app = test.app_connection();
    app.execute_batch(
        "CREATE TABLE mine (id INTEGER PRIMARY KEY, x);
         INSERT INTO mine (x) VALUES (zeroblob(4000000));
         DELETE FROM mine;
         PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
    (test, app)
}

fn file_bytes(test: &TestBox) -> u64 {
    std::fs::metadata(test.path()).unwrap().len()
}

/// It held the write connection for two busy timeouts and then said Ok, with a file that was no smaller and as much again in
/// the -wal.
#[test]
fn compacting_beside_a_long_reader_is_refused_and_keeps_no_publisher_waiting() {
    for empty_wal in [true, false] {
        let (test, app) = emptied(Duration::from_millis(1_500));
        if !empty_wal {
            test.bus.publish(event("a")).unwrap();
        }
        app.execute_batch("BEGIN; SELECT count(*) FROM outbox_event").unwrap();
        let before = file_bytes(&test);
        // How long the slowest publisher waited. What a busy machine adds is not added every time.
        let mut waited = std::iter::repeat_with(|| {
            let bus = test.bus.clone();
            let compaction = std::thread::spawn(move || bus.compact());
            let mut longest = Duration::ZERO;
            // Where nobody publishes, the -wal stays empty and the reader reads the file itself.
            while !empty_wal && !compaction.is_finished() {
                let start = Instant::now();
                test.bus.publish(event("a")).unwrap();
                longest = longest.max(start.elapsed());
            }
            match compaction.join().unwrap() {
                Err(Error::Busy { operation: "compact", detail, .. }) => {
                    assert!(detail.contains("reads an older state"), "{detail}");
                }
                done => panic!("an empty -wal {empty_wal}: {done:?}"),
            }
            longest
        });
        assert!(
            waited.by_ref().take(5).any(|longest| longest < Duration::from_secs(1)),
            "it waited each time"
        );
        assert!(file_bytes(&test) >= before && before > 4_000_000);

        let bus = test.bus.clone();
        let compaction = std::thread::spawn(move || bus.compact());
        test.bus.publish(event("a")).unwrap();
        app.execute_batch("COMMIT").unwrap();
        let done = compaction.join().unwrap().unwrap();
        assert!(done.is_complete && done.bytes_after < 1_000_000, "{done:?}");
        assert_eq!(file_bytes(&test), done.bytes_after);
    }
}

#[test]
fn compacting_says_when_one_who_began_to_read_meanwhile_keeps_the_file_long() {
    for _ in 0..20 {
        let (test, app) = emptied(Duration::from_millis(300));
        let wal =
            test.path().with_file_name(format!("{}-wal", test.path().file_name().unwrap().to_string_lossy()));
        let bus = test.bus.clone();
        let compaction = std::thread::spawn(move || bus.compact());
        // One look after another, until the file is being written anew: that one lasts.
        while !compaction.is_finished() {
            app.execute_batch("BEGIN; SELECT count(*) FROM outbox_event").unwrap();
            if std::fs::metadata(&wal).unwrap().len() > 50_000 {
                break;
            }
            app.execute_batch("COMMIT").unwrap();
        }
        let done = compaction.join().unwrap().unwrap();
        assert_eq!(done.bytes_after, file_bytes(&test));
        assert_eq!(done.is_complete, done.bytes_after < 1_000_000, "{done:?}");
        if !done.is_complete {
            app.execute_batch("COMMIT; PRAGMA wal_checkpoint").unwrap();
            assert!(file_bytes(&test) < 1_000_000, "the next checkpoint is enough");
            return;
        }
    }
    panic!("no reader came in between");
}
