//! An event without what it says: what lists and trees are made of. Rows that no box wrote so are shown as far as they can be.

use std::borrow::Cow;
use std::fmt;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{OutboxEvent, OutboxStatus};
use crate::clock::{HELD_UNTIL, from_micros};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::event::EventId;
use crate::rfc3339;

/// An event's row without payload and metadata: as [`OutboxEvent`] otherwise. `Debug` leaves `last_error` out.
///
/// Serialised, ids are hyphenated UUIDs and times RFC 3339 in UTC to the microsecond; `last_error` is among it, and may quote
/// what a handler has said of a payload.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EventSummary {
    #[serde(skip)]
    pub(crate) seq: i64,
    /// Its id.
    pub id: EventId,
    /// Its name.
    pub event_name: String,
    /// The module that published it.
    pub source_module: String,
    /// What kind of entity it is about.
    pub aggregate_type: String,
    /// Which entity it is about.
    pub aggregate_id: String,
    /// Where it is on its way.
    pub status: OutboxStatus,
    /// How often it was claimed, less the claims that were given back unstarted.
    pub attempt_count: u32,
    /// Why it failed last, as in [`OutboxEvent::last_error`].
    pub last_error: Option<String>,
    /// When it is next due, as in [`OutboxEvent::available_at`].
    #[serde(with = "rfc3339")]
    pub available_at: OffsetDateTime,
    /// When its last consumer had processed or skipped it; `None` for all others.
    #[serde(with = "rfc3339::option")]
    pub processed_at: Option<OffsetDateTime>,
    /// When it was published.
    #[serde(with = "rfc3339")]
    pub created_at: OffsetDateTime,
    /// When its state last changed; being claimed does not count.
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
    /// The conversation that it belongs to.
    pub correlation_id: Option<String>,
    /// The event whose handler published this one.
    pub causation_id: Option<EventId>,
    /// The W3C `traceparent` that it was published with.
    pub trace_parent: Option<String>,
    /// The version of the payload's shape.
    pub version: u32,
    /// Columns of the row that cannot be read, since another program wrote them: what stands in for them here is the nil UUID, a
    /// text with U+FFFD for what is no text (empty for one of more than 4092 bytes), or the nearest number or time. A status that
    /// nobody knows is shown as `dead_letter`: the box sets the row aside the next time that it looks. Empty for every row that
    /// a box wrote.
    pub unreadable: Vec<&'static str>,
}

impl EventSummary {
    /// Where a list goes on behind this event.
    pub fn cursor(&self) -> Cursor {
        Cursor(self.seq)
    }

    /// Complete with what it says.
    pub(crate) fn into_event(self, payload: Value, metadata: Option<Value>) -> OutboxEvent {
        OutboxEvent {
            id: self.id,
            event_name: self.event_name,
            source_module: self.source_module,
            aggregate_type: self.aggregate_type,
            aggregate_id: self.aggregate_id,
            payload,
            metadata,
            status: self.status,
            attempt_count: self.attempt_count,
            last_error: self.last_error,
            available_at: self.available_at,
            processed_at: self.processed_at,
            created_at: self.created_at,
            updated_at: self.updated_at,
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            trace_parent: self.trace_parent,
            version: self.version,
        }
    }
}

impl fmt::Debug for EventSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSummary")
            .field("id", &self.id)
            .field("event_name", &self.event_name)
            .field("source_module", &self.source_module)
            .field("aggregate_type", &self.aggregate_type)
            .field("aggregate_id", &self.aggregate_id)
            .field("status", &self.status)
            .field("attempt_count", &self.attempt_count)
            .field("available_at", &self.available_at)
            .field("processed_at", &self.processed_at)
            .field("created_at", &self.created_at)
            .field("updated_at", &self.updated_at)
            .field("correlation_id", &self.correlation_id)
            .field("causation_id", &self.causation_id)
            .field("unreadable", &self.unreadable)
            .finish_non_exhaustive()
    }
}

/// The event of this `seq`, whatever another program has left in its row. No text that a box writes takes more than 1023
/// characters of 4 bytes: a longer one is not even read.
pub(crate) fn summary(conn: &Connection, seq: i64) -> Result<Option<EventSummary>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, status, attempt_count, available_at, processed_at, created_at, updated_at, causation_id, payload_version,
                iif(octet_length(event_name) > ?2, 0, event_name), iif(octet_length(source_module) > ?2, 0, source_module),
                iif(octet_length(aggregate_type) > ?2, 0, aggregate_type), iif(octet_length(aggregate_id) > ?2, 0, aggregate_id),
                iif(octet_length(correlation_id) > ?2, 0, correlation_id), iif(octet_length(traceparent) > ?2, 0, traceparent),
                iif(octet_length(last_error) > ?2, 0, last_error)
         FROM main.outbox_event WHERE seq = ?1",
    )?;
    let mut rows = statement.query(params![seq, TEXT_BYTES_MAX])?;
    rows.next()?.map(|row| read(row, seq)).transpose()
}

const TEXT_BYTES_MAX: i64 = 4_092;

fn read(row: &Row<'_>, seq: i64) -> Result<EventSummary> {
    let mut columns = Columns { row, unreadable: Vec::new() };
    Ok(EventSummary {
        seq,
        id: EventId(columns.id("id", 0)?.unwrap_or_default()),
        status: columns.status("status", 1),
        attempt_count: columns.number("attempt_count", 2)?,
        available_at: columns.time("available_at", 3)?.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        processed_at: columns.time("processed_at", 4)?,
        created_at: columns.time("created_at", 5)?.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        updated_at: columns.time("updated_at", 6)?.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        causation_id: columns.id("causation_id", 7)?.map(EventId),
        version: columns.number("payload_version", 8)?,
        event_name: columns.text("event_name", 9)?.unwrap_or_default(),
        source_module: columns.text("source_module", 10)?.unwrap_or_default(),
        aggregate_type: columns.text("aggregate_type", 11)?.unwrap_or_default(),
        aggregate_id: columns.text("aggregate_id", 12)?.unwrap_or_default(),
        correlation_id: columns.text("correlation_id", 13)?,
        trace_parent: columns.text("traceparent", 14)?,
        last_error: columns.text("last_error", 15)?,
        unreadable: columns.unreadable,
    })
}

/// Reads what can be read, and notes what cannot.
struct Columns<'a, 'r> {
    row: &'a Row<'r>,
    unreadable: Vec<&'static str>,
}

impl Columns<'_, '_> {
    fn cannot_read(&mut self, column: &'static str) {
        self.unreadable.push(column);
    }

    fn id(&mut self, column: &'static str, index: usize) -> Result<Option<Uuid>> {
        let id = match self.row.get_ref(index)? {
            ValueRef::Null => return Ok(None),
            ValueRef::Blob(bytes) => Uuid::from_slice(bytes).ok(),
            _ => None,
        };
        if id.is_none() {
            self.cannot_read(column);
        }
        Ok(Some(id.unwrap_or_default()))
    }

    fn status(&mut self, column: &'static str, index: usize) -> OutboxStatus {
        self.row.get(index).unwrap_or_else(|_| {
            self.cannot_read(column);
            OutboxStatus::DeadLetter
        })
    }

    fn number(&mut self, column: &'static str, index: usize) -> Result<u32> {
        let ValueRef::Integer(number) = self.row.get_ref(index)? else {
            self.cannot_read(column);
            return Ok(0);
        };
        Ok(u32::try_from(number).unwrap_or_else(|_| {
            self.cannot_read(column);
            if number < 0 { 0 } else { u32::MAX }
        }))
    }

    fn time(&mut self, column: &'static str, index: usize) -> Result<Option<OffsetDateTime>> {
        match self.row.get_ref(index)? {
            ValueRef::Null => Ok(None),
            ValueRef::Integer(micros) => {
                if !(0..=HELD_UNTIL).contains(&micros) {
                    self.cannot_read(column);
                }
                Ok(Some(from_micros(micros)))
            }
            _ => {
                self.cannot_read(column);
                Ok(None)
            }
        }
    }

    fn text(&mut self, column: &'static str, index: usize) -> Result<Option<String>> {
        match self.row.get_ref(index)? {
            ValueRef::Null => Ok(None),
            ValueRef::Text(bytes) => {
                let text = String::from_utf8_lossy(bytes);
                if matches!(text, Cow::Owned(_)) {
                    self.cannot_read(column);
                }
                Ok(Some(text.into_owned()))
            }
            _ => {
                self.cannot_read(column);
                Ok(Some(String::new()))
            }
        }
    }
}

/// What an event says, as far as it is JSON.
pub(crate) struct Content {
    pub(crate) payload: Value,
    pub(crate) metadata: Option<Value>,
    pub(crate) unreadable: Vec<&'static str>,
}

/// What the event of this `seq` says; `Null` in place of what is no JSON.
pub(crate) fn content(conn: &Connection, seq: i64) -> Result<Option<Content>> {
    let mut statement =
        conn.prepare_cached("SELECT payload, metadata FROM main.outbox_event WHERE seq = ?1")?;
    let mut rows = statement.query([seq])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let mut unreadable = Vec::new();
    let mut json = |column, index| -> Result<Option<Value>> {
        let value = match row.get_ref(index)? {
            ValueRef::Null => return Ok(None),
            ValueRef::Text(text) => serde_json::from_slice(text).ok(),
            _ => None,
        };
        if value.is_none() {
            unreadable.push(column);
        }
        Ok(Some(value.unwrap_or_default()))
    };
    let payload = json("payload", 0)?.unwrap_or_default();
    let metadata = json("metadata", 1)?;
    Ok(Some(Content { payload, metadata, unreadable }))
}

/// The events (their `seq`) that name this one as their cause, in order of publishing, so many at the most.
pub(crate) fn caused_by(conn: &Connection, id: EventId, limit: usize) -> Result<Vec<i64>> {
    let seqs = conn
        .prepare_cached(
            "SELECT seq FROM main.outbox_event INDEXED BY outbox_event_cause WHERE causation_id = ?1 ORDER BY seq LIMIT ?2",
        )?
        .query_map(params![id.0, limit], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(seqs)
}
