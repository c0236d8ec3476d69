//! The table `outbox_event`: its types and all of its SQL, as functions over a connection.

mod backlog;
pub(crate) mod claim;
mod counts;
pub(crate) mod dead;
pub(crate) mod decided;
pub(crate) mod filter;
pub(crate) mod future;
pub(crate) mod imported;
pub(crate) mod insert;
pub(crate) mod list;
pub(crate) mod live;
pub(crate) mod order;
pub(crate) mod parked;
pub(crate) mod prune;
pub(crate) mod run;
pub(crate) mod settle;
pub(crate) mod strays;
mod summary;
mod tree;

use std::fmt;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::backlog::{Backlog, ReplayBacklog};
pub(crate) use self::backlog::{backlog, replays};
pub(crate) use self::counts::{count, is_off, oldest_pending, repair};
pub use self::filter::EventFilter;
pub use self::list::EventPage;
pub use self::summary::EventSummary;
pub(crate) use self::summary::{caused_by, content, summary};
pub(crate) use self::tree::causation_tree;
pub use self::tree::{CausationNode, CausationTree};
use crate::clock::{NEWER_UNTIL, from_micros};
use crate::error::{Error, Result};
use crate::event::EventId;

/// The greatest `seq` that a box gives; the least is 1. Shifted by 20 bits, with a consumer's number behind it, it is the id
/// of an inbox row.
pub(crate) const SEQ_MAX: i64 = (1 << 43) - 1;

/// Where an event is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutboxStatus {
    /// Waits to be due, or to be claimed.
    Pending,
    /// Claimed: its handlers run, or are about to.
    Processing,
    /// Every consumer has processed or skipped it.
    Processed,
    /// Its attempts are used up, where dead letters are off.
    Failed,
    /// Its attempts are used up, or a handler said so.
    DeadLetter,
}

impl OutboxStatus {
    /// As it is stored: `pending`, `processing`, `processed`, `failed`, `dead_letter`.
    pub fn as_str(self) -> &'static str {
        match self {
            OutboxStatus::Pending => "pending",
            OutboxStatus::Processing => "processing",
            OutboxStatus::Processed => "processed",
            OutboxStatus::Failed => "failed",
            OutboxStatus::DeadLetter => "dead_letter",
        }
    }
}

impl fmt::Display for OutboxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ToSql for OutboxStatus {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for OutboxStatus {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "pending" => Ok(OutboxStatus::Pending),
            "processing" => Ok(OutboxStatus::Processing),
            "processed" => Ok(OutboxStatus::Processed),
            "failed" => Ok(OutboxStatus::Failed),
            "dead_letter" => Ok(OutboxStatus::DeadLetter),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// An event's row. `Debug` leaves payload, metadata and `last_error` out.
#[derive(Clone)]
#[non_exhaustive]
pub struct OutboxEvent {
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
    /// What happened.
    pub payload: Value,
    /// What the publisher said about the event.
    pub metadata: Option<Value>,
    /// Where it is on its way.
    pub status: OutboxStatus,
    /// How often it was claimed, less the claims that were given back unstarted.
    pub attempt_count: u32,
    /// Why it failed last; at most 1023 characters. Cleared when it is processed. With several consumers failing in one
    /// attempt each stands as `consumer: error`; the inbox has them one by one.
    pub last_error: Option<String>,
    /// When it is next due: after its delay, its backoff, or the end of the lease of whoever has claimed it. The end of
    /// the year 9999 while it is held for a first subscriber, and some microseconds before while it waits for something else that has no
    /// time.
    pub available_at: OffsetDateTime,
    /// When its last consumer had processed or skipped it; `None` for all others, dead letters included.
    pub processed_at: Option<OffsetDateTime>,
    /// When it was published.
    pub created_at: OffsetDateTime,
    /// When its state last changed: when it was published, failed, was let go, or finished. Being claimed does not count.
    pub updated_at: OffsetDateTime,
    /// The conversation that it belongs to.
    pub correlation_id: Option<String>,
    /// The event whose handler published this one.
    pub causation_id: Option<EventId>,
    /// The W3C `traceparent` that it was published with.
    pub trace_parent: Option<String>,
    /// The version of the payload's shape.
    pub version: u32,
}

impl OutboxEvent {
    /// The payload as a type of the application's, as [`Event::payload_as`](crate::Event::payload_as): without upcasters.
    ///
    /// # Errors
    /// [`Error::Json`] when the payload does not fit the type.
    pub fn payload_as<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.payload).map_err(Error::Json)
    }
}

impl fmt::Debug for OutboxEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxEvent")
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
            .finish_non_exhaustive()
    }
}

pub(crate) fn get(conn: &Connection, id: EventId) -> Result<Option<OutboxEvent>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, event_name, source_module, aggregate_type, aggregate_id, payload, metadata, status, attempt_count,
                last_error, available_at, processed_at, created_at, updated_at, correlation_id, causation_id,
                traceparent, payload_version
         FROM main.outbox_event WHERE id = ?1",
    )?;
    let mut rows = statement.query([id.0])?;
    rows.next()?.map(read_event).transpose()
}

fn read_event(row: &Row<'_>) -> Result<OutboxEvent> {
    let time = |column| row.get(column).map(from_micros);
    let payload: String = row.get(5)?;
    let metadata: Option<String> = row.get(6)?;
    Ok(OutboxEvent {
        id: EventId(row.get(0)?),
        event_name: row.get(1)?,
        source_module: row.get(2)?,
        aggregate_type: row.get(3)?,
        aggregate_id: row.get(4)?,
        payload: serde_json::from_str(&payload)?,
        metadata: metadata.as_deref().map(serde_json::from_str).transpose()?,
        status: row.get(7)?,
        attempt_count: row.get(8)?,
        last_error: row.get(9)?,
        available_at: time(10)?,
        processed_at: row.get::<_, Option<i64>>(11)?.map(from_micros),
        created_at: time(12)?,
        updated_at: time(13)?,
        correlation_id: row.get(14)?,
        causation_id: row.get::<_, Option<Uuid>>(15)?.map(EventId),
        trace_parent: row.get(16)?,
        version: row.get(17)?,
    })
}

pub(crate) fn seq_of(conn: &Connection, id: EventId) -> Result<Option<i64>> {
    Ok(conn
        .prepare_cached("SELECT seq FROM main.outbox_event WHERE id = ?1")?
        .query_row([id.0], |row| row.get(0))
        .optional()?)
}

/// The newest time that the last rows show: the box's time starts no earlier. One after `latest` is not a box's.
pub(crate) fn newest_time(conn: &Connection, latest: i64) -> Result<i64> {
    let newest: Option<i64> = conn.query_row(
        "SELECT max(max(iif(created_at <= ?1, created_at, 0), iif(updated_at <= ?1, updated_at, 0)))
         FROM (SELECT created_at, updated_at FROM main.outbox_event WHERE seq <= ?2 ORDER BY seq DESC LIMIT 32)",
        [latest, SEQ_MAX],
        |row| row.get(0),
    )?;
    let mark: i64 =
        conn.query_row("SELECT coalesce(max(clock_mark), 0) FROM main.postbox_schema", [], |row| row.get(0))?;
    Ok(newest.unwrap_or(0).max(if mark <= latest { mark } else { 0 }))
}

/// Remembers the box's time for its next start.
pub(crate) fn mark_time(conn: &Connection, now: i64) -> Result<()> {
    conn.execute("UPDATE main.postbox_schema SET clock_mark = max(clock_mark, ?1)", [now])?;
    Ok(())
}

/// Whether an event is due that is not among those to `skip`. The rows whose leases run are not looked at: of a box that is busy
/// those are as many as it may have.
pub(crate) fn is_due(conn: &Connection, now: i64, skip: impl Fn(i64) -> bool) -> Result<bool> {
    let mut statement = conn.prepare_cached(
        "SELECT seq FROM main.outbox_event INDEXED BY outbox_event_claimed
         WHERE status = 'processing' AND available_at <= ?1
         UNION ALL
         SELECT seq FROM main.outbox_event INDEXED BY outbox_event_due
         WHERE status = 'pending' AND available_at <= ?1",
    )?;
    let mut rows = statement.query([now])?;
    while let Some(row) = rows.next()? {
        if !skip(row.get(0)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// When the next event is due that is not among those to `skip`; never for events that are held, or wait for
/// something that is paused, for their turn, for room, or for a newer release.
pub(crate) fn next_due(conn: &Connection, skip: impl Fn(i64) -> bool) -> Result<Option<i64>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, available_at FROM main.outbox_event INDEXED BY outbox_event_claimed
         WHERE status = 'processing'
         UNION ALL
         SELECT seq, available_at FROM main.outbox_event INDEXED BY outbox_event_due
         WHERE status = 'pending' AND available_at < ?1
         ORDER BY available_at",
    )?;
    let mut rows = statement.query([NEWER_UNTIL])?;
    while let Some(row) = rows.next()? {
        if !skip(row.get(0)?) {
            return Ok(Some(row.get(1)?));
        }
    }
    Ok(None)
}
