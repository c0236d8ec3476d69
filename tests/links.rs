//! Links between entities of different modules.

mod support;

#[path = "links/cascades.rs"]
mod cascades;
#[path = "links/changes.rs"]
mod changes;
#[path = "links/filters.rs"]
mod filters;
#[path = "links/unique.rs"]
mod unique;
#[path = "links/walks.rs"]
mod walks;

use std::collections::HashSet;

use postbox::{EntityRef, Error, IntegrationLink, LinkType, Links, NewLink};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{SECOND, TestBox, boxes, boxes_with, file_box, refused_field, sql, start_time};

fn invoice(id: &str) -> EntityRef {
    EntityRef::new("finance", "Invoice", id)
}

fn task(id: &str) -> EntityRef {
    EntityRef::new("operations", "Task", id)
}

fn link(source: EntityRef, target: EntityRef) -> NewLink {
    NewLink::new(source, target, LinkType::Reference)
}

/// What a link consists of: the record has no equality of its own.
fn parts(link: &IntegrationLink) -> (Uuid, &EntityRef, &EntityRef, LinkType, &Option<Value>) {
    (link.id, &link.source, &link.target, link.link_type, &link.metadata)
}

fn ids(links: &[IntegrationLink]) -> Vec<Uuid> {
    links.iter().map(|link| link.id).collect()
}

/// Runs the same calls on the box and inside a transaction of it.
fn on_both(test: &TestBox, calls: impl Fn(&Links<'_>)) {
    calls(&test.bus.links());
    test.bus
        .transaction::<_, Error>(|tx| {
            calls(&tx.links());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_link_comes_back_as_it_was_created_on_the_box_and_in_a_transaction() {
    for test in &boxes() {
        let new = || {
            NewLink::new(invoice("1"), task("9"), LinkType::AggregateRoot)
                .metadata(json!({"why": [u64::MAX, 0.1]}))
        };
        let outside = test.bus.links().create(new()).unwrap();
        let inside = test.bus.transaction(|tx| tx.create_link(new())).unwrap();
        let by_service = test.bus.transaction(|tx| tx.links().create(new())).unwrap();
        for made in [&outside, &inside, &by_service] {
            assert_eq!((&made.source, &made.target), (&invoice("1"), &task("9")));
            assert_eq!(made.link_type, LinkType::AggregateRoot);
            assert_eq!(made.metadata, Some(json!({"why": [u64::MAX, 0.1]})));
            assert_eq!((made.created_at, made.updated_at), (start_time(), start_time()));
            on_both(test, |links| {
                let got = links.get(made.id).unwrap().unwrap();
                assert_eq!(parts(&got), parts(made));
                assert_eq!((got.created_at, got.updated_at), (made.created_at, made.updated_at));
            });
        }
        assert_eq!(HashSet::from([outside.id, inside.id, by_service.id]).len(), 3, "three links, three ids");
    }
}

#[test]
fn a_link_without_metadata_has_none_and_null_is_some() {
    for TestBox { bus, .. } in &boxes() {
        let none = bus.links().create(link(invoice("1"), task("1"))).unwrap();
        let null = bus.links().create(link(invoice("1"), task("1")).metadata(Value::Null)).unwrap();
        assert_eq!(bus.links().get(none.id).unwrap().unwrap().metadata, None);
        assert_eq!(bus.links().get(null.id).unwrap().unwrap().metadata, Some(Value::Null));
    }
}

#[test]
fn links_are_found_from_either_end_and_by_type_the_oldest_first() {
    for test in &boxes() {
        let TestBox { bus, clock, .. } = test;
        let make = |source, target, link_type| {
            clock.advance(SECOND);
            bus.links().create(NewLink::new(source, target, link_type)).unwrap().id
        };
        let first = make(invoice("1"), task("1"), LinkType::Reference);
        let second = make(invoice("1"), task("2"), LinkType::Cascade);
        let back = make(task("1"), invoice("1"), LinkType::Reference);
        let other = make(invoice("2"), task("1"), LinkType::Reference);
        let again = make(invoice("1"), task("1"), LinkType::AggregateRoot);
        let itself = make(invoice("3"), invoice("3"), LinkType::Cascade);
        on_both(test, |links| {
            let outbound = |end: &EntityRef| ids(&links.find_outbound(end).unwrap());
            let inbound = |end: &EntityRef| ids(&links.find_inbound(end).unwrap());
            let of_type = |link_type| ids(&links.find_by_type(link_type).unwrap());
            assert_eq!(outbound(&invoice("1")), [first, second, again]);
            assert_eq!(outbound(&task("1")), [back]);
            assert_eq!(outbound(&task("2")).len(), 0);
            assert_eq!(inbound(&task("1")), [first, other, again]);
            assert_eq!(inbound(&invoice("1")), [back]);
            assert_eq!(inbound(&invoice("3")), [itself]);
            assert_eq!(inbound(&invoice("2")).len(), 0);
            assert_eq!(of_type(LinkType::Reference), [first, back, other]);
            assert_eq!(of_type(LinkType::Cascade), [second, itself]);
            assert_eq!(of_type(LinkType::AggregateRoot), [again]);
        });
    }
}

#[test]
fn an_entity_is_its_module_its_type_and_its_id_together() {
    for test in &boxes() {
        let ends = [
            EntityRef::new("m", "T", "1"),
            EntityRef::new("M", "T", "1"),
            EntityRef::new("m", "t", "1"),
            EntityRef::new("m", "T", "01"),
            EntityRef::new("mT", "1", "1"),
        ];
        for end in &ends {
            test.bus.links().create(link(end.clone(), invoice("1"))).unwrap();
            test.bus.links().create(link(invoice("2"), end.clone())).unwrap();
        }
        on_both(test, |links| {
            for end in &ends {
                assert_eq!(links.find_outbound(end).unwrap().len(), 1, "{end}");
                assert_eq!(links.find_inbound(end).unwrap().len(), 1, "{end}");
                assert_eq!(links.find_outbound(end).unwrap()[0].source, *end);
            }
        });
        assert_eq!(ends[0].to_string(), "m/T/1");
    }
}

#[test]
fn between_two_entities_the_oldest_link_is_found_whichever_way_it_leads() {
    for test in &boxes() {
        let bus = &test.bus;
        bus.links().create(link(invoice("1"), task("2"))).unwrap();
        bus.links().create(link(invoice("2"), task("1"))).unwrap();
        on_both(test, |links| {
            assert!(links.find_bidirectional(&invoice("1"), &task("1")).unwrap().is_none());
        });
        let back = bus.links().create(link(task("1"), invoice("1"))).unwrap().id;
        bus.links().create(link(invoice("1"), task("1"))).unwrap();
        let itself = bus.links().create(link(task("7"), task("7"))).unwrap().id;
        on_both(test, |links| {
            let between = |one: &EntityRef, other: &EntityRef| {
                links.find_bidirectional(one, other).unwrap().map(|link| link.id)
            };
            assert_eq!(between(&invoice("1"), &task("1")), Some(back));
            assert_eq!(between(&task("1"), &invoice("1")), Some(back));
            assert_eq!(between(&task("7"), &task("7")), Some(itself));
            assert_eq!(between(&task("7"), &task("1")), None);
        });
    }
}

#[test]
fn links_are_counted_by_the_module_that_they_start_in() {
    for test in &boxes() {
        let bus = &test.bus;
        for n in 0..3 {
            bus.links().create(link(invoice(&n.to_string()), task("1"))).unwrap();
        }
        bus.links().create(link(task("1"), invoice("1"))).unwrap();
        on_both(test, |links| {
            assert_eq!(links.count_from_module("finance").unwrap(), 3);
            assert_eq!(links.count_from_module("operations").unwrap(), 1);
            assert_eq!(links.count_from_module("Finance").unwrap(), 0);
            assert_eq!(links.count_from_module("").unwrap(), 0);
        });
    }
}

#[test]
fn a_deleted_link_is_given_back_once_and_is_gone() {
    for test in &boxes() {
        let bus = &test.bus;
        let kept = bus.links().create(link(invoice("1"), task("1"))).unwrap();
        let outside = bus.links().create(link(invoice("1"), task("1")).metadata(json!(7))).unwrap();
        let inside = bus.links().create(link(invoice("1"), task("1"))).unwrap();
        assert_eq!(parts(&bus.links().delete(outside.id).unwrap()), parts(&outside));
        assert_eq!(bus.transaction(|tx| tx.links().delete(inside.id)).unwrap().id, inside.id);
        on_both(test, |links| {
            for gone in [outside.id, inside.id, Uuid::nil()] {
                assert!(links.get(gone).unwrap().is_none());
                match links.delete(gone) {
                    Err(Error::NotFound { what: "link", id }) => assert_eq!(id, gone.to_string()),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(ids(&links.find_outbound(&invoice("1")).unwrap()), [kept.id]);
        });
    }
}

#[test]
fn ends_out_of_range_are_refused_by_their_field_and_nothing_is_written() {
    for test in &boxes() {
        on_both(test, |links| {
            let bad_names = |max: usize| {
                [String::new(), " ".to_owned(), "a\0".to_owned(), "é".repeat(max + 1), "x".repeat(max + 1)]
            };
            for (at, max, fields) in [
                (0, 127, ["source_module", "target_module"]),
                (1, 127, ["source_entity_type", "target_entity_type"]),
                (2, 255, ["source_entity_id", "target_entity_id"]),
            ] {
                for bad in bad_names(max) {
                    let mut end = ["m", "T", "1"].map(str::to_owned);
                    end[at] = bad;
                    let [module, entity_type, entity_id] = end;
                    let end = EntityRef::new(module, entity_type, entity_id);
                    assert_eq!(refused_field(links.create(link(end.clone(), task("1")))), fields[0]);
                    assert_eq!(refused_field(links.create(link(task("1"), end))), fields[1]);
                }
            }
            assert_eq!(links.find_by_type(LinkType::Reference).unwrap().len(), 0);
        });
        let longest = EntityRef::new("é".repeat(127), "é".repeat(127), "é".repeat(255));
        let made = test.bus.links().create(link(longest.clone(), longest.clone())).unwrap();
        assert_eq!(test.bus.links().get(made.id).unwrap().unwrap().source, longest);
    }
}

#[test]
fn metadata_of_links_has_the_limits_of_a_payload() {
    for test in &boxes_with(|builder| builder.max_payload_bytes(100)) {
        on_both(test, |links| {
            let with = |metadata: Value| links.create(link(invoice("1"), task("1")).metadata(metadata));
            with(json!("x".repeat(98))).unwrap();
            match with(json!("x".repeat(99))) {
                Err(Error::PayloadTooLarge { size: 101, limit: 100 }) => {}
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(test.bus.links().count_from_module("finance").unwrap(), 2);
    }
    for test in &boxes() {
        let nested = |levels| (0..levels).fold(json!(1), |inner: Value, _| json!([inner]));
        let new = |levels| link(invoice("1"), task("1")).metadata(nested(levels));
        let made = test.bus.links().create(new(127)).unwrap();
        assert_eq!(test.bus.links().get(made.id).unwrap().unwrap().metadata, Some(nested(127)));
        assert_eq!(refused_field(test.bus.links().create(new(128))), "metadata");
    }
}

#[test]
fn links_of_a_transaction_that_is_rolled_back_never_were_and_deletions_are_undone() {
    for TestBox { bus, .. } in &boxes() {
        let kept = bus.links().create(link(invoice("1"), task("1"))).unwrap();
        let rolled_back = bus.transaction::<(), Error>(|tx| {
            tx.links().delete(kept.id)?;
            tx.create_link(link(invoice("1"), task("2")))?;
            Err(Error::Closed { operation: "any error" })
        });
        assert!(rolled_back.is_err());
        assert_eq!(ids(&bus.links().find_outbound(&invoice("1")).unwrap()), [kept.id]);
    }
}

#[test]
fn links_survive_a_restart() {
    let test = file_box();
    let made = test.bus.links().create(link(invoice("1"), task("1")).metadata(json!({"a": 1}))).unwrap();
    let test = test.reopen();
    assert_eq!(parts(&test.bus.links().get(made.id).unwrap().unwrap()), parts(&made));
}

#[test]
fn link_types_are_stored_under_the_names_of_the_schema() {
    for TestBox { bus, .. } in &boxes() {
        let all = [LinkType::Reference, LinkType::Cascade, LinkType::AggregateRoot];
        for link_type in all {
            bus.links().create(NewLink::new(invoice("1"), task("1"), link_type)).unwrap();
        }
        let stored: Vec<String> = sql(bus, |tx| {
            tx.prepare("SELECT link_type FROM integration_link ORDER BY seq")?
                .query_map([], |row| row.get(0))?
                .collect()
        });
        assert_eq!(stored, ["reference", "cascade", "aggregate_root"]);
        assert_eq!(all.map(|link_type| link_type.to_string()).as_slice(), stored);
    }
}
