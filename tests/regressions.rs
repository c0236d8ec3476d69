//! Bugs that were found by attacking the library. Each test opens with its story.

#[path = "support/files.rs"]
mod support;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use postbox::rusqlite::functions::FunctionFlags;
use postbox::testing::ManualClock;
use postbox::time::OffsetDateTime;
use postbox::{
    Backoff, Context, Error, Event, HandlerError, OutboxStatus, Postbox, Result, Settings, Subscription, Tx,
};
use support::{LIMIT, Tally, counting, event, integer, raw, wait_until};

fn sql(bus: &Postbox, sql: &str) {
    bus.transaction(|tx| -> Result<()> { Ok(tx.execute_batch(sql)?) }).unwrap();
}

fn ok() -> impl postbox::Handler {
    |_: &Event, _: &Context<'_>| Ok(())
}

/// `publish` went on saying Ok into a file that no path led to any more.
#[test]
fn a_file_that_was_replaced_takes_no_more_events() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    fs::rename(&path, dir.path().join("moved.db")).unwrap();
    let refused = bus.publish(event("a"));
    assert!(
        matches!(&refused, Err(Error::FileReplaced { path: named }) if named.ends_with("app.db")),
        "{refused:?}"
    );
    fs::rename(dir.path().join("moved.db"), &path).unwrap();
    bus.publish(event("a")).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(support::beside(&path, suffix)).unwrap();
    }
    fs::write(&path, "another").unwrap();
    assert!(matches!(bus.publish(event("a")), Err(Error::FileReplaced { .. })));
    assert!(matches!(bus.drain(), Err(Error::FileReplaced { .. }) | Ok(0)));
}

/// A handler marked its own row as processed and failed all the same: the row was overwritten, and it ran again.
#[test]
fn a_row_that_was_marked_as_done_during_the_attempt_stays_done() {
    let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_hours(24));
    let bus = Postbox::builder().clock(clock.clone()).open_in_memory().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    bus.subscribe(Subscription::new("a", "c", move |event: &Event, cx: &Context<'_>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let inbox = cx.postbox().inbox();
        inbox.mark_processed(inbox.get_or_create(event.id(), "c")?.id)?;
        Err(HandlerError::retry("after all"))
    }))
    .unwrap();
    let id = bus.publish(event("a")).unwrap();
    bus.drain().unwrap();
    assert!(bus.inbox().is_processed(id, "c").unwrap());
    clock.advance(Duration::from_mins(1));
    assert_eq!(bus.drain().unwrap(), 1);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

/// RAISE(FAIL) keeps what the statement had written: `publish` said Err, and the event was delivered.
#[test]
fn an_event_whose_publishing_failed_in_a_trigger_is_not_there() {
    let bus = Postbox::open_in_memory().unwrap();
    sql(&bus, "CREATE TRIGGER no AFTER INSERT ON outbox_event BEGIN SELECT RAISE(FAIL, 'not allowed'); END");
    assert!(matches!(bus.publish(event("a")), Err(Error::Sqlite(_))));
    assert!(bus.publish_all([event("a"), event("b")]).is_err());
    assert_eq!(bus.stats().unwrap().total, 0);
}

/// A savepoint after ON CONFLICT ROLLBACK begins another transaction, and the whole passed for committed.
#[test]
fn a_transaction_that_was_rolled_back_and_begun_again_by_a_savepoint_is_an_error() {
    let bus = Postbox::open_in_memory().unwrap();
    sql(&bus, "CREATE TABLE t (x INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)");
    let outcome = bus.transaction(|tx| -> Result<()> {
        tx.publish(event("a"))?;
        assert!(tx.execute("INSERT OR ROLLBACK INTO t VALUES (1)", []).is_err());
        tx.execute_batch("SAVEPOINT s; INSERT INTO t VALUES (2)")?;
        Ok(())
    });
    assert!(outcome.is_err());
    assert_eq!(bus.stats().unwrap().total, 0);
    let rows: u64 = bus
        .transaction(|tx| -> Result<u64> { Ok(tx.query_row("SELECT count(*) FROM t", [], |r| r.get(0))?) })
        .unwrap();
    assert_eq!(rows, 1);
    bus.publish(event("a")).unwrap();
}

/// What was set on a `Tx` stayed on the box's only write connection for good.
#[test]
fn settings_of_the_connection_are_out_of_a_transactions_reach() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::builder().busy_timeout(Duration::from_secs(2)).open(&path).unwrap();
    for pragma in [
        "query_only = 1",
        "foreign_keys = 0",
        "Synchronous = OFF",
        "locking_mode = EXCLUSIVE",
        "ignore_check_constraints = 1",
        "writable_schema = 1",
        "recursive_triggers = 1",
    ] {
        let refused =
            bus.transaction(|tx| -> Result<()> { Ok(tx.execute_batch(&format!("PRAGMA {pragma}"))?) });
        assert!(refused.unwrap_err().to_string().contains("not authorized"), "{pragma}");
    }
    bus.transaction(|tx| -> Result<()> { Ok(tx.busy_timeout(Duration::ZERO)?) }).unwrap();
    let other = raw(&path);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = bus.publish(event("a"));
    assert!(
        matches!(refused, Err(Error::Busy { waited, .. }) if waited >= Duration::from_secs(1)),
        "{refused:?}"
    );
    other.execute_batch("ROLLBACK").unwrap();
    bus.publish(event("a")).unwrap();
}

/// `integrity_check` needs what the application's schema uses: no backup of such a file could be made.
#[test]
fn a_file_with_the_applications_own_collation_and_functions_can_be_backed_up_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    let bus = Postbox::open(&path).unwrap();
    let app = raw(&path);
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    app.create_scalar_function("is_even", 1, flags, |cx| Ok(cx.get::<i64>(0)? % 2 == 0)).unwrap();
    app.execute_batch("CREATE TABLE t (x INTEGER CHECK (is_even(x))); CREATE INDEX i ON t (is_even(x)); INSERT INTO t VALUES (2)")
        .unwrap();
    bus.publish(event("a")).unwrap();
    bus.backup(&copy).unwrap();
    bus.close().unwrap();
    drop(app);
    postbox::restore(&copy, &path).unwrap();
    let bus = Postbox::open(&path).unwrap();
    assert_eq!(bus.stats().unwrap().pending, 1);
}

/// A backup onto a file with a hot journal was rolled back into it; one onto the box's own -wal replaced that.
#[test]
fn a_backup_goes_neither_beside_a_journal_nor_onto_a_file_of_the_boxs_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    fs::write(dir.path().join("copy.db-journal"), "hot").unwrap();
    for dest in ["copy.db", "app.db-wal", "app.db-shm", "app.db-journal", "app.db"] {
        let refused = bus.backup(dir.path().join(dest));
        assert!(matches!(refused, Err(Error::Invalid { field: "dest", .. })), "{dest}: {refused:?}");
    }
    bus.publish(event("a")).unwrap();
    assert_eq!(bus.stats().unwrap().total, 2);
}

/// A publisher that flushes when its thread ends took the process down.
#[test]
fn a_thread_that_ends_may_still_publish() {
    struct Flush(Postbox);
    impl Drop for Flush {
        fn drop(&mut self) {
            self.0.publish(event("last")).unwrap();
        }
    }
    thread_local! {
        static BUFFER: std::cell::RefCell<Option<Flush>> = const { std::cell::RefCell::new(None) };
    }
    let bus = Postbox::open_in_memory().unwrap();
    let of_thread = bus.clone();
    std::thread::spawn(move || {
        BUFFER.with_borrow_mut(|buffer| *buffer = Some(Flush(of_thread.clone())));
        of_thread.publish(event("first")).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(bus.stats().unwrap().total, 2);
}

/// A trigger that swallowed updates let the handler run for ever: the claim's own update was not looked at.
#[test]
fn a_claim_that_a_trigger_swallows_is_an_error_and_runs_nothing() {
    let bus = Postbox::open_in_memory().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    bus.subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }))
    .unwrap();
    bus.publish(event("a")).unwrap();
    sql(&bus, "CREATE TRIGGER no BEFORE UPDATE ON outbox_event BEGIN SELECT RAISE(IGNORE); END");
    assert!(matches!(bus.drain(), Err(Error::NotStored { .. })));
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    sql(&bus, "DROP TRIGGER no");
    assert_eq!(bus.drain().unwrap(), 1);
}

/// A report of an old claim removed the worker's entry of a newer claim of the same row: its lease was not renewed, it
/// was not counted, and its outcome was thrown away at shutdown.
#[test]
fn retries_without_a_delay_are_each_settled() {
    let settings = Settings { max_attempts: 50, batch_size: 4, ..Settings::default() };
    let bus = Postbox::builder().settings(settings).handler_threads(2).open_in_memory().unwrap();
    let (done, finished) = mpsc::channel();
    bus.subscribe(
        Subscription::transactional("a", "c", move |event: &Event, _: &Tx<'_>| {
            if event.attempt() < 40 {
                return Err(HandlerError::retry_after("again", Duration::ZERO));
            }
            let _ = done.send(());
            Ok(())
        })
        .backoff(Backoff::fixed(Duration::ZERO)),
    )
    .unwrap();
    let worker = bus.start().unwrap();
    let ids = bus.publish_all((0..20).map(|_| event("a"))).unwrap();
    for _ in &ids {
        finished.recv_timeout(LIMIT).unwrap();
    }
    let report = worker.shutdown(LIMIT).unwrap();
    assert!(report.clean);
    for id in ids {
        let row = bus.outbox().get(id).unwrap().unwrap();
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processed, 40));
    }
}

/// Sixty-four threads that asked for the time made the box's clock run ahead: waiting for a lock looked like a step back.
#[test]
fn the_boxs_time_does_not_run_ahead_under_threads() {
    let bus = Postbox::open_in_memory().unwrap();
    bus.subscribe(Subscription::new("*", "c", ok())).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                for _ in 0..100 {
                    bus.publish(event("a")).unwrap();
                }
            });
        }
    });
    let id = bus.publish(event("a")).unwrap();
    let after = OffsetDateTime::now_utc();
    let at = bus.outbox().get(id).unwrap().unwrap().created_at;
    assert!(at <= after, "{} ahead", at - after);
}

/// An index in a damaged file named an event that was processed. Nothing took it out of the index: `drain` claimed it again and
/// again and never returned, and a worker would have had no rest.
#[test]
fn an_event_that_only_a_damaged_index_calls_due_ends_a_drain_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    bus.close().unwrap();
    // The index is out of SQLite's sight while the row changes.
    let conn = raw(&path);
    let (name, root, sql): (String, i64, String) = conn
        .query_row(
            "SELECT name, rootpage, sql FROM sqlite_schema WHERE name = 'outbox_event_due'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    conn.pragma_update(None, "writable_schema", true).unwrap();
    conn.execute("DELETE FROM sqlite_schema WHERE name = ?1", [&name]).unwrap();
    drop(conn);
    let conn = raw(&path);
    conn.execute_batch(
        "UPDATE outbox_event SET status = 'processed', lease_id = 0, processed_at = created_at",
    )
    .unwrap();
    conn.pragma_update(None, "writable_schema", true).unwrap();
    conn.execute(
        "INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES ('index', ?1, 'outbox_event', ?2, ?3)",
        (&name, root, &sql),
    )
    .unwrap();
    drop(conn);

    let bus = Postbox::open(&path).unwrap();
    bus.subscribe(Subscription::new("a", "c", ok())).unwrap();
    let (done, drained) = mpsc::channel();
    let draining = bus.clone();
    std::thread::spawn(move || done.send(draining.drain()));
    let drained = drained.recv_timeout(support::LIMIT).expect("drain never ends");
    assert!(matches!(drained, Err(Error::Damaged { .. })), "{drained:?}");
}

/// A plain handler had run, then the write lock was away for so long that the transactional handler behind it was given
/// up: the event was given back as if nothing had been begun. The plain handler ran again at once, also where it had
/// failed and its backoff had not begun.
#[test]
fn what_a_plain_handler_said_stands_when_the_transaction_behind_it_cannot_begin() {
    for fails in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_hours(1_000));
        let bus = Postbox::builder()
            .clock(clock.clone())
            .handler_threads(1)
            .busy_timeout(Duration::from_millis(30))
            .open(&path)
            .unwrap();
        sql(&bus, "CREATE TABLE effect (n)");
        let (lock, plain, after) = (Arc::new(Mutex::new(raw(&path))), Tally::default(), Tally::default());
        let (taken, ran) = (Arc::clone(&lock), plain.clone());
        bus.subscribe_many([
            Subscription::new("mixed", "plain", move |_: &Event, _: &Context<'_>| {
                ran.add();
                if ran.get() > 1 {
                    return Ok(());
                }
                taken.lock().unwrap().execute_batch("BEGIN IMMEDIATE")?;
                if fails { Err(HandlerError::retry("on purpose")) } else { Ok(()) }
            })
            .priority(1),
            Subscription::transactional("mixed", "inside", |_: &Event, tx: &Tx<'_>| {
                tx.execute("INSERT INTO effect VALUES (1)", [])?;
                Ok(())
            }),
            Subscription::new("after", "plain", counting(&after)),
        ])
        .unwrap();
        let ids = bus.publish_all([event("mixed"), event("after")]).unwrap();
        let worker = bus.start().unwrap();
        after.wait_for(1); // the one thread has given the first event up
        lock.lock().unwrap().execute_batch("ROLLBACK").unwrap();
        let row = || bus.outbox().get(ids[0]).unwrap().unwrap();
        let attempts = if fails {
            wait_until("it waits for its backoff", || row().status == OutboxStatus::Pending);
            assert_eq!(row().available_at, row().created_at + Duration::from_secs(1));
            assert_eq!(row().last_error.as_deref(), Some("on purpose"));
            assert_eq!(plain.get(), 1);
            clock.advance(Duration::from_secs(1));
            bus.notify();
            2
        } else {
            1
        };
        wait_until("it is processed", || row().status == OutboxStatus::Processed);
        assert_eq!((plain.get(), row().attempt_count), (attempts, u32::try_from(attempts).unwrap()));
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        assert_eq!(integer(&raw(&path), "SELECT count(*) FROM effect"), 1);
    }
}
