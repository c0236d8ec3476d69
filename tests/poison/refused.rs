//! Rows that the application's own triggers keep from being claimed, or even set aside: alone.

use std::time::Duration;

use postbox::{Error, OutboxStatus};

use crate::support::{boxes, event, sql, wait_until};
use crate::{BOTH, By, Victim};

const LIMIT: Duration = Duration::from_mins(1);

/// Every write to the row of number 3.
fn forbid(victim: &Victim, action: &str) {
    sql(&victim.test.bus, |tx| {
        tx.execute_batch(&format!(
            "CREATE TRIGGER forbids BEFORE UPDATE ON outbox_event WHEN OLD.seq = 3 BEGIN SELECT RAISE({action}); END"
        ))
    });
}

const ACTIONS: [&str; 4] = ["IGNORE", "ABORT, 'no'", "FAIL, 'no'", "ROLLBACK, 'no'"];

/// It stopped every claim, and so every event.
#[test]
fn a_row_that_cannot_be_claimed_waits_and_its_neighbours_are_delivered() {
    for action in ACTIONS {
        for by in BOTH {
            for test in boxes() {
                let victim = Victim::new(test);
                forbid(&victim, action);
                let (kind, bus) = (victim.test.kind, &victim.test.bus);
                match by {
                    By::Drain => assert!(
                        matches!(bus.drain(), Err(Error::NotStored { .. } | Error::Sqlite(_))),
                        "{kind}: {action}"
                    ),
                    By::Worker => {
                        let worker = bus.start().unwrap();
                        wait_until(LIMIT, || bus.stats().unwrap().processed == 4);
                        assert!(worker.shutdown(LIMIT).unwrap().clean);
                    }
                }
                victim.assert_others_are_through(by);
                let row = bus.outbox().get(victim.id()).unwrap().unwrap();
                assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, 0), "{kind}: {action}");
                sql(bus, |tx| tx.execute_batch("DROP TRIGGER forbids"));
                assert_eq!(bus.drain().unwrap(), 1, "{kind}: {action}");
            }
        }
    }
}

#[test]
fn a_row_that_can_be_neither_read_nor_set_aside_waits_and_its_neighbours_are_delivered() {
    for action in ACTIONS {
        for by in BOTH {
            for test in boxes() {
                let victim = Victim::new(test);
                victim.poison("payload = 'not JSON', created_at = -1");
                forbid(&victim, action);
                let (kind, bus) = (victim.test.kind, &victim.test.bus);
                match by {
                    By::Drain => assert!(bus.drain().is_err(), "{kind}: {action}"),
                    By::Worker => {
                        let worker = bus.start().unwrap();
                        wait_until(LIMIT, || bus.stats().unwrap().processed == 4);
                        assert!(worker.shutdown(LIMIT).unwrap().clean);
                    }
                }
                victim.assert_others_are_through(by);
                sql(bus, |tx| tx.execute_batch("DROP TRIGGER forbids"));
                assert_eq!(bus.drain().unwrap(), 0);
                assert_eq!(bus.stats().unwrap().dead_letter, 1, "{kind}: {action}");
            }
        }
    }
}

/// More of them than a claim takes stood in front of all others.
#[test]
fn many_that_cannot_be_claimed_do_not_stand_in_the_way() {
    for by in BOTH {
        for test in boxes() {
            let victim = Victim::new(test);
            let bus = &victim.test.bus;
            let stuck = bus.publish_all((0..25).map(|_| event("stuck").payload(7.into()))).unwrap();
            sql(bus, |tx| {
                tx.execute_batch(
                    "UPDATE outbox_event SET available_at = 0 WHERE event_name = 'stuck';
                     CREATE TRIGGER forbids BEFORE UPDATE ON outbox_event WHEN OLD.event_name = 'stuck' BEGIN SELECT RAISE(ABORT, 'no'); END",
                )
            });
            match by {
                By::Drain => assert!(bus.drain().is_err()),
                By::Worker => {
                    let worker = bus.start().unwrap();
                    wait_until(LIMIT, || bus.stats().unwrap().processed == 5);
                    // What comes later as well, which the publisher hands over or the worker claims.
                    bus.publish_all((0..15).map(|_| event("a"))).unwrap();
                    wait_until(LIMIT, || bus.stats().unwrap().processed == 20);
                    assert!(worker.shutdown(LIMIT).unwrap().clean);
                }
            }
            assert_eq!(bus.stats().unwrap().pending, stuck.len() as u64);
        }
    }
}
