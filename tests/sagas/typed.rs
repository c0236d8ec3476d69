//! Steps whose events are types.

use postbox::{DomainEvent, OutboxStatus, Saga, Upcasters};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[cfg(feature = "schema")]
use crate::MINUTE;
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
