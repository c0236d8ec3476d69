//! The same by a worker: its sleep, its hand-off, its pool.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use postbox::{Context, Event, HandlerError, PauseTarget, Postbox, Settings, Subscription, Tx};

use crate::support::{Calls, SECOND, event, noting, sql, wait_until};
use crate::timing::{folder, within};
use crate::{consumer, is_parked, parked, rows};

const LIMIT: Duration = Duration::from_mins(1);

fn boxes(folder: &std::path::Path) -> [(&'static str, Postbox); 2] {
    // It would not find by itself what is due before the tests' limit.
    let slow =
        Settings { polling_interval_ms: 600_000, idle_polling_interval_ms: 600_000, ..Settings::default() };
    let builder = || Postbox::builder().settings(slow.clone());
    [
        ("file", builder().open(folder.join("app.db")).unwrap()),
        ("memory", builder().open_in_memory().unwrap()),
    ]
}

fn is_idle(bus: &Postbox) -> bool {
    let stats = bus.stats().unwrap();
    stats.processing == 0 && stats.pending == parked(bus)
}

#[test]
fn a_sleeping_worker_lets_go_when_its_own_box_resumes() {
    let dir = folder();
    for (kind, bus) in boxes(dir.path()) {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        for target in [consumer("c"), PauseTarget::event_name("a")] {
            bus.pause(&target, None, None).unwrap();
            // It looks around once a second by itself.
            within(7 * SECOND, &format!("{kind}, {target}"), || {
                for _ in 0..10 {
                    bus.publish_all((0..60).map(|_| event("a"))).unwrap();
                    wait_until(LIMIT, || is_idle(&bus) && parked(&bus) == 60);
                    assert!(calls.all().is_empty(), "{kind}, {target}");
                    bus.resume(&target).unwrap();
                    wait_until(LIMIT, || bus.stats().unwrap().pending == 0 && rows(&bus) == 0);
                    wait_until(LIMIT, || is_idle(&bus));
                    assert_eq!(calls.take().len(), 60, "{kind}, {target}");
                    bus.pause(&target, None, None).unwrap();
                }
            });
            bus.resume(&target).unwrap();
        }
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

/// It sleeps until the pause ends, and no longer; ten of them one after the other.
#[test]
fn a_workers_sleep_ends_with_a_timed_pause() {
    let dir = folder();
    for (kind, bus) in boxes(dir.path()) {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        within(5 * SECOND, kind, || {
            let (start, before) = (Instant::now(), calls.all().len());
            for round in 1..=10 {
                bus.pause(&consumer("c"), None, Some(Duration::from_millis(100))).unwrap();
                bus.publish(event("a")).unwrap();
                wait_until(LIMIT, || calls.all().len() == before + round);
            }
            assert!(start.elapsed() >= SECOND, "{kind}: {:?}", start.elapsed());
        });
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

#[test]
fn a_handler_that_runs_when_its_consumer_is_paused_ends_as_it_does() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, bus) in boxes(dir.path()) {
        let (entered, has_entered) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let may_go_on = std::sync::Mutex::new(may_go_on);
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
                entered.send(()).map_err(HandlerError::retry)?;
                may_go_on.lock().unwrap().recv_timeout(LIMIT).map_err(HandlerError::retry)
            })
            .priority(1),
            Subscription::new("a", "d", noting(&calls, "d")),
        ])
        .unwrap();
        let worker = bus.start().unwrap();
        let id = bus.publish(event("a")).unwrap();
        has_entered.recv_timeout(LIMIT).unwrap();
        for name in ["c", "d"] {
            bus.pause(&consumer(name), None, None).unwrap();
        }
        go_on.send(()).unwrap();
        wait_until(LIMIT, || is_parked(&bus, id));
        assert!(calls.all().is_empty(), "{kind}: none begins");
        bus.resume(&consumer("d")).unwrap();
        wait_until(LIMIT, || bus.stats().unwrap().processed == 1);
        assert_eq!(calls.all(), ["d"], "{kind}");
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

/// The rows tell: what is handed over is inserted as claimed.
#[test]
fn nothing_is_handed_over_that_is_paused() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, bus) in boxes(dir.path()) {
        let calls = Calls::default();
        sql(&bus, |tx| {
            tx.execute_batch(
                "CREATE TABLE seen (how TEXT);
                 CREATE TRIGGER note AFTER INSERT ON outbox_event
                 BEGIN INSERT INTO seen VALUES (NEW.event_name || ' ' || NEW.status); END;",
            )
        });
        bus.subscribe_many([
            Subscription::new("*", "c", noting(&calls, "c")),
            Subscription::new("both", "d", noting(&calls, "d")),
        ])
        .unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        bus.pause(&consumer("d"), None, None).unwrap();
        bus.pause(&PauseTarget::event_name("name"), None, None).unwrap();
        let seen = |how: &str| -> u64 {
            sql(&bus, |tx| tx.query_row("SELECT count(*) FROM seen WHERE how = ?1", [how], |row| row.get(0)))
        };
        // Until others are handed over, so that it is not the worker that was not asleep.
        wait_until(LIMIT, || {
            for name in ["both", "other", "name", "other"] {
                bus.publish(event(name)).unwrap();
                wait_until(LIMIT, || is_idle(&bus));
            }
            seen("other processing") > 10
        });
        assert_eq!((seen("both processing"), seen("name processing")), (0, 0), "{kind}");
        bus.resume(&consumer("d")).unwrap();
        bus.resume(&PauseTarget::event_name("name")).unwrap();
        wait_until(LIMIT, || bus.stats().unwrap().pending == 0);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

#[test]
fn handlers_that_pause_their_consumer_stop_a_worker_at_it_and_nothing_is_spent() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, bus) in boxes(dir.path()) {
        let calls = Calls::default();
        let (plain, tx) = (calls.clone(), calls.clone());
        bus.subscribe_many([
            Subscription::new("a", "plain", move |_: &Event, _: &Context<'_>| {
                plain.add("plain");
                Err(HandlerError::pause_consumer("offline", Duration::from_hours(1)))
            })
            .max_attempts(1),
            Subscription::transactional("a", "tx", move |_: &Event, _: &Tx<'_>| {
                tx.add("tx");
                Err(HandlerError::pause_consumer("offline", Duration::from_hours(1)))
            })
            .max_attempts(1),
            Subscription::new("a", "goes on", noting(&calls, "goes on")),
        ])
        .unwrap();
        bus.publish_all((0..300).map(|_| event("a"))).unwrap();
        let worker = bus.start().unwrap();
        for _ in 0..10 {
            bus.publish(event("a")).unwrap();
        }
        wait_until(LIMIT, || parked(&bus) == 310);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        // Threads that ran at that moment may all have said it.
        assert!((1..=8).contains(&calls.count("plain")), "{kind}: {}", calls.count("plain"));
        assert!((1..=2).contains(&calls.count("tx")), "{kind}: {}", calls.count("tx"));
        assert_eq!(calls.count("goes on"), 310);
        let spent: u64 =
            sql(&bus, |tx| tx.query_row("SELECT sum(attempt_count) FROM outbox_event", [], |row| row.get(0)));
        assert_eq!((spent, bus.stats().unwrap().dead_letter), (0, 0), "{kind}");
        assert_eq!(bus.pauses().unwrap().len(), 2);
        for name in ["plain", "tx"] {
            assert!(bus.resume(&consumer(name)).unwrap(), "{kind}");
        }
    }
}
