//! The threads that run a worker's handlers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::delivery::Report;
use super::dispatch::{self, Unit};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::outbox::claim::Claim;
use crate::postbox::Postbox;
use crate::settings::Settings;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel::{Receiver, Sender, unbounded};
use crate::sync::thread::{self, JoinHandle};

/// A unit and the settings under which it was claimed.
pub(crate) type Work = (Arc<Settings>, Unit);

/// Both channels are bounded by what is in flight, which the worker keeps at or below `batch_size`.
pub(crate) struct Pool {
    work: Sender<Work>,
    /// For taking back what no thread has begun.
    not_begun: Receiver<Work>,
    reports: Receiver<Report>,
    /// Nobody reads the reports any more.
    deserted: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn start(postbox: &Postbox, size: usize) -> Result<Self> {
        let (work, not_begun) = unbounded::<Work>();
        let (report, reports) = unbounded();
        let mut pool =
            Pool { work, not_begun, reports, deserted: Arc::default(), threads: Vec::with_capacity(size) };
        for number in 1..=size {
            let (postbox, inbox, report) = (postbox.clone(), pool.not_begun.clone(), report.clone());
            let deserted = Arc::clone(&pool.deserted);
            let slot = number as u64 - 1;
            let name = format!("postbox-handler-{number}");
            let thread = thread::Builder::new()
                .name(name.clone())
                .spawn(move || {
                    for (settings, unit) in inbox {
                        run_unit(&postbox, &settings, unit, slot, &mut |said| {
                            let claim = said.claim();
                            let sent = report.send(said).is_ok();
                            // The worker has given up waiting: the lease will run out, and then it is anybody's.
                            if !sent || deserted.load(Ordering::SeqCst) {
                                postbox.core().no_longer_in_flight(claim);
                            }
                        });
                    }
                })
                .map_err(|error| Error::io("start the thread", name, error))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub(crate) fn hand_out(&self, settings: &Arc<Settings>, unit: Unit) {
        // Fails only once the pool is gone.
        let _ = self.work.send((Arc::clone(settings), unit));
    }

    /// For publishers who hand events over by themselves.
    pub(crate) fn work(&self) -> Sender<Work> {
        self.work.clone()
    }

    pub(crate) fn reports(&self) -> &Receiver<Report> {
        &self.reports
    }

    /// Takes back what no thread has begun.
    pub(crate) fn take_back(&self) -> Vec<Unit> {
        self.not_begun.try_iter().map(|(_, unit)| unit).collect()
    }

    /// Ends the threads: waits for them if all of their work is done, or else leaves them to end by themselves.
    pub(crate) fn end(self, core: &Core, idle: bool) {
        let Pool { work, not_begun, reports, deserted, threads } = self;
        // In this order: a report that is sent before is found here, and one that is sent later sees the flag.
        deserted.store(true, Ordering::SeqCst);
        for report in reports.try_iter() {
            core.no_longer_in_flight(report.claim());
        }
        drop((work, not_begun, reports));
        if idle {
            for thread in threads {
                if thread.join().is_err() {
                    log::error!(target: "postbox::worker", "a handler thread panicked");
                }
            }
        }
    }
}

/// Handlers' panics are caught where they run. Should anything else panic (the application's clock, for one), the thread
/// lives on, and what it held is given back.
fn run_unit(postbox: &Postbox, settings: &Settings, unit: Unit, slot: u64, report: &mut dyn FnMut(Report)) {
    let mut open: Vec<Claim> = unit.claims();
    // They end in order, as a rule: the first to end is the last in the list, where it is found and taken away at once.
    open.reverse();
    let run = AssertUnwindSafe(|| {
        dispatch::run(postbox, settings, unit, slot, &mut |said| {
            if !matches!(said, Report::Marked { .. }) {
                let claim = said.claim();
                if let Some(at) = open.iter().rposition(|other| *other == claim) {
                    open.remove(at);
                }
            }
            report(said);
        });
    });
    if let Err(panic) = catch_unwind(run) {
        std::mem::forget(panic); // its drop is the application's, too
        log::error!(target: "postbox::worker", "a panic outside a handler: {} events are given back", open.len());
        for claim in open.into_iter().rev() {
            report(Report::GivenBack { claim, fault: Some(Error::Panicked { operation: "deliver" }) });
        }
    }
}
