//! Aggregates in which nothing goes on, since an event of theirs has failed.

use rusqlite::Connection;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::inbox;
use crate::outbox::order::{self, Aggregate, State};
use crate::outbox::{self, EventSummary};

/// Of one page.
const LIMIT_MAX: usize = 1_000;

/// An aggregate whose events wait behind one that has failed: for an [`ordered`](crate::Subscription::ordered) consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlockedAggregate {
    /// The event that has failed: a dead letter, or one that is to be tried again. Its module, type and id are the aggregate's.
    pub event: EventSummary,
    /// Consumers that have failed for it and have not finished, by name.
    pub consumers: Vec<String>,
    /// How many events of the aggregate wait behind it.
    pub waiting: u64,
}

pub(crate) fn check_limit(limit: usize) -> Result<()> {
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(())
    } else {
        Err(Error::invalid("limit", format!("must be between 1 and {LIMIT_MAX}")))
    }
}

/// For one snapshot.
pub(crate) fn list(
    conn: &Connection,
    after: Option<&BlockedAggregate>,
    limit: usize,
    now: i64,
) -> Result<Vec<BlockedAggregate>> {
    let mut blocked = Vec::new();
    if !order::has_index(conn)? {
        return Ok(blocked);
    }
    let mut last = after.map(|after| Aggregate {
        source_module: after.event.source_module.clone(),
        aggregate_type: after.event.aggregate_type.clone(),
        aggregate_id: after.event.aggregate_id.clone(),
    });
    while blocked.len() < limit
        && let Some(aggregate) = order::next_aggregate(conn, last.as_ref())?
    {
        blocked.extend(look_at(conn, &aggregate, now)?);
        last = Some(aggregate);
    }
    Ok(blocked)
}

/// Blocked by the last one that has failed before the first that waits, unless one that may still go on is between them.
fn look_at(conn: &Connection, aggregate: &Aggregate, now: i64) -> Result<Option<BlockedAggregate>> {
    let mut failed = None;
    let waits = order::find_below(conn, aggregate, i64::MAX, None, now, |event| {
        match event.state {
            State::Waiting => return Ok(Some(event.seq)),
            State::Dead => failed = Some(event.seq),
            State::Live if event.has_failed => failed = Some(event.seq),
            // It was its turn, so that what has failed before it is passed over, or is another consumer's.
            State::Live | State::Limited => failed = None,
            State::Scheduled | State::Parked => {}
        }
        Ok(None)
    })?;
    let (Some(seq), Some(_)) = (failed, waits) else { return Ok(None) };
    let Some(event) = outbox::summary(conn, seq)? else { return Ok(None) };
    let consumers = inbox::failing(conn, seq)?;
    let waiting = order::count_waiting(conn, aggregate, seq)?;
    Ok(Some(BlockedAggregate { event, consumers, waiting }))
}
