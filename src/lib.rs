//! A durable **transactional outbox**, **idempotent inbox** and **entity-link store** for the SQLite file that an
//! application already has. No server, no async runtime: rows in that file, one worker thread, a bounded pool of handler
//! threads.
//!
//! Modules publish events in the same transaction as their own data. Other modules' handlers receive them later, with
//! retries, across crashes, each as often as it should.
//!
//! ```
//! use postbox::{Event, NewEvent, Postbox, Result, Subscription, Tx};
//! use postbox::serde_json::json;
//!
//! # fn main() -> Result<()> {
//! let postbox = Postbox::open_in_memory()?; // or Postbox::open("app.db")
//! postbox.transaction(|tx| -> Result<()> {
//!     Ok(tx.execute_batch("CREATE TABLE invoice (id TEXT, total REAL); CREATE TABLE task (title TEXT);")?)
//! })?;
//!
//! // Operations reacts to invoices: its effect happens exactly once.
//! postbox.subscribe(Subscription::transactional("invoice.created", "operations.tasks", |event: &Event, tx: &Tx<'_>| {
//!     tx.execute("INSERT INTO task VALUES (?1)", [format!("check {}", event.aggregate_id())])?;
//!     Ok(())
//! }))?;
//!
//! // Finance commits an invoice and its event in one transaction.
//! postbox.transaction(|tx| -> Result<()> {
//!     tx.execute("INSERT INTO invoice VALUES ('inv-1', 12.5)", [])?;
//!     tx.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1").payload(json!({ "total": 12.5 })))?;
//!     Ok(())
//! })?;
//!
//! // A program calls `start` once and lets the worker run. A test delivers what is due with `drain`.
//! assert_eq!(postbox.drain()?, 1);
//! # let tasks: u64 = postbox.transaction(|tx| -> Result<u64> { Ok(tx.query_row("SELECT count(*) FROM task", [], |row| row.get(0))?) })?;
//! # assert_eq!(tasks, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # A tour
//!
//! - **Open** a box with [`Postbox::open`], [`Postbox::open_in_memory`] or a [`Builder`]. It is a cheap clone for every
//!   module and thread.
//! - **Publish** with [`Postbox::publish`], many at once with [`Postbox::publish_all`], together with other writes in
//!   [`Postbox::transaction`], or on the application's own connection with [`Postbox::publish_in`]. What can be said
//!   about an event is on [`NewEvent`].
//! - **Subscribe** with a [`Subscription`]: a [`TransactionalHandler`] for effects in the same file (exactly once), a
//!   plain [`Handler`] for all others (at least once). A failure says what is to be done: [`HandlerError`].
//!   Subscribe first, then start: what is due and wanted by nobody is processed without a handler
//!   ([`UnhandledEvents`]).
//! - **Type** events with a [`DomainEvent`]: [`Postbox::publish_typed`], [`Subscription::typed`], with [`Upcasters`] for what older
//!   releases wrote. The [`Catalogue`] tells which events are published and handled by nobody.
//! - **Process** with [`Postbox::start`], or by hand with [`Postbox::process_batch`] and [`Postbox::drain`].
//! - **Link** entities of different modules with [`Links`]: once ([`Links::get_or_create`]), found by a [`LinkFilter`], followed from
//!   one to the next ([`Links::walk`]). Say that one was deleted with [`Tx::announce_deleted`]: modules whose entities hang on it
//!   are told by an event, a [`LinkCascade`].
//! - **See** how it stands: look at [`Outbox`], [`Inbox`], [`Stats`] and [`Health`],
//!   and at how far behind each consumer is: [`Postbox::lag`].
//! - **Watch** what it does, as it does it, with an [`Observer`].
//! - **Look** at events with [`Outbox::list`] and an [`EventFilter`], at all that became of one with [`Outbox::story`], and at
//!   what it came from with [`Outbox::causation_tree`].
//! - **Delay** an event with [`NewEvent::delay`]; until it has begun it can be listed, moved and cancelled: [`Outbox::future`],
//!   [`Outbox::reschedule`], [`Outbox::cancel`].
//! - **Pause** a consumer or an event name with [`Postbox::pause`], or from a handler with [`HandlerError::pause_consumer`].
//! - **Follow** a process over several events with a [`Saga`]: a state for each conversation, timeouts, and what undoes it.
//! - **Repeat** with a [`Schedule`]: an event at each tick of an interval, or of a cron expression in a time zone. It is in the file;
//!   [`Schedules`] puts, lists and pauses them.
//! - **Tune** while it runs with [`Postbox::update_settings`].
//! - **Open** a file that somebody else writes, or a copy, only to look at it, with [`Postbox::open_read_only`]; check it with
//!   [`Postbox::verify`].
//! - **Copy** with [`Postbox::backup`], [`Postbox::with_quiesced_file`] and [`restore`].
//!
//! # What it promises
//!
//! 1. [`publish`](Postbox::publish) returned `Ok`: the event survives `kill -9` and power loss, and reaches, at
//!    least once, every consumer that is subscribed when it is delivered.
//! 2. Published inside a transaction, it is delivered if and only if that transaction commits, and never seen before.
//! 3. A plain handler runs at least once; [`Event::id`] is the stable key for the outside world's own dedupe.
//! 4. A transactional handler's SQL writes, links and follow-up events commit together with its inbox mark, or not at all.
//! 5. A consumer whose inbox row is `processed` or `skipped` never runs again for that event.
//! 6. No event is dropped silently: it is pending, processing, processed, failed or a dead letter with its last error.
//! 7. A failed attempt is not due before its backoff has passed. Attempts are counted when claimed, so that an event that
//!    kills the process ends as a dead letter.
//! 8. A lease has one owner: what is written after losing it is refused.
//! 9. `user_version`, `application_id` and everything else that is the application's is left alone.
//!
//! A process that dies costs the events whose handlers it had begun an attempt; what it had only claimed is given back. An
//! event that is taken over runs alone, so that one that kills the process takes nobody along. Where a death is not proved
//! and only the lease runs out, every event under it has lost an attempt.
//!
//! There is no promise of order between events while a worker runs: it delivers several at once. One event's consumers run
//! one after the other, by priority.
//!
//! # Time
//!
//! Times are the box's own, to the microsecond, from its [`Clock`]. The box's time never goes back, also across restarts:
//! when the clock steps back, the difference is added from then on. Only [schedules](Schedules) go by the clock as it is. [`testing::ManualClock`] makes tests deterministic.
//!
//! # Logging
//!
//! Through the [`log`](https://docs.rs/log) crate. No payload, metadata, idempotency key or text of a handler's error is
//! ever logged: the row's `last_error` has that.
//!
//! | target | level | says |
//! |---|---|---|
//! | `postbox::db` | error | a rollback failed; a copy was found damaged; the checkpoint thread panicked |
//! | | warn | a temporary file is left behind; no lock beside the database; a table of a copy cannot be checked |
//! | | info | the schema was upgraded |
//! | | debug | a read connection could not be opened; what is begun cannot be noted; dead owners cannot be looked for; a checkpoint failed and is tried again |
//! | `postbox::worker` | error | a thread of the library panicked |
//! | | warn | processing pauses after a fault of the file (once a fault); the last outcomes cannot be recorded yet; events wait for a lease to run out |
//! | | info | started, ended, took over from a process that died; processing goes on after a fault |
//! | `postbox::delivery` | error | an event can be neither settled nor set aside, or neither claimed nor set aside; an observer panicked (once a box) |
//! | | warn | a dead letter; failed for good; a handler or a breaker pauses a consumer; a pause that cannot be stored or ended; a lost lease; nobody subscribes (once a name); a version that is too new (once a name and version); a row that cannot be read; a shared transaction failed; an outcome cannot be recorded; a schedule does not tick (once a name); what undoes a saga's steps does not fit today's schema |
//! | | info | an attempt failed and will be retried |
//! | `postbox::settings` | warn | a setting in the file cannot be used (once a key) |
//!
//! Threads are named `postbox-worker`, `postbox-handler-1`, `-2`, and so on, and `postbox-checkpoint`, which is there once a
//! thousand pages have been written.
//!
//! # Tracing
//!
//! With the feature `tracing` each run of a handler is inside a span of the [`tracing`](https://docs.rs/tracing) crate:
//! `postbox.deliver`, target `postbox`, level info. What the handler logs through `tracing` belongs to it.
//!
//! | field | says |
//! |---|---|
//! | `event_id`, `event_name`, `consumer`, `attempt` | what is delivered, to whom |
//! | `correlation_id` | [`Event::correlation_id`], where it has one |
//! | `trace_id`, `parent_id`, `trace_flags` | the parts of [`Event::trace_parent`], where it has one: hexadecimal, as the W3C writes them. A layer for OpenTelemetry makes them the span's remote parent |
//! | `outcome` | once it has returned: `processed`, `skipped`, `failed` or `paused`; `waits` where a saga has not begun, or its handler reads older versions only |
//!
//! # Testing
//!
//! A box in memory, a clock that a test moves, and [`drain`](Postbox::drain):
//!
//! ```
//! # use postbox::{Context, Event, HandlerError, NewEvent, Postbox, Subscription, testing::ManualClock, time::OffsetDateTime};
//! # use std::time::Duration;
//! # fn main() -> postbox::Result<()> {
//! let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH);
//! let postbox = Postbox::builder().clock(clock.clone()).open_in_memory()?;
//! postbox.subscribe(Subscription::new("ping", "pong", |event: &Event, _: &Context<'_>| match event.attempt() {
//!     1 => Err(HandlerError::retry("not yet")),
//!     _ => Ok(()),
//! }))?;
//! postbox.publish(NewEvent::new("ping", "test", "Ping", "1"))?;
//! assert_eq!(postbox.drain()?, 0); // failed: it waits for a second
//! clock.advance(Duration::from_secs(1));
//! assert_eq!(postbox.drain()?, 1);
//! # Ok(())
//! # }
//! ```
//!
//! With the feature `testing` there is more: a box for tests in one line, drains that move the clock along, assertions that list what
//! was published instead, recording consumers, one handler alone, and crashes between two steps. [`testing`] has the page "Testing
//! your application".
//!
//! # Features
//!
//! `bundled` (default): builds SQLite from the source that rusqlite ships. Without it the host's SQLite is linked, and
//! opening fails with [`Error::UnsupportedSqlite`] where that is older than 3.51.3.
//!
//! `cli`: builds the program `postbox`, which looks at a file and works on it from the command line
//! (`cargo install postbox --features cli`), with `cron`. The library does not change.
//!
//! `cron`: `Schedule::cron`, with the crates `croner` and `chrono-tz`. Without it schedules by an interval are there, and a file
//! that has others is opened all the same: those do not tick, and say why ([`StoredSchedule::error`]).
//!
//! `metrics`: the module `metrics`, with an [`Observer`] that counts through the [`metrics`](https://docs.rs/metrics) crate.
//!
//! `schema`: JSON Schemas in the [`Catalogue`], derived from types with [`schemars`](https://docs.rs/schemars) (which is
//! `postbox::schemars`) or written by hand, by which payloads are checked when they are published.
//!
//! `testing`: what applications test themselves with, in the module [`testing`]. It adds no dependency.
//!
//! `tracing`: a span for each delivery, as above.

#![forbid(unsafe_code)]

#[cfg(feature = "schema")]
pub use schemars;
pub use {rusqlite, serde_json, time, uuid};

mod backoff;
mod bell;
mod blocked;
mod breaker;
mod builder;
mod cascade;
mod catalogue;
mod clock;
mod consumers;
mod core;
mod crash;
mod cursor;
mod db;
mod decisions;
mod error;
mod event;
mod exchange;
mod failures;
mod fault;
mod handler;
mod health;
mod history;
mod ids;
mod inbox;
#[cfg(all(test, shuttle))]
mod interleavings;
mod json;
mod lag;
mod limiter;
mod limits;
mod links;
#[cfg(feature = "metrics")]
pub mod metrics;
mod newer;
mod observer;
mod observing;
mod ordering;
mod outbox;
mod page;
mod pause_book;
mod pauses;
mod postbox;
mod pruning;
mod registry;
mod rfc3339;
mod saga;
mod sagas;
mod schedule;
#[cfg(feature = "schema")]
mod schemas;
mod seq_map;
mod services;
mod settings;
mod span;
mod stats;
mod stored_event;
mod story;
mod subscription;
mod sync;
pub mod testing;
mod tx;
mod typed;
mod validate;
mod verify;
mod walk;
mod worker;

pub use crate::backoff::Backoff;
pub use crate::blocked::BlockedAggregate;
pub use crate::builder::Builder;
pub use crate::cascade::{Announcement, LinkCascade};
pub use crate::catalogue::{Catalogue, CatalogueEntry, CatalogueVersion, EventDeclaration};
pub use crate::clock::Clock;
pub use crate::cursor::Cursor;
pub use crate::db::compact::Compaction;
pub use crate::error::{Error, Result};
pub use crate::event::{Event, EventId, NewEvent};
pub use crate::exchange::ImportedEvent;
pub use crate::failures::LastFailure;
pub use crate::fault::Fault;
pub use crate::handler::{Context, Handler, HandlerError, HandlerResult, TransactionalHandler};
pub use crate::health::Health;
pub use crate::history::{HistoryEntry, HistoryKind, RecentFailure};
pub use crate::inbox::{ConsumerSummary, InboxEvent, InboxId, InboxStatus};
pub use crate::lag::ConsumerLag;
pub use crate::links::{
    EntityRef, IntegrationLink, LinkDirection, LinkFilter, LinkPage, LinkType, LinkWalk, LinkedEntity,
    MovedLinks, NewLink, UniqueLink, WalkOptions,
};
pub use crate::observer::{DeadLettered, Drained, Failed, Finished, Observer, Published, Started};
pub use crate::outbox::{
    Backlog, CausationNode, CausationTree, EventFilter, EventPage, EventSummary, OutboxEvent, OutboxStatus,
    ReplayBacklog,
};
pub use crate::page::Page;
pub use crate::pauses::{Pause, PauseTarget};
pub use crate::postbox::{Postbox, check_backup, restore};
pub use crate::registry::Registry;
pub use crate::saga::{Saga, SagaStep};
pub use crate::sagas::{
    SagaFilter, SagaInstance, SagaPage, SagaStatus, SagaSummary, SagaTimeout, SagaTotals,
};
pub use crate::schedule::{Misfire, Schedule, ScheduleRule, StoredSchedule};
pub use crate::services::{Inbox, Links, Outbox, Sagas, Schedules};
pub use crate::settings::{Settings, UnhandledEvents};
pub use crate::stats::Stats;
pub use crate::story::EventStory;
pub use crate::subscription::Subscription;
pub use crate::tx::Tx;
pub use crate::typed::{DomainEvent, Upcasters};
pub use crate::verify::{Finding, Severity, Verification};
pub use crate::worker::{ShutdownReport, Worker};

/// The version of postbox's schema that this release reads and writes. A box brings an older file up to it when it opens it.
pub const SCHEMA_VERSION: u32 = db::schema::VERSION;

/// The README's snippets are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
