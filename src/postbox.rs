//! The box: a thin facade over the parts that do the work.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::builder::Builder;
use crate::cascade::Announcement;
use crate::catalogue::Catalogue;
use crate::core::Core;
use crate::db::compact::Compaction;
use crate::db::{self, Synchronous};
use crate::error::{Error, Result};
use crate::event::{Event, EventId, NewEvent};
use crate::exchange::{self, ImportedEvent};
use crate::health::Health;
use crate::lag::{self, ConsumerLag};
use crate::links::EntityRef;
use crate::observing::Observing;
use crate::outbox::{self, insert, settle};
use crate::pause_book;
use crate::pauses::{self, Pause, PauseTarget};
use crate::pruning;
use crate::registry::Registry;
use crate::saga::Saga;
use crate::services::{Access, Inbox, Links, Outbox, Sagas, Schedules};
use crate::settings::{self, Settings};
use crate::stats::{self, Stats};
use crate::subscription::Subscription;
use crate::tx::Tx;
use crate::typed::DomainEvent;
use crate::verify::{self, Verification};
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

    /// The settings in force, as this box last read them. Another process's change is noticed by a running worker within
    /// a second, by `process_batch` and `drain` at once.
    pub fn settings(&self) -> Settings {
        self.core.settings()
    }

    /// Changes settings: checked, stored in the file, live at once in this process and within a second in others. Only
    /// what the closure changes is stored; the rest keeps following the application's defaults. The closure runs inside a
    /// write transaction, on what the file holds: no change by others is lost.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the setting's name when a value is out of its range: nothing is changed.
    pub fn update_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<Settings> {
        self.core.update_settings(change)
    }

    /// What the file holds of the settings, by the names of the fields of [`Settings`]: what an operator has changed. The rest
    /// has the application's defaults.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn stored_settings(&self) -> Result<Vec<(&'static str, Value)>> {
        self.core.db.read("stored_settings", settings::stored)
    }

    /// Changes one setting by the name of its field, as [`update_settings`](Postbox::update_settings) does, for programs that
    /// do not know the application's defaults: the value is stored also where it is the default.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field `key` for a name that no setting has, and with the setting's name for a value that is
    /// of another type or out of its range: nothing is changed.
    ///
    /// ```
    /// # use postbox::Postbox;
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// postbox.set_setting("batch_size", 10.into())?;
    /// assert_eq!(postbox.stored_settings()?, [("batch_size", 10.into())]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_setting(&self, key: &str, value: Value) -> Result<Settings> {
        self.core.set_setting(key, value)
    }

    /// Pauses a consumer, or all events of a name, for everybody who uses the file: until [`resume`](Postbox::resume), or for
    /// `duration`, which is at least 100 ms. It is durable when this returns, and outlives a restart.
    ///
    /// What is paused waits, however long: it costs no attempt, is not claimed again and again, and slows nothing down. An event's
    /// other consumers receive it meanwhile; it is processed, or a dead letter, once those that are paused have had their turn.
    /// Handlers that run end as they do. No handler of a paused consumer begins in this box any more, nor in another process, once
    /// it has noticed: a running worker does within a second, `process_batch` and `drain` at once. Events of a paused
    /// name that are claimed already are delivered.
    ///
    /// When a pause ends, in whatever process, all that waited is due, in bounded pieces, and what has to wait for another pause
    /// waits on. A failed consumer's backoff is waited for first. Pausing what is paused changes its reason and its end. `reason`
    /// has 1 to 1023 characters.
    ///
    /// A handler pauses its own consumer with [`HandlerError::pause_consumer`](crate::HandlerError::pause_consumer), and failures in a
    /// row do with [`Subscription::circuit_breaker`].
    ///
    /// ```
    /// # use postbox::{Context, Event, NewEvent, PauseTarget, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// postbox.subscribe(Subscription::new("invoice.*", "sync", |_: &Event, _: &Context<'_>| Ok(())))?;
    /// let sync = PauseTarget::consumer("sync");
    /// postbox.pause(&sync, Some("offline"), None)?;
    /// postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// assert_eq!(postbox.drain()?, 0);
    /// assert!(postbox.resume(&sync)?);
    /// assert_eq!(postbox.drain()?, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A circuit breaker does it by itself:
    ///
    /// ```
    /// # use postbox::{Backoff, Context, Event, HandlerError, NewEvent, Postbox, Subscription};
    /// # use std::time::Duration;
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// let mail = |_: &Event, _: &Context<'_>| Err(HandlerError::retry("connection refused"));
    /// let mail = Subscription::new("mail.*", "mail", mail).circuit_breaker(3, Duration::from_mins(5));
    /// postbox.subscribe(mail)?;
    /// postbox.publish_all((1..=20).map(|n| NewEvent::new("mail.queued", "office", "Mail", n.to_string())))?;
    /// postbox.drain()?; // three attempts, and not twenty
    /// let pauses = postbox.pauses()?;
    /// assert_eq!(pauses[0].target.to_string(), "consumer mail");
    /// assert_eq!(pauses[0].reason.as_deref(), Some("circuit breaker: 3 failures in a row: connection refused"));
    /// assert_eq!(postbox.stats()?.retries, 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name, a reason or a duration that is out of bounds; [`Error::Busy`] and other errors of a write.
    pub fn pause(
        &self,
        target: &PauseTarget,
        reason: Option<&str>,
        duration: Option<Duration>,
    ) -> Result<Pause> {
        pause_book::pause(&self.core, target, reason, duration)
    }

    /// Ends a pause: what waited for it is due. False when there was none in force.
    ///
    /// # Errors
    /// As [`pause`](Postbox::pause).
    pub fn resume(&self, target: &PauseTarget) -> Result<bool> {
        pause_book::resume(&self.core, target)
    }

    /// The pauses in force in the file: consumers first, each kind by name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn pauses(&self) -> Result<Vec<Pause>> {
        self.core.db.read("pauses", |conn| pauses::list(conn, self.core.clock.now()))
    }

    /// The box in numbers.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        stats::stats(&self.core)
    }

    /// How far behind the consumers of this box are: each of those that are subscribed, by name, also those for which nothing
    /// waits.
    ///
    /// One pass over the live events, of which it reads each (some tenths of a second for 100,000; in memory, the box does nothing
    /// else meanwhile): for a page that somebody looks at, or once a minute. [`stats`](Postbox::stats) costs nothing.
    ///
    /// Who has the file open beside the application has no subscriptions: [`Outbox::backlog`], [`Outbox::replays`] and
    /// [`Inbox::consumers`] are told from the file alone.
    ///
    /// ```
    /// # use postbox::{Context, Event, NewEvent, PauseTarget, Postbox, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// for consumer in ["ledger", "mail"] {
    ///     postbox.subscribe(Subscription::new("invoice.*", consumer, |_: &Event, _: &Context<'_>| Ok(())))?;
    /// }
    /// postbox.pause(&PauseTarget::consumer("mail"), Some("offline"), None)?;
    /// postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// postbox.drain()?; // the ledger has it
    /// let lag: Vec<_> = postbox.lag()?.into_iter().map(|lag| (lag.consumer_name, lag.waiting)).collect();
    /// assert_eq!(lag, [("ledger".to_owned(), 0), ("mail".to_owned(), 1)]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn lag(&self) -> Result<Vec<ConsumerLag>> {
        lag::lag(&self.core)
    }

    /// How the box's worker fares, without a look at the file: also when [`stats`](Postbox::stats) cannot be had.
    ///
    /// ```
    /// # use postbox::{Health, Postbox};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// match postbox.health() {
    ///     Health::Waiting { fault, reason, .. } => println!("events wait ({fault}): {reason}"),
    ///     Health::Stopped { reason } => println!("start the worker again: {reason}"),
    ///     _ => {}
    /// }
    /// # assert_eq!(postbox.health(), Health::Ok);
    /// # Ok(())
    /// # }
    /// ```
    pub fn health(&self) -> Health {
        self.core.health.get()
    }

    /// Looks at all that is in the file: that it is sound, that the tables agree with each other, and what somebody should do
    /// something about. It reads every row, a second or so for each gigabyte, and holds no lock that a writer waits for; a
    /// -wal cannot be emptied meanwhile.
    ///
    /// ```
    /// # use postbox::{Context, Event, HandlerError, NewEvent, Postbox, Severity, Subscription};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # let mail = |_: &Event, _: &Context<'_>| Err(HandlerError::dead_letter("550 no such address"));
    /// # postbox.subscribe(Subscription::new("mail.*", "mail", mail))?;
    /// # postbox.publish(NewEvent::new("mail.queued", "office", "Mail", "m-1"))?;
    /// # postbox.drain()?;
    /// let verification = postbox.verify()?;
    /// for finding in &verification.findings {
    ///     println!("{:?} {}: {}", finding.severity, finding.what, finding.advice);
    /// }
    /// // Nothing is wrong with the file, but somebody has to decide about a dead letter.
    /// assert!(verification.findings.iter().all(|finding| finding.severity != Severity::Error));
    /// assert_eq!(verification.findings.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the file cannot be read. Damage that is found is a [`Finding`](crate::Finding).
    pub fn verify(&self) -> Result<Verification> {
        verify::verify(&self.core)
    }

    // ---- space -----------------------------------------------------------------------------------------------------

    /// Deletes the processed events that are past their retention ([`Settings::retention_ms`] and
    /// [`Settings::retention_by_event`](crate::Settings::retention_by_event)), with their inbox rows and their history, and says how
    /// many. A running worker does so by itself, in steps; this is the whole of it, now. The write lock is held for a few
    /// milliseconds at a time. Sagas that have ended go with [`retention_ms`](crate::Settings::retention_ms), and are not counted. The file keeps its size, and the space is used again: see [`compact`](Postbox::compact).
    ///
    /// ```
    /// # use postbox::Postbox;
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// postbox.update_settings(|settings| settings.retention_ms = 90 * 86_400_000)?; // 90 days
    /// assert_eq!(postbox.prune()?, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Busy`] and other errors of the file; what was deleted by then is. [`Error::Reentrant`] inside a transaction.
    pub fn prune(&self) -> Result<usize> {
        pruning::prune(&self.core)
    }

    /// How many events [`prune`](Postbox::prune) would delete now. They are looked for row by row: some tenths of a second for a
    /// million.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn prunable(&self) -> Result<u64> {
        pruning::prunable(&self.core)
    }

    /// Gives the space of deleted rows back to the file system: `VACUUM`, which writes the whole file anew, the application's tables
    /// included. Writers wait meanwhile, up to the busy timeout; it needs as much free space again as the file has, twice that for a moment.
    ///
    /// It begins once nobody reads an older state of the file, and waits for that as long as the busy timeout says, without
    /// keeping publishers waiting. One who begins to read while it goes on can keep the file as long as it was until then:
    /// [`Compaction::is_complete`] says so.
    ///
    /// ```
    /// # use postbox::testing::ManualClock;
    /// # use postbox::{Context, Event, NewEvent, Postbox, Subscription, time::OffsetDateTime};
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_hours(500_000));
    /// # let postbox = Postbox::builder().clock(clock.clone()).open(folder.path().join("app.db"))?;
    /// # postbox.subscribe(Subscription::new("invoice.*", "ledger", |_: &Event, _: &Context<'_>| Ok(())))?;
    /// # postbox.publish_all((1..=2_000).map(|n| NewEvent::new("invoice.created", "finance", "Invoice", n.to_string())))?;
    /// # postbox.drain()?;
    /// # clock.advance(Duration::from_hours(48));
    /// postbox.update_settings(|settings| settings.retention_ms = 86_400_000)?; // a day
    /// assert_eq!(postbox.prune()?, 2_000);
    /// let compaction = postbox.compact()?;
    /// assert!(compaction.bytes_after < compaction.bytes_before);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::CannotCompact`] where the application has a table without an `INTEGER PRIMARY KEY`: `VACUUM` may give its rows other
    /// rowids, which the application may have noted. [`Error::Busy`] where somebody keeps reading or writing: nothing was changed.
    /// [`Error::InMemory`]; [`Error::Reentrant`].
    pub fn compact(&self) -> Result<Compaction> {
        self.core.db.compact("compact")
    }

    // ---- events of other boxes ------------------------------------------------------------------------------------

    /// Takes over events that other boxes have published, under their ids, in one transaction: all or none. How many were new:
    /// an event whose id is there already is left alone, whatever has become of it, so that a call can be made again.
    ///
    /// They are delivered like events that are published now, behind all that are there: every consumer that subscribes receives
    /// them, whoever has received them where they come from. [`ImportedEvent::processed`] takes them over as history instead.
    /// Attempts, inbox rows, errors and history stay where they were. Schemas of the [catalogue](Postbox::catalogue) are for what is
    /// published, and these have been.
    ///
    /// ```
    /// # use postbox::{ImportedEvent, NewEvent, Postbox};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// let id = "0198c0de-0000-7000-8000-000000000000".parse()?;
    /// let event = ImportedEvent::new(id, NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"));
    /// assert_eq!(postbox.import([event.clone()])?, 1);
    /// assert_eq!(postbox.import([event])?, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`check_import`](Postbox::check_import), before anything is written; [`Error::Busy`] and others as
    /// [`publish`](Postbox::publish).
    pub fn import(&self, events: impl IntoIterator<Item = ImportedEvent>) -> Result<usize> {
        exchange::import(&self.core, events)
    }

    /// Whether [`import`](Postbox::import) would take this event.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field `id` for one that no box makes, with `idempotency_key` for an event that has one, and with
    /// `published_at` for a time before 1970; otherwise [`Error::Invalid`] and [`Error::PayloadTooLarge`] as [`publish`](Postbox::publish).
    pub fn check_import(&self, event: &ImportedEvent) -> Result<()> {
        event.check(self.core.payload_bytes_max)
    }

    // ---- copies and the end ----------------------------------------------------------------------------------------

    /// Writes a complete, checked copy of the file (or of the box in memory) to `dest`, while the box goes on working.
    /// `dest` is replaced: whatever happens, it is the old file or the whole new one. It is made for its owner's eyes
    /// only (0600 on Unix).
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field `dest` for the box's own files, and for a `dest` with a -wal or -journal beside it,
    /// that is, a database that somebody uses;
    /// [`Error::Damaged`] when the copy fails SQLite's `integrity_check`; [`Error::Io`].
    pub fn backup(&self, dest: impl AsRef<Path>) -> Result<()> {
        self.core.db.backup(dest.as_ref())
    }

    /// **First**: never open and close the file by other means than SQLite in this process. POSIX drops all of a
    /// process's locks on a file when any descriptor of it is closed, so that two processes could then write at once and
    /// lose data. `copy` is for `cp`, rsync or a disk snapshot run as **another process**; for a copy made in this
    /// process use [`backup`](Postbox::backup).
    ///
    /// Runs `copy` with the file's path, while nobody can write and the one main file is complete: what is copied
    /// without its -wal is everything. Writers wait meanwhile, for at most the busy timeout.
    ///
    /// # Errors
    /// [`Error::InMemory`]; [`Error::Busy`] when a long reader keeps the file from being completed; what `copy` returns,
    /// as [`Error::Io`].
    pub fn with_quiesced_file<T>(&self, copy: impl FnOnce(&Path) -> io::Result<T>) -> Result<T> {
        self.core.db.with_quiesced_file(copy)
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
