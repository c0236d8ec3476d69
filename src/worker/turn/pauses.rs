//! What a turn does about the pauses.

use std::collections::HashMap;

use rusqlite::Connection;

use super::Outcome;
use super::pieces::{Obstacle, Pieces};
use crate::clock::PAUSED_UNTIL;
use crate::core::Core;
use crate::outbox::parked;
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
    let parked = parked::behind(conn, pass.seq, LOOKED_AT_MAX)?;
    let mut known: HashMap<&str, bool> = HashMap::new();
    for (seq, name) in &parked {
        if *known.entry(name).or_insert_with(|| still_waits(core, name, &in_force, now)) {
            continue;
        }
        if let Err(error) = pieces.with(conn, || parked::release(conn, *seq, now))? {
            if !pass.is_refused {
                stuck(error);
            }
            pass.is_refused = true;
        }
    }
    outcome.pauses.pass = Some(match parked.last() {
        Some((seq, _)) if parked.len() == LOOKED_AT_MAX => {
            pass.seq = *seq;
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

/// Whether an event of this name waits for what is still paused in the file, whatever its consumers have done so far. The others
/// are planned anew, and may have to wait again.
fn still_waits(core: &Core, name: &str, pauses: &Pauses, now: i64) -> bool {
    let waits = |due: Option<i64>| due == Some(PAUSED_UNTIL);
    let consumers = core.registry.consumers_of(name);
    waits(pauses.of_event_name(name, now))
        || (!consumers.is_empty()
            && consumers.iter().all(|of| waits(pauses.of_consumer(&of.consumer_name, now))))
}
