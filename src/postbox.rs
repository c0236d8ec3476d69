//! The box: a thin facade over the parts that do the work.

mod operating;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::builder::Builder;
use crate::cascade::Announcement;
use crate::catalogue::Catalogue;
use crate::core::Core;
use crate::db::{self, Synchronous};
use crate::error::{Error, Result};
use crate::event::{Event, EventId, NewEvent};
use crate::links::EntityRef;
use crate::observing::Observing;
use crate::outbox::{self, insert, settle};
use crate::registry::Registry;
use crate::saga::Saga;
use crate::services::{Access, Inbox, Links, Outbox, Sagas, Schedules};
use crate::subscription::Subscription;
use crate::tx::Tx;
use crate::typed::DomainEvent;
use crate::worker::{self, Worker};

/// A durable outbox, inbox and link store in the application's SQLite file.
///
/// A cheap clone, for every module and thread. The file is closed by [`close`](Postbox::close), or when the last clone and
/// the last [`Worker`] are gone. A handler that holds a clone keeps it open: take [`Context::postbox`](crate::Context::postbox)
/// instead, or end with `close`, which drops the handlers.
///
/// Every method may also return [`Error::Closed`], and what SQLite says as [`Error::Sqlite`]; those that write
/// [`Error::ReadOnly`], where the box was opened only to be read.
#[derive(Clone)]
pub struct Postbox {
    core: Arc<Core>,
}

impl Postbox {
    pub(crate) fn of(core: Arc<Core>) -> Self {
        Postbox { core }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Options, before opening.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Opens the box in this SQLite file, with the default options.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().open(path)
    }

    /// Opens the box in this SQLite file only to look at it, with the default options: beside the running application, or in a copy.
    /// Nothing is written, whatever is called.
    ///
    /// ```
    /// # use postbox::{Error, NewEvent, Postbox};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("app.db");
    /// # let app = Postbox::open(&path)?;
    /// # app.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// let looking = Postbox::open_read_only(&path)?; // the application has it open
    /// assert_eq!(looking.stats()?.pending, 1);
    /// assert!(matches!(looking.drain(), Err(Error::ReadOnly { .. })));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Builder::open_read_only`].
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().open_read_only(path)
    }

    /// Opens a box in memory, with the default options.
    ///
    /// # Errors
    /// As [`Builder::open_in_memory`].
    pub fn open_in_memory() -> Result<Self> {
        Self::builder().open_in_memory()
    }

    // ---- publishing ------------------------------------------------------------------------------------------------

    /// Publishes an event. It is durable when this returns: it survives `kill -9` and power loss, and reaches every
    /// consumer subscribed to it at least once. Threads that publish at the same moment share a commit.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::PayloadTooLarge`] before anything is written; [`Error::Busy`] when the write lock
    /// could not be had in time; [`Error::CommitUnknown`] when it cannot be told whether the event is in the file;
    /// [`Error::FileReplaced`] when the file was deleted, moved or replaced; [`Error::Forked`] in a process that was forked.
    /// [`Error::fault`] says what a full disk, a damaged file and the like come to.
    /// [`Error::Reentrant`] inside a transaction of the same box on the same thread.
    pub fn publish(&self, event: NewEvent) -> Result<EventId> {
        self.publish_caused_by(event, None)
    }

    pub(crate) fn publish_caused_by(&self, event: NewEvent, cause: Option<&Event>) -> Result<EventId> {
        self.core.db.refuse_forked("publish")?;
        self.core.db.refuse_read_only("publish")?;
        let (event, content) = self.core.prepare(event, cause)?;
        let inserted = self.core.publish("publish", Arc::from([event]), Some(content))?;
        inserted
            .first()
            .map(|inserted| inserted.id)
            .ok_or(Error::NotStored { what: "the event", table: "outbox_event" })
    }

    /// Publishes an event that is a type of the application's: its name, module, aggregate and version are those of the type. To say
    /// more about it, publish what [`NewEvent::typed`] makes of it.
    ///
    /// # Errors
    /// As [`publish`](Postbox::publish); [`Error::Invalid`] with the field `payload` when the type cannot be JSON.
    pub fn publish_typed<E: DomainEvent>(&self, event: &E) -> Result<EventId> {
        self.publish(NewEvent::typed(event)?)
    }

    /// Publishes events in one transaction: all or none. Their ids are in the order of the events.
    ///
    /// # Errors
    /// As [`publish`](Postbox::publish); one event that is refused refuses all.
    pub fn publish_all(&self, events: impl IntoIterator<Item = NewEvent>) -> Result<Vec<EventId>> {
        self.core.db.refuse_forked("publish_all")?;
        self.core.db.refuse_read_only("publish_all")?;
        let prepare = |event| Ok(self.core.prepare(event, None)?.0);
        let events = events.into_iter().map(prepare).collect::<Result<Arc<[_]>>>()?;
        if events.is_empty() {
            return self.core.refuse_closed("publish_all").map(|()| Vec::new());
        }
        let inserted = self.core.publish("publish_all", events, None)?;
        Ok(inserted.into_iter().map(|inserted| inserted.id).collect())
    }

    /// Publishes an event inside an open transaction of the application's own connection to the same file: it is
    /// delivered if and only if that transaction commits, and as durable as that commit. The worker notices within a
    /// second of the commit, or at once after [`notify`](Postbox::notify).
    ///
    /// Begin the transaction as IMMEDIATE: SQLite refuses to let a deferred one write once it has read and somebody else
    /// has written.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field `conn` for a connection without an open transaction, to another file, or that
    /// cannot write; otherwise as [`publish`](Postbox::publish).
    ///
    /// ```
    /// # use postbox::{NewEvent, Postbox, rusqlite};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("app.db");
    /// let postbox = Postbox::open(&path)?;
    /// let mut app = rusqlite::Connection::open(&path)?; // the application's own
    /// let tx = app.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    /// postbox.publish_in(&tx, NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// tx.commit()?;
    /// postbox.notify();
    /// # Ok(())
    /// # }
    /// ```
    pub fn publish_in(&self, conn: &Connection, event: NewEvent) -> Result<EventId> {
        self.core.db.refuse_forked("publish_in")?;
        self.core.refuse_closed("publish_in")?;
        self.core.db.refuse_read_only("publish_in")?;
        if conn.is_autocommit() {
            return Err(Error::invalid("conn", "has no open transaction: begin one, or use `publish`"));
        }
        if !self.core.db.is_main_of(conn) {
            return Err(Error::invalid("conn", "is a connection to another database than this box's"));
        }
        let (event, _) = self.core.prepare(event, None)?;
        self.core.db.note_event_written(conn);
        let inserted = insert::insert_in(conn, &event, self.core.clock.now())?;
        if let Some(observing) = &self.core.observing
            && self.core.db.is_own_transaction(conn)
        {
            observing.note_published(&event, inserted);
        }
        Ok(inserted.id)
    }

    /// Runs `f` in a write transaction of the box: the application's SQL, events and links commit together, synced, or
    /// not at all. It is rolled back when `f` returns an error or panics. The worker is woken after the commit.
    ///
    /// The transaction holds the file's one write lock: nothing slow belongs in it. Methods of the box that write,
    /// called on the same thread inside `f`, return [`Error::Reentrant`]: use `tx`.
    ///
    /// # Errors
    /// What `f` returns; [`Error::Busy`] when the write lock could not be had in time; [`Error::CommitUnknown`] when it
    /// cannot be told whether it was committed.
    ///
    /// ```
    /// # use postbox::{NewEvent, Postbox};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # postbox.transaction(|tx| -> postbox::Result<()> { Ok(tx.execute_batch("CREATE TABLE invoice (id TEXT)")?) })?;
    /// // The closure's error type has to be named.
    /// let id = postbox.transaction(|tx| -> postbox::Result<_> {
    ///     tx.execute("INSERT INTO invoice VALUES ('inv-1')", [])?;
    ///     tx.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))
    /// })?;
    /// # assert!(postbox.outbox().get(id)?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn transaction<T, E: From<Error>>(
        &self,
        f: impl FnOnce(&Tx<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.transaction_caused_by("transaction", None, f)
    }

    fn transaction_caused_by<T, E: From<Error>>(
        &self,
        operation: &'static str,
        cause: Option<&Event>,
        f: impl FnOnce(&Tx<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let core = &*self.core;
        let writer = core.db.lock(operation)?;
        let open = writer.begin(Synchronous::Full, operation)?;
        core.observing.iter().for_each(Observing::transaction_begins);
        let value = writer.lend(|| f(&Tx::new(&writer, core, cause)))?;
        let published = core.observing.as_ref().map(|observing| observing.take_published(writer.conn()));
        open.commit()?;
        if let Err(error) = core.pauses.reload_after(writer.conn(), core.clock.now()) {
            // The transaction is committed all the same: a worker reads it at its next look.
            log::debug!(target: "postbox::settings", "the pauses cannot be read: {error}");
        }
        drop(writer);
        core.bell.ring();
        if let (Some(observing), Some(published)) = (&core.observing, published) {
            observing.tell_publications(&core.db, &published);
        }
        Ok(value)
    }

    /// Says that the application has deleted this entity, in a transaction of its own: as [`Tx::announce_deleted`], which belongs
    /// into the transaction that deletes it wherever that is one of the box's.
    ///
    /// # Errors
    /// As [`Tx::announce_deleted`]; otherwise as [`transaction`](Postbox::transaction).
    pub fn announce_deleted(&self, entity: &EntityRef) -> Result<Announcement> {
        self.announce_deleted_caused_by(entity, None)
    }

    pub(crate) fn announce_deleted_caused_by(
        &self,
        entity: &EntityRef,
        cause: Option<&Event>,
    ) -> Result<Announcement> {
        self.transaction_caused_by("announce_deleted", cause, |tx| tx.announce_deleted(entity))
    }

    /// Wakes the worker: "I committed something". Optional; it saves the wait of up to a second.
    pub fn notify(&self) {
        self.core.bell.ring();
    }

    // ---- subscribing -----------------------------------------------------------------------------------------------

    /// Adds a subscription, also while the worker runs. Events that were held for want of a subscriber are let go.
    ///
    /// # Errors
    /// [`Error::DuplicateSubscription`] when the consumer has this event name or pattern already; [`Error::Invalid`]. The first
    /// [`ordered`](Subscription::ordered) one in a file also writes to it, and fails where that does.
    pub fn subscribe(&self, subscription: Subscription) -> Result<()> {
        self.subscribe_many([subscription])
    }

    /// Adds the subscriptions of a saga: see [`Saga`].
    ///
    /// # Errors
    /// [`Error::Invalid`] where the saga is not whole, or another of its name is subscribed, and as
    /// [`subscribe`](Postbox::subscribe).
    pub fn subscribe_saga<S: Default + Serialize + DeserializeOwned + 'static>(
        &self,
        saga: Saga<S>,
    ) -> Result<()> {
        if self.core.registry.consumer_names().contains(&saga.consumer_name()) {
            let reason = format!("`{}` is subscribed already", saga.name());
            return Err(Error::invalid("saga", reason));
        }
        self.subscribe_many(saga.subscriptions()?)
    }

    /// Adds subscriptions: all or none.
    ///
    /// # Errors
    /// As [`subscribe`](Postbox::subscribe).
    pub fn subscribe_many(&self, subscriptions: impl IntoIterator<Item = Subscription>) -> Result<()> {
        self.core.refuse_closed("subscribe")?;
        self.core.subscribe(subscriptions.into_iter().collect())?;
        self.core.bell.ring();
        Ok(())
    }

    /// Who subscribes to what.
    pub fn registry(&self) -> &Registry {
        &self.core.registry
    }

    /// Which events the application publishes, as its modules have declared, and who receives them.
    pub fn catalogue(&self) -> Catalogue<'_> {
        Catalogue::new(&self.core.catalogue, &self.core.registry)
    }

    // ---- processing ------------------------------------------------------------------------------------------------

    /// Starts the worker: a startup drain of the backlog (as the settings say), then the loop, on a thread of its own
    /// and with handlers on a pool. Does not wait for the drain: see [`Worker::wait_for_startup_drain`].
    ///
    /// Subscribe first: an event that is due and that nobody subscribes to is *processed* without a handler (see
    /// [`UnhandledEvents`](crate::UnhandledEvents)), and a consumer that subscribes later never receives it.
    ///
    /// ```
    /// # use postbox::{Context, Event, NewEvent, Postbox, Subscription};
    /// # use std::time::Duration;
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// postbox.subscribe(Subscription::new("invoice.*", "mail", |_: &Event, _: &Context<'_>| Ok(())))?;
    /// let worker = postbox.start()?;
    /// assert!(worker.wait_for_startup_drain(Duration::from_secs(10)));
    /// // ... the program runs ...
    /// let report = worker.shutdown(Duration::from_secs(5))?;
    /// assert!(report.clean);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::WorkerRunning`] while this box has one; [`Error::Closed`]; [`Error::Io`] when a thread cannot be had.
    pub fn start(&self) -> Result<Worker> {
        worker::start(self)
    }

    /// Claims and delivers one batch (`batch_size`) on this thread, and says how many events reached `processed`. 0 when
    /// `enabled` is off; `processor_enabled` does not matter here. Leases are not renewed meanwhile.
    ///
    /// # Errors
    /// [`Error::Busy`] and other errors of the file; [`Error::Reentrant`] inside a transaction or handler of this box.
    pub fn process_batch(&self) -> Result<usize> {
        worker::process_batch(self)
    }

    /// Claims and delivers on this thread until nothing is due, follow-up events included (a handler that keeps publishing
    /// what it handles keeps it from returning), and says how many events
    /// reached `processed`. Events that wait (for their delay or backoff) are left waiting. Subscribe first, as for
    /// [`start`](Postbox::start).
    ///
    /// # Errors
    /// As [`process_batch`](Postbox::process_batch).
    pub fn drain(&self) -> Result<usize> {
        worker::drain(self)
    }

    // ---- looking and tuning ----------------------------------------------------------------------------------------

    /// Looks up events.
    pub fn outbox(&self) -> Outbox<'_> {
        Outbox::new(Access::Apart(&self.core))
    }

    /// What consumers have done with events.
    pub fn inbox(&self) -> Inbox<'_> {
        Inbox::new(Access::Apart(&self.core))
    }

    /// Links between entities of different modules.
    pub fn links(&self) -> Links<'_> {
        Links::new(Access::Apart(&self.core))
    }

    /// Sagas: where each conversation stands.
    pub fn sagas(&self) -> Sagas<'_> {
        Sagas::new(Access::Apart(&self.core))
    }

    /// Recurring events.
    pub fn schedules(&self) -> Schedules<'_> {
        Schedules::new(Access::Apart(&self.core))
    }

    /// Stops the worker (running handlers have up to ten seconds to end; recording what came of them may take the busy
    /// timeout more), closes the file and leaves it complete,
    /// without a -wal unless somebody else has the file open. Other clones get [`Error::Closed`] from then on.
    /// Subscriptions are dropped.
    ///
    /// # Errors
    /// [`Error::Busy`] when the write lock cannot be had within the busy timeout, from a transaction of this box or of another
    /// connection: the box is closed for everyone all the same. [`Error::Reentrant`] inside a transaction or handler of this box.
    pub fn close(self) -> Result<()> {
        const OPERATION: &str = "close";
        let core = &*self.core;
        core.db.refuse_forked(OPERATION)?;
        core.db.refuse_reentry(OPERATION)?;
        worker::refuse_inside_handler(core, OPERATION)?;
        if !core.begin_closing() {
            return Err(Error::Closed { operation: OPERATION });
        }
        core.worker.stop_and_wait(worker::SHUTDOWN_LIMIT);
        worker::settle_last(core);
        let now = core.clock.now();
        let closed = core.db.close(OPERATION, |conn| {
            // Published under a worker that has stopped since, and handed to nobody.
            for lease in core.handoff.left_over() {
                match settle::give_back_lease(conn, lease, now) {
                    Err(error) if error.is_fault_of_file() || conn.is_autocommit() => return Err(error),
                    // A trigger of the application's is in the way: they are due when the lease runs out.
                    _ => {}
                }
            }
            outbox::mark_time(conn, now)
        });
        core.let_go_of_ownership();
        // Handlers often hold a clone of the box: without this the two would keep each other alive.
        core.registry.clear();
        closed
    }
}

impl fmt::Debug for Postbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postbox").field("path", &self.core.db.path()).finish_non_exhaustive()
    }
}

/// Puts a backup in the place of a file that nobody has open: checked first, whole or not at all. A stale -wal, -shm or
/// -journal of the old file is removed, and the leases in the backup are voided, so that what was claimed when it was
/// made is due at once. The file keeps the mode of the old one (0600 where there was none).
///
/// # Errors
/// [`Error::Busy`] when somebody has `to` open; [`Error::Damaged`], [`Error::NotADatabase`], [`Error::SchemaTooNew`] and
/// [`Error::CannotOpen`] for a backup that is not sound; [`Error::Io`]. `to` is left as it was.
pub fn restore(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    db::backup::restore(from.as_ref(), to.as_ref(), Duration::from_secs(5), settle::void_leases)
}

/// Whether [`restore`] would take this backup: it can be read, is a box, and passes SQLite's `integrity_check`. Nothing is
/// written. The version of postbox's schema in it; `restore` brings an older one up to date.
///
/// # Errors
/// [`Error::Damaged`], [`Error::NotADatabase`], [`Error::SchemaTooNew`] and [`Error::CannotOpen`]; [`Error::Io`] when there is
/// no such file.
pub fn check_backup(from: impl AsRef<Path>) -> Result<u32> {
    db::backup::check(from.as_ref(), Duration::from_secs(5))
}
