//! Names that were changed.

use postbox::{Context, DomainEvent, Error, Event, NewEvent, Postbox, Subscription};
use serde::{Deserialize, Serialize};

use crate::support::{Calls, TestBox, boxes, event, file_box, noting, refused_field};

#[derive(Serialize, Deserialize)]
struct Renamed {}

impl DomainEvent for Renamed {
    const NAME: &'static str = "invoice.created";
    const SOURCE_MODULE: &'static str = "finance";
    const AGGREGATE_TYPE: &'static str = "Invoice";
    const FORMER_NAMES: &'static [&'static str] = &["bill.created", "bill.made"];

    fn aggregate_id(&self) -> String {
        "inv-1".to_owned()
    }
}

fn names(calls: &Calls) -> impl postbox::Handler {
    let calls = calls.clone();
    move |event: &Event, _: &Context<'_>| {
        calls.add(event.name());
        Ok(())
    }
}

#[test]
fn events_published_under_a_former_name_reach_typed_and_untyped_consumers_across_a_restart() {
    let test_box = file_box();
    for name in ["bill.made", "bill.created", "invoice.created", "bill.paid"] {
        test_box.bus.publish(event(name)).unwrap();
    }
    let test_box = test_box.reopen();
    let (typed, untyped) = (Calls::default(), Calls::default());
    let noted = typed.clone();
    test_box
        .bus
        .subscribe_many([
            Subscription::typed::<Renamed>("typed", move |_, cx| {
                noted.add(cx.event().name());
                Ok(())
            }),
            Subscription::new("invoice.created", "untyped", names(&untyped))
                .alias("bill.made")
                .alias("bill.paid"),
        ])
        .unwrap();
    assert_eq!(test_box.bus.drain().unwrap(), 4);
    assert_eq!(typed.all(), ["bill.made", "bill.created", "invoice.created"]);
    assert_eq!(untyped.all(), ["bill.made", "invoice.created", "bill.paid"]);
}

#[test]
fn a_consumer_that_matches_by_name_alias_and_pattern_runs_once_by_the_closest() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("*", "c", noting(&calls, "all")),
            Subscription::new("bill.*", "c", noting(&calls, "pattern")),
            Subscription::new("invoice.created", "c", noting(&calls, "alias"))
                .alias("bill.created")
                .alias("bill.paid"),
            Subscription::new("bill.paid", "c", noting(&calls, "name")),
        ])
        .unwrap();
        for (name, by) in [
            ("bill.paid", "name"),
            ("bill.created", "alias"),
            ("invoice.created", "alias"),
            ("bill.sent", "pattern"),
            ("order", "all"),
        ] {
            bus.publish(event(name)).unwrap();
            assert_eq!((bus.drain().unwrap(), calls.take()), (1, vec![by.to_owned()]), "{kind}: {name}");
            assert_eq!(bus.registry().consumers(name), ["c"]);
        }
    }
}

#[test]
fn the_registry_knows_aliases() {
    for TestBox { bus, .. } in &boxes() {
        bus.subscribe(Subscription::new("new", "c", noting(&Calls::default(), "ran")).alias("old")).unwrap();
        assert!(bus.registry().has_handlers("old"));
        assert_eq!(
            (bus.registry().consumers("old"), bus.registry().event_names()),
            (vec!["c".to_owned()], vec!["new".to_owned()])
        );
        bus.registry().clear();
        assert!(!bus.registry().has_handlers("old"));
    }
}

fn subscribe(bus: &Postbox, name: &str, aliases: &[&str]) -> postbox::Result<()> {
    let subscription = Subscription::new(name, "c", noting(&Calls::default(), "ran"));
    bus.subscribe(aliases.iter().fold(subscription, |subscription, alias| subscription.alias(*alias)))
}

#[test]
fn aliases_that_make_no_sense_are_refused() {
    for TestBox { bus, .. } in &boxes() {
        for aliases in [&["bill.*"] as &[&str], &["*"], &[""], &["new"], &["old", "old"], &["a\0b"]] {
            assert_eq!(refused_field(subscribe(bus, "new", aliases)), "alias", "{aliases:?}");
        }
        subscribe(bus, "new", &["old"]).unwrap();
        match subscribe(bus, "newest", &["older", "old"]) {
            Err(Error::DuplicateSubscription { event_name, consumer }) => {
                assert_eq!((event_name.as_str(), consumer.as_str()), ("old", "c"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(bus.registry().handler_count(), 1);
    }
}

#[test]
fn held_events_of_a_former_name_are_let_go_for_who_subscribes_with_an_alias() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.update_settings(|settings| settings.unhandled_events = postbox::UnhandledEvents::Hold).unwrap();
        bus.publish(NewEvent::new("old", "tests", "Thing", "1")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        subscribe(bus, "new", &["old"]).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
    }
}
