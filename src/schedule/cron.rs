//! Ticks by a cron expression in a time zone: the crates `croner` and `chrono-tz` do the work. Without the feature `cron` there are
//! none, and a schedule that another build has put says so.

#[cfg(feature = "cron")]
mod with_crate {
    use chrono::{DateTime, MappedLocalTime, NaiveDateTime, TimeZone, Utc};
    use chrono_tz::{TZ_VARIANTS, Tz};
    use croner::errors::CronError;
    use croner::parser::{CronParser, Seconds, Year};

    use crate::error::{Error, Result};
    use crate::validate;

    const EXPRESSION_MAX: usize = 255;

    pub(crate) struct Cron {
        pattern: croner::Cron,
        zone: Tz,
    }

    impl Cron {
        pub(crate) fn new(expression: &str, time_zone: &str) -> Result<Self> {
            validate::name("expression", expression, EXPRESSION_MAX)?;
            let pattern = parse(expression).map_err(|error| {
                let place = place_of(expression).unwrap_or_default();
                Error::invalid("expression", format!("`{expression}`: {place}{}", describe(&error)))
            })?;
            Ok(Cron { pattern, zone: zone(time_zone)? })
        }

        /// Whether it ever ticks.
        pub(crate) fn check(&self, expression: &str) -> Result<()> {
            match self.after(0) {
                Some(_) => Ok(()),
                None => {
                    Err(Error::invalid("expression", format!("`{expression}`: there is no such day, ever")))
                }
            }
        }

        pub(crate) fn after(&self, at: i64) -> Option<i64> {
            let at = self.local(at)?;
            let tick = if self.is_of_set_times() {
                self.set_time_after(&at)?
            } else {
                self.pattern.find_next_occurrence(&at, false).ok()?
            };
            Some(tick.timestamp_micros())
        }

        pub(crate) fn last_until(&self, at: i64) -> Option<i64> {
            let at = self.local(at)?;
            let tick = if self.is_of_set_times() {
                self.last_set_time_until(&at)?
            } else {
                self.pattern.find_previous_occurrence(&at, true).ok()?
            };
            Some(tick.timestamp_micros())
        }

        /// The crate takes those with one second, one minute and one hour to be such: of `0 2,14 * * *` it leaves one out in March, and
        /// doubles one in October. So it is only asked for local times, as of a zone that changes no clocks.
        fn is_of_set_times(&self) -> bool {
            let pattern = &self.pattern.pattern;
            ![&pattern.seconds, &pattern.minutes, &pattern.hours].into_iter().any(|field| field.from_wildcard)
        }

        fn set_time_after(&self, at: &DateTime<Tz>) -> Option<DateTime<Tz>> {
            let mut local = at.naive_local().and_utc();
            loop {
                local = self.pattern.find_next_occurrence(&local, false).ok()?;
                let tick = self.moment_of(local.naive_utc())?;
                // Those of an hour that comes for the second time were before.
                if tick > *at {
                    return Some(tick);
                }
            }
        }

        fn last_set_time_until(&self, at: &DateTime<Tz>) -> Option<DateTime<Tz>> {
            let local = at.naive_local();
            // In an hour that comes for the second time, all of that hour has been.
            let again = match self.zone.from_local_datetime(&local) {
                MappedLocalTime::Ambiguous(one, other) => *at - one.min(other),
                _ => chrono::TimeDelta::zero(),
            };
            let mut local = local.checked_add_signed(again)?.and_utc();
            let mut inclusive = true;
            loop {
                local = self.pattern.find_previous_occurrence(&local, inclusive).ok()?;
                let tick = self.moment_of(local.naive_utc())?;
                if tick <= *at {
                    return Some(tick);
                }
                inclusive = false;
            }
        }

        /// When it is this local time for the first time; where it is left out, the first moment after the gap.
        fn moment_of(&self, local: NaiveDateTime) -> Option<DateTime<Tz>> {
            match self.zone.from_local_datetime(&local) {
                MappedLocalTime::Single(moment) => return Some(moment),
                MappedLocalTime::Ambiguous(one, other) => return Some(one.min(other)),
                MappedLocalTime::None => {}
            }
            let seconds = local.and_utc().timestamp();
            let moment = |at| Some(DateTime::<Utc>::from_timestamp(at, 0)?.with_timezone(&self.zone));
            // No zone is two days from UTC.
            let (mut before, mut behind) = (seconds - 2 * 86_400, seconds + 2 * 86_400);
            while behind - before > 1 {
                let middle = before.midpoint(behind);
                if moment(middle)?.naive_local() > local {
                    behind = middle;
                } else {
                    before = middle;
                }
            }
            moment(behind)
        }

        /// To the second, so that no tick has a part of one.
        fn local(&self, at: i64) -> Option<DateTime<Tz>> {
            let at = DateTime::<Utc>::from_timestamp(at.div_euclid(1_000_000), 0)?;
            Some(at.with_timezone(&self.zone))
        }
    }

    fn parse(expression: &str) -> Result<croner::Cron, CronError> {
        CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build().parse(expression)
    }

    fn zone(name: &str) -> Result<Tz> {
        name.parse().map_err(|_| {
            let written = TZ_VARIANTS.iter().find(|zone| zone.name().eq_ignore_ascii_case(name));
            let short: String = name.chars().take(EXPRESSION_MAX).collect();
            let reason = written.map_or_else(
                || "no such name in the IANA database, as Europe/Berlin and UTC are".to_owned(),
                |zone| format!("it is written {zone}"),
            );
            Error::invalid("time_zone", format!("`{short}`: {reason}"))
        })
    }

    /// The crate does not say in which field it is: the first that is refused among fields that fit everything.
    fn place_of(expression: &str) -> Option<String> {
        const NAMES: [&str; 6] = ["second", "minute", "hour", "day of the month", "month", "day of the week"];
        let fields: Vec<&str> = expression.split_whitespace().collect();
        let names = NAMES.get(6_usize.checked_sub(fields.len())?..).filter(|names| names.len() >= 5)?;
        let is_wrong = |(at, field): &(usize, &&str)| {
            let mut others = vec!["*"; fields.len()];
            others[*at] = field;
            parse(&others.join(" ")).is_err()
        };
        let (at, field) = fields.iter().enumerate().find(is_wrong)?;
        Some(format!("the {} `{field}`: ", names[at]))
    }

    fn describe(error: &CronError) -> String {
        let text = match error {
            CronError::EmptyPattern => "it is empty",
            // Its own words speak of years.
            CronError::InvalidPattern(_) => "must have 5 fields, or 6 with the second first",
            CronError::IllegalCharacters(_) => "has a character or name that does not belong there",
            CronError::ComponentError(text) => text.trim_end_matches('.'),
            error => return error.to_string(),
        };
        let mut letters = text.chars();
        letters
            .next()
            .map_or_else(String::new, |first| first.to_lowercase().collect::<String>() + letters.as_str())
    }
}

#[cfg(not(feature = "cron"))]
mod without_crate {
    use crate::error::{Error, Result};

    /// There is none.
    pub(crate) enum Cron {}

    impl Cron {
        pub(crate) fn new(_expression: &str, _time_zone: &str) -> Result<Self> {
            Err(Error::FeatureMissing { what: "a schedule by a cron expression", feature: "cron" })
        }

        pub(crate) fn check(&self, _expression: &str) -> Result<()> {
            match *self {}
        }

        pub(crate) fn after(&self, _at: i64) -> Option<i64> {
            match *self {}
        }

        pub(crate) fn last_until(&self, _at: i64) -> Option<i64> {
            match *self {}
        }
    }
}

#[cfg(feature = "cron")]
pub(crate) use self::with_crate::Cron;
#[cfg(not(feature = "cron"))]
pub(crate) use self::without_crate::Cron;

#[cfg(all(test, feature = "cron"))]
mod tests {
    use super::Cron;

    const SECOND: i64 = 1_000_000;
    /// 2026-01-01T00:00:00Z, and a year later.
    const BEGIN: i64 = 1_767_225_600 * SECOND;
    const END: i64 = BEGIN + 365 * 86_400 * SECOND;

    /// Lists and ranges as well: the crate's own rule is for a single time.
    #[test]
    fn set_times_come_once_a_day_where_clocks_change() {
        const MINUTE: i64 = 60 * SECOND;
        // Where it is local midnight in UTC on the day of the change, the hours of the expression, and the ticks in minutes after it.
        for (zone, midnight, expression, expected) in [
            // 02:00 to 03:00 is left out, and comes twice.
            ("Europe/Berlin", 1_774_738_800, "0 2,14 * * *", &[120, 13 * 60][..]),
            ("Europe/Berlin", 1_774_738_800, "30 1,2 * * *", &[90, 120]),
            ("Europe/Berlin", 1_774_738_800, "15,45 1-3 * * *", &[75, 105, 120, 135, 165]),
            ("Europe/Berlin", 1_792_879_200, "0 2,14 * * *", &[120, 15 * 60]),
            ("Europe/Berlin", 1_792_879_200, "15,45 1-3 * * *", &[75, 105, 135, 165, 255, 285]),
            // Half an hour.
            ("Australia/Lord_Howe", 1_775_307_600, "0,45 1,2 * * *", &[60, 105, 150, 195]),
            // Midnight is left out: the day begins at one.
            ("Asia/Beirut", 1_774_735_200, "0 0,2 * * *", &[0, 60]),
        ] {
            let cron = Cron::new(expression, zone).unwrap();
            let midnight = midnight * SECOND;
            let expected: Vec<i64> = expected.iter().map(|minutes| midnight + minutes * MINUTE).collect();
            let ticks = |at| cron.after(at).filter(|tick| *tick < midnight + 23 * 60 * MINUTE);
            let found: Vec<i64> = std::iter::successors(ticks(midnight - 1), |tick| ticks(*tick)).collect();
            assert_eq!(found, expected, "{expression} in {zone}");
            for minute in 0..23 * 60 {
                let at = midnight + minute * MINUTE;
                let next = expected.iter().copied().find(|tick| *tick > at);
                assert!(next.is_none() || cron.after(at) == next, "{expression} in {zone}: after {minute}");
                let last = expected.iter().copied().rev().find(|tick| *tick <= at);
                assert!(
                    last.is_none() || cron.last_until(at) == last,
                    "{expression} in {zone}: until {minute}"
                );
            }
        }
    }

    /// What the misfire rules find going back is what comes going forward, also where the clocks change: otherwise a tick could be
    /// published that never came, or be left out.
    #[test]
    fn the_ticks_are_the_same_in_both_directions() {
        for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "UTC"] {
            for expression in [
                "30 2 * * *",
                "*/30 * * * *",
                "15 2 * * 0",
                "0 0 * * *",
                "30 1,2 * * *",
                "*/7 1-3 * * *",
                "0 3 L * *",
            ] {
                let cron = Cron::new(expression, zone).unwrap();
                let mut forward = Vec::new();
                let mut at = BEGIN;
                while let Some(tick) = cron.after(at).filter(|tick| *tick <= END) {
                    assert!(tick > at, "{expression} in {zone}: {tick} after {at}");
                    forward.push(tick);
                    at = tick;
                }
                let mut back = Vec::new();
                let mut at = END;
                while let Some(tick) = cron.last_until(at).filter(|tick| *tick > BEGIN) {
                    back.push(tick);
                    at = tick - 1;
                }
                back.reverse();
                assert!(forward.len() >= 12);
                assert_eq!(forward, back, "{expression} in {zone}");
            }
        }
    }

    #[test]
    fn a_moment_within_a_second_has_the_ticks_of_its_neighbours() {
        let cron = Cron::new("*/5 * * * * *", "UTC").unwrap();
        for micros in [0, 1, 999_999, 4_999_999] {
            assert_eq!(cron.last_until(BEGIN + micros), Some(BEGIN), "{micros}");
            assert_eq!(cron.after(BEGIN + micros), Some(BEGIN + 5 * SECOND), "{micros}");
        }
        assert_eq!(cron.last_until(BEGIN - 1), Some(BEGIN - 5 * SECOND));
        assert_eq!(cron.after(BEGIN - 1), Some(BEGIN));
    }
}
