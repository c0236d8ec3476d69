//! A subscription's circuit breaker: failures in a row pause its consumer.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::handler::{HandlerError, HandlerResult, Verdict};
use crate::pauses;
use crate::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug)]
pub(crate) struct Breaker {
    failures: u32,
    pub(crate) pause: Duration,
    /// In memory alone: a restart begins at none.
    in_a_row: AtomicU32,
}

impl Breaker {
    pub(crate) fn new(failures: u32, pause: Duration) -> Self {
        Breaker { failures, pause, in_a_row: AtomicU32::new(0) }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.failures == 0 {
            return Err(Error::invalid("circuit_breaker", "must be at least one failure"));
        }
        if self.pause < pauses::LEAST {
            return Err(Error::invalid("circuit_breaker", "must pause for at least 100 ms"));
        }
        Ok(())
    }

    pub(crate) fn in_a_row(&self) -> u32 {
        self.in_a_row.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, in_a_row: u32) {
        self.in_a_row.store(in_a_row, Ordering::Relaxed);
    }

    /// Counts this one, and says how many have failed in a row.
    pub(crate) fn note(&self, result: &HandlerResult) -> u32 {
        let count = |before| Some(Breaker::after(before, result));
        let before = self.in_a_row.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
        Breaker::after(before.unwrap_or_default(), result)
    }

    /// How many have failed in a row with this one. It stays at or above the limit while the breaker is open, so that the first
    /// failure after the pause opens it again.
    pub(crate) fn after(before: u32, result: &HandlerResult) -> u32 {
        match result {
            Ok(()) | Err(HandlerError { verdict: Verdict::Skip, .. }) => 0,
            Err(HandlerError { verdict: Verdict::PauseConsumer(_) | Verdict::Wait(_), .. }) => before,
            Err(_) => before.saturating_add(1),
        }
    }

    /// Why the consumer is to be paused, if it is.
    pub(crate) fn trips(&self, in_a_row: u32, result: &HandlerResult) -> Option<String> {
        match result {
            Err(HandlerError { verdict, message, .. })
                if in_a_row >= self.failures
                    && !matches!(verdict, Verdict::Skip | Verdict::PauseConsumer(_) | Verdict::Wait(_)) =>
            {
                Some(format!("circuit breaker: {in_a_row} failures in a row: {message}"))
            }
            _ => None,
        }
    }
}
