//! Payloads, metadata and idempotency keys are in no text that the library makes.

use std::fmt::Debug;

use postbox::{
    Context, EntityRef, Error, Event, EventId, HandlerError, LinkType, NewEvent, NewLink, Postbox,
    Subscription, Tx,
};
use serde_json::json;

use crate::support::{TestBox, boxes, boxes_with, event, outbox_row, sql};

const CANARY: &str = "canary-7f3a";

#[track_caller]
fn assert_silent(value: &impl Debug) {
    for text in [format!("{value:?}"), format!("{value:#?}")] {
        assert!(!text.contains(CANARY), "{text}");
    }
}

#[track_caller]
fn assert_error_silent<T: Debug>(result: postbox::Result<T>) {
    let error = result.unwrap_err();
    assert_silent(&error);
    assert!(!error.to_string().contains(CANARY), "{error}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        assert!(!format!("{cause} {cause:?}").contains(CANARY), "{cause:?}");
        source = cause.source();
    }
    let in_handler = HandlerError::from(error);
    assert!(!format!("{in_handler} {in_handler:?}").contains(CANARY), "{in_handler:?}");
}

fn secret(name: &str) -> NewEvent {
    event(name).payload(json!({"p": CANARY})).metadata(json!({CANARY: 1})).idempotency_key(CANARY)
}

fn secret_link() -> NewLink {
    let end = |id: &str| EntityRef::new("finance", "Invoice", id);
    NewLink::new(end("1"), end("2"), LinkType::Reference).metadata(json!({"m": CANARY}))
}

#[test]
fn records_and_handles_show_no_payload_metadata_or_key() {
    for TestBox { bus, .. } in &boxes() {
        assert_silent(&secret("a"));
        bus.subscribe(Subscription::new("a", "plain", |event: &Event, cx: &Context<'_>| {
            assert_silent(event);
            assert_silent(cx);
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::transactional("a", "tx", |event: &Event, tx: &Tx<'_>| {
            assert_silent(event);
            assert_silent(tx);
            Ok(())
        }))
        .unwrap();
        let id = bus.publish(secret("a")).unwrap();
        assert!(!format!("{id} {id:?}").contains(CANARY));
        assert_eq!(bus.drain().unwrap(), 1, "an assertion in a handler failed");

        let row = outbox_row(bus, id);
        assert!(row.payload.to_string().contains(CANARY), "the test itself sees it");
        assert_silent(&row);
        assert_silent(&secret_link());
        let link = bus.links().create(secret_link()).unwrap();
        assert!(link.metadata.as_ref().unwrap().to_string().contains(CANARY));
        assert_silent(&link);
        assert_silent(&bus.links().find_by_type(LinkType::Reference).unwrap());
        assert_silent(bus);
        assert_silent(bus.registry());
        assert_silent(&bus.stats().unwrap());
        assert_silent(&bus.settings());
        assert_silent(&bus.inbox().get_or_create(id, "plain").unwrap());
    }
}

#[test]
fn errors_of_publishing_show_no_payload_metadata_or_key() {
    let padding = "x".repeat(2_000);
    for TestBox { bus, .. } in &boxes_with(|builder| builder.max_payload_bytes(1_000)) {
        let long_key = format!("{CANARY}{padding}");
        let mut deep = json!(CANARY);
        for _ in 0..200 {
            deep = json!([deep]);
        }
        assert_error_silent(bus.publish(secret("a").version(0)));
        assert_error_silent(bus.publish(secret("")));
        assert_error_silent(bus.publish(secret("a").idempotency_key(long_key)));
        assert_error_silent(bus.publish(secret("a").payload(json!([CANARY, padding]))));
        assert_error_silent(bus.publish(secret("a").metadata(json!([CANARY, padding]))));
        assert_error_silent(bus.publish(secret("a").payload(deep.clone())));
        assert_error_silent(bus.links().create(secret_link().metadata(deep)));
        assert_error_silent(bus.links().create(secret_link().metadata(json!([CANARY, padding]))));
        assert_error_silent(
            secret("a").payload_from(&std::collections::BTreeMap::from([(vec![CANARY], CANARY)])),
        );

        // Errors of SQLite's, too: they quote the statement, and never what is bound to it.
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER refuse BEFORE INSERT ON outbox_event BEGIN SELECT RAISE(ABORT, 'refused'); END;
                 CREATE TRIGGER refuse_links BEFORE INSERT ON integration_link BEGIN SELECT RAISE(ABORT, 'refused'); END;",
            )
        });
        assert_error_silent(bus.publish(secret("a")));
        assert_error_silent(bus.publish_all([secret("a"), secret("b")]));
        assert_error_silent(bus.links().create(secret_link()));
    }
}

/// Publishes and delivers with `look` as the handler; what it says ends in the row's error.
fn error_of(
    bus: &Postbox,
    look: impl Fn(&Event) -> Result<(), HandlerError> + Send + Sync + 'static,
) -> String {
    let handler = move |event: &Event, _: &Context<'_>| look(event);
    bus.subscribe(Subscription::new("a", "c", handler)).unwrap();
    let id = bus.publish(secret("a")).unwrap();
    bus.drain().unwrap();
    outbox_row(bus, id).last_error.expect("an error")
}

#[derive(Debug, serde::Deserialize)]
struct Typed {
    #[expect(dead_code, reason = "the payload does not fit")]
    p: u8,
}

#[test]
fn a_payload_that_does_not_fit_a_type_is_not_quoted_in_the_error_that_is_kept() {
    for TestBox { bus, .. } in &boxes() {
        let error = error_of(bus, |event| {
            assert_error_silent(event.payload_as::<Vec<u8>>());
            event.payload_as::<Typed>()?;
            Ok(())
        });
        assert!(!error.contains(CANARY), "{error}");
        assert!(error.starts_with("JSON"), "{error}");
    }
}

#[derive(Debug, serde::Deserialize)]
enum Kind {
    Known,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Closed {}

#[derive(Debug, serde::Deserialize)]
#[serde(try_from = "String")]
struct Checked;

impl TryFrom<String> for Checked {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Err(format!("`{text}` is no good, expected {text}"))
    }
}

/// serde quotes values in many words. What the library tells of a misfit is the type's half alone.
#[test]
fn no_way_in_which_a_payload_can_fail_to_fit_quotes_it() {
    let words = [
        CANARY.to_owned(),
        format!("x, expected {CANARY}"),
        format!("x`, expected {CANARY}"),
        format!("missing field `{CANARY}`"),
        format!("invalid type: {CANARY}, expected {CANARY}"),
    ];
    for TestBox { bus, .. } in &boxes() {
        let looks = words.iter().cloned().map(|word| {
            let payloads = [json!(word), json!([word]), json!({ word.as_str(): word }), json!({ word: 1 })];
            event("a").payload(payloads.into())
        });
        bus.publish_all(looks).unwrap();
        bus.subscribe(Subscription::new("a", "c", |event: &Event, _: &Context<'_>| {
            for payload in event.payload().as_array().unwrap() {
                let misfit =
                    |result: Result<(), serde_json::Error>| assert_error_silent(result.map_err(Error::Json));
                let value = || payload.clone();
                misfit(serde_json::from_value::<u8>(value()).map(|_| ()));
                misfit(serde_json::from_value::<Kind>(value()).map(|_| ()));
                misfit(serde_json::from_value::<Closed>(value()).map(|_| ()));
                misfit(serde_json::from_value::<Checked>(value()).map(|_| ()));
                misfit(serde_json::from_value::<[u8; 3]>(value()).map(|_| ()));
                misfit(serde_json::from_value::<std::collections::HashMap<u8, bool>>(value()).map(|_| ()));
            }
            assert_error_silent(event.payload_as::<(Kind, Closed, Checked, u8)>());
            Ok(())
        }))
        .unwrap();
        assert_eq!(bus.drain().unwrap(), words.len(), "an assertion in the handler failed");
    }
}

#[test]
fn a_row_that_cannot_be_read_is_not_quoted() {
    for TestBox { bus, .. } in &boxes() {
        let id: EventId = bus.publish(event("a")).unwrap();
        let broken = format!("[\"{CANARY}\", {CANARY}]");
        sql(bus, |tx| tx.execute("UPDATE outbox_event SET payload = ?1", [&broken]));
        assert_error_silent(bus.outbox().get(id));
        bus.subscribe(Subscription::new("a", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        bus.drain().unwrap();
        let error: String =
            sql(bus, |tx| tx.query_row("SELECT last_error FROM outbox_event", [], |row| row.get(0)));
        assert!(error.contains("payload") && !error.contains(CANARY), "{error}");
        assert!(matches!(bus.outbox().get(id), Err(Error::Json(_))));
    }
}
