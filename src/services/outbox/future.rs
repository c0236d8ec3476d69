//! Events that have not started: listed, moved, cancelled.

use time::OffsetDateTime;

use super::Outbox;
use super::deciding::PENDING;
use crate::clock::to_micros;
use crate::decisions;
use crate::error::Result;
use crate::event::EventId;
use crate::outbox::{EventFilter, EventSummary, future, summary};
use crate::page::check_limit;

/// Events that have not started. An event starts when it is claimed for the first time; until then it can be moved and cancelled.
impl Outbox<'_> {
    /// The filter's events that were published for later ([`NewEvent::available_at`](crate::NewEvent::available_at),
    /// [`delay`](crate::NewEvent::delay)) and are not due yet, the first to be due before the others: at most `limit`, 1 to 1,000.
    /// [`future_after`](Outbox::future_after) goes on behind the last of them. An event that waits for a backoff has started and is
    /// not among them.
    ///
    /// They are read from an index in the order of their times: without a filter a page costs the same however many there are.
    ///
    /// ```
    /// # use postbox::{EventFilter, NewEvent, Postbox, time::OffsetDateTime};
    /// # use std::time::Duration;
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// let reminder = |invoice: &str| NewEvent::new("invoice.reminder", "finance", "Invoice", invoice);
    /// let first = postbox.publish(reminder("inv-1").delay(Duration::from_hours(24)))?;
    /// let second = postbox.publish(reminder("inv-2").delay(Duration::from_hours(48)))?;
    ///
    /// let outbox = postbox.outbox();
    /// outbox.reschedule(first, OffsetDateTime::now_utc() + Duration::from_hours(72))?;
    /// let all = EventFilter::new().name("invoice.reminder");
    /// let ids = |outbox: &postbox::Outbox<'_>| -> postbox::Result<Vec<_>> {
    ///     Ok(outbox.future(&all, 100)?.into_iter().map(|event| event.id).collect())
    /// };
    /// assert_eq!(ids(&outbox)?, [second, first]);
    ///
    /// outbox.cancel(second, "it was paid")?;
    /// assert_eq!(ids(&outbox)?, [first]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a limit of 0 or more than 1,000, and for what the filter asks.
    pub fn future(&self, filter: &EventFilter, limit: usize) -> Result<Vec<EventSummary>> {
        self.list_future(filter, None, limit)
    }

    /// The next of them behind `last`, which need not be there any more.
    ///
    /// # Errors
    /// As [`future`](Outbox::future).
    pub fn future_after(
        &self,
        last: &EventSummary,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<Vec<EventSummary>> {
        self.list_future(filter, Some((to_micros(last.available_at), last.seq)), limit)
    }

    fn list_future(
        &self,
        filter: &EventFilter,
        behind: Option<future::Behind>,
        limit: usize,
    ) -> Result<Vec<EventSummary>> {
        check_limit(limit)?;
        filter.validate()?;
        let Some(filter) = filter.within(&PENDING) else { return Ok(Vec::new()) };
        let now = self.access.core().clock.now();
        self.access.read_snapshot("outbox.future", |conn| {
            let mut events = Vec::new();
            for seq in future::seqs(conn, &filter, behind, limit, now)? {
                events.extend(summary(conn, seq)?);
            }
            Ok(events)
        })
    }

    /// Moves an event that has not started: it is due `at` that time, to the microsecond, or at once where that is past.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound); [`Error::WrongStatus`](crate::Error::WrongStatus) for an event that has started:
    /// that was claimed, has failed, is finished, or is replayed.
    pub fn reschedule(&self, id: EventId, at: OffsetDateTime) -> Result<()> {
        self.write("outbox.reschedule", |conn, now| decisions::reschedule(conn, id, to_micros(at), now))
    }

    /// Cancels an event that has not started, for a reason that its history keeps: no consumer receives it, and it is `processed`, with
    /// `cancelled: ` and the reason as its `last_error`. It stays in the file like any other, so that publishing it again under
    /// its idempotency key finds it there. Neither [`replay`](Outbox::replay) nor [`catch_up`](Outbox::catch_up) delivers it.
    ///
    /// Inside a transaction it is cancelled if and only if that commits. An event that starts at the same moment is either cancelled
    /// or delivered, never both.
    ///
    /// # Errors
    /// As [`reschedule`](Outbox::reschedule); [`Error::Invalid`](crate::Error::Invalid) for a reason that is empty or longer than 1000
    /// characters.
    pub fn cancel(&self, id: EventId, reason: &str) -> Result<()> {
        decisions::check_reason(reason)?;
        self.write("outbox.cancel", |conn, now| decisions::cancel(conn, id, reason, now))
    }

    /// Cancels all the filter's events that have not started, as [`cancel`](Outbox::cancel) does, also those that are due and that nobody
    /// has claimed yet. How many: [`count`](Outbox::count) with [`EventFilter::unstarted`](crate::EventFilter::unstarted) says it before.
    ///
    /// # Errors
    /// As [`retry_all`](Outbox::retry_all), and of [`cancel`](Outbox::cancel) for the reason.
    pub fn cancel_all(&self, filter: &EventFilter, reason: &str) -> Result<usize> {
        decisions::check_reason(reason)?;
        let cancel = |conn: &rusqlite::Connection, seq, now| decisions::cancel_row(conn, seq, reason, now);
        self.decide("outbox.cancel_all", &filter.clone().unstarted(), &PENDING, cancel, |_| ())
    }
}
