//! A write transaction of the box.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use rusqlite::Connection;

use crate::core::Core;
use crate::db::Writer;
use crate::error::Result;
use crate::event::{Event, EventId, NewEvent};
use crate::handler::Signal;
use crate::links::{IntegrationLink, NewLink};
use crate::outbox::insert;
use crate::pauses::{self, Pause, PauseTarget};
use crate::services::{Access, Inbox, Links, Outbox, Sagas};

/// A write transaction of the box: everything that [`rusqlite::Connection`] can do, plus these.
///
/// It begins as IMMEDIATE and cannot be ended from within: `COMMIT`, `ROLLBACK` and `BEGIN` are refused, and so are
/// savepoints whose name begins with `postbox`; other savepoints are the application's. The connection outlives the
/// transaction: its pragmas, hooks and attached files are the box's, and changing the settings that it needs is refused.
/// Committing it wakes the worker.
pub struct Tx<'a> {
    writer: &'a Writer,
    core: &'a Core,
    /// The event whose transactional handler has this transaction.
    cause: Option<&'a Event>,
    /// Tells that handler to stop early.
    signal: Option<Signal<'a>>,
    /// The correlation id of the saga whose step has this transaction: what is published carries it.
    conversation: Option<&'a str>,
}

impl<'a> Tx<'a> {
    pub(crate) fn new(writer: &'a Writer, core: &'a Core, cause: Option<&'a Event>) -> Self {
        Tx { writer, core, cause, signal: None, conversation: None }
    }

    /// The same transaction, for a step of a saga.
    pub(crate) fn within_saga<'b>(&'b self, correlation_id: &'b str) -> Tx<'b> {
        Tx { conversation: Some(correlation_id), ..*self }
    }

    /// For a handler that is told so to stop early.
    pub(crate) fn signalled_by(self, signal: Signal<'a>) -> Self {
        Tx { signal: Some(signal), ..self }
    }

    /// Publishes an event that is delivered if and only if this transaction commits. In a transactional handler it is a
    /// follow-up: it carries the correlation id and trace of the event on and names it as its cause.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) and [`Error::PayloadTooLarge`](crate::Error::PayloadTooLarge) before
    /// anything is written. The transaction stays usable.
    pub fn publish(&self, mut event: NewEvent) -> Result<EventId> {
        if let (Some(id), None) = (self.conversation, &event.correlation_id) {
            event.correlation_id = Some(id.to_owned());
        }
        let (event, _) = self.core.prepare(event, self.cause)?;
        self.writer.refuse_ended()?;
        self.writer.note_event_written();
        let inserted = insert::insert(self.writer.conn(), &event, self.core.clock.now())?;
        if let Some(observing) = &self.core.observing {
            observing.note_published(&event, inserted);
        }
        Ok(inserted.id)
    }

    /// Creates a link in this transaction.
    ///
    /// # Errors
    /// As [`Links::create`].
    pub fn create_link(&self, link: NewLink) -> Result<IntegrationLink> {
        self.links().create(link)
    }

    /// Pauses as [`Postbox::pause`](crate::Postbox::pause) does, if and when this transaction commits.
    ///
    /// # Errors
    /// As [`Postbox::pause`](crate::Postbox::pause).
    pub fn pause(
        &self,
        target: &PauseTarget,
        reason: Option<&str>,
        duration: Option<Duration>,
    ) -> Result<Pause> {
        pauses::check(target, reason, duration)?;
        self.writer.refuse_ended()?;
        self.core.pauses.note_written();
        pauses::put(self.writer.conn(), target, reason, duration, self.core.clock.now())
    }

    /// Ends a pause as [`Postbox::resume`](crate::Postbox::resume) does, if and when this transaction commits. False when there was
    /// none in force.
    ///
    /// # Errors
    /// As [`Postbox::resume`](crate::Postbox::resume).
    pub fn resume(&self, target: &PauseTarget) -> Result<bool> {
        target.validate()?;
        self.writer.refuse_ended()?;
        self.core.pauses.note_written();
        pauses::end(self.writer.conn(), target, self.core.clock.now())
    }

    /// Whether a transactional handler should stop early: the worker is stopping, or the handler's
    /// [time limit](crate::Subscription::time_limit) has passed. Always false outside of handlers.
    ///
    /// Nothing else comes of it: the handler holds the file's write lock, so that nobody can do anything about it, and what it
    /// returns counts, however late.
    pub fn is_cancelled(&self) -> bool {
        self.signal.is_some_and(Signal::is_given)
    }

    /// Events, as this transaction sees them.
    pub fn outbox(&self) -> Outbox<'_> {
        Outbox::new(self.access())
    }

    /// Inbox rows, in this transaction.
    pub fn inbox(&self) -> Inbox<'_> {
        Inbox::new(self.access())
    }

    /// Links, in this transaction.
    pub fn links(&self) -> Links<'_> {
        Links::new(self.access())
    }

    /// Sagas, in this transaction.
    pub fn sagas(&self) -> Sagas<'_> {
        Sagas::new(self.access())
    }

    pub(crate) fn core(&self) -> &'a Core {
        self.core
    }

    /// Something in it has rolled it back: what is written now would stand alone.
    pub(crate) fn refuse_ended(&self) -> Result<()> {
        self.writer.refuse_ended()
    }

    fn access(&self) -> Access<'_> {
        Access::Within(self.core, self.writer.conn())
    }
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.writer.conn()
    }
}

impl fmt::Debug for Tx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").field("cause", &self.cause.map(Event::id)).finish_non_exhaustive()
    }
}
