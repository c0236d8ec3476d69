//! Schedules that are paused.

use postbox::Misfire;

use crate::support::{boxes, event, file_box, start_time};
use crate::{HOUR, MINUTE, minutely, note_ticks, seconds, stored};

#[test]
fn ticks_of_a_pause_are_not_missed_whatever_the_rule() {
    for misfire in [Misfire::Skip, Misfire::Once, Misfire::All { max: 100 }] {
        for test in boxes() {
            let calls = note_ticks(&test.bus);
            let schedules = test.bus.schedules();
            schedules.put("s", minutely().misfire(misfire)).unwrap();
            assert!(schedules.pause("s").unwrap());
            assert!(!schedules.pause("s").unwrap(), "it is");
            test.clock.advance(HOUR);
            test.bus.drain().unwrap();
            let paused = stored(&test.bus, "s");
            assert_eq!((paused.next_at, paused.paused_at), (None, Some(start_time())));
            let next = schedules.next_times("s", 1).unwrap();
            assert_eq!(next, [start_time() + HOUR + MINUTE], "if it were resumed");
            assert!(schedules.resume("s").unwrap());
            assert!(!schedules.resume("s").unwrap(), "it runs");
            test.bus.drain().unwrap();
            assert_eq!(calls.all(), [""; 0], "{} {misfire}", test.kind);
            test.clock.advance(MINUTE);
            test.bus.drain().unwrap();
            assert_eq!(calls.all(), ["s@3660"], "{} {misfire}", test.kind);
        }
    }
}

#[test]
fn a_pause_outlives_a_restart_and_whatever_is_put() {
    let test = file_box();
    test.bus.schedules().put("s", minutely()).unwrap();
    test.bus.schedules().pause("s").unwrap();
    let test = test.reopen();
    let calls = note_ticks(&test.bus);
    for schedule in
        [minutely(), minutely().misfire(Misfire::Skip), postbox::Schedule::every(MINUTE * 2, event("tick"))]
    {
        let put = test.bus.schedules().put("s", schedule).unwrap();
        assert_eq!((put.paused_at, put.next_at), (Some(start_time()), None));
        test.clock.advance(MINUTE * 5);
        test.bus.drain().unwrap();
    }
    assert_eq!(calls.all(), [""; 0]);
    test.bus.schedules().resume("s").unwrap();
    // Counted from when the last rule was put, after ten minutes.
    assert_eq!(seconds(stored(&test.bus, "s").next_at), Some(16 * 60));
}

#[test]
fn a_pause_in_a_transaction_holds_when_that_commits() {
    for test in boxes() {
        test.bus.schedules().put("s", minutely()).unwrap();
        let rolled_back = test.bus.transaction(|tx| -> Result<(), postbox::Error> {
            tx.schedules().pause("s")?;
            tx.schedules().remove("s")?;
            Err(postbox::Error::Invalid { field: "x", reason: String::new() })
        });
        rolled_back.unwrap_err();
        assert_eq!(stored(&test.bus, "s").paused_at, None);
        test.bus.transaction(|tx| tx.schedules().pause("s")).unwrap();
        assert_eq!(stored(&test.bus, "s").paused_at, Some(start_time()), "{}", test.kind);
    }
}
