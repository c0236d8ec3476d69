//! The worker's loop: take results, claim for the free slots, hand out, sleep.

mod overdue;
mod wind_down;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::delivery::{Delivery, Report};
use super::dispatch::{self, Unit};
use super::handle::{ShutdownReport, Signals};
use super::handoff::Taker;
use super::housekeeping::Housekeeping;
use super::in_flight::InFlight;
use super::left_alone::LeftAlone;
use super::pool::Pool;
use super::startup::Startup;
use super::telling::Spell;
use super::ticking;
use super::turn::{Outcome, Turn};
use super::watch::Watch;
use crate::bell::Woken;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::limits;
use crate::outbox::claim::{LeaseId, Suspects};
use crate::postbox::Postbox;
use crate::settings::Settings;
use crate::sync::atomic::Ordering;

/// The longest sleep: a commit of another connection, or a jump of the clock, is noticed after it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An event that was taken over runs alone: for this long, counted from when it was first waited for. A handler that
/// hangs must not stop everything else.
const ALONE_MAX: Duration = Duration::from_secs(5);

/// How long such an event waits for what is not this worker's, which tells nobody when it ends.
const WAIT_FOR_OTHERS: Duration = Duration::from_millis(20);

/// A clock that stands still must not keep the loop awake.
const SLEEP_LEAST: Duration = Duration::from_millis(1);

/// After a fault of the file the loop waits this long, then twice as long, and so on.
const FAULT_PAUSE: Duration = Duration::from_millis(50);
const FAULT_PAUSE_MAX: Duration = Duration::from_secs(5);

/// So many events are remembered whose handlers came upon a fault, each for so long: it is tried again within a poll.
const POSTPONED_MAX: usize = 10_000;
const POSTPONED_FOR: Duration = Duration::from_mins(1);

pub(crate) struct Run {
    postbox: Postbox,
    pool: Pool,
    signals: Signals,
    settings: Arc<Settings>,
    watch: Watch,
    housekeeping: Housekeeping,
    startup: Startup,
    in_flight: InFlight,
    /// What came back and is not settled yet.
    reports: Vec<Report>,
    /// Leases of which nobody knows whether anything is under them.
    unsure: Vec<LeaseId>,
    left_alone: LeftAlone,
    /// Something may be due.
    expect_work: bool,
    found_nothing: bool,
    /// Something is due that cannot be claimed yet.
    in_vain: bool,
    /// Until then nothing is claimed beside an event that was taken over.
    alone_until: Option<Instant>,
    faults: u32,
    /// Events whose handlers came upon a fault of the file, and when they last did.
    postponed: HashMap<i64, Instant>,
    /// Why handlers' work was given back.
    fault: Option<Error>,
    spell: Spell,
}

impl Run {
    pub(crate) fn new(postbox: Postbox, pool: Pool, signals: Signals) -> Result<Self> {
        let core = postbox.core();
        let (watch, settings) = Watch::begin(core)?;
        Ok(Run {
            startup: Startup::begin(&settings, core.clock.now(), ticking::wall(core)),
            postbox,
            pool,
            signals,
            settings,
            watch,
            housekeeping: Housekeeping::begin(),
            in_flight: InFlight::new(),
            reports: Vec::new(),
            unsure: Vec::new(),
            left_alone: LeftAlone::for_a_while(),
            expect_work: true,
            found_nothing: false,
            in_vain: false,
            alone_until: None,
            faults: 0,
            postponed: HashMap::new(),
            fault: None,
            spell: Spell::default(),
        })
    }

    pub(crate) fn run(mut self) {
        log::info!(target: "postbox::worker", "the worker starts on {:?}", self.postbox);
        self.core().health.begin_anew(); // whatever the last one came to
        let panicked = catch_unwind(AssertUnwindSafe(|| self.work_until_stopped())).is_err();
        self.core().health.begin_anew(); // nothing waits any more
        if panicked {
            self.core().health.has_stopped();
            log::error!(target: "postbox::worker", "the worker panicked and ends: its claims come due when their leases run out");
        }
        let unfinished = self.wind_down();
        let unsettled = std::mem::take(&mut self.reports);
        self.core().unsettled.put(unsettled);
        let unsure = std::mem::take(&mut self.unsure);
        self.core().handoff.put_unsure_back(unsure);
        self.in_flight.give_up();
        let idle = unfinished == 0 && !self.in_flight.is_any_late();
        let report = ShutdownReport { clean: idle && !panicked, unfinished };
        *self.signals.control.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        self.pool.end(self.postbox.core(), idle);
        log::info!(target: "postbox::worker", "the worker ends, {unfinished} unfinished, on {:?}", self.postbox);
        // The box is let go before `signals` says that the worker is over: whoever waits for that may want to open the
        // file again.
        drop((self.watch, self.postbox));
        drop(self.signals);
    }

    fn core(&self) -> &Core {
        self.postbox.core()
    }

    fn work_until_stopped(&mut self) {
        while !self.signals.control.stopping.load(Ordering::Acquire) {
            self.take_reports();
            let turn = self.look_and_turn();
            self.keep_house();
            if let Some(error) = turn.err().or_else(|| self.fault.take()) {
                self.pause_after(&error);
            }
            if self.startup.is_over(&self.settings, &self.in_flight, self.reports.is_empty()) {
                self.startup = Startup::Over;
                self.signals.startup_drain_is_over();
            }
            // A turn never waits while there is work.
            if self.reports.is_empty() && !(self.expect_work && self.free_slots() > 0) {
                self.open_handoff();
                self.sleep();
            }
        }
    }

    fn take_reports(&mut self) {
        while let Ok(report) = self.pool.reports().try_recv() {
            self.take(report);
        }
    }

    /// What publishers have handed over comes into the books: with each report, or one of it would find no entry, and the
    /// entry that comes later would stay for ever.
    fn take_handed(&mut self) {
        for handed in self.core().handoff.take_handed() {
            self.found_nothing = false;
            self.in_flight.add_one(handed);
        }
    }

    /// Publishers may hand their events over by themselves, while there is nothing else to claim.
    fn open_handoff(&mut self) {
        let allowed = self.settings.allow_processing(true) && self.alone_until.is_none();
        if allowed && !self.expect_work && matches!(self.startup, Startup::Over) {
            let taker = Taker {
                settings: Arc::clone(&self.settings),
                work: self.pool.work(),
                stopping: Arc::clone(&self.signals.control.stopping),
            };
            self.core().handoff.open(taker, self.free_slots(), self.in_flight.is_empty());
        } else {
            self.core().handoff.close();
        }
    }

    /// What was processed by hand and could not be recorded, and leases that nobody knows.
    fn take_what_others_left(&mut self) {
        let core = self.postbox.core();
        self.reports.extend(core.unsettled.take());
        self.unsure.extend(core.handoff.take_unsure());
    }

    fn take(&mut self, mut report: Report) {
        self.take_handed();
        if let Some(claim) = report.ends() {
            self.in_flight.remove(claim);
        }
        self.fault = report.take_fault().or_else(|| self.fault.take());
        self.note_handlers(&mut report);
        match &report {
            Report::GivenBack { .. } | Report::Interrupted { .. } | Report::Continues(_) => {}
            _ => self.expect_work = true, // a slot is free, and a retry may be due at once
        }
        match report {
            Report::Continues(delivery) => self.pool.hand_out(&self.settings, Unit::One(delivery)),
            report => self.reports.push(report),
        }
    }

    /// Handlers that came upon a fault of the file, for the box's health: until what they were handling has come to an end.
    fn note_handlers(&mut self, report: &mut Report) {
        let seq = report.claim().seq;
        if let Some(fault) = report.take_fault_of_handler() {
            if self.postponed.len() < POSTPONED_MAX || self.postponed.contains_key(&seq) {
                self.postponed.insert(seq, Instant::now());
            }
            self.core().health.handlers_wait_after(&fault);
        } else if !self.postponed.is_empty() && report.is_of_handlers() && report.ends().is_some() {
            self.postponed.remove(&seq);
            self.look_at_handlers();
        }
    }

    /// One that is not tried any more is somebody else's by now.
    fn look_at_handlers(&mut self) {
        self.postponed.retain(|_, since| since.elapsed() < POSTPONED_FOR);
        if self.postponed.is_empty() {
            self.core().health.handlers_are_well();
        }
    }

    fn keep_house(&mut self) {
        if !self.postponed.is_empty() {
            self.look_at_handlers();
        }
        self.housekeeping.work(self.postbox.core(), &self.settings);
    }

    /// One turn, if there is anything to do in one.
    fn look_and_turn(&mut self) -> Result<()> {
        let core = self.postbox.core();
        let before = Arc::clone(&self.settings);
        self.expect_work |= self.watch.look(core, &mut self.settings, self.found_nothing)?;
        if self.settings != before {
            self.housekeeping.look_again();
        }
        if self.settings.allow_processing(true) {
            self.expect_work |= self.watch.publish_ticks(core)?;
            if matches!(self.startup, Startup::Claiming { .. }) {
                self.startup.has_ticked(self.watch.tick_that_has_come(core), core.clock.now());
            }
        }
        // What publishers are still committing may be handed over until then, and claimed afterwards.
        let reserved = if self.expect_work { core.handoff.close() } else { 0 };
        self.take_what_others_left();
        self.take_handed();
        self.end_overdue();
        let core = self.postbox.core();
        let free = self.free_slots().saturating_sub(reserved);
        let release_for = if free > 0 { self.watch.release_for(core)? } else { None };
        let release_parked = free > 0 && core.pauses.is_release_due(core.clock.now());
        let claims = free > 0
            && (release_for.is_some()
                || release_parked
                || limits::is_call_due(core, core.clock.now())
                || (self.expect_work && self.watch.is_due(core, &self.left_alone)?));
        let now = self.postbox.core().clock.now();
        let renew = self.in_flight.renewals(&self.settings, now);
        if claims {
            core.handoff.close();
        }
        if self.reports.is_empty() && renew.is_empty() && self.unsure.is_empty() && !claims {
            core.db.refuse_replaced()?; // a turn looks as it begins to write
            if free > 0 {
                self.expect_work = false;
                self.found_nothing = true;
                self.startup.nothing_left(&self.in_flight);
            }
            if self.in_flight.is_empty() {
                self.note_success();
                if free > 0 && reserved == 0 {
                    self.spell.end(self.postbox.core());
                }
            }
            return Ok(());
        }

        let had_reports = !self.reports.is_empty();
        // A claim alone proves little: what is claimed may be given back for the same fault as before.
        let proves_success = !renew.is_empty() || self.reports.iter().any(Report::is_of_handlers);
        let suspects = match self.is_patient() {
            true if reserved > 0 => Suspects::NotYet,
            true => Suspects::Alone,
            false => Suspects::AsOthers,
        };
        let outcome = Turn {
            settings: &self.settings,
            reports: &mut self.reports,
            renew: &renew,
            give_back: &self.unsure,
            claim_max: if claims { free } else { 0 },
            release_held: release_for.is_some(),
            pauses: true,
            stopping: &self.signals.control.stopping,
            by_worker: true,
            left_alone: &self.left_alone,
            suspects,
        }
        .run(core)?;
        if had_reports || outcome.claimed > 0 {
            self.spell.note(outcome.processed);
        }
        if proves_success {
            self.note_success();
        }
        self.unsure.clear();
        if let Some(release) = release_for.filter(|_| !outcome.more_held) {
            self.core().held_are_released(release);
        }
        if !renew.is_empty() {
            self.in_flight.renewed(&renew, &outcome.lost, &self.settings, now);
        }
        if claims {
            self.in_vain = outcome.claimed == 0
                && !outcome.more_held
                && !outcome.more_parked
                && !outcome.is_cut
                && outcome.refused.is_none();
            self.begin(outcome, free, now);
        }
        Ok(())
    }

    /// What a claim of up to `free` got is handed out.
    fn begin(&mut self, outcome: Outcome, free: usize, now: i64) {
        if outcome.alone {
            self.alone_until.get_or_insert_with(|| Instant::now() + ALONE_MAX);
        } else if self.in_flight.is_empty() || self.is_patient() {
            self.alone_until = None;
        }
        // A full claim means that more may be due, and so do rows that were in the way of others.
        self.expect_work = outcome.claimed >= free
            || outcome.more_held
            || outcome.more_parked
            || (outcome.alone && outcome.claimed > 0)
            || outcome.is_cut
            || outcome.refused.is_some();
        self.found_nothing &= outcome.claimed == 0;
        self.in_flight.add(&outcome.deliveries, &self.settings, now);
        self.startup.has_claimed(&outcome, free, &self.in_flight);
        self.hand_out(outcome.deliveries);
    }

    fn hand_out(&self, deliveries: Vec<Delivery>) {
        let keep_order = self.core().handler_threads == 1;
        for unit in dispatch::group(deliveries, keep_order) {
            self.pool.hand_out(&self.settings, unit);
        }
    }

    /// Whether it still waits for events that were taken over to have run alone.
    fn is_patient(&self) -> bool {
        self.alone_until.is_none_or(|until| Instant::now() < until)
    }

    /// How many events may be claimed now.
    fn free_slots(&self) -> usize {
        let waits = self.alone_until.is_some() && self.is_patient() && !self.in_flight.is_empty();
        if self.settings.allow_processing(true) && !waits {
            self.startup.slots(&self.settings).saturating_sub(self.in_flight.len())
        } else {
            0
        }
    }

    /// Until something comes, or may be due.
    fn sleep(&mut self) {
        let bell = &self.core().bell;
        match bell.sleep(&self.signals.stop, self.pool.reports(), self.time_to_sleep()) {
            Woken::Stopped => {}
            Woken::Report(report) => self.take(report),
            Woken::Rung | Woken::Overslept => self.expect_work = true,
        }
    }

    fn time_to_sleep(&self) -> Duration {
        let now = Instant::now();
        let mut until = look_in(self.watch.next_poll().saturating_duration_since(now));
        if let Some(alone_until) = self.alone_until.filter(|alone_until| *alone_until > now) {
            if self.in_flight.is_empty() {
                return WAIT_FOR_OTHERS;
            }
            until = until.min(alone_until - now);
        }
        let others = [self.in_flight.renewal_due(), self.housekeeping.due(&self.settings)];
        for due in others.into_iter().flatten() {
            until = until.min(due.saturating_duration_since(now));
        }
        if let Some(end) = self.in_flight.next_end() {
            until = until.min(self.left_until(end));
        }
        if let Some(left) = self.watch.until_tick(self.core())
            && self.settings.allow_processing(true)
        {
            until = until.min(left.max(SLEEP_LEAST));
        }
        if self.free_slots() > 0
            && let Ok(Some(due)) = self.watch.next_due(self.core(), &self.left_alone)
        {
            let left = due.saturating_sub(self.core().clock.now());
            let left = Duration::from_micros(u64::try_from(left).unwrap_or(0));
            until = until.min(if self.in_vain { left.max(WAIT_FOR_OTHERS) } else { left.max(SLEEP_LEAST) });
        }
        if self.free_slots() > 0 {
            let now = self.core().clock.now();
            let others = [self.core().pauses.next_end(now), limits::next_room(self.core(), now)];
            for end in others.into_iter().flatten() {
                until = until.min(self.left_until(end));
            }
        }
        until
    }

    /// Of the box's time.
    fn left_until(&self, at: i64) -> Duration {
        let left = at.saturating_sub(self.core().clock.now());
        Duration::from_micros(u64::try_from(left).unwrap_or(0)).max(SLEEP_LEAST)
    }

    fn note_success(&mut self) {
        if self.faults > 0 {
            log::info!(target: "postbox::worker", "processing goes on after {} tries in vain, on {:?}", self.faults, self.postbox);
            self.core().health.is_well();
        }
        self.faults = 0;
    }

    fn pause_after(&mut self, error: &Error) {
        // What was handed over runs meanwhile, and nothing more is: leases are renewed by this thread alone.
        let reserved = self.core().handoff.close();
        self.take_handed();
        self.faults = self.faults.saturating_add(1);
        self.core().health.waits_after(error);
        if self.faults == 1 {
            log::warn!(target: "postbox::worker", "processing pauses and is tried again, on {:?}: {error}", self.postbox);
        }
        // Once the fault is gone, work goes on within a poll.
        let mut pause_max = FAULT_PAUSE_MAX.min(Duration::from_millis(self.settings.polling_interval_ms));
        if reserved > 0 || !self.in_flight.is_empty() {
            // Nor may the leases of what runs meanwhile end unrenewed: that is tried at a third of them.
            pause_max = pause_max.min(Duration::from_millis(self.settings.processing_lease_ms / 3));
        }
        let pause = FAULT_PAUSE.saturating_mul(2_u32.saturating_pow(self.faults - 1)).min(pause_max);
        self.expect_work = true;
        let _ = self.signals.stop.recv_timeout(pause); // stopping ends the pause
    }
}

/// When to look up, that many a time before the next poll that the last look is the poll itself: an idle worker wakes up
/// once a second, and not once more.
fn look_in(next_poll: Duration) -> Duration {
    let looks = next_poll.as_nanos().div_ceil(LOOK_EVERY.as_nanos());
    next_poll / u32::try_from(looks).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_no_more_than_a_second_apart_and_end_at_the_poll() {
        for (poll_ms, look_ms) in
            [(5_000, 1_000), (4_000, 1_000), (1_500, 750), (300, 300), (0, 0), (30_000, 1_000)]
        {
            assert_eq!(look_in(Duration::from_millis(poll_ms)), Duration::from_millis(look_ms), "{poll_ms}");
        }
    }
}
