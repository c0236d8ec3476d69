//! The part of the facade for those who look after a box: settings, pauses, numbers, checks, space, copies.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Postbox;
use crate::db::compact::Compaction;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::exchange::{self, ImportedEvent};
use crate::health::Health;
use crate::lag::{self, ConsumerLag};
use crate::pause_book;
use crate::pauses::{self, Pause, PauseTarget};
use crate::pruning;
#[cfg(doc)]
use crate::services::{Inbox, Outbox};
use crate::settings::{self, Settings};
use crate::stats::{self, Stats};
#[cfg(doc)]
use crate::subscription::Subscription;
use crate::verify::{self, Verification};

impl Postbox {
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
    /// waits on. A failed consumer's backoff is waited for first, and so is a saga's [next look](crate::Saga::wait_for_start). Pausing what
    /// is paused changes its reason and its end. `reason` has 1 to 1023 characters.
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
}
