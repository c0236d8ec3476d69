//! What no retry can help.

use std::collections::HashMap;

use postbox::{DomainEvent, NewEvent, OutboxStatus, Postbox, Subscription, Upcasters};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{Calls, TestBox, boxes, inbox_rows, noting, outbox_row, refused_field};
use crate::{reading_v3, v3};

#[derive(Serialize, Deserialize)]
struct Line {
    price: u32,
}

#[derive(Serialize, Deserialize)]
struct Ordered {
    lines: Vec<Line>,
}

impl DomainEvent for Ordered {
    const NAME: &'static str = "order.placed";
    const SOURCE_MODULE: &'static str = "sales";
    const AGGREGATE_TYPE: &'static str = "Order";
    const VERSION: u32 = 4;

    fn aggregate_id(&self) -> String {
        "o-1".to_owned()
    }

    fn upcasters() -> Upcasters {
        Upcasters::none().step(2, |_| Err("nobody knows its lines")).step(3, |payload: Value| {
            assert!(payload["lines"].is_array(), "no lines");
            Ok::<_, &str>(payload)
        })
    }
}

fn publish(bus: &Postbox, version: u32, payload: Value) -> postbox::EventId {
    let event = NewEvent::new("order.placed", "sales", "Order", "o-1");
    bus.publish(event.version(version).payload(payload)).unwrap()
}

#[test]
fn a_payload_that_cannot_be_read_is_a_dead_letter_whose_error_names_event_type_version_and_field() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.subscribe(Subscription::typed::<Ordered>("c", |_, _| Ok(()))).unwrap();
        let price = |price: Value| json!({ "lines": [{ "price": 1 }, { "price": price }] });
        for (version, payload, why) in [
            (4, price(json!("much")), "at `lines[1].price`: invalid type: string \"much\", expected u32"),
            (4, json!({ "lines": [{}] }), "at `lines[0]`: missing field `price`"),
            (4, json!({}), "missing field `lines`"),
            (3, price(json!(-1)), "at `lines[1].price`: invalid value: integer `-1`, expected u32"),
            (3, json!({}), "the upcaster 3 -> 4 failed: panicked: no lines"),
            (2, price(json!(1)), "the upcaster 2 -> 3 failed: nobody knows its lines"),
            (1, price(json!(1)), "it is older than version 2, the oldest that can be"),
        ] {
            let id = publish(bus, version, payload);
            assert_eq!(bus.drain().unwrap(), 0, "{kind}");
            let row = outbox_row(bus, id);
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::DeadLetter, 1), "{kind}: {why}");
            assert_eq!(
                row.last_error.unwrap(),
                format!("version {version} of `order.placed` cannot be read as Ordered (version 4): {why}"),
            );
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Folders(Value);

impl DomainEvent for Folders {
    const NAME: &'static str = "folders.moved";
    const SOURCE_MODULE: &'static str = "files";
    const AGGREGATE_TYPE: &'static str = "Folder";
    const VERSION: u32 = 2;

    fn aggregate_id(&self) -> String {
        "f-1".to_owned()
    }

    /// From a path to a folder in a folder.
    fn upcasters() -> Upcasters {
        Upcasters::none().step(1, |payload: Value| {
            let levels = payload.as_u64().ok_or("no number")?;
            Ok::<_, &str>((0..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner])))
        })
    }
}

/// It was read, and dropped, by recursion, and the process died of it.
#[test]
fn what_an_upcaster_nests_too_deeply_is_a_dead_letter() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.subscribe(Subscription::typed::<Folders>("c", |_, _| Ok(()))).unwrap();
        let folders =
            |levels: u32| NewEvent::new("folders.moved", "files", "Folder", "f-1").payload(json!(levels));
        let id = bus.publish(folders(1_000_000)).unwrap();
        bus.publish(folders(127)).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        let said = outbox_row(bus, id).last_error.unwrap();
        assert!(said.contains("Folders (version 2): the upcaster 1 -> 2 failed: "), "{said}");
        assert!(said.contains("nested more than 127 levels deep"), "{said}");
    }
}

#[test]
fn other_consumers_receive_what_one_cannot_read() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::typed::<Ordered>("typed", |_, _| Ok(())).max_attempts(9),
            Subscription::new("order.placed", "untyped", noting(&calls, "untyped")),
        ])
        .unwrap();
        let id = publish(bus, 4, json!({}));
        bus.drain().unwrap();
        assert_eq!(
            (calls.all(), outbox_row(bus, id).status),
            (vec!["untyped".to_owned()], OutboxStatus::DeadLetter)
        );
        let failed: Vec<u32> = inbox_rows(bus, id).iter().map(|row| row.2).collect();
        assert_eq!(failed, [1, 0], "{kind}");
    }
}

#[derive(Serialize, Deserialize)]
struct Odd {
    by_pair: HashMap<(u8, u8), u8>,
}

impl DomainEvent for Odd {
    const NAME: &'static str = "odd";
    const SOURCE_MODULE: &'static str = "tests";
    const AGGREGATE_TYPE: &'static str = "Odd";

    fn aggregate_id(&self) -> String {
        "o".to_owned()
    }
}

#[test]
fn a_type_that_cannot_be_json_is_refused_by_its_name_before_anything_is_written() {
    for TestBox { bus, .. } in &boxes() {
        let refused = bus.publish_typed(&Odd { by_pair: HashMap::from([((1, 2), 3)]) });
        assert_eq!(
            refused.as_ref().unwrap_err().to_string(),
            "invalid payload: of `odd`, Odd (version 1), cannot be JSON: the keys of a map must be strings"
        );
        assert_eq!(refused_field(refused), "payload");
        assert_eq!(refused_field(bus.publish_typed(&v3(""))), "aggregate_id");
        assert_eq!(bus.stats().unwrap().total, 0);
    }
}

#[test]
fn a_handler_that_fails_is_tried_again_as_any_other() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let noted = calls.clone();
        let failing = Subscription::typed::<Ordered>("c", move |_, cx| {
            noted.add(format!("attempt {}", cx.event().attempt()));
            Err(postbox::HandlerError::retry("not yet"))
        });
        bus.subscribe_many([failing.max_attempts(2), reading_v3(&calls, "other")]).unwrap();
        bus.publish_typed(&Ordered { lines: Vec::new() }).unwrap();
        bus.drain().unwrap();
        clock.advance(std::time::Duration::from_mins(1));
        bus.drain().unwrap();
        assert_eq!(calls.all(), ["attempt 1", "attempt 2"], "{kind}");
    }
}
