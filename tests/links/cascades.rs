//! An entity was deleted: who is told, and what comes of it.

use postbox::{
    Context, EntityRef, Error, Event, EventFilter, EventSummary, HandlerError, LinkCascade, LinkType,
    NewEvent, NewLink, OutboxStatus, Page, Postbox, Subscription, Tx,
};
use serde_json::{Value, json};

use crate::support::{Calls, TestBox, boxes, boxes_with, file_box, refused_field, sql};
use crate::{invoice, link, task};

fn cascade(source: EntityRef, target: EntityRef) -> NewLink {
    NewLink::new(source, target, LinkType::Cascade)
}

fn count(bus: &Postbox) -> u64 {
    sql(bus, |tx| tx.query_row("SELECT count(*) FROM integration_link", [], |row| row.get(0)))
}

fn events(bus: &Postbox) -> Vec<EventSummary> {
    let filter = EventFilter::new().name("link.cascade.*");
    bus.outbox().list(&filter, &Page::oldest(1_000)).unwrap().events
}

#[test]
fn the_module_of_each_entity_that_a_cascade_leads_to_is_told_once() {
    for TestBox { bus, .. } in &boxes() {
        let first =
            bus.links().create(cascade(invoice("1"), task("1")).metadata(json!({"why": [1]}))).unwrap();
        let again = bus.links().create(cascade(invoice("1"), task("1")).metadata(json!(2))).unwrap();
        bus.links().create(link(invoice("1"), task("2"))).unwrap();
        bus.links().create(NewLink::new(invoice("1"), task("3"), LinkType::AggregateRoot)).unwrap();
        bus.links().create(cascade(task("4"), invoice("1"))).unwrap();
        bus.links().create(cascade(invoice("1"), invoice("1"))).unwrap();
        let other = EntityRef::new("archive.paper", "Folder", "f-1");
        let second = bus.links().create(cascade(invoice("1"), other.clone())).unwrap();
        let kept = bus.links().create(cascade(invoice("2"), task("1"))).unwrap();

        let said = bus.announce_deleted(&invoice("1")).unwrap();
        assert_eq!(said.links_deleted, 7);
        let told: Vec<_> = said.events.iter().map(|id| bus.outbox().get(*id).unwrap().unwrap()).collect();
        assert_eq!(events(bus).iter().map(|event| event.id).collect::<Vec<_>>(), said.events);
        let [of_task, of_folder] = &told[..] else { panic!("{told:?}") };
        assert_eq!(of_task.event_name, "link.cascade.operations");
        assert_eq!(of_task.event_name, LinkCascade::event_name("operations"));
        assert_eq!(of_folder.event_name, "link.cascade.archive.paper");
        for (event, link, target) in [(of_task, &first, task("1")), (of_folder, &second, other)] {
            assert_eq!(event.source_module, "finance");
            assert_eq!(
                (&event.aggregate_type, &event.aggregate_id),
                (&target.entity_type, &target.entity_id)
            );
            assert_eq!(event.status, OutboxStatus::Pending);
            assert_eq!(event.metadata, link.metadata, "of the oldest link, not of {}", again.id);
            let end = |end: &EntityRef| json!({"module": end.module, "entity_type": end.entity_type, "entity_id": end.entity_id});
            assert_eq!(
                event.payload,
                json!({"link_id": link.id, "link_type": "cascade", "source": end(&invoice("1")), "target": end(&target)})
            );
            let read: LinkCascade = serde_json_from(&event.payload);
            assert_eq!((read.link_id, read.link_type), (link.id, LinkType::Cascade));
            assert_eq!((&read.source, &read.target), (&invoice("1"), &target));
        }
        assert_eq!(bus.links().find_inbound(&task("1")).unwrap()[0].id, kept.id);
        assert_eq!(count(bus), 1);

        let nothing = bus.announce_deleted(&invoice("1")).unwrap();
        assert_eq!((nothing.links_deleted, nothing.events.len()), (0, 0), "it was announced already");
    }
}

fn serde_json_from(value: &Value) -> LinkCascade {
    postbox::serde_json::from_value(value.clone()).unwrap()
}

/// A table of `module`s, whose handler deletes what it is told to, and announces it.
fn owns(bus: &Postbox, module: &'static str, calls: &Calls) {
    let calls = calls.clone();
    let handler = move |event: &Event, tx: &Tx<'_>| {
        let LinkCascade { source, target, .. } = event.payload_as()?;
        assert_eq!(target.module, module);
        calls.add(format!("{} after {}", target.entity_id, source.entity_id));
        tx.execute("DELETE FROM entity WHERE id = ?1", [&target.entity_id])?;
        tx.announce_deleted(&target)?;
        Ok(())
    };
    bus.subscribe(Subscription::transactional(
        LinkCascade::event_name(module),
        format!("{module}.cascade"),
        handler,
    ))
    .unwrap();
}

fn at(module: &str, id: &str) -> EntityRef {
    EntityRef::new(module, "Thing", id)
}

/// Entities `a` to `d` of modules of the same names, and a cascade from each to the next of these pairs.
fn chain(bus: &Postbox, pairs: &[(&str, &str)]) {
    sql(bus, |tx| {
        tx.execute_batch(
            "CREATE TABLE entity (id TEXT); INSERT INTO entity VALUES ('a'), ('b'), ('c'), ('d')",
        )
    });
    for (from, to) in pairs {
        bus.links().create(cascade(at(from, from), at(to, to))).unwrap();
    }
}

fn entities(bus: &Postbox) -> Vec<String> {
    sql(bus, |tx| tx.prepare("SELECT id FROM entity ORDER BY id")?.query_map([], |row| row.get(0))?.collect())
}

/// Deletes `a`, as its module does.
fn delete_a(bus: &Postbox) {
    bus.transaction::<_, Error>(|tx| {
        tx.execute("DELETE FROM entity WHERE id = 'a'", [])?;
        tx.announce_deleted(&at("a", "a")).map(drop)
    })
    .unwrap();
}

#[test]
fn a_cascade_goes_on_from_handler_to_handler_each_deleting_its_own() {
    for TestBox { bus, .. } in &boxes() {
        let calls = Calls::default();
        chain(bus, &[("a", "b"), ("b", "c"), ("c", "d")]);
        for module in ["b", "c", "d"] {
            owns(bus, module, &calls);
        }
        delete_a(bus);
        assert_eq!(entities(bus), ["b", "c", "d"], "nothing is deleted behind anybody's back");
        bus.drain().unwrap();
        assert_eq!(calls.all(), ["b after a", "c after b", "d after c"]);
        assert_eq!((entities(bus).len(), count(bus)), (0, 0));
        let told = events(bus);
        assert_eq!(told[0].causation_id, None);
        assert_eq!(told[1].causation_id, Some(told[0].id));
        assert_eq!(told[2].causation_id, Some(told[1].id));
        assert!(told.iter().all(|event| event.status == OutboxStatus::Processed));
    }
}

#[test]
fn a_cycle_of_cascades_ends_with_each_told_once() {
    for TestBox { bus, .. } in &boxes() {
        let calls = Calls::default();
        chain(bus, &[("a", "b"), ("b", "c"), ("c", "a"), ("b", "a"), ("b", "b"), ("a", "c")]);
        for module in ["a", "b", "c"] {
            owns(bus, module, &calls);
        }
        delete_a(bus);
        bus.drain().unwrap();
        // b and c are told of a; c a second time of b, unless it was gone by then.
        let told = calls.all();
        assert_eq!(told, ["b after a", "c after a", "c after b"]);
        assert_eq!((entities(bus), count(bus)), (vec!["d".to_owned()], 0));
    }
}

#[test]
fn a_module_that_keeps_its_entity_ends_the_cascade() {
    for TestBox { bus, .. } in &boxes() {
        let calls = Calls::default();
        chain(bus, &[("a", "b"), ("b", "c")]);
        owns(bus, "c", &calls);
        bus.subscribe(Subscription::transactional(
            LinkCascade::event_name("b"),
            "b",
            |_: &Event, _: &Tx<'_>| Ok(()),
        ))
        .unwrap();
        delete_a(bus);
        bus.drain().unwrap();
        assert_eq!(entities(bus), ["b", "c", "d"]);
        assert_eq!(bus.links().find_outbound(&at("b", "b")).unwrap().len(), 1, "its own links stay");
        assert!(calls.all().is_empty());
    }
}

#[test]
fn a_handler_that_fails_keeps_the_cascade_waiting_and_nothing_half_done() {
    let test = file_box();
    let calls = Calls::default();
    chain(&test.bus, &[("a", "b"), ("b", "c")]);
    test.bus
        .subscribe(Subscription::transactional(
            LinkCascade::event_name("b"),
            "b",
            |event: &Event, tx: &Tx<'_>| {
                let LinkCascade { target, .. } = event.payload_as()?;
                tx.execute("DELETE FROM entity WHERE id = 'b'", [])?;
                assert_eq!(tx.announce_deleted(&target)?.events.len(), 1);
                Err(HandlerError::dead_letter("not today"))
            },
        ))
        .unwrap();
    delete_a(&test.bus);
    test.bus.drain().unwrap();
    assert_eq!(entities(&test.bus), ["b", "c", "d"]);
    let told = events(&test.bus);
    assert_eq!((told.len(), told[0].status), (1, OutboxStatus::DeadLetter));
    assert_eq!(count(&test.bus), 1, "that from b to c");

    // After a restart with a handler that does it.
    let test = test.reopen();
    for module in ["b", "c"] {
        owns(&test.bus, module, &calls);
    }
    test.bus.outbox().retry(told[0].id).unwrap();
    test.bus.drain().unwrap();
    assert_eq!((entities(&test.bus), count(&test.bus)), (vec!["d".to_owned()], 0));
}

#[test]
fn what_handlers_announce_belongs_to_the_event_that_they_were_given() {
    for TestBox { bus, .. } in &boxes() {
        bus.links().create(cascade(invoice("1"), task("1"))).unwrap();
        bus.links().create(cascade(invoice("2"), task("2"))).unwrap();
        bus.subscribe(Subscription::transactional("a", "a", |_: &Event, tx: &Tx<'_>| {
            tx.announce_deleted(&invoice("1"))?;
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::new("b", "b", |_: &Event, cx: &Context<'_>| {
            cx.announce_deleted(&invoice("2"))?;
            assert_eq!(cx.announce_deleted(&invoice("2"))?.events.len(), 0);
            Ok(())
        }))
        .unwrap();
        let publish = |name| {
            bus.publish(NewEvent::new(name, "m", "T", "1").correlation_id(format!("talk-{name}"))).unwrap()
        };
        let causes = [publish("a"), publish("b")];
        bus.drain().unwrap();
        let mut told = events(bus);
        told.sort_by_key(|event| event.aggregate_id.clone());
        for (event, (cause, talk)) in told.iter().zip(causes.iter().zip(["talk-a", "talk-b"])) {
            assert_eq!(event.causation_id, Some(*cause));
            assert_eq!(event.correlation_id.as_deref(), Some(talk));
        }
        assert_eq!(told.len(), 2);
    }
}

#[test]
fn an_announcement_that_is_rolled_back_was_never_made() {
    for TestBox { bus, .. } in &boxes() {
        bus.links().create(cascade(invoice("1"), task("1"))).unwrap();
        let rolled_back = bus.transaction::<(), Error>(|tx| {
            assert_eq!(tx.announce_deleted(&invoice("1"))?.events.len(), 1);
            Err(Error::Closed { operation: "any error" })
        });
        assert!(rolled_back.is_err());
        assert_eq!((count(bus), events(bus).len()), (1, 0));
    }
}

#[test]
fn announced_cascades_survive_a_restart() {
    let test = file_box();
    test.bus.links().create(cascade(invoice("1"), task("1"))).unwrap();
    let said = test.bus.announce_deleted(&invoice("1")).unwrap();
    let test = test.reopen();
    assert_eq!(events(&test.bus).iter().map(|event| event.id).collect::<Vec<_>>(), said.events);
    assert_eq!(count(&test.bus), 0);
}

/// The second of two cannot be an event: neither is the first, and no link is gone.
#[test]
fn what_cannot_be_told_of_one_is_told_of_none_and_the_transaction_stays_usable() {
    let starred = EntityRef::new("oper*tions", "Task", "1");
    for TestBox { bus, .. } in &boxes_with(|builder| builder.max_payload_bytes(300)) {
        let refused = |bus: &Postbox, kind: &str| {
            bus.transaction::<_, Error>(|tx| {
                match (kind, tx.announce_deleted(&invoice("1"))) {
                    ("star", Err(Error::Invalid { field: "target_module", .. }))
                    | ("large", Err(Error::PayloadTooLarge { limit: 300, .. }))
                    | ("spoilt", Err(Error::Json(_)))
                    | ("event swallowed", Err(Error::NotStored { table: "outbox_event", .. }))
                    | ("link swallowed", Err(Error::NotStored { table: "integration_link", .. })) => {}
                    (kind, other) => panic!("{kind}: {other:?}"),
                }
                tx.publish(NewEvent::new("other", "m", "T", "1")).map(drop)
            })
            .unwrap();
            assert_eq!((count(bus), events(bus).len()), (2, 0), "{kind}");
            assert_eq!(bus.outbox().count(&EventFilter::new().name("other")).unwrap(), 1, "{kind}");
            sql(bus, |tx| tx.execute("DELETE FROM outbox_event WHERE event_name = 'other'", []));
        };
        bus.links().create(cascade(invoice("1"), task("1"))).unwrap();
        let id = bus.links().create(cascade(invoice("1"), starred.clone())).unwrap().id;
        refused(bus, "star");
        bus.links().delete(id).unwrap();

        let long = EntityRef::new("operations", "Task", "x".repeat(250));
        let id = bus.links().create(cascade(invoice("1"), long)).unwrap().id;
        refused(bus, "large");
        bus.links().delete(id).unwrap();

        bus.links().create(cascade(invoice("1"), task("2"))).unwrap();
        sql(bus, |tx| {
            tx.execute("UPDATE integration_link SET metadata = 'canary' WHERE target_entity_id = '2'", [])
        });
        refused(bus, "spoilt");
        sql(bus, |tx| tx.execute("UPDATE integration_link SET metadata = NULL", []));

        for (kind, trigger) in [
            ("event swallowed", "BEFORE INSERT ON outbox_event WHEN new.aggregate_id = '2'"),
            ("link swallowed", "BEFORE DELETE ON integration_link WHEN old.target_entity_id = '2'"),
        ] {
            sql(bus, |tx| {
                tx.execute_batch(&format!(
                    "CREATE TRIGGER in_the_way {trigger} BEGIN SELECT RAISE(IGNORE); END"
                ))
            });
            refused(bus, kind);
            sql(bus, |tx| tx.execute_batch("DROP TRIGGER in_the_way"));
        }
        assert_eq!(bus.announce_deleted(&invoice("1")).unwrap().events.len(), 2);
    }
}

#[test]
fn an_entity_out_of_range_cannot_be_announced() {
    for TestBox { bus, .. } in &boxes() {
        for (entity, field) in [
            (EntityRef::new("", "T", "1"), "module"),
            (EntityRef::new("m", "x".repeat(128), "1"), "entity_type"),
            (EntityRef::new("m", "T", "a\0"), "entity_id"),
        ] {
            assert_eq!(refused_field(bus.announce_deleted(&entity)), field);
            let inside = bus.transaction::<_, Error>(|tx| {
                assert_eq!(refused_field(tx.announce_deleted(&entity)), field);
                Ok(())
            });
            assert!(inside.is_ok());
        }
    }
}
