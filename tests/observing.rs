//! Observers: what they are told and when, what they may do, and that none of it changes what a box does.

mod support;

#[path = "observing/dead_letters.rs"]
mod dead_letters;
#[path = "observing/deliveries.rs"]
mod deliveries;
#[path = "observing/numbers.rs"]
mod numbers;
#[path = "observing/publishing.rs"]
mod publishing;
#[path = "observing/safety.rs"]
mod safety;
#[path = "observing/workers.rs"]
mod workers;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use postbox::{
    Backoff, Context, DeadLettered, Drained, Event, EventId, Failed, Finished, Handler, HandlerResult,
    Observer, Postbox, Published, Started, Subscription, TransactionalHandler, Tx,
};

use crate::support::{Calls, TestBox, boxes_with};

/// Stands in errors, which `Debug` must not show.
pub(crate) const CANARY: &str = "canary7f3a";

/// Writes down what it is told, one line each. Clones write to the same list, and to the same box once they have one.
#[derive(Clone, Default)]
pub(crate) struct Notes {
    pub(crate) lines: Calls,
    /// Every record as `Debug` shows it.
    pub(crate) shown: Calls,
    /// What `error()` said.
    pub(crate) errors: Calls,
    /// What the row says meanwhile, where there is a box to ask.
    pub(crate) statuses: Calls,
    pub(crate) durations: Arc<Mutex<Vec<Duration>>>,
    /// For tests in which the observer looks at its own box while it is told.
    pub(crate) bus: Arc<OnceLock<Postbox>>,
}

impl Observer for Notes {
    fn published(&self, published: &Published<'_>) {
        self.shown.add(format!("{published:?}"));
        self.lines.add(format!("published {}", published.event_name));
        if let Some(bus) = self.bus.get() {
            // It is in the file, as everybody reads it.
            assert!(bus.outbox().get(published.event_id).unwrap().is_some());
            self.lines.add("seen");
        }
    }

    fn started(&self, started: &Started<'_>) {
        self.shown.add(format!("{started:?}"));
        let Started { event_name, consumer_name, attempt, .. } = started;
        self.lines.add(format!("started {event_name} by {consumer_name}, {attempt}"));
    }

    fn finished(&self, finished: &Finished<'_>) {
        self.shown.add(format!("{finished:?}"));
        let Finished { event_name, consumer_name, attempt, duration, skipped, .. } = finished;
        self.durations.lock().unwrap().push(*duration);
        self.look(finished.event_id);
        let what = if *skipped { "skipped" } else { "finished" };
        self.lines.add(format!("{what} {event_name} by {consumer_name}, {attempt}"));
    }

    fn failed(&self, failed: &Failed<'_>) {
        self.shown.add(format!("{failed:?}"));
        self.errors.add(failed.error());
        let Failed { event_name, consumer_name, attempt, gave_up, .. } = failed;
        let end = if *gave_up { ", for good" } else { "" };
        self.lines.add(format!("failed {event_name} by {consumer_name}, {attempt}{end}"));
    }

    fn dead_lettered(&self, dead: &DeadLettered<'_>) {
        self.shown.add(format!("{dead:?}"));
        self.errors.add(dead.error());
        self.look(dead.event_id);
        self.lines.add(format!("{} {}, {}", dead.status, dead.event_name, dead.attempt));
    }

    fn drained(&self, drained: &Drained) {
        self.shown.add(format!("{drained:?}"));
        self.lines.add(format!("drained {}", drained.processed));
    }
}

impl Notes {
    fn look(&self, id: EventId) {
        if let Some(bus) = self.bus.get() {
            let row = bus.outbox().get(id).unwrap().unwrap();
            self.statuses.add(format!("{} is {}", row.event_name, row.status));
        }
    }

    pub(crate) fn take(&self) -> Vec<String> {
        self.lines.take()
    }
}

/// Boxes of both kinds, each with its notes.
pub(crate) fn observed() -> Vec<(TestBox, Notes)> {
    let notes: Vec<Notes> = Vec::new();
    let notes = Mutex::new(notes);
    let boxes = boxes_with(|builder| {
        let new = Notes::default();
        notes.lock().unwrap().push(new.clone());
        builder.observer(new)
    });
    boxes.into_iter().zip(notes.into_inner().unwrap()).collect()
}

/// Both kinds of handlers that say the same. Failures are tried again at once.
pub(crate) fn both_kinds(
    name: &str,
    consumer: &str,
    says: fn(u32) -> HandlerResult,
) -> [(&'static str, Subscription); 2] {
    let plain = move |event: &Event, _: &Context<'_>| says(event.attempt());
    let transactional = move |event: &Event, _: &Tx<'_>| says(event.attempt());
    [
        ("plain", subscription(name, consumer, plain)),
        ("transactional", transactional_subscription(name, consumer, transactional)),
    ]
}

pub(crate) fn subscription(name: &str, consumer: &str, handler: impl Handler) -> Subscription {
    Subscription::new(name, consumer, handler).backoff(Backoff::fixed(Duration::ZERO))
}

pub(crate) fn transactional_subscription(
    name: &str,
    consumer: &str,
    handler: impl TransactionalHandler,
) -> Subscription {
    Subscription::transactional(name, consumer, handler).backoff(Backoff::fixed(Duration::ZERO))
}
