//! What a handler that hangs costs the others: consumers of the same event, and other events.

use postbox::{Backoff, Context, Event, HandlerError, InboxStatus, NewEvent, OutboxStatus, Subscription};

use crate::files::{Latch, Tally, blocking, counting};
use crate::support::{
    Calls, LEASE, SECOND, TestBox, event, inbox_rows, make_effects, noting, outbox_row, wait_until, writing,
};
use crate::{ERROR, Hung, LIMIT, a_turn_is_taken, boxes, leases_run_out, support};

fn row(consumer: &str, status: InboxStatus, failures: u32, error: Option<&str>) -> support::InboxRow {
    (consumer.to_owned(), status, failures, error.map(str::to_owned))
}

/// Two that are done, the one that hangs, and two that have not begun; `last` is transactional.
fn subscribe(test: &TestBox, hung: &Hung, calls: &Calls, transactional: bool, attempts: u32) {
    let bus = &test.bus;
    let last = if transactional {
        Subscription::transactional("a", "last", writing("last"))
    } else {
        Subscription::new("a", "last", noting(calls, "last"))
    };
    let skips = calls.clone();
    bus.subscribe_many([
        Subscription::new("a", "done", noting(calls, "done")).priority(5),
        Subscription::new("a", "skips", move |_: &Event, _: &Context<'_>| {
            skips.add("skips");
            Err(HandlerError::skip("not mine"))
        })
        .priority(4),
        hung.subscription(1, || Ok(())).max_attempts(attempts).priority(3),
        Subscription::new("a", "next", noting(calls, "next")).priority(2),
        last.priority(1).max_attempts(1),
    ])
    .unwrap();
}

#[test]
fn consumers_that_were_done_keep_their_marks_and_those_that_had_not_begun_are_not_blamed() {
    for transactional in [false, true] {
        for test in boxes() {
            let (bus, hung, calls) = (&test.bus, Hung::default(), Calls::default());
            let what = format!("{}, transactional: {transactional}", test.kind);
            make_effects(bus);
            subscribe(&test, &hung, &calls, transactional, 3);
            let id = bus.publish(event("a")).unwrap();
            let worker = bus.start().unwrap();
            hung.late.wait_for(1);
            leases_run_out(&test);
            wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Pending);
            let before = [
                row("c", InboxStatus::Failed, 1, Some(ERROR)),
                row("done", InboxStatus::Processed, 0, None),
                row("skips", InboxStatus::Skipped, 0, Some("not mine")),
            ];
            assert_eq!(inbox_rows(bus, id), before, "{what}");
            // Nor do they run by the thread that was late.
            hung.go.open();
            wait_until(LIMIT, || bus.stats().unwrap().lost_leases == 1);
            assert_eq!(calls.take(), ["done", "skips"], "{what}");
            assert_eq!(inbox_rows(bus, id), before, "{what}");

            test.clock.advance(60 * SECOND);
            bus.notify();
            wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Processed);
            let after: &[&str] = if transactional { &["next"] } else { &["next", "last"] };
            assert_eq!(calls.take(), after, "{what}");
            let rows = inbox_rows(bus, id);
            assert!(rows.contains(&row("next", InboxStatus::Processed, 0, None)), "{what}: {rows:?}");
            assert!(rows.contains(&row("last", InboxStatus::Processed, 0, None)), "{what}: {rows:?}");
            assert!(worker.shutdown(LIMIT).unwrap().clean, "{what}");
        }
    }
}

/// The one that hangs has no attempt left: the others have their turn at once, and then the event is a dead letter.
#[test]
fn consumers_that_had_not_begun_have_their_turn_before_the_event_is_a_dead_letter() {
    for transactional in [false, true] {
        for test in boxes() {
            let (bus, hung, calls) = (&test.bus, Hung::default(), Calls::default());
            let what = format!("{}, transactional: {transactional}", test.kind);
            make_effects(bus);
            subscribe(&test, &hung, &calls, transactional, 1);
            let id = bus.publish(event("a")).unwrap();
            let worker = bus.start().unwrap();
            hung.late.wait_for(1);
            leases_run_out(&test);
            wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::DeadLetter);
            let rows = [
                row("c", InboxStatus::Failed, 1, Some(ERROR)),
                row("done", InboxStatus::Processed, 0, None),
                row("last", InboxStatus::Processed, 0, None),
                row("next", InboxStatus::Processed, 0, None),
                row("skips", InboxStatus::Skipped, 0, Some("not mine")),
            ];
            assert_eq!(inbox_rows(bus, id), rows, "{what}");
            let event = outbox_row(bus, id);
            assert_eq!((event.attempt_count, event.last_error.as_deref()), (2, Some(ERROR)), "{what}");
            assert_eq!(hung.calls.get(), 1, "{what}");
            hung.go.open();
            assert!(worker.shutdown(LIMIT).unwrap().clean, "{what}");
        }
    }
}

/// What failed before in the same attempt is said with it, and its longer backoff counts.
#[test]
fn a_failure_before_it_in_the_same_attempt_is_recorded_with_it() {
    for test in boxes() {
        let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
        let fails = |_: &Event, _: &Context<'_>| Err(HandlerError::retry("no"));
        let fails = Subscription::new("a", "fails", fails).priority(1).backoff(Backoff::fixed(600 * SECOND));
        bus.subscribe_many([fails, hung.subscription(1, || Ok(()))]).unwrap();
        let id = bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        hung.late.wait_for(1);
        leases_run_out(&test);
        wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Pending);
        let event = outbox_row(bus, id);
        assert_eq!(event.available_at, event.updated_at + 600 * SECOND, "{kind}");
        assert_eq!(event.last_error, Some(format!("fails: no; c: {ERROR}")), "{kind}");
        let rows =
            [row("c", InboxStatus::Failed, 1, Some(ERROR)), row("fails", InboxStatus::Failed, 1, Some("no"))];
        assert_eq!(inbox_rows(bus, id), rows, "{kind}");
        hung.go.open();
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
    }
}

#[test]
fn other_events_go_on_and_their_leases_are_renewed() {
    for test in support::boxes_with(|builder| builder.handler_threads(4)) {
        let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
        let (entered, latch, quick) = (Tally::default(), Latch::default(), Tally::default());
        bus.subscribe(hung.subscription(1, || Ok(()))).unwrap();
        let within = |name: &str| Subscription::new(name, "c", blocking(&entered, &latch));
        bus.subscribe(within("no limit")).unwrap();
        bus.subscribe(within("within").time_limit(3_600 * SECOND)).unwrap();
        bus.subscribe(Subscription::new("quick", "c", counting(&quick))).unwrap();
        let hangs = bus.publish(event("a")).unwrap();
        let run = bus.publish_all([event("no limit"), event("within")]).unwrap();
        let worker = bus.start().unwrap();
        hung.late.wait_for(1);
        entered.wait_for(2);
        bus.publish_all((0..20).map(|_| event("quick"))).unwrap();
        quick.wait_for(20);
        leases_run_out(&test);
        wait_until(LIMIT, || outbox_row(bus, hangs).status == OutboxStatus::Pending);
        let now = postbox::Clock::now(&test.clock);
        for id in &run {
            wait_until(LIMIT, || outbox_row(bus, *id).available_at == now + LEASE);
            let row = outbox_row(bus, *id);
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processing, 1), "{kind}");
        }
        latch.open();
        for id in &run {
            wait_until(LIMIT, || outbox_row(bus, *id).status == OutboxStatus::Processed);
        }
        let stats = bus.stats().unwrap();
        assert_eq!((entered.get(), stats.retries, stats.lost_leases), (2, 1, 0), "{kind}");
        hung.go.open();
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
    }
}

#[test]
fn each_has_its_own_lease() {
    for test in boxes() {
        let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
        bus.subscribe(hung.subscription(2, || Ok(()))).unwrap();
        let worker = bus.start().unwrap();
        let first = bus.publish(event("a")).unwrap();
        hung.late.wait_for(1);
        test.clock.advance(SECOND);
        let second = bus.publish(event("a")).unwrap();
        hung.late.wait_for(2);
        test.clock.advance(29 * SECOND);
        bus.notify();
        wait_until(LIMIT, || outbox_row(bus, first).status == OutboxStatus::Pending);
        assert_eq!(outbox_row(bus, second).status, OutboxStatus::Processing, "{kind}");
        test.clock.advance(SECOND);
        bus.notify();
        wait_until(LIMIT, || outbox_row(bus, second).status == OutboxStatus::Pending);
        hung.go.open();
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
    }
}

/// An ordered consumer receives nothing behind an event whose attempt has failed so, not even while that hangs.
#[test]
fn the_order_of_an_aggregate_is_kept() {
    for test in boxes() {
        let (bus, kind, hung, calls) = (&test.bus, test.kind, Hung::default(), Calls::default());
        bus.subscribe(hung.subscription(1, || Ok(())).ordered()).unwrap();
        bus.subscribe(Subscription::new("b", "c", noting(&calls, "behind")).ordered()).unwrap();
        let ids = bus.publish_all([event("a"), event("b")]).unwrap();
        let worker = bus.start().unwrap();
        hung.late.wait_for(1);
        leases_run_out(&test);
        wait_until(LIMIT, || outbox_row(bus, ids[0]).status == OutboxStatus::Pending);
        bus.publish(NewEvent::new("b", "finance", "Invoice", "another")).unwrap();
        wait_until(LIMIT, || calls.count("behind") == 1);
        assert_eq!(outbox_row(bus, ids[1]).status, OutboxStatus::Pending, "{kind}");
        test.clock.advance(60 * SECOND);
        bus.notify();
        wait_until(LIMIT, || outbox_row(bus, ids[1]).status == OutboxStatus::Processed);
        let done = ids.iter().map(|id| outbox_row(bus, *id));
        let done = done.map(|row| (row.status, row.attempt_count)).collect::<Vec<_>>();
        assert_eq!(done, [(OutboxStatus::Processed, 2), (OutboxStatus::Processed, 1)], "{kind}");
        assert_eq!((hung.calls.get(), hung.ended.get(), calls.count("behind")), (2, 0, 2), "{kind}");
        hung.go.open();
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
    }
}

/// A handler that hangs has the room that its own consumer gave it, and keeps none of those behind it.
#[test]
fn room_with_consumers_behind_it_is_given_back() {
    for test in boxes() {
        let (bus, kind, hung, calls) = (&test.bus, test.kind, Hung::default(), Calls::default());
        bus.subscribe(hung.subscription(1, || Ok(())).priority(1).max_concurrency(2)).unwrap();
        bus.subscribe(Subscription::new("*", "next", noting(&calls, "next")).max_concurrency(1)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        hung.late.wait_for(1);
        leases_run_out(&test);
        wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Pending);
        test.clock.advance(60 * SECOND);
        bus.notify();
        wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Processed);
        assert_eq!((hung.calls.get(), hung.ended.get(), calls.count("next")), (2, 0, 1), "{kind}");
        // Once it has ended, there is as much room as before.
        hung.go.open();
        wait_until(LIMIT, || bus.stats().unwrap().lost_leases == 1);
        bus.publish_all((0..5).map(|_| event("a"))).unwrap();
        wait_until(LIMIT, || calls.count("next") == 6);
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
    }
}

/// What ends in time gives nothing up.
#[test]
fn consumers_behind_it_have_their_room_where_it_returns_in_time() {
    for test in boxes() {
        let (bus, kind, calls) = (&test.bus, test.kind, Calls::default());
        let first = Subscription::new("a", "first", noting(&calls, "first")).priority(1);
        bus.subscribe(first.time_limit(3_600 * SECOND)).unwrap();
        bus.subscribe(Subscription::new("a", "next", noting(&calls, "next")).rate_limit(2, SECOND)).unwrap();
        bus.publish_all((0..3).map(|_| event("a"))).unwrap();
        bus.drain().unwrap();
        assert_eq!((calls.count("first"), calls.count("next")), (3, 2), "{kind}");
        test.clock.advance(SECOND);
        bus.drain().unwrap();
        assert_eq!((calls.count("first"), calls.count("next")), (3, 3), "{kind}");
    }
}

#[test]
fn a_handler_that_hangs_keeps_the_room_that_it_takes() {
    for test in boxes() {
        let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
        bus.subscribe(hung.subscription(1, || Ok(())).max_concurrency(1)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        hung.late.wait_for(1);
        leases_run_out(&test);
        wait_until(LIMIT, || outbox_row(bus, id).last_error.is_some());
        test.clock.advance(60 * SECOND);
        a_turn_is_taken(bus);
        let row = outbox_row(bus, id);
        assert_eq!((row.status, hung.calls.get()), (OutboxStatus::Pending, 1), "{kind}: no room yet");
        hung.go.open();
        wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Processed);
        assert_eq!(hung.calls.get(), 2, "{kind}");
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
    }
}
