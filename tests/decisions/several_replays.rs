//! Replays of the same events to several consumers, of which one has received them and another is still to try again.

use postbox::{
    Context, Event, EventFilter, HandlerError, HistoryKind, NewEvent, OutboxStatus, Page, Subscription,
};

use crate::support::{Calls, SECOND, TestBox, boxes, inbox_rows, noting, status};

fn all() -> EventFilter {
    EventFilter::new()
}

/// Three events that were replayed to `one`, which has received them, and to `fails`, which tries again in a minute.
fn half_replayed(test: &TestBox) -> Calls {
    let calls = Calls::default();
    let bus = &test.bus;
    for consumer in ["one", "two"] {
        bus.subscribe(Subscription::new("*", consumer, noting(&calls, consumer))).unwrap();
    }
    bus.publish_all((1..=3).map(|n| NewEvent::new("a", "m", "t", n.to_string()))).unwrap();
    assert_eq!(bus.drain().unwrap(), 3);
    let failing = |_: &Event, _: &Context<'_>| Err(HandlerError::retry_after("no", 60 * SECOND));
    bus.subscribe(Subscription::new("*", "fails", failing)).unwrap();
    calls.take();
    assert_eq!(bus.outbox().replay(&all(), "fails").unwrap(), 3);
    assert_eq!(bus.outbox().replay(&all(), "one").unwrap(), 3);
    bus.drain().unwrap();
    assert_eq!(calls.take(), ["one"; 3], "{}", test.kind);
    calls
}

/// It stood among those to whom the events wait to be replayed, and was left out.
#[test]
fn who_has_received_them_may_receive_them_again_and_no_backoff_is_cut_short() {
    for test in boxes() {
        let calls = half_replayed(&test);
        let bus = &test.bus;
        let id = bus.outbox().list(&all(), &Page::oldest(1)).unwrap().events[0].id;
        assert_eq!(bus.outbox().catch_up(&all(), "one").unwrap(), 0, "it has heard of them");
        assert_eq!(bus.outbox().replay(&all(), "one").unwrap(), 3, "once more, {}", test.kind);
        assert_eq!(bus.outbox().replay(&all(), "one").unwrap(), 0, "they wait for it already");
        bus.drain().unwrap();
        assert_eq!(calls.all(), Vec::<String>::new());
        test.clock.advance(60 * SECOND);
        bus.drain().unwrap();
        assert_eq!(calls.take(), ["one"; 3]);
        assert_eq!(status(bus, id), OutboxStatus::Pending, "it fails still");
        let kinds: Vec<_> = bus.outbox().history(id).unwrap().iter().map(|entry| entry.kind).collect();
        let [replayed, failed] = [HistoryKind::Replayed, HistoryKind::Failed];
        assert_eq!(kinds, [replayed, replayed, failed, replayed, failed]);
    }
}

/// What it had received was forgotten: a catch-up would have delivered it a second time.
#[test]
fn a_replay_that_its_consumer_has_received_is_not_cancelled() {
    for test in boxes() {
        let calls = half_replayed(&test);
        let bus = &test.bus;
        let id = bus.outbox().list(&all(), &Page::oldest(1)).unwrap().events[0].id;
        let before = inbox_rows(bus, id);
        assert_eq!(bus.outbox().cancel_replay(&all(), "one").unwrap(), 0, "{}", test.kind);
        assert_eq!(inbox_rows(bus, id), before);
        assert_eq!(bus.outbox().cancel_replay(&all(), "fails").unwrap(), 3);
        assert_eq!(bus.stats().unwrap().pending, 0, "nobody is left");
        assert_eq!(bus.outbox().catch_up(&all(), "one").unwrap(), 0);
        assert_eq!(bus.outbox().catch_up(&all(), "fails").unwrap(), 3);
        assert_eq!(calls.all(), Vec::<String>::new());
        assert!(bus.verify().unwrap().is_sound());
    }
}
