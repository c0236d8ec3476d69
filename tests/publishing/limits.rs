//! What is refused, by which name, and that nothing of it is written.

use std::process::Command;

use postbox::{Context, EntityRef, Error, Event, HandlerError, LinkType, NewEvent, NewLink, Subscription};
use serde_json::{Value, json};

use crate::support::{TestBox, boxes, boxes_with, event, memory_box_with, outbox_row, refused_field};

/// Publishes by every way that there is, and asserts that each refuses the same field and writes nothing.
#[track_caller]
fn assert_refused(test: &TestBox, field: &'static str, new: &NewEvent) {
    let TestBox { kind, bus, .. } = test;
    assert_eq!(refused_field(bus.publish(new.clone())), field, "{kind}: publish");
    assert_eq!(refused_field(bus.publish_all([event("good"), new.clone()])), field, "{kind}: publish_all");
    bus.transaction::<_, Error>(|tx| {
        assert_eq!(refused_field(tx.publish(new.clone())), field, "{kind}: Tx::publish");
        assert_eq!(refused_field(bus.publish_in(tx, new.clone())), field, "{kind}: publish_in");
        Ok(())
    })
    .unwrap();
    assert_eq!(bus.stats().unwrap().total, 0, "{kind}: nothing is written");
}

fn named(name: &str, module: &str, aggregate_type: &str, aggregate_id: &str) -> NewEvent {
    NewEvent::new(name, module, aggregate_type, aggregate_id)
}

#[test]
fn names_and_ids_at_their_limits_in_characters_are_taken() {
    for TestBox { bus, .. } in &boxes() {
        for letter in ["x", "é", "\u{1F600}"] {
            let (long, longer) = (letter.repeat(127), letter.repeat(255));
            let new = named(&longer, &long, &long, &longer).correlation_id(longer.as_str());
            let row = outbox_row(bus, bus.publish(new).unwrap());
            assert_eq!(row.event_name, longer);
            assert_eq!(row.source_module, long);
            assert_eq!(row.aggregate_type, long);
            assert_eq!(row.aggregate_id, longer);
            assert_eq!(row.correlation_id, Some(longer));
        }
        assert_eq!(bus.drain().unwrap(), 3);
    }
}

#[test]
fn a_name_or_id_that_is_too_long_empty_blank_or_holds_nul_is_refused_by_its_field() {
    for test in &boxes() {
        for letter in ["x", "é", "\u{1F600}"] {
            let (long, longer) = (letter.repeat(128), letter.repeat(256));
            assert_refused(test, "event_name", &named(&longer, "m", "T", "1"));
            assert_refused(test, "source_module", &named("a", &long, "T", "1"));
            assert_refused(test, "aggregate_type", &named("a", "m", &long, "1"));
            assert_refused(test, "aggregate_id", &named("a", "m", "T", &longer));
            assert_refused(test, "correlation_id", &event("a").correlation_id(longer));
        }
        for bad in ["", " ", "\t\n", "\u{2003}", "\0", "a\0b", "a\0"] {
            assert_refused(test, "event_name", &named(bad, "m", "T", "1"));
            assert_refused(test, "source_module", &named("a", bad, "T", "1"));
            assert_refused(test, "aggregate_type", &named("a", "m", bad, "1"));
            assert_refused(test, "aggregate_id", &named("a", "m", "T", bad));
            assert_refused(test, "correlation_id", &event("a").correlation_id(bad));
        }
    }
}

#[test]
fn a_star_is_for_subscriptions() {
    for test in &boxes() {
        for name in ["*", "invoice.*", "in*voice", "*.created"] {
            assert_refused(test, "event_name", &event(name));
        }
    }
}

#[test]
fn traceparents_versions_delays_and_keys_out_of_range_are_refused() {
    for test in &boxes() {
        for trace in ["", "no", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "a\0b"] {
            assert_refused(test, "trace_parent", &event("a").trace_parent(trace));
        }
        assert_refused(test, "version", &event("a").version(0));
        assert_refused(test, "delay", &event("a").delay(std::time::Duration::MAX));
        assert_refused(test, "idempotency_key", &event("a").idempotency_key(""));
        assert_refused(test, "idempotency_key", &event("a").idempotency_key("é".repeat(1024)));
        test.bus.publish(event("a").idempotency_key("é".repeat(1023))).unwrap();
    }
}

#[test]
fn payload_and_metadata_are_measured_in_bytes_of_json_and_the_limit_itself_is_taken() {
    for test in &boxes_with(|builder| builder.max_payload_bytes(100)) {
        let TestBox { bus, .. } = test;
        // Two quotes around 98 bytes; a quotation mark inside takes two.
        let fits = [json!("x".repeat(98)), json!("é".repeat(49)), json!("\"".repeat(49))];
        let too_large =
            [json!("x".repeat(99)), json!(format!("x{}", "é".repeat(49))), json!("\"".repeat(50))];
        for (size, value) in [101, 101, 102].into_iter().zip(&too_large) {
            for new in [event("a").payload(value.clone()), event("a").metadata(value.clone())] {
                let in_transaction = bus.transaction(|tx| {
                    assert!(tx.publish(new.clone()).is_err());
                    bus.publish_in(tx, new.clone())
                });
                for result in [
                    bus.publish(new.clone()),
                    bus.publish_all([event("good"), new.clone()]).map(|ids| ids[0]),
                    in_transaction,
                ] {
                    match result {
                        Err(Error::PayloadTooLarge { size: told, limit: 100 }) => assert_eq!(told, size),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        assert_eq!(bus.stats().unwrap().total, 0, "nothing is written");
        for value in fits {
            let id = bus.publish(event("a").payload(value.clone()).metadata(value.clone())).unwrap();
            let row = outbox_row(bus, id);
            assert_eq!((row.payload, row.metadata), (value.clone(), Some(value)));
        }
    }
}

#[test]
fn the_limit_of_a_payload_is_one_mebibyte_unless_told_otherwise() {
    for TestBox { bus, .. } in &boxes() {
        let largest = (1 << 20) - 2;
        bus.publish(event("a").payload(json!("x".repeat(largest)))).unwrap();
        match bus.publish(event("a").payload(json!("x".repeat(largest + 1)))) {
            Err(Error::PayloadTooLarge { size: 1_048_577, limit: 1_048_576 }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Arrays and objects in turn.
fn nested(levels: usize) -> Value {
    (0..levels).fold(
        json!(1),
        |inner, level| {
            if level % 2 == 0 { Value::Array(vec![inner]) } else { json!({"in": inner}) }
        },
    )
}

#[test]
fn what_nests_as_deep_as_can_be_read_back_is_delivered_and_one_level_more_is_refused() {
    for test in &boxes() {
        let TestBox { bus, .. } = test;
        assert_refused(test, "payload", &event("a").payload(nested(128)));
        assert_refused(test, "metadata", &event("a").metadata(nested(128)));
        assert_refused(test, "payload", &event("a").payload(json!([1, {"b": nested(126)}])));
        bus.subscribe(Subscription::new("a", "c", |event: &Event, _: &Context<'_>| {
            if event.payload() == &nested(127) && event.metadata() == Some(&nested(127)) {
                Ok(())
            } else {
                Err(HandlerError::dead_letter("it came back changed"))
            }
        }))
        .unwrap();
        let id = bus.publish(event("a").payload(nested(127)).metadata(nested(127))).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(outbox_row(bus, id).payload, nested(127));
    }
}

const CHILD: &str = "POSTBOX_TEST_DEEP";
const DEEP: usize = 100_000;

/// `serde_json`'s own drop of such a value recurses: on an ordinary thread a refusal that only dropped it ended the
/// process. So this runs as a process of its own, or its end would be that of all tests.
#[test]
fn a_value_nested_a_hundred_thousand_deep_is_refused_and_does_not_overflow_the_stack() {
    if std::env::var_os(CHILD).is_none() {
        let name =
            "limits::a_value_nested_a_hundred_thousand_deep_is_refused_and_does_not_overflow_the_stack";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads", "1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let TestBox { bus, .. } = memory_box_with(|builder| builder);
    let deep = || (0..DEEP).fold(json!(1), |inner, _| Value::Array(vec![inner]));
    assert_eq!(refused_field(bus.publish(event("a").payload(deep()))), "payload");
    assert_eq!(refused_field(bus.publish(event("a").metadata(deep()))), "metadata");
    assert_eq!(refused_field(bus.publish_all([event("a"), event("b").payload(deep())])), "payload");
    assert_eq!(refused_field(bus.publish(event("").payload(deep()).metadata(deep()))), "event_name");
    assert_eq!(refused_field(bus.transaction(|tx| tx.publish(event("a").payload(deep())))), "payload");
    // Refused before anybody looked at it, and one that is behind the first that is refused.
    let autocommit = rusqlite::Connection::open_in_memory().unwrap();
    assert_eq!(refused_field(bus.publish_in(&autocommit, event("a").payload(deep()))), "conn");
    assert_eq!(refused_field(bus.publish_all([event(""), event("b").payload(deep())])), "event_name");
    let end = || EntityRef::new("finance", "Invoice", "inv-1");
    let link = NewLink::new(end(), end(), LinkType::Reference).metadata(deep());
    assert_eq!(refused_field(bus.links().create(link)), "metadata");
}
