//! One turn of processing: settle what came back, renew what runs, claim what is due, in one transaction.

mod limits;
mod pauses;
mod pieces;
mod work;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::pieces::{Obstacle, Pieces};
use super::delivery::{Delivery, Report};
use super::left_alone::LeftAlone;
use super::settling::log_lost;
use crate::core::Core;
use crate::crash::CrashPoint;
use crate::db::{Synchronous, Writer};
use crate::error::{Error, Result};
use crate::outbox::claim::{Claim, LeaseId, Suspects};
use crate::outbox::dead::Dead;
use crate::pause_book::Done;
use crate::settings::Settings;
use crate::sync::atomic::AtomicBool;

/// So many rows may take their transaction with them in one turn, and so long may pieces be written apart: the next turn goes on.
/// Whoever stops the worker, and everybody else's writes, come in between.
const ROWS_IN_THE_WAY_MAX: usize = 16;
const APART_MAX: Duration = Duration::from_millis(50);

/// What a turn is to do.
pub(crate) struct Turn<'a> {
    pub(crate) settings: &'a Settings,
    /// Settled first. Those that the turn has dealt with are gone afterwards; the others are for another try.
    pub(crate) reports: &'a mut Vec<Report>,
    /// Claims that are still worked on.
    pub(crate) renew: &'a [Claim],
    /// Leases of events that were inserted as claimed and, it may be, never handed to anybody.
    pub(crate) give_back: &'a [LeaseId],
    /// How many events may be claimed.
    pub(crate) claim_max: usize,
    /// Whether events that were held may have found a subscriber.
    pub(crate) release_held: bool,
    /// Whether to look after the pauses: to write those that were asked for, and to let go what waited for one that is over.
    pub(crate) pauses: bool,
    pub(crate) stopping: &'a Arc<AtomicBool>,
    /// For a worker, which `processor_enabled` can stop; not by hand.
    pub(crate) by_worker: bool,
    /// Rows that are not looked at again for a while.
    pub(crate) left_alone: &'a LeftAlone,
    /// How rows that are taken over are claimed. [`Suspects::Alone`] waits until nothing is in flight.
    pub(crate) suspects: Suspects,
}

/// What a turn has done.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) deliveries: Vec<Delivery>,
    /// Rows that were claimed, those settled at once included.
    pub(crate) claimed: usize,
    /// The latest time at which a claimed row was due.
    pub(crate) latest_due_at: i64,
    /// Events that reached `processed`.
    pub(crate) processed: usize,
    /// Leases that were found lost while they were renewed.
    pub(crate) lost: Vec<Claim>,
    /// An event that was taken over has to be alone: it waits for the others to end, or the others for it.
    pub(crate) alone: bool,
    /// More held events wait to be let go.
    pub(crate) more_held: bool,
    /// More events wait to be let go, since what was paused is not any more.
    pub(crate) more_parked: bool,
    /// It was cut short: there is more to be done at once.
    pub(crate) is_cut: bool,
    /// Why some that are due were left alone, the first of them. There may be others behind them.
    pub(crate) refused: Option<Error>,
    /// Events that this turn holds for want of a subscriber.
    held: Vec<Claim>,
    /// Claims whose outcome was refused: their lease was lost.
    too_late: Vec<Claim>,
    /// Events that have ended without success, where somebody is to be told.
    dead: Vec<Dead>,
    /// How many of the reports have been dealt with.
    recorded: usize,
    /// The rows that were claimed.
    taken: Vec<i64>,
    /// What was done about the pauses.
    pauses: Done,
}

/// What a try goes by.
#[derive(Clone, Copy)]
struct Try<'w> {
    lease: LeaseId,
    synchronous: Synchronous,
    pieces: Pieces<'w>,
    /// Whether what is processed is counted in the same transaction.
    counts: bool,
}

impl Turn<'_> {
    pub(crate) fn run(mut self, core: &Core) -> Result<Outcome> {
        let settles = self.reports.iter().any(Report::is_to_be_written);
        let mut how =
            Try { lease: core.leases.next(), synchronous: core.acks, pieces: Pieces::Together, counts: true };
        let mut outcome = loop {
            match self.attempt(core, how) {
                Ok(outcome) => break outcome,
                // Before a plain handler starts, its event must be on the disk, and `synchronous` cannot change inside a
                // transaction: begin again, synced, which carries every earlier commit with it.
                Err(Obstacle::Unsynced) => how.synchronous = Synchronous::Full,
                Err(Obstacle::BrokenRun) => how.pieces = Pieces::OneByOne,
                Err(Obstacle::Other(error))
                    if matches!(how.pieces, Pieces::Together) && !error.is_fault_of_file() =>
                {
                    log::debug!(target: "postbox::delivery", "what is claimed or settled together cannot be; each is by itself: {error}");
                    how.pieces = Pieces::OneByOne;
                }
                Err(Obstacle::Ended(error)) => {
                    log::debug!(target: "postbox::delivery", "a transaction was ended from within; each piece of it has one of its own: {error}");
                    break self.run_apart(core, how.synchronous, None)?;
                }
                // The row is left alone from now on.
                Err(Obstacle::Row(error)) => break self.run_apart(core, how.synchronous, Some(error))?,
                Err(Obstacle::Other(error)) => {
                    give_back_if_unknown(core, &error, how.lease);
                    return Err(error);
                }
            }
        };
        outcome.held.iter().for_each(|claim| core.note_held(*claim));
        core.in_flight().extend(outcome.deliveries.iter().map(|d| (d.claim.seq, d.claim.lease)));
        if settles {
            core.db.crash().at(CrashPoint::AfterSettle);
        }
        if !outcome.deliveries.is_empty() {
            core.db.crash().at(CrashPoint::AfterClaim);
        }
        self.conclude(core, &mut outcome);
        Ok(outcome)
    }

    /// Nothing was done, unless it is done.
    fn attempt(&self, core: &Core, how: Try<'_>) -> std::result::Result<Outcome, Obstacle> {
        let writer = core.db.lock("process")?;
        let open = writer.begin(how.synchronous, "process")?;
        let unsynced =
            self.claim_max > 0 && core.registry.has_plain_handlers() && writer.may_hold_unsynced_events()?;
        if unsynced && how.synchronous != Synchronous::Full {
            return Err(Obstacle::Unsynced);
        }
        let (conn, now) = (writer.conn(), core.clock.now());
        let mut outcome = Outcome::default();
        self.before_claims(core, conn, how.pieces, now, &mut outcome)?;
        if self.may_claim(core) {
            self.claim(core, conn, how.lease, how.pieces, now, &mut outcome)?;
        }
        if how.counts {
            how.pieces
                .with(conn, || core.count_processed(conn, outcome.processed))?
                .unwrap_or_else(not_counted);
        }
        // Looked up before the commit: what others commit right after it is not synced with it.
        let seen = if unsynced && outcome.claimed > 0 { Some(writer.data_version()?) } else { None };
        open.commit().map_err(|error| self.commit_failed(how.pieces, error, &outcome))?;
        if let Some(seen) = seen {
            writer.note_synced_up_to(seen);
        }
        conclude_pauses(core, &writer, &mut outcome);
        Ok(outcome)
    }

    /// A constraint that is deferred fails there, whosever work it is.
    fn commit_failed(&self, pieces: Pieces<'_>, error: Error, outcome: &Outcome) -> Obstacle {
        if error.is_fault_of_file() || matches!(pieces, Pieces::Together) {
            return Obstacle::Other(error);
        }
        match outcome.taken[..] {
            [seq] if self.reports.is_empty() => self.leave_alone(seq, Obstacle::Ended(error)),
            _ => Obstacle::Ended(error),
        }
    }

    /// Each piece in a transaction of its own, and claims one by one. `refused`: why a row is left alone already.
    fn run_apart(
        &mut self,
        core: &Core,
        synchronous: Synchronous,
        refused: Option<Error>,
    ) -> Result<Outcome> {
        let mut outcome = Outcome { refused, ..Outcome::default() };
        let done = self.before_claims_apart(core, &mut outcome);
        self.conclude(core, &mut outcome);
        done?;
        (self.renew, self.give_back, self.release_held, self.pauses) = (&[], &[], false, false);
        if !self.reports.is_empty() {
            outcome.is_cut = true; // the others come first
            return Ok(outcome);
        }
        let claimed = self.claim_apart(core, synchronous, &mut outcome);
        // What is claimed is delivered; the fault is met again.
        if outcome.claimed == 0 { claimed.map(|()| outcome) } else { Ok(outcome) }
    }

    fn before_claims_apart(&self, core: &Core, outcome: &mut Outcome) -> Result<()> {
        let writer = core.db.lock("process")?;
        let pieces = Pieces::Apart(&writer, core.acks);
        let done = self.before_claims(core, writer.conn(), pieces, core.clock.now(), outcome);
        count_apart(core, &writer, outcome.processed);
        conclude_pauses(core, &writer, outcome);
        done.map_err(Obstacle::into_error)
    }

    /// Up to the first fault. Others write in between.
    fn claim_apart(
        &mut self,
        core: &Core,
        mut synchronous: Synchronous,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let max = std::mem::replace(&mut self.claim_max, 1);
        let begun = Instant::now();
        let (mut refused, mut counted) = (0, outcome.processed);
        while outcome.claimed < max {
            if refused == ROWS_IN_THE_WAY_MAX || begun.elapsed() >= APART_MAX {
                outcome.is_cut = true;
                break;
            }
            let lease = core.leases.next();
            match self.attempt(core, Try { lease, synchronous, pieces: Pieces::OneByOne, counts: false }) {
                Ok(one) => {
                    let is_end = one.claimed == 0 && one.refused.is_none();
                    refused += usize::from(one.refused.is_some());
                    core.in_flight().extend(one.deliveries.iter().map(|d| (d.claim.seq, d.claim.lease)));
                    outcome.absorb(one);
                    if is_end || outcome.alone {
                        break;
                    }
                }
                Err(Obstacle::Unsynced) => synchronous = Synchronous::Full,
                Err(Obstacle::Row(error)) => {
                    refused += 1;
                    outcome.refused.get_or_insert(error);
                }
                Err(obstacle) => {
                    let error = obstacle.into_error();
                    give_back_if_unknown(core, &error, lease);
                    return Err(error);
                }
            }
        }
        counted = outcome.processed - counted;
        if counted > 0 {
            count_apart(core, &*core.db.lock("process")?, counted);
        }
        Ok(())
    }

    /// Lets go of the reports that have been dealt with.
    fn conclude(&mut self, core: &Core, outcome: &mut Outcome) {
        for report in self.reports.drain(..std::mem::take(&mut outcome.recorded)) {
            if let Some(claim) = report.ends() {
                core.no_longer_in_flight(claim);
            }
            // Counted by the transaction of its handler.
            outcome.processed += usize::from(matches!(report, Report::Settled { processed: true, .. }));
        }
        core.count_lost_leases(outcome.too_late.len());
        outcome.too_late.drain(..).for_each(log_lost);
        core.tell_dead(&std::mem::take(&mut outcome.dead));
    }
}

/// Nobody works on what may have been claimed.
fn give_back_if_unknown(core: &Core, error: &Error, lease: LeaseId) {
    if matches!(error, Error::CommitUnknown(_)) {
        core.handoff.put_unsure_back(vec![lease]);
    }
}

fn count_apart(core: &Core, writer: &Writer, processed: usize) {
    writer
        .transaction(core.acks, "process", |conn| core.count_processed(conn, processed))
        .unwrap_or_else(not_counted);
}

#[expect(clippy::needless_pass_by_value, reason = "for `unwrap_or_else`")]
fn not_counted(error: Error) {
    log::warn!(target: "postbox::delivery", "processed events are not counted until the box is opened anew: {error}");
}

/// What this box knows of the pauses from now on. The write lock is still held.
fn conclude_pauses(core: &Core, writer: &Writer, outcome: &mut Outcome) {
    core.pauses.note_done(std::mem::take(&mut outcome.pauses));
    if let Err(error) = core.pauses.reload_after(writer.conn(), core.clock.now()) {
        // What is committed stands; a worker reads it at its next look.
        log::debug!(target: "postbox::settings", "the pauses cannot be read: {error}");
    }
}

impl Outcome {
    /// Adds a claim that was made apart.
    fn absorb(&mut self, one: Outcome) {
        self.deliveries.extend(one.deliveries);
        self.claimed += one.claimed;
        self.latest_due_at = self.latest_due_at.max(one.latest_due_at);
        self.processed += one.processed;
        self.alone |= one.alone;
        self.held.extend(one.held);
        self.dead.extend(one.dead);
        self.refused = self.refused.take().or(one.refused);
    }
}
