//! What people decide about events.

use rusqlite::Connection;

use super::Outbox;
use crate::db::all_or_none;
use crate::decisions::{self, Replay};
use crate::error::Result;
use crate::event::EventId;
use crate::outbox::{EventFilter, OutboxStatus, list};
use crate::page::Order;
use crate::services::Access;

/// So many events are decided about in one transaction.
const SLICE: usize = 200;

/// So many are looked up at once. What is not in the order of publishing is gone through for that from its beginning, however few are wanted.
const FOUND_MAX: usize = 50_000;

/// What nobody processes by itself.
const DEAD: [OutboxStatus; 2] = [OutboxStatus::DeadLetter, OutboxStatus::Failed];

/// What may be past.
const PAST: [OutboxStatus; 2] = [OutboxStatus::Processed, OutboxStatus::Pending];
pub(super) const PENDING: [OutboxStatus; 1] = [OutboxStatus::Pending];

/// What people decide about events. Each call that decides about many does so in transactions of at most 200 events, in order of
/// publishing, and an error leaves what was decided by then; inside a transaction it is all or none.
impl Outbox<'_> {
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

    /// Gives all the filter's dead letters (and those that `failed`) new attempts, as [`retry`](Outbox::retry) does. How many.
    ///
    /// ```
    /// # use postbox::{Context, Event, EventFilter, HandlerError, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # let mail = |_: &Event, _: &Context<'_>| Err(HandlerError::dead_letter("550 no such address"));
    /// # postbox.subscribe(Subscription::new("mail.*", "mail", mail))?;
    /// # let id = postbox.publish(NewEvent::new("mail.queued", "office", "Mail", "m-1"))?;
    /// # postbox.drain()?;
    /// assert_eq!(postbox.outbox().retry_all(&EventFilter::new().error_contains("550"))?, 1);
    /// postbox.drain()?; // in vain
    /// postbox.outbox().discard(id, "the customer has no address")?;
    /// let story = postbox.outbox().story(id)?.expect("it is kept");
    /// assert_eq!(story.history.len(), 4); // failed, retried, failed, discarded
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for the filter, before anything is changed; [`Error::Busy`](crate::Error::Busy)
    /// and other errors of the file.
    pub fn retry_all(&self, filter: &EventFilter) -> Result<usize> {
        self.decide("outbox.retry_all", filter, &DEAD, decisions::retry_row, |_| ())
    }

    /// Gives up all the filter's dead letters (and those that `failed`), as [`discard`](Outbox::discard) does. How many.
    ///
    /// # Errors
    /// As [`retry_all`](Outbox::retry_all), and of [`discard`](Outbox::discard) for the reason.
    pub fn discard_all(&self, filter: &EventFilter, reason: &str) -> Result<usize> {
        decisions::check_reason(reason)?;
        let discard = |conn: &Connection, seq, now| decisions::discard_row(conn, seq, reason, now);
        self.decide("outbox.discard_all", filter, &DEAD, discard, |_| ())
    }

    /// Delivers the filter's processed events again, to this one consumer and to no other, in order of publishing: as if it had
    /// never heard of them. How many. Events that wait to be replayed to another consumer are replayed to both; all others that
    /// are pending, processing or dead letters are left alone.
    ///
    /// The consumer need not be subscribed yet, nor in this process; until it is, its events are held: **a wrong name, or events to
    /// which it never subscribes, stay pending**, until [`cancel_replay`](Outbox::cancel_replay) takes it back. So look at
    /// [`Inbox::consumers`](crate::Inbox::consumers), and name the events in the filter. [`count`](Outbox::count) with
    /// [`OutboxStatus::Processed`] and [`OutboxStatus::Pending`] and [`EventFilter::past`](crate::EventFilter::past) says how many it
    /// would be, those included that wait to be replayed to it already.
    ///
    /// ```
    /// # use postbox::{Context, Event, EventFilter, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// postbox.subscribe(Subscription::new("invoice.*", "ledger", |_: &Event, _: &Context<'_>| Ok(())))?;
    /// postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// assert_eq!(postbox.drain()?, 1);
    /// // The ledger was lost, and is built again.
    /// assert_eq!(postbox.outbox().replay(&EventFilter::new().name("invoice.*"), "ledger")?, 1);
    /// assert_eq!(postbox.drain()?, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`retry_all`](Outbox::retry_all); [`Error::Invalid`](crate::Error::Invalid) for the consumer's name.
    pub fn replay(&self, filter: &EventFilter, consumer: &str) -> Result<usize> {
        self.replay_with_progress(filter, consumer, |_| ())
    }

    /// As [`replay`](Outbox::replay), and tells how far it is: after each of its transactions, how many events by then. Nothing is
    /// locked meanwhile, unless it is called inside a transaction.
    ///
    /// This is how far the events are made due again; how far they are delivered is told by [`replays`](Outbox::replays).
    ///
    /// # Errors
    /// As [`replay`](Outbox::replay).
    pub fn replay_with_progress(
        &self,
        filter: &EventFilter,
        consumer: &str,
        progress: impl FnMut(usize),
    ) -> Result<usize> {
        let to = Replay::to(consumer)?;
        let replay = |conn: &Connection, seq, now| to.replay_row(conn, seq, now);
        self.decide("outbox.replay", &filter.clone().past(), &PAST, replay, progress)
    }

    /// Takes a replay back: those of the filter's events that wait to be replayed to this consumer are not replayed to it any more,
    /// whether it subscribes or not. How many. Where they wait for no other consumer they are processed again, from now on. Events
    /// that are claimed at this moment are left alone, as are those that it has received by now and that are tried again for another
    /// consumer, and dead letters: [`discard`](Outbox::discard) them.
    ///
    /// The consumer's inbox rows of these events stay forgotten, as the replay left them: [`catch_up`](Outbox::catch_up)
    /// would deliver them. [`count`](Outbox::count) with [`OutboxStatus::Pending`] and
    /// [`EventFilter::replayed_to`](crate::EventFilter::replayed_to) says how many it would be.
    ///
    /// ```
    /// # use postbox::{Context, Event, EventFilter, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # postbox.subscribe(Subscription::new("invoice.*", "ledger", |_: &Event, _: &Context<'_>| Ok(())))?;
    /// # postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// # postbox.drain()?;
    /// let all = EventFilter::new();
    /// assert_eq!(postbox.outbox().replay(&all, "legder")?, 1); // nobody has this name
    /// assert_eq!(postbox.outbox().cancel_replay(&all, "legder")?, 1);
    /// assert_eq!(postbox.outbox().replay(&all, "ledger")?, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`replay`](Outbox::replay).
    pub fn cancel_replay(&self, filter: &EventFilter, consumer: &str) -> Result<usize> {
        let to = Replay::to(consumer)?;
        let filter = filter.clone().or_replayed_to(consumer);
        let cancel = |conn: &Connection, seq, now| to.cancel_row(conn, seq, now);
        self.decide("outbox.cancel_replay", &filter, &PENDING, cancel, |_| ())
    }

    /// Delivers those of the filter's processed events of which this consumer has no inbox row, to it alone: for a consumer that
    /// subscribes only now. How many. Otherwise as [`replay`](Outbox::replay). A call that was cut off, by a crash as well, is made
    /// again, and goes on with what is left.
    ///
    /// # Errors
    /// As [`replay`](Outbox::replay).
    pub fn catch_up(&self, filter: &EventFilter, consumer: &str) -> Result<usize> {
        self.catch_up_with_progress(filter, consumer, |_| ())
    }

    /// As [`catch_up`](Outbox::catch_up), and tells how far it is, as [`replay_with_progress`](Outbox::replay_with_progress) does.
    ///
    /// ```
    /// # use postbox::{Context, Event, EventFilter, NewEvent, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # postbox.subscribe(Subscription::new("invoice.*", "ledger", |_: &Event, _: &Context<'_>| Ok(())))?;
    /// # postbox.publish_all((1..=500).map(|n| NewEvent::new("invoice.created", "finance", "Invoice", n.to_string())))?;
    /// # postbox.drain()?;
    /// let filter = EventFilter::new().name("invoice.*");
    /// let mut seen = Vec::new();
    /// postbox.outbox().catch_up_with_progress(&filter, "search", |events| seen.push(events))?;
    /// assert_eq!(seen, [200, 400, 500]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`replay`](Outbox::replay).
    pub fn catch_up_with_progress(
        &self,
        filter: &EventFilter,
        consumer: &str,
        progress: impl FnMut(usize),
    ) -> Result<usize> {
        let to = Replay::to(consumer)?;
        let catch_up = |conn: &Connection, seq, now| to.catch_up_row(conn, seq, now);
        self.decide("outbox.catch_up", &filter.clone().past(), &PAST, catch_up, progress)
    }

    /// Of all the filter's events that are in one of these statuses.
    pub(super) fn decide(
        &self,
        operation: &'static str,
        filter: &EventFilter,
        statuses: &[OutboxStatus],
        decide: impl Fn(&Connection, i64, i64) -> Result<bool>,
        progress: impl FnMut(usize),
    ) -> Result<usize> {
        if let Access::Apart(core) = self.access {
            core.db.refuse_read_only(operation)?;
            core.db.refuse_reentry(operation)?;
        }
        filter.validate()?;
        let Some(filter) = filter.within(statuses) else { return Ok(0) };
        match self.access {
            Access::Apart(_) => self.decide_slices(operation, &filter, decide, progress),
            Access::Within(_, conn) => {
                all_or_none(conn, || self.decide_slices(operation, &filter, decide, progress))
            }
        }
    }

    fn decide_slices(
        &self,
        operation: &'static str,
        filter: &EventFilter,
        decide: impl Fn(&Connection, i64, i64) -> Result<bool>,
        mut progress: impl FnMut(usize),
    ) -> Result<usize> {
        let mut after = None;
        let mut decided = 0;
        loop {
            let found = self
                .access
                .read_snapshot(operation, |conn| list::seqs(conn, filter, Order::Oldest, after, FOUND_MAX))?;
            let Some(last) = found.last().copied() else { return Ok(decided) };
            for slice in found.chunks(SLICE) {
                decided += self.write(operation, |conn, now| {
                    slice.iter().try_fold(0, |count, seq| Ok(count + usize::from(decide(conn, *seq, now)?)))
                })?;
                progress(decided);
            }
            after = Some(last);
        }
    }

    pub(super) fn write<T>(
        &self,
        operation: &'static str,
        f: impl FnOnce(&Connection, i64) -> Result<T>,
    ) -> Result<T> {
        let done = match self.access {
            Access::Apart(_) => self.access.write(operation, f)?,
            // A caller who lets the error pass commits what was done before it.
            Access::Within(_, conn) => all_or_none(conn, || self.access.write(operation, f))?,
        };
        if let Access::Apart(core) = self.access {
            core.bell.ring();
        }
        Ok(done)
    }
}
