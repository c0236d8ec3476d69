//! Held back, and waiting for something else as well: whichever ends first.

use std::time::Duration;

use postbox::{Context, Event, NewEvent, PauseTarget, Postbox, Subscription};

use crate::held_back::held_back;
use crate::support::{Calls, TestBox, boxes, lose_an_attempt, noting, outbox_row};
use crate::{CreatedV1, CreatedV3, reading_v1, reading_v3, v1, v3};

const MINUTE: Duration = Duration::from_mins(1);

fn subscribe_newer(bus: &Postbox, calls: &Calls) {
    assert_eq!(bus.registry().remove_by_consumer_prefix("typed"), 1);
    bus.subscribe(reading_v3(calls, "typed")).unwrap();
}

fn subscribe_untyped(bus: &Postbox, calls: &Calls) {
    assert_eq!(bus.registry().remove_by_consumer_prefix("typed"), 1);
    bus.subscribe(Subscription::new("invoice.created", "typed", noting(calls, "untyped"))).unwrap();
}

fn other(calls: &Calls) -> Subscription {
    Subscription::new("invoice.created", "other", noting(calls, "other"))
}

#[test]
fn a_pause_of_another_consumer_ends_first() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([reading_v1(&calls, "typed"), other(&calls)]).unwrap();
        let paused = PauseTarget::consumer("other");
        bus.pause(&paused, None, None).unwrap();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        assert_eq!((bus.drain().unwrap(), bus.outbox().backlog().unwrap().paused), (0, 1), "{kind}");
        bus.resume(&paused).unwrap();
        assert_eq!(
            (bus.drain().unwrap(), held_back(bus), calls.take()),
            (0, 1, vec!["other".to_owned()]),
            "{kind}"
        );
        subscribe_newer(bus, &calls);
        assert_eq!((bus.drain().unwrap(), calls.all()), (1, vec!["inv-1: 990 CHF".to_owned()]), "{kind}");
        assert_eq!(outbox_row(bus, id).attempt_count, 1, "{kind}");
    }
}

#[test]
fn the_newer_release_comes_before_the_end_of_another_consumers_pause() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([reading_v1(&calls, "typed"), other(&calls)]).unwrap();
        let paused = PauseTarget::consumer("other");
        bus.pause(&paused, None, None).unwrap();
        bus.publish_typed(&v3("inv-1")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        subscribe_newer(bus, &calls);
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.take(), ["inv-1: 990 CHF"], "{kind}: it does not wait for the pause");
        assert_eq!(bus.outbox().backlog().unwrap().paused, 1, "{kind}");
        bus.resume(&paused).unwrap();
        assert_eq!((bus.drain().unwrap(), calls.all()), (1, vec!["other".to_owned()]), "{kind}");
    }
}

#[test]
fn the_same_consumer_is_paused_as_well() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed")).unwrap();
        let paused = PauseTarget::consumer("typed");
        bus.pause(&paused, None, None).unwrap();
        bus.publish_typed(&v3("inv-1")).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 1), "{kind}: its end would change nothing");
        subscribe_newer(bus, &calls);
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 0), "{kind}");
        bus.resume(&paused).unwrap();
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (1, 1), "{kind}");
    }
}

#[test]
fn a_pause_of_the_event_name_comes_before_all() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed")).unwrap();
        let paused = PauseTarget::event_name("invoice.created");
        bus.pause(&paused, None, None).unwrap();
        bus.publish_typed(&v3("inv-1")).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 0), "{kind}");
        subscribe_newer(bus, &calls);
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (0, 0), "{kind}");
        bus.resume(&paused).unwrap();
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (1, 1), "{kind}");
    }
}

#[test]
fn an_ordered_consumer_receives_nothing_of_an_aggregate_behind_what_it_cannot_read() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([reading_v1(&calls, "typed").ordered(), other(&calls)]).unwrap();
        bus.publish_typed(&v1("inv-1")).unwrap();
        bus.publish_typed(&v3("inv-1")).unwrap();
        bus.publish_typed(&v1("inv-1")).unwrap();
        bus.publish_typed(&v1("inv-2")).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.count("other"), 4, "{kind}");
        assert_eq!((calls.count("inv-1: 12.5"), calls.count("inv-2: 12.5")), (1, 1), "{kind}");
        let backlog = bus.outbox().backlog().unwrap();
        assert_eq!((backlog.newer, backlog.behind), (1, 1), "{kind}");
        calls.take();
        assert_eq!(bus.registry().remove_by_consumer_prefix("typed"), 1);
        bus.subscribe(reading_v3(&calls, "typed").ordered()).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["inv-1: 990 CHF", "inv-1: 1250 EUR"], "{kind}");
    }
}

/// It waits for its turn with one consumer, and for a release with another.
#[test]
fn the_newer_release_comes_before_its_turn_with_another_consumer() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let noted = calls.clone();
        let failing_once = move |event: &Event, _: &Context<'_>| {
            noted.add(format!("ordered {}", event.name()));
            if event.name() == "first" && event.attempt() == 1 {
                return Err(postbox::HandlerError::retry_after("no", MINUTE));
            }
            Ok(())
        };
        bus.subscribe_many([
            Subscription::new("*", "ordered", failing_once).ordered(),
            reading_v1(&calls, "typed"),
        ])
        .unwrap();
        bus.publish(NewEvent::new("first", "finance", "Invoice", "inv-1")).unwrap();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(bus.outbox().backlog().unwrap().behind, 1, "{kind}");
        let before = outbox_row(bus, id).updated_at;
        for _ in 0..3 {
            clock.advance(Duration::from_secs(10));
            assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        }
        assert_eq!(outbox_row(bus, id).updated_at, before, "{kind}: nobody lets it go at a poll");
        calls.take();
        subscribe_newer(bus, &calls);
        assert_eq!((bus.drain().unwrap(), calls.take()), (0, vec!["inv-1: 990 CHF".to_owned()]), "{kind}");
        clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["ordered first", "ordered invoice.created"], "{kind}");
    }
}

#[test]
fn what_is_held_back_takes_no_room_under_limits_and_finds_it_afterwards() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed").rate_limit(1, MINUTE)).unwrap();
        bus.publish_typed(&v3("inv-1")).unwrap();
        bus.publish_typed(&v3("inv-2")).unwrap();
        bus.publish_typed(&v1("inv-3")).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (1, 2), "{kind}");
        assert_eq!(calls.take(), ["inv-3: 12.5"], "{kind}");
        assert_eq!(bus.registry().remove_by_consumer_prefix("typed"), 1);
        bus.subscribe(reading_v3(&calls, "typed").rate_limit(1, MINUTE)).unwrap();
        assert_eq!((bus.drain().unwrap(), bus.outbox().backlog().unwrap().limited), (1, 1), "{kind}");
        clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.all(), ["inv-1: 990 CHF", "inv-2: 990 CHF"], "{kind}");
    }
}

#[test]
fn the_newer_release_comes_before_there_is_room_with_another_consumer() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let hour = Duration::from_hours(1);
        bus.subscribe_many([reading_v1(&calls, "typed"), other(&calls).rate_limit(1, hour)]).unwrap();
        bus.publish_typed(&v1("inv-1")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        bus.publish_typed(&v3("inv-2")).unwrap();
        assert_eq!((bus.drain().unwrap(), bus.outbox().backlog().unwrap().limited), (0, 1), "{kind}");
        calls.take();
        subscribe_newer(bus, &calls);
        assert_eq!((bus.drain().unwrap(), calls.take()), (0, vec!["inv-2: 990 CHF".to_owned()]), "{kind}");
        clock.advance(hour);
        assert_eq!((bus.drain().unwrap(), calls.all()), (1, vec!["other".to_owned()]), "{kind}");
    }
}

/// Only a consumer with a type was looked for, and one whose release has given the type up waited until the other's pause was over.
#[test]
fn a_release_that_has_no_type_any_more_comes_before_the_end_of_another_consumers_pause() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([reading_v1(&calls, "typed"), other(&calls)]).unwrap();
        bus.pause(&PauseTarget::consumer("other"), None, None).unwrap();
        bus.publish_typed(&v3("inv-1")).unwrap();
        assert_eq!((bus.drain().unwrap(), bus.outbox().backlog().unwrap().paused), (0, 1), "{kind}");
        subscribe_untyped(bus, &calls);
        assert_eq!((bus.drain().unwrap(), calls.all()), (0, vec!["untyped".to_owned()]), "{kind}");
        assert_eq!(bus.outbox().backlog().unwrap().paused, 1, "{kind}");
    }
}

/// The same, until there was room with the other.
#[test]
fn a_release_that_has_no_type_any_more_comes_before_there_is_room_with_another_consumer() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let limited = other(&calls).rate_limit(1, Duration::from_hours(1));
        bus.subscribe_many([reading_v1(&calls, "typed"), limited]).unwrap();
        bus.publish_typed(&v1("inv-1")).unwrap();
        bus.publish_typed(&v3("inv-2")).unwrap();
        assert_eq!((bus.drain().unwrap(), bus.outbox().backlog().unwrap().limited), (1, 1), "{kind}");
        calls.take();
        subscribe_untyped(bus, &calls);
        assert_eq!((bus.drain().unwrap(), calls.all()), (0, vec!["untyped".to_owned()]), "{kind}");
    }
}

/// A process that knew the version died over it: that is no failure of the release that does not.
#[test]
fn a_lost_attempt_is_none_of_a_consumer_that_had_no_part_in_it() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed").max_attempts(1)).unwrap();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        lose_an_attempt(bus, id);
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 1), "{kind}");
        subscribe_newer(bus, &calls);
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (1, 1), "{kind}");
    }
}

#[test]
fn each_consumer_reads_up_to_its_own_version() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let (first, third) = (calls.clone(), calls.clone());
        bus.subscribe_many([
            Subscription::typed::<CreatedV1>("first", move |_, _| {
                first.add("first");
                Ok(())
            }),
            Subscription::typed_transactional::<CreatedV3>("third", move |_, _| {
                third.add("third");
                Ok(())
            }),
        ])
        .unwrap();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        bus.publish_typed(&v1("inv-2")).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (1, 1), "{kind}");
        assert_eq!((calls.count("first"), calls.count("third")), (1, 2), "{kind}");
        assert_eq!(outbox_row(bus, id).attempt_count, 0, "{kind}");
    }
}
