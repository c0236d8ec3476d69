//! The table `postbox_history`: what went wrong with each event, and what people decided about it.

mod recent;

use std::fmt;
use std::time::Duration;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use time::OffsetDateTime;

pub use self::recent::RecentFailure;
pub(crate) use self::recent::recent;
use crate::clock::from_micros;
use crate::error::{Error, Result};

/// So many entries are kept of one event: the last ones.
const KEPT: i64 = 100;

/// What an entry of an event's history tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HistoryKind {
    /// A consumer's attempt failed.
    Failed,
    /// A consumer's attempt was never ended: its process died, or its handler hung past its lease.
    Lost,
    /// A dead letter was given new attempts.
    Retried,
    /// A dead letter was given up, or an event cancelled before it started, for a reason.
    Discarded,
    /// It was delivered anew to one consumer.
    Replayed,
}

impl HistoryKind {
    /// As it is stored: `failed`, `lost`, `retried`, `discarded`, `replayed`.
    pub fn as_str(self) -> &'static str {
        match self {
            HistoryKind::Failed => "failed",
            HistoryKind::Lost => "lost",
            HistoryKind::Retried => "retried",
            HistoryKind::Discarded => "discarded",
            HistoryKind::Replayed => "replayed",
        }
    }
}

impl fmt::Display for HistoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ToSql for HistoryKind {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for HistoryKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "failed" => Ok(HistoryKind::Failed),
            "lost" => Ok(HistoryKind::Lost),
            "retried" => Ok(HistoryKind::Retried),
            "discarded" => Ok(HistoryKind::Discarded),
            "replayed" => Ok(HistoryKind::Replayed),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// One entry of an event's history. `Debug` leaves `detail` out, which may quote a payload.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryEntry {
    /// When it was recorded: for an attempt, when it had ended.
    pub at: OffsetDateTime,
    /// What happened.
    pub kind: HistoryKind,
    /// The consumer; `None` for a decision about all that had not finished.
    pub consumer_name: Option<String>,
    /// How long the attempt took; `None` for lost attempts and decisions.
    pub duration: Option<Duration>,
    /// The attempt's error, or the reason of a decision; at most 1023 characters.
    pub detail: Option<String>,
}

impl fmt::Debug for HistoryEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HistoryEntry")
            .field("at", &self.at)
            .field("kind", &self.kind)
            .field("consumer_name", &self.consumer_name)
            .field("duration", &self.duration)
            .finish_non_exhaustive()
    }
}

/// What is to be added.
pub(crate) struct NewEntry<'a> {
    pub(crate) kind: HistoryKind,
    pub(crate) consumer_name: Option<&'a str>,
    pub(crate) duration: Option<Duration>,
    /// No longer than the column holds.
    pub(crate) detail: Option<&'a str>,
}

/// Adds an entry to the event's history. The oldest makes room for it when there are many.
pub(crate) fn add(conn: &Connection, seq: i64, entry: &NewEntry<'_>, now: i64) -> Result<()> {
    // Behind a number at the end of all numbers, which another program wrote, there is none; and below 1 none is ever too old.
    let number: i64 = conn
        .prepare_cached(
            "SELECT coalesce(max(number), 0) + 1 FROM main.postbox_history WHERE event = ?1 AND number BETWEEN 1 AND ?2",
        )?
        .query_row([seq, i64::MAX - 1], |row| row.get(0))?;
    if number > KEPT {
        conn.prepare_cached("DELETE FROM main.postbox_history WHERE event = ?1 AND number <= ?2")?
            .execute([seq, number - KEPT])?;
    }
    let duration = entry.duration.map(|duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX));
    let added = conn
        .prepare_cached(
            "INSERT OR REPLACE INTO main.postbox_history (event, number, at, kind, consumer_name, duration, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![seq, number, now, entry.kind, entry.consumer_name, duration, entry.detail])?;
    if added == 1 {
        Ok(())
    } else {
        Err(Error::NotStored { what: "an event's history", table: "postbox_history" })
    }
}

/// The event's history, oldest first. An entry that another program spoilt is an error by itself.
pub(crate) fn of(conn: &Connection, seq: i64) -> Result<Vec<Result<HistoryEntry>>> {
    let mut statement = conn.prepare_cached(
        "SELECT at, kind, consumer_name, duration, detail FROM main.postbox_history WHERE event = ?1 ORDER BY number",
    )?;
    let mut rows = statement.query([seq])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(read(row));
    }
    Ok(entries)
}

fn read(row: &Row<'_>) -> Result<HistoryEntry> {
    Ok(HistoryEntry {
        at: from_micros(row.get(0)?),
        kind: row.get(1)?,
        consumer_name: row.get(2)?,
        duration: row.get::<_, Option<u64>>(3)?.map(Duration::from_micros),
        detail: row.get(4)?,
    })
}
