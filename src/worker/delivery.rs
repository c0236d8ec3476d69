//! One claimed event on its way through its consumers, and what its attempt comes to.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::under_way::UnderWay;
use crate::backoff::Backoff;
use crate::clock::{self, BoxClock, LIMITED_UNTIL, NEWER_UNTIL, WAITING_UNTIL};
use crate::error::Error;
use crate::event::Event;
use crate::handler::{HandlerError, HandlerResult, Verdict};
use crate::inbox::Mark;
use crate::limiter::Permit;
use crate::outbox::claim::{Claim, Unparsed};
use crate::outbox::settle::Settlement;
use crate::pauses::Pauses;
use crate::registry::Consumers;
use crate::settings::Settings;
use crate::subscription::Subscription;
use crate::sync::atomic::Ordering;
use crate::validate;

/// A claimed event and the consumers that it still has to reach in this attempt.
pub(crate) struct Delivery {
    pub(crate) claim: Claim,
    pub(crate) event: Event,
    /// What the event still lacks, until it is first run.
    pub(crate) unparsed: Option<Unparsed>,
    /// Those that run in this attempt, in order.
    pub(crate) consumers: Consumers,
    /// Room with those of them that have limits.
    pub(crate) permits: Vec<Permit>,
    /// How often each of them failed for this event before; empty when none of them ever did.
    pub(crate) failures_before: Vec<u32>,
    /// The event had no inbox rows when it was claimed.
    pub(crate) is_fresh: bool,
    /// The first that has not run.
    pub(crate) next: usize,
    pub(crate) attempt: Attempt,
    /// Outcomes of this attempt that nobody has written yet: of `consumers`, by place.
    pub(crate) marks: Vec<(usize, Mark)>,
    pub(crate) under_way: Arc<UnderWay>,
    /// Transactional consumers whose work could not be committed in this attempt, and why: they are not run again in it.
    pub(crate) refused: Vec<(usize, String)>,
    /// How often its transactional handlers came upon a page of the file that is damaged.
    pub(crate) damage_met: u32,
}

impl Delivery {
    /// What to say when every consumer has had its turn.
    pub(crate) fn finish(self) -> Report {
        let Delivery { claim, consumers, marks, attempt, .. } = self;
        let all = marks.len() == consumers.len() && marks.iter().all(|(_, mark)| *mark == Mark::Processed);
        if self.is_fresh && all {
            Report::Processed { claim, consumers }
        } else {
            Report::Finished { claim, consumers, marks, attempt }
        }
    }

    /// What to say when a fault of the file, which is no handler's, keeps it from going on.
    pub(crate) fn interrupt(self, fault: Option<Error>) -> Report {
        if !self.is_begun() {
            return Report::GivenBack { claim: self.claim, fault };
        }
        let Delivery { claim, consumers, marks, attempt, .. } = self;
        Report::Interrupted { claim, consumers, marks, attempt, fault }
    }

    /// What to say when a handler came upon a fault of the file, which is not its own: it waits, and the others go on.
    pub(crate) fn postpone(self, fault: Error) -> Report {
        let Delivery { claim, consumers, marks, attempt, .. } = self;
        let why = validate::error_text(&fault.to_string());
        Report::Postponed { claim, consumers, marks, attempt, why, fault: Some(fault), at_once: false }
    }

    /// Before the first handler sees it: completes the event, or says why nobody can handle it.
    pub(crate) fn make_ready(&mut self) -> std::result::Result<(), String> {
        self.unparsed.take().map_or(Ok(()), |unparsed| unparsed.parse_into(&mut self.event))
    }

    pub(crate) fn next_consumer(&self) -> Option<&Arc<Subscription>> {
        self.consumers.get(self.next)
    }

    /// The handler of this consumer begins.
    pub(crate) fn begin(&self, consumer: &Arc<Subscription>, clock: &BoxClock) {
        if let Some(permit) = self.permits.iter().find(|permit| permit.is_of(consumer)) {
            permit.begin(clock.now());
        }
    }

    pub(crate) fn next_is_transactional(&self) -> bool {
        self.next_consumer().is_some_and(|consumer| consumer.is_transactional())
    }

    /// How often the consumer at this place failed before this attempt.
    pub(crate) fn failures_before(&self, consumer: usize) -> u32 {
        self.failures_before.get(consumer).copied().unwrap_or(0)
    }

    /// Whether a transactional consumer is still to come: it will settle, and write what is not written yet.
    pub(crate) fn has_transactional_ahead(&self) -> bool {
        self.consumers[self.next..].iter().any(|consumer| consumer.is_transactional())
    }

    /// Whether a plain consumer is still to come: the event leaves the transaction that it shares.
    pub(crate) fn has_plain_ahead(&self) -> bool {
        self.consumers[self.next..].iter().any(|consumer| !consumer.is_transactional())
    }

    pub(crate) fn refusal_of(&self, consumer: usize) -> Option<&str> {
        self.refused.iter().find(|(refused, _)| *refused == consumer).map(|(_, why)| why.as_str())
    }

    /// Whether any handler has run for it in this attempt.
    pub(crate) fn is_begun(&self) -> bool {
        self.next > 0 || !self.refused.is_empty()
    }

    /// Whether the worker is stopping: nothing new is begun.
    pub(crate) fn is_stopping(&self) -> bool {
        self.under_way.cancellation.stopping.load(Ordering::Relaxed)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.under_way.cancellation.lost.load(Ordering::Relaxed)
    }
}

/// What is known of an attempt so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempt {
    /// Some consumer may try again: after the longest of the delays.
    retry_after: Option<Duration>,
    /// Some consumer has failed for good, in this attempt or before.
    pub(crate) gave_up: bool,
    /// Failures of this attempt: consumer and error.
    failures: Vec<(String, String)>,
    /// Failures of earlier attempts of consumers that have given up.
    pub(crate) earlier: Vec<(String, String)>,
    /// Consumers that have not had their turn, since they are paused.
    pub(crate) paused: Vec<String>,
    /// Consumers whose turn it was not.
    pub(crate) waiting: Vec<Arc<Subscription>>,
    /// Consumers that had no room for it.
    pub(crate) limited: Vec<Arc<Subscription>>,
    /// A consumer does not know the version of its payload.
    pub(crate) is_newer: bool,
    /// It ended before all consumers had their turn, and through none of their fault: they have it in the next.
    pub(crate) is_cut: bool,
    /// Some consumer is to have it later, for which it is not to blame: after the longest of the delays, and why.
    too_early: Option<(Duration, String)>,
    /// Consumers that it is replayed to, and that do not subscribe here.
    pub(crate) absent: Vec<String>,
}

impl Attempt {
    /// One consumer's outcome: what its inbox row will say, if anything. `duration`: how long its handler ran, if it did.
    pub(crate) fn note(
        &mut self,
        subscription: &Subscription,
        failures_before: u32,
        result: HandlerResult,
        duration: Option<Duration>,
        settings: &Settings,
    ) -> Option<Mark> {
        let Err(HandlerError { verdict, message, .. }) = result else { return Some(Mark::Processed) };
        let error = validate::error_text(&message);
        match verdict {
            Verdict::Skip => return Some(Mark::Skipped { why: error }),
            Verdict::PauseConsumer(_) => {
                self.paused.push(subscription.consumer_name.clone());
                return None;
            }
            Verdict::Wait(after) => {
                if self.too_early.as_ref().is_none_or(|(longest, _)| *longest < after) {
                    self.too_early = Some((after, error));
                }
                return None;
            }
            Verdict::Retry | Verdict::RetryAfter(_) | Verdict::DeadLetter => {}
        }
        let gave_up = verdict == Verdict::DeadLetter
            || failures_before.saturating_add(1) >= subscription.attempts_in(settings);
        if gave_up {
            self.gave_up = true;
        } else {
            let delay = match verdict {
                Verdict::RetryAfter(after) => after,
                _ => backoff(subscription, settings).delay(failures_before, random_fraction),
            };
            self.retry_after = Some(self.retry_after.unwrap_or_default().max(delay));
        }
        self.failures.push((subscription.consumer_name.clone(), error.clone()));
        Some(Mark::Failed { error, gave_up, duration })
    }

    /// Those that had no room remember the event, which is parked for them.
    pub(crate) fn remember(&self, seq: i64, settlement: &Settlement) {
        if matches!(settlement, Settlement::Parked { available_at: LIMITED_UNTIL }) {
            self.limited
                .iter()
                .filter_map(|of| of.limiter.as_ref())
                .for_each(|limiter| limiter.note_waiting(seq));
        }
    }

    /// Whether some consumer has not had its turn, for which nobody is to blame.
    pub(crate) fn is_to_wait(&self) -> bool {
        self.is_to_wait_here() || !self.absent.is_empty()
    }

    fn is_to_wait_here(&self) -> bool {
        self.too_early.is_some()
            || !self.paused.is_empty()
            || !self.waiting.is_empty()
            || !self.limited.is_empty()
            || self.is_newer
    }

    /// Whether nothing is left of it but to wait for those that are absent.
    pub(crate) fn is_to_be_held(&self) -> bool {
        !self.absent.is_empty() && !self.gave_up && !self.is_to_wait_here()
    }

    /// What the attempt comes to for the event, once every consumer that need not wait has had its turn, or it was cut.
    /// `pauses`: those of the transaction that settles it, where they are looked up.
    pub(crate) fn settlement(&self, settings: &Settings, now: i64, pauses: Option<&Pauses>) -> Settlement {
        let error = || {
            let of = if self.failures.is_empty() { &self.earlier } else { &self.failures };
            validate::error_text(&join(of))
        };
        match self.retry_after {
            Some(delay) => Settlement::Retry { available_at: clock::add(now, delay), error: error() },
            None if self.is_cut => Settlement::Retry { available_at: now, error: error() },
            None if let Some((delay, why)) = &self.too_early => {
                Settlement::Postponed { available_at: clock::add(now, *delay), error: why.clone() }
            }
            None if self.is_to_wait_here() => self.wait(now, pauses),
            // It is planned anew, and held for them.
            None if self.is_to_be_held() => Settlement::GivenBack,
            None if !self.gave_up => Settlement::Processed,
            None if settings.dead_letter_enabled => Settlement::DeadLetter { error: error() },
            None => Settlement::Failed { error: error() },
        }
    }

    /// For the consumers that are paused, behind others, have no room, or are too old. One that is not paused any more is to have its turn at once;
    /// whether it is the turn of one that was behind others is looked at once this is written (ordering.rs).
    fn wait(&self, now: i64, pauses: Option<&Pauses>) -> Settlement {
        let due: Option<Vec<i64>> = self.paused.iter().map(|name| pauses?.of_consumer(name, now)).collect();
        match due {
            None => Settlement::GivenBack,
            // Those that have no room come first: when there is some, all is planned anew.
            Some(_) if !self.limited.is_empty() => Settlement::Parked { available_at: LIMITED_UNTIL },
            // What waits for a newer release alone is found by that; with others it is where they are looked for (newer.rs).
            Some(due) => {
                let last = if self.waiting.is_empty() { NEWER_UNTIL } else { WAITING_UNTIL };
                Settlement::Parked { available_at: due.into_iter().min().unwrap_or(last) }
            }
        }
    }

    /// The same while some consumers have not had their turn, for which they are not to blame: no attempt is spent, unless
    /// somebody failed who has to wait.
    pub(crate) fn settlement_so_far(&self, settings: &Settings, now: i64) -> Settlement {
        match self.settlement(settings, now, None) {
            retry @ Settlement::Retry { .. } => retry,
            _ => Settlement::GivenBack,
        }
    }

    /// The same where a handler came upon a fault of the file: it is tried again within a poll.
    pub(crate) fn settlement_later(
        &self,
        settings: &Settings,
        now: i64,
        why: &str,
        at_once: bool,
    ) -> Settlement {
        let settlement = self.settlement(settings, now, None);
        if matches!(settlement, Settlement::Retry { .. }) {
            return settlement;
        }
        let delay = if at_once { 0 } else { settings.polling_interval_ms };
        let delay = POSTPONED_MAX.min(Duration::from_millis(delay));
        Settlement::Postponed { available_at: clock::add(now, delay), error: why.to_owned() }
    }
}

/// How long an event whose handler came upon a fault of the file waits, at the most.
const POSTPONED_MAX: Duration = Duration::from_secs(5);

fn backoff(subscription: &Subscription, settings: &Settings) -> Backoff {
    subscription
        .backoff
        .unwrap_or_else(|| Backoff::exponential(Duration::from_millis(settings.retry_base_delay_ms)))
}

/// One error stands as it is; of several, each says whose it is.
fn join(failures: &[(String, String)]) -> String {
    match failures {
        [(_, error)] => error.clone(),
        several => {
            let parts: Vec<_> =
                several.iter().map(|(consumer, error)| format!("{consumer}: {error}")).collect();
            parts.join("; ")
        }
    }
}

/// From 0.0 to 1.0, out of the 53 lowest of a random UUID's bits.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
fn random_fraction() -> f64 {
    const BITS: u64 = (1 << 53) - 1;
    (Uuid::new_v4().as_u64_pair().1 & BITS) as f64 / BITS as f64
}

/// What the threads that deliver tell whoever settles.
pub(crate) enum Report {
    /// One consumer of several is done: its mark is written without waiting for the others.
    Marked { claim: Claim, consumer: String, mark: Mark },
    /// Every consumer has processed an event of which there were no inbox rows: nearly all end so.
    Processed { claim: Claim, consumers: Consumers },
    /// Every consumer has had its turn, or the attempt was cut.
    Finished { claim: Claim, consumers: Consumers, marks: Vec<(usize, Mark)>, attempt: Attempt },
    /// Settled already, in the transaction of its handler.
    Settled { claim: Claim, processed: bool },
    /// The lease was lost: nothing of it may be written.
    Lost { claim: Claim },
    /// It was not begun, or nobody knows what its handlers said.
    GivenBack { claim: Claim, fault: Option<Error> },
    /// A fault that is not its handlers' kept it from ending. What those that have run said stands.
    Interrupted {
        claim: Claim,
        consumers: Consumers,
        marks: Vec<(usize, Mark)>,
        attempt: Attempt,
        fault: Option<Error>,
    },
    /// One of its handlers came upon a fault of the file. What those that have run said stands.
    Postponed {
        claim: Claim,
        consumers: Consumers,
        marks: Vec<(usize, Mark)>,
        attempt: Attempt,
        why: String,
        fault: Option<Error>,
        /// By hand the caller says when it is tried again.
        at_once: bool,
    },
    /// Its outcome cannot be recorded, whatever it is: something of the application's in the file forbids it.
    Broken { claim: Claim, error: String },
    /// Its next consumer is for another thread.
    Continues(Box<Delivery>),
}

impl Report {
    /// The claim that it is about.
    pub(crate) fn claim(&self) -> Claim {
        match self {
            Report::Marked { claim, .. }
            | Report::Processed { claim, .. }
            | Report::Finished { claim, .. }
            | Report::Settled { claim, .. }
            | Report::Lost { claim }
            | Report::GivenBack { claim, .. }
            | Report::Interrupted { claim, .. }
            | Report::Postponed { claim, .. }
            | Report::Broken { claim, .. } => *claim,
            Report::Continues(delivery) => delivery.claim,
        }
    }

    /// Why it was given back, which is told once.
    pub(crate) fn take_fault(&mut self) -> Option<Error> {
        match self {
            Report::GivenBack { fault, .. } | Report::Interrupted { fault, .. } => fault.take(),
            _ => None,
        }
    }

    /// The fault that a handler came upon, which is told once.
    pub(crate) fn take_fault_of_handler(&mut self) -> Option<Error> {
        match self {
            Report::Postponed { fault, .. } => fault.take(),
            _ => None,
        }
    }

    /// What a handler's fault kept from ending may be tried again as soon as somebody asks.
    pub(crate) fn wait_for_nobody(&mut self) {
        if let Report::Postponed { at_once, .. } = self {
            *at_once = true;
        }
    }

    /// Whether it says what came of handlers, rather than that a fault was in their way.
    pub(crate) fn is_of_handlers(&self) -> bool {
        !matches!(self, Report::GivenBack { .. } | Report::Interrupted { .. } | Report::Postponed { .. })
    }

    /// Whether what handlers came to is still to be written.
    pub(crate) fn is_to_be_written(&self) -> bool {
        matches!(self, Report::Marked { .. } | Report::Processed { .. } | Report::Finished { .. })
    }

    /// The claim that is over with this report.
    pub(crate) fn ends(&self) -> Option<Claim> {
        match self {
            Report::Marked { .. } | Report::Continues(_) => None,
            report => Some(report.claim()),
        }
    }
}
