//! Publishing: from a checked event to a row.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Statement, ToSql};
use serde_json::Value;
use uuid::Uuid;

use super::claim::{LeaseId, Unparsed};
use super::settle::UNOWNED;
use super::{OutboxStatus, SEQ_MAX};
use crate::clock::{self, BoxClock};
use crate::db::Job;
use crate::error::{Error, Result};
use crate::event::{Due, Event, EventId, NewEvent};
use crate::json::Json;
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

impl PreparedEvent {
    pub(crate) fn name(&self) -> &str {
        &self.event_name
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn is_due_at_once(&self) -> bool {
        matches!(self.due, Due::AtOnce)
    }

    /// As its first handler is given it, when it was inserted `at`. Without its content it is still to be parsed.
    pub(crate) fn to_event(&self, at: i64, content: Option<Content>) -> (Event, Option<Unparsed>) {
        let unparsed = if content.is_none() {
            Some(Unparsed::of(&self.payload, self.metadata.as_deref()))
        } else {
            None
        };
        let (payload, metadata) = match content {
            Some(Content { payload, metadata }) => (payload, metadata),
            None => (Value::Null, None),
        };
        let event = Event {
            id: self.id,
            attempt: 1,
            timestamp: clock::from_micros(at),
            version: self.version,
            name: self.event_name.clone(),
            source_module: self.source_module.clone(),
            aggregate_type: self.aggregate_type.clone(),
            aggregate_id: self.aggregate_id.clone(),
            causation_id: self.causation_id,
            correlation_id: self.correlation_id.clone(),
            trace_parent: self.trace_parent.clone(),
            payload,
            metadata,
        };
        (event, unparsed)
    }
}

/// What an event says, as it was given: the same as what is read back from its row.
pub(crate) struct Content {
    payload: Value,
    metadata: Option<Value>,
}

impl Content {
    pub(crate) fn payload(&self) -> &Value {
        &self.payload
    }
}

/// Checks everything about an event. `new_id` makes an id for one without a key; `cause` is the event whose handler
/// publishes this one.
pub(crate) fn prepare(
    event: NewEvent,
    payload_bytes_max: usize,
    cause: Option<&Event>,
    new_id: impl FnOnce() -> Uuid,
) -> Result<(PreparedEvent, Content)> {
    let Checked { payload, metadata, keyed_id } = check(&event, payload_bytes_max)?;
    let prepared = PreparedEvent {
        id: EventId(keyed_id.unwrap_or_else(new_id)),
        keyed: keyed_id.is_some(),
        event_name: event.event_name,
        source_module: event.source_module,
        aggregate_type: event.aggregate_type,
        aggregate_id: event.aggregate_id,
        payload,
        metadata,
        correlation_id: event.correlation_id.or_else(|| cause?.correlation_id.clone()),
        causation_id: cause.map(|cause| cause.id),
        trace_parent: event.trace_parent.or_else(|| cause?.trace_parent.clone()),
        version: event.version,
        due: event.due,
    };
    let content =
        Content { payload: event.payload.into_value(), metadata: event.metadata.map(Json::into_value) };
    Ok((prepared, content))
}

/// The same for one that another box has published under this id.
pub(crate) fn prepare_imported(
    id: EventId,
    event: NewEvent,
    causation_id: Option<EventId>,
    payload_bytes_max: usize,
) -> Result<PreparedEvent> {
    let (prepared, _) = prepare(event, payload_bytes_max, None, || id.0)?;
    // As with a key: who has been there before stays.
    Ok(PreparedEvent { keyed: true, causation_id, ..prepared })
}

/// What checking has made already.
pub(crate) struct Checked {
    payload: String,
    metadata: Option<String>,
    pub(crate) keyed_id: Option<Uuid>,
}

pub(crate) fn check(event: &NewEvent, payload_bytes_max: usize) -> Result<Checked> {
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

/// What an event that is inserted already claimed is claimed with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    pub(crate) length_ms: u64,
}

/// What came of an event that was to be inserted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inserted {
    pub(crate) id: EventId,
    /// `None`: its key had published it already.
    pub(crate) seq: Option<i64>,
    /// When it was inserted.
    pub(crate) at: i64,
}

macro_rules! insert_event {
    ($conflict:literal) => {
        concat!(
            "INSERT INTO main.outbox_event
                (seq, id, status, attempt_count, available_at, lease_id, created_at, changed_at, payload_version, event_name,
                 source_module, aggregate_type, aggregate_id, causation_id, correlation_id, traceparent, payload, metadata)
             VALUES (coalesce(?1,
                              nullif(max(coalesce((SELECT max(last_deleted) FROM main.postbox_counter), 0),
                                         coalesce((SELECT max(seq) FROM main.outbox_event WHERE seq <= 8796093022207), 0)) + 1,
                                     8796093022208),
                              'none left'),
                     ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
            $conflict
        )
    };
}

/// One statement does it all: in a deferred transaction of the application, a look first could not be followed by a write.
///
/// The number is looked up among those that a box can have given: rows of other programs may have any. A text where none is
/// left, since NULL would be any number of SQLite's own.
const INSERT: &str = insert_event!("");
const INSERT_ONCE: &str = insert_event!(" ON CONFLICT (id) DO NOTHING");

const COLUMNS: usize = 18;

/// So many rows in one statement, where there are many.
const ROWS: usize = 8;

static INSERT_ROWS: LazyLock<String> = LazyLock::new(|| {
    (1..ROWS).fold(INSERT.to_owned(), |sql, row| {
        let parameters: Vec<String> =
            (1..=COLUMNS).map(|column| format!("?{}", row * COLUMNS + column)).collect();
        format!("{sql}, ({})", parameters.join(", "))
    })
});

/// Inserts the event inside the caller's transaction. One that its key has published already stays as it is.
pub(crate) fn insert(conn: &Connection, event: &PreparedEvent, now: i64) -> Result<Inserted> {
    insert_next(conn, event, now, None, &mut None)
}

/// The number of its row; `None`: it was there already.
pub(crate) fn insert_once(conn: &Connection, event: &PreparedEvent, now: i64) -> Result<Option<i64>> {
    insert_next(conn, event, now, None, &mut None).map(|inserted| inserted.seq)
}

/// As [`insert`], claimed where there is a lease for it. `next` is the number of the next row where it is known, as it is after
/// every insert in a transaction that has the write lock.
fn insert_next(
    conn: &Connection,
    event: &PreparedEvent,
    now: i64,
    lease: Option<Lease>,
    next: &mut Option<i64>,
) -> Result<Inserted> {
    let mut statement = conn.prepare_cached(if event.keyed { INSERT_ONCE } else { INSERT })?;
    bind(&mut statement, 0, *next, event, now, lease)?;
    let rows = match statement.raw_execute() {
        // A trigger of the application's has published as well.
        Err(error) if next.is_some() && is_taken(&error) => {
            bind(&mut statement, 0, None, event, now, lease)?;
            statement.raw_execute()
        }
        rows => rows,
    };
    let rows = rows.map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::TypeMismatch) => Error::NoNumberLeft { what: "the event", table: "outbox_event" },
        _ => Error::Sqlite(error),
    })?;
    *next = None;
    // A trigger with RAISE(IGNORE) says Ok as well.
    if rows == 1 {
        let seq = conn.last_insert_rowid();
        *next = Some(seq + 1).filter(|next| *next <= SEQ_MAX);
        Ok(Inserted { id: event.id, seq: Some(seq), at: now })
    } else if event.keyed && super::seq_of(conn, event.id)?.is_some() {
        Ok(Inserted { id: event.id, seq: None, at: now })
    } else {
        Err(Error::NotStored { what: "the event", table: "outbox_event" })
    }
}

/// Inserts events as [`insert_next`] does, in fewer statements.
fn insert_all(
    conn: &Connection,
    events: &[PreparedEvent],
    now: i64,
    lease: Option<Lease>,
    next: &mut Option<i64>,
) -> Result<Vec<Inserted>> {
    let mut inserted = Vec::with_capacity(events.len());
    let mut rest = events;
    while let Some((event, others)) = rest.split_first() {
        if let (Some(seq), Some((rows, others))) = (*next, rest.split_first_chunk())
            && usize::try_from(SEQ_MAX - seq).is_ok_and(|left| left >= ROWS)
            && insert_rows(conn, rows, now, lease, seq)?
        {
            inserted.extend((seq..).zip(rows).map(|(seq, event)| Inserted {
                id: event.id,
                seq: Some(seq),
                at: now,
            }));
            *next = Some(conn.last_insert_rowid() + 1).filter(|next| *next <= SEQ_MAX);
            rest = others;
        } else {
            inserted.push(insert_next(conn, event, now, lease, next)?);
            rest = others;
        }
    }
    Ok(inserted)
}

/// All in one statement, numbered from `seq`. False: that cannot be done, and nothing was.
fn insert_rows(
    conn: &Connection,
    events: &[PreparedEvent; ROWS],
    now: i64,
    lease: Option<Lease>,
    seq: i64,
) -> Result<bool> {
    if events.iter().any(|event| event.keyed) {
        return Ok(false);
    }
    let mut statement = conn.prepare_cached(&INSERT_ROWS)?;
    for (row, (event, seq)) in events.iter().zip(seq..).enumerate() {
        bind(&mut statement, row, Some(seq), event, now, lease)?;
    }
    match statement.raw_execute() {
        Ok(ROWS) => Ok(true),
        Ok(_) => Err(Error::NotStored { what: "the events", table: "outbox_event" }),
        Err(error) if is_taken(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_taken(error: &rusqlite::Error) -> bool {
    error.sqlite_error().map(|error| error.extended_code) == Some(rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY)
}

/// Binds the event to the parameters of a statement's `row`, counted from 0. `seq`: of the row, where it is known.
fn bind(
    statement: &mut Statement<'_>,
    row: usize,
    seq: Option<i64>,
    event: &PreparedEvent,
    now: i64,
    lease: Option<Lease>,
) -> rusqlite::Result<()> {
    let (status, attempts, available_at, lease_id, changed_at) = if let Some(Lease { id, length_ms }) = lease
    {
        (OutboxStatus::Processing, 1, clock::add(now, Duration::from_millis(length_ms)), id.0, None)
    } else {
        let available_at = match event.due {
            Due::AtOnce => now,
            Due::At(at) => clock::to_micros(at).max(now),
            Due::After(delay) => clock::add(now, delay),
        };
        (OutboxStatus::Pending, 0, available_at, UNOWNED, Some(now))
    };
    let values: [&dyn ToSql; 13] = [
        &seq,
        &event.id.0,
        &status,
        &attempts,
        &available_at,
        &lease_id,
        &now,
        &changed_at,
        &event.version,
        &event.event_name,
        &event.source_module,
        &event.aggregate_type,
        &event.aggregate_id,
    ];
    let before = row * COLUMNS;
    for (value, place) in values.iter().zip(before + 1..) {
        statement.raw_bind_parameter(place, value)?;
    }
    statement.raw_bind_parameter(before + 17, &event.payload)?;
    // Most events have none of these, and a parameter that is not bound is NULL.
    let causation_id = event.causation_id.map(|id| id.0);
    if let Some(id) = causation_id {
        statement.raw_bind_parameter(before + 14, id)?;
    }
    for (text, place) in [(&event.correlation_id, 15), (&event.trace_parent, 16), (&event.metadata, 18)] {
        if let Some(text) = text {
            statement.raw_bind_parameter(before + place, text)?;
        }
    }
    Ok(())
}

/// Inserts the event in the transaction of a connection that is the application's own.
pub(crate) fn insert_in(conn: &Connection, event: &PreparedEvent, now: i64) -> Result<Inserted> {
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
    pub(crate) events: Arc<[PreparedEvent]>,
    pub(crate) clock: Arc<BoxClock>,
    pub(crate) lease: Option<Lease>,
}

impl Job for InsertJob {
    type Output = Vec<Inserted>;
    /// The number of the next row.
    type Known = Option<i64>;

    fn run(&mut self, conn: &Connection, next: &mut Option<i64>) -> Result<Vec<Inserted>> {
        // Here, inside the write lock, so that times are in the order of `seq`.
        let now = self.clock.now();
        insert_all(conn, &self.events, now, self.lease, next)
    }

    fn needs_savepoint(&self) -> bool {
        self.events.len() > 1
    }
}
