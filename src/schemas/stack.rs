//! What of a thread's stack it takes to check a payload, and a stack for what takes much.
//!
//! jsonschema goes by recursion: into each level of the payload, and on each level through all subschemas, one within the other, that look
//! at the same part of it (`allOf`, `$ref`). A thread's stack is the application's, and may be small: what could take more of it than
//! nobody would miss is checked on a stack of its own.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::thread;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::depth;

/// For a level of the payload, and for a step to a subschema that looks at the same part. Four times what either has been seen to take with
/// any keyword, where nothing is optimised (3.7 KB and 0.9 KB).
const LEVEL_BYTES: usize = 16 << 10;
const STEP_BYTES: usize = 4 << 10;

/// So much of the caller's stack may be taken: by far enough for what is usual.
const CALLERS_BYTES_MAX: usize = 512 << 10;

/// What is more than this is not checked. It is a range of addresses: memory is taken by what is used of it.
const BYTES_MAX: usize = 1 << 30;

/// Keywords whose subschemas look at the same part of the payload.
const IN_PLACE: [&str; 9] =
    ["allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"];

/// Through so many subschemas a check may go, one within the other, on one level of a payload.
pub(super) struct Steps(usize);

impl Steps {
    pub(super) fn of(schema: &Value) -> Self {
        let (objects, is_plain) = look_through(schema);
        // jsonschema turns back where it meets, for the same part, a target of `$ref` that it comes from: once it was there, or twice
        // where the first time was no reference.
        let in_circles = || objects.len().saturating_mul(4);
        Steps(if is_plain { longest(schema, &objects).unwrap_or_else(in_circles) } else { in_circles() })
    }

    /// What comes of the check; `None` where it would take too much.
    pub(super) fn run<T: Send>(
        &self,
        payload: &Value,
        check: impl FnOnce() -> T + Send,
    ) -> Result<Option<T>> {
        let level = self.0.saturating_mul(STEP_BYTES).saturating_add(LEVEL_BYTES);
        let bytes = level.saturating_mul(depth(payload) + 1); // what is in the innermost is a level as well
        if bytes <= CALLERS_BYTES_MAX {
            return Ok(Some(check()));
        }
        if bytes > BYTES_MAX {
            return Ok(None);
        }
        on_stack_of(bytes, check).map(Some)
    }
}

/// jsonschema compiles a schema by recursion as well: through eight references, one within the other, each to as many levels as JSON can have.
pub(super) fn compiling<T: Send>(compile: impl FnOnce() -> T + Send) -> Result<T> {
    on_stack_of(256 << 20, compile)
}

fn on_stack_of<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
    const NAME: &str = "postbox-schema";
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(NAME.to_owned()).stack_size(bytes);
        let thread =
            thread.spawn_scoped(scope, work).map_err(|error| Error::io("start the thread", NAME, error))?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Every object in it, and whether all references between them are pointers from its root, so that it can be told where they lead.
fn look_through(schema: &Value) -> (Vec<&Value>, bool) {
    let mut objects = Vec::new();
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => {
                objects.push(value);
                open.extend(fields.values());
            }
            _ => {}
        }
    }
    let has = |value: &Value, keyword| value.get(keyword).is_some_and(Value::is_string);
    // To all other drafts it is a field of the application's, as it stands in many an example.
    let mut drafts = objects.iter().filter_map(|value| value.get("$schema")?.as_str());
    let is_draft_4 = drafts.any(|draft| draft.contains("draft-04"));
    let is_plain = objects.iter().all(|value| {
        // Within a schema that has a name of its own pointers are its own.
        let is_named = has(value, "$id") || is_draft_4 && has(value, "id");
        !(has(value, "$dynamicRef") || has(value, "$recursiveRef"))
            && (std::ptr::eq(*value, schema) || !is_named)
            && (!has(value, "$ref") || target(schema, value).is_some())
    });
    (objects, is_plain)
}

fn target<'a>(schema: &'a Value, of: &Value) -> Option<&'a Value> {
    let pointer = of.get("$ref")?.as_str()?.strip_prefix('#')?;
    // What is percent-encoded is not looked for.
    schema.pointer(pointer).filter(|_| !pointer.contains('%'))
}

/// The most steps from any of the objects on; `None` where they lead in a circle.
fn longest<'a>(schema: &'a Value, objects: &[&'a Value]) -> Option<usize> {
    // By address. `None`: it is being looked at.
    let mut known: HashMap<*const Value, Option<usize>> = HashMap::new();
    let mut longest = 0;
    for object in objects {
        let mut open = vec![*object];
        // Not by recursion: a chain may be as long as the schema.
        while let Some(&value) = open.last() {
            let next = steps(schema, value);
            let is_new = !known.contains_key(&std::ptr::from_ref(value));
            if is_new {
                known.insert(value, None);
                for next in &next {
                    match known.get(&std::ptr::from_ref(*next)) {
                        Some(None) => return None,
                        Some(Some(_)) => {}
                        None => open.push(next),
                    }
                }
                continue;
            }
            open.pop();
            let from_next = |next: &&Value| known.get(&std::ptr::from_ref(*next)).copied().flatten();
            let steps = next.iter().filter_map(from_next).max().map_or(0, |most| most.saturating_add(1));
            known.insert(value, Some(steps));
            longest = longest.max(steps);
        }
    }
    Some(longest)
}

/// The subschemas that look at the same part of the payload.
fn steps<'a>(schema: &'a Value, of: &'a Value) -> Vec<&'a Value> {
    let mut found: Vec<&Value> = target(schema, of).into_iter().collect();
    for keyword in IN_PLACE {
        match of.get(keyword) {
            Some(Value::Array(arms)) => found.extend(arms),
            Some(Value::Object(fields)) if keyword.starts_with("depend") => found.extend(fields.values()),
            Some(other) => found.push(other),
            None => {}
        }
    }
    found.retain(|value| value.is_object());
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_those_on_one_level_of_a_payload() {
        for (schema, steps) in [
            (json!(true), 0),
            (json!({ "properties": { "a": { "items": { "type": "string" } } } }), 0),
            (json!({ "allOf": [{ "anyOf": [true, { "not": { "type": "null" } }] }, {}] }), 3),
            (json!({ "if": {}, "then": { "dependentSchemas": { "a": { "else": {} } } } }), 3),
            // What is only defined is not gone through, and what is referred to is.
            (json!({ "$defs": { "a": { "allOf": [{}] } } }), 1),
            (json!({ "allOf": [{ "$ref": "#/$defs/a" }], "$defs": { "a": { "oneOf": [{}] } } }), 3),
            // On the next level it begins anew.
            (json!({ "properties": { "child": { "$ref": "#" } } }), 1),
            // A field of the application's in an example is no schema's name.
            (json!({ "examples": [{ "id": "o-1" }], "default": { "id": "" } }), 0),
            // The longest way, whichever is looked at first.
            (json!({ "anyOf": [{ "$ref": "#/anyOf/1" }, { "$ref": "#/anyOf/2" }, {}] }), 3),
        ] {
            assert_eq!(Steps::of(&schema).0, steps, "{schema}");
        }
    }

    #[test]
    fn where_it_cannot_be_told_all_objects_are_counted_and_again() {
        for (schema, objects) in [
            (json!({ "$ref": "#" }), 1),
            (json!({ "allOf": [{ "not": { "$ref": "#" } }] }), 3),
            (json!({ "items": { "$dynamicRef": "#a" } }), 2),
            (json!({ "items": { "$ref": "other" } }), 2),
            (json!({ "items": { "$ref": "#/a%25" }, "a%25": {} }), 3),
            (json!({ "items": { "$id": "other", "not": { "$ref": "#" } } }), 3),
            (
                json!({ "$schema": "http://json-schema.org/draft-04/schema#", "items": { "id": "other", "not": { "$ref": "#" } } }),
                3,
            ),
        ] {
            assert_eq!(Steps::of(&schema).0, 4 * objects, "{schema}");
        }
    }

    #[test]
    fn a_chain_as_long_as_a_schema_may_be_is_followed() {
        let links = (0..100_000).map(|n| (format!("d{n}"), json!({ "$ref": format!("#/$defs/d{}", n + 1) })));
        let mut defs: serde_json::Map<_, _> = links.collect();
        defs.insert("d100000".to_owned(), json!({}));
        assert_eq!(Steps::of(&json!({ "$defs": defs })).0, 100_000);
    }

    #[test]
    fn what_panics_on_the_other_stack_panics_here() {
        let caught = std::panic::catch_unwind(|| compiling(|| panic!("as it was")));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"as it was"));
    }
}
