//! Pauses: what is paused waits and costs nothing, the rest goes on, and nothing waits longer than its pause.

mod support;
#[path = "support/timing.rs"]
mod timing;

#[path = "pausing/breaker.rs"]
mod breaker;
#[path = "pausing/handlers.rs"]
mod handlers;
#[path = "pausing/input.rs"]
mod input;
#[path = "pausing/poisoned.rs"]
mod poisoned;
#[path = "pausing/release.rs"]
mod release;
#[path = "pausing/several_boxes.rs"]
mod several_boxes;
#[path = "pausing/workers.rs"]
mod workers;

use std::time::Duration;

use postbox::testing::ManualClock;
use postbox::{
    Backoff, Context, Event, EventId, HandlerError, HandlerResult, InboxStatus, OutboxStatus, PauseTarget,
    Postbox, Subscription,
};
use rusqlite::params;

use crate::support::{
    Calls, LEASE, SECOND, TestBox, boxes, event, inbox_rows, just_before, lose_an_attempt, noting,
    outbox_row, sql, status,
};

pub(crate) fn consumer(name: &str) -> PauseTarget {
    PauseTarget::consumer(name)
}

/// Of a row that waits for a pause, as anybody sees it: pending, and due at the end of time.
pub(crate) fn is_parked(bus: &Postbox, id: EventId) -> bool {
    let row = outbox_row(bus, id);
    row.status == OutboxStatus::Pending && row.available_at.year() == 9999
}

pub(crate) fn parked(bus: &Postbox) -> u64 {
    sql(bus, |tx| {
        tx.query_row("SELECT count(*) FROM outbox_event_readable WHERE available_at = 'paused'", [], |row| {
            row.get(0)
        })
    })
}

/// What the file remembers, pauses that are over included.
pub(crate) fn rows(bus: &Postbox) -> u64 {
    sql(bus, |tx| tx.query_row("SELECT count(*) FROM postbox_pause", [], |row| row.get(0)))
}

/// A plain handler that says what `result` returns.
pub(crate) fn saying(
    calls: &Calls,
    what: &str,
    result: impl Fn(usize) -> HandlerResult + Send + Sync + 'static,
) -> impl postbox::Handler {
    let (calls, what) = (calls.clone(), what.to_owned());
    move |_: &Event, _: &Context<'_>| {
        calls.add(&what);
        result(calls.count(&what))
    }
}

#[test]
fn what_waits_for_a_paused_consumer_costs_no_attempt_and_is_delivered_when_it_is_resumed() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let pause = bus.pause(&consumer("c"), Some("offline"), None).unwrap();
        assert_eq!(
            (pause.target.clone(), pause.reason.as_deref(), pause.until),
            (consumer("c"), Some("offline"), None)
        );
        assert_eq!(bus.pauses().unwrap(), [pause], "{kind}");
        let ids = bus.publish_all((0..3).map(|_| event("a"))).unwrap();
        for _ in 0..3 {
            assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        }
        for id in &ids {
            assert!(is_parked(bus, *id), "{kind}");
            assert_eq!(outbox_row(bus, *id).attempt_count, 0);
            assert_eq!(inbox_rows(bus, *id), []);
        }
        assert!(bus.resume(&consumer("c")).unwrap());
        assert!(!bus.resume(&consumer("c")).unwrap(), "it is resumed already");
        assert_eq!(bus.pauses().unwrap(), []);
        assert_eq!(bus.drain().unwrap(), 3, "{kind}");
        assert_eq!(calls.all(), ["ran"; 3]);
        for id in ids {
            assert_eq!((status(bus, id), outbox_row(bus, id).attempt_count), (OutboxStatus::Processed, 1));
        }
        assert_eq!(rows(bus), 0, "{kind}: the pause is forgotten");
    }
}

#[test]
fn an_events_other_consumers_receive_it_and_never_again() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("*", "first", noting(&calls, "first")).priority(2),
            Subscription::new("a", "paused", noting(&calls, "paused")).priority(1),
            Subscription::transactional("a.*", "never", |_: &Event, _: &postbox::Tx<'_>| Ok(())),
            Subscription::new("a", "last", noting(&calls, "last")),
        ])
        .unwrap();
        bus.pause(&consumer("paused"), None, None).unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(calls.take(), ["first", "last"]);
        assert!(is_parked(bus, id));
        assert_eq!(outbox_row(bus, id).attempt_count, 0);
        assert_eq!(inbox_rows(bus, id).len(), 2, "their marks stand");
        bus.resume(&consumer("paused")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.take(), ["paused"], "{kind}");
    }
}

#[test]
fn a_paused_event_name_is_received_by_nobody_and_others_are() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
        let name = PauseTarget::event_name("invoice.created");
        bus.pause(&name, None, None).unwrap();
        let paused = bus.publish(event("invoice.created")).unwrap();
        let other = bus.publish(event("invoice.created.late")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert!(is_parked(bus, paused));
        assert_eq!(status(bus, other), OutboxStatus::Processed);
        bus.pause(&consumer("c"), None, None).unwrap();
        bus.resume(&name).unwrap();
        assert_eq!(bus.drain().unwrap(), 0, "{kind}: it waits for the consumer now");
        assert!(is_parked(bus, paused));
        bus.resume(&consumer("c")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["ran"; 2]);
    }
}

/// Nobody subscribes: resumed, it is as any event that nobody wants.
#[test]
fn a_paused_event_name_without_a_subscriber_waits_as_well() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.pause(&PauseTarget::event_name("a"), None, None).unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        assert!(is_parked(bus, id), "{kind}");
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        bus.resume(&PauseTarget::event_name("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["ran"], "{kind}");
    }
}

#[test]
fn a_timed_pause_ends_by_itself_and_not_a_microsecond_earlier() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let pause = bus.pause(&consumer("c"), None, Some(SECOND)).unwrap();
        assert_eq!(pause.until, Some(pause.since + SECOND));
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        clock.advance(just_before(SECOND));
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(bus.pauses().unwrap(), [pause]);
        clock.advance(Duration::from_micros(1));
        assert_eq!(bus.pauses().unwrap(), []);
        assert_eq!(bus.process_batch().unwrap(), 1, "{kind}");
        assert!(!bus.resume(&consumer("c")).unwrap());
    }
}

#[test]
fn pausing_what_is_paused_changes_its_reason_and_end_and_keeps_its_beginning() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let first = bus.pause(&consumer("c"), Some("one"), Some(10 * SECOND)).unwrap();
        clock.advance(SECOND);
        let second = bus.pause(&consumer("c"), None, Some(SECOND)).unwrap();
        assert_eq!((second.reason.as_deref(), second.since), (None, first.since), "{kind}");
        assert_eq!(second.until, Some(first.since + 2 * SECOND));
        let third = bus.pause(&consumer("c"), Some("for good"), None).unwrap();
        assert_eq!(bus.pauses().unwrap(), [third]);
        bus.pause(&PauseTarget::event_name("c"), None, None).unwrap();
        let targets: Vec<PauseTarget> = bus.pauses().unwrap().into_iter().map(|pause| pause.target).collect();
        assert_eq!(targets, [consumer("c"), PauseTarget::event_name("c")]);
    }
}

#[test]
fn another_consumers_retry_comes_first_and_its_backoff_is_waited_for() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let fails_once =
            saying(
                &calls,
                "fails",
                |time| {
                    if time == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
                },
            );
        bus.subscribe_many([
            Subscription::new("a", "fails", fails_once).backoff(Backoff::fixed(10 * SECOND)),
            Subscription::new("a", "paused", noting(&calls, "paused")),
        ])
        .unwrap();
        bus.pause(&consumer("paused"), None, None).unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        let row = outbox_row(bus, id);
        assert_eq!((row.attempt_count, row.last_error.as_deref()), (1, Some("not yet")), "{kind}");
        assert!(!is_parked(bus, id));
        clock.advance(just_before(10 * SECOND));
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all(), ["fails"], "{kind}");
        clock.advance(Duration::from_micros(1));
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all(), ["fails"; 2], "{kind}");
        assert!(is_parked(bus, id), "{kind}: it waits for the paused one alone");
        bus.resume(&consumer("paused")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["fails", "fails", "paused"], "{kind}");
    }
}

#[test]
fn it_is_no_dead_letter_before_the_paused_consumer_has_had_its_turn() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("a", "dead", saying(&calls, "dead", |_| Err(HandlerError::dead_letter("no")))),
            Subscription::new("a", "paused", noting(&calls, "paused")),
        ])
        .unwrap();
        bus.pause(&consumer("paused"), None, None).unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert!(is_parked(bus, id), "{kind}");
        assert_eq!(inbox_rows(bus, id)[0].1, InboxStatus::Failed);
        bus.resume(&consumer("paused")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all(), ["dead", "paused"], "{kind}");
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter);
        assert_eq!(outbox_row(bus, id).last_error.as_deref(), Some("no"));
    }
}

#[test]
fn a_pause_during_a_consumers_retries_spends_none_of_them() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let fails = saying(&calls, "ran", |_| Err(HandlerError::retry("no")));
        bus.subscribe(Subscription::new("a", "c", fails).max_attempts(2).backoff(Backoff::fixed(SECOND)))
            .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        bus.pause(&consumer("c"), None, None).unwrap();
        for _ in 0..5 {
            clock.advance(10 * SECOND);
            bus.drain().unwrap();
        }
        assert!(is_parked(bus, id), "{kind}");
        assert_eq!(outbox_row(bus, id).attempt_count, 1);
        assert_eq!(inbox_rows(bus, id)[0].2, 1, "{kind}");
        bus.resume(&consumer("c")).unwrap();
        bus.drain().unwrap();
        assert_eq!((status(bus, id), calls.all().len()), (OutboxStatus::DeadLetter, 2), "{kind}");
    }
}

/// The process died in a handler of another consumer, or before the name was paused.
#[test]
fn a_lost_attempt_is_nobodys_who_is_paused() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("a", "paused", noting(&calls, "paused")).max_attempts(1),
            Subscription::new("a", "runs", noting(&calls, "runs")).max_attempts(2),
        ])
        .unwrap();
        bus.pause(&consumer("paused"), None, None).unwrap();
        let id = bus.publish(event("a")).unwrap();
        lose_an_attempt(bus, id);
        clock.advance(LEASE);
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.take(), ["runs"], "{kind}");
        assert!(is_parked(bus, id));
        bus.resume(&consumer("paused")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.all(), ["paused"]);
    }
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran")).max_attempts(1)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        lose_an_attempt(bus, id);
        bus.pause(&PauseTarget::event_name("a"), None, None).unwrap();
        clock.advance(LEASE);
        assert_eq!(bus.drain().unwrap(), 0);
        assert!(is_parked(bus, id), "{kind}");
        assert_eq!(inbox_rows(bus, id)[0].2, 1, "{kind}: the attempt that was lost counts");
        bus.resume(&PauseTarget::event_name("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!((status(bus, id), calls.all().len()), (OutboxStatus::DeadLetter, 0), "{kind}");
    }
}

#[test]
fn a_consumer_is_paused_whichever_pattern_it_subscribes_by() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("*", "c", noting(&calls, "any")),
            Subscription::new("invoice.*", "c", noting(&calls, "below")),
            Subscription::new("invoice.created", "c", noting(&calls, "exact")),
            Subscription::new("*", "other", noting(&calls, "other")),
        ])
        .unwrap();
        bus.pause(&consumer("c"), None, None).unwrap();
        for name in ["task.done", "invoice.paid", "invoice.created"] {
            bus.publish(event(name)).unwrap();
        }
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(calls.take(), ["other"; 3]);
        bus.resume(&consumer("c")).unwrap();
        assert_eq!(bus.drain().unwrap(), 3);
        assert_eq!(calls.all(), ["any", "below", "exact"], "{kind}");
    }
}

/// Pauses in a transaction are those of its commit.
#[test]
fn a_pause_in_a_transaction_is_made_when_it_commits() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let rolled_back: postbox::Result<()> = bus.transaction(|tx| {
            tx.pause(&consumer("c"), None, None)?;
            Err(postbox::Error::InMemory { operation: "on purpose" })
        });
        rolled_back.unwrap_err();
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        bus.transaction(|tx| {
            tx.publish(event("a"))?;
            tx.pause(&consumer("c"), Some("now"), None)
        })
        .unwrap();
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert!(bus.transaction(|tx| tx.resume(&consumer("c"))).unwrap());
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
    }
}

/// The box's time never goes back, and neither do its pauses.
#[test]
fn a_clock_that_jumps_neither_prolongs_a_pause_nor_ends_it_too_early() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        bus.pause(&consumer("c"), None, Some(10 * SECOND)).unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        back(clock, Duration::from_hours(1));
        assert_eq!(bus.drain().unwrap(), 0);
        clock.advance(just_before(10 * SECOND));
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        clock.advance(Duration::from_micros(1));
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        bus.pause(&consumer("c"), None, Some(10 * SECOND)).unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        clock.advance(Duration::from_hours(24 * 365));
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
    }
}

fn back(clock: &ManualClock, by: Duration) {
    use postbox::Clock;
    clock.set(clock.now() - by);
}

/// Where consumers are asked by name (`deliver_to`), those alone are waited for.
#[test]
fn only_consumers_that_are_asked_are_waited_for() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("a", "asked", noting(&calls, "asked")),
            Subscription::new("a", "not asked", noting(&calls, "not asked")),
        ])
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        sql(bus, |tx| {
            tx.execute(
                "UPDATE outbox_event SET deliver_to = '[\"asked\"]' WHERE id = ?1",
                params![id.as_uuid()],
            )
        });
        bus.pause(&consumer("not asked"), None, None).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.all(), ["asked"]);
    }
}
