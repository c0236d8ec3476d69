//! The event of each tick: as it was put, and as it is published.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::clock::{HELD_UNTIL, from_micros};
use crate::error::{Error, Result};
use crate::event::{EventId, NewEvent, SCHEDULE_KEY};
use crate::json::Json;
use crate::outbox::insert::{self, PreparedEvent};
use crate::rfc3339;
use crate::stored_event::{StoredDue, StoredEvent};

/// The namespace of the ids of ticks, apart from that of the application's idempotency keys. Never change it: a tick could be
/// published anew.
const TICK_NAMESPACE: Uuid = Uuid::from_u128(0x3b0e_9d51_7c44_4f6a_9a27_e1d8_05b3_6fc4);

/// What a schedule's row holds of its event: nothing that each tick has of its own.
pub(crate) struct Template(StoredEvent);

impl Template {
    /// Refuses what could not be published at each tick of this schedule.
    pub(super) fn of(schedule: &str, event: StoredEvent, payload_bytes_max: usize) -> Result<Self> {
        let template = Template::of_any(event)?;
        // As long as it can be.
        insert::check(&template.to_event(schedule, HELD_UNTIL), payload_bytes_max)?;
        Ok(template)
    }

    fn of_any(event: StoredEvent) -> Result<Self> {
        let refuse = |field| Err(Error::invalid(field, "is not for scheduled events: each tick has its own"));
        if event.id.is_some() {
            return refuse("idempotency_key");
        }
        if event.trace_parent.is_some() {
            return refuse("trace_parent");
        }
        match event.due {
            None => {}
            Some(StoredDue::At(_)) => return refuse("available_at"),
            Some(StoredDue::After(_)) => return refuse("delay"),
        }
        match &event.metadata {
            Some(Value::Object(fields)) if fields.contains_key(SCHEDULE_KEY) => Err(Error::invalid(
                "metadata",
                format!("has the key `{SCHEDULE_KEY}`, which is the schedule's"),
            )),
            None | Some(Value::Object(_)) => Ok(Template(event)),
            Some(_) => Err(Error::invalid("metadata", "of a scheduled event must be a JSON object")),
        }
    }

    pub(super) fn to_text(&self) -> Result<String> {
        serde_json::to_string(&self.0).map_err(Error::Json)
    }

    pub(crate) fn event(&self) -> &StoredEvent {
        &self.0
    }

    /// `None` for what no box wrote.
    pub(crate) fn read(text: &str) -> Option<Self> {
        Template::of_any(serde_json::from_str(text).ok()?).ok()
    }

    pub(crate) fn event_name(&self) -> &str {
        self.0.name()
    }

    /// Refuses nothing that a box wrote: its size was checked when it was put.
    pub(crate) fn prepare(&self, schedule: &str, tick: i64) -> Result<PreparedEvent> {
        insert::prepare_imported(id_of(schedule, tick), self.to_event(schedule, tick), None, usize::MAX)
    }

    fn to_event(&self, schedule: &str, tick: i64) -> NewEvent {
        let mut event = self.0.clone().into_event();
        let mut metadata = match event.metadata.take().map(Json::into_value) {
            Some(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        let by = json!({ "name": schedule, "tick": rfc3339::text(from_micros(tick)) });
        metadata.insert(SCHEDULE_KEY.to_owned(), by);
        event.metadata(Value::Object(metadata))
    }
}

/// NUL separates the two: no name contains one.
fn id_of(schedule: &str, tick: i64) -> EventId {
    EventId(Uuid::new_v5(&TICK_NAMESPACE, format!("{schedule}\0{tick}").as_bytes()))
}
