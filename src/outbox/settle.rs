//! What becomes of a claimed row. Every statement is fenced: it changes the row only for the owner of its lease.

use rusqlite::{Connection, OptionalExtension, params};

use super::OutboxStatus;
use super::claim::LeaseId;
use super::run::Run;
use crate::clock::HELD_UNTIL;
use crate::error::{Error, Result};

/// The lease id of a row that nobody owns and that may be claimed. Two bytes wide: see schema.sql.
pub(crate) const UNOWNED: i64 = -32_768;

/// How an attempt ended for the event as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Every consumer has processed or skipped it.
    Processed,
    /// Some consumer failed and may try again.
    Retry { available_at: i64, error: String },
    /// No consumer is left that may try again, and not all of them succeeded.
    DeadLetter { error: String },
    /// The same, where dead letters are off.
    Failed { error: String },
    /// Nobody subscribes to it: it waits for somebody who does. No attempt is spent.
    Held,
    /// What is left of it waits for something that is paused, and is due then. No attempt is spent.
    Parked { available_at: i64 },
    /// A handler came upon a fault that is not its own. No attempt is spent.
    Postponed { available_at: i64, error: String },
    /// It was never begun: it is as if it had not been claimed.
    GivenBack,
}

/// Settles a claimed row. False: the lease was lost, and nothing was changed.
pub(crate) fn settle(
    conn: &Connection,
    seq: i64,
    lease: LeaseId,
    settlement: &Settlement,
    now: i64,
) -> Result<bool> {
    let changed = match settlement {
        Settlement::Processed => conn
            .prepare_cached(
                "UPDATE main.outbox_event
                 SET status = 'processed', lease_id = 0, last_error = NULL, available_at = ?3, changed_at = NULL, processed_at = ?3
                 WHERE seq = ?1 AND lease_id = ?2 AND status = 'processing'",
            )?
            .execute(params![seq, lease.0, now])?,
        Settlement::Retry { available_at, error } => conn
            .prepare_cached(
                "UPDATE main.outbox_event
                 SET status = 'pending', lease_id = ?3, last_error = ?4, available_at = ?5, changed_at = ?6
                 WHERE seq = ?1 AND lease_id = ?2 AND status = 'processing'",
            )?
            .execute(params![seq, lease.0, UNOWNED, error, available_at, now])?,
        Settlement::DeadLetter { error } => finish_failed(conn, seq, lease, "dead_letter", error, now)?,
        Settlement::Failed { error } => finish_failed(conn, seq, lease, "failed", error, now)?,
        Settlement::Held => un_claim(conn, seq, lease, HELD_UNTIL, now)?,
        Settlement::Postponed { available_at, error } => conn
            .prepare_cached(
                "UPDATE main.outbox_event
                 SET status = 'pending', lease_id = ?3, attempt_count = max(attempt_count - 1, 0), last_error = ?4, available_at = ?5,
                     changed_at = ?6
                 WHERE seq = ?1 AND lease_id = ?2 AND status = 'processing'",
            )?
            .execute(params![seq, lease.0, UNOWNED, error, available_at, now])?,
        Settlement::Parked { available_at } => un_claim(conn, seq, lease, *available_at, now)?,
        Settlement::GivenBack => un_claim(conn, seq, lease, now, now)?,
    };
    if changed != 1 && holds_lease(conn, seq, lease)? {
        // Not lost: it would be run again and again.
        return Err(Error::NotStored { what: "what became of an event", table: "outbox_event" });
    }
    Ok(changed == 1)
}

/// Settles neighbours that one claim took and every consumer has processed: all from `first` to `last`. False: not all of
/// them are still its own, and the transaction has to be rolled back.
pub(crate) fn settle_run(conn: &Connection, run: Run, lease: LeaseId, now: i64) -> Result<bool> {
    let changed = conn
        .prepare_cached(
            "UPDATE OR FAIL main.outbox_event NOT INDEXED
             SET status = 'processed', lease_id = 0, last_error = NULL, available_at = ?4, changed_at = NULL, processed_at = ?4
             WHERE seq BETWEEN ?1 AND ?2 AND lease_id = ?3 AND status = 'processing'",
        )?
        .execute(params![run.first, run.last, lease.0, now])?;
    Ok(changed == run.len())
}

/// Adds to the count of processed rows, which nobody counts one by one. False: it could not be, and is set right when the box
/// is next opened.
pub(crate) fn count_processed(conn: &Connection, more: usize) -> Result<bool> {
    if more == 0 {
        return Ok(true);
    }
    let counted = conn
        .prepare_cached("UPDATE main.postbox_counter SET processed = iif(processed BETWEEN 0 AND 8796093022207, processed, 0) + ?1")?
        .execute([i64::try_from(more).unwrap_or(i64::MAX)])?;
    Ok(counted == 1)
}

/// One that was counted is not processed any more.
pub(crate) fn uncount_processed(conn: &Connection) -> Result<()> {
    conn.prepare_cached("UPDATE main.postbox_counter SET processed = max(processed - 1, 0)")?.execute([])?;
    Ok(())
}

fn finish_failed(
    conn: &Connection,
    seq: i64,
    lease: LeaseId,
    status: &str,
    error: &str,
    now: i64,
) -> Result<usize> {
    Ok(conn
        .prepare_cached(
            "UPDATE main.outbox_event
             SET status = ?3, lease_id = 0, last_error = ?4, available_at = ?5, changed_at = ?5
             WHERE seq = ?1 AND lease_id = ?2 AND status = 'processing'",
        )?
        .execute(params![seq, lease.0, status, error, now])?)
}

/// Finishes a row that is due and cannot be read, without a claim: a row is written whole each time, however long it is. It
/// costs an attempt as a claim would.
pub(crate) fn set_unreadable_aside(
    conn: &Connection,
    seq: i64,
    to: OutboxStatus,
    error: &str,
    now: i64,
) -> Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event
             SET status = ?2, attempt_count = max(min(attempt_count, 4294967295), 0) + 1, lease_id = 0, last_error = ?3,
                 available_at = ?4, changed_at = ?4
             WHERE seq = ?1",
        )?
        .execute(params![seq, to, error, now])?;
    if changed == 1 { Ok(()) } else { Err(Error::NotStored { what: "a dead letter", table: "outbox_event" }) }
}

/// Takes the claim back, and the attempt that it cost.
fn un_claim(conn: &Connection, seq: i64, lease: LeaseId, available_at: i64, now: i64) -> Result<usize> {
    Ok(conn
        .prepare_cached(
            "UPDATE main.outbox_event
             SET status = 'pending', lease_id = ?3, attempt_count = max(attempt_count - 1, 0), available_at = ?4, changed_at = ?5
             WHERE seq = ?1 AND lease_id = ?2 AND status = 'processing'",
        )?
        .execute(params![seq, lease.0, UNOWNED, available_at, now])?)
}

/// A claimed event that is replayed has still to reach these consumers (a JSON array) alone.
pub(crate) fn deliver_only_to(conn: &Connection, seq: i64, lease: LeaseId, deliver_to: &str) -> Result<()> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event SET deliver_to = ?3 WHERE seq = ?1 AND lease_id = ?2 AND status = 'processing'",
        )?
        .execute(params![seq, lease.0, deliver_to])?;
    if changed != 1 && holds_lease(conn, seq, lease)? {
        return Err(Error::NotStored { what: "whom an event is for", table: "outbox_event" });
    }
    Ok(())
}

/// Takes back the claim of everything under this lease: none of it was begun. How many.
pub(crate) fn give_back_lease(conn: &Connection, lease: LeaseId, now: i64) -> Result<usize> {
    Ok(conn
        .prepare_cached(
            "UPDATE main.outbox_event INDEXED BY outbox_event_claimed
             SET status = 'pending', lease_id = ?2, attempt_count = max(attempt_count - 1, 0), available_at = ?3, changed_at = ?3
             WHERE status = 'processing' AND lease_id = ?1",
        )?
        .execute(params![lease.0, UNOWNED, now])?)
}

/// Whether the row is still this lease's.
pub(crate) fn holds_lease(conn: &Connection, seq: i64, lease: LeaseId) -> Result<bool> {
    Ok(conn
        .prepare_cached(
            "SELECT 1 FROM main.outbox_event WHERE seq = ?1 AND lease_id = ?2 AND status = 'processing'",
        )?
        .query_row(params![seq, lease.0], |_| Ok(()))
        .optional()?
        .is_some())
}

/// Whether all of these rows are this lease's.
pub(crate) fn holds_run(conn: &Connection, run: Run, lease: LeaseId) -> Result<bool> {
    let held: usize = conn
        .prepare_cached(
            "SELECT count(*) FROM main.outbox_event NOT INDEXED
             WHERE seq BETWEEN ?1 AND ?2 AND lease_id = ?3 AND status = 'processing'",
        )?
        .query_row(params![run.first, run.last, lease.0], |row| row.get(0))?;
    Ok(held == run.len())
}

/// Makes a lease longer. False: it was lost.
pub(crate) fn renew(conn: &Connection, seq: i64, lease: LeaseId, until: i64) -> Result<bool> {
    let changed = conn
        .prepare_cached(
            "UPDATE main.outbox_event SET available_at = ?3
             WHERE seq = ?1 AND lease_id = ?2 AND status = 'processing'",
        )?
        .execute(params![seq, lease.0, until])?;
    Ok(changed == 1)
}

/// Held events that wait for the same: of a name, and for the consumers that `deliver_to` names, if any.
pub(crate) struct HeldGroup {
    event_name: String,
    deliver_to: Option<String>,
}

/// Lets events that were held go, where somebody who is to receive them subscribes now: at most `limit` at a time. How many.
pub(crate) fn release_held(
    conn: &Connection,
    now: i64,
    limit: usize,
    is_wanted: impl Fn(&str, Option<&str>) -> bool,
) -> Result<usize> {
    let mut released = 0;
    for HeldGroup { event_name, deliver_to } in held_groups(conn, limit, is_wanted)? {
        let left = i64::try_from(limit - released).unwrap_or(i64::MAX);
        released += conn
            .prepare_cached(
                "UPDATE main.outbox_event SET available_at = ?1, changed_at = ?1
                 WHERE seq IN (SELECT seq FROM main.outbox_event INDEXED BY outbox_event_due
                               WHERE status = 'pending' AND available_at = ?2 AND event_name = ?3 AND deliver_to IS ?4
                               LIMIT ?5)",
            )?
            .execute(params![now, HELD_UNTIL, event_name, deliver_to, left])?;
        if released >= limit {
            break;
        }
    }
    Ok(released)
}

/// Held events of this group (their `seq`), so many at the most.
pub(crate) fn held_of(conn: &Connection, group: &HeldGroup, limit: usize) -> Result<Vec<i64>> {
    Ok(conn
        .prepare_cached(
            "SELECT seq FROM main.outbox_event INDEXED BY outbox_event_due
             WHERE status = 'pending' AND available_at = ?1 AND event_name = ?2 AND deliver_to IS ?3 LIMIT ?4",
        )?
        .query_map(params![HELD_UNTIL, group.event_name, group.deliver_to, limit], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?)
}

/// Lets one of them go.
pub(crate) fn release_one(conn: &Connection, seq: i64, now: i64) -> Result<()> {
    conn.prepare_cached(
        "UPDATE main.outbox_event SET available_at = ?2, changed_at = ?2
         WHERE seq = ?1 AND status = 'pending' AND available_at = ?3",
    )?
    .execute([seq, now, HELD_UNTIL])?;
    Ok(())
}

/// The newest event (its `seq`) that is held.
pub(crate) fn newest_held(conn: &Connection) -> Result<Option<i64>> {
    Ok(conn
        .prepare_cached(
            "SELECT seq FROM main.outbox_event INDEXED BY outbox_event_due
             WHERE status = 'pending' AND available_at = ?1 ORDER BY seq DESC LIMIT 1",
        )?
        .query_row([HELD_UNTIL], |row| row.get(0))
        .optional()?)
}

/// What held events wait for and is there, so many at the most. Reads each of them, and keeps none that nobody wants: there may be
/// as many names as events.
pub(crate) fn held_groups(
    conn: &Connection,
    limit: usize,
    is_wanted: impl Fn(&str, Option<&str>) -> bool,
) -> Result<Vec<HeldGroup>> {
    let mut select = conn.prepare_cached(
        "SELECT DISTINCT event_name, deliver_to FROM main.outbox_event INDEXED BY outbox_event_due
         WHERE status = 'pending' AND available_at = ?1",
    )?;
    let mut rows = select.query([HELD_UNTIL])?;
    let mut groups = Vec::new();
    while groups.len() < limit
        && let Some(row) = rows.next()?
    {
        let group = HeldGroup { event_name: row.get(0)?, deliver_to: row.get(1)? };
        if is_wanted(&group.event_name, group.deliver_to.as_deref()) {
            groups.push(group);
        }
    }
    Ok(groups)
}

/// What a box has claimed: the rows, and its leases on them.
pub(crate) fn claims_of(conn: &Connection, owner: u32) -> Result<Vec<(i64, LeaseId)>> {
    let claims = conn
        .prepare_cached(
            "SELECT seq, lease_id FROM main.outbox_event INDEXED BY outbox_event_claimed
             WHERE status = 'processing' AND lease_id >> ?2 = ?1",
        )?
        .query_map(params![owner, LeaseId::OWNER_SHIFT], |row| Ok((row.get(0)?, LeaseId(row.get(1)?))))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(claims)
}

/// Takes the claim of a box that is gone: it is due at once. What was begun was an attempt and is taken over; the rest is
/// given back unburned. False: it is somebody else's by now.
pub(crate) fn take_from_the_dead(
    conn: &Connection,
    seq: i64,
    lease: LeaseId,
    is_begun: bool,
    now: i64,
) -> Result<bool> {
    if is_begun {
        renew(conn, seq, lease, now)
    } else {
        settle(conn, seq, lease, &Settlement::GivenBack, now)
    }
}

/// Nobody owns anything: for a copy of the file. The attempts that were under way stay counted.
pub(crate) fn void_leases(conn: &Connection) -> Result<()> {
    conn.execute(
        "UPDATE main.outbox_event SET status = 'pending', lease_id = ?1, available_at = created_at, changed_at = created_at
         WHERE status = 'processing'",
        [UNOWNED],
    )?;
    let is_left = conn
        .prepare("SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_claimed WHERE status = 'processing' LIMIT 1")?
        .exists([])?;
    if is_left {
        return Err(Error::NotStored { what: "the end of a claim", table: "outbox_event" });
    }
    Ok(())
}
