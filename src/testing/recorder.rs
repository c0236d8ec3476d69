//! A consumer that writes down what it receives.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::failures::Failure;
use super::made_up;
use super::outcome::Outcome;
use crate::crash::Crashed;
use crate::event::Event;
use crate::handler::{Context, Handler, HandlerResult, TransactionalHandler};
use crate::subscription::Subscription;
use crate::tx::Tx;

/// A consumer that writes down what it receives, and what it said to it. It succeeds, unless it is told to fail; and where it is put
/// [around](Recorder::around) a handler, that one does the work. Clones share what they have written down.
///
/// ```
/// use postbox::testing::{Outcome, Recorder, TestBox};
/// use postbox::{HandlerError, NewEvent};
///
/// let (postbox, mail) = (TestBox::new(), Recorder::new("mail"));
/// mail.fail_attempt(1, HandlerError::retry("the server is down"));
/// postbox.subscribe(mail.subscription("invoice.*"))?;
/// postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
/// postbox.drain_all();
///
/// let calls = mail.calls();
/// assert_eq!(calls[0].outcome, Outcome::Retry { why: "the server is down".to_owned(), after: None });
/// assert_eq!((calls[1].event.attempt(), &calls[1].outcome), (2, &Outcome::Processed));
/// # Ok::<(), postbox::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    consumer: String,
    failures: Mutex<Vec<(When, Failure)>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    begun: usize,
    calls: Vec<RecordedCall>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Attempt(u32),
    Call(usize),
}

/// One call of a [`Recorder`] that has ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RecordedCall {
    /// What it was given.
    pub event: Arc<Event>,
    /// What it said. For a transactional one: what becomes of it is decided when the transaction that it shares with others commits,
    /// and it is called again where that has to begin again.
    pub outcome: Outcome,
}

impl Recorder {
    /// For the consumer of this name.
    pub fn new(consumer_name: impl Into<String>) -> Self {
        Recorder {
            shared: Arc::new(Shared {
                consumer: consumer_name.into(),
                failures: Mutex::default(),
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
        }
    }

    /// Its subscription, with a plain handler, to be changed further and subscribed: as often as there are names.
    pub fn subscription(&self, event_name: impl Into<String>) -> Subscription {
        self.around(event_name, |_: &Event, _: &Context<'_>| Ok(()))
    }

    /// The same with a transactional handler.
    pub fn transactional(&self, event_name: impl Into<String>) -> Subscription {
        self.around_transactional(event_name, |_: &Event, _: &Tx<'_>| Ok(()))
    }

    /// The same with a handler that does the work, when it is not to fail.
    pub fn around(&self, event_name: impl Into<String>, handler: impl Handler) -> Subscription {
        let shared = Arc::clone(&self.shared);
        let handle =
            move |event: &Event, cx: &Context<'_>| shared.record(event, || handler.handle(event, cx));
        Subscription::new(event_name, &self.shared.consumer, handle)
    }

    /// The same with a transactional one.
    pub fn around_transactional(
        &self,
        event_name: impl Into<String>,
        handler: impl TransactionalHandler,
    ) -> Subscription {
        let shared = Arc::clone(&self.shared);
        let handle = move |event: &Event, tx: &Tx<'_>| shared.record(event, || handler.handle(event, tx));
        Subscription::transactional(event_name, &self.shared.consumer, handle)
    }

    /// At the `n`-th attempt of each event, as [`Event::attempt`] counts from 1, it fails like this and does nothing else. May be said
    /// at any time.
    ///
    /// # Panics
    /// When `n` is 0: it would never fail.
    #[track_caller]
    pub fn fail_attempt(&self, n: u32, failure: impl Into<Failure>) -> &Self {
        assert!(n > 0, "attempts are counted from 1");
        self.fail(When::Attempt(n), failure.into())
    }

    /// The same at its `n`-th call, of whatever event, counted from 1.
    ///
    /// # Panics
    /// When `n` is 0: it would never fail.
    #[track_caller]
    pub fn fail_call(&self, n: usize, failure: impl Into<Failure>) -> &Self {
        assert!(n > 0, "calls are counted from 1");
        self.fail(When::Call(n), failure.into())
    }

    fn fail(&self, when: When, failure: Failure) -> &Self {
        self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).push((when, failure));
        self
    }

    /// The calls that have ended, in that order.
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.shared.state().calls.clone()
    }

    /// What it was given, call by call: an event that was retried is there once for each attempt.
    pub fn events(&self) -> Vec<Arc<Event>> {
        self.calls().into_iter().map(|call| call.event).collect()
    }

    /// The events that it has handled: whose call returned `Ok`.
    pub fn handled(&self) -> Vec<Arc<Event>> {
        let is_handled = |call: &RecordedCall| call.outcome == Outcome::Processed;
        self.calls().into_iter().filter(is_handled).map(|call| call.event).collect()
    }

    /// Forgets its calls, and counts them from 1 again.
    pub fn clear(&self) {
        *self.shared.state() = State::default();
    }

    /// Waits until `n` calls have ended, beside a running worker, and gives all that have. For a worker's other work, such as writing
    /// down the outcome, see [`wait_until_settled`](crate::testing::wait_until_settled).
    ///
    /// # Panics
    /// When they have not within the limit: with the calls that there were.
    #[track_caller]
    pub fn wait_for(&self, n: usize, limit: Duration) -> Vec<RecordedCall> {
        let begun = Instant::now();
        let mut state = self.shared.state();
        while state.calls.len() < n {
            let Some(left) = limit.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
                let calls = state.calls.clone();
                drop(state);
                panic!("{}", self.shared.missed(n, limit, &calls));
            };
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.calls.clone()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, event: &Event, handle: impl FnOnce() -> HandlerResult) -> HandlerResult {
        let call = {
            let mut state = self.state();
            state.begun += 1;
            state.begun
        };
        let kept = Arc::new(made_up::copy(event));
        let result = catch_unwind(AssertUnwindSafe(|| match self.failure(event.attempt(), call) {
            Some(failure) => failure.happen(),
            None => handle(),
        }));
        let result = match result {
            Err(panic) if panic.is::<Crashed>() => resume_unwind(panic), // its process is gone
            result => result,
        };
        let outcome = match &result {
            Ok(Ok(())) => Outcome::Processed,
            Ok(Err(error)) => error.again().into(),
            Err(panic) => Outcome::of_panic(&**panic),
        };
        self.state().calls.push(RecordedCall { event: kept, outcome });
        self.changed.notify_all();
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The first that was asked for.
    fn failure(&self, attempt: u32, call: usize) -> Option<Failure> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |when: &When| *when == When::Attempt(attempt) || *when == When::Call(call);
        failures.iter().find(|(when, _)| is_due(when)).map(|(_, failure)| failure.again())
    }

    fn missed(&self, n: usize, limit: Duration, calls: &[RecordedCall]) -> String {
        let mut text = format!(
            "consumer {} has ended {} of {n} calls within {limit:?}{}",
            self.consumer,
            calls.len(),
            if calls.is_empty() { "" } else { ":" }
        );
        for RecordedCall { event, outcome } in calls {
            let _ = write!(
                text,
                "\n  {}  {}/{}/{}  attempt {}: {outcome:?}",
                event.name(),
                event.source_module(),
                event.aggregate_type(),
                event.aggregate_id(),
                event.attempt()
            );
        }
        text
    }
}
