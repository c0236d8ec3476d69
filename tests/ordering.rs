//! Order: events of one aggregate reach an ordered consumer one at a time, as they were published, and nothing else is held up.

mod support;

#[path = "ordering/blocked.rs"]
mod blocked;
#[path = "ordering/escapes.rs"]
mod escapes;
#[path = "ordering/failures.rs"]
mod failures;
#[path = "ordering/mixed.rs"]
mod mixed;
#[path = "ordering/sequences.rs"]
mod sequences;
#[path = "ordering/workers.rs"]
mod workers;

use std::time::Duration;

use postbox::{
    Backoff, Context, Event, EventId, HandlerError, HandlerResult, NewEvent, OutboxStatus, Postbox,
    Subscription, Tx,
};

use crate::support::{Calls, TestBox, boxes, noting, outbox_row, sql, status};

/// An event of this aggregate.
pub(crate) fn of(aggregate: &str, name: &str) -> NewEvent {
    NewEvent::new(name, "tests", "Thing", aggregate)
}

/// Notes `aggregate name`, and says what `result` says to the so manieth call for it.
pub(crate) fn saying(
    calls: &Calls,
    result: impl Fn(&Event, usize) -> HandlerResult + Send + Sync + 'static,
) -> impl Fn(&Event, &Context<'_>) -> HandlerResult + Send + Sync + 'static {
    let (calls, so_far) = (calls.clone(), Calls::default());
    move |event: &Event, _: &Context<'_>| {
        let what = format!("{} {}", event.aggregate_id(), event.name());
        calls.add(&what);
        so_far.add(&what);
        result(event, so_far.count(&what))
    }
}

pub(crate) fn fine(calls: &Calls) -> impl Fn(&Event, &Context<'_>) -> HandlerResult + Send + Sync + 'static {
    saying(calls, |_, _| Ok(()))
}

/// How many events wait for their turn, as people see them.
pub(crate) fn waiting(bus: &Postbox) -> u64 {
    sql(bus, |tx| {
        tx.query_row(
            "SELECT count(*) FROM outbox_event_readable WHERE available_at = 'waits for its turn'",
            [],
            |row| row.get(0),
        )
    })
}

pub(crate) fn publish(bus: &Postbox, events: &[(&str, &str)]) -> Vec<EventId> {
    bus.publish_all(events.iter().map(|(aggregate, name)| of(aggregate, name))).unwrap()
}

#[test]
fn an_aggregates_events_come_in_order_one_at_a_time_and_others_go_on() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let handler = saying(&calls, |event, call| match (event.aggregate_id(), event.name(), call) {
            ("x", "a", 1) => Err(HandlerError::retry("not yet")),
            _ => Ok(()),
        });
        let minute = Backoff::fixed(Duration::from_mins(1));
        bus.subscribe(Subscription::new("*", "c", handler).ordered().backoff(minute)).unwrap();
        let ids = publish(bus, &[("x", "a"), ("y", "a"), ("x", "b"), ("y", "b"), ("x", "c")]);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.take(), ["x a", "y a", "y b"], "{kind}");
        assert_eq!(waiting(bus), 2, "{kind}");
        for id in [ids[2], ids[4]] {
            assert_eq!((status(bus, id), outbox_row(bus, id).attempt_count), (OutboxStatus::Pending, 0));
        }
        // They are not claimed over and over.
        let before = outbox_row(bus, ids[2]).updated_at;
        clock.advance(Duration::from_secs(1));
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(outbox_row(bus, ids[2]).updated_at, before, "{kind}");

        clock.advance(Duration::from_mins(1));
        assert_eq!(bus.drain().unwrap(), 3, "{kind}");
        assert_eq!(calls.take(), ["x a", "x b", "x c"], "{kind}");
        assert_eq!(outbox_row(bus, ids[4]).attempt_count, 1, "waiting has cost no attempt");
    }
}

#[test]
fn an_aggregate_is_its_module_its_type_and_its_id() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let handler = saying(&calls, |event, _| match event.name() {
            "a" => Err(HandlerError::retry("not yet")),
            _ => Ok(()),
        });
        bus.subscribe(Subscription::new("*", "c", handler).ordered()).unwrap();
        let new = |module: &str, kind: &str, id: &str, name: &str| NewEvent::new(name, module, kind, id);
        bus.publish_all([
            new("m", "T", "1", "a"),
            new("m", "T", "1", "behind"),
            new("m", "T", "2", "other.id"),
            new("m", "U", "1", "other.type"),
            new("n", "T", "1", "other.module"),
        ])
        .unwrap();
        assert_eq!(bus.drain().unwrap(), 3, "{kind}");
        assert_eq!(calls.all(), ["1 a", "2 other.id", "1 other.type", "1 other.module"]);
    }
}

#[test]
fn transactional_consumers_are_in_order_too() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let handler = {
            let (calls, so_far) = (calls.clone(), Calls::default());
            move |event: &Event, _: &Tx<'_>| {
                calls.add(format!("{} {}", event.aggregate_id(), event.name()));
                so_far.add(event.name());
                if event.name() == "a" && so_far.count("a") == 1 {
                    return Err(HandlerError::retry("not yet"));
                }
                Ok(())
            }
        };
        bus.subscribe(Subscription::transactional("*", "c", handler).ordered()).unwrap();
        publish(bus, &[("x", "a"), ("x", "b"), ("y", "b"), ("x", "c")]);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.take(), ["x a", "y b"], "{kind}");
        clock.advance(Duration::from_hours(1));
        assert_eq!(bus.drain().unwrap(), 3, "{kind}");
        assert_eq!(calls.take(), ["x a", "x b", "x c"], "{kind}");
    }
}

#[test]
fn what_is_published_with_a_delay_takes_its_place_when_its_time_has_come() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", fine(&calls)).ordered()).unwrap();
        bus.publish(of("x", "later").delay(Duration::from_mins(1))).unwrap();
        publish(bus, &[("x", "a"), ("x", "b")]);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        clock.advance(Duration::from_mins(1));
        publish(bus, &[("x", "c")]);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["x a", "x b", "x later", "x c"], "{kind}");
    }
}

#[test]
fn only_what_an_ordered_subscription_matches_is_in_its_order() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let fails = saying(&calls, |_, _| Err(HandlerError::retry("not yet")));
        bus.subscribe_many([
            Subscription::new("*", "c", fails),
            Subscription::new("in.*", "c", fine(&calls)).ordered(),
            Subscription::new("*", "other", noting(&calls, "other")),
        ])
        .unwrap();
        publish(bus, &[("x", "out"), ("x", "in.a"), ("x", "in.b")]);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["x out", "other", "x in.a", "other", "other", "x in.b"], "{kind}");
    }
}

#[test]
fn the_index_is_made_by_the_first_ordered_subscription_and_survives_a_backup() {
    let test = support::file_box();
    let has = |bus: &Postbox| {
        sql(bus, |tx| {
            tx.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'outbox_event_order'", [], |row| {
                row.get::<_, u64>(0)
            })
        })
    };
    let calls = Calls::default();
    test.bus.subscribe(Subscription::new("a", "c", fine(&calls))).unwrap();
    assert_eq!(has(&test.bus), 0, "the others do not pay for it");
    test.bus.subscribe(Subscription::new("b", "c", fine(&calls)).ordered()).unwrap();
    assert_eq!(has(&test.bus), 1);
    assert!(test.bus.verify().unwrap().findings.is_empty());
    let copy = test.path().with_file_name("copy.db");
    test.bus.backup(&copy).unwrap();
    let copy = Postbox::open(&copy).unwrap();
    assert_eq!(has(&copy), 1);
    // Somebody has dropped it: everything goes on, more slowly.
    sql(&test.bus, |tx| tx.execute_batch("DROP INDEX outbox_event_order"));
    publish(&test.bus, &[("x", "b"), ("x", "b")]);
    assert_eq!(test.bus.drain().unwrap(), 2);
}

#[test]
fn a_refused_subscription_makes_nothing() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", fine(&calls)).ordered().max_attempts(0)).unwrap_err();
        let made = sql(bus, |tx| {
            tx.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'outbox_event_order'", [], |row| {
                row.get::<_, u64>(0)
            })
        });
        assert_eq!((made, bus.registry().handler_count()), (0, 0), "{kind}");
    }
}
