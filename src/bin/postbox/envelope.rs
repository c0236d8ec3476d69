//! Events as CloudEvents 1.0, each a line of JSON: <https://github.com/cloudevents/spec>, version 1.0.2.
//!
//! The attributes are those of `cloudevents/spec.md`, and the envelope that of `cloudevents/formats/json-format.md`. Names of
//! extensions have lower-case letters and digits alone, and no more than 20 ("Naming Conventions"). `correlationid` and
//! `causationid` are those of `extensions/correlation.md`, `traceparent` that of `extensions/distributed-tracing.md`; a number is
//! an Integer, which has 32 bits and a sign ("Type System").

use std::collections::BTreeMap;
use std::fmt::Write as _;

use postbox::{EventId, ImportedEvent, NewEvent, OutboxEvent};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::{show, when};

const SOURCE: &str = "/postbox/";

/// Without the line's end.
pub(crate) fn write(event: &OutboxEvent) -> String {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            object.insert(name.to_owned(), value);
        }
    };
    put("specversion", "1.0".into());
    put("id", event.id.to_string().into());
    put("source", format!("{SOURCE}{}", encoded(&event.source_module, is_unreserved)).into());
    put("type", event.event_name.clone().into());
    let kind = encoded(&event.aggregate_type, |byte| !matches!(byte, b'/' | b'%'));
    put("subject", format!("{kind}/{}", event.aggregate_id).into());
    put("time", show::time_json(event.created_at).into());
    put("datacontenttype", "application/json".into());
    put("correlationid", event.correlation_id.clone().into());
    put("causationid", event.causation_id.map(|id| id.to_string()).into());
    put("traceparent", event.trace_parent.clone().into());
    let version = i32::try_from(event.version).map_or_else(|_| event.version.to_string().into(), Value::from);
    put("payloadversion", version);
    put("postboxstatus", event.status.as_str().into());
    put("postboxmetadata", event.metadata.as_ref().map(ToString::to_string).into());
    object.insert("data".to_owned(), event.payload.clone());
    Value::Object(object).to_string()
}

/// Of a line. The error says what is wrong, and quotes nothing of it.
pub(crate) fn read(line: &[u8]) -> Result<ImportedEvent, String> {
    // Each value by itself: the envelope is one level more than the deepest payload.
    let mut values: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(line).map_err(|error| error_of(&error))?;
    let data = values.remove("data").map(|data| serde_json::from_str(data.get())).transpose();
    let data = data.map_err(|_| "data: is no JSON that can be read back")?.unwrap_or(Value::Null);
    // What cannot be read is no text and no number either.
    let read = |value: &RawValue| serde_json::from_str(value.get()).unwrap_or(Value::Bool(false));
    let attributes = Attributes(values.iter().map(|(name, value)| (name.clone(), read(value))).collect());
    if attributes.required("specversion")? != "1.0" {
        return Err("specversion: only 1.0 is known".to_owned());
    }
    if !attributes.text("datacontenttype")?.is_none_or(is_json) || attributes.0.contains_key("data_base64") {
        return Err("datacontenttype: only data that is JSON can be imported".to_owned());
    }
    let id = attributes.id("id")?.ok_or("id: is missing")?;
    let module = attributes.required("source")?.strip_prefix(SOURCE).and_then(decoded);
    let module = module.ok_or("source: is not /postbox/MODULE")?;
    let (kind, entity_id) =
        attributes.required("subject")?.split_once('/').ok_or("subject: is not TYPE/ID")?;
    let kind = decoded(kind).ok_or("subject: is not TYPE/ID")?;

    let mut event = NewEvent::new(attributes.required("type")?, module, kind, entity_id)
        .payload(data)
        .version(attributes.version()?);
    if let Some(id) = attributes.text("correlationid")? {
        event = event.correlation_id(id);
    }
    if let Some(trace_parent) = attributes.text("traceparent")? {
        event = event.trace_parent(trace_parent);
    }
    if let Some(text) = attributes.text("postboxmetadata")? {
        event = event.metadata(serde_json::from_str(text).map_err(|_| "postboxmetadata: is no JSON")?);
    }
    let mut imported = ImportedEvent::new(id, event);
    if let Some(id) = attributes.id("causationid")? {
        imported = imported.causation_id(id);
    }
    if let Some(time) = attributes.text("time")? {
        imported = imported.published_at(when::rfc3339(time).ok_or("time: is not as RFC 3339 writes it")?);
    }
    Ok(imported)
}

/// serde's own says what it has found.
fn error_of(error: &serde_json::Error) -> String {
    if error.is_data() {
        return "is no JSON object".to_owned();
    }
    format!("is no JSON that can be read: see column {}", error.column())
}

/// `null` is as good as nothing.
struct Attributes(Map<String, Value>);

impl Attributes {
    fn text(&self, name: &str) -> Result<Option<&str>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("{name}: is no text")),
        }
    }

    fn required(&self, name: &str) -> Result<&str, String> {
        self.text(name)?.ok_or_else(|| format!("{name}: is missing"))
    }

    fn id(&self, name: &str) -> Result<Option<EventId>, String> {
        let parse = |text: &str| text.parse().map_err(|_| format!("{name}: is no UUID"));
        self.text(name)?.map(parse).transpose()
    }

    /// An Integer, or a text where it is too large for one.
    fn version(&self) -> Result<u32, String> {
        let number = match self.0.get("payloadversion") {
            None | Some(Value::Null) => return Ok(1),
            Some(Value::String(text)) => text.parse().ok(),
            Some(value) => value.as_u64(),
        };
        let number = number.and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| "payloadversion: is no number from 1 to 4294967295".to_owned())
    }
}

/// `*/json` and `*/*+json`, whatever the parameters (json-format.md, section 3.1.1).
fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.split_once('/').is_some_and(|(_, subtype)| subtype == "json" || subtype.ends_with("+json"))
}

/// Percent-encoded (RFC 3986, section 2.1), but for what is kept.
fn encoded(text: &str, keep: impl Fn(u8) -> bool) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes).bytes();
        if bytes.clone().all(&keep) {
            out.push(c);
        } else {
            for byte in bytes {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `None`: it is not what [`encoded`] writes.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend(parts.next()?.bytes());
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_back() {
        for text in ["finance", "a/b%c d", "é?#", "%2F", ""] {
            assert_eq!(decoded(&encoded(text, is_unreserved)).as_deref(), Some(text));
        }
        assert_eq!(encoded("a/é b", is_unreserved), "a%2F%C3%A9%20b");
        assert_eq!(encoded("a/é b", |byte| byte != b'/'), "a%2Fé b");
        for bad in ["%", "%2", "%+1", "%zz", "%ff"] {
            assert_eq!(decoded(bad), None, "{bad}");
        }
    }

    #[test]
    fn media_types_of_json_are_known() {
        for good in ["application/json", "Text/JSON; charset=utf-8", "application/vnd.x+json"] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["application/xml", "json", "application/json5", ""] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
