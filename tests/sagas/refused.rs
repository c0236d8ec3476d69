//! What is refused, and in which words.

use std::time::Duration;

use postbox::{Error, HandlerResult, Saga};
use serde_json::json;

use crate::support::{Calls, boxes, boxes_with, inbox_rows, refused_field};
use crate::{MINUTE, Trail, found, noted, noting, of_order, order, published_after};

pub(crate) fn field<T: std::fmt::Debug>(result: postbox::Result<T>) -> &'static str {
    refused_field(result)
}

#[test]
fn a_saga_has_a_name_that_fits_and_an_event_that_starts_it() {
    for test in boxes() {
        let bus = &test.bus;
        for name in ["", " ", "a\0b", &"x".repeat(251)] {
            assert_eq!(
                field(bus.subscribe_saga(Saga::<u32>::new(name).starts_on("a", |_, _, _| Ok(())))),
                "saga"
            );
        }
        bus.subscribe_saga(Saga::<u32>::new("x".repeat(250)).starts_on("a", |_, _, _| Ok(()))).unwrap();
        let never = bus.subscribe_saga(Saga::<u32>::new("order").on("a", |_, _, _| Ok(()))).unwrap_err();
        let why = "invalid saga: `order` has no event that starts it: give it one with `starts_on`";
        assert_eq!(never.to_string(), why);
        let odd = Saga::<u32>::new("order").starts_on("a", |_, _, _| Ok(())).on("b*", |_, _, _| Ok(()));
        assert_eq!(field(bus.subscribe_saga(odd)), "event_name");
        assert_eq!(bus.registry().handler_count(), 1, "{}", test.kind);
    }
}

#[test]
fn an_event_has_one_handler_of_each_kind_and_a_name_one_saga() {
    for test in boxes() {
        let bus = &test.bus;
        let twice = bus.subscribe_saga(noting().on("step.*", noted));
        assert!(matches!(twice, Err(Error::DuplicateSubscription { .. })), "{twice:?}");
        bus.subscribe_saga(noting()).unwrap();
        let again = bus.subscribe_saga(Saga::<Trail>::new("order").starts_on("other", noted)).unwrap_err();
        assert_eq!(again.to_string(), "invalid saga: `order` is subscribed already", "{}", test.kind);
    }
}

/// Each is refused before anything is written, so that a handler may go on without it.
#[test]
fn what_a_step_cannot_set_is_refused_and_the_step_goes_on() {
    for test in boxes_with(|builder| builder.max_payload_bytes(100)) {
        let (bus, calls) = (&test.bus, Calls::default());
        let large = json!("x".repeat(200));
        let said = calls.clone();
        let saga = noting().starts_on("begin", move |_, _, step| -> HandlerResult {
            let after = Duration::from_secs(1);
            let set = |name: &str, event| step.timeout(name, after, event).unwrap_err().to_string();
            said.add(set(" ", of_order("step.a")));
            said.add(set("a", of_order("begin")));
            said.add(set("a", of_order("elsewhere")));
            said.add(set("a", of_order("step.a").idempotency_key("k")));
            said.add(set("a", order("step.a", "o-2")));
            said.add(set("a", of_order("step.a").payload(large.clone())));
            said.add(step.timeout("a", Duration::MAX, of_order("step.a")).unwrap_err().to_string());
            said.add(step.undo_with(of_order("undo.*")).unwrap_err().to_string());
            said.add(step.undo_with(of_order("undo").payload(large.clone())).unwrap_err().to_string());
            said.add(step.compensate("").unwrap_err().to_string());
            Ok(())
        });
        bus.subscribe_saga(saga).unwrap();
        let begin = bus.publish(of_order("begin")).unwrap();
        bus.drain().unwrap();
        assert_eq!(
            calls.all(),
            [
                "invalid timeout: must not be empty or blank",
                "invalid timeout: `a`: no `on` of saga `order` takes events of the name `begin`",
                "invalid timeout: `a`: no `on` of saga `order` takes events of the name `elsewhere`",
                "invalid timeout: `a`: its event has an idempotency key, under which it could be set only once",
                "invalid timeout: `a`: its event has another correlation id than the saga",
                "the payload or metadata takes 202 bytes as JSON, more than the limit of 100 bytes",
                "invalid delay: is longer than a thousand years",
                "invalid event_name: must not contain `*`, which is for subscriptions",
                "the payload or metadata takes 202 bytes as JSON, more than the limit of 100 bytes",
                "invalid reason: must not be empty or blank",
            ],
            "{}",
            test.kind
        );
        let saga = found(bus);
        assert_eq!((saga.timeouts.len(), saga.undo.len(), published_after(bus, begin).len()), (0, 0, 0));
        assert_eq!(inbox_rows(bus, begin)[0].1, postbox::InboxStatus::Processed);
    }
}

#[test]
fn a_conversation_has_a_hundred_timeouts_and_a_thousand_events_that_undo_at_the_most() {
    let test = crate::support::file_box();
    let (bus, calls) = (&test.bus, Calls::default());
    let said = calls.clone();
    let saga = noting().starts_on("begin", move |_, _, step| -> HandlerResult {
        for n in 0..100 {
            step.timeout(&format!("t-{n}"), MINUTE, of_order("step.a"))?;
        }
        step.timeout("t-5", MINUTE, of_order("step.a"))?; // moved
        said.add(step.timeout("more", MINUTE, of_order("step.a")).unwrap_err().to_string());
        for _ in 0..1_000 {
            step.undo_with(of_order("undo"))?;
        }
        said.add(step.undo_with(of_order("undo")).unwrap_err().to_string());
        Ok(())
    });
    bus.subscribe_saga(saga).unwrap();
    bus.publish(of_order("begin")).unwrap();
    bus.drain().unwrap();
    assert_eq!(
        calls.all(),
        [
            "invalid timeout: `more`: the saga waits for 100 timeouts already, as many as it may",
            "invalid undo_with: the saga has noted 1000 events already, which is as many as it may",
        ]
    );
    let saga = found(bus);
    assert_eq!((saga.timeouts.len(), saga.undo.len()), (100, 1_000));
}

/// The list that it is kept in has levels of its own. What could be published, and was noted, was not read back any more: the saga could
/// neither note anything else nor be compensated, and was not even shown.
#[test]
fn an_event_that_undoes_and_could_not_be_read_back_is_refused() {
    for test in boxes() {
        let (bus, calls) = (&test.bus, Calls::default());
        let nested = |levels: u32| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        let said = calls.clone();
        let saga = Saga::<Trail>::new("order")
            .starts_on("start", move |_, _, step| {
                for levels in [126, 127] {
                    let event = of_order("undo").payload(nested(levels));
                    said.add(step.undo_with(event).unwrap_err().to_string());
                }
                step.undo_with(of_order("undo").payload(nested(125)).metadata(nested(125)))?;
                Ok(())
            })
            .on("refused", |_, _, step| Ok(step.compensate("refused").map(drop)?));
        bus.subscribe_saga(saga).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        let why = "invalid payload: is nested more than 125 levels deep and could not be read back";
        assert_eq!(calls.all(), [why, why], "{}", test.kind);
        assert_eq!(found(bus).undo, ["undo"]);
        let refused = bus.publish(of_order("refused")).unwrap();
        bus.drain().unwrap();
        assert_eq!(published_after(bus, refused), ["undo"]);
    }
}
