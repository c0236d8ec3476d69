//! The worker: what wakes it, and what starts and stops it.

#[path = "support/files.rs"]
mod support;
#[path = "support/timing.rs"]
mod timing;

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
use std::time::Duration;

use postbox::{Context, Error, Event, OutboxStatus, Postbox, Settings, Subscription, Tx};
use time::OffsetDateTime;

use crate::support::{LIMIT, Tally, counting, event, manual_clock, raw, status, wait_until};
use crate::timing::{TRIES, folder, within};

const SECOND: Duration = Duration::from_secs(1);

/// The worker looks around once a second by itself. What is told to it must be much faster than that, every time.
const ROUNDS: u64 = 12;
const AT_ONCE: Duration = Duration::from_secs(5);

fn boxes(folder: &Path) -> [Postbox; 2] {
    [Postbox::open(folder.join("app.db")).unwrap(), Postbox::open_in_memory().unwrap()]
}

/// Nothing is in hand: the worker goes to sleep.
fn is_settled(bus: &Postbox) {
    wait_until("all is settled", || {
        let stats = bus.stats().unwrap();
        stats.pending + stats.processing == 0
    });
}

fn sized(batch_size: u32) -> Settings {
    Settings { batch_size, ..Settings::default() }
}

#[test]
fn a_sleeping_worker_is_woken_by_every_way_to_publish() {
    let dir = folder();
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
            within(AT_ONCE, way, || {
                let before = tally.get();
                for round in 1..=ROUNDS {
                    publish();
                    tally.wait_for(before + round);
                    is_settled(&bus);
                }
            });
        }
    }
}

#[test]
fn what_the_applications_own_connection_commits_is_noticed_at_once_with_notify() {
    let dir = folder();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    let _worker = bus.start().unwrap();
    let mut conn = raw(&path);
    within(AT_ONCE, "notify", || {
        let before = tally.get();
        for round in 1..=ROUNDS {
            let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
            bus.publish_in(&tx, event("a")).unwrap();
            tx.commit().unwrap();
            bus.notify();
            tally.wait_for(before + round);
            is_settled(&bus);
        }
    });
}

#[test]
fn what_the_applications_own_connection_commits_is_noticed_within_about_a_second_without_notify() {
    let dir = folder();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    let mut conn = raw(&path);
    within(2 * SECOND, "without notify, where the polling interval is 5 seconds", || {
        let before = tally.get();
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        bus.publish_in(&tx, event("a")).unwrap();
        tx.commit().unwrap();
        tally.wait_for(before + 1);
    });
}

#[test]
fn delayed_events_become_due_at_their_time() {
    let dir = folder();
    // One thread, which handles one after the other.
    let builder = || Postbox::builder().handler_threads(1);
    for bus in [builder().open(dir.path().join("app.db")).unwrap(), builder().open_in_memory().unwrap()] {
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
        // The worker's own look-around would find them a second after they were published: four seconds late in all.
        let is_punctual = || {
            let before = tally.get();
            let later = |delay_ms: u64| {
                let payload = serde_json::json!({ "delay_ms": delay_ms });
                event("later").payload(payload).delay(Duration::from_millis(delay_ms))
            };
            bus.publish_all([250, 50, 400, 100, 150].map(later)).unwrap();
            tally.wait_for(before + 5);
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            for (delay, lateness) in &seen {
                assert!(!lateness.is_negative(), "the one of {delay} ms came {lateness} before its time");
            }
            let total: time::Duration = seen.iter().map(|(_, lateness)| *lateness).sum();
            total < 2 * time::Duration::SECOND && seen.iter().map(|(delay, _)| *delay).is_sorted()
        };
        // Nor is a busy machine punctual, now and then.
        assert!((0..TRIES).any(|_| is_punctual()), "late each time");
    }
}

#[test]
fn a_manual_clock_that_advances_is_noticed_within_about_a_second_and_at_once_with_notify() {
    let dir = folder();
    let path = dir.path().join("app.db");
    let clock = manual_clock();
    let with_clock = || Postbox::builder().clock(clock.clone());
    for bus in [with_clock().open(&path).unwrap(), with_clock().open_in_memory().unwrap()] {
        let tally = Tally::default();
        bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
        let _worker = bus.start().unwrap();
        // One for each try.
        bus.publish_all((1..=TRIES).map(|hour| event("a").delay(SECOND * 3_600 * hour))).unwrap();
        clock.advance(SECOND * 3_599);
        bus.notify();
        bus.publish(event("b")).unwrap();
        tally.wait_for(1);
        within(2 * SECOND, "without notify", || {
            let before = tally.get();
            clock.advance(SECOND * 3_600);
            tally.wait_for(before + 1);
            assert_eq!(tally.get(), before + 1);
        });
        clock.advance(SECOND * 3_600 * TRIES);
        bus.notify();
        tally.wait_for(1 + u64::from(TRIES));
        within(AT_ONCE, "notify", || {
            let before = tally.get();
            for round in 1..=ROUNDS {
                bus.publish(event("a").delay(SECOND * 3_600)).unwrap();
                clock.advance(SECOND * 3_600);
                bus.notify();
                tally.wait_for(before + round);
                is_settled(&bus);
            }
        });
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
    let dir = folder();
    let path = dir.path().join("app.db");
    let defaults = Settings { unhandled_events: postbox::UnhandledEvents::Hold, ..Settings::default() };
    let builder = || Postbox::builder().settings(defaults.clone());
    for bus in [builder().open(&path).unwrap(), builder().open_in_memory().unwrap()] {
        let worker = bus.start().unwrap();
        let tally = Tally::default();
        assert!(worker.wait_for_startup_drain(LIMIT));
        within(AT_ONCE, "who subscribes", || {
            for round in 0..ROUNDS {
                let before = tally.get();
                let name = format!("a.{before}");
                let held = bus.publish(event(&name)).unwrap();
                if round % 2 == 0 {
                    let is_held = || bus.outbox().get(held).unwrap().unwrap().available_at.year() == 9_999;
                    wait_until("it is held", is_held);
                    assert_eq!(status(&bus, held), (OutboxStatus::Pending, 0));
                }
                bus.subscribe(Subscription::new(name, "c", counting(&tally))).unwrap();
                tally.wait_for(before + 1);
            }
        });
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
