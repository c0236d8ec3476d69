//! Events that have not started: nobody has claimed them yet.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::EventFilter;
use super::filter::{PARAMETERS, matches_filter};
use crate::clock::LATEST;
use crate::error::Result;
use crate::event::EventId;

/// Where a list goes on: behind an event that is due then and has this `seq`.
pub(crate) type Behind = (i64, i64);

/// The first `limit` events of the filter (their `seq`) that are due after `now` for the first time, the one that is due first before the
/// others, behind that one. For one snapshot or transaction.
pub(crate) fn seqs(
    conn: &Connection,
    filter: &EventFilter,
    behind: Option<Behind>,
    limit: usize,
    now: i64,
) -> Result<Vec<i64>> {
    let (at, seq) =
        behind.map_or((now, i64::MAX), |(at, seq)| if at > now { (at, seq) } else { (now, i64::MAX) });
    let mut values = filter.clone().unstarted().values_of_any_status();
    debug_assert_eq!(values.len(), PARAMETERS);
    values.extend([at, seq, LATEST, i64::try_from(limit).unwrap_or(i64::MAX)].map(Value::Integer));
    let mut statement = conn.prepare_cached(concat!(
        "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_due
         WHERE e.status = 'pending' AND e.available_at BETWEEN ?19 AND ?21 AND (e.available_at > ?19 OR e.seq > ?20) AND ",
        matches_filter!(),
        " ORDER BY e.available_at, e.seq LIMIT ?22"
    ))?;
    let found = statement.query_map(params_from_iter(values), |row| row.get(0))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Whether nobody has begun with it: it was never claimed, or given back as it was.
pub(crate) fn is_unstarted(conn: &Connection, seq: i64) -> Result<bool> {
    Ok(conn
        .prepare_cached(
            "SELECT ?1 NOT BETWEEN 1 AND 8796093022207
                    OR NOT EXISTS (SELECT 1 FROM main.inbox_event WHERE id BETWEEN ?1 << 20 AND (?1 << 20) + 1048575)
             FROM main.outbox_event
             WHERE seq = ?1 AND status = 'pending' AND attempt_count = 0 AND last_error IS NULL AND deliver_to IS NULL",
        )?
        .query_row([seq], |row| row.get(0))
        .optional()?
        .unwrap_or(false))
}

/// When an event is due that was to be at `noted`; `None`: it comes no more. Where it has begun, or waits for something else than a time, that
/// is its time still.
pub(crate) fn due_at(conn: &Connection, id: EventId, noted: i64) -> Result<Option<i64>> {
    let found: Option<Option<i64>> = conn
        .prepare_cached(
            "SELECT CASE WHEN status = 'pending' AND attempt_count = 0 AND last_error IS NULL AND available_at <= ?2 THEN available_at END
             FROM main.outbox_event WHERE id = ?1 AND status <> 'processed'",
        )?
        .query_row(params![id.as_uuid(), LATEST], |row| row.get(0))
        .optional()?;
    Ok(found.map(|at| at.unwrap_or(noted)))
}
