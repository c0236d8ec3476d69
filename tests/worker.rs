//! The worker: what wakes it, what it takes, and what it leaves alone.

#[path = "support/files.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use postbox::testing::ManualClock;
use postbox::{Context, Error, Event, HandlerError, OutboxStatus, Postbox, Settings, Subscription, Tx};
use support::{
    LIMIT, Latch, ON_PURPOSE, Process, Tally, blocking, counting, event, given, integer, manual_clock,
    quiet_panics_on_purpose, raw, start_of_time, status, wait_until,
};
use time::OffsetDateTime;

const SECOND: Duration = Duration::from_secs(1);

/// The worker looks around once a second by itself. What is told to it must be much faster than that, every time.
const ROUNDS: u64 = 12;
const AT_ONCE: Duration = Duration::from_secs(4);

fn boxes(folder: &Path) -> [Postbox; 2] {
    [Postbox::open(folder.join("app.db")).unwrap(), Postbox::open_in_memory().unwrap()]
}

fn sized(batch_size: u32) -> Settings {
    Settings { batch_size, ..Settings::default() }
}

#[test]
fn a_sleeping_worker_is_woken_by_every_way_to_publish() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let tally = Tally::default();
        bus.subscribe(Subscription::new("last", "c", counting(&tally))).unwrap();
        bus.subscribe(Subscription::transactional("first", "tx", |_: &Event, tx: &Tx<'_>| {
            tx.publish(event("second"))?;
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::new("second", "plain", |_: &Event, cx: &Context<'_>| {
            cx.publish(event("last"))?;
            Ok(())
        }))
        .unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        let start = Instant::now();
        for round in 0..ROUNDS {
            match round % 4 {
                0 => drop(bus.publish(event("last")).unwrap()),
                1 => drop(bus.publish_all([event("last")]).unwrap()),
                2 => drop(bus.transaction(|tx| tx.publish(event("last"))).unwrap()),
                _ => drop(bus.publish(event("first")).unwrap()),
            }
            tally.wait_for(round + 1);
        }
        assert!(start.elapsed() < AT_ONCE, "{:?} for {ROUNDS} events", start.elapsed());
    }
}

#[test]
fn what_the_applications_own_connection_commits_is_noticed_at_once_with_notify() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    let _worker = bus.start().unwrap();
    let mut conn = raw(&path);
    let start = Instant::now();
    for round in 0..ROUNDS {
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        bus.publish_in(&tx, event("a")).unwrap();
        tx.commit().unwrap();
        bus.notify();
        tally.wait_for(round + 1);
    }
    assert!(start.elapsed() < AT_ONCE, "{:?} for {ROUNDS} events", start.elapsed());
}

#[test]
fn what_the_applications_own_connection_commits_is_noticed_within_about_a_second_without_notify() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    let mut conn = raw(&path);
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    bus.publish_in(&tx, event("a")).unwrap();
    tx.commit().unwrap();
    assert!(tally.reaches(1, 2 * SECOND), "the polling interval is 5 seconds");
}

#[test]
fn delayed_events_become_due_at_their_time() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let seen: Arc<Mutex<Vec<(i64, time::Duration)>>> = Arc::default();
        let (tally, late) = (Tally::default(), Arc::clone(&seen));
        let counted = tally.clone();
        bus.subscribe(Subscription::new("*", "c", move |event: &Event, _: &Context<'_>| {
            let delay = event.payload()["delay_ms"].as_i64().unwrap();
            let lateness =
                OffsetDateTime::now_utc() - event.timestamp() - time::Duration::milliseconds(delay);
            late.lock().unwrap().push((delay, lateness));
            counted.add();
            Ok(())
        }))
        .unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        let delays = [250_u64, 50, 400, 100, 150];
        for delay_ms in delays {
            let payload = serde_json::json!({ "delay_ms": delay_ms });
            bus.publish(event("later").payload(payload).delay(Duration::from_millis(delay_ms))).unwrap();
        }
        tally.wait_for(5);
        let seen = seen.lock().unwrap();
        assert_eq!(seen.iter().map(|(delay, _)| *delay).collect::<Vec<_>>(), [50, 100, 150, 250, 400]);
        for (delay, lateness) in seen.iter() {
            assert!(!lateness.is_negative(), "the one of {delay} ms came {lateness} before its time");
        }
        // The worker's own look-around would be about half a second late on average.
        let total: time::Duration = seen.iter().map(|(_, lateness)| *lateness).sum();
        assert!(total < time::Duration::milliseconds(1_000), "{seen:?}");
    }
}

#[test]
fn a_manual_clock_that_advances_is_noticed_within_about_a_second_and_at_once_with_notify() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let clock = manual_clock();
    let with_clock = || Postbox::builder().clock(clock.clone());
    for bus in [with_clock().open(&path).unwrap(), with_clock().open_in_memory().unwrap()] {
        let tally = Tally::default();
        bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
        let _worker = bus.start().unwrap();
        bus.publish(event("a").delay(SECOND * 3_600)).unwrap();
        clock.advance(SECOND * 3_599);
        bus.notify();
        bus.publish(event("b")).unwrap();
        tally.wait_for(1);
        clock.advance(SECOND);
        assert!(tally.reaches(2, 2 * SECOND));
        let start = Instant::now();
        for round in 0..ROUNDS {
            bus.publish(event("a").delay(SECOND * 3_600)).unwrap();
            clock.advance(SECOND * 3_600);
            bus.notify();
            tally.wait_for(round + 3);
        }
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }
}

// ---- what it takes ---------------------------------------------------------------------------------------------------

/// Handlers ask how many events are claimed at that moment.
#[test]
fn no_more_than_batch_size_events_are_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    for file in [true, false] {
        let builder = Postbox::builder().settings(sized(4)).handler_threads(8);
        let bus =
            if file { builder.open(dir.path().join("app.db")) } else { builder.open_in_memory() }.unwrap();
        let (tally, most) = (Tally::default(), Arc::new(Mutex::new((0, 0, 0))));
        let (counted, gauge) = (tally.clone(), Arc::clone(&most));
        bus.subscribe(Subscription::new("*", "c", move |_: &Event, cx: &Context<'_>| {
            {
                let mut gauge = gauge.lock().unwrap();
                gauge.0 += 1;
                gauge.1 = gauge.1.max(gauge.0);
            }
            let processing = cx.postbox().stats()?.processing;
            let mut gauge = gauge.lock().unwrap();
            gauge.0 -= 1;
            gauge.2 = gauge.2.max(processing);
            counted.add();
            Ok(())
        }))
        .unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT)); // it has batches of its own size
        bus.publish_all((0..400).map(|_| event("a"))).unwrap();
        tally.wait_for(400);
        let (_, at_once, claimed) = *most.lock().unwrap();
        assert!((2..=4).contains(&at_once), "{at_once} handlers ran at once");
        assert!((at_once..=4).contains(&claimed), "{claimed} events were claimed at once");
        wait_until("all are processed", || bus.stats().unwrap().processed == 400);
    }
}

#[test]
fn one_handler_thread_whose_handler_publishes_reads_and_writes_works() {
    let dir = tempfile::tempdir().unwrap();
    for file in [true, false] {
        let builder = Postbox::builder().handler_threads(1);
        let bus =
            if file { builder.open(dir.path().join("app.db")) } else { builder.open_in_memory() }.unwrap();
        bus.transaction(|tx| -> postbox::Result<()> { Ok(tx.execute_batch("CREATE TABLE note (id TEXT)")?) })
            .unwrap();
        let tally = Tally::default();
        bus.subscribe(Subscription::new("leaf", "c", counting(&tally))).unwrap();
        bus.subscribe(Subscription::new("root", "c", |event: &Event, cx: &Context<'_>| {
            let bus = cx.postbox();
            cx.publish(support::event("leaf"))?;
            bus.publish_all([support::event("leaf"), support::event("leaf")])?;
            bus.transaction(|tx| -> postbox::Result<()> {
                tx.execute("INSERT INTO note VALUES (?1)", [event.id().to_string()])?;
                tx.publish(support::event("leaf"))?;
                Ok(())
            })?;
            assert_eq!(bus.outbox().get(event.id())?.map(|row| row.status), Some(OutboxStatus::Processing));
            bus.inbox().get_or_create(event.id(), "by hand")?;
            bus.update_settings(|settings| settings.max_attempts += 1)?;
            bus.stats()?;
            Ok(())
        }))
        .unwrap();
        let _worker = bus.start().unwrap();
        bus.publish_all((0..20).map(|_| event("root"))).unwrap();
        tally.wait_for(80);
        wait_until("all are processed", || bus.stats().unwrap().processed == 100);
        assert_eq!(bus.settings().max_attempts, 23);
    }
}

#[test]
fn handlers_that_block_do_not_stop_the_others() {
    let bus = Postbox::builder().handler_threads(4).open_in_memory().unwrap();
    let (entered, latch, quick) = (Tally::default(), Latch::default(), Tally::default());
    bus.subscribe(Subscription::new("slow", "c", blocking(&entered, &latch))).unwrap();
    bus.subscribe(Subscription::new("quick", "c", counting(&quick))).unwrap();
    bus.subscribe(Subscription::transactional("quick", "tx", |_: &Event, _: &Tx<'_>| Ok(()))).unwrap();
    let worker = bus.start().unwrap();
    bus.publish_all((0..3).map(|_| event("slow"))).unwrap();
    entered.wait_for(3);
    bus.publish_all((0..100).map(|_| event("quick"))).unwrap();
    quick.wait_for(100);
    wait_until("the quick ones are processed", || bus.stats().unwrap().processed == 100);
    assert_eq!(bus.stats().unwrap().processing, 3);
    latch.open();
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    assert_eq!(bus.stats().unwrap().processed, 103);
}

#[test]
fn a_panic_costs_no_thread() {
    quiet_panics_on_purpose();
    let defaults = Settings { max_attempts: 1, ..Settings::default() };
    let bus = Postbox::builder().settings(defaults).handler_threads(3).open_in_memory().unwrap();
    bus.subscribe(Subscription::new("bad", "c", |_: &Event, _: &Context<'_>| panic!("{ON_PURPOSE}")))
        .unwrap();
    bus.subscribe(Subscription::transactional("bad", "tx", |_: &Event, _: &Tx<'_>| panic!("{ON_PURPOSE}")))
        .unwrap();
    let (entered, latch) = (Tally::default(), Latch::default());
    bus.subscribe(Subscription::new("good", "c", blocking(&entered, &latch))).unwrap();
    let worker = bus.start().unwrap();
    let ids = bus.publish_all((0..100).map(|_| event("bad"))).unwrap();
    wait_until("all are dead", || bus.stats().unwrap().dead_letter == 100);
    let error = bus.outbox().get(ids[99]).unwrap().unwrap().last_error.unwrap();
    assert_eq!(error, "c: panicked: on purpose; tx: panicked: on purpose");

    bus.publish_all((0..3).map(|_| event("good"))).unwrap();
    entered.wait_for(3); // all of the threads, at once
    latch.open();
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

#[test]
fn threads_have_names() {
    let bus = Postbox::builder().handler_threads(3).open_in_memory().unwrap();
    let (names, entered, latch) = (Arc::new(Mutex::new(Vec::new())), Tally::default(), Latch::default());
    let (into, inside, wait) = (Arc::clone(&names), entered.clone(), latch.clone());
    bus.subscribe(Subscription::new("*", "c", move |_: &Event, _: &Context<'_>| {
        into.lock().unwrap().push(thread::current().name().map(str::to_owned));
        inside.add();
        wait.wait();
        Ok(())
    }))
    .unwrap();
    let _worker = bus.start().unwrap();
    bus.publish_all((0..3).map(|_| event("a"))).unwrap();
    entered.wait_for(3);
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let comms: Vec<String> =
        threads.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok()).collect();
    latch.open();
    assert!(comms.iter().any(|comm| comm == "postbox-worker\n"), "{comms:?}");
    let mut names: Vec<_> = names.lock().unwrap().drain(..).map(Option::unwrap).collect();
    names.sort();
    assert_eq!(names, ["postbox-handler-1", "postbox-handler-2", "postbox-handler-3"]);
}

#[test]
fn a_box_has_one_worker_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let tally = Tally::default();
        bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
        assert!(!bus.stats().unwrap().worker_running);
        let first = bus.start().unwrap();
        assert!(first.is_running() && bus.stats().unwrap().worker_running);
        assert!(matches!(bus.start(), Err(Error::WorkerRunning)));
        assert!(matches!(bus.clone().start(), Err(Error::WorkerRunning)));
        assert!(first.is_running(), "a refused start stops nothing");
        assert!(first.shutdown(LIMIT).unwrap().clean);
        assert!(!bus.stats().unwrap().worker_running);

        bus.publish(event("a")).unwrap();
        let second = bus.start().unwrap();
        tally.wait_for(1);
        drop(second);
        let third = bus.start().unwrap();
        bus.publish(event("a")).unwrap();
        tally.wait_for(2);
        assert!(third.is_running());
    }
}

#[test]
fn who_subscribes_while_the_worker_runs_receives_what_comes_and_what_was_held() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let defaults = Settings { unhandled_events: postbox::UnhandledEvents::Hold, ..Settings::default() };
    let builder = || Postbox::builder().settings(defaults.clone());
    for bus in [builder().open(&path).unwrap(), builder().open_in_memory().unwrap()] {
        let worker = bus.start().unwrap();
        let held = bus.publish(event("a")).unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        wait_until("it is held", || bus.outbox().get(held).unwrap().unwrap().available_at.year() == 9_999);
        assert_eq!(status(&bus, held), (OutboxStatus::Pending, 0));
        let tally = Tally::default();
        let start = Instant::now();
        bus.subscribe(Subscription::new("a", "c", counting(&tally))).unwrap();
        tally.wait_for(1);
        for round in 0..ROUNDS {
            let name = format!("b.{round}");
            bus.publish(event(&name)).unwrap();
            bus.subscribe(Subscription::new(name, "c", counting(&tally))).unwrap();
            tally.wait_for(round + 2);
        }
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }
}

#[test]
fn both_switches_stop_the_worker_and_let_it_go_on_with_nothing_lost() {
    let dir = tempfile::tempdir().unwrap();
    let switches: [fn(&mut Settings, bool); 2] =
        [|settings, on| settings.enabled = on, |settings, on| settings.processor_enabled = on];
    for (number, bus) in boxes(dir.path()).into_iter().enumerate() {
        let tally = Tally::default();
        bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        for (round, switch) in switches.iter().enumerate() {
            let before = tally.get();
            bus.update_settings(|settings| switch(settings, false)).unwrap();
            let ids = bus.publish_all((0..25).map(|_| event("a"))).unwrap();
            bus.notify();
            assert!(!tally.reaches(before + 1, Duration::from_millis(300)), "box {number}, switch {round}");
            assert!(worker.is_running());
            assert!(ids.iter().all(|id| status(&bus, *id) == (OutboxStatus::Pending, 0)));
            bus.update_settings(|settings| switch(settings, true)).unwrap();
            tally.wait_for(before + 25);
        }
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        assert_eq!(bus.stats().unwrap().processed, 50);
        assert_eq!(tally.get(), 50);
    }
}

// ---- startup ---------------------------------------------------------------------------------------------------------

#[test]
fn the_startup_drain_takes_the_backlog_in_batches_of_its_own_size_and_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let defaults = Settings { startup_drain_batch_size: 20, ..sized(3) };
    for (drains, claimed) in [(true, 20), (false, 3)] {
        let path = dir.path().join(format!("{drains}.db"));
        let defaults = Settings { startup_drain_enabled: drains, ..defaults.clone() };
        let bus = Postbox::builder().settings(defaults).handler_threads(2).open(path).unwrap();
        let (entered, latch) = (Tally::default(), Latch::default());
        bus.subscribe(Subscription::new("*", "c", blocking(&entered, &latch))).unwrap();
        bus.publish_all((0..50).map(|_| event("a"))).unwrap();
        let worker = bus.start().unwrap();
        entered.wait_for(2);
        wait_until("a batch is claimed", || bus.stats().unwrap().processing == claimed);
        assert_eq!(worker.wait_for_startup_drain(Duration::from_millis(100)), !drains);
        assert_eq!(bus.stats().unwrap().processing, claimed);
        assert_eq!(entered.get(), 2);
        latch.open();
        assert!(worker.wait_for_startup_drain(LIMIT));
        entered.wait_for(50);
        wait_until("all are processed", || bus.stats().unwrap().processed == 50);
        drop(worker);
    }
}

/// The drain was once said to be over while its last batch still ran.
#[test]
fn the_startup_drain_is_over_when_the_last_of_the_backlog_has_been_tried() {
    let dir = tempfile::tempdir().unwrap();
    for bus in boxes(dir.path()) {
        let (entered, latch) = (Tally::default(), Latch::default());
        bus.subscribe(Subscription::new("*", "c", blocking(&entered, &latch))).unwrap();
        bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        entered.wait_for(1);
        assert!(!worker.wait_for_startup_drain(Duration::from_millis(300)));
        latch.open();
        assert!(worker.wait_for_startup_drain(LIMIT));
        assert_eq!(bus.stats().unwrap().processed, 1);
    }
}

#[test]
fn the_startup_drain_goes_on_past_failing_events() {
    quiet_panics_on_purpose();
    let defaults = Settings { startup_drain_batch_size: 7, max_attempts: 2, ..Settings::default() };
    let dir = tempfile::tempdir().unwrap();
    let bus =
        Postbox::builder().settings(defaults).clock(manual_clock()).open(dir.path().join("app.db")).unwrap();
    bus.subscribe(Subscription::new("*", "c", |event: &Event, _: &Context<'_>| match event.name() {
        "fails" => Err(HandlerError::retry("no")),
        "panics" => panic!("{ON_PURPOSE}"),
        "dies" => Err(HandlerError::dead_letter("never")),
        _ => Ok(()),
    }))
    .unwrap();
    let names = ["fails", "panics", "dies", "works"];
    bus.publish_all((0..120).map(|n: usize| event(names[n / 10 % 4]))).unwrap();
    bus.publish(event("works").delay(SECOND)).unwrap();
    let worker = bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    let stats = bus.stats().unwrap();
    assert_eq!((stats.processed, stats.dead_letter, stats.pending, stats.processing), (30, 30, 61, 0));
}

#[test]
fn waiting_for_a_startup_drain_ends_when_there_is_none_and_when_the_worker_ends() {
    let off = |settings: Settings| Postbox::builder().settings(settings).open_in_memory().unwrap();
    for settings in [
        Settings { startup_drain_enabled: false, ..Settings::default() },
        Settings { enabled: false, ..Settings::default() },
        Settings { processor_enabled: false, ..Settings::default() },
        Settings::default(), // with an empty backlog
    ] {
        let bus = off(settings);
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
    }

    let bus = Postbox::open_in_memory().unwrap();
    let entered = Tally::default();
    let inside = entered.clone();
    bus.subscribe(Subscription::new("*", "c", move |_: &Event, cx: &Context<'_>| {
        inside.add();
        wait_until("it is cancelled", || cx.is_cancelled());
        Ok(())
    }))
    .unwrap();
    bus.publish(event("a")).unwrap();
    let worker = bus.start().unwrap();
    entered.wait_for(1);
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| bus.clone().close().unwrap());
        worker.wait_for_startup_drain(2 * LIMIT); // true when the handler's outcome came just before the stop
    });
    assert!(start.elapsed() < LIMIT);
    assert!(!worker.is_running());
}

// ---- leases ----------------------------------------------------------------------------------------------------------

fn short_lease() -> Settings {
    Settings { processing_lease_ms: 1_000, ..Settings::default() }
}

/// Real time: the lease is renewed by it.
#[test]
fn a_handler_slower_than_its_lease_runs_once_beside_a_hungry_worker_on_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let open = || Postbox::builder().settings(short_lease()).open(&path).unwrap();
    let (slow, hungry) = (open(), open());
    let (entered, latch, stolen) = (Tally::default(), Latch::default(), Tally::default());
    slow.subscribe(Subscription::new("*", "c", blocking(&entered, &latch))).unwrap();
    hungry.subscribe(Subscription::new("*", "c", counting(&stolen))).unwrap();
    let id = slow.publish(event("a")).unwrap();
    let worker = slow.start().unwrap();
    entered.wait_for(1);
    let rival = hungry.start().unwrap();
    assert!(!stolen.reaches(1, Duration::from_millis(2_500)), "absence is what is tested");
    assert_eq!(status(&slow, id), (OutboxStatus::Processing, 1));
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
    }
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
    // Somebody claimed it, and was never heard of again.
    let until = (start_of_time() + SECOND * 30).unix_timestamp() * 1_000_000;
    let sql =
        "UPDATE outbox_event SET status = 'processing', attempt_count = 1, lease_id = 77, available_at = ?1";
    assert_eq!(raw(&path).execute(sql, [until]).unwrap(), 1);
    let _worker = bus.start().unwrap();
    clock.advance(Duration::from_millis(29_999));
    bus.notify();
    assert!(!tally.reaches(1, Duration::from_millis(200)));
    clock.advance(Duration::from_millis(1));
    bus.notify();
    tally.wait_for(1);
    wait_until("it is processed", || status(&bus, id) == (OutboxStatus::Processed, 2));
}

// ---- at rest ---------------------------------------------------------------------------------------------------------

/// Threads of other tests would be counted too: it runs as a process of its own.
#[test]
fn an_idle_worker_costs_next_to_nothing() {
    let mut command = Process::command("child_rests");
    command.env("ALONE", "yes");
    Process::run(command);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_rests() {
    let Some(_) = given("ALONE") else { return };
    let dir = tempfile::tempdir().unwrap();
    let held = Settings { unhandled_events: postbox::UnhandledEvents::Hold, ..sized(2) };
    let builder = || Postbox::builder().settings(held.clone()).handler_threads(4);
    for bus in [builder().open(dir.path().join("app.db")).unwrap(), builder().open_in_memory().unwrap()] {
        let tally = Tally::default();
        bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
        bus.registry().clear();
        bus.publish_all((0..50).map(|_| event("held"))).unwrap();
        bus.publish_all((0..50).map(|_| event("later").delay(SECOND * 3_600))).unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        assert_rests("with nothing due");

        // All slots taken, more waiting: nothing can be done until a handler ends.
        let (entered, latch) = (Tally::default(), Latch::default());
        bus.subscribe(Subscription::new("slow", "c", blocking(&entered, &latch))).unwrap();
        bus.publish_all((0..20).map(|_| event("slow"))).unwrap();
        entered.wait_for(2);
        assert_rests("with every slot taken");
        latch.open();
        entered.wait_for(20);
        drop(worker);
        bus.close().unwrap();
    }
    wait_until("no thread outlives its box", || {
        tasks().iter().all(|(name, _)| !name.contains("postbox") && !name.contains("r2d2"))
    });
}

fn tasks() -> Vec<(String, std::path::PathBuf)> {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| {
            let path = task.unwrap().path();
            let name = fs::read_to_string(path.join("comm")).ok()?;
            Some((name.trim().to_owned(), path))
        })
        .collect()
}

/// Voluntary switches of the worker's thread, and the whole process's CPU time in hundredths of a second.
fn cost() -> (u64, u64) {
    let (_, worker) = tasks().into_iter().find(|(name, _)| name == "postbox-worker").unwrap();
    let status = fs::read_to_string(worker.join("status")).unwrap();
    let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let cpu = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    (switches.trim().parse().unwrap(), cpu)
}

fn assert_rests(what: &str) {
    thread::sleep(Duration::from_millis(100)); // what is being finished may be finished
    let (switches_before, cpu_before) = cost();
    thread::sleep(Duration::from_millis(1_500)); // absence is what is measured
    let (switches, cpu) = cost();
    let (switches, cpu) = (switches - switches_before, cpu - cpu_before);
    assert!(switches <= 5, "{what}: woken {switches} times in a second and a half");
    assert!(cpu <= 8, "{what}: {cpu}0 ms of CPU time in a second and a half");
}
