//! Schedules: events that recur. What one is made of, and how it is shown.
//!
//! Its parts: rule (when its ticks are), cron (by an expression in a time zone), due (which ticks are published), template (the event
//! of each), table (all of the SQL).

mod cron;
pub(crate) mod due;
mod rule;
pub(crate) mod table;
pub(crate) mod template;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub(crate) use self::rule::Rule;
pub use self::rule::ScheduleRule;
use self::template::Template;
use crate::clock::to_micros;
use crate::error::{Error, Result};
use crate::event::NewEvent;
use crate::stored_event::StoredEvent;
use crate::validate;

/// An event that recurs: when, and what each tick publishes. It does nothing until it is put into the file with
/// [`Schedules::put`](crate::Schedules::put), which checks it.
///
/// The event of a tick has an id that is made of the schedule's name and the tick, so that it is the same wherever it is published: where
/// ticks are to be [imported](crate::Postbox::import) from other files, let the names differ, as by a device's number.
///
/// ```
/// # use postbox::{Event, Misfire, NewEvent, Postbox, Schedule, Subscription, Tx, testing::ManualClock, time::OffsetDateTime};
/// # use std::time::Duration;
/// # fn main() -> postbox::Result<()> {
/// # let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
/// # let postbox = Postbox::builder().clock(clock.clone()).open_in_memory()?;
/// let sync = NewEvent::new("sync.due", "mail", "Mailbox", "inbox");
/// postbox.schedules().put("mail.sync", Schedule::every(Duration::from_mins(15), sync).misfire(Misfire::Skip))?;
/// postbox.subscribe(Subscription::transactional("sync.due", "mail.sync", |event: &Event, _: &Tx<'_>| {
///     assert!(event.scheduled_for().is_some()); // the tick, however late this is
///     Ok(())
/// }))?;
/// # clock.advance(Duration::from_mins(15));
/// # assert_eq!(postbox.drain()?, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a schedule does nothing until it is put into the file"]
pub struct Schedule {
    rule: ScheduleRule,
    event: NewEvent,
    misfire: Misfire,
    starting_at: Option<OffsetDateTime>,
    ending_at: Option<OffsetDateTime>,
}

impl Schedule {
    /// A tick whenever the local time of a zone fits a cron expression.
    ///
    /// `expression`: minute, hour, day of the month, month and day of the week, or six fields with the second first, as Vixie cron has
    /// them: `*`, numbers, `1-5`, `*/15`, lists with commas, `JAN` to `DEC`, `SUN` to `SAT` (0 and 7 are both Sunday), and
    /// `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. Where both days are given, a day that fits either does. Beyond
    /// Vixie cron, `L` is the last day (`5L` the last Friday), `15W` the weekday next to the 15th, `FRI#2` the second Friday. At most
    /// 255 characters.
    ///
    /// `time_zone`: a name of the IANA database, such as `Europe/Berlin` or `UTC`. The zones are those of the crate `chrono-tz`
    /// that this was built with; no system's database is needed.
    ///
    /// Where the clocks change, an expression whose second, minute and hour are without `*` ticks at each of its times all the same, and
    /// once: a local time that is left out becomes the first moment after the gap (02:30 in Berlin in March: 03:00), and of one that
    /// comes twice the first is taken. Several that fall on one moment are one tick. With a `*` in one of the three, it ticks at the local
    /// times that there are: none in the gap, and in the hour that comes twice both times.
    ///
    /// ```
    /// # use postbox::{NewEvent, Postbox, Schedule};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// let digest = NewEvent::new("digest.due", "mail", "Digest", "morning");
    /// postbox.schedules().put("digest", Schedule::cron("0 6 * * 1-5", "Europe/Berlin", digest.clone()))?;
    /// let error = postbox.schedules().put("digest", Schedule::cron("0 25 * * *", "Europe/Berlin", digest)).unwrap_err();
    /// assert_eq!(error.to_string(), "invalid expression: `0 25 * * *`: the hour `25`: number out of bounds");
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "cron")]
    pub fn cron(expression: impl Into<String>, time_zone: impl Into<String>, event: NewEvent) -> Self {
        let (expression, time_zone) = (expression.into(), time_zone.into());
        Self::new(ScheduleRule::Cron { expression, time_zone }, event)
    }

    /// A tick each time this much has passed since the schedule was put, or from [`starting_at`](Schedule::starting_at) on: from 100 ms
    /// to 100 years, in whole microseconds. No tick drifts: late ones do not make the next ones late.
    pub fn every(interval: Duration, event: NewEvent) -> Self {
        Self::new(ScheduleRule::Every { interval }, event)
    }

    fn new(rule: ScheduleRule, event: NewEvent) -> Self {
        Schedule { rule, event, misfire: Misfire::default(), starting_at: None, ending_at: None }
    }

    /// What becomes of ticks that nobody was there for. [`Misfire::Once`] when not given.
    pub fn misfire(self, misfire: Misfire) -> Self {
        Schedule { misfire, ..self }
    }

    /// No tick is before this moment. Those of an interval are counted from it, and it is the first, or was.
    pub fn starting_at(self, at: OffsetDateTime) -> Self {
        Schedule { starting_at: Some(at), ..self }
    }

    /// No tick is after this moment.
    pub fn ending_at(self, at: OffsetDateTime) -> Self {
        Schedule { ending_at: Some(at), ..self }
    }

    /// What of it goes into the file under this name, if all of it can be. `store` checks its event, as publishing would.
    pub(crate) fn prepare(
        self,
        name: &str,
        payload_bytes_max: usize,
        store: impl FnOnce(NewEvent) -> Result<StoredEvent>,
    ) -> Result<Prepared> {
        check_name(name)?;
        let bound = |field, at: Option<OffsetDateTime>| match at {
            Some(at) if at < OffsetDateTime::UNIX_EPOCH => {
                Err(Error::invalid(field, "is before the year 1970"))
            }
            at => Ok(at.map(to_micros)),
        };
        let starting_at = bound("starting_at", self.starting_at)?;
        let ending_at = bound("ending_at", self.ending_at)?;
        if let (Some(start), Some(end)) = (starting_at, ending_at)
            && end < start
        {
            return Err(Error::invalid("ending_at", "is before `starting_at`"));
        }
        let rule = Rule { ticks: self.rule, starting_at, ending_at };
        rule.check()?;
        self.misfire.check()?;
        Ok(Prepared {
            rule: rule.to_text()?,
            misfire: self.misfire.to_text()?,
            event: Template::of(name, store(self.event)?, payload_bytes_max)?.to_text()?,
            is_counted: rule.is_counted(),
        })
    }
}

/// A schedule that was checked, as its row has it.
pub(crate) struct Prepared {
    pub(crate) rule: String,
    pub(crate) misfire: String,
    pub(crate) event: String,
    /// Its ticks are counted from when it is put.
    pub(crate) is_counted: bool,
}

pub(crate) const NAME_MAX: usize = 255;

pub(crate) fn check_name(name: &str) -> Result<()> {
    validate::name("name", name, NAME_MAX)
}

/// What becomes of ticks that nobody was there for: the machine was off or asleep, no process had the file open, processing was off, or
/// the clock jumped. Where several ticks have passed since somebody last looked, all but the last are always such ticks; the last is
/// one if it is more than a minute ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Misfire {
    /// None of them is published: the schedule goes on with its next tick.
    Skip,
    /// One event for all of them, that of the last. The default: what is done each morning is done when the machine is switched on
    /// at noon, and once after a week.
    #[default]
    Once,
    /// An event for each, oldest first, but no more than this many of the newest: 1 to 1,000.
    All {
        /// How many at the most.
        max: u32,
    },
}

impl Misfire {
    const MAX: u32 = 1_000;

    fn check(self) -> Result<()> {
        match self {
            Misfire::All { max } if !(1..=Self::MAX).contains(&max) => {
                Err(Error::invalid("misfire", format!("`all` up to {max}: must be from 1 to {}", Self::MAX)))
            }
            _ => Ok(()),
        }
    }

    fn to_text(self) -> Result<String> {
        serde_json::to_string(&self).map_err(Error::Json)
    }

    /// `None` for what no box wrote.
    pub(crate) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|misfire: &Misfire| misfire.check().is_ok())
    }
}

/// As in `skip`, `once` and `all up to 5`.
impl fmt::Display for Misfire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfire::Skip => f.write_str("skip"),
            Misfire::Once => f.write_str("once"),
            Misfire::All { max } => write!(f, "all up to {max}"),
        }
    }
}

/// A schedule as it is in the file. `Debug` leaves `error` out.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StoredSchedule {
    /// Its name.
    pub name: String,
    /// When its ticks are; `None` where another program has spoilt it, as `error` says.
    pub rule: Option<ScheduleRule>,
    /// No tick is before.
    #[serde(serialize_with = "crate::rfc3339::option::serialize")]
    pub starting_at: Option<OffsetDateTime>,
    /// No tick is after.
    #[serde(serialize_with = "crate::rfc3339::option::serialize")]
    pub ending_at: Option<OffsetDateTime>,
    /// What becomes of ticks that nobody was there for; `None` where another program has spoilt it.
    pub misfire: Option<Misfire>,
    /// The name of the event that each tick publishes; `None` where another program has spoilt it.
    pub event_name: Option<String>,
    /// The first tick that nobody has dealt with, by the wall clock. `None` while it is paused, and when no more are to come.
    #[serde(serialize_with = "crate::rfc3339::option::serialize")]
    pub next_at: Option<OffsetDateTime>,
    /// The last tick that was published.
    #[serde(serialize_with = "crate::rfc3339::option::serialize")]
    pub last_at: Option<OffsetDateTime>,
    /// Since when it is paused.
    #[serde(serialize_with = "crate::rfc3339::option::serialize")]
    pub paused_at: Option<OffsetDateTime>,
    /// When it was first put.
    #[serde(serialize_with = "crate::rfc3339::serialize")]
    pub created_at: OffsetDateTime,
    /// When it last changed or ticked.
    #[serde(serialize_with = "crate::rfc3339::serialize")]
    pub updated_at: OffsetDateTime,
    /// Why it does not tick, where something keeps it from that: this build lacks the feature `cron`, something in the file refused the event,
    /// or another program has spoilt the row. At most 1023 characters.
    pub error: Option<String>,
}

impl fmt::Debug for StoredSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredSchedule")
            .field("name", &self.name)
            .field("rule", &self.rule)
            .field("misfire", &self.misfire)
            .field("event_name", &self.event_name)
            .field("next_at", &self.next_at)
            .field("last_at", &self.last_at)
            .field("paused_at", &self.paused_at)
            .finish_non_exhaustive()
    }
}
