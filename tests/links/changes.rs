//! An entity is gone, or has another name: all of its links at once.

use postbox::{EntityRef, Error, LinkType, NewLink, Postbox};
use serde_json::json;

use crate::support::{SECOND, boxes, file_box, refused_field, sql};
use crate::{ids, invoice, link, on_both, parts, task};

fn customer(id: &str) -> EntityRef {
    EntityRef::new("sales", "Customer", id)
}

/// Every link as `source > target type`, in the order in which they were made.
fn all(bus: &Postbox) -> Vec<String> {
    sql(bus, |tx| {
        tx.prepare(
            "SELECT source_entity_id || ' > ' || target_entity_id || ' ' || link_type FROM integration_link ORDER BY seq",
        )?
        .query_map([], |row| row.get(0))?
        .collect()
    })
}

#[test]
fn all_links_of_an_entity_are_deleted_and_no_others() {
    for test in &boxes() {
        let bus = &test.bus;
        for inside in [false, true] {
            let kept = bus.links().create(link(invoice("2"), task("1"))).unwrap();
            let other_module =
                bus.links().create(link(EntityRef::new("sales", "Invoice", "1"), task("1"))).unwrap();
            bus.links().create(link(invoice("1"), task("1"))).unwrap();
            bus.links().create(link(task("2"), invoice("1"))).unwrap();
            bus.links().create(link(invoice("1"), invoice("1"))).unwrap();
            let deleted = if inside {
                bus.transaction(|tx| tx.links().delete_of(&invoice("1"))).unwrap()
            } else {
                bus.links().delete_of(&invoice("1")).unwrap()
            };
            assert_eq!(deleted, 3);
            assert_eq!(bus.links().delete_of(&invoice("1")).unwrap(), 0);
            assert_eq!(ids(&bus.links().find_inbound(&task("1")).unwrap()), [kept.id, other_module.id]);
            assert_eq!(bus.links().delete_of(&task("1")).unwrap(), 2);
        }
    }
}

#[test]
fn links_of_a_renamed_entity_are_the_same_links_at_its_new_name() {
    for test in &boxes() {
        let bus = &test.bus;
        let out =
            bus.links().create(link(customer("old"), invoice("1")).metadata(json!({"why": 1}))).unwrap();
        let inward = bus.links().create(NewLink::new(task("1"), customer("old"), LinkType::Cascade)).unwrap();
        let itself = bus.links().create(link(customer("old"), customer("old"))).unwrap();
        let twice = bus.links().create(link(customer("old"), invoice("1"))).unwrap();
        let other = bus.links().create(link(customer("other"), invoice("1"))).unwrap();
        test.clock.advance(SECOND);
        let done = bus.links().move_entity(&customer("old"), &customer("new")).unwrap();
        assert_eq!((done.moved, done.deleted), (4, 0));
        let new = customer("new");
        for (before, source, target) in [
            (&out, &new, &invoice("1")),
            (&inward, &task("1"), &new),
            (&itself, &new, &new),
            (&twice, &new, &invoice("1")),
        ] {
            let now = bus.links().get(before.id).unwrap().unwrap();
            assert_eq!((&now.source, &now.target), (source, target));
            assert_eq!((now.link_type, &now.metadata), (before.link_type, &before.metadata));
            assert_eq!((now.created_at, now.updated_at), (before.created_at, before.created_at + SECOND));
        }
        assert_eq!(parts(&bus.links().get(other.id).unwrap().unwrap()), parts(&other));
        on_both(test, |links| {
            assert_eq!(ids(&links.find_outbound(&new).unwrap()), [out.id, itself.id, twice.id]);
            assert_eq!(ids(&links.find_inbound(&new).unwrap()), [inward.id, itself.id]);
            let again = links.move_entity(&customer("old"), &new).unwrap();
            assert_eq!((again.moved, again.deleted), (0, 0));
            let onto_itself = links.move_entity(&new, &new).unwrap();
            assert_eq!((onto_itself.moved, onto_itself.deleted), (0, 0));
        });
        assert_eq!(bus.links().get(out.id).unwrap().unwrap().updated_at, out.created_at + SECOND);
    }
}

#[test]
fn of_a_merged_entity_what_the_other_has_already_and_what_ties_the_two_goes() {
    for test in &boxes() {
        let bus = &test.bus;
        let make = |from: &str, to: &str, link_type| {
            let at = |id: &str| EntityRef::new("m", "T", id);
            bus.links().create(NewLink::new(at(from), at(to), link_type)).unwrap()
        };
        let (reference, cascade) = (LinkType::Reference, LinkType::Cascade);
        for (from, to, link_type) in [
            ("a", "x", reference), // b has it
            ("b", "x", reference),
            ("a", "x", cascade),   // b has none of this type
            ("a", "y", reference), // twice, and b has none
            ("a", "y", reference),
            ("p", "a", reference), // b has it
            ("q", "a", reference),
            ("p", "b", reference),
            ("b", "a", reference), // between the two
            ("a", "b", cascade),
            ("a", "a", reference), // b has none
            ("a", "a", cascade),   // b has it
            ("b", "b", cascade),
            ("x", "y", reference), // of neither
        ] {
            make(from, to, link_type);
        }
        let at = |id: &str| EntityRef::new("m", "T", id);
        let done = bus.transaction(|tx| tx.links().move_entity(&at("a"), &at("b"))).unwrap();
        assert_eq!((done.moved, done.deleted), (5, 5));
        assert_eq!(
            all(bus),
            [
                "b > x reference",
                "b > x cascade",
                "b > y reference",
                "b > y reference",
                "q > b reference",
                "p > b reference",
                "b > b reference",
                "b > b cascade",
                "x > y reference",
            ]
        );
    }
}

/// Where there was one link of each kind, there is one of each kind afterwards.
#[test]
fn unique_links_stay_unique_when_entities_are_merged() {
    for test in &boxes() {
        let at = |id: usize| EntityRef::new("m", "T", id.to_string());
        test.bus
            .transaction::<_, Error>(|tx| {
                for (from, to) in (0..6).flat_map(|from| (0..6).map(move |to| (from, to))) {
                    if (from * 5 + to * 3) % 4 != 0 {
                        tx.links().create_unique(NewLink::new(at(from), at(to), LinkType::Reference))?;
                    }
                    if (from + to) % 3 != 0 {
                        tx.links().create_unique(NewLink::new(at(from), at(to), LinkType::Cascade))?;
                    }
                }
                Ok(())
            })
            .unwrap();
        for (from, to) in [(0, 1), (2, 3), (5, 3), (3, 1), (4, 7)] {
            let before = all(&test.bus).len();
            let done = test.bus.links().move_entity(&at(from), &at(to)).unwrap();
            let left = all(&test.bus);
            assert_eq!(left.len(), before - done.deleted);
            let mut once = left.clone();
            once.sort();
            once.dedup();
            assert_eq!(once.len(), left.len(), "{left:?}");
            assert!(
                left.iter().all(|link| !link.split([' ', '>']).any(|id| id == from.to_string())),
                "{left:?}"
            );
        }
    }
}

#[test]
fn large_numbers_of_links_are_merged_and_deleted_at_once() {
    let test = file_box();
    let make = |of: &str| {
        sql(&test.bus, |tx| {
            tx.execute(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
                 INSERT INTO integration_link (id, source_module, source_entity_type, source_entity_id, target_module,
                                               target_entity_type, target_entity_id, link_type, created_at, updated_at)
                 SELECT randomblob(16), 'sales', 'Customer', ?1, 'finance', 'Invoice', i, 'reference', 1, 1 FROM n",
                [of],
            )
        })
    };
    make("old");
    let done = test.bus.links().move_entity(&customer("old"), &customer("new")).unwrap();
    assert_eq!((done.moved, done.deleted), (20_000, 0));
    make("old");
    let done = test.bus.links().move_entity(&customer("old"), &customer("new")).unwrap();
    assert_eq!((done.moved, done.deleted), (0, 20_000));
    let test = test.reopen();
    assert_eq!(test.bus.links().delete_of(&customer("new")).unwrap(), 20_000);
    assert_eq!(all(&test.bus).len(), 0);
}

#[test]
fn what_was_moved_and_deleted_in_a_transaction_that_is_rolled_back_is_as_it_was() {
    for test in &boxes() {
        let bus = &test.bus;
        bus.links().create(link(invoice("1"), task("1"))).unwrap();
        bus.links().create(link(invoice("2"), task("1"))).unwrap();
        let before = all(bus);
        let rolled_back = bus.transaction::<(), Error>(|tx| {
            assert_eq!(tx.links().move_entity(&invoice("1"), &invoice("2"))?.deleted, 1);
            assert_eq!(tx.links().delete_of(&invoice("2"))?, 1);
            Err(Error::Closed { operation: "any error" })
        });
        assert!(rolled_back.is_err());
        assert_eq!(all(bus), before);
    }
}

/// One of the application's in the file, against what the box writes.
fn with_trigger(bus: &Postbox, trigger: &str, f: impl FnOnce()) {
    sql(bus, |tx| tx.execute_batch(&format!("CREATE TRIGGER in_the_way {trigger}")));
    f();
    sql(bus, |tx| tx.execute_batch("DROP TRIGGER in_the_way"));
}

#[test]
fn a_trigger_in_the_way_of_some_keeps_all_and_the_transaction_stays_usable() {
    for test in &boxes() {
        let bus = &test.bus;
        for (from, to) in [("1", "1"), ("1", "2"), ("2", "2"), ("1", "3")] {
            bus.links().create(link(invoice(from), task(to))).unwrap();
        }
        let before = all(bus);
        for (trigger, is_swallowed) in [
            (
                "BEFORE DELETE ON integration_link WHEN old.target_entity_id = '2' BEGIN SELECT RAISE(IGNORE); END",
                true,
            ),
            (
                "BEFORE DELETE ON integration_link WHEN old.target_entity_id = '2' BEGIN SELECT RAISE(FAIL, 'no'); END",
                false,
            ),
            (
                "BEFORE UPDATE ON integration_link WHEN old.target_entity_id = '3' BEGIN SELECT RAISE(IGNORE); END",
                true,
            ),
            (
                "BEFORE UPDATE ON integration_link WHEN old.target_entity_id = '3' BEGIN SELECT RAISE(FAIL, 'no'); END",
                false,
            ),
        ] {
            with_trigger(bus, trigger, || {
                bus.transaction::<_, Error>(|tx| {
                    let mut results = vec![tx.links().move_entity(&invoice("1"), &invoice("2")).map(drop)];
                    if trigger.contains("DELETE") {
                        results.push(tx.links().delete_of(&invoice("1")).map(drop));
                    }
                    for result in results {
                        match result {
                            Err(Error::NotStored { table: "integration_link", .. }) if is_swallowed => {}
                            Err(Error::Sqlite(_)) if !is_swallowed => {}
                            other => panic!("{trigger}: {other:?}"),
                        }
                    }
                    tx.create_link(link(invoice("9"), task("9"))).map(drop)
                })
                .unwrap();
            });
            assert_eq!(all(bus), [&before[..], &["9 > 9 reference".to_owned()]].concat(), "{trigger}");
            bus.links().delete_of(&invoice("9")).unwrap();
        }
    }
}

#[test]
fn entities_out_of_range_are_refused_by_their_field() {
    for test in &boxes() {
        on_both(test, |links| {
            for (at, names) in [
                (0, ["module", "from_module", "to_module"]),
                (1, ["entity_type", "from_entity_type", "to_entity_type"]),
                (2, ["entity_id", "from_entity_id", "to_entity_id"]),
            ] {
                for bad in [String::new(), "a\0".to_owned(), "x".repeat(256)] {
                    let mut end = ["m", "T", "1"].map(str::to_owned);
                    end[at] = bad;
                    let [module, entity_type, entity_id] = end;
                    let end = EntityRef::new(module, entity_type, entity_id);
                    assert_eq!(refused_field(links.delete_of(&end)), names[0]);
                    assert_eq!(refused_field(links.move_entity(&end, &task("1"))), names[1]);
                    assert_eq!(refused_field(links.move_entity(&task("1"), &end)), names[2]);
                }
            }
        });
    }
}
