//! Whose turn it is: an event does not reach an ordered consumer before those of its aggregate that were published before it.
//!
//! How no event waits for ever: an event is made to wait only in a transaction that has seen the one before it. Whatever is then
//! written about an event of the aggregate, in whichever process, ends by looking whether the first of those that are left waits,
//! and lets it go. What escapes that, such as rows that another program deletes, is found by a walk through all that wait: whole when a
//! box begins to process or its subscriptions change, some of it at each poll.

use std::cell::OnceCell;
use std::collections::HashMap;

use rusqlite::Connection;

use crate::consumers;
use crate::core::Core;
use crate::error::Result;
use crate::inbox;
use crate::outbox::claim::LeaseId;
use crate::outbox::order::{self, Aggregate, State, Unfinished};
use crate::outbox::parked::FOR_ITS_TURN;
use crate::registry::Registry;
use crate::subscription::{Order, Subscription};
use crate::walk::{self, LOOKED_AT_MAX};

/// So many of an aggregate are let go where nobody knows for whom they wait.
const RELEASED_MAX: usize = 100;

/// Events that others are working on, read once for many looks.
pub(crate) struct InHands {
    /// Not what this lease has claimed.
    but: LeaseId,
    by_aggregate: OnceCell<HashMap<Aggregate, Vec<Unfinished>>>,
}

impl InHands {
    pub(crate) fn but(lease: LeaseId) -> Self {
        InHands { but: lease, by_aggregate: OnceCell::new() }
    }

    fn of(&self, conn: &Connection, aggregate: &Aggregate) -> Result<&[Unfinished]> {
        if let Some(read) = self.by_aggregate.get() {
            return Ok(read.get(aggregate).map_or(&[], Vec::as_slice));
        }
        let mut read: HashMap<Aggregate, Vec<Unfinished>> = HashMap::new();
        for (of, event) in order::worked_on(conn, self.but)? {
            read.entry(of).or_default().push(event);
        }
        let read = self.by_aggregate.get_or_init(|| read);
        Ok(read.get(aggregate).map_or(&[], Vec::as_slice))
    }
}

/// Whether the consumer is to receive another event of the aggregate before this one, or is just receiving one.
pub(crate) fn is_behind(
    registry: &Registry,
    conn: &Connection,
    of: &Aggregate,
    seq: i64,
    subscription: &Subscription,
    in_hands: &InHands,
    now: i64,
) -> Result<bool> {
    if first_of(registry, conn, of, seq, subscription, now)?.is_some() {
        return Ok(true);
    }
    // One that was published with a delay, or tried again by a person: later ones went before it.
    for event in in_hands.of(conn, of)?.iter().filter(|event| event.seq > seq) {
        if is_to_come(registry, conn, event, subscription)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first event of the aggregate, below this `seq`, that the consumer is still to receive, and whether it waits.
fn first_of(
    registry: &Registry,
    conn: &Connection,
    of: &Aggregate,
    below: i64,
    subscription: &Subscription,
    now: i64,
) -> Result<Option<(i64, State)>> {
    let number = consumers::known_number_of(conn, &subscription.consumer_name)?;
    order::find_below(conn, of, below, number, now, |event| {
        let is_to_come = event.state != State::Scheduled && is_to_come(registry, conn, event, subscription)?;
        Ok(is_to_come.then_some((event.seq, event.state)))
    })
}

/// Whether the consumer is to receive it before others of its aggregate.
fn is_to_come(
    registry: &Registry,
    conn: &Connection,
    event: &Unfinished,
    subscription: &Subscription,
) -> Result<bool> {
    let consumer = subscription.consumer_name.as_str();
    let consumers = registry.consumers_of(&event.event_name);
    if !consumers.iter().any(|of| of.consumer_name == consumer && of.order.is_some()) {
        return Ok(false);
    }
    let only = event.deliver_to.as_deref().map(serde_json::from_str::<Vec<String>>);
    if let Some(Ok(only)) = &only
        && !only.iter().any(|name| name == consumer)
    {
        return Ok(false);
    }
    let is_dead = event.state == State::Dead;
    let standing = inbox::standing_of(conn, event.seq, consumer)?;
    let is_done = standing.is_some_and(|(status, ..)| status.is_done());
    let gave_up = is_dead || standing.is_some_and(|(_, gave_up, _)| gave_up);
    let is_passed = gave_up && subscription.order == Some(Order::PassDeadLetters);
    Ok(!is_done && !is_passed)
}

/// In the transaction that has written about this event: whoever was behind it may be next.
pub(crate) fn release_next(core: &Core, conn: &Connection, seq: i64, now: i64) -> Result<()> {
    if !core.registry.has_ordered() {
        return Ok(());
    }
    let Some((event_name, of)) = order::of_event(conn, seq)? else { return Ok(()) };
    for subscription in core.registry.consumers_of(&event_name).iter().filter(|of| of.order.is_some()) {
        if let Some((first, State::Waiting | State::Parked | State::Limited)) =
            first_of(&core.registry, conn, &of, i64::MAX, subscription, now)?
        {
            release(conn, first, now)?;
        }
    }
    Ok(())
}

/// In the transaction that has made this event wait for its turn with these consumers: the first in line must not wait for nobody,
/// as where its owner has died. True: it did, and is due now.
pub(crate) fn release_first<'a>(
    core: &Core,
    conn: &Connection,
    of: &Aggregate,
    seq: i64,
    consumers: impl Iterator<Item = &'a Subscription>,
    now: i64,
) -> Result<bool> {
    let mut any = false;
    for subscription in consumers {
        if let Some((first, State::Waiting)) =
            first_of(&core.registry, conn, of, i64::MAX, subscription, now)?
            && first != seq
        {
            release(conn, first, now)?;
            any = true;
        }
    }
    Ok(any)
}

/// What forbids that is in the way of this one, and of nothing else: the walk tries again.
fn release(conn: &Connection, seq: i64, now: i64) -> Result<()> {
    match FOR_ITS_TURN.release(conn, seq, now) {
        Err(error) if !error.is_fault_of_file() && !conn.is_autocommit() => {
            log::warn!(target: "postbox::delivery", "the event of row {seq} waits for the next poll, although it is its turn: {error}");
            Ok(())
        }
        released => released.map(drop),
    }
}

/// In the transaction that has decided about this event, perhaps in a process that knows no consumers: those behind it look again
/// whether it is their turn.
pub(crate) fn let_look_again(conn: &Connection, seq: i64, now: i64) -> Result<()> {
    match order::of_event(conn, seq)? {
        Some((_, of)) if order::has_index(conn)? => order::release_some(conn, &of, RELEASED_MAX, now),
        _ => Ok(()),
    }
}

/// Lets go what waits for nobody.
pub(crate) fn look_after(core: &Core, operation: &'static str) -> Result<()> {
    let find = |conn: &Connection, behind| find_free(core, conn, behind);
    let release = |conn: &Connection, seq, now| FOR_ITS_TURN.release(conn, seq, now);
    core.order_walk.go_on(core, operation, false, "it is its turn", find, release)
}

/// Which of the next that wait do so for nobody, and the last that was looked at, if there may be more.
fn find_free(core: &Core, conn: &Connection, behind: i64) -> Result<(Vec<i64>, Option<i64>)> {
    let waiting = order::waiting_behind(conn, behind, LOOKED_AT_MAX)?;
    let last = waiting.last().copied().filter(|_| waiting.len() == LOOKED_AT_MAX);
    let in_hands = InHands::but(LeaseId(0));
    let mut free = Vec::new();
    for seq in waiting {
        if is_free(core, conn, seq, &in_hands)? {
            free.push(seq);
        }
    }
    Ok((free, last))
}

/// Whether any of its consumers could receive it now, or none is left. One that is paused, or too old for it, could not.
fn is_free(core: &Core, conn: &Connection, seq: i64, in_hands: &InHands) -> Result<bool> {
    let now = core.clock.now();
    let Some((event_name, of)) = order::of_event(conn, seq)? else { return Ok(true) };
    let only = order::deliver_to(conn, seq)?;
    let has_index = order::has_index(conn)?;
    let version = order::version(conn, seq)?;
    let mut has_waiting = false;
    for subscription in core.registry.consumers_of(&event_name).iter() {
        let consumer = &subscription.consumer_name;
        if only.as_ref().is_some_and(|only| !only.contains(consumer))
            || !walk::is_open(core, conn, seq, subscription)?
        {
            continue;
        }
        let waits = subscription.is_too_old_for(version)
            || core.pauses.is_consumer_paused(core, consumer)
            || has_index
                && subscription.order.is_some()
                && is_behind(&core.registry, conn, &of, seq, subscription, in_hands, now)?;
        if !waits {
            return Ok(true);
        }
        has_waiting = true;
    }
    Ok(!has_waiting)
}
