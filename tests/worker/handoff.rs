//! While the worker sleeps and has room, `publish` hands its events straight to a handler thread. The rows tell: they are
//! inserted already claimed, as a trigger of the application notes.

use std::path::{Path, PathBuf};
use std::thread;

use postbox::{Builder, Event, OutboxStatus, Postbox, Subscription, Tx};
use tempfile::TempDir;

use crate::support::{
    LIMIT, Latch, Tally, blocking, counting, event, integer, raw, status, text, wait_until,
};
use crate::{is_settled, sized};

/// A box whose file notes how each event was inserted.
fn noting(builder: Builder) -> (TempDir, PathBuf, Postbox) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    // Publishers wait here for as long as somebody else has the write lock.
    let bus = builder.busy_timeout(LIMIT).open(&path).unwrap();
    bus.transaction(|tx| -> postbox::Result<()> {
        Ok(tx.execute_batch(
            "CREATE TABLE seen (n INTEGER PRIMARY KEY, how TEXT);
             CREATE TRIGGER note AFTER INSERT ON outbox_event
             BEGIN INSERT INTO seen (how) VALUES (NEW.status || ' ' || NEW.attempt_count); END;",
        )?)
    })
    .unwrap();
    (dir, path, bus)
}

fn last_seen(path: &Path) -> String {
    text(&raw(path), "SELECT coalesce((SELECT how FROM seen ORDER BY n DESC LIMIT 1), '')")
}

const HANDED_OVER: &str = "processing 1";
const LEFT_TO_THE_WORKER: &str = "pending 0";

/// Publishes until an event is handed over: the worker may just be on its way to sleep.
fn publish_until_handed_over(bus: &Postbox, path: &Path, publish: impl Fn()) {
    wait_until("an event is handed over", || {
        is_settled(bus);
        publish();
        last_seen(path) == HANDED_OVER
    });
}

#[test]
fn events_are_handed_to_a_sleeping_workers_threads_and_processed_once() {
    for transactional in [false, true] {
        let (_dir, path, bus) = noting(Postbox::builder());
        let tally = Tally::default();
        bus.subscribe(if transactional {
            let tally = tally.clone();
            Subscription::transactional("a", "c", move |_: &Event, _: &Tx<'_>| {
                tally.add();
                Ok(())
            })
        } else {
            Subscription::new("a", "c", counting(&tally))
        })
        .unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        let published = Tally::default();
        for _ in 0..5 {
            publish_until_handed_over(&bus, &path, || {
                bus.publish(event("a")).unwrap();
                published.add();
            });
            bus.publish_all([event("a"), event("a")]).unwrap();
            published.add();
            published.add();
            tally.wait_for(published.get());
        }
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        assert_eq!(tally.get(), published.get(), "transactional: {transactional}");
        let conn = raw(&path);
        let once = "SELECT count(*) FROM outbox_event WHERE status = 'processed' AND attempt_count = 1";
        assert_eq!(integer(&conn, once).unsigned_abs(), published.get());
        assert_eq!(
            integer(&conn, "SELECT count(*) FROM inbox_event WHERE status = 'processed'").unsigned_abs(),
            published.get()
        );
        assert_eq!(bus.stats().unwrap().processed, published.get());
    }
}

#[test]
fn what_a_worker_has_no_room_for_waits_for_it() {
    let (_dir, path, bus) = noting(Postbox::builder().settings(sized(1)));
    let (entered, latch) = (Tally::default(), Latch::default());
    bus.subscribe(Subscription::new("a", "c", blocking(&entered, &latch))).unwrap();
    let worker = bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    let first = bus.publish(event("a")).unwrap();
    wait_until("the first one runs", || entered.get() == 1);
    let second = bus.publish(event("a")).unwrap();
    assert_eq!(last_seen(&path), LEFT_TO_THE_WORKER);
    assert_eq!(status(&bus, second), (OutboxStatus::Pending, 0));
    latch.open();
    wait_until("both are processed", || {
        [first, second].iter().all(|id| status(&bus, *id) == (OutboxStatus::Processed, 1))
    });
    drop(worker);
}

#[test]
fn nothing_is_handed_over_that_the_worker_would_not_claim() {
    let (_dir, path, bus) = noting(Postbox::builder());
    let tally = Tally::default();
    bus.subscribe(Subscription::new("a", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    publish_until_handed_over(&bus, &path, || {
        bus.publish(event("a")).unwrap();
    });

    bus.publish(event("a").delay(LIMIT)).unwrap();
    assert_eq!(last_seen(&path), LEFT_TO_THE_WORKER, "it is delayed");
    bus.publish(event("unknown")).unwrap();
    assert_eq!(last_seen(&path), LEFT_TO_THE_WORKER, "nobody subscribes to it");
    bus.update_settings(|settings| settings.processor_enabled = false).unwrap();
    let off = bus.publish(event("a")).unwrap();
    assert_eq!(last_seen(&path), LEFT_TO_THE_WORKER, "the processor is off");
    assert_eq!(status(&bus, off), (OutboxStatus::Pending, 0));
    bus.update_settings(|settings| settings.processor_enabled = true).unwrap();
    wait_until("it is on again", || status(&bus, off) == (OutboxStatus::Processed, 1));
    drop(worker);
}

/// The sleeping worker would not renew in time.
#[test]
fn short_leases_are_left_to_the_worker() {
    let (_dir, path, bus) = noting(Postbox::builder());
    bus.update_settings(|settings| settings.processing_lease_ms = 1_000).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("a", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    for round in 1..=10 {
        bus.publish(event("a")).unwrap();
        assert_eq!(last_seen(&path), LEFT_TO_THE_WORKER);
        tally.wait_for(round);
    }
    drop(worker);
}

/// A place with the worker is for one event: it comes back when the event was not inserted, or was there already.
#[test]
fn a_publish_that_fails_or_repeats_a_key_gives_its_place_back() {
    let (_dir, path, bus) = noting(Postbox::builder().settings(sized(1)));
    let tally = Tally::default();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    raw(&path)
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON outbox_event WHEN NEW.event_name = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .unwrap();
    let worker = bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    for round in 0..5 {
        bus.publish(event("bad")).unwrap_err();
        publish_until_handed_over(&bus, &path, || {
            bus.publish(event("a")).unwrap();
        });
        let key = || event("keyed").idempotency_key(format!("key {round}"));
        let id = bus.publish(key()).unwrap();
        wait_until("it is processed", || status(&bus, id).0 == OutboxStatus::Processed);
        for _ in 0..3 {
            assert_eq!(bus.publish(key()).unwrap(), id);
        }
        publish_until_handed_over(&bus, &path, || {
            bus.publish(event("a")).unwrap();
        });
        assert_eq!(status(&bus, id), (OutboxStatus::Processed, 1));
    }
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    assert_eq!(tally.get(), bus.stats().unwrap().processed);
}

/// The worker goes while a publisher that has a place with it waits for the write lock: nobody is left to hand the event to.
#[test]
fn an_event_whose_worker_stops_before_its_commit_is_given_back_unburned() {
    let (_dir, path, bus) = noting(Postbox::builder());
    let tally = Tally::default();
    bus.subscribe(Subscription::new("a", "c", counting(&tally))).unwrap();
    wait_until("the worker has stopped under a publisher", || {
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        publish_until_handed_over(&bus, &path, || {
            bus.publish(event("a")).unwrap();
        });
        wait_until("all are processed", || bus.stats().unwrap().processed == bus.stats().unwrap().total);
        let before = tally.get();
        let other = raw(&path);
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let publisher = {
            let bus = bus.clone();
            thread::spawn(move || bus.publish(event("a")).unwrap())
        };
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        other.execute_batch("COMMIT").unwrap();
        let id = publisher.join().unwrap();
        assert_eq!(status(&bus, id), (OutboxStatus::Pending, 0));
        assert_eq!(tally.get(), before);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(status(&bus, id), (OutboxStatus::Processed, 1));
        last_seen(&path) == HANDED_OVER
    });
}

/// Whoever subscribes before the commit returns is a consumer of the event; whoever has left is none.
#[test]
fn consumers_are_those_of_the_moment_of_the_commit() {
    let (_dir, path, bus) = noting(Postbox::builder());
    let [first, leaver, second] = [(); 3].map(|()| Tally::default());
    bus.subscribe(Subscription::new("a", "first", counting(&first))).unwrap();
    let worker = bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    wait_until("an event is handed over under a changing registry", || {
        bus.subscribe(Subscription::new("a", "leaver", counting(&leaver))).unwrap();
        wait_until("all are processed", || bus.stats().unwrap().processed == bus.stats().unwrap().total);
        let before = [first.get(), leaver.get(), second.get()];
        let other = raw(&path);
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let publisher = {
            let bus = bus.clone();
            thread::spawn(move || bus.publish(event("a")).unwrap())
        };
        // It has a place with the worker, or will ask for one: either way it is not committed yet.
        thread::yield_now();
        bus.subscribe(Subscription::new("a", "second", counting(&second))).unwrap();
        assert_eq!(bus.registry().remove_by_consumer_prefix("leaver"), 1);
        other.execute_batch("COMMIT").unwrap();
        let id = publisher.join().unwrap();
        wait_until("it is processed", || status(&bus, id) == (OutboxStatus::Processed, 1));
        assert_eq!([first.get(), leaver.get(), second.get()], [before[0] + 1, before[1], before[2] + 1]);
        bus.registry().remove_by_consumer_prefix("second");
        last_seen(&path) == HANDED_OVER
    });
    drop(worker);
}

/// The box closes meanwhile: the next one to open the file must not have to wait for a lease to run out.
#[test]
fn an_event_whose_box_closes_before_its_commit_returned_is_pending_in_the_file() {
    let (_dir, path, bus) = noting(Postbox::builder());
    drop(bus);
    wait_until("the box has closed under a publisher", || {
        let bus = Postbox::builder().busy_timeout(LIMIT).open(&path).unwrap();
        let tally = Tally::default();
        bus.subscribe(Subscription::new("a", "c", counting(&tally))).unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        let before = tally.get(); // what an earlier round has left pending
        let other = raw(&path);
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let publisher = {
            let bus = bus.clone();
            thread::spawn(move || bus.publish(event("a")))
        };
        let closer = {
            let bus = bus.clone();
            thread::spawn(move || bus.close())
        };
        wait_until("the worker has stopped", || !worker.is_running());
        other.execute_batch("COMMIT").unwrap();
        closer.join().unwrap().unwrap();
        // Whoever was too late was refused.
        if let Ok(id) = publisher.join().unwrap() {
            drop((worker, bus));
            let bus = Postbox::open(&path).unwrap();
            assert_eq!(status(&bus, id), (OutboxStatus::Pending, 0));
            assert_eq!(tally.get(), before);
            bus.close().unwrap();
            return last_seen(&path) == HANDED_OVER;
        }
        false
    });
}

#[test]
fn many_publishers_and_a_worker_process_each_event_once() {
    const EACH: u64 = 150;
    let (_dir, path, bus) = noting(Postbox::builder());
    bus.transaction(|tx| -> postbox::Result<()> { Ok(tx.execute_batch("CREATE TABLE effect (id BLOB)")?) })
        .unwrap();
    bus.subscribe(Subscription::transactional("a", "c", |event: &Event, tx: &Tx<'_>| {
        tx.execute("INSERT INTO effect VALUES (?1)", [event.id().as_uuid()])?;
        Ok(())
    }))
    .unwrap();
    let plain = Tally::default();
    bus.subscribe(Subscription::new("a", "plain", counting(&plain))).unwrap();
    let worker = bus.start().unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    bus.publish(event("a")).unwrap();
                }
            });
        }
    });
    plain.wait_for(4 * EACH);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    let conn = raw(&path);
    assert_eq!(integer(&conn, "SELECT count(DISTINCT id) FROM effect").unsigned_abs(), 4 * EACH);
    assert_eq!(integer(&conn, "SELECT count(*) FROM effect").unsigned_abs(), 4 * EACH);
    assert_eq!((plain.get(), bus.stats().unwrap().processed), (4 * EACH, 4 * EACH));
}
