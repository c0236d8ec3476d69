//! An order as a saga: placed, paid, shipped. One goes well, one is never paid, and the payment of one is refused.
//!
//!     cargo run --example saga
//!
//! The orders' state is one row each, which a step writes in the transaction that marks its event as done. Payments and shipments are
//! other modules: they know of events, and nothing of the saga.

use std::time::Duration;

use postbox::serde_json::json;
use postbox::testing::ManualClock;
use postbox::time::OffsetDateTime;
use postbox::{Event, HandlerResult, NewEvent, Postbox, Saga, SagaStatus, Subscription, Tx};
use serde::{Deserialize, Serialize};

/// What has become of an order. With `default`, so that a later release may add fields.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Order {
    total: u64,
    is_paid: bool,
    parcel: Option<String>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_hours(500_000));
    let postbox = Postbox::builder().clock(clock.clone()).open_in_memory()?;
    postbox.subscribe_saga(orders())?;
    subscribe_others(&postbox)?;
    postbox.transaction(|tx| -> postbox::Result<()> {
        Ok(tx.execute_batch(
            "CREATE TABLE stock (article TEXT PRIMARY KEY, pieces INTEGER); INSERT INTO stock VALUES ('lamp', 10)",
        )?)
    })?;

    // Who pays at once, never, and with a card that is refused.
    for (order, card) in [("o-1", "good"), ("o-2", "forgotten"), ("o-3", "stolen")] {
        let placed = NewEvent::new("order.placed", "sales", "Order", order);
        postbox.publish(placed.payload(json!({ "total": 40, "card": card })))?;
    }
    postbox.drain()?;

    let order = |id: &str| -> Result<_, Box<dyn std::error::Error>> {
        let saga = postbox.sagas().get("order", id)?.ok_or("no such order")?;
        let state: Order = postbox::serde_json::from_value(saga.state.clone())?;
        Ok((saga, state))
    };
    let (saga, state) = order("o-1")?;
    assert_eq!(saga.summary.status, SagaStatus::Completed);
    assert_eq!(state, Order { total: 40, is_paid: true, parcel: Some("parcel-o-1".to_owned()) });
    println!("o-1  completed    paid, and on its way as parcel-o-1");

    let (saga, _) = order("o-3")?;
    assert_eq!(saga.summary.status, SagaStatus::Compensated);
    assert_eq!(saga.summary.reason.as_deref(), Some("the card was refused"));
    println!("o-3  compensated  the card was refused");

    let (saga, state) = order("o-2")?;
    assert_eq!((saga.summary.status, state.is_paid), (SagaStatus::Running, false));
    assert_eq!(saga.timeouts[0].name, "payment");
    assert_eq!(saga.undo, ["stock.release", "customer.tell"]);
    assert_eq!(pieces(&postbox)?, 8, "two lamps are reserved or sold");
    println!("o-2  running      waits for its payment; if it does not come, stock.release undoes it");

    // A person who looks an hour later finds it by its age.
    clock.advance(Duration::from_hours(1));
    assert_eq!(postbox.drain()?, 0);
    let stuck = postbox.sagas().stuck(Some("order"), Duration::from_hours(1), 10)?;
    assert_eq!(stuck.len(), 1);
    println!("{}  stuck        for an hour, since {}", stuck[0].correlation_id, stuck[0].last_event);

    clock.advance(Duration::from_hours(23));
    postbox.drain()?;
    let (saga, _) = order("o-2")?;
    assert_eq!(saga.summary.status, SagaStatus::Compensated);
    assert_eq!(saga.summary.reason.as_deref(), Some("not paid within a day"));
    assert_eq!(pieces(&postbox)?, 9, "one lamp is sold");
    println!("o-2  compensated  not paid within a day");

    // The money comes after all.
    let captured = NewEvent::new("payment.captured", "payments", "Payment", "p-2").correlation_id("o-2");
    postbox.publish(captured)?;
    postbox.drain()?;
    let refunds = postbox.outbox().count(&postbox::EventFilter::new().name("payment.refund"))?;
    assert_eq!(refunds, 1);
    println!("o-2  refunded     the payment came too late");
    println!("stock             {} of 10 lamps", pieces(&postbox)?);
    Ok(())
}

/// The whole process, as it is spoken of.
fn orders() -> Saga<Order> {
    let about = |name: &str, event: &Event| NewEvent::new(name, "sales", "Order", event.aggregate_id());
    Saga::<Order>::new("order")
        .starts_on("order.placed", move |order, event, step| {
            order.total = event.payload()["total"].as_u64().unwrap_or_default();
            step.publish(about("stock.reserve", event))?;
            step.undo_with(about("stock.release", event))?;
            step.publish(about("payment.request", event).payload(event.payload().clone()))?;
            step.undo_with(about("customer.tell", event))?;
            step.timeout("payment", Duration::from_hours(24), about("payment.overdue", event))?;
            Ok(())
        })
        .on("payment.captured", |order, _, step| {
            order.is_paid = true;
            step.cancel_timeout("payment")?;
            step.publish(NewEvent::new("shipment.request", "sales", "Order", step.correlation_id()))?;
            Ok(())
        })
        .on("payment.refused", |_, _, step| {
            step.compensate("the card was refused")?;
            Ok(())
        })
        .on("payment.overdue", |_, _, step| {
            step.compensate("not paid within a day")?;
            Ok(())
        })
        .on("shipment.sent", |order, event, step| {
            order.parcel = event.payload()["parcel"].as_str().map(str::to_owned);
            step.complete()?;
            Ok(())
        })
        .after_end("payment.captured", |_, event, step| {
            step.publish(NewEvent::new("payment.refund", "sales", "Payment", event.aggregate_id()))?;
            Ok(())
        })
}

/// The other modules. What they publish belongs to the conversation of the event that they handle.
fn subscribe_others(postbox: &Postbox) -> postbox::Result<()> {
    let pay = |event: &Event, tx: &Tx<'_>| -> HandlerResult {
        let payment =
            |name: &str| NewEvent::new(name, "payments", "Payment", format!("p-{}", event.aggregate_id()));
        match event.payload()["card"].as_str() {
            Some("good") => drop(tx.publish(payment("payment.captured"))?),
            Some("stolen") => drop(tx.publish(payment("payment.refused"))?),
            _ => {} // nobody pays, and nobody says so
        }
        Ok(())
    };
    let ship = |event: &Event, tx: &Tx<'_>| -> HandlerResult {
        let parcel = format!("parcel-{}", event.aggregate_id());
        let sent = NewEvent::new("shipment.sent", "shipping", "Parcel", parcel.as_str());
        tx.publish(sent.payload(json!({ "parcel": parcel })))?;
        Ok(())
    };
    let count = |event: &Event, tx: &Tx<'_>| -> HandlerResult {
        let pieces = if event.name() == "stock.reserve" { -1 } else { 1 };
        tx.execute("UPDATE stock SET pieces = pieces + ?1 WHERE article = 'lamp'", [pieces])?;
        Ok(())
    };
    postbox.subscribe_many([
        Subscription::transactional("payment.request", "payments", pay),
        Subscription::transactional("shipment.request", "shipping", ship),
        Subscription::transactional("stock.*", "stock", count),
    ])
}

fn pieces(postbox: &Postbox) -> postbox::Result<u64> {
    postbox.transaction(|tx| Ok(tx.query_row("SELECT pieces FROM stock", [], |row| row.get(0))?))
}
