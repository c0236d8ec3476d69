//! Events that have just ended without success, as far as they are told.

use rusqlite::{Connection, OptionalExtension};

use super::OutboxStatus;
use crate::error::Result;
use crate::event::EventId;

pub(crate) struct Dead {
    pub(crate) id: EventId,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) status: OutboxStatus,
    pub(crate) error: String,
}

/// `None`: it is none, or another program left something else than a UUID, or a name that is no text, in the row.
pub(crate) fn read(conn: &Connection, seq: i64) -> Result<Option<Dead>> {
    let dead = conn
        .prepare_cached(
            "SELECT id, event_name, min(max(attempt_count, 0), 4294967295), status, coalesce(last_error, '')
             FROM main.outbox_event WHERE seq = ?1 AND (status = 'dead_letter' OR status = 'failed')",
        )?
        .query_row([seq], |row| {
            Ok(Dead {
                id: EventId(row.get(0)?),
                name: row.get(1)?,
                attempt: row.get(2)?,
                status: row.get(3)?,
                error: row.get(4)?,
            })
        })
        .optional();
    match dead {
        // No code of SQLite's: a value in the row is not one of ours.
        Err(error) if error.sqlite_error_code().is_none() => Ok(None),
        dead => Ok(dead?),
    }
}
