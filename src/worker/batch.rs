//! Transactional handlers, back to back in shared transactions: each in a savepoint of its own, one commit for all.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::delivery::{Delivery, Report};
use super::settling::log_settlement;
use super::shared::{self, End, Shared, Step};
use super::telling::{self, Told};
use crate::core::Core;
use crate::error::Error;
use crate::fault::Fault;
use crate::observing::{Observing, Publication};
use crate::outbox::settle::Settlement;
use crate::postbox::Postbox;
use crate::settings::Settings;

/// A shared transaction ends after this many events or this long, whichever comes first: the application's own writers
/// wait meanwhile.
const EVENTS_MAX: usize = 256;
const TIME_MAX: Duration = Duration::from_millis(20);

/// Faults of the file in a row, not of a handler, after which deliveries are interrupted.
const FAULTS_MAX: u32 = 3;

/// So many times one delivery's handlers may come upon damage in the file: it may be where this handler alone looks.
const DAMAGE_MAX: u32 = 3;

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
    let mut caution = Caution::None;
    // So many of the next are dealt with by it.
    let mut with_caution = 0_usize;
    while !waiting.is_empty() {
        waiting.retain(|delivery| {
            let give_back = delivery.is_stopping() && !delivery.is_begun();
            if give_back {
                report(Report::GivenBack { claim: delivery.claim, fault: None });
            }
            !give_back
        });
        if with_caution == 0 {
            caution = Caution::None;
        }
        match commit_some(core, settings, &mut waiting, slot, caution) {
            Ok(done) => {
                faults = 0;
                with_caution = with_caution.saturating_sub(done.len());
                done.into_iter().for_each(&mut *report);
            }
            Err(Failure::Refused { consumer, why }) => refuse(&mut waiting, consumer, why, report),
            Err(Failure::Fault { consumer, error }) => excuse(&mut waiting, consumer, error, report),
            Err(Failure::Run { tried }) => {
                (caution, with_caution) = (Caution::EventByEvent, tried.max(1));
            }
            Err(Failure::Commit { error, tried }) if error.is_fault_of_file() => {
                faults += 1;
                log::warn!(target: "postbox::delivery", "a transaction of {tried} deliveries failed and is tried again: {error}");
                if faults >= FAULTS_MAX {
                    let mut fault = Some(error);
                    for delivery in waiting.drain(..) {
                        report(delivery.interrupt(fault.take()));
                    }
                }
            }
            Err(Failure::Commit { error, .. }) if caution == Caution::CommitByCommit => {
                let consumer = waiting.front().map_or(0, |delivery| delivery.next);
                refuse(&mut waiting, consumer, format!("its work cannot be committed: {error}"), report);
            }
            Err(Failure::Commit { tried, .. }) => {
                (caution, with_caution) = (Caution::CommitByCommit, tried.max(1));
            }
        }
    }
}

/// How closely deliveries are looked at: more so once something in a shared transaction has gone wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caution {
    /// Neighbours that succeed are settled by one statement, when all handlers have run.
    None,
    /// Each is fenced and settled by itself, in a savepoint of its own.
    EventByEvent,
    /// Each consumer's work is committed by itself, to find the one whose work cannot be.
    CommitByCommit,
}

/// Why a shared transaction was not committed. Every delivery is back in the line, as it was.
enum Failure {
    /// The work of this consumer, of the delivery that is first in the line, cannot be part of any transaction.
    Refused {
        consumer: usize,
        why: String,
    },
    /// The handler of this consumer, of the delivery that is first in the line, came upon a fault of the file.
    Fault {
        consumer: usize,
        error: Error,
    },
    /// Neighbours could not be settled as one.
    Run {
        tried: usize,
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

/// A fault of the file is not its handler's. A disk that is full or fails is waited for, and the others go on meanwhile, if
/// they can; damage does not pass, and may be where this handler alone looks: in the end it counts as its failure.
fn excuse(waiting: &mut VecDeque<Delivery>, consumer: usize, error: Error, report: &mut dyn FnMut(Report)) {
    let Some(delivery) = waiting.front_mut() else { return };
    if error.fault() == Some(Fault::Damaged) {
        delivery.damage_met += 1;
        if delivery.damage_met >= DAMAGE_MAX {
            refuse(waiting, consumer, error.to_string(), report);
        }
    } else if let Some(delivery) = waiting.pop_front() {
        log::warn!(target: "postbox::delivery", "a handler of event {} came upon a fault of the file and waits: {error}", delivery.claim.id);
        report(delivery.postpone(error));
    }
}

/// One shared transaction. What came of it is told once it is committed, and nothing is locked any more.
fn commit_some(
    core: &Core,
    settings: &Settings,
    waiting: &mut VecDeque<Delivery>,
    slot: u64,
    caution: Caution,
) -> std::result::Result<Vec<Report>, Failure> {
    let mut stepped: Vec<(Delivery, Step)> = Vec::with_capacity(waiting.len().min(EVENTS_MAX));
    match fill_and_commit(core, settings, waiting, &mut stepped, slot, caution) {
        Ok(published) => {
            core.bell.ring(); // follow-ups may be among what was committed
            if let Some(observing) = &core.observing {
                observing.tell_publications(&core.db, &published);
            }
            Ok(stepped.into_iter().map(|(delivery, step)| conclude(core, delivery, step)).collect())
        }
        Err(fault) => {
            let tried = stepped.len();
            // What failed is first in the line: it is what the caller looks at.
            let is_of_first = matches!(fault, shared::Fault::Consumer { .. } | shared::Fault::Handler { .. });
            let first = if is_of_first { waiting.pop_front() } else { None };
            for (delivery, _) in stepped.into_iter().rev() {
                waiting.push_front(delivery);
            }
            if let Some(delivery) = first {
                waiting.push_front(delivery);
            }
            Err(match fault {
                shared::Fault::Consumer { consumer, why } => Failure::Refused { consumer, why },
                shared::Fault::Handler { consumer, error } => Failure::Fault { consumer, error },
                // None was begun where the fence found one that is lost: it is among those that would have been.
                shared::Fault::Run => Failure::Run { tried: if tried == 0 { EVENTS_MAX } else { tried } },
                shared::Fault::File(error) => Failure::Commit { error, tried },
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
    caution: Caution,
) -> std::result::Result<Vec<Publication>, shared::Fault> {
    let writer = core.db.lock("deliver")?;
    let open = writer.begin(core.acks, "deliver")?;
    core.observing.iter().for_each(Observing::transaction_begins);
    let begun = Instant::now();
    let shared = Shared::new(core, settings, &writer, caution)?;
    let events_max = if caution == Caution::CommitByCommit { 1 } else { EVENTS_MAX };
    if caution == Caution::None && !shared.holds_all(waiting.iter().take(events_max))? {
        return Err(shared::Fault::Run);
    }
    while stepped.len() < events_max
        && (stepped.is_empty() || (begun.elapsed() < TIME_MAX && !stepped[0].0.is_stopping()))
        && let Some(delivery) = waiting.pop_front()
    {
        core.note_begun(slot, delivery.claim);
        match shared.deliver(&delivery) {
            Ok(step) => stepped.push((delivery, step)),
            Err(fault) => {
                waiting.push_front(delivery);
                return Err(fault);
            }
        }
    }
    shared.settle_processed(stepped)?;
    let processed = |step: &Step| matches!(step.end, End::Processed | End::Settled(Settlement::Processed));
    core.count_processed(writer.conn(), stepped.iter().filter(|(_, step)| processed(step)).count())?;
    let published = core.observing.as_ref().map(|observing| observing.take_published(writer.conn()));
    open.commit()?;
    shared.note_committed();
    Ok(published.unwrap_or_default())
}

/// After the commit.
fn conclude(core: &Core, mut delivery: Delivery, step: Step) -> Report {
    let claim = delivery.claim;
    if !matches!(step.end, End::Lost) {
        for Told { consumer, mark, duration } in &step.told {
            let name = &delivery.consumers[*consumer].consumer_name;
            telling::outcome(core, &delivery.event, name, mark, *duration);
        }
    }
    match step.end {
        End::Lost => Report::Lost { claim },
        End::Processed => Report::Settled { claim, processed: true },
        End::Settled(settlement) => {
            log_settlement(claim.id, &settlement);
            telling::settled(core, &delivery, &settlement);
            Report::Settled { claim, processed: settlement == Settlement::Processed }
        }
        End::Continues => {
            delivery.next = step.next;
            delivery.attempt = step.attempt;
            delivery.marks.clear();
            delivery.is_fresh = false;
            Report::Continues(Box::new(delivery))
        }
    }
}
