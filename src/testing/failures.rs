//! Handlers that are made to fail.

use std::fmt;

use crate::event::Event;
use crate::handler::{Context, Handler, HandlerError, HandlerResult, TransactionalHandler};
use crate::tx::Tx;

/// What a handler is made to do instead of its work: return a [`HandlerError`], whichever it is, or [panic](panic_with).
pub struct Failure(What);

enum What {
    Returns(HandlerError),
    Panics(String),
}

/// To panic with this text.
pub fn panic_with(message: impl Into<String>) -> Failure {
    Failure(What::Panics(message.into()))
}

impl From<HandlerError> for Failure {
    fn from(error: HandlerError) -> Self {
        Failure(What::Returns(error))
    }
}

impl Failure {
    pub(super) fn happen(&self) -> HandlerResult {
        match &self.0 {
            What::Returns(error) => Err(error.again()),
            What::Panics(message) => panic!("{message}"),
        }
    }

    pub(super) fn again(&self) -> Self {
        Failure(match &self.0 {
            What::Returns(error) => What::Returns(error.again()),
            What::Panics(message) => What::Panics(message.clone()),
        })
    }
}

impl HandlerError {
    /// The same once more.
    pub(super) fn again(&self) -> Self {
        HandlerError { verdict: self.verdict, message: self.message.clone(), fault: self.fault }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            What::Returns(error) => error.fmt(f),
            What::Panics(message) => write!(f, "panics: {message}"),
        }
    }
}

/// The handler as it is, but at the `n`-th attempt of each event it fails like this, before it has done anything. `n` is counted as
/// [`Event::attempt`] counts, from 1. For plain handlers and transactional ones; to fail several attempts, wrap it again.
///
/// ```
/// use postbox::testing::{TestBox, assert_processed, fail_attempt, panic_with};
/// use postbox::{Context, Event, HandlerError, NewEvent, Subscription};
/// use std::time::Duration;
///
/// let mail = |_: &Event, _: &Context<'_>| Ok(());
/// let mail = fail_attempt(1, HandlerError::retry_after("busy", Duration::from_secs(60)), mail);
/// let mail = fail_attempt(2, panic_with("out of luck"), mail);
///
/// let postbox = TestBox::new();
/// postbox.subscribe(Subscription::new("invoice.*", "mail", mail))?;
/// let id = postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
/// postbox.drain_all();
/// assert_eq!(assert_processed!(postbox, id).attempt_count, 3);
/// # Ok::<(), postbox::Error>(())
/// ```
///
/// # Panics
/// When `n` is 0: it would never fail.
#[track_caller]
pub fn fail_attempt<H>(n: u32, failure: impl Into<Failure>, handler: H) -> FailAttempt<H> {
    assert!(n > 0, "attempts are counted from 1");
    FailAttempt { n, failure: failure.into(), handler }
}

/// A handler that fails at one attempt: [`fail_attempt`].
#[derive(Debug)]
pub struct FailAttempt<H> {
    n: u32,
    failure: Failure,
    handler: H,
}

impl<H: Handler> Handler for FailAttempt<H> {
    fn handle(&self, event: &Event, cx: &Context<'_>) -> HandlerResult {
        if event.attempt() == self.n { self.failure.happen() } else { self.handler.handle(event, cx) }
    }
}

impl<H: TransactionalHandler> TransactionalHandler for FailAttempt<H> {
    fn handle(&self, event: &Event, tx: &Tx<'_>) -> HandlerResult {
        if event.attempt() == self.n { self.failure.happen() } else { self.handler.handle(event, tx) }
    }
}
