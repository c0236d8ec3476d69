//! Outbox, inbox and links as the application sees them: on the box, or inside one of its transactions.

use rusqlite::Connection;
use uuid::Uuid;

use crate::core::Core;
use crate::decisions;
use crate::error::Result;
use crate::event::EventId;
use crate::history::{self, HistoryEntry};
use crate::inbox::{self, Change, InboxEvent, InboxId};
use crate::links::{self, EntityRef, IntegrationLink, LinkType, NewLink};
use crate::outbox::{self, CausationTree, EventFilter, EventPage, OutboxEvent, OutboxStatus, Page, list};
use crate::story::{self, EventStory};

/// Where a service works.
#[derive(Clone, Copy)]
pub(crate) enum Access<'a> {
    /// On the box: every call stands for itself, writes in a synced commit.
    Apart(&'a Core),
    /// Inside a transaction.
    Within(&'a Core, &'a Connection),
}

impl<'a> Access<'a> {
    fn core(self) -> &'a Core {
        match self {
            Access::Apart(core) | Access::Within(core, _) => core,
        }
    }

    fn read<T>(self, operation: &'static str, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        match self {
            Access::Apart(core) => core.db.read(operation, f),
            Access::Within(_, conn) => f(conn),
        }
    }

    /// Reads with several statements what is of one moment.
    fn read_snapshot<T>(
        self,
        operation: &'static str,
        f: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        self.read(operation, |conn| {
            // A thread that is inside a transaction has its snapshot already.
            let snapshot = if conn.is_autocommit() { Some(conn.unchecked_transaction()?) } else { None };
            let read = f(conn);
            drop(snapshot);
            read
        })
    }

    /// `f` is given the time as well.
    fn write<T>(self, operation: &'static str, f: impl FnOnce(&Connection, i64) -> Result<T>) -> Result<T> {
        let core = self.core();
        match self {
            Access::Apart(_) => core.db.write(operation, |conn| f(conn, core.clock.now())),
            Access::Within(_, conn) => f(conn, core.clock.now()),
        }
    }
}

/// Looks up events.
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
            Some(seq) => history::of(conn, seq),
            None => Ok(Vec::new()),
        })
    }

    /// Gives a dead letter (or one that `failed`) new attempts: it is due at once, and every consumer that had not finished with
    /// it begins again with its first attempt. Those that had, do not run again.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound); [`Error::WrongStatus`](crate::Error::WrongStatus) for an event that is in
    /// another status.
    pub fn retry(&self, id: EventId) -> Result<()> {
        self.write("outbox.retry", |conn, now| decisions::retry(conn, id, now))
    }

    /// Gives up a dead letter (or one that `failed`), for a reason that its history keeps: consumers that had not finished skip it,
    /// and it is `processed`, with the reason as its `last_error`.
    ///
    /// # Errors
    /// As [`retry`](Outbox::retry); [`Error::Invalid`](crate::Error::Invalid) for a reason that is empty or longer than 1000
    /// characters.
    pub fn discard(&self, id: EventId, reason: &str) -> Result<()> {
        decisions::check_reason(reason)?;
        self.write("outbox.discard", |conn, now| decisions::discard(conn, id, reason, now))
    }

    fn write<T>(&self, operation: &'static str, f: impl FnOnce(&Connection, i64) -> Result<T>) -> Result<T> {
        let done = self.access.write(operation, f)?;
        if let Access::Apart(core) = self.access {
            core.bell.ring();
        }
        Ok(done)
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

    /// All that the file says about the event: its row, what each consumer has done with it, what caused it and what it has
    /// caused, and the links of the entity that it is about. `None` when there is no such event.
    ///
    /// It tells also of an event that [`get`](Outbox::get) cannot read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn story(&self, id: EventId) -> Result<Option<EventStory>> {
        self.access.read_snapshot("outbox.story", |conn| story::story(conn, id))
    }

    /// The event among all that came from the same first cause. `None` when there is no such event.
    ///
    /// It takes two look-ups for each of its events, of which there are 1,000 at the most.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn causation_tree(&self, id: EventId) -> Result<Option<CausationTree>> {
        self.access.read_snapshot("outbox.causation_tree", |conn| outbox::causation_tree(conn, id))
    }
}

/// What consumers have done with events. The box keeps these rows by itself while it delivers; an application that delivers
/// events of this outbox by other ways can use them for its own dedupe.
///
/// What writes may also return [`Error::Busy`](crate::Error::Busy) and [`Error::Reentrant`](crate::Error::Reentrant).
pub struct Inbox<'a> {
    access: Access<'a>,
}

impl<'a> Inbox<'a> {
    pub(crate) fn new(access: Access<'a>) -> Self {
        Inbox { access }
    }

    /// The row of this event and consumer; a new one is `received`.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) when there is no such event, [`Error::Invalid`](crate::Error::Invalid)
    /// for a consumer name that is empty or longer than 255 characters.
    pub fn get_or_create(&self, event: EventId, consumer_name: &str) -> Result<InboxEvent> {
        self.access
            .write("inbox.get_or_create", |conn, now| inbox::get_or_create(conn, event, consumer_name, now))
    }

    /// The row; `None` when there is no such row.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get(&self, id: InboxId) -> Result<Option<InboxEvent>> {
        self.access.read("inbox.get", |conn| inbox::get(conn, id))
    }

    /// Sets it to `processing`.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) when there is no such row.
    pub fn mark_processing(&self, id: InboxId) -> Result<InboxEvent> {
        self.change("inbox.mark_processing", id, Change::Processing)
    }

    /// Sets it to `processed`: this consumer never runs again for this event.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) when there is no such row.
    pub fn mark_processed(&self, id: InboxId) -> Result<InboxEvent> {
        self.change("inbox.mark_processed", id, Change::Processed)
    }

    /// Sets it to `failed`, with one attempt more, also where it was `processed`: this consumer may run again. The error is
    /// cut to 1023 characters.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) when there is no such row.
    pub fn mark_failed(&self, id: InboxId, error: &str) -> Result<InboxEvent> {
        self.change("inbox.mark_failed", id, Change::Failed(error))
    }

    /// Sets it to `skipped`: this consumer never runs again for this event.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) when there is no such row.
    pub fn mark_skipped(&self, id: InboxId) -> Result<InboxEvent> {
        self.change("inbox.mark_skipped", id, Change::Skipped)
    }

    /// Counts one attempt more and changes nothing else.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) when there is no such row.
    pub fn increment_attempt(&self, id: InboxId) -> Result<InboxEvent> {
        self.change("inbox.increment_attempt", id, Change::Attempt)
    }

    /// Whether this consumer has processed this event; false for one that it skipped.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_processed(&self, event: EventId, consumer_name: &str) -> Result<bool> {
        self.access.read("inbox.is_processed", |conn| inbox::is_processed(conn, event, consumer_name))
    }

    /// How many of this consumer's rows are neither processed nor skipped.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn count_unprocessed(&self, consumer_name: &str) -> Result<u64> {
        self.access.read("inbox.count_unprocessed", |conn| inbox::count_unprocessed(conn, consumer_name))
    }

    fn change(&self, operation: &'static str, id: InboxId, change: Change<'_>) -> Result<InboxEvent> {
        self.access.write(operation, |conn, now| inbox::change(conn, id, change, now))
    }
}

/// Links between entities of different modules.
pub struct Links<'a> {
    access: Access<'a>,
}

impl<'a> Links<'a> {
    pub(crate) fn new(access: Access<'a>) -> Self {
        Links { access }
    }

    /// Creates a link. The same ends may be linked more than once.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) and [`Error::PayloadTooLarge`](crate::Error::PayloadTooLarge) before
    /// anything is written.
    pub fn create(&self, link: NewLink) -> Result<IntegrationLink> {
        let core = self.access.core();
        let link = links::prepare(link, core.payload_bytes_max)?;
        let id = core.new_id();
        self.access.write("links.create", |conn, now| links::create(conn, link, id, now))
    }

    /// The link; `None` when there is no such link.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get(&self, id: Uuid) -> Result<Option<IntegrationLink>> {
        self.access.read("links.get", |conn| links::get(conn, id))
    }

    /// Deletes the link and returns what it was.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) when there is no such link.
    pub fn delete(&self, id: Uuid) -> Result<IntegrationLink> {
        self.access.write("links.delete", |conn, _| links::delete(conn, id))
    }

    /// The links that start at this entity, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find_outbound(&self, source: &EntityRef) -> Result<Vec<IntegrationLink>> {
        self.access.read("links.find_outbound", |conn| links::find_outbound(conn, source))
    }

    /// The links that lead to this entity, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find_inbound(&self, target: &EntityRef) -> Result<Vec<IntegrationLink>> {
        self.access.read("links.find_inbound", |conn| links::find_inbound(conn, target))
    }

    /// All links of this type, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find_by_type(&self, link_type: LinkType) -> Result<Vec<IntegrationLink>> {
        self.access.read("links.find_by_type", |conn| links::find_by_type(conn, link_type))
    }

    /// The oldest link between the two, whichever way it leads.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find_bidirectional(&self, one: &EntityRef, other: &EntityRef) -> Result<Option<IntegrationLink>> {
        self.access.read("links.find_bidirectional", |conn| links::find_bidirectional(conn, one, other))
    }

    /// How many links start in this module.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn count_from_module(&self, source_module: &str) -> Result<u64> {
        self.access.read("links.count_from_module", |conn| links::count_from_module(conn, source_module))
    }
}
