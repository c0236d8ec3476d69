//! What it costs that an event is a type: to read it, to bring an old payload up to it, and to check it by its schema.

use std::hint::black_box;

use postbox::{Context, DomainEvent, Event, NewEvent, Postbox, Subscription, Upcasters};
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::measure::{Pair, Sample, in_turn, rate_of};
use crate::report::{Goal, Report, Row};
use crate::work::{CONSUMER, MODULE, NAME, TYPE, aggregate, event, open, payload};

/// Published in one transaction and delivered by hand, a slice.
const SLICE: usize = 1_000;

#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(postbox::schemars::JsonSchema), schemars(crate = "postbox::schemars"))]
struct Created {
    id: u64,
    customer: String,
    total: f64,
    currency: String,
    lines: Vec<Line>,
    note: String,
}

#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(postbox::schemars::JsonSchema), schemars(crate = "postbox::schemars"))]
struct Line {
    sku: String,
    quantity: u32,
    price: f64,
}

impl DomainEvent for Created {
    const NAME: &'static str = NAME;
    const SOURCE_MODULE: &'static str = MODULE;
    const AGGREGATE_TYPE: &'static str = TYPE;
    const VERSION: u32 = 2;

    fn aggregate_id(&self) -> String {
        format!("inv-{}", self.id)
    }

    fn upcasters() -> Upcasters {
        Upcasters::none().step(1, |mut payload| {
            payload["currency"] = "EUR".into();
            Ok::<_, &str>(payload)
        })
    }
}

fn of_version(version: u32) -> impl Fn(usize) -> NewEvent {
    move |number| event(number).version(version)
}

pub(crate) fn typed(bench: &Bench, report: &mut Report) {
    let [by_type, by_hand] = ["typed.db", "untyped.db"].map(|name| open(&bench.path(name)));
    by_type
        .subscribe(Subscription::typed::<Created>(CONSUMER, |created, _| {
            black_box(created);
            Ok(())
        }))
        .expect("subscribed");
    let read = |event: &Event, _: &Context<'_>| {
        black_box(event.payload_as::<Created>()?);
        Ok(())
    };
    by_hand.subscribe(Subscription::new(NAME, CONSUMER, read)).expect("subscribed");

    let mut reading = Pair::default();
    in_turn(
        bench.scale.slices,
        || deliver(&by_type, of_version(2), &mut reading.ours),
        || deliver(&by_hand, of_version(2), &mut reading.floor),
    );
    let what = "deliver typed (floor: untyped, payload_as)";
    report.add(Row::against(what, "events/s", &reading.ours, &reading.floor).goal(Goal::RatioAtLeast(0.95)));

    let mut upcasting = Pair::default();
    in_turn(
        bench.scale.slices,
        || deliver(&by_type, of_version(1), &mut upcasting.ours),
        || deliver(&by_hand, of_version(1), &mut upcasting.floor),
    );
    let what = "deliver typed, one upcaster (floor: untyped, payload_as)";
    report.add(Row::against(what, "events/s", &upcasting.ours, &upcasting.floor));

    publishing(bench, report, &by_hand);
}

fn deliver(postbox: &Postbox, event: impl Fn(usize) -> NewEvent, rates: &mut Sample) {
    postbox.publish_all((0..SLICE).map(event)).expect("published");
    rates.push(rate_of(SLICE, || assert_eq!(postbox.drain().expect("drained"), SLICE)));
}

/// In one transaction, so that the disk does not hide it.
fn publishing(bench: &Bench, report: &mut Report, by_hand: &Postbox) {
    #[cfg(feature = "schema")]
    checking(bench, report, by_hand);
    let mut from_types = Pair::default();
    in_turn(
        bench.scale.slices,
        || {
            let values: Vec<Created> = (0..SLICE).map(created).collect();
            from_types.ours.push(rate_of(SLICE, || {
                let events = values.iter().map(|value| NewEvent::typed(value).expect("JSON"));
                by_hand.publish_all(events).expect("published");
            }));
            by_hand.drain().expect("drained");
        },
        || {
            let values: Vec<Created> = (0..SLICE).map(created).collect();
            from_types.floor.push(rate_of(SLICE, || {
                let new =
                    |value: &Created| NewEvent::new(NAME, MODULE, TYPE, value.aggregate_id()).version(2);
                let events = values.iter().map(|value| new(value).payload_from(value).expect("JSON"));
                by_hand.publish_all(events).expect("published");
            }));
            by_hand.drain().expect("drained");
        },
    );
    let what = "publish_all of types (floor: untyped, payload_from)";
    report.add(
        Row::against(what, "events/s", &from_types.ours, &from_types.floor).goal(Goal::RatioAtLeast(0.95)),
    );
}

fn created(number: usize) -> Created {
    let created = Created::deserialize(payload(number)).expect("the payload");
    assert_eq!(created.aggregate_id(), aggregate(number));
    created
}

#[cfg(feature = "schema")]
fn checking(bench: &Bench, report: &mut Report, by_hand: &Postbox) {
    let publish = |postbox: &Postbox, events: Vec<NewEvent>, rates: &mut Sample| {
        rates.push(rate_of(SLICE, || drop(postbox.publish_all(events).expect("published"))));
        assert_eq!(postbox.drain().expect("drained"), SLICE);
    };
    let checked = open(&bench.path("checked.db"));
    checked
        .subscribe(Subscription::new(NAME, CONSUMER, |_: &Event, _: &Context<'_>| Ok(())))
        .expect("subscribed");
    checked.catalogue().declare_with_schema::<Created>().expect("declared");
    let mut checking = Pair::default();
    in_turn(
        bench.scale.slices,
        || publish(&checked, (0..SLICE).map(of_version(2)).collect(), &mut checking.ours),
        || publish(by_hand, (0..SLICE).map(of_version(2)).collect(), &mut checking.floor),
    );
    let what = "publish_all, checked by a schema (floor: not)";
    report.add(Row::against(what, "events/s", &checking.ours, &checking.floor));
}
