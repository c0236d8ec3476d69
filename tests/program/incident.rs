//! The file of an application in which something went wrong.

use std::path::{Path, PathBuf};
use std::time::Duration;

use postbox::serde_json::json;
use postbox::{Context, EntityRef, Event, HandlerError, LinkType, NewEvent, NewLink, Postbox, Subscription};
use tempfile::TempDir;

use crate::clock;
use crate::support::raw;

/// What must be shown only where it is asked for.
pub(crate) const CANARY: &str = "canary-7f3a";

/// The id of the event that was published as the `n`th, from 1.
pub(crate) fn id(n: usize) -> String {
    format!("0198c0de-0000-7000-8000-0000000000{n:02}")
}

/// A closed file in which (1) an order was placed, which caused (2) an invoice, which caused (3) a payment that was processed;
/// (4) mail that is a dead letter, twice: (5); (6) is a stock count and pending.
pub(crate) fn incident() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let clock = clock();
    let bus = Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    let publishing = |name: &'static str, kind: &'static str| {
        move |_: &Event, cx: &Context<'_>| {
            cx.publish(NewEvent::new(name, "finance", kind, "inv-1"))?;
            Ok(())
        }
    };
    bus.subscribe(Subscription::new("order.placed", "billing", publishing("invoice.created", "Invoice")))
        .unwrap();
    bus.subscribe(Subscription::new("invoice.created", "ledger", publishing("payment.due", "Payment")))
        .unwrap();
    bus.subscribe(Subscription::new("payment.due", "ledger", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    bus.subscribe(Subscription::new("mail.*", "mail", |event: &Event, _: &Context<'_>| {
        Err(HandlerError::dead_letter(if event.name() == "mail.sent" {
            "550 no such address"
        } else {
            "timed out after\u{1b}[31m 30 s"
        }))
    }))
    .unwrap();
    let order = NewEvent::new("order.placed", "sales", "Order", "o-7")
        .payload(json!({ "total": 12.5, "note": CANARY, "bell": "\u{9b}31m" }))
        .metadata(json!({ "user": CANARY }))
        .correlation_id("basket-3")
        .trace_parent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    bus.publish(order).unwrap();
    bus.drain().unwrap();
    clock.advance(Duration::from_hours(1));
    for name in ["mail.sent", "mail.queued"] {
        bus.publish(NewEvent::new(name, "office", "Mail", "m-1").payload(json!(CANARY))).unwrap();
    }
    bus.drain().unwrap();
    bus.links()
        .create(NewLink::new(
            EntityRef::new("sales", "Order", "o-7"),
            EntityRef::new("finance", "Invoice", "inv-1"),
            LinkType::Cascade,
        ))
        .unwrap();
    clock.advance(Duration::from_hours(1));
    bus.publish(NewEvent::new("stock.counted", "store", "Shelf", "s/4").version(2)).unwrap();
    bus.close().unwrap();
    with_ids(&path);
    (dir, path)
}

/// Known ids, and known lengths of attempts.
fn with_ids(path: &Path) {
    raw(path)
        .execute_batch(
            "UPDATE outbox_event SET causation_id = (SELECT unhex(printf('0198c0de000070008000%012d', c.seq))
                                                     FROM outbox_event AS c WHERE c.id = outbox_event.causation_id);
             UPDATE outbox_event SET id = unhex(printf('0198c0de000070008000%012d', seq));
             UPDATE integration_link SET id = x'0123456789abcdef0123456789abcd01';
             UPDATE postbox_history SET duration = 1500000;",
        )
        .unwrap();
}
