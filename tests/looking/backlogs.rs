//! What waits, for what; and how far replays have come.

use std::time::Duration;

use postbox::{
    Backlog, Context, Event, EventFilter, HandlerError, PauseTarget, ReplayBacklog, Settings, Subscription,
    UnhandledEvents,
};

use crate::on_both;
use crate::support::{Calls, SECOND, TestBox, boxes, boxes_with, event, lose_an_attempt, noting, sql};

fn is(backlog: Backlog) -> ([u64; 4], Option<u64>) {
    ([backlog.due, backlog.later, backlog.paused, backlog.held], backlog.due_for_ms)
}

#[test]
fn pending_events_are_told_apart_by_what_they_wait_for() {
    let hold = Settings { unhandled_events: UnhandledEvents::Hold, ..Settings::default() };
    for test in &boxes_with(|builder| builder.settings(hold.clone())) {
        let TestBox { kind, bus, clock, .. } = test;
        on_both(test, |outbox| assert_eq!(is(outbox.backlog().unwrap()), ([0; 4], None), "{kind}"));
        let calls = Calls::default();
        bus.subscribe(Subscription::new("paused", "p", noting(&calls, "p"))).unwrap();
        bus.subscribe(Subscription::new("fails", "f", |_: &Event, _: &Context<'_>| {
            Err(HandlerError::retry("no"))
        }))
        .unwrap();
        bus.pause(&PauseTarget::consumer("p"), None, None).unwrap();
        bus.publish_all([event("paused"), event("paused"), event("nobody"), event("fails")]).unwrap();
        bus.publish(event("paused").delay(SECOND * 60)).unwrap();
        assert_eq!(is(bus.outbox().backlog().unwrap()), ([4, 1, 0, 0], Some(0)), "{kind}: at once");
        clock.advance(Duration::from_millis(300));
        on_both(test, |outbox| {
            assert_eq!(is(outbox.backlog().unwrap()), ([4, 1, 0, 0], Some(300)), "{kind}");
        });
        bus.drain().unwrap();
        on_both(test, |outbox| {
            assert_eq!(is(outbox.backlog().unwrap()), ([0, 2, 2, 1], None), "{kind}: a backoff, and a delay");
        });
        assert_eq!(bus.stats().unwrap().pending, 5);
        clock.advance(SECOND * 2);
        on_both(test, |outbox| {
            assert_eq!(is(outbox.backlog().unwrap()), ([1, 1, 2, 1], Some(1_000)), "{kind}");
        });
        // What is claimed is none of them.
        let id = bus.publish(event("paused")).unwrap();
        lose_an_attempt(bus, id);
        assert_eq!(is(bus.outbox().backlog().unwrap()).0, [1, 1, 2, 1], "{kind}");
    }
}

/// As `consumer waiting paused held dead_letters`.
fn replays(test: &TestBox) -> Vec<String> {
    let mut shown = Vec::new();
    let told = test.bus.outbox().replays().unwrap();
    on_both(test, |outbox| assert_eq!(outbox.replays().unwrap(), told, "{}", test.kind));
    for ReplayBacklog { consumer_name, waiting, paused, held, dead_letters, .. } in told {
        shown.push(format!("{consumer_name} {waiting} {paused} {held} {dead_letters}"));
    }
    shown
}

#[test]
fn events_behind_an_earlier_one_of_their_aggregate_are_told_as_that() {
    for test in &boxes() {
        let TestBox { kind, bus, clock, .. } = test;
        let fails = |_: &Event, _: &Context<'_>| Err(HandlerError::retry("no"));
        bus.subscribe(Subscription::new("a", "ordered", fails).ordered()).unwrap();
        bus.publish_all((0..3).map(|_| event("a"))).unwrap();
        bus.drain().unwrap();
        let backlog = bus.outbox().backlog().unwrap();
        assert_eq!((is(backlog), backlog.behind), (([0, 1, 0, 0], None), 2), "{kind}");
        clock.advance(SECOND);
        let backlog = bus.outbox().backlog().unwrap();
        assert_eq!((is(backlog), backlog.behind), (([1, 0, 0, 0], Some(0)), 2), "{kind}");
    }
}

#[test]
fn a_catch_up_is_followed_from_its_first_event_to_its_last() {
    let few = Settings { batch_size: 4, ..Settings::default() };
    for test in &boxes_with(|builder| builder.settings(few.clone())) {
        let TestBox { kind, bus, .. } = test;
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "first", noting(&calls, "first"))).unwrap();
        bus.publish_all((0..10).map(|_| event("a"))).unwrap();
        bus.drain().unwrap();
        assert!(replays(test).is_empty(), "{kind}");

        assert_eq!(bus.outbox().catch_up(&EventFilter::new(), "new").unwrap(), 10);
        bus.publish(event("a")).unwrap(); // not a replay
        assert_eq!(replays(test), ["new 10 0 0 0"], "{kind}");
        bus.process_batch().unwrap();
        assert_eq!(replays(test), ["new 10 0 4 0"], "{kind}: four are held, for want of a subscriber");
        bus.drain().unwrap();
        assert_eq!(replays(test), ["new 10 0 10 0"], "{kind}");

        bus.subscribe(Subscription::new("*", "new", noting(&calls, "new"))).unwrap();
        for left in [6, 2] {
            bus.process_batch().unwrap();
            assert_eq!(replays(test), [format!("new {left} 0 0 0")], "{kind}");
        }
        bus.drain().unwrap();
        assert!(replays(test).is_empty(), "{kind}");
        assert_eq!(calls.count("new"), 10);
    }
}

#[test]
fn replays_that_are_paused_claimed_or_given_up_are_told_apart() {
    for test in &boxes() {
        let TestBox { kind, bus, .. } = test;
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "one", noting(&calls, "one"))).unwrap();
        bus.publish_all((0..3).map(|_| event("a"))).unwrap();
        let id = bus.publish(event("b")).unwrap();
        bus.drain().unwrap();
        bus.pause(&PauseTarget::consumer("one"), None, None).unwrap();
        assert_eq!(bus.outbox().replay(&EventFilter::new().name("a"), "one").unwrap(), 3);
        bus.drain().unwrap();
        bus.subscribe(Subscription::new("*", "never", |_: &Event, _: &Context<'_>| {
            Err(HandlerError::dead_letter("never"))
        }))
        .unwrap();
        assert_eq!(bus.outbox().replay(&EventFilter::new().name("b"), "never").unwrap(), 1);
        lose_an_attempt(bus, id);
        assert_eq!(replays(test), ["never 1 0 0 0", "one 3 3 0 0"], "{kind}: one of them is claimed");
        bus.drain().unwrap();
        assert_eq!(replays(test), ["never 0 0 0 1", "one 3 3 0 0"], "{kind}");
        bus.outbox().discard(id, "enough").unwrap();
        bus.resume(&PauseTarget::consumer("one")).unwrap();
        bus.drain().unwrap();
        assert!(replays(test).is_empty(), "{kind}");
    }
}

/// What another program wrote there is nobody's.
#[test]
fn spoilt_names_are_passed_over_and_several_are_told_each() {
    for test in &boxes() {
        let names = ["'[\"a\",\"b\"]'", "'[\"b\"]'", "'nonsense'", "CAST(x'ff' AS TEXT)", "'[7]'"];
        for name in names {
            let id = test.bus.publish(event("a")).unwrap();
            sql(&test.bus, |tx| {
                tx.execute(
                    &format!("UPDATE outbox_event SET deliver_to = {name} WHERE id = ?1"),
                    [id.as_uuid()],
                )
            });
        }
        assert_eq!(replays(test), ["a 1 0 0 0", "b 2 0 0 0"], "{}", test.kind);
    }
}

#[test]
fn a_replay_tells_how_far_it_is_after_each_of_its_transactions() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", noting(&calls, "c"))).unwrap();
        bus.publish_all((0..450).map(|_| event("a"))).unwrap();
        bus.drain().unwrap();
        let mut told = Vec::new();
        // The box can be used meanwhile: nothing is locked.
        let outbox = bus.outbox();
        let look =
            |events| told.push((events, bus.publish(event("later")).is_ok(), bus.stats().unwrap().pending));
        let replayed = outbox.replay_with_progress(&EventFilter::new().name("a"), "c", look).unwrap();
        assert_eq!(replayed, 450, "{kind}");
        assert_eq!(told, [(200, true, 201), (400, true, 402), (450, true, 453)], "{kind}");
        let mut told = Vec::new();
        let later = EventFilter::new().name("later");
        let caught_up = outbox.catch_up_with_progress(&later, "new", |events| told.push(events));
        assert_eq!((caught_up.unwrap(), told), (0, Vec::new()), "{kind}: none of them has been processed");
    }
}
