//! Everything that a box can do, by many threads at once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use postbox::{Error, NewEvent, OutboxStatus, Postbox, Subscription};

use crate::support::{LIMIT, Tally, counting, integer, listing, raw, sound_copy, unhurried};
use crate::{assert_each_effect_once, make_effects, number, subscribe_effects, wait_until_all_is_done, work};

/// Each thread does its own thing for so many rounds. Workers come and go, and are off for a third of the time.
#[test]
fn threads_that_do_everything_at_once_lose_nothing_and_double_nothing() {
    let rounds = number("POSTBOX_ROUNDS", 60);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = unhurried().open(&path).unwrap();
    make_effects(&bus);
    let plain = Tally::default();
    subscribe_effects(&bus, &plain);
    let all = Everything {
        bus: bus.clone(),
        copy: dir.path().join("copy.db"),
        next: AtomicUsize::new(0),
        published: Mutex::default(),
        passers_by: Tally::default(),
        unclean: AtomicUsize::new(0),
    };
    let jobs: [fn(&Everything, usize); 10] = [
        Everything::publish,
        Everything::publish,
        Everything::publish,
        Everything::come_and_go,
        Everything::tune,
        Everything::look,
        Everything::back_up,
        Everything::work_a_while,
        Everything::work_a_while,
        Everything::work_by_hand,
    ];
    thread::scope(|scope| {
        let (over, ended) = mpsc::channel::<()>();
        for job in jobs {
            let (all, over) = (&all, over.clone());
            scope.spawn(move || {
                (0..rounds).for_each(|round| job(all, round));
                drop(over);
            });
        }
        drop(over);
        let limit = LIMIT * u32::try_from(3 + rounds / 20).unwrap();
        if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("they wait for each other");
            std::process::abort(); // the scope would wait as well
        }
    });

    bus.update_settings(|settings| settings.processor_enabled = true).unwrap();
    let worker = bus.start().unwrap();
    wait_until_all_is_done(&bus, LIMIT);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    assert_eq!((all.unclean.into_inner(), bus.stats().unwrap().lost_leases), (0, 0));
    bus.close().unwrap();
    let published = all.published.into_inner().unwrap();
    eprintln!("{rounds} rounds: {} events, {} calls of passers-by", published.len(), all.passers_by.get());
    assert_eq!(published.len(), 3 * 4 * rounds);
    assert_each_effect_once(&path, &published);
    assert_eq!(plain.get(), published.len() as u64, "nobody died: the plain handler ran once as well");
    assert_eq!(
        integer(&raw(&path), "SELECT max(attempt_count) FROM outbox_event"),
        1,
        "an attempt was burned"
    );
    assert_eq!(listing(dir.path()), ["app.db", "copy.db"]);
}

struct Everything {
    bus: Postbox,
    copy: PathBuf,
    next: AtomicUsize,
    published: Mutex<Vec<usize>>,
    passers_by: Tally,
    unclean: AtomicUsize,
}

impl Everything {
    fn publish(&self, _: usize) {
        let n = self.next.fetch_add(4, Ordering::SeqCst);
        self.bus.publish(work(n)).unwrap();
        self.bus.publish_all([work(n + 1), work(n + 2)]).unwrap();
        self.bus.transaction(|tx| tx.publish(work(n + 3))).unwrap();
        self.published.lock().unwrap().extend(n..n + 4);
    }

    fn come_and_go(&self, round: usize) {
        let name = format!("passer-by.{round}");
        self.bus.subscribe(Subscription::new("*", &name, counting(&self.passers_by))).unwrap();
        self.bus.publish(NewEvent::new(&name, "tests", "Thing", "1")).unwrap();
        assert_eq!(self.bus.registry().remove_by_consumer_prefix(&name), 1);
    }

    fn tune(&self, round: usize) {
        let tuned = self.bus.update_settings(|settings| {
            settings.batch_size = 1 + u32::try_from(round % 30).unwrap();
            settings.processor_enabled = !round.is_multiple_of(3);
        });
        tuned.unwrap();
    }

    fn look(&self, _: usize) {
        let seen = self.bus.stats().unwrap();
        assert_eq!(seen.failed + seen.dead_letter, 0, "{seen:?}");
        assert_eq!(self.bus.outbox().count_by_status(OutboxStatus::DeadLetter).unwrap(), 0);
        assert!(self.bus.settings().batch_size >= 1);
    }

    /// Event and effect are of one moment in every copy.
    fn back_up(&self, _: usize) {
        self.bus.backup(&self.copy).unwrap();
        let copy = sound_copy(&self.copy);
        let torn = "SELECT count(*) FROM effect WHERE id NOT IN (SELECT id FROM outbox_event_readable)";
        assert_eq!(integer(&copy, torn), 0);
    }

    fn work_a_while(&self, round: usize) {
        let worker = loop {
            match self.bus.start() {
                Ok(worker) => break worker,
                Err(Error::WorkerRunning) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        if round.is_multiple_of(2) {
            worker.wait_for_startup_drain(Duration::from_millis(20));
        }
        let report = worker.shutdown(LIMIT).unwrap();
        self.unclean.fetch_add(usize::from(!report.clean), Ordering::SeqCst);
    }

    fn work_by_hand(&self, _: usize) {
        self.bus.process_batch().unwrap();
    }
}
