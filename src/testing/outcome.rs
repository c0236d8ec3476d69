//! What one call of a handler came to.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::handler::{HandlerError, HandlerResult, Verdict};

/// What one call of a handler came to. Unlike everywhere else, its `Debug` shows the text of the error: it is the test's own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It returned `Ok`.
    Processed,
    /// It is to be tried again: [`HandlerError::retry`], `?`, or [`HandlerError::retry_after`] with its delay.
    Retry {
        /// The error's text, with those of its sources.
        why: String,
        /// `None`: after the subscription's backoff.
        after: Option<Duration>,
    },
    /// It is never to be tried again: [`HandlerError::dead_letter`].
    DeadLetter {
        /// The error's text.
        why: String,
    },
    /// The consumer is done with the event without having handled it: [`HandlerError::skip`].
    Skipped {
        /// The error's text.
        why: String,
    },
    /// Its consumer is to be paused: [`HandlerError::pause_consumer`].
    PauseConsumer {
        /// The reason.
        why: String,
        /// For how long.
        duration: Duration,
    },
    /// A saga's event came before the one that starts it, or is newer than its handler's type: it is tried again, without an attempt
    /// spent.
    TooEarly {
        /// What it waits for.
        why: String,
        /// How long until it is tried again.
        after: Duration,
    },
    /// It panicked, which is a failed attempt.
    Panicked {
        /// What it panicked with, where that is text.
        message: String,
    },
}

impl From<HandlerError> for Outcome {
    fn from(error: HandlerError) -> Self {
        let HandlerError { verdict, message: why, .. } = error;
        match verdict {
            Verdict::Retry => Outcome::Retry { why, after: None },
            Verdict::RetryAfter(after) => Outcome::Retry { why, after: Some(after) },
            Verdict::DeadLetter => Outcome::DeadLetter { why },
            Verdict::Skip => Outcome::Skipped { why },
            Verdict::PauseConsumer(duration) => Outcome::PauseConsumer { why, duration },
            Verdict::Wait(after) => Outcome::TooEarly { why, after },
        }
    }
}

impl From<HandlerResult> for Outcome {
    fn from(result: HandlerResult) -> Self {
        result.map_or_else(Outcome::from, |()| Outcome::Processed)
    }
}

impl Outcome {
    pub(super) fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Outcome::Panicked { message: text.unwrap_or("something that is no text").to_owned() }
    }

    /// Of this call.
    pub(super) fn of(call: impl FnOnce() -> HandlerResult) -> Self {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(result) => result.into(),
            Err(panic) => Outcome::of_panic(&*panic),
        }
    }
}
