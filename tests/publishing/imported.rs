//! Events of other boxes: they come once, under their ids, and are delivered like others, or are history.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use postbox::time::OffsetDateTime;
use postbox::{
    Context, Error, Event, EventFilter, EventId, ImportedEvent, NewEvent, OutboxStatus, Postbox, Subscription,
};
use serde_json::json;

use crate::TRACE;
use crate::support::{
    Calls, SECOND, TestBox, boxes, boxes_with, event, file_box, inbox_rows, noting, outbox_row,
    refused_field, start_time, status,
};

/// The earliest time that a row can hold.
const UNIX_EPOCH: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn id(n: usize) -> EventId {
    format!("0198c0de-0000-7000-8000-0000000000{n:02}").parse().unwrap()
}

fn imported(n: usize) -> ImportedEvent {
    ImportedEvent::new(id(n), event("a"))
}

#[test]
fn an_imported_event_is_what_it_was_and_is_delivered() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        bus.publish(event("before")).unwrap();
        clock.advance(60 * SECOND);
        let whole = NewEvent::new("invoice.created", "finance", "Invoice", "inv-1")
            .payload(json!({ "total": 12.5 }))
            .metadata(json!("by hand"))
            .correlation_id("basket-3")
            .trace_parent(TRACE)
            .version(3);
        let published_at = start_time() - Duration::from_hours(1);
        let whole = ImportedEvent::new(id(1), whole).causation_id(id(99)).published_at(published_at);
        assert_eq!(whole.id(), id(1));
        assert_eq!(bus.import([whole, imported(2)]).unwrap(), 2, "{kind}");

        let row = outbox_row(bus, id(1));
        assert_eq!((row.status, row.attempt_count, row.version), (OutboxStatus::Pending, 0, 3));
        assert_eq!((row.created_at, row.updated_at), (published_at, start_time() + 60 * SECOND));
        assert_eq!((row.available_at, row.processed_at), (start_time() + 60 * SECOND, None));
        assert_eq!((row.causation_id, row.correlation_id.as_deref()), (Some(id(99)), Some("basket-3")));
        assert_eq!((row.payload, row.metadata), (json!({ "total": 12.5 }), Some(json!("by hand"))));
        assert_eq!(row.trace_parent.as_deref(), Some(TRACE));
        assert_eq!(outbox_row(bus, id(2)).created_at, start_time() + 60 * SECOND, "not given: now");

        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&seen);
        bus.subscribe(Subscription::new("*", "c", move |event: &Event, _: &Context<'_>| {
            keep.lock().unwrap().push((event.name().to_owned(), event.timestamp()));
            Ok(())
        }))
        .unwrap();
        assert_eq!(bus.drain().unwrap(), 3);
        let seen = seen.lock().unwrap();
        let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["before", "invoice.created", "a"], "{kind}: behind what was there");
        assert_eq!(seen[1].1, published_at);
    }
}

#[test]
fn an_event_that_is_there_is_left_alone_whatever_has_become_of_it() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let own = bus.publish(event("a").idempotency_key("k").payload(json!("own"))).unwrap();
        let again = ImportedEvent::new(own, event("b").payload(json!("other"))).processed();
        assert_eq!(bus.import([again.clone(), imported(1), imported(1)]).unwrap(), 1, "{kind}");
        assert_eq!((status(bus, own), outbox_row(bus, own).payload), (OutboxStatus::Pending, json!("own")));
        assert_eq!(bus.drain().unwrap(), 2);
        assert_eq!(bus.import([again, imported(1)]).unwrap(), 0);
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all(), ["ran", "ran"]);
        assert_eq!(bus.stats().unwrap().processed, 2);
    }
}

#[test]
fn history_is_delivered_to_nobody_until_it_is_asked_for() {
    for test in &boxes() {
        let bus = &test.bus;
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
        let past = start_time() - Duration::from_hours(1);
        let events = (1..=3).map(|n| imported(n).processed().published_at(past));
        assert_eq!(bus.import(events).unwrap(), 3);
        assert_eq!(bus.drain().unwrap(), 0);
        let row = outbox_row(bus, id(1));
        assert_eq!((row.status, row.processed_at), (OutboxStatus::Processed, Some(start_time())));
        assert_eq!((row.created_at, row.updated_at), (past, start_time()));
        assert!(inbox_rows(bus, id(1)).is_empty());
        let stats = bus.stats().unwrap();
        assert_eq!((stats.processed, stats.pending, stats.total), (3, 0, 3), "{}", test.kind);
        assert!(bus.verify().unwrap().is_sound());
        assert_eq!(bus.outbox().catch_up(&EventFilter::new(), "c").unwrap(), 3);
        assert_eq!(bus.drain().unwrap(), 3);
        assert_eq!(calls.all().len(), 3);
        assert!(bus.verify().unwrap().is_sound());
    }
}

#[test]
fn a_time_in_the_future_is_now_and_a_delay_is_kept() {
    for TestBox { bus, clock, .. } in &boxes() {
        let later = start_time() + SECOND;
        let delayed = ImportedEvent::new(id(2), event("a").available_at(later));
        bus.import([imported(1).published_at(later), delayed]).unwrap();
        assert_eq!(outbox_row(bus, id(1)).created_at, start_time());
        assert_eq!(bus.drain().unwrap(), 1);
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

#[test]
fn one_that_no_box_could_have_published_refuses_all() {
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.max_payload_bytes(10)) {
        let v4 = "0198c0de-0000-4000-8000-000000000001".parse().unwrap();
        let other_variant = "0198c0de-0000-7000-0000-000000000001".parse().unwrap();
        let nil = "00000000-0000-0000-0000-000000000000".parse().unwrap();
        for (field, bad) in [
            ("id", ImportedEvent::new(v4, event("a"))),
            ("id", ImportedEvent::new(other_variant, event("a"))),
            ("id", ImportedEvent::new(nil, event("a"))),
            ("idempotency_key", ImportedEvent::new(id(2), event("a").idempotency_key("k"))),
            ("event_name", ImportedEvent::new(id(2), event("a.*"))),
            ("version", ImportedEvent::new(id(2), event("a").version(0))),
            ("trace_parent", ImportedEvent::new(id(2), event("a").trace_parent("x"))),
            ("published_at", imported(2).published_at(UNIX_EPOCH - Duration::from_micros(1))),
        ] {
            assert_eq!(refused_field(bus.check_import(&bad)), field, "{kind}");
            assert_eq!(refused_field(bus.import([imported(1), bad])), field, "{kind}");
        }
        let large = ImportedEvent::new(id(2), event("a").payload(json!("0123456789")));
        assert!(matches!(bus.check_import(&large), Err(Error::PayloadTooLarge { size: 12, limit: 10 })));
        assert!(matches!(bus.import([large]), Err(Error::PayloadTooLarge { .. })));
        bus.check_import(&imported(1).published_at(UNIX_EPOCH)).unwrap();
        assert_eq!(bus.stats().unwrap().total, 0, "{kind}");
        assert_eq!(bus.import([]).unwrap(), 0);
    }
}

#[test]
fn a_box_that_is_closed_or_only_read_imports_nothing() {
    let test = file_box();
    let reader = Postbox::open_read_only(test.path()).unwrap();
    assert!(matches!(reader.import([imported(1)]), Err(Error::ReadOnly { operation: "import" })));
    let clone = test.bus.clone();
    clone.close().unwrap();
    for events in [vec![imported(1)], Vec::new()] {
        assert!(matches!(test.bus.import(events), Err(Error::Closed { operation: "import" })));
    }
}

#[test]
fn debug_tells_nothing_of_what_it_says() {
    let event = ImportedEvent::new(id(1), event("a").payload(json!("canary")).metadata(json!("canary")));
    assert!(!format!("{event:?}").contains("canary"));
}
