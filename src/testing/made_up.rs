//! Events that nobody has published.

use std::ops::Deref;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::drains::expect;
use crate::clock::{from_micros, to_micros};
use crate::error::Result;
use crate::event::{Event, EventId, NewEvent, SCHEDULE_KEY};
use crate::ids::Ids;
use crate::outbox::insert;
use crate::rfc3339;

/// An event as a handler would be given it, made up: what is published nowhere, for tests of handlers alone. It derefs to
/// [`Event`].
///
/// It has a new id, attempt 1, and the time 2024-01-01T00:00:00Z, unless it is given others.
///
/// ```
/// use postbox::NewEvent;
/// use postbox::serde_json::json;
/// use postbox::testing::event;
///
/// let created = NewEvent::new("invoice.created", "finance", "Invoice", "inv-1").payload(json!({ "total": 12.5 }));
/// let event = event(created).with_attempt(3);
/// assert_eq!((event.name(), event.attempt()), ("invoice.created", 3));
/// ```
///
/// # Panics
/// When the event could not be published: [`Error::Invalid`](crate::Error::Invalid).
#[track_caller]
pub fn event(event: NewEvent) -> MadeUpEvent {
    MadeUpEvent(expect(make_up(event), "make this event up"))
}

fn make_up(event: NewEvent) -> Result<Event> {
    let (ids, at) = (Ids::new(), to_micros(super::test_box::start()));
    let (event, content) = insert::prepare(event, usize::MAX, None, || ids.new_id(at))?;
    let (mut made_up, unparsed) = event.to_event(at, Some(content));
    if let Some(unparsed) = unparsed {
        unparsed.parse_into(&mut made_up).map_err(|reason| crate::Error::invalid("payload", reason))?;
    }
    Ok(made_up)
}

/// An event that was made up: [`event`].
#[derive(Debug)]
#[must_use = "an event does nothing by itself"]
pub struct MadeUpEvent(Event);

impl MadeUpEvent {
    /// Its id.
    pub fn with_id(mut self, id: EventId) -> Self {
        self.0.id = id;
        self
    }

    /// Which attempt it is, from 1.
    pub fn with_attempt(mut self, attempt: u32) -> Self {
        self.0.attempt = attempt;
        self
    }

    /// When it was published, to the microsecond.
    pub fn published_at(mut self, at: OffsetDateTime) -> Self {
        self.0.timestamp = from_micros(to_micros(at));
        self
    }

    /// As the schedule of this name would have published it for this tick: [`Event::scheduled_by`], [`Event::scheduled_for`].
    ///
    /// # Panics
    /// When its metadata are something else than an object: a schedule publishes no such event.
    #[track_caller]
    pub fn scheduled(mut self, name: &str, tick: OffsetDateTime) -> Self {
        let by = json!({ "name": name, "tick": rfc3339::text(tick) });
        match self.0.metadata.get_or_insert_with(|| json!({})) {
            Value::Object(fields) => drop(fields.insert(SCHEDULE_KEY.to_owned(), by)),
            _ => panic!("cannot schedule this event: its metadata are no object"),
        }
        self
    }

    /// The event whose handler published it.
    pub fn caused_by(mut self, id: EventId) -> Self {
        self.0.causation_id = Some(id);
        self
    }
}

impl Deref for MadeUpEvent {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.0
    }
}

/// For whoever keeps what a handler was given.
pub(super) fn copy(event: &Event) -> Event {
    Event {
        id: event.id,
        name: event.name.clone(),
        source_module: event.source_module.clone(),
        aggregate_type: event.aggregate_type.clone(),
        aggregate_id: event.aggregate_id.clone(),
        payload: event.payload.clone(),
        metadata: event.metadata.clone(),
        timestamp: event.timestamp,
        attempt: event.attempt,
        correlation_id: event.correlation_id.clone(),
        causation_id: event.causation_id,
        trace_parent: event.trace_parent.clone(),
        version: event.version,
    }
}
