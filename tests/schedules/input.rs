//! What is refused, before anything is written, in words that name it.

use std::time::Duration;

use postbox::{Error, Misfire, NewEvent, Schedule};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{boxes, event, file_box, memory_box_with, start_time};
use crate::{HOUR, MINUTE, minutely};

#[track_caller]
fn assert_refused(schedule: &Schedule, field: &str, words: &str) {
    for test in boxes() {
        let error = test.bus.schedules().put("s", schedule.clone()).unwrap_err();
        assert!(matches!(error, Error::Invalid { field: f, .. } if f == field), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        let within = test.bus.transaction(|tx| -> postbox::Result<()> {
            tx.schedules().put("s", schedule.clone()).unwrap_err();
            Ok(())
        });
        within.unwrap();
        assert_eq!(test.bus.schedules().list().unwrap(), []);
    }
}

#[test]
fn intervals_are_from_a_tenth_of_a_second_to_a_hundred_years_in_whole_microseconds() {
    assert_refused(&Schedule::every(Duration::ZERO, event("tick")), "interval", "0ns: must be from 100 ms");
    assert_refused(&Schedule::every(Duration::from_micros(99_999), event("tick")), "interval", "99.999ms");
    assert_refused(&Schedule::every(Duration::MAX, event("tick")), "interval", "to 100 years");
    let odd = Duration::from_nanos(1_000_000_500);
    assert_refused(
        &Schedule::every(odd, event("tick")),
        "interval",
        "1.0000005s: must be in whole microseconds",
    );
    let test = file_box();
    for interval in [Duration::from_millis(100), Duration::from_hours(100 * 366 * 24)] {
        test.bus.schedules().put("s", Schedule::every(interval, event("tick"))).unwrap();
        let next = test.bus.schedules().next_times("s", 2).unwrap();
        assert_eq!(next[0], start_time() + interval);
    }
}

#[test]
fn a_misfire_rule_has_a_sensible_number() {
    assert_refused(&minutely().misfire(Misfire::All { max: 0 }), "misfire", "`all` up to 0");
    assert_refused(&minutely().misfire(Misfire::All { max: 1_001 }), "misfire", "from 1 to 1000");
}

#[test]
fn bounds_are_in_order_and_after_1970() {
    let ends_first = minutely().starting_at(start_time()).ending_at(start_time() - MINUTE);
    assert_refused(&ends_first, "ending_at", "before `starting_at`");
    let old = OffsetDateTime::UNIX_EPOCH - MINUTE;
    assert_refused(&minutely().starting_at(old), "starting_at", "1970");
    assert_refused(&minutely().ending_at(old), "ending_at", "1970");
}

#[test]
fn a_scheduled_event_has_nothing_that_is_each_tick_s_own() {
    let put = |event: NewEvent| Schedule::every(HOUR, event);
    assert_refused(&put(event("tick").idempotency_key("k")), "idempotency_key", "not for scheduled events");
    assert_refused(&put(event("tick").delay(MINUTE)), "delay", "not for scheduled events");
    assert_refused(&put(event("tick").available_at(start_time())), "available_at", "not for scheduled");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_refused(&put(event("tick").trace_parent(trace)), "trace_parent", "not for scheduled events");
    assert_refused(&put(event("tick").metadata(json!([1]))), "metadata", "must be a JSON object");
    let taken = json!({ "postbox.schedule": {} });
    assert_refused(&put(event("tick").metadata(taken)), "metadata", "`postbox.schedule`");
}

#[test]
fn an_event_that_could_not_be_published_is_refused_when_it_is_put() {
    assert_refused(&Schedule::every(HOUR, event("")), "event_name", "empty");
    assert_refused(&Schedule::every(HOUR, event("a.*")), "event_name", "`*`");
    assert_refused(&Schedule::every(HOUR, event("tick").version(0)), "version", "from 1");
    let deep = |levels: u32| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    assert_refused(
        &Schedule::every(HOUR, event("tick").payload(deep(126))),
        "payload",
        "more than 125 levels",
    );
    let metadata = json!({ "m": deep(125) });
    assert_refused(
        &Schedule::every(HOUR, event("tick").metadata(metadata)),
        "metadata",
        "more than 125 levels",
    );

    // As it is with the tick in its metadata.
    let test = memory_box_with(|builder| builder.max_payload_bytes(100));
    let with = |length: usize| {
        let metadata = json!({ "m": "x".repeat(length) });
        test.bus.schedules().put("s", Schedule::every(HOUR, event("tick").metadata(metadata)))
    };
    assert!(matches!(with(80).unwrap_err(), Error::PayloadTooLarge { limit: 100, .. }));
    with(5).unwrap();
    test.clock.advance(HOUR);
    assert_eq!(test.bus.drain().unwrap(), 1);
    let long = event("tick").payload(Value::from("x".repeat(100)));
    let error = test.bus.schedules().put("s", Schedule::every(HOUR, long)).unwrap_err();
    assert!(matches!(error, Error::PayloadTooLarge { .. }));
}

/// Ticks were published with payloads that `publish` refuses, since only that looked at the schemas.
#[cfg(feature = "schema")]
#[test]
fn an_event_that_does_not_fit_its_schema_is_refused_when_it_is_put() {
    for test in crate::support::boxes() {
        let schema = json!({ "type": "object", "required": ["n"] });
        test.bus.catalogue().schema_of("tick", 1, schema).unwrap();
        let published = test.bus.publish(event("tick")).unwrap_err().to_string();
        let put = test.bus.schedules().put("s", Schedule::every(HOUR, event("tick"))).unwrap_err();
        assert_eq!(put.to_string(), published, "{}", test.kind);
        assert_eq!(test.bus.schedules().list().unwrap(), []);
        let fits = event("tick").payload(json!({ "n": 1 }));
        test.bus.schedules().put("s", Schedule::every(HOUR, fits)).unwrap();
    }
}

#[test]
fn names_have_1_to_255_characters() {
    let test = file_box();
    for bad in ["", " ", "a\0b", &"é".repeat(256)] {
        let error = test.bus.schedules().put(bad, minutely()).unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "name", .. }), "{error}");
    }
    let long = "é".repeat(255);
    test.bus.schedules().put(&long, minutely()).unwrap();
    test.clock.advance(MINUTE);
    assert_eq!(test.bus.drain().unwrap(), 1);
    assert_eq!(test.bus.schedules().get("nobody").unwrap(), None);
}

#[test]
fn what_is_not_there_is_not_found() {
    for test in boxes() {
        let schedules = test.bus.schedules();
        for error in [
            schedules.pause("digest").unwrap_err(),
            schedules.resume("digest").unwrap_err(),
            schedules.next_times("digest", 1).unwrap_err(),
        ] {
            assert_eq!(error.to_string(), "no schedule with id digest", "{}", test.kind);
        }
        schedules.put("digest", minutely()).unwrap();
        let error = schedules.next_times("digest", 1_001).unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "count", .. }));
        assert_eq!(schedules.next_times("digest", 1_000).unwrap().len(), 1_000);
    }
}

#[test]
fn who_only_looks_sees_schedules_and_changes_none() {
    let test = file_box();
    test.bus.schedules().put("s", minutely()).unwrap();
    test.clock.advance(MINUTE * 2);
    let looking = postbox::Postbox::builder().clock(test.clock.clone()).open_read_only(test.path()).unwrap();
    assert_eq!(looking.schedules().list().unwrap(), test.bus.schedules().list().unwrap());
    assert_eq!(looking.schedules().next_times("s", 2).unwrap().len(), 2);
    for error in [
        looking.schedules().put("t", minutely()).unwrap_err(),
        looking.schedules().pause("s").unwrap_err(),
        looking.schedules().resume("s").unwrap_err(),
        looking.schedules().remove("s").unwrap_err(),
        looking.drain().unwrap_err(),
    ] {
        assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    }
    assert_eq!(test.bus.stats().unwrap().pending, 0, "nobody has ticked");
}
