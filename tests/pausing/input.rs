//! What is refused, and what is shown of a pause.

use std::time::Duration;

use postbox::{Context, Error, Event, PauseTarget, Postbox, Subscription};

use crate::support::{SECOND, TestBox, assert_reentrant, boxes, file_box, refused_field, start_time};
use crate::{consumer, rows};

#[test]
fn bad_input_is_refused_by_its_name_and_nothing_is_paused() {
    for TestBox { kind, bus, .. } in &boxes() {
        for bad in ["", " ", "a\0b", &"c".repeat(256)] {
            assert_eq!(refused_field(bus.pause(&consumer(bad), None, None)), "consumer_name", "{kind}");
            assert_eq!(refused_field(bus.resume(&consumer(bad))), "consumer_name");
            assert_eq!(refused_field(bus.pause(&PauseTarget::event_name(bad), None, None)), "event_name");
            assert_eq!(
                refused_field(bus.transaction(|tx| tx.pause(&consumer(bad), None, None))),
                "consumer_name"
            );
        }
        for pattern in ["*", "invoice.*"] {
            assert_eq!(refused_field(bus.pause(&PauseTarget::event_name(pattern), None, None)), "event_name");
        }
        for reason in ["", "\t", "a\0b", &"r".repeat(1_024)] {
            assert_eq!(refused_field(bus.pause(&consumer("c"), Some(reason), None)), "reason", "{kind}");
        }
        for short in [Duration::ZERO, Duration::from_micros(99_999)] {
            assert_eq!(refused_field(bus.pause(&consumer("c"), None, Some(short))), "duration");
        }
        assert_eq!((bus.pauses().unwrap().len(), rows(bus)), (0, 0), "{kind}");
        // The longest of all are taken.
        bus.pause(&consumer(&"ü".repeat(255)), Some(&"r".repeat(1_023)), Some(Duration::MAX)).unwrap();
        assert_eq!(bus.pauses().unwrap()[0].until.unwrap().year(), 9999, "{kind}");
    }
}

#[test]
fn a_breaker_that_makes_no_sense_is_refused() {
    for TestBox { kind, bus, .. } in &boxes() {
        for (failures, pause) in [(0, SECOND), (1, Duration::ZERO), (1, Duration::from_millis(99))] {
            let subscription = Subscription::new("a", "c", |_: &Event, _: &Context<'_>| Ok(()))
                .circuit_breaker(failures, pause);
            assert_eq!(refused_field(bus.subscribe(subscription)), "circuit_breaker", "{kind}");
        }
    }
}

#[test]
fn inside_a_transaction_of_the_box_its_own_methods_are_used() {
    for TestBox { bus, .. } in &boxes() {
        bus.transaction(|_| -> postbox::Result<()> {
            assert_reentrant(bus.pause(&consumer("c"), None, None));
            assert_reentrant(bus.resume(&consumer("c")));
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_closed_box_pauses_nothing() {
    for test in boxes() {
        let clone = test.bus.clone();
        test.bus.close().unwrap();
        assert!(matches!(clone.pause(&consumer("c"), None, None), Err(Error::Closed { .. })));
        assert!(matches!(clone.resume(&consumer("c")), Err(Error::Closed { .. })));
        assert!(matches!(clone.pauses(), Err(Error::Closed { .. })));
    }
}

#[test]
fn a_box_that_only_reads_shows_pauses_and_makes_none() {
    let test = file_box();
    let pause = test.bus.pause(&consumer("c"), Some("offline"), None).unwrap();
    let reader = Postbox::open_read_only(test.path()).unwrap();
    assert_eq!(reader.pauses().unwrap(), [pause]);
    assert!(matches!(reader.pause(&consumer("d"), None, None), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.resume(&consumer("c")), Err(Error::ReadOnly { .. })));
    assert_eq!(rows(&test.bus), 1);
}

/// A handler may have quoted a payload as its reason.
#[test]
fn debug_shows_no_reason_and_json_shows_all() {
    for TestBox { kind, bus, .. } in &boxes() {
        let pause = bus.pause(&consumer("mail"), Some("secret"), Some(SECOND)).unwrap();
        let debug = format!("{pause:?}");
        assert!(debug.contains("mail") && !debug.contains("secret"), "{debug}");
        assert_eq!(pause.since, start_time(), "{kind}");
        assert_eq!(
            serde_json::to_value(&pause).unwrap(),
            serde_json::json!({
                "target": { "consumer": "mail" },
                "reason": "secret",
                "since": "2023-11-14T22:13:20.000000Z",
                "until": "2023-11-14T22:13:21.000000Z",
            })
        );
        assert_eq!(pause.target.to_string(), "consumer mail");
        assert_eq!(PauseTarget::event_name("a").to_string(), "event name a");
    }
}
