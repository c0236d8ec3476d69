//! Order beside other consumers, pauses, replays and decisions of other processes.

use postbox::{Event, EventFilter, HandlerError, OutboxStatus, PauseTarget, Subscription, Tx};

use crate::support::{Calls, TestBox, boxes, file_box, inbox_rows, noting, status};
use crate::{fine, publish, saying, waiting};

#[test]
fn an_events_other_consumers_do_not_wait_and_run_once() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let fails_once = saying(&calls, |event, call| match (event.name(), call) {
            ("a", 1) => Err(HandlerError::dead_letter("no")),
            _ => Ok(()),
        });
        bus.subscribe_many([
            Subscription::new("*", "before", noting(&calls, "before")).priority(1),
            Subscription::new("*", "c", fails_once).ordered(),
            Subscription::transactional("*", "tx", |_: &Event, _: &Tx<'_>| Ok(())),
            Subscription::new("*", "after", noting(&calls, "after")).priority(-1),
        ])
        .unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(calls.take(), ["before", "x a", "after", "before", "after"], "{kind}");
        assert_eq!(inbox_rows(bus, ids[1]).len(), 3, "their marks stand");
        assert_eq!(waiting(bus), 1);
        bus.outbox().discard(ids[0], "no").unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.take(), ["x b"], "{kind}");
    }
}

#[test]
fn two_ordered_consumers_have_an_order_each() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let fails_a = saying(&calls, |event, _| match event.name() {
            "one.a" => Err(HandlerError::dead_letter("no")),
            _ => Ok(()),
        });
        bus.subscribe_many([
            Subscription::new("one.*", "one", fails_a).ordered(),
            Subscription::new("two.*", "two", fine(&calls)).ordered(),
        ])
        .unwrap();
        publish(bus, &[("x", "one.a"), ("x", "two.a"), ("x", "one.b"), ("x", "two.b")]);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["x one.a", "x two.a", "x two.b"], "{kind}");
    }
}

#[test]
fn a_consumer_that_is_paused_goes_on_in_order() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("*", "c", fine(&calls)).ordered(),
            Subscription::new("b", "d", noting(&calls, "d")).ordered(),
        ])
        .unwrap();
        let target = PauseTarget::consumer("c");
        bus.pause(&target, None, None).unwrap();
        publish(bus, &[("x", "a"), ("x", "b"), ("x", "b"), ("x", "c")]);
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(calls.take(), ["d", "d"], "{kind}: another consumer's order is its own");
        bus.resume(&target).unwrap();
        assert_eq!(bus.drain().unwrap(), 4, "{kind}");
        assert_eq!(calls.take(), ["x a", "x b", "x b", "x c"], "{kind}");
    }
}

#[test]
fn an_event_whose_name_is_paused_blocks_those_behind_it() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", fine(&calls)).ordered()).unwrap();
        let target = PauseTarget::event_name("a");
        bus.pause(&target, None, None).unwrap();
        publish(bus, &[("x", "a"), ("x", "b"), ("y", "b")]);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        bus.resume(&target).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["y b", "x a", "x b"], "{kind}");
    }
}

#[test]
fn one_of_two_that_keep_an_event_waiting_is_gone_and_the_other_is_not() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let fails_a = saying(&calls, |event, call| match (event.name(), call) {
            ("a", 1) => Err(HandlerError::dead_letter("no")),
            _ => Ok(()),
        });
        bus.subscribe_many([
            Subscription::new("*", "c", fails_a).ordered(),
            Subscription::new("b", "paused", noting(&calls, "paused")),
        ])
        .unwrap();
        let target = PauseTarget::consumer("paused");
        bus.pause(&target, None, None).unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        bus.outbox().retry(ids[0]).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.take(), ["x a", "x a", "x b"], "{kind}");
        bus.resume(&target).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.take(), ["paused"], "{kind}");
    }
}

#[test]
fn replayed_events_come_in_order() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let fails = saying(&calls, |event, call| match (event.name(), call) {
            ("a", 2) => Err(HandlerError::dead_letter("no")),
            _ => Ok(()),
        });
        bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b"), ("y", "a")]);
        assert_eq!(bus.drain().unwrap(), 3, "{kind}");
        calls.take();
        let of_x = EventFilter::new().aggregate_id("x");
        assert_eq!(bus.outbox().replay(&of_x, "c").unwrap(), 2);
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(calls.take(), ["x a"]);
        publish(bus, &[("x", "c")]);
        assert_eq!(bus.drain().unwrap(), 0, "{kind}: what is new waits for what is replayed");
        bus.outbox().discard(ids[0], "no").unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.take(), ["x b", "x c"], "{kind}");
    }
}

#[test]
fn what_is_replayed_to_another_consumer_blocks_nobody() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", fine(&calls)).ordered()).unwrap();
        publish(bus, &[("x", "a")]);
        assert_eq!(bus.drain().unwrap(), 1);
        bus.outbox().replay(&EventFilter::new(), "nobody").unwrap();
        publish(bus, &[("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.all(), ["x a", "x b"]);
    }
}

/// As the program is, and any settings page in another process.
#[test]
fn a_box_without_subscriptions_decides_and_the_next_one_goes() {
    let test = file_box();
    let (calls, bus) = (Calls::default(), &test.bus);
    let fails = saying(&calls, |event, _| match event.name() {
        "a" => Err(HandlerError::dead_letter("no")),
        _ => Ok(()),
    });
    bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
    let ids = publish(bus, &[("x", "a"), ("x", "b"), ("x", "c")]);
    assert_eq!(bus.drain().unwrap(), 0);
    let other = test.second();
    assert_eq!(other.outbox().blocked(10).unwrap()[0].event.id, ids[0]);
    other.outbox().discard(ids[0], "no").unwrap();
    assert_eq!(waiting(bus), 0, "they look again at once");
    assert_eq!(bus.drain().unwrap(), 2);
    assert_eq!(calls.all(), ["x a", "x b", "x c"]);
}

#[test]
fn an_application_that_marks_a_consumer_as_done_lets_the_next_one_go() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let fails = saying(&calls, |event, _| match event.name() {
            "a" => Err(HandlerError::dead_letter("no")),
            _ => Ok(()),
        });
        bus.subscribe(Subscription::new("*", "c", fails).ordered()).unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 0);
        let row = bus.inbox().get_or_create(ids[0], "c").unwrap();
        bus.inbox().mark_skipped(row.id).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(status(bus, ids[1]), OutboxStatus::Processed);
    }
}
