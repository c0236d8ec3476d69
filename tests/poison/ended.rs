//! Rows whose writes the application's own triggers answer by rolling the whole transaction back: they end nobody else's.

use std::sync::mpsc;
use std::time::Duration;

use postbox::{Context, Event, OutboxStatus, Postbox, Settings, Subscription};

use crate::support::{
    Calls, LEASE, boxes, boxes_with, effects, ends, event, file_box, file_box_with, inbox_rows, noting, sql,
    status, wait_until,
};
use crate::{BOTH, By, Victim};

const LIMIT: Duration = Duration::from_mins(1);

fn roll_back(bus: &Postbox, on: &str, when: &str) {
    sql(bus, |tx| {
        tx.execute_batch(&format!(
            "CREATE TRIGGER forbids {on} WHEN {when} BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
        ))
    });
}

/// All processing of the box stopped.
#[test]
fn an_event_whose_settlement_is_rolled_back_is_set_aside_and_its_neighbours_are_delivered() {
    for by in BOTH {
        for test in boxes() {
            let calls = Calls::default();
            test.bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
            let ids = test.bus.publish_all((0..5).map(|_| event("a"))).unwrap();
            roll_back(&test.bus, "BEFORE UPDATE ON outbox_event", "OLD.seq = 3 AND NEW.status = 'processed'");
            deliver_others(&test.bus, by);
            let row = test.bus.outbox().get(ids[2]).unwrap().unwrap();
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::DeadLetter, 1), "{}", test.kind);
            assert!(row.last_error.unwrap().contains("cannot be recorded"));
            assert_eq!(calls.all(), ["ran"; 5], "{}, {by:?}", test.kind);
        }
    }
}

#[test]
fn an_event_with_consumers_of_both_kinds_whose_settlement_is_rolled_back_is_set_aside_alone() {
    for (on, when) in [
        ("BEFORE UPDATE ON outbox_event", "OLD.seq = 3 AND NEW.status = 'processed'"),
        ("BEFORE INSERT ON inbox_event", "NEW.event = 3"),
    ] {
        for by in BOTH {
            for test in boxes() {
                let victim = Victim::new(test);
                let bus = &victim.test.bus;
                roll_back(bus, on, when);
                deliver_others(bus, by);
                assert_eq!(effects(bus), ["ran"; 4], "{}, {by:?}", victim.test.kind);
                // Its transactional consumer, whose work could not be committed, may try again.
                let row = bus.outbox().get(victim.id()).unwrap().unwrap();
                assert!(row.last_error.unwrap().contains("cannot be recorded"), "{}", victim.test.kind);
                for _ in 0..20 {
                    victim.test.clock.advance(Duration::from_hours(1));
                    bus.drain().unwrap();
                }
                assert_eq!(
                    status(bus, victim.id()),
                    OutboxStatus::DeadLetter,
                    "{}, {by:?}",
                    victim.test.kind
                );
            }
        }
    }
}

fn deliver_others(bus: &Postbox, by: By) {
    match by {
        By::Drain => assert_eq!(bus.drain().unwrap(), 4),
        By::Worker => {
            let worker = bus.start().unwrap();
            wait_until(LIMIT, || {
                let stats = bus.stats().unwrap();
                stats.processed == 4 && stats.processing == 0
            });
            assert!(worker.shutdown(LIMIT).unwrap().clean);
        }
    }
}

#[test]
fn an_event_that_can_be_neither_settled_nor_set_aside_waits_for_its_lease_and_its_neighbours_are_delivered() {
    for by in BOTH {
        for test in boxes() {
            let calls = Calls::default();
            test.bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
            let bad = test.bus.publish(event("bad")).unwrap();
            let good = test.bus.publish_all((0..5).map(|_| event("good"))).unwrap();
            roll_back(
                &test.bus,
                "BEFORE UPDATE ON outbox_event",
                "OLD.event_name = 'bad' AND OLD.status = 'processing' AND NEW.status <> 'processing'",
            );
            match by {
                By::Drain => assert_eq!(test.bus.drain().unwrap(), 5, "{}", test.kind),
                By::Worker => {
                    let worker = test.bus.start().unwrap();
                    wait_until(LIMIT, || test.bus.stats().unwrap().processed == 5);
                    assert!(worker.shutdown(LIMIT).unwrap().clean);
                }
            }
            assert_eq!(calls.take(), ["ran"; 6], "{}", test.kind);
            assert_eq!(status(&test.bus, bad), OutboxStatus::Processing, "{}", test.kind);
            for id in good {
                assert_eq!(status(&test.bus, id), OutboxStatus::Processed);
            }
            assert_eq!(test.bus.health(), postbox::Health::Ok);

            sql(&test.bus, |tx| tx.execute_batch("DROP TRIGGER forbids"));
            test.clock.advance(LEASE);
            assert_eq!(test.bus.drain().unwrap(), 1, "{}", test.kind);
            assert_eq!(calls.all(), ["ran"], "nobody knows what came of it: it is delivered again");
        }
    }
}

/// It is settled in the transaction that claims it.
#[test]
fn an_event_for_nobody_whose_settlement_is_rolled_back_waits_alone() {
    for by in BOTH {
        for test in boxes() {
            let calls = Calls::default();
            test.bus.subscribe(Subscription::new("good", "c", noting(&calls, "ran"))).unwrap();
            let bad = test.bus.publish(event("bad")).unwrap();
            test.bus.publish_all((0..5).map(|_| event("good"))).unwrap();
            roll_back(
                &test.bus,
                "BEFORE UPDATE ON outbox_event",
                "OLD.event_name = 'bad' AND OLD.status = 'processing'",
            );
            match by {
                By::Drain => assert!(test.bus.drain().is_err(), "{}", test.kind),
                By::Worker => {
                    let worker = test.bus.start().unwrap();
                    wait_until(LIMIT, || test.bus.stats().unwrap().processed == 5);
                    assert!(worker.shutdown(LIMIT).unwrap().clean);
                }
            }
            assert_eq!(
                (calls.all().len(), status(&test.bus, bad)),
                (5, OutboxStatus::Pending),
                "{}",
                test.kind
            );
        }
    }
}

#[test]
fn a_lease_whose_renewal_is_refused_stops_nobody() {
    for action in ["ROLLBACK", "ABORT"] {
        for test in boxes_with(|builder| builder.handler_threads(2)) {
            let bus = &test.bus;
            let (entered, is_inside) = mpsc::channel();
            let (let_go, gate) = mpsc::channel::<()>();
            let gate = std::sync::Mutex::new(gate);
            bus.subscribe(Subscription::new("slow", "c", move |_: &Event, _: &Context<'_>| {
                entered.send(())?;
                Ok(gate.lock().unwrap().recv()?)
            }))
            .unwrap();
            let calls = Calls::default();
            bus.subscribe(Subscription::new("good", "c", noting(&calls, "ran"))).unwrap();
            let worker = bus.start().unwrap();
            let slow = bus.publish(event("slow")).unwrap();
            is_inside.recv_timeout(LIMIT).unwrap();
            sql(bus, |tx| {
                tx.execute_batch(&format!(
                    "CREATE TRIGGER forbids BEFORE UPDATE ON outbox_event WHEN OLD.status = 'processing' AND NEW.status = 'processing'
                     BEGIN SELECT RAISE({action}, 'no'); END"
                ))
            });
            test.clock.advance(LEASE / 2);
            test.clock.advance(LEASE);
            bus.publish(event("good")).unwrap();
            wait_until(LIMIT, || calls.all() == ["ran"]);
            let_go.send(()).unwrap();
            wait_until(LIMIT, || bus.stats().unwrap().processed == 2);
            assert_eq!(status(bus, slow), OutboxStatus::Processed, "{}: {action}", test.kind);
            assert_eq!(inbox_rows(bus, slow).len(), 1);
            assert!(worker.shutdown(LIMIT).unwrap().clean);
        }
    }
}

/// By the time that it came to the last of them, the first had been left alone for long enough: it went round for ever.
#[test]
fn however_many_roll_back_when_they_are_claimed_the_worker_can_be_stopped() {
    for test in boxes_with(|builder| builder.settings(Settings { batch_size: 1, ..Settings::default() })) {
        let bus = &test.bus;
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
        bus.publish(event("good")).unwrap();
        bus.publish_all((0..5_000).map(|_| event("bad"))).unwrap();
        roll_back(bus, "BEFORE UPDATE ON outbox_event", "OLD.event_name = 'bad'");
        let worker = bus.start().unwrap();
        // It is settled in a turn that comes upon the bad ones.
        wait_until(LIMIT, || bus.stats().unwrap().processed == 1);
        let stopped = ends(move || {
            let report = worker.shutdown(LIMIT);
            report.map(|report| report.clean)
        });
        assert!(stopped.unwrap(), "{}", test.kind);
        assert_eq!((calls.all().len(), bus.stats().unwrap().pending), (1, 5_000), "{}", test.kind);
    }
}

/// It kept every box from being opened.
#[test]
fn a_claim_of_the_dead_that_cannot_be_taken_over_stays_and_the_others_are_taken() {
    let test = file_box();
    let calls = Calls::default();
    let ids = test.bus.publish_all((0..5).map(|_| event("a"))).unwrap();
    let conn = test.app_connection();
    // As a process leaves them that was killed: its lock file is there, and nobody holds it.
    let claimed = conn
        .execute(
            "UPDATE outbox_event SET status = 'processing', attempt_count = 1, lease_id = ?1, available_at = available_at + 3600000000",
            [42_i64 << 24 | 1],
        )
        .unwrap();
    assert_eq!(claimed, 5);
    std::fs::write(test.path().with_file_name("app.db-postbox-0000002a"), []).unwrap();
    roll_back(&test.bus, "BEFORE UPDATE ON outbox_event", "OLD.seq = 3");

    let second = test.second();
    second.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
    assert_eq!(second.drain().unwrap(), 4);
    assert_eq!(calls.all().len(), 4);
    assert_eq!(status(&second, ids[2]), OutboxStatus::Processing);
}

/// Each look went through all of them again, and those of before came first: others waited for minutes.
#[test]
fn thousands_that_roll_back_when_they_are_claimed_do_not_keep_others_waiting() {
    let test = file_box_with(|builder| builder.settings(Settings { batch_size: 100, ..Settings::default() }));
    let bus = &test.bus;
    let calls = Calls::default();
    bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
    bus.publish_all((0..1_500).map(|_| event("bad"))).unwrap();
    roll_back(bus, "BEFORE UPDATE ON outbox_event", "OLD.event_name = 'bad'");
    bus.publish(event("good")).unwrap();
    let worker = bus.start().unwrap();
    wait_until(LIMIT * 3, || calls.all().len() == 1);
    // Nothing is forgotten.
    sql(bus, |tx| tx.execute_batch("DROP TRIGGER forbids"));
    wait_until(LIMIT * 6, || bus.stats().unwrap().processed == 1_501);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

#[test]
fn a_batch_by_hand_passes_rows_that_cannot_be_claimed() {
    for action in ["ROLLBACK", "ABORT"] {
        for test in boxes() {
            let bus = &test.bus;
            let calls = Calls::default();
            bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
            bus.publish_all((0..50).map(|_| event("bad"))).unwrap();
            sql(bus, |tx| {
                tx.execute_batch(&format!(
                    "CREATE TRIGGER forbids BEFORE UPDATE ON outbox_event WHEN OLD.event_name = 'bad' BEGIN SELECT RAISE({action}, 'no'); END"
                ))
            });
            bus.publish_all((0..5).map(|_| event("good"))).unwrap();
            // On a slow disk one batch is cut short, and takes one of them at the least.
            for _ in 0..5 {
                assert!(bus.process_batch().is_err(), "{}: it is said", test.kind);
            }
            assert_eq!(calls.all(), ["ran"; 5], "{}: {action}", test.kind);
        }
    }
}
