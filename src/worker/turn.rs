//! One turn of processing: settle what came back, renew what runs, claim what is due, in one transaction.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::delivery::{Delivery, Report};
use super::left_alone::LeftAlone;
use super::plan::{Plan, plan};
use super::settling::{Recorded, log_lost, log_settlement, set_aside, settle_alike, settle_report};
use crate::clock;
use crate::core::Core;
use crate::db::{Synchronous, Writer};
use crate::error::{Error, Result};
use crate::inbox;
use crate::outbox::OutboxStatus;
use crate::outbox::claim::{self, Claim, ClaimRequest, Claimed, Due, LeaseId, Suspects, Unreadable};
use crate::outbox::settle::{self, Settlement};
use crate::registry::Consumers;
use crate::settings::Settings;
use crate::sync::atomic::AtomicBool;
use crate::validate;

/// How many held events a turn lets go at the most.
const RELEASE_MAX: usize = 1_000;

/// What a turn is to do.
pub(crate) struct Turn<'a> {
    pub(crate) settings: &'a Settings,
    /// Settled first. They stay the caller's, for another try, when the turn fails.
    pub(crate) reports: &'a [Report],
    /// Claims that are still worked on.
    pub(crate) renew: &'a [Claim],
    /// Leases of events that were inserted as claimed and, it may be, never handed to anybody.
    pub(crate) give_back: &'a [LeaseId],
    /// How many events may be claimed.
    pub(crate) claim_max: usize,
    /// Whether events that were held may have found a subscriber.
    pub(crate) release_held: bool,
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
    /// Claims whose outcome was refused: their lease was lost.
    pub(crate) too_late: Vec<Claim>,
    /// Leases that were found lost while they were renewed.
    pub(crate) lost: Vec<Claim>,
    /// An event that was taken over has to be alone: it waits for the others to end, or the others for it.
    pub(crate) alone: bool,
    /// Events that this turn holds for want of a subscriber.
    pub(crate) held: Vec<Claim>,
    /// More held events wait to be let go.
    pub(crate) more_held: bool,
    /// Why some that are due were left alone, the first of them. There may be others behind them.
    pub(crate) refused: Option<Error>,
}

impl Turn<'_> {
    pub(crate) fn run(&self, core: &Core) -> Result<Outcome> {
        let lease = core.leases.next();
        let mut pieces = Pieces::Together;
        let mut refused = None;
        let outcome = loop {
            let noted = self.left_alone.noted();
            match self.run_with(core, lease, pieces) {
                // A row that ended the whole transaction is left alone from now on.
                Err(error) if self.left_alone.noted() > noted => {
                    refused.get_or_insert(error);
                }
                Err(error) if matches!(pieces, Pieces::Together) && !error.is_fault_of_file() => {
                    log::warn!(target: "postbox::delivery", "what is claimed or settled together cannot be; each is by itself: {error}");
                    pieces = Pieces::OneByOne;
                }
                outcome => break outcome,
            }
        };
        if matches!(outcome, Err(Error::CommitUnknown(_))) && self.claim_max > 0 {
            // Nobody works on what may have been claimed.
            core.handoff.put_unsure_back(vec![lease]);
        }
        let mut outcome = outcome?;
        outcome.refused = refused.or(outcome.refused);
        for report in self.reports {
            if let Some(claim) = report.ends() {
                core.no_longer_in_flight(claim);
            }
        }
        outcome.too_late.iter().for_each(|claim| log_lost(*claim));
        core.count_lost_leases(outcome.too_late.len());
        outcome.held.iter().for_each(|claim| core.note_held(*claim));
        core.in_flight().extend(outcome.deliveries.iter().map(|d| (d.claim.seq, d.claim.lease)));
        Ok(outcome)
    }

    fn run_with(&self, core: &Core, lease: LeaseId, pieces: Pieces) -> Result<Outcome> {
        let writer = core.db.lock("process")?;
        let mut tried = self.attempt(core, &writer, lease, core.acks, pieces)?;
        if matches!(tried, Tried::Unsynced) {
            // Before a plain handler starts, its event must be on the disk, and `synchronous` cannot change inside a
            // transaction: begin again, synced, which carries every earlier commit with it.
            tried = self.attempt(core, &writer, lease, Synchronous::Full, pieces)?;
        }
        if matches!(tried, Tried::BrokenRun) {
            tried = self.attempt(core, &writer, lease, Synchronous::Full, Pieces::OneByOne)?;
        }
        match tried {
            Tried::Done(outcome) => Ok(outcome),
            Tried::Unsynced | Tried::BrokenRun => Ok(Outcome::default()), // neither comes of a synced one by one
        }
    }

    /// Nothing was done, unless it is done.
    fn attempt(
        &self,
        core: &Core,
        writer: &Writer,
        lease: LeaseId,
        synchronous: Synchronous,
        pieces: Pieces,
    ) -> Result<Tried> {
        let open = writer.begin(synchronous, "process")?;
        let unsynced =
            self.claim_max > 0 && core.registry.has_plain_handlers() && writer.may_hold_unsynced_events()?;
        if unsynced && synchronous != Synchronous::Full {
            return Ok(Tried::Unsynced);
        }
        let Some(outcome) = self.work(core, writer.conn(), lease, pieces)? else {
            return Ok(Tried::BrokenRun);
        };
        // Looked up before the commit: what others commit right after it is not synced with it.
        let seen = if unsynced && outcome.claimed > 0 { Some(writer.data_version()?) } else { None };
        open.commit()?;
        if let Some(seen) = seen {
            writer.note_synced_up_to(seen);
        }
        Ok(Tried::Done(outcome))
    }

    /// `None`: a run of neighbours could not be settled as one.
    fn work(
        &self,
        core: &Core,
        conn: &Connection,
        lease: LeaseId,
        pieces: Pieces,
    ) -> Result<Option<Outcome>> {
        let now = core.clock.now();
        let mut outcome = Outcome::default();
        if !self.settle(conn, pieces, now, &mut outcome)? {
            return Ok(None);
        }
        let lease_until = clock::add(now, Duration::from_millis(self.settings.processing_lease_ms));
        for claim in self.renew {
            if !settle::renew(conn, claim.seq, claim.lease, lease_until)? {
                outcome.lost.push(*claim);
            }
        }
        for lease in self.give_back {
            settle::give_back_lease(conn, *lease, now)?;
        }
        if self.release_held {
            let released =
                settle::release_held(conn, now, RELEASE_MAX, |name| core.registry.has_handlers(name))?;
            outcome.more_held = released >= RELEASE_MAX;
        }
        // Looked at again behind the write lock: what is published after an update that stops processing is not claimed.
        if self.claim_max > 0 && core.settings().allow_processing(self.by_worker) {
            let request = ClaimRequest {
                now,
                lease,
                lease_until,
                limit: self.claim_max,
                payload_bytes_max: core.payload_bytes_max,
            };
            self.claim(core, conn, pieces, &request, &mut outcome)?;
        }
        core.count_processed(conn, outcome.processed)?;
        // Those that were settled, and counted, by the transactions of their handlers.
        outcome.processed += self
            .reports
            .iter()
            .filter(|report| matches!(report, Report::Settled { processed: true, .. }))
            .count();
        Ok(Some(outcome))
    }

    /// False: a run of neighbours is not all this box's own any more, or has been written about by others.
    fn settle(&self, conn: &Connection, pieces: Pieces, now: i64, outcome: &mut Outcome) -> Result<bool> {
        let mut alike: Vec<(Claim, &Consumers)> = Vec::new();
        for report in self.reports {
            if let (Report::Processed { claim, consumers }, Pieces::Together) = (report, pieces) {
                alike.push((*claim, consumers));
                continue;
            }
            match pieces.with(conn, || settle_report(conn, report, self.settings, now))? {
                Ok(Recorded::Processed) => outcome.processed += 1,
                Ok(Recorded::Refused) => outcome.too_late.extend(report.ends()),
                Ok(Recorded::Otherwise) => {}
                Err(error) => {
                    if let Some(claim) = report.ends() {
                        self.set_aside_or_leave(conn, claim, &error, now);
                    }
                }
            }
        }
        match settle_alike(conn, alike, now, |lost| outcome.too_late.push(lost))? {
            Some(alike) => outcome.processed += alike,
            None => return Ok(false),
        }
        Ok(true)
    }

    fn claim(
        &self,
        core: &Core,
        conn: &Connection,
        pieces: Pieces,
        request: &ClaimRequest,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let now = request.now;
        let Due { rows, unreadable, alone } = {
            let in_flight = core.in_flight();
            let settled: HashSet<i64> = self.reports.iter().filter_map(|r| Some(r.ends()?.seq)).collect();
            let suspects = match self.suspects {
                Suspects::Alone if !in_flight.keys().all(|seq| settled.contains(seq)) => Suspects::NotYet,
                suspects => suspects,
            };
            let skip = |seq| {
                (in_flight.contains_key(&seq) && !settled.contains(&seq)) || self.left_alone.contains(seq)
            };
            let wait_for_owner = |seq, lease| self.by_worker && core.waits_for_owner(seq, lease);
            claim::due(conn, request, suspects, skip, wait_for_owner)?
        };
        outcome.alone = alone;
        for row in unreadable {
            self.set_unreadable_aside(conn, &row, now, outcome)?;
        }
        let rows = self.take(conn, pieces, rows, request, outcome)?;
        outcome.claimed += rows.len();
        // New events have none, as a rule: one look for all of them.
        let newest_in_inbox = if rows.is_empty() { None } else { inbox::newest_event(conn)? };
        for row in rows {
            outcome.latest_due_at = outcome.latest_due_at.max(row.due_at);
            let claim = row.claim;
            let may_have_standings = newest_in_inbox.is_some_and(|newest| claim.seq <= newest);
            let planned = pieces.with(conn, || {
                plan(core, conn, row, self.settings, self.stopping, now, may_have_standings)
            })?;
            match planned {
                Ok(Plan::Deliver(delivery)) => outcome.deliveries.push(*delivery),
                Ok(Plan::Settled { id, settlement }) => {
                    if settlement == Settlement::Held {
                        outcome.held.push(claim);
                    }
                    log_settlement(id, &settlement);
                    outcome.processed += usize::from(settlement == Settlement::Processed);
                }
                Err(error) => self.set_aside_or_leave(conn, claim, &error, now),
            }
        }
        Ok(())
    }

    /// Fails only where it has ended the transaction, and then as well the row is left alone.
    fn set_unreadable_aside(
        &self,
        conn: &Connection,
        row: &Unreadable,
        now: i64,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let why = validate::error_text(&row.why);
        let to = self.settings.dead_status();
        match settle::set_unreadable_aside(conn, row.seq, to, &why, now) {
            Ok(()) => {
                let ends_as =
                    if to == OutboxStatus::DeadLetter { "is a dead letter" } else { "failed for good" };
                log::warn!(
                    target: "postbox::delivery",
                    "event {} (row {}) cannot be delivered to anybody and {ends_as}: {why}", row.id, row.seq
                );
                outcome.claimed += 1;
            }
            Err(error) => {
                self.left_alone.note(row.seq, &error);
                if conn.is_autocommit() {
                    return Err(error);
                }
                outcome.refused.get_or_insert(error);
            }
        }
        Ok(())
    }

    /// Claims the rows, and returns those that could be.
    fn take(
        &self,
        conn: &Connection,
        pieces: Pieces,
        mut rows: Vec<Claimed>,
        request: &ClaimRequest,
        outcome: &mut Outcome,
    ) -> Result<Vec<Claimed>> {
        if matches!(pieces, Pieces::Together) {
            claim::take(conn, &rows, request)?;
            return Ok(rows);
        }
        let mut ended = None;
        rows.retain(|row| {
            if ended.is_some() {
                return false;
            }
            let taken = pieces.with(conn, || claim::take(conn, std::slice::from_ref(row), request));
            match taken {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    self.left_alone.note(row.claim.seq, &error);
                    outcome.refused.get_or_insert(error);
                    false
                }
                Err(error) => {
                    if !error.is_fault_of_file() {
                        self.left_alone.note(row.claim.seq, &error);
                    }
                    ended = Some(error);
                    false
                }
            }
        });
        ended.map_or(Ok(rows), Err)
    }

    /// Where even that is forbidden the row stays claimed, and is tried again when its lease has run out.
    fn set_aside_or_leave(&self, conn: &Connection, claim: Claim, error: &Error, now: i64) {
        let why = format!("its outcome cannot be recorded: {error}");
        if let Err(error) = set_aside(conn, claim, &why, self.settings, now) {
            log::error!(target: "postbox::delivery", "event {} can be neither settled nor set aside: {error}", claim.id);
        }
    }
}

/// What came of a try.
enum Tried {
    Done(Outcome),
    /// It has to be synced and is not.
    Unsynced,
    /// Neighbours cannot be settled as one: each has to be looked at by itself.
    BrokenRun,
}

/// How a turn deals with work that something of the application's in the file forbids.
#[derive(Clone, Copy)]
enum Pieces {
    /// It fails the turn: the usual way, which costs nothing.
    Together,
    /// Each piece has a savepoint of its own, and fails alone.
    OneByOne,
}

impl Pieces {
    /// The outer error ends the turn, the inner one is this piece's alone.
    fn with<T>(self, conn: &Connection, work: impl FnOnce() -> Result<T>) -> Result<Result<T>> {
        match self {
            Pieces::Together => work().map(Ok),
            Pieces::OneByOne => {
                conn.prepare_cached("SAVEPOINT postbox_piece")?.execute([])?;
                let done = work();
                if done.is_err() {
                    conn.prepare_cached("ROLLBACK TO postbox_piece")?.execute([])?;
                }
                conn.prepare_cached("RELEASE postbox_piece")?.execute([])?;
                match done {
                    Err(error) if error.is_fault_of_file() => Err(error),
                    done => Ok(done),
                }
            }
        }
    }
}
