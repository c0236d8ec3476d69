//! Steps that the model and a real box are taken through together.
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postbox::testing::ManualClock;
use postbox::time::OffsetDateTime;
use postbox::{
    Backoff, Context, Error, Event, EventId, HandlerError, HandlerResult, InboxStatus, NewEvent,
    OutboxStatus, Postbox, Subscription, Tx, rusqlite,
};
use rusqlite::params;
use serde_json::json;
use tempfile::TempDir;

use super::model::{LOST, Model, START, Standing};

/// What a handler does. Transactional ones leave an effect in the file before they do it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    Succeeds,
    Skips,
    Fails,
    FailsFor(Duration),
    GivesUp,
    Panics,
}

#[derive(Debug, Clone)]
pub(crate) struct Outcomes(pub(crate) Vec<Outcome>);

impl Outcomes {
    /// Of this consumer, in this attempt at this event.
    pub(crate) fn of(&self, number: usize, consumer: usize, attempt: u32) -> Outcome {
        self.0[(number + 5 * consumer + 3 * attempt as usize) % self.0.len()]
    }
}

pub(crate) const NAMES: [&str; 3] = ["order.placed", "order.paid", "note"];

#[derive(Debug, Clone)]
pub(crate) struct Consumer {
    /// Of [`NAMES`].
    pub(crate) listens_to: [bool; NAMES.len()],
    pub(crate) transactional: bool,
    pub(crate) attempts_max: u32,
    pub(crate) base: Duration,
    pub(crate) doubles: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct New {
    /// Of [`NAMES`].
    pub(crate) name: usize,
    pub(crate) key: Option<u8>,
    pub(crate) delay: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Decision {
    Retry,
    Discard,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Publish(New),
    /// Together with an effect of the application's; committed, or rolled back.
    PublishInTransaction(Vec<New>, bool),
    ProcessBatch(Outcomes),
    Drain(Outcomes),
    /// Of the pending events, counted round and round: as if another process had claimed it and died.
    LoseAnAttempt(usize),
    /// By so many microseconds, forward or back.
    MoveClock(i64),
    DeadLetters(bool),
    /// Of the dead letters and failed events, counted round and round: tried again, or discarded.
    Decide(usize, Decision),
    // The rest does nothing to a box in memory.
    CloseAndOpen,
    Backup,
    Restore,
}

/// What handlers do, and which of them ran (event and consumer).
struct Played {
    outcomes: Outcomes,
    ran: Vec<(usize, usize)>,
}

#[derive(Clone)]
struct Script(Arc<Mutex<Played>>);

/// A real box, and what is known of it.
pub(crate) struct RealBox {
    /// `None` while it is closed.
    bus: Option<Postbox>,
    clock: ManualClock,
    script: Script,
    /// By the number of the event.
    ids: HashMap<usize, EventId>,
    /// `None` in memory.
    dir: Option<TempDir>,
}

impl RealBox {
    pub(crate) fn new(model: &Model) -> Self {
        let dir = (!model.in_memory).then(|| tempfile::tempdir().unwrap());
        let played = Played { outcomes: Outcomes(Vec::new()), ran: Vec::new() };
        let (clock, script) = (ManualClock::new(time(START)), Script(Arc::new(Mutex::new(played))));
        let mut real = RealBox { bus: None, clock, script, ids: HashMap::new(), dir };
        real.open(model);
        real.sql(|tx| tx.execute_batch("CREATE TABLE effect (event INTEGER NOT NULL, consumer INTEGER)"));
        real
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().expect("a box in a file").path().join(name)
    }

    fn open(&mut self, model: &Model) {
        let builder = Postbox::builder().clock(self.clock.clone());
        let bus = match &self.dir {
            Some(_) => builder.open(self.path("app.db")),
            None => builder.open_in_memory(),
        };
        let bus = bus.unwrap();
        // The last first: they run by priority.
        for (index, consumer) in model.consumers.iter().enumerate().rev() {
            bus.subscribe_many(subscriptions(index, consumer, &self.script)).unwrap();
        }
        self.bus = Some(bus);
    }

    fn close(&mut self) {
        self.bus.take().unwrap().close().unwrap();
    }

    fn bus(&self) -> &Postbox {
        self.bus.as_ref().unwrap()
    }

    fn sql<T>(&self, f: impl FnOnce(&Tx<'_>) -> rusqlite::Result<T>) -> T {
        self.bus().transaction(|tx| f(tx).map_err(Error::from)).unwrap()
    }

    /// Takes a step that the model has taken already, and compares what it came to.
    pub(crate) fn apply(&mut self, step: &Step, model: &Model) {
        let first = |events: usize| model.given_out - events;
        match step {
            Step::Publish(new) => {
                let id = self.bus().publish(new_event(*new, first(1))).unwrap();
                self.learn(model, &[id]);
            }
            Step::PublishInTransaction(events, commits) => {
                let published = self.bus().transaction(|tx| {
                    let ids = events.iter().zip(first(events.len())..);
                    let ids = ids.map(|(new, number)| tx.publish(new_event(*new, number)));
                    let ids: Vec<_> = ids.collect::<postbox::Result<_>>()?;
                    tx.execute("INSERT INTO effect (event) VALUES (?1)", [model.given_out])?;
                    if *commits { Ok(ids) } else { Err(Error::Closed { operation: "rolled back" }) }
                });
                assert_eq!(published.is_ok(), *commits);
                self.learn(model, &published.unwrap_or_default());
            }
            Step::ProcessBatch(outcomes) => self.process(outcomes, model, Postbox::process_batch),
            Step::Drain(outcomes) => self.process(outcomes, model, Postbox::drain),
            Step::LoseAnAttempt(_) => self.lose_attempts(model),
            Step::MoveClock(_) => self.clock.set(time(model.wall)),
            Step::DeadLetters(on) => {
                self.bus().update_settings(|settings| settings.dead_letter_enabled = *on).unwrap();
            }
            Step::Decide(_, decision) => {
                if let Some(number) = model.decided {
                    let (outbox, id) = (self.bus().outbox(), self.ids[&number]);
                    match decision {
                        Decision::Retry => outbox.retry(id).unwrap(),
                        Decision::Discard => outbox.discard(id, "of no use").unwrap(),
                    }
                }
            }
            Step::CloseAndOpen | Step::Backup | Step::Restore if model.in_memory => {}
            Step::CloseAndOpen => {
                self.close();
                self.open(model);
            }
            Step::Backup => self.bus().backup(self.path("backup.db")).unwrap(),
            Step::Restore if model.backup.is_some() => {
                self.close();
                postbox::restore(self.path("backup.db"), self.path("app.db")).unwrap();
                self.open(model);
            }
            Step::Restore => {}
        }
    }

    fn learn(&mut self, model: &Model, ids: &[EventId]) {
        assert_eq!(ids.len(), model.published.len());
        for (id, number) in ids.iter().zip(&model.published) {
            assert_eq!(self.ids.entry(*number).or_insert(*id), id, "the same event has the same id");
        }
    }

    fn process(
        &mut self,
        outcomes: &Outcomes,
        model: &Model,
        process: impl FnOnce(&Postbox) -> postbox::Result<usize>,
    ) {
        self.script.0.lock().unwrap().outcomes = outcomes.clone();
        assert_eq!(process(self.bus()).unwrap(), model.processed, "how many events were processed");
        let ran = std::mem::take(&mut self.script.0.lock().unwrap().ran);
        assert_eq!(ran, model.ran, "the handlers that ran: event and consumer");
    }

    fn lose_attempts(&self, model: &Model) {
        for row in model.file.rows.iter().filter(|row| row.status == OutboxStatus::Processing) {
            self.sql(|tx| {
                tx.execute(
                    "UPDATE outbox_event SET status = 'processing', attempt_count = attempt_count + 1, lease_id = ?2,
                                             available_at = created_at
                     WHERE id = ?1 AND status = 'pending'",
                    params![self.ids[&row.number].as_uuid(), 77_i64 << 24 | 1],
                )
            });
        }
    }

    /// Compares all that the box says with the model.
    pub(crate) fn check(&self, model: &Model) {
        self.check_counts(model);
        for row in &model.file.rows {
            let number = row.number;
            let is = self.bus().outbox().get(self.ids[&number]).unwrap().expect("the event's row");
            assert_eq!(
                (is.status, is.attempt_count, micros(is.available_at)),
                (row.status, row.attempts, row.available_at),
                "event {number}"
            );
            assert_eq!(
                (micros(is.created_at), micros(is.updated_at)),
                (row.created_at, row.updated_at),
                "event {number}"
            );
            let processed_at = (row.status == OutboxStatus::Processed).then_some(row.updated_at);
            assert_eq!(is.processed_at.map(micros), processed_at, "event {number}");
            assert_eq!((is.event_name.as_str(), is.aggregate_id), (NAMES[row.new.name], number.to_string()));
            assert_eq!(is.payload, json!({ "number": number }));
            let failed = row.standings.iter().any(Standing::is_known_and_open);
            assert_eq!(is.last_error.is_some(), failed || row.is_discarded, "event {number}");
        }
        assert_eq!(self.inbox(), inbox_of(model));
        let mut effects = model.file.effects.clone();
        effects.sort_unstable();
        let is: Vec<(usize, Option<usize>)> = self.sql(|tx| {
            tx.prepare("SELECT event, consumer FROM effect ORDER BY event, consumer")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        });
        assert_eq!(is, effects, "each effect once");
    }

    fn check_counts(&self, model: &Model) {
        let stats = self.bus().stats().unwrap();
        let rows = &model.file.rows;
        let count = |status| rows.iter().filter(|row| row.status == status).count() as u64;
        for (is, status) in [
            (stats.pending, OutboxStatus::Pending),
            (stats.processing, OutboxStatus::Processing),
            (stats.processed, OutboxStatus::Processed),
            (stats.failed, OutboxStatus::Failed),
            (stats.dead_letter, OutboxStatus::DeadLetter),
        ] {
            assert_eq!(is, count(status), "{status}: {stats:?}");
        }
        assert_eq!(stats.total, rows.len() as u64);
        let oldest = rows.iter().filter(|row| row.is_pending()).map(|row| row.created_at).min();
        let age_ms = oldest.map(|at| u64::try_from((model.now - at) / 1_000).unwrap());
        assert_eq!(stats.oldest_pending_age_ms, age_ms);
        for consumer in 0..model.consumers.len() {
            let open = rows.iter().filter(|row| row.standings[consumer].is_known_and_open()).count();
            let is = self.bus().inbox().count_unprocessed(&consumer_name(consumer)).unwrap();
            assert_eq!(is, open as u64, "open work of consumer {consumer}");
        }
    }

    fn inbox(&self) -> Inbox {
        let ids: Vec<i64> = self
            .sql(|tx| tx.prepare("SELECT id FROM inbox_event")?.query_map([], |row| row.get(0))?.collect());
        let rows = ids.into_iter().map(|id| self.bus().inbox().get(id.into()).unwrap().unwrap());
        rows.map(|row| {
            let event = self.bus().outbox().get(row.outbox_event_id).unwrap().unwrap();
            let error = row.last_error.map(|error| match error.strip_prefix(LOST) {
                Some(_) => LOST.to_owned(),
                None => error,
            });
            let key = (event.aggregate_id.parse().unwrap(), row.consumer_name);
            (key, (row.status, row.attempt_count, error))
        })
        .collect()
    }
}

/// By event and consumer: its status, its failed attempts, its last error.
type Inbox = BTreeMap<(usize, String), (InboxStatus, u32, Option<String>)>;

fn inbox_of(model: &Model) -> Inbox {
    let mut inbox = Inbox::new();
    for row in &model.file.rows {
        for (index, standing) in row.standings.iter().enumerate() {
            if standing.status != InboxStatus::Received || standing.is_known_and_open() {
                let said = (standing.status, standing.failures, standing.error.map(str::to_owned));
                inbox.insert((row.number, consumer_name(index)), said);
            }
        }
    }
    inbox
}

fn consumer_name(index: usize) -> String {
    format!("consumer {index}")
}

fn subscriptions(index: usize, consumer: &Consumer, script: &Script) -> Vec<Subscription> {
    let names = NAMES.iter().zip(consumer.listens_to).filter(|(_, listens)| *listens);
    let one = |(event_name, _): (&&str, bool)| {
        let script = script.clone();
        let name = consumer_name(index);
        let subscription = if consumer.transactional {
            Subscription::transactional(*event_name, name, move |event: &Event, tx: &Tx<'_>| {
                tx.execute(
                    "INSERT INTO effect (event, consumer) VALUES (?1, ?2)",
                    params![number(event), index],
                )?;
                script.plays(index, event)
            })
        } else {
            Subscription::new(*event_name, name, move |event: &Event, _: &Context<'_>| {
                script.plays(index, event)
            })
        };
        let backoff = if consumer.doubles {
            Backoff::exponential(consumer.base)
        } else {
            Backoff::fixed(consumer.base)
        };
        let priority = -i32::try_from(index).unwrap();
        subscription.priority(priority).max_attempts(consumer.attempts_max).backoff(backoff)
    };
    names.map(one).collect()
}

impl Script {
    fn plays(&self, consumer: usize, event: &Event) -> HandlerResult {
        let number = number(event);
        let outcome = {
            let mut played = self.0.lock().unwrap();
            played.ran.push((number, consumer));
            played.outcomes.of(number, consumer, event.attempt())
        };
        match outcome {
            Outcome::Succeeds => Ok(()),
            Outcome::Skips => Err(HandlerError::skip("skips")),
            Outcome::Fails => Err(HandlerError::retry("fails")),
            Outcome::FailsFor(delay) => Err(HandlerError::retry_after("fails", delay)),
            Outcome::GivesUp => Err(HandlerError::dead_letter("gives up")),
            // Without the message that a panic would print.
            Outcome::Panics => std::panic::resume_unwind(Box::new("panics")),
        }
    }
}

fn new_event(new: New, number: usize) -> NewEvent {
    let event = NewEvent::new(NAMES[new.name], "shop", "Order", number.to_string())
        .payload(json!({ "number": number }))
        .delay(new.delay);
    match new.key {
        Some(key) => event.idempotency_key(format!("key {key}")),
        None => event,
    }
}

fn number(event: &Event) -> usize {
    event.aggregate_id().parse().unwrap()
}

fn time(micros: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000).unwrap()
}

fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap()
}
