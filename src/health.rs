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
    /// The worker cannot do its work, or its handlers cannot do theirs in the file (a transactional handler that finds the disk full;
    /// the others go on meanwhile). It tries again by itself, after longer and longer pauses up to one poll
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
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    has_stopped: bool,
    /// What the worker itself waits for.
    worker: Option<Waiting>,
    /// What its handlers do.
    handlers: Option<Waiting>,
}

struct Waiting {
    fault: Fault,
    reason: String,
    tries: u32,
    since: Instant,
}

impl Waiting {
    fn after(before: Option<Waiting>, error: &Error) -> Self {
        let (tries, since) = before
            .map_or_else(|| (1, Instant::now()), |before| (before.tries.saturating_add(1), before.since));
        let fault = error.fault().unwrap_or(Fault::Other);
        Waiting { fault, reason: error.to_string(), tries, since }
    }
}

impl HealthBook {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn waits_after(&self, error: &Error) {
        let mut books = self.books();
        books.worker = Some(Waiting::after(books.worker.take(), error));
    }

    /// The worker does its work.
    pub(crate) fn is_well(&self) {
        self.books().worker = None;
    }

    pub(crate) fn handlers_wait_after(&self, error: &Error) {
        let mut books = self.books();
        books.handlers = Some(Waiting::after(books.handlers.take(), error));
    }

    pub(crate) fn handlers_are_well(&self) {
        self.books().handlers = None;
    }

    /// A worker begins, or ends: nobody waits.
    pub(crate) fn begin_anew(&self) {
        *self.books() = Books::default();
    }

    pub(crate) fn has_stopped(&self) {
        *self.books() = Books { has_stopped: true, ..Books::default() };
    }

    pub(crate) fn get(&self) -> Health {
        let books = self.books();
        if books.has_stopped {
            let reason = "the worker panicked: its claims come due when their leases run out".to_owned();
            return Health::Stopped { reason };
        }
        match books.worker.as_ref().or(books.handlers.as_ref()) {
            None => Health::Ok,
            Some(Waiting { fault, reason, tries, since }) => Health::Waiting {
                fault: *fault,
                reason: reason.clone(),
                tries: *tries,
                for_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            },
        }
    }
}
