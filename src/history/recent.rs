//! The last attempts that failed, of whatever event.

use std::fmt;

use rusqlite::Connection;

use super::HistoryEntry;
use crate::error::Result;
use crate::event::EventId;

/// An attempt that failed or was lost: [`Outbox::recent_failures`](crate::Outbox::recent_failures). `Debug` leaves the error out,
/// which may quote a payload.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecentFailure {
    /// The event that was handled.
    pub event_id: EventId,
    /// Its name.
    pub event_name: String,
    /// What its history says: who failed, when, after how long, and why.
    pub entry: HistoryEntry,
}

impl fmt::Debug for RecentFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecentFailure")
            .field("event_id", &self.event_id)
            .field("event_name", &self.event_name)
            .field("entry", &self.entry)
            .finish()
    }
}

/// So many entries, of the newest events that have any, are looked at: some milliseconds, however many there are.
const LOOKED_AT_MAX: usize = 10_000;

/// The last first. What another program spoilt is passed over.
pub(crate) fn recent(conn: &Connection, limit: usize) -> Result<Vec<RecentFailure>> {
    let mut statement = conn.prepare_cached(
        "SELECT f.at, f.kind, f.consumer_name, f.duration, f.detail, o.id, o.event_name
         FROM (SELECT * FROM (SELECT event, at, kind, consumer_name, duration, detail FROM main.postbox_history
                              ORDER BY event DESC, number DESC LIMIT ?1)
               WHERE kind = 'failed' OR kind = 'lost' ORDER BY at DESC, event DESC LIMIT ?2) AS f
         CROSS JOIN main.outbox_event AS o ON o.seq = f.event
         ORDER BY f.at DESC, f.event DESC",
    )?;
    let mut rows = statement.query([LOOKED_AT_MAX, limit])?;
    let mut failures = Vec::new();
    while let Some(row) = rows.next()? {
        let (Ok(entry), Ok(id), Ok(event_name)) = (super::read(row), row.get(5), row.get(6)) else {
            continue;
        };
        failures.push(RecentFailure { event_id: EventId(id), event_name, entry });
    }
    Ok(failures)
}
