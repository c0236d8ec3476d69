//! Stopping a worker: what runs may end, what was not begun is given back, and nobody waits for ever.

#[path = "support/files.rs"]
mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use postbox::{
    Context, Error, Event, HandlerError, OutboxStatus, Postbox, Settings, ShutdownReport, Subscription, Tx,
    Worker,
};
use support::{
    LIMIT, Latch, Tally, blocking, counting, event, integer, listing, manual_clock, raw, status, unhurried,
    wait_until,
};

const SECOND: Duration = Duration::from_secs(1);

fn boxes(folder: &Path) -> [Postbox; 2] {
    [Postbox::open(folder.join("app.db")).unwrap(), Postbox::open_in_memory().unwrap()]
}

/// A plain handler that counts itself in and ends once it is cancelled.
fn until_cancelled(
    entered: &Tally,
) -> impl Fn(&Event, &Context<'_>) -> postbox::HandlerResult + Send + Sync + 'static {
    let entered = entered.clone();
    move |_, cx| {
        entered.add();
        wait_until("it is cancelled", || cx.is_cancelled());
        Ok(())
    }
}

fn parts(report: ShutdownReport) -> (bool, usize) {
    (report.clean, report.unfinished)
}

#[test]
fn a_handler_that_runs_may_end_within_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let entered = Tally::default();
        bus.subscribe(Subscription::new("*", "c", until_cancelled(&entered))).unwrap();
        let worker = bus.start().unwrap();
        let ids = bus.publish_all([event("a"), event("b")]).unwrap();
        entered.wait_for(2);
        let start = Instant::now();
        assert_eq!(parts(worker.shutdown(LIMIT).unwrap()), (true, 0));
        assert!(start.elapsed() < LIMIT);
        assert!(ids.iter().all(|id| status(&bus, *id) == (OutboxStatus::Processed, 1)));
        assert!(ids.iter().all(|id| bus.inbox().is_processed(*id, "c").unwrap()));
    }
}

#[test]
fn failures_of_the_last_moment_are_recorded_too() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let entered = Tally::default();
        let inside = entered.clone();
        bus.subscribe(Subscription::new("*", "c", move |_: &Event, cx: &Context<'_>| {
            inside.add();
            wait_until("it is cancelled", || cx.is_cancelled());
            Err(HandlerError::retry("interrupted"))
        }))
        .unwrap();
        let worker = bus.start().unwrap();
        let id = bus.publish(event("a")).unwrap();
        entered.wait_for(1);
        assert_eq!(parts(worker.shutdown(LIMIT).unwrap()), (true, 0));
        assert_eq!(status(&bus, id), (OutboxStatus::Pending, 1));
        let row = bus.outbox().get(id).unwrap().unwrap();
        assert_eq!(row.last_error.as_deref(), Some("interrupted"));
        assert!(row.available_at > row.updated_at, "it waits for its backoff");
    }
}

/// How long a shutdown with this limit took, where one handler hangs and another ends; `None` when the limit was too short for the
/// other one to end.
fn shut_down_beside_one_that_hangs(bus: &Postbox, limit: Duration) -> Option<Duration> {
    let (entered, latch) = (Tally::default(), Latch::default());
    bus.subscribe(Subscription::new("hangs", "c", blocking(&entered, &latch))).unwrap();
    bus.subscribe(Subscription::new("ends", "c", until_cancelled(&entered))).unwrap();
    let worker = bus.start().unwrap();
    let hangs = bus.publish(event("hangs")).unwrap();
    let ends = bus.publish(event("ends")).unwrap();
    entered.wait_for(2);
    let start = Instant::now();
    let report = worker.shutdown(limit).unwrap();
    let took = start.elapsed();
    assert_eq!(status(bus, hangs), (OutboxStatus::Processing, 1));
    assert!(!bus.stats().unwrap().worker_running);
    latch.open();
    assert!(took >= limit, "{took:?} of {limit:?}");
    assert!(!report.clean);
    if report.unfinished == 2 {
        return None;
    }
    assert_eq!((report.unfinished, status(bus, ends)), (1, (OutboxStatus::Processed, 1)));
    Some(took)
}

#[test]
fn what_still_runs_at_the_limit_is_counted_and_not_waited_for() {
    for kind in 0..2 {
        // What a busy machine adds comes and goes.
        let limits = [SECOND / 5, SECOND, 10 * SECOND].into_iter().flat_map(|limit| [limit; 3]);
        let mut tries = limits.map(|limit| {
            let dir = tempfile::tempdir().unwrap();
            (limit, shut_down_beside_one_that_hangs(&boxes(dir.path())[kind], limit))
        });
        assert!(
            tries.any(|(limit, took)| took.is_some_and(|took| took < limit + 2 * SECOND)),
            "each time it waited for longer, or the one that ends was not recorded"
        );
    }
}

#[test]
fn a_limit_of_nothing_and_one_without_end_both_work() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let (entered, latch) = (Tally::default(), Latch::default());
        bus.subscribe(Subscription::new("hangs", "c", blocking(&entered, &latch))).unwrap();
        assert_eq!(parts(bus.start().unwrap().shutdown(Duration::ZERO).unwrap()), (true, 0));
        assert_eq!(parts(bus.start().unwrap().shutdown(Duration::MAX).unwrap()), (true, 0));
        let worker = bus.start().unwrap();
        bus.publish(event("hangs")).unwrap();
        entered.wait_for(1);
        assert_eq!(parts(worker.shutdown(Duration::ZERO).unwrap()), (false, 1));
        latch.open();
    }
}

/// "They are delivered again once their lease has run out", also by the box whose handler hung: it never takes over
/// from itself while it works on an event, but it has given this one up.
#[test]
fn what_was_unfinished_at_the_limit_is_delivered_again_after_its_lease_by_the_same_box() {
    let dir = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let builder = || Postbox::builder().clock(clock.clone());
    for bus in [builder().open(dir.path().join("app.db")).unwrap(), builder().open_in_memory().unwrap()] {
        let (entered, latch) = (Tally::default(), Latch::default());
        bus.subscribe(Subscription::new("*", "c", blocking(&entered, &latch))).unwrap();
        let worker = bus.start().unwrap();
        let id = bus.publish(event("a")).unwrap();
        entered.wait_for(1);
        assert_eq!(parts(worker.shutdown(Duration::from_millis(50)).unwrap()), (false, 1));
        latch.open();
        assert_eq!(bus.drain().unwrap(), 0, "its lease has not run out");
        clock.advance(SECOND * 31);
        let worker = bus.start().unwrap();
        assert!(entered.reaches(2, LIMIT), "it is never delivered again");
        assert!(worker.wait_for_startup_drain(LIMIT));
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        assert_eq!(status(&bus, id), (OutboxStatus::Processed, 2));
        assert_eq!(entered.get(), 2);
    }
}

/// The first box lives on, without a worker: nobody renews that lease any more.
#[test]
fn what_was_unfinished_at_the_limit_is_delivered_after_its_lease_by_another_box() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let clock = manual_clock();
    let open = || Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    let (bus, other) = (open(), open());
    let (entered, latch, tally) = (Tally::default(), Latch::default(), Tally::default());
    bus.subscribe(Subscription::new("*", "c", blocking(&entered, &latch))).unwrap();
    other.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    let id = bus.publish(event("a")).unwrap();
    entered.wait_for(1);
    assert_eq!(parts(worker.shutdown(Duration::ZERO).unwrap()), (false, 1));
    clock.advance(SECOND * 29);
    assert_eq!(other.drain().unwrap(), 0);
    clock.advance(SECOND * 2);
    let worker = other.start().unwrap();
    assert!(tally.reaches(1, LIMIT), "it is never delivered");
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    assert_eq!(status(&other, id), (OutboxStatus::Processed, 2));
    latch.open();
}

#[test]
fn an_event_that_was_given_up_at_the_limit_goes_to_no_further_consumer() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let (entered, latch, further, ended) =
            (Tally::default(), Latch::default(), Tally::default(), Arc::new(()));
        let (inside, wait, held) = (entered.clone(), latch.clone(), Arc::clone(&ended));
        bus.subscribe_many([
            Subscription::new("*", "hangs", move |_: &Event, _: &Context<'_>| {
                assert!(Arc::strong_count(&held) > 1);
                inside.add();
                wait.wait();
                Ok(())
            })
            .priority(1),
            Subscription::new("*", "plain", counting(&further)),
        ])
        .unwrap();
        let worker = bus.start().unwrap();
        bus.publish(event("a")).unwrap();
        entered.wait_for(1);
        assert_eq!(parts(worker.shutdown(Duration::ZERO).unwrap()), (false, 1));
        bus.registry().clear();
        latch.open();
        wait_until("the delivery has ended", || Arc::strong_count(&ended) == 1);
        assert_eq!(further.get(), 0);
    }
}

#[test]
fn what_a_handler_says_after_the_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let (entered, latch, dropped) = (Tally::default(), Latch::default(), Arc::new(()));
    let (inside, wait, held) = (entered.clone(), latch.clone(), Arc::clone(&dropped));
    bus.subscribe(Subscription::new("*", "c", move |_: &Event, _: &Context<'_>| {
        assert!(Arc::strong_count(&held) > 1);
        inside.add();
        wait.wait();
        Ok(())
    }))
    .unwrap();
    let worker = bus.start().unwrap();
    let id = bus.publish(event("a")).unwrap();
    entered.wait_for(1);
    assert_eq!(parts(worker.shutdown(Duration::ZERO).unwrap()), (false, 1));
    bus.registry().clear();
    latch.open();
    wait_until("the handler has ended", || Arc::strong_count(&dropped) == 1);
    assert_eq!(status(&bus, id), (OutboxStatus::Processing, 1));
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM inbox_event"), 0);
}

#[test]
fn what_was_claimed_and_not_begun_is_given_back_with_no_attempt_spent() {
    let dir = tempfile::tempdir().unwrap();
    for file in [true, false] {
        let builder = Postbox::builder().handler_threads(1);
        let bus =
            if file { builder.open(dir.path().join("app.db")) } else { builder.open_in_memory() }.unwrap();
        let entered = Tally::default();
        bus.subscribe(Subscription::new("plain", "c", until_cancelled(&entered))).unwrap();
        bus.subscribe(Subscription::transactional("tx", "c", |_: &Event, _: &Tx<'_>| Ok(()))).unwrap();
        let names = ["plain", "plain", "tx", "tx", "plain", "tx"];
        let ids = bus.publish_all(names.map(event)).unwrap();
        let worker = bus.start().unwrap();
        entered.wait_for(1);
        wait_until("all are claimed", || bus.stats().unwrap().processing == 6);
        assert_eq!(parts(worker.shutdown(LIMIT).unwrap()), (true, 0));
        assert_eq!(entered.get(), 1, "nothing new is begun");
        assert_eq!(status(&bus, ids[0]), (OutboxStatus::Processed, 1));
        for id in &ids[1..] {
            assert_eq!(status(&bus, *id), (OutboxStatus::Pending, 0));
        }
        // They are due at once, and their first attempt is still to come.
        bus.registry().clear();
        let attempts = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&attempts);
        bus.subscribe(Subscription::new("*", "later", move |event: &Event, _: &Context<'_>| {
            seen.lock().unwrap().push(event.attempt());
            Ok(())
        }))
        .unwrap();
        assert_eq!(bus.drain().unwrap(), 5);
        assert_eq!(*attempts.lock().unwrap(), [1; 5]);
    }
}

/// Transactional deliveries share a thread and its commits: those whose handler has not begun are not begun.
#[test]
fn transactional_deliveries_that_wait_for_their_turn_are_given_back_too() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Postbox::builder().handler_threads(2).open(dir.path().join("app.db")).unwrap();
    let (entered, cancelled) = (Tally::default(), Tally::default());
    let (began, latch) = (Tally::default(), Latch::default());
    let (inside, told) = (entered.clone(), cancelled.clone());
    bus.subscribe(Subscription::new("sees it", "c", move |_: &Event, cx: &Context<'_>| {
        inside.add();
        wait_until("it is cancelled", || cx.is_cancelled());
        told.add();
        Ok(())
    }))
    .unwrap();
    let (begins, wait) = (began.clone(), latch.clone());
    bus.subscribe(Subscription::transactional("tx", "c", move |_: &Event, _: &Tx<'_>| {
        begins.add();
        wait.wait();
        Ok(())
    }))
    .unwrap();
    let ids = bus.publish_all(["sees it", "tx", "tx", "tx", "tx"].map(event)).unwrap();
    let worker = bus.start().unwrap();
    entered.wait_for(1);
    began.wait_for(1);
    let report = thread::scope(|scope| {
        let report = scope.spawn(|| worker.shutdown(LIMIT).unwrap());
        cancelled.wait_for(1);
        latch.open();
        report.join().unwrap()
    });
    assert_eq!(parts(report), (true, 0));
    assert_eq!(began.get(), 1, "handlers began after the shutdown had");
    assert_eq!(status(&bus, ids[1]), (OutboxStatus::Processed, 1));
    for id in &ids[2..] {
        assert_eq!(status(&bus, *id), (OutboxStatus::Pending, 0));
    }
}

#[test]
fn dropping_a_worker_stops_it_and_waits() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let entered = Tally::default();
        bus.subscribe(Subscription::new("*", "c", until_cancelled(&entered))).unwrap();
        let worker = bus.start().unwrap();
        let id = bus.publish(event("a")).unwrap();
        entered.wait_for(1);
        drop(worker);
        assert_eq!(status(&bus, id), (OutboxStatus::Processed, 1));
        assert!(!bus.stats().unwrap().worker_running);
    }
}

#[test]
fn closing_a_box_stops_its_worker_and_records_what_came_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let entered = Tally::default();
    bus.subscribe(Subscription::new("*", "c", until_cancelled(&entered))).unwrap();
    let worker = bus.start().unwrap();
    bus.publish(event("a")).unwrap();
    entered.wait_for(1);
    bus.clone().close().unwrap();
    assert!(!worker.is_running());
    assert_eq!(listing(dir.path()), ["app.db"]);
    assert!(worker.shutdown(LIMIT).unwrap().clean, "it says what the close came to");
    drop(bus);
    let bus = Postbox::open(&path).unwrap();
    assert_eq!(bus.stats().unwrap().processed, 1);
}

#[test]
fn a_worker_keeps_its_box_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let tally = Tally::default();
    let bus = Postbox::open(&path).unwrap();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    drop(bus);
    assert!(worker.is_running());
    let other = Postbox::open(&path).unwrap();
    other.publish(event("a")).unwrap();
    tally.wait_for(1);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    other.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
}

/// It would wait for itself: the worker is told to stop, and not waited for.
#[test]
fn a_handler_that_shuts_its_own_worker_down_gets_an_error_and_the_worker_ends() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let (slot, reports) = (Arc::new(Mutex::new(None::<Worker>)), Arc::new(Mutex::new(Vec::new())));
        let (ready, ended) = (Latch::default(), Tally::default());
        let (from, into, wait, ends) =
            (Arc::clone(&slot), Arc::clone(&reports), ready.clone(), ended.clone());
        bus.subscribe(Subscription::new("*", "c", move |_: &Event, _: &Context<'_>| {
            wait.wait();
            let worker = from.lock().unwrap().take().unwrap();
            into.lock().unwrap().push(worker.shutdown(Duration::from_millis(200)));
            ends.add();
            Ok(())
        }))
        .unwrap();
        *slot.lock().unwrap() = Some(bus.start().unwrap());
        bus.publish(event("a")).unwrap();
        ready.open();
        assert!(ended.reaches(1, LIMIT), "it waits for itself");
        let report = reports.lock().unwrap().pop().unwrap();
        assert!(matches!(report, Err(Error::Reentrant { operation: "shutdown", .. })), "{report:?}");
        wait_until("the worker has ended", || !bus.stats().unwrap().worker_running);
        assert_eq!(bus.stats().unwrap().processed, 1);
        bus.close().unwrap();
    }
}

#[test]
fn what_would_wait_for_the_handler_itself_is_an_error_inside_it() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let errors = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&errors);
        let tally = Tally::default();
        let counted = tally.clone();
        bus.subscribe(Subscription::new("*", "c", move |_: &Event, cx: &Context<'_>| {
            let bus = cx.postbox();
            let results = [
                bus.drain().map(drop),
                bus.process_batch().map(drop),
                bus.clone().close(),
                bus.start().map(drop),
            ];
            into.lock().unwrap().extend(results.map(Result::unwrap_err));
            counted.add();
            Ok(())
        }))
        .unwrap();
        let worker = bus.start().unwrap();
        bus.publish(event("a")).unwrap();
        tally.wait_for(1);
        let errors = errors.lock().unwrap();
        let [drain, batch, close, start] = &errors[..] else { panic!("{errors:?}") };
        for reentrant in [drain, batch, close] {
            assert!(matches!(reentrant, Error::Reentrant { .. }), "{reentrant:?}");
        }
        assert!(matches!(start, Error::WorkerRunning), "{start:?}");
        assert!(worker.is_running());
    }
}

#[test]
fn shutting_down_again_and_again_under_load_loses_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let defaults = Settings { batch_size: 20, ..Settings::default() };
    let bus = unhurried().settings(defaults).open(&path).unwrap();
    bus.transaction(|tx| -> postbox::Result<()> { Ok(tx.execute_batch("CREATE TABLE effect (id TEXT)")?) })
        .unwrap();
    let plain = Tally::default();
    bus.subscribe(Subscription::new("*", "plain", counting(&plain))).unwrap();
    bus.subscribe(Subscription::transactional("*", "tx", |event: &Event, tx: &Tx<'_>| {
        tx.execute("INSERT INTO effect VALUES (?1)", [event.id().to_string()])?;
        Ok(())
    }))
    .unwrap();
    for round in 1..=30 {
        let worker = bus.start().unwrap();
        bus.publish_all((0..40).map(|_| event("a"))).unwrap();
        plain.reaches(round * 20, LIMIT);
        assert_eq!(parts(worker.shutdown(LIMIT).unwrap()), (true, 0));
        assert_eq!(bus.stats().unwrap().processing, 0, "everything was given back");
    }
    bus.drain().unwrap();
    let stats = bus.stats().unwrap();
    assert_eq!((stats.processed, stats.total), (1_200, 1_200));
    assert_eq!(plain.get(), 1_200, "a clean shutdown doubles nothing");
    let conn = raw(&path);
    assert_eq!(integer(&conn, "SELECT count(*) FROM effect"), 1_200);
    assert_eq!(integer(&conn, "SELECT count(DISTINCT id) FROM effect"), 1_200);
    assert_eq!(integer(&conn, "SELECT max(attempt_count) FROM outbox_event"), 1);
}
