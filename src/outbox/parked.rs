//! Events that wait for something that is paused.

use rusqlite::{Connection, OptionalExtension, params};

use crate::clock::PAUSED_UNTIL;
use crate::error::{Error, Result};

/// One of them.
pub(crate) struct Parked {
    pub(crate) seq: i64,
    pub(crate) event_name: String,
    /// The only consumers that are asked, as JSON; all when there is none.
    pub(crate) deliver_to: Option<String>,
    /// Of its payload; 0 where no box wrote it.
    pub(crate) version: u32,
}

/// Whether there are any.
pub(crate) fn is_any(conn: &Connection) -> Result<bool> {
    Ok(conn
        .prepare_cached(
            "SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_due
             WHERE status = 'pending' AND available_at = ?1 LIMIT 1",
        )?
        .query_row([PAUSED_UNTIL], |_| Ok(()))
        .optional()?
        .is_some())
}

/// So many of those that are parked until this time of the year 9999, behind this `seq`, in its order.
pub(crate) fn behind(conn: &Connection, until: i64, seq: i64, limit: usize) -> Result<Vec<Parked>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, event_name, deliver_to, payload_version FROM main.outbox_event INDEXED BY outbox_event_due
         WHERE status = 'pending' AND available_at = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let parked = statement.query_map(params![until, seq, limit], |row| {
        let event_name = String::from_utf8_lossy(row.get_ref(1)?.as_bytes().unwrap_or_default()).into_owned();
        Ok(Parked {
            seq: row.get(0)?,
            event_name,
            deliver_to: row.get(2).unwrap_or_default(),
            version: row.get(3).unwrap_or_default(),
        })
    })?;
    Ok(parked.collect::<rusqlite::Result<_>>()?)
}

/// It is due now, unless somebody has let it go meanwhile.
pub(crate) fn release(conn: &Connection, seq: i64, now: i64) -> Result<()> {
    conn.prepare_cached(
        "UPDATE main.outbox_event NOT INDEXED SET available_at = ?2, changed_at = ?2
         WHERE seq = ?1 AND status = 'pending' AND available_at = ?3",
    )?
    .execute([seq, now, PAUSED_UNTIL])?;
    let is_left = conn
        .prepare_cached(
            "SELECT 1 FROM main.outbox_event NOT INDEXED WHERE seq = ?1 AND status = 'pending' AND available_at = ?2",
        )?
        .exists([seq, PAUSED_UNTIL])?;
    if is_left {
        return Err(Error::NotStored { what: "the end of its pause", table: "outbox_event" });
    }
    Ok(())
}
