//! A whole box in memory: publishers, the hand-off, the worker, its pool, the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shuttle::thread;

use super::{in_many_orders, join_all};
use crate::outbox::insert::InsertJob;
use crate::settings::Settings;
use crate::{Context, Event, NewEvent, Postbox, Subscription, Tx};

const LIMIT: Duration = Duration::from_hours(1);

fn open() -> Postbox {
    // No startup drain: the worker sleeps at once, and publishers may hand over.
    let settings = Settings { startup_drain_enabled: false, ..Settings::default() };
    Postbox::builder().settings(settings).handler_threads(2).busy_timeout(LIMIT).open_in_memory().unwrap()
}

fn event(name: &str) -> NewEvent {
    NewEvent::new(name, "m", "T", "1")
}

/// Waits, as shuttle sees it, until a handler has said so.
#[derive(Clone, Default)]
struct Done(Arc<(shuttle::sync::Mutex<usize>, shuttle::sync::Condvar)>);

impl Done {
    fn add(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    fn wait_for(&self, count: usize) {
        let mut done = self.0.0.lock().unwrap();
        while *done < count {
            done = self.0.1.wait(done).unwrap();
        }
    }
}

fn subscribe(postbox: &Postbox, done: &Done) {
    let (plain, tx) = (done.clone(), done.clone());
    postbox
        .subscribe_many([
            Subscription::new("plain", "c", move |_: &Event, _: &Context<'_>| {
                plain.add();
                Ok(())
            }),
            Subscription::transactional("tx", "c", move |_: &Event, _: &Tx<'_>| {
                tx.add();
                Ok(())
            }),
        ])
        .unwrap();
}

#[test]
fn what_is_published_in_any_way_reaches_its_handlers_without_a_timeout() {
    in_many_orders(1_000, || {
        let (postbox, done) = (open(), Done::default());
        subscribe(&postbox, &done);
        let worker = postbox.start().unwrap();
        let ways: [fn(&Postbox) -> crate::Result<()>; 3] = [
            |postbox| postbox.publish(event("plain")).map(drop),
            |postbox| postbox.publish_all([event("tx"), event("plain")]).map(drop),
            |postbox| postbox.transaction(|tx| tx.publish(event("tx")).map(drop)),
        ];
        let publishers: Vec<_> = ways
            .into_iter()
            .map(|publish| {
                let postbox = postbox.clone();
                thread::spawn(move || publish(&postbox).unwrap())
            })
            .collect();
        join_all(publishers);
        done.wait_for(4);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        let stats = postbox.stats().unwrap();
        assert_eq!((stats.processed, stats.total, stats.lost_leases), (4, 4, 0));
        postbox.close().unwrap();
    });
}

#[test]
fn a_worker_that_is_stopped_at_any_time_ends_and_leaves_everything_done_or_pending() {
    static CUT_SHORT: AtomicUsize = AtomicUsize::new(0);
    in_many_orders(1_000, || {
        let (postbox, done) = (open(), Done::default());
        subscribe(&postbox, &done);
        let worker = postbox.start().unwrap();
        let publishers: Vec<_> = ["plain", "tx"]
            .into_iter()
            .map(|name| {
                let postbox = postbox.clone();
                thread::spawn(move || postbox.publish(event(name)).map(drop).unwrap())
            })
            .collect();
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        join_all(publishers);
        let stats = postbox.stats().unwrap();
        CUT_SHORT.fetch_add(usize::from(stats.pending > 0), Ordering::Relaxed);
        assert_eq!((stats.processing, stats.pending + stats.processed, stats.total), (0, 2, 2));
        // The next one does the rest.
        let worker = postbox.start().unwrap();
        done.wait_for(2);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        let stats = postbox.stats().unwrap();
        assert_eq!((stats.processed, stats.total, stats.lost_leases), (2, 2, 0));
    });
    assert!(CUT_SHORT.load(Ordering::Relaxed) > 0, "no schedule stopped a worker that had work");
}

/// What was meant for the first worker's threads is given back by its publisher, when the second may be asleep already.
#[test]
fn what_is_published_while_one_worker_follows_another_is_delivered_without_a_timeout() {
    in_many_orders(1_000, || {
        let (postbox, done) = (open(), Done::default());
        subscribe(&postbox, &done);
        let first = postbox.start().unwrap();
        let publisher = {
            let postbox = postbox.clone();
            thread::spawn(move || postbox.publish(event("plain")).unwrap())
        };
        assert!(first.shutdown(LIMIT).unwrap().clean);
        let second = postbox.start().unwrap();
        done.wait_for(1);
        publisher.join().unwrap();
        assert!(second.shutdown(LIMIT).unwrap().clean);
        let stats = postbox.stats().unwrap();
        assert_eq!((stats.processed, stats.total, stats.lost_leases), (1, 1, 0));
    });
}

/// The control: an event that is rung for before it is there.
#[test]
#[should_panic(expected = "deadlock")]
fn control_an_event_that_is_committed_after_its_ring_may_never_be_delivered() {
    in_many_orders(1_000, || {
        let (postbox, done) = (open(), Done::default());
        subscribe(&postbox, &done);
        let worker = postbox.start().unwrap();
        let core = postbox.core();
        let (prepared, _) = core.prepare(event("plain"), None).unwrap();
        core.bell.ring();
        let job = InsertJob { events: Arc::from([prepared]), clock: Arc::clone(&core.clock), lease: None };
        core.db.submit("publish", job).unwrap();
        done.wait_for(1);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    });
}
