//! Several boxes on one file, as several processes have it.

use std::time::Duration;

use postbox::testing::ManualClock;
use postbox::{Context, Event, OutboxStatus, Postbox, Subscription, Tx};

use crate::support::{Calls, SECOND, TestBox, event, file_box, noting, start_time, status, wait_until};
use crate::{consumer, is_parked, parked, rows};

const LIMIT: Duration = Duration::from_mins(1);

fn two(calls: &Calls) -> (TestBox, Postbox) {
    let test = file_box();
    let other = test.second();
    for bus in [&test.bus, &other] {
        bus.subscribe(Subscription::new("a", "c", noting(calls, "ran"))).unwrap();
    }
    (test, other)
}

#[test]
fn a_pause_of_one_box_holds_for_the_others() {
    let calls = Calls::default();
    let (test, other) = two(&calls);
    other.pause(&consumer("c"), Some("offline"), None).unwrap();
    let id = test.bus.publish(event("a")).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 0);
    assert!(is_parked(&test.bus, id));
    assert_eq!(test.bus.pauses().unwrap(), other.pauses().unwrap());
    assert!(other.resume(&consumer("c")).unwrap());
    assert_eq!(test.bus.drain().unwrap(), 1);
    assert_eq!((rows(&other), other.drain().unwrap()), (0, 0));
}

/// What one box lets go, the other's book still has; each finds what the other has done.
#[test]
fn two_boxes_let_go_of_the_same_events_and_none_is_lost_or_run_twice() {
    let calls = Calls::default();
    let (test, other) = two(&calls);
    for round in 0..3 {
        test.bus.pause(&consumer("c"), None, None).unwrap();
        test.bus.publish_all((0..1_200).map(|_| event("a"))).unwrap();
        other.drain().unwrap();
        assert_eq!(parked(&test.bus), 1_200, "{round}");
        test.bus.resume(&consumer("c")).unwrap();
        for _ in 0..3 {
            test.bus.process_batch().unwrap();
            other.process_batch().unwrap();
        }
        other.drain().unwrap();
        test.bus.drain().unwrap();
        assert_eq!((calls.take().len(), parked(&test.bus), rows(&test.bus)), (1_200, 0, 0), "{round}");
    }
}

/// While a handler runs, another box ends the pause that its event was to wait for, and lets go whatever waits by then.
#[test]
fn an_event_is_not_parked_for_a_pause_that_has_ended_while_its_other_handlers_ran() {
    for transactional in [false, true] {
        let calls = Calls::default();
        let test = file_box();
        let bus = &test.bus;
        let other = test.second();
        let resume = move || {
            if other.resume(&consumer("paused")).unwrap() {
                other.drain().unwrap();
                assert_eq!(rows(&other), 0, "it is forgotten");
            }
        };
        bus.subscribe_many([
            Subscription::new("a", "resumes", move |_: &Event, _: &Context<'_>| {
                resume();
                Ok(())
            }),
            if transactional {
                Subscription::transactional("a", "last", |_: &Event, _: &Tx<'_>| Ok(())).priority(-1)
            } else {
                Subscription::new("a", "last", noting(&calls, "last")).priority(-1)
            },
            Subscription::new("a", "paused", noting(&calls, "paused")),
        ])
        .unwrap();
        bus.pause(&consumer("paused"), None, None).unwrap();
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "transactional: {transactional}");
        assert_eq!(calls.count("paused"), 1);
    }
}

/// The box whose clock is ahead ends the pause for both.
#[test]
fn clocks_that_differ_lose_nothing() {
    let calls = Calls::default();
    let test = file_box();
    let ahead = ManualClock::new(start_time() + Duration::from_hours(1));
    let other = Postbox::builder().clock(ahead).open(test.path()).unwrap();
    for bus in [&test.bus, &other] {
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
    }
    test.bus.pause(&consumer("c"), None, Some(SECOND)).unwrap();
    test.bus.publish_all((0..700).map(|_| event("a"))).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 0);
    assert!(other.process_batch().unwrap() > 0, "it is over for this one, and by that for both");
    test.bus.publish_all((0..700).map(|_| event("a"))).unwrap();
    test.bus.drain().unwrap();
    other.drain().unwrap();
    assert_eq!((calls.all().len(), parked(&test.bus), rows(&test.bus)), (1_400, 0, 0));
}

#[test]
fn a_worker_notices_what_another_box_pauses_and_resumes() {
    let calls = Calls::default();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
    let worker = bus.start().unwrap();
    let operator = Postbox::open(&path).unwrap();
    operator.pause(&consumer("c"), None, None).unwrap();
    let mut published = 0;
    wait_until(LIMIT, || {
        let id = bus.publish(event("a")).unwrap();
        published += 1;
        wait_until(LIMIT, || is_parked(&bus, id) || status(&bus, id) == OutboxStatus::Processed);
        is_parked(&bus, id)
    });
    assert_eq!(calls.take().len(), published - 1, "those that it had not noticed the pause for");
    let waits = bus.publish_all((0..5).map(|_| event("a"))).unwrap();
    wait_until(LIMIT, || waits.iter().all(|id| is_parked(&bus, *id)));
    assert!(calls.all().is_empty());
    operator.resume(&consumer("c")).unwrap();
    drop(operator);
    wait_until(LIMIT, || bus.stats().unwrap().pending == 0 && rows(&bus) == 0);
    wait_until(LIMIT, || calls.all().len() == 6);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}
