//! Sagas: a conversation of events, with a state of its own from its first to its last.

#[cfg(feature = "testing")]
mod alone;
mod run;
mod state;
mod step;
mod typed;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::run::{Runner, Step, Steps};
pub use self::step::SagaStep;
use crate::backoff::Backoff;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::handler::HandlerResult;
use crate::subscription::{Subscription, closeness};
use crate::typed::Reads;
use crate::validate;

/// A process that goes on over several events, and the state that it keeps between them: an order that waits for its payment, then for
/// its shipment, and is undone where one of them fails.
///
/// There is one row in the file for each conversation, which a correlation id names. Every handler is given its state, may change it, and
/// writes it back **in the same transaction** in which its event is marked as done, its follow-up events are published and its timeouts
/// are set. So a step happens exactly once, all of it or nothing, across crashes and in however many processes; and since transactional
/// handlers run one at a time, no two write one state at once.
///
/// ```
/// # use postbox::{Event, NewEvent, Postbox, Saga, SagaStatus};
/// # use std::time::Duration;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Default, Serialize, Deserialize)]
/// #[serde(default)] // so that a later release may add fields
/// struct Order {
///     paid: bool,
/// }
///
/// # fn main() -> postbox::Result<()> {
/// let about = |name: &str, event: &Event| NewEvent::new(name, "sales", "Order", event.aggregate_id());
/// let saga = Saga::<Order>::new("order")
///     .starts_on("order.placed", move |_, event, step| {
///         step.publish(about("payment.requested", event))?;
///         step.timeout("payment", Duration::from_hours(24), about("payment.overdue", event))?;
///         step.undo_with(about("order.cancelled", event))?;
///         Ok(())
///     })
///     .on("payment.captured", |order, _, step| {
///         order.paid = true;
///         step.complete()?; // cancels the timeout as well
///         Ok(())
///     })
///     .on("payment.overdue", |_, _, step| {
///         step.compensate("no payment within a day")?;
///         Ok(())
///     });
///
/// let postbox = Postbox::open_in_memory()?;
/// postbox.subscribe_saga(saga)?;
/// postbox.publish(NewEvent::new("order.placed", "sales", "Order", "o-7").correlation_id("o-7"))?;
/// postbox.publish(NewEvent::new("payment.captured", "finance", "Payment", "p-1").correlation_id("o-7"))?;
/// postbox.drain()?;
/// let order = postbox.sagas().get("order", "o-7")?.expect("it is kept");
/// assert_eq!(order.summary.status, SagaStatus::Completed);
/// assert_eq!(order.state["paid"], true);
/// # Ok(())
/// # }
/// ```
///
/// # Which conversation an event belongs to
///
/// Its correlation id's. What a step publishes carries the conversation's id on, and so does what others publish as follow-ups of that.
/// A starting event without a correlation id begins a conversation under its aggregate id; any other event without one is a dead letter,
/// with an error that says so. [`correlate`](Saga::correlate) finds the id elsewhere.
///
/// # What runs when
///
/// | the conversation | what is called | without such a handler |
/// |---|---|---|
/// | has not begun | [`starts_on`](Saga::starts_on) | the event [waits](Saga::wait_for_start), an hour at the most; then it is a dead letter |
/// | is running | [`on`](Saga::on) | the event is skipped |
/// | has ended | [`after_end`](Saga::after_end) | the event is skipped |
///
/// Where several names and patterns match an event, the closest that has a handler of the kind counts, as if each kind were a
/// [`Subscription`]: `on("payment.*", ..)` takes captured payments also where `after_end("payment.captured", ..)` has those that come late.
///
/// There is no order between events while a worker runs, so an event may come before the one that starts its conversation: that is why
/// it waits, and is not dropped. An event name or pattern may have one handler of each kind: with both `starts_on` and `on`, whichever event comes
/// first begins, and a second one is a step like any other. A second start of a conversation without such an `on` is skipped. What is
/// skipped is in the inbox as `skipped`, with the reason.
///
/// A [timeout](SagaStep::timeout) that was cancelled, or set anew, is never handled, also where it was under way already: it is skipped.
///
/// # When a step fails
///
/// A handler that fails or panics leaves nothing behind: state, follow-ups, timeouts, and what it wrote by SQL, are as before. Its event
/// is tried again, or is a dead letter, as for any handler. The saga stays as it was, running, and
/// [`Sagas::stuck`](crate::Sagas::stuck) shows it in time; retrying the dead letter lets it go on.
///
/// # Replays
///
/// [`Outbox::replay`](crate::Outbox::replay) to the saga's consumer asks for its steps once more: a conversation that runs takes each event as a
/// new step, one that has ended as any event after its end. Only timeouts that it waits for no more are skipped. To
/// [catch up](crate::Outbox::catch_up) is safe: that leaves out what the saga has received.
///
/// # The state
///
/// It is JSON, of at most [`Builder::max_payload_bytes`](crate::Builder::max_payload_bytes). What the type could not read back, as `NaN`, is
/// not written: its event is a dead letter, and the step has not happened. A conversation may outlive a release: a state
/// that does not fit the type any more makes its event a dead letter, with the saga, the correlation id and what `serde` says in its
/// error. Give the type `#[serde(default)]`, so that fields may be added, and give new events or a new saga to what changes more. Where it
/// is too late, retry the dead letters with a release that reads both.
///
/// Where two releases have one file open, the older one writes back what its type holds: **fields that only the newer one knows are gone
/// after its next step**, unless its type keeps them, as a field `#[serde(flatten)] others: serde_json::Map<String, Value>` does.
///
/// # How long they are kept
///
/// As long as they run. One that has ended goes when it has not changed for [`retention_ms`](crate::Settings::retention_ms), which is
/// never by default. An event that comes for it after that is one whose conversation has not begun.
///
/// # What it is not
///
/// Handlers are not replayed to find out where a saga is: the row says it. So they may read clocks and random numbers, and a saga may
/// change between releases as any other code.
#[must_use = "a saga does nothing until it is subscribed"]
pub struct Saga<S> {
    name: String,
    /// By event name or pattern, in order of registration.
    steps: Vec<(String, Steps<S>)>,
    /// Those that its handlers read.
    types: Vec<OfType>,
    /// The first event whose handlers are of types of several versions.
    mixed: Option<&'static str>,
    /// The first event that was given two handlers of one kind.
    doubled: Option<String>,
    correlate: Option<Arc<Correlate>>,
    only: Option<Arc<Only>>,
    patience: Duration,
    priority: i32,
    max_attempts: Option<u32>,
    backoff: Option<Backoff>,
}

type Correlate = dyn Fn(&Event) -> Option<String> + Send + Sync;
type Only = dyn Fn(&Event) -> bool + Send + Sync;

/// A type that a handler reads its events as.
#[derive(Clone)]
struct OfType {
    event_name: &'static str,
    former_names: &'static [&'static str],
    reads: Reads,
}

/// What all steps of a saga share.
struct Definition {
    name: String,
    correlate: Option<Arc<Correlate>>,
    only: Option<Arc<Only>>,
    patience: Duration,
    /// Event names and patterns that a running saga takes.
    running: Vec<String>,
}

impl Definition {
    /// Whether a running saga takes events of this name.
    fn takes(&self, event_name: &str) -> bool {
        self.running.iter().any(|pattern| closeness(pattern, event_name).is_some())
    }
}

/// A name's consumer has to fit where consumers are kept.
const NAME_MAX: usize = validate::CONSUMER_MAX - PREFIX.len();
const PREFIX: &str = "saga.";

/// How long an event waits for its conversation to begin.
const PATIENCE: Duration = Duration::from_hours(1);

impl<S: Default + Serialize + DeserializeOwned + 'static> Saga<S> {
    /// `name`: 1 to 250 characters, and stable across releases: rows are found by it. Its consumer is called `saga.` and the name, and
    /// is paused, replayed to and looked at as any other.
    pub fn new(name: impl Into<String>) -> Self {
        Saga {
            name: name.into(),
            steps: Vec::new(),
            types: Vec::new(),
            mixed: None,
            doubled: None,
            correlate: None,
            only: None,
            patience: PATIENCE,
            priority: 0,
            max_attempts: None,
            backoff: None,
        }
    }

    /// Events of this name (or pattern, as of a [`Subscription`]) begin a conversation where there is none yet, with the state's default.
    pub fn starts_on(
        self,
        event_name: impl Into<String>,
        handler: impl Fn(&mut S, &Event, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        self.with(event_name.into(), |steps| steps.start.replace(Step::untyped(handler)).is_none())
    }

    /// Events of this name (or pattern) are steps of a conversation that is running. Its timeouts are such events, too.
    pub fn on(
        self,
        event_name: impl Into<String>,
        handler: impl Fn(&mut S, &Event, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        self.with(event_name.into(), |steps| steps.on.replace(Step::untyped(handler)).is_none())
    }

    /// Events of this name (or pattern) that come when the conversation has ended: a payment that arrives after its order was undone has
    /// to be paid back. The state may be changed, and events published; the saga stays ended, and sets no timeouts.
    pub fn after_end(
        self,
        event_name: impl Into<String>,
        handler: impl Fn(&mut S, &Event, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        self.with(event_name.into(), |steps| steps.after_end.replace(Step::untyped(handler)).is_none())
    }

    fn with(mut self, event_name: String, put: impl FnOnce(&mut Steps<S>) -> bool) -> Self {
        let at = self.steps.iter().position(|(name, _)| *name == event_name).unwrap_or_else(|| {
            self.steps.push((event_name.clone(), Steps::default()));
            self.steps.len() - 1
        });
        if !put(&mut self.steps[at].1) && self.doubled.is_none() {
            self.doubled = Some(event_name);
        }
        self
    }

    /// Which conversation an event belongs to, where its correlation id does not say it. `None` makes it a dead letter. It is not asked
    /// about the saga's own timeouts.
    ///
    /// ```
    /// # use postbox::{Event, Saga};
    /// let saga = Saga::<u32>::new("order")
    ///     .starts_on("order.placed", |_, _, _| Ok(()))
    ///     .correlate(|event: &Event| event.payload()["order"].as_str().map(str::to_owned));
    /// # postbox::Postbox::open_in_memory()?.subscribe_saga(saga)?;
    /// # Ok::<(), postbox::Error>(())
    /// ```
    pub fn correlate(self, id: impl Fn(&Event) -> Option<String> + Send + Sync + 'static) -> Self {
        Saga { correlate: Some(Arc::new(id)), ..self }
    }

    /// Events for which this says false are none of the saga's: they are skipped, and not waited for. For events whose name others share:
    /// a payment that is not an order's would wait for its order, and end as a dead letter. It is not asked about the saga's own timeouts.
    pub fn only(self, concerns: impl Fn(&Event) -> bool + Send + Sync + 'static) -> Self {
        Saga { only: Some(Arc::new(concerns)), ..self }
    }

    /// How long an event waits that comes before its conversation begins: an hour from when it was published, when not given. Meanwhile
    /// it spends no attempt, and says in `last_error` what it waits for. It looks again after half of its age, so that it comes
    /// somewhat later than the start. After that each try is a failed attempt, until it is a dead letter: what was published for later
    /// than that, or has waited that long for a pause, has its attempts alone.
    ///
    /// The event's other consumers receive it meanwhile, but for those that could not when it was tried: one that was paused, had no room
    /// or waited for its turn is asked again when the saga looks again, and not before.
    pub fn wait_for_start(self, patience: Duration) -> Self {
        Saga { patience, ..self }
    }

    /// As [`Subscription::priority`], for all of its events.
    pub fn priority(self, priority: i32) -> Self {
        Saga { priority, ..self }
    }

    /// As [`Subscription::max_attempts`], for all of its events.
    pub fn max_attempts(self, n: u32) -> Self {
        Saga { max_attempts: Some(n), ..self }
    }

    /// As [`Subscription::backoff`], for all of its events.
    pub fn backoff(self, backoff: Backoff) -> Self {
        Saga { backoff: Some(backoff), ..self }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its consumer: `saga.` and its own.
    pub fn consumer_name(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// One subscription for each event name or pattern, for what only a [`Subscription`] can say;
    /// [`subscribe_saga`](crate::Postbox::subscribe_saga) is enough for all else.
    ///
    /// In order, an event that was published before the one that starts its conversation, about the same aggregate, is in that one's way:
    /// it waits for a start that waits behind it, until it is a dead letter. With
    /// [`pass_dead_letters`](Subscription::pass_dead_letters) and a short [`wait_for_start`](Saga::wait_for_start) the conversation begins
    /// then, and the dead letter can be retried; with [`ordered`](Subscription::ordered) alone it waits for a person.
    ///
    /// ```
    /// # use postbox::{Postbox, Saga};
    /// # let postbox = Postbox::open_in_memory()?;
    /// # let saga = Saga::<u32>::new("order").starts_on("order.placed", |_, _, _| Ok(()));
    /// postbox.subscribe_many(saga.subscriptions()?.into_iter().map(|subscription| subscription.pass_dead_letters()))?;
    /// # Ok::<(), postbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for its name, where no event starts it, and where one event is read as types of several versions; [`Error::DuplicateSubscription`] where an event has two handlers of
    /// one kind.
    pub fn subscriptions(self) -> Result<Vec<Subscription>> {
        let consumer = self.consumer_name();
        validate::name("saga", &self.name, NAME_MAX)?;
        if let Some(event_name) = self.doubled.clone() {
            return Err(Error::DuplicateSubscription { event_name, consumer });
        }
        if self.steps.iter().all(|(_, steps)| steps.start.is_none()) {
            let reason = format!("`{}` has no event that starts it: give it one with `starts_on`", self.name);
            return Err(Error::invalid("saga", reason));
        }
        if let Some(event_name) = self.mixed {
            let reason = format!(
                "the handlers of saga `{}` read `{event_name}` as types of several versions: one says up to which it is read",
                self.name
            );
            return Err(Error::invalid("version", reason));
        }
        self.types.iter().try_for_each(|of| of.reads.validate())?;
        let of = Arc::new(self.definition());
        let subscription = |(event_name, steps): &(String, Steps<S>)| {
            let types: Vec<_> = self.types.iter().filter(|of| of.event_name == *event_name).collect();
            let steps = self.with_those_of_patterns(event_name, steps);
            let reads = steps.newest_that_all_read().map(Reads::up_to);
            let runner = Runner { of: Arc::clone(&of), steps };
            let mut subscription = Subscription::transactional(event_name.as_str(), consumer.clone(), runner)
                .priority(self.priority);
            if let Some(n) = self.max_attempts {
                subscription = subscription.max_attempts(n);
            }
            if let Some(backoff) = self.backoff {
                subscription = subscription.backoff(backoff);
            }
            subscription.reads = reads;
            let former: BTreeSet<_> = types.iter().flat_map(|of| of.former_names).collect();
            former.into_iter().fold(subscription, |subscription, name| subscription.alias(*name))
        };
        Ok(self.steps.iter().map(subscription).collect())
    }

    /// Of each kind that there is none of under this name or pattern, the handler of the closest other that matches all of its events, a
    /// pattern or a type that had this name: a box asks one subscription alone.
    fn with_those_of_patterns(&self, event_name: &str, steps: &Steps<S>) -> Steps<S> {
        // As if it were a name: a pattern's `*` is matched by those that reach further.
        let mut wider: Vec<_> = self
            .steps
            .iter()
            .filter(|(pattern, _)| pattern != event_name)
            .filter_map(|(pattern, steps)| Some((self.closeness(pattern, event_name)?, steps)))
            .collect();
        wider.sort_by_key(|(closeness, _)| Reverse(*closeness));
        wider.into_iter().fold(steps.clone(), |steps, (_, wider)| steps.or(wider))
    }

    /// As of a [`Subscription`]: a former name of the type counts less than a name, and more than a pattern.
    fn closeness(&self, pattern: &str, event_name: &str) -> Option<usize> {
        let is_former = |of: &OfType| of.event_name == pattern && of.former_names.contains(&event_name);
        if self.types.iter().any(is_former) { Some(usize::MAX - 1) } else { closeness(pattern, event_name) }
    }

    fn definition(&self) -> Definition {
        Definition {
            name: self.name.clone(),
            correlate: self.correlate.clone(),
            only: self.only.clone(),
            patience: self.patience,
            running: self
                .steps
                .iter()
                .filter(|(_, steps)| steps.on.is_some())
                .map(|(name, _)| name.clone())
                .collect(),
        }
    }
}

/// Both are of the same handlers.
impl<S> Clone for Saga<S> {
    fn clone(&self) -> Self {
        Saga {
            name: self.name.clone(),
            steps: self.steps.clone(),
            types: self.types.clone(),
            mixed: self.mixed,
            doubled: self.doubled.clone(),
            correlate: self.correlate.clone(),
            only: self.only.clone(),
            ..*self
        }
    }
}

impl<S> fmt::Debug for Saga<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events: Vec<&String> = self.steps.iter().map(|(name, _)| name).collect();
        f.debug_struct("Saga").field("name", &self.name).field("events", &events).finish_non_exhaustive()
    }
}
