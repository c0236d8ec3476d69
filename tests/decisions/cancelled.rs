//! Replays that are taken back.

use std::time::Duration;

use postbox::{
    Context, Event, EventFilter, HandlerError, HistoryKind, OutboxStatus, Page, PauseTarget, Subscription,
};

use crate::support::{Calls, TestBox, boxes, event, inbox_rows, noting, outbox_row, sql, status};

/// So many processed events, and a consumer `ledger` of them.
fn with_a_past(test: &TestBox, count: usize) -> Calls {
    let calls = Calls::default();
    test.bus.subscribe(Subscription::new("*", "ledger", noting(&calls, "ledger"))).unwrap();
    test.bus.publish_all((0..count).map(|_| event("a"))).unwrap();
    assert_eq!(test.bus.drain().unwrap(), count);
    calls.take();
    calls
}

fn all() -> EventFilter {
    EventFilter::new()
}

/// A replay to a consumer that nobody has could not be taken back but by subscribing one of that name.
#[test]
fn a_replay_to_a_name_that_nobody_has_is_taken_back() {
    for test in boxes() {
        let bus = &test.bus;
        let calls = with_a_past(&test, 450);
        let before = bus.stats().unwrap();
        assert_eq!(bus.outbox().replay(&all(), "legder").unwrap(), 450);
        assert_eq!(bus.drain().unwrap(), 0, "{}", test.kind);
        test.clock.advance(crate::support::SECOND);
        let waiting = all().status(OutboxStatus::Pending).replayed_to("legder");
        assert_eq!(bus.outbox().count(&waiting).unwrap(), 450);
        assert_eq!(bus.outbox().cancel_replay(&all().name("b"), "legder").unwrap(), 0, "not in the filter");
        assert_eq!(bus.outbox().cancel_replay(&all(), "ledger").unwrap(), 0, "another's");
        assert_eq!(bus.outbox().cancel_replay(&all(), "legder").unwrap(), 450);
        let after = bus.stats().unwrap();
        assert_eq!((after.pending, after.processed, after.total), (0, before.processed, before.total));
        assert_eq!(bus.outbox().replays().unwrap(), []);
        let counted: u64 =
            sql(bus, |tx| tx.query_row("SELECT processed FROM postbox_counter", [], |row| row.get(0)));
        assert_eq!(counted, 450);
        assert_eq!(bus.verify().unwrap().findings.len(), 0);
        assert_eq!(bus.outbox().cancel_replay(&all(), "legder").unwrap(), 0, "once");
        assert_eq!((bus.drain().unwrap(), calls.take().len()), (0, 0));
        // Now rightly.
        assert_eq!(bus.outbox().replay(&all(), "ledger").unwrap(), 450);
        assert_eq!((bus.drain().unwrap(), calls.take().len()), (450, 450));
    }
}

#[test]
fn one_that_has_failed_is_as_if_the_consumer_had_never_heard_of_it() {
    for test in boxes() {
        let bus = &test.bus;
        with_a_past(&test, 1);
        let failing =
            |_: &Event, _: &Context<'_>| Err(HandlerError::retry_after("no", Duration::from_mins(1)));
        bus.subscribe(Subscription::new("*", "fails", failing)).unwrap();
        bus.outbox().catch_up(&all(), "fails").unwrap();
        bus.drain().unwrap();
        let id = bus.outbox().list(&all(), &Page::oldest(1)).unwrap().events[0].id;
        assert_eq!((status(bus, id), inbox_rows(bus, id).len()), (OutboxStatus::Pending, 2), "{}", test.kind);
        assert_eq!(bus.outbox().cancel_replay(&all(), "fails").unwrap(), 1);
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.last_error), (OutboxStatus::Processed, None));
        assert_eq!(inbox_rows(bus, id).len(), 1);
        assert_eq!(bus.verify().unwrap().findings.len(), 0);
        let kinds: Vec<_> = bus.outbox().story(id).unwrap().unwrap().history.iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [HistoryKind::Replayed, HistoryKind::Failed]);
        assert_eq!(bus.outbox().catch_up(&all(), "fails").unwrap(), 1);
    }
}

#[test]
fn events_that_were_never_processed_and_names_that_only_look_alike_are_left_alone() {
    for test in boxes() {
        let bus = &test.bus;
        with_a_past(&test, 2);
        bus.pause(&PauseTarget::consumer("ledger"), None, None).unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        for name in ["x\"y", "x", "y\"", "[\"x\"", ",\"x\"", "\u{e9}\\"] {
            assert_eq!(bus.outbox().replay(&all(), name).unwrap(), 2, "{name}");
            for other in ["x\"y", "x", "y", "y\"", "[\"x\"", ",\"x\"", "\u{e9}\\", "e"] {
                let count = if other == name { 2 } else { 0 };
                let waiting = all().status(OutboxStatus::Pending).replayed_to(other);
                assert_eq!(bus.outbox().count(&waiting).unwrap(), count, "{name} {other} {}", test.kind);
                if other != name {
                    assert_eq!(bus.outbox().cancel_replay(&all(), other).unwrap(), 0, "{name} {other}");
                }
            }
            assert_eq!(
                bus.outbox().cancel_replay(&all().replayed_to("z"), name).unwrap(),
                0,
                "not in the filter"
            );
            assert_eq!(bus.outbox().cancel_replay(&all(), name).unwrap(), 2, "{name}");
        }
        assert_eq!(bus.stats().unwrap().pending, 1);
        let wrong = bus.outbox().cancel_replay(&all(), "").unwrap_err();
        assert!(wrong.to_string().contains("consumer_name"), "{wrong}");
    }
}

/// A consumer that works on one at this moment is not overtaken.
#[test]
fn one_that_is_being_worked_on_is_left_alone() {
    for test in boxes() {
        let bus = &test.bus;
        with_a_past(&test, 1);
        let calls = Calls::default();
        let noted = calls.clone();
        bus.subscribe(Subscription::new("*", "busy", move |_: &Event, cx: &Context<'_>| {
            let cancelled = cx.postbox().outbox().cancel_replay(&all(), "busy").unwrap();
            noted.add(format!("cancelled {cancelled}"));
            Ok(())
        }))
        .unwrap();
        assert_eq!(bus.outbox().replay(&all(), "busy").unwrap(), 1);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.take(), ["cancelled 0"], "{}", test.kind);
    }
}

/// It ends an event, as a discard does: those behind it look again.
#[test]
fn what_was_behind_it_has_its_turn() {
    for test in boxes() {
        let bus = &test.bus;
        let calls = Calls::default();
        let noted = calls.clone();
        let handler = move |_: &Event, _: &Context<'_>| {
            noted.add("ledger");
            if noted.all().len() == 2 {
                return Err(HandlerError::retry_after("not now", Duration::from_mins(1)));
            }
            Ok(())
        };
        bus.subscribe(Subscription::new("*", "ledger", handler).ordered()).unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(bus.outbox().replay(&all(), "ledger").unwrap(), 1);
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0, "{}", test.kind);
        assert_eq!(bus.outbox().backlog().unwrap().behind, 1);
        assert_eq!(bus.outbox().cancel_replay(&all(), "ledger").unwrap(), 1);
        assert_eq!(bus.outbox().backlog().unwrap().behind, 0, "{}: at once", test.kind);
        assert_eq!((bus.drain().unwrap(), calls.take().len()), (1, 3), "{}", test.kind);
    }
}
