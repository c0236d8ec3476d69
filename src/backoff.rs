//! How long a failed event waits.

use std::time::Duration;

use crate::error::{Error, Result};

/// How long an event waits after a failed attempt.
///
/// ```
/// # use postbox::Backoff;
/// # use std::time::Duration;
/// let backoff = Backoff::exponential(Duration::from_secs(1)).max(Duration::from_secs(60)).jitter(0.2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct Backoff {
    base: Duration,
    doubles: bool,
    cap: Option<Duration>,
    jitter: f64,
}

impl Backoff {
    /// `base` x 2^(failures before this one): `base` after the first failure, twice that after the second, and so on.
    pub fn exponential(base: Duration) -> Self {
        Backoff { base, doubles: true, cap: None, jitter: 0.0 }
    }

    /// The same delay after every failure.
    pub fn fixed(delay: Duration) -> Self {
        Backoff { base: delay, doubles: false, cap: None, jitter: 0.0 }
    }

    /// No delay is longer than `cap`, jitter included. There is no cap when not given.
    pub fn max(self, cap: Duration) -> Self {
        Backoff { cap: Some(cap), ..self }
    }

    /// Spreads delays so that many failures do not come back at once: each is changed by a random amount of up to
    /// `fraction` of itself, either way. 0.0 (exact) when not given; at most 1.0.
    pub fn jitter(self, fraction: f64) -> Self {
        Backoff { jitter: fraction, ..self }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.jitter) {
            Ok(())
        } else {
            Err(Error::invalid("backoff", format!("jitter must be from 0.0 to 1.0, not {}", self.jitter)))
        }
    }

    /// The delay after a failure that `failures_before` others came before. `random` is from 0.0 to 1.0.
    pub(crate) fn delay(&self, failures_before: u32, random: impl FnOnce() -> f64) -> Duration {
        let exact = if self.doubles { doubled(self.base, failures_before) } else { self.base };
        let exact = self.cap.map_or(exact, |cap| exact.min(cap));
        if self.jitter == 0.0 {
            return exact;
        }
        let spread = 1.0 + self.jitter * (2.0 * random() - 1.0);
        let jittered = Duration::try_from_secs_f64(exact.as_secs_f64() * spread).unwrap_or(exact);
        self.cap.map_or(jittered, |cap| jittered.min(cap))
    }
}

fn doubled(base: Duration, times: u32) -> Duration {
    let nanos = 1_u128.checked_shl(times).and_then(|factor| base.as_nanos().checked_mul(factor));
    let parts = nanos.and_then(|nanos| {
        u64::try_from(nanos / 1_000_000_000).ok().zip(u32::try_from(nanos % 1_000_000_000).ok())
    });
    match parts {
        Some((seconds, nanos)) => Duration::new(seconds, nanos),
        None if base.is_zero() => Duration::ZERO,
        None => Duration::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn exponential_is_exactly_base_times_two_to_the_failures_before() {
        let backoff = Backoff::exponential(Duration::from_millis(1_500));
        for (failures, millis) in [(0, 1_500), (1, 3_000), (2, 6_000), (10, 1_536_000)] {
            assert_eq!(backoff.delay(failures, || unreachable!()), Duration::from_millis(millis));
        }
    }

    #[test]
    fn delays_never_overflow() {
        assert_eq!(Backoff::exponential(SECOND).delay(5_000, || 0.5), Duration::MAX);
        assert_eq!(Backoff::exponential(SECOND).max(SECOND * 60).delay(5_000, || 0.5), SECOND * 60);
        assert_eq!(Backoff::exponential(Duration::ZERO).delay(5_000, || 0.5), Duration::ZERO);
        let _ = Backoff::exponential(SECOND).jitter(1.0).delay(5_000, || 1.0);
    }

    #[test]
    fn jitter_stays_within_its_fraction_and_below_the_cap() {
        let backoff = Backoff::fixed(SECOND * 10).jitter(0.2);
        assert_eq!(backoff.delay(3, || 0.0), SECOND * 8);
        assert_eq!(backoff.delay(3, || 0.5), SECOND * 10);
        assert_eq!(backoff.delay(3, || 1.0), SECOND * 12);
        assert_eq!(backoff.max(SECOND * 11).delay(3, || 1.0), SECOND * 11);
    }

    #[test]
    fn a_jitter_that_is_no_fraction_is_refused() {
        for fraction in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(Backoff::fixed(SECOND).jitter(fraction).validate().is_err());
        }
    }
}
