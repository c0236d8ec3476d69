//! Events whose payload is of a version that only a newer release of the application knows: how none of them is forgotten.
//!
//! One of which nothing else is left is parked. It goes on when a box knows more: found by a walk through all that are parked, whole when a
//! box begins to process or its subscriptions change, some of it at each poll, since another process may have parked them. The walk only
//! reads what is still too new. What waits for a pause as well is found among what is paused; what waits for its turn or for room
//! by the walks of those (ordering.rs, limits.rs).

use rusqlite::Connection;

use crate::clock::{NEWER_UNTIL, PAUSED_UNTIL};
use crate::core::Core;
use crate::error::Result;
use crate::limits::has_to_wait;
use crate::outbox::parked::{self, Parked, Parking};
use crate::subscription::Subscription;
use crate::walk::{self, LOOKED_AT_MAX, Walk};

/// Lets go what somebody can read now.
pub(crate) fn look_after(core: &Core, operation: &'static str) -> Result<()> {
    walk(core, operation, &core.newer_walk, NEWER_UNTIL)?;
    walk(core, operation, &core.newer_paused_walk, PAUSED_UNTIL)
}

fn walk(core: &Core, operation: &'static str, walk: &Walk, until: i64) -> Result<()> {
    let find = |conn: &Connection, behind| find_readable(core, conn, until, behind);
    let parking = Parking::until(until, "that an event's version is known");
    let release = |conn: &Connection, seq, now| parking.release(conn, seq, now);
    walk.go_on(core, operation, false, "its version is known", find, release)
}

/// Which of the next that are parked until then wait for no newer release any more, and the last, if there may be more.
fn find_readable(core: &Core, conn: &Connection, until: i64, behind: i64) -> Result<(Vec<i64>, Option<i64>)> {
    let parked = parked::behind(conn, until, behind, LOOKED_AT_MAX)?;
    let last = parked.last().map(|last| last.seq).filter(|_| parked.len() == LOOKED_AT_MAX);
    let mut readable = Vec::new();
    for event in parked {
        let is_free = if until == PAUSED_UNTIL {
            is_known_now(core, conn, &event)?
        } else {
            !waits_for_a_newer_release_alone(core, conn, &event)?
        };
        if is_free {
            readable.push(event.seq);
        }
    }
    Ok((readable, last))
}

/// Whether somebody is left to receive it, and all who are left are too old for it. The others are planned anew.
fn waits_for_a_newer_release_alone(core: &Core, conn: &Connection, event: &Parked) -> Result<bool> {
    let consumers = core.registry.consumers_of(&event.event_name);
    let mut any = false;
    for subscription in consumers.iter() {
        let is_too_old = subscription.is_too_old_for(event.version);
        if (is_too_old && any) || !is_open(core, conn, event, subscription)? {
            continue;
        }
        if !is_too_old {
            return Ok(false);
        }
        any = true;
    }
    Ok(any)
}

/// Whether a consumer could receive it now, although it is parked for one that is paused: it was too new for it before. Perhaps it has no
/// type any more.
fn is_known_now(core: &Core, conn: &Connection, event: &Parked) -> Result<bool> {
    // Nobody is too old for the first version.
    if event.version <= 1 || core.pauses.is_event_name_paused(core, &event.event_name) {
        return Ok(false);
    }
    for subscription in core.registry.consumers_of(&event.event_name).iter() {
        if !subscription.is_too_old_for(event.version)
            && !core.pauses.is_consumer_paused(core, &subscription.consumer_name)
            && is_open(core, conn, event, subscription)?
            && !has_to_wait(core, conn, event.seq, subscription)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the consumer is asked, and has neither finished with it nor given it up.
fn is_open(core: &Core, conn: &Connection, event: &Parked, subscription: &Subscription) -> Result<bool> {
    let only = event.deliver_to.as_deref().map(serde_json::from_str::<Vec<String>>);
    if matches!(&only, Some(Ok(only)) if !only.contains(&subscription.consumer_name)) {
        return Ok(false);
    }
    walk::is_open(core, conn, event.seq, subscription)
}
