//! Cron expressions in time zones.

use postbox::testing::ManualClock;
use postbox::{Error, Misfire, Postbox, Schedule, ScheduleRule};
use time::{Date, Month, OffsetDateTime, UtcOffset};

use crate::support::{ends, event, file_box};
use crate::{DAY, HOUR, MINUTE, note_ticks, stored};

fn utc(year: i32, month: u8, day: u8, hour: u8, minute: u8) -> OffsetDateTime {
    let date = Date::from_calendar_date(year, Month::try_from(month).unwrap(), day).unwrap();
    date.with_hms(hour, minute, 0).unwrap().assume_utc()
}

/// As a clock in Berlin shows it, with the hours that it is ahead.
fn shown(at: OffsetDateTime, ahead: i8) -> String {
    let at = at.to_offset(UtcOffset::from_hms(ahead, 0, 0).unwrap());
    format!("{:02}-{:02} {:02}:{:02}+{ahead}", u8::from(at.month()), at.day(), at.hour(), at.minute())
}

fn times(expression: &str, time_zone: &str, from: OffsetDateTime, count: usize) -> Vec<OffsetDateTime> {
    let bus = Postbox::builder().clock(ManualClock::new(from)).open_in_memory().unwrap();
    bus.schedules().put("s", Schedule::cron(expression, time_zone, event("tick"))).unwrap();
    bus.schedules().next_times("s", count).unwrap()
}

#[test]
fn a_local_time_that_is_left_out_in_march_becomes_the_first_after_the_gap() {
    // In Berlin 02:00 to 03:00 is left out on 29 March 2026.
    let ticks = times("30 2 * * *", "Europe/Berlin", utc(2026, 3, 27, 12, 0), 4);
    let ahead = [1, 2, 2, 2];
    let ticks: Vec<_> = ticks.into_iter().zip(ahead).map(|(at, ahead)| shown(at, ahead)).collect();
    assert_eq!(ticks, ["03-28 02:30+1", "03-29 03:00+2", "03-30 02:30+2", "03-31 02:30+2"]);
}

#[test]
fn a_local_time_that_comes_twice_in_october_is_taken_once_the_first_time() {
    // In Berlin 02:00 to 03:00 comes twice on 25 October 2026.
    let ticks = times("30 2 * * *", "Europe/Berlin", utc(2026, 10, 23, 12, 0), 4);
    let ahead = [2, 2, 1, 1];
    let ticks: Vec<_> = ticks.into_iter().zip(ahead).map(|(at, ahead)| shown(at, ahead)).collect();
    assert_eq!(ticks, ["10-24 02:30+2", "10-25 02:30+2", "10-26 02:30+1", "10-27 02:30+1"]);
}

/// Lists were taken for intervals: two in the morning was left out in March, and came twice in October.
#[test]
fn of_several_local_times_a_day_none_is_left_out_and_none_is_doubled() {
    for (from, ahead, expected) in [
        (
            utc(2026, 3, 28, 12, 0),
            [1, 2, 2, 2],
            ["03-28 14:00+1", "03-29 03:00+2", "03-29 14:00+2", "03-30 02:00+2"],
        ),
        (
            utc(2026, 10, 24, 11, 0),
            [2, 2, 1, 1],
            ["10-24 14:00+2", "10-25 02:00+2", "10-25 14:00+1", "10-26 02:00+1"],
        ),
    ] {
        let ticks = times("0 2,14 * * *", "Europe/Berlin", from, 4);
        let ticks: Vec<_> = ticks.into_iter().zip(ahead).map(|(at, ahead)| shown(at, ahead)).collect();
        assert_eq!(ticks, expected);
    }
}

#[test]
fn every_half_hour_goes_by_the_local_times_that_there_are() {
    let ticks = times("*/30 * * * *", "Europe/Berlin", utc(2026, 3, 29, 0, 0), 4);
    let ticks: Vec<_> = ticks.into_iter().zip([1, 2, 2, 2]).map(|(at, ahead)| shown(at, ahead)).collect();
    assert_eq!(ticks, ["03-29 01:30+1", "03-29 03:00+2", "03-29 03:30+2", "03-29 04:00+2"]);
    let ticks = times("*/30 * * * *", "Europe/Berlin", utc(2026, 10, 24, 23, 45), 6);
    let ticks: Vec<_> =
        ticks.into_iter().zip([2, 2, 1, 1, 1, 1]).map(|(at, ahead)| shown(at, ahead)).collect();
    assert_eq!(ticks[..4], ["10-25 02:00+2", "10-25 02:30+2", "10-25 02:00+1", "10-25 02:30+1"]);
    assert_eq!(ticks[4..], ["10-25 03:00+1", "10-25 03:30+1"]);
}

#[test]
fn both_days_of_the_change_publish_one_event_each_also_when_they_are_found_late() {
    for (from, expected) in [
        (utc(2026, 3, 28, 12, 0), [utc(2026, 3, 29, 1, 0), utc(2026, 3, 30, 0, 30)]),
        (utc(2026, 10, 24, 12, 0), [utc(2026, 10, 25, 0, 30), utc(2026, 10, 26, 1, 30)]),
    ] {
        for at_once in [true, false] {
            let clock = ManualClock::new(from);
            let bus = Postbox::builder().clock(clock.clone()).open_in_memory().unwrap();
            let calls = note_ticks(&bus);
            let daily = Schedule::cron("30 2 * * *", "Europe/Berlin", event("tick"));
            bus.schedules().put("s", daily.misfire(Misfire::All { max: 9 })).unwrap();
            for _ in 0..(48 * 4) {
                clock.advance(MINUTE * 15);
                if !at_once {
                    bus.drain().unwrap();
                }
            }
            bus.drain().unwrap();
            let expected: Vec<_> = expected
                .iter()
                .map(|at| format!("s@{}", (*at - crate::support::start_time()).whole_seconds()))
                .collect();
            assert_eq!(calls.all(), expected);
        }
    }
}

#[test]
fn expressions_have_names_lists_steps_seconds_and_both_days() {
    let from = utc(2026, 11, 28, 12, 0); // a Saturday
    let first = |expression| times(expression, "UTC", from, 1)[0];
    assert_eq!(first("0 6 * * 1-5"), utc(2026, 11, 30, 6, 0));
    assert_eq!(first("0 6 * * MON-FRI"), utc(2026, 11, 30, 6, 0));
    assert_eq!(first("0 6 * * 7"), utc(2026, 11, 29, 6, 0));
    assert_eq!(first("0 6 * * sun"), utc(2026, 11, 29, 6, 0));
    assert_eq!(first("15,45 * * * *"), utc(2026, 11, 28, 12, 15));
    assert_eq!(first("*/20 13-14 * * *"), utc(2026, 11, 28, 13, 0));
    assert_eq!(first("0 0 1 1 *"), utc(2027, 1, 1, 0, 0));
    assert_eq!(first("0 0 29 2 *"), utc(2028, 2, 29, 0, 0));
    assert_eq!(first("0 0 30 * 1"), utc(2026, 11, 30, 0, 0), "either day");
    assert_eq!(first("0 0 2 * 0"), utc(2026, 11, 29, 0, 0), "either day");
    assert_eq!(first("@daily"), utc(2026, 11, 29, 0, 0));
    assert_eq!(first("@hourly"), utc(2026, 11, 28, 13, 0));
    assert_eq!(first("0 0 L * *"), utc(2026, 11, 30, 0, 0));
    assert_eq!(times("*/10 * * * * *", "UTC", from, 2)[1] - from, time::Duration::seconds(20));
}

#[test]
fn bad_expressions_and_zones_are_refused_by_name_and_place() {
    let test = file_box();
    let put = |expression: &str, zone: &str| {
        test.bus.schedules().put("s", Schedule::cron(expression, zone, event("tick"))).unwrap_err()
    };
    for (expression, words) in [
        ("61 * * * *", "`61 * * * *`: the minute `61`: number out of bounds"),
        ("0 25 * * *", "the hour `25`"),
        ("0 0 32 * *", "the day of the month `32`"),
        ("0 0 * 13 *", "the month `13`"),
        ("0 0 * * 8", "the day of the week `8`"),
        ("0 0 * * MON-FRY", "the day of the week `MON-FRY`: has a character or name"),
        ("60 0 0 * * *", "the second `60`"),
        ("*/0 * * * *", "the minute `*/0`: step cannot be zero"),
        ("5-1 * * * *", "the minute `5-1`"),
        ("* * * *", "`* * * *`: must have 5 fields, or 6 with the second first"),
        ("* * * * * * *", "must have 5 fields"),
        ("* * * * * 2030", "the day of the week `2030`"),
        ("@reboot", "`@reboot`: must have 5 fields"),
        ("every day", "must have 5 fields"),
        ("0 0 30 2 *", "`0 0 30 2 *`: there is no such day, ever"),
        ("", "empty or blank"),
        ("   ", "empty or blank"),
    ] {
        let error = put(expression, "Europe/Berlin");
        assert!(matches!(error, Error::Invalid { field: "expression", .. }), "{expression}: {error}");
        assert!(error.to_string().contains(words), "{expression}: {error}");
    }
    let error = put(&"1,".repeat(200), "UTC");
    assert!(error.to_string().contains("at most 255"), "{error}");
    for (zone, words) in [
        ("Europe/Berlinn", "`Europe/Berlinn`: no such name"),
        ("europe/berlin", "`europe/berlin`: it is written Europe/Berlin"),
        ("", "``: no such name"),
        ("+02:00", "no such name"),
    ] {
        let error = put("* * * * *", zone);
        assert!(matches!(error, Error::Invalid { field: "time_zone", .. }), "{zone}: {error}");
        assert!(error.to_string().contains(words), "{zone}: {error}");
    }
    assert_eq!(test.bus.schedules().list().unwrap(), []);
}

#[test]
fn a_cron_schedule_goes_on_after_a_restart_by_whatever_process() {
    let test = file_box();
    let hourly = || Schedule::cron("0 * * * *", "Europe/Berlin", event("tick"));
    let put = test.bus.schedules().put("s", hourly()).unwrap();
    let rule =
        ScheduleRule::Cron { expression: "0 * * * *".to_owned(), time_zone: "Europe/Berlin".to_owned() };
    assert_eq!(put.rule.as_ref(), Some(&rule));
    assert_eq!(put.next_at, Some(utc(2023, 11, 14, 23, 0)));
    test.clock.advance(HOUR);
    let test = test.reopen();
    assert_eq!(test.bus.schedules().put("s", hourly()).unwrap(), put);
    assert_eq!(test.bus.drain().unwrap(), 1);
    let test = test.reopen();
    assert_eq!(test.bus.drain().unwrap(), 0);
    let after = stored(&test.bus, "s");
    assert_eq!((after.last_at, after.next_at), (put.next_at, Some(utc(2023, 11, 15, 0, 0))));
    // In another zone it has other ticks.
    let daily = |zone| Schedule::cron("0 6 * * *", zone, event("tick"));
    assert_eq!(test.bus.schedules().put("s", daily("UTC")).unwrap().next_at, Some(utc(2023, 11, 15, 6, 0)));
    let berlin = test.bus.schedules().put("s", daily("Europe/Berlin")).unwrap();
    assert_eq!(berlin.next_at, Some(utc(2023, 11, 15, 5, 0)));
}

#[test]
fn a_year_of_seconds_by_an_expression_costs_what_is_published() {
    let test = file_box();
    let each_second = Schedule::cron("* * * * * *", "Europe/Berlin", event("tick"));
    test.bus.schedules().put("s", each_second.misfire(Misfire::All { max: 50 })).unwrap();
    test.clock.advance(DAY * 365);
    let bus = test.bus.clone();
    assert_eq!(ends(move || bus.drain().unwrap()), 50);
}
