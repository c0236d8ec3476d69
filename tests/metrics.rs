//! What is counted through the `metrics` crate: names, labels, units, and that no label grows without bounds.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use postbox::metrics::{LABEL_VALUES_MAX, MetricsObserver, record_gauges, record_lag};
use postbox::{Context, Event, HandlerError, Subscription, Tx};

use crate::support::{SECOND, TestBox, boxes_with, event};

/// `name{label=value}`, and the sum of its counter, the value of its gauge, or how many values its histogram has seen.
#[derive(Clone, Default)]
struct Recorded {
    values: Arc<Mutex<BTreeMap<String, f64>>>,
    described: Arc<Mutex<BTreeMap<String, Option<Unit>>>>,
}

struct Value {
    name: String,
    recorded: Recorded,
}

impl Value {
    fn change(&self, to: impl FnOnce(f64) -> f64) {
        let mut values = self.recorded.values.lock().unwrap();
        let value = values.entry(self.name.clone()).or_default();
        *value = to(*value);
    }
}

impl CounterFn for Value {
    fn increment(&self, by: u64) {
        self.change(|value| value + f64::from(u32::try_from(by).unwrap()));
    }
    fn absolute(&self, _: u64) {
        unreachable!("nothing sets a counter");
    }
}

impl GaugeFn for Value {
    fn increment(&self, _: f64) {
        unreachable!("gauges are set");
    }
    fn decrement(&self, _: f64) {
        unreachable!("gauges are set");
    }
    fn set(&self, to: f64) {
        self.change(|_| to);
    }
}

impl HistogramFn for Value {
    fn record(&self, value: f64) {
        assert!((0.0..60.0).contains(&value), "in seconds: {value}");
        self.change(|count| count + 1.0);
    }
}

impl Recorded {
    fn value(&self, key: &Key) -> Arc<Value> {
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = if labels.is_empty() {
            key.name().to_owned()
        } else {
            format!("{}{{{}}}", key.name(), labels.join(","))
        };
        Arc::new(Value { name, recorded: self.clone() })
    }

    fn get(&self, name: &str) -> Option<f64> {
        self.values.lock().unwrap().get(name).copied()
    }

    fn names(&self) -> Vec<String> {
        self.values.lock().unwrap().keys().cloned().collect()
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.described.lock().unwrap().insert(name.as_str().to_owned(), unit);
    }
    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.described.lock().unwrap().insert(name.as_str().to_owned(), unit);
    }
    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.described.lock().unwrap().insert(name.as_str().to_owned(), unit);
    }
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.value(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.value(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.value(key))
    }
}

/// Each kind of box with a recorder of its own, which is this thread's for as long as `test` runs.
fn recorded(test: impl Fn(&TestBox, &Recorded)) {
    for kind in 0..2 {
        let recorded = Recorded::default();
        metrics::with_local_recorder(&recorded, || {
            let boxes = boxes_with(|builder| builder.observer(MetricsObserver::new()));
            test(&boxes[kind], &recorded);
        });
    }
}

#[test]
fn what_a_box_does_is_counted_by_event_and_consumer() {
    recorded(|TestBox { kind, bus, .. }, recorded| {
        bus.subscribe(Subscription::new("a", "plain", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        bus.subscribe(Subscription::transactional("a", "tx", |_: &Event, _: &Tx<'_>| {
            Err(HandlerError::skip("not mine"))
        }))
        .unwrap();
        let never = |_: &Event, _: &Context<'_>| Err(HandlerError::dead_letter("never"));
        bus.subscribe(Subscription::new("b", "plain", never)).unwrap();
        bus.publish_all([event("a"), event("a"), event("b")]).unwrap();
        bus.drain().unwrap();
        let expected = [
            ("postbox_dead_letters_total{event=b}", 1.0),
            ("postbox_drained_total", 1.0),
            ("postbox_failed_total{event=b,consumer=plain}", 1.0),
            ("postbox_handler_seconds{consumer=plain}", 3.0),
            ("postbox_handler_seconds{consumer=tx}", 2.0),
            ("postbox_processed_total{event=a,consumer=plain}", 2.0),
            ("postbox_processed_total{event=a,consumer=tx}", 2.0),
            ("postbox_published_total{event=a}", 2.0),
            ("postbox_published_total{event=b}", 1.0),
            ("postbox_skipped_total{event=a,consumer=tx}", 2.0),
        ];
        let expected: BTreeMap<String, f64> =
            expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(*recorded.values.lock().unwrap(), expected, "{kind}");
    });
}

#[test]
fn gauges_are_what_stats_and_lag_say() {
    recorded(|TestBox { kind, bus, clock, .. }, recorded| {
        bus.subscribe(Subscription::new("a", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        bus.publish_all([event("a"), event("a").delay(SECOND)]).unwrap();
        clock.advance(SECOND * 3);
        record_gauges(bus).unwrap();
        record_lag(bus).unwrap();
        for (name, value) in [
            ("postbox_pending", 2.0),
            ("postbox_processing", 0.0),
            ("postbox_dead_letters", 0.0),
            ("postbox_failed", 0.0),
            ("postbox_oldest_pending_seconds", 3.0),
            ("postbox_lost_leases", 0.0),
            ("postbox_worker_running", 0.0),
            ("postbox_healthy", 1.0),
            ("postbox_consumer_waiting{consumer=c}", 2.0),
            ("postbox_consumer_lag_seconds{consumer=c}", 3.0),
        ] {
            assert_eq!(recorded.get(name), Some(value), "{name}, {kind}");
        }
        let is_file = *kind == "file";
        assert_eq!(recorded.get("postbox_file_bytes").is_some(), is_file, "{kind}");
        assert_eq!(recorded.get("postbox_wal_bytes").is_some(), is_file, "{kind}");
        bus.drain().unwrap();
        record_gauges(bus).unwrap();
        record_lag(bus).unwrap();
        assert_eq!(recorded.get("postbox_pending"), Some(0.0), "{kind}");
        assert_eq!(recorded.get("postbox_consumer_lag_seconds{consumer=c}"), Some(0.0), "{kind}");
    });
}

#[test]
fn labels_have_a_hundred_values_and_other() {
    recorded(|TestBox { kind, bus, .. }, recorded| {
        let names = || (0..2 * LABEL_VALUES_MAX).map(|n| format!("name.{n}"));
        bus.subscribe_many(names().map(|name| {
            Subscription::new(name.clone(), format!("of {name}"), |_: &Event, _: &Context<'_>| Ok(()))
        }))
        .unwrap();
        for _ in 0..2 {
            bus.publish_all(names().map(|name| event(&name))).unwrap();
        }
        record_lag(bus).unwrap();
        bus.drain().unwrap();
        let of = |metric: &str| {
            let names = recorded.names();
            names.into_iter().filter(|name| name.starts_with(metric)).collect::<Vec<_>>()
        };
        for metric in [
            "postbox_published_total{",
            "postbox_processed_total{",
            "postbox_handler_seconds{",
            "postbox_consumer_waiting{",
            "postbox_consumer_lag_seconds{",
        ] {
            assert_eq!(of(metric).len(), LABEL_VALUES_MAX + 1, "{metric}, {kind}");
        }
        assert_eq!(recorded.get("postbox_published_total{event=name.7}"), Some(2.0), "{kind}");
        assert_eq!(recorded.get("postbox_published_total{event=other}"), Some(200.0), "{kind}");
        assert_eq!(
            recorded.get("postbox_processed_total{event=other,consumer=other}"),
            Some(200.0),
            "{kind}"
        );
        assert_eq!(recorded.get("postbox_consumer_waiting{consumer=other}"), Some(200.0), "{kind}");
    });
}

#[test]
fn every_metric_is_described_and_documented() {
    let documentation = include_str!("../src/metrics.rs");
    recorded(|TestBox { bus, .. }, recorded| {
        let says = |_: &Event, _: &Context<'_>| Err(HandlerError::skip("no"));
        bus.subscribe(Subscription::new("a", "c", says)).unwrap();
        let never = |_: &Event, _: &Context<'_>| Err(HandlerError::dead_letter("never"));
        bus.subscribe(Subscription::new("b", "c", never)).unwrap();
        bus.publish_all([event("a"), event("b")]).unwrap();
        bus.drain().unwrap();
        record_gauges(bus).unwrap();
        record_lag(bus).unwrap();
        let described = recorded.described.lock().unwrap();
        assert_eq!(described.len(), 19);
        for name in recorded.names() {
            let name = name.split('{').next().unwrap();
            let unit = described.get(name).unwrap_or_else(|| panic!("{name} is not described"));
            let expected = match name {
                _ if name.ends_with("_seconds") => Unit::Seconds,
                _ if name.ends_with("_bytes") => Unit::Bytes,
                _ => Unit::Count,
            };
            assert_eq!(*unit, Some(expected), "{name}");
            let table: Vec<_> = documentation.lines().filter(|line| line.starts_with("//! | ")).collect();
            assert!(table.concat().contains(&format!("`{name}`")), "{name}");
        }
    });
}
