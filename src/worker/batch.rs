//! Transactional handlers, back to back in shared transactions: each in a savepoint of its own, one commit for all.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::delivery::{Attempt, Delivery, Report};
use super::dispatch::caught;
use super::scope::HandlerScope;
use super::turn::log_settlement;
use crate::core::Core;
use crate::db::Writer;
use crate::error::Error;
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
    slot: u64,
    report: &mut dyn FnMut(Report),
) {
    let core = postbox.core();
    let mut waiting = VecDeque::from(deliveries);
    let mut faults = 0;
    // So many of the next are committed one consumer at a time, to find the one whose work cannot be.
    let mut alone = 0_usize;
    while !waiting.is_empty() {
        waiting.retain(|delivery| {
            let give_back = delivery.is_stopping() && !delivery.is_begun();
            if give_back {
                report(Report::GivenBack { claim: delivery.claim, fault: None });
            }
            !give_back
        });
        match commit_some(core, settings, &mut waiting, slot, alone > 0) {
            Ok(done) => {
                alone = alone.saturating_sub(done.len());
                core.bell.ring(); // follow-ups may be among what was committed
                done.into_iter().for_each(&mut *report);
            }
            Err(Failure::Refused { consumer, why }) => refuse(&mut waiting, consumer, why, report),
            Err(Failure::Commit { error, tried }) if error.is_fault_of_file() => {
                faults += 1;
                log::warn!(target: "postbox::delivery", "a transaction of {tried} deliveries failed and is tried again: {error}");
                if faults >= FAULTS_MAX {
                    let mut fault = Some(error);
                    for delivery in waiting.drain(..) {
                        report(Report::GivenBack { claim: delivery.claim, fault: fault.take() });
                    }
                }
            }
            Err(Failure::Commit { error, .. }) if alone > 0 => {
                let consumer = waiting.front().map_or(0, |delivery| delivery.next);
                refuse(&mut waiting, consumer, format!("its work cannot be committed: {error}"), report);
            }
            Err(Failure::Commit { tried, .. }) => alone = tried.max(1),
        }
    }
}

/// Why a shared transaction was not committed. Every delivery is back in the line, as it was.
enum Failure {
    /// The work of this consumer, of the delivery that is first in the line, cannot be part of any transaction.
    Refused {
        consumer: usize,
        why: String,
    },
    Commit {
        error: Error,
        tried: usize,
    },
}

/// The first delivery in the line begins again without this consumer's work. Where even the refusal could not be
/// recorded, the event is set aside.
fn refuse(waiting: &mut VecDeque<Delivery>, consumer: usize, why: String, report: &mut dyn FnMut(Report)) {
    let Some(delivery) = waiting.front_mut() else { return };
    if delivery.refusal_of(consumer).is_none() {
        delivery.refused.push((consumer, why));
    } else if let Some(delivery) = waiting.pop_front() {
        report(Report::Broken { claim: delivery.claim, error: why });
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
    /// More consumers are to come, plain ones as a rule.
    Continues,
}

/// One shared transaction; `alone`: of one consumer of one delivery.
fn commit_some(
    core: &Core,
    settings: &Settings,
    waiting: &mut VecDeque<Delivery>,
    slot: u64,
    alone: bool,
) -> std::result::Result<Vec<Report>, Failure> {
    let mut stepped: Vec<(Delivery, Step)> = Vec::new();
    match fill_and_commit(core, settings, waiting, &mut stepped, slot, alone) {
        Ok(()) => Ok(stepped.into_iter().map(|(delivery, step)| conclude(delivery, step)).collect()),
        Err(fault) => {
            let tried = stepped.len();
            // What was refused is first in the line: it is what the caller looks at.
            let refused = if matches!(fault, Fault::Consumer { .. }) { waiting.pop_front() } else { None };
            for (delivery, _) in stepped.into_iter().rev() {
                waiting.push_front(delivery);
            }
            if let Some(delivery) = refused {
                waiting.push_front(delivery);
            }
            Err(match fault {
                Fault::Consumer { consumer, why } => Failure::Refused { consumer, why },
                Fault::File(error) => Failure::Commit { error, tried },
            })
        }
    }
}

fn fill_and_commit(
    core: &Core,
    settings: &Settings,
    waiting: &mut VecDeque<Delivery>,
    stepped: &mut Vec<(Delivery, Step)>,
    slot: u64,
    alone: bool,
) -> std::result::Result<(), Fault> {
    let writer = core.db.lock("deliver")?;
    let open = writer.begin(core.acks, "deliver")?;
    let begun = Instant::now();
    let events_max = if alone { 1 } else { EVENTS_MAX };
    while stepped.len() < events_max
        && (stepped.is_empty() || (begun.elapsed() < TIME_MAX && !stepped[0].0.is_stopping()))
        && let Some(delivery) = waiting.pop_front()
    {
        core.note_begun(slot, delivery.claim);
        match deliver(core, settings, &writer, &delivery, alone) {
            Ok(step) => stepped.push((delivery, step)),
            Err(fault) => {
                waiting.push_front(delivery);
                return Err(fault);
            }
        }
    }
    Ok(open.commit()?)
}

enum Fault {
    /// The work of this consumer cannot be part of the transaction.
    Consumer {
        consumer: usize,
        why: String,
    },
    File(Error),
}

impl<E: Into<Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::File(error.into())
    }
}

/// Runs the delivery's next consumers, as long as they are transactional; `alone`: one of them.
fn deliver(
    core: &Core,
    settings: &Settings,
    writer: &Writer,
    delivery: &Delivery,
    alone: bool,
) -> std::result::Result<Step, Fault> {
    let mut step = Step { next: delivery.next, attempt: delivery.attempt.clone(), end: End::Continues };
    let Claim { seq, lease, .. } = delivery.claim;
    // The fence. The write lock is held: what is true now stays true until the commit.
    if delivery.is_lost() || !settle::holds_lease(writer.conn(), seq, lease)? {
        step.end = End::Lost;
        return Ok(step);
    }
    while delivery.consumers.get(step.next).is_some_and(|consumer| consumer.subscription.is_transactional()) {
        let consumer = step.next;
        run_consumer(core, settings, writer, delivery, &mut step).map_err(|fault| match fault {
            // A constraint or a trigger of the application: it would fail again and again.
            Fault::File(error) if !error.is_fault_of_file() => {
                Fault::Consumer { consumer, why: format!("its outcome cannot be recorded: {error}") }
            }
            fault => fault,
        })?;
        if alone {
            break;
        }
    }
    Ok(step)
}

/// One transactional consumer, in a savepoint of its own: {inbox mark, handler, and the settle after the last one}.
fn run_consumer(
    core: &Core,
    settings: &Settings,
    writer: &Writer,
    delivery: &Delivery,
    step: &mut Step,
) -> std::result::Result<(), Fault> {
    let conn = writer.conn();
    let Claim { seq, lease, .. } = delivery.claim;
    let consumer = &delivery.consumers[step.next];
    let Kind::Transactional(handler) = &consumer.subscription.handler else { return Ok(()) };
    let name = &consumer.subscription.consumer_name;
    if step.next == delivery.next {
        for (consumer, mark) in &delivery.marks {
            inbox::record(conn, seq, consumer, mark, core.clock.now())?;
        }
    }

    conn.prepare_cached("SAVEPOINT postbox_delivery")?.execute([])?;
    let result: HandlerResult = if let Some(why) = delivery.refusal_of(step.next) {
        Err(HandlerError::retry(why))
    } else {
        inbox::record(conn, seq, name, &Mark::Processed, core.clock.now())?;
        let _inside = HandlerScope::enter(core);
        let tx = Tx::new(writer, core, Some(&delivery.event));
        writer.lend(|| caught(|| handler.handle(&delivery.event, &tx)))
    };
    if writer.refuse_ended().is_err() {
        let why =
            "a statement of the handler rolled back the transaction that it shares with others".to_owned();
        return Err(Fault::Consumer { consumer: step.next, why });
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
    Ok(())
}

/// After the commit.
fn conclude(mut delivery: Delivery, step: Step) -> Report {
    let claim = delivery.claim;
    match step.end {
        End::Lost => Report::Lost { claim },
        End::Settled(settlement) => {
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
