//! Failed attempts: how long each waits, how many there are, and how they end.

use std::collections::HashSet;
use std::time::Duration;

use postbox::{Backoff, Context, Event, HandlerError, InboxStatus, OutboxStatus, Settings, Subscription, Tx};

use crate::support::{
    Calls, MICROSECOND, SECOND, TestBox, boxes, boxes_with, event, inbox_rows, just_before, outbox_row,
    refused_field, start_time, status,
};

fn failing(calls: &Calls, name: &str) -> impl Fn(&Event, &Context<'_>) -> Result<(), HandlerError> + use<> {
    let (calls, name) = (calls.clone(), name.to_owned());
    move |event: &Event, _: &Context<'_>| {
        calls.add(format!("{name} {}", event.attempt()));
        Err(HandlerError::retry(format!("{name} failed")))
    }
}

fn no_calls() -> Calls {
    Calls::default()
}

/// Publishes one event, and asserts that its attempts come after exactly these delays and that it ends after them.
#[track_caller]
fn assert_delays(test: &TestBox, delays: &[Duration]) {
    let TestBox { kind, bus, clock, .. } = test;
    let id = bus.publish(event("a")).unwrap();
    for (failures, delay) in (1_u32..).zip(delays) {
        assert_eq!(bus.drain().unwrap(), 0);
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, failures), "{kind}");
        assert_eq!(row.available_at - row.updated_at, *delay, "{kind}: after {failures} failures");
        clock.advance(just_before(*delay));
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(outbox_row(bus, id).attempt_count, failures, "{kind}: a microsecond early");
        clock.advance(MICROSECOND);
    }
    assert_eq!(bus.drain().unwrap(), 0);
    let row = outbox_row(bus, id);
    assert_eq!(row.status, OutboxStatus::DeadLetter, "{kind}");
    assert_eq!(row.attempt_count as usize, delays.len() + 1);
    assert_eq!(inbox_rows(bus, id)[0].2, row.attempt_count, "{kind}");
    assert_eq!((row.available_at, row.processed_at), (row.updated_at, None));
}

fn seconds(all: &[u32]) -> Vec<Duration> {
    all.iter().map(|n| *n * SECOND).collect()
}

#[test]
fn by_default_an_event_is_tried_three_times_after_one_and_two_seconds() {
    for test in &boxes() {
        test.bus.subscribe(Subscription::new("a", "c", failing(&no_calls(), "c"))).unwrap();
        assert_delays(test, &seconds(&[1, 2]));
    }
}

#[test]
fn a_transactional_consumer_waits_as_a_plain_one_does() {
    for test in &boxes() {
        let fails = |_: &Event, _: &Tx<'_>| Err(HandlerError::retry("no"));
        test.bus.subscribe(Subscription::transactional("a", "c", fails)).unwrap();
        assert_delays(test, &seconds(&[1, 2]));
    }
}

#[test]
fn the_settings_attempts_and_base_delay_are_for_subscriptions_without_their_own() {
    for test in &boxes() {
        test.bus.subscribe(Subscription::new("a", "c", failing(&no_calls(), "c"))).unwrap();
        test.bus
            .update_settings(|settings| {
                settings.max_attempts = 5;
                settings.retry_base_delay_ms = 250;
            })
            .unwrap();
        assert_delays(test, &[250, 500, 1_000, 2_000].map(Duration::from_millis));
    }
}

#[test]
fn a_subscriptions_own_attempts_and_backoff_win_over_the_settings() {
    let base = Duration::from_millis(1_500);
    for (backoff, attempts, delays) in [
        (Backoff::exponential(base), 5, [1_500, 3_000, 6_000, 12_000].as_slice()),
        (Backoff::exponential(base).max(4 * SECOND), 5, &[1_500, 3_000, 4_000, 4_000]),
        (Backoff::fixed(7 * SECOND), 4, &[7_000, 7_000, 7_000]),
        (Backoff::fixed(7 * SECOND).max(2 * SECOND), 2, &[2_000]),
        (Backoff::exponential(SECOND).jitter(0.0), 3, &[1_000, 2_000]),
        (Backoff::fixed(SECOND), 1, &[]),
    ] {
        for test in &boxes() {
            let subscription = Subscription::new("a", "c", failing(&no_calls(), "c"));
            test.bus.subscribe(subscription.max_attempts(attempts).backoff(backoff)).unwrap();
            let delays: Vec<_> = delays.iter().map(|ms| Duration::from_millis(*ms)).collect();
            assert_delays(test, &delays);
        }
    }
}

#[test]
fn only_the_backoff_counts_when_only_the_attempts_are_the_settings() {
    for test in &boxes() {
        let subscription = Subscription::new("a", "c", failing(&no_calls(), "c"));
        test.bus.subscribe(subscription.backoff(Backoff::fixed(9 * SECOND))).unwrap();
        assert_delays(test, &seconds(&[9, 9]));
    }
}

#[test]
fn each_consumer_has_its_own_attempts_and_failures() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let subscribe = |name: &str, attempts, backoff| {
            let subscription = Subscription::new("a", name, failing(&calls, name));
            bus.subscribe(subscription.max_attempts(attempts).backoff(backoff)).unwrap();
        };
        subscribe("two", 2, Backoff::fixed(SECOND));
        subscribe("four", 4, Backoff::fixed(2 * SECOND));
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        // One that comes later has had no failures yet.
        subscribe("late", 2, Backoff::exponential(5 * SECOND));
        clock.advance(2 * SECOND);
        bus.drain().unwrap();
        let row = outbox_row(bus, id);
        assert_eq!(row.available_at - row.updated_at, 5 * SECOND, "{kind}");
        for _ in 0..9 {
            clock.advance(60 * SECOND);
            bus.drain().unwrap();
        }
        let ran = ["two 1", "four 1", "two 2", "four 2", "late 2", "four 3", "late 3", "four 4"];
        assert_eq!(calls.all(), ran, "{kind}");
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::DeadLetter, 4));
        assert_eq!(row.last_error.as_deref(), Some("four failed"), "of the last attempt");
        let failed =
            |name: &str, times| (name.to_owned(), InboxStatus::Failed, times, Some(format!("{name} failed")));
        assert_eq!(inbox_rows(bus, id), [failed("four", 4), failed("late", 2), failed("two", 2)]);
    }
}

#[test]
fn retry_after_waits_exactly_that_long_whatever_the_backoff_says() {
    for delay in [MICROSECOND, 90 * SECOND, 86_400 * SECOND] {
        for test in &boxes() {
            let fails = move |_: &Event, _: &Context<'_>| Err(HandlerError::retry_after("busy", delay));
            let subscription = Subscription::new("a", "c", fails);
            test.bus.subscribe(subscription.backoff(Backoff::fixed(SECOND).max(SECOND))).unwrap();
            assert_delays(test, &[delay, delay]);
        }
    }
}

#[test]
fn retry_after_nothing_is_due_at_once_and_still_ends_when_the_attempts_are_used_up() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
            note.add("ran");
            Err(HandlerError::retry_after("again", Duration::ZERO))
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all().len(), 3, "{kind}");
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter);
    }
}

#[test]
fn a_delay_beyond_all_times_waits_and_does_not_overflow() {
    for TestBox { bus, clock, .. } in &boxes() {
        let fails = |_: &Event, _: &Context<'_>| Err(HandlerError::retry_after("busy", Duration::MAX));
        bus.subscribe(Subscription::new("a", "c", fails)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(outbox_row(bus, id).available_at.year(), 9999);
        clock.advance(86_400 * 365 * SECOND);
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!((status(bus, id), outbox_row(bus, id).attempt_count), (OutboxStatus::Pending, 1));
    }
}

#[test]
fn jitter_spreads_delays_within_its_fraction_and_below_the_cap() {
    let ten = Backoff::fixed(10 * SECOND).jitter(0.2);
    for (backoff, least, most) in [(ten, 8 * SECOND, 12 * SECOND), (ten.max(9 * SECOND), SECOND, 9 * SECOND)]
    {
        for TestBox { kind, bus, .. } in &boxes() {
            bus.subscribe(Subscription::new("a", "c", failing(&no_calls(), "c")).backoff(backoff)).unwrap();
            let ids = bus.publish_all((0..60).map(|_| event("a"))).unwrap();
            bus.drain().unwrap();
            let delays: HashSet<_> =
                ids.iter().map(|id| outbox_row(bus, *id).available_at - start_time()).collect();
            assert!(delays.iter().all(|delay| *delay >= least && *delay <= most), "{kind}: {delays:?}");
            assert!(delays.len() > 10, "{kind}: {} different delays", delays.len());
        }
    }
    for TestBox { bus, .. } in &boxes() {
        for fraction in [-0.1, 1.01, f64::NAN] {
            let subscription = Subscription::new("a", "c", failing(&no_calls(), "c"));
            let refused = bus.subscribe(subscription.backoff(Backoff::fixed(SECOND).jitter(fraction)));
            assert_eq!(refused_field(refused), "backoff");
        }
    }
}

#[test]
fn where_dead_letters_are_off_an_event_fails_instead() {
    for TestBox { kind, bus, clock, .. } in &boxes_with(|builder| {
        builder.settings(Settings { dead_letter_enabled: false, ..Settings::default() })
    }) {
        bus.subscribe(Subscription::new("a", "c", failing(&no_calls(), "c"))).unwrap();
        bus.subscribe(Subscription::transactional("b", "c", |_: &Event, _: &Tx<'_>| {
            Err(HandlerError::dead_letter("at once"))
        }))
        .unwrap();
        let used_up = bus.publish(event("a")).unwrap();
        let at_once = bus.publish(event("b")).unwrap();
        for _ in 0..4 {
            bus.drain().unwrap();
            clock.advance(60 * SECOND);
        }
        for (id, attempts, error) in [(used_up, 3, "c failed"), (at_once, 1, "at once")] {
            let row = outbox_row(bus, id);
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::Failed, attempts), "{kind}");
            assert_eq!(row.last_error.as_deref(), Some(error));
        }
        let stats = bus.stats().unwrap();
        assert_eq!((stats.failed, stats.dead_letter, stats.total), (2, 0, 2));
        assert_eq!(bus.outbox().count_by_status(OutboxStatus::Failed).unwrap(), 2);
    }
}

#[test]
fn an_error_is_kept_until_the_event_is_processed() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        bus.subscribe(Subscription::new("a", "c", |event: &Event, _: &Context<'_>| {
            if event.attempt() == 1 { Err(HandlerError::retry("first")) } else { Ok(()) }
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(outbox_row(bus, id).last_error.as_deref(), Some("first"), "{kind}");
        assert_eq!(inbox_rows(bus, id), [("c".to_owned(), InboxStatus::Failed, 1, Some("first".to_owned()))]);
        clock.advance(SECOND);
        bus.drain().unwrap();
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.last_error), (OutboxStatus::Processed, None), "{kind}");
        assert_eq!(inbox_rows(bus, id), [("c".to_owned(), InboxStatus::Processed, 1, None)]);
    }
}
