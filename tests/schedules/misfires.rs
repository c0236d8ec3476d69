//! Ticks that nobody was there for.

use std::time::Duration;

use postbox::{Misfire, Schedule};

use crate::support::{Calls, TestBox, boxes, ends, event, file_box};
use crate::{DAY, HOUR, MINUTE, minutely, note_ticks, seconds, stored};

/// An hourly schedule that nobody ticks for so long.
fn after_silence(misfire: Misfire, silence: Duration) -> [(TestBox, Calls); 2] {
    boxes().map(|test| {
        let calls = note_ticks(&test.bus);
        test.bus.schedules().put("s", Schedule::every(HOUR, event("tick")).misfire(misfire)).unwrap();
        test.clock.advance(silence);
        test.bus.drain().unwrap();
        (test, calls)
    })
}

#[track_caller]
fn assert_goes_on(test: &TestBox, calls: &Calls, hour: u32) {
    calls.take();
    let until = i64::from(hour) * 3_600;
    assert_eq!(seconds(stored(&test.bus, "s").next_at), Some(until));
    let left = stored(&test.bus, "s").next_at.unwrap() - postbox::Clock::now(&test.clock);
    test.clock.advance(left.try_into().unwrap());
    test.bus.drain().unwrap();
    assert_eq!(calls.take(), [format!("s@{until}")]);
}

#[test]
fn skip_publishes_none_of_them() {
    for (test, calls) in after_silence(Misfire::Skip, HOUR * 5 + MINUTE * 30) {
        assert_eq!(calls.all(), [""; 0], "{}", test.kind);
        assert_eq!(stored(&test.bus, "s").last_at, None);
        assert_goes_on(&test, &calls, 6);
    }
}

#[test]
fn skip_publishes_a_tick_that_is_up_to_a_minute_late() {
    for (late, expected) in [
        (Duration::ZERO, vec!["s@3600"]),
        (MINUTE, vec!["s@3600"]),
        (MINUTE + Duration::from_micros(1), vec![]),
    ] {
        for (test, calls) in after_silence(Misfire::Skip, HOUR + late) {
            assert_eq!(calls.all(), expected, "{}: {late:?}", test.kind);
        }
    }
    // The last is on time; those before are not.
    for (test, calls) in after_silence(Misfire::Skip, HOUR * 3 + MINUTE) {
        assert_eq!(calls.all(), ["s@10800"], "{}", test.kind);
    }
}

#[test]
fn once_is_the_default_and_publishes_the_last_of_them() {
    assert_eq!(Misfire::default(), Misfire::Once);
    for (test, calls) in after_silence(Misfire::Once, HOUR * 5 + MINUTE * 30) {
        assert_eq!(calls.all(), ["s@18000"], "{}", test.kind);
        assert_goes_on(&test, &calls, 6);
    }
    // One on time stands for those that were missed as well.
    for (test, calls) in after_silence(Misfire::Once, HOUR * 5) {
        assert_eq!(calls.all(), ["s@18000"], "{}", test.kind);
    }
}

#[test]
fn all_publishes_each_but_no_more_than_so_many_of_the_newest() {
    for (test, calls) in after_silence(Misfire::All { max: 3 }, HOUR * 5 + MINUTE * 30) {
        assert_eq!(calls.all(), ["s@10800", "s@14400", "s@18000"], "{}", test.kind);
        assert_goes_on(&test, &calls, 6);
    }
    for (test, calls) in after_silence(Misfire::All { max: 3 }, HOUR * 2 + MINUTE * 30) {
        assert_eq!(calls.all(), ["s@3600", "s@7200"], "{}", test.kind);
        assert_goes_on(&test, &calls, 3);
    }
}

#[test]
fn the_rule_holds_over_a_restart() {
    for (misfire, expected) in [
        (Misfire::Skip, vec![]),
        (Misfire::Once, vec!["s@18000"]),
        (Misfire::All { max: 2 }, vec!["s@14400", "s@18000"]),
    ] {
        let test = file_box();
        test.bus.schedules().put("s", Schedule::every(HOUR, event("tick")).misfire(misfire)).unwrap();
        let test = test.reopen();
        test.clock.advance(HOUR * 5 + MINUTE * 30);
        // By a process that has not put it.
        let test = test.reopen();
        let calls = note_ticks(&test.bus);
        test.bus.drain().unwrap();
        assert_eq!(calls.all(), expected, "{misfire}");
        let test = test.reopen();
        let calls = note_ticks(&test.bus);
        test.bus.drain().unwrap();
        assert_eq!(calls.all(), [""; 0], "{misfire}: no tick twice");
        assert_goes_on(&test, &calls, 6);
    }
}

#[test]
fn while_processing_is_off_nothing_ticks_and_the_rule_decides_afterwards() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        test.bus.schedules().put("s", minutely().misfire(Misfire::All { max: 2 })).unwrap();
        test.bus.update_settings(|settings| settings.enabled = false).unwrap();
        test.clock.advance(MINUTE * 5);
        test.bus.drain().unwrap();
        assert_eq!(test.bus.process_batch().unwrap(), 0);
        assert_eq!(
            (test.bus.stats().unwrap().pending, seconds(stored(&test.bus, "s").next_at)),
            (0, Some(60))
        );
        test.bus.update_settings(|settings| settings.enabled = true).unwrap();
        test.bus.drain().unwrap();
        assert_eq!(calls.all(), ["s@240", "s@300"], "{}", test.kind);
    }
}

#[test]
fn a_batch_by_hand_publishes_what_has_come_first() {
    for test in boxes() {
        let calls = note_ticks(&test.bus);
        test.bus.schedules().put("s", minutely()).unwrap();
        test.clock.advance(MINUTE);
        assert_eq!(test.bus.process_batch().unwrap(), 1, "{}", test.kind);
        assert_eq!(calls.all(), ["s@60"]);
    }
}

/// Thirty million ticks, and nearly thirty thousand million: one by one they would take minutes, and years.
#[test]
fn a_year_of_seconds_and_a_century_of_tenths_cost_what_is_published() {
    for (interval, silence) in
        [(Duration::from_secs(1), DAY * 365), (Duration::from_millis(100), DAY * 36_500)]
    {
        for (misfire, published) in
            [(Misfire::Skip, 1), (Misfire::Once, 1), (Misfire::All { max: 1_000 }, 1_000)]
        {
            let test = file_box();
            test.bus.schedules().put("s", Schedule::every(interval, event("tick")).misfire(misfire)).unwrap();
            test.clock.advance(silence);
            let bus = test.bus.clone();
            assert_eq!(ends(move || bus.drain().unwrap()), published, "{misfire}");
            let last = i64::try_from(silence.as_secs()).unwrap();
            assert_eq!(seconds(stored(&test.bus, "s").last_at), Some(last));
        }
    }
}
