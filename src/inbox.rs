//! The table `inbox_event`: one row per event and consumer; its types and all of its SQL.

mod listing;

use std::fmt;
use std::time::Duration;

use rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use serde::Serialize;
use time::OffsetDateTime;

pub use self::listing::ConsumerSummary;
pub(crate) use self::listing::consumers;
use crate::clock::from_micros;
use crate::error::{Error, Result};
use crate::event::EventId;
use crate::outbox::run::Run;
use crate::{consumers, outbox, validate};

/// How far one consumer is with one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InboxStatus {
    /// Known of, not begun.
    Received,
    /// Begun.
    Processing,
    /// Done: this consumer never runs again for this event.
    Processed,
    /// Its last attempt failed.
    Failed,
    /// Left out on purpose: this consumer never runs again for this event.
    Skipped,
}

impl InboxStatus {
    /// As it is stored: `received`, `processing`, `processed`, `failed`, `skipped`.
    pub fn as_str(self) -> &'static str {
        match self {
            InboxStatus::Received => "received",
            InboxStatus::Processing => "processing",
            InboxStatus::Processed => "processed",
            InboxStatus::Failed => "failed",
            InboxStatus::Skipped => "skipped",
        }
    }

    /// Whether the consumer is done with the event.
    pub(crate) fn is_done(self) -> bool {
        matches!(self, InboxStatus::Processed | InboxStatus::Skipped)
    }
}

impl fmt::Display for InboxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ToSql for InboxStatus {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for InboxStatus {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "received" => Ok(InboxStatus::Received),
            "processing" => Ok(InboxStatus::Processing),
            "processed" => Ok(InboxStatus::Processed),
            "failed" => Ok(InboxStatus::Failed),
            "skipped" => Ok(InboxStatus::Skipped),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// Names an inbox row, within its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct InboxId(i64);

impl InboxId {
    /// The `seq` of its event.
    pub(crate) fn event(self) -> i64 {
        self.0 >> 20
    }
}

impl From<i64> for InboxId {
    fn from(id: i64) -> Self {
        InboxId(id)
    }
}

impl fmt::Display for InboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one consumer has done with one event. `Debug` leaves `last_error` out, which may quote a payload.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboxEvent {
    /// Its id.
    pub id: InboxId,
    /// The event.
    pub outbox_event_id: EventId,
    /// The consumer.
    pub consumer_name: String,
    /// How far it is.
    pub status: InboxStatus,
    /// How many of its attempts failed.
    pub attempt_count: u32,
    /// Why the last one failed, or why it was skipped; at most 1023 characters. Cleared when it is processed.
    pub last_error: Option<String>,
    /// When it was done (processed or skipped).
    pub processed_at: Option<OffsetDateTime>,
    /// When the row was made.
    pub created_at: OffsetDateTime,
    /// When the row was last written.
    pub updated_at: OffsetDateTime,
}

impl fmt::Debug for InboxEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxEvent")
            .field("id", &self.id)
            .field("outbox_event_id", &self.outbox_event_id)
            .field("consumer_name", &self.consumer_name)
            .field("status", &self.status)
            .field("attempt_count", &self.attempt_count)
            .field("processed_at", &self.processed_at)
            .field("created_at", &self.created_at)
            .field("updated_at", &self.updated_at)
            .finish_non_exhaustive()
    }
}

/// A change of one row by its id.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    Processing,
    Processed,
    Failed(&'a str),
    Skipped,
    Attempt,
}

/// The bits of a row's id below the event's `seq`: the consumer's number.
const NUMBER_BITS: u32 = 20;

fn id_of(seq: i64, number: i64) -> InboxId {
    InboxId(seq << NUMBER_BITS | number)
}

pub(crate) fn get_or_create(
    conn: &Connection,
    event: EventId,
    consumer: &str,
    now: i64,
) -> Result<InboxEvent> {
    validate::name("consumer_name", consumer, validate::CONSUMER_MAX)?;
    let Some(seq) = outbox::seq_of(conn, event)? else {
        return Err(Error::NotFound { what: "event", id: event.to_string() });
    };
    let id = id_of(seq, consumers::number_of(conn, consumer)?);
    conn.prepare_cached(
        "INSERT INTO main.inbox_event (id, consumer_name, received_at, changed_at) VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT (id) DO NOTHING",
    )?
    .execute(params![id.0, consumer, now])?;
    get(conn, id)?.ok_or(Error::NotStored { what: "the inbox row", table: "inbox_event" })
}

pub(crate) fn get(conn: &Connection, id: InboxId) -> Result<Option<InboxEvent>> {
    let mut statement = conn.prepare_cached(
        "SELECT i.id, o.id, i.consumer_name, i.status, i.attempt_count, i.last_error, i.processed_at, i.created_at, i.updated_at
         FROM main.inbox_event i JOIN main.outbox_event o ON o.seq = i.id >> 20
         WHERE i.id = ?1",
    )?;
    let mut rows = statement.query([id.0])?;
    Ok(rows.next()?.map(read).transpose()?)
}

/// The rows of an event, in order of their consumers' numbers, so many at the most; an error for each that cannot be read.
pub(crate) fn of_event(
    conn: &Connection,
    event: EventId,
    seq: i64,
    limit: usize,
) -> Result<Vec<Result<InboxEvent>>> {
    // Of a number that no box gives, shifted, some other event's rows would be found.
    if !(1..=outbox::SEQ_MAX).contains(&seq) {
        return Ok(Vec::new());
    }
    let mut statement = conn.prepare_cached(
        "SELECT id, ?2, consumer_name, status, attempt_count, last_error, processed_at, created_at, updated_at
         FROM main.inbox_event
         WHERE id BETWEEN ?1 << 20 AND (?1 << 20) + 1048575
         ORDER BY id LIMIT ?3",
    )?;
    let mut rows = statement.query(params![seq, event.0, limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row).map_err(Error::from));
    }
    Ok(found)
}

fn read(row: &Row<'_>) -> rusqlite::Result<InboxEvent> {
    Ok(InboxEvent {
        id: InboxId(row.get(0)?),
        outbox_event_id: EventId(row.get(1)?),
        consumer_name: row.get(2)?,
        status: row.get(3)?,
        attempt_count: row.get(4)?,
        last_error: row.get(5)?,
        processed_at: row.get::<_, Option<i64>>(6)?.map(from_micros),
        created_at: from_micros(row.get(7)?),
        updated_at: from_micros(row.get(8)?),
    })
}

pub(crate) fn change(conn: &Connection, id: InboxId, change: Change<'_>, now: i64) -> Result<InboxEvent> {
    let changed = match change {
        Change::Processing => conn
            .prepare_cached("UPDATE main.inbox_event SET status = 'processing', processed_at = NULL, received_at = created_at, changed_at = ?2 WHERE id = ?1")?
            .execute(params![id.0, now])?,
        Change::Processed => conn
            .prepare_cached(
                "UPDATE main.inbox_event
                 SET status = 'processed', last_error = NULL, gave_up = 0, processed_at = ?2, received_at = created_at, changed_at = NULL
                 WHERE id = ?1",
            )?
            .execute(params![id.0, now])?,
        Change::Failed(error) => conn
            .prepare_cached(
                "UPDATE main.inbox_event
                 SET status = 'failed', attempt_count = attempt_count + 1, last_error = ?3, processed_at = NULL, received_at = created_at,
                     changed_at = ?2
                 WHERE id = ?1",
            )?
            .execute(params![id.0, now, validate::error_text(error)])?,
        Change::Skipped => conn
            .prepare_cached(
                "UPDATE main.inbox_event
                 SET status = 'skipped', gave_up = 0, processed_at = ?2, received_at = created_at, changed_at = NULL
                 WHERE id = ?1",
            )?
            .execute(params![id.0, now])?,
        Change::Attempt => conn
            .prepare_cached(
                "UPDATE main.inbox_event SET attempt_count = attempt_count + 1, changed_at = ?2 WHERE id = ?1",
            )?
            .execute(params![id.0, now])?,
    };
    match get(conn, id)? {
        Some(row) if changed == 1 => Ok(row),
        Some(_) => Err(Error::NotStored { what: "the inbox row", table: "inbox_event" }),
        None => Err(Error::NotFound { what: "inbox event", id: id.to_string() }),
    }
}

pub(crate) fn is_processed(conn: &Connection, event: EventId, consumer: &str) -> Result<bool> {
    let Some(number) = consumers::known_number_of(conn, consumer)? else { return Ok(false) };
    Ok(conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM main.outbox_event o JOIN main.inbox_event i ON i.id = o.seq << 20 | ?2
                            WHERE o.id = ?1 AND i.status = 'processed')",
        )?
        .query_row(params![event.0, number], |row| row.get(0))?)
}

pub(crate) fn count_unprocessed(conn: &Connection, consumer: &str) -> Result<u64> {
    Ok(conn
        .prepare_cached(
            "SELECT count(*) FROM main.inbox_event INDEXED BY inbox_event_open
             WHERE (status = 'received' OR status = 'processing' OR status = 'failed') AND consumer_name = ?1",
        )?
        .query_row([consumer], |row| row.get(0))?)
}

/// Consumers that have not finished with the event begin again with their first attempt.
pub(crate) fn begin_again(conn: &Connection, seq: i64, now: i64) -> Result<()> {
    let open = count_open(conn, seq)?;
    let changed = conn
        .prepare_cached(
            "UPDATE main.inbox_event
             SET status = 'received', attempt_count = 0, gave_up = 0, processed_at = NULL, received_at = created_at, changed_at = ?2
             WHERE id BETWEEN ?1 << 20 AND (?1 << 20) + 1048575 AND status <> 'processed' AND status <> 'skipped'",
        )?
        .execute([seq, now])?;
    all_stored(changed == open)
}

/// Consumers that have not finished with the event skip it.
pub(crate) fn skip_open(conn: &Connection, seq: i64, why: &str, now: i64) -> Result<()> {
    let open = count_open(conn, seq)?;
    let changed = conn
        .prepare_cached(
            "UPDATE main.inbox_event
             SET status = 'skipped', gave_up = 0, last_error = ?3, processed_at = ?2, received_at = created_at, changed_at = NULL
             WHERE id BETWEEN ?1 << 20 AND (?1 << 20) + 1048575 AND status <> 'processed' AND status <> 'skipped'",
        )?
        .execute(params![seq, now, why])?;
    all_stored(changed == open)
}

/// How many consumers have begun with the event and not finished.
fn count_open(conn: &Connection, seq: i64) -> Result<usize> {
    Ok(conn
        .prepare_cached(
            "SELECT count(*) FROM main.inbox_event
             WHERE id BETWEEN ?1 << 20 AND (?1 << 20) + 1048575 AND status <> 'processed' AND status <> 'skipped'",
        )?
        .query_row([seq], |row| row.get(0))?)
}

fn all_stored(are: bool) -> Result<()> {
    if are { Ok(()) } else { Err(Error::NotStored { what: "the inbox rows", table: "inbox_event" }) }
}

/// It is as if the consumer had never heard of the event.
pub(crate) fn forget(conn: &Connection, seq: i64, consumer: &str) -> Result<()> {
    if let Some(number) = consumers::known_number_of(conn, consumer)? {
        conn.prepare_cached("DELETE FROM main.inbox_event WHERE id = ?1")?.execute([id_of(seq, number).0])?;
    }
    all_stored(!is_known_to(conn, seq, consumer)?)
}

/// Whether the consumer has an inbox row of the event.
pub(crate) fn is_known_to(conn: &Connection, seq: i64, consumer: &str) -> Result<bool> {
    let Some(number) = consumers::known_number_of(conn, consumer)? else { return Ok(false) };
    Ok(conn.prepare_cached("SELECT 1 FROM main.inbox_event WHERE id = ?1")?.exists([id_of(seq, number).0])?)
}

/// What a delivery needs to know of a consumer's earlier attempts at an event.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) consumer_name: String,
    pub(crate) status: InboxStatus,
    pub(crate) failed_attempts: u32,
    pub(crate) gave_up: bool,
    pub(crate) last_error: Option<String>,
}

/// The newest event (its `seq`) that has an inbox row.
pub(crate) fn newest_event(conn: &Connection) -> Result<Option<i64>> {
    Ok(conn.prepare_cached("SELECT max(id) >> 20 FROM main.inbox_event")?.query_row([], |row| row.get(0))?)
}

pub(crate) fn standings(conn: &Connection, seq: i64) -> Result<Vec<Standing>> {
    let mut statement = conn.prepare_cached(
        "SELECT consumer_name, status, attempt_count, gave_up, last_error FROM main.inbox_event
         WHERE id BETWEEN ?1 << 20 AND (?1 << 20) + 1048575",
    )?;
    let mut rows = statement.query([seq])?;
    let mut standings = Vec::new();
    while let Some(row) = rows.next()? {
        standings.push(Standing {
            consumer_name: row.get(0)?,
            status: row.get(1)?,
            failed_attempts: row.get(2)?,
            gave_up: row.get(3)?,
            last_error: row.get(4)?,
        });
    }
    Ok(standings)
}

/// How far one consumer is with an event, whether it has given up, and how often it has failed. `None`: it has not begun, or no box
/// wrote its row so.
pub(crate) fn standing_of(
    conn: &Connection,
    seq: i64,
    consumer: &str,
) -> Result<Option<(InboxStatus, bool, u32)>> {
    let Some(number) = consumers::known_number_of(conn, consumer)? else { return Ok(None) };
    let standing = conn
        .prepare_cached("SELECT status, gave_up, attempt_count FROM main.inbox_event WHERE id = ?1")?
        .query_row([id_of(seq, number).0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional();
    match standing {
        Err(error) if error.sqlite_error_code().is_none() => Ok(None),
        standing => Ok(standing?),
    }
}

/// Consumers that have failed for an event and have not finished, by name.
pub(crate) fn failing(conn: &Connection, seq: i64) -> Result<Vec<String>> {
    let mut statement = conn.prepare_cached(
        "SELECT consumer_name FROM main.inbox_event NOT INDEXED
         WHERE id BETWEEN ?1 << 20 AND (?1 << 20) + 1048575 AND status = 'failed'",
    )?;
    let mut names: Vec<String> =
        statement.query_map([seq], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}

fn is_done(conn: &Connection, seq: i64, consumer: &str) -> Result<bool> {
    Ok(standings(conn, seq)?
        .iter()
        .any(|standing| standing.consumer_name == consumer && standing.status.is_done()))
}

/// How one attempt ended for one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mark {
    Processed,
    Skipped {
        why: String,
    },
    /// `duration`: how long the handler ran, if it did.
    Failed {
        error: String,
        gave_up: bool,
        duration: Option<Duration>,
    },
    /// Nobody ended it.
    Lost {
        error: String,
        gave_up: bool,
    },
}

/// Records a consumer's outcome, whether it has a row already or not.
///
/// Not as one upsert: that is a statement of several writes, for which SQLite copies every page that it touches.
pub(crate) fn record(conn: &Connection, seq: i64, consumer: &str, mark: &Mark, now: i64) -> Result<()> {
    let (status, error, failures, gave_up, done) = match mark {
        Mark::Processed => (InboxStatus::Processed, None, 0, false, true),
        Mark::Skipped { why } => (InboxStatus::Skipped, Some(why), 0, false, true),
        Mark::Failed { error, gave_up, .. } | Mark::Lost { error, gave_up } => {
            (InboxStatus::Failed, Some(error), 1, *gave_up, false)
        }
    };
    let id = id_of(seq, consumers::number_of(conn, consumer)?).0;
    let (processed_at, failed_at) = if done { (Some(now), None) } else { (None, Some(now)) };
    let values = params![id, consumer, status, failures, gave_up, error, processed_at, failed_at];
    let inserted = conn
        .prepare_cached(
            "INSERT INTO main.inbox_event
                (id, consumer_name, status, attempt_count, gave_up, last_error, processed_at, received_at, changed_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
        )?
        .execute(values);
    let stored = match inserted {
        Err(error) if error.sqlite_error().map(|e| e.extended_code) == Some(SQLITE_CONSTRAINT_PRIMARYKEY) => conn
            .prepare_cached(
                "UPDATE main.inbox_event
                 SET status = ?3, attempt_count = attempt_count + ?4, gave_up = ?5, last_error = ?6, processed_at = ?7,
                     received_at = created_at, changed_at = ?8
                 WHERE id = ?1 AND consumer_name = ?2 AND (?3 <> 'failed' OR (status <> 'processed' AND status <> 'skipped'))",
            )?
            .execute(values)?,
        inserted => inserted?,
    };
    // A failure is not written over a row that the application has marked as done meanwhile.
    if stored == 1 || !done && is_done(conn, seq, consumer)? {
        Ok(())
    } else {
        Err(Error::NotStored { what: "the inbox row", table: "inbox_event" })
    }
}

/// Records that a consumer has processed neighbouring events, of which it has no rows yet. False: it has some, and the
/// transaction has to be rolled back.
pub(crate) fn record_run(conn: &Connection, run: Run, consumer: &str, now: i64) -> Result<bool> {
    let inserted = conn
        .prepare_cached(
            "INSERT OR FAIL INTO main.inbox_event (id, consumer_name, status, processed_at)
             SELECT seq << 20 | ?3, ?4, 'processed', ?5 FROM main.outbox_event WHERE seq BETWEEN ?1 AND ?2",
        )?
        .execute(params![run.first, run.last, consumers::number_of(conn, consumer)?, consumer, now]);
    match inserted {
        Ok(rows) => Ok(rows == run.len()),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
