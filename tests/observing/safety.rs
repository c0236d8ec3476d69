//! What observers cannot do: fail a box, write into it, or wait for themselves.

use std::sync::{Arc, Mutex, OnceLock};

use log::{LevelFilter, Log, Metadata, Record};
use postbox::{
    DeadLettered, Drained, Error, Failed, Finished, HandlerError, Observer, OutboxStatus, Postbox, Published,
    Started,
};

use crate::support::{Calls, LIMIT, TestBox, assert_reentrant, boxes_with, ends, event, status};
use crate::{CANARY, Notes, both_kinds};

static PANICS_LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Captured;

impl Log for Captured {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        if line.contains("observer panicked") {
            PANICS_LOGGED.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

struct Panicking;

/// Something that panics once more when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("{CANARY}");
    }
}

impl Observer for Panicking {
    fn published(&self, _: &Published<'_>) {
        panic!("{CANARY}");
    }
    fn started(&self, _: &Started<'_>) {
        panic!("{CANARY}");
    }
    fn finished(&self, _: &Finished<'_>) {
        std::panic::panic_any(Bomb);
    }
    fn failed(&self, _: &Failed<'_>) {
        panic!("{CANARY}");
    }
    fn dead_lettered(&self, _: &DeadLettered<'_>) {
        panic!("{CANARY}");
    }
    fn drained(&self, _: &Drained) {
        panic!("{CANARY}");
    }
}

#[test]
fn an_observer_that_panics_changes_nothing_and_is_logged_once() {
    log::set_logger(&Captured).unwrap();
    log::set_max_level(LevelFilter::Trace);
    for of_kind in 0..2 {
        let notes = Notes::default();
        for TestBox { kind, bus, .. } in
            boxes_with(|builder| builder.observer(Panicking).observer(notes.clone()))
        {
            let [plain, transactional] =
                both_kinds(
                    "a",
                    "c",
                    |attempt| {
                        if attempt == 1 { Err(HandlerError::retry("again")) } else { Ok(()) }
                    },
                );
            let (handler, subscription) = if of_kind == 0 { plain } else { transactional };
            bus.subscribe(subscription).unwrap();
            let [never, _] = both_kinds("b", "d", |_| Err(HandlerError::dead_letter("never")));
            bus.subscribe(never.1).unwrap();
            let done = bus.publish(event("a")).unwrap();
            let dead = bus.transaction(|tx| tx.publish(event("b"))).unwrap();
            assert_eq!(bus.drain().unwrap(), 1);
            assert_eq!(status(&bus, done), OutboxStatus::Processed, "{handler}, {kind}");
            assert_eq!(status(&bus, dead), OutboxStatus::DeadLetter, "{handler}, {kind}");
            // The next observer is told all the same.
            let mut told = notes.take();
            told.sort();
            assert_eq!(
                told,
                [
                    "dead_letter b, 1",
                    "drained 1",
                    "failed a by c, 1",
                    "failed b by d, 1, for good",
                    "finished a by c, 2",
                    "published a",
                    "published b",
                    "started a by c, 1",
                    "started a by c, 2",
                    "started b by d, 1",
                ],
                "{handler}, {kind}"
            );
            let logged = std::mem::take(&mut *PANICS_LOGGED.lock().unwrap());
            assert_eq!(logged.len(), 1, "{handler}, {kind}: {logged:?}");
            assert!(!logged[0].contains(CANARY));
        }
    }
}

/// Calls everything at every moment at which it is told something.
struct Meddling {
    bus: Arc<OnceLock<Postbox>>,
    other: Postbox,
    moments: Calls,
}

impl Meddling {
    fn meddle(&self, moment: &str) {
        let Some(bus) = self.bus.get() else { return };
        assert_reentrant(bus.publish(event("x")));
        assert_reentrant(bus.publish_all([event("x"), event("y")]));
        assert_reentrant(bus.transaction(|tx| tx.publish(event("x"))));
        assert_reentrant(bus.drain());
        assert_reentrant(bus.process_batch());
        assert_reentrant(bus.update_settings(|settings| settings.batch_size = 7));
        assert_reentrant(bus.prune());
        assert_reentrant(bus.clone().close());
        // It may look.
        assert!(bus.stats().unwrap().total > 0);
        assert!(!bus.lag().unwrap().is_empty());
        assert!(bus.outbox().count_by_status(OutboxStatus::Pending).is_ok());
        // What another box is told is another matter.
        self.other.publish(event("x")).unwrap();
        self.moments.add(moment);
    }
}

impl Observer for Meddling {
    fn published(&self, _: &Published<'_>) {
        self.meddle("published");
    }
    fn started(&self, _: &Started<'_>) {
        self.meddle("started");
    }
    fn finished(&self, _: &Finished<'_>) {
        self.meddle("finished");
    }
    fn failed(&self, _: &Failed<'_>) {
        self.meddle("failed");
    }
    fn dead_lettered(&self, _: &DeadLettered<'_>) {
        self.meddle("dead");
    }
    fn drained(&self, _: &Drained) {
        self.meddle("drained");
    }
}

#[test]
fn an_observer_may_look_and_not_write_whenever_it_is_told() {
    for by_worker in [false, true] {
        for of_kind in 0..2 {
            let bus_of_observer = Arc::new(Mutex::new(Vec::new()));
            let moments = Calls::default();
            let boxes = boxes_with(|builder| {
                let bus = Arc::new(OnceLock::new());
                bus_of_observer.lock().unwrap().push(Arc::clone(&bus));
                let other = Postbox::open_in_memory().unwrap();
                builder.observer(Meddling { bus, other, moments: moments.clone() })
            });
            for (test, cell) in boxes.into_iter().zip(bus_of_observer.lock().unwrap().drain(..)) {
                let bus = test.bus.clone();
                let _ = cell.set(bus.clone());
                let [plain, transactional] = both_kinds("a", "c", |attempt| match attempt {
                    1 => Err(HandlerError::retry("again")),
                    _ => Ok(()),
                });
                let (handler, subscription) = if of_kind == 0 { plain } else { transactional };
                let [never, _] = both_kinds("b", "d", |_| Err(HandlerError::dead_letter("never")));
                bus.subscribe_many([subscription, never.1]).unwrap();
                let (told, kind) = (moments.clone(), test.kind);
                ends(move || {
                    bus.publish(event("a")).unwrap();
                    bus.transaction(|tx| tx.publish(event("b"))).unwrap();
                    if by_worker {
                        let worker = bus.start().unwrap();
                        crate::support::wait_until(LIMIT, || told.count("drained") > 0);
                        worker.shutdown(LIMIT).unwrap();
                    } else {
                        assert_eq!(bus.drain().unwrap(), 1);
                    }
                });
                for (moment, least) in
                    [("published", 2), ("started", 3), ("finished", 1), ("failed", 2), ("dead", 1)]
                {
                    assert_eq!(
                        moments.count(moment),
                        least,
                        "{moment}, {handler}, {kind}, worker: {by_worker}"
                    );
                }
                moments.take();
                test.bus.close().unwrap();
            }
        }
    }
}

#[test]
fn the_error_says_that_it_was_an_observer() {
    struct Publishing(Arc<OnceLock<Postbox>>, Calls);
    impl Observer for Publishing {
        fn published(&self, _: &Published<'_>) {
            let Some(bus) = self.0.get() else { return };
            match bus.publish(event("x")) {
                Err(error @ Error::Reentrant { .. }) => self.1.add(error.to_string()),
                other => self.1.add(format!("{other:?}")),
            }
        }
    }
    let (cell, said) = (Arc::new(OnceLock::new()), Calls::default());
    let bus =
        Postbox::builder().observer(Publishing(Arc::clone(&cell), said.clone())).open_in_memory().unwrap();
    let _ = cell.set(bus.clone());
    bus.publish(event("a")).unwrap();
    assert_eq!(
        said.take(),
        [
            "publish was called inside an observer of the same box and would wait for itself; let another thread do it"
        ]
    );
    // It is over with the call.
    bus.publish(event("a")).unwrap();
}
