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

type Handle<S> = dyn Fn(&mut S, &Event, &SagaStep<'_>) -> HandlerResult + Send + Sync;

/// One handler.
pub(super) struct Step<S> {
    handle: Arc<Handle<S>>,
    /// The newest version that it reads, where its events are of a type.
    reads: Option<u32>,
}

impl<S> Step<S> {
    pub(super) fn untyped(
        handle: impl Fn(&mut S, &Event, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        Step { handle: Arc::new(handle), reads: None }
    }

    pub(super) fn up_to(self, version: u32) -> Self {
        Step { reads: Some(version), ..self }
    }
}

impl<S> Clone for Step<S> {
    fn clone(&self) -> Self {
        Step { handle: Arc::clone(&self.handle), reads: self.reads }
    }
}

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

impl<S> Clone for Steps<S> {
    fn clone(&self) -> Self {
        Steps { start: self.start.clone(), on: self.on.clone(), after_end: self.after_end.clone() }
    }
}

impl<S> Steps<S> {
    /// With the other's, of the kinds that there is none of.
    pub(super) fn or(self, other: &Self) -> Self {
        Steps {
            start: self.start.or_else(|| other.start.clone()),
            on: self.on.or_else(|| other.on.clone()),
            after_end: self.after_end.or_else(|| other.after_end.clone()),
        }
    }

    /// What is newer is for none of them. `None`: one reads every version.
    pub(super) fn newest_that_all_read(&self) -> Option<u32> {
        let all = [&self.start, &self.on, &self.after_end];
        let versions: Option<Vec<u32>> = all.into_iter().flatten().map(|step| step.reads).collect();
        versions?.into_iter().max()
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
            return Err(which.skip("the saga does not wait for this timeout any more"));
        }
        let handler =
            self.steps.of(stored.as_ref(), &which, || self.of.too_early(event, &which, tx.core()))?;
        // Before the state is looked at, which the newer release may have written.
        if let Some(newest) = handler.reads.filter(|newest| *newest < event.version()) {
            return Err(which.too_new(event, newest, tx.core()));
        }
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
        (handler.handle)(&mut state, event, &step)?;

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
            SagaStatus::Running => self.on.as_ref().ok_or_else(|| {
                which.skip(if self.start.is_some() {
                    "it is running already, and the event only starts it"
                } else {
                    "it is running, and the event is for those that have ended"
                })
            }),
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
        let why = format!("{which} has not begun: the event waits for the one that starts it");
        let left = self.patience.checked_sub(age(event, core)).filter(|left| !left.is_zero());
        left.map_or_else(
            || HandlerError::retry(&why),
            |left| HandlerError::wait(&why, half_as_long(event, core).min(left)),
        )
    }
}

fn age(event: &Event, core: &Core) -> Duration {
    let age = core.clock.now().saturating_sub(to_micros(event.timestamp()));
    Duration::from_micros(u64::try_from(age).unwrap_or(0))
}

/// As the event is old.
fn half_as_long(event: &Event, core: &Core) -> Duration {
    (age(event, core) / 2).max(Duration::from_millis(core.settings().retry_base_delay_ms))
}

pub(super) struct Conversation {
    pub(super) id: String,
    /// It is a timeout of this saga's, whether noted or not.
    is_timeout: bool,
}

impl Definition {
    pub(super) fn conversation(&self, event: &Event, may_start: bool) -> Result<Conversation, HandlerError> {
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

/// Between two looks whether a newer release is there, or the conversation stands where another handler takes the event.
const TOO_NEW_MOST: Duration = Duration::from_mins(5);

impl Which<'_> {
    /// Its handler's type knows versions up to this one.
    fn too_new(&self, event: &Event, newest: u32, core: &Core) -> HandlerError {
        let (name, version) = (event.name(), event.version());
        // No name contains NUL.
        if core.first_warning_of(&format!("{name}\0{version}\0{}", self.saga)) {
            log::warn!(
                target: "postbox::delivery",
                "version {version} of `{name}` is newer than a handler of saga `{}` knows: such events wait for a later release", self.saga
            );
        }
        let why = format!(
            "{self}: version {version} of `{name}` waits for a release that knows it: its handler reads up to version {newest}"
        );
        HandlerError::wait(why, half_as_long(event, core).min(TOO_NEW_MOST))
    }

    fn skip(&self, why: &str) -> HandlerError {
        HandlerError::skip(format!("{self}: {why}"))
    }

    fn dead_letter(&self, why: std::fmt::Arguments<'_>) -> HandlerError {
        HandlerError::dead_letter(format!("{self}: {why}"))
    }
}
