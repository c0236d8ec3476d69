//! All of the table's SQL, as functions over a connection.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::timeouts::Timeouts;
use super::undo::Undo;
use super::{SagaFilter, SagaInstance, SagaPage, SagaStatus, SagaSummary, SagaTotals};
use crate::clock::from_micros;
use crate::cursor::Cursor;
use crate::error::{Error, Result};
#[cfg(feature = "testing")]
use crate::event::EventId;
#[cfg(feature = "testing")]
use crate::outbox;
use crate::page::{Order, Page};

/// What a step needs of its conversation.
pub(crate) struct Stored {
    pub(crate) seq: i64,
    pub(crate) status: SagaStatus,
    pub(crate) reason: Option<String>,
    pub(crate) timeouts: Option<String>,
    pub(crate) undo: Option<String>,
    pub(crate) state: String,
}

pub(crate) fn load(conn: &Connection, name: &str, correlation_id: &str) -> Result<Option<Stored>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, status, reason, timeouts, undo, state FROM main.postbox_saga WHERE name = ?1 AND correlation_id = ?2",
    )?;
    let stored = statement.query_row(params![name, correlation_id], |row| {
        Ok(Stored {
            seq: row.get(0)?,
            status: row.get(1)?,
            reason: row.get(2)?,
            timeouts: row.get(3)?,
            undo: row.get(4)?,
            state: row.get(5)?,
        })
    });
    Ok(stored.optional()?)
}

/// What a step leaves of its conversation.
pub(crate) struct Written<'a> {
    pub(crate) status: SagaStatus,
    pub(crate) last_event: &'a str,
    pub(crate) reason: Option<&'a str>,
    pub(crate) timeouts: Option<&'a str>,
    pub(crate) undo: Option<&'a str>,
    pub(crate) state: &'a str,
}

pub(crate) fn insert(
    conn: &Connection,
    name: &str,
    correlation_id: &str,
    written: &Written<'_>,
    now: i64,
) -> Result<()> {
    let Written { status, last_event, reason, timeouts, undo, state } = written;
    let inserted = conn
        .prepare_cached(
            "INSERT INTO main.postbox_saga (name, correlation_id, status, created_at, updated_at, last_event, reason, timeouts,
                                            undo, state)
             VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![name, correlation_id, status, now, last_event, reason, timeouts, undo, state])?;
    stored(inserted)
}

/// False: it is not in the status any more that it had `before`.
pub(crate) fn update(
    conn: &Connection,
    seq: i64,
    before: SagaStatus,
    written: &Written<'_>,
    now: i64,
) -> Result<bool> {
    let Written { status, last_event, reason, timeouts, undo, state } = written;
    let updated = conn
        .prepare_cached(
            "UPDATE main.postbox_saga SET status = ?2, updated_at = ?3, last_event = ?4, reason = ?5, timeouts = ?6, undo = ?7,
                                          state = ?8
             WHERE seq = ?1 AND status = ?9",
        )?
        .execute(params![seq, status, now, last_event, reason, timeouts, undo, state, before])?;
    if updated == 0 && status_of(conn, seq)? != Some(before) {
        return Ok(false);
    }
    stored(updated)?;
    Ok(true)
}

fn status_of(conn: &Connection, seq: i64) -> Result<Option<SagaStatus>> {
    let mut statement = conn.prepare_cached("SELECT status FROM main.postbox_saga WHERE seq = ?1")?;
    Ok(statement.query_row([seq], |row| row.get(0)).optional()?)
}

/// There is none of it any more. The timeouts that it waited for.
#[cfg(feature = "testing")]
pub(crate) fn forget(conn: &Connection, name: &str, correlation_id: &str) -> Result<Vec<EventId>> {
    let Some(stored) = load(conn, name, correlation_id)? else { return Ok(Vec::new()) };
    conn.prepare_cached("DELETE FROM main.postbox_saga WHERE seq = ?1")?.execute([stored.seq])?;
    Ok(Timeouts::parse(stored.timeouts.as_deref())?.take_all())
}

/// The timeout of this name that it waits for, where its event is in no row: the test kit gives it to the saga itself.
#[cfg(feature = "testing")]
pub(crate) fn timeout_in_no_row(
    conn: &Connection,
    name: &str,
    correlation_id: &str,
    timeout: &str,
) -> Result<Option<EventId>> {
    let Some(stored) = load(conn, name, correlation_id)? else { return Ok(None) };
    let Some(id) = Timeouts::parse(stored.timeouts.as_deref())?.forget(timeout) else { return Ok(None) };
    Ok(outbox::seq_of(conn, id)?.is_none().then_some(id))
}

/// Its timeouts are cancelled, and what undoes it is published or forgotten.
pub(crate) fn end(conn: &Connection, seq: i64, ends_as: SagaStatus, reason: &str, now: i64) -> Result<()> {
    let updated = conn
        .prepare_cached(
            "UPDATE main.postbox_saga SET status = ?2, updated_at = ?3, reason = ?4, timeouts = NULL, undo = NULL
             WHERE seq = ?1",
        )?
        .execute(params![seq, ends_as, now, reason])?;
    stored(updated)
}

fn stored(rows: usize) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(Error::NotStored { what: "the saga", table: "postbox_saga" }) }
}

/// For one snapshot.
pub(crate) fn get(conn: &Connection, name: &str, correlation_id: &str) -> Result<Option<SagaInstance>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, name, correlation_id, status, created_at, updated_at, last_event, reason, timeouts, undo, state
         FROM main.postbox_saga WHERE name = ?1 AND correlation_id = ?2",
    )?;
    let found = statement
        .query_row(params![name, correlation_id], |row| {
            let texts: (Option<String>, Option<String>, String) = (row.get(8)?, row.get(9)?, row.get(10)?);
            Ok((summary(row)?, texts))
        })
        .optional()?;
    let Some((summary, (timeouts, undo, state))) = found else { return Ok(None) };
    let undo = Undo::stored(undo).all()?;
    Ok(Some(SagaInstance {
        summary,
        state: serde_json::from_str(&state)?,
        timeouts: Timeouts::parse(timeouts.as_deref())?.into_shown(conn)?,
        undo: undo.iter().map(|event| event.name().to_owned()).collect(),
    }))
}

fn summary(row: &Row<'_>) -> rusqlite::Result<SagaSummary> {
    // SQLite stores any bytes: one row that cannot be read must not hide the others.
    let text = |column| -> rusqlite::Result<Option<String>> {
        Ok(match row.get_ref(column)? {
            ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        })
    };
    Ok(SagaSummary {
        cursor: Cursor(row.get(0)?),
        name: text(1)?.unwrap_or_default(),
        correlation_id: text(2)?.unwrap_or_default(),
        status: row.get(3)?,
        created_at: from_micros(row.get(4)?),
        updated_at: from_micros(row.get(5)?),
        last_event: text(6)?.unwrap_or_default(),
        reason: text(7)?,
    })
}

/// No state is read.
pub(crate) fn list(conn: &Connection, filter: &SagaFilter, page: &Page) -> Result<SagaPage> {
    let Some((first, last)) = page.order.range_behind(page.after) else {
        return Ok(SagaPage { sagas: Vec::new(), next: None });
    };
    let mut statement = conn.prepare_cached(match page.order {
        Order::Oldest => {
            "SELECT seq, name, correlation_id, status, created_at, updated_at, last_event, reason
             FROM main.postbox_saga NOT INDEXED
             WHERE seq BETWEEN ?1 AND ?2 AND (?3 IS NULL OR name = ?3) AND (?4 IS NULL OR status = ?4)
             ORDER BY seq LIMIT ?5"
        }
        Order::Newest => {
            "SELECT seq, name, correlation_id, status, created_at, updated_at, last_event, reason
             FROM main.postbox_saga NOT INDEXED
             WHERE seq BETWEEN ?1 AND ?2 AND (?3 IS NULL OR name = ?3) AND (?4 IS NULL OR status = ?4)
             ORDER BY seq DESC LIMIT ?5"
        }
    })?;
    let found =
        statement.query_map(params![first, last, filter.name, filter.status, page.limit + 1], summary)?;
    let mut sagas = found.collect::<rusqlite::Result<Vec<_>>>()?;
    let next = page.cut(&mut sagas, |last| last.cursor);
    Ok(SagaPage { sagas, next })
}

/// Running ones that have not changed since, the one first that has not for longest.
pub(crate) fn unchanged_since(
    conn: &Connection,
    name: Option<&str>,
    since: i64,
    limit: usize,
) -> Result<Vec<SagaSummary>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, name, correlation_id, status, created_at, updated_at, last_event, reason
         FROM main.postbox_saga INDEXED BY postbox_saga_running
         WHERE status = 'running' AND updated_at <= ?1 AND (?2 IS NULL OR name = ?2) ORDER BY updated_at, seq LIMIT ?3",
    )?;
    let found = statement.query_map(params![since, name, limit], summary)?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// All rows are read, and none of their states.
pub(crate) fn totals(conn: &Connection) -> Result<Vec<SagaTotals>> {
    let mut statement = conn.prepare_cached(
        "SELECT name, sum(status = 'running'), sum(status = 'completed'), sum(status = 'compensated'),
                min(iif(status = 'running', updated_at, NULL))
         FROM main.postbox_saga NOT INDEXED GROUP BY name ORDER BY name",
    )?;
    let totals = statement.query_map([], |row| {
        Ok(SagaTotals {
            name: String::from_utf8_lossy(row.get_ref(0)?.as_bytes().unwrap_or_default()).into_owned(),
            running: row.get(1)?,
            completed: row.get(2)?,
            compensated: row.get(3)?,
            oldest_change: row.get::<_, Option<i64>>(4)?.map(from_micros),
        })
    })?;
    Ok(totals.collect::<rusqlite::Result<_>>()?)
}

/// Ended ones that have not changed since: their numbers, the one first that has not for longest.
pub(crate) fn ended_before(conn: &Connection, since: i64, limit: usize) -> Result<Vec<i64>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq FROM main.postbox_saga INDEXED BY postbox_saga_ended
         WHERE status <> 'running' AND updated_at <= ?1 ORDER BY updated_at LIMIT ?2",
    )?;
    let found = statement.query_map(params![since, limit], |row| row.get(0))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// False: it is not what it was.
pub(crate) fn delete_ended(conn: &Connection, seq: i64, since: i64) -> Result<bool> {
    let deleted = conn
        .prepare_cached(
            "DELETE FROM main.postbox_saga
             WHERE seq = ?1 AND (status = 'completed' OR status = 'compensated') AND updated_at <= ?2",
        )?
        .execute([seq, since])?;
    Ok(deleted == 1)
}
