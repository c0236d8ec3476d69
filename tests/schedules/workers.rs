//! Ticks while a worker runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postbox::testing::ManualClock;
use postbox::{
    Clock, Context, Event, Misfire, Observer, OutboxStatus, Postbox, Published, Schedule, Settings,
    Subscription, Tx,
};

use time::OffsetDateTime;

use crate::support::{
    Calls, MICROSECOND, boxes, ends, event, file_box, file_box_with, memory_box_with, noting, start_time,
    status, wait_until,
};
use crate::{HOUR, LIMIT, MINUTE, minutely, note_ticks, stored};

/// No schedule ticks more often.
const EVERY: Duration = Duration::from_millis(100);

/// It looks around often, so that a test need not wait for a second each time.
fn often() -> Settings {
    Settings { polling_interval_ms: 100, idle_polling_interval_ms: 100, ..Settings::default() }
}

#[test]
fn a_running_worker_publishes_and_delivers_each_tick_once() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        let worker = test.bus.start().unwrap();
        // After it has looked and found none.
        assert!(worker.wait_for_startup_drain(LIMIT));
        test.bus.schedules().put("s", minutely()).unwrap();
        for minute in 1..=5 {
            test.clock.advance(MINUTE);
            test.bus.notify();
            wait_until(LIMIT, || calls.all().len() == minute);
        }
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        assert_eq!(calls.all(), ["s@60", "s@120", "s@180", "s@240", "s@300"], "{}", test.kind);
    }
}

/// The clock is the system's: the worker has to wake up by itself.
#[test]
fn a_worker_that_sleeps_wakes_up_for_a_tick_in_a_file_and_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let slow =
        Settings { polling_interval_ms: 600_000, idle_polling_interval_ms: 600_000, ..Settings::default() };
    let builder = || Postbox::builder().settings(slow.clone());
    for bus in [builder().open(dir.path().join("app.db")).unwrap(), builder().open_in_memory().unwrap()] {
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        let ticks: Arc<Mutex<Vec<OffsetDateTime>>> = Arc::default();
        let noted = Arc::clone(&ticks);
        let note = move |event: &Event, _: &Tx<'_>| {
            noted.lock().unwrap().push(event.scheduled_for().expect("a tick"));
            Ok(())
        };
        bus.subscribe(Subscription::transactional("tick", "noting", note)).unwrap();
        bus.transaction(|tx| tx.schedules().put("s", Schedule::every(EVERY, event("tick")))).unwrap();
        // One event stands for all that are missed: three in a row come only to who wakes up for each.
        wait_until(LIMIT, || {
            let ticks = ticks.lock().unwrap();
            ticks.windows(3).any(|three| three[1] - three[0] == EVERY && three[2] - three[1] == EVERY)
        });
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        bus.close().unwrap();
    }
}

#[test]
fn a_worker_ticks_for_schedules_that_another_box_puts_and_stops_when_that_pauses_them() {
    let test = file_box();
    let other = Postbox::builder().clock(test.clock.clone()).settings(often()).open(test.path()).unwrap();
    let calls = note_ticks(&other);
    let worker = other.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    test.bus.schedules().put("s", minutely()).unwrap();
    test.clock.advance(MINUTE);
    wait_until(LIMIT, || calls.all() == ["s@60"]);
    test.bus.schedules().pause("s").unwrap();
    test.clock.advance(MINUTE);
    // It has looked by the time it delivers this.
    test.bus.publish(event("other")).unwrap();
    wait_until(LIMIT, || test.bus.stats().unwrap().processed == 2);
    assert_eq!(calls.all(), ["s@60"]);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

#[test]
fn a_worker_that_may_not_process_does_not_tick() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        test.bus.schedules().put("s", minutely().misfire(Misfire::All { max: 2 })).unwrap();
        test.bus.update_settings(|settings| settings.processor_enabled = false).unwrap();
        let worker = test.bus.start().unwrap();
        test.clock.advance(MINUTE * 5);
        test.bus.notify();
        std::thread::sleep(Duration::from_millis(100)); // absence is what is asserted
        assert_eq!(test.bus.stats().unwrap().total, 0, "{}", test.kind);
        test.bus.update_settings(|settings| settings.processor_enabled = true).unwrap();
        wait_until(LIMIT, || calls.all() == ["s@240", "s@300"]);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

#[test]
fn a_clock_that_jumps_under_a_worker_is_noticed() {
    let test = file_box();
    test.bus.close().unwrap();
    let path = tempfile::tempdir().unwrap();
    let bus = Postbox::builder()
        .clock(test.clock.clone())
        .settings(often())
        .open(path.path().join("app.db"))
        .unwrap();
    let calls = note_ticks(&bus);
    let worker = bus.start().unwrap();
    bus.schedules().put("s", Schedule::every(HOUR, event("tick"))).unwrap();
    test.clock.advance(HOUR * 24 * 400 + MINUTE * 30);
    wait_until(LIMIT, || calls.all().len() == 1);
    test.clock.set(crate::support::start_time() + MINUTE);
    // From the new time on.
    wait_until(LIMIT, || crate::seconds(stored(&bus, "s").next_at) == Some(3_600));
    test.clock.set(crate::support::start_time() + HOUR);
    wait_until(LIMIT, || calls.all().len() == 2);
    assert_eq!(calls.all()[1], "s@3600");
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

#[test]
fn a_schedule_that_cannot_tick_is_no_reason_to_spin() {
    let test = file_box();
    test.bus.schedules().put("bad", minutely()).unwrap();
    test.bus.schedules().put("spoilt", minutely()).unwrap();
    test.app_connection()
        .execute_batch(
            "UPDATE postbox_schedule SET rule = '{}' WHERE name = 'spoilt';
             CREATE TRIGGER no_tick BEFORE INSERT ON outbox_event WHEN NEW.event_name = 'tick'
             BEGIN SELECT RAISE(ABORT, 'no ticks'); END",
        )
        .unwrap();
    test.clock.advance(MINUTE);
    let asked = Arc::new(AtomicU64::new(0));
    let counting = Counting { clock: test.clock.clone(), asked: Arc::clone(&asked) };
    let bus = Postbox::builder().clock(counting).open(test.path()).unwrap();
    let worker = bus.start().unwrap();
    for _ in 0..20 {
        test.bus.publish(event("other")).unwrap();
    }
    wait_until(LIMIT, || stored(&test.bus, "bad").error.is_some());
    wait_until(LIMIT, || test.bus.stats().unwrap().processed == 20);
    let before = asked.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(300)); // absence is what is asserted
    let more = asked.load(Ordering::Relaxed) - before;
    assert!(more < 100, "it asks for the time whenever it looks: {more}");
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

/// Moves on by so much whenever somebody looks.
struct Moving(ManualClock, Duration);

impl Clock for Moving {
    fn now(&self) -> OffsetDateTime {
        self.0.advance(self.1);
        self.0.now()
    }
}

/// They were published one after the other, for ever: nothing was delivered, and neither a worker nor `drain` came to an end.
#[test]
fn ticks_that_come_as_fast_as_they_are_published_keep_nobody_waiting() {
    for by_worker in [true, false] {
        // On a thread of its own: what does not come to an end cannot be stopped either.
        ends(move || {
            let dir = tempfile::tempdir().unwrap();
            // As long as it is from one tick to the next, as on a disk that is as slow.
            let slow = Moving(ManualClock::new(start_time()), EVERY);
            let bus = Postbox::builder().clock(slow).open(dir.path().join("app.db")).unwrap();
            let calls = Calls::default();
            bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
            let schedule = Schedule::every(EVERY, event("tick")).misfire(Misfire::All { max: 9 });
            bus.schedules().put("s", schedule).unwrap();
            let id = bus.publish(event("other")).unwrap();
            if by_worker {
                let worker = bus.start().unwrap();
                wait_until(LIMIT, || calls.all().len() > 20);
                assert!(worker.shutdown(LIMIT).unwrap().clean);
            } else {
                assert!(bus.drain().unwrap() > 1);
            }
            assert_eq!(status(&bus, id), OutboxStatus::Processed, "by a worker: {by_worker}");
        });
    }
}

struct Counting {
    clock: ManualClock,
    asked: Arc<AtomicU64>,
}

impl Clock for Counting {
    fn now(&self) -> OffsetDateTime {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.clock.now()
    }
}

/// It was told that this takes five seconds, and it took until the next poll.
#[test]
fn a_schedule_that_could_not_tick_ticks_soon_after_it_can() {
    let slow =
        Settings { polling_interval_ms: 600_000, idle_polling_interval_ms: 600_000, ..Settings::default() };
    let test = file_box_with(|builder| builder.settings(slow));
    test.app_connection()
        .execute_batch(
            "CREATE TRIGGER no_refused BEFORE INSERT ON outbox_event WHEN NEW.event_name = 'refused'
             BEGIN SELECT RAISE(ABORT, 'none of these'); END;",
        )
        .unwrap();
    let calls = note_ticks(&test.bus);
    let worker = test.bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    test.bus.schedules().put("s", Schedule::every(MINUTE, event("refused"))).unwrap();
    test.clock.advance(MINUTE);
    test.bus.notify();
    wait_until(LIMIT, || stored(&test.bus, "s").error.is_some());
    test.bus.schedules().put("s", minutely()).unwrap();
    wait_until(LIMIT, || calls.all() == ["s@60"]);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

/// All that had been missed was published before anything else was done: nobody renewed a lease, delivered an event, or stopped meanwhile.
#[test]
fn however_much_was_missed_a_worker_delivers_in_between() {
    let test = file_box();
    let missed = |n| {
        let event = postbox::NewEvent::new("tick", "finance", "Invoice", format!("a-{n}"));
        Schedule::every(MINUTE, event).misfire(Misfire::All { max: 4 })
    };
    test.bus
        .transaction(|tx| -> postbox::Result<()> {
            (0..4_000).try_for_each(|n| tx.schedules().put(&format!("s-{n}"), missed(n)).map(drop))
        })
        .unwrap();
    test.clock.advance(HOUR);
    test.bus.publish(event("other")).unwrap();
    let (seen, counts) = std::sync::mpsc::channel();
    let look = move |_: &Event, tx: &Tx<'_>| {
        let count = tx.query_row("SELECT count(*) FROM outbox_event", [], |row| row.get::<_, u32>(0))?;
        seen.send(count).unwrap();
        Ok(())
    };
    test.bus.subscribe(Subscription::transactional("other", "looking", look)).unwrap();
    let worker = test.bus.start().unwrap();
    let count = counts.recv_timeout(LIMIT).unwrap();
    assert!(count < 16_001, "{count}: all that was missed");
    wait_until(LIMIT, || test.bus.stats().unwrap().processed == 16_001);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

/// As ticks were published a part at a time, it was over with the first part, or before it where that was one of ticks to be skipped.
#[test]
fn the_startup_drain_is_over_when_the_last_tick_that_was_missed_has_been_tried() {
    for (misfire, creeps) in [(Misfire::Skip, false), (Misfire::Once, false), (Misfire::Once, true)] {
        let clock = ManualClock::new(start_time());
        // Where it creeps, what is published now was not due when the worker started.
        let creeping = Moving(clock.clone(), if creeps { MICROSECOND } else { Duration::ZERO });
        let builder = Postbox::builder().handler_threads(2).clock(creeping);
        let dir = tempfile::tempdir().unwrap();
        let bus = builder.open(dir.path().join("app.db")).unwrap();
        let (entered, began) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = Mutex::new(ended);
        let last = move |_: &Event, _: &Context<'_>| {
            entered.send(()).unwrap();
            ended.lock().unwrap().recv_timeout(LIMIT).unwrap();
            Ok(())
        };
        bus.subscribe(Subscription::new("last", "waiting", last)).unwrap();
        bus.subscribe(Subscription::new("tick", "c", noting(&Calls::default(), "ran"))).unwrap();
        bus.transaction(|tx| -> postbox::Result<()> {
            let many = |n| (format!("s-{n}"), Schedule::every(HOUR, event("tick")).misfire(misfire));
            for (name, schedule) in (0..600).map(many) {
                tx.schedules().put(&name, schedule)?;
            }
            let schedule = Schedule::every(HOUR + MINUTE, event("last"));
            tx.schedules().put("last", schedule).map(drop)
        })
        .unwrap();
        clock.advance(HOUR + MINUTE * 10);
        let worker = bus.start().unwrap();
        began.recv_timeout(LIMIT).unwrap();
        let others = if misfire == Misfire::Skip { 0 } else { 600 };
        wait_until(LIMIT, || bus.stats().unwrap().processed == others);
        let limit = Duration::from_millis(100); // absence is what is asserted
        assert!(!worker.wait_for_startup_drain(limit), "{misfire}, a clock that creeps: {creeps}");
        end.send(()).unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        assert_eq!(bus.stats().unwrap().processed, others + 1);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

#[test]
fn observers_are_told_of_ticks_as_of_whatever_is_published() {
    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<String>>>);
    impl Observer for Told {
        fn published(&self, published: &Published<'_>) {
            self.0.lock().unwrap().push(published.event_name.to_owned());
        }
    }
    let told = Told::default();
    let test = memory_box_with(|builder| builder.observer(told.clone()));
    test.bus.schedules().put("s", minutely().misfire(Misfire::All { max: 2 })).unwrap();
    test.clock.advance(MINUTE * 2);
    test.bus.drain().unwrap();
    assert_eq!(*told.0.lock().unwrap(), ["tick", "tick"]);
}
