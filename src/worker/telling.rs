//! What observers are told of deliveries, and what the box itself counts of them.

use std::time::{Duration, Instant};

use super::delivery::Delivery;
use crate::core::Core;
use crate::event::{Event, EventId};
use crate::inbox::Mark;
use crate::observer::{Drained, Failed, Finished, Started};
use crate::outbox::OutboxStatus;
use crate::outbox::dead::Dead;
use crate::outbox::settle::Settlement;

/// What came of one consumer's turn, until it may be told.
pub(super) struct Told {
    pub(super) consumer: usize,
    pub(super) mark: Mark,
    pub(super) duration: Option<Duration>,
}

/// Before a handler runs.
pub(super) fn started(core: &Core, event: &Event, consumer_name: &str) {
    core.tell(|observer| {
        observer.started(&Started {
            event_id: event.id,
            event_name: &event.name,
            consumer_name,
            attempt: event.attempt,
        });
    });
}

/// Whether anybody, the box included, wants to know of this outcome.
pub(super) fn is_wanted(core: &Core, mark: &Mark) -> bool {
    core.is_observed() || matches!(mark, Mark::Failed { .. })
}

/// What is told of an event.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) event_id: EventId,
    pub(super) event_name: &'a str,
    pub(super) attempt: u32,
}

impl<'a> From<&'a Event> for About<'a> {
    fn from(event: &'a Event) -> Self {
        About { event_id: event.id, event_name: &event.name, attempt: event.attempt }
    }
}

/// Once it stands. `duration`: how long the handler ran, if it did.
pub(super) fn outcome<'a>(
    core: &Core,
    about: impl Into<About<'a>>,
    consumer_name: &str,
    mark: &Mark,
    duration: Option<Duration>,
) {
    let About { event_id, event_name, attempt } = about.into();
    match mark {
        Mark::Processed | Mark::Skipped { .. } => core.tell(|observer| {
            observer.finished(&Finished {
                event_id,
                event_name,
                consumer_name,
                attempt,
                duration: duration.unwrap_or_default(),
                skipped: matches!(mark, Mark::Skipped { .. }),
            });
        }),
        Mark::Failed { error, gave_up, .. } => {
            core.failures.note(event_id, consumer_name, core.clock.now());
            core.tell(|observer| {
                observer.failed(&Failed {
                    event_id,
                    event_name,
                    consumer_name,
                    attempt,
                    duration,
                    gave_up: *gave_up,
                    error,
                });
            });
        }
        Mark::Lost { .. } => {}
    }
}

/// After the commit that settled it, in the transaction of its handler.
pub(super) fn settled(core: &Core, delivery: &Delivery, settlement: &Settlement) {
    let (status, error) = match settlement {
        Settlement::DeadLetter { error } => (OutboxStatus::DeadLetter, error),
        Settlement::Failed { error } => (OutboxStatus::Failed, error),
        _ => return,
    };
    if core.is_observed() {
        let event = &delivery.event;
        core.tell_dead(&[Dead {
            id: event.id,
            name: event.name.clone(),
            attempt: event.attempt,
            status,
            error: error.clone(),
        }]);
    }
}

/// What is done between two moments at which nothing is due.
#[derive(Default)]
pub(super) struct Spell {
    begun: Option<Instant>,
    processed: usize,
}

impl Spell {
    pub(super) fn begin() -> Self {
        Spell { begun: Some(Instant::now()), processed: 0 }
    }

    /// Something was done, and so many events reached `processed`.
    pub(super) fn note(&mut self, processed: usize) {
        self.begun.get_or_insert_with(Instant::now);
        self.processed += processed;
    }

    /// Nothing is due.
    pub(super) fn end(&mut self, core: &Core) {
        if let Spell { begun: Some(begun), processed } = std::mem::take(self) {
            let drained = Drained { processed, duration: begun.elapsed() };
            core.tell(|observer| observer.drained(&drained));
        }
    }
}
