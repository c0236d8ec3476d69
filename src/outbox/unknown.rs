//! Rows with a status that nobody knows: no box wrote it, and no claim would ever find them.

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::OutboxStatus;
use crate::error::{Error, Result};
use crate::event::EventId;
use crate::validate;

/// Of such a status so many characters are shown.
const SHOWN_MAX: usize = 64;

/// Whether there is any. Three looks into the index of what a person has to look at: between and around those it is for.
pub(crate) fn is_there(conn: &Connection) -> Result<bool> {
    let found = conn
        .prepare_cached(
            "SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_dead
             WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed' AND status < 'dead_letter'
             UNION ALL
             SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_dead
             WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed'
                   AND status > 'dead_letter' AND status < 'failed'
             UNION ALL
             SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_dead
             WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed' AND status > 'failed'
             LIMIT 1",
        )?
        .query_row([], |_| Ok(()))
        .optional()?;
    Ok(found.is_some())
}

/// Gives up to `limit` of them the status `to`, with an error that says which theirs was. Their payloads are neither read
/// nor changed.
pub(crate) fn set_aside(conn: &Connection, to: OutboxStatus, limit: usize, now: i64) -> Result<SetAside> {
    let found: Vec<(i64, EventId, String)> = conn
        .prepare_cached(
            "SELECT seq, id, status FROM main.outbox_event INDEXED BY outbox_event_dead
             WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed' AND status < 'dead_letter'
             UNION ALL
             SELECT seq, id, status FROM main.outbox_event INDEXED BY outbox_event_dead
             WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed'
                   AND status > 'dead_letter' AND status < 'failed'
             UNION ALL
             SELECT seq, id, status FROM main.outbox_event INDEXED BY outbox_event_dead
             WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed' AND status > 'failed'
             LIMIT ?1",
        )?
        .query_map([limit], |row| {
            let id = EventId(row.get(1).unwrap_or(Uuid::nil()));
            let status = row.get_ref(2)?.as_bytes().unwrap_or_default();
            Ok((row.get(0)?, id, String::from_utf8_lossy(status).chars().take(SHOWN_MAX).collect()))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut update = conn.prepare_cached(
        "UPDATE main.outbox_event SET status = ?2, lease_id = 0, last_error = ?3, available_at = ?4, changed_at = ?4 WHERE seq = ?1",
    )?;
    let mut done = SetAside { found: found.len(), ..SetAside::default() };
    for (seq, id, status) in found {
        let error = format!("its status was `{}`, which nobody knows", status.escape_debug());
        match update.execute(params![seq, to, validate::error_text(&error), now]).map_err(Error::from) {
            Ok(1) => done.rows.push((seq, id)),
            Err(error) if error.is_fault_of_file() => return Err(error),
            Ok(_) | Err(_) => {} // a trigger of the application's
        }
    }
    Ok(done)
}

/// What became of a slice of them.
#[derive(Default)]
pub(crate) struct SetAside {
    pub(crate) found: usize,
    /// Those that are set aside now: their numbers and ids.
    pub(crate) rows: Vec<(i64, EventId)>,
}
