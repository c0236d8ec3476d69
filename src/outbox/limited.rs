//! Events that wait for room with a consumer that has limits.

use rusqlite::Connection;

use crate::clock::LIMITED_UNTIL;
use crate::error::{Error, Result};

/// It is due now. False: it does not wait any more.
pub(crate) fn release(conn: &Connection, seq: i64, now: i64) -> Result<bool> {
    let released = conn
        .prepare_cached(
            "UPDATE main.outbox_event NOT INDEXED SET available_at = ?2, changed_at = ?2
             WHERE seq = ?1 AND status = 'pending' AND available_at = ?3",
        )?
        .execute([seq, now, LIMITED_UNTIL])?;
    if released == 1 {
        return Ok(true);
    }
    let is_left = conn
        .prepare_cached(
            "SELECT 1 FROM main.outbox_event NOT INDEXED WHERE seq = ?1 AND status = 'pending' AND available_at = ?2",
        )?
        .exists([seq, LIMITED_UNTIL])?;
    if is_left {
        return Err(Error::NotStored { what: "that there is room for an event", table: "outbox_event" });
    }
    Ok(false)
}
