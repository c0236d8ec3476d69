//! No event waits for ever, whatever another program does.

use std::time::Duration;

use postbox::{HandlerError, OutboxStatus, Subscription};

use crate::support::{Calls, LIMIT, TestBox, boxes, file_box, sql, status};
use crate::{fine, publish, saying, waiting};

#[test]
fn what_waits_behind_a_row_that_another_program_deletes_goes_on() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let fails = saying(&calls, |event, _| match event.name() {
            "a" => Err(HandlerError::dead_letter("no")),
            _ => Ok(()),
        });
        bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
        publish(bus, &[("x", "a"), ("x", "b"), ("x", "c")]);
        assert_eq!(bus.drain().unwrap(), 0);
        sql(bus, |tx| tx.execute("DELETE FROM outbox_event WHERE event_name = 'a'", []));
        clock.advance(Duration::from_mins(1)); // past a poll
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["x a", "x b", "x c"], "{kind}");
    }
}

#[test]
fn what_waits_is_delivered_where_the_subscription_asks_for_no_order_any_more() {
    let mut test = file_box();
    let calls = Calls::default();
    let fails = saying(&calls, |event, _| match event.name() {
        "a" => Err(HandlerError::dead_letter("no")),
        _ => Ok(()),
    });
    test.bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
    let mut events = vec![("x", "a")];
    events.extend((0..1_200).map(|_| ("x", "b")));
    publish(&test.bus, &events);
    assert_eq!(test.bus.drain().unwrap(), 0);
    assert_eq!(waiting(&test.bus), 1_200);
    test = test.reopen();
    test.bus.subscribe(Subscription::new("*", "c", fine(&calls))).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 1_200);
}

#[test]
fn a_consumer_that_is_removed_holds_nobody_up() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let fails = saying(&calls, |_, _| Err(HandlerError::dead_letter("no")));
        bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 0);
        bus.registry().clear();
        bus.subscribe(Subscription::new("*", "d", fine(&calls))).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(status(bus, ids[1]), OutboxStatus::Processed);
    }
}

/// The other one's turn has not come.
#[test]
fn one_of_two_ordered_consumers_goes_on_where_it_asks_for_no_order_any_more() {
    let mut test = file_box();
    let calls = Calls::default();
    let noted = Calls::default();
    let fails = || {
        saying(&noted, |event, _| match event.name() {
            "a" => Err(HandlerError::dead_letter("no")),
            _ => Ok(()),
        })
    };
    let two = Subscription::new("*", "two", fails()).ordered();
    test.bus.subscribe_many([Subscription::new("*", "one", fails()).ordered(), two]).unwrap();
    publish(&test.bus, &[("x", "a"), ("x", "b"), ("x", "c")]);
    assert_eq!((test.bus.drain().unwrap(), waiting(&test.bus)), (0, 2));
    test = test.reopen();
    let two = Subscription::new("*", "two", fails()).ordered();
    test.bus.subscribe_many([Subscription::new("*", "one", fine(&calls)), two]).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 0);
    assert_eq!(calls.all(), ["x b", "x c"]);
    assert_eq!(waiting(&test.bus), 2, "for the other");
}

#[test]
fn what_is_replayed_to_one_consumer_does_not_look_free_for_another() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let fails = saying(&calls, |event, call| match (event.name(), call) {
            ("a", 2) => Err(HandlerError::dead_letter("no")),
            _ => Ok(()),
        });
        bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 2);
        bus.outbox().replay(&postbox::EventFilter::new(), "c").unwrap();
        assert_eq!((bus.drain().unwrap(), waiting(bus)), (0, 1), "{kind}");
        bus.subscribe(Subscription::new("*", "new", fine(&Calls::default()))).unwrap();
        bus.drain().unwrap();
        let before = crate::support::outbox_row(bus, ids[1]).updated_at;
        clock.advance(Duration::from_mins(1));
        bus.drain().unwrap();
        assert_eq!(
            crate::support::outbox_row(bus, ids[1]).updated_at,
            before,
            "{kind}: it is not let go in vain"
        );
    }
}

#[test]
fn a_trigger_that_forbids_to_let_an_event_go_holds_up_that_one_alone() {
    for raise in ["ABORT", "FAIL", "IGNORE"] {
        for TestBox { kind, bus, clock, .. } in &boxes() {
            let calls = Calls::default();
            let fails = saying(&calls, |event, call| match (event.name(), call) {
                ("a", 1) => Err(HandlerError::retry_after("wait", Duration::ZERO)),
                _ => Ok(()),
            });
            bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
            let message = if raise == "IGNORE" { String::new() } else { ", 'mine'".to_owned() };
            sql(bus, |tx| {
                tx.execute_batch(&format!(
                    "CREATE TRIGGER mine BEFORE UPDATE OF available_at ON outbox_event
                     WHEN OLD.status = 'pending' AND NEW.status = 'pending' AND OLD.aggregate_id = 'x'
                     BEGIN SELECT RAISE({raise}{message}); END"
                ))
            });
            let ids = publish(bus, &[("x", "a"), ("x", "b"), ("y", "a"), ("y", "b")]);
            bus.drain().unwrap();
            assert_eq!(status(bus, ids[0]), OutboxStatus::Processed, "{kind} {raise}");
            assert_eq!(status(bus, ids[3]), OutboxStatus::Processed, "{kind} {raise}");
            assert_eq!(status(bus, ids[1]), OutboxStatus::Pending, "{kind} {raise}");
            sql(bus, |tx| tx.execute_batch("DROP TRIGGER mine"));
            clock.advance(Duration::from_mins(1));
            assert_eq!(bus.drain().unwrap(), 1, "{kind} {raise}: it is tried again");
        }
    }
}

/// An older event was published with a delay; its time came while the younger one was in the hands of somebody who died.
#[test]
fn what_waited_for_the_hands_of_the_dead_goes_on_before_what_those_held() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", fine(&calls)).ordered()).unwrap();
        let milli = Duration::from_millis(1);
        bus.publish(crate::of("x", "older").delay(milli)).unwrap();
        let younger = publish(bus, &[("x", "younger")])[0];
        let lease = 77_i64 << 24 | 1;
        sql(bus, |tx| {
            tx.execute(
                "UPDATE outbox_event SET status = 'processing', attempt_count = 1, lease_id = ?2, changed_at = NULL,
                        available_at = created_at + 2000
                 WHERE id = ?1",
                rusqlite::params![younger.as_uuid(), lease],
            )
        });
        clock.advance(milli);
        assert_eq!((bus.drain().unwrap(), waiting(bus)), (0, 1), "{kind}");
        clock.advance(milli);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["x older", "x younger"], "{kind}");
    }
}

#[test]
fn a_running_worker_notices_new_subscriptions_at_once() {
    let test = file_box();
    let (calls, bus) = (Calls::default(), &test.bus);
    let fails = saying(&calls, |event, _| match event.name() {
        "a" => Err(HandlerError::dead_letter("no")),
        _ => Ok(()),
    });
    bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
    bus.update_settings(|settings| {
        settings.polling_interval_ms = 3_600_000;
        settings.idle_polling_interval_ms = 3_600_000;
    })
    .unwrap();
    let ids = publish(bus, &[("x", "a"), ("x", "b")]);
    let worker = bus.start().unwrap();
    crate::support::wait_until(LIMIT, || waiting(bus) == 1);
    bus.registry().clear();
    bus.subscribe(Subscription::new("*", "c", fine(&calls))).unwrap();
    crate::support::wait_until(LIMIT, || status(bus, ids[1]) == OutboxStatus::Processed);
    worker.shutdown(LIMIT).unwrap();
}

#[test]
fn a_running_worker_finds_at_its_polls_what_was_left_behind() {
    let test = file_box();
    let (calls, bus) = (Calls::default(), &test.bus);
    let fails = saying(&calls, |event, _| match event.name() {
        "a" => Err(HandlerError::dead_letter("no")),
        _ => Ok(()),
    });
    bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
    bus.update_settings(|settings| {
        settings.polling_interval_ms = 100;
        settings.idle_polling_interval_ms = 100;
    })
    .unwrap();
    let ids = publish(bus, &[("x", "a"), ("x", "b")]);
    bus.drain().unwrap();
    let worker = bus.start().unwrap();
    let app = test.app_connection();
    app.execute("DELETE FROM outbox_event WHERE event_name = 'a'", []).unwrap();
    test.clock.advance(Duration::from_mins(1));
    crate::support::wait_until(LIMIT, || status(bus, ids[1]) == OutboxStatus::Processed);
    worker.shutdown(LIMIT).unwrap();
}
