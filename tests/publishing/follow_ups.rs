//! Follow-ups: whose conversation they belong to.

use std::sync::{Arc, Mutex};

use postbox::{Context, Event, HandlerError, Subscription, Tx};
use serde_json::json;

use crate::TRACE;
use crate::support::{TestBox, boxes, event, outbox_row};

const OTHER_TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

#[test]
fn follow_ups_inherit_the_conversation_and_keep_what_they_have_of_their_own() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.subscribe(Subscription::new("root", "plain", |_: &Event, cx: &Context<'_>| {
            cx.publish(event("plain.inherits"))?;
            cx.publish(event("plain.own").correlation_id("own").trace_parent(OTHER_TRACE))?;
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::transactional("root", "transactional", |_: &Event, tx: &Tx<'_>| {
            tx.publish(event("tx.inherits"))?;
            tx.publish(event("tx.own").correlation_id("own").trace_parent(OTHER_TRACE))?;
            Ok(())
        }))
        .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for pattern in ["plain.*", "tx.*"] {
            let keep = Arc::clone(&seen);
            let look = move |event: &Event, _: &Context<'_>| {
                let text = |text: Option<&str>| text.map(str::to_owned);
                keep.lock().unwrap().push((
                    event.name().to_owned(),
                    text(event.correlation_id()),
                    event.causation_id(),
                    text(event.trace_parent()),
                    event.metadata().is_some(),
                ));
                Ok::<(), HandlerError>(())
            };
            bus.subscribe(Subscription::new(pattern, format!("looks at {pattern}"), look)).unwrap();
        }
        let root = event("root").correlation_id("root").trace_parent(TRACE).metadata(json!("mine"));
        let id = bus.publish(root).unwrap();
        assert_eq!(bus.drain().unwrap(), 5, "follow-ups are delivered in the same drain");
        let mut seen = std::mem::take(&mut *seen.lock().unwrap());
        seen.sort();
        let expected = ["plain.inherits", "plain.own", "tx.inherits", "tx.own"].map(|name| {
            let (correlation, trace) =
                if name.ends_with("own") { ("own", OTHER_TRACE) } else { ("root", TRACE) };
            (name.to_owned(), Some(correlation.to_owned()), Some(id), Some(trace.to_owned()), false)
        });
        assert_eq!(seen, expected, "{kind}");
    }
}

#[test]
fn an_event_that_no_handler_published_has_no_cause() {
    for TestBox { bus, .. } in &boxes() {
        let in_transaction = bus.transaction(|tx| tx.publish(event("a"))).unwrap();
        assert_eq!(outbox_row(bus, in_transaction).causation_id, None);
        assert_eq!(outbox_row(bus, in_transaction).correlation_id, None);
    }
}
