//! Payloads are checked by the JSON Schema of their event's name and version when they are published.

mod support;

#[path = "schema_check/hostile.rs"]
mod hostile;
#[path = "schema_check/later.rs"]
mod later;

use std::collections::BTreeMap;

use postbox::schemars::{self, JsonSchema};
use postbox::{
    Context, DomainEvent, Error, Event, EventId, ImportedEvent, NewEvent, Postbox, Subscription, Tx,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{TestBox, boxes, event, file_box, refused_field, sql};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Line {
    sku: String,
    price: u32,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Placed {
    number: String,
    order_lines: Vec<Line>,
    note: Option<String>,
    by_sku: BTreeMap<String, u8>,
}

impl DomainEvent for Placed {
    const NAME: &'static str = "order.placed";
    const SOURCE_MODULE: &'static str = "sales";
    const AGGREGATE_TYPE: &'static str = "Order";
    const VERSION: u32 = 2;
    const FORMER_NAMES: &'static [&'static str] = &["order.made"];

    fn aggregate_id(&self) -> String {
        self.number.clone()
    }
}

fn placed() -> Placed {
    let line = Line { sku: "A-1".to_owned(), price: 5 };
    Placed { number: "o-1".to_owned(), order_lines: vec![line], note: None, by_sku: BTreeMap::new() }
}

fn by_hand(payload: Value) -> NewEvent {
    NewEvent::new("order.placed", "sales", "Order", "o-1").version(2).payload(payload)
}

pub(crate) fn total(bus: &Postbox) -> u64 {
    bus.stats().unwrap().total
}

#[track_caller]
fn violation<T: std::fmt::Debug>(result: postbox::Result<T>) -> (String, String) {
    match result {
        Err(Error::SchemaViolation { event_name, version, path, reason }) => {
            assert_eq!((event_name.as_str(), version), ("order.placed", 2));
            (path, reason)
        }
        other => panic!("expected Error::SchemaViolation, got {other:?}"),
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_path_and_what_the_schema_asks_for_and_never_the_value() {
    for TestBox { bus, .. } in &boxes() {
        bus.catalogue().declare_with_schema::<Placed>().unwrap();
        let with = |field: &str, value: Value| {
            let mut payload = serde_json::to_value(placed()).unwrap();
            payload[field] = value;
            payload
        };
        for (payload, path, reason) in [
            (json!("canary"), "", "must be of type object"),
            (json!({ "number": "canary" }), "", "the field `orderLines` is missing"),
            (with("number", json!(["canary"])), "/number", "must be of type string"),
            (
                with("orderLines", json!([{ "sku": "a", "price": "canary" }])),
                "/orderLines/0/price",
                "must be of type integer",
            ),
            (
                with("orderLines", json!([{ "sku": "a", "price": -77 }])),
                "/orderLines/0/price",
                "must be at least 0",
            ),
            (with("note", json!({ "canary": 1 })), "/note", "must be of type null or string"),
            (with("bySku", json!({ "a/b~c": 300 })), "/bySku/a~1b~0c", "must be at most 255"),
            (with("order_lines", json!("canary")), "/order_lines", "the schema does not know this field"),
            (with("a/b~c", json!("canary")), "/a~1b~0c", "the schema does not know this field"),
        ] {
            let refused = bus.publish(by_hand(payload));
            let said = format!("{refused:?} {}", refused.as_ref().unwrap_err());
            assert!(
                !said.contains("canary") && !said.contains("77") && said.contains("order.placed"),
                "{said}"
            );
            assert!(said.contains("version 2 of `order.placed` does not fit its schema"), "{said}");
            assert_eq!(violation(refused), (path.to_owned(), reason.to_owned()));
        }
        assert_eq!(total(bus), 0);
        bus.publish_typed(&placed()).unwrap();
        assert_eq!(total(bus), 1);
    }
}

/// What it is read by may be another: `number`, which may be missing.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Renamed {
    #[serde(default, rename(serialize = "no"))]
    number: String,
}

impl DomainEvent for Renamed {
    const NAME: &'static str = "order.renamed";
    const SOURCE_MODULE: &'static str = "sales";
    const AGGREGATE_TYPE: &'static str = "Order";

    fn aggregate_id(&self) -> String {
        self.number.clone()
    }
}

#[test]
fn the_schema_of_a_type_is_what_serde_writes() {
    for TestBox { bus, .. } in &boxes() {
        bus.catalogue().declare_with_schema::<Renamed>().unwrap();
        bus.publish_typed(&Renamed { number: "o-1".to_owned() }).unwrap();
        let by_hand = NewEvent::new("order.renamed", "sales", "Order", "o-1");
        match bus.publish(by_hand.payload(json!({ "number": "o-1" }))) {
            Err(Error::SchemaViolation { reason, .. }) => assert_eq!(reason, "the field `no` is missing"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_keyword_has_a_reason_without_the_value() {
    for TestBox { bus, .. } in &boxes() {
        let catalogue = bus.catalogue();
        let cases = [
            (json!({ "enum": ["a"] }), json!("canary")),
            (json!({ "const": "a" }), json!("canary")),
            (json!({ "pattern": "^a+$" }), json!("canary")),
            (json!({ "minLength": 90 }), json!("canary")),
            (json!({ "maxLength": 1 }), json!("canary")),
            (json!({ "not": { "type": "string" } }), json!("canary")),
            (json!({ "anyOf": [{ "const": 1 }, { "const": 2 }] }), json!("canary")),
            (json!({ "oneOf": [{ "const": 1 }, { "const": 2 }] }), json!("canary")),
            (json!({ "oneOf": [{}, {}] }), json!("canary")),
            (json!({ "uniqueItems": true }), json!(["canary", "canary"])),
            (json!({ "contains": { "const": 1 } }), json!(["canary"])),
            (json!({ "minItems": 2 }), json!(["canary"])),
            (json!({ "maxItems": 0 }), json!(["canary"])),
            (json!({ "prefixItems": [true], "items": false }), json!([1, "canary"])),
            (json!({ "exclusiveMinimum": 5, "multipleOf": 2 }), json!(3)),
            (json!({ "multipleOf": 2 }), json!(3)),
            (json!({ "exclusiveMaximum": 3 }), json!(3)),
            (json!({ "propertyNames": { "maxLength": 1 } }), json!({ "canary": 1 })),
            (json!({ "minProperties": 2 }), json!({ "canary": 1 })),
            (json!({ "maxProperties": 0 }), json!({ "canary": 1 })),
            (json!({ "dependentRequired": { "a": ["b"] } }), json!({ "a": "canary" })),
            (json!({ "if": { "type": "string" }, "then": false }), json!("canary")),
            (json!({ "properties": { "a": false } }), json!({ "a": "canary" })),
            (
                json!({ "$schema": "http://json-schema.org/draft-07/schema#", "items": [{}], "additionalItems": false }),
                json!([1, "canary"]),
            ),
        ];
        for (number, (schema, payload)) in (1..).zip(cases) {
            catalogue.schema_of("a", number, schema.clone()).unwrap();
            let refused = bus.publish(event("a").version(number).payload(payload));
            let said = format!("{refused:?} {}", refused.as_ref().unwrap_err());
            let Err(Error::SchemaViolation { reason, version, .. }) = refused else { panic!("{said}") };
            assert!(!said.contains("canary") && !reason.is_empty() && version == number, "{schema}: {said}");
        }
        assert_eq!(total(bus), 0);
    }
}

#[test]
fn every_way_to_publish_is_checked_before_anything_is_written() {
    let test_box = file_box();
    let bus = &test_box.bus;
    bus.catalogue().declare_with_schema::<Placed>().unwrap();
    let bad = || by_hand(json!({}));
    violation(bus.publish(bad()));
    violation(bus.publish_all([event("other"), bad()]));
    let conn = test_box.app_connection();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    violation(bus.publish_in(&conn, bad()));
    conn.execute_batch("COMMIT").unwrap();
    let kept = bus.transaction(|tx| -> postbox::Result<EventId> {
        violation(tx.publish(bad()));
        tx.publish(event("kept")) // the transaction stays usable
    });
    kept.unwrap();
    bus.subscribe_many([
        Subscription::new("kept", "plain", move |_: &Event, cx: &Context<'_>| {
            violation(cx.publish(bad()));
            Ok(())
        }),
        Subscription::transactional("kept", "transactional", move |_: &Event, tx: &Tx<'_>| {
            violation(tx.publish(bad()));
            Ok(())
        }),
    ])
    .unwrap();
    assert_eq!((bus.drain().unwrap(), total(bus)), (1, 1));
}

#[test]
fn other_versions_and_names_and_what_was_published_before_are_not_checked() {
    let test_box = file_box();
    test_box.bus.publish(by_hand(json!({ "old": 1 }))).unwrap();
    let test_box = test_box.reopen();
    let bus = &test_box.bus;
    bus.catalogue().declare_with_schema::<Placed>().unwrap();
    bus.publish(by_hand(json!({})).version(1)).unwrap();
    bus.publish(by_hand(json!({})).version(3)).unwrap();
    bus.publish(NewEvent::new("order.made", "sales", "Order", "o-1").version(2)).unwrap();
    bus.publish(event("other")).unwrap();
    // It has been published already, elsewhere.
    let id = bus.publish(event("for its id")).unwrap();
    sql(bus, |tx| tx.execute("DELETE FROM outbox_event WHERE event_name = 'for its id'", []));
    assert_eq!(bus.import([ImportedEvent::new(id, by_hand(json!({})))]).unwrap(), 1);
    bus.subscribe(Subscription::new("*", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    assert_eq!(bus.drain().unwrap(), 6);
    violation(bus.publish(by_hand(json!({}))));
}

#[test]
fn a_former_name_is_checked_by_the_schema_of_that_name() {
    for TestBox { bus, .. } in &boxes() {
        bus.catalogue().declare_with_schema::<Placed>().unwrap();
        bus.catalogue().schema_of("order.made", 1, json!({ "required": ["total"] })).unwrap();
        let made = NewEvent::new("order.made", "sales", "Order", "o-1");
        match bus.publish(made.clone()) {
            Err(Error::SchemaViolation { event_name, version: 1, reason, .. }) => {
                assert_eq!(
                    (event_name.as_str(), reason.as_str()),
                    ("order.made", "the field `total` is missing")
                );
            }
            other => panic!("{other:?}"),
        }
        bus.publish(made.payload(json!({ "total": null }))).unwrap();
    }
}

#[test]
fn a_schema_that_is_none_or_another_than_before_is_refused_and_changes_nothing() {
    for TestBox { bus, .. } in &boxes() {
        let catalogue = bus.catalogue();
        let deep = (0..200).fold(json!(true), |inner, _| json!({ "not": inner }));
        for (schema, part) in [
            (json!({ "type": "nonsense" }), "/type"),
            (json!({ "properties": { "a": { "minimum": "x" } } }), "/properties/a/minimum"),
            (json!(5), "is not of types"),
            (json!({ "$ref": "https://example.com/other.json" }), "Retrieval is disabled"),
            (json!({ "$ref": "file:///etc/hostname" }), "Retrieval is disabled"),
            (json!({ "$ref": "#/$defs/none" }), "does not exist"),
            (json!({ "pattern": "(" }), "/pattern"),
            (deep, "nested more than 127 levels"),
        ] {
            let refused = catalogue.schema_of("a", 1, schema);
            let said = refused.as_ref().unwrap_err().to_string();
            assert_eq!(refused_field(refused), "schema");
            assert!(said.contains(part), "{said}");
        }
        assert!(catalogue.entries().is_empty());
        bus.publish(event("a")).unwrap();

        catalogue.schema_of("order.placed", 2, json!({ "type": "object" })).unwrap();
        catalogue.schema_of("order.placed", 2, json!({ "type": "object" })).unwrap();
        let refused = catalogue.declare_with_schema::<Placed>();
        let said = refused.as_ref().unwrap_err().to_string();
        assert_eq!(said, "invalid schema: of version 2 of `order.placed`: another one was declared");
        assert_eq!(refused_field(refused), "schema");
        assert_eq!(refused_field(catalogue.schema_of("a", 0, json!({}))), "version");
        assert_eq!(refused_field(catalogue.schema_of("a.*", 1, json!({}))), "event_name");
        let entry = &catalogue.entries()[0];
        assert!(entry.publishers.is_empty() && entry.former_names.is_empty(), "nothing of it was declared");
        assert!(entry.versions.len() == 1 && entry.versions[0].has_schema);
    }
}

#[test]
fn a_reference_in_a_circle_ends() {
    for TestBox { bus, .. } in &boxes() {
        bus.catalogue().schema_of("a", 1, json!({ "$ref": "#" })).unwrap();
        let tree = json!({ "type": "object", "properties": { "child": { "$ref": "#" } } });
        bus.catalogue().schema_of("tree", 1, tree).unwrap();
        bus.publish(event("a")).unwrap();
        let nested = |end: Value| (0..100).fold(end, |inner, _| json!({ "child": inner }));
        bus.publish(event("tree").payload(nested(json!({})))).unwrap();
        match bus.publish(event("tree").payload(nested(json!(1)))) {
            Err(Error::SchemaViolation { path, .. }) => assert_eq!(path, "/child".repeat(100)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_catalogue_tells_which_versions_have_a_schema() {
    for TestBox { bus, .. } in &boxes() {
        let catalogue = bus.catalogue();
        catalogue.declare_with_schema::<Placed>().unwrap();
        catalogue.declare_with_schema::<Placed>().unwrap();
        catalogue.schema_of("order.placed", 1, json!({})).unwrap();
        catalogue.declare_event(postbox::EventDeclaration::new("order.placed", 3, "sales")).unwrap();
        let entry = &catalogue.entries()[0];
        let versions: Vec<_> = entry.versions.iter().map(|of| (of.version, of.has_schema)).collect();
        assert_eq!(versions, [(1, true), (2, true), (3, false)]);
        assert_eq!(
            (entry.former_names.as_slice(), entry.publishers.as_slice()),
            (&["order.made".to_owned()][..], &["sales".to_owned()][..])
        );
    }
}
