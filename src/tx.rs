//! A write transaction of the box.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use rusqlite::Connection;

use crate::cascade::{self, Announcement};
use crate::core::Core;
use crate::db::Writer;
use crate::error::Result;
use crate::event::{Event, EventId, NewEvent};
use crate::handler::Signal;
use crate::links::{EntityRef, IntegrationLink, NewLink};
use crate::outbox::insert;
use crate::pauses::{self, Pause, PauseTarget};
use crate::services::{Access, Inbox, Links, Outbox, Sagas, Schedules};
use crate::typed::DomainEvent;

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

    /// The same for a handler of this event, which runs alone.
    #[cfg(feature = "testing")]
    pub(crate) fn in_handler<'e>(&'e self, event: &'e Event, signal: Signal<'e>) -> Tx<'e> {
        Tx {
            writer: self.writer,
            core: self.core,
            cause: Some(event),
            signal: Some(signal),
            conversation: None,
        }
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

    /// The same for an event that is a type.
    ///
    /// # Errors
    /// As [`publish`](Tx::publish); [`Error::Invalid`](crate::Error::Invalid) with the field `payload` when the type cannot be JSON.
    pub fn publish_typed<E: DomainEvent>(&self, event: &E) -> Result<EventId> {
        self.publish(NewEvent::typed(event)?)
    }

    /// The event whose transactional handler this transaction is lent to; `None` outside of handlers.
    pub fn event(&self) -> Option<&Event> {
        self.cause
    }

    /// Creates a link in this transaction.
    ///
    /// # Errors
    /// As [`Links::create`].
    pub fn create_link(&self, link: NewLink) -> Result<IntegrationLink> {
        self.links().create(link)
    }

    /// Says that the application has deleted this entity: all links that start at or lead to it are deleted, and for each other
    /// entity that a [`Cascade`](crate::LinkType::Cascade) link led to from it, an event is published to the module that owns that
    /// entity: [`LinkCascade`](crate::LinkCascade). Nothing else of anybody's is deleted: that module's handler decides, and
    /// announces in its turn what it has deleted.
    ///
    /// The event's source module is the deleted entity's, its aggregate is the entity that should go, and its metadata are the
    /// link's. Where several cascade links lead to that entity, there is one event, of the oldest. In a transactional handler the
    /// events are follow-ups, as of [`publish`](Tx::publish).
    ///
    /// A cycle of cascades ends: when an entity is announced, its links are gone by the time that others hear of it. Announcing it
    /// again publishes nothing. An event that no subscription is for is processed without a handler, as any other
    /// ([`UnhandledEvents`](crate::UnhandledEvents)).
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for `module`, `entity_type` or `entity_id` out of range, and for `target_module`
    /// where that has a `*` in it and cannot be part of an event's name; [`Error::PayloadTooLarge`](crate::Error::PayloadTooLarge)
    /// and [`Error::Json`](crate::Error::Json) where a link's metadata cannot be an event's. Nothing is written then, and the
    /// transaction stays usable.
    pub fn announce_deleted(&self, entity: &EntityRef) -> Result<Announcement> {
        self.writer.refuse_ended()?;
        cascade::announce(self.writer.conn(), entity, |event| self.publish(event))
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
        Sagas::new(self.access()).caused_by(self.cause)
    }

    pub(crate) fn core(&self) -> &'a Core {
        self.core
    }

    /// Something in it has rolled it back: what is written now would stand alone.
    pub(crate) fn refuse_ended(&self) -> Result<()> {
        self.writer.refuse_ended()
    }

    /// Recurring events, in this transaction.
    pub fn schedules(&self) -> Schedules<'_> {
        Schedules::new(self.access())
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
