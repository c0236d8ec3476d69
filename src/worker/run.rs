//! The worker's loop: take results, claim for the free slots, hand out, sleep.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, after, never, select};
use rusqlite::Connection;

use super::delivery::{Delivery, Report};
use super::dispatch::{self, Unit};
use super::handle::{ShutdownReport, Signals};
use super::pool::Pool;
use super::turn::{Outcome, Turn};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::handler::Cancellation;
use crate::outbox;
use crate::outbox::claim::Claim;
use crate::postbox::Postbox;
use crate::settings::Settings;

/// The longest sleep: a commit of another connection, or a jump of the clock, is noticed after it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long an event that has to run alone waits before it is tried again.
const WAIT_FOR_OTHERS: Duration = Duration::from_millis(20);

/// After a fault of the file the loop waits this long, then twice as long, and so on.
const FAULT_PAUSE: Duration = Duration::from_millis(50);
const FAULT_PAUSE_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Run {
    postbox: Postbox,
    pool: Pool,
    signals: Signals,
    settings: Arc<Settings>,
    /// A read connection of the worker's own; `None` in memory.
    reader: Option<Connection>,
    /// The reader's `data_version` at the last look.
    seen_version: Option<i64>,
    /// The registry's generation for which held events were let go.
    released_for: Option<u64>,
    in_flight: HashMap<i64, InFlight>,
    /// What came back and is not settled yet.
    reports: Vec<Report>,
    /// There may be something due: claim without looking first.
    expect_work: bool,
    startup: Startup,
    next_poll: Instant,
    found_nothing: bool,
    /// Nothing is claimed until nothing is in flight: an event that was taken over runs alone.
    alone: bool,
    next_renewal: Instant,
    faults: u32,
    /// Why handlers' work was given back.
    fault: Option<Error>,
}

struct InFlight {
    claim: Claim,
    cancellation: Arc<Cancellation>,
}

enum Startup {
    /// Claims what was due at this time, in batches of its own size.
    Claiming {
        began_at: i64,
    },
    /// These are still under way.
    Ending(HashSet<i64>),
    Over,
}

impl Run {
    pub(crate) fn new(postbox: Postbox, pool: Pool, signals: Signals) -> Result<Self> {
        let core = postbox.core();
        let reader = core.db.open_reader("start")?;
        let settings = Arc::new(match &reader {
            Some(conn) => core.reload_settings(conn)?,
            None => core.settings(),
        });
        let drains = settings.startup_drain_enabled && settings.allow_processing(true);
        let startup = if drains { Startup::Claiming { began_at: core.clock.now() } } else { Startup::Over };
        let now = Instant::now();
        Ok(Run {
            pool,
            signals,
            settings: Arc::clone(&settings),
            reader,
            seen_version: None,
            released_for: None,
            in_flight: HashMap::new(),
            reports: Vec::new(),
            expect_work: true,
            startup,
            // Opening has just done what a poll does.
            next_poll: now + Duration::from_millis(settings.polling_interval_ms),
            found_nothing: false,
            alone: false,
            next_renewal: now,
            faults: 0,
            fault: None,
            postbox,
        })
    }

    pub(crate) fn run(mut self) {
        log::info!(target: "postbox::worker", "the worker starts");
        let panicked = catch_unwind(AssertUnwindSafe(|| self.work_until_stopped())).is_err();
        if panicked {
            log::error!(target: "postbox::worker", "the worker panicked and ends: its claims come due when their leases run out");
        }
        let unfinished = self.wind_down();
        let report = ShutdownReport { clean: unfinished == 0 && !panicked, unfinished };
        *self.signals.control.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        self.pool.end(self.postbox.core(), unfinished == 0);
        log::info!(target: "postbox::worker", "the worker ends, {unfinished} unfinished");
        // The box is let go before `signals` says that the worker is over: whoever waits for that may want to open the
        // file again.
        drop((self.reader, self.postbox));
        drop(self.signals);
    }

    fn core(&self) -> &Core {
        self.postbox.core()
    }

    fn work_until_stopped(&mut self) {
        loop {
            self.take_reports();
            let turn = self.look_and_turn();
            if let Some(error) = turn.err().or_else(|| self.fault.take()) {
                self.pause_after(&error);
            }
            if self.startup_is_over() {
                self.startup = Startup::Over;
                self.signals.startup_drain_is_over();
            }
            if !self.sleep() {
                return;
            }
        }
    }

    fn take_reports(&mut self) {
        while let Ok(report) = self.pool.reports().try_recv() {
            self.take(report);
        }
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Continues(delivery) => self.pool.hand_out(&self.settings, Unit::One(delivery)),
            mut report => {
                if let Some(claim) = report.ends() {
                    self.in_flight.remove(&claim.seq);
                }
                if let Report::GivenBack { fault, .. } = &mut report
                    && let Some(fault) = fault.take()
                {
                    self.fault = Some(fault);
                }
                self.reports.push(report);
            }
        }
    }

    /// One turn, if there is anything to do in one.
    fn look_and_turn(&mut self) -> Result<()> {
        self.look_for_changes()?;
        let free = self.free_slots();
        let release_held = free > 0 && self.released_for != Some(self.core().registry.generation());
        let renews = !self.in_flight.is_empty() && Instant::now() >= self.next_renewal;
        let due = free > 0 && (self.expect_work || release_held) && (release_held || self.is_due()?);
        if self.reports.is_empty() && !due && !renews {
            if free > 0 {
                self.expect_work = false;
                self.found_nothing = true;
                self.nothing_left_at_startup();
            }
            self.faults = 0;
            return Ok(());
        }

        let generation = self.core().registry.generation();
        let renew: Vec<Claim> = if renews {
            self.in_flight.values().map(|in_flight| in_flight.claim).collect()
        } else {
            Vec::new()
        };
        let outcome = Turn {
            settings: &self.settings,
            reports: &self.reports,
            renew: &renew,
            claim_max: if self.expect_work || release_held { free } else { 0 },
            release_held,
            stopping: &self.signals.control.stopping,
            by_worker: true,
        }
        .run(self.core())?;
        self.reports.clear();
        self.faults = 0;
        if release_held && !outcome.more_held {
            self.released_for = Some(generation);
        }
        if renews {
            self.next_renewal = Instant::now() + Duration::from_millis(self.settings.processing_lease_ms / 3);
        }
        self.after_turn(outcome, free);
        Ok(())
    }

    fn after_turn(&mut self, outcome: Outcome, free: usize) {
        for claim in &outcome.lost {
            if let Some(in_flight) = self.in_flight.get(&claim.seq).filter(|f| f.claim == *claim) {
                in_flight.cancellation.lost.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        if free == 0 {
            return; // nothing was looked for
        }
        // A full claim means that more may be due.
        self.alone = outcome.alone;
        self.expect_work =
            outcome.claimed >= free || outcome.more_held || (outcome.alone && outcome.claimed > 0);
        if outcome.claimed > 0 {
            self.found_nothing = false;
        }
        if self.in_flight.is_empty() {
            self.next_renewal = Instant::now() + Duration::from_millis(self.settings.processing_lease_ms / 3);
        }
        for delivery in &outcome.deliveries {
            let in_flight =
                InFlight { claim: delivery.claim, cancellation: Arc::clone(&delivery.cancellation) };
            self.in_flight.insert(delivery.claim.seq, in_flight);
        }
        // Claims come in the order in which they were due: one from after the start has all of the backlog before it.
        if let Startup::Claiming { began_at } = self.startup
            && ((outcome.claimed < free && !outcome.alone) || outcome.latest_due_at > began_at)
        {
            self.nothing_left_at_startup();
        }
        self.hand_out(outcome.deliveries);
    }

    fn hand_out(&self, deliveries: Vec<Delivery>) {
        let keep_order = self.core().handler_threads == 1;
        for unit in dispatch::group(deliveries, keep_order) {
            self.pool.hand_out(&self.settings, unit);
        }
    }

    fn slots(&self) -> usize {
        let slots = match self.startup {
            Startup::Claiming { .. } => self.settings.startup_drain_batch_size,
            Startup::Ending(_) | Startup::Over => self.settings.batch_size,
        };
        usize::try_from(slots).unwrap_or(usize::MAX)
    }

    fn processes(&self) -> bool {
        self.settings.allow_processing(true)
    }

    /// How many events may be claimed now.
    fn free_slots(&self) -> usize {
        let waits = self.alone && !self.in_flight.is_empty();
        if self.processes() && !waits { self.slots().saturating_sub(self.in_flight.len()) } else { 0 }
    }

    fn nothing_left_at_startup(&mut self) {
        if matches!(self.startup, Startup::Claiming { .. }) {
            self.startup = Startup::Ending(self.in_flight.keys().copied().collect());
        }
    }

    fn startup_is_over(&self) -> bool {
        match &self.startup {
            Startup::Claiming { .. } => !self.processes(),
            Startup::Ending(under_way) => {
                self.reports.is_empty() && !under_way.iter().any(|seq| self.in_flight.contains_key(seq))
            }
            Startup::Over => self.signals.drained.is_some(),
        }
    }

    /// Notices what others have committed, and the settings among it.
    fn look_for_changes(&mut self) -> Result<()> {
        let polls = Instant::now() >= self.next_poll;
        if let Some(reader) = &self.reader {
            let version: i64 =
                reader.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
            if polls || self.seen_version != Some(version) {
                self.settings = Arc::new(self.postbox.core().reload_settings(reader)?);
                self.seen_version = Some(version);
                self.expect_work = true;
            }
        } else {
            let settings = self.core().settings();
            if settings != *self.settings {
                self.settings = Arc::new(settings);
                self.expect_work = true;
            }
        }
        if polls {
            self.expect_work = true;
            self.core().take_over_from_the_dead()?;
            if self.any_held()? {
                self.released_for = None; // held by another process, for one
            }
            let interval = if self.found_nothing {
                self.settings.idle_polling_interval_ms
            } else {
                self.settings.polling_interval_ms
            };
            self.next_poll = Instant::now() + Duration::from_millis(interval);
        }
        Ok(())
    }

    /// A read, so that an empty claim does not take the write lock.
    fn is_due(&self) -> Result<bool> {
        Ok(self.next_due()?.is_some_and(|due| due <= self.core().clock.now()))
    }

    fn next_due(&self) -> Result<Option<i64>> {
        let core = self.core();
        let next_due = |conn: &Connection| outbox::next_due(conn, |seq| core.in_flight().contains_key(&seq));
        match &self.reader {
            Some(reader) => next_due(reader),
            None => core.db.read("process", next_due),
        }
    }

    fn any_held(&self) -> Result<bool> {
        match &self.reader {
            Some(reader) => outbox::settle::any_held(reader),
            None => self.core().db.read("process", outbox::settle::any_held),
        }
    }

    /// False: stop.
    fn sleep(&mut self) -> bool {
        if (self.expect_work && self.free_slots() > 0) || !self.reports.is_empty() {
            return !self.signals.control.stopping.load(std::sync::atomic::Ordering::Acquire);
        }
        let timeout = self.time_to_sleep();
        let wake = if timeout == Duration::MAX { never() } else { after(timeout) };
        let mut came = None;
        let goes_on = select! {
            recv(self.signals.stop) -> _ => false,
            recv(self.pool.reports()) -> report => {
                came = report.ok();
                true
            }
            recv(self.core().bell.heard()) -> _ => {
                self.expect_work = true;
                true
            }
            recv(wake) -> _ => {
                self.expect_work = true;
                true
            }
        };
        if let Some(report) = came {
            self.take(report);
            self.expect_work = true;
        }
        goes_on
    }

    fn time_to_sleep(&self) -> Duration {
        if self.alone && self.in_flight.is_empty() {
            return WAIT_FOR_OTHERS; // something is processed by hand beside this worker, which tells nobody when it ends
        }
        let now = Instant::now();
        let mut until = LOOK_EVERY.min(self.next_poll.saturating_duration_since(now));
        if !self.in_flight.is_empty() {
            until = until.min(self.next_renewal.saturating_duration_since(now));
        }
        let processes = self.settings.enabled && self.settings.processor_enabled;
        if processes
            && self.in_flight.len() < self.slots()
            && let Ok(Some(due)) = self.next_due()
        {
            let left = due.saturating_sub(self.core().clock.now());
            until = until.min(Duration::from_micros(u64::try_from(left).unwrap_or(0)));
        }
        until
    }

    fn pause_after(&mut self, error: &Error) {
        self.faults = self.faults.saturating_add(1);
        if self.faults == 1 {
            log::warn!(target: "postbox::worker", "processing pauses and is tried again: {error}");
        }
        let pause = FAULT_PAUSE.saturating_mul(2_u32.saturating_pow(self.faults - 1)).min(FAULT_PAUSE_MAX);
        self.expect_work = true;
        // Stopping ends the pause; `sleep` sees it as well.
        if let Err(RecvTimeoutError::Timeout) = self.signals.stop.recv_timeout(pause) {}
    }

    /// Gives back what was not begun, waits for what runs, settles. How many events stay unfinished.
    fn wind_down(&mut self) -> usize {
        let deadline = *self.signals.control.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = deadline.unwrap_or_else(Instant::now);
        for unit in self.pool.take_back() {
            let not_begun = match unit {
                Unit::One(delivery) => vec![*delivery],
                Unit::Together(deliveries) => deliveries,
            };
            for delivery in not_begun {
                if delivery.is_begun() {
                    // Half of it is done: it goes on, within the limit.
                    self.pool.hand_out(&self.settings, Unit::One(Box::new(delivery)));
                } else {
                    self.take(Report::GivenBack { claim: delivery.claim, fault: None });
                }
            }
        }
        loop {
            self.take_reports();
            let settled = self.settle_last();
            let now = Instant::now();
            if (self.in_flight.is_empty() && settled) || now >= deadline {
                return self.in_flight.len()
                    + self.reports.iter().filter(|report| report.ends().is_some()).count();
            }
            let until = deadline.min(if settled { self.next_renewal.max(now) } else { now + FAULT_PAUSE });
            if let Ok(report) = self.pool.reports().recv_deadline(until) {
                self.take(report);
            }
        }
    }

    fn settle_last(&mut self) -> bool {
        let renews = !self.in_flight.is_empty() && Instant::now() >= self.next_renewal;
        if self.reports.is_empty() && !renews {
            return true;
        }
        let renew: Vec<Claim> = if renews {
            self.in_flight.values().map(|in_flight| in_flight.claim).collect()
        } else {
            Vec::new()
        };
        let turn = Turn {
            settings: &self.settings,
            reports: &self.reports,
            renew: &renew,
            claim_max: 0,
            release_held: false,
            stopping: &self.signals.control.stopping,
            by_worker: true,
        };
        match turn.run(self.core()) {
            Ok(_) => {
                self.reports.clear();
                if renews {
                    self.next_renewal =
                        Instant::now() + Duration::from_millis(self.settings.processing_lease_ms / 3);
                }
                true
            }
            Err(error) => {
                log::warn!(target: "postbox::worker", "the last outcomes cannot be recorded yet: {error}");
                false
            }
        }
    }
}
