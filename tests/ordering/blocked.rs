//! Which aggregates are blocked.

use postbox::{HandlerError, Subscription};

use crate::support::{Calls, TestBox, boxes, refused_field};
use crate::{fine, publish, saying};

#[test]
fn blocked_aggregates_are_listed_with_what_blocks_them_and_how_many_wait() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let handler = saying(&calls, |event, _| match event.name() {
            "dead" => Err(HandlerError::dead_letter("never")),
            "slow" => Err(HandlerError::retry("not yet")),
            _ => Ok(()),
        });
        assert_eq!(bus.outbox().blocked(10).unwrap(), [], "{kind}: nobody has asked for order yet");
        bus.subscribe_many([
            Subscription::new("*", "c", handler).ordered(),
            Subscription::new("dead", "d", fine(&calls)),
        ])
        .unwrap();
        let ids = publish(
            bus,
            &[("x", "dead"), ("x", "b"), ("x", "c"), ("y", "slow"), ("y", "b"), ("z", "dead"), ("w", "b")],
        );
        bus.drain().unwrap();
        let blocked = bus.outbox().blocked(10).unwrap();
        let told: Vec<_> = blocked
            .iter()
            .map(|of| (of.event.id, of.event.aggregate_id.as_str(), of.consumers.clone(), of.waiting))
            .collect();
        let c = vec!["c".to_owned()];
        // Nothing waits behind the event of z.
        assert_eq!(told, [(ids[0], "x", c.clone(), 2), (ids[3], "y", c, 1)], "{kind}");
        let first = bus.outbox().blocked(1).unwrap();
        assert_eq!(first, blocked[..1], "{kind}");
        assert_eq!(bus.outbox().blocked_after(&first[0], 10).unwrap(), blocked[1..], "{kind}");
        bus.outbox().discard(ids[0], "no").unwrap();
        clock.advance(std::time::Duration::from_hours(1));
        bus.drain().unwrap();
        assert_eq!(
            bus.outbox().blocked(10).unwrap(),
            blocked[1..]
                .iter()
                .cloned()
                .map(|mut of| {
                    of.event = bus
                        .outbox()
                        .list(&postbox::EventFilter::new().name("slow"), &postbox::Page::newest(1))
                        .unwrap()
                        .events
                        .remove(0);
                    of
                })
                .collect::<Vec<_>>()
        );
    }
}

/// A dead letter that is passed over blocks nobody, also where the next event waits for room.
#[test]
fn what_waits_for_room_is_not_blocked() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let handler = saying(&calls, |event, _| match event.name() {
            "dead" => Err(HandlerError::dead_letter("never")),
            _ => Ok(()),
        });
        let subscription = Subscription::new("*", "c", handler).pass_dead_letters();
        bus.subscribe(subscription.rate_limit(1, std::time::Duration::from_hours(1))).unwrap();
        publish(bus, &[("x", "dead"), ("x", "b"), ("x", "c")]);
        bus.drain().unwrap();
        assert_eq!(bus.stats().unwrap().pending, 2);
        assert_eq!(bus.outbox().blocked(10).unwrap(), [], "{kind}");
    }
}

#[test]
fn a_page_has_one_to_a_thousand() {
    for TestBox { bus, .. } in &boxes() {
        for limit in [0, 1_001, usize::MAX] {
            assert_eq!(refused_field(bus.outbox().blocked(limit)), "limit");
        }
    }
}
