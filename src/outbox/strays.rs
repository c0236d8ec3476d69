//! Rows that no claim would ever find, as no box writes them: of a status that nobody knows, or due after the end of time.

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::OutboxStatus;
use crate::clock::HELD_UNTIL;
use crate::error::{Error, Result};
use crate::event::EventId;
use crate::validate;

/// Of such a status so many characters are shown.
const SHOWN_MAX: usize = 64;

/// Whether there are any. Five looks into the indexes: between and around the statuses that a person has to look at, and behind
/// the last that is due.
pub(crate) fn are_there(conn: &Connection) -> Result<bool> {
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
             UNION ALL
             SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_due WHERE status = 'pending' AND available_at > ?1
             UNION ALL
             SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_claimed WHERE status = 'processing' AND available_at > ?1
             LIMIT 1",
        )?
        .query_row([HELD_UNTIL], |_| Ok(()))
        .optional()?;
    Ok(found.is_some())
}

/// Gives up to `limit` of them the status `to`, with an error that says what was wrong. Their payloads are neither read
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
             UNION ALL
             SELECT seq, id, NULL FROM main.outbox_event INDEXED BY outbox_event_due
             WHERE status = 'pending' AND available_at > ?1
             UNION ALL
             SELECT seq, id, NULL FROM main.outbox_event INDEXED BY outbox_event_claimed
             WHERE status = 'processing' AND available_at > ?1
             LIMIT ?2",
        )?
        .query_map(params![HELD_UNTIL, limit], |row| {
            let id = EventId(row.get(1).unwrap_or(Uuid::nil()));
            Ok((row.get(0)?, id, what_is_wrong(row.get_ref(2)?.as_bytes().ok())))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut update = conn.prepare_cached(
        "UPDATE main.outbox_event SET status = ?2, lease_id = 0, last_error = ?3, available_at = ?4, changed_at = ?4 WHERE seq = ?1",
    )?;
    let mut done = SetAside { found: found.len(), ..SetAside::default() };
    for (seq, id, error) in found {
        match update.execute(params![seq, to, error, now]).map_err(Error::from) {
            Ok(1) => done.rows.push((seq, id)),
            Err(error) if error.is_fault_of_file() => return Err(error),
            Ok(_) | Err(_) => {} // a trigger of the application's
        }
    }
    Ok(done)
}

fn what_is_wrong(unknown_status: Option<&[u8]>) -> String {
    let Some(status) = unknown_status else {
        return "its available_at is after the year 9999: it would never have been due".to_owned();
    };
    let shown: String = String::from_utf8_lossy(status).chars().take(SHOWN_MAX).collect();
    validate::error_text(&format!("its status was `{}`, which nobody knows", shown.escape_debug()))
}

/// What became of a slice of them.
#[derive(Default)]
pub(crate) struct SetAside {
    pub(crate) found: usize,
    /// Those that are set aside now: their numbers and ids.
    pub(crate) rows: Vec<(i64, EventId)>,
}
