//! The only place that asks what time it is.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;

/// Where the box takes its time from. The default reads the system's clock.
///
/// A clock may jump: the box's own time never goes back, whatever this returns. When `now` steps back, the box adds the
/// difference from then on.
///
/// It is asked often and under a lock of the box's: it should be quick, and must not call the box.
pub trait Clock: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> OffsetDateTime;
}

/// The system's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}

/// The year 9999's last microsecond: no event is due by then, so an event that waits for a subscriber waits there.
pub(crate) const HELD_UNTIL: i64 = 253_402_300_799_999_999;

/// As `available_at`: it waits for something that is paused.
pub(crate) const PAUSED_UNTIL: i64 = HELD_UNTIL - 1;

/// The same: it waits for its turn.
pub(crate) const WAITING_UNTIL: i64 = PAUSED_UNTIL - 1;

/// The same: it waits for room with a consumer that has limits.
pub(crate) const LIMITED_UNTIL: i64 = WAITING_UNTIL - 1;

/// The same: all that is left of it waits for a release that knows its payload's version.
pub(crate) const NEWER_UNTIL: i64 = LIMITED_UNTIL - 1;

/// The latest time that an event can be given.
pub(crate) const LATEST: i64 = NEWER_UNTIL - 1;

/// A row that another program wrote with a time further ahead must not set the box's own.
const LOST_MAX: Duration = Duration::from_hours(1_000 * 366 * 24);

/// The box's time, in Unix microseconds: the application's clock, made to never go back.
pub(crate) struct BoxClock {
    clock: Box<dyn Clock>,
    state: Mutex<BoxTime>,
}

struct BoxTime {
    /// What the clock has lost by stepping back.
    offset: i64,
    last: i64,
}

impl BoxClock {
    pub(crate) fn new(clock: Box<dyn Clock>) -> Self {
        BoxClock { clock, state: Mutex::new(BoxTime { offset: 0, last: 0 }) }
    }

    /// Later than this no box has been, as far as this clock tells: it may have lost years, but not a thousand of them.
    pub(crate) fn latest_sound(&self) -> i64 {
        add(to_micros(self.clock.now()), LOST_MAX)
    }

    /// What the application's clock says, however far the box's time is ahead of it.
    pub(crate) fn of_its_source(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// Time starts no earlier than this.
    pub(crate) fn start_at(&self, floor: i64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last = state.last.max(floor.min(LATEST));
    }

    pub(crate) fn now(&self) -> i64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Inside the lock: a thread that waits between the two would look like a step back.
        let wall = to_micros(self.clock.now());
        let now = wall.saturating_add(state.offset);
        if now < state.last {
            state.offset = state.offset.saturating_add(state.last - now);
        } else {
            state.last = now.min(LATEST);
        }
        state.last
    }
}

/// Unix microseconds, kept within the years 1970 to 9999.
pub(crate) fn to_micros(at: OffsetDateTime) -> i64 {
    // Without 128 bits: each event asks for the time more than once.
    at.unix_timestamp().saturating_mul(1_000_000).saturating_add(i64::from(at.microsecond())).clamp(0, LATEST)
}

/// Reads a stored time; one that no box wrote is kept within what `time` can show.
pub(crate) fn from_micros(micros: i64) -> OffsetDateTime {
    let micros = micros.clamp(0, HELD_UNTIL);
    u32::try_from(micros % 1_000_000)
        .ok()
        .and_then(|part| {
            OffsetDateTime::from_unix_timestamp(micros / 1_000_000).ok()?.replace_microsecond(part).ok()
        })
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// `at` later by `delay`, no later than a box's time can be.
pub(crate) fn add(at: i64, delay: Duration) -> i64 {
    at.saturating_add(i64::try_from(delay.as_micros()).unwrap_or(i64::MAX)).min(LATEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ManualClock;

    #[test]
    fn time_never_goes_back_and_goes_on_at_the_clocks_own_pace_afterwards() {
        let manual = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(100));
        let clock = BoxClock::new(Box::new(manual.clone()));
        assert_eq!(clock.now(), 100_000_000);
        manual.set(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(40));
        assert_eq!(clock.now(), 100_000_000);
        manual.advance(Duration::from_secs(1));
        assert_eq!(clock.now(), 101_000_000);
    }

    #[test]
    fn time_starts_no_earlier_than_what_the_file_shows() {
        let manual = ManualClock::new(OffsetDateTime::UNIX_EPOCH);
        let clock = BoxClock::new(Box::new(manual.clone()));
        clock.start_at(5_000_000);
        assert_eq!(clock.now(), 5_000_000);
        manual.advance(Duration::from_secs(2));
        assert_eq!(clock.now(), 7_000_000);
    }

    #[test]
    fn times_out_of_range_are_kept_within_it() {
        assert_eq!(to_micros(OffsetDateTime::UNIX_EPOCH - Duration::from_secs(1)), 0);
        assert_eq!(add(LATEST, Duration::MAX), LATEST);
        assert_eq!(to_micros(from_micros(i64::MAX)), LATEST);
        assert_eq!(from_micros(i64::MIN), OffsetDateTime::UNIX_EPOCH);
    }
}
