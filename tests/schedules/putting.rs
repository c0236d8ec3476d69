//! Putting, looking, removing.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use postbox::{Clock, Error, Misfire, NewEvent, Postbox, Schedule, ScheduleRule};
use serde_json::json;

use crate::support::{boxes, ends, event, file_box, memory_box_with, start_time};
use crate::{HOUR, MINUTE, minutely, note_ticks, seconds, stored};

#[test]
fn each_tick_is_one_event_that_knows_its_tick() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        test.bus.schedules().put("minutely", minutely()).unwrap();
        assert_eq!(test.bus.drain().unwrap(), 0, "{}: none at once", test.kind);
        for minute in 1..=3 {
            test.clock.advance(MINUTE);
            assert_eq!(test.bus.drain().unwrap(), 1, "{}", test.kind);
            assert_eq!(test.bus.drain().unwrap(), 0, "{}", test.kind);
            assert_eq!(calls.take(), [format!("minutely@{}", minute * 60)]);
        }
        let stored = stored(&test.bus, "minutely");
        assert_eq!((seconds(stored.last_at), seconds(stored.next_at)), (Some(180), Some(240)));
    }
}

#[test]
fn a_tick_that_is_published_late_does_not_make_the_next_late() {
    let test = file_box();
    let calls = note_ticks(&test.bus);
    test.bus.schedules().put("minutely", minutely()).unwrap();
    test.clock.advance(MINUTE + Duration::from_secs(25));
    test.bus.drain().unwrap();
    test.clock.advance(Duration::from_secs(35));
    test.bus.drain().unwrap();
    assert_eq!(calls.all(), ["minutely@60", "minutely@120"]);
}

#[test]
fn the_event_is_as_it_was_put_with_the_tick_in_its_metadata() {
    for test in boxes() {
        let event = NewEvent::new("digest.due", "mail", "Digest", "morning")
            .payload(json!({ "folder": "inbox", "ratio": 0.1 }))
            .metadata(json!({ "by": "office" }))
            .correlation_id("c-1")
            .version(3);
        test.bus.schedules().put("digest", Schedule::every(HOUR, event)).unwrap();
        test.clock.advance(HOUR);
        test.bus.drain().unwrap();
        let page = test.bus.outbox().list(&postbox::EventFilter::new(), &postbox::Page::newest(10)).unwrap();
        assert_eq!(page.events.len(), 1);
        let row = test.bus.outbox().get(page.events[0].id).unwrap().unwrap();
        assert_eq!((row.event_name.as_str(), row.source_module.as_str()), ("digest.due", "mail"));
        assert_eq!((row.aggregate_type.as_str(), row.aggregate_id.as_str()), ("Digest", "morning"));
        assert_eq!(row.payload, json!({ "folder": "inbox", "ratio": 0.1 }));
        assert_eq!((row.correlation_id.as_deref(), row.version), (Some("c-1"), 3));
        let by = json!({ "name": "digest", "tick": "2023-11-14T23:13:20.000000Z" });
        assert_eq!(row.metadata, Some(json!({ "by": "office", "postbox.schedule": by })));
    }
}

#[test]
fn an_event_that_no_schedule_has_published_is_none_s() {
    let test = file_box();
    test.bus
        .subscribe(postbox::Subscription::transactional(
            "tick",
            "c",
            |event: &postbox::Event, _: &postbox::Tx<'_>| {
                assert_eq!((event.scheduled_for(), event.scheduled_by()), (None, None));
                Ok(())
            },
        ))
        .unwrap();
    test.bus.publish(event("tick")).unwrap();
    test.bus.publish(event("tick").metadata(json!({ "postbox.schedule": 5 }))).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 2);
}

#[test]
fn putting_what_has_not_changed_changes_nothing_also_after_a_restart() {
    let mut test = file_box();
    test.bus.schedules().put("minutely", minutely()).unwrap();
    test.clock.advance(MINUTE + Duration::from_secs(20));
    test.bus.drain().unwrap();
    let before = stored(&test.bus, "minutely");
    for _ in 0..2 {
        test.clock.advance(Duration::from_secs(5));
        assert_eq!(test.bus.schedules().put("minutely", minutely()).unwrap(), before);
        test = test.reopen();
    }
    assert_eq!(test.bus.schedules().list().unwrap(), [before]);
}

#[test]
fn putting_at_each_start_does_not_drop_what_was_missed() {
    let test = file_box();
    test.bus.schedules().put("minutely", minutely().misfire(Misfire::All { max: 10 })).unwrap();
    test.clock.advance(MINUTE * 3);
    let test = test.reopen();
    let calls = note_ticks(&test.bus);
    test.bus.schedules().put("minutely", minutely().misfire(Misfire::All { max: 10 })).unwrap();
    test.bus.drain().unwrap();
    assert_eq!(calls.all(), ["minutely@60", "minutely@120", "minutely@180"]);
}

#[test]
fn a_changed_event_or_misfire_rule_leaves_the_ticks_and_a_changed_rule_has_new_ones() {
    for test in boxes() {
        let schedules = test.bus.schedules();
        let calls = note_ticks(&test.bus);
        schedules.put("s", minutely()).unwrap();
        test.clock.advance(Duration::from_secs(40));
        let other = Schedule::every(MINUTE, event("tick").payload(json!([1]))).misfire(Misfire::Skip);
        assert_eq!(seconds(schedules.put("s", other).unwrap().next_at), Some(60), "{}", test.kind);
        assert_eq!(stored(&test.bus, "s").misfire, Some(Misfire::Skip));
        test.clock.advance(Duration::from_secs(20));
        test.bus.drain().unwrap();
        test.clock.advance(Duration::from_secs(10));
        let stored = schedules.put("s", Schedule::every(HOUR, event("tick"))).unwrap();
        assert_eq!(stored.rule, Some(ScheduleRule::Every { interval: HOUR }));
        assert_eq!((seconds(stored.last_at), seconds(stored.next_at)), (Some(60), Some(70 + 3_600)));
        test.clock.advance(HOUR);
        test.bus.drain().unwrap();
        assert_eq!(calls.all(), ["s@60".to_owned(), format!("s@{}", 70 + 3_600)]);
    }
}

#[test]
fn schedules_are_listed_by_name_and_are_gone_when_they_are_removed() {
    for test in boxes() {
        let schedules = test.bus.schedules();
        for name in ["b", "a", "c"] {
            schedules.put(name, minutely()).unwrap();
        }
        let names = || -> Vec<String> { schedules.list().unwrap().into_iter().map(|s| s.name).collect() };
        assert_eq!(names(), ["a", "b", "c"]);
        assert!(schedules.remove("b").unwrap());
        assert!(!schedules.remove("b").unwrap());
        assert_eq!((names(), schedules.get("b").unwrap()), (vec!["a".to_owned(), "c".to_owned()], None));
        test.clock.advance(MINUTE);
        assert_eq!(test.bus.drain().unwrap(), 2);
    }
}

#[test]
fn a_schedule_that_is_put_in_a_transaction_is_there_when_that_commits() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        let put = |commits: bool| {
            test.bus.transaction(|tx| {
                tx.schedules().put("s", minutely())?;
                assert_eq!(tx.schedules().list()?.len(), 1);
                if commits { Ok(()) } else { Err(Error::Invalid { field: "x", reason: String::new() }) }
            })
        };
        put(false).unwrap_err();
        assert_eq!(test.bus.schedules().list().unwrap(), []);
        put(true).unwrap();
        test.clock.advance(MINUTE);
        test.bus.drain().unwrap();
        assert_eq!(calls.all(), ["s@60"], "{}", test.kind);
    }
}

#[test]
fn ticks_begin_and_end_where_they_are_bounded() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        let (from, until) = (start_time() + HOUR, start_time() + HOUR + MINUTE * 2);
        let bounded = || minutely().starting_at(from).ending_at(until).misfire(Misfire::All { max: 9 });
        test.bus.schedules().put("s", bounded()).unwrap();
        assert_eq!(seconds(stored(&test.bus, "s").next_at), Some(3_600));
        let times = test.bus.schedules().next_times("s", 9).unwrap();
        assert_eq!(times, [from, from + MINUTE, until]);
        test.clock.advance(HOUR * 2);
        test.bus.drain().unwrap();
        assert_eq!(calls.all(), ["s@3600", "s@3660", "s@3720"], "{}", test.kind);
        let over = stored(&test.bus, "s");
        assert_eq!((over.next_at, over.starting_at, over.ending_at), (None, Some(from), Some(until)));
        assert!(test.bus.schedules().next_times("s", 9).unwrap().is_empty());
        assert_eq!(test.bus.schedules().put("s", bounded()).unwrap(), over);
    }
}

#[test]
fn the_next_times_are_told_without_anything_happening() {
    let test = memory_box_with(|builder| builder);
    test.bus.schedules().put("s", minutely()).unwrap();
    test.clock.advance(Duration::from_secs(90));
    let times = test.bus.schedules().next_times("s", 3).unwrap();
    let times: Vec<_> = times.into_iter().map(|at| seconds(Some(at)).unwrap()).collect();
    assert_eq!(times, [120, 180, 240], "after now, whatever was missed");
    assert_eq!(seconds(stored(&test.bus, "s").next_at), Some(60), "which is still to be dealt with");
    assert!(test.bus.schedules().next_times("s", 0).unwrap().is_empty());
}

#[test]
fn a_tick_is_published_once_also_when_its_event_was_pruned() {
    let test = file_box();
    let calls = note_ticks(&test.bus);
    test.bus.update_settings(|settings| settings.retention_ms = 1_000).unwrap();
    test.bus.schedules().put("s", minutely()).unwrap();
    test.clock.advance(MINUTE);
    test.bus.drain().unwrap();
    test.clock.advance(Duration::from_secs(30));
    assert_eq!(test.bus.prune().unwrap(), 1);
    test.clock.set(start_time() + MINUTE);
    let test = test.reopen();
    test.bus.drain().unwrap();
    test.bus.schedules().put("s", minutely().misfire(Misfire::Skip)).unwrap();
    test.bus.drain().unwrap();
    assert_eq!(calls.all(), ["s@60"]);
}

#[test]
fn an_application_s_idempotency_keys_are_apart_from_ticks() {
    let test = file_box();
    let calls = note_ticks(&test.bus);
    let tick = (start_time() + MINUTE).unix_timestamp() * 1_000_000;
    for key in [format!("s\0{tick}"), format!("s/{tick}"), format!("{tick}"), "s".to_owned()] {
        for module in ["finance", "s"] {
            let event = NewEvent::new("other", module, "Invoice", "inv-1").idempotency_key(key.as_str());
            test.bus.publish(event).unwrap();
        }
    }
    test.bus.schedules().put("s", minutely()).unwrap();
    test.clock.advance(MINUTE);
    test.bus.drain().unwrap();
    assert_eq!(calls.all(), ["s@60"]);
}

/// A clock that goes on by half an interval at each look stands for many schedules with short intervals: each pass found new ticks, and
/// no caller came back.
#[test]
fn ticks_that_come_while_others_are_published_do_not_keep_the_caller() {
    struct Racing(AtomicU32);
    impl Clock for Racing {
        fn now(&self) -> time::OffsetDateTime {
            start_time() + Duration::from_millis(50) * self.0.fetch_add(1, Ordering::Relaxed)
        }
    }
    let bus = Postbox::builder().clock(Racing(AtomicU32::new(0))).open_in_memory().unwrap();
    bus.schedules().put("s", Schedule::every(Duration::from_millis(100), event("tick"))).unwrap();
    assert_eq!(ends(move || bus.drain().unwrap()), 1);
}
