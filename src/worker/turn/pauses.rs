//! What a turn does about the pauses.

use std::collections::HashMap;

use rusqlite::Connection;

use super::Outcome;
use super::pieces::{Obstacle, Pieces};
use crate::clock::PAUSED_UNTIL;
use crate::core::Core;
use crate::inbox;
use crate::outbox::parked::{self, FOR_A_PAUSE, Parked};
use crate::pause_book::PassStep;
use crate::pauses::{self, Pauses};

/// How many events that wait a turn looks at, and lets go at the most.
const LOOKED_AT_MAX: usize = 500;

type Result<T> = std::result::Result<T, Obstacle>;

/// Writes the pauses that plain handlers have asked for: before their outcomes are settled, which are parked on them.
pub(super) fn write(
    core: &Core,
    conn: &Connection,
    pieces: Pieces<'_>,
    now: i64,
    outcome: &mut Outcome,
) -> Result<()> {
    for asked in core.pauses.asked() {
        let prolong = || pauses::prolong(conn, &asked.consumer, &asked.reason, asked.until, now);
        match pieces.with(conn, prolong)? {
            Ok(()) => outcome.pauses.written.push(asked),
            Err(error) => {
                log::warn!(target: "postbox::delivery", "the pause of consumer {} is this box's alone: {error}", asked.consumer);
                outcome.pauses.refused.push(asked);
            }
        }
    }
    Ok(())
}

/// Lets go some of what waited for a pause that is over, in order of `seq`; when all have been looked at, the pause is
/// forgotten.
pub(super) fn release_parked(
    core: &Core,
    conn: &Connection,
    pieces: Pieces<'_>,
    now: i64,
    outcome: &mut Outcome,
) -> Result<()> {
    let stuck = |error| log::warn!(target: "postbox::delivery", "what waited for a pause cannot be let go before the next poll: {error}");
    let mut pass = if let Some(pass) = core.pauses.pass() {
        pass
    } else {
        let mut pass = core.pauses.new_pass();
        match pieces.with(conn, || pauses::end_passed(conn, now))? {
            Ok(()) => pass.ends = pauses::ends(conn)?,
            Err(error) => {
                stuck(error);
                outcome.pauses.pass = Some(PassStep::Stuck);
                return Ok(());
            }
        }
        pass
    };
    let in_force = core.pauses.within(conn)?;
    let parked = parked::behind(conn, PAUSED_UNTIL, pass.seq, LOOKED_AT_MAX)?;
    let mut known: HashMap<&str, Waits> = HashMap::new();
    for Parked { seq, event_name, deliver_to, .. } in &parked {
        let waits = *known.entry(event_name).or_insert_with(|| waits(core, event_name, &in_force, now));
        let still_waits = match waits {
            Waits::All => true,
            Waits::None => false,
            Waits::Some => still_waits(core, conn, *seq, event_name, deliver_to.as_deref(), &in_force, now)?,
        };
        if still_waits {
            continue;
        }
        if let Err(error) = pieces.with(conn, || FOR_A_PAUSE.release(conn, *seq, now))? {
            if !pass.is_refused {
                stuck(error);
            }
            pass.is_refused = true;
        }
    }
    outcome.pauses.pass = Some(match parked.last() {
        Some(last) if parked.len() == LOOKED_AT_MAX => {
            pass.seq = last.seq;
            outcome.more_parked = true;
            PassStep::GoesOn(pass)
        }
        _ => {
            if !pass.is_refused
                && let Err(error) = pieces.with(conn, || pauses::forget(conn, &pass.ends))?
            {
                stuck(error);
                pass.is_refused = true;
            }
            PassStep::Over(pass)
        }
    });
    Ok(())
}

/// Which events of a name wait for what is still paused in the file, as far as the name tells.
#[derive(Clone, Copy)]
enum Waits {
    /// Whatever their consumers have done so far.
    All,
    /// Those of which nobody is left that is not paused.
    Some,
    None,
}

fn waits(core: &Core, name: &str, pauses: &Pauses, now: i64) -> Waits {
    let consumers = core.registry.consumers_of(name);
    let of_them = consumers.iter().filter(|of| is_paused(pauses, &of.consumer_name, now)).count();
    if pauses.of_event_name(name, now) == Some(PAUSED_UNTIL) {
        return Waits::All;
    }
    match of_them {
        0 => Waits::None,
        all if all == consumers.len() => Waits::All,
        _ => Waits::Some,
    }
}

/// Whether somebody is left to receive this event, and all who are left are paused. The others are planned anew, and may have to
/// wait again.
fn still_waits(
    core: &Core,
    conn: &Connection,
    seq: i64,
    name: &str,
    deliver_to: Option<&str>,
    pauses: &Pauses,
    now: i64,
) -> crate::error::Result<bool> {
    let only = deliver_to.map(serde_json::from_str::<Vec<String>>);
    let mut any = false;
    for of in core.registry.consumers_of(name).iter() {
        let consumer = &of.consumer_name;
        if matches!(&only, Some(Ok(only)) if !only.contains(consumer)) {
            continue;
        }
        let standing = inbox::standing_of(conn, seq, consumer)?;
        if standing.is_some_and(|(status, gave_up, _)| status.is_done() || gave_up) {
            continue;
        }
        if !is_paused(pauses, consumer, now) {
            return Ok(false);
        }
        any = true;
    }
    Ok(any)
}

fn is_paused(pauses: &Pauses, consumer: &str, now: i64) -> bool {
    pauses.of_consumer(consumer, now) == Some(PAUSED_UNTIL)
}
