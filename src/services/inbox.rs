//! What consumers have done with events, as the application sees it.

use super::Access;
use crate::error::Result;
use crate::event::EventId;
use crate::inbox::{self, Change, ConsumerSummary, InboxEvent, InboxId};
use crate::ordering;

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

    /// Every consumer that has had to do with events of this file, by name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn consumers(&self) -> Result<Vec<ConsumerSummary>> {
        self.access.read_snapshot("inbox.consumers", inbox::consumers)
    }

    fn change(&self, operation: &'static str, id: InboxId, change: Change<'_>) -> Result<InboxEvent> {
        let ends = matches!(change, Change::Processed | Change::Skipped);
        let changed = self.access.write(operation, |conn, now| {
            let changed = inbox::change(conn, id, change, now)?;
            if ends {
                ordering::let_look_again(conn, id.event(), now)?;
            }
            Ok(changed)
        })?;
        self.access.core().bell.ring();
        Ok(changed)
    }
}
