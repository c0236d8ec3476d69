//! Several consumers of one event: what each says counts for itself.

use postbox::{Context, Event, HandlerError, InboxStatus, OutboxStatus, Subscription, Tx};

use crate::support::{
    Calls, LEASE, SECOND, TestBox, boxes, event, inbox_rows, outbox_row, start_time, status,
};

#[test]
fn a_consumer_that_skips_is_done_and_the_event_is_processed() {
    for TestBox { bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let skips = calls.clone();
        bus.subscribe(Subscription::new("a", "skips", move |_: &Event, _: &Context<'_>| {
            skips.add("skips");
            Err(HandlerError::skip("not mine"))
        }))
        .unwrap();
        let retries = calls.clone();
        bus.subscribe(Subscription::new("a", "retries", move |event: &Event, _: &Context<'_>| {
            retries.add("retries");
            if event.attempt() == 1 { Err(HandlerError::retry("later")) } else { Ok(()) }
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["skips", "retries", "retries"]);
        assert_eq!(status(bus, id), OutboxStatus::Processed);
        assert_eq!(outbox_row(bus, id).processed_at, Some(start_time() + SECOND));
        assert_eq!(
            inbox_rows(bus, id),
            [
                ("retries".to_owned(), InboxStatus::Processed, 1, None),
                ("skips".to_owned(), InboxStatus::Skipped, 0, Some("not mine".to_owned())),
            ]
        );
        let skipped = bus.inbox().get_or_create(id, "skips").unwrap();
        assert_eq!(skipped.processed_at, Some(start_time()));
        assert!(!bus.inbox().is_processed(id, "skips").unwrap());
        assert_eq!(bus.inbox().count_unprocessed("skips").unwrap(), 0);
    }
}

#[test]
fn a_retry_runs_only_the_consumers_that_are_not_done() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        for (name, fails) in [("one", 0), ("two", 2), ("three", 1), ("four", 0)] {
            let calls = calls.clone();
            bus.subscribe(Subscription::new("a", name, move |event: &Event, _: &Context<'_>| {
                calls.add(name);
                if event.attempt() <= fails { Err(HandlerError::retry("not yet")) } else { Ok(()) }
            }))
            .unwrap();
        }
        bus.publish(event("a")).unwrap();
        for expected in [vec!["one", "two", "three", "four"], vec!["two", "three"], vec!["two"], vec![]] {
            bus.drain().unwrap();
            assert_eq!(calls.take(), expected, "{kind}");
            clock.advance(LEASE);
        }
        assert_eq!(bus.stats().unwrap().processed, 1);
    }
}

#[test]
fn one_consumers_dead_letter_does_not_end_its_neighbours_retries() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let gives_up = calls.clone();
        bus.subscribe(Subscription::new("a", "gives up", move |_: &Event, _: &Context<'_>| {
            gives_up.add("gives up");
            Err(HandlerError::dead_letter("never"))
        }))
        .unwrap();
        let retries = calls.clone();
        bus.subscribe(Subscription::transactional("a", "retries", move |event: &Event, _: &Tx<'_>| {
            retries.add("retries");
            if event.attempt() < 3 { Err(HandlerError::retry("later")) } else { Ok(()) }
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let row = outbox_row(bus, id);
        assert_eq!(row.status, OutboxStatus::Pending, "{kind}: a neighbour has attempts left");
        assert_eq!(row.last_error.as_deref(), Some("gives up: never; retries: later"));
        for _ in 0..2 {
            clock.advance(4 * SECOND);
            assert_eq!(bus.drain().unwrap(), 0);
        }
        assert_eq!(calls.all(), ["gives up", "retries", "retries", "retries"]);
        let row = outbox_row(bus, id);
        assert_eq!(row.status, OutboxStatus::DeadLetter);
        assert_eq!(row.last_error.as_deref(), Some("never"), "{kind}: of the consumer that gave up");
        assert_eq!((row.attempt_count, row.processed_at), (3, None));
        assert_eq!(
            inbox_rows(bus, id),
            [
                ("gives up".to_owned(), InboxStatus::Failed, 1, Some("never".to_owned())),
                ("retries".to_owned(), InboxStatus::Processed, 2, None),
            ]
        );
    }
}

#[test]
fn a_failed_event_waits_for_the_longest_of_its_consumers_delays() {
    for TestBox { bus, clock, .. } in &boxes() {
        for (name, seconds) in [("short", 10), ("long", 60), ("middle", 30)] {
            let error = move |_: &Event, _: &Context<'_>| {
                Err(HandlerError::retry_after(format!("{name} pause"), seconds * SECOND))
            };
            bus.subscribe(Subscription::new("a", name, error)).unwrap();
        }
        let skips = |_: &Event, _: &Context<'_>| Err(HandlerError::skip("no"));
        bus.subscribe(Subscription::new("a", "skips", skips)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let row = outbox_row(bus, id);
        assert_eq!(row.available_at, start_time() + 60 * SECOND);
        assert_eq!(
            row.last_error.as_deref(),
            Some("short: short pause; long: long pause; middle: middle pause")
        );
        clock.advance(30 * SECOND);
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(outbox_row(bus, id).attempt_count, 1);
    }
}
