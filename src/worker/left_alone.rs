//! Rows that can be neither claimed nor set aside: a trigger of the application's forbids it, or they are larger than the
//! memory. Others go on meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::Error;

/// Then they are tried again.
const LEFT_FOR: Duration = Duration::from_secs(5);

const ROWS_MAX: usize = 100_000;

#[derive(Default)]
pub(super) struct LeftAlone {
    rows: RefCell<HashMap<i64, Instant>>,
    noted: Cell<u64>,
}

impl LeftAlone {
    pub(super) fn note(&self, seq: i64, error: &Error) {
        let mut rows = self.rows.borrow_mut();
        if rows.len() >= ROWS_MAX {
            rows.clear();
        }
        if rows.insert(seq, Instant::now()).is_none() {
            log::error!(target: "postbox::delivery", "row {seq} can be neither claimed nor set aside, and others go on without it: {error}");
        }
        self.noted.set(self.noted.get() + 1);
    }

    /// How often a row was noted.
    pub(super) fn noted(&self) -> u64 {
        self.noted.get()
    }

    pub(super) fn contains(&self, seq: i64) -> bool {
        let rows = self.rows.borrow();
        !rows.is_empty() && rows.get(&seq).is_some_and(|since| since.elapsed() < LEFT_FOR)
    }
}
