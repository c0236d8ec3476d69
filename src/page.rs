//! Which page of a list.

use crate::cursor::Cursor;
use crate::error::{Error, Result};

/// So much is in a page at the most.
const LIMIT_MAX: usize = 1_000;

/// Which page of a list: from which end, how many, and behind which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a page does nothing by itself"]
pub struct Page {
    pub(crate) order: Order,
    pub(crate) limit: usize,
    /// The `seq` behind which it begins.
    pub(crate) after: Option<i64>,
}

impl Page {
    /// The newest first: of events the last that was published, of links the last that was made. `limit`: 1 to 1,000.
    pub fn newest(limit: usize) -> Self {
        Page { order: Order::Newest, limit, after: None }
    }

    /// The oldest first. `limit`: 1 to 1,000.
    pub fn oldest(limit: usize) -> Self {
        Page { order: Order::Oldest, limit, after: None }
    }

    /// Those that come behind this place, in the page's own order: `next` of the page before. What stood there
    /// need not be there any more.
    pub fn after(self, cursor: Cursor) -> Self {
        Page { after: Some(cursor.0), ..self }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check_limit(self.limit)
    }

    /// Leaves what the page holds of what was found, which is one more where there is more. Where the next page begins.
    pub(crate) fn cut<T>(&self, found: &mut Vec<T>, cursor: impl FnOnce(&T) -> Cursor) -> Option<Cursor> {
        let is_more = found.len() > self.limit;
        found.truncate(self.limit);
        found.last().filter(|_| is_more).map(cursor)
    }
}

pub(crate) fn check_limit(limit: usize) -> Result<()> {
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(())
    } else {
        Err(Error::invalid("limit", format!("must be 1 to {LIMIT_MAX}, not {limit}")))
    }
}

/// From which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Oldest,
    Newest,
}

impl Order {
    /// The first and the last `seq` of what comes behind this one; `None`: nothing can.
    pub(crate) fn range_behind(self, after: Option<i64>) -> Option<(i64, i64)> {
        match (self, after) {
            (_, None) => Some((i64::MIN, i64::MAX)),
            (Order::Oldest, Some(after)) => Some((after.checked_add(1)?, i64::MAX)),
            (Order::Newest, Some(after)) => Some((i64::MIN, after.checked_sub(1)?)),
        }
    }

    pub(crate) fn sort(self, seqs: &mut [i64]) {
        match self {
            Order::Oldest => seqs.sort_unstable(),
            Order::Newest => seqs.sort_unstable_by(|one, other| other.cmp(one)),
        }
    }
}
