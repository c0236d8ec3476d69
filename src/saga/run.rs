//! One event on its way through a saga: which conversation it belongs to, what is to be done with it there, and what that leaves.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::step::{Left, SagaStep};
use super::{Definition, state};
use crate::clock::to_micros;
use crate::core::Core;
use crate::error::Error;
use crate::event::Event;
use crate::handler::{HandlerError, HandlerResult, TransactionalHandler};
use crate::sagas::SagaStatus;
use crate::sagas::table::{self, Stored, Written};
use crate::sagas::timeouts::{self, Timeouts};
use crate::sagas::undo::Undo;
use crate::tx::Tx;
use crate::validate;

pub(super) type Step<S> = Box<dyn Fn(&mut S, &Event, &SagaStep<'_>) -> HandlerResult + Send + Sync>;

/// What is done with the events of one name.
pub(super) struct Steps<S> {
    pub(super) start: Option<Step<S>>,
    pub(super) on: Option<Step<S>>,
    pub(super) after_end: Option<Step<S>>,
}

impl<S> Default for Steps<S> {
    fn default() -> Self {
        Steps { start: None, on: None, after_end: None }
    }
}

pub(super) struct Runner<S> {
    pub(super) of: Arc<Definition>,
    pub(super) steps: Steps<S>,
}

impl<S: Default + Serialize + DeserializeOwned + 'static> TransactionalHandler for Runner<S> {
    fn handle(&self, event: &Event, tx: &Tx<'_>) -> HandlerResult {
        let saga = &*self.of.name;
        let Conversation { id, is_timeout } = self.of.conversation(event, self.steps.start.is_some())?;
        let which = Which { saga, id: &id };
        let stored = table::load(tx, saga, &id)?;
        let parts = stored.as_ref().map(|stored| Timeouts::parse(stored.timeouts.as_deref()));
        let mut timeouts = parts
            .transpose()
            .map_err(|error| which.dead_letter(format_args!("its timeouts cannot be read: {error}")))?
            .unwrap_or_default();
        let timeout = timeouts.name_of(event.id()).map(str::to_owned);
        if is_timeout && timeout.is_none() {
            return Err(which.skip("the timeout was cancelled or set anew, or the saga has ended"));
        }
        let handler =
            self.steps.of(stored.as_ref(), &which, || self.of.too_early(event, &which, tx.core()))?;
        if let Some(timeout) = &timeout {
            timeouts.forget(timeout);
        }

        let mut state = match &stored {
            Some(stored) => state::from_text(&stored.state, &which)?,
            None => S::default(),
        };
        let (seq, status, reason, undo) = match stored {
            Some(Stored { seq, status, reason, undo, .. }) => (Some(seq), status, reason, undo),
            None => (None, SagaStatus::Running, None, None),
        };
        let before = status;
        let left = Left { status, reason, timeouts, undo: Undo::stored(undo), failed: None };
        let step = SagaStep::new(&self.of, tx.within_saga(&id), event, &id, timeout, left);
        handler(&mut state, event, &step)?;

        let Left { status, reason, timeouts, undo, failed } = step.end();
        if let Some(failed) = failed {
            return Err(HandlerError::retry(format!("{which}: {failed}")));
        }
        tx.refuse_ended()?;
        let core = tx.core();
        let state = state::to_text(&state, &which, core.payload_bytes_max)?;
        let (timeouts, undo) = (timeouts.to_text()?, undo.into_text()?);
        let written = Written {
            status,
            last_event: event.name(),
            reason: reason.as_deref(),
            timeouts: timeouts.as_deref(),
            undo: undo.as_deref(),
            state: &state,
        };
        let now = core.clock.now();
        match seq {
            None => table::insert(tx, saga, &id, &written, now)?,
            Some(seq) => {
                if !table::update(tx, seq, before, &written, now)? {
                    let why = "its handler has ended it by hand: that is for the step's own `compensate` and `complete`";
                    return Err(which.dead_letter(format_args!("{why}")));
                }
            }
        }
        Ok(())
    }
}

impl<S> Steps<S> {
    /// What is to be called where the conversation stands so, or why nothing is.
    fn of(
        &self,
        stored: Option<&Stored>,
        which: &Which<'_>,
        too_early: impl FnOnce() -> HandlerError,
    ) -> Result<&Step<S>, HandlerError> {
        let Some(stored) = stored else {
            return self.start.as_ref().ok_or_else(too_early);
        };
        match stored.status {
            SagaStatus::Running => self
                .on
                .as_ref()
                .ok_or_else(|| which.skip("it is running already, and the event only starts it")),
            SagaStatus::Completed => self.after_end.as_ref().ok_or_else(|| which.skip("it has completed")),
            SagaStatus::Compensated => {
                self.after_end.as_ref().ok_or_else(|| which.skip("it was compensated"))
            }
        }
    }
}

impl Definition {
    /// Of an event whose conversation has not begun: the one that starts it may still be on its way. Each wait is half as long as the
    /// event is old, so that little is asked of many that wait for long.
    fn too_early(&self, event: &Event, which: &Which<'_>, core: &Core) -> HandlerError {
        let age = core.clock.now().saturating_sub(to_micros(event.timestamp()));
        let age = Duration::from_micros(u64::try_from(age).unwrap_or(0));
        let why = format!("{which} has not begun: the event waits for the one that starts it");
        let Some(left) = self.patience.checked_sub(age).filter(|left| !left.is_zero()) else {
            return HandlerError::retry(why);
        };
        let least = Duration::from_millis(core.settings().retry_base_delay_ms);
        HandlerError::wait(why, (age / 2).max(least).min(left))
    }
}

struct Conversation {
    id: String,
    /// It is a timeout of this saga's, whether noted or not.
    is_timeout: bool,
}

impl Definition {
    fn conversation(&self, event: &Event, may_start: bool) -> Result<Conversation, HandlerError> {
        let saga = &self.name;
        if let Some(id) = event.correlation_id()
            && timeouts::is_of(saga, id, event.id())
        {
            return Ok(Conversation { id: id.to_owned(), is_timeout: true });
        }
        if self.only.as_ref().is_some_and(|only| !only(event)) {
            return Err(HandlerError::skip(format!(
                "it is none of saga `{saga}`'s events, as its `only` says"
            )));
        }
        let id = match &self.correlate {
            Some(correlate) => correlate(event).ok_or_else(|| {
                format!("saga `{saga}`: its `correlate` finds no correlation id in the event `{}`", event.name())
            }),
            None => match event.correlation_id() {
                Some(id) => Ok(id.to_owned()),
                None if may_start => Ok(event.aggregate_id().to_owned()),
                None => Err(format!(
                    "saga `{saga}`: the event `{}` has no correlation id, so that nobody knows which conversation it belongs to: \
                     publish it with one, or give the saga a `correlate`",
                    event.name()
                )),
            },
        }
        .map_err(HandlerError::dead_letter)?;
        validate::name("correlation_id", &id, validate::CORRELATION_MAX)
            .map_err(|error: Error| HandlerError::dead_letter(format!("saga `{saga}`: {error}")))?;
        Ok(Conversation { id, is_timeout: false })
    }
}

/// For what is said of it.
struct Which<'a> {
    saga: &'a str,
    id: &'a str,
}

impl std::fmt::Display for Which<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "saga `{}` of `{}`", self.saga, self.id)
    }
}

impl Which<'_> {
    fn skip(&self, why: &str) -> HandlerError {
        HandlerError::skip(format!("{self}: {why}"))
    }

    fn dead_letter(&self, why: std::fmt::Arguments<'_>) -> HandlerError {
        HandlerError::dead_letter(format!("{self}: {why}"))
    }
}
