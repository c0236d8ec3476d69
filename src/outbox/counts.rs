//! How many events there are of each kind, without reading them all.
//!
//! Few live rows are counted one by one, which is exact whoever wrote them. Of many, what is not pending is known (rows that
//! are processed from a counter) and the rest is pending.

use rusqlite::Connection;

use super::OutboxStatus;
use crate::error::Result;

/// Up to so many pending rows are counted one by one: a fraction of a millisecond.
const COUNTED_MAX: i64 = 5_000;

/// How many events are in each status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) pending: u64,
    pub(crate) processing: u64,
    pub(crate) processed: u64,
    pub(crate) failed: u64,
    pub(crate) dead_letter: u64,
    pub(crate) total: u64,
}

impl Counts {
    pub(crate) fn of(&self, status: OutboxStatus) -> u64 {
        match status {
            OutboxStatus::Pending => self.pending,
            OutboxStatus::Processing => self.processing,
            OutboxStatus::Processed => self.processed,
            OutboxStatus::Failed => self.failed,
            OutboxStatus::DeadLetter => self.dead_letter,
        }
    }
}

/// Read it inside one snapshot.
pub(crate) fn count(conn: &Connection) -> Result<Counts> {
    let number =
        |sql: &str| -> Result<i64> { Ok(conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?) };
    // Rows whose number no box could have given are few: they are counted.
    let total = number(
        "SELECT max(coalesce((SELECT max(min(last_deleted, 8796093022207)) FROM main.postbox_counter), 0),
                    coalesce((SELECT max(seq) FROM main.outbox_event WHERE seq <= 8796093022207), 0))
                - coalesce((SELECT max(min(max(deleted, 0), 8796093022207)) FROM main.postbox_counter), 0)
                + (SELECT count(*) FROM main.outbox_event NOT INDEXED WHERE seq < 1)
                + (SELECT count(*) FROM main.outbox_event NOT INDEXED WHERE seq > 8796093022207)",
    )?;
    let processing = number(
        "SELECT count(*) FROM main.outbox_event INDEXED BY outbox_event_claimed WHERE status = 'processing'",
    )?;
    let (mut failed, mut dead_letter, mut unknown) = (0, 0, 0);
    let mut statement = conn.prepare_cached(
        "SELECT status, count(*) FROM main.outbox_event INDEXED BY outbox_event_dead
         WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed' GROUP BY status",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let count: i64 = row.get(1)?;
        match row.get_ref(0)?.as_bytes().unwrap_or_default() {
            b"failed" => failed = count,
            b"dead_letter" => dead_letter = count,
            _ => unknown += count, // until it is set aside
        }
    }
    let rest = total - processing - failed - dead_letter - unknown;
    let counted = conn
        .prepare_cached(
            "SELECT count(*) FROM (SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_due
                                   WHERE status = 'pending' LIMIT ?1)",
        )?
        .query_row([COUNTED_MAX], |row| row.get(0))?;
    let pending: i64 = if counted < COUNTED_MAX {
        counted
    } else {
        (rest - number("SELECT coalesce(max(processed), 0) FROM main.postbox_counter")?).max(counted)
    };
    let [pending, processing, processed, failed, dead_letter, total] =
        [pending, processing, rest - pending, failed, dead_letter, total]
            .map(|n| u64::try_from(n).unwrap_or(0));
    Ok(Counts { pending, processing, processed, failed, dead_letter, total })
}

/// Whether the counter is off, because another program has changed the status of rows: seen where few are pending.
pub(crate) fn is_off(conn: &Connection) -> Result<bool> {
    let counts = count(conn)?;
    let known: i64 =
        conn.query_row("SELECT coalesce(max(processed), 0) FROM main.postbox_counter", [], |row| row.get(0))?;
    let counted = i64::try_from(counts.pending).is_ok_and(|pending| pending < COUNTED_MAX);
    Ok(counted && i64::try_from(counts.processed) != Ok(known))
}

/// Sets the counter right.
pub(crate) fn repair(conn: &Connection) -> Result<()> {
    let processed = i64::try_from(count(conn)?.processed).unwrap_or(i64::MAX);
    conn.execute("UPDATE main.postbox_counter SET processed = ?1", [processed])?;
    Ok(())
}

/// So many of the events that are due first are looked at for the oldest.
const LOOKED_AT_MAX: i64 = 250;

/// When the oldest pending event was published: of few exactly, of many the oldest of those that are due first.
pub(crate) fn oldest_pending(conn: &Connection) -> Result<Option<i64>> {
    Ok(conn
        .prepare_cached(
            "SELECT min(created_at)
             FROM (SELECT created_at FROM main.outbox_event INDEXED BY outbox_event_due
                   WHERE status = 'pending' ORDER BY available_at LIMIT ?1)",
        )?
        .query_row([LOOKED_AT_MAX], |row| row.get(0))?)
}
