//! Patterns of JSON.

use postbox::testing::{Pattern, absent, anything, exactly, json_pattern, that};
use serde_json::{Value, json};

fn fits(pattern: &Pattern, value: &Value) -> bool {
    pattern.matches(value)
}

#[test]
fn objects_match_those_that_have_more_fields_at_every_depth() {
    let pattern = json_pattern!({ "a": 1, "b": { "c": "x" } });
    assert!(fits(&pattern, &json!({ "a": 1, "b": { "c": "x", "d": 2 }, "e": 3 })));
    for other in [
        json!({ "a": 1 }),
        json!({ "a": 2, "b": { "c": "x" } }),
        json!({ "a": 1, "b": { "c": "y" } }),
        json!({ "a": 1, "b": "x" }),
        json!([1]),
        json!(null),
    ] {
        assert!(!fits(&pattern, &other), "{other}");
    }
    assert!(fits(&json_pattern!({}), &json!({ "a": 1 })));
    assert!(!fits(&json_pattern!({}), &json!([])));
}

#[test]
fn arrays_match_element_by_element_and_are_as_long() {
    let pattern = json_pattern!([1, { "a": _ }, [null, "x"]]);
    assert!(fits(&pattern, &json!([1, { "a": 2, "b": 3 }, [null, "x"]])));
    assert!(!fits(&pattern, &json!([1, { "a": 2 }])));
    assert!(!fits(&pattern, &json!([1, { "a": 2 }, [null, "x"], 4])));
    assert!(!fits(&pattern, &json!([1, { "b": 2 }, [null, "x"]])));
    assert!(fits(&json_pattern!([]), &json!([])));
    assert!(!fits(&json_pattern!([]), &json!([1])));
}

#[test]
fn anything_has_to_be_there_and_absent_must_not() {
    for pattern in [json_pattern!({ "a": _ }), json_pattern!({ "a": anything() })] {
        assert!(fits(&pattern, &json!({ "a": null })));
        assert!(!fits(&pattern, &json!({ "b": 1 })));
    }
    let pattern = json_pattern!({ "a": absent() });
    assert!(fits(&pattern, &json!({ "b": 1 })));
    assert!(!fits(&pattern, &json!({ "a": null })));
    assert!(!fits(&json_pattern!({ "a": null }), &json!({})));
}

#[test]
fn exactly_allows_no_further_field_at_any_depth() {
    let pattern = json_pattern!({ "a": exactly(json!({ "b": [{ "c": 1 }] })) });
    assert!(fits(&pattern, &json!({ "a": { "b": [{ "c": 1.0 }] }, "z": 1 })));
    assert!(!fits(&pattern, &json!({ "a": { "b": [{ "c": 1, "d": 2 }] } })));
    assert!(!fits(&pattern, &json!({ "a": { "b": [{ "c": 1 }], "d": 2 } })));
    assert!(!fits(&pattern, &json!({ "a": { "b": [] } })));
}

#[test]
fn numbers_match_by_their_value() {
    assert!(fits(&json_pattern!(12), &json!(12.0)));
    assert!(fits(&json_pattern!(12.0), &json!(12)));
    assert!(fits(&json_pattern!(-1_i8), &json!(-1)));
    assert!(fits(&json_pattern!(u64::MAX), &json!(u64::MAX)));
    assert!(!fits(&json_pattern!(u64::MAX), &json!(u64::MAX - 1)));
    assert!(!fits(&json_pattern!(12), &json!("12")));
}

#[test]
fn values_are_expressions_of_the_test() {
    let (name, missing, list) = ("Ada".to_owned(), None::<u32>, vec!["x", "y"]);
    let inner = json_pattern!({ "deep": true });
    let pattern = json_pattern!({
        "name": &name,
        "age": Some(36),
        "missing": missing,
        "list": list,
        ("computed".to_owned() + "_key"): 1 + 1,
        "value": json!({ "part": 1 }),
        "inner": inner,
        "odd": that(|odd| odd.as_u64().is_some_and(|odd| odd % 2 == 1)),
    });
    let value = json!({
        "name": "Ada", "age": 36, "missing": null, "list": ["x", "y"], "computed_key": 2,
        "value": { "part": 1, "more": 2 }, "inner": { "deep": true }, "odd": 7,
    });
    assert!(fits(&pattern, &value));
    for (field, other) in
        [("name", json!("Bob")), ("odd", json!(8)), ("missing", json!(1)), ("list", json!(["x"]))]
    {
        let mut value = value.clone();
        value[field] = other;
        assert!(!fits(&pattern, &value), "{field}");
    }
}

#[test]
fn a_pattern_is_shown_as_it_was_written() {
    let pattern = json_pattern!({ "a": [1, _, "x"], "b": absent(), "c": exactly(json!({ "d": null })) });
    assert_eq!(pattern.to_string(), r#"{"a": [1, anything, "x"], "b": nothing, "c": exactly {"d":null}}"#);
}
