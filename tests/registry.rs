//! The registry: who subscribes to what, and what it answers.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use postbox::{Context, Error, Event, OutboxStatus, Postbox, Subscription, Tx};

use crate::support::{
    Calls, TestBox, assert_reentrant, boxes, ends, event, memory_box_with, noting, refused_field, status,
};

fn to(event_name: &str, consumer: &str) -> Subscription {
    Subscription::new(event_name, consumer, |_: &Event, _: &Context<'_>| Ok(()))
}

fn transactional_to(event_name: &str, consumer: &str) -> Subscription {
    Subscription::transactional(event_name, consumer, |_: &Event, _: &Tx<'_>| Ok(()))
}

fn a_box() -> Postbox {
    memory_box_with(|builder| builder).bus
}

#[test]
fn an_empty_registry_knows_nobody() {
    let bus = a_box();
    let registry = bus.registry();
    assert!(!registry.has_handlers("a"));
    assert_eq!(registry.event_names(), [""; 0]);
    assert_eq!(registry.handler_count(), 0);
    assert_eq!(registry.consumers("a"), [""; 0]);
    assert_eq!(registry.remove_by_consumer_prefix(""), 0);
}

#[test]
fn the_registrys_answers_follow_subscribing_and_removing() {
    let bus = a_box();
    let registry = bus.registry();
    bus.subscribe(to("invoice.created", "ops.tasks")).unwrap();
    bus.subscribe(transactional_to("invoice.*", "ops.mail").priority(9)).unwrap();
    bus.subscribe(to("invoice.created", "fin.ledger").priority(-1)).unwrap();
    bus.subscribe(to("order.placed", "ops.tasks")).unwrap();

    assert_eq!(registry.handler_count(), 4);
    assert_eq!(bus.stats().unwrap().handler_count, 4);
    assert_eq!(registry.event_names(), ["invoice.created", "invoice.*", "order.placed"]);
    assert_eq!(registry.consumers("invoice.created"), ["ops.mail", "ops.tasks", "fin.ledger"]);
    assert_eq!(registry.consumers("invoice.paid"), ["ops.mail"]);
    assert_eq!(registry.consumers("invoice"), [""; 0]);
    assert!(registry.has_handlers("invoice.anything.below"));
    assert!(!registry.has_handlers("order.cancelled"));

    assert_eq!(registry.remove_by_consumer_prefix("ops."), 3);
    assert_eq!(registry.consumers("invoice.created"), ["fin.ledger"]);
    assert!(!registry.has_handlers("invoice.paid"));
    assert_eq!(registry.event_names(), ["invoice.created"]);
    assert_eq!(registry.remove_by_consumer_prefix("ops."), 0);
    registry.clear();
    assert_eq!((registry.handler_count(), registry.has_handlers("invoice.created")), (0, false));
}

#[test]
fn a_prefix_is_of_the_consumers_name_and_the_empty_one_is_everybodys() {
    let bus = a_box();
    bus.subscribe_many([to("a", "ops"), to("a", "ops2"), to("ops", "b"), to("a", "Ops"), to("b", "ops")])
        .unwrap();
    assert_eq!(bus.registry().remove_by_consumer_prefix("ops"), 3);
    assert_eq!(bus.registry().consumers("a"), ["Ops"]);
    assert_eq!(bus.registry().remove_by_consumer_prefix(""), 2);
    assert_eq!(bus.registry().handler_count(), 0);
}

#[test]
fn one_consumer_subscribes_once_to_a_name_and_an_error_says_to_which() {
    let bus = a_box();
    bus.subscribe(to("a.*", "c")).unwrap();
    match bus.subscribe(transactional_to("a.*", "c").priority(1)) {
        Err(Error::DuplicateSubscription { event_name, consumer }) => {
            assert_eq!((event_name.as_str(), consumer.as_str()), ("a.*", "c"));
        }
        other => panic!("{other:?}"),
    }
    // Another name, pattern or consumer is no duplicate.
    bus.subscribe_many([to("a.b", "c"), to("*", "c"), to("a.*", "d"), to("A.*", "c")]).unwrap();
    assert_eq!(bus.registry().handler_count(), 5);
    // One that was removed may come back.
    bus.registry().clear();
    bus.subscribe(to("a.*", "c")).unwrap();
}

#[test]
fn a_list_of_subscriptions_is_all_or_none() {
    let bus = a_box();
    bus.subscribe(to("a", "c")).unwrap();
    let lists = [vec![to("b", "c"), to("a", "c")], vec![to("b", "c"), to("d", "c"), to("b", "c")]];
    for list in lists {
        assert!(matches!(bus.subscribe_many(list), Err(Error::DuplicateSubscription { .. })));
    }
    assert_eq!(refused_field(bus.subscribe_many([to("b", "c"), to("", "c")])), "event_name");
    assert_eq!(bus.registry().event_names(), ["a"]);
    bus.subscribe_many([]).unwrap();
    bus.subscribe_many([to("b", "c"), to("d", "c")]).unwrap();
    assert_eq!(bus.registry().event_names(), ["a", "b", "d"]);
}

#[test]
fn subscriptions_out_of_range_are_refused_by_their_field() {
    let bus = a_box();
    for bad in ["", " ", "a\0", "**", "a*", "*.a", "a.*.b", ".*", "a.**", "* "] {
        assert_eq!(refused_field(bus.subscribe(to(bad, "c"))), "event_name", "{bad:?}");
    }
    for bad in ["", "\t", "a\0"] {
        assert_eq!(refused_field(bus.subscribe(to("a", bad))), "consumer_name", "{bad:?}");
    }
    assert_eq!(refused_field(bus.subscribe(to(&"é".repeat(256), "c"))), "event_name");
    assert_eq!(refused_field(bus.subscribe(to("a", &"é".repeat(256)))), "consumer_name");
    assert_eq!(refused_field(bus.subscribe(to("a", "c").max_attempts(0))), "max_attempts");
    assert_eq!(bus.registry().handler_count(), 0);

    bus.subscribe(to(&"é".repeat(255), &"é".repeat(255)).max_attempts(u32::MAX)).unwrap();
    bus.subscribe(to(&format!("{}.*", "é".repeat(253)), "c")).unwrap();
    bus.subscribe(to("*", "a consumer's name may hold a *")).unwrap();
    let id = bus.publish(event(&"é".repeat(255))).unwrap();
    assert_eq!(bus.drain().unwrap(), 1);
    assert!(bus.inbox().is_processed(id, &"é".repeat(255)).unwrap());
}

#[test]
fn a_removed_consumer_is_not_asked_any_more_not_even_for_events_that_wait() {
    for TestBox { bus, .. } in &boxes() {
        let calls = Calls::default();
        for consumer in ["ops.one", "ops.two", "fin.one"] {
            bus.subscribe(Subscription::new("a", consumer, noting(&calls, consumer))).unwrap();
        }
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.registry().remove_by_consumer_prefix("ops."), 2);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["fin.one"]);
        assert_eq!(status(bus, id), OutboxStatus::Processed);
    }
}

#[test]
fn handlers_may_subscribe_and_remove_while_they_run() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "changes", move |_: &Event, cx: &Context<'_>| {
            let bus = cx.postbox();
            bus.subscribe(Subscription::new("a", "new", noting(&note, "new")))?;
            bus.registry().remove_by_consumer_prefix("removed");
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::new("a", "removed", noting(&calls, "removed"))).unwrap();
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        // What was under way is finished as it was begun.
        assert_eq!(calls.take(), ["removed"], "{kind}");
        bus.registry().remove_by_consumer_prefix("changes");
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.take(), ["new"], "{kind}");
    }
}

#[test]
fn subscribing_inside_a_transaction_is_no_write_and_works() {
    for TestBox { bus, .. } in &boxes() {
        bus.transaction::<_, Error>(|_| {
            assert_reentrant(bus.drain());
            bus.subscribe(to("a", "c"))?;
            assert_eq!(bus.registry().consumers("a"), ["c"]);
            Ok(())
        })
        .unwrap();
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

/// A handler that asks the registry when it is dropped, as the application's guards might.
struct AsksWhenDropped(Postbox, Arc<AtomicUsize>);

impl Drop for AsksWhenDropped {
    fn drop(&mut self) {
        self.0.registry().has_handlers("a");
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn handlers_are_dropped_when_they_are_removed_and_outside_the_registrys_locks() {
    let bus = a_box();
    let dropped = Arc::new(AtomicUsize::new(0));
    let holding = |consumer: &str| {
        let guard = AsksWhenDropped(bus.clone(), Arc::clone(&dropped));
        Subscription::new("a", consumer, move |_: &Event, _: &Context<'_>| {
            let _ = &guard;
            Ok(())
        })
    };
    bus.subscribe(holding("one")).unwrap();
    bus.subscribe(holding("two")).unwrap();
    bus.publish(event("a")).unwrap();
    bus.drain().unwrap();
    let (remover, refused) = (bus.clone(), holding("one"));
    ends(move || {
        assert!(remover.subscribe(refused).is_err());
        assert_eq!(remover.registry().remove_by_consumer_prefix("one"), 1);
        remover.registry().clear();
    });
    assert_eq!(dropped.load(Ordering::SeqCst), 3);
}

#[test]
fn debug_names_the_subscriptions() {
    let bus = a_box();
    bus.subscribe(to("invoice.*", "ops").priority(3)).unwrap();
    let text = format!("{:?} {:?}", bus.registry(), to("order.placed", "fin"));
    for part in ["invoice.*", "ops", "3", "order.placed", "fin"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_closed_box_takes_no_subscriptions_and_has_none() {
    for TestBox { bus, .. } in &boxes() {
        bus.subscribe(to("a", "c")).unwrap();
        bus.clone().close().unwrap();
        assert!(matches!(bus.subscribe(to("b", "c")), Err(Error::Closed { .. })));
        assert_eq!(bus.registry().handler_count(), 0);
    }
}
