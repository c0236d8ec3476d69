//! Two boxes on one file, as two processes have them: who owns what, and that nothing is done twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postbox::{
    Context, Event, HandlerError, InboxStatus, OutboxStatus, Postbox, Subscription, Tx, UnhandledEvents,
};
use serde_json::json;

use crate::support::{
    Calls, LEASE, MICROSECOND, SECOND, TestBox, add_effect, effects, event, file_box, inbox_rows,
    just_before, make_effects, noting, outbox_row, start_time, status,
};

/// The first owner's handler sleeps through its lease; meanwhile the second box takes over, and its handler says
/// `second`. Then the first says `first`.
fn late_outcome(
    test: &TestBox,
    first: fn() -> Result<(), HandlerError>,
    second: fn() -> Result<(), HandlerError>,
) -> Postbox {
    let taker = test.second();
    taker.subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| second())).unwrap();
    let (takes_over, clock) = (taker.clone(), test.clock.clone());
    test.bus
        .subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
            clock.advance(just_before(LEASE));
            takes_over.drain().unwrap();
            assert_eq!(takes_over.stats().unwrap().processing, 1, "it is not the second's yet");
            clock.advance(MICROSECOND);
            takes_over.drain().unwrap();
            first()
        }))
        .unwrap();
    taker
}

#[test]
fn a_failure_that_comes_after_the_lease_was_lost_is_refused() {
    let test = file_box();
    late_outcome(&test, || Err(HandlerError::dead_letter("too late")), || Ok(()));
    let id = test.bus.publish(event("a")).unwrap();
    assert_eq!(test.bus.process_batch().unwrap(), 0);
    let row = outbox_row(&test.bus, id);
    assert_eq!((row.status, row.attempt_count, row.last_error), (OutboxStatus::Processed, 2, None));
    // The attempt that was lost counts as a failed one.
    assert_eq!(inbox_rows(&test.bus, id), [("c".to_owned(), InboxStatus::Processed, 1, None)]);
}

#[test]
fn a_success_that_comes_after_the_lease_was_lost_is_refused() {
    let test = file_box();
    late_outcome(&test, || Ok(()), || Err(HandlerError::retry("the second's")));
    let id = test.bus.publish(event("a")).unwrap();
    assert_eq!(test.bus.process_batch().unwrap(), 0);
    let row = outbox_row(&test.bus, id);
    assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, 2));
    assert_eq!(row.last_error.as_deref(), Some("the second's"));
    assert_eq!(row.available_at, start_time() + LEASE + 2 * SECOND);
    let error = Some("the second's".to_owned());
    assert_eq!(inbox_rows(&test.bus, id), [("c".to_owned(), InboxStatus::Failed, 2, error)]);
    assert!(!test.bus.inbox().is_processed(id, "c").unwrap());
}

#[test]
fn a_transactional_handler_does_not_run_once_the_lease_was_lost() {
    let test = file_box();
    make_effects(&test.bus);
    let taker = test.second();
    let effect = |who: &'static str| move |_: &Event, tx: &Tx<'_>| Ok(add_effect(tx, who)?);
    taker.subscribe(Subscription::transactional("second", "c", effect("taker"))).unwrap();
    test.bus.subscribe(Subscription::transactional("second", "c", effect("first owner"))).unwrap();
    let (takes_over, clock) = (taker.clone(), test.clock.clone());
    test.bus
        .subscribe(Subscription::new("first", "slow", move |_: &Event, _: &Context<'_>| {
            clock.advance(LEASE);
            takes_over.drain().unwrap();
            Ok(())
        }))
        .unwrap();
    let ids = test.bus.publish_all([event("first"), event("second")]).unwrap();
    test.bus.process_batch().unwrap();
    assert_eq!(effects(&test.bus), ["taker"]);
    assert_eq!(status(&test.bus, ids[1]), OutboxStatus::Processed);
}

#[test]
fn what_one_box_publishes_or_has_waiting_the_other_delivers() {
    let test = file_box();
    let other = test.second();
    let calls = Calls::default();
    other.subscribe(Subscription::new("a", "c", noting(&calls, "other"))).unwrap();
    test.bus.publish(event("a")).unwrap();
    assert_eq!(other.drain().unwrap(), 1);
    test.bus.transaction(|tx| tx.publish(event("a").delay(SECOND))).unwrap();
    assert_eq!(other.drain().unwrap(), 0);
    test.clock.advance(SECOND);
    assert_eq!(other.drain().unwrap(), 1);
    assert_eq!(calls.all(), ["other", "other"]);
}

#[test]
fn two_boxes_that_publish_and_drain_at_once_do_everything_once() {
    const EVENTS: usize = 60;
    let test = file_box();
    make_effects(&test.bus);
    let other = test.second();
    let (calls, published, processed) = (Calls::default(), AtomicUsize::new(0), AtomicUsize::new(0));
    for bus in [&test.bus, &other] {
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "plain", move |event: &Event, _: &Context<'_>| {
            note.add(event.payload().to_string());
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::transactional("a", "tx", |event: &Event, tx: &Tx<'_>| {
            Ok(add_effect(tx, &event.payload().to_string())?)
        }))
        .unwrap();
    }
    let began = Instant::now();
    thread::scope(|scope| {
        for bus in [&test.bus, &other] {
            let (published, processed) = (&published, &processed);
            scope.spawn(move || {
                loop {
                    let n = published.fetch_add(1, Ordering::SeqCst);
                    if n >= EVENTS {
                        break;
                    }
                    bus.publish(event("a").payload(json!(n))).unwrap();
                }
            });
            scope.spawn(move || {
                while processed.load(Ordering::SeqCst) < EVENTS && began.elapsed() < Duration::from_secs(20) {
                    processed.fetch_add(bus.drain().unwrap(), Ordering::SeqCst);
                }
            });
        }
    });
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    let all = sorted((0..EVENTS).map(|n| n.to_string()).collect());
    assert_eq!(processed.into_inner(), EVENTS);
    assert_eq!(sorted(effects(&test.bus)), all);
    assert_eq!(sorted(calls.all()), all);
    let stats = test.bus.stats().unwrap();
    assert_eq!((stats.processed, stats.total), (EVENTS as u64, EVENTS as u64));
}

/// The box with the subscriber had looked for held events already, and saw no reason to look again.
#[test]
fn an_event_that_one_box_holds_for_want_of_a_subscriber_the_other_delivers() {
    let test = file_box();
    test.bus.update_settings(|settings| settings.unhandled_events = UnhandledEvents::Hold).unwrap();
    let calls = Calls::default();
    test.bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
    test.bus.publish(event("a")).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 1);

    let without_subscribers = test.second();
    let id = test.bus.publish(event("a")).unwrap();
    assert_eq!(without_subscribers.drain().unwrap(), 0);
    assert_eq!(outbox_row(&test.bus, id).available_at.year(), 9999, "it is held");
    assert_eq!(test.bus.drain().unwrap(), 1);
    assert_eq!(calls.all(), ["ran", "ran"]);
}
