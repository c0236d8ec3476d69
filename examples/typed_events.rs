//! An event as a type, through three releases of an application: a payload of the first is read by the second, one of the third
//! waits until there is a third again, and a name that was changed still reaches its consumer.
//!
//!     cargo run --example typed_events

use std::error::Error;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use postbox::serde_json::{Value, json};
use postbox::{DomainEvent, NewEvent, Postbox, Subscription, Upcasters};
use serde::{Deserialize, Serialize};

/// What the second release publishes and reads: whole cents.
#[derive(Serialize, Deserialize)]
struct InvoiceCreated {
    number: String,
    cents: i64,
}

impl DomainEvent for InvoiceCreated {
    const NAME: &'static str = "invoice.created";
    const SOURCE_MODULE: &'static str = "finance";
    const AGGREGATE_TYPE: &'static str = "Invoice";
    const VERSION: u32 = 2;
    const FORMER_NAMES: &'static [&'static str] = &["bill.created"];

    fn aggregate_id(&self) -> String {
        self.number.clone()
    }

    fn upcasters() -> Upcasters {
        // The first release wrote euros.
        Upcasters::none().step(1, |payload: Value| {
            let euros = payload["euros"].as_i64().ok_or("`euros` is no whole number")?;
            Ok::<_, &str>(json!({ "number": payload["number"], "cents": euros * 100 }))
        })
    }
}

/// The third's: it has a currency.
#[derive(Serialize, Deserialize)]
struct InvoiceCreatedAbroad {
    number: String,
    cents: i64,
    currency: String,
}

impl DomainEvent for InvoiceCreatedAbroad {
    const NAME: &'static str = InvoiceCreated::NAME;
    const SOURCE_MODULE: &'static str = InvoiceCreated::SOURCE_MODULE;
    const AGGREGATE_TYPE: &'static str = InvoiceCreated::AGGREGATE_TYPE;
    const VERSION: u32 = 3;

    fn aggregate_id(&self) -> String {
        self.number.clone()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("app.db");

    // The first release knew no types, and called it a bill.
    let first = Postbox::open(&file)?;
    for name in ["bill.created", "invoice.created"] {
        let event = NewEvent::new(name, "finance", "Invoice", "inv-1")
            .payload(json!({ "number": "inv-1", "euros": 12 }));
        first.publish(event)?;
    }
    first.close()?;

    let (second, reads) = second_release(&file)?;
    second.publish_typed(&InvoiceCreated { number: "inv-2".into(), cents: 990 })?;
    assert_eq!(second.drain()?, 3);
    let read: Vec<String> = reads.try_iter().collect();
    assert_eq!(read, ["inv-1 1200", "inv-1 1200", "inv-2 990"]);
    println!("second release   {}", read.join(", "));

    // What has no `cents` helps no retry: a dead letter, and its error says why.
    let bad = NewEvent::new("invoice.created", "finance", "Invoice", "inv-3").version(2);
    let bad = second.publish(bad.payload(json!({ "number": "inv-3" })))?;
    second.drain()?;
    let why = second.outbox().get(bad)?.and_then(|event| event.last_error).unwrap_or_default();
    assert_eq!(
        why,
        "version 2 of `invoice.created` cannot be read as InvoiceCreated (version 2): missing field `cents`"
    );
    println!("dead letter      {why}");

    // Every event that is published has somebody who handles it, and the other way round.
    second.catalogue().declare::<InvoiceCreated>()?;
    assert!(second.catalogue().unhandled().is_empty() && second.catalogue().unpublished().is_empty());
    second.close()?;

    // The third release publishes, and is then replaced by the second again.
    let third = Postbox::open(&file)?;
    let abroad = InvoiceCreatedAbroad { number: "inv-4".into(), cents: 500, currency: "CHF".into() };
    let id = third.publish_typed(&abroad)?;
    third.close()?;
    let (second, reads) = second_release(&file)?;
    second.drain()?;
    assert_eq!((second.stats()?.held_back, reads.try_iter().count()), (1, 0));
    assert_eq!(second.outbox().get(id)?.map(|event| event.attempt_count), Some(0));
    println!("second release   {} held back, no attempt spent", second.stats()?.held_back);
    second.close()?;

    let third = Postbox::open(&file)?;
    let (tell, reads) = channel();
    third.subscribe(Subscription::typed::<InvoiceCreatedAbroad>("ledger", move |created, _| {
        Ok(tell.send(format!("{} {} {}", created.number, created.cents, created.currency))?)
    }))?;
    assert_eq!(third.drain()?, 1);
    println!("third release    {}", reads.recv()?);
    assert_eq!(third.stats()?.held_back, 0);
    Ok(())
}

fn second_release(file: &Path) -> postbox::Result<(Postbox, Receiver<String>)> {
    let postbox = Postbox::open(file)?;
    let (tell, reads) = channel();
    postbox.subscribe(Subscription::typed::<InvoiceCreated>("ledger", move |created, _| {
        Ok(tell.send(format!("{} {}", created.number, created.cents))?)
    }))?;
    Ok((postbox, reads))
}
