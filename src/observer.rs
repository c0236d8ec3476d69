//! What an application is told while a box works: for progress, counts and alarms.

use std::fmt;
use std::time::Duration;

use crate::event::EventId;
use crate::outbox::OutboxStatus;

/// Is told what a box does, as it does it: [`Builder::observer`](crate::Builder::observer).
///
/// Every method does nothing unless it is written. Each is called on the thread that did what it tells of, and that thread waits
/// for it: an observer counts, or puts something into a channel, and leaves the rest to others. Several threads may call at
/// once. What is told is of this box alone, not of other processes or boxes on the same file.
///
/// An observer may look ([`stats`](crate::Postbox::stats), [`Outbox`](crate::Outbox), ...). What writes, processes, stops a
/// worker or closes the box returns [`Error::Reentrant`](crate::Error::Reentrant) inside an observer of the same box, also on a
/// box in memory: that is for another thread. Nor may it write through a connection of the application's own, for which
/// [`started`](Observer::started) may hold the write lock. An observer that holds a clone of the box keeps it in memory.
///
/// A panic of an observer is caught and changes nothing; the first of each box is logged. Nothing is told of what a crash or an
/// error leaves open, such as [`Error::CommitUnknown`](crate::Error::CommitUnknown): observers show, and the file counts.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// # use postbox::{Context, Event, NewEvent, Postbox, Subscription};
/// use postbox::{Finished, Observer};
///
/// struct Progress(Arc<AtomicUsize>);
///
/// impl Observer for Progress {
///     fn finished(&self, _: &Finished<'_>) {
///         self.0.fetch_add(1, Ordering::Relaxed);
///     }
/// }
///
/// # fn main() -> postbox::Result<()> {
/// let done = Arc::new(AtomicUsize::new(0));
/// let postbox = Postbox::builder().observer(Progress(Arc::clone(&done))).open_in_memory()?;
/// postbox.subscribe(Subscription::new("ping", "pong", |_: &Event, _: &Context<'_>| Ok(())))?;
/// postbox.publish(NewEvent::new("ping", "test", "Ping", "1"))?;
/// postbox.drain()?;
/// assert_eq!(done.load(Ordering::Relaxed), 1);
/// # Ok(())
/// # }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// An event is in the file: after the commit, on the thread that published it, before its call returns. Other threads may tell
    /// of its delivery before. What is published inside a transaction is told after that transaction's commit, in order, and only
    /// what is then in the file.
    ///
    /// Not told: an event that its idempotency key had published before, and what is published with
    /// [`publish_in`](crate::Postbox::publish_in) on a connection of the application's own, or by other programs; nor what
    /// [`import`](crate::Postbox::import) takes over.
    fn published(&self, _published: &Published<'_>) {}

    /// A handler is about to run. For a transactional handler that is inside its transaction, with the write lock held; when the
    /// transaction that it shares with others has to begin again, it runs again, and so it is told.
    ///
    /// It is followed by [`finished`](Observer::finished), by [`failed`](Observer::failed), or by neither: the handler paused its
    /// consumer, a fault of the file kept it from ending, or its event was lost to somebody else meanwhile.
    fn started(&self, _started: &Started<'_>) {}

    /// A consumer is done with an event. For a plain handler: it has returned, and what it said is recorded a moment later (where
    /// that fails, it is delivered again). For a transactional one: its work is committed.
    fn finished(&self, _finished: &Finished<'_>) {}

    /// A consumer's attempt has failed; its event waits, or ends. When it is told is as for [`finished`](Observer::finished); the work of
    /// a transactional handler is rolled back, and its failure committed. Attempts whose process died are not told: the
    /// event's [history](crate::Outbox::history) has them. One that was ended by a [time limit](crate::Subscription::time_limit) is
    /// told by the worker's thread while the handler still runs, and nothing more is told of that when it returns.
    fn failed(&self, _failed: &Failed<'_>) {}

    /// An event is a dead letter, or failed for good where dead letters are off: after the commit. Rows that cannot be delivered to anybody are
    /// among them, but for those whose id is no UUID.
    fn dead_lettered(&self, _dead_lettered: &DeadLettered<'_>) {}

    /// Nothing is due any more: told by a [`drain`](crate::Postbox::drain) that had something to do, and by a worker when it has
    /// nothing in hand, after it had. What waits for its delay or its backoff is not due.
    fn drained(&self, _drained: &Drained) {}
}

/// An event is in the file: [`Observer::published`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Published<'a> {
    /// Its id.
    pub event_id: EventId,
    /// Its name.
    pub event_name: &'a str,
}

/// A handler is about to run: [`Observer::started`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Started<'a> {
    /// The event's id.
    pub event_id: EventId,
    /// The event's name.
    pub event_name: &'a str,
    /// Whose handler it is.
    pub consumer_name: &'a str,
    /// As [`Event::attempt`](crate::Event::attempt).
    pub attempt: u32,
}

/// A consumer is done with an event: [`Observer::finished`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Finished<'a> {
    /// The event's id.
    pub event_id: EventId,
    /// The event's name.
    pub event_name: &'a str,
    /// Whose handler it was.
    pub consumer_name: &'a str,
    /// As [`Event::attempt`](crate::Event::attempt).
    pub attempt: u32,
    /// How long the handler ran.
    pub duration: Duration,
    /// It said [`HandlerError::skip`](crate::HandlerError::skip).
    pub skipped: bool,
}

/// A consumer's attempt has failed: [`Observer::failed`]. `Debug` leaves the error out.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Failed<'a> {
    /// The event's id.
    pub event_id: EventId,
    /// The event's name.
    pub event_name: &'a str,
    /// Whose handler it was.
    pub consumer_name: &'a str,
    /// As [`Event::attempt`](crate::Event::attempt).
    pub attempt: u32,
    /// How long the handler ran. `None` where its work could not be committed.
    pub duration: Option<Duration>,
    /// This consumer does not try again.
    pub gave_up: bool,
    pub(crate) error: &'a str,
}

impl Failed<'_> {
    /// What the handler said, as the inbox row has it: at most 1023 characters. It may quote what is nobody else's business.
    pub fn error(&self) -> &str {
        self.error
    }
}

impl fmt::Debug for Failed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failed")
            .field("event_id", &self.event_id)
            .field("event_name", &self.event_name)
            .field("consumer_name", &self.consumer_name)
            .field("attempt", &self.attempt)
            .field("duration", &self.duration)
            .field("gave_up", &self.gave_up)
            .finish_non_exhaustive()
    }
}

/// An event has ended without success: [`Observer::dead_lettered`]. `Debug` leaves the error out.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct DeadLettered<'a> {
    /// Its id.
    pub event_id: EventId,
    /// Its name.
    pub event_name: &'a str,
    /// The attempt that was its last, from 1.
    pub attempt: u32,
    /// `DeadLetter`, or `Failed` where dead letters are off.
    pub status: OutboxStatus,
    pub(crate) error: &'a str,
}

impl DeadLettered<'_> {
    /// Its `last_error`, at most 1023 characters. It may quote what is nobody else's business.
    pub fn error(&self) -> &str {
        self.error
    }
}

impl fmt::Debug for DeadLettered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLettered")
            .field("event_id", &self.event_id)
            .field("event_name", &self.event_name)
            .field("attempt", &self.attempt)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// Nothing is due any more: [`Observer::drained`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Drained {
    /// How many events have reached `processed` since there was last nothing due.
    pub processed: usize,
    /// How long that took.
    pub duration: Duration,
}
