//! When the ticks of a schedule are.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cron::Cron;
use crate::clock::LATEST;
use crate::error::{Error, Result};

/// When the ticks of a schedule are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScheduleRule {
    /// Whenever the local time of the zone fits the expression. Such a schedule ticks only in builds with the feature `cron`.
    Cron {
        /// The expression.
        expression: String,
        /// The zone's name in the IANA database.
        time_zone: String,
    },
    /// Each time this much has passed.
    Every {
        /// How much.
        interval: Duration,
    },
}

/// As in `0 6 * * 1-5 (Europe/Berlin)` and `every 900s`.
impl fmt::Display for ScheduleRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScheduleRule::Cron { expression, time_zone } => write!(f, "{expression} ({time_zone})"),
            ScheduleRule::Every { interval } => write!(f, "every {interval:?}"),
        }
    }
}

/// With its bounds, in Unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) ticks: ScheduleRule,
    pub(crate) starting_at: Option<i64>,
    pub(crate) ending_at: Option<i64>,
}

/// As it is stored. What a later release adds is not understood here, rather than left out.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    every_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    starting_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ending_at: Option<i64>,
}

const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_hours(100 * 366 * 24);

impl Rule {
    pub(crate) fn to_text(&self) -> Result<String> {
        let (starting_at, ending_at) = (self.starting_at, self.ending_at);
        let mut stored = Stored { cron: None, time_zone: None, every_us: None, starting_at, ending_at };
        match &self.ticks {
            ScheduleRule::Cron { expression, time_zone } => {
                (stored.cron, stored.time_zone) = (Some(expression.clone()), Some(time_zone.clone()));
            }
            ScheduleRule::Every { interval } => stored.every_us = u64::try_from(interval.as_micros()).ok(),
        }
        serde_json::to_string(&stored).map_err(Error::Json)
    }

    /// `None` for what no box wrote. An expression is looked at when its ticks are.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let stored: Stored = serde_json::from_str(text).ok()?;
        let ticks = match stored {
            Stored { cron: Some(expression), time_zone: Some(time_zone), every_us: None, .. } => {
                ScheduleRule::Cron { expression, time_zone }
            }
            Stored { cron: None, time_zone: None, every_us: Some(micros), .. } => {
                ScheduleRule::Every { interval: Duration::from_micros(micros) }
            }
            _ => return None,
        };
        let rule = Rule { ticks, starting_at: stored.starting_at, ending_at: stored.ending_at };
        let in_range = |at: Option<i64>| at.is_none_or(|at| (0..=LATEST).contains(&at));
        let is_sound =
            in_range(rule.starting_at) && in_range(rule.ending_at) && rule.check_interval().is_ok();
        is_sound.then_some(rule)
    }

    /// What cannot be stored, or never ticks by itself.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.ticks {
            ScheduleRule::Cron { expression, time_zone } => {
                Cron::new(expression, time_zone)?.check(expression)
            }
            ScheduleRule::Every { .. } => self.check_interval(),
        }
    }

    fn check_interval(&self) -> Result<()> {
        let ScheduleRule::Every { interval } = &self.ticks else { return Ok(()) };
        if !(INTERVAL_MIN..=INTERVAL_MAX).contains(interval) {
            return Err(Error::invalid(
                "interval",
                format!("{interval:?}: must be from 100 ms to 100 years"),
            ));
        }
        if !interval.subsec_nanos().is_multiple_of(1_000) {
            return Err(Error::invalid("interval", format!("{interval:?}: must be in whole microseconds")));
        }
        Ok(())
    }

    /// Whether its ticks are counted from when the schedule is put.
    pub(crate) fn is_counted(&self) -> bool {
        matches!(self.ticks, ScheduleRule::Every { .. }) && self.starting_at.is_none()
    }

    /// `counted_from`: what those of an interval are counted from, where it has no beginning of its own.
    pub(crate) fn ticks(&self, counted_from: Option<i64>) -> Result<Ticks> {
        let of = match &self.ticks {
            ScheduleRule::Cron { expression, time_zone } => {
                Of::Cron(Box::new(Cron::new(expression, time_zone)?))
            }
            ScheduleRule::Every { interval } => Of::Interval {
                from: self.starting_at.or(counted_from).unwrap_or(0),
                every: i64::try_from(interval.as_micros()).unwrap_or(i64::MAX).max(1),
            },
        };
        Ok(Ticks { of, from: self.starting_at.unwrap_or(0), until: self.ending_at.unwrap_or(LATEST) })
    }
}

/// The ticks of one schedule, in both directions and however many: a look costs microseconds.
pub(crate) struct Ticks {
    of: Of,
    from: i64,
    until: i64,
}

enum Of {
    Cron(Box<Cron>),
    Interval { from: i64, every: i64 },
}

impl Ticks {
    /// The first after this moment.
    pub(crate) fn after(&self, at: i64) -> Option<i64> {
        let at = at.clamp(self.from.saturating_sub(1), LATEST);
        let tick = match &self.of {
            Of::Cron(cron) => cron.after(at)?,
            Of::Interval { from, every } => {
                let (from, every) = (i128::from(*from), i128::from(*every));
                i64::try_from(from + ((i128::from(at) - from).div_euclid(every) + 1) * every).ok()?
            }
        };
        (at < tick && tick <= self.until).then_some(tick)
    }

    /// The last that is not after this moment.
    pub(crate) fn last_until(&self, at: i64) -> Option<i64> {
        let at = at.min(self.until);
        if at < self.from {
            return None;
        }
        let tick = match &self.of {
            Of::Cron(cron) => cron.last_until(at)?,
            Of::Interval { from, every } => {
                let (from, every) = (i128::from(*from), i128::from(*every));
                i64::try_from(from + (i128::from(at) - from).div_euclid(every) * every).ok()?
            }
        };
        (self.from <= tick && tick <= at).then_some(tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(micros: u64, starting_at: Option<i64>, ending_at: Option<i64>) -> Rule {
        let ticks = ScheduleRule::Every { interval: Duration::from_micros(micros) };
        Rule { ticks, starting_at, ending_at }
    }

    #[test]
    fn ticks_of_an_interval_are_found_in_both_directions() {
        let ticks = every(1_000, None, None).ticks(Some(250)).unwrap();
        assert_eq!(ticks.after(250), Some(1_250));
        assert_eq!(ticks.after(1_249), Some(1_250));
        assert_eq!(
            ticks.after(0),
            Some(250),
            "also before they are counted from: the clock may have gone back"
        );
        assert_eq!(ticks.last_until(1_250), Some(1_250));
        assert_eq!(ticks.last_until(1_249), Some(250));
        assert_eq!(ticks.last_until(249), None, "there is nothing before the year 1970");
    }

    #[test]
    fn ticks_end_where_they_are_bounded_and_with_the_box_s_times() {
        let ticks = every(1_000, Some(5_000), Some(7_500)).ticks(None).unwrap();
        assert_eq!(
            [0, 4_999, 5_000, 6_000, 7_000].map(|at| ticks.after(at)),
            [Some(5_000), Some(5_000), Some(6_000), Some(7_000), None]
        );
        assert_eq!(
            [4_999, 5_000, 9_999_999].map(|at| ticks.last_until(at)),
            [None, Some(5_000), Some(7_000)]
        );
        let ticks = every(1_000_000, None, None).ticks(Some(LATEST)).unwrap();
        assert_eq!((ticks.after(LATEST), ticks.after(i64::MAX)), (None, None));
        assert_eq!(ticks.last_until(i64::MAX), Some(LATEST));
    }

    #[test]
    fn a_rule_is_read_as_it_was_written_and_nothing_else_is_read() {
        let cron = ScheduleRule::Cron { expression: "0 6 * * *".to_owned(), time_zone: "UTC".to_owned() };
        for rule in
            [every(900_000_000, None, Some(3)), Rule { ticks: cron, starting_at: Some(1), ending_at: None }]
        {
            assert_eq!(Rule::read(&rule.to_text().unwrap()), Some(rule));
        }
        for spoilt in [
            "",
            "{}",
            "[]",
            r#"{"every_us":1}"#,
            r#"{"every_us":-1000000}"#,
            r#"{"every_us":1000000,"cron":"* * * * *","time_zone":"UTC"}"#,
            r#"{"cron":"* * * * *"}"#,
            r#"{"every_us":1000000,"starting_at":-1}"#,
            r#"{"every_us":1000000,"jitter_us":5}"#,
        ] {
            assert_eq!(Rule::read(spoilt), None, "{spoilt}");
        }
    }
}
