//! One shared transaction of transactional handlers: what happens to each event in it, and how they are settled together.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::CachedStatement;

use super::batch::Caution;
use super::delivery::{Attempt, Delivery};
use super::dispatch::caught;
use super::scope::HandlerScope;
use super::settling::{record, settle_alike};
use super::telling::{self, Told};
use crate::breaker::Breaker;
use crate::core::Core;
use crate::crash::CrashPoint;
use crate::db::Writer;
use crate::error::Error;
use crate::handler::{HandlerError, HandlerResult, Signal};
use crate::inbox::Mark;
use crate::ordering;
use crate::outbox::run::runs;
use crate::outbox::settle::{self, Settlement};
use crate::pause_book::Asked;
use crate::pauses::{self, Pauses};
use crate::settings::Settings;
use crate::span;
use crate::subscription::{Kind, Subscription};
use crate::tx::Tx;

/// The open transaction, and how it is used.
pub(super) struct Shared<'a> {
    core: &'a Core,
    settings: &'a Settings,
    writer: &'a Writer,
    caution: Caution,
    /// What is paused as this transaction has it, with what its handlers have asked for.
    pauses: RefCell<Pauses>,
    /// Failures in a row of those that have a breaker. They count once the transaction is committed.
    in_a_row: RefCell<Vec<(Arc<Subscription>, u32)>>,
    /// Each handler has a savepoint of its own. These two begin and end it, looked up once for all handlers.
    savepoint: RefCell<CachedStatement<'a>>,
    release: RefCell<CachedStatement<'a>>,
}

/// What a delivery has come to in a transaction that is not committed yet.
pub(super) struct Step {
    pub(super) next: usize,
    pub(super) attempt: Attempt,
    pub(super) end: End,
    /// What is told once it is committed.
    pub(super) told: Vec<Told>,
}

pub(super) enum End {
    Lost,
    /// Every consumer has processed it: it is settled with its neighbours.
    Processed,
    Settled(Settlement),
    /// More consumers are to come, plain ones as a rule.
    Continues,
}

pub(super) enum Fault {
    /// The work of this consumer cannot be part of the transaction.
    Consumer {
        consumer: usize,
        why: String,
    },
    /// This consumer's handler came upon a fault of the file.
    Handler {
        consumer: usize,
        error: Error,
    },
    /// Neighbours cannot be settled as one: each has to be looked at by itself.
    Run,
    File(Error),
}

impl<E: Into<Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::File(error.into())
    }
}

type Result<T> = std::result::Result<T, Fault>;

impl<'a> Shared<'a> {
    /// Of a transaction that `writer` has begun.
    pub(super) fn new(
        core: &'a Core,
        settings: &'a Settings,
        writer: &'a Writer,
        caution: Caution,
    ) -> Result<Self> {
        let conn = writer.conn();
        Ok(Shared {
            core,
            settings,
            writer,
            caution,
            pauses: RefCell::new(core.pauses.within(conn)?),
            in_a_row: RefCell::default(),
            savepoint: RefCell::new(conn.prepare_cached("SAVEPOINT postbox_handler")?),
            release: RefCell::new(conn.prepare_cached("RELEASE postbox_handler")?),
        })
    }

    /// The fence. The write lock is held: what is true now stays true until the commit, unless handlers change it.
    pub(super) fn holds_all<'d>(&self, deliveries: impl Iterator<Item = &'d Delivery>) -> Result<bool> {
        let mut claims: Vec<_> = deliveries.map(|delivery| delivery.claim).collect();
        claims.sort_unstable_by_key(|claim| claim.seq);
        for (run, claims) in runs(&claims, |claim| claim.seq, |one, next| one.lease == next.lease) {
            if !settle::holds_run(self.writer.conn(), run, claims[0].lease)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs the delivery's next consumers, as long as they are transactional.
    pub(super) fn deliver(&self, delivery: &Delivery) -> Result<Step> {
        let mut step = Step {
            next: delivery.next,
            attempt: delivery.attempt.clone(),
            end: End::Continues,
            told: Vec::new(),
        };
        if delivery.is_lost() || (self.caution != Caution::None && !self.holds(delivery)?) {
            step.end = End::Lost;
            return Ok(step);
        }
        if self.caution != Caution::None {
            self.execute("SAVEPOINT postbox_delivery")?;
        }
        let mut marks = delivery.marks.clone();
        while delivery.consumers.get(step.next).is_some_and(|consumer| consumer.is_transactional()) {
            let name = &delivery.consumers[step.next].consumer_name;
            if delivery.refusal_of(step.next).is_none() && self.is_paused(name) {
                step.attempt.paused.push(name.clone());
            } else if let Some(mark) = self.run_handler(delivery, &mut step)? {
                marks.push((step.next, mark));
            }
            step.next += 1;
            if self.caution == Caution::CommitByCommit {
                break;
            }
        }
        let all =
            marks.len() == delivery.consumers.len() && marks.iter().all(|(_, mark)| *mark == Mark::Processed);
        if all && delivery.is_fresh && self.caution == Caution::None {
            step.end = End::Processed;
            return Ok(step);
        }
        self.settle(delivery, &marks, &mut step)?;
        if self.caution != Caution::None {
            self.execute("RELEASE postbox_delivery")?;
        }
        Ok(step)
    }

    fn holds(&self, delivery: &Delivery) -> Result<bool> {
        Ok(settle::holds_lease(self.writer.conn(), delivery.claim.seq, delivery.claim.lease)?)
    }

    fn execute(&self, sql: &str) -> Result<()> {
        self.writer.conn().prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    fn is_paused(&self, consumer: &str) -> bool {
        let pauses = self.pauses.borrow();
        (!pauses.is_empty() && pauses.of_consumer(consumer, self.core.clock.now()).is_some())
            || self.core.pauses.is_consumer_paused(self.core, consumer)
    }

    /// The delivery's next consumer, in a savepoint of its own. `None`: it has paused its consumer.
    fn run_handler(&self, delivery: &Delivery, step: &mut Step) -> Result<Option<Mark>> {
        let consumer = step.next;
        let subscription = &delivery.consumers[consumer];
        let failures_before = delivery.failures_before(consumer);
        let mut duration = None;
        let result: HandlerResult = match (&subscription.handler, delivery.refusal_of(consumer)) {
            (_, Some(why)) => Err(HandlerError::retry(why)),
            (Kind::Plain(_), _) => Err(HandlerError::retry("it is not transactional")), // the caller has looked
            (Kind::Transactional(handler), None) => {
                self.core.db.crash().at(CrashPoint::BeforeHandler);
                self.savepoint.borrow_mut().execute([])?;
                delivery.begin(subscription, &self.core.clock);
                telling::started(self.core, &delivery.event, &subscription.consumer_name);
                let begun = Instant::now();
                let result = {
                    let _inside = HandlerScope::enter(self.core);
                    let signal = Signal::of(&delivery.under_way.cancellation, subscription.until(begun));
                    let tx = Tx::new(self.writer, self.core, Some(&delivery.event)).signalled_by(signal);
                    let handle = || self.writer.lend(|| caught(|| handler.handle(&delivery.event, &tx)));
                    span::deliver(&delivery.event, &subscription.consumer_name, handle)
                };
                duration = Some(begun.elapsed());
                self.core.db.crash().at(CrashPoint::AfterHandler);
                if let Err(HandlerError { fault: Some(fault), message, .. }) = result {
                    // SQLite lets nothing more be written in a transaction that has met a damaged page: another has to say
                    // what came of it.
                    let error = rusqlite::Error::SqliteFailure(fault, Some(message));
                    return Err(Fault::Handler { consumer, error: error.into() });
                }
                if self.writer.refuse_ended().is_err() {
                    let why =
                        "a statement of the handler rolled back the transaction that it shares with others";
                    return Err(Fault::Consumer { consumer, why: why.to_owned() });
                }
                if result.is_err() {
                    self.execute("ROLLBACK TO postbox_handler")?;
                }
                self.release.borrow_mut().execute([])?;
                self.pause_after(subscription, &result).map_err(|why| Fault::Consumer {
                    consumer,
                    why: format!("its pause cannot be stored: {why}"),
                })?;
                result
            }
        };
        let mark = step.attempt.note(subscription, failures_before, result, duration, self.settings);
        if let Some(mark) = mark.as_ref().filter(|mark| telling::is_wanted(self.core, mark)) {
            step.told.push(Told { consumer, mark: mark.clone(), duration });
        }
        Ok(mark)
    }

    /// Writes the pause that the handler, or its breaker, asks for.
    fn pause_after(
        &self,
        subscription: &Arc<Subscription>,
        result: &HandlerResult,
    ) -> std::result::Result<(), Error> {
        let in_a_row =
            subscription.breaker.as_ref().map_or(0, |breaker| self.count(subscription, breaker, result));
        let clock = &self.core.clock;
        if let Some(Asked { consumer, reason, until, .. }) = Asked::by(subscription, result, in_a_row, clock)
        {
            let now = clock.now();
            pauses::prolong(self.writer.conn(), &consumer, &reason, until, now)?;
            self.core.pauses.note_written();
            self.pauses.borrow_mut().add(&consumer, until, true);
        }
        Ok(())
    }

    fn count(&self, subscription: &Arc<Subscription>, breaker: &Breaker, result: &HandlerResult) -> u32 {
        let mut counts = self.in_a_row.borrow_mut();
        let known = counts.iter_mut().find(|(of, _)| Arc::ptr_eq(of, subscription));
        let before = known.as_ref().map_or_else(|| breaker.in_a_row(), |(_, count)| *count);
        let count = Breaker::after(before, result);
        match known {
            Some(known) => known.1 = count,
            None => counts.push((Arc::clone(subscription), count)),
        }
        count
    }

    /// After the commit: what is true for others from now on.
    pub(super) fn note_committed(&self) {
        for (subscription, count) in self.in_a_row.take() {
            if let Some(breaker) = &subscription.breaker {
                breaker.set(count);
            }
        }
        if let Err(error) = self.core.pauses.reload_after(self.writer.conn(), self.core.clock.now()) {
            // What is committed stands; a worker reads it at its next look.
            log::debug!(target: "postbox::settings", "the pauses cannot be read: {error}");
        }
    }

    /// Writes what came of the delivery by itself.
    fn settle(&self, delivery: &Delivery, marks: &[(usize, Mark)], step: &mut Step) -> Result<()> {
        let conn = self.writer.conn();
        let now = self.core.clock.now();
        // A constraint or a trigger of the application in the way: it would fail again and again.
        let refused = |consumer: usize| {
            move |error: Error| match error {
                error if error.is_fault_of_file() => Fault::File(error),
                error => {
                    Fault::Consumer { consumer, why: format!("its outcome cannot be recorded: {error}") }
                }
            }
        };
        for (place, mark) in marks {
            let name = &delivery.consumers[*place].consumer_name;
            record(conn, delivery.claim.seq, name, mark, now)
                .map_err(refused((*place).max(delivery.next)))?;
        }
        if step.next < delivery.consumers.len() {
            return Ok(ordering::release_next(self.core, conn, delivery.claim.seq, now)?);
        }
        let settlement = step.attempt.settlement(self.settings, now, Some(&self.pauses.borrow()));
        step.attempt.remember(delivery.claim.seq, &settlement);
        let settled = settle::settle(conn, delivery.claim.seq, delivery.claim.lease, &settlement, now)
            .map_err(refused(step.next - 1))?;
        step.end = if settled {
            ordering::release_next(self.core, conn, delivery.claim.seq, now)?;
            End::Settled(settlement)
        } else if self.caution == Caution::None {
            return Err(Fault::Run);
        } else {
            // The handler itself changed or deleted the event's row.
            self.execute("ROLLBACK TO postbox_delivery")?;
            // With it the pauses that its handlers have asked for.
            self.pauses.replace(self.core.pauses.within(conn)?);
            End::Lost
        };
        Ok(())
    }

    /// Settles all that are [`End::Processed`], neighbours as one.
    pub(super) fn settle_processed(&self, stepped: &[(Delivery, Step)]) -> Result<()> {
        let done: Vec<_> = stepped
            .iter()
            .filter(|(_, step)| matches!(step.end, End::Processed))
            .map(|(delivery, _)| (delivery.claim, &delivery.consumers))
            .collect();
        let expected = done.len();
        match settle_alike(self.core, self.writer.conn(), done, self.core.clock.now(), |_| {}) {
            Ok(Some(settled)) if settled == expected => Ok(()),
            Err(error) if error.is_fault_of_file() => Err(Fault::File(error)),
            Ok(_) | Err(_) => Err(Fault::Run),
        }
    }
}
