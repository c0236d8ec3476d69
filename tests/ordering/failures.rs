//! What happens behind an event that fails.

use std::time::Duration;

use postbox::{EventFilter, HandlerError, InboxStatus, OutboxStatus, Subscription};

use crate::support::{Calls, SECOND, TestBox, boxes, status};
use crate::{publish, saying, waiting};

fn dead_letters_of_a(calls: &Calls) -> Subscription {
    let handler = saying(calls, |event, call| match (event.name(), call) {
        ("a", 1) => Err(HandlerError::dead_letter("never")),
        _ => Ok(()),
    });
    Subscription::new("*", "c", handler)
}

#[test]
fn a_dead_letter_blocks_its_aggregate_until_it_is_discarded() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(dead_letters_of_a(&calls).ordered()).unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b"), ("x", "c"), ("y", "b")]);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(status(bus, ids[0]), OutboxStatus::DeadLetter);
        assert_eq!(waiting(bus), 2);
        bus.outbox().discard(ids[0], "the customer is gone").unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["x a", "y b", "x b", "x c"], "{kind}");
    }
}

#[test]
fn a_dead_letter_that_is_retried_comes_before_those_that_waited() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(dead_letters_of_a(&calls).ordered()).unwrap();
        publish(bus, &[("x", "a"), ("x", "b"), ("x", "c")]);
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(bus.outbox().retry_all(&EventFilter::new()).unwrap(), 1);
        assert_eq!(bus.drain().unwrap(), 3, "{kind}");
        assert_eq!(calls.all(), ["x a", "x a", "x b", "x c"], "{kind}");
    }
}

#[test]
fn a_dead_letter_is_passed_where_that_was_chosen() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(dead_letters_of_a(&calls).pass_dead_letters()).unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b"), ("x", "c")]);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.take(), ["x a", "x b", "x c"], "{kind}");
        bus.outbox().retry(ids[0]).unwrap();
        publish(bus, &[("x", "d")]);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.take(), ["x a", "x d"], "{kind}");
    }
}

#[test]
fn where_passing_was_chosen_an_attempt_that_may_be_repeated_still_blocks() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let handler = saying(&calls, |event, _| match event.name() {
            "a" => Err(HandlerError::retry_after("wait", SECOND)),
            _ => Ok(()),
        });
        bus.subscribe(Subscription::new("*", "c", handler).pass_dead_letters().max_attempts(2)).unwrap();
        publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(calls.take(), ["x a"]);
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.take(), ["x a", "x b"], "{kind}: it has become a dead letter");
    }
}

#[test]
fn a_consumer_that_has_given_up_lets_others_pass_while_the_event_waits_for_another_consumer() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            dead_letters_of_a(&calls).pass_dead_letters(),
            Subscription::new("a", "slow", saying(&calls, |_, _| Err(HandlerError::retry("later")))),
        ])
        .unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(status(bus, ids[0]), OutboxStatus::Pending);
        assert_eq!(status(bus, ids[1]), OutboxStatus::Processed);
    }
}

#[test]
fn a_skip_lets_the_next_one_go() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let handler = saying(&calls, |event, _| match event.name() {
            "a" => Err(HandlerError::skip("not for me")),
            _ => Ok(()),
        });
        bus.subscribe(Subscription::new("*", "c", handler).ordered()).unwrap();
        publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["x a", "x b"]);
    }
}

#[test]
fn another_consumers_dead_letter_blocks_nobody() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("*", "c", crate::fine(&calls)).ordered(),
            Subscription::new("a", "other", saying(&calls, |_, _| Err(HandlerError::dead_letter("no")))),
        ])
        .unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(
            [status(bus, ids[0]), status(bus, ids[1])],
            [OutboxStatus::DeadLetter, OutboxStatus::Processed]
        );
        assert_eq!(bus.outbox().blocked(10).unwrap(), []);
    }
}

#[test]
fn a_row_that_nobody_can_read_is_passed_or_blocks_like_any_dead_letter() {
    for TestBox { kind, bus, .. } in &boxes() {
        for passes in [true, false] {
            let calls = Calls::default();
            let subscription = Subscription::new("*", "c", crate::fine(&calls));
            bus.registry().clear();
            bus.subscribe(if passes { subscription.pass_dead_letters() } else { subscription.ordered() })
                .unwrap();
            let aggregate = if passes { "p" } else { "b" };
            crate::sql(bus, |tx| tx.execute("DELETE FROM outbox_event", []));
            let ids = publish(bus, &[(aggregate, "a"), (aggregate, "b")]);
            crate::sql(bus, |tx| {
                tx.execute("UPDATE outbox_event SET payload = '{' WHERE id = ?1", [ids[0].as_uuid()])
            });
            assert_eq!(bus.drain().unwrap(), usize::from(passes), "{kind}");
            assert_eq!(bus.stats().unwrap().dead_letter, 1);
            if !passes {
                bus.outbox().discard(ids[0], "spoilt").unwrap();
                assert_eq!(bus.drain().unwrap(), 1, "{kind}");
            }
        }
    }
}

#[test]
fn a_lost_attempt_blocks_and_the_event_comes_again_first() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", crate::fine(&calls)).ordered()).unwrap();
        let ids = publish(bus, &[("x", "a"), ("x", "b")]);
        crate::support::lose_an_attempt(bus, ids[0]);
        clock.advance(Duration::from_hours(1));
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["x a", "x b"], "{kind}");
        let row = bus.inbox().get_or_create(ids[0], "c").unwrap();
        assert_eq!((row.status, row.attempt_count), (InboxStatus::Processed, 1), "the lost one counts");
    }
}
