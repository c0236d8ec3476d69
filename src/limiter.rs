//! A subscription's limits in one open box: how many of its handlers run at once, and how many begin in a time.
//!
//! An event that finds no room is parked, and remembered here in the order in which it came. Whoever has room for one calls it:
//! that makes it due, and keeps the room for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::error::{Error, Result};
use crate::registry::Consumers;
use crate::subscription::Subscription;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The times of so many beginnings are remembered.
const RATE_MAX: u32 = 100_000;

/// So many waiting events are remembered; the others are found again when these are gone.
const WAITING_MAX: usize = 100_000;

/// For so long room is kept for an event that was called and has not come.
const CALL_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Limiter {
    max_concurrency: Option<u32>,
    rate: Option<(u32, Duration)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Handlers that run.
    running: u32,
    /// Room that is kept: for what is on its way to its handler.
    reserved: u32,
    /// When the last handlers began, as the box tells the time.
    beginnings: VecDeque<i64>,
    /// Events that wait, the first first.
    waiting: VecDeque<i64>,
    is_waiting: HashSet<i64>,
    /// Events that were made due, with room kept for each.
    called: HashMap<i64, Instant>,
    /// More wait than are remembered.
    is_cut: bool,
}

impl Limiter {
    pub(crate) fn with_max_concurrency(self, n: u32) -> Self {
        Limiter { max_concurrency: Some(n), ..self }
    }

    pub(crate) fn with_rate(self, n: u32, per: Duration) -> Self {
        Limiter { rate: Some((n, per)), ..self }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.max_concurrency == Some(0) {
            return Err(Error::invalid("max_concurrency", "must be at least 1"));
        }
        if let Some((n, per)) = self.rate {
            if !(1..=RATE_MAX).contains(&n) {
                return Err(Error::invalid("rate_limit", format!("must be 1 to {RATE_MAX} in a time")));
            }
            if per < Duration::from_millis(1) || per > Duration::from_hours(366 * 24) {
                return Err(Error::invalid("rate_limit", "its time must be 1 ms to 366 days"));
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, state: &mut State, is_transactional: bool, now: i64) -> bool {
        let before = state.called.len();
        state.called.retain(|_, since| since.elapsed() < CALL_MAX);
        state.reserved -= u32::try_from(before - state.called.len()).unwrap_or(0);
        let fits = match self.max_concurrency {
            Some(max) if !is_transactional => state.running + state.reserved < max,
            _ => true,
        };
        let Some((n, per)) = self.rate else { return fits };
        while state.beginnings.front().is_some_and(|begun| clock::add(*begun, per) <= now) {
            state.beginnings.pop_front();
        }
        fits && state.beginnings.len() + (state.reserved as usize) < n as usize
    }

    /// It waits, behind those that do already.
    pub(crate) fn note_waiting(&self, seq: i64) {
        let mut state = self.state();
        if state.waiting.len() >= WAITING_MAX {
            state.is_cut = true;
        } else if state.is_waiting.insert(seq) {
            state.waiting.push_back(seq);
        }
    }

    /// The next one that waits, if there is room for it.
    pub(crate) fn next_to_call(&self, is_transactional: bool, now: i64) -> Option<i64> {
        let mut state = self.state();
        if state.waiting.is_empty() || !self.has_room(&mut state, is_transactional, now) {
            return None;
        }
        state.waiting.front().copied()
    }

    /// It does not wait any more. `is_due`: it is on its way, and room is kept for it.
    pub(crate) fn note_called(&self, seq: i64, is_due: bool) {
        let mut state = self.state();
        if state.is_waiting.remove(&seq) {
            if state.waiting.front() == Some(&seq) {
                state.waiting.pop_front();
            } else {
                state.waiting.retain(|waiting| *waiting != seq);
            }
        }
        if is_due && state.called.insert(seq, Instant::now()).is_none() {
            state.reserved += 1;
        }
    }

    /// One that was called and has come has no use for the room that was kept for it.
    fn give_room_back(&self, seq: i64) {
        let mut state = self.state();
        if state.called.remove(&seq).is_some() {
            state.reserved -= 1;
        }
    }

    /// More wait than are remembered, and those are gone: true once.
    pub(crate) fn is_to_be_filled(&self) -> bool {
        let mut state = self.state();
        let is_to_be_filled = state.is_cut && state.waiting.is_empty();
        state.is_cut &= !is_to_be_filled;
        is_to_be_filled
    }

    /// When there will be room again, if time alone makes it.
    pub(crate) fn next_room(&self, now: i64) -> Option<i64> {
        let state = self.state();
        let (n, per) = self.rate?;
        let is_full = state.beginnings.len() + (state.reserved as usize) >= n as usize;
        let first = state.beginnings.front().filter(|_| is_full && !state.waiting.is_empty())?;
        Some(clock::add(*first, per).max(now))
    }
}

/// Room for one call of a subscription's handler, for as long as it lives.
pub(crate) struct Permit {
    of: Arc<Subscription>,
    has_begun: AtomicBool,
}

impl Permit {
    /// `Ok(None)`: it has no limits. `Err`: there is no room.
    pub(crate) fn take(
        of: &Arc<Subscription>,
        seq: i64,
        now: i64,
    ) -> std::result::Result<Option<Permit>, NoRoom> {
        let Some(limiter) = &of.limiter else { return Ok(None) };
        let mut state = limiter.state();
        if state.called.remove(&seq).is_none() {
            if !limiter.has_room(&mut state, of.is_transactional(), now) {
                return Err(NoRoom);
            }
            state.reserved += 1;
        }
        Ok(Some(Permit { of: Arc::clone(of), has_begun: AtomicBool::new(false) }))
    }

    pub(crate) fn is_of(&self, subscription: &Arc<Subscription>) -> bool {
        Arc::ptr_eq(&self.of, subscription)
    }

    /// The handler begins.
    pub(crate) fn begin(&self, now: i64) {
        let Some(limiter) = &self.of.limiter else { return };
        let mut state = limiter.state();
        if !self.has_begun.swap(true, Ordering::Relaxed) {
            state.reserved -= 1;
            state.running += 1;
        }
        // Once more where a shared transaction begins again.
        if limiter.rate.is_some() {
            state.beginnings.push_back(now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(limiter) = &self.of.limiter {
            let mut state = limiter.state();
            if self.has_begun.load(Ordering::Relaxed) {
                state.running -= 1;
            } else {
                state.reserved -= 1;
            }
        }
    }
}

pub(crate) struct NoRoom;

/// An event that was claimed, and for which these consumers may have kept room: what it has not taken by then goes back.
pub(crate) struct Arrived {
    pub(crate) seq: i64,
    pub(crate) consumers: Consumers,
}

impl Drop for Arrived {
    fn drop(&mut self) {
        self.consumers
            .iter()
            .filter_map(|of| of.limiter.as_ref())
            .for_each(|limiter| limiter.give_room_back(self.seq));
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("max_concurrency", &self.max_concurrency)
            .field("rate", &self.rate)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_that_wait_are_remembered_and_the_others_found_again_when_those_are_gone() {
        let limiter = Limiter::default().with_max_concurrency(1);
        for seq in 0..150_000 {
            limiter.note_waiting(seq);
            limiter.note_waiting(seq);
        }
        assert_eq!(limiter.state().waiting.len(), WAITING_MAX);
        for seq in 0..100_000 {
            assert!(!limiter.is_to_be_filled());
            assert_eq!(limiter.next_to_call(false, 0), Some(seq));
            limiter.note_called(seq, false);
        }
        assert!(limiter.is_to_be_filled());
        assert!(!limiter.is_to_be_filled(), "once");
    }

    #[test]
    fn room_that_is_kept_for_one_that_does_not_come_is_given_to_others() {
        let limiter = Limiter::default().with_max_concurrency(1);
        limiter.note_waiting(1);
        limiter.note_called(1, true);
        limiter.note_waiting(2);
        assert_eq!(limiter.next_to_call(false, 0), None, "room is kept for the first");
        let long_ago = Instant::now().checked_sub(CALL_MAX).unwrap();
        limiter.state().called.insert(1, long_ago);
        assert_eq!(limiter.next_to_call(false, 0), Some(2));
    }
}
