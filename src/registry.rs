//! Who subscribes to what.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::breaker::Breaker;
use crate::error::{Error, Result};
use crate::handler::{Handler, TransactionalHandler};
use crate::limiter::Limiter;
use crate::settings::Settings;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::typed::Reads;
use crate::validate;

/// A named consumer's interest in an event name or pattern.
///
/// The name is exact, or ends in a wildcard: `invoice.*` matches every name below `invoice.`, at every depth, and `*`
/// matches every name. A consumer that matches an event more than once runs once: the exact name wins, then an
/// [alias](Subscription::alias), then the longest pattern.
///
/// Names have 1 to 255 characters; [`Postbox::subscribe`](crate::Postbox::subscribe) checks them.
#[must_use = "a subscription does nothing until it is subscribed"]
pub struct Subscription {
    pub(crate) event_name: String,
    pub(crate) consumer_name: String,
    pub(crate) handler: Kind,
    pub(crate) priority: i32,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) order: Option<Order>,
    pub(crate) limiter: Option<Limiter>,
    pub(crate) time_limit: Option<Duration>,
    aliases: Vec<String>,
    /// Of a typed one.
    pub(crate) reads: Option<Reads>,
}

/// What happens behind an event that an ordered consumer cannot process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing until it is processed, or somebody has decided about it.
    Block,
    /// Once it is a dead letter, it is passed over.
    PassDeadLetters,
}

/// The shortest time limit of a handler.
const TIME_LIMIT_LEAST: Duration = Duration::from_millis(1);

pub(crate) enum Kind {
    Plain(Box<dyn Handler>),
    Transactional(Box<dyn TransactionalHandler>),
}

impl Subscription {
    /// A handler with effects outside the file: at least once. `consumer_name`: 1 to 255 characters, and stable across
    /// releases, since the inbox knows the consumer by it.
    pub fn new(
        event_name: impl Into<String>,
        consumer_name: impl Into<String>,
        handler: impl Handler,
    ) -> Self {
        Self::of(event_name.into(), consumer_name.into(), Kind::Plain(Box::new(handler)))
    }

    /// A handler with effects in the same file: exactly once.
    pub fn transactional(
        event_name: impl Into<String>,
        consumer_name: impl Into<String>,
        handler: impl TransactionalHandler,
    ) -> Self {
        Self::of(event_name.into(), consumer_name.into(), Kind::Transactional(Box::new(handler)))
    }

    fn of(event_name: String, consumer_name: String, handler: Kind) -> Self {
        Subscription {
            event_name,
            consumer_name,
            handler,
            priority: 0,
            max_attempts: None,
            backoff: None,
            breaker: None,
            order: None,
            limiter: None,
            time_limit: None,
            aliases: Vec::new(),
            reads: None,
        }
    }

    /// Events of this name reach it as well: one under which they were published before. Not a pattern. It may be called again, for
    /// more.
    ///
    /// ```
    /// # use postbox::{Context, Event, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// postbox.publish(NewEvent::new("bill.created", "finance", "Invoice", "inv-1"))?; // by the release before
    ///
    /// let handler = |event: &Event, _: &Context<'_>| Ok(println!("{}", event.name()));
    /// postbox.subscribe(Subscription::new("invoice.created", "operations", handler).alias("bill.created"))?;
    /// assert_eq!(postbox.drain()?, 1); // bill.created
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`Event::name`](crate::Event::name) is the name under which an event was published, and so are the names that are paused, looked
    /// for, and retained.
    pub fn alias(mut self, former_name: impl Into<String>) -> Self {
        self.aliases.push(former_name.into());
        self
    }

    /// An event's consumers run one after the other, higher first, ties in order of registration. 0 when not given.
    pub fn priority(self, priority: i32) -> Self {
        Subscription { priority, ..self }
    }

    /// How many failed attempts of this consumer end its tries, at least 1; the event is a dead letter once none of its
    /// consumers has tries left. The settings' `max_attempts` when not given.
    pub fn max_attempts(self, n: u32) -> Self {
        Subscription { max_attempts: Some(n), ..self }
    }

    /// How long the event waits after this consumer has failed. Exponential from the settings' `retry_base_delay_ms` when not
    /// given.
    pub fn backoff(self, backoff: Backoff) -> Self {
        Subscription { backoff: Some(backoff), ..self }
    }

    /// After so many failures in a row of this subscription's handler, in this box, its consumer is paused for `pause`: see
    /// [`Postbox::pause`](crate::Postbox::pause). At least 1, and at least 100 ms. When the pause is over, or somebody resumes the
    /// consumer, one failure more pauses it again; a success begins the count anew. No breaker when not given.
    ///
    /// A failure is a failed attempt: a panic, or any error but [`skip`](crate::HandlerError::skip), which counts as a success,
    /// and [`pause_consumer`](crate::HandlerError::pause_consumer), which counts as nothing. It costs its event an attempt as
    /// ever; while the consumer is paused no event is spent. The pause's reason is `circuit breaker: n failures in a row: `, and
    /// the last error. The count is kept in memory: a restart begins at none.
    pub fn circuit_breaker(self, failures: u32, pause: Duration) -> Self {
        Subscription { breaker: Some(Breaker::new(failures, pause)), ..self }
    }

    /// Events of one aggregate reach this consumer strictly in the order in which they were published, one at a time; events of
    /// other aggregates, and other consumers, go on beside them. An aggregate is its source module, its type and its id.
    ///
    /// Behind an event that fails, this consumer receives nothing of that aggregate until the event has been processed or
    /// skipped: when it becomes a dead letter, until somebody has tried it again with success
    /// ([`Outbox::retry`](crate::Outbox::retry)) or discarded it. [`Outbox::blocked`](crate::Outbox::blocked) lists such
    /// aggregates; [`pass_dead_letters`](Subscription::pass_dead_letters) is the other choice.
    ///
    /// ```
    /// # use postbox::{Context, Event, HandlerError, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// let send = |event: &Event, _: &Context<'_>| match event.name() {
    ///     "order.placed" => Err(HandlerError::dead_letter("no such customer")),
    ///     _ => Ok(()),
    /// };
    /// postbox.subscribe(Subscription::new("order.*", "shop.sync", send).ordered())?;
    /// let placed = postbox.publish(NewEvent::new("order.placed", "sales", "Order", "o-1"))?;
    /// let shipped = postbox.publish(NewEvent::new("order.shipped", "sales", "Order", "o-1"))?;
    /// assert_eq!(postbox.drain()?, 0); // the second waits behind the first, which is a dead letter
    /// assert_eq!(postbox.outbox().blocked(10)?[0].event.id, placed);
    ///
    /// postbox.outbox().discard(placed, "the customer is gone")?;
    /// assert_eq!(postbox.drain()?, 1);
    /// # let _ = shipped;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// - Events that wait for their turn burn no attempt, and are not claimed again before it. What their other consumers do is
    ///   not held up.
    /// - An event that was published with a delay takes its place when its time has come: it holds nothing up before. The same is
    ///   true of what is retried or replayed by a person.
    /// - While an event waits for the backoff of another of its consumers, it waits for this one's turn as well, and so do those
    ///   behind it.
    /// - What is to be looked through grows with the unfinished events of an aggregate that come before: ten thousand
    ///   that wait for another consumer make this one slow for that aggregate.
    /// - All subscriptions of the consumer whose events are to be in order with each other have to say so. Every process that
    ///   processes events of the file has to have the same subscriptions.
    /// - One at a time holds as long as leases do: a handler that goes on after its lease was lost may meet its own event again,
    ///   as any other handler.
    /// - The first ordered subscription in a file makes an index there, which takes a moment where there are a million events.
    pub fn ordered(self) -> Self {
        Subscription { order: self.order.or(Some(Order::Block)), ..self }
    }

    /// As [`ordered`](Subscription::ordered), but an event that this consumer has failed for good does not hold up the others of
    /// its aggregate: from then on they pass it. When somebody retries it, it is delivered after those that have passed.
    pub fn pass_dead_letters(self) -> Self {
        Subscription { order: Some(Order::PassDeadLetters), ..self }
    }

    /// At most so many of this subscription's handlers run at once, in this box; at least 1. As many as the box has
    /// [handler threads](crate::Builder::handler_threads) when not given.
    ///
    /// Events for which there is no room wait, and are called in the order in which they came, without an attempt spent and without being
    /// claimed over and over; their other consumers go on. An event has its room from when it is claimed, also while other consumers of
    /// it run before this one; and where one of them has to be tried again, it waits for that as well. Transactional handlers run one at a time in any case, since they hold the file's write
    /// lock, and this does not hold them up further.
    ///
    /// ```
    /// # use postbox::{Context, Event, Subscription};
    /// # use std::time::Duration;
    /// # fn send(_: &Event) -> postbox::HandlerResult { Ok(()) }
    /// // A server that takes two requests at once, and a hundred a minute.
    /// let sync = Subscription::new("order.*", "shop.sync", |event: &Event, _: &Context<'_>| send(event))
    ///     .max_concurrency(2)
    ///     .rate_limit(100, Duration::from_secs(60));
    /// # let postbox = postbox::Postbox::open_in_memory()?;
    /// postbox.subscribe(sync)?;
    /// # Ok::<(), postbox::Error>(())
    /// ```
    pub fn max_concurrency(self, n: u32) -> Self {
        Subscription { limiter: Some(self.limiter.unwrap_or_default().with_max_concurrency(n)), ..self }
    }

    /// At most so many calls of this subscription's handler begin in any time of this length, in this box: `n` from 1 to 100,000,
    /// `per` from 1 ms to 366 days. A repeated attempt counts like any other. No limit when not given.
    ///
    /// Events for which there is no room wait as for [`max_concurrency`](Subscription::max_concurrency); a worker goes on as soon as
    /// there is. `drain` and `process_batch` leave them. Time is the box's clock. The count is kept in memory: a restart begins at none,
    /// and each process that opens the file has its own.
    pub fn rate_limit(self, n: u32, per: Duration) -> Self {
        Subscription { limiter: Some(self.limiter.unwrap_or_default().with_rate(n, per)), ..self }
    }

    /// How long one call of the handler may take, at least 1 ms. No limit when not given. A jump of the wall clock changes nothing
    /// about it.
    ///
    /// Nobody can stop a thread: once the limit has passed, [`Context::is_cancelled`](crate::Context::is_cancelled) is true, and the
    /// handler should return. What it returns counts as ever. If it goes on, a worker renews the event's lease no more, and when
    /// that has run out, which is at the latest one `processing_lease_ms` after the limit (the worker notices within a second),
    /// the attempt has failed: `ran longer than its time limit of 5 s`. The event then waits for its backoff and goes on by another
    /// thread, or is a dead letter where the attempts are used up, as after any failure. Its other consumers keep their marks, and
    /// those that had not had their turn have it with the next attempt: none of theirs is spent.
    ///
    /// What such a handler returns in the end is refused. What it does outside the file happens nevertheless, so that two calls for
    /// one event may be under way at once. One that never returns keeps its thread, one of
    /// [`handler_threads`](crate::Builder::handler_threads), until the process ends; with the last of them no handler runs any more.
    /// It keeps its room under [`max_concurrency`](Self::max_concurrency), too, since it runs.
    /// [`Worker::shutdown`](crate::Worker::shutdown) waits for it as long as its own limit allows.
    ///
    /// By hand ([`drain`](crate::Postbox::drain), [`process_batch`](crate::Postbox::process_batch)) the handler is told that it is
    /// late, and that is all: it has the caller's thread. The same goes for a [transactional](Self::transactional) one, which asks
    /// [`Tx::is_cancelled`](crate::Tx::is_cancelled): it holds the file's write lock.
    ///
    /// ```
    /// use std::time::Duration;
    /// use postbox::{Context, Event, HandlerError, Postbox, Subscription};
    ///
    /// let postbox = Postbox::open_in_memory()?;
    /// let upload = |event: &Event, cx: &Context<'_>| {
    ///     for _part in 0..event.payload()["parts"].as_u64().unwrap_or(0) {
    ///         if cx.is_cancelled() {
    ///             return Err(HandlerError::retry("no time for all parts"));
    ///         }
    ///         // ... one part
    ///     }
    ///     Ok(())
    /// };
    /// postbox.subscribe(Subscription::new("scan.added", "uploads", upload).time_limit(Duration::from_secs(60)))?;
    /// # Ok::<(), postbox::Error>(())
    /// ```
    pub fn time_limit(self, limit: Duration) -> Self {
        Subscription { time_limit: Some(limit), ..self }
    }

    /// When the time of a call that has begun then is over, if ever.
    pub(crate) fn until(&self, begun: Instant) -> Option<Instant> {
        self.time_limit.and_then(|limit| begun.checked_add(limit))
    }

    fn validate(&self) -> Result<()> {
        validate::event_pattern(&self.event_name)?;
        validate::name("consumer_name", &self.consumer_name, validate::CONSUMER_MAX)?;
        if self.max_attempts == Some(0) {
            return Err(Error::invalid("max_attempts", "must be at least 1"));
        }
        for (place, alias) in self.aliases.iter().enumerate() {
            validate::name("alias", alias, validate::EVENT_NAME_MAX)?;
            if alias.contains('*') {
                return Err(Error::invalid(
                    "alias",
                    format!("`{alias}` is a pattern, and aliases are names"),
                ));
            }
            if *alias == self.event_name || self.aliases[..place].contains(alias) {
                return Err(Error::invalid("alias", format!("`{alias}` is the subscription's name already")));
            }
        }
        self.reads.as_ref().map_or(Ok(()), Reads::validate)?;
        self.breaker.as_ref().map_or(Ok(()), Breaker::validate)?;
        self.limiter.as_ref().map_or(Ok(()), Limiter::validate)?;
        if self.time_limit.is_some_and(|limit| limit < TIME_LIMIT_LEAST) {
            return Err(Error::invalid("time_limit", "must be at least 1 ms"));
        }
        self.backoff.map_or(Ok(()), |backoff| backoff.validate())
    }

    /// How closely the name is matched, if it is: the exact name before an alias, that before any pattern, a longer pattern before a
    /// shorter.
    pub(crate) fn closeness(&self, event_name: &str) -> Option<usize> {
        if self.event_name == event_name {
            return Some(usize::MAX);
        }
        if self.aliases.iter().any(|alias| alias == event_name) {
            return Some(usize::MAX - 1);
        }
        closeness(&self.event_name, event_name)
    }

    /// The name or pattern of both, or an alias of both. What is one's name and the other's alias goes to the first.
    fn shared_name(&self, other: &Subscription) -> Option<&String> {
        if self.event_name == other.event_name {
            return Some(&self.event_name);
        }
        self.aliases.iter().find(|alias| other.aliases.contains(alias))
    }

    /// Whether events of this version are for a later release of the application: this one does not know what they say.
    pub(crate) fn is_too_old_for(&self, version: u32) -> bool {
        self.reads.as_ref().is_some_and(|reads| reads.version < version)
    }

    /// How many failed attempts end its tries.
    pub(crate) fn attempts_in(&self, settings: &Settings) -> u32 {
        self.max_attempts.unwrap_or(settings.max_attempts)
    }

    pub(crate) fn is_transactional(&self) -> bool {
        matches!(self.handler, Kind::Transactional(_))
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("event_name", &self.event_name)
            .field("consumer_name", &self.consumer_name)
            .field("transactional", &self.is_transactional())
            .field("priority", &self.priority)
            .field("max_attempts", &self.max_attempts)
            .field("backoff", &self.backoff)
            .field("breaker", &self.breaker)
            .field("order", &self.order)
            .field("limiter", &self.limiter)
            .field("time_limit", &self.time_limit)
            .field("aliases", &self.aliases)
            .field("reads", &self.reads)
            .finish_non_exhaustive()
    }
}

/// An event's consumers, in the order in which they run.
pub(crate) type Consumers = Arc<[Arc<Subscription>]>;

/// Names whose consumers are remembered; dynamic names must not fill the memory.
const REMEMBERED_MAX: usize = 1_024;

/// The subscriptions of one box. They live in memory: an application subscribes anew at every start.
pub struct Registry {
    state: RwLock<Vec<Arc<Subscription>>>,
    remembered: Mutex<HashMap<String, Consumers>>,
    generation: AtomicU64,
    /// Whether there is, or was, an ordered consumer.
    has_ordered: AtomicBool,
    /// The same of one with limits.
    has_limits: AtomicBool,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Registry {
            state: RwLock::new(Vec::new()),
            remembered: Mutex::new(HashMap::new()),
            generation: AtomicU64::new(0),
            has_ordered: AtomicBool::new(false),
            has_limits: AtomicBool::new(false),
        }
    }

    /// All or none.
    pub(crate) fn subscribe(&self, new: Vec<Subscription>) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        check(&state, &new)?;
        if new.iter().any(|subscription| subscription.order.is_some()) {
            self.has_ordered.store(true, Ordering::Release);
        }
        if new.iter().any(|subscription| subscription.limiter.is_some()) {
            self.has_limits.store(true, Ordering::Release);
        }
        state.extend(new.into_iter().map(Arc::new));
        self.changed();
        Ok(())
    }

    /// Refuses what [`subscribe`](Registry::subscribe) would refuse.
    pub(crate) fn check(&self, new: &[Subscription]) -> Result<()> {
        check(&self.state.read().unwrap_or_else(PoisonError::into_inner), new)
    }

    /// Whether anybody subscribes to events of this name, exactly or by a pattern.
    pub fn has_handlers(&self, event_name: &str) -> bool {
        !self.consumers_of(event_name).is_empty()
    }

    /// Whether anybody subscribes to events of this name who may receive this one. `deliver_to`: as its row says it. What is no
    /// such text is the planner's to deal with.
    pub(crate) fn is_wanted(&self, event_name: &str, deliver_to: Option<&str>) -> bool {
        let consumers = self.consumers_of(event_name);
        let Some(deliver_to) = deliver_to else { return !consumers.is_empty() };
        let Ok(names) = serde_json::from_str::<Vec<String>>(deliver_to) else { return true };
        consumers.iter().any(|consumer| names.contains(&consumer.consumer_name))
    }

    /// The names and patterns that are subscribed to, each once, in order of registration. Without aliases.
    pub fn event_names(&self) -> Vec<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = Vec::new();
        for subscription in state.iter() {
            if !names.contains(&subscription.event_name) {
                names.push(subscription.event_name.clone());
            }
        }
        names
    }

    /// The name or pattern of each subscription, with its aliases.
    pub(crate) fn names_and_aliases(&self) -> Vec<(String, Vec<String>)> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.iter().map(|of| (of.event_name.clone(), of.aliases.clone())).collect()
    }

    /// How many subscriptions there are.
    pub fn handler_count(&self) -> usize {
        self.state.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The consumers that an event of this name would reach, in the order in which they run.
    pub fn consumers(&self, event_name: &str) -> Vec<String> {
        self.consumers_of(event_name).iter().map(|consumer| consumer.consumer_name.clone()).collect()
    }

    /// Ends the subscriptions of all consumers whose name begins with `prefix`, and says how many. Deliveries that are
    /// under way are finished. An event that waits for a retry by a removed consumer is processed when no other is left.
    pub fn remove_by_consumer_prefix(&self, prefix: &str) -> usize {
        self.remove(|subscription| subscription.consumer_name.starts_with(prefix))
    }

    /// Ends all subscriptions.
    pub fn clear(&self) {
        self.remove(|_| true);
    }

    fn remove(&self, which: impl Fn(&Subscription) -> bool) -> usize {
        let (removed, forgotten) = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let (removed, kept): (Vec<_>, Vec<_>) =
                state.drain(..).partition(|subscription| which(subscription));
            *state = kept;
            (removed, self.changed())
        };
        // The application's destructors run here, outside the locks.
        drop(forgotten);
        removed.len()
    }

    /// Those that have a subscription, each once, by name.
    pub(crate) fn consumer_names(&self) -> BTreeSet<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.iter().map(|subscription| subscription.consumer_name.clone()).collect()
    }

    /// With the write lock held.
    fn changed(&self) -> HashMap<String, Consumers> {
        self.generation.fetch_add(1, Ordering::Release);
        std::mem::take(&mut *self.remembered.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes with every subscription and removal.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn has_ordered(&self) -> bool {
        self.has_ordered.load(Ordering::Acquire)
    }

    pub(crate) fn has_limits(&self) -> bool {
        self.has_limits.load(Ordering::Acquire)
    }

    /// Those with limits.
    pub(crate) fn limited(&self) -> Vec<Arc<Subscription>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.iter().filter(|subscription| subscription.limiter.is_some()).cloned().collect()
    }

    pub(crate) fn has_plain_handlers(&self) -> bool {
        self.state.read().unwrap_or_else(PoisonError::into_inner).iter().any(|s| !s.is_transactional())
    }

    pub(crate) fn consumers_of(&self, event_name: &str) -> Consumers {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        // Within the read lock, so that nothing outdated is remembered after a change.
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(consumers) = remembered.get(event_name) {
            return Arc::clone(consumers);
        }
        let consumers = find(&state, event_name);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(event_name.to_owned(), Arc::clone(&consumers));
        consumers
    }
}

fn check(present: &[Arc<Subscription>], new: &[Subscription]) -> Result<()> {
    for subscription in new {
        subscription.validate()?;
    }
    for (index, one) in new.iter().enumerate() {
        let others = present.iter().map(|other| &**other).chain(&new[..index]);
        for other in others.filter(|other| other.consumer_name == one.consumer_name) {
            if let Some(event_name) = one.shared_name(other) {
                return Err(Error::DuplicateSubscription {
                    event_name: event_name.clone(),
                    consumer: one.consumer_name.clone(),
                });
            }
        }
    }
    Ok(())
}

/// How closely the pattern matches the name, if it does, without aliases: the exact name before any pattern, a longer pattern before a shorter.
pub(crate) fn closeness(pattern: &str, event_name: &str) -> Option<usize> {
    match pattern.strip_suffix('*') {
        None => (pattern == event_name).then_some(usize::MAX),
        Some("") => Some(0),
        Some(prefix) => {
            (event_name.len() > prefix.len() && event_name.starts_with(prefix)).then_some(prefix.len())
        }
    }
}

fn find(subscriptions: &[Arc<Subscription>], event_name: &str) -> Consumers {
    let mut found: Vec<(usize, &Arc<Subscription>)> = Vec::new();
    for subscription in subscriptions {
        let Some(closeness) = subscription.closeness(event_name) else { continue };
        match found.iter_mut().find(|(_, other)| other.consumer_name == subscription.consumer_name) {
            Some(other) if other.0 < closeness => *other = (closeness, subscription),
            Some(_) => {}
            None => found.push((closeness, subscription)),
        }
    }
    let order = |one: &Arc<Subscription>| subscriptions.iter().position(|other| Arc::ptr_eq(one, other));
    found.sort_by_key(|(_, subscription)| (std::cmp::Reverse(subscription.priority), order(subscription)));
    found.into_iter().map(|(_, subscription)| Arc::clone(subscription)).collect()
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(state.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::handler::Context;

    fn to(event: &str, consumer: &str) -> Subscription {
        Subscription::new(event, consumer, |_: &Event, _: &Context<'_>| Ok(()))
    }

    #[test]
    fn no_more_names_are_remembered_than_a_thousand_and_some() {
        let registry = Registry::new();
        registry.subscribe(vec![to("*", "c")]).unwrap();
        for n in 0..5_000 {
            assert_eq!(registry.consumers_of(&format!("name.{n}")).len(), 1);
            assert!(registry.remembered.lock().unwrap().len() <= REMEMBERED_MAX);
        }
    }

    #[test]
    fn higher_priority_first_and_ties_in_order_of_registration() {
        let registry = Registry::new();
        registry
            .subscribe(vec![
                to("a", "one"),
                to("a", "two").priority(5),
                to("*", "three"),
                to("a", "four").priority(5),
            ])
            .unwrap();
        assert_eq!(registry.consumers("a"), ["two", "four", "one", "three"]);
        assert_eq!(registry.consumers("b"), ["three"]);
    }

    #[test]
    fn a_consumer_that_matches_twice_runs_once_by_the_closest_match() {
        let registry = Registry::new();
        registry
            .subscribe(vec![
                to("invoice.*", "c").priority(1),
                to("invoice.line.*", "c").priority(2),
                to("invoice.line.added", "c").priority(3),
                to("*", "c").priority(4),
            ])
            .unwrap();
        let priority =
            |name: &str| registry.consumers_of(name).iter().map(|s| s.priority).collect::<Vec<_>>();
        assert_eq!(priority("invoice.line.added"), [3]);
        assert_eq!(priority("invoice.line.removed"), [2]);
        assert_eq!(priority("invoice.created"), [1]);
        assert_eq!(priority("invoice"), [4]);
        assert_eq!(priority("invoice."), [4]);
    }

    #[test]
    fn a_duplicate_refuses_the_whole_list() {
        let registry = Registry::new();
        let twice = registry.subscribe(vec![to("a", "c"), to("b", "c"), to("a", "c")]);
        assert!(matches!(twice, Err(Error::DuplicateSubscription { .. })));
        assert_eq!(registry.handler_count(), 0);
    }

    #[test]
    fn removal_is_by_prefix_and_answers_at_once() {
        let registry = Registry::new();
        registry.subscribe(vec![to("a", "ops.one"), to("a", "ops.two"), to("a", "fin.one")]).unwrap();
        assert_eq!(registry.consumers("a").len(), 3);
        assert_eq!(registry.remove_by_consumer_prefix("ops."), 2);
        assert_eq!(registry.consumers("a"), ["fin.one"]);
        assert_eq!(registry.event_names(), ["a"]);
        registry.clear();
        assert!(!registry.has_handlers("a"));
    }
}
