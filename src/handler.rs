//! What the application writes: handlers, and what they say.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cascade::Announcement;
use crate::error::Result;
use crate::event::{Event, EventId, NewEvent};
use crate::fault::Fault;
use crate::links::EntityRef;
use crate::postbox::Postbox;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::tx::Tx;
use crate::typed::DomainEvent;

/// Receives events **at least once**: it may run again for an event that it has handled, when the process dies before
/// that is recorded. [`Event::id`] is the same at every delivery, for the outside world's own dedupe.
///
/// For effects in the same SQLite file, [`TransactionalHandler`] is exactly once.
///
/// A panic is a failed attempt; its message is kept as the error.
///
/// A closure is a handler too. It has to name its argument types: `|event: &Event, cx: &Context<'_>| ...`.
pub trait Handler: Send + Sync + 'static {
    /// Handles one event.
    ///
    /// # Errors
    /// What the error says is done: [`HandlerError`]. Any `std::error::Error` with `?` means retry.
    fn handle(&self, event: &Event, cx: &Context<'_>) -> HandlerResult;
}

impl<F> Handler for F
where
    F: Fn(&Event, &Context<'_>) -> HandlerResult + Send + Sync + 'static,
{
    fn handle(&self, event: &Event, cx: &Context<'_>) -> HandlerResult {
        self(event, cx)
    }
}

/// Receives events with effects that happen **exactly once**: what it writes through `tx` (SQL, links, follow-up events)
/// commits together with its inbox mark, or not at all.
///
/// It holds the file's write lock while it runs, so it should be short, and effects outside the file do not belong in
/// it. It cannot commit or roll back by itself; when it fails, panics or skips, what it wrote is undone.
/// Where several are due they share a commit, each undone by itself.
///
/// A closure is a handler too. It has to name its argument types: `|event: &Event, tx: &Tx<'_>| ...`.
pub trait TransactionalHandler: Send + Sync + 'static {
    /// Handles one event.
    ///
    /// # Errors
    /// What the error says is done: [`HandlerError`]. Any `std::error::Error` with `?` means retry.
    fn handle(&self, event: &Event, tx: &Tx<'_>) -> HandlerResult;
}

impl<F> TransactionalHandler for F
where
    F: Fn(&Event, &Tx<'_>) -> HandlerResult + Send + Sync + 'static,
{
    fn handle(&self, event: &Event, tx: &Tx<'_>) -> HandlerResult {
        self(event, tx)
    }
}

/// What a handler returns.
pub type HandlerResult = std::result::Result<(), HandlerError>;

/// Why a handler did not handle an event, and what is to be done about it.
///
/// Every `std::error::Error` converts into a retry, so that `?` works; the text is the error's and that of its sources. It is
/// stored in `last_error`, where it is cut to 1023 characters, and never logged. What is no `std::error::Error`
/// (`Box<dyn Error>`, `anyhow::Error`, `String`) is mapped: `.map_err(HandlerError::retry)?`.
///
/// ```
/// # use postbox::{Context, Event, HandlerError, HandlerResult};
/// # use std::time::Duration;
/// fn mail(event: &Event, _: &Context<'_>) -> HandlerResult {
///     let total: f64 = event.payload()["total"].as_f64().ok_or_else(|| HandlerError::dead_letter("no total"))?;
///     if total == 0.0 {
///         return Err(HandlerError::skip("nothing to pay"));
///     }
///     let _count: u32 = event.aggregate_id().trim_start_matches("inv-").parse()?; // retry, on an error
///     Err(HandlerError::retry_after("the server asks to wait", Duration::from_secs(60)))
/// }
/// ```
pub struct HandlerError {
    pub(crate) verdict: Verdict,
    pub(crate) message: String,
    /// SQLite's own error among the causes, where it speaks of a full, failing or damaged disk.
    pub(crate) fault: Option<rusqlite::ffi::Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Retry,
    RetryAfter(Duration),
    DeadLetter,
    Skip,
    PauseConsumer(Duration),
    /// It is too early for the event: again after this time, without an attempt spent.
    Wait(Duration),
}

impl HandlerError {
    /// Try again after the subscription's backoff, while attempts are left.
    pub fn retry(why: impl fmt::Display) -> Self {
        HandlerError::because(Verdict::Retry, why)
    }

    /// Try again after this delay, while attempts are left.
    pub fn retry_after(why: impl fmt::Display, after: Duration) -> Self {
        HandlerError::because(Verdict::RetryAfter(after), why)
    }

    /// Never try this consumer again, whatever attempts are left. The event's other consumers go on; then it is a dead
    /// letter.
    pub fn dead_letter(why: impl fmt::Display) -> Self {
        HandlerError::because(Verdict::DeadLetter, why)
    }

    /// This consumer is done with the event without having handled it: its inbox row says `skipped`.
    pub fn skip(why: impl fmt::Display) -> Self {
        HandlerError::because(Verdict::Skip, why)
    }

    /// Nothing can be done for now, for this event or any other, as while the application is offline: pauses the consumer, as
    /// [`Postbox::pause`] does, for `duration`, which is at least 100 ms: less is taken for that. What the
    /// handler has written through a [`Tx`] is undone. It is no failed attempt: this event and all that come later wait for the
    /// consumer, and their other consumers receive them meanwhile. `why` is the pause's reason, cut to 1023 characters. A pause
    /// that there is and that lasts longer stays as it is.
    ///
    /// Other handlers of the consumer that run at that moment end as they do; none begins.
    ///
    /// ```
    /// # use postbox::{Context, Event, HandlerError, HandlerResult, NewEvent, PauseTarget, Postbox, Subscription};
    /// # use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
    /// # use std::time::Duration;
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # let online = Arc::new(AtomicBool::new(false));
    /// # let is_online = { let online = Arc::clone(&online); move || online.load(Ordering::SeqCst) };
    /// let sync = move |event: &Event, _: &Context<'_>| -> HandlerResult {
    ///     if !is_online() {
    ///         return Err(HandlerError::pause_consumer("offline", Duration::from_mins(10)));
    ///     }
    ///     println!("sent {}", event.id());
    ///     Ok(())
    /// };
    /// postbox.subscribe(Subscription::new("note.*", "sync", sync))?;
    /// let id = postbox.publish(NewEvent::new("note.written", "notes", "Note", "n-1"))?;
    /// assert_eq!(postbox.drain()?, 0);
    /// assert_eq!(postbox.outbox().get(id)?.map(|event| event.attempt_count), Some(0));
    /// # online.store(true, Ordering::SeqCst);
    /// // Once the network is back, without a wait for the ten minutes:
    /// postbox.resume(&PauseTarget::consumer("sync"))?;
    /// assert_eq!(postbox.drain()?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pause_consumer(why: impl fmt::Display, duration: Duration) -> Self {
        HandlerError::because(Verdict::PauseConsumer(duration), why)
    }

    /// Nobody is to blame: the event is tried again after this delay, without an attempt spent. Whoever says so sees to it that it ends.
    pub(crate) fn wait(why: impl fmt::Display, after: Duration) -> Self {
        HandlerError::because(Verdict::Wait(after), why)
    }

    fn because(verdict: Verdict, why: impl fmt::Display) -> Self {
        HandlerError { verdict, message: why.to_string(), fault: None }
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        let mut fault = None;
        while let Some(cause) = source {
            let sqlite = cause.downcast_ref::<rusqlite::ffi::Error>();
            fault = fault.or(sqlite.filter(|error| is_of_the_disk(error.code)).copied());
            let text = cause.to_string();
            if !message.ends_with(&text) {
                message = format!("{message}: {text}");
            }
            source = cause.source();
        }
        HandlerError { verdict: Verdict::Retry, message, fault }
    }
}

/// Not a lock, nor a file that cannot be opened: the box has its own, so that it is another file's.
fn is_of_the_disk(code: rusqlite::ErrorCode) -> bool {
    code != rusqlite::ErrorCode::CannotOpen
        && matches!(Fault::of_code(code), Some(Fault::DiskFull | Fault::Io | Fault::Damaged))
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.verdict, self.message)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What was said when the application's code panicked.
pub(crate) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    let message =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let message = match message {
        Some(message) => format!("panicked: {message}"),
        None => "panicked with something that is no text".to_owned(),
    };
    // What was thrown is the application's, and may panic in its own drop.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
    message
}

/// Why a running handler's work may be in vain.
#[derive(Debug, Default)]
pub(crate) struct Cancellation {
    /// The worker is stopping; shared by all of its handlers. Never set for handlers run by hand.
    pub(crate) stopping: Arc<AtomicBool>,
    /// This event's lease was lost.
    pub(crate) lost: AtomicBool,
}

/// What tells a handler to stop early.
#[derive(Clone, Copy)]
pub(crate) struct Signal<'a> {
    cancellation: &'a Cancellation,
    /// When its time is over, if ever.
    until: Option<Instant>,
}

impl<'a> Signal<'a> {
    pub(crate) fn of(cancellation: &'a Cancellation, until: Option<Instant>) -> Self {
        Signal { cancellation, until }
    }

    pub(crate) fn is_given(self) -> bool {
        self.cancellation.stopping.load(Ordering::Relaxed)
            || self.cancellation.lost.load(Ordering::Relaxed)
            || self.until.is_some_and(|until| until <= Instant::now())
    }
}

/// What a plain handler can do, and know, beside its event.
pub struct Context<'a> {
    pub(crate) postbox: &'a Postbox,
    pub(crate) event: &'a Event,
    pub(crate) consumer_name: &'a str,
    pub(crate) signal: Signal<'a>,
}

impl Context<'_> {
    /// The box that delivers the event.
    pub fn postbox(&self) -> &Postbox {
        self.postbox
    }

    /// Publishes a follow-up: it carries this event's correlation id and trace on (unless it has its own) and names this
    /// event as its cause. It is durable when this returns, whether the handler then succeeds or not; give it an
    /// idempotency key made from [`Event::id`] where a second delivery must not publish it again.
    ///
    /// # Errors
    /// As [`Postbox::publish`].
    pub fn publish(&self, event: NewEvent) -> Result<EventId> {
        self.postbox.publish_caused_by(event, Some(self.event))
    }

    /// As [`Postbox::announce_deleted`]; its events are follow-ups, as of [`publish`](Context::publish). It is durable when this
    /// returns. A second delivery publishes nothing twice: the links are gone.
    ///
    /// # Errors
    /// As [`Postbox::announce_deleted`].
    pub fn announce_deleted(&self, entity: &EntityRef) -> Result<Announcement> {
        self.postbox.announce_deleted_caused_by(entity, Some(self.event))
    }

    /// The same for an event that is a type.
    ///
    /// # Errors
    /// As [`Postbox::publish_typed`].
    pub fn publish_typed<E: DomainEvent>(&self, event: &E) -> Result<EventId> {
        self.publish(NewEvent::typed(event)?)
    }

    /// The event, as every handler is given it: for a typed one its id, attempt, conversation, and the name and version with which it
    /// was published.
    pub fn event(&self) -> &Event {
        self.event
    }

    /// The consumer that this subscription was made for.
    pub fn consumer_name(&self) -> &str {
        self.consumer_name
    }

    /// Whether to stop early: the worker is stopping, the handler's [time limit](crate::Subscription::time_limit) has passed, or
    /// the event's lease is gone and the outcome will be refused. A long handler should look from time to time.
    pub fn is_cancelled(&self) -> bool {
        self.signal.is_given()
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("event", &self.event)
            .field("consumer_name", &self.consumer_name)
            .finish_non_exhaustive()
    }
}
