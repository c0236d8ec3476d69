//! How far behind each consumer is.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::core::Core;
use crate::error::Result;
use crate::inbox;
use crate::outbox::live::{self, Live};

/// How far behind one consumer is: [`Postbox::lag`](crate::Postbox::lag).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConsumerLag {
    /// The consumer.
    pub consumer_name: String,
    /// How many events, pending or claimed, it has still to finish with: due or not, and those that wait for a pause. Events that it
    /// gave up are none of them.
    pub waiting: u64,
    /// How long ago the oldest of them was published, in milliseconds; `None` when nothing waits.
    pub oldest_age_ms: Option<u64>,
}

pub(crate) fn lag(core: &Core) -> Result<Vec<ConsumerLag>> {
    let mut of: BTreeMap<String, (u64, Option<i64>)> =
        core.registry.consumer_names().into_iter().map(|name| (name, (0, None))).collect();
    core.db.read("lag", |conn| {
        // One snapshot, unless the thread is inside a transaction, which is one.
        let snapshot = if conn.is_autocommit() { Some(conn.unchecked_transaction()?) } else { None };
        let read = live::each(conn, |row| {
            let Live { seq, event_name, created_at, deliver_to, in_inbox } = row;
            let only: Option<Vec<String>> = match deliver_to.map(serde_json::from_str) {
                None => None,
                Some(Ok(names)) => Some(names),
                Some(Err(_)) => return Ok(()), // nobody's: it is a dead letter as soon as it is claimed
            };
            let standings =
                if in_inbox { inbox::standings(conn, seq).unwrap_or_default() } else { Vec::new() };
            for subscription in core.registry.consumers_of(event_name).iter() {
                let name = &subscription.consumer_name;
                let is_over = standings.iter().any(|standing| {
                    standing.consumer_name == *name && (standing.status.is_done() || standing.gave_up)
                });
                if is_over || only.as_ref().is_some_and(|only| !only.contains(name)) {
                    continue;
                }
                if let Some((waiting, oldest)) = of.get_mut(name) {
                    *waiting += 1;
                    *oldest = Some(oldest.map_or(created_at, |oldest| oldest.min(created_at)));
                }
            }
            Ok(())
        });
        drop(snapshot);
        read
    })?;
    let now = core.clock.now();
    let age_ms = |at: i64| u64::try_from(now.saturating_sub(at) / 1_000).unwrap_or(0);
    Ok(of
        .into_iter()
        .map(|(consumer_name, (waiting, oldest))| ConsumerLag {
            consumer_name,
            waiting,
            oldest_age_ms: oldest.map(age_ms),
        })
        .collect())
}
