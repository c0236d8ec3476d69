//! Payloads, and schemas, that would keep whoever publishes for long.

use std::thread;

use postbox::schemars::{self, JsonSchema};
use postbox::{Error, EventId, Postbox};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{TestBox, boxes, event, memory_box_with, refused_field};

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind")]
enum Rule {
    Not { inner: Box<Rule> },
    Minus { inner: Box<Rule> },
    All { of: Vec<Rule> },
    Number { n: u8 },
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Folder {
    inner: Option<Box<Folder>>,
    size: u8,
}

fn memory_box() -> TestBox {
    memory_box_with(|builder| builder)
}

fn declare<T: JsonSchema>(bus: &Postbox) {
    bus.catalogue().schema_of("a", 1, schemars::schema_for!(T).to_value()).unwrap();
}

/// Levels around `end`.
fn nested(levels: usize, end: Value) -> Value {
    (0..levels).fold(end, |inner, _| json!({ "kind": "Not", "size": 1, "inner": inner }))
}

#[track_caller]
fn violation(bus: &Postbox, payload: Value) -> (String, String) {
    match bus.publish(event("a").payload(payload)) {
        Err(Error::SchemaViolation { path, reason, .. }) => (path, reason),
        other => panic!("{other:?}"),
    }
}

/// To say where it did not fit, each alternative of each alternative was looked at: 12 seconds for 16 levels, and twice as long for each
/// more.
#[test]
fn what_is_nested_deeply_in_a_type_of_alternatives_that_holds_itself_is_refused_at_once() {
    for TestBox { bus, .. } in &boxes() {
        declare::<Rule>(bus);
        let number = |n: Value| json!({ "kind": "Number", "n": n });
        bus.publish(event("a").payload(nested(100, number(json!(1))))).unwrap();
        bus.publish(event("a").payload(json!({ "kind": "All", "of": vec![number(json!(1)); 1_000] })))
            .unwrap();
        for payload in [
            nested(100, number(json!("canary"))),
            json!({ "kind": "All", "of": vec![nested(6, number(json!("canary"))); 1_000] }),
        ] {
            let (path, reason) = violation(bus, payload);
            assert_eq!(path, "");
            assert!(reason.contains("where is not looked for"), "{reason}");
        }
        let (path, reason) = violation(bus, nested(3, number(json!("canary"))));
        assert_eq!((path.as_str(), reason.as_str()), ("", "fits none of the schema's alternatives"));
    }
}

#[test]
fn where_one_way_leads_on_it_is_said_how_deeply_a_payload_does_not_fit() {
    for TestBox { bus, .. } in &boxes() {
        declare::<Folder>(bus);
        bus.publish(event("a").payload(nested(100, json!({ "size": 1 })))).unwrap();
        let (path, _) = violation(bus, nested(100, json!({ "size": "canary" })));
        assert_eq!(path, "/inner");
    }
}

/// The alternatives alone were counted: keywords that look at the same field one after the other took as long.
#[test]
fn what_is_nested_deeply_below_fields_that_several_keywords_look_at_is_refused_at_once() {
    let inner = || json!({ "properties": { "inner": { "$ref": "#/$defs/x" } } });
    for folder in [
        json!({ "dependentSchemas": { "inner": inner(), "size": inner() } }),
        json!({ "properties": { "inner": { "$ref": "#/$defs/x" } }, "patternProperties": { "^in": { "$ref": "#/$defs/x" } } }),
        json!({ "$ref": "#/$defs/y", "properties": { "inner": { "$ref": "#/$defs/x" } } }),
    ] {
        let test = memory_box();
        let whole = json!({ "allOf": [{ "$ref": "#/$defs/x" }, { "properties": { "kind": false } }],
                            "$defs": { "x": folder, "y": inner() } });
        test.bus.catalogue().schema_of("a", 1, whole).unwrap();
        let (path, reason) = violation(&test.bus, nested(100, json!({})));
        assert_eq!(path, "");
        assert!(reason.contains("where is not looked for"), "{reason}");
        assert_eq!(violation(&test.bus, nested(5, json!({}))).0, "/kind");
    }
}

/// Subschemas within subschemas that all look at one part.
fn within(parts: usize, innermost: Value) -> Value {
    (0..parts).fold(innermost, |inner, _| json!({ "not": { "not": inner } }))
}

/// On a thread with a small stack, as an application may have them.
fn publish_on_small_stack(bus: &Postbox, payload: Value) -> postbox::Result<EventId> {
    let publish = || bus.publish(event("a").payload(payload));
    let small = thread::Builder::new().stack_size(256 << 10);
    thread::scope(|scope| small.spawn_scoped(scope, publish).unwrap().join().unwrap())
}

/// The check went by recursion on the stack of whoever published, however little there was, and the process died of it.
#[test]
fn a_payload_of_many_levels_meets_a_schema_of_many_parts_on_a_small_stack() {
    let test = memory_box();
    let inner = json!({ "properties": { "inner": { "$ref": "#" } }, "required": ["kind"] });
    test.bus.catalogue().schema_of("a", 1, within(60, inner)).unwrap();
    let end = json!({ "kind": "end" });
    publish_on_small_stack(&test.bus, nested(126, end.clone())).unwrap();
    publish_on_small_stack(&test.bus, nested(3, end)).unwrap();
    let refused = publish_on_small_stack(&test.bus, nested(126, json!({ "secret": "canary" })));
    assert!(matches!(refused, Err(Error::SchemaViolation { .. })), "{refused:?}");
}

/// An `id` in an example was taken for the name that a part of a schema has in draft 4, within which nobody knows where references lead: a
/// thread was started for each check, and what fits was refused.
#[test]
fn what_an_example_holds_is_no_part_of_a_schema() {
    let TestBox { bus, .. } = &memory_box();
    let parts: serde_json::Map<_, _> = (0..1_000).map(|n| (format!("p{n}"), json!({}))).collect();
    let schema =
        json!({ "properties": { "inner": { "$ref": "#" } }, "examples": [{ "id": "o-1" }], "$defs": parts });
    bus.catalogue().schema_of("a", 1, schema).unwrap();
    bus.publish(event("a").payload(nested(100, json!(1)))).unwrap();
}

/// Where these lead is known only while something is checked.
#[test]
fn a_schema_that_leads_back_to_the_same_part_has_room_as_well() {
    let test = memory_box();
    let arms = vec![json!({ "$dynamicRef": "#this" }), json!({ "properties": { "inner": { "$ref": "#" } } })];
    let circle = json!({ "$dynamicAnchor": "this", "allOf": [within(20, json!({ "allOf": arms }))] });
    test.bus.catalogue().schema_of("a", 1, circle).unwrap();
    publish_on_small_stack(&test.bus, nested(126, json!({}))).unwrap();
    let round = json!({ "anyOf": [{ "$ref": "#/$defs/a" }],
                        "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "allOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#" }] } } });
    test.bus.catalogue().schema_of("b", 1, round).unwrap();
    test.bus.publish(event("b").payload(nested(126, json!({})))).unwrap();
}

#[test]
fn what_no_stack_is_large_enough_for_is_refused_and_anything_less_is_checked() {
    let test = memory_box();
    let last = json!({ "properties": { "inner": { "$ref": "#" } } });
    let link =
        |n: usize| if n == 2_500 { last.clone() } else { json!({ "$ref": format!("#/$defs/d{}", n + 1) }) };
    let chain: serde_json::Map<_, _> = (0..=2_500).map(|n| (format!("d{n}"), link(n))).collect();
    test.bus.catalogue().schema_of("a", 1, json!({ "$ref": "#/$defs/d0", "$defs": chain })).unwrap();
    publish_on_small_stack(&test.bus, nested(50, json!({}))).unwrap();
    let (path, reason) = violation(&test.bus, nested(126, json!({})));
    assert_eq!(path, "");
    assert!(reason.contains("it is not checked"), "{reason}");
}

#[test]
fn a_pattern_that_goes_back_and_forth_without_end_is_given_up() {
    for TestBox { bus, .. } in &boxes() {
        let backtracking = json!({ "items": { "pattern": "^(a|a)*\\1b" } });
        bus.catalogue().schema_of("a", 1, backtracking).unwrap();
        let (path, reason) = violation(bus, json!([format!("{}canary", "a".repeat(60))]));
        assert_eq!((path.as_str(), reason.as_str()), ("/0", "matching a pattern takes too many steps"));
        bus.catalogue().schema_of("a", 2, json!({ "pattern": "^(a+)+$" })).unwrap();
        bus.publish(event("a").version(2).payload(json!("a".repeat(100_000)))).unwrap();
    }
}

#[test]
fn formats_are_checked_by_the_drafts_that_say_so() {
    for TestBox { bus, .. } in &boxes() {
        let (seventh, latest) =
            ("http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema");
        bus.catalogue().schema_of("a", 1, json!({ "$schema": seventh, "format": "email" })).unwrap();
        bus.catalogue().schema_of("a", 2, json!({ "$schema": latest, "format": "email" })).unwrap();
        let (_, reason) = violation(bus, json!("canary"));
        assert_eq!(reason, "must be of the format `email`");
        bus.publish(event("a").version(2).payload(json!("canary"))).unwrap();
    }
}

/// With a name or a version that was refused it was dropped as any value, by recursion, and the process died of it.
#[test]
fn a_schema_of_any_depth_is_refused_with_any_name() {
    let deep = || (0..1_000_000).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
    for TestBox { bus, .. } in &boxes() {
        assert_eq!(refused_field(bus.catalogue().schema_of("a", 1, deep())), "schema");
        assert_eq!(refused_field(bus.catalogue().schema_of("a.*", 1, deep())), "event_name");
        assert_eq!(refused_field(bus.catalogue().schema_of("a", 0, deep())), "version");
    }
}
