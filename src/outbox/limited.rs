//! Events that wait for room with a consumer that has limits.

use rusqlite::{Connection, params};

use crate::clock::LIMITED_UNTIL;
use crate::error::{Error, Result};

/// So many behind this `seq`, in its order: their `seq`, their name, and whom alone they are for.
pub(crate) fn behind(
    conn: &Connection,
    seq: i64,
    limit: usize,
) -> Result<Vec<(i64, String, Option<String>)>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, event_name, deliver_to FROM main.outbox_event INDEXED BY outbox_event_due
         WHERE status = 'pending' AND available_at = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let limited = statement.query_map(params![LIMITED_UNTIL, seq, limit], |row| {
        let name = String::from_utf8_lossy(row.get_ref(1)?.as_bytes().unwrap_or_default()).into_owned();
        Ok((row.get(0)?, name, row.get(2).unwrap_or_default()))
    })?;
    Ok(limited.collect::<rusqlite::Result<_>>()?)
}

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
