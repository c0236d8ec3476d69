//! Deleting events that are over: their rows are looked at in the order of their numbers.

use rusqlite::{Connection, params};

use crate::error::Result;

/// A row on the way through the table.
pub(crate) struct Passed {
    pub(crate) seq: i64,
    /// `None`: its text is not one.
    pub(crate) event_name: Option<String>,
    pub(crate) created_at: i64,
    /// Only of a processed event.
    pub(crate) processed_at: Option<i64>,
}

/// Up to `limit` rows behind this number, whatever their status.
pub(crate) fn rows_after(conn: &Connection, seq: i64, limit: usize) -> Result<Vec<Passed>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, event_name, created_at, iif(status = 'processed', processed_at, NULL)
         FROM main.outbox_event NOT INDEXED WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let rows = statement.query_map(params![seq, limit], |row| {
        Ok(Passed {
            seq: row.get(0)?,
            event_name: row.get(1).ok(),
            created_at: row.get(2)?,
            processed_at: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Deletes a processed event, with its inbox rows and its history. False: it is not what it was.
pub(crate) fn delete(conn: &Connection, seq: i64, processed_at: i64) -> Result<bool> {
    let deleted = conn
        .prepare_cached(
            "DELETE FROM main.outbox_event WHERE seq = ?1 AND status = 'processed' AND processed_at = ?2",
        )?
        .execute([seq, processed_at])?;
    Ok(deleted == 1)
}
