//! Processing on the caller's thread.

use std::collections::HashSet;
use std::sync::Arc;

use super::delivery::Report;
use super::dispatch::{self, Unit};
use super::left_alone::LeftAlone;
use super::scope;
use super::telling::Spell;
use super::ticking;
use super::turn::{Outcome, Turn};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::outbox;
use crate::outbox::claim::{Claim, LeaseId, Suspects};
use crate::outbox::strays;
use crate::postbox::Postbox;
use crate::schedule::table;
use crate::settings::Settings;
use crate::sync::atomic::AtomicBool;
use crate::{limits, newer, ordering};

pub(crate) fn process_batch(postbox: &Postbox) -> Result<usize> {
    let Some(mut by_hand) = ByHand::begin(postbox, "process_batch")? else { return Ok(0) };
    // Rows that cannot be claimed are in nobody's way: each is tried once.
    let claimed = loop {
        let mut claimed = by_hand.settle_and_claim()?;
        let is_done = claimed.claimed > 0 || (claimed.refused.is_none() && !claimed.is_cut);
        by_hand.refused = by_hand.refused.take().or(claimed.refused.take());
        if is_done {
            break claimed;
        }
    };
    by_hand.deliver(claimed);
    by_hand.settle()?;
    by_hand.end()
}

pub(crate) fn drain(postbox: &Postbox) -> Result<usize> {
    drain_while(postbox, |_| true)
}

/// The same until `go_on`, which is told after each batch how many events were claimed for it, has had enough.
pub(crate) fn drain_while(postbox: &Postbox, mut go_on: impl FnMut(usize) -> bool) -> Result<usize> {
    let Some(mut by_hand) = ByHand::begin(postbox, "drain")? else { return Ok(0) };
    let mut spell = Spell::begin();
    for round in 1_usize.. {
        let mut claimed = by_hand.settle_and_claim()?;
        if claimed.claimed == 0 && claimed.refused.is_none() && !claimed.is_cut {
            let processed = by_hand.end()?;
            spell.note(processed);
            spell.end(postbox.core());
            return Ok(processed);
        }
        by_hand.refused = by_hand.refused.take().or(claimed.refused.take());
        let count = claimed.claimed;
        by_hand.deliver(claimed);
        // An operator can stop a long drain.
        if !go_on(count) || (round.is_multiple_of(ROUNDS) && !by_hand.may_go_on()?) {
            by_hand.settle()?;
            break;
        }
    }
    by_hand.end()
}

/// Batches between two looks at the settings.
const ROUNDS: usize = 16;

struct ByHand<'a> {
    postbox: &'a Postbox,
    core: &'a Core,
    settings: Settings,
    /// Never set: a caller stops by not calling again.
    stopping: Arc<AtomicBool>,
    /// What has been delivered and is not settled.
    reports: Vec<Report>,
    /// Leases of which nobody knows whether anything is under them.
    unsure: Vec<LeaseId>,
    /// What this run has claimed; forgotten when it ends, however it ends.
    claims: Vec<Claim>,
    processed: usize,
    slot: u64,
    /// Why something was given back: the caller is told, or it would be claimed again and again.
    fault: Option<Error>,
    left_alone: LeftAlone,
    /// Why rows were left alone: the first of them.
    refused: Option<Error>,
}

impl<'a> ByHand<'a> {
    /// `None`: processing is off, or nothing is due.
    fn begin(postbox: &'a Postbox, operation: &'static str) -> Result<Option<Self>> {
        let core = postbox.core();
        core.db.refuse_read_only(operation)?;
        core.db.refuse_reentry(operation)?;
        scope::refuse_inside_handler(core, operation)?;
        ordering::look_after(core, operation)?;
        limits::look_after(core, operation)?;
        newer::look_after(core, operation)?;
        let ticked = publish_ticks(core, operation)?;
        let (settings, due, strays) = core.db.read(operation, |conn| {
            let settings = core.reload_settings(conn)?;
            // Clear, before the write lock is taken for nothing.
            let now = core.clock.now();
            let due = outbox::is_due(conn, now, |seq| core.in_flight().contains_key(&seq))?;
            core.pauses.look_again(conn)?;
            let due = due || core.pauses.is_release_due(now) || limits::is_call_due(core, now);
            Ok((settings, due || core.release_held_for(conn)?.is_some(), !strays::find(conn, 1)?.is_empty()))
        })?;
        if strays {
            core.set_strays_aside(operation)?;
        }
        let is_left = core.unsettled.is_any() || core.handoff.is_any_unsure();
        if !settings.allow_processing(false) || !(due || is_left || ticked) {
            return Ok(None);
        }
        let reports = core.unsettled.take();
        Ok(Some(ByHand {
            postbox,
            core,
            settings,
            stopping: Arc::new(AtomicBool::new(false)),
            claims: reports.iter().filter_map(Report::ends).collect(),
            reports,
            unsure: Vec::new(),
            processed: 0,
            slot: core.take_slot(),
            fault: None,
            left_alone: LeftAlone::for_good(),
            refused: None,
        }))
    }

    /// What has come of all of it. Events that could not be claimed wait, and the caller is told.
    fn end(&mut self) -> Result<usize> {
        self.refused.take().map_or(Ok(self.processed), Err)
    }

    fn settle_and_claim(&mut self) -> Result<Outcome> {
        loop {
            let outcome = self.settle_and_claim_once()?;
            // It has looked at events that wait for what is paused, and goes on behind them.
            if !outcome.more_parked || outcome.claimed > 0 || outcome.refused.is_some() {
                return Ok(outcome);
            }
        }
    }

    fn settle_and_claim_once(&mut self) -> Result<Outcome> {
        // After a fault nothing new is begun: what there is is settled, and the caller told.
        let batch_size = usize::try_from(self.settings.batch_size).unwrap_or(usize::MAX);
        let claim_max = if self.fault.is_some() { 0 } else { batch_size };
        let release_for = self.core.db.read("process", |conn| self.core.release_held_for(conn))?;
        let outcome = self.turn(claim_max, release_for.is_some())?;
        if let Some(release) = release_for.filter(|_| !outcome.more_held) {
            self.core.held_are_released(release);
        }
        self.claims.extend(outcome.deliveries.iter().map(|delivery| delivery.claim));
        Ok(outcome)
    }

    /// Reads the settings anew.
    fn may_go_on(&mut self) -> Result<bool> {
        self.settings = self.core.db.read("drain", |conn| self.core.reload_settings(conn))?;
        Ok(self.settings.allow_processing(false))
    }

    fn settle(&mut self) -> Result<()> {
        while self.turn(0, false)?.is_cut {}
        Ok(())
    }

    fn turn(&mut self, claim_max: usize, release_held: bool) -> Result<Outcome> {
        self.unsure.extend(self.core.handoff.take_unsure());
        let turn = Turn {
            settings: &self.settings,
            reports: &mut self.reports,
            renew: &[],
            give_back: &self.unsure,
            claim_max,
            release_held,
            pauses: true,
            stopping: &self.stopping,
            by_worker: false,
            left_alone: &self.left_alone,
            suspects: Suspects::Alone,
        };
        let outcome = turn.run(self.core)?;
        self.unsure.clear();
        self.claims.clear();
        self.processed += outcome.processed;
        self.fault.take().map_or(Ok(outcome), Err)
    }

    /// In order of `seq`, so that a caller sees handlers run in the order of publishing.
    fn deliver(&mut self, claimed: Outcome) {
        let mut units = dispatch::group(claimed.deliveries, true);
        units.reverse();
        while let Some(unit) = units.pop() {
            let mut goes_on = None;
            dispatch::run(self.postbox, &self.settings, unit, self.slot, &mut |report| match report {
                Report::Continues(delivery) => goes_on.get_or_insert_with(Vec::new).push(delivery),
                mut report => {
                    self.fault = report.take_fault().or_else(|| self.fault.take());
                    if let Some(fault) = report.take_fault_of_handler() {
                        // The others go on; the caller is told in the end.
                        self.left_alone.leave(report.claim().seq);
                        self.refused.get_or_insert(fault);
                        report.wait_for_nobody();
                    }
                    self.reports.push(report);
                }
            });
            // What goes on to a plain consumer does so before later events.
            units.extend(goes_on.into_iter().flatten().rev().map(Unit::One));
        }
    }
}

/// Those that have come by now: a schedule that ticks again while the caller's handlers run does not keep it. True when there were any.
fn publish_ticks(core: &Core, operation: &'static str) -> Result<bool> {
    if !core.may_have_schedules() {
        return Ok(false);
    }
    let wall = ticking::wall(core);
    let (is_due, is_ahead) = core.db.read(operation, |conn| {
        let next = table::next_tick(conn, i64::MIN, |_| false)?;
        Ok((next.is_some_and(|tick| tick <= wall), !table::ahead(conn, wall)?.is_empty()))
    })?;
    if !(is_due || is_ahead)
        || !core.db.read(operation, |conn| core.reload_settings(conn))?.allow_processing(false)
    {
        return Ok(false);
    }
    let left_alone = LeftAlone::for_good();
    ticking::follow_clock(core, &left_alone)?;
    ticking::publish_due(core, &left_alone)
}

impl Drop for ByHand<'_> {
    fn drop(&mut self) {
        self.core.give_slot_back(self.slot);
        // After an error what is done waits to be recorded; the leases of others run out, and then they are anybody's.
        let done: HashSet<Claim> = self.reports.iter().filter_map(Report::ends).collect();
        for claim in self.claims.drain(..).filter(|claim| !done.contains(claim)) {
            self.core.no_longer_in_flight(claim);
        }
        self.core.handoff.put_unsure_back(std::mem::take(&mut self.unsure));
        if !self.reports.is_empty() {
            self.core.unsettled.put(std::mem::take(&mut self.reports));
            self.core.bell.ring(); // a worker that sleeps records them
        }
    }
}
