//! Assertions, and what they say when they fail.

use std::time::Duration;

use postbox::testing::{
    TestBox, absent, assert_dead_lettered, assert_processed, assert_published, exactly, refute_published,
    that,
};
use postbox::{Context, Event, HandlerError, NewEvent, OutboxStatus, Postbox, Subscription, Tx};
use serde_json::json;

use crate::panics;
use crate::support::{boxes, status};

fn invoice(n: u32) -> NewEvent {
    NewEvent::new("invoice.created", "finance", "Invoice", format!("inv-{n}"))
}

/// The text of a failure with the events' ids, which are new in each run, left out.
#[track_caller]
fn says<T>(postbox: &Postbox, f: impl FnOnce() -> T) -> String {
    let mut text = panics(f);
    let page = postbox.outbox().list(&postbox::EventFilter::new(), &postbox::Page::oldest(1_000)).unwrap();
    for event in page.events {
        text = text.replace(&format!("  {}", event.id), "");
        text = text.replace(&event.id.to_string(), &format!("<{}>", event.aggregate_id));
    }
    text
}

#[test]
fn what_was_published_is_found_on_every_kind_of_box() {
    for test in boxes() {
        let first = test.bus.publish(invoice(1).payload(json!({ "total": 12.5 }))).unwrap();
        test.bus.publish(invoice(2).payload(json!({ "total": 13, "draft": true }))).unwrap();
        let bus = &test.bus;
        assert_eq!(assert_published!(bus, "invoice.created").id, first);
        assert_eq!(assert_published!(test.bus, "invoice.*", { "total": 13 }).aggregate_id, "inv-2");
        assert_published!(bus, first);
        assert_published!(bus, "invoice.created", exactly(json!({ "total": 12.5 })));
        assert_published!(bus, "invoice.created", json!({ "total": 12.5 }), status = OutboxStatus::Pending);
        assert_published!(
            bus,
            "invoice.created",
            { "total": that(serde_json::Value::is_f64), "draft": absent() },
            source_module = "finance",
            aggregate_type = "Invoice",
            aggregate_id = "inv-1",
            version = 1,
            metadata = absent(),
        );
        assert_eq!(assert_published!(bus, "invoice.created", count = 2)[0].id, first);
        assert_eq!(assert_published!(bus, "invoice.created", { "total": _ }, count = 2).len(), 2);
        assert!(assert_published!(bus, "invoice.paid", count = 0).is_empty());
        refute_published!(bus, "invoice.paid");
        refute_published!(bus, "invoice");
        refute_published!(bus, "invoice.created", { "total": 14 });
        refute_published!(bus, "invoice.created", aggregate_id = "inv-3");
    }
}

#[test]
fn a_failed_assertion_lists_what_was_published_instead_the_closest_first() {
    let postbox = TestBox::new();
    let none = says(&postbox, || {
        assert_published!(postbox, "invoice.created");
    });
    assert_eq!(none, "no event like this was published:\n  invoice.created\nthere is no event at all");

    postbox.publish(NewEvent::new("stock.low", "store", "Item", "pen")).unwrap();
    postbox
        .publish(invoice(1).payload(json!({ "total": 13, "lines": [{ "sku": "ink" }], "by": "Ada" })))
        .unwrap();
    postbox.publish(NewEvent::new("invoice.create", "finance", "Invoice", "inv-1")).unwrap();
    postbox.publish(invoice(2).payload(json!({ "total": 12.5, "lines": [{ "sku": "pencil" }] }))).unwrap();
    let said = says(&postbox, || {
        assert_published!(postbox, "invoice.created", { "total": 12.5, "lines": [{ "sku": "pen" }], "by": absent() });
    });
    assert_eq!(
        said,
        r#"no event like this was published:
  invoice.created
  payload like {"total": 12.5, "lines": [{"sku": "pen"}], "by": nothing}
there are 4 events, the closest first:
  invoice.created  finance/Invoice/inv-2  pending
    payload at $.lines[0].sku: wanted "pen", found "pencil"
    payload {"lines":[{"sku":"pencil"}],"total":12.5}
  invoice.created  finance/Invoice/inv-1  pending
    payload at $.total: wanted 12.5, found 13, and 2 more differences
    payload {"by":"Ada","lines":[{"sku":"ink"}],"total":13}
  invoice.create  finance/Invoice/inv-1  pending
    name: wanted invoice.created, found invoice.create
    payload at $.total: wanted 12.5, found nothing, and 1 more difference
    payload {}
  stock.low  store/Item/pen  pending
    name: wanted invoice.created, found stock.low
    payload at $.total: wanted 12.5, found nothing, and 1 more difference
    payload {}"#
    );
}

#[test]
fn every_option_that_differs_is_named() {
    let postbox = TestBox::new();
    let cause = postbox.publish(invoice(1)).unwrap();
    let said = says(&postbox, || {
        assert_published!(
            postbox,
            "invoice.created",
            source_module = "sales",
            aggregate_type = "Order",
            aggregate_id = "o-1",
            correlation_id = "c",
            caused_by = cause,
            version = 2,
            status = OutboxStatus::Processed,
            by = "mail",
            error = "down",
            metadata = json!({ "user": 1 }),
        );
    });
    assert_eq!(
        said,
        r#"no event like this was published:
  invoice.created, source_module sales, aggregate_type Order, aggregate_id o-1, correlation_id c, caused by <inv-1>, version 2, status processed, by mail, error with "down"
  metadata like {"user": 1}
there is 1 event:
  invoice.created  finance/Invoice/inv-1  pending
    source_module: wanted sales, found finance
    aggregate_type: wanted Order, found Invoice
    aggregate_id: wanted o-1, found inv-1
    correlation_id: wanted c, found none
    caused by: wanted <inv-1>, found nothing
    version: wanted 2, found 1
    status: wanted processed, found pending
    consumer mail: it has not come to an outcome; the event is pending
    error: wanted one with "down", found none
    metadata at $: wanted {"user": 1}, found nothing
    payload {}"#
    );
}

#[test]
fn a_wrong_count_lists_those_that_are_so_and_those_that_are_not() {
    let postbox = TestBox::new();
    postbox.publish(invoice(1)).unwrap();
    postbox.publish(invoice(2).payload(json!({ "total": 1 }))).unwrap();
    let said = says(&postbox, || {
        assert_published!(postbox, "invoice.created", { "total": 1 }, count = 2);
    });
    assert_eq!(
        said,
        r#"2 events like this wanted, but 1 was published:
  invoice.created
  payload like {"total": 1}
like this:
  invoice.created  finance/Invoice/inv-2  pending
    payload {"total":1}
there is 1 other event:
  invoice.created  finance/Invoice/inv-1  pending
    payload at $.total: wanted 1, found nothing
    payload {}"#
    );
    let said = says(&postbox, || {
        assert_published!(postbox, "invoice.created", count = 1);
    });
    assert!(said.starts_with("1 event like this wanted, but 2 were published:\n"), "{said}");
    assert!(said.contains("inv-1") && said.contains("inv-2"), "{said}");
}

#[test]
fn a_refuted_event_that_is_there_is_shown() {
    let postbox = TestBox::new();
    postbox.publish(invoice(1).payload(json!({ "total": 1 }))).unwrap();
    let said = says(&postbox, || refute_published!(postbox, "invoice.*", { "total": _ }));
    assert_eq!(
        said,
        r#"no event like this was to be published:
  invoice.*
  payload like {"total": anything}
but there is 1 event:
  invoice.created  finance/Invoice/inv-1  pending
    payload {"total":1}"#
    );
}

#[test]
fn what_was_processed_is_told_from_what_waits_fails_or_is_dead() {
    let postbox = TestBox::new();
    let handle = |event: &Event, _: &Context<'_>| match event.aggregate_id() {
        "inv-1" => Ok(()),
        "inv-2" => Err(HandlerError::retry("not yet")),
        "inv-3" => Err(HandlerError::dead_letter("no such customer")),
        _ => Err(HandlerError::skip("not mine")),
    };
    postbox.subscribe(Subscription::new("invoice.*", "mail", handle)).unwrap();
    postbox.subscribe(Subscription::new("invoice.*", "books", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    let ids = postbox.publish_all((1..=4).map(invoice)).unwrap();
    postbox.drain_due();
    assert_eq!(status(&postbox, ids[2]), OutboxStatus::DeadLetter);

    assert_processed!(postbox, ids[0]);
    assert_eq!(assert_processed!(postbox, "invoice.created", count = 2)[1].id, ids[3]);
    assert_processed!(postbox, ids[1], by = "books");
    assert_processed!(postbox, ids[3], by = "mail");
    assert_dead_lettered!(postbox, "invoice.created", by = "mail", error = "customer");
    assert_eq!(assert_dead_lettered!(postbox, "*", count = 1)[0].id, ids[2]);

    let said = says(&postbox, || {
        assert_processed!(postbox, ids[1]);
    });
    assert!(
        said.starts_with(
            "no event like this was processed:\n  event <inv-2>\nthere are 4 events, the closest first:\n  \
             invoice.created  finance/Invoice/inv-2  pending\n    status: wanted processed, found pending: it is due in 1s, \
             after 1 attempt; last error: not yet\n    payload {}\n"
        ),
        "{said}"
    );
    let said = says(&postbox, || {
        assert_processed!(postbox, ids[2], by = "mail");
    });
    assert!(said.contains("\n    consumer mail: failed; the event is dead_letter\n"), "{said}");
    let said = says(&postbox, || {
        assert_dead_lettered!(postbox, ids[1]);
    });
    assert!(said.starts_with("no event like this is a dead letter:\n  event <inv-2>\n"), "{said}");
    assert!(
        said.contains("\n    status: wanted dead_letter, found pending: it is due in 1s, after 1 attempt"),
        "{said}"
    );
    let said = says(&postbox, || {
        assert_dead_lettered!(postbox, ids[2], by = "books");
    });
    assert!(said.contains("\n    consumer books: processed; the event is dead_letter\n"), "{said}");
}

#[test]
fn follow_ups_are_found_by_what_caused_them() {
    let postbox = TestBox::new();
    let follow = |event: &Event, tx: &Tx<'_>| {
        tx.publish(NewEvent::new("task.made", "operations", "Task", event.aggregate_id()))?;
        Ok(())
    };
    postbox.subscribe(Subscription::transactional("invoice.created", "tasks", follow)).unwrap();
    let ids = postbox.publish_all([invoice(1).correlation_id("talk"), invoice(2)]).unwrap();
    postbox.drain_due();
    let made = assert_published!(postbox, "task.made", caused_by = ids[0], correlation_id = "talk");
    assert_eq!(made.aggregate_id, "inv-1");
    refute_published!(postbox, "task.made", caused_by = ids[1], correlation_id = "talk");
}

#[test]
fn long_lists_and_payloads_are_cut() {
    let postbox = TestBox::new();
    postbox.publish_all((1..=30).map(|n| invoice(n).payload(json!({ "text": "x".repeat(1_000) })))).unwrap();
    let said = says(&postbox, || {
        assert_published!(postbox, "invoice.paid");
    });
    assert!(said.contains("there are 30 events, the closest first:"), "{said}");
    assert!(said.ends_with("\n  and 20 more"), "{said}");
    assert_eq!(said.matches("xxx... (1011 bytes)").count(), 10, "{said}");
}

#[test]
fn an_event_that_waits_for_a_delay_is_published_all_the_same() {
    let postbox = TestBox::new();
    postbox.publish(invoice(1).delay(Duration::from_hours(1))).unwrap();
    assert_published!(postbox, "invoice.created");
    let said = says(&postbox, || {
        assert_processed!(postbox, "invoice.created");
    });
    assert!(said.contains("status: wanted processed, found pending: it is due in 3600s"), "{said}");
}

#[test]
fn a_closure_is_asked_about_no_event_that_is_another_anyway_and_its_panic_spoils_no_report() {
    // `that` was called with the payloads of all events, so that one which unwraps what its own event has panicked with the unwrap's
    // words, and not with the list.
    let postbox = TestBox::new();
    postbox.publish(invoice(1).payload(json!({ "total": "much" }))).unwrap();
    postbox.publish(invoice(2).payload(json!({ "total": 13 }))).unwrap();
    let total = |wanted: i64| that(move |total| total.as_i64().expect("a number") == wanted);
    assert_published!(postbox, "invoice.created", { "total": total(13) }, aggregate_id = "inv-2");

    let said = says(&postbox, || {
        assert_published!(postbox, "invoice.created", { "total": total(14) }, aggregate_id = "inv-2");
    });
    assert!(said.contains("\n    payload or metadata: a closure panicked: a number\n"), "{said}");
    assert!(said.contains("\n    payload at $.total: wanted what "), "{said}");

    // A panic about an event that may be meant is no answer, least of all for an assertion that there is none.
    let said = panics(|| refute_published!(postbox, "invoice.created", { "total": total(14) }));
    assert_eq!(said, "a number");
}

#[test]
fn what_an_assertion_gives_is_read_as_a_type_of_the_tests() {
    let postbox = TestBox::new();
    postbox.publish(invoice(1).payload(json!([1, 2]))).unwrap();
    let event = assert_published!(postbox, "invoice.created");
    assert_eq!(event.payload_as::<(u32, u32)>().unwrap(), (1, 2));
    assert!(matches!(event.payload_as::<String>(), Err(postbox::Error::Json(_))));
}

#[test]
fn an_event_that_no_subscription_can_read_yet_says_so() {
    // It was said to be due in 251,698,233,600 seconds.
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Noted {}
    impl postbox::DomainEvent for Noted {
        const NAME: &'static str = "noted";
        const SOURCE_MODULE: &'static str = "notes";
        const AGGREGATE_TYPE: &'static str = "Note";
        fn aggregate_id(&self) -> String {
            "1".to_owned()
        }
    }
    let postbox = TestBox::new();
    postbox.subscribe(Subscription::typed::<Noted>("reader", |_, _| Ok(()))).unwrap();
    postbox.publish(NewEvent::typed(&Noted {}).unwrap().version(2)).unwrap();
    let said = panics(|| postbox.drain_all());
    assert!(said.ends_with("\n    waits for a subscription that can read version 2"), "{said}");
}
