//! What sets an imported event apart from one that was published here.

use rusqlite::{Connection, params};

use crate::error::{Error, Result};

/// When it was published elsewhere; no later than it came here.
pub(crate) fn published_at(conn: &Connection, seq: i64, at: i64) -> Result<()> {
    let changed = conn
        .prepare_cached("UPDATE main.outbox_event SET created_at = min(created_at, ?2) WHERE seq = ?1")?
        .execute([seq, at])?;
    stored(changed)
}

/// It is history: nobody receives it.
pub(crate) fn processed(conn: &Connection, seq: i64, now: i64) -> Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event
             SET status = 'processed', lease_id = 0, available_at = ?2, changed_at = NULL, processed_at = ?2
             WHERE seq = ?1 AND status = 'pending'",
        )?
        .execute(params![seq, now])?;
    stored(changed)
}

fn stored(changed: usize) -> Result<()> {
    if changed == 1 {
        Ok(())
    } else {
        Err(Error::NotStored { what: "an imported event", table: "outbox_event" })
    }
}
