//! Steps whose events are types.

use std::time::Duration;

use postbox::{DomainEvent, OutboxStatus, Saga, Upcasters};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[cfg(feature = "schema")]
use crate::MINUTE;
#[cfg(feature = "schema")]
use crate::published_after;
use crate::support::{boxes, inbox_rows, outbox_row, refused_field, status};
use crate::{found, of_order, order, outcome};

#[derive(Serialize, Deserialize)]
struct Placed {
    order: String,
    cents: i64,
}

impl DomainEvent for Placed {
    const NAME: &'static str = "placed";
    const SOURCE_MODULE: &'static str = "sales";
    const AGGREGATE_TYPE: &'static str = "Order";
    const VERSION: u32 = 2;
    const FORMER_NAMES: &'static [&'static str] = &["ordered"];

    fn aggregate_id(&self) -> String {
        self.order.clone()
    }

    fn upcasters() -> Upcasters {
        Upcasters::none().step(1, |old| {
            let euros = old["euros"].as_i64().ok_or("no euros")?;
            Ok::<_, &str>(json!({ "order": old["order"], "cents": euros * 100 }))
        })
    }
}

fn saga() -> Saga<i64> {
    Saga::new("order")
        .starts_on_typed::<Placed>(|total, placed, step| {
            *total = placed.cents;
            assert_eq!(step.event().map(postbox::Event::correlation_id), Some(Some("o-1")));
            Ok(())
        })
        .on_typed::<Placed>(|total, placed, step| {
            *total += placed.cents;
            step.complete()?;
            Ok(())
        })
        .after_end_typed::<Placed>(|total, _, _| {
            *total = -1;
            Ok(())
        })
}

#[test]
fn a_typed_step_is_given_its_type_whatever_the_version_and_the_name_of_before() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(saga()).unwrap();
        bus.publish(of_order("ordered").payload(json!({ "order": "o-1", "euros": 12 }))).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus).state, 1_200, "{}", test.kind);
        let placed = Placed { order: "o-1".to_owned(), cents: 5 };
        bus.publish(postbox::NewEvent::typed(&placed).unwrap().correlation_id("o-1")).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus).state, 1_205, "{}", test.kind);
        bus.publish(postbox::NewEvent::typed(&placed).unwrap().correlation_id("o-1")).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus).state, -1, "{}", test.kind);
    }
}

#[test]
fn what_does_not_fit_the_type_is_a_dead_letter_and_what_is_newer_is_held_back() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(saga()).unwrap();
        let odd = bus.publish(of_order("placed").payload(json!({ "order": "o-1" })).version(2)).unwrap();
        let newer = bus.publish(order("placed", "o-2").version(3)).unwrap();
        bus.drain().unwrap();
        assert_eq!(status(bus, odd), OutboxStatus::DeadLetter, "{}", test.kind);
        let (_, why) = outcome(bus, odd);
        assert!(
            why.starts_with("version 2 of `placed` cannot be read as Placed (version 2): missing field"),
            "{why}"
        );
        assert_eq!((status(bus, newer), outbox_row(bus, newer).attempt_count), (OutboxStatus::Pending, 0));
        assert_eq!(inbox_rows(bus, newer), []);
        assert_eq!(bus.sagas().totals().unwrap(), []);
    }
}

/// A step is refused what publishing would be refused.
#[cfg(feature = "schema")]
#[test]
fn timeouts_and_events_that_undo_fit_their_schemas() {
    for test in boxes() {
        let (bus, calls) = (&test.bus, crate::support::Calls::default());
        let schema = json!({ "type": "object", "required": ["n"] });
        bus.catalogue().schema_of("step.a", 1, schema).unwrap();
        let said = calls.clone();
        let saga = crate::noting().starts_on("begin", move |_, _, step| {
            said.add(step.timeout("t", MINUTE, of_order("step.a")).unwrap_err().to_string());
            said.add(step.undo_with(of_order("step.a")).unwrap_err().to_string());
            step.undo_with(of_order("step.a").payload(json!({ "n": 1 })))?;
            Ok(())
        });
        bus.subscribe_saga(saga).unwrap();
        bus.publish(of_order("begin")).unwrap();
        bus.drain().unwrap();
        assert_eq!(calls.all().len(), 2, "{}", test.kind);
        assert!(calls.all().iter().all(|said| said.contains("step.a")), "{:?}", calls.all());
        assert_eq!(found(bus).undo, ["step.a"]);
    }
}

/// A release came with a stricter schema, and its sagas could not be undone.
#[cfg(feature = "schema")]
#[test]
fn a_schema_that_came_later_keeps_nothing_from_being_undone() {
    let test = crate::support::file_box();
    let saga = || {
        crate::noting()
            .starts_on("begin", move |_, _, step| {
                step.undo_with(of_order("undo.a").payload(json!({ "n": 0 })))?;
                step.undo_with(of_order("undo.b"))?;
                Ok(())
            })
            .on("lost", |_, _, step| {
                step.compensate("lost")?;
                Ok(())
            })
    };
    test.bus.subscribe_saga(saga()).unwrap();
    test.bus.publish_all(["o-1", "o-2"].map(|id| order("begin", id))).unwrap();
    test.bus.drain().unwrap();

    let test = test.reopen();
    let bus = &test.bus;
    bus.catalogue().schema_of("undo.a", 1, json!({ "properties": { "n": { "minimum": 1 } } })).unwrap();
    bus.subscribe_saga(saga()).unwrap();
    let refused = bus.publish(of_order("undo.a").payload(json!({ "n": 0 })));
    assert!(matches!(refused, Err(postbox::Error::SchemaViolation { .. })), "{refused:?}");
    let lost = bus.publish(of_order("lost")).unwrap();
    bus.drain().unwrap();
    assert_eq!(published_after(bus, lost), ["undo.b", "undo.a"]);
    assert_eq!(bus.sagas().compensate("order", "o-2", "by hand").unwrap(), 2);
    assert_eq!(published_after(bus, lost), ["undo.b", "undo.a", "undo.b", "undo.a"]);
}

/// The first release: both take `placed` untyped as well.
fn half_typed() -> Saga<i64> {
    Saga::new("order")
        .starts_on("placed", |total, event, _| {
            *total = event.version().into();
            Ok(())
        })
        .on_typed::<Placed>(|total, placed, step| {
            *total += placed.cents;
            step.complete()?;
            Ok(())
        })
        .after_end("placed", |total, _, _| {
            *total += 1_000;
            Ok(())
        })
}

fn newer(id: &str) -> postbox::NewEvent {
    order("placed", id).version(3).payload(json!({ "order": "o-1", "pence": 7 }))
}

/// One typed handler had the events of its untyped neighbours held back as well.
#[test]
fn an_untyped_handler_takes_every_version_and_a_typed_one_beside_it_has_its_own_say() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(half_typed()).unwrap();
        bus.publish(newer("o-1")).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus).state, 3, "{}", test.kind);

        let waits = bus.publish(newer("o-1")).unwrap();
        for _ in 0..20 {
            test.clock.advance(Duration::from_hours(1));
            bus.drain().unwrap();
        }
        let row = outbox_row(bus, waits);
        assert_eq!((status(bus, waits), row.attempt_count), (OutboxStatus::Pending, 0));
        let why = "saga `order` of `o-1`: version 3 of `placed` waits for a release that knows it: its handler reads up to version 2";
        assert_eq!(row.last_error.as_deref(), Some(why));
        assert_eq!((found(bus).state, inbox_rows(bus, waits)), (json!(3), vec![]));

        // What it can read goes on beside it, and it goes to the untyped one once the conversation is there.
        let placed = Placed { order: "o-1".to_owned(), cents: 5 };
        bus.publish(postbox::NewEvent::typed(&placed).unwrap().correlation_id("o-1")).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus).state, 8);
        test.clock.advance(Duration::from_mins(5));
        bus.drain().unwrap();
        assert_eq!((found(bus).state, status(bus, waits)), (json!(1_008), OutboxStatus::Processed));
    }
}

#[test]
fn in_order_what_waits_for_a_newer_release_is_not_passed() {
    for test in boxes() {
        let bus = &test.bus;
        let subscriptions = half_typed().subscriptions().unwrap();
        bus.subscribe_many(subscriptions.into_iter().map(postbox::Subscription::ordered)).unwrap();
        bus.publish(newer("o-1")).unwrap();
        let waits = bus.publish(newer("o-1")).unwrap();
        let placed = json!({ "order": "o-1", "cents": 5 });
        let behind = bus.publish(of_order("placed").version(2).payload(placed)).unwrap();
        for _ in 0..3 {
            bus.drain().unwrap();
            test.clock.advance(Duration::from_mins(10));
        }
        assert_eq!(
            (status(bus, behind), found(bus).state),
            (OutboxStatus::Pending, json!(3)),
            "{}",
            test.kind
        );
        bus.sagas().complete("order", "o-1", "by hand").unwrap();
        bus.drain().unwrap();
        assert_eq!(
            (status(bus, waits), status(bus, behind)),
            (OutboxStatus::Processed, OutboxStatus::Processed)
        );
        assert_eq!(found(bus).state, 2_003);
    }
}

#[derive(Serialize, Deserialize)]
struct PlacedNow {
    pence: i64,
}

impl DomainEvent for PlacedNow {
    const NAME: &'static str = Placed::NAME;
    const SOURCE_MODULE: &'static str = Placed::SOURCE_MODULE;
    const AGGREGATE_TYPE: &'static str = Placed::AGGREGATE_TYPE;
    const VERSION: u32 = 3;

    fn aggregate_id(&self) -> String {
        "o-1".to_owned()
    }
}

/// It is held back before its state is read: the newer release may have written that as well.
#[test]
fn what_waits_for_a_newer_release_goes_on_in_one_whatever_the_state_has_become() {
    let test = crate::support::file_box();
    let newest = || {
        Saga::<(i64, String)>::new("order")
            .starts_on("placed", |_, _, _| Ok(()))
            .on_typed::<PlacedNow>(|state, placed, _| {
                *state = (placed.pence, "pounds".to_owned());
                Ok(())
            })
            .after_end("placed", |_, _, _| Ok(()))
    };
    let other = test.second();
    other.subscribe_saga(newest()).unwrap();
    other.publish(newer("o-1")).unwrap();
    other.drain().unwrap();

    test.bus.subscribe_saga(half_typed()).unwrap();
    let waits = test.bus.publish(newer("o-1")).unwrap();
    test.bus.drain().unwrap();
    assert_eq!(status(&test.bus, waits), OutboxStatus::Pending);
    test.clock.advance(Duration::from_mins(5));
    other.drain().unwrap();
    assert_eq!(found(&test.bus).state, json!([7, "pounds"]));
}

/// Placed, as another part of the application reads it.
#[derive(Serialize, Deserialize)]
struct PlacedToo<const STEP: u32> {}

impl<const STEP: u32> DomainEvent for PlacedToo<STEP> {
    const NAME: &'static str = Placed::NAME;
    const SOURCE_MODULE: &'static str = Placed::SOURCE_MODULE;
    const AGGREGATE_TYPE: &'static str = Placed::AGGREGATE_TYPE;
    const VERSION: u32 = 2;
    const FORMER_NAMES: &'static [&'static str] = &["ordered", "bought"];

    fn aggregate_id(&self) -> String {
        "o-1".to_owned()
    }

    fn upcasters() -> Upcasters {
        Upcasters::none().unchanged(STEP)
    }
}

/// The second type of one event was not looked at: neither its upcasters nor its former names.
#[test]
fn every_type_of_an_event_is_checked_and_its_former_names_count() {
    for test in boxes() {
        let saga = Saga::<i64>::new("order").starts_on_typed::<Placed>(|_, _, _| Ok(()));
        let odd = saga.clone().on_typed::<PlacedToo<2>>(|_, _, _| Ok(()));
        assert_eq!(refused_field(test.bus.subscribe_saga(odd)), "upcasters");
        assert_eq!(test.bus.registry().handler_count(), 0);
        let saga = saga.on_typed::<PlacedToo<1>>(|total, _, _| {
            *total += 1;
            Ok(())
        });
        test.bus.subscribe_saga(saga).unwrap();
        let placed = json!({ "order": "o-1", "cents": 5 });
        for name in ["placed", "ordered", "bought"] {
            test.bus.publish(of_order(name).version(2).payload(placed.clone())).unwrap();
        }
        test.bus.drain().unwrap();
        assert_eq!(found(&test.bus).state, 2, "{}", test.kind);
    }
}

/// Where a handler had the former name for its own, those of the type were not called: the event waited for a start, and was a dead letter.
#[test]
fn events_of_a_former_name_that_has_a_handler_come_to_the_handlers_of_the_type_as_well() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = Saga::<i64>::new("order")
            .starts_on_typed::<Placed>(|total, placed, _| {
                *total = placed.cents;
                Ok(())
            })
            .on_typed::<Placed>(|_, _, _| Err(postbox::HandlerError::dead_letter("the closer one is called")))
            .on("ordered", |total, event, step| {
                *total += i64::from(event.version());
                step.complete()?;
                Ok(())
            });
        bus.subscribe_saga(saga).unwrap();
        let ordered = || of_order("ordered").payload(json!({ "order": "o-1", "euros": 12 }));
        bus.publish(ordered()).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus).state, 1_200, "{}", test.kind);
        // Its own handler takes every version, and the type's has its own say.
        let newer = bus.publish(order("ordered", "o-2").version(3)).unwrap();
        bus.publish(ordered().version(3)).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus).state, 1_203);
        assert_eq!((status(bus, newer), outbox_row(bus, newer).attempt_count), (OutboxStatus::Pending, 0));
    }
}

#[derive(Serialize, Deserialize)]
struct PlacedBefore {}

impl DomainEvent for PlacedBefore {
    const NAME: &'static str = Placed::NAME;
    const SOURCE_MODULE: &'static str = Placed::SOURCE_MODULE;
    const AGGREGATE_TYPE: &'static str = Placed::AGGREGATE_TYPE;

    fn aggregate_id(&self) -> String {
        "o-1".to_owned()
    }
}

/// The first type said up to which version events are read: those of the second were held back for ever, or, the other way round, were read
/// as the older type without a word.
#[test]
fn one_event_is_not_read_as_types_of_several_versions() {
    for test in boxes() {
        let sagas: [Saga<i64>; 2] = [
            Saga::new("s")
                .starts_on_typed::<PlacedBefore>(|_, _, _| Ok(()))
                .on_typed::<Placed>(|_, _, _| Ok(())),
            Saga::new("s")
                .starts_on_typed::<Placed>(|_, _, _| Ok(()))
                .after_end_typed::<PlacedBefore>(|_, _, _| Ok(())),
        ];
        for saga in sagas {
            let refused = test.bus.subscribe_saga(saga);
            let said = refused.as_ref().unwrap_err().to_string();
            assert!(said.contains("saga `s`") && said.contains("`placed`"), "{said}");
            assert_eq!(refused_field(refused), "version");
        }
        assert_eq!(test.bus.registry().handler_count(), 0);
    }
}
