//! What it takes to say where a payload does not fit its schema.
//!
//! Whether it fits is known soon, since each part is looked at once. To say where it does not, jsonschema collects what is wrong with each
//! alternative of each alternative: in a schema that refers to itself, so often that a payload nested some twenty levels deep takes hours.

use std::collections::HashSet;

use serde_json::Value;

/// So many looks at parts of a payload are taken to say where it does not fit.
const LOOKS_MAX: u64 = 10_000;

/// A chain of references as long as this one is taken for a circle.
const CHAIN_MAX: usize = 100;

/// In how many ways a schema that refers to itself may lead to a part of a payload, for each level that it is nested.
pub(super) struct Ways(u64);

impl Ways {
    pub(super) fn of(schema: &Value) -> Self {
        if leads_back(schema, schema, &mut Vec::new(), &mut HashSet::new()) {
            Ways(alternatives(schema).max(1))
        } else {
            Ways(1)
        }
    }

    /// Whether it can be said soon where this payload does not fit.
    pub(super) fn are_few(&self, payload: &Value) -> bool {
        if self.0 == 1 {
            return true;
        }
        let mut looks = 0_u64;
        let mut open = vec![(payload, 1_u64)];
        while let Some((value, ways)) = open.pop() {
            looks = looks.saturating_add(ways);
            if looks > LOOKS_MAX {
                return false;
            }
            let inner = ways.saturating_mul(self.0);
            open.extend(parts(value).map(|part| (part, inner)));
        }
        true
    }
}

/// Those of which more than one may lead back, all together: one that refers to nothing ends where it stands.
fn alternatives(schema: &Value) -> u64 {
    let mut count = 0_u64;
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        let referring = ways_from(value);
        count = count.saturating_add(if referring > 1 { referring } else { 0 });
        open.extend(parts(value));
    }
    count
}

/// What in this subschema refers to others and may look at the same part of a payload as the rest of it: arms of alternatives, other
/// subschemas that look at what this one does, and keywords that go into the same fields.
fn ways_from(schema: &Value) -> u64 {
    let refers = |value: &Value| !references(value).is_empty();
    let any =
        |keywords: &[&str]| u64::from(keywords.iter().filter_map(|keyword| schema.get(keyword)).any(refers));
    let each = |keyword: &&str| match schema.get(keyword) {
        Some(Value::Array(arms)) => arms.iter().filter(|arm| refers(arm)).count() as u64,
        Some(Value::Object(arms)) => arms.values().filter(|arm| refers(arm)).count() as u64,
        _ => 0,
    };
    let refers_itself = ["$ref", "$dynamicRef", "$recursiveRef"]
        .iter()
        .filter(|of| schema.get(of).is_some_and(Value::is_string));
    // `if`, `not` and `contains` are only asked whether something fits.
    let arms = ["allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies"];
    let in_place = refers_itself.count() as u64 + any(&["then", "else"]) + arms.iter().map(each).sum::<u64>();
    // A field or an item has one of each of these at the most; a field may have several patterns as well.
    let fields = any(&["properties", "additionalProperties"])
        + each(&"patternProperties")
        + any(&["unevaluatedProperties"]);
    let items = any(&["items", "prefixItems", "additionalItems"]) + any(&["unevaluatedItems"]);
    in_place + fields.max(items)
}

/// Whether a reference in `part` leads to where it is referred from. One that is no pointer into the schema is taken for such.
fn leads_back<'a>(
    schema: &'a Value,
    part: &'a Value,
    open: &mut Vec<&'a str>,
    done: &mut HashSet<&'a str>,
) -> bool {
    references(part).into_iter().any(|reference| {
        if done.contains(reference) {
            return false;
        }
        let target = reference.strip_prefix('#').and_then(|pointer| schema.pointer(pointer));
        let Some(target) = target.filter(|_| open.len() < CHAIN_MAX && !open.contains(&reference)) else {
            return true;
        };
        open.push(reference);
        let leads_back = leads_back(schema, target, open, done);
        open.pop();
        done.insert(reference);
        leads_back
    })
}

fn references(schema: &Value) -> Vec<&str> {
    let mut found = Vec::new();
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        let pointer = value.get("$ref").and_then(Value::as_str);
        // Where these lead is known only while something is checked.
        let dynamic = value.get("$dynamicRef").or(value.get("$recursiveRef")).map(|_| "");
        found.extend(pointer.into_iter().chain(dynamic));
        open.extend(parts(value));
    }
    found
}

fn parts(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    let nests = |part: &&Value| part.is_array() || part.is_object();
    match value {
        Value::Array(items) => Box::new(items.iter().filter(nests)),
        Value::Object(fields) => Box::new(fields.values().filter(nests)),
        _ => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!({}), |inner, _| json!({ "child": inner }))
    }

    #[test]
    fn a_schema_that_refers_to_itself_by_several_alternatives_has_so_many_ways() {
        let child = |to: &str| json!({ "properties": { "child": { "$ref": to } } });
        for (schema, ways) in [
            (json!({ "oneOf": [child("#"), child("#"), { "const": 1 }] }), 2),
            (
                json!({ "$ref": "#/$defs/a", "$defs": { "a": { "anyOf": [child("#/$defs/b"), child("#/$defs/a")] }, "b": {} } }),
                2,
            ),
            (json!({ "anyOf": [{ "$dynamicRef": "#a" }, { "$recursiveRef": "#" }, { "$ref": "other" }] }), 3),
            // Only one of them leads back.
            (json!({ "properties": { "child": { "anyOf": [{ "$ref": "#" }, { "type": "null" }] } } }), 1),
            // None does.
            (
                json!({ "oneOf": [child("#/$defs/a"), child("#/$defs/b")], "$defs": { "a": child("#/$defs/b"), "b": {} } }),
                1,
            ),
            (json!(true), 1),
            // Keywords that look at the same fields.
            (json!({ "dependentSchemas": { "a": child("#"), "b": child("#") } }), 2),
            (
                json!({ "properties": { "child": { "$ref": "#" } }, "patternProperties": { "^c": { "$ref": "#" }, "d$": { "$ref": "#" } } }),
                3,
            ),
            (
                json!({ "$ref": "#/$defs/a", "properties": { "child": { "$ref": "#" } }, "$defs": { "a": child("#") } }),
                2,
            ),
            (json!({ "then": child("#"), "else": child("#"), "allOf": [child("#")] }), 2),
            // A field has one of them, and an item another.
            (
                json!({ "properties": { "a": { "$ref": "#" }, "b": { "$ref": "#" } }, "additionalProperties": { "$ref": "#" }, "items": { "$ref": "#" } }),
                1,
            ),
        ] {
            assert_eq!(Ways::of(&schema).0, ways, "{schema}");
        }
    }

    #[test]
    fn a_chain_of_references_ends() {
        let links = (0..5_000).map(|n| (format!("d{n}"), json!({ "$ref": format!("#/$defs/d{}", n + 1) })));
        let chain = json!({ "oneOf": [{ "$ref": "#/$defs/d0" }, { "$ref": "#/$defs/d1" }], "$defs": links.collect::<serde_json::Map<_, _>>() });
        assert_eq!(Ways::of(&chain).0, 2);
    }

    #[test]
    fn few_ways_are_those_of_a_payload_that_is_small_and_not_nested_deeply() {
        assert!(Ways(1).are_few(&nested(120)));
        assert!(Ways(3).are_few(&nested(7)) && !Ways(3).are_few(&nested(9)));
        assert!(Ways(3).are_few(&json!([[], []])) && !Ways(3).are_few(&json!(vec![json!([]); 5_000])));
    }
}
