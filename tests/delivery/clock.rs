//! A wall clock that jumps: the box's own time never goes back, and delivery never stops.

use postbox::{Context, Event, HandlerError, OutboxStatus, Postbox, Subscription};
use serde_json::json;
use time::OffsetDateTime;

use crate::support::{
    Calls, MICROSECOND, SECOND, TestBox, boxes, event, file_box, just_before, outbox_row, start_time, status,
};

#[test]
fn a_clock_that_jumps_back_does_not_stop_delivery_and_order_is_that_of_publishing() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |event: &Event, _: &Context<'_>| {
            note.add(event.payload().to_string());
            Ok(())
        }))
        .unwrap();
        let first = bus.publish(event("a").payload(json!(1))).unwrap();
        clock.set(OffsetDateTime::UNIX_EPOCH);
        let second = bus.publish(event("a").payload(json!(2))).unwrap();
        clock.set(start_time() - 86_400 * SECOND);
        let third = bus.publish(event("a").payload(json!(3))).unwrap();
        let times = [first, second, third].map(|id| outbox_row(bus, id).created_at);
        assert!(times.is_sorted() && times[0] == start_time(), "{kind}: {times:?}");
        clock.set(OffsetDateTime::UNIX_EPOCH + SECOND);
        assert_eq!(bus.drain().unwrap(), 3, "{kind}");
        assert_eq!(calls.all(), ["1", "2", "3"], "{kind}");
    }
}

#[test]
fn what_waits_when_the_clock_jumps_back_goes_on_waiting_at_the_clocks_own_pace() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        bus.subscribe(Subscription::new("a", "c", |event: &Event, _: &Context<'_>| {
            if event.attempt() == 1 { Err(HandlerError::retry("first")) } else { Ok(()) }
        }))
        .unwrap();
        let retried = bus.publish(event("a")).unwrap();
        let delayed = bus.publish(event("b").delay(SECOND)).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        clock.set(start_time() - 7 * 86_400 * SECOND);
        assert_eq!(bus.drain().unwrap(), 0);
        clock.advance(just_before(SECOND));
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        clock.advance(MICROSECOND);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(outbox_row(bus, retried).processed_at, Some(start_time() + SECOND));
        assert_eq!(status(bus, delayed), OutboxStatus::Processed);
    }
}

#[test]
fn a_clock_that_jumps_forward_makes_what_waits_due() {
    for TestBox { bus, clock, .. } in &boxes() {
        bus.publish(event("a").delay(3_600 * SECOND)).unwrap();
        clock.set(start_time() + just_before(3_600 * SECOND));
        assert_eq!(bus.drain().unwrap(), 0);
        clock.set(start_time() + 10 * 365 * 86_400 * SECOND);
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

/// The box opened last has seen no row that is as late as the one before was when it was closed.
#[test]
fn time_does_not_go_back_across_a_restart_with_a_clock_that_was_set_back() {
    let test = file_box();
    let before = test.bus.publish(event("before")).unwrap();
    test.clock.advance(10 * SECOND);
    test.bus.clone().close().unwrap();
    test.clock.set(OffsetDateTime::UNIX_EPOCH + SECOND);
    let bus = test.second();
    let after = bus.publish(event("after")).unwrap();
    assert_eq!(outbox_row(&bus, after).created_at, start_time() + 10 * SECOND);
    assert!(after > before, "ids are of the box's own time");
    assert_eq!(bus.drain().unwrap(), 2);
}

#[test]
fn a_second_box_with_a_clock_that_is_behind_delivers_what_the_first_published() {
    let test = file_box();
    test.bus.publish(event("a")).unwrap();
    let behind = postbox::testing::ManualClock::new(OffsetDateTime::UNIX_EPOCH);
    let other = Postbox::builder().clock(behind).open(test.path()).unwrap();
    assert_eq!(other.drain().unwrap(), 1);
}
