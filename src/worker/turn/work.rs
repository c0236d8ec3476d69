//! What a turn does inside its transaction.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::pieces::{Obstacle, Pieces};
use super::{APART_MAX, Outcome, Turn, limits, pauses};
use crate::clock;
use crate::core::Core;
use crate::error::Error;
use crate::fault::Fault;
use crate::inbox;
use crate::ordering::{self, InHands};
use crate::outbox::OutboxStatus;
use crate::outbox::claim::{self, Claim, ClaimRequest, Claimed, Due, LeaseId, Suspects, Unreadable};
use crate::outbox::dead;
use crate::outbox::settle::{self, Settlement};
use crate::registry::Consumers;
use crate::seq_map::SeqSet;
use crate::validate;
use crate::worker::delivery::Report;
use crate::worker::plan::{Plan, Planner};
use crate::worker::settling::{Recorded, log_settlement, set_aside, settle_alike, settle_report};

/// How many held events a turn lets go at the most.
const RELEASE_MAX: usize = 1_000;

type Result<T> = std::result::Result<T, Obstacle>;

impl Turn<'_> {
    /// Everything but the claims: what came back, what runs, what waits.
    pub(super) fn before_claims(
        &self,
        core: &Core,
        conn: &Connection,
        pieces: Pieces<'_>,
        now: i64,
        outcome: &mut Outcome,
    ) -> Result<()> {
        if self.pauses {
            pauses::write(core, conn, pieces, now, outcome)?;
        }
        self.settle(core, conn, pieces, now, outcome)?;
        let lease_until = self.lease_until(now);
        for claim in self.renew {
            match pieces.with(conn, || settle::renew(conn, claim.seq, claim.lease, lease_until))? {
                Ok(true) => {}
                Ok(false) => outcome.lost.push(*claim),
                // Its handler may still be done before others may have it.
                Err(error) => {
                    log::warn!(target: "postbox::delivery", "the lease on event {} cannot be renewed: {error}", claim.id);
                }
            }
        }
        for lease in self.give_back {
            if let Err(error) = pieces.with(conn, || settle::give_back_lease(conn, *lease, now))? {
                log::warn!(target: "postbox::delivery", "published events wait until their lease runs out: {error}");
            }
        }
        if self.release_held {
            let wanted = |name: &str, to: Option<&str>| core.registry.is_wanted(name, to);
            match pieces.with(conn, || settle::release_held(conn, now, RELEASE_MAX, wanted))? {
                Ok(released) => outcome.more_held = released >= RELEASE_MAX,
                Err(_) => self.release_each(conn, pieces, now, wanted)?,
            }
        }
        if self.pauses && self.claim_max > 0 && core.pauses.is_release_due(now) {
            pauses::release_parked(core, conn, pieces, now, outcome)?;
        }
        if self.claim_max > 0 && core.registry.has_limits() {
            // Those that are called in vain have made room for others.
            outcome.more_parked |= limits::call(core, conn, pieces, now, self.claim_max)?;
        }
        Ok(())
    }

    /// One of them may not be written to: the others are let go.
    fn release_each(
        &self,
        conn: &Connection,
        pieces: Pieces<'_>,
        now: i64,
        wanted: impl Fn(&str, Option<&str>) -> bool,
    ) -> Result<()> {
        for group in settle::held_groups(conn, RELEASE_MAX, wanted)? {
            for seq in settle::held_of(conn, &group, RELEASE_MAX)? {
                if let Err(error) = pieces.with(conn, || settle::release_one(conn, seq, now))? {
                    self.left_alone.note(seq, &error);
                }
            }
        }
        Ok(())
    }

    fn lease_until(&self, now: i64) -> i64 {
        clock::add(now, Duration::from_millis(self.settings.processing_lease_ms))
    }

    fn settle(
        &self,
        core: &Core,
        conn: &Connection,
        pieces: Pieces<'_>,
        now: i64,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut alike: Vec<(Claim, &Consumers)> = Vec::new();
        let begun = Instant::now();
        for report in &*self.reports {
            if matches!(pieces, Pieces::Apart(..)) && begun.elapsed() >= APART_MAX {
                return Ok(());
            }
            if let (Report::Processed { claim, consumers }, Pieces::Together) = (report, pieces) {
                alike.push((*claim, consumers));
                continue;
            }
            match pieces.with(conn, || settle_report(core, conn, report, self.settings, now))? {
                Ok(Recorded::Processed) => outcome.processed += 1,
                Ok(Recorded::Refused) => outcome.too_late.extend(report.ends()),
                Ok(Recorded::Dead) => note_dead(core, conn, report.claim().seq, outcome),
                Ok(Recorded::Otherwise) => {}
                // Where one consumer's mark cannot be recorded, what others say of the event comes too late.
                Err(error) => {
                    if self.set_aside_or_leave(core, conn, pieces, report.claim(), &error, now)? {
                        note_dead(core, conn, report.claim().seq, outcome);
                    }
                }
            }
            outcome.recorded += 1;
        }
        let settled = settle_alike(core, conn, alike, now, |lost| outcome.too_late.push(lost))?;
        outcome.processed += settled.ok_or(Obstacle::BrokenRun)?;
        outcome.recorded = self.reports.len();
        Ok(())
    }

    /// Looked at again behind the write lock: what is published after an update that stops processing is not claimed.
    pub(super) fn may_claim(&self, core: &Core) -> bool {
        self.claim_max > 0 && core.settings().allow_processing(self.by_worker)
    }

    pub(super) fn claim(
        &self,
        core: &Core,
        conn: &Connection,
        lease: LeaseId,
        pieces: Pieces<'_>,
        now: i64,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let request = ClaimRequest {
            now,
            lease,
            lease_until: self.lease_until(now),
            limit: self.claim_max,
            payload_bytes_max: core.payload_bytes_max,
            behind: self.left_alone.passed(),
        };
        let Due { rows, unreadable, alone, passed } = {
            let in_flight = core.in_flight();
            let settled: SeqSet = self.reports.iter().filter_map(|r| Some(r.ends()?.seq)).collect();
            let suspects = match self.suspects {
                Suspects::Alone if !in_flight.keys().all(|seq| settled.contains(seq)) => Suspects::NotYet,
                suspects => suspects,
            };
            let in_hand = |seq| in_flight.contains_key(&seq) && !settled.contains(&seq);
            let left_alone = |seq| self.left_alone.contains(seq);
            let wait_for_owner = |seq, lease| self.by_worker && core.waits_for_owner(seq, lease);
            claim::due(conn, &request, suspects, in_hand, left_alone, wait_for_owner)?
        };
        self.left_alone.pass(passed, rows.is_empty() && unreadable.is_empty() && !alone);
        outcome.alone = alone;
        for row in unreadable {
            if self.set_unreadable_aside(core, conn, &row, now, outcome)? {
                note_dead(core, conn, row.seq, outcome);
            }
        }
        let rows = self.take(conn, pieces, rows, &request, outcome)?;
        outcome.claimed += rows.len();
        outcome.taken.extend(rows.iter().map(|row| row.claim.seq));
        // New events have none, as a rule: one look for all of them.
        let newest_in_inbox = if rows.is_empty() { None } else { inbox::newest_event(conn)? };
        let planning = Planner {
            core,
            conn,
            settings: self.settings,
            pauses: core.pauses.within(conn)?,
            in_hands: InHands::but(lease),
            stopping: self.stopping,
            now,
            has_released: Cell::new(false),
        };
        for row in rows {
            outcome.latest_due_at = outcome.latest_due_at.max(row.due_at);
            let claim = row.claim;
            let may_have_standings = newest_in_inbox.is_some_and(|newest| claim.seq <= newest);
            let planned = pieces
                .with(conn, || planning.plan(row, may_have_standings))
                .map_err(|obstacle| self.leave_alone(claim.seq, obstacle))?;
            match planned {
                Ok(Plan::Deliver(delivery)) => outcome.deliveries.push(*delivery),
                Ok(Plan::Settled { id, settlement }) => {
                    if settlement == Settlement::Held {
                        outcome.held.push(claim);
                    }
                    log_settlement(id, &settlement);
                    if matches!(settlement, Settlement::DeadLetter { .. } | Settlement::Failed { .. }) {
                        note_dead(core, conn, claim.seq, outcome);
                    }
                    outcome.processed += usize::from(settlement == Settlement::Processed);
                }
                Err(error) => {
                    let is_set_aside = self
                        .set_aside_or_leave(core, conn, pieces, claim, &error, now)
                        .map_err(|obstacle| self.leave_alone(claim.seq, obstacle))?;
                    if is_set_aside {
                        note_dead(core, conn, claim.seq, outcome);
                    }
                }
            }
        }
        outcome.more_parked |= planning.has_released.get();
        Ok(())
    }

    /// A row that takes the transaction with it is not claimed in the next try.
    pub(super) fn leave_alone(&self, seq: i64, obstacle: Obstacle) -> Obstacle {
        let Obstacle::Ended(error) = obstacle else { return obstacle };
        self.left_alone.note(seq, &error);
        Obstacle::Row(error)
    }

    fn set_unreadable_aside(
        &self,
        core: &Core,
        conn: &Connection,
        row: &Unreadable,
        now: i64,
        outcome: &mut Outcome,
    ) -> Result<bool> {
        let why = validate::error_text(&row.why);
        let to = self.settings.dead_status();
        match settle::set_unreadable_aside(conn, row.seq, to, &why, now) {
            Ok(()) => {
                outcome.taken.push(row.seq);
                ordering::release_next(core, conn, row.seq, now)?;
                let ends_as =
                    if to == OutboxStatus::DeadLetter { "is a dead letter" } else { "failed for good" };
                log::warn!(
                    target: "postbox::delivery",
                    "event {} (row {}) cannot be delivered to anybody and {ends_as}: {why}", row.id, row.seq
                );
                outcome.claimed += 1;
                return Ok(true);
            }
            // But for one that is larger than the memory.
            Err(error) if error.is_fault_of_file() && error.fault() != Some(Fault::Other) => {
                return Err(error.into());
            }
            Err(error) if conn.is_autocommit() => {
                return Err(self.leave_alone(row.seq, Obstacle::Ended(error)));
            }
            Err(error) => {
                self.left_alone.note(row.seq, &error);
                outcome.refused.get_or_insert(error);
            }
        }
        Ok(false)
    }

    /// Claims the rows, and returns those that could be.
    fn take(
        &self,
        conn: &Connection,
        pieces: Pieces<'_>,
        rows: Vec<Claimed>,
        request: &ClaimRequest,
        outcome: &mut Outcome,
    ) -> Result<Vec<Claimed>> {
        if matches!(pieces, Pieces::Together) {
            claim::take(conn, &rows, request)?;
            return Ok(rows);
        }
        let mut taken = Vec::with_capacity(rows.len());
        for row in rows {
            let seq = row.claim.seq;
            match pieces.with(conn, || claim::take(conn, std::slice::from_ref(&row), request)) {
                Ok(Ok(())) => taken.push(row),
                Ok(Err(error)) => {
                    self.left_alone.note(seq, &error);
                    outcome.refused.get_or_insert(error);
                }
                Err(obstacle) => return Err(self.leave_alone(seq, obstacle)),
            }
        }
        Ok(taken)
    }

    /// Where even that is forbidden the row stays claimed, and is tried again when its lease has run out: false.
    fn set_aside_or_leave(
        &self,
        core: &Core,
        conn: &Connection,
        pieces: Pieces<'_>,
        claim: Claim,
        error: &Error,
        now: i64,
    ) -> Result<bool> {
        let why = format!("its outcome cannot be recorded: {error}");
        Ok(pieces.with(conn, || set_aside(core, conn, claim, &why, self.settings, now))?.unwrap_or_else(|error| {
            log::error!(target: "postbox::delivery", "event {} can be neither settled nor set aside: {error}", claim.id);
            false
        }))
    }
}

/// For whoever is to be told of it once it is committed.
fn note_dead(core: &Core, conn: &Connection, seq: i64, outcome: &mut Outcome) {
    if core.is_observed() {
        // One that cannot be read is told to nobody: it is no reason to do anything else differently.
        outcome.dead.extend(dead::read(conn, seq).ok().flatten());
    }
}
