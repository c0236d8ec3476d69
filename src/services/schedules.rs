//! Recurring events, as the application sees them.

use time::OffsetDateTime;

use super::Access;
use crate::clock::{from_micros, to_micros};
use crate::error::{Error, Result};
use crate::schedule::table::Stored;
use crate::schedule::{self, Schedule, StoredSchedule, table};

/// So many times are told at once.
const TIMES_MAX: usize = 1_000;

/// Recurring events. Schedules are in the file: they tick whether or not this process has put them, while a worker runs or
/// [`drain`](crate::Postbox::drain) and [`process_batch`](crate::Postbox::process_batch) are called, and processing is on.
///
/// **One event per tick**, however many processes and boxes have the file open, and whoever dies when: the event is published in the
/// transaction in which the schedule goes on to its next tick. The event's id is made from the schedule's name and the tick, apart from
/// all idempotency keys of the application. Whose tick it is, its metadata says under the key `postbox.schedule`
/// (`{"name": "digest", "tick": "2026-11-28T05:00:00.000000Z"}`), and [`Event::scheduled_for`](crate::Event::scheduled_for) and
/// [`Event::scheduled_by`](crate::Event::scheduled_by) tell a handler.
///
/// **Ticks are times of the wall clock**, the box's [`Clock`](crate::Clock) as it is, and not of the box's own time, which never goes back.
/// When the clock steps back, no tick comes twice: the next is the first that has not been. After more than a day back the clock
/// was wrong before, and ticks go on from the new time; one that was published by the wrong clock is not published again for as long as its
/// event is kept, and the last of them never. When it jumps ahead, and after the machine was off or asleep, the schedule's
/// [`Misfire`](crate::Misfire) says what becomes of the ticks that have passed.
///
/// A schedule whose tick cannot be published, since a trigger of the application's refuses the event, keeps nobody else from
/// ticking. It is tried again, in a worker after five seconds; [`StoredSchedule::error`] says why, and the log does once.
///
/// What [`Postbox::schedules`](crate::Postbox::schedules) shows of a schedule (such as its `next_at`) is what was last committed.
pub struct Schedules<'a> {
    access: Access<'a>,
}

impl<'a> Schedules<'a> {
    pub(crate) fn new(access: Access<'a>) -> Self {
        Schedules { access }
    }

    /// Puts a schedule under this name (1 to 255 characters), in the place of the one that has it. To be called whenever the
    /// application starts: what has not changed goes on as if it had not been called. When the rule has changed, the next tick is the first
    /// of the new rule from now on, and ticks that were missed are dropped; otherwise the next tick stays. A pause stays in any case.
    ///
    /// The event is like any that is published, but for what each tick has of its own: it has no idempotency key, no delay and no
    /// trace, and its metadata is an object, if there is any. The first tick is after now.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field `expression` or `time_zone`, naming what was given and what is wrong with it, with `interval`,
    /// `misfire`, `name`, `starting_at` or `ending_at`, and as [`publish`](crate::Postbox::publish) for the event, as are
    /// [`Error::PayloadTooLarge`] and [`Error::SchemaViolation`]: before anything is written. A tick whose event does not fit a schema
    /// that was given later is not published, and [`StoredSchedule::error`] says why.
    pub fn put(&self, name: &str, schedule: Schedule) -> Result<StoredSchedule> {
        let core = self.access.core();
        let schedule = schedule.prepare(name, core.payload_bytes_max, |event| core.store(event))?;
        self.write("schedules.put", |conn, wall| Ok(table::put(conn, name, &schedule, wall)?.show()))
    }

    /// The schedule of this name; `None` when there is none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<StoredSchedule>> {
        let stored = self.access.read("schedules.get", |conn| table::get(conn, name))?;
        Ok(stored.map(Stored::show))
    }

    /// All schedules, by name, those included that are paused, have ended, or cannot tick.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn list(&self) -> Result<Vec<StoredSchedule>> {
        let stored = self.access.read("schedules.list", table::list)?;
        Ok(stored.into_iter().map(Stored::show).collect())
    }

    /// Removes the schedule. Events that it has published stay. False when there was none.
    ///
    /// # Errors
    /// [`Error::Busy`] and other errors of a write.
    pub fn remove(&self, name: &str) -> Result<bool> {
        self.write("schedules.remove", |conn, _| table::remove(conn, name))
    }

    /// Stops the schedule's ticks until [`resume`](Schedules::resume). False when it was paused already.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such schedule.
    pub fn pause(&self, name: &str) -> Result<bool> {
        self.write("schedules.pause", |conn, wall| {
            let stored = found(table::get(conn, name)?, name)?;
            if stored.paused_at.is_some() {
                return Ok(false);
            }
            table::pause(conn, stored.seq, wall).map(|()| true)
        })
    }

    /// Lets the schedule go on with its first tick from now on. Those that passed during the pause were not missed: nothing becomes of
    /// them. False when it was not paused.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such schedule; [`Error::FeatureMissing`] for one by a cron expression in a build
    /// without the feature `cron`.
    pub fn resume(&self, name: &str) -> Result<bool> {
        self.write("schedules.resume", |conn, wall| {
            let stored = found(table::get(conn, name)?, name)?;
            if stored.paused_at.is_none() {
                return Ok(false);
            }
            let progress = stored.progress.going_on(&stored.ticks()?, wall);
            table::resume(conn, stored.seq, progress, wall).map(|()| true)
        })
    }

    /// The schedule's ticks that are to come after now, up to `count` of them: fewer when it ends. Of one that is paused, those that
    /// would come if it were resumed now. At most 1,000.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such schedule; [`Error::FeatureMissing`] for one by a cron expression in a build
    /// without the feature `cron`; [`Error::Invalid`] with the field `count`.
    pub fn next_times(&self, name: &str, count: usize) -> Result<Vec<OffsetDateTime>> {
        if count > TIMES_MAX {
            return Err(Error::invalid(
                "count",
                format!("{count}: at most {TIMES_MAX} times are told at once"),
            ));
        }
        let stored = self.access.read("schedules.next_times", |conn| table::get(conn, name))?;
        let stored = found(stored, name)?;
        let (ticks, wall) = (stored.ticks()?, self.wall());
        let first = stored.progress.going_on(&ticks, wall).next;
        let times = std::iter::successors(first, |tick| ticks.after(*tick));
        Ok(times.take(count).map(from_micros).collect())
    }

    fn wall(&self) -> i64 {
        to_micros(self.access.core().clock.of_its_source())
    }

    /// What a sleeping worker is told.
    fn write<T>(
        &self,
        operation: &'static str,
        f: impl FnOnce(&rusqlite::Connection, i64) -> Result<T>,
    ) -> Result<T> {
        let core = self.access.core();
        let done = self.access.write(operation, |conn, _| {
            core.note_schedules();
            f(conn, self.wall())
        })?;
        if matches!(self.access, Access::Apart(_)) {
            core.bell.ring();
        }
        Ok(done)
    }
}

fn found(stored: Option<Stored>, name: &str) -> Result<Stored> {
    schedule::check_name(name)?;
    stored.ok_or_else(|| Error::NotFound { what: "schedule", id: name.to_owned() })
}
