//! A consumer has fewer attempts by now than it has failed, and the event waits for another one.

use std::time::Duration;

use postbox::{Context, Event, EventId, HandlerError, NewEvent, OutboxStatus, PauseTarget, Subscription};

use crate::held_back::held_back;
use crate::not_touched::is_not_touched;
use crate::support::{Calls, TestBox, file_box, inbox_rows, noting, outbox_row};
use crate::{CreatedV3, reading_v1, reading_v3, v1, v3};

const HOUR: Duration = Duration::from_hours(1);

fn failing(attempts: u32) -> Subscription {
    Subscription::typed::<CreatedV3>("failing", |_, _| Err(HandlerError::retry("no"))).max_attempts(attempts)
}

fn other() -> Subscription {
    Subscription::new("invoice.created", "other", noting(&Calls::default(), "other"))
}

/// Each poll let it go, and it was claimed, planned and parked again: a write of its row, and two of its lease, for each such event.
#[track_caller]
fn waits_untouched(test: &TestBox, id: EventId) {
    test.clock.advance(HOUR);
    test.bus.drain().unwrap();
    is_not_touched(test, id);
    let row = outbox_row(&test.bus, id);
    assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, 1));
}

#[test]
fn what_waits_for_a_newer_release_as_well_is_not_touched_and_goes_on_with_it() {
    let test = file_box();
    let typed = Calls::default();
    test.bus.subscribe_many([reading_v1(&typed, "typed"), failing(5)]).unwrap();
    let id = test.bus.publish_typed(&v3("inv-1")).unwrap();
    test.bus.drain().unwrap();
    let test = test.reopen();
    test.bus.subscribe_many([reading_v1(&typed, "typed"), failing(1)]).unwrap();
    waits_untouched(&test, id);
    assert_eq!(held_back(&test.bus), 1);
    test.bus.registry().remove_by_consumer_prefix("typed");
    test.bus.subscribe(reading_v3(&typed, "typed")).unwrap();
    test.bus.drain().unwrap();
    assert_eq!(typed.all(), ["inv-1: 990 CHF"]);
    assert_eq!(outbox_row(&test.bus, id).status, OutboxStatus::DeadLetter);
}

#[test]
fn what_waits_for_a_newer_release_while_the_settings_change_is_not_touched_and_goes_on_when_they_do() {
    let test = file_box();
    let failing = Subscription::typed::<CreatedV3>("failing", |_, _| Err(HandlerError::retry("no")));
    test.bus.subscribe_many([reading_v1(&Calls::default(), "typed"), failing]).unwrap();
    let id = test.bus.publish_typed(&v3("inv-1")).unwrap();
    test.bus.drain().unwrap();
    test.bus.update_settings(|settings| settings.max_attempts = 1).unwrap();
    waits_untouched(&test, id);
    test.bus.update_settings(|settings| settings.max_attempts = 2).unwrap();
    test.clock.advance(HOUR);
    test.bus.drain().unwrap();
    assert_eq!(inbox_rows(&test.bus, id)[0].2, 2, "its second attempt");
}

#[test]
fn what_waits_for_a_pause_as_well_is_not_touched() {
    let test = file_box();
    test.bus.pause(&PauseTarget::consumer("other"), None, None).unwrap();
    test.bus.subscribe_many([other(), failing(5)]).unwrap();
    let id = test.bus.publish_typed(&v3("inv-1")).unwrap();
    test.bus.drain().unwrap();
    let test = test.reopen();
    test.bus.subscribe_many([other(), failing(1)]).unwrap();
    waits_untouched(&test, id);
}

#[test]
fn what_waits_for_room_as_well_is_not_touched() {
    let test = file_box();
    let subscribe = |test: &TestBox, attempts| {
        test.bus.subscribe_many([other().rate_limit(1, HOUR * 900), failing(attempts)]).unwrap();
        test.bus.publish_typed(&v1("inv-0")).unwrap(); // it takes the room
        test.bus.drain().unwrap();
    };
    subscribe(&test, 5);
    let id = test.bus.publish_typed(&v3("inv-1")).unwrap();
    test.bus.drain().unwrap();
    let test = test.reopen();
    subscribe(&test, 1);
    waits_untouched(&test, id);
}

#[test]
fn what_waits_for_its_turn_as_well_is_not_touched() {
    let test = file_box();
    let blocked = |event: &Event, _: &Context<'_>| match event.name() {
        "first" => Err(HandlerError::dead_letter("no")),
        _ => Ok(()),
    };
    let subscribe = |test: &TestBox, attempts| {
        test.bus
            .subscribe_many([Subscription::new("*", "other", blocked).ordered(), failing(attempts)])
            .unwrap();
    };
    subscribe(&test, 5);
    test.bus.publish(NewEvent::new("first", "finance", "Invoice", "inv-1")).unwrap();
    let id = test.bus.publish_typed(&v3("inv-1")).unwrap();
    test.bus.drain().unwrap();
    let test = test.reopen();
    subscribe(&test, 1);
    waits_untouched(&test, id);
}
