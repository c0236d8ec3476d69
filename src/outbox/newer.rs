//! Events that wait for a release that knows their payload's version.

use rusqlite::{Connection, params};

use crate::clock::NEWER_UNTIL;
use crate::error::{Error, Result};

/// It is due now, if it is still parked until this time of the year 9999.
pub(crate) fn release(conn: &Connection, seq: i64, until: i64, now: i64) -> Result<()> {
    conn.prepare_cached(
        "UPDATE main.outbox_event NOT INDEXED SET available_at = ?2, changed_at = ?2
         WHERE seq = ?1 AND status = 'pending' AND available_at = ?3",
    )?
    .execute([seq, now, until])?;
    let is_left = conn
        .prepare_cached(
            "SELECT 1 FROM main.outbox_event NOT INDEXED WHERE seq = ?1 AND status = 'pending' AND available_at = ?2",
        )?
        .exists([seq, until])?;
    if is_left {
        return Err(Error::NotStored { what: "that an event's version is known", table: "outbox_event" });
    }
    Ok(())
}

/// How many of them there are, counted up to `limit`.
pub(crate) fn count(conn: &Connection, limit: u64) -> Result<u64> {
    Ok(conn
        .prepare_cached(
            "SELECT count(*) FROM (SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_due
                                   WHERE status = 'pending' AND available_at = ?1 LIMIT ?2)",
        )?
        .query_row(params![NEWER_UNTIL, limit], |row| row.get(0))?)
}
