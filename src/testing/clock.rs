//! A clock that stands still.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;

use crate::clock::Clock;

/// A clock that moves only when it is told to. Clones show the same time.
///
/// ```
/// # use postbox::{Clock, testing::ManualClock};
/// # use std::time::Duration;
/// # use time::OffsetDateTime;
/// let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH);
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now().unix_timestamp(), 60);
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock {
    now: Arc<Mutex<OffsetDateTime>>,
}

impl ManualClock {
    /// A clock that shows `start` until it is moved.
    pub fn new(start: OffsetDateTime) -> Self {
        ManualClock { now: Arc::new(Mutex::new(start)) }
    }

    /// Moves the clock forward. A sleeping worker notices within a second, or at once after
    /// [`Postbox::notify`](crate::Postbox::notify).
    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.checked_add(time::Duration::try_from(by).unwrap_or(time::Duration::MAX)).unwrap_or(*now);
    }

    /// Sets the clock, also backwards (the box's own time goes on from where it was).
    pub fn set(&self, to: OffsetDateTime) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> OffsetDateTime {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
