//! Events that wait for room with a consumer that has limits: who calls them, and how none is forgotten.
//!
//! What a box has parked so it remembers in its order (limiter.rs), and calls when there is room. What another process parked, or this one
//! before it was started anew, is found by a walk through all that are parked: whole when a box begins to process or its subscriptions
//! change, some of it at each poll.

use rusqlite::Connection;

use crate::clock::LIMITED_UNTIL;
use crate::core::Core;
use crate::error::Result;
use crate::limiter::Limiter;
use crate::ordering::{self, InHands};
use crate::outbox::claim::LeaseId;
use crate::outbox::order;
use crate::outbox::parked::{self, FOR_ROOM, Parked};
use crate::subscription::Subscription;
use crate::walk::{self, LOOKED_AT_MAX};

/// Whether there is room for an event that waits.
pub(crate) fn is_call_due(core: &Core, now: i64) -> bool {
    core.registry.has_limits()
        && core.registry.limited().iter().any(|of| {
            of.limiter
                .as_ref()
                .is_some_and(|limiter| limiter.next_to_call(of.is_transactional(), now).is_some())
        })
}

/// When there will be room for an event that waits, if time alone makes it.
pub(crate) fn next_room(core: &Core, now: i64) -> Option<i64> {
    if !core.registry.has_limits() {
        return None;
    }
    let limited = core.registry.limited();
    limited.iter().filter_map(|of| of.limiter.as_ref()?.next_room(now)).min()
}

/// Finds what waits for room; all of it also where not all could be remembered. What waits for nobody who has limits is due.
pub(crate) fn look_after(core: &Core, operation: &'static str) -> Result<()> {
    let is_to_be_filled = core.registry.has_limits()
        && core.registry.limited().iter().any(|of| of.limiter.as_ref().is_some_and(Limiter::is_to_be_filled));
    let find = |conn: &Connection, behind| remember(core, conn, behind);
    let release = |conn: &Connection, seq, now| FOR_ROOM.release(conn, seq, now);
    core.limit_walk.go_on(core, operation, is_to_be_filled, "there is room for it", find, release)
}

/// Notes the next that wait with those whom they wait for. Which of them wait for nobody, and the last, if there may be more.
fn remember(core: &Core, conn: &Connection, behind: i64) -> Result<(Vec<i64>, Option<i64>)> {
    let waiting = parked::behind(conn, LIMITED_UNTIL, behind, LOOKED_AT_MAX)?;
    let last = waiting.last().map(|last| last.seq).filter(|_| waiting.len() == LOOKED_AT_MAX);
    let mut free = Vec::new();
    for Parked { seq, event_name, deliver_to, version } in waiting {
        let only = deliver_to.as_deref().map(serde_json::from_str::<Vec<String>>);
        let (mut waits, mut is_ready) = (false, false);
        for subscription in core.registry.consumers_of(&event_name).iter() {
            let consumer = &subscription.consumer_name;
            // The others have had their turn, but for those that did not know its version before.
            if (subscription.limiter.is_none() && version <= 1) || subscription.is_too_old_for(version) {
                continue;
            }
            let is_asked = !matches!(&only, Some(Ok(only)) if !only.contains(consumer));
            // It has no use for room before its turn, or while it is paused: it is planned anew then.
            if is_asked
                && walk::is_open(core, conn, seq, subscription)?
                && !has_to_wait(core, conn, seq, subscription)?
            {
                if let Some(limiter) = &subscription.limiter {
                    limiter.note_waiting(seq);
                    waits = true;
                } else {
                    is_ready = true;
                }
            }
        }
        if is_ready || !waits {
            free.push(seq);
        }
    }
    Ok((free, last))
}

/// For the end of a pause, or its turn.
pub(crate) fn has_to_wait(
    core: &Core,
    conn: &Connection,
    seq: i64,
    subscription: &Subscription,
) -> Result<bool> {
    if core.pauses.is_consumer_paused(core, &subscription.consumer_name) {
        return Ok(true);
    }
    let Some((_, of)) = order::of_event(conn, seq)?.filter(|_| subscription.order.is_some()) else {
        return Ok(false);
    };
    let in_hands = InHands::but(LeaseId(0));
    ordering::is_behind(&core.registry, conn, &of, seq, subscription, &in_hands, core.clock.now())
}
