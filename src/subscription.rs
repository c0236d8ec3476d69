//! What a consumer asks for when it subscribes.

use std::fmt;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::breaker::Breaker;
use crate::error::{Error, Result};
use crate::handler::{Handler, TransactionalHandler};
use crate::limiter::Limiter;
use crate::settings::Settings;
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
    pub(crate) aliases: Vec<String>,
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

    pub(crate) fn validate(&self) -> Result<()> {
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
    pub(crate) fn shared_name(&self, other: &Subscription) -> Option<&String> {
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
