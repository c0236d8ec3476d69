//! Events that are types: how they are published and read, old versions, names that were changed, and versions that are too new.

mod support;

#[path = "typed/aliases.rs"]
mod aliases;
#[path = "typed/errors.rs"]
mod errors;
#[path = "typed/held_back.rs"]
mod held_back;
#[path = "typed/held_back_and_more.rs"]
mod held_back_and_more;
#[path = "typed/not_touched.rs"]
mod not_touched;
#[path = "typed/releases.rs"]
mod releases;
#[path = "typed/upcasting.rs"]
mod upcasting;
#[path = "typed/used_up.rs"]
mod used_up;

use std::time::Duration;

use postbox::{Context, DomainEvent, Event, NewEvent, Subscription, Tx, Upcasters};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{Calls, TestBox, add_effect, boxes, effects, event, make_effects, outbox_row};

/// The payload of the first release: a name of one word.
#[derive(Serialize, Deserialize)]
pub(crate) struct CreatedV1 {
    pub(crate) number: String,
    pub(crate) total: f64,
}

impl DomainEvent for CreatedV1 {
    const NAME: &'static str = "invoice.created";
    const SOURCE_MODULE: &'static str = "finance";
    const AGGREGATE_TYPE: &'static str = "Invoice";

    fn aggregate_id(&self) -> String {
        self.number.clone()
    }
}

/// Of the third: whole cents, and in a currency.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CreatedV3 {
    pub(crate) number: String,
    pub(crate) cents: i64,
    pub(crate) currency: String,
}

impl DomainEvent for CreatedV3 {
    const NAME: &'static str = "invoice.created";
    const SOURCE_MODULE: &'static str = "finance";
    const AGGREGATE_TYPE: &'static str = "Invoice";
    const VERSION: u32 = 3;

    fn aggregate_id(&self) -> String {
        self.number.clone()
    }

    fn upcasters() -> Upcasters {
        Upcasters::none()
            .step(1, |mut payload: Value| {
                let total = payload["total"].as_f64().ok_or("`total` is no number")?;
                #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
                let cents = (total * 100.0).round() as i64;
                payload["cents"] = json!(cents);
                Ok::<_, &str>(payload)
            })
            .step(2, |mut payload: Value| {
                payload["currency"] = json!("EUR");
                Ok::<_, &str>(payload)
            })
    }
}

pub(crate) fn v1(number: &str) -> CreatedV1 {
    CreatedV1 { number: number.to_owned(), total: 12.5 }
}

pub(crate) fn v3(number: &str) -> CreatedV3 {
    CreatedV3 { number: number.to_owned(), cents: 990, currency: "CHF".to_owned() }
}

/// Notes what it reads.
pub(crate) fn reading_v3(calls: &Calls, consumer: &str) -> Subscription {
    let calls = calls.clone();
    Subscription::typed::<CreatedV3>(consumer, move |created, cx| {
        calls.add(format!("{}: {} {}", cx.event().aggregate_id(), created.cents, created.currency));
        Ok(())
    })
}

pub(crate) fn reading_v1(calls: &Calls, consumer: &str) -> Subscription {
    let calls = calls.clone();
    Subscription::typed::<CreatedV1>(consumer, move |created, _| {
        calls.add(format!("{}: {}", created.number, created.total));
        Ok(())
    })
}

#[test]
fn typed_and_untyped_publishers_and_subscribers_stand_side_by_side_on_the_same_rows() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        let calls = Calls::default();
        let untyped = {
            let calls = calls.clone();
            move |event: &Event, _: &Context<'_>| {
                calls.add(format!("untyped {} {}", event.payload()["total"], event.version()));
                Ok(())
            }
        };
        bus.subscribe_many([
            reading_v1(&calls, "typed"),
            Subscription::new("invoice.*", "untyped", untyped),
            Subscription::typed_transactional::<CreatedV1>("transactional", |created, tx: &Tx<'_>| {
                assert_eq!(tx.event().map(Event::aggregate_id), Some(created.number.as_str()));
                Ok(add_effect(tx, &created.number)?)
            }),
        ])
        .unwrap();
        let id = bus.publish_typed(&v1("inv-1")).unwrap();
        let by_hand = NewEvent::new("invoice.created", "finance", "Invoice", "inv-2");
        bus.publish(by_hand.payload(json!({ "number": "inv-2", "total": 12.5 }))).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(calls.all(), ["inv-1: 12.5", "untyped 12.5 1", "inv-2: 12.5", "untyped 12.5 1"], "{kind}");
        assert_eq!(effects(bus), ["inv-1", "inv-2"], "{kind}");
        let row = outbox_row(bus, id);
        assert_eq!(
            (row.event_name.as_str(), row.source_module.as_str(), row.aggregate_type.as_str(), row.version),
            ("invoice.created", "finance", "Invoice", 1),
        );
        assert_eq!(row.payload, json!({ "number": "inv-1", "total": 12.5 }));
    }
}

#[test]
fn what_a_typed_event_is_made_into_can_be_delayed_and_keyed_like_any_other() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v3(&calls, "c")).unwrap();
        let new = || {
            NewEvent::typed(&v3("inv-1"))
                .unwrap()
                .delay(Duration::from_mins(1))
                .idempotency_key("inv-1/created")
        };
        assert_eq!(bus.publish(new()).unwrap(), bus.publish(new()).unwrap());
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        clock.advance(Duration::from_mins(1));
        assert_eq!((bus.drain().unwrap(), calls.all()), (1, vec!["inv-1: 990 CHF".to_owned()]), "{kind}");
    }
}

#[test]
fn a_typed_event_is_published_in_transactions_and_as_a_follow_up_with_its_cause() {
    for TestBox { kind, bus, .. } in &boxes() {
        let follow_up = |_: &Event, cx: &Context<'_>| {
            cx.publish_typed(&v1(cx.event().aggregate_id()))?;
            Ok(())
        };
        let follow_up_in = |event: &Event, tx: &Tx<'_>| {
            tx.publish_typed(&v3(event.aggregate_id()))?;
            Ok(())
        };
        bus.subscribe_many([
            Subscription::new("a", "plain", follow_up),
            Subscription::transactional("a", "transactional", follow_up_in),
        ])
        .unwrap();
        let cause = bus.publish(event("a").correlation_id("talk")).unwrap();
        bus.drain().unwrap();
        let tree = bus.outbox().causation_tree(cause).unwrap().unwrap();
        assert_eq!(tree.nodes.len(), 3, "{kind}");
        let id = bus
            .transaction(|tx| -> postbox::Result<_> {
                assert!(tx.event().is_none());
                tx.publish_typed(&v3("inv-2"))
            })
            .unwrap();
        assert_eq!((outbox_row(bus, id).version, outbox_row(bus, id).causation_id), (3, None), "{kind}");
    }
}
