//! Rows that no claim would ever find, as no box writes them: of a status that nobody knows, or due after the end of time.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::OutboxStatus;
use crate::clock::HELD_UNTIL;
use crate::error::Result;
use crate::event::EventId;
use crate::validate;

/// Of such a status so many characters are shown.
const SHOWN_MAX: usize = 64;

/// One of them.
pub(crate) struct Stray {
    pub(crate) seq: i64,
    pub(crate) id: EventId,
    what_is_wrong: String,
}

/// Up to `limit` of them. Five looks into the indexes: between and around the statuses that a person has to look at, and behind
/// the last that is due.
pub(crate) fn find(conn: &Connection, limit: usize) -> Result<Vec<Stray>> {
    let strays = conn
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
            Ok(Stray { seq: row.get(0)?, id, what_is_wrong: what_is_wrong(row.get_ref(2)?.as_bytes().ok()) })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(strays)
}

/// Gives it the status `to`, with an error that says what was wrong. Its payload is neither read nor changed. False: it is no
/// stray any more, or a trigger of the application's swallowed the change.
pub(crate) fn set_aside(conn: &Connection, stray: &Stray, to: OutboxStatus, now: i64) -> Result<bool> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event SET status = ?2, lease_id = 0, last_error = ?3, available_at = ?4, changed_at = ?4
             WHERE seq = ?1 AND (status NOT IN ('pending', 'processing', 'processed', 'dead_letter', 'failed')
                                 OR (status IN ('pending', 'processing') AND available_at > ?5))",
        )?
        .execute(params![stray.seq, to, stray.what_is_wrong, now, HELD_UNTIL])?;
    Ok(changed == 1)
}

fn what_is_wrong(unknown_status: Option<&[u8]>) -> String {
    let Some(status) = unknown_status else {
        return "its available_at is after the year 9999: it would never have been due".to_owned();
    };
    let shown: String = String::from_utf8_lossy(status).chars().take(SHOWN_MAX).collect();
    validate::error_text(&format!("its status was `{}`, which nobody knows", shown.escape_debug()))
}
