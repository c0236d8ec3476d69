//! Publishing: from a checked event to a row.

use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, params};
use uuid::Uuid;

use crate::clock::{self, BoxClock};
use crate::db::Job;
use crate::error::{Error, Result};
use crate::event::{Due, Event, EventId, NewEvent};
use crate::validate;

/// The namespace of the ids that are made from idempotency keys. Never change it: keys would lose their events.
const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x8d3f_2b6c_91aa_4e07_b5d4_6c1e_0f72_a983);

const KEY_MAX: usize = 1023;

/// An event that was checked and serialised: all that can be refused has been.
pub(crate) struct PreparedEvent {
    id: EventId,
    keyed: bool,
    event_name: String,
    source_module: String,
    aggregate_type: String,
    aggregate_id: String,
    payload: String,
    metadata: Option<String>,
    correlation_id: Option<String>,
    causation_id: Option<EventId>,
    trace_parent: Option<String>,
    version: u32,
    /// Of the moment of insertion.
    due: Due,
}

/// Checks everything about an event. `new_id` makes an id for one without a key; `cause` is the event whose handler
/// publishes this one.
pub(crate) fn prepare(
    event: NewEvent,
    payload_bytes_max: usize,
    cause: Option<&Event>,
    new_id: impl FnOnce() -> Uuid,
) -> Result<PreparedEvent> {
    let checked = check(&event, payload_bytes_max)?;
    Ok(assemble(event, checked, cause, new_id))
}

/// What checking has made already.
struct Checked {
    payload: String,
    metadata: Option<String>,
    keyed_id: Option<Uuid>,
}

fn check(event: &NewEvent, payload_bytes_max: usize) -> Result<Checked> {
    validate::event_name(&event.event_name)?;
    validate::name("source_module", &event.source_module, validate::MODULE_MAX)?;
    validate::name("aggregate_type", &event.aggregate_type, validate::TYPE_MAX)?;
    validate::name("aggregate_id", &event.aggregate_id, validate::ENTITY_ID_MAX)?;
    if let Some(id) = &event.correlation_id {
        validate::name("correlation_id", id, validate::CORRELATION_MAX)?;
    }
    if let Some(trace_parent) = &event.trace_parent {
        validate::trace_parent(trace_parent)?;
    }
    if event.version == 0 {
        return Err(Error::invalid("version", "versions count from 1"));
    }
    if let Due::After(delay) = event.due
        && delay.as_secs() > MAX_DELAY_SECONDS
    {
        return Err(Error::invalid("delay", "is longer than a thousand years"));
    }
    Ok(Checked {
        payload: event.payload.to_text("payload", payload_bytes_max)?,
        metadata: event
            .metadata
            .as_ref()
            .map(|json| json.to_text("metadata", payload_bytes_max))
            .transpose()?,
        keyed_id: match &event.idempotency_key {
            None => None,
            Some(key) => Some(keyed_id(&event.source_module, key)?),
        },
    })
}

fn assemble(
    event: NewEvent,
    checked: Checked,
    cause: Option<&Event>,
    new_id: impl FnOnce() -> Uuid,
) -> PreparedEvent {
    PreparedEvent {
        id: EventId(checked.keyed_id.unwrap_or_else(new_id)),
        keyed: checked.keyed_id.is_some(),
        event_name: event.event_name,
        source_module: event.source_module,
        aggregate_type: event.aggregate_type,
        aggregate_id: event.aggregate_id,
        payload: checked.payload,
        metadata: checked.metadata,
        correlation_id: event.correlation_id.or_else(|| cause?.correlation_id.clone()),
        causation_id: cause.map(|cause| cause.id),
        trace_parent: event.trace_parent.or_else(|| cause?.trace_parent.clone()),
        version: event.version,
        due: event.due,
    }
}

const MAX_DELAY_SECONDS: u64 = 1_000 * 366 * 86_400;

/// NUL separates module and key: no module contains one.
fn keyed_id(source_module: &str, key: &str) -> Result<Uuid> {
    if key.is_empty() {
        return Err(Error::invalid("idempotency_key", "must not be empty"));
    }
    let length = key.chars().count();
    if length > KEY_MAX {
        return Err(Error::invalid(
            "idempotency_key",
            format!("has {length} characters, at most {KEY_MAX} are allowed"),
        ));
    }
    Ok(Uuid::new_v5(&KEY_NAMESPACE, format!("{source_module}\0{key}").as_bytes()))
}

/// Inserts the event inside the caller's transaction. One that its key has published already stays as it is.
pub(crate) fn insert(conn: &Connection, event: &PreparedEvent, now: i64) -> Result<EventId> {
    // Looked up first: an INSERT that then does nothing would use a number of `seq` up.
    if event.keyed && super::seq_of(conn, event.id)?.is_some() {
        return Ok(event.id);
    }
    let available_at = match event.due {
        Due::AtOnce => now,
        Due::At(at) => clock::to_micros(at).max(now),
        Due::After(delay) => clock::add(now, delay),
    };
    let inserted = conn
        .prepare_cached(
            "INSERT INTO main.outbox_event
                (id, available_at, created_at, changed_at, payload_version, event_name, source_module, aggregate_type,
                 aggregate_id, causation_id, correlation_id, traceparent, payload, metadata)
             VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute(params![
            event.id.0,
            available_at,
            now,
            event.version,
            event.event_name,
            event.source_module,
            event.aggregate_type,
            event.aggregate_id,
            event.causation_id.map(|id| id.0),
            event.correlation_id,
            event.trace_parent,
            event.payload,
            event.metadata,
        ])?;
    // A trigger with RAISE(IGNORE) says Ok as well.
    if inserted == 1 {
        Ok(event.id)
    } else {
        Err(Error::NotStored { what: "the event", table: "outbox_event" })
    }
}

/// Inserts the event in the transaction of a connection that is the application's own.
pub(crate) fn insert_in(conn: &Connection, event: &PreparedEvent, now: i64) -> Result<EventId> {
    insert(conn, event, now).map_err(|error| match error {
        Error::Sqlite(error) if error.sqlite_error().map(|e| e.extended_code) == Some(BUSY_SNAPSHOT) => Error::invalid(
            "conn",
            "its transaction began DEFERRED and read a state of the file that is no longer the newest, so it can \
             never write: roll it back and begin it as IMMEDIATE",
        ),
        Error::Sqlite(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => {
            Error::invalid("conn", "is read-only")
        }
        error => error,
    })
}

const BUSY_SNAPSHOT: i32 = rusqlite::ffi::SQLITE_BUSY_SNAPSHOT;

/// Events that are published together: all or none.
pub(crate) struct InsertJob {
    pub(crate) events: Vec<PreparedEvent>,
    pub(crate) clock: Arc<BoxClock>,
}

impl Job for InsertJob {
    type Output = Vec<EventId>;

    fn run(&mut self, conn: &Connection) -> Result<Vec<EventId>> {
        // Here, inside the write lock, so that times are in the order of `seq`.
        let now = self.clock.now();
        self.events.iter().map(|event| insert(conn, event, now)).collect()
    }

    fn needs_savepoint(&self) -> bool {
        self.events.len() > 1
    }
}
