//! The startup drain.

use std::thread;
use std::time::{Duration, Instant};

use postbox::{Context, Event, HandlerError, Postbox, Settings, Subscription};

use crate::support::{
    LIMIT, Latch, ON_PURPOSE, Tally, blocking, event, manual_clock, quiet_panics_on_purpose, wait_until,
};
use crate::{SECOND, boxes, sized};

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
        let limit = if drains { Duration::from_millis(100) } else { LIMIT };
        assert_eq!(worker.wait_for_startup_drain(limit), !drains);
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
