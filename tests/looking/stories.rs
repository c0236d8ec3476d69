//! One event's story: its row, its consumers, its cause and consequences, the links of what it is about.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postbox::{
    Context, EntityRef, Event, EventFilter, EventId, HandlerError, InboxStatus, LinkType, NewEvent, NewLink,
    OutboxStatus, Page, Subscription, Tx,
};
use rusqlite::params;
use serde_json::json;

use crate::support::{TestBox, boxes, event, file_box, sql};
use crate::{ids, on_both, set_cause};

fn entity(module: &str, kind: &str, id: &str) -> EntityRef {
    EntityRef::new(module, kind, id)
}

#[test]
fn it_tells_what_each_consumer_did_what_caused_it_and_what_it_caused() {
    for test in &boxes() {
        let TestBox { bus, .. } = test;
        bus.subscribe(Subscription::transactional("order.placed", "billing", |_: &Event, tx: &Tx<'_>| {
            tx.publish(event("invoice.created").payload(json!({"total": 7})))?;
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::new("invoice.created", "mail", |event: &Event, cx: &Context<'_>| {
            for n in 1..=2 {
                cx.publish(NewEvent::new(format!("mail.{n}"), "mail", "Mail", event.aggregate_id()))?;
            }
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::new("invoice.created", "ledger", |_: &Event, _: &Context<'_>| {
            Err(HandlerError::dead_letter("the ledger is closed"))
        }))
        .unwrap();
        let order = bus.publish(NewEvent::new("order.placed", "shop", "Order", "o-1")).unwrap();
        bus.drain().unwrap();

        on_both(test, |outbox| {
            let of_order = outbox.story(order).unwrap().unwrap();
            assert!(of_order.cause.is_none() && of_order.event.causation_id.is_none());
            assert_eq!(of_order.caused.len(), 1);
            let invoice = of_order.caused[0].id;

            let story = outbox.story(invoice).unwrap().unwrap();
            assert_eq!((story.event.id, story.event.event_name.as_str()), (invoice, "invoice.created"));
            assert_eq!(story.event.payload, json!({"total": 7}));
            assert_eq!(story.cause.as_ref().unwrap().id, order);
            let caused: Vec<&str> = story.caused.iter().map(|event| event.event_name.as_str()).collect();
            assert_eq!(caused, ["mail.1", "mail.2"]);
            let rows: Vec<_> = story
                .inbox
                .iter()
                .map(|row| {
                    (row.outbox_event_id, row.consumer_name.as_str(), row.status, row.last_error.as_deref())
                })
                .collect();
            assert_eq!(
                rows,
                [
                    (invoice, "mail", InboxStatus::Processed, None),
                    (invoice, "ledger", InboxStatus::Failed, Some("the ledger is closed")),
                ]
            );
            assert_eq!(story.inbox[1].attempt_count, 1);
            assert!(story.links.is_empty() && story.unreadable.is_empty() && !story.is_cut);
        });
        for row in bus.outbox().story(order).unwrap().unwrap().inbox {
            assert_eq!(bus.inbox().get(row.id).unwrap(), Some(row));
        }
    }
}

#[test]
fn it_tells_the_links_of_its_entity_from_and_to() {
    for test in &boxes() {
        let TestBox { bus, clock, .. } = test;
        let id = bus.publish(event("a")).unwrap();
        let own = || entity("finance", "Invoice", "inv-1");
        let link = |source: EntityRef, target: EntityRef| {
            clock.advance(std::time::Duration::from_secs(1));
            bus.links().create(NewLink::new(source, target, LinkType::Reference)).unwrap().id
        };
        let to = link(entity("shop", "Order", "1"), own());
        link(entity("shop", "Order", "1"), entity("finance", "Invoice", "inv-2"));
        link(entity("shop", "Invoice", "inv-1"), entity("finance", "Order", "inv-1"));
        let from = link(own(), entity("operations", "Task", "9"));
        let itself = link(own(), own());
        on_both(test, |outbox| {
            let links: Vec<_> =
                outbox.story(id).unwrap().unwrap().links.into_iter().map(|link| link.id).collect();
            assert_eq!(links, [to, from, itself]);
        });
    }
}

/// The writer changes two rows at once: whoever looks sees both as they were, or both as they are.
#[test]
fn what_is_told_is_of_one_moment() {
    let test = file_box();
    let id = test.bus.publish(event("a")).unwrap();
    test.bus.inbox().get_or_create(id, "c").unwrap();
    let both = EventFilter::new().status(OutboxStatus::Pending).status(OutboxStatus::DeadLetter);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let conn = test.app_connection();
            conn.pragma_update(None, "synchronous", false).unwrap();
            for n in 0..2_000 {
                let status = if n % 2 == 0 { "dead_letter" } else { "pending" };
                conn.execute_batch(&format!(
                    "BEGIN IMMEDIATE; UPDATE outbox_event SET status = '{status}', last_error = '{n}';
                     UPDATE inbox_event SET last_error = '{n}'; COMMIT"
                ))
                .unwrap();
            }
            is_over.store(true, Ordering::Release);
        });
        let outbox = test.bus.outbox();
        while !is_over.load(Ordering::Acquire) {
            let story = outbox.story(id).unwrap().unwrap();
            assert_eq!(story.event.last_error, story.inbox[0].last_error);
            assert_eq!(outbox.count(&both).unwrap(), 1);
            assert_eq!(outbox.list(&both, &Page::newest(9)).unwrap().events.len(), 1);
        }
    });
}

#[test]
fn of_an_event_that_is_not_there_nothing_is_told() {
    for test in &boxes() {
        let id: EventId = "0198c0de-0000-7000-8000-000000000000".parse().unwrap();
        on_both(test, |outbox| {
            assert!(outbox.story(id).unwrap().is_none());
            assert!(outbox.causation_tree(id).unwrap().is_none());
        });
    }
}

#[test]
fn a_cause_that_was_deleted_is_named_and_not_shown() {
    for test in &boxes() {
        let published = test.bus.publish_all((0..2).map(|_| event("a"))).unwrap();
        set_cause(&test.bus, published[1], published[0]);
        sql(&test.bus, |tx| tx.execute("DELETE FROM outbox_event WHERE seq = 1", []));
        on_both(test, |outbox| {
            let story = outbox.story(published[1]).unwrap().unwrap();
            assert_eq!(story.event.causation_id, Some(published[0]));
            assert!(story.cause.is_none());
        });
    }
}

#[test]
fn of_more_than_a_thousand_the_first_are_told() {
    for test in &boxes() {
        let TestBox { bus, kind, .. } = test;
        let published = bus.publish_all((0..1_002).map(|_| event("a"))).unwrap();
        let cause = published[0];
        let set = |last: i64| {
            sql(bus, |tx| {
                tx.execute(
                    "UPDATE outbox_event SET causation_id = ?1 WHERE seq BETWEEN 2 AND ?2",
                    params![cause.as_uuid(), last],
                )
            });
        };
        set(1_001);
        let story = bus.outbox().story(cause).unwrap().unwrap();
        assert_eq!((ids(&story.caused), story.is_cut), (published[1..1_001].to_vec(), false), "{kind}");
        set(1_002);
        let story = bus.outbox().story(cause).unwrap().unwrap();
        assert_eq!((ids(&story.caused), story.is_cut), (published[1..1_001].to_vec(), true), "{kind}");

        let other = published[5];
        let fill = |links: i64| {
            sql(bus, |tx| {
                tx.execute("DELETE FROM integration_link", [])?;
                tx.execute(
                    "INSERT INTO integration_link (id, source_module, source_entity_type, source_entity_id, target_module, target_entity_type,
                                                   target_entity_id, link_type, created_at, updated_at)
                     SELECT randomblob(16), 'finance', 'Invoice', 'inv-1', 'm', 'T', seq, 'reference', seq, 0
                     FROM outbox_event WHERE seq <= ?1",
                    [links],
                )
            });
        };
        fill(1_000);
        let story = bus.outbox().story(other).unwrap().unwrap();
        assert_eq!((story.links.len(), story.is_cut), (1_000, false));
        fill(1_001);
        let story = bus.outbox().story(other).unwrap().unwrap();
        assert_eq!((story.links.len(), story.is_cut), (1_000, true));
        assert_eq!(story.links[999].target.entity_id, "1000");

        sql(bus, |tx| tx.execute("DELETE FROM integration_link", []));
        for (rows, is_cut) in [(1_000_i64, false), (1_001, true)] {
            sql(bus, |tx| {
                tx.execute(
                    "INSERT OR REPLACE INTO inbox_event (id, consumer_name, status, processed_at)
                     SELECT 6 << 20 | seq, 'c-' || seq, 'processed', 1 FROM outbox_event WHERE seq <= ?1",
                    [rows],
                )
            });
            let story = bus.outbox().story(other).unwrap().unwrap();
            assert_eq!((story.inbox.len(), story.is_cut), (1_000, is_cut), "{kind}");
            assert_eq!(story.inbox[0].consumer_name, "c-1");
        }
    }
}

/// Of what is around the event, too, what can be read is told.
#[test]
fn spoilt_inbox_rows_and_links_are_left_out_and_that_is_said() {
    let test = file_box();
    let id = test.bus.publish(event("a")).unwrap();
    for consumer in ["one", "two", "three"] {
        test.bus.inbox().get_or_create(id, consumer).unwrap();
        let target = entity("m", "T", consumer);
        let link = NewLink::new(entity("finance", "Invoice", "inv-1"), target, LinkType::Reference);
        test.bus.links().create(link).unwrap();
    }
    let story = || test.bus.outbox().story(id).unwrap().unwrap();
    assert_eq!((story().inbox.len(), story().links.len(), story().unreadable.len()), (3, 3, 0));
    let conn = test.app_connection();
    conn.pragma_update(None, "ignore_check_constraints", true).unwrap();
    conn.execute("UPDATE inbox_event SET status = 'odd' WHERE consumer_name = 'two'", []).unwrap();
    conn.execute("UPDATE integration_link SET metadata = '{' WHERE target_entity_id = 'one'", []).unwrap();
    let story = story();
    let consumers: Vec<&str> = story.inbox.iter().map(|row| row.consumer_name.as_str()).collect();
    let targets: Vec<&str> = story.links.iter().map(|link| link.target.entity_id.as_str()).collect();
    assert_eq!((consumers, targets), (vec!["one", "three"], vec!["two", "three"]));
    assert_eq!(story.unreadable, ["inbox_event", "integration_link"]);
    assert!(!story.is_cut);
}

/// Shifted by 20 bits, such a number is the first event's.
#[test]
fn a_row_whose_number_no_box_gives_has_no_inbox_rows_of_others() {
    for TestBox { bus, .. } in &boxes() {
        let first = bus.publish(event("a")).unwrap();
        bus.inbox().get_or_create(first, "c").unwrap();
        sql(bus, |tx| {
            tx.execute(
                "INSERT INTO outbox_event (seq, id, available_at, created_at, event_name, source_module, aggregate_type, aggregate_id, payload)
                 VALUES ((1 << 44) + 1, x'0198c0de000070008000000000000000', 0, 0, 'forged', 'm', 'T', '1', '{}')",
                [],
            )
        });
        let forged: EventId = "0198c0de-0000-7000-8000-000000000000".parse().unwrap();
        assert!(bus.outbox().story(forged).unwrap().unwrap().inbox.is_empty());
        assert_eq!(bus.outbox().story(first).unwrap().unwrap().inbox.len(), 1);
    }
}
