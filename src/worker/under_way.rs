//! What the worker and the thread that runs a delivery's handlers share while it is under way.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::delivery::{Attempt, Delivery};
use crate::handler::Cancellation;
use crate::inbox::Mark;
use crate::limiter::Permit;
use crate::registry::Consumers;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct UnderWay {
    pub(crate) cancellation: Cancellation,
    /// The plain handler that runs, where it has a time limit. Whoever takes it says what came of it: its thread when it
    /// returns, or the worker, which does not wait for ever.
    timed: Mutex<Option<Timed>>,
}

impl UnderWay {
    pub(crate) fn new(stopping: Arc<AtomicBool>) -> Arc<Self> {
        let cancellation = Cancellation { stopping, lost: AtomicBool::new(false) };
        Arc::new(UnderWay { cancellation, timed: Mutex::new(None) })
    }

    /// Tells its handlers that nobody waits for them: nothing further is begun.
    pub(super) fn lose(&self) {
        self.cancellation.lost.store(true, Ordering::Relaxed);
    }

    /// A plain handler with a time limit begins.
    pub(super) fn begin(&self, timed: Timed) {
        *self.timed.lock().unwrap_or_else(PoisonError::into_inner) = Some(timed);
    }

    /// It has returned. `None`: the worker had given it up by then, and has said what came of it.
    pub(super) fn end(&self) -> Option<Timed> {
        self.timed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether its handler goes on past its time limit.
    pub(super) fn is_overdue(&self) -> bool {
        self.timed.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(Timed::is_overdue)
    }

    /// Gives its handler up, if that goes on past its time limit: what it says later counts for nothing.
    pub(super) fn give_up_overdue(&self) -> Option<Timed> {
        let given_up = {
            let mut timed = self.timed.lock().unwrap_or_else(PoisonError::into_inner);
            timed.take_if(|timed| timed.is_overdue())
        };
        if given_up.is_some() {
            self.lose();
        }
        given_up
    }
}

/// A call of a plain handler that has a time limit, and what else is known of its attempt: all that it takes to end that
/// without the thread.
pub(crate) struct Timed {
    pub(super) begun: Instant,
    pub(super) limit: Duration,
    pub(super) event_name: String,
    pub(super) event_attempt: u32,
    pub(super) consumers: Consumers,
    pub(super) place: usize,
    pub(super) failures_before: u32,
    pub(super) attempt: Attempt,
    pub(super) marks: Vec<(usize, Mark)>,
    /// Room with the consumers behind it, which others need when it hangs. Its own it has for as long as it runs.
    pub(super) permits_behind: Vec<Permit>,
}

impl Timed {
    /// Of the delivery's next consumer, if that has a time limit.
    pub(super) fn of(delivery: &mut Delivery, begun: Instant) -> Option<Self> {
        let next = Arc::clone(delivery.next_consumer()?);
        let limit = next.time_limit?;
        let permits_behind = delivery.permits.extract_if(.., |permit| !permit.is_of(&next)).collect();
        Some(Timed {
            begun,
            limit,
            event_name: delivery.event.name.clone(),
            event_attempt: delivery.event.attempt,
            consumers: Arc::clone(&delivery.consumers),
            place: delivery.next,
            failures_before: delivery.failures_before(delivery.next),
            attempt: delivery.attempt.clone(),
            marks: delivery.marks.clone(),
            permits_behind,
        })
    }

    // Not by the box's clock: a jump of that says nothing about the handler.
    fn is_overdue(&self) -> bool {
        self.begun.elapsed() >= self.limit
    }
}
