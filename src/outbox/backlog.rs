//! What the events that are not finished wait for, and how many of them are replayed to whom.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::Serialize;

use crate::clock::{HELD_UNTIL, LIMITED_UNTIL, NEWER_UNTIL, PAUSED_UNTIL, WAITING_UNTIL};
use crate::error::Result;

/// What the pending events wait for: [`Outbox::backlog`](crate::Outbox::backlog). Together they are all that is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Backlog {
    /// For a worker with room: they are due.
    pub due: u64,
    /// For their delay, or for the backoff of an attempt that failed.
    pub later: u64,
    /// For the end of a pause, as far as a worker has come upon them; until then they are due.
    pub paused: u64,
    /// For their turn: an earlier event of their aggregate is not finished, and a consumer wants them in order
    /// ([`Subscription::ordered`](crate::Subscription::ordered)), as far as a worker has come upon them.
    pub behind: u64,
    /// For room with a consumer that has limits ([`max_concurrency`](crate::Subscription::max_concurrency),
    /// [`rate_limit`](crate::Subscription::rate_limit)), as far as a worker has come upon them.
    pub limited: u64,
    /// For a release of the application that knows their payload's version: that of the typed subscriptions that are left is older
    /// ([`DomainEvent`](crate::DomainEvent#versions)), as far as a worker has come upon them.
    pub newer: u64,
    /// For somebody who subscribes to them: what is replayed to a consumer that is not subscribed yet, and with
    /// [`UnhandledEvents::Hold`](crate::UnhandledEvents::Hold) what nobody subscribes to.
    pub held: u64,
    /// For how long the first of them has been due, in milliseconds; `None` when none is. Where a worker runs and has room it is
    /// next to nothing.
    pub due_for_ms: Option<u64>,
}

/// How many events are still being replayed to one consumer: [`Outbox::replays`](crate::Outbox::replays).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReplayBacklog {
    /// The consumer.
    pub consumer_name: String,
    /// Events that it has still to receive, pending or claimed: those of the next two included.
    pub waiting: u64,
    /// Of them, those that wait for the end of a pause.
    pub paused: u64,
    /// Of them, those that wait for the consumer to subscribe to them.
    pub held: u64,
    /// Events that it has failed at for good, and that wait for a decision.
    pub dead_letters: u64,
}

/// Reads an index, and no row.
pub(crate) fn backlog(conn: &Connection, now: i64) -> Result<Backlog> {
    let mut statement = conn.prepare_cached(
        "SELECT count(*), coalesce(sum(available_at <= ?1), 0), coalesce(sum(available_at = ?2), 0),
                coalesce(sum(available_at = ?3), 0), coalesce(sum(available_at >= ?4), 0), min(available_at),
                coalesce(sum(available_at = ?5), 0), coalesce(sum(available_at = ?6), 0)
         FROM main.outbox_event INDEXED BY outbox_event_due WHERE status = 'pending'",
    )?;
    Ok(statement.query_row(
        [now, PAUSED_UNTIL, WAITING_UNTIL, HELD_UNTIL, LIMITED_UNTIL, NEWER_UNTIL],
        |row| {
            let [all, due, paused, behind, held] =
                [row.get::<_, u64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get::<_, u64>(4)?];
            let first: Option<i64> = row.get(5)?;
            let [limited, newer] = [row.get::<_, u64>(6)?, row.get(7)?];
            let for_ms = |at: i64| u64::try_from(now.saturating_sub(at) / 1_000).unwrap_or(0);
            Ok(Backlog {
                due,
                later: all.saturating_sub(due + paused + behind + limited + newer + held),
                paused,
                behind,
                limited,
                newer,
                held,
                due_for_ms: first.filter(|at| *at <= now).map(for_ms),
            })
        },
    )?)
}

/// By the consumer's name. A row of which it cannot be read whom it is for is passed over: it is set aside when it is claimed.
pub(crate) fn replays(conn: &Connection) -> Result<Vec<ReplayBacklog>> {
    let mut statement = conn.prepare_cached(
        "SELECT deliver_to, count(*) - sum(is_dead), coalesce(sum(available_at = ?1), 0), coalesce(sum(available_at >= ?2), 0),
                sum(is_dead)
         FROM (SELECT deliver_to, available_at, 0 AS is_dead FROM main.outbox_event INDEXED BY outbox_event_due
               WHERE status = 'pending' AND deliver_to IS NOT NULL
               UNION ALL
               SELECT deliver_to, NULL, 0 FROM main.outbox_event INDEXED BY outbox_event_claimed
               WHERE status = 'processing' AND deliver_to IS NOT NULL
               UNION ALL
               SELECT deliver_to, NULL, 1 FROM main.outbox_event INDEXED BY outbox_event_dead
               WHERE status <> 'pending' AND status <> 'processing' AND status <> 'processed' AND deliver_to IS NOT NULL)
         GROUP BY deliver_to",
    )?;
    let mut rows = statement.query(params![PAUSED_UNTIL, HELD_UNTIL])?;
    let mut of: BTreeMap<String, ReplayBacklog> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let Ok(deliver_to) = row.get_ref(0)?.as_str() else { continue };
        let Ok(names) = serde_json::from_str::<Vec<String>>(deliver_to) else { continue };
        let [waiting, paused, held, dead_letters] =
            [row.get::<_, u64>(1)?, row.get(2)?, row.get(3)?, row.get(4)?];
        for name in names {
            let replay = of.entry(name).or_insert_with_key(|name| ReplayBacklog {
                consumer_name: name.clone(),
                waiting: 0,
                paused: 0,
                held: 0,
                dead_letters: 0,
            });
            replay.waiting += waiting;
            replay.paused += paused;
            replay.held += held;
            replay.dead_letters += dead_letters;
        }
    }
    Ok(of.into_values().collect())
}
