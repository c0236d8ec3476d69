//! The event of each tick: as it was put, and as it is published.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::clock::{HELD_UNTIL, from_micros};
use crate::error::{Error, Result};
use crate::event::{Due, EventId, NewEvent, SCHEDULE_KEY};
use crate::json::Json;
use crate::outbox::insert::{self, PreparedEvent};
use crate::rfc3339;

/// The namespace of the ids of ticks, apart from that of the application's idempotency keys. Never change it: a tick could be
/// published anew.
const TICK_NAMESPACE: Uuid = Uuid::from_u128(0x3b0e_9d51_7c44_4f6a_9a27_e1d8_05b3_6fc4);

/// What a schedule's row holds of its event.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Template {
    pub(crate) event_name: String,
    source_module: String,
    aggregate_type: String,
    aggregate_id: String,
    payload: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    version: u32,
}

/// Refuses what could not be published at each tick.
pub(super) fn to_text(schedule: &str, event: NewEvent, payload_bytes_max: usize) -> Result<String> {
    let refuse = |field| Err(Error::invalid(field, "is not for scheduled events: each tick has its own"));
    if event.idempotency_key.is_some() {
        return refuse("idempotency_key");
    }
    if event.trace_parent.is_some() {
        return refuse("trace_parent");
    }
    match event.due {
        Due::AtOnce => {}
        Due::At(_) => return refuse("available_at"),
        Due::After(_) => return refuse("delay"),
    }
    // Before its parts are taken as they are.
    insert::check(&event, payload_bytes_max)?;
    let metadata = match event.metadata.map(Json::into_value) {
        None => None,
        Some(Value::Object(fields)) if fields.contains_key(SCHEDULE_KEY) => {
            return Err(Error::invalid(
                "metadata",
                format!("has the key `{SCHEDULE_KEY}`, which is the schedule's"),
            ));
        }
        Some(Value::Object(fields)) => Some(fields),
        Some(_) => return Err(Error::invalid("metadata", "of a scheduled event must be a JSON object")),
    };
    let template = Template {
        event_name: event.event_name,
        source_module: event.source_module,
        aggregate_type: event.aggregate_type,
        aggregate_id: event.aggregate_id,
        payload: event.payload.into_value(),
        metadata,
        correlation_id: event.correlation_id,
        version: event.version,
    };
    // As long as it can be.
    insert::check(&template.to_event(schedule, HELD_UNTIL), payload_bytes_max)?;
    let template = serde_json::to_value(&template).map_err(Error::Json)?;
    Json::from(template).to_text("event", usize::MAX)
}

impl Template {
    /// `None` for what no box wrote.
    pub(crate) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Refuses nothing that a box wrote: its size was checked when it was put.
    pub(crate) fn prepare(&self, schedule: &str, tick: i64) -> Result<PreparedEvent> {
        insert::prepare_imported(id_of(schedule, tick), self.to_event(schedule, tick), None, usize::MAX)
    }

    fn to_event(&self, schedule: &str, tick: i64) -> NewEvent {
        let mut metadata = self.metadata.clone().unwrap_or_default();
        let by = json!({ "name": schedule, "tick": rfc3339::text(from_micros(tick)) });
        metadata.insert(SCHEDULE_KEY.to_owned(), by);
        let event = NewEvent::new(
            self.event_name.as_str(),
            self.source_module.as_str(),
            self.aggregate_type.as_str(),
            self.aggregate_id.as_str(),
        );
        let event =
            event.payload(self.payload.clone()).metadata(Value::Object(metadata)).version(self.version);
        match &self.correlation_id {
            Some(id) => event.correlation_id(id.as_str()),
            None => event,
        }
    }
}

/// NUL separates the two: no name contains one.
fn id_of(schedule: &str, tick: i64) -> EventId {
    EventId(Uuid::new_v5(&TICK_NAMESPACE, format!("{schedule}\0{tick}").as_bytes()))
}
