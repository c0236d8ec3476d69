//! The events that are pending or claimed, one after the other.

use rusqlite::Connection;

use crate::error::Result;

/// What is looked at of one of them.
pub(crate) struct Live<'a> {
    pub(crate) seq: i64,
    pub(crate) event_name: &'a str,
    pub(crate) created_at: i64,
    pub(crate) deliver_to: Option<&'a str>,
    /// Some consumer has an inbox row of it.
    pub(crate) in_inbox: bool,
}

/// All of them, in no order. A row that is not a box's, and is set aside when it is claimed, is passed over.
pub(crate) fn each(conn: &Connection, mut look: impl FnMut(Live<'_>) -> Result<()>) -> Result<()> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, event_name, created_at, deliver_to,
                EXISTS (SELECT 1 FROM main.inbox_event WHERE id BETWEEN seq << 20 AND (seq << 20) + 1048575)
         FROM main.outbox_event INDEXED BY outbox_event_due
         WHERE status = 'pending' AND seq BETWEEN 1 AND 8796093022207
         UNION ALL
         SELECT seq, event_name, created_at, deliver_to,
                EXISTS (SELECT 1 FROM main.inbox_event WHERE id BETWEEN seq << 20 AND (seq << 20) + 1048575)
         FROM main.outbox_event INDEXED BY outbox_event_claimed
         WHERE status = 'processing' AND seq BETWEEN 1 AND 8796093022207",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let (Ok(event_name), Ok(deliver_to)) = (row.get_ref(1)?.as_str(), row.get_ref(3)?.as_str_or_null())
        {
            look(Live {
                seq: row.get(0)?,
                event_name,
                created_at: row.get(2)?,
                deliver_to,
                in_inbox: row.get(4)?,
            })?;
        }
    }
    Ok(())
}
