//! What a turn does for events that wait for room with a consumer that has limits.

use rusqlite::Connection;

use super::pieces::{Obstacle, Pieces};
use crate::core::Core;
use crate::outbox::parked::FOR_ROOM;

/// Calls those for which there is room, as many as the turn may claim: they are due. True: there were some. One that is never claimed after all, since the transaction comes to nothing, is
/// found again at a poll.
pub(super) fn call(
    core: &Core,
    conn: &Connection,
    pieces: Pieces<'_>,
    now: i64,
    max: usize,
) -> std::result::Result<bool, Obstacle> {
    let mut calls = 0;
    for subscription in core.registry.limited() {
        let Some(limiter) = &subscription.limiter else { continue };
        while calls < max
            && let Some(seq) = limiter.next_to_call(subscription.is_transactional(), now)
        {
            calls += 1;
            let is_due = pieces.with(conn, || FOR_ROOM.release(conn, seq, now))?.unwrap_or_else(|error| {
                log::warn!(target: "postbox::delivery", "the event of row {seq} waits for the next poll, although there is room for it: {error}");
                false
            });
            limiter.note_called(seq, is_due);
        }
    }
    Ok(calls > 0)
}
