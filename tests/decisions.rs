//! What went wrong with events, and what people decide about them: histories, dead letters tried again or discarded.

mod support;

#[path = "decisions/cancelled.rs"]
mod cancelled;
#[path = "decisions/future.rs"]
mod future;
#[path = "decisions/of_many.rs"]
mod of_many;
#[path = "decisions/replayed.rs"]
mod replayed;
#[path = "decisions/several_replays.rs"]
mod several_replays;

use std::time::Duration;

use postbox::{
    Context, Error, Event, EventId, HandlerError, HandlerResult, HistoryKind, InboxStatus, OutboxStatus,
    Postbox, Settings, Subscription, Tx,
};

use crate::support::{
    Calls, LEASE, LIMIT, TestBox, add_effect, boxes, boxes_with, effects, event, file_box, inbox_rows,
    lose_an_attempt, make_effects, noting, outbox_row, refused_field, sql, status,
};

/// Fails while the application says so, in the way that it says.
fn failing(
    bus: &Postbox,
    consumer: &str,
    attempts: u32,
    fails: &'static (dyn Fn(&Event) -> HandlerResult + Sync),
) {
    let handler = move |event: &Event, _: &Context<'_>| fails(event);
    bus.subscribe(Subscription::new("*", consumer, handler).max_attempts(attempts)).unwrap();
}

fn entries(bus: &Postbox, id: EventId) -> Vec<(HistoryKind, Option<String>, Option<String>)> {
    let history = bus.outbox().history(id).unwrap();
    history.into_iter().map(|entry| (entry.kind, entry.consumer_name, entry.detail)).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with what may be none")]
fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// Fails until it is a dead letter.
fn drain_for_long(test: &TestBox) {
    for _ in 0..10 {
        test.bus.drain().unwrap();
        test.clock.advance(Duration::from_hours(1));
    }
}

#[test]
fn each_failed_attempt_of_each_consumer_is_kept_with_its_time_and_how_long_it_took() {
    for test in boxes() {
        let bus = &test.bus;
        failing(bus, "first", 2, &|event| Err(HandlerError::retry(format!("first {}", event.attempt()))));
        bus.subscribe(
            Subscription::transactional("*", "second", |_: &Event, _: &Tx<'_>| {
                Err(HandlerError::dead_letter("second gives up"))
            })
            .priority(-1),
        )
        .unwrap();
        failing(bus, "third", 1, &|_| Ok(()));
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let first_at = outbox_row(bus, id).updated_at;
        drain_for_long(&test);
        assert_eq!(
            entries(bus, id),
            [
                (HistoryKind::Failed, some("first"), some("first 1")),
                (HistoryKind::Failed, some("second"), some("second gives up")),
                (HistoryKind::Failed, some("first"), some("first 2")),
            ],
            "{}",
            test.kind
        );
        let history = bus.outbox().history(id).unwrap();
        assert!(history.iter().all(|entry| entry.duration.is_some()));
        assert_eq!((history[0].at, history[1].at), (first_at, first_at));
        assert!(history[2].at > first_at);
        let shown = format!("{history:?}");
        assert!(shown.contains("first") && !shown.contains("gives up"), "{shown}");
    }
}

#[test]
fn an_attempt_that_nobody_ended_is_kept_as_lost() {
    for test in boxes() {
        let bus = &test.bus;
        let id = bus.publish(event("a")).unwrap();
        lose_an_attempt(bus, id);
        failing(bus, "c", 5, &|_| Ok(()));
        test.clock.advance(LEASE);
        bus.drain().unwrap();
        let history = bus.outbox().history(id).unwrap();
        assert_eq!(history.len(), 1, "{}", test.kind);
        assert_eq!((history[0].kind, history[0].duration), (HistoryKind::Lost, None));
        assert!(history[0].detail.as_ref().unwrap().contains("attempt 1 was lost"));
    }
}

#[test]
fn an_event_keeps_its_last_hundred_entries_and_they_go_with_it() {
    for test in boxes() {
        let bus = &test.bus;
        failing(bus, "c", 1_000, &|event| {
            Err(HandlerError::retry_after(event.attempt(), Duration::from_secs(1)))
        });
        let id = bus.publish(event("a")).unwrap();
        for _ in 0..120 {
            bus.drain().unwrap();
            test.clock.advance(Duration::from_secs(2));
        }
        let kept = entries(bus, id);
        assert_eq!(kept.len(), 100, "{}", test.kind);
        assert_eq!((&kept[0].2, &kept[99].2), (&some("21"), &some("120")));
        sql(bus, |tx| tx.execute("DELETE FROM outbox_event", []));
        assert_eq!(entries(bus, id), []);
        assert_eq!(
            sql(bus, |tx| tx
                .query_row("SELECT count(*) FROM postbox_history", [], |row| row.get::<_, i64>(0))),
            0
        );
    }
}

/// Three consumers: one that is done, one that skipped, one that fails for as long as the box is told so.
fn with_a_dead_letter(test: &TestBox) -> (EventId, Calls) {
    let (bus, calls) = (&test.bus, Calls::default());
    make_effects(bus);
    bus.subscribe(Subscription::new("*", "done", noting(&calls, "done")).priority(2)).unwrap();
    bus.subscribe(
        Subscription::new("*", "skips", |_: &Event, _: &Context<'_>| Err(HandlerError::skip("not mine")))
            .priority(1),
    )
    .unwrap();
    bus.subscribe(
        Subscription::transactional("*", "fails", |_: &Event, tx: &Tx<'_>| -> HandlerResult {
            let mended: bool =
                tx.query_row("SELECT EXISTS (SELECT 1 FROM effect WHERE who = 'mended')", [], |row| {
                    row.get(0)
                })?;
            if !mended {
                return Err(HandlerError::retry("broken"));
            }
            add_effect(tx, "handled")?;
            Ok(())
        })
        .max_attempts(2),
    )
    .unwrap();
    let id = bus.publish(event("a")).unwrap();
    drain_for_long(test);
    assert_eq!(status(bus, id), OutboxStatus::DeadLetter, "{}", test.kind);
    (id, calls)
}

#[test]
fn a_dead_letter_that_is_retried_begins_again_for_those_that_had_not_finished() {
    for test in boxes() {
        let (id, calls) = with_a_dead_letter(&test);
        let bus = &test.bus;
        bus.outbox().retry(id).unwrap();
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, 0));
        assert_eq!(row.last_error.as_deref(), Some("broken"), "until it is processed");
        let inbox = inbox_rows(bus, id);
        assert_eq!(inbox[1], ("fails".to_owned(), InboxStatus::Received, 0, some("broken")));
        // It has all of its attempts again.
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(status(bus, id), OutboxStatus::Pending);
        drain_for_long(&test);
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter);

        sql(bus, |tx| add_effect(tx, "mended"));
        bus.outbox().retry(id).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{}", test.kind);
        assert_eq!(effects(bus), ["mended", "handled"]);
        assert_eq!(calls.all(), ["done"], "it had finished");
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.last_error), (OutboxStatus::Processed, None));
        let kinds: Vec<_> = entries(bus, id).into_iter().map(|(kind, ..)| kind).collect();
        let failed = HistoryKind::Failed;
        assert_eq!(kinds, [failed, failed, HistoryKind::Retried, failed, failed, HistoryKind::Retried]);
        let stats = bus.stats().unwrap();
        assert_eq!((stats.processed, stats.dead_letter, stats.pending, stats.total), (1, 0, 0, 1));
    }
}

#[test]
fn a_running_worker_takes_a_retried_event_up_at_once() {
    for test in boxes() {
        let (id, _) = with_a_dead_letter(&test);
        let worker = test.bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        sql(&test.bus, |tx| add_effect(tx, "mended"));
        test.bus.outbox().retry(id).unwrap();
        support::wait_until(LIMIT, || status(&test.bus, id) == OutboxStatus::Processed);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

#[test]
fn a_dead_letter_that_is_discarded_is_over_and_keeps_the_reason() {
    for test in boxes() {
        let (id, calls) = with_a_dead_letter(&test);
        let bus = &test.bus;
        bus.outbox().discard(id, "the customer was deleted").unwrap();
        let row = outbox_row(bus, id);
        assert_eq!(row.status, OutboxStatus::Processed);
        assert_eq!(row.last_error.as_deref(), Some("discarded: the customer was deleted"));
        assert!(row.processed_at.is_some());
        let inbox = inbox_rows(bus, id);
        assert_eq!(inbox[0].1, InboxStatus::Processed);
        assert_eq!(
            (inbox[1].1, inbox[1].3.as_deref()),
            (InboxStatus::Skipped, Some("discarded: the customer was deleted"))
        );
        assert_eq!(inbox[2].3.as_deref(), Some("not mine"), "it skipped by itself");
        let last = entries(bus, id).pop().unwrap();
        assert_eq!(last, (HistoryKind::Discarded, None, some("the customer was deleted")));
        test.clock.advance(Duration::from_hours(1));
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all(), ["done"]);
        let stats = bus.stats().unwrap();
        assert_eq!((stats.processed, stats.dead_letter, stats.total), (1, 0, 1), "{}", test.kind);
        assert!(matches!(bus.outbox().retry(id), Err(Error::WrongStatus { status: "processed", .. })));
    }
}

#[test]
fn events_that_failed_where_dead_letters_are_off_are_retried_and_discarded_too() {
    let off = || Settings { dead_letter_enabled: false, max_attempts: 1, ..Settings::default() };
    for test in boxes_with(|builder| builder.settings(off())) {
        let bus = &test.bus;
        failing(bus, "c", 1, &|_| Err(HandlerError::retry("no")));
        let ids = bus.publish_all([event("a"), event("a")]).unwrap();
        bus.drain().unwrap();
        bus.outbox().retry(ids[0]).unwrap();
        bus.outbox().discard(ids[1], "why not").unwrap();
        assert_eq!(
            ids.iter().map(|id| status(bus, *id)).collect::<Vec<_>>(),
            [OutboxStatus::Pending, OutboxStatus::Processed]
        );
    }
}

#[test]
fn decisions_inside_a_transaction_happen_with_it_or_not_at_all() {
    for test in boxes() {
        let (id, _) = with_a_dead_letter(&test);
        let bus = &test.bus;
        let undone: postbox::Result<()> = bus.transaction(|tx| {
            tx.outbox().retry(id)?;
            assert_eq!(tx.outbox().get(id)?.unwrap().status, OutboxStatus::Pending);
            Err(Error::WorkerRunning)
        });
        assert!(undone.is_err());
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter);
        assert_eq!(entries(bus, id).len(), 2);
        bus.transaction(|tx| tx.outbox().discard(id, "done with it")).unwrap();
        assert_eq!(status(bus, id), OutboxStatus::Processed, "{}", test.kind);
    }
}

#[test]
fn what_cannot_be_decided_is_said_and_changes_nothing() {
    for test in boxes() {
        let bus = &test.bus;
        let id = bus.publish(event("a")).unwrap();
        let unknown: EventId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        for refused in [bus.outbox().retry(unknown), bus.outbox().discard(unknown, "why")] {
            assert!(matches!(refused, Err(Error::NotFound { what: "event", .. })), "{refused:?}");
        }
        for refused in [bus.outbox().retry(id), bus.outbox().discard(id, "why")] {
            let said = refused.unwrap_err().to_string();
            assert!(
                said.contains(&id.to_string()) && said.contains("is pending, not a dead letter"),
                "{said}"
            );
        }
        for reason in ["", " ", &"x".repeat(1_001), "a\0b"] {
            assert_eq!(refused_field(bus.outbox().discard(id, reason)), "reason");
        }
        assert_eq!(status(bus, id), OutboxStatus::Pending);
        assert_eq!(entries(bus, id), []);
        assert_eq!(entries(bus, unknown), []);
    }
}

/// A trigger of the application's.
#[test]
fn a_decision_that_is_swallowed_is_an_error() {
    for (table, when) in
        [("outbox_event", "UPDATE"), ("postbox_history", "INSERT"), ("inbox_event", "UPDATE")]
    {
        let test = file_box();
        let (id, _) = with_a_dead_letter(&test);
        sql(&test.bus, |tx| {
            tx.execute_batch(&format!(
                "CREATE TRIGGER swallows BEFORE {when} ON {table} BEGIN SELECT RAISE(IGNORE); END"
            ))
        });
        for refused in [test.bus.outbox().retry(id), test.bus.outbox().discard(id, "why")] {
            assert!(matches!(refused, Err(Error::NotStored { .. })), "{table}: {refused:?}");
        }
        sql(&test.bus, |tx| tx.execute_batch("DROP TRIGGER swallows"));
        assert_eq!(status(&test.bus, id), OutboxStatus::DeadLetter, "{table}");
        assert_eq!(inbox_rows(&test.bus, id)[1].1, InboxStatus::Failed, "{table}");
    }
}
