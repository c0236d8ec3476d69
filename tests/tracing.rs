//! The span of each delivery: what it says, and that the handler runs inside it.

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use postbox::{Context, Event, HandlerError, HandlerResult, PauseTarget, Subscription, Tx};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

use crate::support::{SECOND, TestBox, boxes, event};

const CANARY: &str = "canary7f3a";
const TRACE_PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

type Fields = BTreeMap<&'static str, String>;

/// With the span in which it came.
type Message = (String, Option<u64>);

/// Spans with their fields, and messages.
#[derive(Clone, Default)]
struct Seen {
    spans: Arc<Mutex<Vec<Fields>>>,
    inside: Arc<Mutex<Vec<u64>>>,
    messages: Arc<Mutex<Vec<Message>>>,
}

struct Noting<'a>(&'a mut Fields);

impl Visit for Noting<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl Subscriber for Seen {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "postbox" || metadata.target() == "test"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        assert_eq!(span.metadata().name(), "postbox.deliver");
        let mut fields = Fields::new();
        span.record(&mut Noting(&mut fields));
        let mut spans = self.spans.lock().unwrap();
        spans.push(fields);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut spans = self.spans.lock().unwrap();
        let index = usize::try_from(span.into_u64() - 1).unwrap();
        values.record(&mut Noting(&mut spans[index]));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields::new();
        event.record(&mut Noting(&mut fields));
        let span = self.inside.lock().unwrap().last().copied();
        self.messages.lock().unwrap().push((fields.remove("message").unwrap_or_default(), span));
    }

    fn enter(&self, span: &Id) {
        self.inside.lock().unwrap().push(span.into_u64());
    }

    fn exit(&self, span: &Id) {
        assert_eq!(self.inside.lock().unwrap().pop(), Some(span.into_u64()));
    }
}

fn says(name: &str, attempt: u32) -> HandlerResult {
    tracing::info!(target: "test", "{name} {attempt}");
    match (name, attempt) {
        ("skip", _) => Err(HandlerError::skip(CANARY)),
        ("retry", 1) => Err(HandlerError::retry_after(CANARY, std::time::Duration::ZERO)),
        ("panic", 1) => panic!("{CANARY}"),
        ("pause", 1) => Err(HandlerError::pause_consumer(CANARY, SECOND)),
        _ => Ok(()),
    }
}

fn both() -> [Subscription; 2] {
    [
        Subscription::new("*", "c", |event: &Event, _: &Context<'_>| says(event.name(), event.attempt())),
        Subscription::transactional("*", "c", |event: &Event, _: &Tx<'_>| {
            says(event.name(), event.attempt())
        }),
    ]
}

fn text(fields: &Fields, field: &str) -> Option<String> {
    fields.get(field).cloned()
}

#[test]
fn a_handler_runs_inside_the_span_of_its_delivery() {
    for of_kind in 0..2 {
        for TestBox { kind, bus, .. } in &boxes() {
            let [plain, transactional] = both();
            bus.subscribe(if of_kind == 0 { plain } else { transactional }).unwrap();
            let seen = Seen::default();
            let id =
                bus.publish(event("a").correlation_id("conversation").trace_parent(TRACE_PARENT)).unwrap();
            tracing::subscriber::with_default(seen.clone(), || bus.drain().unwrap());
            let spans = seen.spans.lock().unwrap();
            assert_eq!(spans.len(), 1, "{kind}");
            let expected = [
                ("attempt", "1".to_owned()),
                ("consumer", "c".to_owned()),
                ("correlation_id", "conversation".to_owned()),
                ("event_id", id.to_string()),
                ("event_name", "a".to_owned()),
                ("outcome", "processed".to_owned()),
                ("parent_id", "00f067aa0ba902b7".to_owned()),
                ("trace_flags", "01".to_owned()),
                ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
            ];
            assert_eq!(spans[0], BTreeMap::from(expected), "{kind}");
            assert_eq!(*seen.messages.lock().unwrap(), [("a 1".to_owned(), Some(1))], "{kind}");
            assert!(seen.inside.lock().unwrap().is_empty());
        }
    }
}

#[test]
fn its_outcome_is_what_the_handler_said_and_never_why() {
    for of_kind in 0..2 {
        for TestBox { kind, bus, clock, .. } in &boxes() {
            let [plain, transactional] = both();
            bus.subscribe(if of_kind == 0 { plain } else { transactional }).unwrap();
            let seen = Seen::default();
            bus.publish_all(["skip", "retry", "panic", "pause"].map(event)).unwrap();
            tracing::subscriber::with_default(seen.clone(), || {
                bus.drain().unwrap();
                clock.advance(SECOND * 10);
                bus.resume(&PauseTarget::consumer("c")).unwrap();
                bus.drain().unwrap();
            });
            let spans = seen.spans.lock().unwrap();
            let of = |name: &str| -> Vec<Option<String>> {
                let of = |fields: &&Fields| fields.get("event_name").is_some_and(|of| of == name);
                spans.iter().filter(of).map(|fields| text(fields, "outcome")).collect()
            };
            let outcomes =
                |texts: &[&str]| -> Vec<_> { texts.iter().map(|text| Some((*text).to_owned())).collect() };
            assert_eq!(of("skip"), outcomes(&["skipped"]), "{kind}");
            assert_eq!(of("retry"), outcomes(&["failed", "processed"]), "{kind}");
            assert_eq!(of("panic"), outcomes(&["failed", "processed"]), "{kind}");
            assert_eq!(of("pause")[0], Some("paused".to_owned()), "{kind}");
            assert!(!format!("{spans:?}").contains(CANARY), "{kind}");
            // None has a trace that it was not given.
            assert!(spans.iter().all(|fields| text(fields, "trace_id").is_none()), "{kind}");
        }
    }
}

#[test]
fn a_traceparent_that_is_none_is_left_out() {
    for TestBox { kind, bus, .. } in &boxes() {
        let [plain, _] = both();
        bus.subscribe(plain).unwrap();
        bus.publish(event("a").trace_parent(TRACE_PARENT)).unwrap();
        support::sql(bus, |tx| tx.execute("UPDATE outbox_event SET traceparent = '00-zz-zz-zz'", []));
        let seen = Seen::default();
        tracing::subscriber::with_default(seen.clone(), || bus.drain().unwrap());
        let spans = seen.spans.lock().unwrap();
        assert_eq!((spans.len(), text(&spans[0], "trace_id")), (1, None), "{kind}");
    }
}
