//! Events that are kept as JSON until they are published: those that undo a saga's steps, and those of schedules' ticks.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::clock::{from_micros, to_micros};
use crate::error::Result;
use crate::event::{Due, Event, EventId, NewEvent};
use crate::outbox::insert::{self, PreparedEvent};

/// An event that was checked when it was handed over, and is published later. Its idempotency key is not in it: the id that the key
/// makes is. What a later release adds is not understood here, rather than left out.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredEvent {
    event_name: String,
    source_module: String,
    aggregate_type: String,
    aggregate_id: String,
    payload: Value,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub(crate) metadata: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace_parent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<EventId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) due: Option<StoredDue>,
    version: u32,
}

/// Payload and metadata are a part of the event's object, and that of a list.
const LEVELS_AROUND: usize = 2;

/// In microseconds: a time of the box's, or a delay from when it is published.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoredDue {
    At(i64),
    After(u64),
}

/// `null` that was given is not the same as nothing.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl StoredEvent {
    /// Checks all that publishing would check, and that it can be read back.
    pub(crate) fn of(event: NewEvent, payload_bytes_max: usize) -> Result<Self> {
        let checked = insert::check(&event, payload_bytes_max)?;
        event.payload.refuse_depth_within("payload", LEVELS_AROUND)?;
        if let Some(metadata) = &event.metadata {
            metadata.refuse_depth_within("metadata", LEVELS_AROUND)?;
        }
        Ok(StoredEvent {
            event_name: event.event_name,
            source_module: event.source_module,
            aggregate_type: event.aggregate_type,
            aggregate_id: event.aggregate_id,
            payload: event.payload.into_value(),
            metadata: event.metadata.map(crate::json::Json::into_value),
            correlation_id: event.correlation_id,
            trace_parent: event.trace_parent,
            id: checked.keyed_id.map(EventId),
            due: match event.due {
                Due::AtOnce => None,
                Due::At(at) => Some(StoredDue::At(to_micros(at))),
                Due::After(delay) => {
                    Some(StoredDue::After(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)))
                }
            },
            version: event.version,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.event_name
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn payload(&self) -> &Value {
        &self.payload
    }

    /// To be published now, under this correlation id if it has none of its own. `cause`: the event whose handler publishes it.
    pub(crate) fn prepare(
        self,
        correlation_id: &str,
        cause: Option<&Event>,
        new_id: impl FnOnce() -> uuid::Uuid,
    ) -> Result<PreparedEvent> {
        let id = self.id;
        let mut event = self.into_event();
        event.correlation_id.get_or_insert_with(|| correlation_id.to_owned());
        if event.trace_parent.is_none() {
            event.trace_parent = cause.and_then(|cause| cause.trace_parent.clone());
        }
        // The limit was that of the box that took it.
        match id {
            Some(id) => insert::prepare_imported(id, event, cause.map(Event::id), usize::MAX),
            None => Ok(insert::prepare(event, usize::MAX, cause, new_id)?.0),
        }
    }

    /// As it was given, but for its key.
    pub(crate) fn into_event(self) -> NewEvent {
        NewEvent {
            event_name: self.event_name,
            source_module: self.source_module,
            aggregate_type: self.aggregate_type,
            aggregate_id: self.aggregate_id,
            payload: self.payload.into(),
            metadata: self.metadata.map(Into::into),
            correlation_id: self.correlation_id,
            trace_parent: self.trace_parent,
            idempotency_key: None,
            due: match self.due {
                None => Due::AtOnce,
                Some(StoredDue::At(at)) => Due::At(from_micros(at)),
                Some(StoredDue::After(micros)) => Due::After(Duration::from_micros(micros)),
            },
            version: self.version,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;

    fn through_text(event: NewEvent) -> StoredEvent {
        let text = serde_json::to_string(&StoredEvent::of(event, 1_000).unwrap()).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_was_given_comes_back_as_it_was() {
        let event = NewEvent::new("a.b", "m", "T", "t-1")
            .payload(json!({ "n": 0.1, "list": [1, null] }))
            .metadata(Value::Null)
            .correlation_id("c-1")
            .delay(Duration::from_micros(1_500))
            .version(7);
        let stored = through_text(event);
        assert_eq!(stored.payload, json!({ "n": 0.1, "list": [1, null] }));
        assert_eq!(stored.metadata, Some(Value::Null));
        assert_eq!((stored.correlation_id.as_deref(), stored.version), (Some("c-1"), 7));
        assert!(matches!(stored.due, Some(StoredDue::After(1_500))));
        assert!(through_text(NewEvent::new("a", "m", "T", "t")).metadata.is_none());
        let at = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(5);
        let stored = through_text(NewEvent::new("a", "m", "T", "t").available_at(at));
        assert!(matches!(stored.due, Some(StoredDue::At(5_000_000))));
    }

    #[test]
    fn the_key_is_not_kept_and_its_id_is() {
        let event = NewEvent::new("a", "m", "T", "t").idempotency_key("a secret key");
        let stored = StoredEvent::of(event, 1_000).unwrap();
        assert!(stored.id.is_some());
        assert!(!serde_json::to_string(&stored).unwrap().contains("secret"));
    }

    #[test]
    fn its_limits_are_checked_when_it_is_handed_over() {
        let large = NewEvent::new("a", "m", "T", "t").payload(json!("x".repeat(2_000)));
        assert!(StoredEvent::of(large, 1_000).is_err());
        assert!(StoredEvent::of(NewEvent::new("a.*", "m", "T", "t"), 1_000).is_err());
    }
}
