//! What waits for something else than the newer release that is there is not let go at each poll, to be claimed and parked again.

use std::time::Duration;

use postbox::{Context, Event, EventFilter, EventId, HandlerError, NewEvent, PauseTarget, Subscription};

use crate::held_back::held_back;
use crate::support::{Calls, TestBox, boxes, noting, outbox_row};
use crate::{reading_v1, reading_v3, v3};

const HOUR: Duration = Duration::from_hours(1);

#[track_caller]
pub(crate) fn is_not_touched(test: &TestBox, id: EventId) {
    let before = outbox_row(&test.bus, id).updated_at;
    for _ in 0..3 {
        test.clock.advance(HOUR);
        assert_eq!(test.bus.drain().unwrap(), 0, "{}", test.kind);
        assert_eq!(outbox_row(&test.bus, id).updated_at, before, "{}", test.kind);
    }
}

fn other(calls: &Calls) -> Subscription {
    Subscription::new("invoice.created", "other", noting(calls, "other"))
}

#[test]
fn while_its_name_or_its_consumer_is_paused() {
    for paused in [PauseTarget::event_name("invoice.created"), PauseTarget::consumer("typed")] {
        for test in boxes() {
            let calls = Calls::default();
            test.bus.subscribe(reading_v3(&calls, "typed")).unwrap();
            test.bus.pause(&paused, None, None).unwrap();
            let id = test.bus.publish_typed(&v3("inv-1")).unwrap();
            assert_eq!(test.bus.drain().unwrap(), 0, "{}", test.kind);
            is_not_touched(&test, id);
            test.bus.resume(&paused).unwrap();
            assert_eq!((test.bus.drain().unwrap(), calls.all().len()), (1, 1), "{}", test.kind);
        }
    }
}

#[test]
fn while_it_waits_for_its_turn_and_for_the_pause_of_another_consumer() {
    for test in boxes() {
        let calls = Calls::default();
        let failing = |_: &Event, _: &Context<'_>| Err(HandlerError::dead_letter("no"));
        test.bus
            .subscribe_many([
                reading_v3(&calls, "typed").ordered(),
                Subscription::new("first", "typed", failing).ordered(),
                other(&calls),
            ])
            .unwrap();
        test.bus.pause(&PauseTarget::consumer("other"), None, None).unwrap();
        test.bus.publish(NewEvent::new("first", "finance", "Invoice", "inv-1")).unwrap();
        let id = test.bus.publish_typed(&v3("inv-1")).unwrap();
        assert_eq!(test.bus.drain().unwrap(), 0, "{}", test.kind);
        assert_eq!(test.bus.outbox().backlog().unwrap().paused, 1, "{}", test.kind);
        is_not_touched(&test, id);
        assert!(calls.all().is_empty());
    }
}

#[test]
fn while_there_is_no_room_with_another_consumer_and_the_release_is_still_too_old() {
    for test in boxes() {
        let calls = Calls::default();
        test.bus
            .subscribe_many([
                reading_v1(&calls, "typed").max_concurrency(1),
                other(&calls).rate_limit(1, HOUR * 900),
            ])
            .unwrap();
        let first = test.bus.publish_typed(&v3("inv-1")).unwrap();
        let second = test.bus.publish_typed(&v3("inv-2")).unwrap();
        assert_eq!((test.bus.drain().unwrap(), held_back(&test.bus)), (0, 1), "{}", test.kind);
        assert_eq!(test.bus.outbox().backlog().unwrap().limited, 1, "{}", test.kind);
        is_not_touched(&test, first);
        is_not_touched(&test, second);
    }
}

#[test]
fn while_it_is_replayed_for_a_consumer_that_is_too_old_and_others_are_not_asked() {
    for test in boxes() {
        let calls = Calls::default();
        let id = test.bus.publish_typed(&v3("inv-1")).unwrap();
        assert_eq!(test.bus.drain().unwrap(), 1);
        test.bus.subscribe_many([reading_v1(&calls, "typed"), other(&calls)]).unwrap();
        let filter = EventFilter::new().name("invoice.created");
        assert_eq!(test.bus.outbox().replay(&filter, "typed").unwrap(), 1);
        assert_eq!((test.bus.drain().unwrap(), held_back(&test.bus)), (0, 1), "{}", test.kind);
        is_not_touched(&test, id);
        assert!(calls.all().is_empty(), "{}", test.kind);
    }
}
