//! The box in numbers.

use serde::Serialize;

use crate::core::Core;
use crate::error::Result;
use crate::failures::LastFailure;
use crate::health::Health;
use crate::outbox::{self, parked};

/// The box in numbers, of one moment. Reading them takes a fraction of a millisecond, however many rows there are.
///
/// They are exact while fewer than 5,000 events are pending, also where another program has changed the status of rows or
/// deleted some (rows that it inserts by itself may be miscounted: events are published through postbox). Of more, what the box does is followed
/// by a counter; rows whose `status` another program changed are not, until the box is opened with fewer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Events that wait to be due or claimed, held ones included.
    pub pending: u64,
    /// Events that are claimed.
    pub processing: u64,
    /// Events that every consumer has processed or skipped.
    pub processed: u64,
    /// Events whose attempts are used up, where dead letters are off.
    pub failed: u64,
    /// Events whose attempts are used up, or of which a handler said so.
    pub dead_letter: u64,
    /// All events in the file. For a moment it may be more than those above together: of rows to which another program has
    /// given a status that nobody knows, until the box sets them aside.
    pub total: u64,
    /// Of those that are pending, events that wait for a release that knows their payload's version
    /// ([`DomainEvent`](crate::DomainEvent#versions)), as far as a worker has come upon them. Counted up to 5,000;
    /// [`Backlog::newer`](crate::Backlog::newer) counts all.
    pub held_back: u64,
    /// Subscriptions of this box.
    pub handler_count: usize,
    /// Whether this box has a running worker.
    pub worker_running: bool,
    /// How long ago the oldest pending event was published, in milliseconds; `None` when none is pending. With more than 250
    /// pending it is the oldest of the 250 that are due first.
    pub oldest_pending_age_ms: Option<u64>,
    /// How many outcomes of this box were refused since it was opened, because the event's lease was lost by then: a handler
    /// hung or the process was stopped for longer than its lease, and somebody else took the event over, or its
    /// [time limit](crate::Subscription::time_limit) had ended the attempt. More than a few say that `processing_lease_ms` is too
    /// short. Counted in memory, each claim once; its handler may have run.
    pub lost_leases: u64,
    /// How many attempts of this box's handlers have failed since it was opened: retries are what they lead to, or dead letters.
    /// Counted in memory, when [`Observer::failed`](crate::Observer::failed) is told.
    pub retries: u64,
    /// The last of them.
    pub last_failure: Option<LastFailure>,
    /// The size of the file in bytes, without its -wal; `None` in memory, or where it cannot be looked at.
    pub file_bytes: Option<u64>,
    /// The size of the file's -wal in bytes: 0 where there is none, `None` in memory. It is used again from its beginning, and keeps
    /// its size meanwhile; one that grows and grows has a reader that never ends.
    pub wal_bytes: Option<u64>,
    /// How this box's worker fares.
    pub health: Health,
}

/// So many are counted one by one: a fraction of a millisecond.
const HELD_BACK_MAX: u64 = 5_000;

pub(crate) fn stats(core: &Core) -> Result<Stats> {
    let (counts, oldest, held_back) = core.db.read("stats", |conn| {
        // One snapshot for both, unless the thread is inside a transaction, which is one.
        let snapshot = if conn.is_autocommit() { Some(conn.unchecked_transaction()?) } else { None };
        let held_back = parked::count_newer(conn, HELD_BACK_MAX)?;
        let read = (outbox::count(conn)?, outbox::oldest_pending(conn)?, held_back);
        drop(snapshot);
        Ok(read)
    })?;
    let now = core.clock.now();
    let age_ms = |at: i64| u64::try_from(now.saturating_sub(at) / 1_000).unwrap_or(0);
    let (retries, last_failure) = core.failures.get();
    let (file_bytes, wal_bytes) = core.db.sizes();
    Ok(Stats {
        pending: counts.pending,
        processing: counts.processing,
        processed: counts.processed,
        failed: counts.failed,
        dead_letter: counts.dead_letter,
        total: counts.total,
        held_back,
        handler_count: core.registry.handler_count(),
        worker_running: core.worker.is_running(),
        oldest_pending_age_ms: oldest.map(age_ms),
        lost_leases: core.lost_leases(),
        retries,
        last_failure,
        file_bytes,
        wal_bytes,
        health: core.health.get(),
    })
}
