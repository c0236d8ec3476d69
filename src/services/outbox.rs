//! Events as the application sees them: looking, and deciding.

mod deciding;
mod future;

use super::Access;
use crate::blocked::{self, BlockedAggregate};
use crate::error::{Error, Result};
use crate::event::EventId;
use crate::history::{self, HistoryEntry, RecentFailure};
use crate::outbox::{
    self, Backlog, CausationTree, EventFilter, EventPage, OutboxEvent, OutboxStatus, ReplayBacklog, list,
};
use crate::page::Page;
use crate::story::{self, EventStory};

/// So many failures are told at once.
const FAILURES_MAX: usize = 1_000;

/// Looks up events, and takes decisions about them.
pub struct Outbox<'a> {
    access: Access<'a>,
}

impl<'a> Outbox<'a> {
    pub(crate) fn new(access: Access<'a>) -> Self {
        Outbox { access }
    }

    /// The event's row; `None` when there is no such event.
    ///
    /// # Errors
    /// [`Error::Json`](crate::Error::Json) when another program left something else than JSON in the row.
    pub fn get(&self, id: EventId) -> Result<Option<OutboxEvent>> {
        self.access.read("outbox.get", |conn| outbox::get(conn, id))
    }

    /// What went wrong with the event, and what people decided about it, oldest first: each failed attempt of each consumer, and
    /// each [`retry`](Outbox::retry), [`discard`](Outbox::discard) and [`replay`](Outbox::replay). The last 100 are kept, for as
    /// long as the event is there. Empty when there is no such event.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn history(&self, id: EventId) -> Result<Vec<HistoryEntry>> {
        self.access.read("outbox.history", |conn| match outbox::seq_of(conn, id)? {
            Some(seq) => history::of(conn, seq)?.into_iter().collect(),
            None => Ok(Vec::new()),
        })
    }

    /// How many events are in this status.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn count_by_status(&self, status: OutboxStatus) -> Result<u64> {
        Ok(self.access.read("outbox.count_by_status", outbox::count)?.of(status))
    }

    /// One page of the events that the filter means, always in order of publishing: without their payloads, of which none is
    /// read. It holds at most 1,000 events, whatever the file holds.
    ///
    /// Pages neither skip nor double an event while others are published, deleted and change their status. One whose status
    /// changes so that the filter no longer means it is not in the pages that come. A row that another program spoilt is in its
    /// place, as far as it can be shown: [`EventSummary::unreadable`](crate::EventSummary::unreadable).
    ///
    /// Pages without a filter cost the same however long the history is, as do pages of dead letters, and of `Failed` or
    /// `Processing` alone. Those of `Pending` look through an index of all that is pending (about 10 ms for 100,000). What else
    /// a filter asks for is looked for row by row, in the order of the page until it is full, among the events of the filter's
    /// statuses; without a status, or with `Processed`, through the history (some tenths of a second for a million events). In memory,
    /// the box does nothing else meanwhile.
    ///
    /// ```
    /// # use postbox::{EventFilter, NewEvent, Page, Postbox};
    /// # fn main() -> postbox::Result<()> {
    /// let postbox = Postbox::open_in_memory()?;
    /// postbox.publish_all((1..=250).map(|n| NewEvent::new("invoice.created", "finance", "Invoice", format!("inv-{n}"))))?;
    ///
    /// let filter = EventFilter::new().name("invoice.*").source_module("finance");
    /// let mut page = postbox.outbox().list(&filter, &Page::newest(100))?;
    /// assert_eq!(page.events[0].aggregate_id, "inv-250");
    ///
    /// let mut seen = page.events.len();
    /// while let Some(cursor) = page.next {
    ///     page = postbox.outbox().list(&filter, &Page::newest(100).after(cursor))?;
    ///     seen += page.events.len();
    /// }
    /// assert_eq!(seen, 250);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a limit of 0 or more than 1,000, and for what the filter asks.
    pub fn list(&self, filter: &EventFilter, page: &Page) -> Result<EventPage> {
        filter.validate()?;
        page.validate()?;
        self.access.read_snapshot("outbox.list", |conn| list::list(conn, filter, page))
    }

    /// How many events the filter means: what an operation with this filter would find. They are counted one by one, so that it
    /// is exact, and takes as long as reading all pages of the filter would; [`stats`](crate::Postbox::stats) and
    /// [`count_by_status`](Outbox::count_by_status) are quick.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for what the filter asks.
    pub fn count(&self, filter: &EventFilter) -> Result<u64> {
        filter.validate()?;
        self.access.read_snapshot("outbox.count", |conn| list::count_filtered(conn, filter))
    }

    /// What the pending events wait for: a worker, their time, the end of a pause, a subscriber. Counted in an index: a
    /// tenth of a second or two for a million that are pending; how many are processed does not matter.
    ///
    /// ```
    /// # use postbox::{NewEvent, Postbox};
    /// # use std::time::Duration;
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// postbox.publish(NewEvent::new("invoice.due", "finance", "Invoice", "inv-1").delay(Duration::from_hours(24)))?;
    /// let backlog = postbox.outbox().backlog()?;
    /// assert_eq!((backlog.due, backlog.later, backlog.paused, backlog.held), (1, 1, 0, 0));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn backlog(&self) -> Result<Backlog> {
        let now = self.access.core().clock.now();
        self.access.read("outbox.backlog", |conn| outbox::backlog(conn, now))
    }

    /// How far each [`replay`](Outbox::replay) and [`catch_up`](Outbox::catch_up) has come: by the consumer's name, how many events
    /// are still to be delivered to it alone. A consumer that has received them all, none of them dead letters, is not listed.
    ///
    /// It is also how a replay to a wrong name is found: what nobody will ever subscribe to is `held`. All that is pending is
    /// read (some tenths of a second for a million; in memory, the box does nothing else meanwhile).
    ///
    /// ```
    /// # use postbox::{Context, Event, EventFilter, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # postbox.subscribe(Subscription::new("invoice.*", "ledger", |_: &Event, _: &Context<'_>| Ok(())))?;
    /// # postbox.publish_all((1..=20).map(|n| NewEvent::new("invoice.created", "finance", "Invoice", n.to_string())))?;
    /// # postbox.drain()?;
    /// postbox.subscribe(Subscription::new("invoice.*", "search", |_: &Event, _: &Context<'_>| Ok(())))?;
    /// assert_eq!(postbox.outbox().catch_up(&EventFilter::new().name("invoice.*"), "search")?, 20);
    /// let left = |postbox: &Postbox| -> postbox::Result<u64> {
    ///     Ok(postbox.outbox().replays()?.iter().find(|r| r.consumer_name == "search").map_or(0, |r| r.waiting))
    /// };
    /// assert_eq!(left(&postbox)?, 20);
    /// postbox.drain()?; // a worker does it by and by
    /// assert_eq!(left(&postbox)?, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn replays(&self) -> Result<Vec<ReplayBacklog>> {
        self.access.read("outbox.replays", outbox::replays)
    }

    /// The attempts that failed last, or were lost, of whatever event: at most `limit`, 1 to 1,000, the last first. Whatever process
    /// made them, and also of events that are processed by now.
    ///
    /// The 10,000 entries of histories that are about the newest events are looked at: where more events than that have failed, a failure
    /// of an older one is not among them.
    ///
    /// ```
    /// # use postbox::{Context, Event, HandlerError, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # let mail = |_: &Event, _: &Context<'_>| Err(HandlerError::retry("connection refused"));
    /// # postbox.subscribe(Subscription::new("mail.*", "mail", mail))?;
    /// # postbox.publish(NewEvent::new("mail.queued", "office", "Mail", "m-1"))?;
    /// # postbox.drain()?;
    /// let failures = postbox.outbox().recent_failures(10)?;
    /// assert_eq!(failures[0].event_name, "mail.queued");
    /// assert_eq!(failures[0].entry.detail.as_deref(), Some("connection refused"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for a limit of 0 or more than 1,000.
    pub fn recent_failures(&self, limit: usize) -> Result<Vec<RecentFailure>> {
        if !(1..=FAILURES_MAX).contains(&limit) {
            return Err(Error::invalid("limit", "must be between 1 and 1000"));
        }
        self.access.read("outbox.recent_failures", |conn| history::recent(conn, limit))
    }

    /// All that the file says about the event: its row, what each consumer has done with it, what caused it and what it has
    /// caused, and the links of the entity that it is about. `None` when there is no such event.
    ///
    /// It tells also of an event that [`get`](Outbox::get) cannot read.
    ///
    /// ```
    /// # use postbox::{Context, Event, HandlerError, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # postbox.subscribe(Subscription::new("order.*", "billing", |_: &Event, cx: &Context<'_>| {
    /// #     cx.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// #     Ok(())
    /// # }))?;
    /// # postbox.subscribe(Subscription::new("order.*", "mail", |_: &Event, _: &Context<'_>| {
    /// #     Err(HandlerError::dead_letter("550 no such address"))
    /// # }))?;
    /// let id = postbox.publish(NewEvent::new("order.placed", "sales", "Order", "o-7"))?;
    /// postbox.drain()?;
    /// let story = postbox.outbox().story(id)?.expect("it is there");
    /// println!("{} is {}", story.event.event_name, story.event.status);
    /// for row in &story.inbox {
    ///     println!("{}: {:?}, {}", row.consumer_name, row.status, row.last_error.as_deref().unwrap_or("-"));
    /// }
    /// assert_eq!(story.inbox.len(), 2); // billing has processed it, mail has given it up
    /// assert_eq!(story.history[0].detail.as_deref(), Some("550 no such address"));
    /// assert_eq!(story.caused[0].event_name, "invoice.created");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn story(&self, id: EventId) -> Result<Option<EventStory>> {
        self.access.read_snapshot("outbox.story", |conn| story::story(conn, id))
    }

    /// Aggregates in which events wait for an [`ordered`](crate::Subscription::ordered) consumer behind one that has failed, by
    /// module, type and id: the first so many. [`blocked_after`](Outbox::blocked_after) goes on behind the last of them.
    ///
    /// It is told from the file alone, whichever process the consumers are in, and looks at the first unfinished events of each
    /// aggregate: some hundredths of a second for 10,000 aggregates with unfinished events.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a limit of 0 or more than 1,000.
    pub fn blocked(&self, limit: usize) -> Result<Vec<BlockedAggregate>> {
        self.list_blocked(None, limit)
    }

    /// The next of them behind `last`.
    ///
    /// # Errors
    /// As [`blocked`](Outbox::blocked).
    pub fn blocked_after(&self, last: &BlockedAggregate, limit: usize) -> Result<Vec<BlockedAggregate>> {
        self.list_blocked(Some(last), limit)
    }

    fn list_blocked(&self, after: Option<&BlockedAggregate>, limit: usize) -> Result<Vec<BlockedAggregate>> {
        blocked::check_limit(limit)?;
        let now = self.access.core().clock.now();
        self.access.read_snapshot("outbox.blocked", |conn| blocked::list(conn, after, limit, now))
    }

    /// The event among all that came from the same first cause. `None` when there is no such event.
    ///
    /// It takes two look-ups for each of its events, of which there are 1,000 at the most.
    ///
    /// ```
    /// # use postbox::{Context, Event, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # postbox.subscribe(Subscription::new("order.placed", "billing", |_: &Event, cx: &Context<'_>| {
    /// #     cx.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// #     Ok(())
    /// # }))?;
    /// # postbox.subscribe(Subscription::new("invoice.created", "mail", |_: &Event, cx: &Context<'_>| {
    /// #     cx.publish(NewEvent::new("mail.queued", "office", "Mail", "m-1"))?;
    /// #     Ok(())
    /// # }))?;
    /// let id = postbox.publish(NewEvent::new("order.placed", "sales", "Order", "o-7"))?;
    /// postbox.drain()?;
    /// let tree = postbox.outbox().causation_tree(id)?.expect("it is there");
    /// let mut event = &tree.nodes[tree.root];
    /// let mut names = vec![event.event.event_name.as_str()];
    /// while let Some(child) = event.children.first() {
    ///     event = &tree.nodes[*child];
    ///     names.push(&event.event.event_name);
    /// }
    /// assert_eq!(names, ["order.placed", "invoice.created", "mail.queued"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn causation_tree(&self, id: EventId) -> Result<Option<CausationTree>> {
        self.access.read_snapshot("outbox.causation_tree", |conn| outbox::causation_tree(conn, id))
    }
}
