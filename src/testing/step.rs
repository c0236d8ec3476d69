//! One step of a saga alone.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::alone::{Alone, Ran};
use super::drains::expect;
use super::made_up;
use super::outcome::Outcome;
use crate::event::{Event, EventId, NewEvent};
use crate::handler::{HandlerError, TransactionalHandler};
use crate::links::IntegrationLink;
use crate::outbox::OutboxEvent;
use crate::postbox::Postbox;
use crate::saga::Saga;
use crate::sagas::{SagaInstance, SagaStatus, SagaTimeout, table, timeouts};
use crate::subscription::Kind;
use crate::tx::Tx;

/// Where a conversation stands before a step that runs alone: [`run_step`].
///
/// ```
/// # use postbox::NewEvent;
/// # use postbox::serde_json::json;
/// # use postbox::testing::Conversation;
/// # use std::time::Duration;
/// let overdue = NewEvent::new("payment.overdue", "sales", "Order", "o-1");
/// let cancelled = NewEvent::new("order.cancelled", "sales", "Order", "o-1");
/// let waiting = Conversation::running(&json!({ "paid": false }))
///     .timeout("payment", Duration::from_hours(24), overdue)
///     .undo_with(cancelled);
/// ```
#[derive(Clone)]
#[must_use = "a conversation does nothing until a step of it runs"]
pub struct Conversation {
    stands: Stands,
    timeouts: Vec<(String, Duration, NewEvent)>,
    undo: Vec<NewEvent>,
    fires: Option<String>,
}

#[derive(Clone)]
enum Stands {
    AsInTheBox,
    NotBegun,
    At(SagaStatus, Value),
}

impl Conversation {
    /// It has not begun: the event is to start it, or comes too early.
    pub fn not_begun() -> Self {
        Conversation::that(Stands::NotBegun)
    }

    /// It is running, with this state: the saga's own type, or the JSON that another release has left.
    ///
    /// # Panics
    /// When the state cannot be JSON. So do the other two.
    #[track_caller]
    pub fn running(state: &impl Serialize) -> Self {
        Conversation::at(SagaStatus::Running, state)
    }

    /// It has completed, with this state.
    #[track_caller]
    pub fn completed(state: &impl Serialize) -> Self {
        Conversation::at(SagaStatus::Completed, state)
    }

    /// It was compensated, with this state.
    #[track_caller]
    pub fn compensated(state: &impl Serialize) -> Self {
        Conversation::at(SagaStatus::Compensated, state)
    }

    /// As the box has it: where the last step has left it, for one.
    pub fn in_the_box() -> Self {
        Conversation::that(Stands::AsInTheBox)
    }

    #[track_caller]
    fn at(status: SagaStatus, state: &impl Serialize) -> Self {
        let state = expect(serde_json::to_value(state).map_err(Into::into), "write this state as JSON");
        Conversation::that(Stands::At(status, state))
    }

    fn that(stands: Stands) -> Self {
        Conversation { stands, timeouts: Vec::new(), undo: Vec::new(), fires: None }
    }

    /// It is running, and waits for this timeout: set as by [`SagaStep::timeout`](crate::SagaStep::timeout).
    pub fn timeout(mut self, name: impl Into<String>, after: Duration, event: NewEvent) -> Self {
        self.timeouts.push((name.into(), after, event));
        self
    }

    /// It is running, and this event undoes what it has done: noted as by [`SagaStep::undo_with`](crate::SagaStep::undo_with), the one
    /// that is given first before the others.
    pub fn undo_with(mut self, event: NewEvent) -> Self {
        self.undo.push(event);
        self
    }

    /// The event of the step is its timeout of this name, for which it waits: [`SagaStep::fired_timeout`](crate::SagaStep::fired_timeout).
    /// Where the step fails it goes on waiting for it, and it may fire once more [in the box](Conversation::in_the_box); since its event is
    /// the test's, and not the box's, it is not among the [`timeouts`](SagaInstance::timeouts) that are shown.
    pub fn fires(self, name: impl Into<String>) -> Self {
        Conversation { fires: Some(name.into()), ..self }
    }
}

/// What came of a step that ran alone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RanStep {
    /// What the step said. A conversation of which the handler was not called, since it has ended for one, says
    /// [`Skipped`](Outcome::Skipped).
    pub outcome: Outcome,
    /// The conversation afterwards; `None` where it has not begun. After a step that failed it stands as before.
    pub saga: Option<SagaInstance>,
    /// The events that it has published, in that order: follow-ups, and those that undo where it was compensated. Not its timeouts.
    pub published: Vec<OutboxEvent>,
    /// The timeouts that it has set, or set anew, and waits for, by name.
    pub timeouts_set: Vec<SagaTimeout>,
    /// The names of the timeouts that it waited for and waits for no more, in order. Not of the one that was the step's event.
    pub timeouts_cancelled: Vec<String>,
    /// The links that it has made.
    pub links: Vec<IntegrationLink>,
}

impl RanStep {
    /// Whether the conversation runs, or how it has ended; `None` where it has not begun.
    pub fn status(&self) -> Option<SagaStatus> {
        self.saga.as_ref().map(|saga| saga.summary.status)
    }

    /// The conversation's state afterwards.
    ///
    /// # Panics
    /// Where it has not begun, and where its state does not fit the type.
    #[track_caller]
    pub fn state<S: DeserializeOwned>(&self) -> S {
        let Some(saga) = &self.saga else { panic!("the conversation has not begun: {:?}", self.outcome) };
        expect(saga.state_as(), "read the state as this type")
    }

    /// The names of the events that would undo what the conversation has done, in the order in which they were noted.
    pub fn undo(&self) -> &[String] {
        self.saga.as_ref().map_or(&[], |saga| &saga.undo)
    }
}

/// Runs one step of a saga on this event, once, in a transaction of its own, without delivery: all that is between the event and the
/// handler is the saga's own, as which conversation it belongs to, and which handler is called. The conversation stands `before` as the
/// test says; what the box holds of it is replaced. Afterwards all is in the box, to be looked at or
/// [gone on from](Conversation::in_the_box). How long an event that comes before its conversation begins has waited, its
/// [`published_at`](crate::testing::MadeUpEvent::published_at) says.
///
/// ```
/// use postbox::testing::{Conversation, Outcome, TestBox, event, run_step};
/// use postbox::{NewEvent, Saga, SagaStatus};
/// use std::time::Duration;
///
/// let of_order = |name: &str| NewEvent::new(name, "sales", "Order", "o-1").correlation_id("o-1");
/// let saga = Saga::<u32>::new("order")
///     .starts_on("order.placed", move |_, _, step| {
///         step.timeout("payment", Duration::from_hours(24), of_order("payment.overdue"))?;
///         step.undo_with(of_order("order.cancelled"))?;
///         Ok(())
///     })
///     .on("payment.*", |tries, event, step| {
///         *tries += 1;
///         match event.name() {
///             "payment.captured" => step.complete()?,
///             _ => drop(step.compensate("not paid in time")?),
///         }
///         Ok(())
///     });
///
/// let postbox = TestBox::new();
/// let ran = run_step(&postbox, &event(of_order("order.placed")), &saga, Conversation::not_begun());
/// assert_eq!((ran.timeouts_set[0].name.as_str(), ran.undo()), ("payment", &["order.cancelled".to_owned()][..]));
///
/// // From where the last step has left it.
/// let ran = run_step(&postbox, &event(of_order("payment.captured")), &saga, Conversation::in_the_box());
/// assert_eq!((ran.status(), ran.timeouts_cancelled), (Some(SagaStatus::Completed), vec!["payment".to_owned()]));
///
/// // From where the test says.
/// let waiting = Conversation::running(&7).undo_with(of_order("order.cancelled")).fires("payment");
/// let ran = run_step(&postbox, &event(of_order("payment.overdue")), &saga, waiting);
/// assert_eq!(ran.outcome, Outcome::Processed);
/// assert_eq!((ran.status(), ran.state::<u32>()), (Some(SagaStatus::Compensated), 8));
/// assert_eq!(ran.published[0].event_name, "order.cancelled");
/// ```
///
/// # Panics
/// When the saga takes no events of this name, could not be subscribed, or does not wait for the timeout that is to fire; when the
/// conversation cannot stand so: with a timeout that no `on` takes, or one that has not begun, or has ended, with any; and when the box cannot be read or written to. A panic of the
/// handler is an [`Outcome`].
#[track_caller]
pub fn run_step<S>(postbox: &Postbox, event: &Event, saga: &Saga<S>, before: Conversation) -> RanStep
where
    S: Default + Serialize + DeserializeOwned + 'static,
{
    Alone::in_box(postbox).run_step(event, saga, before)
}

impl Alone<'_> {
    /// Runs one step of a saga.
    ///
    /// # Panics
    /// As [`run_step`].
    #[track_caller]
    pub fn run_step<S>(&self, event: &Event, saga: &Saga<S>, before: Conversation) -> RanStep
    where
        S: Default + Serialize + DeserializeOwned + 'static,
    {
        let is_running = matches!(before.stands, Stands::At(SagaStatus::Running, _));
        assert!(
            is_running || before.timeouts.is_empty() && before.undo.is_empty(),
            "the conversation cannot stand so: only one that is `running` is given timeouts, and events that undo"
        );
        let postbox = self.postbox();
        let Some(called) = expect(saga.called_for(event.name()), "run this saga") else {
            panic!("saga `{}` takes no events of the name `{}`: {saga:?}", saga.name(), event.name())
        };
        let mut event = made_up::copy(event);
        let id = if before.fires.is_some() {
            // As every timeout's.
            Some(event.correlation_id.get_or_insert_with(|| event.aggregate_id.clone()).clone())
        } else {
            // One that belongs to none, or whose `correlate` panics: the step says so.
            let found = catch_unwind(AssertUnwindSafe(|| saga.conversation_of(&event, &called)));
            found.ok().and_then(std::result::Result::ok)
        };
        // Not in a closure, so that its panics point at the test.
        let stood = match id {
            Some(id) => {
                let stood = stand(postbox, saga, &id, before, &mut event);
                Some((id, stood))
            }
            None => None,
        };
        let Kind::Transactional(handler) = called.handler else {
            unreachable!("a saga's handlers are transactional")
        };
        let handler = move |event: &Event, tx: &Tx<'_>| handler.handle(event, tx);
        let Ran { outcome, mut published, links } = self.run_transactional(&event, &handler);

        let Some((id, stood)) = stood else {
            return RanStep {
                outcome,
                saga: None,
                published,
                timeouts_set: Vec::new(),
                timeouts_cancelled: Vec::new(),
                links,
            };
        };
        let after = expect(postbox.sagas().get(saga.name(), &id), "look at the saga");
        let waits: &[SagaTimeout] = after.as_ref().map_or(&[], |saga| &saga.timeouts);
        let is_new = |timeout: &&SagaTimeout| stood.get(&timeout.name) != Some(&timeout.event_id);
        let is_over = |name: &&String| waits.iter().all(|timeout| timeout.name != **name);
        let fired = |name: &&String| stood[*name] == event.id;
        let timeouts_set = waits.iter().filter(is_new).cloned().collect();
        let timeouts_cancelled = stood.keys().filter(is_over).filter(|name| !fired(name)).cloned().collect();
        published.retain(|event| !timeouts::is_of(saga.name(), &id, event.id));
        RanStep { outcome, saga: after, published, timeouts_set, timeouts_cancelled, links }
    }
}

/// Makes the conversation stand so, by a step of its own, and the event one of its timeouts where it is to be. The timeouts that it
/// waits for then.
#[track_caller]
fn stand<S>(
    postbox: &Postbox,
    saga: &Saga<S>,
    id: &str,
    before: Conversation,
    event: &mut Event,
) -> BTreeMap<String, EventId>
where
    S: Default + Serialize + DeserializeOwned + 'static,
{
    let fires = before.fires.clone();
    if !matches!(before.stands, Stands::AsInTheBox) {
        let begins = matches!(before.stands, Stands::At(..));
        let coming = fires.clone().map(|name| (name, event.name.clone()));
        let begun = saga.begun_by(move |state, _, step| {
            for (name, after, event) in before.timeouts.clone() {
                step.timeout(&name, after, event)?;
            }
            if let Some((name, event_name)) = &coming {
                step.note_timeout(name, event_name);
            }
            before.undo.iter().try_for_each(|event| step.undo_with(event.clone()))?;
            if let Stands::At(status, at) = &before.stands {
                state.clone_from(at);
                match status {
                    SagaStatus::Running => {}
                    SagaStatus::Completed => step.complete()?,
                    SagaStatus::Compensated => drop(step.compensate("as the test says")?),
                }
            }
            Ok(())
        });
        let beginning = NewEvent::new("testing", "testing", "Conversation", id).correlation_id(id);
        let beginning = made_up::event(beginning);
        let stood = postbox.transaction(|tx| {
            let left = table::forget(tx, saga.name(), id)?;
            timeouts::cancel(tx.core(), tx, &left, "the test begins anew")?;
            if begins {
                begun.handle(&beginning, tx)?;
            }
            Ok::<_, HandlerError>(())
        });
        if let Err(error) = stood {
            panic!("the conversation cannot stand so: {error}");
        }
    }
    let stands = expect(postbox.sagas().get(saga.name(), id), "look at the saga");
    let waits = stands.into_iter().flat_map(|saga| saga.timeouts);
    let mut waits: BTreeMap<_, _> = waits.map(|timeout| (timeout.name, timeout.event_id)).collect();
    if let Some(name) = fires {
        // Noted here, or in a step that failed, its event is the test's, and in no row: it is not among those that are to come.
        let look = |conn: &Connection| table::timeout_in_no_row(conn, saga.name(), id, &name);
        let its_id = expect(postbox.core().db.read("look at the saga", look), "look at the saga");
        waits.extend(its_id.map(|id| (name.clone(), id)));
        let Some(id) = waits.get(&name) else {
            panic!(
                "the conversation waits for no timeout `{name}`, but for {:?}",
                waits.keys().collect::<Vec<_>>()
            )
        };
        event.id = *id;
    }
    waits
}
