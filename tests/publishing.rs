//! Publishing: what goes in comes back, when it is due, and whose follow-up it is.

mod support;

#[path = "publishing/follow_ups.rs"]
mod follow_ups;
#[path = "publishing/imported.rs"]
mod imported;
#[path = "publishing/keys.rs"]
mod keys;
#[path = "publishing/limits.rs"]
mod limits;
#[path = "publishing/on_app_connections.rs"]
mod on_app_connections;
#[path = "publishing/reentry.rs"]
mod reentry;
#[path = "publishing/secrets.rs"]
mod secrets;
#[path = "publishing/shadows.rs"]
mod shadows;
#[path = "publishing/swallowed.rs"]
mod swallowed;
#[path = "publishing/together.rs"]
mod together;
#[path = "publishing/transactions.rs"]
mod transactions;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use postbox::{Context, Error, Event, EventId, OutboxStatus, Subscription};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{Calls, just_before, refused_field};
use crate::support::{MICROSECOND, SECOND, TestBox, boxes, event, noting, outbox_row, start_time, status};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Subscribes a consumer that keeps what it is given, and delivers what is due.
fn delivered<T: Send + 'static>(
    test: &TestBox,
    name: &str,
    look: impl Fn(&Event) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    let handler = move |event: &Event, _: &Context<'_>| {
        keep.lock().unwrap().push(look(event));
        Ok(())
    };
    test.bus.subscribe(Subscription::new(name, "looker", handler)).unwrap();
    test.bus.drain().unwrap();
    std::mem::take(&mut *seen.lock().unwrap())
}

#[test]
fn a_handler_is_given_everything_that_was_published() {
    for test in boxes() {
        let id = test
            .bus
            .publish(
                postbox::NewEvent::new("invoice.created", "finance", "Invoice", "inv-é-1")
                    .payload(json!({"total": 12.5, "text": "ü\u{0}\u{1F600}\"\\"}))
                    .metadata(json!({"user": "u1"}))
                    .correlation_id("conversation 7")
                    .trace_parent(TRACE)
                    .version(u32::MAX),
            )
            .unwrap();
        let seen = delivered(&test, "invoice.created", move |event| {
            assert_eq!(event.id(), id);
            assert_eq!(event.name(), "invoice.created");
            assert_eq!(event.source_module(), "finance");
            assert_eq!(event.aggregate_type(), "Invoice");
            assert_eq!(event.aggregate_id(), "inv-é-1");
            assert_eq!(event.payload(), &json!({"total": 12.5, "text": "ü\u{0}\u{1F600}\"\\"}));
            assert_eq!(event.metadata(), Some(&json!({"user": "u1"})));
            assert_eq!(event.timestamp(), start_time());
            assert_eq!(event.attempt(), 1);
            assert_eq!(event.correlation_id(), Some("conversation 7"));
            assert_eq!(event.causation_id(), None);
            assert_eq!(event.trace_parent(), Some(TRACE));
            assert_eq!(event.version(), u32::MAX);
        });
        assert_eq!(seen.len(), 1, "{}", test.kind);
        assert_eq!(outbox_row(&test.bus, id).status, OutboxStatus::Processed, "an assertion above failed");

        let row = outbox_row(&test.bus, id);
        assert_eq!(row.id, id);
        assert_eq!(row.event_name, "invoice.created");
        assert_eq!(row.source_module, "finance");
        assert_eq!(row.aggregate_type, "Invoice");
        assert_eq!(row.aggregate_id, "inv-é-1");
        assert_eq!(row.payload, json!({"total": 12.5, "text": "ü\u{0}\u{1F600}\"\\"}));
        assert_eq!(row.metadata, Some(json!({"user": "u1"})));
        assert_eq!(row.correlation_id.as_deref(), Some("conversation 7"));
        assert_eq!(row.trace_parent.as_deref(), Some(TRACE));
        assert_eq!(row.version, u32::MAX);
        assert_eq!((row.created_at, row.updated_at), (start_time(), start_time()));
        assert_eq!(row.processed_at, Some(start_time()));
        assert_eq!((row.attempt_count, row.last_error), (1, None));
    }
}

#[test]
fn what_was_not_given_has_its_default() {
    for test in boxes() {
        let id = test.bus.publish(event("plain")).unwrap();
        let row = outbox_row(&test.bus, id);
        assert_eq!(row.status, OutboxStatus::Pending);
        assert_eq!(row.payload, json!({}));
        assert_eq!(row.metadata, None);
        assert_eq!(row.version, 1);
        assert_eq!(row.attempt_count, 0);
        assert_eq!((row.correlation_id, row.causation_id, row.trace_parent), (None, None, None));
        assert_eq!((row.last_error, row.processed_at), (None, None));
        assert_eq!(row.available_at, start_time());
        let of_nobody: EventId = "0198c0de-0000-7000-8000-000000000000".parse().unwrap();
        assert!(test.bus.outbox().get(of_nobody).unwrap().is_none());
    }
}

#[test]
fn metadata_stays_apart_from_the_payload() {
    for test in boxes() {
        let both = event("both").payload(json!({"a": 1})).metadata(json!({"a": 2}));
        let id = test.bus.publish(both).unwrap();
        let null = test.bus.publish(event("null").payload(Value::Null).metadata(Value::Null)).unwrap();
        let row = outbox_row(&test.bus, id);
        assert_eq!((row.payload, row.metadata), (json!({"a": 1}), Some(json!({"a": 2}))));
        let row = outbox_row(&test.bus, null);
        assert_eq!((row.payload, row.metadata), (Value::Null, Some(Value::Null)));
    }
}

#[test]
fn payloads_are_made_from_types_and_read_into_types() {
    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Invoice {
        number: String,
        cents: i64,
    }
    for test in boxes() {
        let invoice = Invoice { number: "1".to_owned(), cents: -7 };
        let id = test.bus.publish(event("typed").payload_from(&invoice).unwrap()).unwrap();
        let seen = delivered(&test, "typed", |event| {
            (
                event.payload_as::<Invoice>().unwrap(),
                matches!(event.payload_as::<Vec<u8>>(), Err(Error::Json(_))),
            )
        });
        assert_eq!(seen, [(invoice, true)]);
        assert_eq!(status(&test.bus, id), OutboxStatus::Processed);
    }
    let no_json = std::collections::BTreeMap::from([(vec![1_u8], 1)]);
    assert!(matches!(event("typed").payload_from(&no_json), Err(Error::Json(_))));
}

#[test]
fn numbers_come_back_as_they_went_in() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // splitmix64
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut floats = vec![-0.0, 0.1, 1e20, 5e-324, f64::MAX, f64::MIN, f64::MIN_POSITIVE, f64::EPSILON, 1.0];
    while floats.len() < 3_000 {
        floats.push(f64::from_bits(next()));
        floats.retain(|float| float.is_finite());
    }
    let integers = json!([u64::MAX, i64::MIN, i64::MAX, 0, -1, 9_007_199_254_740_993_u64]);
    for test in boxes() {
        let sent = json!({"floats": floats, "integers": integers});
        let id = test.bus.publish(event("numbers").payload(sent.clone()).metadata(sent)).unwrap();
        let row = outbox_row(&test.bus, id);
        let mut looks = vec![row.payload, row.metadata.unwrap()];
        looks.extend(delivered(&test, "numbers", |event| event.payload().clone()));
        assert_eq!(looks.len(), 3);
        for came in looks {
            assert_eq!(came["integers"], integers);
            let bits: Vec<_> =
                came["floats"].as_array().unwrap().iter().map(|f| f.as_f64().unwrap().to_bits()).collect();
            assert_eq!(bits, floats.iter().map(|float| float.to_bits()).collect::<Vec<_>>(), "{}", test.kind);
        }
    }
}

#[test]
fn a_delayed_event_is_delivered_at_its_moment_and_not_a_microsecond_before() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
        let delayed = bus.publish(event("delayed").delay(90 * SECOND)).unwrap();
        let at = bus.publish(event("at").available_at(start_time() + 90 * SECOND)).unwrap();
        assert_eq!(outbox_row(bus, delayed).available_at, start_time() + 90 * SECOND);
        assert_eq!(outbox_row(bus, at).available_at, start_time() + 90 * SECOND);
        clock.advance(just_before(90 * SECOND));
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(status(bus, delayed), OutboxStatus::Pending);
        clock.advance(MICROSECOND);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all().len(), 2);
        assert_eq!(outbox_row(bus, at).attempt_count, 1);
    }
}

#[test]
fn a_moment_in_the_past_is_now_and_the_last_of_delay_and_moment_counts() {
    for TestBox { bus, .. } in &boxes() {
        let past = start_time() - 9 * SECOND;
        for (new, due) in [
            (event("a").available_at(past), start_time()),
            (event("a").available_at(OffsetDateTime::UNIX_EPOCH - SECOND), start_time()),
            (event("a").delay(Duration::ZERO), start_time()),
            (event("a").available_at(past).delay(5 * SECOND), start_time() + 5 * SECOND),
            (event("a").delay(5 * SECOND).available_at(past), start_time()),
        ] {
            let id = bus.publish(new).unwrap();
            let row = outbox_row(bus, id);
            assert_eq!((row.available_at, row.created_at), (due, start_time()));
        }
        let longest =
            bus.publish(event("b").available_at(time::PrimitiveDateTime::MAX.assume_utc())).unwrap();
        assert_eq!(status(bus, longest), OutboxStatus::Pending);
        assert_eq!(refused_field(bus.publish(event("c").delay(Duration::MAX))), "delay");
        assert_eq!(bus.drain().unwrap(), 4);
    }
}

#[test]
fn publish_all_gives_ids_in_the_order_of_the_events_and_they_are_delivered_in_it() {
    for test in boxes() {
        let events = (0..25).map(|n| event("many").payload(json!(n)));
        let ids = test.bus.publish_all(events).unwrap();
        let seen = delivered(&test, "many", |event| (event.id(), event.payload().as_u64().unwrap()));
        assert_eq!(seen, ids.into_iter().zip(0..25).collect::<Vec<_>>(), "{}", test.kind);
        assert_eq!(test.bus.publish_all([]).unwrap(), []);
    }
}

#[test]
fn publish_all_is_all_or_none() {
    for TestBox { bus, .. } in &boxes() {
        let events = [event("a"), event("b"), event(""), event("c")];
        assert_eq!(refused_field(bus.publish_all(events)), "event_name");
        assert_eq!(bus.stats().unwrap().total, 0);
    }
}

#[test]
fn ids_read_back_from_their_text_and_sort_by_time() {
    for TestBox { bus, clock, .. } in &boxes() {
        let first = bus.publish(event("a")).unwrap();
        let second = bus.publish_all([event("a"), event("a")]).unwrap();
        assert!(second.is_sorted(), "also of one moment: {second:?}");
        let second = second[1];
        clock.advance(Duration::from_millis(1));
        let third = bus.publish(event("a")).unwrap();
        assert!(first < second && second < third);
        assert_eq!(first.to_string(), first.as_uuid().hyphenated().to_string());
        assert_eq!(first.to_string().parse::<EventId>().unwrap(), first);
        assert_eq!(serde_json::to_value(first).unwrap(), json!(first.to_string()));
        assert_eq!(serde_json::from_value::<EventId>(json!(first.to_string())).unwrap(), first);
        assert_eq!(refused_field("no uuid".parse::<EventId>()), "event_id");
    }
}
