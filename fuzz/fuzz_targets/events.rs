//! Events of arbitrary content: what is accepted comes back as it was, what is refused wrote nothing, and no text that the
//! library makes shows a payload, metadata or a key.

#![no_main]

use std::error::Error as _;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use postbox::{
    Context, Error, Event, EventId, HandlerError, NewEvent, OutboxEvent, Postbox, Subscription, Tx,
};
use serde_json::{Map, Number, Value};

/// Stands in every payload, metadata and key.
const CANARY: &str = "canary-7f3a";

const PAYLOAD_MAX: usize = 2_000;

#[derive(Debug, Arbitrary)]
struct Input {
    event_name: Text,
    source_module: Text,
    aggregate_type: Text,
    aggregate_id: Text,
    payload: Json,
    metadata: Option<Json>,
    correlation_id: Option<Text>,
    trace_parent: Option<Trace>,
    key: Option<Text>,
    #[arbitrary(with = |bytes: &mut Unstructured<'_>| if bytes.ratio(15, 16_u8)? { Ok(1) } else { bytes.arbitrary() })]
    version: u32,
    way: Way,
}

#[derive(Debug, Arbitrary, Clone, Copy)]
enum Way {
    Alone,
    Together,
    InTransaction,
}

/// Most are short; some stand just at a limit.
#[derive(Debug)]
struct Text(String);

impl<'a> Arbitrary<'a> for Text {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let mut text: String = bytes.arbitrary()?;
        if text.is_empty() && bytes.ratio(15, 16_u8)? {
            text.push('x');
        }
        let length = match bytes.int_in_range(0..=15_u8)? {
            0 => 127,
            1 => 128,
            2 => 255,
            3 => 256,
            4 => 1_023,
            5 => 1_024,
            _ => return Ok(Text(text)),
        };
        Ok(Text(text.chars().chain(std::iter::repeat('é')).take(length).collect()))
    }
}

#[derive(Debug)]
struct Trace(String);

impl<'a> Arbitrary<'a> for Trace {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Trace(match bytes.arbitrary()? {
            true => {
                let (trace, parent, flags): (u128, u64, u8) = bytes.arbitrary()?;
                format!("00-{trace:032x}-{parent:016x}-{flags:02x}")
            }
            false => bytes.arbitrary()?,
        }))
    }
}

/// A value with the canary in it, nested as deeply as the bytes say.
#[derive(Debug)]
struct Json(Value);

impl<'a> Arbitrary<'a> for Json {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let inner = value(bytes, 0)?;
        // 127 levels can be read back, one of which is the object below.
        let levels = if bytes.ratio(1, 8)? { bytes.int_in_range(0..=140)? } else { 0 };
        let nested = (0..levels).fold(inner, |inner, _| Value::Array(vec![inner]));
        let padding: usize = if bytes.ratio(1, 8)? { bytes.int_in_range(0..=2 * PAYLOAD_MAX)? } else { 0 };
        Ok(Json(Value::Object(Map::from_iter([
            (CANARY.to_owned(), Value::String(format!("{CANARY}{}", "p".repeat(padding)))),
            ("nested".to_owned(), nested),
        ]))))
    }
}

fn value(bytes: &mut Unstructured<'_>, depth: usize) -> Result<Value> {
    Ok(match bytes.int_in_range(0..=if depth > 6 { 6 } else { 8_u8 })? {
        0 => Value::Null,
        1 => Value::Bool(bytes.arbitrary()?),
        2 => Value::Number(bytes.arbitrary::<i64>()?.into()),
        3 => Value::Number(bytes.arbitrary::<u64>()?.into()),
        4 => Number::from_f64(bytes.arbitrary()?).map_or(Value::Null, Value::Number),
        5 | 6 => Value::String(bytes.arbitrary()?),
        7 => (0..bytes.int_in_range(0..=4)?)
            .map(|_| value(bytes, depth + 1))
            .collect::<Result<Vec<_>>>()?
            .into(),
        _ => Value::Object(
            (0..bytes.int_in_range(0..=4)?)
                .map(|_| Ok((bytes.arbitrary()?, value(bytes, depth + 1)?)))
                .collect::<Result<_>>()?,
        ),
    })
}

impl Input {
    fn event(&self) -> NewEvent {
        let mut event = NewEvent::new(
            &self.event_name.0,
            &self.source_module.0,
            &self.aggregate_type.0,
            &self.aggregate_id.0,
        )
        .payload(self.payload.0.clone())
        .version(self.version);
        if let Some(metadata) = &self.metadata {
            event = event.metadata(metadata.0.clone());
        }
        if let Some(id) = &self.correlation_id {
            event = event.correlation_id(&id.0);
        }
        if let Some(trace_parent) = &self.trace_parent {
            event = event.trace_parent(&trace_parent.0);
        }
        if let Some(key) = &self.key {
            event = event.idempotency_key(&key.0);
        }
        event
    }

    /// The documented limits, but for that of the trace parent.
    fn is_within_limits(&self) -> bool {
        let name = |text: &Text, max: usize| {
            !text.0.trim().is_empty() && !text.0.contains('\0') && text.0.chars().count() <= max
        };
        name(&self.event_name, 255)
            && !self.event_name.0.contains('*')
            && name(&self.source_module, 127)
            && name(&self.aggregate_type, 127)
            && name(&self.aggregate_id, 255)
            && self.correlation_id.as_ref().is_none_or(|id| name(id, 255))
            && self.key.as_ref().is_none_or(|key| (1..=1_023).contains(&key.0.chars().count()))
            && self.version > 0
            && is_small(&self.payload.0)
            && self.metadata.as_ref().is_none_or(|metadata| is_small(&metadata.0))
    }

    /// Of what is not secret, and may so be quoted.
    fn shows_canary(&self) -> bool {
        let names = [&self.event_name, &self.source_module, &self.aggregate_type, &self.aggregate_id];
        names.into_iter().chain(&self.correlation_id).any(|text| text.0.contains(CANARY))
    }
}

fn is_small(json: &Value) -> bool {
    fn depth(json: &Value) -> usize {
        match json {
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }
    json.to_string().len() <= PAYLOAD_MAX && depth(json) <= 127
}

fuzz_target!(|input: Input| {
    let mut input = input;
    if input.shows_canary() {
        return;
    }
    // A key that is too short or too long stays so.
    if let Some(Text(key)) = &mut input.key
        && !key.is_empty()
    {
        let length = key.chars().count().max(CANARY.len());
        *key = CANARY.chars().chain(key.chars()).take(length).collect();
    }
    check(&input);
});

fn check(input: &Input) {
    let bus = Postbox::builder().max_payload_bytes(PAYLOAD_MAX).open_in_memory().unwrap();
    let handled = Arc::new(Mutex::new(Vec::new()));
    let (plain, transactional) = (Arc::clone(&handled), Arc::clone(&handled));
    bus.subscribe(Subscription::new("*", "plain", move |event: &Event, cx: &Context<'_>| {
        assert_silent(&cx);
        plain.lock().unwrap().push(Told::by(event));
        Ok(())
    }))
    .unwrap();
    bus.subscribe(Subscription::transactional("*", "tx", move |event: &Event, _: &Tx<'_>| {
        transactional.lock().unwrap().push(Told::by(event));
        Err(HandlerError::skip("seen"))
    }))
    .unwrap();

    assert_silent(&input.event());
    match publish(&bus, input) {
        Ok(id) => {
            assert!(input.is_within_limits(), "accepted beyond a limit");
            let row = bus.outbox().get(id).unwrap().expect("the event's row");
            assert_silent(&row);
            Told::of(&row).assert_is(input);
            assert_eq!(publish(&bus, input).is_ok_and(|again| again == id), input.key.is_some());
            let events = if input.key.is_some() { 1 } else { 2 };
            assert_eq!(bus.drain().unwrap(), events);
            let handled = handled.lock().unwrap();
            assert_eq!(handled.len(), 2 * events);
            handled.iter().for_each(|told| told.assert_is(input));
            assert_eq!(bus.stats().unwrap().total, events as u64);
        }
        Err(error) => {
            // The API refuses, and not the file.
            let refused = matches!(&error, Error::Invalid { .. } | Error::PayloadTooLarge { .. });
            let of_trace = matches!(&error, Error::Invalid { field: "trace_parent", .. });
            assert!(refused && (of_trace || !input.is_within_limits()), "{error}");
            assert_error_is_silent(error);
            assert_eq!(bus.stats().unwrap().total, 0, "what was refused was written");
            assert_eq!(bus.drain().unwrap(), 0);
        }
    }
}

fn publish(bus: &Postbox, input: &Input) -> postbox::Result<EventId> {
    match input.way {
        Way::Alone => bus.publish(input.event()),
        Way::Together => bus.publish_all([input.event()]).map(|ids| ids[0]),
        Way::InTransaction => bus.transaction(|tx| tx.publish(input.event())),
    }
}

/// What is told of an event, by its row or to a handler.
struct Told {
    names: [String; 4],
    /// As text, so that -0.0 is not 0.0.
    payload: String,
    metadata: Option<String>,
    correlation_id: Option<String>,
    trace_parent: Option<String>,
    version: u32,
}

impl Told {
    fn by(event: &Event) -> Self {
        assert_silent(event);
        Told {
            names: [event.name(), event.source_module(), event.aggregate_type(), event.aggregate_id()]
                .map(str::to_owned),
            payload: event.payload().to_string(),
            metadata: event.metadata().map(Value::to_string),
            correlation_id: event.correlation_id().map(str::to_owned),
            trace_parent: event.trace_parent().map(str::to_owned),
            version: event.version(),
        }
    }

    fn of(row: &OutboxEvent) -> Self {
        Told {
            names: [&row.event_name, &row.source_module, &row.aggregate_type, &row.aggregate_id]
                .map(Clone::clone),
            payload: row.payload.to_string(),
            metadata: row.metadata.as_ref().map(Value::to_string),
            correlation_id: row.correlation_id.clone(),
            trace_parent: row.trace_parent.clone(),
            version: row.version,
        }
    }

    fn assert_is(&self, input: &Input) {
        let names = [&input.event_name, &input.source_module, &input.aggregate_type, &input.aggregate_id];
        assert_eq!(self.names, names.map(|text| text.0.clone()));
        assert_eq!(self.payload, input.payload.0.to_string());
        assert_eq!(self.metadata, input.metadata.as_ref().map(|metadata| metadata.0.to_string()));
        assert_eq!(self.correlation_id, input.correlation_id.as_ref().map(|id| id.0.clone()));
        assert_eq!(self.trace_parent, input.trace_parent.as_ref().map(|parent| parent.0.clone()));
        assert_eq!(self.version, input.version);
    }
}

fn assert_silent(value: &impl Debug) {
    for text in [format!("{value:?}"), format!("{value:#?}")] {
        assert!(!text.contains(CANARY), "{text}");
    }
}

fn assert_error_is_silent(error: Error) {
    assert_silent(&error);
    assert!(!error.to_string().contains(CANARY), "{error}");
    let mut source = error.source();
    while let Some(cause) = source {
        assert!(!format!("{cause} {cause:?}").contains(CANARY), "{cause:?}");
        source = cause.source();
    }
    let in_handler = HandlerError::from(error);
    assert!(!format!("{in_handler} {in_handler:?}").contains(CANARY), "{in_handler:?}");
}
