//! What a worker does while its disk fails: it lives, waits longer and longer, says so, spends no attempt; and goes on by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use postbox::{
    Builder, Context, Event, EventId, Fault, Handler, HandlerResult, Health, NewEvent, OutboxStatus, Postbox,
    Result, Settings, Subscription, Tx,
};

use crate::fault::{Disk, Lasting, Plan, Trouble};
use crate::support::{LIMIT, Latch, Tally, blocking, counting, event, integer, raw, status, wait_until};
use crate::{folder, logged};

/// A box whose worker polls often, with a plain and a transactional consumer of `order`.
fn working(path: &std::path::Path, outside: impl Handler) -> Postbox {
    let settings =
        Settings { polling_interval_ms: 200, idle_polling_interval_ms: 200, ..Settings::default() };
    let bus = builder(settings).open(path).unwrap();
    bus.transaction(|tx| -> Result<()> {
        Ok(tx.execute_batch("CREATE TABLE IF NOT EXISTS effect (event TEXT)")?)
    })
    .unwrap();
    bus.subscribe_many([
        Subscription::new("order", "outside", outside),
        Subscription::transactional("order", "inside", |event: &Event, tx: &Tx<'_>| -> HandlerResult {
            tx.execute("INSERT INTO effect VALUES (?1)", [event.id().to_string()])?;
            Ok(())
        }),
    ])
    .unwrap();
    bus
}

fn builder(settings: Settings) -> Builder {
    Postbox::builder().settings(settings).handler_threads(2)
}

#[track_caller]
fn waits(bus: &Postbox) -> (Fault, String, u32) {
    let mut found = None;
    wait_until("the worker says that it waits", || {
        if let Health::Waiting { fault, reason, tries, .. } = bus.health() {
            found = Some((fault, reason, tries));
        }
        found.is_some()
    });
    found.unwrap()
}

/// All are processed, once, in their first attempt.
fn assert_all_went_well(bus: &Postbox, path: &std::path::Path, ids: &[EventId], handled: &Tally) {
    wait_until("everything is processed", || {
        let stats = bus.stats().unwrap();
        stats.pending + stats.processing == 0 && stats.health == Health::Ok
    });
    for id in ids {
        let row = bus.outbox().get(*id).unwrap().unwrap();
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processed, 1), "{id}");
    }
    let (conn, expected) = (raw(path), i64::try_from(ids.len()).unwrap());
    assert_eq!(integer(&conn, "SELECT count(*) FROM effect"), expected);
    assert_eq!(integer(&conn, "SELECT count(DISTINCT event) FROM effect"), expected);
    assert_eq!(handled.get(), ids.len() as u64, "a plain handler ran again");
}

/// Handlers are at work when the disk fails: what came of them cannot be recorded.
fn fails_and_goes_on(trouble: Trouble, expected: Fault) {
    let folder = folder();
    let path = folder.path().join("app.db");
    let disk = Disk::watch(folder.path()); // connections that are open already are not watched
    let (handled, latch) = (Tally::default(), Latch::default());
    let bus = working(&path, blocking(&handled, &latch));
    logged::collect();
    let worker = bus.start().unwrap();
    let mut ids = bus.publish_all((0..20).map(|_| event("order"))).unwrap();
    handled.wait_for(2);
    disk.plan(Plan { trouble, at: 1, lasting: Lasting::ForGood });
    latch.open();
    let (fault, reason, _) = waits(&bus);
    assert_eq!(fault, expected, "{reason}");
    // The callers of `publish` are told themselves.
    let refused = bus.publish(event("order")).unwrap_err();
    assert_eq!(refused.fault(), Some(expected), "{refused:?}");
    wait_until("it tries again", || matches!(bus.health(), Health::Waiting { tries, .. } if tries >= 4));
    assert!(worker.is_running());
    if trouble != Trouble::IoOfAll {
        assert!(matches!(bus.stats().unwrap().health, Health::Waiting { .. }), "also among the numbers");
    }
    // Once it is mended, a handler that had failed before may come back late, and be heard.
    let said = logged::lines_with(&["processing pauses", folder.path().to_str().unwrap()]);
    assert_eq!(said.len(), 1, "said once: {said:?}");
    disk.mend();
    wait_until("it goes on", || bus.health() == Health::Ok); // after a poll
    ids.push(bus.publish(event("order")).unwrap());
    // The one that was refused may be there: an error at commit is unknown.
    let there = bus.stats().unwrap().total;
    assert!(there == 21 || there == 22, "{there}");
    if there == 21 {
        assert_all_went_well(&bus, &path, &ids, &handled);
    }
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

#[test]
fn a_worker_waits_while_the_disk_is_full_and_goes_on_by_itself() {
    fails_and_goes_on(Trouble::Full, Fault::DiskFull);
}

#[test]
fn a_worker_waits_while_the_disk_cannot_be_written_and_goes_on_by_itself() {
    fails_and_goes_on(Trouble::Io, Fault::Io);
}

#[test]
fn a_worker_waits_while_the_disk_cannot_be_read_or_written_and_goes_on_by_itself() {
    fails_and_goes_on(Trouble::IoOfAll, Fault::Io);
}

/// Each operation fails while a worker is at work, once and for as long as it takes the worker to notice.
#[test]
fn a_worker_gets_over_a_fault_at_any_operation() {
    let stride = crate::times("POSTBOX_FAULT_STRIDE", 5) as u64;
    for (trouble, lasting) in [
        (Trouble::Io, Lasting::Once),
        (Trouble::IoOfAll, Lasting::Once),
        (Trouble::Full, Lasting::ForGood),
        (Trouble::Io, Lasting::ForGood),
    ] {
        let mut at = 1;
        while gets_over(trouble, lasting, at) {
            at += stride * 2;
        }
        assert!(at > 20, "{trouble:?} {lasting:?}: over after {at}");
    }
}

/// False: the work was over before the fault came.
fn gets_over(trouble: Trouble, lasting: Lasting, at: u64) -> bool {
    let folder = folder();
    let path = folder.path().join("app.db");
    let disk = Disk::watch(folder.path()); // connections that are open already are not watched
    let handled = Tally::default();
    let bus = working(&path, counting(&handled));
    let mut ids = bus.publish_all((0..6).map(|_| event("order"))).unwrap();
    disk.plan(Plan { trouble, at, lasting });
    let Ok(worker) = bus.start() else {
        disk.mend(); // it could not open a connection of its own, and said so
        return true;
    };
    for _ in 0..6 {
        ids.extend(bus.publish(NewEvent::new("order", "shop", "Order", "1")));
    }
    wait_until("the work is done, or the fault is seen", || {
        matches!(bus.health(), Health::Waiting { .. })
            || disk.troubled() > 0
            || bus.stats().is_ok_and(|stats| stats.pending + stats.processing == 0)
    });
    let troubled = disk.mend() > 0;
    wait_until("everything is processed", || {
        bus.stats().is_ok_and(|stats| stats.pending + stats.processing == 0 && stats.health == Health::Ok)
    });
    for id in &ids {
        let row = bus
            .outbox()
            .get(*id)
            .unwrap()
            .unwrap_or_else(|| panic!("{trouble:?} {lasting:?} at {at}: lost {id}"));
        assert_eq!(
            (row.status, row.attempt_count),
            (OutboxStatus::Processed, 1),
            "{trouble:?} {lasting:?} at {at}"
        );
    }
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    let conn = raw(&path);
    assert_eq!(
        integer(&conn, "SELECT count(*) FROM effect"),
        integer(&conn, "SELECT count(DISTINCT event) FROM effect"),
        "{trouble:?} {lasting:?} at {at}"
    );
    drop(conn);
    bus.close().unwrap();
    troubled
}

#[test]
fn pauses_grow_so_that_nothing_spins() {
    let folder = folder();
    let path = folder.path().join("app.db");
    let disk = Disk::watch(folder.path());
    let settings = Settings::default(); // a poll of five seconds
    let bus = builder(settings).open(&path).unwrap();
    bus.subscribe(Subscription::new("order", "outside", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    bus.publish(event("order")).unwrap();
    disk.plan(Plan { trouble: Trouble::Io, at: 1, lasting: Lasting::ForGood });
    let start = Instant::now();
    let worker = bus.start().unwrap();
    wait_until(
        "it has tried five times",
        || matches!(bus.health(), Health::Waiting { tries, .. } if tries >= 5),
    );
    // 50, 100, 200 and 400 ms lie between five tries.
    assert!(start.elapsed() >= Duration::from_millis(750), "{:?}", start.elapsed());
    assert!(matches!(bus.health(), Health::Waiting { for_ms, .. } if for_ms >= 700));
    disk.mend();
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    assert_eq!(bus.health(), Health::Ok, "nobody waits any more");
}

/// As much room as a handler needs is not there; the box itself needs less. It cost the event all its attempts in half a second.
#[test]
fn a_disk_that_a_transactional_handler_finds_full_spends_no_attempt_and_stops_no_other_event() {
    let folder = folder();
    let path = folder.path().join("app.db");
    let bus =
        builder(Settings { polling_interval_ms: 200, idle_polling_interval_ms: 200, ..Settings::default() })
            .open(&path)
            .unwrap();
    bus.transaction(|tx| -> Result<()> {
        Ok(tx.execute_batch("CREATE TABLE large (x); CREATE TABLE small (x)")?)
    })
    .unwrap();
    let (full, attempts) = (Arc::new(AtomicBool::new(true)), Tally::default());
    let (is_full, tries) = (Arc::clone(&full), attempts.clone());
    bus.subscribe(
        Subscription::transactional("large", "c", move |_: &Event, tx: &Tx<'_>| -> HandlerResult {
            tries.add();
            if is_full.load(SeqCst) {
                let pages: i64 = tx.query_row("PRAGMA page_count", [], |row| row.get(0))?;
                tx.query_row(&format!("PRAGMA max_page_count = {}", pages + 20), [], |_| Ok(()))?;
            }
            let written = tx.execute("INSERT INTO large VALUES (zeroblob(1000000))", []);
            tx.query_row("PRAGMA max_page_count = 1073741823", [], |_| Ok(()))?;
            written?;
            Ok(())
        })
        .max_attempts(3),
    )
    .unwrap();
    bus.subscribe(Subscription::transactional("small", "c", |_: &Event, tx: &Tx<'_>| -> HandlerResult {
        tx.execute("INSERT INTO small VALUES (1)", [])?;
        Ok(())
    }))
    .unwrap();
    let names = ["large", "small", "large", "small", "small"];
    let ids = bus.publish_all(names.map(event)).unwrap();
    let of_them = |name: &str| {
        let chosen = names.iter().zip(&ids).filter(|(other, _)| **other == name);
        chosen.map(|(_, id)| bus.outbox().get(*id).unwrap().unwrap()).collect::<Vec<_>>()
    };

    // By hand the caller is told.
    assert_eq!(bus.drain().unwrap_err().fault(), Some(Fault::DiskFull));
    assert_eq!(attempts.get(), 2, "each once");
    assert!(of_them("small").iter().all(|row| row.status == OutboxStatus::Processed));
    assert!(of_them("large").iter().all(|row| (row.status, row.attempt_count) == (OutboxStatus::Pending, 0)));
    assert!(of_them("large").iter().all(|row| row.last_error.as_ref().unwrap().contains("full")));

    let worker = bus.start().unwrap();
    attempts.wait_for(8);
    assert_eq!(waits(&bus).0, Fault::DiskFull);
    wait_until("the others are through", || {
        of_them("small").iter().all(|row| row.status == OutboxStatus::Processed)
    });
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM small"), 3);
    assert!(of_them("large").iter().all(|row| row.attempt_count <= 1));
    assert!(
        matches!(bus.health(), Health::Waiting { tries, .. } if tries > 2),
        "also while others are handled"
    );

    full.store(false, SeqCst);
    wait_until("there is room", || of_them("large").iter().all(|row| row.status == OutboxStatus::Processed));
    assert!(of_them("large").iter().all(|row| row.attempt_count == 1));
    wait_until("it says so", || bus.health() == Health::Ok);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

/// It was taken for a fault of the box's own file, and the whole worker waited.
#[test]
fn another_file_that_cannot_be_opened_is_a_failure_like_any_other() {
    let folder = folder();
    let bus = Postbox::open(folder.path().join("app.db")).unwrap();
    let missing = folder.path().join("no such folder").join("config.db");
    bus.subscribe(
        Subscription::transactional("order", "c", move |_: &Event, _: &Tx<'_>| -> HandlerResult {
            postbox::rusqlite::Connection::open(&missing)?;
            Ok(())
        })
        .max_attempts(1),
    )
    .unwrap();
    let id = bus.publish(event("order")).unwrap();
    bus.drain().unwrap();
    assert_eq!(status(&bus, id), (OutboxStatus::DeadLetter, 1));
}

/// Holds the write lock until it is dropped.
fn hold_the_write_lock(path: &std::path::Path) -> postbox::rusqlite::Connection {
    let conn = raw(path);
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    conn
}

#[test]
fn health_is_good_again_once_leases_are_renewed_though_the_handler_runs_on() {
    let folder = folder();
    let path = folder.path().join("app.db");
    let (handled, latch) = (Tally::default(), Latch::default());
    let bus = builder(Settings { processing_lease_ms: 1_000, ..Settings::default() })
        .busy_timeout(Duration::from_millis(50))
        .open(&path)
        .unwrap();
    bus.subscribe(Subscription::new("order", "c", blocking(&handled, &latch))).unwrap();
    let worker = bus.start().unwrap();
    let id = bus.publish(event("order")).unwrap();
    handled.wait_for(1);
    let lock = hold_the_write_lock(&path);
    assert_eq!(waits(&bus).0, Fault::Busy);
    drop(lock);
    wait_until("it is well", || bus.health() == Health::Ok);
    latch.open();
    wait_until("it is processed", || status(&bus, id) == (OutboxStatus::Processed, 1));
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

#[test]
fn pauses_are_no_longer_than_a_third_of_a_lease_while_a_handler_runs() {
    let folder = folder();
    let path = folder.path().join("app.db");
    let disk = Disk::watch(folder.path());
    let (handled, latch) = (Tally::default(), Latch::default());
    let bus = builder(Settings { processing_lease_ms: 1_000, ..Settings::default() }).open(&path).unwrap();
    bus.subscribe(Subscription::new("order", "c", blocking(&handled, &latch))).unwrap();
    let worker = bus.start().unwrap();
    bus.publish(event("order")).unwrap();
    handled.wait_for(1);
    disk.plan(Plan { trouble: Trouble::Io, at: 1, lasting: Lasting::ForGood });
    waits(&bus);
    let start = Instant::now();
    wait_until("many tries", || matches!(bus.health(), Health::Waiting { tries, .. } if tries >= 16));
    // 4.7 s: 50, 100, 200 ms, and then 333. It would be 46 s, up to the five that a pause is long at the most.
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    disk.mend();
    latch.open();
    wait_until("it goes on", || bus.stats().is_ok_and(|stats| stats.processed == 1));
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}
