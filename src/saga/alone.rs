//! What the test kit asks of a saga: whose an event is, where a conversation is to stand, which of its handlers is called.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::run::{Runner, Step, Steps};
use super::{Definition, Saga, SagaStep};
use crate::error::Result;
use crate::event::Event;
use crate::handler::{HandlerError, HandlerResult, TransactionalHandler};
use crate::subscription::Subscription;

impl<S: Default + Serialize + DeserializeOwned + 'static> Saga<S> {
    /// The subscription that a box would call for the event. `None`: it takes no events of that name.
    pub(crate) fn called_for(&self, event_name: &str) -> Result<Option<Subscription>> {
        let all = self.clone().subscriptions()?.into_iter();
        let matching = all.filter(|subscription| subscription.closeness(event_name).is_some());
        Ok(matching.max_by_key(|subscription| subscription.closeness(event_name)))
    }

    /// Which conversation the event belongs to; the error is the step's.
    pub(crate) fn conversation_of(
        &self,
        event: &Event,
        subscription: &Subscription,
    ) -> std::result::Result<String, HandlerError> {
        let steps = self.steps.iter().find(|(name, _)| *name == subscription.event_name);
        let may_start =
            steps.is_some_and(|(name, steps)| self.with_those_of_patterns(name, steps).start.is_some());
        Ok(self.definition().conversation(event, may_start)?.id)
    }

    /// Its event's correlation id begins a conversation, which stands as `begin` leaves it.
    pub(crate) fn begun_by(
        &self,
        begin: impl Fn(&mut Value, &Event, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> impl TransactionalHandler {
        let of = Definition { correlate: None, only: None, ..self.definition() };
        let steps = Steps { start: Some(Step::<Value>::untyped(begin)), ..Steps::default() };
        Runner { of: Arc::new(of), steps }
    }
}
