//! JSON of the application's: what can be stored and read back, and a value that can be dropped whatever its shape.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::error::{Error, Result};

/// `serde_json` reads no deeper than this.
pub(crate) const DEPTH_MAX: usize = 127;

/// A value that was not looked at yet. `Value`'s own drop recurses, and one that is nested deeply enough would exhaust the
/// stack: this one is taken apart.
#[derive(Clone)]
pub(crate) struct Json(Value);

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        Json(value)
    }
}

impl Json {
    /// For a value that was checked: it is not nested too deeply to be dropped as any other.
    pub(crate) fn into_value(mut self) -> Value {
        self.0.take()
    }

    /// As text that can be read back: neither too large nor nested too deeply.
    pub(crate) fn to_text(&self, field: &'static str, bytes_max: usize) -> Result<String> {
        // Before serialising: that recurses as well.
        self.refuse_depth(field, DEPTH_MAX)?;
        let mut sink = BoundedSink::new(bytes_max);
        serde_json::to_writer(&mut sink, &self.0).map_err(Error::Json)?;
        if sink.size > bytes_max {
            return Err(Error::PayloadTooLarge { size: sink.size, limit: bytes_max });
        }
        String::from_utf8(sink.bytes).map_err(|_| Error::invalid(field, "is not UTF-8"))
    }
}

impl Json {
    /// `levels_around`: in what it is to be kept as a part of.
    pub(crate) fn refuse_depth_within(&self, field: &'static str, levels_around: usize) -> Result<()> {
        self.refuse_depth(field, DEPTH_MAX - levels_around)
    }

    fn refuse_depth(&self, field: &'static str, max: usize) -> Result<()> {
        if depth_exceeds(&self.0, max) {
            let reason = format!("is nested more than {max} levels deep and could not be read back");
            return Err(Error::invalid(field, reason));
        }
        Ok(())
    }
}

impl Drop for Json {
    fn drop(&mut self) {
        if !nests(&self.0) {
            return;
        }
        let mut open = vec![self.0.take()];
        while let Some(value) = open.pop() {
            match value {
                Value::Array(items) => open.extend(items.into_iter().filter(nests)),
                Value::Object(fields) => open.extend(fields.into_iter().map(|(_, item)| item).filter(nests)),
                _ => {}
            }
        }
    }
}

/// Whether this can be read into a `Value`, without making one: SQLite's own `json_valid` knows another depth, and takes numbers
/// and texts that cannot be.
pub(crate) fn is_readable(text: &[u8]) -> bool {
    serde_json::from_slice::<Seen>(text).is_ok()
}

/// Nothing is kept of it. Unlike `IgnoredAny` it has all numbers, texts and levels read.
struct Seen;

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Seen)
    }
}

impl<'de> Visitor<'de> for Seen {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Seen, E> {
        Ok(Seen)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Seen, E> {
        Ok(Seen)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Seen, E> {
        Ok(Seen)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Seen, E> {
        Ok(Seen)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Seen, E> {
        Ok(Seen)
    }

    fn visit_str<E>(self, _: &str) -> Result<Seen, E> {
        Ok(Seen)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Seen, A::Error> {
        while items.next_element::<Seen>()?.is_some() {}
        Ok(Seen)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Seen, A::Error> {
        while fields.next_entry::<Seen, Seen>()?.is_some() {}
        Ok(Seen)
    }
}

/// It never fails: it counts on past the limit without keeping anything.
pub(crate) struct BoundedSink {
    pub(crate) bytes: Vec<u8>,
    bytes_max: usize,
    pub(crate) size: usize,
}

impl BoundedSink {
    pub(crate) fn new(bytes_max: usize) -> Self {
        BoundedSink { bytes: Vec::with_capacity(256.min(bytes_max)), bytes_max, size: 0 }
    }
}

impl std::io::Write for BoundedSink {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.size = self.size.saturating_add(part.len());
        if self.size <= self.bytes_max {
            self.bytes.extend_from_slice(part);
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How many levels of arrays and objects there are, one within the other. Walks without recursion.
#[cfg(feature = "schema")]
pub(crate) fn depth(value: &Value) -> usize {
    let mut deepest = 0;
    let mut open = vec![(value, 1_usize)];
    while let Some((value, depth)) = open.pop() {
        let inner: &mut dyn Iterator<Item = &Value> = match value {
            Value::Array(items) => &mut items.iter(),
            Value::Object(fields) => &mut fields.values(),
            _ => continue,
        };
        deepest = deepest.max(depth);
        open.extend(inner.filter(|item| nests(item)).map(|item| (item, depth + 1)));
    }
    deepest
}

/// Walks without recursion.
fn depth_exceeds(value: &Value, max: usize) -> bool {
    let mut open = vec![(value, 1_usize)];
    while let Some((value, depth)) = open.pop() {
        match value {
            Value::Array(_) | Value::Object(_) if depth > max => return true,
            Value::Array(items) => {
                open.extend(items.iter().filter(|item| nests(item)).map(|item| (item, depth + 1)));
            }
            Value::Object(fields) => {
                open.extend(fields.values().filter(|item| nests(item)).map(|item| (item, depth + 1)));
            }
            _ => {}
        }
    }
    false
}

fn nests(value: &Value) -> bool {
    matches!(value, Value::Array(_) | Value::Object(_))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, _| json!([inner]))
    }

    #[test]
    fn what_is_accepted_can_be_read_back_and_the_next_level_is_refused() {
        let deepest = Json::from(nested(DEPTH_MAX)).to_text("payload", 1 << 20).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&deepest).unwrap(), nested(DEPTH_MAX));
        assert!(matches!(
            Json::from(nested(DEPTH_MAX + 1)).to_text("payload", 1 << 20),
            Err(Error::Invalid { field: "payload", .. })
        ));
        assert!(
            serde_json::from_str::<Value>(&nested(DEPTH_MAX + 1).to_string()).is_err(),
            "the limit is tight"
        );
    }

    #[test]
    fn what_is_readable_is_what_can_be_read() {
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        for text in [
            r#"{"a": [1, -2, 3.5, "x\n\u00e9", null, true, {}]}"#,
            r#""\ud83d\ude00""#,
            r#""\ud83d""#,
            "1e999",
            "18446744073709551616",
            "[1] 2",
            "",
            "nul",
            "{1: 2}",
            &deep(DEPTH_MAX),
            &deep(DEPTH_MAX + 1),
        ] {
            assert_eq!(is_readable(text.as_bytes()), serde_json::from_str::<Value>(text).is_ok(), "{text}");
        }
        assert!(!is_readable(b"\"\xff\""));
    }

    #[test]
    fn a_value_of_any_depth_can_be_dropped() {
        let mut value = Value::Null;
        for _ in 0..1_000_000 {
            value = Value::Array(vec![value]);
        }
        drop(Json::from(value));
    }
}
