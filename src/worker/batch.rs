//! Transactional handlers, back to back in shared transactions: each in a savepoint of its own, one commit for all.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::delivery::{Attempt, Delivery, Report};
use super::dispatch::caught;
use super::scope::HandlerScope;
use super::turn::log_settlement;
use crate::core::Core;
use crate::db::Writer;
use crate::error::Result;
use crate::handler::{HandlerError, HandlerResult};
use crate::inbox::{self, Mark};
use crate::outbox::claim::Claim;
use crate::outbox::settle::{self, Settlement};
use crate::postbox::Postbox;
use crate::registry::Kind;
use crate::settings::Settings;
use crate::tx::Tx;

/// A shared transaction ends after this many events or this long, whichever comes first: the application's own writers
/// wait meanwhile.
const EVENTS_MAX: usize = 256;
const TIME_MAX: Duration = Duration::from_millis(20);

/// Faults of the file, not of a handler, after which deliveries are given back.
const FAULTS_MAX: u32 = 3;

/// Delivers to transactional consumers until each event is over or comes to a plain consumer.
pub(crate) fn run(
    postbox: &Postbox,
    settings: &Settings,
    deliveries: Vec<Delivery>,
    report: &mut dyn FnMut(Report),
) {
    let core = postbox.core();
    let mut waiting = VecDeque::from(deliveries);
    let mut faults = 0;
    while !waiting.is_empty() {
        match commit_some(core, settings, &mut waiting) {
            Ok(done) => {
                if !done.is_empty() {
                    core.bell.ring(); // follow-ups may be among what was committed
                }
                done.into_iter().for_each(&mut *report);
            }
            Err(error) => {
                faults += 1;
                log::warn!(target: "postbox::delivery", "a transaction of {} deliveries failed and is tried again: {error}", waiting.len());
                if faults >= FAULTS_MAX {
                    for delivery in waiting.drain(..) {
                        report(Report::GivenBack { claim: delivery.claim });
                    }
                }
            }
        }
    }
}

/// What a delivery has come to in a transaction that is not committed yet.
struct Step {
    next: usize,
    attempt: Attempt,
    end: End,
}

enum End {
    Lost,
    Settled(Settlement),
    /// A plain consumer is next.
    Continues,
}

/// One shared transaction. On any failure every delivery is back in `waiting`, as it was.
fn commit_some(core: &Core, settings: &Settings, waiting: &mut VecDeque<Delivery>) -> Result<Vec<Report>> {
    let mut stepped: Vec<(Delivery, Step)> = Vec::new();
    let result = fill_and_commit(core, settings, waiting, &mut stepped);
    match result {
        Ok(true) => Ok(stepped.into_iter().map(|(delivery, step)| conclude(core, delivery, step)).collect()),
        outcome => {
            for (delivery, _) in stepped.into_iter().rev() {
                waiting.push_front(delivery);
            }
            outcome.map(|_| Vec::new())
        }
    }
}

/// False: a handler ended the transaction. It is noted, and the others begin again without it.
fn fill_and_commit(
    core: &Core,
    settings: &Settings,
    waiting: &mut VecDeque<Delivery>,
    stepped: &mut Vec<(Delivery, Step)>,
) -> Result<bool> {
    let writer = core.db.lock("deliver")?;
    let open = writer.begin(core.acks, "deliver")?;
    let begun = Instant::now();
    while stepped.len() < EVENTS_MAX
        && (stepped.is_empty() || begun.elapsed() < TIME_MAX)
        && let Some(mut delivery) = waiting.pop_front()
    {
        match deliver(core, settings, &writer, &delivery) {
            Ok(step) => stepped.push((delivery, step)),
            Err(Fault::EndedTransaction { consumer }) => {
                delivery.ended_transaction = Some(consumer);
                waiting.push_front(delivery);
                return Ok(false);
            }
            Err(Fault::File(error)) => {
                waiting.push_front(delivery);
                return Err(error);
            }
        }
    }
    open.commit()?;
    Ok(true)
}

enum Fault {
    /// The handler of this consumer did.
    EndedTransaction {
        consumer: usize,
    },
    File(crate::error::Error),
}

impl<E: Into<crate::error::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::File(error.into())
    }
}

/// Runs the delivery's next consumers, as long as they are transactional.
fn deliver(
    core: &Core,
    settings: &Settings,
    writer: &Writer,
    delivery: &Delivery,
) -> std::result::Result<Step, Fault> {
    let mut step = Step { next: delivery.next, attempt: delivery.attempt.clone(), end: End::Continues };
    let Claim { seq, lease, .. } = delivery.claim;
    // The fence. The write lock is held: what is true now stays true until the commit.
    if delivery.is_lost() || !settle::holds_lease(writer.conn(), seq, lease)? {
        step.end = End::Lost;
        return Ok(step);
    }
    for (consumer, mark) in &delivery.marks {
        inbox::record(writer.conn(), seq, consumer, mark, core.clock.now())?;
    }
    while let Some(consumer) = delivery.consumers.get(step.next) {
        let Kind::Transactional(handler) = &consumer.subscription.handler else { return Ok(step) };
        let name = &consumer.subscription.consumer_name;
        let conn = writer.conn();
        conn.prepare_cached("SAVEPOINT postbox_delivery")?.execute([])?;
        inbox::record(conn, seq, name, &Mark::Processed, core.clock.now())?;

        let result: HandlerResult = if delivery.ended_transaction == Some(step.next) {
            Err(HandlerError::retry(
                "the handler's SQL rolled back the transaction that it shares with others",
            ))
        } else {
            let _inside = HandlerScope::enter(core);
            writer.lend(|| {
                caught(|| handler.handle(&delivery.event, &Tx::new(writer, core, Some(&delivery.event))))
            })
        };
        if conn.is_autocommit() {
            return Err(Fault::EndedTransaction { consumer: step.next });
        }

        let succeeded = result.is_ok();
        let mark = step.attempt.note(consumer, result, settings);
        let now = core.clock.now();
        if !succeeded {
            conn.prepare_cached("ROLLBACK TO postbox_delivery")?.execute([])?;
            inbox::record(conn, seq, name, &mark, now)?;
        }
        step.next += 1;
        if step.next == delivery.consumers.len() {
            let settlement = step.attempt.settlement(settings, now);
            if settle::settle(conn, seq, lease, &settlement, now)? {
                step.end = End::Settled(settlement);
            } else {
                // The handler itself changed or deleted the event's row.
                conn.prepare_cached("ROLLBACK TO postbox_delivery")?.execute([])?;
                step.end = End::Lost;
            }
        }
        conn.prepare_cached("RELEASE postbox_delivery")?.execute([])?;
    }
    Ok(step)
}

/// After the commit.
fn conclude(core: &Core, mut delivery: Delivery, step: Step) -> Report {
    let claim = delivery.claim;
    match step.end {
        End::Lost => Report::Lost { claim },
        End::Settled(settlement) => {
            core.no_longer_in_flight(claim);
            log_settlement(claim.id, &settlement);
            Report::Settled { claim, processed: settlement == Settlement::Processed }
        }
        End::Continues => {
            delivery.next = step.next;
            delivery.attempt = step.attempt;
            delivery.marks.clear();
            Report::Continues(Box::new(delivery))
        }
    }
}
