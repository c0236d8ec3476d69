//! What is published, by floor and box alike.

use std::path::Path;

use postbox::serde_json::{Value, json};
use postbox::{Context, Event, NewEvent, Postbox, Settings, Subscription};

pub(crate) const NAME: &str = "invoice.created";
pub(crate) const MODULE: &str = "finance";
pub(crate) const TYPE: &str = "Invoice";
pub(crate) const CONSUMER: &str = "operations";

/// As JSON. The goals are stated for it.
pub(crate) const PAYLOAD_BYTES: usize = 220;

/// Of an event's name, module, type and aggregate together.
pub(crate) const NAME_BYTES: usize = 40;

/// Seven digits for every event, so that all are of one length.
const FIRST: usize = 1_000_000;

pub(crate) fn payload(number: usize) -> Value {
    json!({
        "id": FIRST + number,
        "customer": "Miller and Daughters, Ltd.",
        "total": 1_234.56,
        "currency": "EUR",
        "lines": [{ "sku": "A-1", "quantity": 2, "price": 12.5 }, { "sku": "B-7", "quantity": 1, "price": 99.9 }],
        "note": "payment within 30 days, thank you",
    })
}

pub(crate) fn aggregate(number: usize) -> String {
    format!("inv-{}", FIRST + number)
}

pub(crate) fn event(number: usize) -> NewEvent {
    NewEvent::new(NAME, MODULE, TYPE, aggregate(number)).payload(payload(number))
}

/// A box whose claims are as large as the floor's.
pub(crate) fn open(path: &Path) -> Postbox {
    let settings = Settings { batch_size: 500, startup_drain_batch_size: 500, ..Settings::default() };
    Postbox::builder().settings(settings).open(path).expect("a box")
}

/// Publishes, a thousand in a transaction.
pub(crate) fn fill(postbox: &Postbox, events: usize) {
    for first in (0..events).step_by(1_000) {
        let last = (first + 1_000).min(events);
        postbox.publish_all((first..last).map(event)).expect("published");
    }
}

/// One plain consumer that does nothing.
pub(crate) fn subscribe(postbox: &Postbox) {
    let nothing = |_: &Event, _: &Context<'_>| Ok(());
    postbox.subscribe(Subscription::new(NAME, CONSUMER, nothing)).expect("subscribed");
}

pub(crate) fn publish_one_by_one(postbox: &Postbox, count: usize) {
    for number in 0..count {
        postbox.publish(event(number)).expect("published");
    }
}

/// A worker's startup drain of everything that is due.
pub(crate) fn drain_by_worker(postbox: &Postbox) {
    let worker = postbox.start().expect("a worker");
    assert!(worker.wait_for_startup_drain(std::time::Duration::from_mins(30)), "the startup drain ended");
}
