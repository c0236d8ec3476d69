//! One handler alone.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::describe;
use super::drains::expect;
use super::outcome::Outcome;
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::handler::{Cancellation, Context, Handler, Signal, TransactionalHandler};
use crate::links::{IntegrationLink, LinkType};
use crate::outbox::{EventFilter, EventSummary, OutboxEvent};
use crate::page::Page;
use crate::postbox::Postbox;
use crate::worker::HandlerScope;

/// What came of a handler that ran alone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Ran {
    /// What it said.
    pub outcome: Outcome,
    /// The events that it has published, in that order: those of a transactional handler only where it succeeded.
    pub published: Vec<OutboxEvent>,
    /// The links that it has made, likewise.
    pub links: Vec<IntegrationLink>,
}

/// Runs a plain handler on this event, once, without delivery: nothing is claimed, retried or written down. The box is the one that
/// its [`Context`] lends it; no other thread should publish meanwhile. [`Alone`] has more.
///
/// ```
/// use postbox::serde_json::json;
/// use postbox::testing::{Outcome, TestBox, assert_published, event, run_handler};
/// use postbox::{Context, Event, HandlerError, HandlerResult, NewEvent};
///
/// fn mail(event: &Event, cx: &Context<'_>) -> HandlerResult {
///     let to = event.payload()["to"].as_str().ok_or_else(|| HandlerError::dead_letter("no address"))?;
///     cx.publish(NewEvent::new("mail.sent", "mail", "Mail", to))?;
///     Ok(())
/// }
///
/// let postbox = TestBox::new();
/// let created = || NewEvent::new("invoice.created", "finance", "Invoice", "inv-1");
/// let ran = run_handler(&postbox, &event(created()), &mail);
/// assert_eq!(ran.outcome, Outcome::DeadLetter { why: "no address".to_owned() });
///
/// let ran = run_handler(&postbox, &event(created().payload(json!({ "to": "ada@example.com" }))), &mail);
/// assert_eq!(ran.outcome, Outcome::Processed);
/// assert_eq!(ran.published[0].event_name, "mail.sent");
/// ```
///
/// # Panics
/// When the box cannot be read. A panic of the handler is an [`Outcome`].
#[track_caller]
pub fn run_handler(postbox: &Postbox, event: &Event, handler: &impl Handler) -> Ran {
    Alone::in_box(postbox).run(event, handler)
}

/// Runs a transactional handler on this event, once, in a transaction of its own, which is committed if it succeeds and rolled back
/// otherwise. What it wrote is there to be looked at afterwards.
///
/// ```
/// use postbox::testing::{Outcome, TestBox, event, run_transactional};
/// use postbox::{Event, HandlerResult, NewEvent, Tx};
///
/// fn tasks(event: &Event, tx: &Tx<'_>) -> HandlerResult {
///     tx.execute("INSERT INTO task VALUES (?1)", [event.aggregate_id()])?;
///     Ok(())
/// }
///
/// let postbox = TestBox::new();
/// let created = event(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"));
/// let ran = run_transactional(&postbox, &created, &tasks);
/// assert!(matches!(ran.outcome, Outcome::Retry { why, .. } if why.starts_with("no such table: task")));
///
/// postbox.transaction(|tx| Ok::<_, postbox::Error>(tx.execute_batch("CREATE TABLE task (title TEXT)")?))?;
/// assert_eq!(run_transactional(&postbox, &created, &tasks).outcome, Outcome::Processed);
/// let count = |tx: &Tx<'_>| Ok::<u32, postbox::Error>(tx.query_row("SELECT count(*) FROM task", [], |row| row.get(0))?);
/// assert_eq!(postbox.transaction(count)?, 1);
/// # Ok::<(), postbox::Error>(())
/// ```
///
/// # Panics
/// When the box cannot be read or written to. A panic of the handler is an [`Outcome`].
#[track_caller]
pub fn run_transactional(postbox: &Postbox, event: &Event, handler: &impl TransactionalHandler) -> Ran {
    Alone::in_box(postbox).run_transactional(event, handler)
}

/// How a handler is run alone: [`run_handler`], [`run_transactional`] and [`run_step`](crate::testing::run_step), with more to say.
#[derive(Debug, Clone)]
#[must_use = "it does nothing until it runs a handler"]
pub struct Alone<'a> {
    postbox: &'a Postbox,
    consumer: String,
    is_cancelled: bool,
}

impl<'a> Alone<'a> {
    /// With this box, as the test has prepared it.
    pub fn in_box(postbox: &'a Postbox) -> Self {
        Alone { postbox, consumer: "testing".to_owned(), is_cancelled: false }
    }

    /// What [`Context::consumer_name`] says. Defaults to `testing`.
    pub fn consumer(self, name: impl Into<String>) -> Self {
        Alone { consumer: name.into(), ..self }
    }

    /// The handler is told to stop early: [`Context::is_cancelled`] and [`Tx::is_cancelled`](crate::Tx::is_cancelled) are true.
    pub fn cancelled(self) -> Self {
        Alone { is_cancelled: true, ..self }
    }

    /// Runs a plain handler.
    ///
    /// # Panics
    /// As [`run_handler`].
    #[track_caller]
    pub fn run(&self, event: &Event, handler: &impl Handler) -> Ran {
        let cancellation = self.cancellation();
        self.watched(|| {
            let _inside = HandlerScope::enter(self.postbox.core());
            let context = Context {
                postbox: self.postbox,
                event,
                consumer_name: &self.consumer,
                signal: Signal::of(&cancellation, None),
            };
            Ok(Outcome::of(|| handler.handle(event, &context)))
        })
    }

    /// Runs a transactional handler.
    ///
    /// # Panics
    /// As [`run_transactional`].
    #[track_caller]
    pub fn run_transactional(&self, event: &Event, handler: &impl TransactionalHandler) -> Ran {
        let cancellation = self.cancellation();
        self.watched(|| {
            let mut has_run = false;
            let committed = self.postbox.transaction(|tx| {
                let _inside = HandlerScope::enter(self.postbox.core());
                let tx = tx.in_handler(event, Signal::of(&cancellation, None));
                has_run = true;
                match Outcome::of(|| handler.handle(event, &tx)) {
                    Outcome::Processed => Ok(()),
                    failed => Err(Undone::Handler(failed)),
                }
            });
            match committed {
                Ok(()) => Ok(Outcome::Processed),
                Err(Undone::Handler(outcome)) => Ok(outcome),
                Err(Undone::Box(error)) if has_run => {
                    let why = format!("its work cannot be committed: {error}");
                    Ok(Outcome::Retry { why, after: None })
                }
                Err(Undone::Box(error)) => Err(error),
            }
        })
    }

    pub(super) fn postbox(&self) -> &'a Postbox {
        self.postbox
    }

    fn cancellation(&self) -> Cancellation {
        let cancellation = Cancellation::default();
        cancellation.lost.store(self.is_cancelled, Ordering::Relaxed);
        cancellation
    }

    /// With what is in the box afterwards, and was not before.
    #[track_caller]
    fn watched(&self, run: impl FnOnce() -> Result<Outcome>) -> Ran {
        let newest = expect(self.newest(), "look at the box");
        let links: HashSet<_> =
            expect(self.links(), "look at the links").into_iter().map(|link| link.id).collect();
        let outcome = expect(run(), "run the handler");
        let published = expect(self.published_after(newest), "look for what it has published");
        let mut made = expect(self.links(), "look for the links that it has made");
        made.retain(|link| !links.contains(&link.id));
        Ran { outcome, published, links: made }
    }

    fn newest(&self) -> Result<Option<Cursor>> {
        let page = self.postbox.outbox().list(&EventFilter::new(), &Page::newest(1))?;
        Ok(page.events.first().map(EventSummary::cursor))
    }

    fn published_after(&self, newest: Option<Cursor>) -> Result<Vec<OutboxEvent>> {
        const PAGE: usize = 1_000;
        let mut after = newest;
        let mut published = Vec::new();
        loop {
            let page = after.map_or(Page::oldest(PAGE), |cursor| Page::oldest(PAGE).after(cursor));
            let page = self.postbox.outbox().list(&EventFilter::new(), &page)?;
            for event in page.events {
                published.extend(describe::read_event(self.postbox, event.id)?);
            }
            after = page.next;
            if after.is_none() {
                return Ok(published);
            }
        }
    }

    fn links(&self) -> Result<Vec<IntegrationLink>> {
        let mut links = Vec::new();
        for link_type in [LinkType::Reference, LinkType::Cascade, LinkType::AggregateRoot] {
            links.extend(self.postbox.links().find_by_type(link_type)?);
        }
        links.sort_by_key(|link| link.created_at);
        Ok(links)
    }
}

/// Why a transaction was rolled back.
enum Undone {
    Handler(Outcome),
    Box(Error),
}

impl From<Error> for Undone {
    fn from(error: Error) -> Self {
        Undone::Box(error)
    }
}
