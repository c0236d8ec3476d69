//! Steps of a saga whose events are types of the application's.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::run::Step;
use super::{OfType, Saga, SagaStep};
use crate::event::Event;
use crate::handler::HandlerResult;
use crate::typed::{DomainEvent, Reads};

/// Steps whose events are types: [`DomainEvent`] says what is done about their versions and former names. The whole event is
/// [`step.event()`](crate::Tx::event).
///
/// Each handler has its own say about versions: an untyped one takes every version, a typed one those that its type reads. Which handler
/// an event is for depends on where its conversation stands, so that what is newer than its type waits in one of two ways, an attempt
/// spent in neither:
///
/// - Where all handlers of the event's name are typed, none could take it: it is held back and counted as for any typed subscription
///   ([`DomainEvent`]).
/// - Where another handler of that name is untyped, the event comes to the saga, and only what is for a typed handler waits: it says so in
///   `last_error`, and looks again every five minutes at the latest, whether a newer release is there, or its conversation has come to
///   where the untyped handler takes it. What another handler takes, or nobody does, is handled or skipped as ever. It is not counted as held back.
///
/// The types of one event name have one version, and should be one type. Events of a type's former names come to all handlers of its name.
///
/// ```
/// # use postbox::{DomainEvent, NewEvent, Postbox, Saga};
/// # use std::time::Duration;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct OrderPlaced { order: String, cents: i64 }
/// # impl DomainEvent for OrderPlaced {
/// #     const NAME: &'static str = "order.placed";
/// #     const SOURCE_MODULE: &'static str = "sales";
/// #     const AGGREGATE_TYPE: &'static str = "Order";
/// #     fn aggregate_id(&self) -> String { self.order.clone() }
/// # }
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct PaymentOverdue { order: String }
/// # impl DomainEvent for PaymentOverdue {
/// #     const NAME: &'static str = "payment.overdue";
/// #     const SOURCE_MODULE: &'static str = "sales";
/// #     const AGGREGATE_TYPE: &'static str = "Order";
/// #     fn aggregate_id(&self) -> String { self.order.clone() }
/// # }
/// # fn main() -> postbox::Result<()> {
/// let saga = Saga::<i64>::new("order")
///     .starts_on_typed::<OrderPlaced>(|total, placed, step| {
///         *total = placed.cents;
///         let overdue = NewEvent::typed(&PaymentOverdue { order: placed.order.clone() })?;
///         step.timeout("payment", Duration::from_hours(24), overdue)?;
///         Ok(())
///     })
///     .on_typed::<PaymentOverdue>(|_, _, step| {
///         step.compensate("not paid within a day")?;
///         Ok(())
///     });
/// let postbox = Postbox::open_in_memory()?;
/// postbox.subscribe_saga(saga)?;
/// postbox.publish_typed(&OrderPlaced { order: "o-7".into(), cents: 1_250 })?;
/// postbox.drain()?;
/// assert_eq!(postbox.sagas().get("order", "o-7")?.expect("it has begun").state, 1_250);
/// # Ok(())
/// # }
/// ```
impl<S: Default + Serialize + DeserializeOwned + 'static> Saga<S> {
    /// As [`starts_on`](Saga::starts_on).
    pub fn starts_on_typed<E: DomainEvent>(
        self,
        handler: impl Fn(&mut S, &E, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        self.reading::<E>().with(E::NAME.to_owned(), |steps| steps.start.replace(reading(handler)).is_none())
    }

    /// As [`on`](Saga::on).
    pub fn on_typed<E: DomainEvent>(
        self,
        handler: impl Fn(&mut S, &E, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        self.reading::<E>().with(E::NAME.to_owned(), |steps| steps.on.replace(reading(handler)).is_none())
    }

    /// As [`after_end`](Saga::after_end).
    pub fn after_end_typed<E: DomainEvent>(
        self,
        handler: impl Fn(&mut S, &E, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        self.reading::<E>()
            .with(E::NAME.to_owned(), |steps| steps.after_end.replace(reading(handler)).is_none())
    }

    fn reading<E: DomainEvent>(mut self) -> Self {
        let reads = Reads::of::<E>(&E::upcasters());
        if self.types.iter().any(|of| of.event_name == E::NAME && of.reads.version != E::VERSION) {
            self.mixed.get_or_insert(E::NAME);
        }
        self.types.push(OfType { event_name: E::NAME, former_names: E::FORMER_NAMES, reads });
        self
    }
}

fn reading<S, E: DomainEvent>(
    handler: impl Fn(&mut S, &E, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
) -> Step<S> {
    let upcasters = E::upcasters();
    let handle = move |state: &mut S, event: &Event, step: &SagaStep<'_>| {
        handler(state, &upcasters.read(event)?, step)
    };
    Step::untyped(handle).up_to(E::VERSION)
}
