//! A walk through all events that wait for something, for what nobody else lets go: whole when a box begins to process or its
//! subscriptions change, some of it at each poll.

use std::sync::PoisonError;
use std::time::Duration;

use rusqlite::Connection;

use crate::clock;
use crate::core::Core;
use crate::db::{Synchronous, WriteEach};
use crate::error::Result;
use crate::inbox;
use crate::subscription::Subscription;
use crate::sync::{Mutex, MutexGuard};

/// So many are looked at in one look.
pub(crate) const LOOKED_AT_MAX: usize = 500;

/// How far a box is with it.
#[derive(Default)]
pub(crate) struct Walk {
    place: Mutex<Place>,
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// The last event that was looked at.
    seq: i64,
    /// Of the registry at the last whole walk.
    generation: Option<u64>,
    /// When it last went on.
    at: i64,
}

impl Walk {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it where the subscriptions are new or `is_whole` asks for it, else the next some. `find`: which of the next behind a `seq`
    /// wait for nobody, and the last of them, if there may be more. `release`: makes one due. `although`: for the log.
    pub(crate) fn go_on<T>(
        &self,
        core: &Core,
        operation: &'static str,
        is_whole: bool,
        although: &str,
        find: impl Fn(&Connection, i64) -> Result<(Vec<i64>, Option<i64>)>,
        release: impl Fn(&Connection, i64, i64) -> Result<T>,
    ) -> Result<()> {
        let generation = core.registry.generation();
        let place = *self.place();
        let is_whole = is_whole || place.generation != Some(generation);
        let (now, interval) = (core.clock.now(), Duration::from_millis(core.settings().polling_interval_ms));
        if !is_whole && clock::add(place.at, interval) > now {
            return Ok(()); // work by hand may begin a thousand times a second
        }
        let mut behind = if is_whole { 0 } else { place.seq };
        loop {
            let (free, last) = core.db.read(operation, |conn| find(conn, behind))?;
            let how = WriteEach { synchronous: Synchronous::Normal, ..WriteEach::ALL };
            let done = core.db.write_each(operation, how, &free, |conn, seq| release(conn, *seq, now))?;
            for (seq, error) in free.iter().zip(done).filter_map(|(seq, done)| Some((seq, done.err()?))) {
                log::warn!(target: "postbox::delivery", "the event of row {seq} waits for the next poll, although {although}: {error}");
            }
            let Some(last) = last else { break };
            behind = last;
            if !is_whole {
                *self.place() = Place { seq: behind, at: now, ..place };
                return Ok(());
            }
        }
        *self.place() = Place { seq: 0, generation: Some(generation), at: now };
        Ok(())
    }
}

/// Whether the consumer has neither finished with the event nor given it up, as the planner sees it: also where it has fewer attempts by
/// now than it has failed.
pub(crate) fn is_open(core: &Core, conn: &Connection, seq: i64, subscription: &Subscription) -> Result<bool> {
    let standing = inbox::standing_of(conn, seq, &subscription.consumer_name)?;
    Ok(standing.is_none_or(|(status, gave_up, failed)| {
        let is_used_up = || failed > 0 && failed >= subscription.attempts_in(&core.settings());
        !(status.is_done() || gave_up || is_used_up())
    }))
}
