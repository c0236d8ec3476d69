//! Schedules: their events are handed over now and published later.

use std::time::Duration;

use postbox::{Error, EventFilter, NewEvent, Schedule, StoredSchedule};
use serde_json::json;

use crate::support::{TestBox, boxes, event, file_box};
use crate::total;

const MINUTE: Duration = Duration::from_mins(1);

fn put(test: &TestBox, new: NewEvent) -> postbox::Result<StoredSchedule> {
    test.bus.schedules().put("s", Schedule::every(MINUTE, new))
}

fn counted(count: i64) -> NewEvent {
    event("tick").payload(json!({ "count": count, "secret": "canary" }))
}

#[track_caller]
fn is_violation<T: std::fmt::Debug>(result: &postbox::Result<T>) {
    assert!(matches!(result, Err(Error::SchemaViolation { .. })), "{result:?}");
}

/// Schedules were put, and ticked, whatever the schema of their event said.
#[test]
fn the_event_of_a_schedule_is_checked_when_it_is_put() {
    for test in boxes() {
        let positive = json!({ "properties": { "count": { "minimum": 1 } } });
        test.bus.catalogue().schema_of("tick", 1, positive).unwrap();
        is_violation(&put(&test, counted(0)));
        assert!(test.bus.schedules().list().unwrap().is_empty(), "{}", test.kind);
        let within = test.bus.transaction(|tx| -> postbox::Result<_> {
            is_violation(&tx.schedules().put("s", Schedule::every(MINUTE, counted(0))));
            tx.schedules().put("s", Schedule::every(MINUTE, counted(1)))
        });
        within.unwrap();
        is_violation(&put(&test, counted(0)));
        test.clock.advance(MINUTE);
        test.bus.drain().unwrap();
        assert_eq!(total(&test.bus), 1, "{}: the one of before goes on", test.kind);
    }
}

/// The schema came with a release after the one that put the schedule.
#[test]
fn a_tick_that_does_not_fit_a_later_schema_is_not_published_until_the_schedule_is_put_anew() {
    let test = file_box();
    put(&test, counted(0)).unwrap();
    test.clock.advance(MINUTE);
    test.bus.drain().unwrap();
    assert_eq!(total(&test.bus), 1, "there is no schema yet");

    let test = test.reopen();
    let positive = json!({ "properties": { "count": { "minimum": 1 } } });
    test.bus.catalogue().schema_of("tick", 1, positive).unwrap();
    test.bus.schedules().put("other", Schedule::every(MINUTE, event("other"))).unwrap();
    for _ in 0..3 {
        test.clock.advance(MINUTE);
        test.bus.drain().unwrap();
    }
    assert_eq!(total(&test.bus), 1 + 3, "the others tick");
    let said = test.bus.schedules().get("s").unwrap().unwrap().error.unwrap();
    assert_eq!(said, "version 1 of `tick` does not fit its schema: at `/count`: must be at least 1");

    assert_eq!(put(&test, counted(1)).unwrap().error, None);
    test.clock.advance(MINUTE);
    test.bus.drain().unwrap();
    assert_eq!(test.bus.schedules().get("s").unwrap().unwrap().error, None);
    let ticks = EventFilter::new().name("tick");
    assert_eq!(test.bus.outbox().count(&ticks).unwrap(), 2, "one for all that it missed");
}
