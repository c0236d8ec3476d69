//! What becomes of an event's row when people decide about it.

use rusqlite::{Connection, OptionalExtension, params};

use super::OutboxStatus;
use super::settle::UNOWNED;
use crate::clock::{HELD_UNTIL, NEWER_UNTIL};
use crate::error::{Error, Result};

/// `None`: there is no such row.
pub(crate) fn status(conn: &Connection, seq: i64) -> Result<Option<OutboxStatus>> {
    Ok(conn
        .prepare_cached("SELECT status FROM main.outbox_event WHERE seq = ?1")?
        .query_row([seq], |row| row.get(0))
        .optional()?)
}

/// The consumers to whom this event waits to be replayed (a JSON array). `None`: it does not wait for that, or somebody works on it.
pub(crate) fn replayed_to(conn: &Connection, seq: i64) -> Result<Option<String>> {
    Ok(conn
        .prepare_cached(
            "SELECT deliver_to FROM main.outbox_event WHERE seq = ?1 AND status = 'pending' AND deliver_to IS NOT NULL",
        )?
        .query_row([seq], |row| row.get(0))
        .optional()?)
}

/// A dead letter is due again, at its first attempt. Its error stands until it is processed.
pub(crate) fn retry(conn: &Connection, seq: i64, now: i64) -> Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event
             SET status = 'pending', attempt_count = 0, lease_id = ?3, available_at = ?2, changed_at = ?2
             WHERE seq = ?1 AND (status = 'dead_letter' OR status = 'failed')",
        )?
        .execute([seq, now, UNOWNED])?;
    stored(changed)
}

/// An event that nobody delivers by itself any more, or that nobody has begun with, is over: in one of these statuses it was before.
pub(crate) fn end(conn: &Connection, seq: i64, from: [OutboxStatus; 2], why: &str, now: i64) -> Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event
             SET status = 'processed', lease_id = 0, last_error = ?3, available_at = ?2, changed_at = NULL, processed_at = ?2
             WHERE seq = ?1 AND (status = ?4 OR status = ?5)",
        )?
        .execute(params![seq, now, why, from[0], from[1]])?;
    stored(changed)
}

/// A processed event is due again, for the consumers named in `deliver_to` (a JSON array) alone.
pub(crate) fn replay(conn: &Connection, seq: i64, deliver_to: &str, now: i64) -> Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event
             SET status = 'pending', attempt_count = 0, lease_id = ?4, last_error = NULL, available_at = ?2, changed_at = ?2,
                 processed_at = NULL, deliver_to = ?3
             WHERE seq = ?1 AND status = 'processed'",
        )?
        .execute(params![seq, now, deliver_to, UNOWNED])?;
    stored(changed)
}

/// An event that waits to be replayed is to reach these consumers. One that is parked or held is looked at anew, since it may have been for
/// another; a backoff stands.
pub(crate) fn replay_only_to(conn: &Connection, seq: i64, deliver_to: &str, now: i64) -> Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event
             SET deliver_to = ?2, available_at = iif(available_at BETWEEN ?4 AND ?5, ?3, available_at), changed_at = ?3
             WHERE seq = ?1 AND status = 'pending' AND deliver_to IS NOT NULL",
        )?
        .execute(params![seq, deliver_to, now, NEWER_UNTIL, HELD_UNTIL])?;
    stored(changed)
}

/// An event that waits to be replayed is processed, as it was.
pub(crate) fn end_replay(conn: &Connection, seq: i64, now: i64) -> Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event
             SET status = 'processed', lease_id = 0, last_error = NULL, available_at = ?2, changed_at = NULL, processed_at = ?2
             WHERE seq = ?1 AND status = 'pending' AND deliver_to IS NOT NULL",
        )?
        .execute([seq, now])?;
    stored(changed)
}

/// An event that nobody has begun with is due then.
pub(crate) fn reschedule(conn: &Connection, seq: i64, at: i64, now: i64) -> Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event SET available_at = ?2, changed_at = ?3 WHERE seq = ?1 AND status = 'pending'",
        )?
        .execute(params![seq, at, now])?;
    stored(changed)
}

fn stored(changed: usize) -> Result<()> {
    if changed == 1 { Ok(()) } else { Err(Error::NotStored { what: "a decision", table: "outbox_event" }) }
}
