//! Which ticks are published: those that nobody has dealt with, as the misfire rule says.

use std::time::Duration;

use super::Misfire;
use super::rule::Ticks;

/// A tick that is the last to have come is on time for so long.
pub(crate) const GRACE: Duration = Duration::from_mins(1);

/// A clock that has gone back by more than this was wrong before, and ticks go on from the new time. By less it is corrected,
/// or one of two machines', and no tick comes twice.
const CORRECTION_MAX: Duration = Duration::from_hours(24);

/// A row that was written so long ago at the most was written by the clock that shows the present. Longer than what a clock is corrected by,
/// for those that tick once a day.
const SAME_CLOCK: Duration = Duration::from_hours(48);

/// What a schedule's row knows of its ticks, in Unix microseconds of the wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    pub(crate) next: Option<i64>,
    /// The last tick that was published.
    pub(crate) last: Option<i64>,
    /// The latest ever, by whatever clock.
    pub(crate) latest: Option<i64>,
    /// When somebody last wrote it.
    pub(crate) written_at: i64,
}

impl Progress {
    /// No tick up to this is published any more.
    fn floor(self, wall: i64) -> i64 {
        let is_near = |at: &i64| *at < later(wall);
        let last = self.last.filter(is_near);
        // Of a clock that was wrong by days, and comes back to about where it was. Where the present has come near such a tick by itself, those
        // before it have not been.
        let has_come_by_itself = (wall.saturating_sub(micros(SAME_CLOCK))..=wall).contains(&self.written_at);
        let latest = self.latest.filter(|at| *at <= wall || (is_near(at) && !has_come_by_itself));
        last.max(latest).unwrap_or(-1)
    }

    /// With the first tick from now on as the next: those that have passed are over.
    pub(crate) fn going_on(self, ticks: &Ticks, wall: i64) -> Self {
        let next = ticks.after(wall.max(self.floor(wall)));
        Progress { next, last: self.last.filter(|at| *at < later(wall)), ..self }
    }
}

/// When a clock is wrong that has been there.
pub(crate) fn later(wall: i64) -> i64 {
    wall.saturating_add(micros(CORRECTION_MAX))
}

fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

/// The ticks to be published now, oldest first, and what is to come after them. However many have passed, it looks at no more than are
/// published.
pub(crate) fn decide(ticks: &Ticks, misfire: Misfire, progress: Progress, wall: i64) -> (Vec<i64>, Progress) {
    let floor = progress.floor(wall);
    let is_open = |tick: &i64| progress.next.is_some_and(|next| *tick >= next) && *tick > floor;
    let last = ticks.last_until(wall).filter(is_open);
    let max = match misfire {
        Misfire::Skip if last.is_some_and(|tick| wall - tick > micros(GRACE)) => 0,
        Misfire::Skip | Misfire::Once => 1,
        Misfire::All { max } => usize::try_from(max).unwrap_or(usize::MAX),
    };
    let mut due: Vec<i64> =
        std::iter::successors(last, |tick| ticks.last_until(tick - 1).filter(is_open)).take(max).collect();
    due.reverse();
    let after = match due.last().copied() {
        Some(tick) => Progress { last: Some(tick), latest: progress.latest.max(Some(tick)), ..progress },
        None => progress,
    };
    (due, after.going_on(ticks, wall))
}
