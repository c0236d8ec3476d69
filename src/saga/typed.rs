//! Steps of a saga whose events are types of the application's.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Saga, SagaStep};
use crate::event::Event;
use crate::handler::HandlerResult;
use crate::registry::Subscription;
use crate::typed::{DomainEvent, Reads};

/// Steps whose events are types: [`DomainEvent`] says what is done about their versions and former names. The whole event is
/// [`step.event()`](crate::Tx::event). The types of all handlers of one event name have the same version, and should be one.
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
        self.reading::<E>().starts_on(E::NAME, reading(handler))
    }

    /// As [`on`](Saga::on).
    pub fn on_typed<E: DomainEvent>(
        self,
        handler: impl Fn(&mut S, &E, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        self.reading::<E>().on(E::NAME, reading(handler))
    }

    /// As [`after_end`](Saga::after_end).
    pub fn after_end_typed<E: DomainEvent>(
        self,
        handler: impl Fn(&mut S, &E, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        self.reading::<E>().after_end(E::NAME, reading(handler))
    }

    fn reading<E: DomainEvent>(mut self) -> Self {
        match self.typed.iter().find(|(name, ..)| *name == E::NAME) {
            Some((_, version, _)) if *version != E::VERSION => {
                self.mixed.get_or_insert(E::NAME);
            }
            Some(_) => {}
            None => {
                let reads = Reads::of::<E>(&E::upcasters());
                let of_type = move |subscription: Subscription| subscription.reading::<E>(reads);
                self.typed.push((E::NAME, E::VERSION, Box::new(of_type)));
            }
        }
        self
    }
}

fn reading<S, E: DomainEvent>(
    handler: impl Fn(&mut S, &E, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static,
) -> impl Fn(&mut S, &Event, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static {
    let upcasters = E::upcasters();
    move |state, event, step| handler(state, &upcasters.read(event)?, step)
}
