//! One turn of processing: settle what came back, renew what runs, claim what is due, in one transaction.

mod pauses;
mod pieces;
mod work;

use std::sync::Arc;

use self::pieces::{Obstacle, Pieces};
use super::delivery::{Delivery, Report};
use super::left_alone::LeftAlone;
use super::settling::log_lost;
use crate::core::Core;
use crate::db::{Synchronous, Writer};
use crate::error::{Error, Result};
use crate::outbox::claim::{Claim, LeaseId, Suspects};
use crate::pause_book::Done;
use crate::settings::Settings;
use crate::sync::atomic::AtomicBool;

/// So many rows may take the transaction of a turn with them; then it claims nothing, and the next turn goes on. Whoever
/// stops the worker, and everybody else's writes, come in between.
const ROWS_IN_THE_WAY_MAX: usize = 16;

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
    /// Why some that are due were left alone, the first of them. There may be others behind them.
    pub(crate) refused: Option<Error>,
    /// Events that this turn holds for want of a subscriber.
    held: Vec<Claim>,
    /// Claims whose outcome was refused: their lease was lost.
    too_late: Vec<Claim>,
    /// How many of the reports have been dealt with.
    recorded: usize,
    /// What was done about the pauses.
    pauses: Done,
}

impl Turn<'_> {
    pub(crate) fn run(mut self, core: &Core) -> Result<Outcome> {
        let writer = core.db.lock("process")?;
        let lease = core.leases.next();
        let (mut synchronous, mut pieces) = (core.acks, Pieces::Together);
        let mut apart = Outcome::default();
        let mut rows_in_the_way = 0;
        let mut is_apart = false;
        let mut outcome = loop {
            match self.attempt(core, &writer, lease, synchronous, pieces) {
                Ok(outcome) => break outcome,
                // Before a plain handler starts, its event must be on the disk, and `synchronous` cannot change inside a
                // transaction: begin again, synced, which carries every earlier commit with it.
                Err(Obstacle::Unsynced) => synchronous = Synchronous::Full,
                Err(Obstacle::BrokenRun) => pieces = Pieces::OneByOne,
                Err(Obstacle::Row(error)) => {
                    apart.refused.get_or_insert(error);
                    rows_in_the_way += 1;
                    if rows_in_the_way == ROWS_IN_THE_WAY_MAX {
                        self.claim_max = 0;
                    }
                }
                Err(Obstacle::Ended(error)) if !is_apart => {
                    is_apart = true;
                    log::debug!(target: "postbox::delivery", "a transaction was ended from within, and each piece of it has one of its own: {error}");
                    self.run_apart(core, &writer, &mut apart)?;
                }
                Err(Obstacle::Other(error))
                    if matches!(pieces, Pieces::Together) && !error.is_fault_of_file() =>
                {
                    log::debug!(target: "postbox::delivery", "what is claimed or settled together cannot be; each is by itself: {error}");
                    pieces = Pieces::OneByOne;
                }
                Err(Obstacle::Ended(error) | Obstacle::Other(error)) => {
                    if matches!(error, Error::CommitUnknown(_)) && self.claim_max > 0 {
                        // Nobody works on what may have been claimed.
                        core.handoff.put_unsure_back(vec![lease]);
                    }
                    return Err(error);
                }
            }
        };
        conclude_pauses(core, &writer, &mut outcome);
        drop(writer);
        self.conclude(core, &mut outcome);
        outcome.absorb(apart);
        outcome.held.iter().for_each(|claim| core.note_held(*claim));
        core.in_flight().extend(outcome.deliveries.iter().map(|d| (d.claim.seq, d.claim.lease)));
        Ok(outcome)
    }

    /// Nothing was done, unless it is done.
    fn attempt(
        &self,
        core: &Core,
        writer: &Writer,
        lease: LeaseId,
        synchronous: Synchronous,
        pieces: Pieces<'_>,
    ) -> std::result::Result<Outcome, Obstacle> {
        let open = writer.begin(synchronous, "process")?;
        let unsynced =
            self.claim_max > 0 && core.registry.has_plain_handlers() && writer.may_hold_unsynced_events()?;
        if unsynced && synchronous != Synchronous::Full {
            return Err(Obstacle::Unsynced);
        }
        let (conn, now) = (writer.conn(), core.clock.now());
        let mut outcome = Outcome::default();
        self.before_claims(core, conn, pieces, now, &mut outcome)?;
        if self.may_claim(core) {
            self.claim(core, conn, lease, pieces, now, &mut outcome)?;
        }
        self.count(core, conn, pieces, &mut outcome)?;
        // Looked up before the commit: what others commit right after it is not synced with it.
        let seen = if unsynced && outcome.claimed > 0 { Some(writer.data_version()?) } else { None };
        open.commit()?;
        if let Some(seen) = seen {
            writer.note_synced_up_to(seen);
        }
        Ok(outcome)
    }

    /// Everything but the claims, each piece in a transaction of its own; then there are only the claims to be done.
    fn run_apart(&mut self, core: &Core, writer: &Writer, apart: &mut Outcome) -> Result<()> {
        let pieces = Pieces::Apart(writer, core.acks);
        let now = core.clock.now();
        let mut outcome = Outcome::default();
        let done = self
            .before_claims(core, writer.conn(), pieces, now, &mut outcome)
            .and_then(|()| self.count(core, writer.conn(), pieces, &mut outcome));
        conclude_pauses(core, writer, &mut outcome);
        self.conclude(core, &mut outcome);
        apart.absorb(outcome);
        match done {
            Ok(()) => {
                (self.renew, self.give_back, self.release_held, self.pauses) = (&[], &[], false, false);
                Ok(())
            }
            Err(Obstacle::Other(error) | Obstacle::Ended(error) | Obstacle::Row(error)) => Err(error),
            Err(Obstacle::Unsynced | Obstacle::BrokenRun) => Ok(()), // neither comes of pieces that are apart
        }
    }

    /// Lets go of the reports that have been dealt with.
    fn conclude(&mut self, core: &Core, outcome: &mut Outcome) {
        for report in self.reports.drain(..std::mem::take(&mut outcome.recorded)) {
            if let Some(claim) = report.ends() {
                core.no_longer_in_flight(claim);
            }
        }
        core.count_lost_leases(outcome.too_late.len());
        outcome.too_late.drain(..).for_each(log_lost);
    }
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
    /// Adds what was done apart, before.
    fn absorb(&mut self, apart: Outcome) {
        self.processed += apart.processed;
        self.lost.extend(apart.lost);
        self.more_held |= apart.more_held;
        self.more_parked |= apart.more_parked;
        self.refused = apart.refused.or(self.refused.take());
    }
}
