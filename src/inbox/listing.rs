//! The consumers that inbox rows speak of.

use std::collections::HashMap;

use rusqlite::Connection;
use time::OffsetDateTime;

use crate::clock::from_micros;
use crate::consumers;
use crate::error::Result;

/// A consumer that has had to do with events of this file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerSummary {
    /// Its name.
    pub name: String,
    /// How many of its inbox rows are neither processed nor skipped.
    pub open: u64,
    /// When it last processed one of the events that the file's newest 10,000 inbox rows are about; `None` when it did not.
    pub last_processed_at: Option<OffsetDateTime>,
}

/// So many of the newest inbox rows are looked at: a few milliseconds, however many there are.
const LOOKED_AT_MAX: i64 = 10_000;

/// By name. Read it inside one snapshot.
pub(crate) fn consumers(conn: &Connection) -> Result<Vec<ConsumerSummary>> {
    let mut open: HashMap<String, u64> = conn
        .prepare_cached(
            "SELECT consumer_name, count(*) FROM main.inbox_event INDEXED BY inbox_event_open
             WHERE status = 'received' OR status = 'processing' OR status = 'failed' GROUP BY consumer_name",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut last: HashMap<String, Option<i64>> = conn
        .prepare_cached(
            "SELECT consumer_name, max(iif(status = 'processed', processed_at, NULL))
             FROM (SELECT consumer_name, status, processed_at FROM main.inbox_event NOT INDEXED ORDER BY id DESC LIMIT ?1)
             GROUP BY consumer_name",
        )?
        .query_map([LOOKED_AT_MAX], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let summary = |name: String| ConsumerSummary {
        open: open.remove(&name).unwrap_or(0),
        last_processed_at: last.remove(&name).flatten().map(from_micros),
        name,
    };
    Ok(consumers::names(conn)?.into_iter().map(summary).collect())
}
