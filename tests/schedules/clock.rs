//! Clocks that jump.

use postbox::{Misfire, Schedule};

use crate::support::{boxes, event, file_box, just_before, start_time};
use crate::{DAY, HOUR, MINUTE, minutely, note_ticks, seconds, stored};

fn hourly() -> Schedule {
    Schedule::every(HOUR, event("tick"))
}

#[test]
fn ticks_are_the_wall_clock_s_however_far_the_box_s_time_is_ahead() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        // The box's time goes on from there.
        test.clock.advance(HOUR * 10);
        test.bus.publish(event("other")).unwrap();
        test.clock.set(start_time());
        test.bus.schedules().put("s", hourly()).unwrap();
        test.bus.drain().unwrap();
        test.clock.advance(HOUR);
        test.bus.drain().unwrap();
        assert_eq!(calls.all(), ["s@3600"], "{}", test.kind);
    }
}

#[test]
fn after_an_hour_back_no_tick_comes_twice() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        test.bus.schedules().put("s", minutely()).unwrap();
        for _ in 0..90 {
            test.clock.advance(MINUTE);
            test.bus.drain().unwrap();
        }
        assert_eq!(calls.take().len(), 90);
        test.clock.set(start_time() + MINUTE * 30);
        for _ in 0..60 {
            test.bus.drain().unwrap();
            test.clock.advance(MINUTE);
        }
        assert_eq!(calls.take(), [""; 0], "{}: up to the 90th minute", test.kind);
        // Nor by changing its rule, or by a pause.
        test.clock.set(start_time() + MINUTE * 30);
        test.bus.schedules().put("s", minutely().starting_at(start_time())).unwrap();
        test.bus.schedules().pause("s").unwrap();
        test.bus.schedules().resume("s").unwrap();
        for _ in 0..62 {
            test.bus.drain().unwrap();
            test.clock.advance(MINUTE);
        }
        assert_eq!(calls.take(), ["s@5460"]);
    }
}

#[test]
fn after_an_hour_back_no_tick_comes_twice_also_after_a_restart() {
    let test = file_box();
    test.bus.schedules().put("s", minutely().misfire(Misfire::All { max: 1_000 })).unwrap();
    test.clock.advance(HOUR);
    test.bus.drain().unwrap();
    assert_eq!(test.bus.stats().unwrap().processed, 60);
    test.clock.set(start_time());
    let test = test.reopen();
    let calls = note_ticks(&test.bus);
    test.clock.advance(MINUTE * 59);
    test.bus.drain().unwrap();
    test.clock.advance(MINUTE * 2);
    test.bus.drain().unwrap();
    assert_eq!(calls.all(), ["s@3660"]);
}

#[test]
fn after_more_than_a_day_back_ticks_go_on_from_the_new_time() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        test.clock.advance(DAY * 400);
        test.bus.schedules().put("s", hourly()).unwrap();
        test.bus.schedules().put("never ticked", hourly()).unwrap();
        test.bus.schedules().pause("never ticked").unwrap();
        test.clock.advance(HOUR);
        test.bus.drain().unwrap();
        calls.take();
        // It was wrong all the time.
        test.clock.set(start_time());
        test.bus.drain().unwrap();
        assert_eq!(seconds(stored(&test.bus, "s").next_at), Some(3_600), "{}", test.kind);
        assert_eq!(stored(&test.bus, "s").last_at, None, "that was no tick");
        assert!(test.bus.schedules().resume("never ticked").unwrap());
        test.clock.advance(HOUR);
        test.bus.drain().unwrap();
        assert_eq!(calls.take(), ["s@3600", "never ticked@3600"], "{}", test.kind);
        test.clock.set(start_time());
        test.clock.advance(HOUR);
        test.bus.drain().unwrap();
        assert_eq!(calls.take(), [""; 0]);
    }
}

#[test]
fn by_less_than_a_day_back_the_old_ticks_are_waited_for_and_by_a_day_not() {
    for (back, expected) in [(just_before(DAY), DAY + HOUR), (DAY, HOUR)] {
        let test = file_box();
        test.clock.advance(DAY);
        test.bus.schedules().put("s", hourly()).unwrap();
        test.clock.set(start_time() + DAY - back);
        test.bus.drain().unwrap();
        let expected = i64::try_from(expected.as_secs()).unwrap();
        assert_eq!(seconds(stored(&test.bus, "s").next_at), Some(expected), "{back:?}");
    }
}

#[test]
fn a_jump_ahead_is_ticks_that_were_missed() {
    for (misfire, expected) in [
        (Misfire::Skip, vec![]),
        (Misfire::Once, vec!["s@356400"]),
        (Misfire::All { max: 2 }, vec!["s@352800", "s@356400"]),
    ] {
        for test in boxes() {
            let calls = note_ticks(&test.bus);
            test.bus.schedules().put("s", hourly().misfire(misfire)).unwrap();
            test.clock.advance(HOUR * 99 + MINUTE * 5);
            test.bus.drain().unwrap();
            assert_eq!(calls.all(), expected, "{}: {misfire}", test.kind);
        }
    }
}

#[test]
fn a_machine_that_begins_in_1970_until_it_has_asked_for_the_time_publishes_no_tick_twice() {
    let test = file_box();
    test.bus.update_settings(|settings| settings.retention_ms = 1_000).unwrap();
    test.bus.schedules().put("s", hourly()).unwrap();
    test.clock.advance(HOUR);
    test.bus.drain().unwrap();
    // So that no idempotency key is there to help.
    test.clock.advance(MINUTE);
    assert_eq!(test.bus.prune().unwrap(), 1);
    let now = postbox::Clock::now(&test.clock);
    for passed in [0, 10, 80] {
        test.clock.set(time::OffsetDateTime::UNIX_EPOCH + MINUTE);
        test.bus.drain().unwrap();
        test.clock.set(now + MINUTE * passed);
        let calls = note_ticks_anew(&test.bus);
        test.bus.drain().unwrap();
        let expected: &[&str] = if passed == 80 { &["s@7200"] } else { &[] };
        assert_eq!(calls.all(), expected, "{passed}");
    }
}

fn note_ticks_anew(bus: &postbox::Postbox) -> crate::support::Calls {
    use std::sync::OnceLock;
    static CALLS: OnceLock<crate::support::Calls> = OnceLock::new();
    let calls = CALLS.get_or_init(|| note_ticks(bus));
    calls.take();
    calls.clone()
}

/// A clock that was days ahead for a moment, and that a tick came by: when the time came near that tick, those of the whole day before it
/// were left out.
#[test]
fn of_the_day_before_the_tick_of_a_clock_that_was_wrong_each_tick_comes() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        test.bus.schedules().put("s", hourly()).unwrap();
        test.clock.advance(DAY * 3);
        test.bus.drain().unwrap();
        assert_eq!(calls.take(), ["s@259200"], "{}", test.kind);
        test.clock.set(start_time() + MINUTE);
        for _ in 0..75 {
            test.bus.drain().unwrap();
            test.clock.advance(HOUR);
        }
        // The one has been.
        let expected: Vec<_> = (1..75).filter(|n| *n != 72).map(|n| format!("s@{}", n * 3_600)).collect();
        assert_eq!(calls.take(), expected, "{}", test.kind);
    }
}

/// The same with one tick a day, and with a clock that was hardly more than a day ahead: nothing has ticked by the right clock in between.
#[test]
fn a_daily_tick_comes_also_where_a_clock_was_a_little_more_than_a_day_ahead() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        test.bus
            .schedules()
            .put("s", Schedule::every(DAY, event("tick")).starting_at(start_time() + HOUR * 6))
            .unwrap();
        test.clock.advance(HOUR * 31);
        test.bus.drain().unwrap();
        assert_eq!(calls.take(), ["s@108000"], "{}", test.kind);
        test.clock.set(start_time() + MINUTE);
        for _ in 0..80 {
            test.bus.drain().unwrap();
            test.clock.advance(HOUR);
        }
        assert_eq!(calls.take(), ["s@21600", "s@194400", "s@280800"], "{}", test.kind);
    }
}

/// By days back for a moment, and then to a little before the last tick.
#[test]
fn a_clock_that_comes_back_to_just_before_its_last_tick_publishes_none_again() {
    for test in boxes() {
        test.bus.update_settings(|settings| settings.retention_ms = 1_000).unwrap();
        let calls = note_ticks(&test.bus);
        test.bus.schedules().put("s", minutely().misfire(Misfire::All { max: 1_000 })).unwrap();
        test.clock.advance(HOUR * 3);
        test.bus.drain().unwrap();
        assert_eq!(calls.take().len(), 180);
        // So that their ids are forgotten.
        test.clock.advance(MINUTE / 2);
        assert_eq!(test.bus.prune().unwrap(), 180);
        test.clock.set(start_time() - DAY * 3);
        test.bus.drain().unwrap();
        for minute in 178..=182 {
            test.clock.set(start_time() + MINUTE * minute);
            test.bus.drain().unwrap();
        }
        assert_eq!(calls.take(), ["s@10860", "s@10920"], "{}", test.kind);
    }
}

/// So many that they do not fit into what is written at a time: the others kept the next tick of the wrong clock.
#[test]
fn however_many_schedules_there_are_all_follow_a_clock_that_was_wrong() {
    let test = file_box();
    test.clock.advance(DAY * 3);
    test.bus
        .transaction(|tx| -> postbox::Result<()> {
            (0..3_000).try_for_each(|n| tx.schedules().put(&format!("s-{n}"), hourly()).map(drop))
        })
        .unwrap();
    test.clock.set(start_time());
    test.bus.drain().unwrap();
    let ahead = |schedule: &postbox::StoredSchedule| schedule.next_at > Some(start_time() + HOUR);
    assert_eq!(test.bus.schedules().list().unwrap().iter().filter(|schedule| ahead(schedule)).count(), 0);
}

/// Also those before its latest, which alone is noted with the schedule: the same tick has the same id.
#[test]
fn what_a_clock_that_was_wrong_has_published_for_hours_is_not_published_again_while_it_is_kept() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        test.bus.schedules().put("s", hourly()).unwrap();
        test.clock.advance(DAY * 3);
        for _ in 0..3 {
            test.bus.drain().unwrap();
            test.clock.advance(HOUR);
        }
        assert_eq!(calls.take(), ["s@259200", "s@262800", "s@266400"], "{}", test.kind);
        test.clock.set(start_time() + MINUTE);
        for _ in 0..77 {
            test.bus.drain().unwrap();
            test.clock.advance(HOUR);
        }
        let is_new = |n: &i32| !(72..=74).contains(n);
        let expected: Vec<_> = (1..77).filter(is_new).map(|n| format!("s@{}", n * 3_600)).collect();
        assert_eq!(calls.take(), expected, "{}", test.kind);
    }
}
