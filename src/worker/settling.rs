//! Writing down what came back: one by one, or neighbours as one.

use std::sync::Arc;

use rusqlite::Connection;

use super::delivery::Report;
use crate::core::Core;
use crate::error::Result;
use crate::event::EventId;
use crate::history::{self, HistoryKind, NewEntry};
use crate::inbox::{self, Mark};
use crate::ordering;
use crate::outbox::claim::Claim;
use crate::outbox::run::runs;
use crate::outbox::settle::{self, Settlement};
use crate::registry::Consumers;
use crate::settings::Settings;
use crate::validate;

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// The event reached `processed`.
    Processed,
    /// It has ended without success.
    Dead,
    /// It goes on, or waits.
    Otherwise,
    /// The lease was lost: nothing was written.
    Refused,
}

/// A dead letter whose consumers' outcomes are not recorded. False: the lease was lost.
pub(super) fn set_aside(
    core: &Core,
    conn: &Connection,
    claim: Claim,
    why: &str,
    settings: &Settings,
    now: i64,
) -> Result<bool> {
    let error = validate::error_text(why);
    let settlement = if settings.dead_letter_enabled {
        Settlement::DeadLetter { error }
    } else {
        Settlement::Failed { error }
    };
    let is_settled = settle::settle(conn, claim.seq, claim.lease, &settlement, now)?;
    if is_settled {
        ordering::release_next(core, conn, claim.seq, now)?;
        log_settlement(claim.id, &settlement);
    }
    Ok(is_settled)
}

/// What a consumer's inbox row says from now on, and what the event's history says of a failure.
pub(super) fn record(conn: &Connection, seq: i64, consumer: &str, mark: &Mark, now: i64) -> Result<()> {
    inbox::record(conn, seq, consumer, mark, now)?;
    let (kind, duration, error) = match mark {
        Mark::Failed { error, duration, .. } => (HistoryKind::Failed, *duration, error),
        Mark::Lost { error, .. } => (HistoryKind::Lost, None, error),
        Mark::Processed | Mark::Skipped { .. } => return Ok(()),
    };
    let entry = NewEntry { kind, consumer_name: Some(consumer), duration, detail: Some(error) };
    history::add(conn, seq, &entry, now)
}

pub(super) fn settle_report(
    core: &Core,
    conn: &Connection,
    report: &Report,
    settings: &Settings,
    now: i64,
) -> Result<Recorded> {
    match report {
        Report::Marked { claim, consumer, mark } => {
            if settle::holds_lease(conn, claim.seq, claim.lease)? {
                record(conn, claim.seq, consumer, mark, now)?;
                ordering::release_next(core, conn, claim.seq, now)?;
            }
            Ok(Recorded::Otherwise) // the event's end is still to come, and tells of a lost lease
        }
        Report::Processed { claim, consumers } => {
            let settled = settle_processed(core, conn, *claim, consumers, now)?;
            Ok(if settled { Recorded::Processed } else { Recorded::Refused })
        }
        Report::Finished { claim, consumers, marks, attempt } => {
            let pauses = if attempt.paused.is_empty() { None } else { Some(core.pauses.within(conn)?) };
            let settlement = attempt.settlement(settings, now, pauses.as_ref());
            attempt.remember(claim.seq, &settlement);
            settle_marked(core, conn, *claim, consumers, marks, &settlement, now)
        }
        Report::Interrupted { claim, consumers, marks, attempt, .. } => {
            let settlement = attempt.settlement_so_far(settings, now);
            settle_marked(core, conn, *claim, consumers, marks, &settlement, now)
        }
        Report::Postponed { claim, consumers, marks, attempt, why, at_once, .. } => {
            let settlement = attempt.settlement_later(settings, now, why, *at_once);
            settle_marked(core, conn, *claim, consumers, marks, &settlement, now)
        }
        Report::Broken { claim, error } => {
            let is_set_aside = set_aside(core, conn, *claim, error, settings, now)?;
            Ok(if is_set_aside { Recorded::Dead } else { Recorded::Refused })
        }
        Report::GivenBack { claim, .. } => {
            settle::settle(conn, claim.seq, claim.lease, &Settlement::GivenBack, now)?;
            ordering::release_next(core, conn, claim.seq, now)?;
            Ok(Recorded::Otherwise)
        }
        Report::Lost { .. } => Ok(Recorded::Refused),
        Report::Settled { .. } | Report::Continues(_) => Ok(Recorded::Otherwise),
    }
}

fn settle_marked(
    core: &Core,
    conn: &Connection,
    claim: Claim,
    consumers: &Consumers,
    marks: &[(usize, Mark)],
    settlement: &Settlement,
    now: i64,
) -> Result<Recorded> {
    // The fence comes first: what is written after a lease was lost is refused whole.
    if !settle::settle(conn, claim.seq, claim.lease, settlement, now)? {
        return Ok(Recorded::Refused);
    }
    for (place, mark) in marks {
        record(conn, claim.seq, &consumers[*place].consumer_name, mark, now)?;
    }
    ordering::release_next(core, conn, claim.seq, now)?;
    log_settlement(claim.id, settlement);
    Ok(match settlement {
        Settlement::Processed => Recorded::Processed,
        Settlement::DeadLetter { .. } | Settlement::Failed { .. } => Recorded::Dead,
        _ => Recorded::Otherwise,
    })
}

/// Settles events that every consumer has processed, neighbours as one; how many. `lost` is told of each alone that is not its
/// lease's any more. `None`: some neighbours are not, or have inbox rows already, and the transaction has to be rolled back.
pub(super) fn settle_alike(
    core: &Core,
    conn: &Connection,
    mut done: Vec<(Claim, &Consumers)>,
    now: i64,
    mut lost: impl FnMut(Claim),
) -> Result<Option<usize>> {
    done.sort_unstable_by_key(|(claim, _)| claim.seq);
    let alike = |one: &(Claim, &Consumers), next: &(Claim, &Consumers)| {
        one.0.lease == next.0.lease && Arc::ptr_eq(one.1, next.1)
    };
    let mut settled = 0;
    for (run, rows) in runs(&done, |(claim, _)| claim.seq, alike) {
        let (claim, consumers) = rows[0];
        if rows.len() == 1 {
            let is_settled = settle_processed(core, conn, claim, consumers, now)?;
            if !is_settled {
                lost(claim);
            }
            settled += usize::from(is_settled);
            continue;
        }
        let mut whole = settle::settle_run(conn, run, claim.lease, now)?;
        for consumer in consumers.iter() {
            whole = whole && inbox::record_run(conn, run, &consumer.consumer_name, now)?;
        }
        if !whole {
            return Ok(None);
        }
        if consumers.iter().any(|of| of.order.is_some()) {
            for (claim, _) in rows {
                ordering::release_next(core, conn, claim.seq, now)?;
            }
        }
        settled += rows.len();
    }
    Ok(Some(settled))
}

/// False: the lease was lost. The fence comes first: what is written after that is refused whole.
fn settle_processed(
    core: &Core,
    conn: &Connection,
    claim: Claim,
    consumers: &Consumers,
    now: i64,
) -> Result<bool> {
    if !settle::settle(conn, claim.seq, claim.lease, &Settlement::Processed, now)? {
        return Ok(false);
    }
    for consumer in consumers.iter() {
        record(conn, claim.seq, &consumer.consumer_name, &Mark::Processed, now)?;
    }
    if consumers.iter().any(|of| of.order.is_some()) {
        ordering::release_next(core, conn, claim.seq, now)?;
    }
    Ok(true)
}

pub(super) fn log_settlement(id: EventId, settlement: &Settlement) {
    match settlement {
        Settlement::DeadLetter { .. } => {
            log::warn!(target: "postbox::delivery", "event {id} is a dead letter: its last_error says why");
        }
        Settlement::Failed { .. } => {
            log::warn!(target: "postbox::delivery", "event {id} failed for good: its last_error says why");
        }
        Settlement::Retry { .. } => {
            log::info!(target: "postbox::delivery", "event {id} failed and will be tried again: its last_error says why");
        }
        Settlement::Processed
        | Settlement::Held
        | Settlement::Parked { .. }
        | Settlement::Postponed { .. }
        | Settlement::GivenBack => {}
    }
}

pub(super) fn log_lost(claim: Claim) {
    log::warn!(target: "postbox::delivery", "the lease on event {} was lost before its attempt ended: its outcome is refused", claim.id);
}
