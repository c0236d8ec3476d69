//! Rows that can be neither claimed nor set aside: a trigger of the application's forbids it, or they are larger than the
//! memory. Others go on meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::outbox::claim::Place;

/// Then they are tried again; after the next failure in twice the time, and so on.
const LEFT_FOR: Duration = Duration::from_secs(5);
const LEFT_FOR_MAX: Duration = Duration::from_mins(5);

/// A pass through what is due does not look back at them before it has come to the end, or so much later: however many there
/// are, those that can be claimed come to their turn.
const PASS_MAX: Duration = Duration::from_mins(1);

const ROWS_MAX: usize = 100_000;

/// So many are named in the log, each once.
const NAMED_MAX: usize = 100;

pub(super) struct LeftAlone {
    rows: RefCell<HashMap<i64, Left>>,
    for_good: bool,
    /// How far the pass has come, and when it began.
    pass: Cell<Option<(Place, Instant)>>,
}

struct Left {
    since: Instant,
    length: Duration,
}

impl LeftAlone {
    /// For a worker.
    pub(super) fn for_a_while() -> Self {
        LeftAlone { rows: RefCell::default(), for_good: false, pass: Cell::new(None) }
    }

    /// For a call that has to come to an end: each row is tried once.
    pub(super) fn for_good() -> Self {
        LeftAlone { rows: RefCell::default(), for_good: true, pass: Cell::new(None) }
    }

    pub(super) fn note(&self, seq: i64, error: &Error) {
        let mut rows = self.rows.borrow_mut();
        if rows.len() >= ROWS_MAX && !self.for_good {
            rows.retain(|_, left| left.since.elapsed() < left.length);
            if rows.len() >= ROWS_MAX {
                rows.clear();
            }
        }
        if let Some(left) = rows.get_mut(&seq) {
            *left = Left { since: Instant::now(), length: (left.length * 2).min(LEFT_FOR_MAX) };
            return;
        }
        if rows.len() < NAMED_MAX {
            log::error!(target: "postbox::delivery", "row {seq} can be neither claimed nor set aside, and others go on without it: {error}");
        } else if rows.len() == NAMED_MAX {
            log::error!(target: "postbox::delivery", "more rows can be neither claimed nor set aside, and are not named: {error}");
        }
        rows.insert(seq, Left { since: Instant::now(), length: LEFT_FOR });
    }

    pub(super) fn contains(&self, seq: i64) -> bool {
        let rows = self.rows.borrow();
        !rows.is_empty()
            && rows.get(&seq).is_some_and(|left| self.for_good || left.since.elapsed() < left.length)
    }

    /// Forgets those that have been left alone for long enough. True when there were any.
    pub(super) fn forget_old(&self) -> bool {
        let mut rows = self.rows.borrow_mut();
        let before = rows.len();
        rows.retain(|_, left| self.for_good || left.since.elapsed() < left.length);
        rows.len() < before
    }

    /// A row that is not to be looked at again for a while, for another reason.
    pub(super) fn leave(&self, seq: i64) {
        self.rows.borrow_mut().insert(seq, Left { since: Instant::now(), length: LEFT_FOR });
    }

    /// Up to where pending rows are none but such ones.
    pub(super) fn passed(&self) -> Option<Place> {
        let (place, began) = self.pass.get()?;
        (self.for_good || began.elapsed() < PASS_MAX).then_some(place)
    }

    /// A look has come up to `place`, and, it may be, to the end.
    pub(super) fn pass(&self, place: Option<Place>, is_end: bool) {
        let began = self.passed().and(self.pass.get()).map_or_else(Instant::now, |(_, began)| began);
        if is_end && !self.for_good {
            self.pass.set(None);
        } else if let Some(place) = place {
            self.pass.set(Some((place, began)));
        } else if self.passed().is_none() {
            self.pass.set(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that once had left a row alone asked for the next tick in each turn, for as long as it ran.
    #[test]
    fn what_has_been_left_alone_for_long_enough_is_forgotten_and_said_once() {
        let left_alone = LeftAlone::for_a_while();
        left_alone.leave(1);
        left_alone.rows.borrow_mut().insert(2, Left { since: Instant::now(), length: Duration::ZERO });
        assert!(left_alone.forget_old());
        assert!(left_alone.contains(1) && !left_alone.rows.borrow().contains_key(&2));
        assert!(!left_alone.forget_old());
    }
}
