//! The attempts that failed last.

use std::time::Duration;

use postbox::{Context, Event, EventFilter, HandlerError, HistoryKind, Subscription};

use crate::on_both;
use crate::support::{
    LEASE, SECOND, TestBox, boxes, event, lose_an_attempt, noting, refused_field, sql, start_time,
};

fn failing(bus: &postbox::Postbox, name: &'static str) {
    let handler = move |_: &Event, _: &Context<'_>| Err(HandlerError::retry(format!("{name} failed")));
    bus.subscribe(Subscription::new(name, name, handler).max_attempts(2)).unwrap();
}

#[test]
fn failures_are_told_the_last_first_whatever_the_events_order() {
    for test in &boxes() {
        let TestBox { kind, bus, clock, .. } = test;
        on_both(test, |outbox| assert!(outbox.recent_failures(10).unwrap().is_empty(), "{kind}"));
        for name in ["a", "b"] {
            failing(bus, name);
        }
        let a = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        clock.advance(SECOND / 2);
        let b = bus.publish(event("b")).unwrap();
        bus.drain().unwrap();
        clock.advance(SECOND / 2);
        bus.drain().unwrap(); // the older one again
        on_both(test, |outbox| {
            let told = outbox.recent_failures(10).unwrap();
            let shown: Vec<_> =
                told.iter().map(|f| (f.event_id, (f.entry.at - start_time()).unsigned_abs())).collect();
            assert_eq!(shown, [(a, SECOND), (b, SECOND / 2), (a, Duration::ZERO)], "{kind}");
            assert_eq!(told[1].event_name, "b");
            assert_eq!(told[1].entry.consumer_name.as_deref(), Some("b"));
            assert_eq!(told[1].entry.detail.as_deref(), Some("b failed"));
            assert!(told[1].entry.duration.is_some());
            assert!(!format!("{told:?}").contains("failed\""), "{told:?}");
            assert_eq!(outbox.recent_failures(1).unwrap(), told[..1]);
        });
    }
}

#[test]
fn lost_attempts_are_failures_and_decisions_are_none() {
    for test in &boxes() {
        let TestBox { kind, bus, clock, .. } = test;
        bus.subscribe(Subscription::new("a", "a", noting(&crate::support::Calls::default(), "a"))).unwrap();
        let id = bus.publish(event("a")).unwrap();
        clock.advance(LEASE);
        lose_an_attempt(bus, id);
        bus.drain().unwrap();
        bus.outbox().replay(&EventFilter::new(), "a").unwrap();
        let told = bus.outbox().recent_failures(10).unwrap();
        assert_eq!(told.iter().map(|f| f.entry.kind).collect::<Vec<_>>(), [HistoryKind::Lost], "{kind}");
    }
}

#[test]
fn spoilt_entries_are_passed_over_and_bounds_are_kept() {
    for test in &boxes() {
        let TestBox { kind, bus, .. } = test;
        failing(bus, "a");
        bus.publish_all([event("a"), event("a")]).unwrap();
        bus.drain().unwrap();
        sql(bus, |tx| {
            tx.execute("UPDATE postbox_history SET detail = CAST(x'ff' AS TEXT) WHERE event = 2", [])
        });
        on_both(test, |outbox| assert_eq!(outbox.recent_failures(1_000).unwrap().len(), 1, "{kind}"));
        for limit in [0, 1_001, usize::MAX] {
            assert_eq!(refused_field(bus.outbox().recent_failures(limit)), "limit");
        }
    }
}
