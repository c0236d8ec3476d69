//! Unfinished events of one aggregate in their order, and those that wait for their turn.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::claim::LeaseId;
use crate::clock::{LIMITED_UNTIL, NEWER_UNTIL, PAUSED_UNTIL, WAITING_UNTIL};
use crate::error::Result;
use crate::event::Event;

/// Whose events are in order.
#[expect(clippy::struct_field_names, reason = "as they are called everywhere")]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Aggregate {
    pub(crate) source_module: String,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
}

impl Aggregate {
    pub(crate) fn of(event: &Event) -> Self {
        Aggregate {
            source_module: event.source_module.clone(),
            aggregate_type: event.aggregate_type.clone(),
            aggregate_id: event.aggregate_id.clone(),
        }
    }
}

/// An event that is not processed.
pub(crate) struct Unfinished {
    pub(crate) seq: i64,
    pub(crate) event_name: String,
    /// As its row says it.
    pub(crate) deliver_to: Option<String>,
    pub(crate) state: State,
    /// It has failed before.
    pub(crate) has_failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It was published with a delay, and its time has not come.
    Scheduled,
    /// It waits for its turn.
    Waiting,
    /// It waits for something that is paused.
    Parked,
    /// It waits for room with a consumer that has limits.
    Limited,
    /// It has ended without success.
    Dead,
    /// It is due, being worked on, or to be tried again.
    Live,
}

/// Makes the index that the others of this module go by, if it is not there.
pub(crate) fn make_index(conn: &Connection) -> Result<()> {
    Ok(conn.execute_batch(include_str!("order.sql"))?)
}

/// Whether anybody has ever asked for order in this file.
pub(crate) fn has_index(conn: &Connection) -> Result<bool> {
    Ok(conn
        .prepare_cached(
            "SELECT 1 FROM main.sqlite_schema WHERE type = 'index' AND name = 'outbox_event_order'",
        )?
        .exists([])?)
}

/// The version of an event's payload, for who waits for it; one that no box wrote is for everybody.
pub(crate) fn version(conn: &Connection, seq: i64) -> Result<u32> {
    Ok(conn
        .prepare_cached("SELECT iif(payload_version BETWEEN 1 AND 4294967295, payload_version, 0) FROM main.outbox_event WHERE seq = ?1")?
        .query_row([seq], |row| row.get(0))
        .optional()?
        .unwrap_or(0))
}

/// The name and the aggregate of an event. `None`: there is no such row, or no box wrote it so.
pub(crate) fn of_event(conn: &Connection, seq: i64) -> Result<Option<(String, Aggregate)>> {
    let read = conn
        .prepare_cached(
            "SELECT event_name, source_module, aggregate_type, aggregate_id FROM main.outbox_event WHERE seq = ?1",
        )?
        .query_row([seq], |row| Ok((row.get(0)?, aggregate(row, 1)?)))
        .optional();
    match read {
        Err(error) if error.sqlite_error_code().is_none() => Ok(None),
        read => Ok(read?),
    }
}

/// The only consumers that an event is for; `None`: all, or what no box wrote.
pub(crate) fn deliver_to(conn: &Connection, seq: i64) -> Result<Option<Vec<String>>> {
    let names: Option<Vec<u8>> = conn
        .prepare_cached("SELECT CAST(deliver_to AS BLOB) FROM main.outbox_event WHERE seq = ?1")?
        .query_row([seq], |row| row.get(0))
        .optional()?
        .flatten();
    Ok(names.and_then(|names| serde_json::from_slice(&names).ok()))
}

/// Goes through the unfinished events of an aggregate with a `seq` below this, in order, until `look` has found something. `but`: the
/// number of a consumer; not through those that it is done with. There may be thousands, which wait for another consumer.
pub(crate) fn find_below<T>(
    conn: &Connection,
    of: &Aggregate,
    seq: i64,
    but: Option<i64>,
    now: i64,
    mut look: impl FnMut(&Unfinished) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, event_name, deliver_to, status, available_at, attempt_count = 0 AND changed_at IS created_at AND last_error IS NULL,
                last_error IS NOT NULL
         FROM main.outbox_event
         WHERE processed_at IS NULL AND source_module = ?1 AND aggregate_type = ?2 AND aggregate_id = ?3 AND seq < ?4
               AND status <> 'processed'
               AND NOT EXISTS (SELECT 1 FROM main.inbox_event AS i
                               WHERE i.id = (outbox_event.seq << 20) + ?5 AND (i.status = 'processed' OR i.status = 'skipped'))
         ORDER BY seq",
    )?;
    let mut rows =
        statement.query(params![of.source_module, of.aggregate_type, of.aggregate_id, seq, but])?;
    while let Some(row) = rows.next()? {
        if let Some(found) = look(&unfinished(row, now)?)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Those that others are working on: under another lease than this.
pub(crate) fn worked_on(conn: &Connection, but: LeaseId) -> Result<Vec<(Aggregate, Unfinished)>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, event_name, deliver_to, source_module, aggregate_type, aggregate_id
         FROM main.outbox_event INDEXED BY outbox_event_claimed
         WHERE status = 'processing' AND lease_id <> ?1",
    )?;
    let mut rows = statement.query([but.0])?;
    let mut worked_on = Vec::new();
    while let Some(row) = rows.next()? {
        let event = Unfinished {
            seq: row.get(0)?,
            event_name: text(row, 1)?,
            deliver_to: row.get(2).unwrap_or_default(),
            state: State::Live,
            has_failed: false,
        };
        worked_on.push((aggregate(row, 3)?, event));
    }
    Ok(worked_on)
}

fn aggregate(row: &Row<'_>, at: usize) -> rusqlite::Result<Aggregate> {
    Ok(Aggregate {
        source_module: text(row, at)?,
        aggregate_type: text(row, at + 1)?,
        aggregate_id: text(row, at + 2)?,
    })
}

/// Another program may have written something else.
fn text(row: &Row<'_>, at: usize) -> rusqlite::Result<String> {
    Ok(match row.get_ref(at)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    })
}

fn unfinished(row: &Row<'_>, now: i64) -> rusqlite::Result<Unfinished> {
    let is_pending = row.get_ref(3)?.as_bytes().is_ok_and(|status| status == b"pending");
    let is_live = is_pending || row.get_ref(3)?.as_bytes().is_ok_and(|status| status == b"processing");
    let available_at = row.get_ref(4)?.as_i64().unwrap_or(0);
    let is_untouched: Option<bool> = row.get(5).unwrap_or_default();
    let state = match available_at {
        _ if !is_live => State::Dead,
        WAITING_UNTIL if is_pending => State::Waiting,
        PAUSED_UNTIL if is_pending => State::Parked,
        LIMITED_UNTIL if is_pending => State::Limited,
        at if is_pending && at > now && at < NEWER_UNTIL && is_untouched == Some(true) => State::Scheduled,
        _ => State::Live,
    };
    Ok(Unfinished {
        seq: row.get(0)?,
        event_name: text(row, 1)?,
        deliver_to: row.get(2).unwrap_or_default(),
        state,
        has_failed: row.get(6)?,
    })
}

/// So many events behind this `seq` that wait for their turn: their `seq`, in order.
pub(crate) fn waiting_behind(conn: &Connection, seq: i64, limit: usize) -> Result<Vec<i64>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq FROM main.outbox_event INDEXED BY outbox_event_due
         WHERE status = 'pending' AND available_at = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let waiting = statement.query_map(params![WAITING_UNTIL, seq, limit], |row| row.get(0))?;
    Ok(waiting.collect::<rusqlite::Result<_>>()?)
}

/// The first events of the aggregate that wait for their turn, so many at the most, are due now. The index has to be there.
pub(crate) fn release_some(conn: &Connection, of: &Aggregate, limit: usize, now: i64) -> Result<()> {
    conn.prepare_cached(
        "UPDATE main.outbox_event NOT INDEXED SET available_at = ?5, changed_at = ?5
         WHERE seq IN (SELECT seq FROM main.outbox_event INDEXED BY outbox_event_order
                       WHERE processed_at IS NULL AND source_module = ?1 AND aggregate_type = ?2 AND aggregate_id = ?3
                             AND status = 'pending' AND available_at = ?6
                       ORDER BY seq LIMIT ?4)",
    )?
    .execute(params![of.source_module, of.aggregate_type, of.aggregate_id, limit, now, WAITING_UNTIL])?;
    Ok(())
}

/// The first aggregate behind this one that has unfinished events. The index has to be there.
pub(crate) fn next_aggregate(conn: &Connection, behind: Option<&Aggregate>) -> Result<Option<Aggregate>> {
    let (module, kind, id) = behind.map_or(("", "", ""), |of| {
        (of.source_module.as_str(), of.aggregate_type.as_str(), of.aggregate_id.as_str())
    });
    Ok(conn
        .prepare_cached(
            "SELECT source_module, aggregate_type, aggregate_id FROM main.outbox_event INDEXED BY outbox_event_order
             WHERE processed_at IS NULL AND (source_module, aggregate_type, aggregate_id) > (?1, ?2, ?3)
             ORDER BY source_module, aggregate_type, aggregate_id LIMIT 1",
        )?
        .query_row([module, kind, id], |row| aggregate(row, 0))
        .optional()?)
}

/// How many events of the aggregate behind this `seq` wait for their turn. The index has to be there.
pub(crate) fn count_waiting(conn: &Connection, of: &Aggregate, seq: i64) -> Result<u64> {
    Ok(conn
        .prepare_cached(
            "SELECT count(*) FROM main.outbox_event INDEXED BY outbox_event_order
             WHERE processed_at IS NULL AND source_module = ?1 AND aggregate_type = ?2 AND aggregate_id = ?3 AND seq > ?4
                   AND status = 'pending' AND available_at = ?5",
        )?
        .query_row(
            params![of.source_module, of.aggregate_type, of.aggregate_id, seq, WAITING_UNTIL],
            |row| row.get(0),
        )?)
}
