//! The worker: what wakes it, and what starts and stops it.

#[path = "support/files.rs"]
mod support;

#[path = "worker/capacity.rs"]
mod capacity;
#[path = "worker/handoff.rs"]
mod handoff;
#[path = "worker/leases.rs"]
mod leases;
#[path = "worker/others_left.rs"]
mod others_left;
#[path = "worker/rest.rs"]
mod rest;
#[path = "worker/startup.rs"]
mod startup;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postbox::{Context, Error, Event, OutboxStatus, Postbox, Settings, Subscription, Tx};
use time::OffsetDateTime;

use crate::support::{LIMIT, Tally, counting, event, manual_clock, raw, status, wait_until};

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
        let publish: [(&str, &dyn Fn()); 4] = [
            ("publish", &|| {
                bus.publish(event("last")).unwrap();
            }),
            ("publish_all", &|| {
                bus.publish_all([event("last")]).unwrap();
            }),
            ("transaction", &|| {
                bus.transaction(|tx| tx.publish(event("last"))).unwrap();
            }),
            ("handlers", &|| {
                bus.publish(event("first")).unwrap();
            }),
        ];
        for (way, publish) in publish {
            let (start, before) = (Instant::now(), tally.get());
            for round in 1..=ROUNDS {
                publish();
                tally.wait_for(before + round);
            }
            assert!(start.elapsed() < AT_ONCE, "{way}: {:?} for {ROUNDS} events", start.elapsed());
        }
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
