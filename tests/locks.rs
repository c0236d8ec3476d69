//! The file's locks in other hands: bounded waits, clear errors, nothing half-written.

#[path = "support/files.rs"]
mod support;
#[path = "support/timing.rs"]
mod timing;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use postbox::rusqlite::Connection;
use postbox::{Context, Error, Event, NewEvent, Postbox, Result, Subscription};
use support::{Tally, assert_bytes, beside, counting, event, integer, listing, raw};
use timing::within;

const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

fn open(path: &Path) -> Result<Postbox> {
    Postbox::builder().busy_timeout(BUSY_TIMEOUT).open(path)
}

/// Waited for the timeout, and not for much longer.
#[track_caller]
fn assert_busy<T: std::fmt::Debug>(what: &str, act: impl Fn() -> Result<T>) {
    within(BUSY_TIMEOUT * 20, what, || {
        let start = Instant::now();
        let result = act();
        let took = start.elapsed();
        match result {
            Err(Error::Busy { waited, .. }) => assert!(waited <= took, "{what}: {waited:?} of {took:?}"),
            other => panic!("{what}: {other:?}"),
        }
        assert!(took >= BUSY_TIMEOUT, "{what}: gave up after {took:?}");
    });
}

#[test]
fn opening_fails_in_time_while_another_connection_has_the_file_for_itself() {
    for mode in ["DELETE", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let other = raw(&path);
        other.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(())).unwrap();
        other.execute_batch("CREATE TABLE t (x); PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
        other.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        assert_busy(mode, || open(&path));
        other.execute_batch("COMMIT").unwrap();
        drop(other);
        let conn = raw(&path);
        assert_eq!(integer(&conn, "SELECT count(*) FROM sqlite_schema"), 1, "nothing was made");
        drop(conn);
        open(&path).unwrap().publish(event("a")).unwrap();
    }
}

#[test]
fn opening_fails_in_time_while_another_connection_writes_and_leaves_the_file_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    raw(&path).execute_batch("CREATE TABLE t (x)").unwrap();
    let before = fs::read(&path).unwrap();
    let other = raw(&path);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_busy("open", || open(&path));
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    assert_bytes(&path, &before, "refused");
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
fn every_write_fails_in_time_while_another_connection_has_the_write_lock_and_works_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = open(&path).unwrap();
    let id = bus.publish(event("before")).unwrap();
    let other = raw(&path);
    other.execute_batch("BEGIN IMMEDIATE; CREATE TABLE t (x)").unwrap();

    assert_busy("publish", || bus.publish(event("a")));
    assert_busy("publish_all", || bus.publish_all([event("a"), event("b")]));
    assert_busy("transaction", || bus.transaction(|_| -> Result<()> { panic!("must not run") }));
    assert_busy("update_settings", || bus.update_settings(|settings| settings.batch_size = 3));
    assert_busy("inbox", || bus.inbox().get_or_create(id, "c"));
    assert_busy("drain", || bus.drain());
    assert_busy("with_quiesced_file", || bus.with_quiesced_file(|_| -> std::io::Result<()> { panic!() }));
    // Readers are never in the way of a writer, nor it in theirs.
    assert_eq!(bus.stats().unwrap().total, 1);
    assert_eq!(bus.settings().batch_size, 10);
    bus.backup(dir.path().join("backup.db")).unwrap();

    other.execute_batch("COMMIT").unwrap();
    bus.publish(event("a")).unwrap();
    bus.publish_all([event("a"), event("b")]).unwrap();
    bus.transaction(|tx| tx.publish(event("a"))).unwrap();
    assert_eq!(bus.stats().unwrap().total, 5, "nothing was half-written, nothing doubled");
    assert_eq!(bus.drain().unwrap(), 5);
    assert_eq!(integer(&other, "SELECT count(*) FROM postbox_setting"), 0);
    assert_eq!(integer(&raw(&dir.path().join("backup.db")), "SELECT count(*) FROM outbox_event"), 1);
}

/// Each of a group that shares a commit has its own answer.
#[test]
fn all_who_share_a_commit_are_told_that_it_could_not_begin() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = open(&path).unwrap();
    let other = raw(&path);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| bus.publish(event("a")))).collect();
        for thread in threads {
            let told = thread.join().unwrap();
            assert!(matches!(told, Err(Error::Busy { .. })), "{told:?}");
        }
    });
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(bus.stats().unwrap().total, 0);
    bus.publish(event("a")).unwrap();
}

#[test]
fn a_worker_goes_on_once_the_write_lock_is_free_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = open(&path).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("a", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    let other = raw(&path);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let tx = &other;
    let id = bus.publish_in(tx, event("a")).unwrap();
    bus.notify();
    assert!(!tally.reaches(1, BUSY_TIMEOUT * 5), "it is not committed yet");
    other.execute_batch("COMMIT").unwrap();
    tally.wait_for(1);
    assert!(worker.is_running());
    let report = worker.shutdown(support::LIMIT).unwrap();
    assert!(report.clean);
    assert_eq!(support::status(&bus, id), (postbox::OutboxStatus::Processed, 1));
    assert_eq!(tally.get(), 1);
}

/// A long handler-side outcome cannot be written while the lock is away: it is kept and written later, once.
#[test]
fn outcomes_that_cannot_be_recorded_yet_are_recorded_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = open(&path).unwrap();
    let (runs, entered, latch) = (Tally::default(), Tally::default(), support::Latch::default());
    let (counted, inside, wait) = (runs.clone(), entered.clone(), latch.clone());
    bus.subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
        inside.add();
        wait.wait();
        counted.add();
        Ok(())
    }))
    .unwrap();
    let worker = bus.start().unwrap();
    let id = bus.publish(event("a")).unwrap();
    entered.wait_for(1);
    let other = raw(&path);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    latch.open();
    runs.wait_for(1);
    assert!(!entered.reaches(2, BUSY_TIMEOUT * 5));
    other.execute_batch("ROLLBACK").unwrap();
    support::wait_until("it is processed", || {
        support::status(&bus, id) == (postbox::OutboxStatus::Processed, 1)
    });
    assert!(worker.shutdown(support::LIMIT).unwrap().clean);
    assert_eq!(runs.get(), 1);
}

#[test]
fn a_deferred_transaction_that_can_never_write_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = open(&path).unwrap();
    let mut conn = raw(&path);
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Deferred).unwrap();
    assert_eq!(integer(&tx, "SELECT count(*) FROM outbox_event"), 0);
    bus.publish(event("a")).unwrap();
    let refused = bus.publish_in(&tx, event("b"));
    assert!(matches!(refused, Err(Error::Invalid { field: "conn", .. })), "{refused:?}");
    drop(tx);
    assert_eq!(bus.stats().unwrap().total, 1);
}

/// A reader of an old state keeps SQLite from starting the -wal anew; once it is gone the -wal is cut back.
#[test]
fn a_wal_that_grew_under_a_long_reader_is_cut_back_afterwards() {
    const CUT_BACK_TO: u64 = 16 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = open(&path).unwrap();
    let large = |n: u64| {
        NewEvent::new("large", "m", "T", n.to_string()).payload(serde_json::json!("x".repeat(900_000)))
    };
    let reader: Connection = raw(&path);
    reader.execute_batch("BEGIN").unwrap();
    integer(&reader, "SELECT count(*) FROM outbox_event");
    bus.publish_all((0..24).map(large)).unwrap();
    let wal = || fs::metadata(beside(&path, "-wal")).unwrap().len();
    assert!(wal() > CUT_BACK_TO, "{}", wal());
    reader.execute_batch("COMMIT").unwrap();
    // By whoever publishes once a checkpoint is over, which another thread may be doing.
    support::wait_until("it is cut back", || {
        bus.publish(large(0)).unwrap();
        wal() <= CUT_BACK_TO
    });
}
