//! A handler that hangs until its lease is gone, and then answers.

use postbox::{Context, Event, HandlerError, HandlerResult, OutboxStatus, Postbox, Subscription};

use crate::support::{LIMIT, Latch, Tally, integer, manual_clock, raw, start_of_time, status};
use crate::{SECOND, assert_each_effect_once, make_effects, work, write_effect};

/// The worker's own time stands still, so that it renews nothing; the other box's goes past the lease.
#[test]
fn what_a_handler_says_after_another_box_took_its_event_over_is_refused_and_counted() {
    for late in ["succeeds", "fails", "gives up"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let bus = Postbox::builder().clock(manual_clock()).open(&path).unwrap();
        make_effects(&bus);
        let (entered, latch, second) = (Tally::default(), Latch::default(), Tally::default());
        let (inside, wait) = (entered.clone(), latch.clone());
        bus.subscribe(
            Subscription::new("work", "slow", move |_: &Event, _: &Context<'_>| -> HandlerResult {
                inside.add();
                wait.wait();
                match late {
                    "succeeds" => Ok(()),
                    "fails" => Err(HandlerError::retry("late")),
                    _ => Err(HandlerError::dead_letter("late")),
                }
            })
            .priority(1),
        )
        .unwrap();
        bus.subscribe(Subscription::transactional("work", "inside", write_effect)).unwrap();
        let worker = bus.start().unwrap();
        let id = bus.publish(work(1)).unwrap();
        entered.wait_for(1);
        assert_eq!(bus.stats().unwrap().lost_leases, 0);

        let clock = postbox::testing::ManualClock::new(start_of_time() + 31 * SECOND);
        let other = Postbox::builder().clock(clock).open(&path).unwrap();
        other
            .subscribe(Subscription::new("work", "slow", crate::support::counting(&second)).priority(1))
            .unwrap();
        other.subscribe(Subscription::transactional("work", "inside", write_effect)).unwrap();
        assert_eq!(other.drain().unwrap(), 1, "{late}: it is taken over");
        assert_eq!(status(&other, id), (OutboxStatus::Processed, 2));

        latch.open();
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{late}");
        assert_eq!((bus.stats().unwrap().lost_leases, other.stats().unwrap().lost_leases), (1, 0), "{late}");
        assert_eq!(status(&bus, id), (OutboxStatus::Processed, 2), "{late}");
        assert_eq!((entered.get(), second.get()), (1, 1), "{late}");
        assert_each_effect_once(&path, &[1]);
        let conn = raw(&path);
        assert_eq!(
            integer(&conn, "SELECT count(*) FROM inbox_event WHERE status = 'processed'"),
            2,
            "{late}"
        );
        drop(conn);
        bus.close().unwrap();
        // It counts what this box has seen: another one begins at nothing.
        assert_eq!(Postbox::open(&path).unwrap().stats().unwrap().lost_leases, 0);
    }
}

#[test]
fn many_that_were_lost_are_counted_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::builder().clock(manual_clock()).handler_threads(1).open(&path).unwrap();
    make_effects(&bus);
    let (entered, latch) = (Tally::default(), Latch::default());
    bus.subscribe(Subscription::new("work", "slow", crate::support::blocking(&entered, &latch))).unwrap();
    let numbers: Vec<usize> = (0..7).collect();
    bus.publish_all(numbers.iter().map(|n| work(*n))).unwrap();
    let worker = bus.start().unwrap();
    entered.wait_for(1);
    // As if somebody had taken over all that it holds: one runs, the others wait for the thread.
    let taken =
        raw(&path).execute("UPDATE outbox_event SET lease_id = 123 WHERE status = 'processing'", []).unwrap();
    assert_eq!(taken, 7);
    latch.open();
    entered.wait_for(7);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    assert_eq!(bus.stats().unwrap().lost_leases, 7);
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM outbox_event WHERE lease_id = 123"), 7);
}
