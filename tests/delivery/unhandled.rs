//! Events that nobody subscribes to, yet or at all.

use postbox::{Context, Event, EventId, HandlerError, OutboxStatus, Settings, Subscription, UnhandledEvents};
use time::OffsetDateTime;

use crate::support::{
    Calls, MICROSECOND, SECOND, TestBox, boxes, boxes_with, ends, event, inbox_rows, just_before, noting,
    outbox_row, sql, start_time, status,
};

fn holding_boxes() -> [TestBox; 2] {
    let settings = Settings { unhandled_events: UnhandledEvents::Hold, ..Settings::default() };
    boxes_with(|builder| builder.settings(settings.clone()))
}

#[test]
fn an_event_published_before_anybody_subscribed_is_delivered_when_it_is_still_pending() {
    for TestBox { bus, .. } in &boxes() {
        bus.publish(event("a")).unwrap();
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["ran"]);
    }
}

#[test]
fn without_a_subscriber_an_event_is_processed_and_a_later_one_does_not_bring_it_back() {
    for TestBox { kind, bus, .. } in &boxes() {
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processed, 1));
        assert_eq!(inbox_rows(bus, id), []);
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all(), [""; 0]);
    }
}

#[track_caller]
fn assert_held(test: &TestBox, id: EventId) {
    let row = outbox_row(&test.bus, id);
    assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, 0), "{}", test.kind);
    assert_eq!(row.available_at.year(), 9999);
    assert_eq!((row.last_error, row.processed_at), (None, None));
}

#[test]
fn a_held_event_costs_no_attempt_however_often_it_is_looked_at() {
    for test in &holding_boxes() {
        let TestBox { bus, clock, .. } = test;
        let id = bus.publish(event("a")).unwrap();
        for _ in 0..5 {
            assert_eq!(bus.drain().unwrap() + bus.process_batch().unwrap(), 0);
            assert_held(test, id);
            clock.advance(100 * SECOND);
        }
        assert_eq!(bus.stats().unwrap().pending, 1);
    }
}

#[test]
fn a_held_event_is_delivered_once_somebody_subscribes_to_it_by_name_or_wildcard() {
    for pattern in ["invoice.created", "invoice.*", "*"] {
        for test in &holding_boxes() {
            let TestBox { bus, clock, .. } = test;
            let id = bus.publish(event("invoice.created")).unwrap();
            bus.drain().unwrap();
            assert_held(test, id);
            clock.advance(100 * SECOND);
            for other in ["invoice", "invoice.paid", "invoice.created.*", "order.*"] {
                bus.subscribe(Subscription::new(other, "other", noting(&Calls::default(), ""))).unwrap();
                bus.drain().unwrap();
                assert_held(test, id);
            }
            let calls = Calls::default();
            let note = calls.clone();
            bus.subscribe(Subscription::new(pattern, "c", move |event: &Event, _: &Context<'_>| {
                note.add(format!("attempt {}", event.attempt()));
                Ok(())
            }))
            .unwrap();
            assert_eq!(bus.drain().unwrap(), 1, "{} {pattern}", test.kind);
            assert_eq!(calls.all(), ["attempt 1"]);
            assert_eq!(outbox_row(bus, id).processed_at, Some(start_time() + 100 * SECOND));
        }
    }
}

#[test]
fn held_events_are_delivered_in_the_order_of_publishing() {
    for TestBox { kind, bus, .. } in &holding_boxes() {
        let ids = bus.publish_all((0..30).map(|_| event("a"))).unwrap();
        bus.drain().unwrap();
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |event: &Event, _: &Context<'_>| {
            note.add(event.id().to_string());
            Ok(())
        }))
        .unwrap();
        assert_eq!(bus.drain().unwrap(), 30, "{kind}");
        assert_eq!(calls.all(), ids.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
}

#[test]
fn more_held_events_than_are_let_go_at_once_are_all_delivered() {
    let [_, TestBox { bus, .. }] = holding_boxes();
    bus.update_settings(|settings| settings.batch_size = 500).unwrap();
    bus.publish_all((0..2_100).map(|_| event("a"))).unwrap();
    bus.drain().unwrap();
    assert_eq!(bus.stats().unwrap().pending, 2_100);
    bus.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
    assert_eq!(bus.drain().unwrap(), 2_100);
}

#[test]
fn a_delayed_event_is_held_only_when_it_is_due_and_never_delivered_before() {
    for test in &holding_boxes() {
        let TestBox { bus, clock, .. } = test;
        let subscribed_early = bus.publish(event("a").delay(10 * SECOND)).unwrap();
        let never_subscribed = bus.publish(event("b").delay(10 * SECOND)).unwrap();
        bus.drain().unwrap();
        assert_eq!(outbox_row(bus, never_subscribed).available_at, start_time() + 10 * SECOND);
        bus.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
        clock.advance(just_before(10 * SECOND));
        assert_eq!(bus.drain().unwrap(), 0);
        clock.advance(MICROSECOND);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(status(bus, subscribed_early), OutboxStatus::Processed);
        assert_held(test, never_subscribed);
    }
}

#[test]
fn an_event_whose_consumers_are_gone_keeps_the_attempts_that_it_has_had_while_it_is_held() {
    for TestBox { bus, clock, .. } in &holding_boxes() {
        let fails = |_: &Event, _: &Context<'_>| Err(HandlerError::retry("no"));
        bus.subscribe(Subscription::new("a", "c", fails)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        bus.registry().clear();
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 0);
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, 1));
        assert_eq!(row.last_error.as_deref(), Some("no"));
        bus.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(outbox_row(bus, id).attempt_count, 2);
    }
}

#[test]
fn the_setting_counts_at_delivery() {
    for test in &boxes() {
        let TestBox { bus, .. } = test;
        let id = bus.publish(event("a")).unwrap();
        bus.update_settings(|settings| settings.unhandled_events = UnhandledEvents::Hold).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        assert_held(test, id);
        assert!(outbox_row(bus, id).available_at > OffsetDateTime::UNIX_EPOCH);
        bus.update_settings(|settings| settings.unhandled_events = UnhandledEvents::Complete).unwrap();
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

/// `deliver_to` names the only consumers that are asked. One of these is not there yet: held, it was let go for the
/// sake of the others, and held again, without end.
#[test]
fn an_event_that_is_held_for_a_consumer_that_is_not_there_does_not_keep_a_drain_busy() {
    for TestBox { kind, bus, .. } in &holding_boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "another", noting(&calls, "another"))).unwrap();
        let id = bus.publish(event("a")).unwrap();
        sql(bus, |tx| tx.execute("UPDATE outbox_event SET deliver_to = '[\"awaited\"]'", []));
        let of_box = bus.clone();
        assert_eq!(ends(move || of_box.drain().unwrap()), 0, "{kind}");
        assert_eq!((status(bus, id), outbox_row(bus, id).attempt_count), (OutboxStatus::Pending, 0));
        bus.subscribe(Subscription::new("a", "awaited", noting(&calls, "awaited"))).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.all(), ["awaited"], "{kind}");
    }
}
