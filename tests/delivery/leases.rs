//! Claims: the attempts that they cost, who owns them, and what becomes of those whose owner is gone.

use std::thread;

use postbox::{
    Context, Event, HandlerError, HandlerResult, InboxStatus, OutboxStatus, Postbox, Subscription,
};
use rusqlite::params;

use crate::support::{
    Calls, LEASE, MICROSECOND, SECOND, TestBox, boxes, event, inbox_rows, just_before, lose_an_attempt,
    noting, outbox_row, sql, start_time, status,
};

#[test]
fn an_attempt_is_counted_when_it_is_claimed_and_the_lease_ends_as_the_setting_says() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.update_settings(|settings| settings.processing_lease_ms = 7_000).unwrap();
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |event: &Event, cx: &Context<'_>| {
            let row = outbox_row(cx.postbox(), event.id());
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processing, 1));
            assert_eq!(row.available_at, start_time() + 7 * SECOND);
            assert_eq!(cx.postbox().stats()?.processing, 1);
            assert_eq!(event.attempt(), 1);
            note.add("asserted");
            Ok(())
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(calls.all(), ["asserted"], "{kind}");
    }
}

/// What a process leaves behind that dies in the middle of a handler, as its successor finds it: claimed, with a lease
/// of somebody else's that has run out. The outcome of the handler that does this to its own event is refused.
fn die_in_the_handler(bus: &Postbox, event: &Event) {
    let changed = sql(bus, |tx| {
        tx.execute(
            "UPDATE outbox_event SET lease_id = ?2, available_at = created_at WHERE id = ?1 AND status = 'processing'",
            params![event.id().as_uuid(), 77_i64 << 24 | i64::from(event.attempt())],
        )
    });
    assert_eq!(changed, 1);
}

#[test]
fn an_event_that_kills_its_process_at_every_attempt_ends_as_a_dead_letter() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let dies = calls.clone();
        bus.subscribe(Subscription::new("a", "dies", move |event: &Event, cx: &Context<'_>| {
            dies.add(format!("attempt {}", event.attempt()));
            die_in_the_handler(cx.postbox(), event);
            Ok(())
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        for attempt in 1..=3 {
            assert_eq!(bus.process_batch().unwrap(), 0);
            let row = outbox_row(bus, id);
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processing, attempt), "{kind}");
        }
        for _ in 0..3 {
            assert_eq!(bus.process_batch().unwrap(), 0);
        }
        assert_eq!(calls.all(), ["attempt 1", "attempt 2", "attempt 3"], "{kind}");
        let row = outbox_row(bus, id);
        assert_eq!(row.status, OutboxStatus::DeadLetter);
        let error = row.last_error.unwrap();
        assert!(error.contains("attempt 3 was lost"), "{error}");
        assert_eq!(inbox_rows(bus, id), [("dies".to_owned(), InboxStatus::Failed, 3, Some(error))]);
    }
}

#[test]
fn lost_attempts_and_failed_ones_count_together() {
    for TestBox { bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |event: &Event, _: &Context<'_>| {
            note.add(format!("attempt {}", event.attempt()));
            Err(HandlerError::retry("no"))
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        lose_an_attempt(bus, id);
        bus.drain().unwrap();
        // The second failure of this consumer: 2 seconds.
        assert_eq!(outbox_row(bus, id).available_at, start_time() + 2 * SECOND);
        clock.advance(2 * SECOND);
        bus.drain().unwrap();
        assert_eq!(calls.all(), ["attempt 2", "attempt 3"]);
        assert_eq!((status(bus, id), outbox_row(bus, id).attempt_count), (OutboxStatus::DeadLetter, 3));
    }
}

#[test]
fn a_lost_attempt_counts_only_against_consumers_that_were_not_done() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "done", noting(&calls, "done"))).unwrap();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "open", move |event: &Event, _: &Context<'_>| {
            note.add("open");
            if event.attempt() == 1 {
                Err(HandlerError::retry_after("later", std::time::Duration::ZERO))
            } else {
                Ok(())
            }
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.process_batch().unwrap();
        lose_an_attempt(bus, id);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["done", "open", "open"], "{kind}");
        let processed = |name: &str, failures| (name.to_owned(), InboxStatus::Processed, failures, None);
        assert_eq!(inbox_rows(bus, id), [processed("done", 0), processed("open", 2)]);
    }
}

/// The lost attempt was recorded for every unfinished consumer, also for one that had given up: that cleared its
/// giving up, and it ran again.
#[test]
fn a_consumer_that_gave_up_is_left_alone_when_a_later_attempt_is_lost() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let gives_up = calls.clone();
        bus.subscribe(Subscription::new("a", "gives up", move |_: &Event, _: &Context<'_>| {
            gives_up.add("gives up");
            Err(HandlerError::dead_letter("never"))
        }))
        .unwrap();
        let retries = calls.clone();
        let subscription = Subscription::new("a", "retries", move |_: &Event, _: &Context<'_>| {
            retries.add("retries");
            Err(HandlerError::retry("later"))
        });
        bus.subscribe(subscription.max_attempts(5)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        lose_an_attempt(bus, id);
        for _ in 0..6 {
            bus.drain().unwrap();
            clock.advance(60 * SECOND);
        }
        assert_eq!(calls.count("gives up"), 1, "{kind}");
        assert_eq!(calls.count("retries"), 4, "{kind}: and one was lost");
        let gave_up = ("gives up".to_owned(), InboxStatus::Failed, 1, Some("never".to_owned()));
        assert_eq!(inbox_rows(bus, id)[0], gave_up);
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter);
    }
}

#[test]
fn another_owners_claim_is_left_alone_until_its_lease_runs_out() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let id = bus.publish(event("a")).unwrap();
        lose_an_attempt(bus, id);
        sql(bus, |tx| tx.execute("UPDATE outbox_event SET available_at = available_at + 30000000", []));
        clock.advance(just_before(LEASE));
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(status(bus, id), OutboxStatus::Processing);
        clock.advance(MICROSECOND);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!((calls.all().len(), outbox_row(bus, id).attempt_count), (1, 2));
    }
}

#[test]
fn a_box_never_takes_over_from_itself() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let (note, time, of_box) = (calls.clone(), clock.clone(), bus.clone());
        bus.subscribe(Subscription::new("a", "slow", move |_: &Event, cx: &Context<'_>| {
            note.add("ran");
            time.advance(3 * LEASE); // nobody renews for a drain by hand
            let drained_elsewhere = || {
                let elsewhere = of_box.clone();
                thread::spawn(move || elsewhere.drain().unwrap()).join().unwrap()
            };
            assert_eq!(drained_elsewhere(), 0);
            // Where something else is due, too, only that is claimed.
            cx.publish(event("other"))?;
            assert_eq!(drained_elsewhere(), 1);
            note.add("asserted");
            Ok(())
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.all(), ["ran", "asserted"]);
        assert_eq!((status(bus, id), outbox_row(bus, id).attempt_count), (OutboxStatus::Processed, 1));
        bus.registry().clear(); // the handler holds a clone of the box
    }
}

#[test]
fn no_outcome_is_written_when_somebody_else_owns_the_claim() {
    let ends: [fn() -> HandlerResult; 4] = [
        || Ok(()),
        || Err(HandlerError::retry("late")),
        || Err(HandlerError::dead_letter("late")),
        || Err(HandlerError::skip("late")),
    ];
    for end in ends {
        for TestBox { kind, bus, .. } in &boxes() {
            bus.subscribe(Subscription::new("a", "one", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
            bus.subscribe(Subscription::new("a", "two", move |event: &Event, cx: &Context<'_>| {
                die_in_the_handler(cx.postbox(), event);
                end()
            }))
            .unwrap();
            let id = bus.publish(event("a")).unwrap();
            assert_eq!(bus.process_batch().unwrap(), 0);
            let row = outbox_row(bus, id);
            assert_eq!(
                (row.status, row.last_error),
                (OutboxStatus::Processing, None),
                "{kind}: it is the other's"
            );
            assert_eq!(row.available_at, row.created_at);
            assert_eq!(inbox_rows(bus, id), [], "{kind}");
        }
    }
}

#[test]
fn a_handler_knows_that_nobody_is_stopping_it_in_a_drain_by_hand() {
    for TestBox { bus, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "the name", move |_: &Event, cx: &Context<'_>| {
            note.add(format!("{} {}", cx.consumer_name(), cx.is_cancelled()));
            Ok(())
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(calls.all(), ["the name false"]);
    }
}

/// Claimed together with one that kills the process, its neighbours would be lost with it at every attempt.
#[test]
fn an_event_whose_attempt_was_lost_is_tried_again_with_nothing_beside_it() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |event: &Event, cx: &Context<'_>| {
            let gone: usize = sql(cx.postbox(), |tx| {
                tx.query_row("SELECT count(*) FROM outbox_event WHERE lease_id >> 24 = 77", [], |row| {
                    row.get(0)
                })
            });
            let claimed = cx.postbox().stats()?.processing - gone as u64;
            let gone = if gone > 0 { format!(" + {gone}") } else { String::new() };
            note.add(format!("{} of {claimed}{gone}", event.attempt()));
            Ok(())
        }))
        .unwrap();
        let ids = bus.publish_all((0..6).map(|_| event("a"))).unwrap();
        lose_an_attempt(bus, ids[2]);
        lose_an_attempt(bus, ids[3]);
        let batches: Vec<_> = (0..5).map(|_| bus.process_batch().unwrap()).collect();
        assert_eq!(batches, [2, 1, 1, 2, 0], "{kind}");
        // The attempt, and how many are claimed: at first the two count whose owner is gone.
        let alone = ["1 of 2 + 2", "1 of 2 + 2", "2 of 1 + 1", "2 of 1", "1 of 2", "1 of 2"];
        assert_eq!(calls.all(), alone, "{kind}");
    }
}

#[test]
fn a_killing_event_ends_as_a_dead_letter_and_its_neighbours_lose_no_attempt_to_it() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.subscribe(Subscription::new("kills", "c", |event: &Event, cx: &Context<'_>| {
            die_in_the_handler(cx.postbox(), event);
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::new("good", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        let ids = bus.publish_all(["good", "kills", "good", "good"].map(event)).unwrap();
        for _ in 0..9 {
            bus.process_batch().unwrap();
        }
        let states = ids
            .iter()
            .map(|id| outbox_row(bus, *id))
            .map(|row| (row.status, row.attempt_count))
            .collect::<Vec<_>>();
        let good = (OutboxStatus::Processed, 1);
        assert_eq!(states, [good, (OutboxStatus::DeadLetter, 4), good, good], "{kind}");
    }
}
