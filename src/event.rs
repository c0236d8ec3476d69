//! Events: what is published, and what a handler is given.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::json::Json;
use crate::rfc3339;

/// Names one event for ever: a UUID, version 7 (in order of time), version 5 where an idempotency key made it, or version 8 where it is the
/// timeout of a saga.
///
/// It is written as a hyphenated UUID and is the key by which the outside world can tell deliveries apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub(crate) Uuid);

impl EventId {
    /// The same id as a [`Uuid`].
    pub fn as_uuid(&self) -> Uuid {
        self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for EventId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::parse_str(text).map(EventId).map_err(|_| {
            Error::invalid("event_id", "is not a UUID such as 0198c0de-0000-7000-8000-000000000000")
        })
    }
}

/// Under this key the metadata of a schedule's event says whose tick it is.
pub(crate) const SCHEDULE_KEY: &str = "postbox.schedule";

/// When an event is first due.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Due {
    AtOnce,
    At(OffsetDateTime),
    After(Duration),
}

/// An event to be published. Its limits are checked when it is published, before anything is written.
///
/// ```
/// # use postbox::NewEvent;
/// # use serde_json::json;
/// let event = NewEvent::new("invoice.created", "finance", "Invoice", "inv-1")
///     .payload(json!({ "total": 12.5 }))
///     .idempotency_key("inv-1/created");
/// ```
#[derive(Clone)]
#[must_use = "an event does nothing until it is published"]
pub struct NewEvent {
    pub(crate) event_name: String,
    pub(crate) source_module: String,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) payload: Json,
    pub(crate) metadata: Option<Json>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) trace_parent: Option<String>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) due: Due,
    pub(crate) version: u32,
}

impl NewEvent {
    /// `event_name`: 1 to 255 characters, without `*`. `source_module` and `aggregate_type`: 1 to 127.
    /// `aggregate_id`: 1 to 255. None of them blank or with NUL.
    pub fn new(
        event_name: impl Into<String>,
        source_module: impl Into<String>,
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
    ) -> Self {
        NewEvent {
            event_name: event_name.into(),
            source_module: source_module.into(),
            aggregate_type: aggregate_type.into(),
            aggregate_id: aggregate_id.into(),
            payload: Value::Object(serde_json::Map::new()).into(),
            metadata: None,
            correlation_id: None,
            trace_parent: None,
            idempotency_key: None,
            due: Due::AtOnce,
            version: 1,
        }
    }

    /// What happened, as JSON. `{}` when not given. At most [`Builder::max_payload_bytes`](crate::Builder::max_payload_bytes)
    /// as text, and no more than 127 levels of nesting. Numbers come back as they went in.
    pub fn payload(self, payload: Value) -> Self {
        NewEvent { payload: payload.into(), ..self }
    }

    /// The same from any type that serialises.
    ///
    /// # Errors
    /// [`Error::Json`] when the value cannot be JSON (a map whose keys are no strings, for one). JSON has no NaN and no
    /// infinity: `serde_json` turns them into `null`.
    pub fn payload_from(self, payload: &impl Serialize) -> Result<Self> {
        Ok(NewEvent { payload: serde_json::to_value(payload).map_err(Error::Json)?.into(), ..self })
    }

    /// Data about the event rather than of it (who, from where), kept apart from the payload, under the same limits.
    pub fn metadata(self, metadata: Value) -> Self {
        NewEvent { metadata: Some(metadata.into()), ..self }
    }

    /// The conversation that the event belongs to: 1 to 255 characters. Follow-up events inherit it.
    pub fn correlation_id(self, id: impl Into<String>) -> Self {
        NewEvent { correlation_id: Some(id.into()), ..self }
    }

    /// A W3C `traceparent`. Follow-up events inherit it as it is.
    pub fn trace_parent(self, w3c_traceparent: impl Into<String>) -> Self {
        NewEvent { trace_parent: Some(w3c_traceparent.into()), ..self }
    }

    /// The same source module and key is the same event: it is published once, for as long as its row is kept, and
    /// publishing it again returns the id of the first and changes nothing (not even when its content differs). The key is
    /// not stored: the event's id is made from it. 1 to 1023 characters.
    pub fn idempotency_key(self, key: impl Into<String>) -> Self {
        NewEvent { idempotency_key: Some(key.into()), ..self }
    }

    /// Not delivered before this moment (by the box's clock, to the microsecond). A moment in the past is now.
    pub fn available_at(self, at: OffsetDateTime) -> Self {
        NewEvent { due: Due::At(at), ..self }
    }

    /// Not delivered before this time has passed since publishing. The last of `delay` and `available_at` counts.
    pub fn delay(self, by: Duration) -> Self {
        NewEvent { due: Due::After(by), ..self }
    }

    /// The version of the payload's shape, from 1. 1 when not given.
    pub fn version(self, payload_version: u32) -> Self {
        NewEvent { version: payload_version, ..self }
    }
}

impl fmt::Debug for NewEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewEvent")
            .field("event_name", &self.event_name)
            .field("source_module", &self.source_module)
            .field("aggregate_type", &self.aggregate_type)
            .field("aggregate_id", &self.aggregate_id)
            .field("correlation_id", &self.correlation_id)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// An event as a handler is given it.
pub struct Event {
    pub(crate) id: EventId,
    pub(crate) name: String,
    pub(crate) source_module: String,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) payload: Value,
    pub(crate) metadata: Option<Value>,
    pub(crate) timestamp: OffsetDateTime,
    pub(crate) attempt: u32,
    pub(crate) correlation_id: Option<String>,
    pub(crate) causation_id: Option<EventId>,
    pub(crate) trace_parent: Option<String>,
    pub(crate) version: u32,
}

impl Event {
    /// The same at every delivery: the key for the outside world's own dedupe.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// Its name, such as `invoice.created`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The module that published it.
    pub fn source_module(&self) -> &str {
        &self.source_module
    }

    /// What kind of entity it is about.
    pub fn aggregate_type(&self) -> &str {
        &self.aggregate_type
    }

    /// Which entity it is about.
    pub fn aggregate_id(&self) -> &str {
        &self.aggregate_id
    }

    /// What happened.
    pub fn payload(&self) -> &Value {
        &self.payload
    }

    /// The payload as a type of the application's.
    ///
    /// # Errors
    /// [`Error::Json`] when the payload does not fit the type. With `?` in a handler that is a failed attempt; where no
    /// retry can help, map it to [`HandlerError::dead_letter`](crate::HandlerError::dead_letter).
    pub fn payload_as<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.payload).map_err(Error::Json)
    }

    /// What the publisher said about the event.
    pub fn metadata(&self) -> Option<&Value> {
        self.metadata.as_ref()
    }

    /// The tick that it was published for, by the wall clock; `None` for an event that is no [schedule](crate::Schedules)'s.
    /// [`timestamp`](Event::timestamp) is later, by as much as nobody was there for the tick.
    pub fn scheduled_for(&self) -> Option<OffsetDateTime> {
        rfc3339::read(self.schedule()?.get("tick")?.as_str()?)
    }

    /// The name of the schedule that has published it, if one has.
    pub fn scheduled_by(&self) -> Option<&str> {
        self.schedule()?.get("name")?.as_str()
    }

    fn schedule(&self) -> Option<&Value> {
        self.metadata.as_ref()?.get(SCHEDULE_KEY)
    }

    /// When it was published, by the box's clock.
    pub fn timestamp(&self) -> OffsetDateTime {
        self.timestamp
    }

    /// 1 the first time. It counts the event's claims, also those in which this consumer had nothing left to do.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The conversation that it belongs to.
    pub fn correlation_id(&self) -> Option<&str> {
        self.correlation_id.as_deref()
    }

    /// The event whose handler published this one.
    pub fn causation_id(&self) -> Option<EventId> {
        self.causation_id
    }

    /// The W3C `traceparent` that it was published with.
    pub fn trace_parent(&self) -> Option<&str> {
        self.trace_parent.as_deref()
    }

    /// The version of the payload's shape.
    pub fn version(&self) -> u32 {
        self.version
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("source_module", &self.source_module)
            .field("aggregate_type", &self.aggregate_type)
            .field("aggregate_id", &self.aggregate_id)
            .field("attempt", &self.attempt)
            .field("timestamp", &self.timestamp)
            .field("correlation_id", &self.correlation_id)
            .field("causation_id", &self.causation_id)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
