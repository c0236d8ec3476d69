//! Outcomes that could not be recorded when they should have been: the worker that runs, whoever processes next, or whoever
//! closes the box, records them first. Until then the box keeps their events in its hands, so that no handler runs again for want of a note.

use std::sync::{Arc, PoisonError};

use super::delivery::Report;
use super::left_alone::LeftAlone;
use super::turn::Turn;
use crate::core::Core;
use crate::outbox::claim::Suspects;
use crate::sync::atomic::AtomicBool;
use crate::sync::{Mutex, MutexGuard};

#[derive(Default)]
pub(crate) struct Unsettled {
    reports: Mutex<Vec<Report>>,
}

impl Unsettled {
    fn reports(&self) -> MutexGuard<'_, Vec<Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_any(&self) -> bool {
        !self.reports().is_empty()
    }

    pub(super) fn put(&self, reports: Vec<Report>) {
        self.reports().extend(reports);
    }

    pub(super) fn take(&self) -> Vec<Report> {
        std::mem::take(&mut *self.reports())
    }
}

/// The last chance, as the box closes. What cannot be recorded is delivered again once its lease has run out.
pub(crate) fn settle_last(core: &Core) {
    let mut reports = core.unsettled.take();
    if reports.is_empty() {
        return;
    }
    loop {
        let turn = Turn {
            settings: &core.settings(),
            reports: &mut reports,
            renew: &[],
            give_back: &[],
            claim_max: 0,
            release_held: false,
            pauses: true,
            stopping: &Arc::new(AtomicBool::new(true)),
            by_worker: false,
            suspects: Suspects::NotYet,
            left_alone: &LeftAlone::for_good(),
        };
        match turn.run(core) {
            Ok(outcome) if outcome.is_cut => {}
            Ok(_) => return,
            Err(error) => {
                log::warn!(target: "postbox::worker", "{} outcomes cannot be recorded: {error}", reports.len());
                return;
            }
        }
    }
}
