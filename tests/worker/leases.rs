//! Leases of a running worker: kept while handlers run, and gone when somebody takes them.

use std::path::Path;
use std::time::Duration;

use postbox::testing::ManualClock;
use postbox::{Context, Event, HandlerError, OutboxStatus, Postbox, Settings, Subscription, Tx};

use crate::SECOND;
use crate::support::{
    LIMIT, Latch, Tally, blocking, counting, event, integer, manual_clock, raw, start_of_time, status,
    unhurried, wait_until,
};

fn short_lease() -> Settings {
    Settings { processing_lease_ms: 1_000, ..Settings::default() }
}

/// Real time: the lease is renewed by it.
#[test]
fn a_handler_slower_than_its_lease_runs_once_beside_a_hungry_worker_on_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let open = || unhurried().settings(short_lease()).open(&path).unwrap();
    let (slow, hungry) = (open(), open());
    let (entered, latch, stolen) = (Tally::default(), Latch::default(), Tally::default());
    slow.subscribe(Subscription::new("*", "c", blocking(&entered, &latch))).unwrap();
    hungry.subscribe(Subscription::new("*", "c", counting(&stolen))).unwrap();
    let id = slow.publish(event("a")).unwrap();
    let worker = slow.start().unwrap();
    entered.wait_for(1);
    let rival = hungry.start().unwrap();
    assert!(!stolen.reaches(1, Duration::from_millis(2_500)), "absence is what is tested");
    // Nobody takes from an owner that is seen to live; the lease is what counts where that cannot be seen.
    assert_eq!(status(&slow, id), (OutboxStatus::Processing, 1));
    wait_until("its lease is renewed", || {
        let row = slow.outbox().get(id).unwrap().unwrap();
        row.available_at - row.created_at > 2 * SECOND
    });
    latch.open();
    wait_until("it is processed", || status(&slow, id) == (OutboxStatus::Processed, 1));
    assert_eq!((entered.get(), stolen.get()), (1, 0));
    assert!(rival.is_running());
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

/// Takes the event's lease away, as another process would that thinks the owner dead.
fn steal(path: &Path) {
    let stolen = raw(path)
        .execute(
            "UPDATE outbox_event SET lease_id = 123, available_at = 253402300799999998, attempt_count = 2",
            [],
        )
        .unwrap();
    assert_eq!(stolen, 1);
}

fn assert_still_stolen(path: &Path) {
    let conn = raw(path);
    let row = conn
        .query_row("SELECT status, lease_id, attempt_count FROM outbox_event", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })
        .unwrap();
    assert_eq!(row, ("processing".to_owned(), 123, 2));
    assert_eq!(integer(&conn, "SELECT count(*) FROM inbox_event"), 0);
}

#[test]
fn a_handler_is_cancelled_when_its_lease_is_taken_and_its_outcome_is_refused() {
    for outcome in ["succeeds", "fails", "dies"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let bus = Postbox::builder().settings(short_lease()).open(&path).unwrap();
        let (entered, cancelled) = (Tally::default(), Tally::default());
        let (inside, told) = (entered.clone(), cancelled.clone());
        bus.subscribe(Subscription::new("*", "c", move |_: &Event, cx: &Context<'_>| {
            assert!(!cx.is_cancelled());
            inside.add();
            wait_until("it is cancelled", || cx.is_cancelled());
            told.add();
            match outcome {
                "succeeds" => Ok(()),
                "fails" => Err(HandlerError::retry("late")),
                _ => Err(HandlerError::dead_letter("late")),
            }
        }))
        .unwrap();
        bus.subscribe(Subscription::transactional("*", "tx", |_: &Event, _: &Tx<'_>| {
            panic!("not for a lost event")
        }))
        .unwrap();
        let worker = bus.start().unwrap();
        bus.publish(event("a")).unwrap();
        entered.wait_for(1);
        steal(&path);
        cancelled.wait_for(1);
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{outcome}");
        assert_still_stolen(&path);
        // The renewal found it lost, and the handler's outcome came after that: one claim.
        assert_eq!(bus.stats().unwrap().lost_leases, 1, "{outcome}");
    }
}

/// The lease is gone, and the worker has not noticed it yet when the handler ends.
#[test]
fn an_outcome_that_comes_after_the_lease_was_taken_is_refused() {
    for transactional_next in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let bus = Postbox::open(&path).unwrap(); // its lease of 30 seconds is renewed every 10
        let (entered, latch, ran) = (Tally::default(), Latch::default(), Tally::default());
        bus.subscribe(Subscription::new("*", "c", blocking(&entered, &latch)).priority(1)).unwrap();
        if transactional_next {
            let ran = ran.clone();
            bus.subscribe(Subscription::transactional("*", "tx", move |_: &Event, _: &Tx<'_>| {
                ran.add();
                Ok(())
            }))
            .unwrap();
        }
        let worker = bus.start().unwrap();
        bus.publish(event("a")).unwrap();
        entered.wait_for(1);
        steal(&path);
        latch.open();
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        assert_still_stolen(&path);
        assert_eq!(ran.get(), 0);
        assert_eq!(bus.stats().unwrap().lost_leases, 1);
    }
}

/// Somebody claimed every event, for this long, and was never heard of again.
fn abandon(path: &Path, lease: Duration) {
    let until = (start_of_time() + lease).unix_timestamp() * 1_000_000;
    let sql =
        "UPDATE outbox_event SET status = 'processing', attempt_count = 1, lease_id = 77, available_at = ?1";
    assert!(raw(path).execute(sql, [until]).unwrap() > 0);
}

#[test]
fn a_claim_whose_lease_ran_out_is_taken_over_by_a_running_worker() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let clock: ManualClock = manual_clock();
    let bus = Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    let id = bus.publish(event("a")).unwrap();
    abandon(&path, SECOND * 30);
    let _worker = bus.start().unwrap();
    clock.advance(Duration::from_millis(29_999));
    bus.notify();
    assert!(!tally.reaches(1, Duration::from_millis(200)));
    clock.advance(Duration::from_millis(1));
    bus.notify();
    tally.wait_for(1);
    wait_until("it is processed", || status(&bus, id) == (OutboxStatus::Processed, 2));
}

/// An event that is taken over runs alone at first, since it may be what killed its last owner. When its handler takes
/// its time, or hangs, that must not keep everything else from being delivered.
#[test]
fn an_event_that_is_taken_over_and_hangs_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::builder().settings(short_lease()).handler_threads(2).open(&path).unwrap();
    let (entered, latch, quick) = (Tally::default(), Latch::default(), Tally::default());
    bus.subscribe(Subscription::new("hangs", "c", blocking(&entered, &latch))).unwrap();
    bus.subscribe(Subscription::new("quick", "c", counting(&quick))).unwrap();
    bus.publish(event("hangs")).unwrap();
    raw(&path).execute("UPDATE outbox_event SET available_at = 1", []).unwrap();
    raw(&path)
        .execute("UPDATE outbox_event SET status = 'processing', attempt_count = 1, lease_id = 77", [])
        .unwrap();
    bus.publish_all((0..20).map(|_| event("quick"))).unwrap();
    let worker = bus.start().unwrap();
    entered.wait_for(1);
    quick.wait_for(20);
    latch.open();
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

#[test]
fn a_handler_that_hangs_since_the_last_shutdown_does_not_keep_others_from_being_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let clock = manual_clock();
    let bus = Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    let (entered, latch, tally) = (Tally::default(), Latch::default(), Tally::default());
    bus.subscribe(Subscription::new("hangs", "c", blocking(&entered, &latch))).unwrap();
    bus.subscribe(Subscription::new("quick", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    bus.publish(event("hangs")).unwrap();
    entered.wait_for(1);
    assert_eq!(worker.shutdown(Duration::ZERO).unwrap().unfinished, 1);

    let abandoned = bus.publish(event("quick")).unwrap();
    abandon(&path, SECOND * 30);
    clock.advance(SECOND * 31);
    bus.publish(event("quick")).unwrap();
    let worker = bus.start().unwrap();
    tally.wait_for(2);
    wait_until("it is processed", || status(&bus, abandoned) == (OutboxStatus::Processed, 2));
    latch.open();
    drop(worker);
}
