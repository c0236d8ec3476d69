//! Failed attempts of one open box: how many, and the last.

use std::sync::PoisonError;

use serde::Serialize;
use time::OffsetDateTime;

use crate::clock::from_micros;
use crate::event::EventId;
use crate::rfc3339;
use crate::sync::Mutex;

/// The last attempt that failed in this box since it was opened: in [`Stats`](crate::Stats). Why it failed is in the event's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LastFailure {
    /// The event that was handled.
    pub event_id: EventId,
    /// Whose handler it was.
    pub consumer_name: String,
    /// When, by the box's clock.
    #[serde(serialize_with = "rfc3339::serialize")]
    pub at: OffsetDateTime,
}

/// Where a box notes them.
#[derive(Default)]
pub(crate) struct FailureBook {
    books: Mutex<(u64, Option<LastFailure>)>,
}

impl FailureBook {
    pub(crate) fn note(&self, event_id: EventId, consumer: &str, now: i64) {
        let last = LastFailure { event_id, consumer_name: consumer.to_owned(), at: from_micros(now) };
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        *books = (books.0.saturating_add(1), Some(last));
    }

    pub(crate) fn get(&self) -> (u64, Option<LastFailure>) {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
