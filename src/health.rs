//! How a box's worker fares.

use std::sync::PoisonError;
use std::time::Instant;

use serde::Serialize;

use crate::error::Error;
use crate::fault::Fault;
use crate::sync::{Mutex, MutexGuard};

/// How the box's worker fares: in [`Stats`](crate::Stats), and from [`Postbox::health`](crate::Postbox::health) also while the
/// file cannot be read.
///
/// What `publish` and the other calls come upon they tell their callers; it is not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Health {
    /// Nothing is in the way, or no worker runs.
    Ok,
    /// The worker cannot do its work. It tries again by itself, after longer and longer pauses up to one poll
    /// (`polling_interval_ms`, and never more than five seconds); no attempt of any event is spent.
    Waiting {
        /// What is in the way.
        fault: Fault,
        /// The last error's text: which operation, on what, and why.
        reason: String,
        /// How often it has tried in vain.
        tries: u32,
        /// Since when, in milliseconds.
        for_ms: u64,
    },
    /// The worker has ended by itself, after a panic in the library or the application's clock. Start another.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Where a box notes it.
#[derive(Default)]
pub(crate) struct HealthBook {
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    Ok,
    Waiting {
        fault: Fault,
        reason: String,
        tries: u32,
        since: Instant,
    },
    Stopped,
}

impl HealthBook {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn waits_after(&self, error: &Error) {
        let mut state = self.state();
        let (tries, since) = match &*state {
            State::Waiting { tries, since, .. } => (tries.saturating_add(1), *since),
            State::Ok | State::Stopped => (1, Instant::now()),
        };
        let fault = error.fault().unwrap_or(Fault::Other);
        *state = State::Waiting { fault, reason: error.to_string(), tries, since };
    }

    pub(crate) fn is_well(&self) {
        *self.state() = State::Ok;
    }

    pub(crate) fn has_stopped(&self) {
        *self.state() = State::Stopped;
    }

    pub(crate) fn get(&self) -> Health {
        match &*self.state() {
            State::Ok => Health::Ok,
            State::Waiting { fault, reason, tries, since } => Health::Waiting {
                fault: *fault,
                reason: reason.clone(),
                tries: *tries,
                for_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            },
            State::Stopped => Health::Stopped {
                reason: "the worker panicked: its claims come due when their leases run out".to_owned(),
            },
        }
    }
}
