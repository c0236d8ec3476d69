//! What a saga's handler can do beside its state.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use super::Definition;
use crate::clock;
use crate::decisions;
use crate::error::{Error, Result};
use crate::event::{Due, Event, EventId, NewEvent};
use crate::sagas::timeouts::{self, NAMES_MAX, Timeouts};
use crate::sagas::undo::Undo;
use crate::sagas::{SagaStatus, ending};
use crate::tx::Tx;
use crate::validate;

/// One step of a [`Saga`](crate::Saga): everything that a [`Tx`] can do, plus these. What is published carries the conversation's
/// correlation id, unless it has one of its own.
///
/// All of it is in the transaction of the step: where the handler fails, none of it has happened.
pub struct SagaStep<'a> {
    of: &'a Definition,
    tx: Tx<'a>,
    event: &'a Event,
    correlation_id: &'a str,
    timeout: Option<String>,
    left: RefCell<Left>,
}

/// What the step leaves of its conversation, but for the state.
pub(super) struct Left {
    pub(super) status: SagaStatus,
    pub(super) reason: Option<String>,
    pub(super) timeouts: Timeouts,
    pub(super) undo: Undo,
    /// Something was written by half: the step fails, whatever the handler says.
    pub(super) failed: Option<String>,
}

impl<'a> SagaStep<'a> {
    pub(super) fn new(
        of: &'a Definition,
        tx: Tx<'a>,
        event: &'a Event,
        correlation_id: &'a str,
        timeout: Option<String>,
        left: Left,
    ) -> Self {
        SagaStep { of, tx, event, correlation_id, timeout, left: RefCell::new(left) }
    }

    /// One that has come already: there is no event of it to be delivered.
    #[cfg(feature = "testing")]
    pub(crate) fn note_timeout(&self, name: &str, event_name: &str) {
        let core = self.tx.core();
        let id = timeouts::new_id(&self.of.name, self.correlation_id, core.new_id());
        self.left.borrow_mut().timeouts.note(name, id, event_name.to_owned(), core.clock.now());
    }

    pub(super) fn end(self) -> Left {
        self.left.into_inner()
    }

    /// The saga's name.
    pub fn saga(&self) -> &str {
        &self.of.name
    }

    /// Which conversation it is.
    pub fn correlation_id(&self) -> &str {
        self.correlation_id
    }

    /// The name under which this event was set as a [timeout](SagaStep::timeout); `None` where it is none.
    pub fn fired_timeout(&self) -> Option<&str> {
        self.timeout.as_deref()
    }

    /// Publishes `event` for later: it comes back to this saga after this time, unless the timeout is cancelled or set anew, or the saga
    /// ends. `name`: 1 to 255 characters, one timeout of each name, at most 100 of a conversation. Setting it again moves it: the
    /// event of before is cancelled.
    ///
    /// From then on the saga does not handle the timeout, also where it was due and under way: it is skipped. Other consumers
    /// of such an event receive it nevertheless. Time is the box's clock; a delay or time of the event's own is not looked at.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::PayloadTooLarge`] before anything is written: of the event, of the name, where the saga has ended,
    /// where none of its [`on`](crate::Saga::on) takes events of that name, and where the event has an idempotency key or another
    /// correlation id than the conversation's.
    pub fn timeout(&self, name: &str, after: Duration, event: NewEvent) -> Result<EventId> {
        self.refuse_ended("timeout")?;
        validate::name("timeout", name, validate::EVENT_NAME_MAX)?;
        if !self.of.takes(&event.event_name) {
            let reason = format!(
                "`{name}`: no `on` of saga `{}` takes events of the name `{}`",
                self.of.name, event.event_name
            );
            return Err(Error::invalid("timeout", reason));
        }
        if event.idempotency_key.is_some() {
            let reason =
                format!("`{name}`: its event has an idempotency key, under which it could be set only once");
            return Err(Error::invalid("timeout", reason));
        }
        if event.correlation_id.as_deref().is_some_and(|id| id != self.correlation_id) {
            let reason = format!("`{name}`: its event has another correlation id than the saga");
            return Err(Error::invalid("timeout", reason));
        }
        {
            let left = self.left.borrow();
            if left.timeouts.len() >= NAMES_MAX && !left.timeouts.contains(name) {
                let reason =
                    format!("`{name}`: the saga waits for {NAMES_MAX} timeouts already, as many as it may");
                return Err(Error::invalid("timeout", reason));
            }
        }
        let core = self.tx.core();
        let event_name = event.event_name.clone();
        let event = NewEvent {
            due: Due::After(after),
            correlation_id: Some(self.correlation_id.to_owned()),
            ..event
        };
        let id = timeouts::new_id(&self.of.name, self.correlation_id, core.new_id());
        let (event, _) = core.prepare_as(event, Some(self.event), || id.as_uuid())?;
        self.all_or_nothing(|left| {
            let inserted = core.publish_within(&self.tx, &event)?;
            let before = left.timeouts.note(name, id, event_name, clock::add(inserted.at, after));
            timeouts::cancel(core, &self.tx, before.as_slice(), "the saga has set the timeout anew")?;
            Ok(id)
        })
    }

    /// Takes a timeout back: it is not handled any more. False when there is none of this name: it was never set, has come, or is
    /// the event of this step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn cancel_timeout(&self, name: &str) -> Result<bool> {
        self.all_or_nothing(|left| {
            let Some(id) = left.timeouts.forget(name) else { return Ok(false) };
            timeouts::cancel(self.tx.core(), &self.tx, &[id], "the saga has cancelled the timeout")?;
            Ok(true)
        })
    }

    /// Notes an event that undoes what this step has done: [`compensate`](SagaStep::compensate) publishes it, the last that was noted
    /// first. At most 1,000 of a conversation. Where the saga completes they are forgotten.
    ///
    /// A delay of the event's counts from when it is published. It has been checked then: what a later release has made stricter, a schema
    /// or the limit of payloads, does not keep it from being published.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::PayloadTooLarge`], where publishing it would fail, where its payload or metadata are nested more than
    /// 125 levels deep, and where the saga has ended.
    pub fn undo_with(&self, event: NewEvent) -> Result<()> {
        self.refuse_ended("undo_with")?;
        let event = self.tx.core().store(event)?;
        self.left.borrow_mut().undo.add(event)
    }

    /// Ends the saga, and undoes what it has done: publishes the events that were noted with [`undo_with`](SagaStep::undo_with), the
    /// last first, and cancels its timeouts. The reason, of 1 to 1000 characters, is kept in its row. How many events were published.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the reason, and where the saga has ended.
    pub fn compensate(&self, reason: &str) -> Result<usize> {
        self.refuse_ended("compensate")?;
        decisions::check_reason(reason)?;
        self.all_or_nothing(|left| {
            let parts = (&mut left.timeouts, &mut left.undo);
            let undone =
                ending::compensate(self.tx.core(), &self.tx, self.correlation_id, Some(self.event), parts)?;
            left.status = SagaStatus::Compensated;
            left.reason = Some(reason.to_owned());
            Ok(undone)
        })
    }

    /// Ends the saga: it has done what it was for. Its timeouts are cancelled.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it has ended.
    pub fn complete(&self) -> Result<()> {
        self.refuse_ended("complete")?;
        self.all_or_nothing(|left| {
            let parts = (&mut left.timeouts, &mut left.undo);
            ending::complete(self.tx.core(), &self.tx, parts, "the saga has completed")?;
            left.status = SagaStatus::Completed;
            Ok(())
        })
    }

    fn refuse_ended(&self, operation: &'static str) -> Result<()> {
        match self.left.borrow().status {
            SagaStatus::Running => Ok(()),
            ended => {
                let reason =
                    format!("saga `{}` of `{}` is {ended} already", self.of.name, self.correlation_id);
                Err(Error::invalid(operation, reason))
            }
        }
    }

    /// What was begun and not ended must not be committed where a handler lets an error pass.
    fn all_or_nothing<T>(&self, write: impl FnOnce(&mut Left) -> Result<T>) -> Result<T> {
        self.tx.refuse_ended()?;
        let mut left = self.left.borrow_mut();
        write(&mut left).inspect_err(|error| left.failed = Some(error.to_string()))
    }
}

impl<'a> Deref for SagaStep<'a> {
    type Target = Tx<'a>;

    fn deref(&self) -> &Tx<'a> {
        &self.tx
    }
}

impl fmt::Debug for SagaStep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SagaStep")
            .field("saga", &self.of.name)
            .field("correlation_id", &self.correlation_id)
            .field("event", &self.event.id())
            .finish_non_exhaustive()
    }
}
