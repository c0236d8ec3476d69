//! What the records say, and what they keep to themselves.

use std::time::Duration;

use postbox::{Context, Event, EventFilter, HandlerError, NewEvent, OutboxStatus, Page, Subscription};
use serde_json::json;

use crate::on_both;
use crate::support::{TestBox, boxes, event, outbox_row};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn full() -> NewEvent {
    NewEvent::new("a.b", "finance", "Invoice", "inv-1")
        .payload(json!({"secret": "canary-7f3a"}))
        .metadata(json!("canary-7f3a"))
        .correlation_id("talk")
        .trace_parent(TRACE)
        .version(3)
}

#[test]
fn a_summary_says_what_the_events_row_says() {
    for test in &boxes() {
        test.bus
            .subscribe(Subscription::new("a.*", "c", |event: &Event, cx: &Context<'_>| {
                if event.name() == "a.b" {
                    cx.publish(NewEvent::new("a.ok", "finance", "Invoice", "1"))?;
                    return Err(HandlerError::retry("canary-7f3a"));
                }
                Ok(())
            }))
            .unwrap();
        test.bus.publish(full()).unwrap();
        test.clock.advance(Duration::from_micros(1_234_567));
        test.bus.drain().unwrap();
        on_both(test, |outbox| {
            let page = outbox.list(&EventFilter::new(), &Page::oldest(10)).unwrap();
            assert_eq!(page.events.len(), 2);
            for shown in page.events {
                let row = outbox.get(shown.id).unwrap().unwrap();
                assert_eq!(shown.event_name, row.event_name);
                assert_eq!(shown.source_module, row.source_module);
                assert_eq!(shown.aggregate_type, row.aggregate_type);
                assert_eq!(shown.aggregate_id, row.aggregate_id);
                assert_eq!(shown.status, row.status);
                assert_eq!(shown.attempt_count, row.attempt_count);
                assert_eq!(shown.last_error, row.last_error);
                assert_eq!(shown.available_at, row.available_at);
                assert_eq!(shown.processed_at, row.processed_at);
                assert_eq!(shown.created_at, row.created_at);
                assert_eq!(shown.updated_at, row.updated_at);
                assert_eq!(shown.correlation_id, row.correlation_id);
                assert_eq!(shown.causation_id, row.causation_id);
                assert_eq!(shown.trace_parent, row.trace_parent);
                assert_eq!(shown.version, row.version);
                assert!(shown.unreadable.is_empty());
            }
        });
    }
}

#[test]
fn serialised_ids_are_uuids_and_times_rfc_3339() {
    for test in &boxes() {
        let TestBox { bus, clock, .. } = test;
        let id = bus.publish(full()).unwrap();
        clock.advance(Duration::from_micros(50_007));
        bus.publish(event("more")).unwrap();
        let page = bus.outbox().list(&EventFilter::new(), &Page::oldest(1)).unwrap();
        let expected = json!({
            "events": [{
                "id": id.to_string(), "event_name": "a.b", "source_module": "finance", "aggregate_type": "Invoice",
                "aggregate_id": "inv-1", "status": "pending", "attempt_count": 0, "last_error": null,
                "available_at": "2023-11-14T22:13:20.000000Z", "processed_at": null,
                "created_at": "2023-11-14T22:13:20.000000Z", "updated_at": "2023-11-14T22:13:20.000000Z",
                "correlation_id": "talk", "causation_id": null, "trace_parent": TRACE, "version": 3, "unreadable": [],
            }],
            "next": page.next.unwrap().to_string(),
        });
        assert_eq!(serde_json::to_value(&page).unwrap(), expected);

        let held = EventFilter::new().name("more");
        let page = bus.outbox().list(&held, &Page::oldest(1)).unwrap();
        let shown = serde_json::to_value(&page.events[0]).unwrap();
        assert_eq!(shown["created_at"], "2023-11-14T22:13:20.050007Z");
        assert_eq!(serde_json::to_value(&page).unwrap()["next"], json!(null));

        let tree = serde_json::to_value(bus.outbox().causation_tree(id).unwrap()).unwrap();
        assert_eq!((&tree["root"], &tree["asked"], &tree["is_cut"]), (&json!(0), &json!(0), &json!(false)));
        assert_eq!(tree["nodes"][0]["event"]["id"], id.to_string());
        assert_eq!((&tree["nodes"][0]["parent"], &tree["nodes"][0]["children"]), (&json!(null), &json!([])));
    }
}

#[test]
fn when_it_was_processed_is_serialised_as_well() {
    for TestBox { bus, .. } in &boxes() {
        bus.subscribe(Subscription::new("a", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let page = bus.outbox().list(&EventFilter::new(), &Page::newest(1)).unwrap();
        let shown = serde_json::to_value(&page.events[0]).unwrap();
        assert_eq!(shown["processed_at"], "2023-11-14T22:13:20.000000Z");
        assert_eq!(page.events[0].status, OutboxStatus::Processed);
    }
}

/// Errors of handlers may quote payloads.
#[test]
fn debug_shows_no_payload_metadata_or_error() {
    for TestBox { bus, .. } in &boxes() {
        bus.subscribe(Subscription::new("*", "c", |_: &Event, _: &Context<'_>| {
            Err(HandlerError::dead_letter("canary-7f3a"))
        }))
        .unwrap();
        let id = bus.publish(full()).unwrap();
        bus.drain().unwrap();
        assert!(outbox_row(bus, id).last_error.unwrap().contains("canary"));
        let filter = EventFilter::new().error_contains("canary-7f3a");
        let page = bus.outbox().list(&filter, &Page::newest(1)).unwrap();
        let story = bus.outbox().story(id).unwrap();
        let tree = bus.outbox().causation_tree(id).unwrap();
        assert!(
            story.as_ref().unwrap().event.payload.to_string().contains("canary"),
            "the test itself sees it"
        );
        for text in [format!("{filter:?}"), format!("{page:?}"), format!("{story:?}"), format!("{tree:#?}")] {
            assert!(!text.contains("canary"), "{text}");
        }
    }
}
