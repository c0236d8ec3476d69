//! What DESIGN.md promises, a test named after each of the nine (6 to 9 in promises/failures.rs), in a file and in memory.
//! What a killed process adds is in tests/processes.rs.

mod support;

#[path = "promises/failures.rs"]
mod failures;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use postbox::{
    Context, EntityRef, Error, Event, HandlerError, InboxStatus, LinkType, NewLink, OutboxStatus, Postbox,
    Subscription, Tx,
};

use crate::support::{
    Calls, LIMIT, SECOND, TestBox, add_effect, boxes, effects, event, file_box, inbox_rows, lose_an_attempt,
    make_effects, noting, sql, status, wait_until, writing,
};

#[test]
fn promise_1_what_was_published_is_there_after_a_restart_and_reaches_every_consumer() {
    for (restarts, test) in [true, false].into_iter().zip(boxes()) {
        let ids = [
            test.bus.publish(event("a")).unwrap(),
            test.bus.publish_all([event("a"), event("a")]).unwrap()[1],
            test.bus.transaction(|tx| tx.publish(event("a"))).unwrap(),
        ];
        let test = if restarts { test.reopen() } else { test };
        let calls = Calls::default();
        for consumer in ["one", "two"] {
            let calls = calls.clone();
            test.bus
                .subscribe(Subscription::new("a", consumer, move |event: &Event, cx: &Context<'_>| {
                    calls.add(format!("{} to {}", event.id(), cx.consumer_name()));
                    Ok(())
                }))
                .unwrap();
        }
        assert_eq!(test.bus.drain().unwrap(), 4);
        for (id, consumer) in ids.iter().flat_map(|id| [(id, "one"), (id, "two")]) {
            assert_eq!(calls.count(&format!("{id} to {consumer}")), 1, "{}", test.kind);
        }
        let test = if restarts { test.reopen() } else { test };
        assert!(ids.iter().all(|id| status(&test.bus, *id) == OutboxStatus::Processed));
    }
}

#[test]
fn promise_2_an_event_is_delivered_if_and_only_if_its_transaction_commits_and_never_seen_before() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let publish = |tx: &Tx<'_>| {
            add_effect(tx, "application's").unwrap();
            (tx.publish(event("a")).unwrap(), bus.publish_in(tx, event("a")).unwrap())
        };
        let failed = bus.transaction::<(), Error>(|tx| {
            publish(tx);
            Err(Error::Closed { operation: "any error" })
        });
        assert!(failed.is_err());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            bus.transaction::<(), Error>(|tx| {
                publish(tx);
                panic!("in the middle");
            })
        }));
        assert!(panicked.is_err());
        assert_eq!((bus.drain().unwrap(), bus.stats().unwrap().total), (0, 0), "{kind}");

        // Whoever looks while it is open waits for it, or sees nothing.
        let (looker, open) = thread::scope(|scope| {
            bus.transaction::<_, Error>(|tx| {
                let ids = publish(tx);
                let looker = scope.spawn(|| bus.process_batch().map(|_| calls.all().len()));
                if *kind == "file" {
                    // In a file a look does not wait for writers: it is over before the commit.
                    wait_until(LIMIT, || looker.is_finished());
                }
                assert_eq!(calls.all(), [""; 0], "{kind}: before the commit");
                Ok((looker, ids))
            })
            .map(|(looker, ids)| (looker.join().unwrap().unwrap(), ids))
            .unwrap()
        });
        assert_eq!(looker, if *kind == "file" { 0 } else { 2 }, "{kind}");
        bus.drain().unwrap();
        assert_eq!(calls.all(), ["ran", "ran"], "{kind}");
        assert_eq!(effects(bus), ["application's"]);
        assert_eq!([open.0, open.1].map(|id| status(bus, id)), [OutboxStatus::Processed; 2]);
    }
}

#[test]
fn promise_2_holds_for_the_applications_own_connection_and_a_second_box() {
    let test = file_box();
    let other = test.second();
    let mut conn = test.app_connection();
    for (commits, total) in [(false, 0), (true, 1)] {
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        test.bus.publish_in(&tx, event("a")).unwrap();
        for bus in [&test.bus, &other] {
            assert_eq!((bus.drain().unwrap(), bus.stats().unwrap().total), (0, 0));
        }
        if commits { tx.commit() } else { tx.rollback() }.unwrap();
        assert_eq!(other.stats().unwrap().total, total);
    }
    assert_eq!(other.drain().unwrap(), 1);
}

#[test]
fn promise_3_a_plain_handler_runs_at_least_once_and_the_id_is_the_same_at_every_delivery() {
    for (restarts, test) in [true, false].into_iter().zip(boxes()) {
        let outside = Calls::default();
        let subscribe = |bus: &Postbox| {
            let outside = outside.clone();
            let handler = move |event: &Event, _: &Context<'_>| {
                outside.add(event.id().to_string());
                if event.attempt() < 4 { Err(HandlerError::retry("the answer was lost")) } else { Ok(()) }
            };
            bus.subscribe(Subscription::new("a", "c", handler).max_attempts(9)).unwrap();
        };
        subscribe(&test.bus);
        let id = test.bus.publish(event("a")).unwrap();
        test.bus.drain().unwrap();
        let test = if restarts {
            let test = test.reopen();
            subscribe(&test.bus);
            test
        } else {
            test
        };
        lose_an_attempt(&test.bus, id);
        for _ in 0..3 {
            test.bus.drain().unwrap();
            test.clock.advance(60 * SECOND);
        }
        assert_eq!(outside.all(), [id.to_string(), id.to_string(), id.to_string()], "{}", test.kind);
        assert_eq!(status(&test.bus, id), OutboxStatus::Processed);
    }
}

#[test]
fn promise_4_a_transactional_handlers_sql_links_follow_ups_and_mark_commit_together_or_not_at_all() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        make_effects(bus);
        let everything = |event: &Event, tx: &Tx<'_>| {
            add_effect(tx, event.name())?;
            let end = |module: &str| EntityRef::new(module, "T", "1");
            tx.create_link(NewLink::new(end("finance"), end("operations"), LinkType::Reference))?;
            tx.publish(support::event("follow.up"))?;
            match event.attempt() {
                1 => Err(HandlerError::retry("after all of it")),
                2 => panic!("after all of it"),
                _ => Ok(()),
            }
        };
        bus.subscribe(Subscription::transactional("a", "c", everything)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        for attempt in 1..=3 {
            let done = attempt == 3;
            let processed = bus.drain().unwrap();
            assert_eq!(processed, if done { 2 } else { 0 }, "{kind}, attempt {attempt}");
            assert_eq!(effects(bus).len(), usize::from(done));
            assert_eq!(bus.links().count_from_module("finance").unwrap(), u64::from(done));
            assert_eq!(bus.stats().unwrap().total, 1 + u64::from(done));
            assert_eq!(bus.inbox().is_processed(id, "c").unwrap(), done);
            clock.advance(60 * SECOND);
        }
        // Delivered again, as after a crash before anybody heard of it: it has been done.
        sql(bus, |tx| tx.execute("UPDATE outbox_event SET status = 'pending', available_at = 0", []));
        bus.drain().unwrap();
        assert_eq!(effects(bus), ["a"], "{kind}: exactly once");
    }
}

#[test]
fn promise_5_a_consumer_that_processed_or_skipped_never_runs_again_and_a_retry_runs_only_the_others() {
    for (restarts, mut test) in [true, false].into_iter().zip(boxes()) {
        let calls = Calls::default();
        let subscribe = |bus: &Postbox| {
            let skips = calls.clone();
            let retries = calls.clone();
            bus.subscribe_many([
                Subscription::new("a", "plain", noting(&calls, "plain")),
                Subscription::transactional("a", "tx", writing("tx")),
                Subscription::new("a", "skips", move |_: &Event, _: &Context<'_>| {
                    skips.add("skips");
                    Err(HandlerError::skip("not mine"))
                }),
                Subscription::new("a", "retries", move |_: &Event, _: &Context<'_>| {
                    retries.add("retries");
                    Err(HandlerError::retry("no"))
                })
                .max_attempts(4),
            ])
            .unwrap();
        };
        make_effects(&test.bus);
        subscribe(&test.bus);
        let id = test.bus.publish(event("a")).unwrap();
        test.bus.drain().unwrap();
        assert_eq!(calls.take(), ["plain", "skips", "retries"], "{}", test.kind);
        test.clock.advance(60 * SECOND);
        test.bus.drain().unwrap();
        if restarts {
            test = test.reopen();
            subscribe(&test.bus);
        }
        lose_an_attempt(&test.bus, id);
        for _ in 0..4 {
            test.bus.drain().unwrap();
            test.clock.advance(60 * SECOND);
        }
        assert_eq!(calls.all(), ["retries", "retries"], "{}", test.kind);
        assert_eq!(effects(&test.bus), ["tx"], "{}", test.kind);
        assert_eq!(status(&test.bus, id), OutboxStatus::DeadLetter);
        let statuses: Vec<_> = inbox_rows(&test.bus, id).into_iter().map(|row| row.1).collect();
        let expected =
            [InboxStatus::Processed, InboxStatus::Failed, InboxStatus::Skipped, InboxStatus::Processed];
        assert_eq!(statuses, expected);
    }
}
