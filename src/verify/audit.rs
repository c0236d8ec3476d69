//! What `verify` counts. These statements read whole tables, on purpose, and stand nowhere else.

use std::ops::Range;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};

use crate::clock::{HELD_UNTIL, LIMITED_UNTIL, NEWER_UNTIL, PAUSED_UNTIL, WAITING_UNTIL};
use crate::error::Result;
use crate::json;
use crate::outbox::SEQ_MAX;
use crate::outbox::claim::LeaseId;
use crate::sagas::timeouts::Timeouts;
use crate::sagas::undo::Undo;

/// Events, one by one.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// With a number that a box gives.
    pub(super) numbered: i64,
    pub(super) misnumbered: i64,
    pub(super) newest: i64,
    pub(super) processed: i64,
    pub(super) failed: i64,
    pub(super) dead_letter: i64,
    pub(super) unknown_status: i64,
    pub(super) never_due: i64,
    pub(super) held: i64,
    pub(super) paused: i64,
    pub(super) waiting: i64,
    pub(super) limited: i64,
    pub(super) newer: i64,
    pub(super) latest_time: i64,
}

pub(super) fn events(conn: &Connection) -> Result<Events> {
    Ok(conn.query_row(
        "SELECT coalesce(sum(seq BETWEEN 1 AND ?1), 0), coalesce(sum(seq NOT BETWEEN 1 AND ?1), 0),
                coalesce(max(iif(seq <= ?1, seq, 0)), 0), coalesce(sum(status = 'processed'), 0),
                coalesce(sum(status = 'failed'), 0), coalesce(sum(status = 'dead_letter'), 0),
                coalesce(sum(status NOT IN ('pending', 'processing', 'processed', 'failed', 'dead_letter')), 0),
                coalesce(sum(status IN ('pending', 'processing') AND available_at > ?2), 0),
                coalesce(sum(status = 'pending' AND available_at = ?2), 0),
                coalesce(sum(status = 'pending' AND available_at = ?3), 0),
                coalesce(sum(status = 'pending' AND available_at = ?4), 0),
                coalesce(sum(status = 'pending' AND available_at = ?5), 0),
                coalesce(sum(status = 'pending' AND available_at = ?6), 0),
                coalesce(max(max(created_at, updated_at)), 0)
         FROM main.outbox_event NOT INDEXED",
        [SEQ_MAX, HELD_UNTIL, PAUSED_UNTIL, WAITING_UNTIL, LIMITED_UNTIL, NEWER_UNTIL],
        |row| {
            Ok(Events {
                numbered: row.get(0)?,
                misnumbered: row.get(1)?,
                newest: row.get(2)?,
                processed: row.get(3)?,
                failed: row.get(4)?,
                dead_letter: row.get(5)?,
                unknown_status: row.get(6)?,
                never_due: row.get(7)?,
                held: row.get(8)?,
                paused: row.get(9)?,
                waiting: row.get(10)?,
                limited: row.get(11)?,
                newer: row.get(12)?,
                latest_time: row.get(13)?,
            })
        },
    )?)
}

/// Events that cannot be read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// Their payload or metadata is no JSON.
    pub(super) json: i64,
    /// Another text of theirs is none: SQLite stores any bytes.
    pub(super) text: i64,
}

/// Looked at here: SQLite has no look at a text's bytes, and takes other JSON.
pub(super) fn unreadable(conn: &Connection) -> Result<Unreadable> {
    let mut statement = conn.prepare(
        "SELECT payload, metadata, event_name, source_module, aggregate_type, aggregate_id, correlation_id, traceparent,
                last_error, deliver_to
         FROM main.outbox_event NOT INDEXED",
    )?;
    let mut rows = statement.query([])?;
    let mut seen = Unreadable::default();
    while let Some(row) = rows.next()? {
        let has_bad = |columns: Range<usize>, is_good: fn(&[u8]) -> bool| -> Result<bool> {
            for column in columns {
                match row.get_ref(column)? {
                    ValueRef::Null => {}
                    ValueRef::Text(text) if is_good(text) => {}
                    _ => return Ok(true),
                }
            }
            Ok(false)
        };
        seen.json += i64::from(has_bad(0..2, json::is_readable)?);
        seen.text += i64::from(has_bad(2..10, |text| std::str::from_utf8(text).is_ok())?);
    }
    Ok(seen)
}

/// What the file says of them without counting.
pub(super) struct Counter {
    pub(super) processed: i64,
    pub(super) deleted: i64,
    pub(super) last_deleted: i64,
}

pub(super) fn counter(conn: &Connection) -> Result<Option<Counter>> {
    let counter = conn
        .query_row("SELECT processed, deleted, last_deleted FROM main.postbox_counter", [], |row| {
            Ok(Counter { processed: row.get(0)?, deleted: row.get(1)?, last_deleted: row.get(2)? })
        })
        .optional()?;
    Ok(counter)
}

/// Leases under which events are claimed, and until when.
pub(super) fn claims(conn: &Connection) -> Result<Vec<(LeaseId, i64)>> {
    let mut statement = conn.prepare(
        "SELECT lease_id, available_at FROM main.outbox_event INDEXED BY outbox_event_claimed WHERE status = 'processing'",
    )?;
    let claims = statement.query_map([], |row| Ok((LeaseId(row.get(0)?), row.get(1)?)))?;
    Ok(claims.collect::<rusqlite::Result<_>>()?)
}

/// Inbox rows of no event.
pub(super) fn orphaned_inbox_rows(conn: &Connection) -> Result<i64> {
    Ok(conn.query_row(
        "SELECT count(*) FROM main.inbox_event i
         WHERE NOT EXISTS (SELECT 1 FROM main.outbox_event o WHERE o.seq = i.id >> 20)",
        [],
        |row| row.get(0),
    )?)
}

/// Inbox rows whose key is another consumer's, or nobody's.
pub(super) fn misplaced_inbox_rows(conn: &Connection) -> Result<i64> {
    Ok(conn.query_row(
        "SELECT count(*) FROM main.inbox_event i LEFT JOIN main.postbox_consumer c ON c.number = i.id & 1048575
         WHERE c.name IS NOT i.consumer_name",
        [],
        |row| row.get(0),
    )?)
}

/// History of no event.
pub(super) fn orphaned_history(conn: &Connection) -> Result<i64> {
    Ok(conn.query_row(
        "SELECT count(*) FROM main.postbox_history h
         WHERE NOT EXISTS (SELECT 1 FROM main.outbox_event o WHERE o.seq = h.event)",
        [],
        |row| row.get(0),
    )?)
}

/// Sagas, one by one.
#[derive(Debug, Default)]
pub(super) struct Sagas {
    /// Another program has spoilt their row.
    pub(super) unreadable: i64,
    /// They run, and a timeout that they wait for does not come: its event is over or gone.
    pub(super) waiting_in_vain: i64,
    /// They run, and the event of a timeout is a dead letter.
    pub(super) dead_timeouts: i64,
}

pub(super) fn sagas(conn: &Connection) -> Result<Sagas> {
    let mut statement = conn.prepare(
        "SELECT status, timeouts, undo, state, name, correlation_id, last_event, reason FROM main.postbox_saga NOT INDEXED",
    )?;
    let mut rows = statement.query([])?;
    let mut seen = Sagas::default();
    while let Some(row) = rows.next()? {
        let text = |column: usize| row.get::<_, Option<String>>(column);
        let (Ok(Some(status)), Ok(timeouts), Ok(undo), Ok(Some(state))) =
            (text(0), text(1), text(2), text(3))
        else {
            seen.unreadable += 1;
            continue;
        };
        if (4..8).any(|column| text(column).is_err()) {
            seen.unreadable += 1;
            continue;
        }
        let is_known = ["running", "completed", "compensated"].contains(&status.as_str());
        let (Ok(timeouts), Ok(_), true, true) = (
            Timeouts::parse(timeouts.as_deref()),
            Undo::stored(undo).all(),
            json::is_readable(state.as_bytes()),
            is_known,
        ) else {
            seen.unreadable += 1;
            continue;
        };
        if status == "running" {
            let (mut in_vain, mut dead) = (false, false);
            for id in timeouts.ids() {
                let mut event = conn.prepare_cached("SELECT status FROM main.outbox_event WHERE id = ?1")?;
                let status: Option<String> = event.query_row([id.as_uuid()], |row| row.get(0)).optional()?;
                dead |= matches!(status.as_deref(), Some("dead_letter" | "failed"));
                in_vain |= matches!(status.as_deref(), None | Some("processed"));
            }
            seen.waiting_in_vain += i64::from(in_vain);
            seen.dead_timeouts += i64::from(dead);
        }
    }
    Ok(seen)
}

/// The file's size by SQLite's own account: bytes of a page, pages, and those of them that are free.
pub(super) fn pages(conn: &Connection) -> Result<(u64, u64, u64)> {
    let number = |pragma: &str| conn.pragma_query_value(Some("main"), pragma, |row| row.get(0));
    Ok((number("page_size")?, number("page_count")?, number("freelist_count")?))
}
