//! What one open box knows of the pauses: those in the file as it last read them, what its handlers have asked for and is not in
//! the file yet, and how far it is with letting go what waited for a pause that is over.
//!
//! How no event waits for ever: an event is parked only on what the file says in the same transaction. A pause that is over stays
//! in the file, under a number of its own, until somebody has gone through all parked events from the first to the last, having
//! seen that number before the first. So whatever was parked for it stood there by then.

use std::sync::PoisonError;
use std::time::Duration;

use rusqlite::Connection;

use crate::clock::{self, BoxClock};
use crate::core::Core;
use crate::db::Synchronous;
use crate::error::Result;
use crate::handler::{HandlerError, HandlerResult, Verdict};
use crate::outbox::parked;
use crate::pauses::{self, Pause, PauseTarget, Pauses};
use crate::subscription::Subscription;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::validate;

pub(crate) struct PauseBook {
    /// Nothing is paused and nothing waits to be let go: most boxes look at no more than this.
    is_quiet: AtomicBool,
    /// The open write transaction writes to the table.
    is_written: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// With what was asked for.
    pauses: Pauses,
    asked: Vec<Asked>,
    pass: Option<Pass>,
    /// How often events were found that may wait for a pause that nobody has ended, since its row is gone.
    orphans: u64,
    /// For so many of these all has been let go.
    orphans_done: u64,
    /// Something forbids to let go what waits: it is tried again at the next poll.
    is_stuck: bool,
}

/// A pause that a handler, or a breaker, asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) consumer: String,
    pub(crate) reason: String,
    pub(crate) until: i64,
    /// Something of the application's keeps it out of the file: this box alone knows of it.
    is_refused: bool,
}

/// A walk through all events that are parked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pass {
    /// Of the pauses that were over when it began.
    pub(crate) ends: Vec<i64>,
    /// Events that wait for nothing have been found so often when it began.
    orphans: u64,
    /// The last event that it has looked at.
    pub(crate) seq: i64,
    /// Some could not be let go.
    pub(crate) is_refused: bool,
}

/// What a turn has done about the pauses: noted once it is committed.
#[derive(Default)]
pub(crate) struct Done {
    /// In the file now.
    pub(crate) written: Vec<Asked>,
    pub(crate) refused: Vec<Asked>,
    pub(crate) pass: Option<PassStep>,
}

pub(crate) enum PassStep {
    GoesOn(Pass),
    Over(Pass),
    Stuck,
}

impl PauseBook {
    pub(crate) fn new() -> Self {
        PauseBook {
            is_quiet: AtomicBool::new(true),
            is_written: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.is_quiet.load(Ordering::Acquire)
    }

    /// Takes over what the file says now. `conn` reads what is committed.
    pub(crate) fn reload(&self, conn: &Connection, now: i64) -> Result<()> {
        // Read under the lock: what was read first must not be noted last.
        let mut state = self.state();
        let mut pauses = pauses::load(conn)?;
        state.orphans += u64::from(state.pauses.lost_one(&pauses, now));
        state.asked.retain(|asked| asked.until > now);
        add_asked(&mut pauses, state.asked.iter());
        state.pauses = pauses;
        self.is_quiet.store(state.is_quiet(), Ordering::Release);
        Ok(())
    }

    /// The same after a commit of this box's, if it may have changed anything.
    pub(crate) fn reload_after(&self, conn: &Connection, now: i64) -> Result<()> {
        let is_written = self.is_written.swap(false, Ordering::Relaxed);
        if self.is_quiet() && !is_written { Ok(()) } else { self.reload(conn, now) }
    }

    /// The open write transaction of this box, of which there is one at a time, has written to the table.
    pub(crate) fn note_written(&self) {
        self.is_written.store(true, Ordering::Relaxed);
    }

    /// The truth of a write transaction, on which events are parked in it. What was asked for and is not in the file yet is none:
    /// an event that was to wait for it is planned anew, by a turn that has written it.
    pub(crate) fn within(&self, conn: &Connection) -> Result<Pauses> {
        if self.is_quiet() {
            return Ok(Pauses::default());
        }
        let mut pauses = pauses::load(conn)?;
        add_asked(&mut pauses, self.state().asked.iter().filter(|asked| asked.is_refused));
        Ok(pauses)
    }

    /// Whether the consumer is paused, as far as this box knows: none of its handlers begins.
    pub(crate) fn is_consumer_paused(&self, core: &Core, consumer: &str) -> bool {
        !self.is_quiet() && self.state().pauses.of_consumer(consumer, core.clock.now()).is_some()
    }

    /// The same of an event's name.
    pub(crate) fn is_event_name_paused(&self, core: &Core, name: &str) -> bool {
        !self.is_quiet() && self.state().pauses.of_event_name(name, core.clock.now()).is_some()
    }

    /// In force in this box at once; the next turn writes it.
    pub(crate) fn ask(&self, asked: Asked) {
        let mut state = self.state();
        state.pauses.add(&asked.consumer, asked.until, false);
        state.asked.push(asked);
        self.is_quiet.store(false, Ordering::Release);
    }

    /// What is to be written.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        if self.is_quiet() {
            return Vec::new();
        }
        self.state().asked.iter().filter(|asked| !asked.is_refused).cloned().collect()
    }

    /// Whether events may wait for what is over.
    pub(crate) fn is_release_due(&self, now: i64) -> bool {
        if self.is_quiet() {
            return false;
        }
        let state = self.state();
        let is_due =
            state.pass.is_some() || state.orphans > state.orphans_done || state.pauses.is_any_over(now);
        is_due && !state.is_stuck
    }

    /// How far the walk is, if one is under way.
    pub(crate) fn pass(&self) -> Option<Pass> {
        self.state().pass.clone()
    }

    /// A new walk, to be begun with the ends of those that are over.
    pub(crate) fn new_pass(&self) -> Pass {
        Pass { orphans: self.state().orphans, ..Pass::default() }
    }

    /// After the commit.
    pub(crate) fn note_done(&self, done: Done) {
        if done.written.is_empty() && done.refused.is_empty() && done.pass.is_none() {
            return;
        }
        let mut state = self.state();
        state.asked.retain(|asked| !done.written.contains(asked));
        for asked in &mut state.asked {
            asked.is_refused |= done.refused.contains(asked);
        }
        match done.pass {
            Some(PassStep::GoesOn(pass)) => state.pass = Some(pass),
            Some(PassStep::Over(pass)) => {
                (state.pass, state.is_stuck) = (None, pass.is_refused);
                if !pass.is_refused {
                    state.orphans_done = pass.orphans;
                }
            }
            Some(PassStep::Stuck) => (state.pass, state.is_stuck) = (None, true),
            None => {}
        }
    }

    /// When the next pause ends by itself.
    pub(crate) fn next_end(&self, now: i64) -> Option<i64> {
        if self.is_quiet() { None } else { self.state().pauses.next_end(now) }
    }

    /// At each poll, and before work by hand: what could not be let go is tried again, and what waits for nothing is found, as
    /// when another program has emptied the table.
    pub(crate) fn look_again(&self, conn: &Connection) -> Result<()> {
        let waits = self.state().pauses.is_empty() && parked::is_any(conn)?;
        if waits || !self.is_quiet() {
            let mut state = self.state();
            state.orphans += u64::from(waits);
            state.is_stuck = false;
            self.is_quiet.store(state.is_quiet(), Ordering::Release);
        }
        Ok(())
    }
}

impl State {
    fn is_quiet(&self) -> bool {
        self.pauses.is_empty()
            && self.asked.is_empty()
            && self.pass.is_none()
            && self.orphans == self.orphans_done
    }
}

fn add_asked<'a>(pauses: &mut Pauses, asked: impl Iterator<Item = &'a Asked>) {
    for asked in asked {
        pauses.add(&asked.consumer, asked.until, false);
    }
}

impl Asked {
    /// What a handler's result asks for: by itself, or by the breaker's count of failures in a row, this one included.
    pub(crate) fn by(
        subscription: &Subscription,
        result: &HandlerResult,
        in_a_row: u32,
        clock: &BoxClock,
    ) -> Option<Self> {
        let (reason, duration) = match (result, &subscription.breaker) {
            (Err(HandlerError { verdict: Verdict::PauseConsumer(duration), message, .. }), _) => {
                (message.clone(), *duration)
            }
            (_, Some(breaker)) => (breaker.trips(in_a_row, result)?, breaker.pause),
            _ => return None,
        };
        let consumer = subscription.consumer_name.clone();
        log::warn!(target: "postbox::delivery", "the consumer {consumer} is paused for {duration:?}: postbox_pause says why");
        Some(Asked {
            consumer,
            reason: validate::error_text(&reason),
            until: clock::add(clock.now(), duration.max(pauses::LEAST)),
            is_refused: false,
        })
    }
}

/// Pauses in a synced commit.
pub(crate) fn pause(
    core: &Core,
    target: &PauseTarget,
    reason: Option<&str>,
    duration: Option<Duration>,
) -> Result<Pause> {
    pauses::check(target, reason, duration)?;
    write(core, "pause", |conn, now| pauses::put(conn, target, reason, duration, now))
}

/// Ends a pause in a synced commit, and one that only this box knows of. False: there was none.
pub(crate) fn resume(core: &Core, target: &PauseTarget) -> Result<bool> {
    target.validate()?;
    write(core, "resume", |conn, now| {
        // Behind the write lock: a turn may just be writing it.
        let was_asked = core.pauses.forget_asked(target);
        Ok(pauses::end(conn, target, now)? || was_asked)
    })
}

fn write<T>(
    core: &Core,
    operation: &'static str,
    f: impl FnOnce(&Connection, i64) -> Result<T>,
) -> Result<T> {
    let writer = core.db.lock(operation)?;
    let now = core.clock.now();
    let done = writer.transaction(Synchronous::Full, operation, |conn| f(conn, now))?;
    core.pauses.reload(writer.conn(), now)?;
    drop(writer);
    core.bell.ring();
    Ok(done)
}

impl PauseBook {
    fn forget_asked(&self, target: &PauseTarget) -> bool {
        let PauseTarget::Consumer(name) = target else { return false };
        let mut state = self.state();
        let before = state.asked.len();
        state.asked.retain(|asked| asked.consumer != *name);
        state.asked.len() < before
    }
}
