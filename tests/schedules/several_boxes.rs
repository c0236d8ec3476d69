//! Several boxes on one file, and many schedules.

use std::sync::Barrier;

use postbox::{Misfire, Schedule};

use crate::support::{boxes, event, file_box, wait_until};
use crate::{LIMIT, MINUTE, minutely, note_ticks, stored};

#[test]
fn of_boxes_that_tick_at_the_same_moment_one_publishes() {
    let test = file_box();
    let others: Vec<_> = (0..4).map(|_| test.second()).collect();
    test.bus.schedules().put("s", minutely().misfire(Misfire::All { max: 3 })).unwrap();
    for round in 1..=30_u64 {
        test.clock.advance(MINUTE * 3);
        let ready = Barrier::new(others.len());
        std::thread::scope(|scope| {
            for other in &others {
                scope.spawn(|| {
                    ready.wait();
                    other.drain().unwrap();
                });
            }
        });
        wait_until(LIMIT, || test.bus.stats().unwrap().processed == round * 3);
        assert_eq!(test.bus.stats().unwrap().total, round * 3);
    }
}

#[test]
fn what_one_box_puts_pauses_and_removes_is_so_for_the_other() {
    let test = file_box();
    let other = test.second();
    let calls = note_ticks(&other);
    test.bus.schedules().put("s", minutely()).unwrap();
    test.clock.advance(MINUTE);
    assert_eq!(other.drain().unwrap(), 1);
    assert_eq!(test.bus.drain().unwrap(), 0);
    test.bus.schedules().pause("s").unwrap();
    test.clock.advance(MINUTE);
    assert_eq!(other.drain().unwrap(), 0);
    test.bus.schedules().resume("s").unwrap();
    test.clock.advance(MINUTE);
    assert_eq!(other.drain().unwrap(), 1);
    assert!(other.schedules().remove("s").unwrap());
    test.clock.advance(MINUTE);
    assert_eq!((test.bus.drain().unwrap(), other.drain().unwrap()), (0, 0));
    assert_eq!(calls.all(), ["s@60", "s@180"]);
}

#[test]
fn a_thousand_schedules_tick_together_and_each_at_its_own_time() {
    for test in boxes() {
        for n in 0..1_000_u32 {
            let interval = MINUTE * (1 + n % 10);
            test.bus.schedules().put(&format!("s-{n:04}"), Schedule::every(interval, event("tick"))).unwrap();
        }
        let mut published = 0;
        for minute in 1..=10 {
            test.clock.advance(MINUTE);
            published += (1..=10).filter(|every| minute % every == 0).count() * 100;
            test.bus.drain().unwrap();
            assert_eq!(test.bus.stats().unwrap().processed, published as u64, "{} {minute}", test.kind);
        }
        assert_eq!(test.bus.schedules().list().unwrap().len(), 1_000);
        assert!(stored(&test.bus, "s-0999").last_at.is_some());
    }
}
