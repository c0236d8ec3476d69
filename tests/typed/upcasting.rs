//! Payloads of older releases.

use std::convert::Infallible;

use postbox::{DomainEvent, NewEvent, Postbox, Subscription, Upcasters};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{Calls, TestBox, boxes, file_box, outbox_row, refused_field};
use crate::{CreatedV3, reading_v1, reading_v3, v1, v3};

#[test]
fn an_old_payload_comes_step_by_step_up_to_the_newer_type_across_a_restart() {
    let test_box = file_box();
    test_box.bus.publish_typed(&v1("inv-1")).unwrap();
    let second = NewEvent::new("invoice.created", "finance", "Invoice", "inv-2").version(2);
    test_box.bus.publish(second.payload(json!({ "number": "inv-2", "cents": 5 }))).unwrap();

    let test_box = test_box.reopen();
    let calls = Calls::default();
    test_box.bus.subscribe(reading_v3(&calls, "c")).unwrap();
    test_box.bus.publish_typed(&v3("inv-3")).unwrap();
    assert_eq!(test_box.bus.drain().unwrap(), 3);
    assert_eq!(calls.all(), ["inv-1: 1250 EUR", "inv-2: 5 EUR", "inv-3: 990 CHF"]);
}

#[test]
fn what_is_stored_stays_as_it_was_published() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([reading_v3(&calls, "new"), reading_v1(&calls, "old")]).unwrap();
        let id = bus.publish_typed(&v1("inv-1")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.all(), ["inv-1: 1250 EUR", "inv-1: 12.5"], "{kind}: each in its own version");
        let row = outbox_row(bus, id);
        assert_eq!((row.version, row.payload), (1, json!({ "number": "inv-1", "total": 12.5 })));
    }
}

#[test]
fn a_transactional_consumer_upcasts_as_well() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let noted = calls.clone();
        bus.subscribe(Subscription::typed_transactional::<CreatedV3>("c", move |created, _| {
            noted.add(format!("{} {}", created.cents, created.currency));
            Ok(())
        }))
        .unwrap();
        bus.publish_typed(&v1("inv-1")).unwrap();
        assert_eq!((bus.drain().unwrap(), calls.all()), (1, vec!["1250 EUR".to_owned()]), "{kind}");
    }
}

/// An event whose version and steps each test gives.
#[derive(Serialize, Deserialize)]
struct Stepped<const VERSION: u32, const FIRST: u32, const LAST: u32>;

impl<const VERSION: u32, const FIRST: u32, const LAST: u32> DomainEvent for Stepped<VERSION, FIRST, LAST> {
    const NAME: &'static str = "stepped";
    const SOURCE_MODULE: &'static str = "tests";
    const AGGREGATE_TYPE: &'static str = "Thing";
    const VERSION: u32 = VERSION;

    fn aggregate_id(&self) -> String {
        "t-1".to_owned()
    }

    fn upcasters() -> Upcasters {
        [FIRST, LAST].iter().fold(Upcasters::none(), |steps, from| {
            steps.step(*from, |payload: Value| Ok::<_, Infallible>(payload))
        })
    }
}

/// Its subscription took the events of many names for versions of one.
#[test]
fn a_type_whose_name_is_a_pattern_is_refused() {
    #[derive(Serialize, Deserialize)]
    struct Pattern {}

    impl DomainEvent for Pattern {
        const NAME: &'static str = "invoice.*";
        const SOURCE_MODULE: &'static str = "tests";
        const AGGREGATE_TYPE: &'static str = "Thing";

        fn aggregate_id(&self) -> String {
            "t-1".to_owned()
        }
    }

    for TestBox { bus, .. } in &boxes() {
        assert_eq!(refused_field(subscribe::<Pattern>(bus)), "event_name");
        assert_eq!(bus.registry().handler_count(), 0);
    }
}

fn subscribe<E: DomainEvent>(bus: &Postbox) -> postbox::Result<()> {
    bus.subscribe(Subscription::typed::<E>("c", |_, _| Ok(())))
}

#[test]
fn steps_that_do_not_lead_to_the_types_version_are_refused_with_its_name_and_the_step() {
    for TestBox { bus, .. } in &boxes() {
        for (refused, field, parts) in [
            (subscribe::<Stepped<4, 1, 3>>(bus), "upcasters", "the step 2 -> 3 is missing"),
            (subscribe::<Stepped<4, 1, 2>>(bus), "upcasters", "the step 3 -> 4 is missing"),
            (subscribe::<Stepped<2, 0, 1>>(bus), "upcasters", "versions count from 1"),
            (subscribe::<Stepped<2, 1, 2>>(bus), "upcasters", "the step from version 2 leads past"),
            (subscribe::<Stepped<2, 1, 1>>(bus), "upcasters", "there are two steps 1 -> 2"),
            (subscribe::<Stepped<0, 1, 2>>(bus), "version", "versions count from 1"),
        ] {
            let said = refused.as_ref().unwrap_err().to_string();
            assert_eq!(refused_field(refused), field);
            assert!(said.contains("`stepped`") && said.contains("Stepped") && said.contains(parts), "{said}");
        }
        assert_eq!(bus.registry().handler_count(), 0);
        subscribe::<Stepped<5, 3, 4>>(bus).unwrap(); // the oldest that it reads is the third
    }
}
