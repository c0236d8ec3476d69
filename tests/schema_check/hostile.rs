//! Payloads, and schemas, that would keep whoever publishes for long.

use postbox::schemars::{self, JsonSchema};
use postbox::{Error, Postbox};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{TestBox, boxes, event, refused_field};

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
